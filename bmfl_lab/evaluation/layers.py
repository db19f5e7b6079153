"""Features of every block of a frozen backbone, for similarity measures and encoding models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.backbones import Backbone, FeatureStore, StoredTokens
from bmfl_lab.backbones.tokens import extract_many
from bmfl_lab.data.stimuli import StimulusSet


def flatten_tokens(stored: StoredTokens) -> np.ndarray:
    """Return stored tokens as one feature vector per stimulus.

    Parameters
    ----------
    stored : StoredTokens
        Tokens of n stimuli.

    Returns
    -------
    ndarray of float32, shape (n, d)
        All cells of a pooled grid side by side; otherwise the class token, followed by the mean
        patch token if it is stored.
    """
    if stored.manifest["identity"]["kind"].startswith("pooled"):
        return np.asarray(stored.patches, dtype=np.float32).reshape(len(stored), -1)
    return stored.features()


def layer_features(
    backbone: Backbone,
    stimuli: StimulusSet,
    tokens: str = "cls+mean",
    *,
    blocks: Sequence[int] | None = None,
    store: FeatureStore | None = None,
) -> dict[str, np.ndarray]:
    """Return the features of every block of a backbone, e.g. for `rsa_scores`.

    Parameters
    ----------
    backbone : Backbone
        Frozen backbone.
    stimuli : StimulusSet
        Images.
    tokens : str, default "cls+mean"
        "cls", "cls+mean", or "pooled:G" for a G x G grid of patches.
    blocks : sequence of int, optional
        Indices of the blocks; default: all.
    store : FeatureStore, optional
        Store of the tokens; without one they are extracted into memory.

    Returns
    -------
    dict of str to ndarray of float32, shape (n_stimuli, d)
        Features under "block 0", "block 1", ..., in the order of processing.
    """
    get = extract_many if store is None else store.get_many
    blocks = list(range(backbone.n_blocks) if blocks is None else blocks)
    stored = get(backbone, stimuli, [(tokens, b) for b in blocks])
    return {f"block {b}": flatten_tokens(s) for b, s in zip(blocks, stored)}


@dataclass(frozen=True)
class FrozenModel:
    """Give a frozen backbone the interface of an aligned network, to compare both in one table.

    Parameters
    ----------
    backbone : Backbone
        Frozen backbone.
    tokens : str, default "cls+mean"
        Kind of tokens, as in `layer_features`.
    n_layers : int, default 4
        Number of evenly spaced blocks to read; the last block is one of them.
    store : FeatureStore, optional
        Store of the tokens; without one they are extracted into memory.
    name : str, default "backbone"
        Name in tables.
    selection : str, default "none"
        Rule by which the weights were selected.
    n_classes, seed : int, default 0
        Number of classes (it has no classifier) and seed of the training (it was not trained here).
    """

    backbone: Backbone
    tokens: str = "cls+mean"
    n_layers: int = 4
    store: FeatureStore | None = None
    name: str = "backbone"
    selection: str = "none"
    n_classes: int = 0
    seed: int = 0

    @property
    def label(self) -> str:
        """Name of the backbone and where its weights come from."""
        return f"{self.backbone.name} ({self.backbone.weights_label})"

    def activations(self, stimuli: StimulusSet) -> dict[str, np.ndarray]:
        """Return features of the blocks that are read, float32 (n_stimuli, d), by block name."""
        last = self.backbone.n_blocks - 1
        blocks = {round(last * (k + 1) / self.n_layers) for k in range(self.n_layers)}
        return layer_features(
            self.backbone, stimuli, self.tokens, blocks=sorted(blocks), store=self.store
        )

    def pooled(self, stimuli: StimulusSet) -> np.ndarray:
        """Return features of the last block, float32 (n_stimuli, d)."""
        last = self.backbone.n_blocks - 1
        found = layer_features(self.backbone, stimuli, self.tokens, blocks=[last], store=self.store)
        return found[f"block {last}"]

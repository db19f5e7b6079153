"""Features of every block of a frozen backbone, as the similarity measures take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.backbones.tokens import StoredTokens, extract_many
from bmfl_lab.data.stimuli import StimulusSet


def flat(stored: StoredTokens) -> np.ndarray:
    """Return stored tokens as float32 (n_stimuli, d): every cell of a grid, or CLS (with the mean of patches)."""
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
    """Return what `rsa_scores` and `encoding_scores` take: layer name to features, in the order of processing.

    Parameters
    ----------
    backbone : Backbone
    stimuli : StimulusSet
    tokens : str, default "cls+mean"
        "cls", "cls+mean", or "pooled:G" for a G x G grid of patches.
    blocks : sequence of int, optional
        All by default.
    store : FeatureStore, optional
        Where features are kept; extracted into memory without one.

    Returns
    -------
    dict of str to ndarray of float32, shape (n_stimuli, d)
        "block 0", "block 1", ...
    """
    get = extract_many if store is None else store.get_many
    blocks = list(range(backbone.n_blocks) if blocks is None else blocks)
    found = get(
        backbone, stimuli, [(tokens, b) for b in blocks]
    )  # one pass of the backbone for all of them
    return {f"block {b}": flat(stored) for b, stored in zip(blocks, found)}


@dataclass(frozen=True)
class FrozenModel:
    """A frozen backbone in the place of an aligned network, for tables that set both side by side.

    Parameters
    ----------
    backbone : Backbone
    tokens : str, default "cls+mean"
        As in `layer_features`.
    n_layers : int, default 4
        Blocks that are read, evenly spaced, the last one among them.
    store : FeatureStore, optional
        Where features are kept.
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
        blocks = sorted({round(last * (k + 1) / self.n_layers) for k in range(self.n_layers)})
        return layer_features(self.backbone, stimuli, self.tokens, blocks=blocks, store=self.store)

    def pooled(self, stimuli: StimulusSet) -> np.ndarray:
        """Return features of the last block, float32 (n_stimuli, d)."""
        last = self.backbone.n_blocks - 1
        return next(
            iter(
                layer_features(
                    self.backbone, stimuli, self.tokens, blocks=[last], store=self.store
                ).values()
            )
        )

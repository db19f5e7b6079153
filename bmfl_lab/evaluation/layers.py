"""Features of every block of a frozen backbone, as the similarity measures take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmfl_lab.backbones.features import FeatureStore
from bmfl_lab.backbones.tokens import StoredTokens, extract
from bmfl_lab.backbones.vit import Backbone
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
    get = extract if store is None else store.get
    blocks = range(backbone.n_blocks) if blocks is None else blocks
    return {f"block {b}": flat(get(backbone, stimuli, tokens, block=b)) for b in blocks}

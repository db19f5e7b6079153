"""Configuration of a fusion model, and how the model is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from bmfl_lab.config import LoopConfig
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError, require
from bmfl_lab.models.brain_transformer import BrainTransformer, ParcelTokeniser, PatchTokeniser
from bmfl_lab.models.fusion import (
    FusionModel,
    Head,
    Query,
    count_parameters,
    matched_hidden,
)
from bmfl_lab.runtime import seed_for

Augment = Literal["none", "crop_flip"]
"""Changes of a training image at random."""
Axis = Literal["feature", "batch"]
AXES: tuple[str, ...] = get_args(Axis)
"""Axes over which the Pearson regulariser may correlate."""


@dataclass(frozen=True)
class FusionConfig:
    """Choose the parts of a fusion model or of one of its baselines, and its training.

    Parameters
    ----------
    head : "fusion", "concat" or "backbone", default "fusion"
        Two-way cross-attention; no cross-attention; no brain, with as many parameters as the fusion
        (within 2 %).
    width : int, default 64
        Common width of the fusion.
    brain_width : int, default 64
        Width of the brain transformer.
    depth : int, default 2
        Number of blocks of the brain transformer.
    n_heads : int, default 4
        Number of attention heads, in the brain transformer and in the cross-attentions.
    tokeniser : "parcel" or "patch", default "parcel"
        One brain token per (hemisphere, ROI) parcel, or one per `patch` consecutive vertices.
    patch : int, default 16
        Number of vertices per token, for "patch".
    query : "cls" or "patch", default "cls"
        Which token is the query in the cross-attention: CLS alone, or CLS and all other tokens.
    alpha : float, default 0.1
        Weight of the Pearson regulariser; not used by "backbone".
    pcc_axis : "feature" or "batch", default "feature"
        Axis over which the Pearson regulariser correlates.
    regions : tuple of str, default ("all",)
        ROIs and groups whose vertices the model reads; ("all",) for all vertices.
    label_smoothing : float in [0, 1), default 0
        Label smoothing of the cross-entropy.
    dropout : float in [0, 1), default 0.1
        Dropout rate of the brain transformer and of the classifier.
    freeze_brain : bool, default False
        Leave the brain transformer at its random initial weights: a control for what its training
        adds.
    kind : str, default "patches"
        Tokens in the feature store: "patches", or "pooled:G" for a G x G grid.
    block : int, default -1
        Block of the backbone whose tokens the model reads; -1 is the last one.
    augment : "none" or "crop_flip", default "none"
        Random parts and mirroring of the training images, see `bmfl_lab.training.batches`; such a
        model is trained from images. Tokens and responses are standardised by those of the centres.
    loop : LoopConfig
        Options of the training loop. Their seed is replaced by that of `train_fusion`.

    Raises
    ------
    ConfigError
        If `alpha` is negative, no region is named, `kind` has no patch tokens, or a rate lies
        outside [0, 1).

    Notes
    -----
    NeuralOOD does not state these sizes, nor alpha, the axis, the optimiser or its schedule; they
    are our choices.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024).
    """

    head: Head = "fusion"
    width: int = 64
    brain_width: int = 64
    depth: int = 2
    n_heads: int = 4
    tokeniser: Literal["parcel", "patch"] = "parcel"
    patch: int = 16
    query: Query = "cls"
    alpha: float = 0.1
    pcc_axis: Axis = "feature"
    regions: tuple[str, ...] = ("all",)
    label_smoothing: float = 0.0
    dropout: float = 0.1
    freeze_brain: bool = False
    kind: str = "patches"
    block: int = -1
    augment: Augment = "none"
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        checks = (
            (self.alpha >= 0, "alpha >= 0", "alpha=0.1"),
            (len(self.regions) > 0, "at least one region", "regions=('all',)"),
            (
                self.kind == "patches" or self.kind.startswith("pooled:"),
                "kind 'patches' or 'pooled:G'",
                "kind='patches'",
            ),
            (0 <= self.dropout < 1, "dropout in [0, 1)", "dropout=0.1"),
            (0 <= self.label_smoothing < 1, "label_smoothing in [0, 1)", "label_smoothing=0.0"),
        )
        wrong = [(expected, value) for fine, expected, value in checks if not fine]
        require(
            not wrong,
            ConfigError,
            "; ".join(expected for expected, _ in wrong),
            repr(self),
            "set for example " + ", ".join(value for _, value in wrong),
        )


def build_fusion(
    config: FusionConfig,
    *,
    visual_width: int,
    n_classes: int,
    atlas: Atlas | None = None,
    n_vertices: int | None = None,
    seed: int = 0,
) -> tuple[FusionModel, np.ndarray | None]:
    """Return an untrained model, initialised from `seed`, and the vertices it reads.

    Parameters
    ----------
    config : FusionConfig
        Choices of the model.
    visual_width : int
        Width of the visual tokens.
    n_classes : int
        Number of classes.
    atlas : Atlas, optional
        Atlas of the responses; needed for regions and for parcels.
    n_vertices : int, optional
        Number of vertices of the responses where there is no atlas.
    seed : int, default 0
        Seed of the initial weights. The state of torch's global generator is not changed.

    Returns
    -------
    model : FusionModel
    selected : ndarray of int64, shape (n_selected,), or None
        Vertices that the model reads; None for "backbone" without an atlas.

    Raises
    ------
    ConfigError
        If a region is unknown or absent, or regions or parcels are chosen without an atlas.
    """
    mask = _region_mask(config, atlas, n_vertices)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "init"))
        brain = None if mask is None else _brain(config, atlas, mask)
        sizes = {"visual_width": visual_width, "n_classes": n_classes, "dropout": config.dropout}
        wide = {"brain_width": config.brain_width, "width": config.width, "n_heads": config.n_heads}
        if config.head != "backbone":
            model = FusionModel(head=config.head, brain=brain, query=config.query, **sizes, **wide)
            model.brain.requires_grad_(not config.freeze_brain)
            return model, np.flatnonzero(mask)
        hidden = config.width
        if brain is not None:
            twin = FusionModel(head="fusion", brain=brain, query=config.query, **sizes, **wide)
            hidden = matched_hidden(
                count_parameters(twin), visual_width=visual_width, n_classes=n_classes
            )
        torch.manual_seed(seed_for(seed, "init", "backbone"))
        model = FusionModel(head="backbone", hidden=hidden, **sizes)
        return model, None if mask is None else np.flatnonzero(mask)


def _region_mask(
    config: FusionConfig, atlas: Atlas | None, n_vertices: int | None
) -> np.ndarray | None:
    if atlas is not None:
        return atlas.select(config.regions)
    require(
        config.head == "backbone"
        or (n_vertices is not None and config.regions == ("all",) and config.tokeniser == "patch"),
        ConfigError,
        "responses on an atlas, for regions and parcels",
        f"no atlas, regions={config.regions!r}, tokeniser={config.tokeniser!r}",
        "pass encoder=... or atlas=..., or use regions=('all',) and tokeniser='patch'",
    )
    return None if n_vertices is None else np.ones(n_vertices, dtype=bool)


def _brain(config: FusionConfig, atlas: Atlas | None, mask: np.ndarray) -> BrainTransformer:
    n = int(mask.sum())
    if config.tokeniser == "parcel":
        parcels = atlas.subset(mask).parcels()
        tokeniser = ParcelTokeniser(parcels=parcels, n_vertices=n, width=config.brain_width)
    else:
        tokeniser = PatchTokeniser(n_vertices=n, width=config.brain_width, patch=config.patch)
    return BrainTransformer(
        tokeniser=tokeniser,
        width=config.brain_width,
        depth=config.depth,
        n_heads=config.n_heads,
        positions="learned" if config.tokeniser == "parcel" else "sincos",
        dropout=config.dropout,
    )

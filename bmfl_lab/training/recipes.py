"""Recipes of the fusion model and its baselines: what is chosen, what is built, how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.models.brain_transformer import BrainTransformer, ParcelTokeniser, PatchTokeniser
from bmfl_lab.models.fusion import FusionModel, count_parameters, matched_hidden
from bmfl_lab.runtime import pick_device, seed_for
from bmfl_lab.training.fusion_parts import (
    ResponseSource,
    check_labels,
    default_encoder,
    encoder_source,
    fit_fusion,
    fusion_data,
    refuse_without_memory,
    study_backbone,
)
from bmfl_lab.training.loop import LoopConfig
from bmfl_lab.training.trained_fusion import TrainedFusion

__all__ = [
    "FusionConfig",
    "ResponseSource",
    "base",
    "build_fusion",
    "encoder_source",
    "fit_fusion",
    "prepare_fusion",
    "quick",
    "refuse_without_memory",
    "small",
    "tiny",
    "train_fusion",
]


@dataclass(frozen=True)
class FusionConfig:
    """Choices of a fusion model or of one of its baselines.

    Parameters
    ----------
    head : "fusion", "concat" or "backbone"
        Two-way cross-attention; no cross-attention; no brain, with as many parameters as the fusion
        (within 2 %).
    width, brain_width : int
        Common width of the fusion and width of the brain transformer.
    depth, n_heads : int
        Blocks of the brain transformer; heads everywhere.
    tokeniser : "parcel" or "patch"
        One brain token a (hemisphere, ROI) parcel, or one every `patch` vertices along their order.
    patch : int
        Vertices a token, for "patch".
    query : "cls" or "patch"
        Who asks in the cross-attention.
    alpha : float
        Weight of the Pearson regulariser; not used by "backbone".
    pcc_axis : "feature" or "batch"
        Its axis.
    regions : tuple of str
        ROIs and groups whose vertices the model reads; ("all",) for all.
    label_smoothing, dropout : float
        In [0, 1).
    freeze_brain : bool
        Leave the brain transformer at its random initial weights: a control for what its training
        adds.
    kind : str
        Tokens in the feature store: "patches", or "pooled:G" for a G x G grid.
    block : int
        Backbone block.
    loop : LoopConfig
        How to train. Its seed is replaced by that of `train_fusion`.

    Raises
    ------
    ConfigError
        If `alpha` is negative, no region is named, or `kind` has no patch tokens.

    Notes
    -----
    NeuralOOD states none of these sizes, nor alpha, the axis, the optimiser or its schedule: all
    are our choices.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024).
    """

    head: Literal["fusion", "concat", "backbone"] = "fusion"
    width: int = 64
    brain_width: int = 64
    depth: int = 2
    n_heads: int = 4
    tokeniser: Literal["parcel", "patch"] = "parcel"
    patch: int = 16
    query: Literal["cls", "patch"] = "cls"
    alpha: float = 0.1
    pcc_axis: Literal["feature", "batch"] = "feature"
    regions: tuple[str, ...] = ("all",)
    label_smoothing: float = 0.0
    dropout: float = 0.1
    freeze_brain: bool = False
    kind: str = "patches"
    block: int = -1
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        problems = {
            "alpha >= 0": self.alpha >= 0,
            "at least one region": len(self.regions) > 0,
            "kind 'patches' or 'pooled:G'": self.kind == "patches"
            or self.kind.startswith("pooled:"),
            "dropout and label_smoothing in [0, 1)": 0 <= self.dropout < 1
            and 0 <= self.label_smoothing < 1,
        }
        wrong = [name for name, fine in problems.items() if not fine]
        if wrong:
            raise ConfigError(message("; ".join(wrong), repr(self), "correct the field"))


def tiny(**changes: Any) -> FusionConfig:
    """Return a config for the planted study and tests: seconds on one core."""
    small_loop = LoopConfig(epochs=40, batch_size=32, lr=3e-3, weight_decay=0.05)
    return configs.replace(
        FusionConfig(width=32, brain_width=32, depth=1, loop=small_loop), **changes
    )


def quick(**changes: Any) -> FusionConfig:
    """Return a config for many models of the demo: patches pooled to a 4 x 4 grid, seconds a model on one core."""
    loop = LoopConfig(epochs=8, batch_size=64, lr=5e-3, weight_decay=0.05)
    return configs.replace(
        FusionConfig(width=32, brain_width=32, depth=1, kind="pooled:4", loop=loop), **changes
    )


def small(**changes: Any) -> FusionConfig:
    """Return a config for the demo: minutes on two cores."""
    loop = LoopConfig(epochs=20, batch_size=128, lr=1e-3, weight_decay=0.05)
    return configs.replace(FusionConfig(width=64, brain_width=64, depth=2, loop=loop), **changes)


def base(**changes: Any) -> FusionConfig:
    """Return a config for ImageNet-sized studies on a GPU."""
    loop = LoopConfig(epochs=20, batch_size=1024, lr=1e-3, weight_decay=0.05)
    chosen = FusionConfig(width=384, brain_width=384, depth=4, n_heads=6, kind="patches", loop=loop)
    return configs.replace(chosen, **changes)


def build_fusion(
    config: FusionConfig,
    *,
    visual_width: int,
    n_classes: int,
    atlas: Atlas | None = None,
    n_vertices: int | None = None,
    seed: int = 0,
) -> tuple[FusionModel, np.ndarray | None]:
    """Build an untrained model, initialised from `seed`.

    Parameters
    ----------
    config : FusionConfig
        The choices.
    visual_width, n_classes : int
        Width of the tokens and number of classes.
    atlas : Atlas, optional
        Of the responses; needed for regions and for parcels.
    n_vertices : int, optional
        Vertices of the responses where there is no atlas.
    seed : int, default 0
        Of the initial weights; the global generator is left alone.

    Returns
    -------
    model : FusionModel
    selected : ndarray of int64, shape (n_selected,), or None
        Vertices the model reads; None for "backbone" without an atlas.

    Raises
    ------
    ConfigError
        If a region is unknown or absent, or regions or parcels are asked for without an atlas.
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
    if config.head != "backbone" and (
        n_vertices is None or config.regions != ("all",) or config.tokeniser != "patch"
    ):
        raise ConfigError(
            message(
                "responses on an atlas, for regions and parcels",
                f"no atlas, regions={config.regions!r}, tokeniser={config.tokeniser!r}",
                "give an encoder or atlas, or use regions=('all',) and tokeniser='patch'",
            )
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


def train_fusion(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any = None,
    brain: ResponseSource | None = None,
    atlas: Atlas | None = None,
    store: FeatureStore | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    name: str | None = None,
    backbone: Any = None,
    silent: np.ndarray | None = None,
    resume: bool = True,
    allow_change: Sequence[str] = (),
) -> TrainedFusion:
    """Train a fusion model or a baseline on cached tokens; the epoch is selected by ID validation accuracy only.

    Parameters
    ----------
    config : FusionConfig
        What to train.
    study : Study
        Trains on its set "train", selects on "val"; no other set is read.
    encoder : TrainedEncoder, optional
        Predicts the responses; trained on the study's first subject with the default recipe when
        neither it nor `brain` is given and the head needs responses.
    brain : callable, optional
        ``brain(stimuli, tokens) -> (n_stimuli, n_vertices)`` in place of predicted responses:
        noise, other images' responses, patch features, attributes. With an `encoder` or `atlas` of
        as many vertices, regions and parcels are those of its atlas.
    atlas : Atlas, optional
        Of what `brain` returns; the encoder's by default. A "backbone" model uses it to match the
        fusion's capacity.
    store : FeatureStore, optional
        Where tokens are kept.
    folder : str or Path, optional
        Where checkpoints go.
    resume, allow_change
        As `bmfl_lab.training.fit`; with a folder only. Another study, encoder or model than that of
        the checkpoints is refused unless its identity field is named in `allow_change`.
    device : "auto", "cpu" or "cuda"
        Where to train and predict.
    seed : int, default 0
        Of initial weights, order and dropout.
    name : str, optional
        Name in tables; the head by default.
    backbone : Backbone, optional
        Already loaded; the study's by default.
    silent : ndarray of bool, shape (n_vertices,), optional
        Vertices that stay at their mean, in training and after: the model has their tokens and no
        information in them, so that models with and without a region have the same size.

    Returns
    -------
    TrainedFusion

    Raises
    ------
    ConfigError, DataError
        If choices do not fit the study, a label is missing, or the tokens do not fit into memory.
    NumericsError, CheckpointError
        As `bmfl_lab.training.fit`.
    """
    trained, data, held_out = prepare_fusion(
        config,
        study,
        encoder=encoder,
        brain=brain,
        atlas=atlas,
        store=store,
        device=device,
        seed=seed,
        name=name,
        backbone=backbone,
        silent=silent,
    )
    return fit_fusion(
        trained, data, held_out, study, folder=folder, resume=resume, allow_change=allow_change
    )


def prepare_fusion(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any = None,
    brain: ResponseSource | None = None,
    atlas: Atlas | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
    seed: int = 0,
    name: str | None = None,
    backbone: Any = None,
    silent: np.ndarray | None = None,
) -> tuple[TrainedFusion, dict[str, Tensor], dict[str, Tensor]]:
    """Return the untrained model of `train_fusion` with its training and validation tensors, standardised.

    Raises
    ------
    ConfigError, DataError
        As `train_fusion`.
    """
    device = pick_device(device)
    train, val = study.set("train"), study.set("val")
    for stimuli in (train, val):
        check_labels(stimuli, len(study.class_names))
    backbone = backbone if backbone is not None else study_backbone(study.backbone, device)
    if encoder is None and brain is None and config.head != "backbone":
        encoder = default_encoder(study, store, device)
    atlas = atlas if atlas is not None else getattr(encoder, "atlas", None)
    store = store if store is not None else FeatureStore()
    source = None
    if config.head != "backbone":
        source = brain if brain is not None else encoder_source(encoder, store, backbone, device)
    trained = TrainedFusion(
        name=name or config.head,
        config=config,
        seed=seed,
        class_names=study.class_names,
        backbone=backbone,
        encoder=encoder,
        source=source,
        atlas=atlas,
        store=store,
        device=device,
    )
    data = fusion_data(trained, train)
    held_out = fusion_data(trained, val)
    trained.prepare(data, n_vertices=None if "response" not in data else data["response"].shape[1])
    if silent is not None:
        trained.silence(silent)
    for tensors in (data, held_out):
        if "response" in tensors:
            tensors["response"] = trained.standardise(tensors["response"])
    return trained, data, held_out

"""Train the brain encoder of a subject: tokens of a frozen backbone to one response per vertex."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.backbones.tokens import stored_patches
from bmfl_lab.config import config_hash, replace, to_dict
from bmfl_lab.data.atlas import ALGONAUTS_ROIS, Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.study import BackboneSpec, Study
from bmfl_lab.errors import CheckpointError, ConfigError, DataError, require
from bmfl_lab.files import sha256_json
from bmfl_lab.metrics.correlation import StreamingPearson, pearson
from bmfl_lab.models.encoders import (
    EnsembleEncoder,
    LinearEncoder,
    ROIQueryEncoder,
    ScaledEncoder,
    ensemble_weights,
    fit_retinotopic,
    flatten_patches,
    query_masks,
)
from bmfl_lab.models.ridge import DEFAULT_ALPHAS, fit_ridge
from bmfl_lab.runtime import home, processes, rng, seed_everything, seed_for
from bmfl_lab.training.checkpoint import read_manifest
from bmfl_lab.training.context import load_spec, local_device
from bmfl_lab.training.external import ExternalEncoder
from bmfl_lab.training.loop import LoopConfig, fit, gathered
from bmfl_lab.training.stage import once
from bmfl_lab.training.trained_encoder import (
    STEM,
    TrainedEncoder,
    backbone_digest,
    frozen,
    load_encoder,
    token_source,
)

FORMAT = 1
ENSEMBLE = ("ridge", "roi_query", "retinotopic")
"""Kinds whose encoders an encoder of kind "ensemble" averages."""


@dataclass(frozen=True)
class EncoderConfig:
    """Choices of a brain encoder and its training.

    Parameters
    ----------
    kind : {"roi_query", "ridge", "linear", "retinotopic", "ensemble"}
        "roi_query": transformer with one query per region. "ridge", "linear": linear map, fitted by
        cross-validated ridge regression or by gradient descent. "retinotopic": one receptive field
        per vertex. "ensemble": ridge, ROI queries and receptive fields, averaged per vertex with
        weights that follow validation r.
    blocks : tuple of int, default (-1,)
        Indices of the backbone's blocks; several are joined along the width.
    tokens : str, default "patches"
        Kind of tokens: "cls", "cls+mean", "patches" or "pooled:G" (G x G cells).
    features : {"tokens", "q"}, default "tokens"
        The output of the block, or the query part of its attention's input projection, which Adeli
        et al. (2025) used.
    scheme : {"rois", "streams", "hemispheres"}, default "rois"
        Regions that get a query: every ROI and the rest, the streams and the rest, or each
        hemisphere.
    pooling : {"auto", "mean", "grid"}, default "auto"
        For linear kinds: average over patches, or one weight per patch. "auto" averages full
        patches and keeps every cell of a pooled grid.
    backbone : str, optional
        Name of the backbone; default: that of the study.
    weights : str, optional
        Weights of the backbone; default: those of the study, or the loader's own search if
        `backbone` names another one.
    image_size : int, optional
        Side of the images in pixels; default: that of the study.
    width : int, optional
        Width of the ROI-query transformer; default: that of the tokens.
    n_heads, ffn_width : int, default 16 and 1024
        Attention heads and feed-forward width of the ROI-query transformer.
    dropout : float, default 0.1
        Dropout rate of the ROI-query transformer.
    alphas : tuple of float
        Penalties of the ridge regression.
    n_folds : int, default 5
        Number of folds of its cross-validation.
    leave_session_out : bool, default False
        Use the scanning sessions as folds.
    n_features, per_side : int, default 64 and 8
        Principal components of the tokens, and candidate centres per side, of the receptive fields.
    val_fraction : float, default 0.1
        Share of "train" that is held out if the subject has no split "val".
    split_seed : int, default 0
        Seed of that split.
    temperature : float, default 40
        Factor of validation r in the softmax of the ensemble.
    loop : LoopConfig
        Choices of the gradient descent.

    Raises
    ------
    ConfigError
        If there is no block, `val_fraction` is outside (0, 1), or the kind needs tokens with
        places.

    References
    ----------
    Adeli et al. (2025), Transformer brain encoders explain human high-level visual responses,
    arXiv:2505.17329: width 768, 16 heads, feed-forward width 1024, dropout 0.1, AdamW with learning
    rate 5e-4 and weight decay 1e-4, batch size 16, 15 epochs, gradients clipped at 0.1, 10 % of the
    training images for validation, softmax factor 40.
    """

    kind: Literal["roi_query", "ridge", "linear", "retinotopic", "ensemble"] = "roi_query"
    blocks: tuple[int, ...] = (-1,)
    tokens: str = "patches"
    features: Literal["tokens", "q"] = "tokens"
    scheme: Literal["rois", "streams", "hemispheres"] = "rois"
    pooling: Literal["auto", "mean", "grid"] = "auto"
    backbone: str | None = None
    weights: str | None = None
    image_size: int | None = None
    width: int | None = None
    n_heads: int = 16
    ffn_width: int = 1024
    dropout: float = 0.1
    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    n_folds: int = 5
    leave_session_out: bool = False
    n_features: int = 64
    per_side: int = 8
    val_fraction: float = 0.1
    split_seed: int = 0
    temperature: float = 40.0
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            epochs=15, batch_size=16, lr=5e-4, weight_decay=1e-4, clip_norm=0.1
        )
    )

    def __post_init__(self) -> None:
        require(
            self.blocks and 0 < self.val_fraction < 1,
            ConfigError,
            "at least one block and 0 < val_fraction < 1",
            f"{self.blocks}, {self.val_fraction}",
            "use e.g. blocks=(-1,) and val_fraction=0.1",
        )
        require(
            self.kind not in ("retinotopic", "ensemble") or self.tokens not in ("cls", "cls+mean"),
            ConfigError,
            f"tokens with places for kind {self.kind!r}",
            repr(self.tokens),
            "use 'patches' or 'pooled:G'",
        )


def tiny(kind: str = "roi_query") -> EncoderConfig:
    """Return a configuration for the planted study, which trains in seconds on a CPU.

    Parameters
    ----------
    kind : str, default "roi_query"
        See `EncoderConfig.kind`.
    """
    return replace(
        EncoderConfig(),
        kind=kind,
        tokens=_tokens(kind),
        width=64,
        n_heads=8,
        ffn_width=128,
        dropout=0.0,
        n_features=32,
        loop=LoopConfig(epochs=25, batch_size=64, lr=5e-3, weight_decay=1e-3, clip_norm=1.0),
    )


def small(kind: str = "roi_query") -> EncoderConfig:
    """Return a configuration for the demo and backbones of 12 blocks: about a minute on a CPU.

    Parameters
    ----------
    kind : str, default "roi_query"
        See `EncoderConfig.kind`.

    Notes
    -----
    The blocks were chosen on the validation images of the demo: an early one keeps places, a late
    one meaning. Early visual areas lose most if only the last block is read. A ridge reads the
    early block on a grid.
    """
    return replace(
        EncoderConfig(),
        kind=kind,
        blocks=(2,) if kind in ("ridge", "linear") else (2, 8),
        tokens=_tokens(kind),
        width=192,
        n_heads=8,
        ffn_width=384,
        loop=LoopConfig(epochs=12, batch_size=64, lr=2e-3, weight_decay=1e-3, clip_norm=1.0),
    )


quick = small
"""The heads of preset "quick" read the same encoder as those of "small"."""


def base(kind: str = "roi_query") -> EncoderConfig:
    """Return the settings of Adeli et al. (2025), for measured responses.

    Parameters
    ----------
    kind : str, default "roi_query"
        See `EncoderConfig.kind`.

    Notes
    -----
    The 2 x 2 grid of pooled patches for linear kinds is our choice. It keeps some place, and
    cross-validation over 40,000 vertices takes minutes on a CPU; 16 cells would take hours.

    References
    ----------
    See `EncoderConfig`.
    """
    return replace(EncoderConfig(), kind=kind, tokens=_tokens(kind, cells=2))


def _tokens(kind: str, cells: int = 4) -> str:
    """Return a pooled grid for linear kinds, which would lose all places in a mean over patches."""
    return f"pooled:{cells}" if kind in ("ridge", "linear") else "patches"


@dataclass
class _Job:
    """The data of one training, read once and shared by the members of an ensemble."""

    config: EncoderConfig
    subject: Subject
    grid: tuple[int, int]
    patches: np.ndarray
    rows: dict[str, np.ndarray]
    device: str
    folder: Path
    identity: dict[str, Any]
    fresh: bool

    def x(self, split: str) -> np.ndarray:
        return self.patches[self.rows[split]]

    def y(self, split: str) -> np.ndarray:
        return np.asarray(self.subject.responses[self.rows[split]], np.float32)

    def linear_sizes(self) -> dict[str, Any]:
        pooling = self.config.pooling
        if pooling == "auto":
            pooling = "grid" if self.config.tokens.startswith("pooled") else "mean"
        _, n_patches, token_width = self.patches.shape
        return {"token_width": token_width, "pooling": pooling, "n_patches": n_patches}


@dataclass
class _Fitted:
    """A fitted module with its validation r per vertex and the record of its training."""

    module: nn.Module
    scores: np.ndarray
    selection: str
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def train_brain_encoder(
    config: EncoderConfig,
    study: Study,
    *,
    subject: str | None = None,
    store: FeatureStore | None = None,
    folder: str | Path | None = None,
    fresh: bool = False,
    device: str = "auto",
    backbone: Backbone | None = None,
) -> TrainedEncoder | ExternalEncoder:
    """Train a brain encoder for one subject, or load it if it was trained before.

    Parameters
    ----------
    config : EncoderConfig
        Kind, tokens and training of the encoder, e.g. from a preset.
    study : Study
        Study of the subject; it also names the default backbone.
    subject : str, optional
        Name of the subject; default: the first one.
    store : FeatureStore, optional
        Store of the tokens; default: the store in the project's cache folder.
    folder : str or Path, optional
        Folder of the encoder and of the checkpoints of its training; default: ``encoders/<hash>``
        in the project's cache folder, where those that were used longest ago are deleted beyond
        the limit of the store. A training that was stopped continues from its newest
        checkpoint.
    fresh : bool, default False
        Train from the start, even if the folder holds the encoder or a part of its training.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of the training.
    backbone : Backbone, optional
        Loaded backbone to use instead of the configured one, e.g. a control with random weights.

    Returns
    -------
    TrainedEncoder or ExternalEncoder
        Selected by mean validation r (gradient descent) or by cross-validation within "train"
        (closed form). For a subject whose responses are predictions, nothing is trained.

    Raises
    ------
    DataError
        If the responses contain NaN and the kind cannot leave them out, or if a split is too small.
    CheckpointError
        If the folder holds a damaged encoder, or one of other data or settings.
    """
    who = study.subject(subject)
    spec = _spec(config, study)
    if who.kind == "predicted":
        print(f"{who.name}: the responses are predictions, so no encoder is trained", flush=True)
        return ExternalEncoder(who, spec, to_dict(config))
    backbone = load_spec(spec, device) if backbone is None else backbone
    identity = {
        "format": FORMAT,
        "config": config_hash(config),
        "subject": subject_fingerprint(who),
        "backbone": backbone_digest(backbone.describe())[:16],
    }
    name = sha256_json(identity)[:16]
    tokens = store if store is not None else FeatureStore()
    limit_gb = tokens.limit_gb if folder is None else math.inf
    folder = Path(folder) if folder is not None else home() / "encoders" / name
    device = local_device(device)

    def train() -> TrainedEncoder:
        wanted = [(config.tokens, block) for block in config.blocks]
        stored = tokens.get_many(backbone, who.stimuli, wanted, features=config.features)
        rows, how = split_rows(config, who)
        grid = stored[0].grid if stored[0].patches is not None else (1, 1)
        job = _Job(config, who, grid, stored_patches(stored), rows, device, folder, identity, fresh)
        fitted = _KINDS[config.kind](job)
        return TrainedEncoder(
            module=frozen(fitted.module),
            atlas=who.atlas,
            backbone=spec,
            sources=tuple(token_source(s.manifest) for s in stored),
            label=_label(config, who, backbone),
            hash=name,
            scores=fitted.scores,
            selection=fitted.selection,
            history=fitted.history,
            facts=_facts(job, how) | {"study": study.name} | fitted.notes,
        )

    return once(
        folder / f"{STEM}.json",
        lambda: _load_same(folder, name),
        train,
        lambda encoder: encoder.save(folder),
        what="the encoder",
        device=device,
        fresh=fresh,
        limit_gb=limit_gb,
    )


def _load_same(folder: Path, name: str) -> TrainedEncoder:
    stored = read_manifest(folder / f"{STEM}.json").get("hash")
    require(
        stored == name,
        CheckpointError,
        f"the encoder {name} in {folder}",
        f"{stored}: other settings, responses or backbone weights",
        "use another folder, or train again with fresh=True",
    )
    return load_encoder(folder)


def _spec(config: EncoderConfig, study: Study) -> BackboneSpec:
    own = study.backbone
    name = config.backbone or own.name
    weights = config.weights if config.weights is not None or name != own.name else own.weights
    return BackboneSpec(name, weights, config.image_size or own.image_size, own.resize)


def _label(config: EncoderConfig, subject: Subject, backbone: Backbone) -> str:
    blocks = ", ".join(map(str, config.blocks))
    source = f"{backbone.name} ({backbone.weights_label}), block {blocks}"
    return f"{config.kind} encoder of {subject.name} ({subject.kind} responses), {source}"


def _facts(job: _Job, how: str) -> dict[str, Any]:
    subject, rows = job.subject, job.rows
    used = np.concatenate([subject.responses[rows["train"]], subject.responses[rows["val"]]])
    return {
        "config": to_dict(job.config),
        "split": how,
        "split_seed": job.config.split_seed,
        "subject_split": subject.info.get("split"),
        "n_train": len(rows["train"]),
        "n_val": len(rows["val"]),
        "n_missing_responses": int(np.sum(~np.isfinite(used))),
        "subject_fingerprint": job.identity["subject"],
        "subject": subject.name,
        "simulated": subject.simulated,
    }


def subject_fingerprint(subject: Subject) -> str:
    """Return 16 hexadecimal digits that change with any image, response, ROI or split."""
    h = hashlib.sha256(f"{subject.name}\n{subject.stimuli.fingerprint()}\n".encode())
    step = max(1, (64 << 20) // max(1, subject.n_vertices * 4))
    for start in range(0, len(subject.stimuli), step):
        h.update(np.ascontiguousarray(subject.responses[start : start + step]).tobytes())
    h.update(np.asarray(subject.atlas.hemisphere, np.int8).tobytes())
    for name, mask in subject.atlas.rois.items():
        h.update(name.encode() + np.packbits(np.asarray(mask, bool)).tobytes())
    for name in sorted(subject.splits):
        h.update(name.encode() + np.asarray(subject.splits[name], np.int64).tobytes())
    return h.hexdigest()[:16]


def split_rows(config: EncoderConfig, subject: Subject) -> tuple[dict[str, np.ndarray], str]:
    """Return the rows of the subject's stimuli for training and validation.

    Parameters
    ----------
    config : EncoderConfig
        Gives `val_fraction` and `split_seed` if the subject has no split "val".
    subject : Subject
        Subject with a split "train"; its split "test" is never used.

    Returns
    -------
    rows : dict of str to ndarray of int
        Row indices under "train" and "val".
    how : str
        Rule by which they were chosen.

    Raises
    ------
    DataError
        If fewer than three stimuli would be left for validation, or none for training.
    """
    train, own = subject.rows("train"), len(subject.splits.get("val", ()))
    if own:
        rows, how = (
            {"train": train, "val": subject.rows("val")},
            "the subject's own validation split",
        )
    else:
        order = rng(config.split_seed, "encoder", "val").permutation(len(train))
        n = round(config.val_fraction * len(train))
        rows = {"train": np.sort(train[order[n:]]), "val": np.sort(train[order[:n]])}
        how = f"{config.val_fraction:.0%} of train, drawn with seed {config.split_seed}"
    if own:
        remedy = "move stimuli from one split to the other, so that 'val' has 3 or more"
    elif len(train) > 3:
        remedy = f"set val_fraction={3 / len(train):.3f}"
    else:
        remedy = "give 4 or more training stimuli"
    require(
        len(rows["val"]) >= 3 and len(rows["train"]),
        DataError,
        "at least 3 stimuli for validation and some for training",
        f"{len(rows['val'])} and {len(rows['train'])}",
        remedy,
    )
    return rows, how


def scheme_rois(atlas: Atlas, scheme: str) -> dict[str, np.ndarray]:
    """Return the ROIs that get a query under a scheme.

    Parameters
    ----------
    atlas : Atlas
        Atlas of the subject.
    scheme : {"rois", "streams", "hemispheres"}
        "rois" leaves the streams out if there are other ROIs, because the streams contain them;
        "hemispheres" needs no ROI.

    Returns
    -------
    dict of str to ndarray of bool, shape (n_vertices,)

    Raises
    ------
    ConfigError
        If the scheme is "streams" and the atlas has none.
    """
    if scheme == "hemispheres":
        return {}
    masks = {n: np.asarray(atlas.rois[n], bool) for n in atlas.present}
    streams = {n: m for n, m in masks.items() if n in ALGONAUTS_ROIS["streams"]}
    require(
        scheme != "streams" or streams,
        ConfigError,
        "an atlas with streams",
        ", ".join(atlas.present),
        "use scheme='rois'",
    )
    others = {n: m for n, m in masks.items() if n not in streams}
    return streams if scheme == "streams" else others or masks


def _ridge(job: _Job) -> _Fitted:
    config, sizes = job.config, job.linear_sizes()
    X = {
        split: flatten_patches(
            torch.from_numpy(np.asarray(job.x(split), np.float32)), sizes["pooling"]
        ).numpy()
        for split in ("train", "val")
    }
    folds = None
    if config.leave_session_out:
        require(
            job.subject.sessions is not None,
            ConfigError,
            "a session per stimulus",
            "none in this subject",
            "set leave_session_out=False",
        )
        folds = np.asarray(job.subject.sessions)[job.rows["train"]]
    ridge = fit_ridge(
        X["train"], job.y("train"), config.alphas, config.n_folds, folds=folds, device=job.device
    )
    return _Fitted(
        LinearEncoder.from_ridge(ridge, **sizes),
        pearson(job.y("val"), ridge.predict(X["val"])),
        "cross-validation within train, one penalty per vertex",
        notes={"alpha_edge_share": ridge.edge_share, "alpha_median": float(np.median(ridge.alpha))},
    )


def _retinotopic(job: _Job) -> _Fitted:
    config = job.config
    module = fit_retinotopic(
        job.x("train"),
        job.y("train"),
        grid=job.grid,
        n_features=config.n_features,
        per_side=config.per_side,
        alphas=config.alphas,
        n_folds=config.n_folds,
        device=job.device,
    )
    return _Fitted(
        module,
        _validation_r(module, job),
        "cross-validation within train, one field per vertex",
        notes=module.fit_facts,
    )


def _linear(job: _Job) -> _Fitted:
    seed_everything(seed_for(job.config.loop.seed, "encoder", "init") % 2**32)
    encoder = LinearEncoder(n_vertices=job.subject.n_vertices, **job.linear_sizes())
    return _descend(job, encoder)


def _roi_query(job: _Job) -> _Fitted:
    seed_everything(seed_for(job.config.loop.seed, "encoder", "init") % 2**32)
    width = job.patches.shape[2]
    return _descend(job, build_roi_query(job.config, job.subject.atlas, width, job.grid))


def build_roi_query(
    config: EncoderConfig, atlas: Atlas, token_width: int, grid: tuple[int, int]
) -> ROIQueryEncoder:
    """Return an untrained encoder of kind "roi_query", drawn from torch's global generator.

    Parameters
    ----------
    config : EncoderConfig
        Sizes of the transformer, and the scheme of its queries.
    atlas : Atlas
        Regions and vertices.
    token_width : int
        Width of the tokens, times the number of blocks.
    grid : (int, int)
        Rows and columns of the patches.
    """
    _, masks = query_masks(atlas.hemisphere, scheme_rois(atlas, config.scheme))
    return ROIQueryEncoder(
        masks=masks,
        token_width=token_width,
        grid=grid,
        width=config.width,
        n_heads=config.n_heads,
        ffn_width=config.ffn_width,
        dropout=config.dropout,
    )


def _descend(job: _Job, inner: nn.Module) -> _Fitted:
    """Train an encoder of standardised responses by gradient descent; missing ones are left out."""
    y = job.y("train")
    y[~np.isfinite(y)] = np.nan
    with np.errstate(invalid="ignore"):
        mean, scale = np.nan_to_num(np.nanmean(y, 0)), np.nan_to_num(np.nanstd(y, 0))
    scale = np.where(scale > 1e-6 * np.abs(mean), scale, 1).astype(np.float32)
    module = ScaledEncoder(
        encoder=inner, mean=torch.from_numpy(mean.astype(np.float32)), scale=torch.from_numpy(scale)
    )
    n_left = job.subject.atlas.n_left
    data = {
        "patches": torch.from_numpy(np.ascontiguousarray(job.x("train"))),
        "responses": torch.from_numpy(y),
    }

    def loss(encoder: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        plain = getattr(encoder, "module", encoder)
        predicted = encoder(batch["patches"].float()).float()
        value = encoder_loss(predicted, batch["responses"], plain.scale_V, n_left)
        return value, {"mse": value.detach()}

    result = fit(
        module,
        loss,
        data,
        job.config.loop,
        validate=lambda m: {"val_r": _mean(_validation_r(m, job))},
        select=("val_r", "max"),
        folder=job.folder / "training",
        resume=not job.fresh,
        device=job.device,
        manifest=job.identity,
        what=f"brain encoder of {job.subject.name}",
    )
    return _Fitted(
        module,
        _validation_r(module, job),
        result.selection,
        result.history,
        {"epoch": result.epoch},
    )


def encoder_loss(
    predicted_BV: Tensor, responses_BV: Tensor, scale_V: Tensor, n_left: int
) -> Tensor:
    """Return the mean squared error of standardised responses, summed over hemispheres.

    Parameters
    ----------
    predicted_BV, responses_BV : Tensor, shape (B, V)
        Predicted and measured responses; responses that are NaN are left out.
    scale_V : Tensor, shape (V,)
        Standard deviation of each vertex.
    n_left : int
        Number of vertices of the left hemisphere, which come first.

    Returns
    -------
    Tensor, scalar

    Raises
    ------
    DataError
        If the shapes differ; nothing is broadcast.

    References
    ----------
    Adeli et al. (2025), arXiv:2505.17329: sum of the mean squared errors of both hemispheres. That
    responses are standardised first is our choice.
    """
    require(
        predicted_BV.shape == responses_BV.shape,
        DataError,
        f"predictions of shape {tuple(responses_BV.shape)}",
        tuple(predicted_BV.shape),
        "train the encoder on the vertices of these responses",
    )
    known = responses_BV.isfinite()
    error = torch.where(known, (predicted_BV - responses_BV.nan_to_num()) / scale_V, 0).square()
    parts = [
        (e.sum(), k.sum())
        for e, k in zip(error.tensor_split([n_left], 1), known.tensor_split([n_left], 1))
    ]
    return sum(e / k.clamp(min=1) for e, k in parts)


def _validation_r(module: nn.Module, job: _Job, batch_size: int = 64) -> np.ndarray:
    """Return r per vertex on the images of validation, which are divided over the processes."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    x, y = job.x("val"), job.y("val")
    stream, (rank, count) = StreamingPearson(y.shape[1]), processes()
    with torch.no_grad():
        for start in range(rank * batch_size, len(x), count * batch_size):
            rows = slice(start, start + batch_size)
            part = torch.as_tensor(np.array(x[rows], np.float32), device=device)
            stream.update(y[rows], module(part))
    if count > 1:
        stream, *others = gathered([stream], job.device)
        for other in others:
            stream.merge(other)
    return stream.result()


def _mean(r: np.ndarray) -> float:
    return float(np.mean(r[np.isfinite(r)])) if np.isfinite(r).any() else float("nan")


def _ensemble(job: _Job) -> _Fitted:
    members = {kind: _KINDS[kind](job) for kind in ENSEMBLE}
    scores = {kind: member.scores for kind, member in members.items()}
    weights = ensemble_weights(np.stack(list(scores.values())), job.config.temperature)
    module = EnsembleEncoder(
        members=[frozen(member.module) for member in members.values()],
        weights=torch.from_numpy(weights),
    )
    notes = {
        "members": list(members),
        "winner": winners(job.subject.atlas, scores),
        "note": "the weights come from the same validation stimuli as the validation r",
    }
    return _Fitted(
        module,
        _validation_r(module, job),
        "softmax of validation r per vertex",
        members["roi_query"].history,
        notes,
    )


def winners(atlas: Atlas, scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return each encoder's mean validation r per ROI, and the best encoder.

    Parameters
    ----------
    atlas : Atlas
        Atlas of the vertices.
    scores : mapping of str to ndarray, shape (n_vertices,)
        Validation r per vertex by encoder; NaN where undefined.

    Returns
    -------
    dict of str to dict
        ``{"V1": {"winner": "ridge", "ridge": 0.5, ...}, ...}``; None where no r is defined.
    """
    table: dict[str, dict[str, Any]] = {}
    for roi in atlas.present:
        means = {k: _mean(r[np.asarray(atlas.rois[roi], bool)]) for k, r in scores.items()}
        defined = {k: m for k, m in means.items() if np.isfinite(m)}
        table[roi] = {
            "winner": max(defined, key=defined.get) if defined else None,
            **{k: defined.get(k) for k in means},
        }
    return table


_KINDS = {
    "ridge": _ridge,
    "linear": _linear,
    "roi_query": _roi_query,
    "retinotopic": _retinotopic,
    "ensemble": _ensemble,
}

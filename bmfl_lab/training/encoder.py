"""Train the brain encoder of a subject: tokens of a frozen backbone to responses per vertex."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.backbones import Backbone, FeatureStore, load_backbone
from bmfl_lab.config import config_hash, to_dict
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.study import BackboneSpec, Study
from bmfl_lab.errors import CheckpointError, ConfigError, DataError, message
from bmfl_lab.files import lock, sha256_json
from bmfl_lab.metrics.correlation import StreamingPearson, pearson
from bmfl_lab.models.brain_encoder import (
    EnsembleEncoder,
    LinearEncoder,
    ScaledEncoder,
    ensemble_weights,
    fit_retinotopic,
    pool_patches,
)
from bmfl_lab.models.ridge import fit_ridge
from bmfl_lab.models.roi_query import ROIQueryEncoder, query_masks
from bmfl_lab.runtime import home, pick_device, seed_everything, seed_for
from bmfl_lab.training.checkpoint import read_manifest
from bmfl_lab.training.encoder_config import EncoderConfig, base, quick, small, tiny
from bmfl_lab.training.encoder_data import scheme_rois, split_rows, subject_fingerprint
from bmfl_lab.training.encoder_io import (
    STEM,
    TrainedEncoder,
    as_patches,
    frozen,
    load_encoder,
    token_source,
)
from bmfl_lab.training.loop import fit

FORMAT = 1
ENSEMBLE = ("ridge", "roi_query", "retinotopic")
__all__ = [
    "EncoderConfig",
    "base",
    "quick",
    "small",
    "tiny",
    "train_brain_encoder",
    "train_brain_encoders",
    "winners",
]


@dataclass
class _Job:
    """What one training needs, gathered once and shared by an ensemble's members."""

    config: EncoderConfig
    subject: Subject
    grid: tuple[int, int]
    patches: np.ndarray
    rows: dict[str, np.ndarray]
    device: str
    folder: Path | None
    identity: dict[str, Any]

    def x(self, split: str) -> np.ndarray:
        return self.patches[self.rows[split]]

    def y(self, split: str) -> np.ndarray:
        return np.asarray(self.subject.responses[self.rows[split]], np.float32)


def train_brain_encoder(
    config: EncoderConfig,
    study: Study,
    *,
    subject: str | None = None,
    store: FeatureStore | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    backbone: Backbone | None = None,
) -> TrainedEncoder:
    """Train a brain encoder for one subject, or load it if it was trained before.

    Parameters
    ----------
    config : EncoderConfig
        How.
    study : Study
        Source of the subject and of the default backbone.
    subject : str, optional
        Name; default the first one.
    store : FeatureStore, optional
        Where tokens are kept; default the project's own.
    folder : str or Path, optional
        Where the encoder (and checkpoints of its training) are kept; default ``encoders/<hash>`` in
        the project's cache folder.
    device : {"auto", "cpu", "cuda"}
        Where to train.
    backbone : Backbone, optional
        Loaded backbone to use instead of the configured one (a control with random weights, say).

    Returns
    -------
    TrainedEncoder
        Selected by mean validation r (gradient descent) or cross-validation within "train" (closed
        form).

    Raises
    ------
    DataError
        If the responses hold NaN and the kind cannot mask them, or a split is too small.
    CheckpointError
        If the folder holds a damaged encoder, or one of other data or settings.
    """
    who = study.subject(subject)
    spec = _spec(config, study)
    if backbone is None:
        backbone = load_backbone(
            spec.name,
            spec.weights,
            image_size=spec.image_size,
            device=pick_device(device),
            resize=spec.resize,
        )
    described = {k: v for k, v in backbone.describe().items() if k != "weights_label"}
    identity = {
        "format": FORMAT,
        "config": config_hash(config),
        "subject": subject_fingerprint(who),
        "backbone": sha256_json(described)[:16],
    }
    name = sha256_json(identity)[:16]
    folder = Path(folder) if folder is not None else home() / "encoders" / name
    with lock(folder / ".lock", what=f"the encoder in {folder}"):
        if (folder / f"{STEM}.json").exists():
            return _stored(folder, name)
        store = store if store is not None else FeatureStore()
        job, facts, sources = _prepare(config, who, backbone, store, folder, device, identity)
        module, build, scores, selection, history, notes = _KINDS[config.kind](job)
        label = f"{config.kind} encoder of {who.name}{' (simulated responses)' if who.simulated else ''}, "
        label += f"{backbone.name} ({backbone.weights_label}), block {', '.join(map(str, config.blocks))}"
        facts |= {"study": study.name, "subject": who.name, "simulated": who.simulated, **notes}
        made = TrainedEncoder(
            frozen(module),
            build,
            who.atlas,
            spec,
            sources,
            label,
            name,
            scores,
            selection,
            history,
            facts,
        )
        made.save(folder)
        return made


def train_brain_encoders(
    config: EncoderConfig, study: Study, **options: Any
) -> dict[str, TrainedEncoder]:
    """Train an encoder for every subject of a study; options as `train_brain_encoder`, name to encoder.

    A given `folder` gets one folder a subject.
    """
    base_folder = options.pop("folder", None)
    return {
        name: train_brain_encoder(
            config,
            study,
            subject=name,
            folder=None if base_folder is None else Path(base_folder) / name,
            **options,
        )
        for name in study.subjects
    }


def _spec(config: EncoderConfig, study: Study) -> BackboneSpec:
    own = study.backbone
    name = config.backbone or own.name
    weights = config.weights if config.weights is not None or name != own.name else own.weights
    return BackboneSpec(name, weights, config.image_size or own.image_size, own.resize)


def _stored(folder: Path, name: str) -> TrainedEncoder:
    stored = read_manifest(folder / f"{STEM}.json").get("hash")
    if stored != name:
        raise CheckpointError(
            message(
                f"the encoder {name} in {folder}",
                f"{stored}: other settings, responses or backbone weights",
                "use another folder, or delete this one to train again",
            )
        )
    return load_encoder(folder)


def _prepare(
    config: EncoderConfig,
    subject: Subject,
    backbone: Backbone,
    store: FeatureStore,
    folder: Path,
    device: str,
    identity: dict[str, Any],
) -> tuple[_Job, dict[str, Any], tuple[Mapping[str, Any], ...]]:
    wanted = [(config.tokens, b) for b in config.blocks]
    stored = store.get_many(backbone, subject.stimuli, wanted, features=config.features)
    sources = tuple(token_source(s.manifest) for s in stored)
    rows, how = split_rows(config, subject)
    patches = as_patches(stored)
    grid = stored[0].grid if stored[0].patches is not None else (1, 1)
    used = np.concatenate([subject.responses[rows["train"]], subject.responses[rows["val"]]])
    facts = {
        "config": to_dict(config),
        "split": how,
        "split_seed": config.split_seed,
        "subject_split": subject.info.get("split"),
        "n_train": len(rows["train"]),
        "n_val": len(rows["val"]),
        "n_missing_responses": int(np.sum(~np.isfinite(used))),
        "subject_fingerprint": identity["subject"],
    }
    return (
        _Job(config, subject, grid, patches, rows, pick_device(device), folder, identity),
        facts,
        sources,
    )


def _pooling(job: _Job) -> str:
    chosen = job.config.pooling
    return (
        chosen
        if chosen != "auto"
        else ("grid" if job.config.tokens.startswith("pooled") else "mean")
    )


def _ridge(job: _Job):
    config, pooling = job.config, _pooling(job)
    X = [
        pool_patches(torch.from_numpy(np.asarray(job.x(s), np.float32)), pooling).numpy()
        for s in ("train", "val")
    ]
    sessions = job.subject.sessions
    if config.leave_session_out and sessions is None:
        raise ConfigError(
            message("a session per stimulus", "none in this subject", "set leave_session_out=False")
        )
    folds = np.asarray(sessions)[job.rows["train"]] if config.leave_session_out else None
    found = fit_ridge(
        X[0], job.y("train"), config.alphas, config.n_folds, folds=folds, device=job.device
    )
    sizes = {
        "token_width": job.patches.shape[2],
        "pooling": pooling,
        "n_patches": job.patches.shape[1],
    }
    module = LinearEncoder.from_ridge(found, **sizes)
    build = {"type": "linear", "n_vertices": len(found.alpha), **sizes}
    notes = {"alpha_edge_share": found.edge_share, "alpha_median": float(np.median(found.alpha))}
    scores = pearson(job.y("val"), found.predict(X[1]))
    return module, build, scores, "cross-validation within train, one penalty per vertex", [], notes


def _retinotopic(job: _Job):
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
    build = {"type": "retinotopic", "grid": list(job.grid)}
    return (
        module,
        build,
        _scores(module, job),
        "cross-validation within train, one field per vertex",
        [],
        module.fit_facts,
    )


def _linear(job: _Job):
    pooling = _pooling(job)
    sizes = {
        "token_width": job.patches.shape[2],
        "pooling": pooling,
        "n_patches": job.patches.shape[1],
    }
    build = {"type": "linear", "n_vertices": job.subject.n_vertices, **sizes}
    seed_everything(seed_for(job.config.loop.seed, "encoder", "init") % 2**32)
    return _descend(job, LinearEncoder(n_vertices=job.subject.n_vertices, **sizes), build)


def _roi_query(job: _Job):
    config, atlas = job.config, job.subject.atlas
    _, masks = query_masks(atlas.hemisphere, scheme_rois(atlas, config.scheme))
    sizes = {
        "token_width": job.patches.shape[2],
        "grid": list(job.grid),
        "width": config.width,
        "n_heads": config.n_heads,
        "ffn_width": config.ffn_width,
        "dropout": config.dropout,
    }
    seed_everything(seed_for(config.loop.seed, "encoder", "init") % 2**32)
    return _descend(job, ROIQueryEncoder(masks=masks, **sizes), {"type": "roi_query", **sizes})


def _descend(job: _Job, inner: nn.Module, build: dict[str, Any]):
    """Train by gradient descent on standardised responses; missing ones take no part in the loss."""
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

    def loss(encoder: nn.Module, batch: Mapping[str, Tensor]):
        plain = getattr(encoder, "module", encoder)
        predicted = encoder(batch["patches"].float()).float()
        value = encoder_loss(predicted, batch["responses"], plain.scale_V, n_left)
        return value, {"mse": value.detach()}

    result = fit(
        module,
        loss,
        data,
        job.config.loop,
        validate=lambda m: {"val_r": _mean(_scores(m, job))},
        select=("val_r", "max"),
        folder=None if job.folder is None else job.folder / "training",
        device=job.device,
        manifest=job.identity,
        what=f"brain encoder of {job.subject.name}",
    )
    scores = _scores(module, job)
    return (
        module,
        {"type": "scaled", "encoder": build},
        scores,
        result.selection,
        result.history,
        {"epoch": result.epoch},
    )


def encoder_loss(
    predicted_BV: Tensor, responses_BV: Tensor, scale_V: Tensor, n_left: int
) -> Tensor:
    """Return the mean squared error in standard deviations, summed over hemispheres; NaN responses are left out.

    Raises
    ------
    DataError
        If the shapes differ; nothing is broadcast.
    """
    if predicted_BV.shape != responses_BV.shape:
        raise DataError(
            message(
                f"predictions of shape {tuple(responses_BV.shape)}",
                f"{tuple(predicted_BV.shape)}",
                "match the vertices",
            )
        )
    seen = responses_BV.isfinite()
    error = torch.where(seen, (predicted_BV - responses_BV.nan_to_num()) / scale_V, 0).square()
    parts = [
        (e.sum(), s.sum())
        for e, s in zip(error.tensor_split([n_left], 1), seen.tensor_split([n_left], 1))
    ]
    return sum(e / s.clamp(min=1) for e, s in parts)


def _scores(module: nn.Module, job: _Job, batch_size: int = 64) -> np.ndarray:
    where = next((p.device for p in module.parameters()), torch.device("cpu"))
    x, y = job.x("val"), job.y("val")
    stream = StreamingPearson(y.shape[1])
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            part = torch.as_tensor(
                np.array(x[start : start + batch_size], np.float32), device=where
            )
            stream.update(y[start : start + batch_size], module(part))
    return stream.result()


def _mean(r: np.ndarray) -> float:
    return float(np.mean(r[np.isfinite(r)])) if np.isfinite(r).any() else float("nan")


def _ensemble(job: _Job):
    found = {kind: _KINDS[kind](job) for kind in ENSEMBLE}
    scores = np.stack([f[2] for f in found.values()])
    weights = ensemble_weights(scores, job.config.temperature)
    members = [frozen(f[0]) for f in found.values()]
    module = EnsembleEncoder(members=members, weights=torch.from_numpy(weights))
    build = {"type": "ensemble", "members": [f[1] for f in found.values()]}
    notes = {
        "members": list(found),
        "winner": winners(job.subject.atlas, dict(zip(found, scores))),
        "note": "the weights come from the same validation stimuli as the validation r",
    }
    return (
        module,
        build,
        _scores(module, job),
        "softmax of validation r per vertex",
        found["roi_query"][4],
        notes,
    )


def winners(atlas: Any, scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return, per ROI, each encoder's mean validation r and which one is best.

    Returns
    -------
    dict of str to dict
        ``{"V1": {"winner": "ridge", "ridge": 0.5, ...}}``; None where undefined.
    """
    table: dict[str, dict[str, Any]] = {}
    for roi in atlas.present:
        means = {k: _mean(s[np.asarray(atlas.rois[roi], bool)]) for k, s in scores.items()}
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

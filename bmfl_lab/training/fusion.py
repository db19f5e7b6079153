"""Training a fusion model or a baseline on the tokens of a frozen backbone."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab import config as configs
from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.backbones.tokens import StoredTokens
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, message, require
from bmfl_lab.losses import fusion_loss
from bmfl_lab.models.bmfl import BMFL, ResponseSource
from bmfl_lab.models.build import FusionConfig, build_fusion
from bmfl_lab.models.fusion import Moments
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.batches import (
    Batches,
    ImageBatches,
    MemoryBatches,
    StoreBatches,
    labels_of,
)
from bmfl_lab.training.context import Context
from bmfl_lab.training.loop import fit
from bmfl_lab.training.sources import EncoderSource
from bmfl_lab.training.trained import Inputs, TrainedFusion, make_path, predict
from bmfl_lab.training.trained_encoder import TrainedEncoder

BatchSource = Literal["auto", "memory", "store", "images"]
_DONORS = 512
"""Training images whose responses are kept for "resample" lesions."""
_ROWS = 512
_COLUMNS = 4096
_SMALL_IMAGE = 112


def train_fusion(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder | None = None,
    brain: ResponseSource | None = None,
    atlas: Atlas | None = None,
    store: FeatureStore | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    name: str | None = None,
    backbone: Backbone | None = None,
    silent: np.ndarray | None = None,
    resume: bool = True,
    allow_change: Sequence[str] = (),
    batches: BatchSource = "auto",
    context: Context | None = None,
) -> TrainedFusion:
    """Train a fusion model or a baseline; the epoch is selected by ID validation accuracy only.

    Parameters
    ----------
    config : FusionConfig
        What to train.
    study : Study
        Its set "train" trains and its set "val" selects the epoch; no other set is read.
    encoder : TrainedEncoder, optional
        Predicts the responses. Where neither `encoder` nor `brain` is given and the head needs
        responses, an encoder of the study's first subject is trained by the default recipe, or read
        from the cache.
    brain : callable, optional
        Response source in place of the predicted responses: ``brain(tokens, ids) -> (B,
        n_vertices)``, with `tokens` a `TokenBatch` and `ids` the B stimulus ids of a batch. See
        `bmfl_lab.training.sources` for noise, other images' responses and image features, and
        `lookup_source` for responses at hand. With an `encoder` or `atlas` of as many vertices,
        regions and parcels are those of its atlas.
    atlas : Atlas, optional
        Atlas of the responses; the encoder's by default. A "backbone" model uses it to match the
        number of parameters of the fusion.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    folder : str or Path, optional
        Folder of the checkpoints; no checkpoints by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Where to train and predict.
    seed : int, default 0
        Seed of initial weights, order of the images and dropout.
    name : str, optional
        Name in tables; the head by default.
    backbone : Backbone, optional
        A backbone that is loaded already; the study's by default.
    silent : ndarray of bool, shape (n_vertices,), optional
        Vertices that stay at their mean, in training and after. The model has their tokens but no
        information in them, so that models with and without a region have the same size.
    resume : bool, default True
        Continue from the newest checkpoint of `folder`; False deletes what is there.
    allow_change : sequence of str
        Identity fields of a checkpoint that may differ on resume. By default a checkpoint of
        another study, encoder or model is refused.
    batches : "auto", "memory", "store" or "images", default "auto"
        Where batches come from: tokens and responses in memory; memory-mapped tokens and responses;
        images, sent through backbone and encoder for each batch. "auto" takes the memory if they
        fit, else the store. Memory and store give the same bits, images agree with them up to the
        half precision of the store.
    context : Context, optional
        In place of `store` and `device`: pass one context to several calls, and they share the
        responses that were predicted already.

    Returns
    -------
    TrainedFusion

    Raises
    ------
    ConfigError
        If choices do not fit the study or each other, or the data do not fit into memory.
    DataError
        If a label is missing, or a response source returns another shape or values that are not
        finite.
    NumericsError, CheckpointError
        As `bmfl_lab.training.fit`.
    """
    context = (Context.make(store, device) if context is None else context).seeded(seed)
    train, val = study.set("train"), study.set("val")
    for stimuli in (train, val):
        check_labels(stimuli, len(study.class_names))
    _refuse_split_correlations(config)
    backbone = context.backbone(study.backbone) if backbone is None else backbone
    if encoder is None and brain is None and config.head != "backbone":
        encoder = _default_encoder(study, context)
    atlas = getattr(encoder, "atlas", None) if atlas is None else atlas
    source = None
    if config.head != "backbone":
        source = EncoderSource(encoder, context.device) if brain is None else brain
    inputs = Inputs(context, backbone, config.kind, config.block, encoder, source)

    with tempfile.TemporaryDirectory(prefix="bmfl-responses-") as mapped:
        if batches == "images":
            data = ImageBatches(train, make_path(inputs))
            found = _measure(data)
        else:
            data, response = _stored_batches(inputs, train, atlas, batches, Path(mapped))
            found = _measure(data, response)
        path, atlas = _untrained_path(config, study, inputs, found, atlas, silent, seed)
        if batches == "images":
            data, held_out = ImageBatches(train, path), ImageBatches(val, path)
        else:
            held_out, _ = _stored_batches(inputs, val, atlas, batches, Path(mapped))
        result = fit(
            path.fusion,
            functools.partial(_loss, path=path, config=config),
            data,
            configs.replace(config.loop, seed=seed),
            validate=functools.partial(
                _validate, path=path, batches=held_out, labels=labels_of(val)
            ),
            select=("val_accuracy", "max"),
            folder=folder,
            resume=resume,
            allow_change=allow_change,
            device=context.device,
            manifest={} if folder is None else _identity(config, study, encoder, seed, path),
            what=f"{name or config.head} (seed {seed})",
        )
    return TrainedFusion(
        name=name or config.head,
        config=config,
        seed=seed,
        class_names=study.class_names,
        path=path.eval(),
        inputs=inputs,
        atlas=atlas,
        history=result.history,
        selection="best validation accuracy",
        epoch=result.epoch,
        notes=result.notes,
    )


def check_labels(stimuli: StimulusSet, n_classes: int) -> None:
    """Refuse labels that a classifier of `n_classes` cannot be trained on.

    Raises
    ------
    DataError
        If there is no image, or a label lies outside 0..n_classes - 1.
    """
    labels = labels_of(stimuli)
    if not len(labels) or labels.min() < 0 or labels.max() >= n_classes:
        got = f"{len(labels)} labels"
        if len(labels):
            got += f" from {labels.min()} to {labels.max()}"
        raise DataError(
            message(
                f"labels 0..{n_classes - 1} for every image of {stimuli.name!r}",
                got,
                "label or drop the others",
            )
        )


def _refuse_split_correlations(config: FusionConfig) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    uses_term = config.head != "backbone" and config.alpha
    require(
        not uses_term or config.pcc_axis != "batch" or processes <= 1,
        ConfigError,
        "pcc_axis='feature' where several processes share a batch",
        f"pcc_axis='batch' and {processes} processes, each with its own part of the batch",
        "train in one process, or correlate over features",
    )


def _default_encoder(study: Study, context: Context) -> TrainedEncoder:
    """Return the default encoder of the first subject: the tiny preset for small images."""
    small = study.backbone.image_size < _SMALL_IMAGE
    config = encoders.tiny() if small else encoders.small()
    return encoders.train_brain_encoder(config, study, store=context.store, device=context.device)


def _stored_batches(
    inputs: Inputs, stimuli: StimulusSet, atlas: Atlas | None, batches: BatchSource, mapped: Path
) -> tuple[Batches, np.ndarray | None]:
    """Return batches of stored tokens, in memory or mapped, and the responses (n, V)."""
    tokens = inputs.tokens(stimuli)
    in_memory = _choose_memory(inputs, tokens, atlas, batches)
    file = None if in_memory else mapped / f"{stimuli.name}.npy"
    response = inputs.responses(stimuli, tokens, file)
    data = {"cls": tokens.cls, "patches": tokens.patches, "label": labels_of(stimuli)}
    if response is not None:
        data["response"] = response
    if not in_memory:
        return StoreBatches(data, inputs.context.device), response
    for name in ("cls", "patches"):
        data[name] = np.array(data[name])
    held = {name: torch.from_numpy(value) for name, value in data.items()}
    return MemoryBatches(held, inputs.context.device), response


def _choose_memory(
    inputs: Inputs, tokens: StoredTokens, atlas: Atlas | None, batches: BatchSource
) -> bool:
    """Decide whether tokens and responses are held in memory.

    Raises
    ------
    ConfigError
        If the choice is unknown, or the memory is chosen and too small.
    """
    choices = get_args(BatchSource)
    require(
        batches in choices,
        ConfigError,
        f"batches among {choices}",
        repr(batches),
        "choose one of them",
    )
    # the size of the responses of a source on an atlas is known before they are predicted
    n_vertices = atlas.n_vertices if inputs.source is not None and atlas is not None else 0
    needed = tokens.cls.nbytes + tokens.patches.nbytes + 4 * len(tokens) * n_vertices
    free = free_memory()
    if batches == "memory" and free is not None and needed > free:
        raise ConfigError(
            message(
                f"{needed / 1e9:.2f} GB of memory for tokens and responses of {len(tokens)} images",
                f"{free / 1e9:.2f} GB free",
                "use batches='store', kind='pooled:4' or fewer images",
            )
        )
    return batches == "memory" or (batches == "auto" and (free is None or needed <= free))


def free_memory() -> int | None:
    """Return the memory that is free on this machine in bytes; None where it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return next((kilobytes * 1024 for kilobytes in found), None)


class _Statistics(NamedTuple):
    """Hold what standardises tokens (D,) and responses (V,), and donors (N, V) for lesions."""

    cls: Moments
    patches: Moments
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    donors: np.ndarray | None = None


def _measure(batches: Batches, response: np.ndarray | None = None) -> _Statistics:
    """Measure the training data in one pass; `response` (n, V) where it is at hand as a whole."""
    cls, patches, moments, first = Moments(), Moments(), Moments(), None
    for start in range(0, batches.n, _ROWS):
        batch = batches.take(np.arange(start, min(start + _ROWS, batches.n)))
        cls.add(batch["cls"])
        patches.add(batch["patches"])
        if "response" in batch and response is None:
            moments.add(batch["response"])
            first = batch["response"][:_DONORS].cpu().numpy() if first is None else first
    if response is not None:
        # in blocks of columns, so that the deviations of mapped responses fit into memory
        columns = [response[:, k : k + _COLUMNS] for k in range(0, response.shape[1], _COLUMNS)]
        mean = np.concatenate([part.mean(0) for part in columns])
        spread = np.concatenate([part.std(0) for part in columns])
        first = np.array(response[:_DONORS])
    elif first is not None:
        mean, spread = (v.float().cpu().numpy() for v in (moments.mean(), moments.std()))
    else:
        return _Statistics(cls, patches)
    # a vertex that is predicted the same for every image carries no information: it stays at zero
    scale = np.where(spread > 1e-6, spread, 1).astype(np.float32)
    return _Statistics(cls, patches, mean, scale, first)


def _untrained_path(
    config: FusionConfig,
    study: Study,
    inputs: Inputs,
    found: _Statistics,
    atlas: Atlas | None,
    silent: np.ndarray | None,
    seed: int,
) -> tuple[BMFL, Atlas | None]:
    """Return the path with an untrained fusion, and the atlas of its responses."""
    n_vertices = None if found.mean is None else len(found.mean)
    if n_vertices is not None and atlas is not None and n_vertices != atlas.n_vertices:
        atlas = None  # a source with another number of vertices lies on no atlas
    fusion, selected = build_fusion(
        config,
        visual_width=found.cls.mean().shape[0],
        n_classes=len(study.class_names),
        atlas=atlas,
        n_vertices=n_vertices,
        seed=seed,
    )
    fusion.standardise_tokens(found.cls, found.patches)
    scale = found.scale
    if silent is not None and np.shape(silent) != np.shape(scale):
        wanted = "a model with a brain" if scale is None else f"silent of shape {scale.shape}"
        got = f"shape {np.shape(silent)}"
        raise ConfigError(message(wanted, got, "make the mask with the encoder's atlas"))
    if silent is not None:
        scale = np.where(silent, np.float32(np.inf), scale)
    selected = None if scale is None else selected
    arrays = {"selected": selected, "mean": found.mean, "scale": scale, "donors": found.donors}
    return make_path(inputs, fusion, **arrays), atlas


def _loss(
    module: nn.Module, batch: Mapping[str, Tensor], *, path: BMFL, config: FusionConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the fusion loss of a batch, a scalar, and its parts with the accuracy."""
    out = path.classify(batch, fusion=module)
    loss, parts = fusion_loss(
        out.logits,
        batch["label"],
        out.x_vb,
        out.x_bv,
        0.0 if config.head == "backbone" else config.alpha,
        axis=config.pcc_axis,
        label_smoothing=config.label_smoothing,
    )
    return loss, {**parts, "accuracy": (out.logits.argmax(1) == batch["label"]).float().mean()}


def _validate(
    module: nn.Module, *, path: BMFL, batches: Batches, labels: np.ndarray
) -> dict[str, float]:
    """Return accuracy (fraction) and negative log-likelihood (nats) on held-out images.

    `module` is the fusion of `path`.
    """
    logits = predict(path, batches)["logits"]
    shifted = logits - logits.max(1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return {
        "val_accuracy": float((logits.argmax(1) == labels).mean()),
        "val_nll": float(nll.mean()),
    }


def _identity(
    config: FusionConfig, study: Study, encoder: TrainedEncoder | None, seed: int, path: BMFL
) -> dict[str, object]:
    """Return what must be the same on resume; the fingerprint reads every image and response."""
    identity = {
        "fusion": configs.config_hash(config),
        "study": study.fingerprint(),
        "encoder": getattr(encoder, "hash", ""),
        "seed": seed,
    }
    if path.scale is not None and torch.isinf(path.scale).any():
        identity["silent"] = np.packbits(torch.isinf(path.scale).cpu().numpy()).tobytes().hex()
    return identity

"""Fusion models and baselines: training on tokens of a frozen backbone, and trained models."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab import config as configs
from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.backbones.tokens import StoredTokens, array_shapes, token_bytes
from bmfl_lab.data import Atlas, StimulusSet, Study
from bmfl_lab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    message,
    require,
    require_known,
)
from bmfl_lab.files import map_new_npy, sha256_bytes, sha256_json
from bmfl_lab.losses import fusion_loss
from bmfl_lab.models.bmfl import BMFL, LAST_PATCHES, ResponseSource, TokenBatch, check_responses
from bmfl_lab.models.build import FusionConfig, build_fusion
from bmfl_lab.models.fusion import FusionModel, ImageSide, Moments
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.runtime import divided, free_memory, process_share, processes, rng
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.batches import (
    Batches,
    ImageBatches,
    MemoryBatches,
    StoreBatches,
    fingerprint,
    labels_of,
    sweep,
)
from bmfl_lab.training.checkpoint import (
    atlas_from_tensors,
    atlas_to_tensors,
    matching_tensors,
    read_bundle,
    write_bundle,
)
from bmfl_lab.training.context import Context
from bmfl_lab.training.external import ExternalEncoder
from bmfl_lab.training.loop import fit, gathered
from bmfl_lab.training.sources import EncoderSource
from bmfl_lab.training.stage import once, recipe_code
from bmfl_lab.training.trained_encoder import (
    TrainedEncoder,
    backbone_digest,
    load_encoder,
    reads_backbone,
    shared_tokens,
    token_source,
)

STEM = "fusion"
WHAT = "fusion model"
_BATCH = 256
_RESPONSE_ROWS = 4096
"""Images whose responses are computed in one call of a source."""
_ARRAYS = ("selected", "mean", "scale", "donors")
"""Arrays of a path that are saved with the model."""
BatchSource = Literal["auto", "memory", "store", "images"]
_MEASURED = 65_536
"""Images by which tokens and responses are standardised if batches come from images."""
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
        Choices of the model and its training.
    study : Study
        Its set "train" trains and its set "val" selects the epoch; no other set is read.
    encoder : TrainedEncoder or ExternalEncoder, optional
        Encoder that predicts the responses. If neither `encoder` nor `brain` is given and the head
        needs responses, an encoder of the study's first subject is trained by the default recipe,
        or read from the cache.
    brain : callable, optional
        Response source in place of the predicted responses: ``brain(tokens, ids) -> (B,
        n_vertices)``, with `tokens` a `TokenBatch` and `ids` the B stimulus ids of a batch. See
        `bmfl_lab.training.sources` for noise, other images' responses and image features, and
        `bmfl_lab.training.external.lookup_source` for responses that were computed before. With an
        `encoder` or `atlas` of as many vertices, regions and parcels are those of its atlas.
    atlas : Atlas, optional
        Atlas of the responses; the encoder's by default. A "backbone" model uses it to match the
        number of parameters of the fusion.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    folder : str or Path, optional
        Folder of the checkpoints; no checkpoints by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains and predicts.
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
        Source of the batches. "memory": tokens and responses in memory. "store": memory-mapped
        tokens and responses. "images": images that run through backbone and encoder for each batch.
        "auto" is "images" if they are augmented, broken ones are skipped, or their tokens do not
        fit the store, else "memory" if tokens and responses fit, else "store"; it prints its
        choice. Memory and store give identical results; images agree with them up to the half
        precision of the store. More than 65,536 images are standardised by as many of them, drawn
        at random (our choice).
    context : Context, optional
        In place of `store` and `device`: pass one context to several calls, and they share the
        responses that were predicted already. If it keeps models, a model that is kept is read, and
        a training that was stopped continues; `folder` and `resume` then have no effect.

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
        See `bmfl_lab.training.fit`.
    """
    context = (Context.make(store, device) if context is None else context).seeded(seed)
    for part in ("train", "val"):
        check_labels(study.set(part), len(study.class_names))
    _refuse_split_correlations(config)
    backbone = context.backbone(study.backbone) if backbone is None else backbone
    if encoder is None and brain is None and config.head != "backbone":
        encoder = _default_encoder(study, context)
    if isinstance(encoder, ExternalEncoder) and brain is None:
        brain = encoder.source
    atlas = getattr(encoder, "atlas", None) if atlas is None else atlas
    source = None
    if config.head != "backbone":
        source = EncoderSource(encoder, context.device) if brain is None else brain
    inputs = Inputs(context, backbone, config.kind, config.block, encoder, source)

    is_kept = folder is not None or context.models is not None
    identity = _identity(config, study, inputs, atlas, silent) if is_kept else {}
    training = functools.partial(
        _train, config, study, inputs, atlas, silent, batches, name or config.head, identity
    )
    if context.models is None or "data" not in identity:
        return training(folder, resume, allow_change)
    parts = {**identity, "batches": batches, "device": context.device, "code": recipe_code()}
    place = context.models / sha256_json(parts)[:16]

    def keep(model: TrainedFusion) -> None:
        model.save(place, with_encoder=False)
        shutil.rmtree(place / "training", ignore_errors=True)

    kept = once(
        place / f"{STEM}.json",
        lambda: load_fusion(place, backbone, encoder=encoder, brain=brain, context=context),
        lambda: training(place / "training", not context.fresh, ()),
        keep,
        what="the model",
        device=context.device,
        fresh=context.fresh,
        limit_gb=context.models_gb,
    )
    return dataclasses.replace(kept, name=name or config.head)


def _train(
    config: FusionConfig,
    study: Study,
    inputs: Inputs,
    atlas: Atlas | None,
    silent: np.ndarray | None,
    batches: BatchSource,
    name: str,
    identity: Mapping[str, object],
    folder: str | Path | None,
    resume: bool,
    allow_change: Sequence[str],
) -> TrainedFusion:
    train, val, seed = study.set("train"), study.set("val"), inputs.context.seed
    batches = _choose_batches(inputs, train, val, atlas, batches, config.augment, name)
    online = functools.partial(ImageBatches, seed=seed, precision=config.loop.precision)
    with tempfile.TemporaryDirectory(prefix="bmfl-responses-") as mapped:
        if batches == "images":
            found = _measure(online(_sample(train, seed), make_path(inputs)), inputs.context.device)
        else:
            data, response = _stored_batches(inputs, train, batches == "memory", Path(mapped))
            found = _measure(
                data, inputs.context.device, response, inputs.token_moments(train, data)
            )
        path, atlas = _untrained_path(config, study, inputs, found, atlas, silent, seed)
        if batches == "images":
            data, held_out = online(train, path, augment=config.augment), online(val, path)
        else:
            held_out, _ = _stored_batches(inputs, val, batches == "memory", Path(mapped))
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
            device=inputs.context.device,
            manifest=identity,
            what=f"{name} (seed {seed})",
        )
    skipped = _n_skipped(result.history)
    return TrainedFusion(
        name=name,
        config=config,
        seed=seed,
        class_names=study.class_names,
        path=path.eval(),
        inputs=inputs,
        atlas=atlas,
        history=result.history,
        selection="best validation accuracy"
        + (f"; {skipped} broken training image{'s' * (skipped > 1)} skipped" if skipped else ""),
        epoch=result.epoch,
        notes=result.notes,
    )


def _n_skipped(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of broken training images; each of them is skipped in every epoch."""
    return max((epoch.get("skipped", 0) for epoch in history), default=0)


def check_labels(stimuli: StimulusSet, n_classes: int) -> None:
    """Refuse labels that a classifier of `n_classes` cannot be trained on.

    Raises
    ------
    DataError
        If there is no image, or a label lies outside 0..n_classes - 1.
    """
    labels = labels_of(stimuli)
    n_wrong = int(np.sum((labels < 0) | (labels >= n_classes)))
    require(
        len(labels) and not n_wrong,
        DataError,
        f"labels 0..{n_classes - 1} for every image of {stimuli.name!r}",
        f"{len(labels)} labels, of which {n_wrong} lie outside this range",
        "label or drop the others" if n_wrong else "add images to this set",
    )


def _refuse_split_correlations(config: FusionConfig) -> None:
    _, count = processes()
    require(
        count == 1 or config.head == "backbone" or not config.alpha or config.pcc_axis == "feature",
        ConfigError,
        "pcc_axis='feature' where several processes share a batch",
        f"pcc_axis='batch' and {count} processes, each with its own part of the batch",
        "train in one process, or correlate over features",
    )


def _default_encoder(study: Study, context: Context) -> TrainedEncoder:
    """Return the default encoder of the first subject: the tiny preset for small images."""
    small = study.backbone.image_size < _SMALL_IMAGE
    config = encoders.tiny() if small else encoders.small()
    return encoders.train_brain_encoder(config, study, store=context.store, device=context.device)


def _sample(stimuli: StimulusSet, seed: int) -> StimulusSet:
    """Return the images by which tokens and responses are standardised."""
    if len(stimuli) <= _MEASURED:
        return stimuli
    rows = rng(seed, "moments").permutation(len(stimuli))[:_MEASURED]
    return stimuli.subset(np.sort(rows))


def _choose_batches(
    inputs: Inputs,
    train: StimulusSet,
    val: StimulusSet,
    atlas: Atlas | None,
    batches: BatchSource,
    augment: str,
    name: str,
) -> BatchSource:
    """Return the source of the batches; "auto" becomes one of the others and is printed.

    Raises
    ------
    ConfigError
        If the choice is unknown, if images are to be augmented and batches come from elsewhere, or
        if the memory is chosen and too small.
    """
    choices = get_args(BatchSource)
    require_known(batches, choices, ConfigError, f"batches among {choices}")
    require(
        augment == "none" or batches in ("auto", "images"),
        ConfigError,
        f"batches='images' or 'auto' with augment={augment!r}",
        f"batches={batches!r}",
        "set batches='images', or augment='none' in the FusionConfig",
    )
    if batches in ("store", "images"):
        return batches
    tokens, responses = _held_bytes(inputs, train, atlas)
    free = free_memory()
    if batches == "memory":
        require(
            tokens + responses <= free,
            ConfigError,
            f"{(tokens + responses) / 1e9:.2f} GB of memory for tokens and responses of "
            f"{len(train)} images",
            f"{free / 1e9:.2f} GB free",
            "use batches='store', kind='pooled:4' or fewer images",
        )
        return batches
    chosen, why = _fitting_batches(inputs, (train, val), tokens + responses, free, augment)
    print(
        f"{name}: batches from {chosen}, because {why}; {len(train):,} images have "
        f"{tokens / 1e9:.2f} GB of tokens and {responses / 1e9:.2f} GB of responses",
        flush=True,
    )
    return chosen


def _held_bytes(inputs: Inputs, train: StimulusSet, atlas: Atlas | None) -> tuple[int, int]:
    """Return the bytes that tokens and responses of the training images take in memory."""
    # the size of the responses of a source on an atlas is known before they are predicted
    n_vertices = atlas.n_vertices if inputs.source is not None and atlas is not None else 0
    shapes, _ = array_shapes(inputs.backbone, len(train), inputs.kind, inputs.block)
    tokens = 2 * (math.prod(shapes["cls"]) + math.prod(shapes["patches"]))
    return tokens, 4 * len(train) * n_vertices


def _fitting_batches(
    inputs: Inputs, sets: Sequence[StimulusSet], held: int, free: int, augment: str
) -> tuple[BatchSource, str]:
    """Return the source of batches that "auto" stands for, and why it is chosen."""
    store = inputs.context.store
    if augment != "none":
        return "images", "they are augmented"
    if sets[0].skip_broken:
        return "images", "broken ones are skipped"
    if _reads_images(inputs) and store.room(evicting=True) < sum(
        store.missing_bytes(inputs.backbone, stimuli, inputs.reads()) for stimuli in sets
    ):
        why = f"their tokens do not fit the store of {store.limit_gb:g} GB"
        return "images", f"{why} (raise BMFL_STORE_GB to keep them)"
    if held <= free:
        return "memory", f"{free / 1e9:.2f} GB are free"
    return "store", f"only {free / 1e9:.2f} GB of memory are free"


def max_parallel(inputs: Inputs, study: Study, augment: str, atlas: Atlas | None) -> int:
    """Return how many trainings may run in parallel, after extracting the tokens that they share.

    Parameters
    ----------
    inputs : Inputs
        Inputs of the trainings.
    study : Study
        Its sets "train" and "val" are read.
    augment : str
        Augmentation of the trainings.
    atlas : Atlas or None
        Atlas of the responses, if it is known.

    Returns
    -------
    int
        How many trainings fit into memory together. It is 1, and nothing was extracted, if batches
        come from images or from the store, or if models cannot be kept.

    Raises
    ------
    DataError
        If a label is missing, or an image cannot be read.
    """
    sets = study.set("train"), study.set("val")
    for stimuli in sets:
        check_labels(stimuli, len(study.class_names))
    held = sum(_held_bytes(inputs, sets[0], atlas))
    free = free_memory()
    known = inputs.source is None or getattr(inputs.source, "identity", None) is not None
    if not known or _fitting_batches(inputs, sets, held, free, augment)[0] != "memory":
        return 1
    for stimuli in sets:
        inputs.tokens(stimuli)
    # as much again for validation images, responses of other sources, and the work of torch
    return max(1, free // (2 * held))


def _reads_images(inputs: Inputs) -> bool:
    """Tell whether responses can be computed from images alone, see `BMFL.respond`."""
    path = make_path(inputs)
    return path.encoder is not None or getattr(path.source, "encoder", None) is None


def _stored_batches(
    inputs: Inputs, stimuli: StimulusSet, in_memory: bool, mapped: Path
) -> tuple[Batches, np.ndarray | None]:
    """Return batches of stored tokens, in memory or mapped, and the responses (n, V)."""
    tokens = inputs.tokens(stimuli)
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


class _Statistics(NamedTuple):
    """Hold what standardises tokens (D,) and responses (V,), and donors (N, V) for lesions."""

    cls: Moments
    patches: Moments
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    donors: np.ndarray | None = None


def _measure(
    batches: Batches,
    device: str,
    response: np.ndarray | None = None,
    tokens: tuple[Moments, Moments] | None = None,
) -> _Statistics:
    """Measure the training data in one pass, divided over the processes.

    `response` (n, V) is given if it is in memory or mapped as a whole, and `tokens` if the moments
    of CLS and patches are known.
    """
    rank, count = processes()
    if tokens is None:
        (cls, patches, moments), first = _swept(batches, device)
    else:
        (cls, patches), moments, first = tokens, Moments(), None
    if response is not None:
        # in blocks of columns, so that the deviations of mapped responses fit into memory
        columns = range(rank * _COLUMNS, response.shape[1], count * _COLUMNS)
        parts = [(k, response[:, k : k + _COLUMNS]) for k in columns]
        measured = [(k, part.mean(0), part.std(0)) for k, part in parts]
        if count > 1:
            measured = sorted(gathered(measured, device), key=lambda each: each[0])
        mean, spread = (np.concatenate([each[i] for each in measured]) for i in (1, 2))
        first = np.array(response[:_DONORS])
    elif first is not None:
        mean, spread = (v.float().cpu().numpy() for v in (moments.mean(), moments.std()))
    else:
        return _Statistics(cls, patches)
    # a vertex that is predicted the same for every image carries no information: it stays at zero
    scale = np.where(spread > 1e-6, spread, 1).astype(np.float32)
    return _Statistics(cls, patches, mean, scale, first)


def _swept(
    batches: Batches, device: str, responses: bool = True
) -> tuple[Sequence[Moments], np.ndarray | None]:
    """Return the moments of CLS, patches and responses of a source, and its first responses."""
    rank, count = processes()
    found, first = [Moments(), Moments(), Moments()], None
    for batch in sweep(batches, _ROWS, rank, count):
        found[0].add(batch["cls"])
        found[1].add(batch["patches"])
        if "response" in batch and responses:
            found[2].add(batch["response"])
            first = batch["response"][:_DONORS].cpu().numpy() if first is None else first
    if count > 1:
        found, first = _joined(gathered([([m.cpu() for m in found], first)], device))
    return found, first


def _joined(
    parts: Sequence[tuple[Sequence[Moments], np.ndarray | None]],
) -> tuple[Sequence[Moments], np.ndarray | None]:
    """Return the moments of all processes together, and the first responses of the first one."""
    (found, first), *others = parts
    for more, _ in others:
        for one, other in zip(found, more):
            one.join(other)
    return found, first


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
    require(
        silent is None or np.shape(silent) == np.shape(scale),
        ConfigError,
        "a model with a brain" if scale is None else f"silent of shape {scale.shape}",
        f"shape {np.shape(silent)}",
        "make the mask with the encoder's atlas"
        if scale is not None
        else "use head='fusion' or 'concat', or leave silent out",
    )
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
    with divided():
        logits = predict(path, batches)["logits"]
    shifted = logits - logits.max(1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return {
        "val_accuracy": float((logits.argmax(1) == labels).mean()),
        "val_nll": float(nll.mean()),
    }


def _identity(
    config: FusionConfig,
    study: Study,
    inputs: Inputs,
    atlas: Atlas | None,
    silent: np.ndarray | None,
) -> dict[str, object]:
    """Return what decides the result of a training; the fingerprints read every image.

    With "data" it is complete. A response source without an identity is not known well enough.
    """
    tensors, described = ({}, None) if atlas is None else atlas_to_tensors(atlas)
    sets = [study.set(name).fingerprint() for name in ("train", "val")]
    responses = getattr(inputs.source, "identity", None)
    identity = {
        "fusion": configs.config_hash(config),
        "study": sha256_json([list(study.class_names), sets])[:16],
        "backbone": backbone_digest(inputs.backbone.describe())[:16],
        "encoder": getattr(inputs.encoder, "hash", ""),
        "responses": responses,
        "atlas": sha256_json([described, fingerprint(tensors)])[:16],
        "silent": "" if silent is None else np.packbits(np.asarray(silent, bool)).tobytes().hex(),
        "seed": inputs.context.seed,
    }
    if inputs.source is None or responses is not None:
        identity["data"] = sha256_json([identity["study"], identity["backbone"], responses])[:16]
    return identity


@dataclass(frozen=True)
class Inputs:
    """Read tokens and responses of stimulus sets as one fusion model takes them.

    Parameters
    ----------
    context : Context
        Device, store of tokens, and responses that were predicted already.
    backbone : Backbone
        Backbone of the fusion.
    kind : str
        Kind of the tokens that the fusion reads, "patches" or "pooled:G".
    block : int
        Block of the backbone whose tokens the fusion reads.
    encoder : TrainedEncoder or None
        Brain encoder whose tokens are extracted in the same pass of the backbone.
    source : callable or None
        Source of the responses; None for a model that reads none.
    """

    context: Context
    backbone: Backbone
    kind: str
    block: int
    encoder: TrainedEncoder | None
    source: ResponseSource | None

    def reads(self) -> list[tuple[str, int]]:
        """Return kind and block of all tokens that are read, those of the fusion first."""
        return [(self.kind, self.block), *shared_tokens(self.backbone, self.encoder)]

    def tokens(self, stimuli: StimulusSet) -> StoredTokens:
        """Return the tokens that the fusion reads, memory-mapped from the store.

        Raises
        ------
        DataError
            If an image cannot be read.
        """
        return self.context.store.get_many(self.backbone, stimuli, self.reads())[0]

    def responses(
        self, stimuli: StimulusSet, tokens: StoredTokens, file: Path | None = None
    ) -> np.ndarray | None:
        """Return the responses to a stimulus set, computed once per context.

        Parameters
        ----------
        stimuli : StimulusSet
            n images.
        tokens : StoredTokens
            Their tokens, as `tokens` returns them.
        file : Path, optional
            Write the responses there and map them, instead of keeping them in memory.

        Returns
        -------
        ndarray of float32, shape (n, V), or None
            Responses, which the caller must not modify; None for a model without a brain.

        Raises
        ------
        DataError
            If the source returns another number of rows, or values that are not finite.
        """
        if self.source is None:
            return None
        if hasattr(self.source, "check"):
            self.source.check(stimuli)
        ids = sha256_bytes("\0".join(map(str, stimuli.ids)).encode())
        return self.context.responses.get(
            (self.source, tokens.key, ids), lambda: self._respond(stimuli, tokens, file)
        )

    def token_moments(self, stimuli: StimulusSet, batches: Batches) -> tuple[Moments, Moments]:
        """Return the moments of CLS and patches of a set, measured once per context and process.

        Parameters
        ----------
        stimuli : StimulusSet
            The images.
        batches : Batches
            Their tokens in memory or in the store.
        """
        known, key = self.context.moments, self.tokens(stimuli).key
        if key not in known:
            cls, patches, _ = _swept(batches, self.context.device, responses=False)[0]
            known[key] = cls, patches
        return known[key]

    def _respond(self, stimuli: StimulusSet, tokens: StoredTokens, file: Path | None) -> np.ndarray:
        read, out = self._encoder_tokens(stimuli, tokens), None
        for start in range(0, len(stimuli), _RESPONSE_ROWS):
            rows = slice(start, start + _RESPONSE_ROWS)
            batch = TokenBatch(
                tokens.cls[rows], tokens.patches[rows], tuple(_rows(s, rows) for s in read)
            )
            part = check_responses(self.source(batch, stimuli.ids[rows]), stimuli.ids[rows])
            if out is None:
                shape = len(stimuli), part.shape[1]
                out = np.empty(shape, np.float32) if file is None else map_new_npy(file, shape)
            out[rows] = part
        return out

    def _encoder_tokens(
        self, stimuli: StimulusSet, tokens: StoredTokens
    ) -> tuple[StoredTokens, ...]:
        encoder = getattr(self.source, "encoder", None)
        if encoder is None:
            return ()
        if encoder.sources == (token_source(tokens.manifest),):
            return (tokens,)
        return encoder.tokens(
            stimuli,
            store=self.context.store,
            backbone=self.backbone if reads_backbone(encoder, self.backbone) else None,
            device=self.context.device,
        )


def _rows(stored: StoredTokens, rows: slice) -> StoredTokens:
    arrays = (None if a is None else a[rows] for a in (stored.cls, stored.mean, stored.patches))
    return StoredTokens(*arrays, stored.grid, "", stored.manifest)


def make_path(
    inputs: Inputs,
    fusion: FusionModel | None = None,
    *,
    selected: np.ndarray | None = None,
    mean: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    donors: np.ndarray | None = None,
) -> BMFL:
    """Return the path from images to class scores for the inputs of a model.

    Parameters
    ----------
    inputs : Inputs
        Backbone, tokens and response source.
    fusion : FusionModel, optional
        None for a path that computes tokens and responses only.
    selected, mean, scale, donors
        See `BMFL`.
    """
    network, reads = None, LAST_PATCHES
    encoder = inputs.source.encoder if isinstance(inputs.source, EncoderSource) else None
    if encoder is not None and not isinstance(encoder.module, nn.ModuleList):
        shared = tuple(shared_tokens(inputs.backbone, encoder))
        if shared and len(shared) == len(encoder.sources):
            network, reads = encoder.module, shared
    pooled = inputs.kind.startswith("pooled:")
    return BMFL(
        backbone=inputs.backbone,
        fusion=fusion,
        encoder=network,
        source=None if network is not None else inputs.source,
        selected=selected,
        mean=mean,
        scale=scale,
        donors=donors,
        pool=int(inputs.kind.split(":")[1]) if pooled else None,
        block=inputs.block,
        reads=reads,
    ).to(inputs.context.device)


def predict(
    path: BMFL,
    batches: Batches,
    *,
    lesion: Lesion | None = None,
    weights: bool = False,
    image_side: ImageSide | None = None,
) -> dict[str, np.ndarray]:
    """Classify all images of a source of batches, without gradients.

    Inside of `bmfl_lab.runtime.divided`, the batches are divided over the processes and all results
    are gathered by each; they are those of one process to the bit.

    Parameters
    ----------
    path : BMFL
        Path with a trained fusion; its mode (train or eval) is not changed.
    batches : Batches
        n images with ``"cls"``, ``"patches"`` and ``"response"``.
    lesion : Lesion, optional
        Replaces the responses of some vertices.
    weights : bool, default False
        Return attention weights.
    image_side : ImageSide, optional
        Result of ``path.fusion.image_side`` for all n images, which are then one batch.

    Returns
    -------
    dict of str to ndarray of float32
        ``"logits"`` (n, C) and with `weights` ``"vb"``, ``"bv"`` as in `FusionOutput`.
    """
    size = _BATCH if image_side is None else batches.n
    rank, count = process_share()
    found = []
    for k, batch in enumerate(sweep(batches, size, rank, count)):
        with torch.inference_mode():
            out = path.classify(batch, lesion=lesion, weights=weights, image_side=image_side)
        values = {"logits": out.logits, **(out.attention or {})}
        arrays = {name: value.float().cpu().numpy() for name, value in values.items()}
        found.append((rank + k * count, arrays))
    if count > 1:
        found = sorted(gathered(found, path.backbone.device.type), key=lambda each: each[0])
    return {name: np.concatenate([part[name] for _, part in found]) for name in found[0][1]}


@dataclass(frozen=True, eq=False)
class TrainedFusion:
    """Classify images with a trained fusion model or baseline.

    Parameters
    ----------
    name : str
        Name in tables.
    config : FusionConfig
        Choices of the model and of its training.
    seed : int
        Training seed.
    class_names : tuple of str, length C
        Classes of the logits.
    path : BMFL
        Trained path from images to class scores, in eval mode.
    inputs : Inputs
        Reads tokens and responses of stimulus sets.
    atlas : Atlas or None
        Atlas of the V vertices.
    history : list of dict
        One dict per epoch, as in `FitResult`.
    selection : str
        Sentence that says how the epoch was selected.
    epoch : int
        Selected epoch, counted from 1.
    notes : tuple of str
        Remarks of the training, as in `FitResult`.
    """

    name: str
    config: FusionConfig
    seed: int
    class_names: tuple[str, ...]
    path: BMFL
    inputs: Inputs
    atlas: Atlas | None
    history: list[dict[str, Any]] = field(default_factory=list)
    selection: str = "none"
    epoch: int = 0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        reads = "" if self.source is None or self.encoder is None else f", encoder={self.encoder!r}"
        return (
            f"TrainedFusion({self.name!r}, head={self.config.head!r}, "
            f"n_classes={len(self.class_names)}, seed={self.seed}{reads})"
        )

    @property
    def module(self) -> FusionModel:
        """The trained part of the path."""
        return self.path.fusion

    @property
    def n_skipped(self) -> int:
        """Number of broken training images that were skipped."""
        return _n_skipped(self.history)

    @property
    def backbone(self) -> Backbone:
        """Backbone of the path."""
        return self.inputs.backbone

    @property
    def encoder(self) -> TrainedEncoder | None:
        """Brain encoder that the model was trained with."""
        return self.inputs.encoder

    @property
    def source(self) -> ResponseSource | None:
        """Source of the responses; None for "backbone"."""
        return self.inputs.source

    @property
    def store(self) -> FeatureStore:
        """Store of the tokens."""
        return self.inputs.context.store

    def reads(self) -> list[tuple[str, int]]:
        """Return kind and block of all tokens that this model reads from its backbone."""
        return self.inputs.reads()

    def logits(self, stimuli: StimulusSet, lesion: Lesion | None = None) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes).

        Parameters
        ----------
        stimuli : StimulusSet
            Images, in any number.
        lesion : Lesion, optional
            Replaces the responses of some vertices.

        Raises
        ------
        ConfigError
            If a lesion does not fit the responses, or the model has no brain.
        DataError
            If an image cannot be read, or the response source gives another shape or values that
            are not finite.
        """
        if len(stimuli) == 0:
            return np.zeros((0, len(self.class_names)), dtype=np.float32)
        if self.streams(stimuli):
            batches = ImageBatches(stimuli, self.path, precision="float32")
        else:
            batches = self.batches(stimuli)
        return predict(self.path, batches, lesion=lesion)["logits"]

    def streams(self, stimuli: StimulusSet) -> bool:
        """Tell whether images are classified without the store, as their tokens do not fit it."""
        room = self.store.room()
        return (
            token_bytes(self.backbone, len(stimuli), self.reads()) > room
            and _reads_images(self.inputs)
            and self.store.missing_bytes(self.backbone, stimuli, self.reads()) > room
        )

    def attention(
        self, stimuli: StimulusSet, lesion: Lesion | None = None
    ) -> dict[str, np.ndarray | tuple[str, ...] | tuple[int, int]]:
        """Return the weights of the cross-attentions, the names of their tokens and the patch grid.

        Parameters
        ----------
        stimuli : StimulusSet
            One image or more.
        lesion : Lesion, optional
            Replaces the responses of some vertices.

        Returns
        -------
        dict
            ``"vb"`` (n, H, Q, R) and ``"bv"`` (n, H, Q, P) float32, ``"brain_tokens"`` R names,
            ``"grid"`` (h, w) with P = h * w.

        Raises
        ------
        ConfigError
            If the model has no cross-attention.
        """
        require(
            self.config.head == "fusion",
            ConfigError,
            "a model with cross-attention",
            f"head {self.config.head!r}",
            "use head='fusion'",
        )
        tokens = self.inputs.tokens(stimuli)
        found = predict(self.path, self._batches(tokens, stimuli), lesion=lesion, weights=True)
        return {
            "vb": found["vb"],
            "bv": found["bv"],
            "brain_tokens": self.module.brain.tokeniser.names,
            "grid": tuple(tokens.grid),
        }

    def batches(self, stimuli: StimulusSet) -> StoreBatches:
        """Return batches of the tokens and responses of a stimulus set.

        Parameters
        ----------
        stimuli : StimulusSet
            One image or more.

        Raises
        ------
        DataError
            See `logits`.
        """
        return self._batches(self.inputs.tokens(stimuli), stimuli)

    def _batches(self, tokens: StoredTokens, stimuli: StimulusSet) -> StoreBatches:
        data = {"cls": tokens.cls, "patches": tokens.patches}
        response = self.inputs.responses(stimuli, tokens)
        if response is not None:
            data["response"] = check_responses(response, stimuli.ids, len(self.path.mean))
        return StoreBatches(data, self.inputs.context.device)

    def classify(
        self,
        cls: np.ndarray | Tensor,
        patches: np.ndarray | Tensor,
        response: np.ndarray | Tensor | None = None,
        lesion: Lesion | None = None,
        *,
        weights: bool = False,
        image_side: ImageSide | None = None,
    ) -> dict[str, np.ndarray]:
        """Classify images by their tokens and responses, which were computed before.

        Parameters
        ----------
        cls : ndarray or Tensor, shape (n, D)
            CLS tokens.
        patches : ndarray or Tensor, shape (n, P, D)
            Patch tokens of the kind that the model reads.
        response : ndarray or Tensor, shape (n, V), optional
            Responses as the source gives them, neither standardised nor selected; not for
            "backbone".
        lesion : Lesion, optional
            Replaces the responses of some vertices.
        weights : bool, default False
            Return attention weights.
        image_side : ImageSide, optional
            Result of `image_side` for these tokens. It saves time if many lesions of the same
            images are classified.

        Returns
        -------
        dict of str to ndarray of float32
            ``"logits"`` (n, C) and with `weights` ``"vb"``, ``"bv"`` as in `FusionOutput`.

        Raises
        ------
        ConfigError
            If a lesion does not fit the responses, or the model has no brain.
        """
        if not len(cls):
            return {"logits": np.zeros((0, len(self.class_names)), dtype=np.float32)}
        data = {"cls": cls, "patches": patches}
        if response is not None:
            data["response"] = response
        batches = StoreBatches(data, self.inputs.context.device)
        return predict(self.path, batches, lesion=lesion, weights=weights, image_side=image_side)

    def image_side(
        self, cls: np.ndarray | Tensor, patches: np.ndarray | Tensor
    ) -> ImageSide | None:
        """Return what the cross-attentions compute from the image alone, for `classify`.

        Parameters
        ----------
        cls : ndarray or Tensor, shape (n, D)
            CLS tokens.
        patches : ndarray or Tensor, shape (n, P, D)
            Patch tokens.

        Returns
        -------
        ImageSide or None
            None for a model without cross-attention.
        """
        batches = StoreBatches({"cls": cls, "patches": patches}, self.inputs.context.device)
        batch = batches.take(np.arange(batches.n))
        with torch.inference_mode():
            return self.module.image_side(batch["cls"].float(), batch["patches"].float())

    def predict_responses(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the responses that the model reads, float32 (n_stimuli, V).

        Raises
        ------
        ConfigError
            If the model has no brain.
        """
        require(
            self.source is not None,
            ConfigError,
            "a model with a brain",
            repr(self.name),
            "use head='fusion' or 'concat'",
        )
        return np.array(self.batches(stimuli).data["response"])

    def save(self, folder: str | Path, *, with_encoder: bool = True) -> Path:
        """Write the model, and its encoder beside it, and return the path of the manifest.

        Parameters
        ----------
        folder : str or Path
            Made if missing.
        with_encoder : bool, default True
            Write the encoder, too; without it `load_fusion` needs ``encoder=...``.

        Raises
        ------
        CheckpointError
            If the folder cannot be written.
        """
        folder, backbone = Path(folder), self.backbone
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        for name in _ARRAYS:
            if getattr(self.path, name) is not None:
                tensors[name] = getattr(self.path, name)
        described = None
        if self.atlas is not None:
            atlas_tensors, described = atlas_to_tensors(self.atlas)
            tensors |= atlas_tensors
        saves_encoder = with_encoder and self.source is not None and hasattr(self.encoder, "save")
        if saves_encoder:
            self.encoder.save(folder / "encoder")
        manifest = {
            "name": self.name,
            "config": configs.to_dict(self.config),
            "seed": self.seed,
            "class_names": list(self.class_names),
            "backbone": {
                "name": backbone.name,
                "image_size": backbone.image_size,
                "weights_hash": backbone.weights_hash,
                "preprocess": backbone.preprocess.describe(),
            },
            "visual_width": self.module.visual_width,
            "n_vertices": None if self.path.mean is None else len(self.path.mean),
            "atlas": described,
            "encoder": saves_encoder,
            "needs_source": self.source is not None,
            "needs_brain": self.source is not None
            and self.source != EncoderSource(self.encoder, self.inputs.context.device),
            "history": self.history,
            "selection": self.selection,
            "epoch": self.epoch,
            "notes": list(self.notes),
        }
        return write_bundle(folder, STEM, tensors, manifest, what=WHAT)


def load_fusion(
    folder: str | Path,
    backbone: Backbone,
    *,
    encoder: TrainedEncoder | None = None,
    brain: ResponseSource | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
    context: Context | None = None,
) -> TrainedFusion:
    """Return a trained fusion model that `TrainedFusion.save` wrote, equal bit for bit.

    Parameters
    ----------
    folder : str or Path
        Folder in which it was saved.
    backbone : Backbone
        Backbone that the model was trained on, loaded.
    encoder : TrainedEncoder, optional
        Read from the folder by default.
    brain : callable, optional
        Response source; needed where the model was trained with one.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that predicts.
    context : Context, optional
        In place of `store` and `device`, as in `train_fusion`.

    Raises
    ------
    CheckpointError
        If the files are damaged or the response source is missing; and, from the manifest, before
        any tensor is read: if the folder holds something else, or a model that was trained on other
        backbone weights or another number of vertices.
    """
    tensors, found = read_bundle(
        folder, STEM, lambda manifest: _refuse_others(manifest, backbone, encoder), what=WHAT
    )
    if encoder is None and found["encoder"]:
        encoder = load_encoder(Path(folder) / "encoder")
    lacks_encoder = found["needs_source"] and encoder is None
    require(
        brain is not None or (not lacks_encoder and not found.get("needs_brain")),
        CheckpointError,
        "the response source of this model",
        "none",
        "pass brain=..., or encoder=... if its responses were predicted",
    )
    config = configs.from_dict(FusionConfig, found["config"])
    context = Context.make(store, device) if context is None else context
    source = None
    if found["needs_source"]:
        source = brain if brain is not None else EncoderSource(encoder, context.device)
    inputs = Inputs(context, backbone, config.kind, config.block, encoder, source)
    atlas = _saved_atlas(tensors, found, encoder)
    arrays = {name: tensors[name].numpy() for name in _ARRAYS if name in tensors}
    fusion, _ = build_fusion(
        config,
        visual_width=found["visual_width"],
        n_classes=len(found["class_names"]),
        atlas=atlas,
        n_vertices=None if "mean" not in arrays else len(arrays["mean"]),
        seed=found["seed"],
    )
    with matching_tensors(folder):
        fusion.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module.")})
    return TrainedFusion(
        name=found["name"],
        config=config,
        seed=found["seed"],
        class_names=tuple(found["class_names"]),
        path=make_path(inputs, fusion, **arrays).eval(),
        inputs=inputs,
        atlas=atlas,
        history=found["history"],
        selection=found["selection"],
        epoch=found["epoch"],
        notes=tuple(found["notes"]),
    )


def _saved_atlas(
    tensors: Mapping[str, Tensor], found: dict, encoder: TrainedEncoder | None
) -> Atlas | None:
    if "atlas.hemisphere" not in tensors:
        return None
    if "atlas" not in found and encoder is not None:
        return encoder.atlas  # schema 1 kept hemispheres and ROIs only
    return atlas_from_tensors(tensors, found.get("atlas"))


def _refuse_others(found: dict, backbone: Backbone, encoder: TrainedEncoder | None) -> None:
    size, made = found["backbone"]["image_size"], found["backbone"].get("preprocess")
    if size != backbone.image_size or made not in (None, backbone.preprocess.describe()):
        got = f"{backbone.image_size} px, {backbone.preprocess.describe()['resize']}"
        wanted = f"images of {size} px"
        wanted += "" if made is None else f", resized by the rule {made['resize']!r}"
        raise CheckpointError(
            message(wanted, got, "load the backbone with the image_size and resize of the training")
        )
    wanted = found["backbone"]
    require(
        wanted["weights_hash"] == backbone.weights_hash,
        CheckpointError,
        f"{wanted['name']} with weights {wanted['weights_hash'][:12]}",
        f"{backbone.name} with weights {backbone.weights_hash[:12]}",
        "load the backbone that the model was trained on",
    )
    n_vertices = found.get("n_vertices")
    if encoder is not None and n_vertices not in (None, encoder.atlas.n_vertices):
        raise CheckpointError(
            message(
                f"an encoder of {n_vertices} vertices",
                f"one of {encoder.atlas.n_vertices}",
                "pass the encoder that the model was trained on",
            )
        )

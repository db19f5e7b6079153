"""Parts of the fusion recipe: its data in memory, its loss, its validation, and the response source of an encoder."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import BackboneSpec, Study
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.losses import fusion_loss
from bmfl_lab.training.loop import fit
from bmfl_lab.training.trained_encoder import token_source
from bmfl_lab.training.trained_fusion import TrainedFusion, predict_batches

ResponseSource = Callable[[StimulusSet, Any], np.ndarray]
"""``source(stimuli, tokens) -> (n_stimuli, n_vertices)``: what stands where the predicted responses stand."""


@functools.lru_cache(maxsize=2)
def study_backbone(spec: BackboneSpec, device: str) -> Any:
    """Return the backbone of a study, loaded once for the last two specifications."""
    return load_backbone(
        spec.name,
        weights=spec.weights,
        image_size=spec.image_size,
        device=device,
        resize=spec.resize,
    )


def check_labels(stimuli: StimulusSet, n_classes: int) -> None:
    """Refuse labels that a classifier of `n_classes` cannot be trained on.

    Raises
    ------
    DataError
        If there is no image, or a label lies outside 0..n_classes - 1.
    """
    labels = np.asarray(stimuli.labels)
    if not len(labels) or labels.min() < 0 or labels.max() >= n_classes:
        got = f"{len(labels)} labels" + (
            f" from {labels.min()} to {labels.max()}" if len(labels) else ""
        )
        raise DataError(
            message(
                f"labels 0..{n_classes - 1} for every image of {stimuli.name!r}",
                got,
                "label or drop the others",
            )
        )


def default_encoder(study: Study, store: FeatureStore | None, device: str) -> Any:
    """Return the encoder of the study's first subject by the default recipe, trained or from the cache."""
    from bmfl_lab.training import encoder

    config = encoder.tiny() if study.name == "planted" else encoder.small()
    return encoder.train_brain_encoder(config, study, store=store, device=device)


def encoder_source(encoder: Any, store: FeatureStore, backbone: Any, device: str) -> ResponseSource:
    """Return the response source that asks a brain encoder, on the tokens it was trained on.

    Parameters
    ----------
    encoder : TrainedEncoder
        Loads its own backbone where `backbone` is another one.
    store : FeatureStore
        Where those tokens are kept.
    backbone : Backbone
        Of the fusion.
    device : str
        Where to predict.
    """

    def predict(stimuli: StimulusSet, tokens: Any) -> np.ndarray:
        if encoder.sources == (token_source(tokens.manifest),):
            stored = (tokens,)
        else:
            same = tokens.manifest["identity"]["backbone"] == encoder.sources[0]["backbone"]
            stored = encoder.tokens(
                stimuli, store=store, backbone=backbone if same else None, device=device
            )
        known = _PREDICTED.setdefault(encoder.module, weakref.WeakValueDictionary())
        name = (device, *(s.key for s in stored))
        found = known.get(name) if all(name) else None
        if found is None:
            found = encoder.predict(stored, device=device)
            known[name] = found
        return found

    return predict


# Models of one comparison ask the same encoder for the same images: one array serves all, as long
# as one holds it.
_PREDICTED: weakref.WeakKeyDictionary[nn.Module, weakref.WeakValueDictionary] = (
    weakref.WeakKeyDictionary()
)


def fusion_data(trained: Any, stimuli: StimulusSet) -> dict[str, Tensor]:
    """Return what training reads of a set: cls (n, D), patches (n, P, D), label (n,), response (n, V) if there is one.

    Raises
    ------
    ConfigError
        If it does not fit into memory: tokens, and responses twice, as predicted and standardised.
    """
    # before a prediction that takes long: the responses of a source on an atlas have a known size
    n_vertices = (
        trained.atlas.n_vertices if trained.source is not None and trained.atlas is not None else 0
    )
    refuse_without_memory(
        2 * 4 * len(stimuli) * n_vertices,
        f"responses to {len(stimuli)} images in memory",
        "choose fewer images",
    )
    tokens, response = trained.inputs(stimuli)
    needed = (
        tokens.cls.nbytes + tokens.patches.nbytes + (0 if response is None else response.nbytes)
    )
    refuse_without_memory(
        needed,
        f"tokens of {len(stimuli)} images and their standardised responses in memory",
        "choose kind='pooled:4' or fewer images",
    )
    data = {
        "cls": torch.from_numpy(np.array(tokens.cls)),
        "patches": torch.from_numpy(np.array(tokens.patches)),
        "label": torch.from_numpy(np.asarray(stimuli.labels, dtype=np.int64)),
    }
    if response is not None:
        data["response"] = torch.from_numpy(np.ascontiguousarray(response, dtype=np.float32))
    return data


def refuse_without_memory(needed: int, what: str, instead: str) -> None:
    """Refuse a stage whose arrays do not fit into the memory that is free.

    Raises
    ------
    ConfigError
        With both numbers and the alternative.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    free = next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None
    )
    if free is not None and needed > free:
        raise ConfigError(
            message(
                f"{needed / 1e9:.2f} GB of memory for {what}", f"{free / 1e9:.2f} GB free", instead
            )
        )


def batch_loss(module, batch, *, alpha: float, config: Any):
    """Return the fusion loss of a batch, a scalar, and its parts with the accuracy."""
    out = module(batch["cls"].float(), batch["patches"].float(), batch.get("response"))
    loss, parts = fusion_loss(
        out.logits,
        batch["label"],
        out.x_vb,
        out.x_bv,
        alpha,
        axis=config.pcc_axis,
        label_smoothing=config.label_smoothing,
    )
    return loss, {**parts, "accuracy": (out.logits.argmax(1) == batch["label"]).float().mean()}


def validation(module, *, data: dict[str, Tensor]) -> dict[str, float]:
    """Return accuracy (fraction) and negative log-likelihood (nats) on held-out data."""
    logits = predict_batches(module, data["cls"], data["patches"], data.get("response"))["logits"]
    labels = data["label"].numpy()
    shifted = logits - logits.max(1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return {
        "val_accuracy": float((logits.argmax(1) == labels).mean()),
        "val_nll": float(nll.mean()),
    }


def fit_fusion(
    trained: TrainedFusion,
    data: dict[str, Tensor],
    held_out: dict[str, Tensor],
    study: Study,
    *,
    folder: str | Path | None = None,
    resume: bool = True,
    allow_change: Sequence[str] = (),
) -> TrainedFusion:
    """Train what `prepare_fusion` returned, and return it; `folder`, `resume` and `allow_change` as `fit`.

    Raises
    ------
    ConfigError
        If correlations over the batch are asked for and several processes share a batch.
    NumericsError, CheckpointError
        As `bmfl_lab.training.fit`.
    """
    config, identity = trained.config, {}
    alpha = 0.0 if config.head == "backbone" else config.alpha
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if alpha and config.pcc_axis == "batch" and processes > 1:
        raise ConfigError(
            message(
                "pcc_axis='feature' where several processes share a batch",
                f"pcc_axis='batch' and {processes} processes, each of which sees its own part only",
                "train in one process, or correlate over features",
            )
        )
    if folder is not None:  # a fingerprint reads every image and response
        identity = {
            "fusion": configs.config_hash(config),
            "study": study.fingerprint(),
            "encoder": getattr(trained.encoder, "hash", ""),
            "seed": trained.seed,
        }
        if trained.scale is not None and np.isinf(trained.scale).any():
            identity["silent"] = np.packbits(np.isinf(trained.scale)).tobytes().hex()
    result = fit(
        trained.module,
        functools.partial(batch_loss, alpha=alpha, config=config),
        data,
        configs.replace(config.loop, seed=trained.seed),
        validate=functools.partial(validation, data=held_out),
        select=("val_accuracy", "max"),
        folder=folder,
        resume=resume,
        allow_change=allow_change,
        device=trained.device,
        manifest=identity,
        what=f"{trained.name} (seed {trained.seed})",
    )
    trained.history, trained.selection, trained.notes = (
        result.history,
        "best validation accuracy",
        result.notes,
    )
    trained.epoch = result.epoch
    return trained

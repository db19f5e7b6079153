"""Aligning a vision network with a subject's responses (ReAlnet-fMRI), and its controls."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bmfl_lab import config as configs
from bmfl_lab.backbones.cornet import load_cornet
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.losses.alignment import alignment_loss
from bmfl_lab.models.alignment import AlignedNetwork, TokenNetwork
from bmfl_lab.runtime import pick_device, rng, seed_for
from bmfl_lab.training.aligned_model import (
    AlignConfig,
    TrainedAligned,
    empty_network,
    load_aligned,
    make_head,
    normalise,
    published,
    read_pixels,
    small,
    tiny,
)
from bmfl_lab.training.loop import FitResult, fit
from bmfl_lab.training.response_features import fit_response_features

__all__ = [
    "AlignConfig",
    "TrainedAligned",
    "load_aligned",
    "prepare_original",
    "published",
    "small",
    "tiny",
    "train_aligned",
]


def prepare_original(config: AlignConfig, study: Study, *, device: str = "auto") -> TrainedAligned:
    """Return the network before alignment: loaded, or trained on the study's labelled images.

    Parameters
    ----------
    config : AlignConfig
        `weights` of CORnet-S names a checkpoint of 1,000 classes; without it the network (or the
        linear decoder of a token backbone) is trained on the study's own classes.
    study : Study
        Gives labelled images.
    device : "auto", "cpu" or "cuda"

    Returns
    -------
    TrainedAligned
        Without a head.

    Raises
    ------
    CheckpointError
        If the checkpoint does not fit.
    """
    if config.backbone == "cornet_s" and config.weights is not None:
        network = load_cornet(config.weights, width=config.width)
        return TrainedAligned(
            network, None, config, 1000, label=f"CORnet-S, {Path(config.weights).name}"
        )
    n_classes = len(study.class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "original"))
        network, _, preprocess = empty_network(config, n_classes)
    images, whole = study.set("train"), config.backbone == "cornet_s"
    x = torch.from_numpy(read_pixels(images, config.image_size, preprocess))
    data = {
        "x": x if whole else _class_tokens(network, x, device),
        "labels": torch.from_numpy(np.asarray(images.labels)),
    }

    def loss_fn(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = module(normalise(batch["x"]) if whole else batch["x"])
        return functional.cross_entropy(logits, batch["labels"]), {}

    learner = network if whole else network.decoder
    result = fit(learner, loss_fn, data, config.pretrain, device=device, what="original network")
    network.requires_grad_(True)
    label = f"{config.backbone} trained on {len(images)} labelled images of {study.name}"
    return TrainedAligned(
        network.eval(),
        None,
        config,
        n_classes,
        label=label,
        history=result.history,
        selection=result.selection,
        preprocess=preprocess,
    )


def _class_tokens(network: TokenNetwork, pixels: Tensor, device: str) -> Tensor:
    """Return what the decoder reads, (n, D): the backbone is frozen here and nothing is augmented, so one pass does."""
    where = pick_device(device)
    network.to(where)
    with torch.no_grad():
        parts = [
            network.backbone(normalise(p.to(where)), blocks=network.blocks)[-1].cls
            for p in pixels.split(64)
        ]
    return torch.cat(parts).float().cpu()


def _targets(config: AlignConfig, original: TrainedAligned, stimuli: StimulusSet) -> np.ndarray:
    if config.targets == "labels":
        labels = np.asarray(stimuli.labels)
        if labels.min() < 0 or labels.max() >= original.n_classes:
            raise DataError(
                message(
                    f"labels 0..{original.n_classes - 1} for the subject's images",
                    f"{labels.min()}..{labels.max()}",
                    "use targets='original', which needs none",
                )
            )
        return labels
    logits = original.logits(stimuli)
    if config.targets == "soft":
        return torch.from_numpy(logits).softmax(1).numpy()
    return logits.argmax(axis=1)


def _controlled(
    config: AlignConfig, features: np.ndarray, splits: tuple[np.ndarray, ...]
) -> np.ndarray:
    if config.control == "noise":
        return rng(config.seed, "noise control").standard_normal(features.shape).astype(np.float32)
    if config.control == "shuffled":
        features = features.copy()
        for i, rows in enumerate(splits):
            features[rows] = features[rng(config.seed, "shuffled control", i).permutation(rows)]
    return features


def train_aligned(
    config: AlignConfig,
    study: Study,
    *,
    subject: str | Subject | None = None,
    original: TrainedAligned | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
) -> TrainedAligned:
    """Teach a vision network with a subject's responses.

    The backbone runs once a step. The frozen original runs once in all, since nothing is augmented.

    Parameters
    ----------
    config : AlignConfig
        Choices; `published`, `small` and `tiny` return complete ones.
    study : Study
        Gives the subject and, without weights, the labelled images of the original.
    subject : str or Subject, optional
        Whose responses; the study's first subject by default.
    original : TrainedAligned, optional
        Network to start from and to hold the classification to; made by `prepare_original`
        otherwise.
    folder : str or Path, optional
        Where checkpoints of the loop go.
    device : "auto", "cpu" or "cuda"

    Returns
    -------
    TrainedAligned

    Raises
    ------
    ConfigError
        If the batch holds one stimulus.
    DataError
        If the subject has no training or validation images, or the responses have too low a rank.
    """
    if config.loop.batch_size < 2:
        raise ConfigError(
            message(
                "batches of at least 2 stimuli, to contrast between",
                "batch_size=1",
                "use 16, as published",
            )
        )
    subject = subject if isinstance(subject, Subject) else study.subject(subject)
    train, val = subject.rows("train"), subject.rows("val")
    if len(val) < 2 and config.selection == "val_loss":
        raise DataError(
            message(
                f"validation stimuli of {subject.name!r}",
                str(len(val)),
                "split some off the training stimuli",
            )
        )
    original = original or prepare_original(config, study, device=device)
    features = fit_response_features(
        np.asarray(subject.responses[train])[:, subject.atlas.select(config.rois)],
        config.n_components,
    )
    rows = np.concatenate([train, val])
    stimuli = subject.stimuli.subset(rows)
    splits = (np.arange(len(train)), np.arange(len(train), len(rows)))
    measured = features.transform(
        np.asarray(subject.responses[rows])[:, subject.atlas.select(config.rois)]
    )
    data = {
        "pixels": torch.from_numpy(read_pixels(stimuli, config.image_size, original.preprocess)),
        "responses": torch.from_numpy(_controlled(config, measured, splits)),
        "targets": torch.from_numpy(_targets(config, original, stimuli)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "alignment head"))
        head = make_head(config, _sizes(original, data["pixels"][:1]))
    network = AlignedNetwork(copy.deepcopy(original.network).requires_grad_(True), head)
    result = _fit(config, network, data, splits, study, folder, device)
    name = "aligned" if config.control == "none" else config.control
    source = f"{subject.name} (simulated)" if subject.simulated else subject.name
    label = {"none": f"aligned with {source}", "no_fmri": "same recipe without fMRI"}.get(
        config.control, f"{config.control} responses of {source}"
    )
    return TrainedAligned(
        network.backbone.eval(),
        head.eval(),
        config,
        original.n_classes,
        name,
        label,
        features,
        result.history,
        result.selection,
        original.preprocess,
    )


def _sizes(original: TrainedAligned, pixels: Tensor) -> dict[str, tuple[int, int, int]]:
    device = next(original.network.parameters()).device
    with torch.no_grad():
        _, blocks = original.network.eval()(normalise(pixels.to(device)), blocks=True)
    return {k: tuple(v.shape[1:]) for k, v in blocks.items()}


def _fit(
    config: AlignConfig,
    network: nn.Module,
    data: Mapping[str, Tensor],
    splits: tuple[np.ndarray, ...],
    study: Study,
    folder: str | Path | None,
    device: str,
) -> FitResult:
    beta = 0.0 if config.control == "no_fmri" else config.beta
    train, val = ({k: v[torch.from_numpy(rows)] for k, v in data.items()} for rows in splits)

    def loss_fn(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BC, p_BE = module(normalise(batch["pixels"]))
        return alignment_loss(
            logits_BC,
            batch["targets"],
            p_BE,
            batch["responses"],
            beta=beta,
            contrast=config.contrast,
        )

    def validate(module: nn.Module) -> dict[str, float]:
        kind = next(module.parameters()).device
        outputs = [module(normalise(part.to(kind))) for part in val["pixels"].split(64)]
        logits_BC, p_BE = (torch.cat(o).float().cpu() for o in zip(*outputs))
        loss, parts = alignment_loss(
            logits_BC, val["targets"], p_BE, val["responses"], beta=beta, contrast=config.contrast
        )
        return {"val_loss": float(loss)} | {f"val_{k}": float(v) for k, v in parts.items()}

    has_val = len(splits[1]) >= 2
    return fit(
        network,
        loss_fn,
        train,
        config.loop,
        validate=validate if has_val else None,
        select=("val_loss", "min") if config.selection == "val_loss" else None,
        folder=folder,
        device=device,
        what=f"alignment ({config.control})" if config.control != "none" else "alignment",
        manifest={"study": study.fingerprint(), "config": configs.to_dict(config)}
        if folder
        else None,
    )

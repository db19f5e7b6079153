"""Comparisons by one recipe: fusion and baselines, shorter trainings, and silenced regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, nearest, require
from bmfl_lab.models.bmfl import ResponseSource
from bmfl_lab.models.build import FusionConfig
from bmfl_lab.runtime import timed
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training import recipes
from bmfl_lab.training.context import Context
from bmfl_lab.training.encoder import EncoderConfig, train_brain_encoder
from bmfl_lab.training.fusion import train_fusion
from bmfl_lab.training.recipes import PRESETS
from bmfl_lab.training.trained import TrainedFusion
from bmfl_lab.training.trained_encoder import TrainedEncoder

COMPARED = {
    "backbone": "image tokens only: an MLP with as many trainable weights as the fusion "
    "(within 2 %)",
    "concat": "image and brain tokens joined without cross-attention",
    "fusion": "two-way cross-attention and the Pearson term",
    "attributes": "as fusion, but with predicted attribute labels in place of predicted "
    "responses: no cortex",
}
"""Models that `train_comparison` can train, and what each of them reads."""


def presets(
    name: str, *, epochs: int = 0, encoder: str = "roi_query", **changes: object
) -> tuple[FusionConfig, EncoderConfig]:
    """Return the fusion and the encoder configuration of one size.

    Parameters
    ----------
    name : {"tiny", "quick", "small", "base"}
        Size: for the planted study, for many models of the demo study, for the demo study, and for
        ImageNet-sized studies on a GPU.
    epochs : int, default 0
        Epochs of the fusion training; 0 keeps those of the preset.
    encoder : str, default "roi_query"
        Kind of brain encoder, as in `EncoderConfig`.
    **changes
        Fields of `FusionConfig` to change.

    Returns
    -------
    fusion : FusionConfig
    encoder : EncoderConfig

    Raises
    ------
    ConfigError
        If the name or a field is unknown.
    """
    require(
        name in PRESETS,
        ConfigError,
        f"a preset among {PRESETS}",
        repr(name),
        nearest(name, PRESETS),
    )
    fusion = getattr(recipes, name)(**changes)
    if epochs:
        fusion = configs.replace(fusion, loop=configs.replace(fusion.loop, epochs=epochs))
    return fusion, getattr(encoders, name)(encoder)


def attribute_subject(subject: Subject) -> Subject:
    """Return a subject whose "responses" are the attributes that a simulated one was built from.

    Parameters
    ----------
    subject : Subject
        A simulated subject with `attributes`, shape (n_stimuli, n_attributes).

    Returns
    -------
    Subject
        Subject with the same stimuli and splits. It has one vertex per attribute, z-scored over the
        training rows, and one ROI per vertex. The attributes carry no measurement noise, so this
        control has cleaner targets than a cortex would give.

    Raises
    ------
    DataError
        If the subject has no attributes, as measured subjects have none.
    """
    require(
        subject.attributes is not None,
        DataError,
        f"attributes of {subject.name!r}",
        "none",
        "leave 'attributes' out of the models: this control needs a simulated subject",
    )
    values = np.asarray(subject.attributes, dtype=np.float32)
    train = values[subject.rows("train")]
    spread = train.std(0)
    responses = (values - train.mean(0)) / np.where(spread > 0, spread, 1)
    names = subject.attribute_names or tuple(f"attribute {i}" for i in range(values.shape[1]))
    identity = np.eye(values.shape[1], dtype=bool)
    atlas = Atlas(
        hemisphere=np.zeros(values.shape[1], dtype=np.int8),
        rois={name: identity[i] for i, name in enumerate(names)},
        groups={},
    )
    return Subject(
        name=f"{subject.name} attributes",
        stimuli=subject.stimuli,
        responses=responses.astype(np.float32),
        atlas=atlas,
        splits=subject.splits,
        simulated=True,
    )


def train_attribute_encoder(
    config: EncoderConfig, study: Study, *, subject: str | None = None, **options: object
) -> TrainedEncoder:
    """Train the encoder recipe on attributes instead of responses.

    Parameters
    ----------
    config : EncoderConfig
        Configuration of the encoder.
    study : Study
        Study with a simulated subject.
    subject : str, optional
        Name of the subject; the first one by default.
    **options
        Further keywords of `train_brain_encoder`.

    Raises
    ------
    DataError
        As `attribute_subject`.
    """
    stand_in = attribute_subject(study.subject(subject))
    labelled = dataclasses.replace(study, subjects={stand_in.name: stand_in})
    return train_brain_encoder(config, labelled, **options)


def train_comparison(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder,
    attribute_encoder: TrainedEncoder | None = None,
    models: Sequence[str] = tuple(COMPARED),
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    times: dict[str, float] | None = None,
) -> dict[str, list[TrainedFusion]]:
    """Train several models by the same recipe, each with every seed.

    Parameters
    ----------
    config : FusionConfig
        Configuration of the fusion. The other models differ in `head` or in where the brain tokens
        come from, and in nothing else.
    study : Study
        Its set "train" trains, its set "val" selects the epoch.
    encoder : TrainedEncoder
        Predicts the responses for "concat" and "fusion", and fixes the number of parameters of
        "backbone".
    attribute_encoder : TrainedEncoder, optional
        From `train_attribute_encoder`; needed for "attributes".
    models : sequence of str
        Names in `COMPARED`; all by default.
    seeds : sequence of int, default (0, 1, 2)
        Training seeds.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Where to train and predict.
    times : dict of str to float, optional
        Receives the seconds spent on each model.

    Returns
    -------
    dict of str to list of TrainedFusion
        One trained model per seed for each name.

    Raises
    ------
    ConfigError
        If a model is unknown, no seed is given, or "attributes" has no encoder.
    """
    for name in models:
        require(
            name in COMPARED,
            ConfigError,
            f"models among {tuple(COMPARED)}",
            repr(name),
            nearest(name, COMPARED),
        )
    require(
        seeds and models,
        ConfigError,
        "at least one model and one seed",
        f"{models!r}, {seeds!r}",
        "name some",
    )
    require(
        "attributes" not in models or attribute_encoder is not None,
        ConfigError,
        "an attribute encoder for the model 'attributes'",
        "none",
        "train it with train_attribute_encoder and pass attribute_encoder=...",
    )
    settings: Mapping[str, tuple[dict[str, object], TrainedEncoder | None]] = {
        "backbone": ({"head": "backbone"}, encoder),
        "concat": ({"head": "concat"}, encoder),
        "fusion": ({"head": "fusion"}, encoder),
        "attributes": ({"head": "fusion", "regions": ("all",)}, attribute_encoder),
    }
    context, trained = Context.make(store, device), {}
    for name in models:
        changes, chosen = settings[name]
        with timed(times if times is not None else {}, f"train {name}"):
            trained[name] = [
                train_fusion(
                    configs.replace(config, **changes),
                    study,
                    encoder=chosen,
                    context=context,
                    seed=s,
                    name=name,
                )
                for s in seeds
            ]
    return trained


def train_baselines(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder | None = None,
    epochs: Sequence[int] = (1, 2, 4, 8),
    seeds: Sequence[int] = (0,),
    store: FeatureStore | None = None,
    device: str = "auto",
) -> dict[str, list[TrainedFusion]]:
    """Train the backbone-only model for fewer epochs, so that its accuracy covers a range.

    Parameters
    ----------
    config : FusionConfig
        Configuration of the comparison. Its head is replaced by "backbone", and its learning-rate
        schedule ends with each length.
    study : Study
        Its set "train" trains, its set "val" selects the epoch.
    encoder : TrainedEncoder, optional
        Fixes the number of parameters, as in `train_comparison`.
    epochs : sequence of int, default (1, 2, 4, 8)
        Lengths of training in epochs; those that are not shorter than the config's are left out.
    seeds : sequence of int, default (0,)
        Training seeds of each length.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Where to train and predict.

    Returns
    -------
    dict of str to list of TrainedFusion
        "backbone, 1 epoch", "backbone, 2 epochs", ...: one model per seed.

    Raises
    ------
    ConfigError
        If a length is below 1, or none is below the config's.

    Notes
    -----
    The line of Taori et al. (2020) is fitted to models of many kinds. Models on one frozen backbone
    that differ only in their training share its representation; a residual from their line is
    therefore robustness beyond that of this backbone.
    """
    kept = [int(e) for e in dict.fromkeys(epochs) if e < config.loop.epochs]
    require(
        kept and min(kept) >= 1,
        ConfigError,
        f"lengths from 1 to {config.loop.epochs - 1} epochs",
        tuple(epochs),
        "give shorter trainings",
    )
    context, found = Context.make(store, device), {}
    for length in kept:
        name = f"backbone, {length} epoch" + ("s" if length > 1 else "")
        shorter = configs.replace(
            config, head="backbone", loop=configs.replace(config.loop, epochs=length)
        )
        found[name] = [
            train_fusion(shorter, study, encoder=encoder, context=context, seed=s, name=name)
            for s in seeds
        ]
    return found


class AblatedModel(Protocol):
    """Name a model of an ablation: the vertices it may read, bool (n_vertices,), and its seed."""

    name: str
    mask: np.ndarray
    seed: int


def ablation_trainer(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder | None = None,
    brain: ResponseSource | None = None,
    atlas: Atlas | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> Callable[[Sequence[AblatedModel]], list[TrainedFusion]]:
    """Return the function that `bmfl_lab.evaluation.ablate_regions` takes as `train`.

    Parameters
    ----------
    config : FusionConfig
        Configuration of every model. `regions` stays ("all",), because all models have the same
        tokens.
    study : Study
        Its set "train" trains, its set "val" selects the epoch.
    encoder : TrainedEncoder, optional
        Predicts the responses.
    brain : callable, optional
        Response source in place of the predicted responses, as in `train_fusion`.
    atlas : Atlas, optional
        Atlas of the responses; the encoder's by default.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Where to train and predict.

    Returns
    -------
    callable
        Trains one model for each request with ``name``, ``mask`` (vertices that may be read, bool
        (n_vertices,)) and ``seed``, and returns them in the same order.

    Notes
    -----
    A region is left out by keeping its vertices at their mean, in training and after. All models of
    an ablation then have the same number of tokens and of weights, and differ in information alone.
    """
    context = Context.make(store, device)

    def train(models: Sequence[AblatedModel]) -> list[TrainedFusion]:
        return [
            train_fusion(
                config,
                study,
                encoder=encoder,
                brain=brain,
                atlas=atlas,
                silent=None if np.all(model.mask) else ~np.asarray(model.mask),
                context=context,
                seed=model.seed,
                name=model.name,
            )
            for model in models
        ]

    return train

"""The comparison by one recipe: backbone only, concatenation, fusion, and plain attribute labels without a cortex."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.runtime import timed
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training import recipes
from bmfl_lab.training.encoder import EncoderConfig, train_brain_encoder
from bmfl_lab.training.recipes import FusionConfig, train_fusion
from bmfl_lab.training.trained_encoder import TrainedEncoder
from bmfl_lab.training.trained_fusion import TrainedFusion

COMPARED = {
    "backbone": "image tokens only, an MLP with as many trainable weights as the fusion (within 2 %)",
    "concat": "image and brain tokens joined without cross-attention",
    "fusion": "two-way cross-attention and the Pearson term",
    "attributes": "as fusion, but with predicted attribute labels in place of predicted responses: no cortex",
}
"""Models that `train_comparison` knows, and what each sees."""


PRESETS = ("tiny", "quick", "small", "base")


def presets(
    name: str, *, epochs: int = 0, encoder: str = "roi_query", **changes: Any
) -> tuple[FusionConfig, EncoderConfig]:
    """Return the fusion and the encoder configuration of one size.

    Parameters
    ----------
    name : {"tiny", "quick", "small", "base"}
        For the planted study, many models of the demo study, the demo study, and ImageNet-sized
        studies on a GPU.
    epochs : int, default 0
        Epochs of the fusion training; 0 keeps the preset's.
    encoder : str, default "roi_query"
        Kind of brain encoder.
    **changes
        Fields of `FusionConfig`.

    Raises
    ------
    ConfigError
        If the name or a field is unknown.
    """
    if name not in PRESETS:
        raise ConfigError(message(f"a preset among {PRESETS}", repr(name), nearest(name, PRESETS)))
    fusion = getattr(recipes, name)(**changes)
    if epochs:
        fusion = configs.replace(fusion, loop=configs.replace(fusion.loop, epochs=epochs))
    return fusion, getattr(encoders, name)(encoder)


def attribute_subject(subject: Subject) -> Subject:
    """Return a stand-in for a simulated subject whose "responses" are the attributes it was built from.

    Parameters
    ----------
    subject : Subject
        A simulated subject with `attributes`, shape (n_stimuli, n_attributes).

    Returns
    -------
    Subject
        Same stimuli and splits; one vertex an attribute, z-scored over the training rows, each its
        own ROI. The attributes carry no measurement noise, so this control has cleaner targets than
        any cortex would give.

    Raises
    ------
    DataError
        If the subject has no attributes, as measured subjects have none.
    """
    if subject.attributes is None:
        raise DataError(
            message(
                f"attributes of {subject.name!r}",
                "none",
                "leave 'attributes' out of the models: this control exists for simulated subjects only",
            )
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
    config: EncoderConfig, study: Study, *, subject: str | None = None, **options: Any
) -> TrainedEncoder:
    """Train the encoder recipe on attribute labels instead of responses; options as `train_brain_encoder`.

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
        Of the fusion; the others differ in `head` or in where the brain tokens come from, and in
        nothing else.
    study : Study
        Its "train" set trains, its "val" set selects the epoch.
    encoder : TrainedEncoder
        Predicts the responses for "concat" and "fusion", and fixes the capacity of "backbone".
    attribute_encoder : TrainedEncoder, optional
        From `train_attribute_encoder`; needed for "attributes".
    models : sequence of str
        Names in `COMPARED`.
    seeds : sequence of int
        Training seeds.
    store, device
        As `train_fusion`.
    times : dict, optional
        Receives the seconds spent on each model.

    Returns
    -------
    dict of str to list of TrainedFusion
        Model name to one trained model a seed.

    Raises
    ------
    ConfigError
        If a model is unknown, no seed is given, or "attributes" has no encoder.
    """
    for name in models:
        if name not in COMPARED:
            raise ConfigError(
                message(f"models among {tuple(COMPARED)}", repr(name), nearest(name, COMPARED))
            )
    if not seeds or not models:
        raise ConfigError(
            message("at least one model and one seed", f"{models!r}, {seeds!r}", "name some")
        )
    if "attributes" in models and attribute_encoder is None:
        raise ConfigError(
            message(
                "an attribute encoder for the model 'attributes'",
                "none",
                "train it with train_attribute_encoder",
            )
        )
    settings: Mapping[str, tuple[dict[str, Any], Any]] = {
        "backbone": ({"head": "backbone"}, encoder),
        "concat": ({"head": "concat"}, encoder),
        "fusion": ({"head": "fusion"}, encoder),
        "attributes": ({"head": "fusion", "regions": ("all",)}, attribute_encoder),
    }
    trained: dict[str, list[TrainedFusion]] = {}
    for name in models:
        changes, source = settings[name]
        with timed(times if times is not None else {}, f"train {name}"):
            trained[name] = [
                train_fusion(
                    configs.replace(config, **changes),
                    study,
                    encoder=source,
                    store=store,
                    device=device,
                    seed=s,
                    name=name,
                )
                for s in seeds
            ]
    return trained

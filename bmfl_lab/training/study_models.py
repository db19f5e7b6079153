"""All models of a study by one recipe, for notebooks 03 and 04 and for the command line."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, require
from bmfl_lab.runtime import timed
from bmfl_lab.training.compare import (
    Groups,
    attribute_subject,
    train_attribute_encoder,
    train_baselines,
    train_comparison,
)
from bmfl_lab.training.context import local_device, study_backbone
from bmfl_lab.training.encoder import EncoderConfig, train_brain_encoder
from bmfl_lab.training.external import ExternalEncoder
from bmfl_lab.training.fusion import FusionConfig
from bmfl_lab.training.names import COMPARED
from bmfl_lab.training.probe import TrainedProbe, train_probe
from bmfl_lab.training.saved import OpenedStudy
from bmfl_lab.training.trained_encoder import TrainedEncoder

PROBE = "linear probe"
BRAINLESS = ("backbone", PROBE)
"""Models that read no responses, so that they need no subject."""


@dataclass(frozen=True)
class StudyModels:
    """Hold the models of a study.

    Parameters
    ----------
    encoder : TrainedEncoder, ExternalEncoder or None
        Encoder whose responses the models read; None without a subject.
    models : dict of str to list
        The compared models by name, those of several seeds in the order of the seeds.
    baselines : dict of str to list of TrainedFusion
        Models of backbone tokens alone that were trained for fewer epochs.
    """

    encoder: TrainedEncoder | ExternalEncoder | None
    models: dict[str, list]
    baselines: Groups = field(default_factory=dict)

    @property
    def probes(self) -> list[TrainedProbe]:
        """The linear probes, one per seed; empty if there are none."""
        return self.models.get(PROBE, [])


def runnable_models(models: Sequence[str], study: Study) -> list[str]:
    """Return the models that a study can train, and print which ones need a subject.

    Parameters
    ----------
    models : sequence of str
        Names of models.
    study : Study
        A study, perhaps without a subject.

    Returns
    -------
    list of str
        All models if there is a subject, else those that read no responses.

    Raises
    ------
    DataError
        If none is left.
    """
    kept = [name for name in models if study.subjects or name in BRAINLESS]
    if not kept:
        study.subject()  # says how to add one
    if left := [name for name in models if name not in kept]:
        print(
            f"study {study.name!r} has no subject: {', '.join(left)} are left out. For these add "
            "the line 'subject: demo' to the study file, which lends the simulated subject of the "
            "demo, or 'subject: ' and the folder of a subject. A study file for a folder of images "
            "has the lines 'study: folder' and 'root: ' with that folder",
            flush=True,
        )
    return kept


def train_models(
    study: Study,
    models: Sequence[str],
    configs: tuple[FusionConfig, EncoderConfig],
    *,
    subject: Subject | None = None,
    encoder: TrainedEncoder | ExternalEncoder | None = None,
    opened: OpenedStudy | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    shorter: Sequence[int] = (),
    store: FeatureStore | None = None,
    device: str = "auto",
    times: dict[str, float] | None = None,
) -> StudyModels:
    """Train the encoder of a study and all models, or read those that are kept.

    Parameters
    ----------
    study : Study
        Its set "train" trains, its set "val" selects.
    models : sequence of str
        Names in `COMPARED` and "linear probe".
    configs : (FusionConfig, EncoderConfig)
        See `presets`.
    subject : Subject, optional
        Subject whose responses the encoder learns; without one, models that read responses are
        refused.
    encoder : TrainedEncoder or ExternalEncoder, optional
        Encoder that is trained already.
    opened : OpenedStudy, optional
        Saved models, which then take the place of the compared ones.
    seeds : sequence of int, default (0, 1, 2)
        Every model is trained once per seed.
    shorter : sequence of int, default ()
        Epochs of the shorter trainings of "backbone".
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains and predicts.
    times : dict of str to float, optional
        Receives the seconds of each part.

    Returns
    -------
    StudyModels

    Raises
    ------
    ConfigError
        If a model needs a subject and there is none; see also `train_comparison`.
    """
    fusion_config, encoder_config = configs
    times = {} if times is None else times
    options = {"store": store if store is not None else FeatureStore(), "device": device}
    saved = dict(opened.models) if opened is not None else {}
    brainy = [name for name in models if name in COMPARED and name not in BRAINLESS]
    require(
        subject is not None or saved or not brainy,
        ConfigError,
        f"a subject for {', '.join(brainy)}",
        f"none in study {study.name!r}",
        "add the line 'subject: demo' to the study file, or leave these models out",
    )
    encoder = encoder or (opened.encoder if opened is not None else None)
    if encoder is None and subject is not None:
        with timed(times, "train encoder"):
            encoder = train_brain_encoder(encoder_config, study, subject=subject.name, **options)
    trained: dict[str, list] = saved
    compared = [name for name in models if name in COMPARED]
    if compared and not saved:
        attributes = None
        if "attributes" in models:
            attribute_subject(subject)  # refuses measured responses before anything is trained
            attributes = functools.partial(
                train_attribute_encoder, encoder_config, study, subject=subject.name, **options
            )
        trained = train_comparison(
            fusion_config,
            study,
            encoder=encoder,
            attribute_encoder=attributes,
            models=compared,
            seeds=seeds,
            times=times,
            **options,
        )
    weaker: Groups = {}
    if shorter:
        with timed(times, "train baselines"):
            weaker = train_baselines(
                fusion_config, study, encoder=encoder, epochs=shorter, seeds=seeds, **options
            )
    if PROBE in models:
        trained[PROBE] = _probes(study, seeds, times, options)
    return StudyModels(encoder, trained, weaker)


def _probes(
    study: Study, seeds: Sequence[int], times: dict[str, float], options: dict[str, object]
) -> list[TrainedProbe]:
    """Train one linear probe per seed on the last block and on the last four."""
    backbone = study_backbone(study.backbone, local_device(str(options["device"])))
    n_blocks = (1, min(4, backbone.n_blocks))
    with timed(times, "train linear probe"):
        return [
            train_probe(study, n_blocks=n_blocks, seed=seed, backbone=backbone, **options)
            for seed in seeds
        ]

"""The fusion with something else in place of the brain, its alpha sweep, and the sweep over encoder quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.losses import pearson_regulariser
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.metrics.statistics import seed_mean
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import pick_device
from bmfl_lab.training import sources
from bmfl_lab.training.ensemble import Job, train_fusions
from bmfl_lab.training.fusion_parts import encoder_source, study_backbone
from bmfl_lab.training.recipes import FusionConfig
from bmfl_lab.training.trained_fusion import TrainedFusion

CONTROL_MODELS = {
    "fusion": "predicted responses of the brain encoder: what the controls are compared with",
    "backbone": "image tokens only, as many weights",
    "noise": "noise with each vertex's mean and variance",
    "noise, covariance": "noise with the mean and full covariance of the predicted responses",
    "other image": "the predicted response to another training image",
    "same class": "the predicted response to another image of the same class (label in training, prediction elsewhere)",
    "random encoder": "the encoder with its weights shuffled: never saw a response",
    "random backbone": "an encoder trained on the responses, from tokens of a backbone with random weights",
    "untrained brain transformer": "predicted responses through a brain transformer left at its initial weights",
    "patch PCA": "principal components of the image's own patches, as many as vertices",
    "random projection": "a random projection of the image's own patches, as many numbers as vertices",
    "attributes": "predicted labels that a simulated subject was built from: the same information without a cortex",
}
"""Models that `train_controls` knows, and what stands in place of the brain."""


def train_controls(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any,
    encoder_config: Any = None,
    controls: Sequence[str] = tuple(CONTROL_MODELS),
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    at_once: int | None = None,
) -> dict[str, list[TrainedFusion]]:
    """Train the fusion and its controls by one recipe, each with every seed.

    Parameters
    ----------
    config : FusionConfig
        Of the fusion.
    study : Study
        As `train_fusion`.
    encoder : TrainedEncoder
        Its predictions on the training images are what noise and partners are made from.
    encoder_config : EncoderConfig, optional
        For "random backbone" and "attributes", which train an encoder of their own.
    controls : sequence of str
        Among `CONTROL_MODELS`.
    seeds : sequence of int
        Training seeds; what is random in a control is drawn anew for each.
    store, device, at_once
        As `train_fusions`.

    Returns
    -------
    dict of str to list of TrainedFusion
        As `bmfl_lab.evaluation.evaluate_ood` takes it.

    Raises
    ------
    ConfigError
        If a control is unknown, needs an `encoder_config` that is missing, or there is no seed.
    DataError
        If "attributes" is asked for a measured subject.
    """
    for name in controls:
        if name not in CONTROL_MODELS:
            raise ConfigError(
                message(
                    f"controls among {tuple(CONTROL_MODELS)}",
                    repr(name),
                    nearest(name, list(CONTROL_MODELS)),
                )
            )
    own = {"random backbone", "attributes"} & set(controls)
    if not seeds or not controls or (own and encoder_config is None):
        raise ConfigError(
            message(
                "at least one control and seed"
                + (f", and an encoder_config for {sorted(own)}" if own else ""),
                f"{len(controls)} controls, {len(seeds)} seeds",
                "pass the configuration of the brain encoder",
            )
        )
    setting = _Setting(config, study, encoder, encoder_config, store, device)
    jobs = [setting.job(name, seed) for name in controls for seed in seeds]
    trained = train_fusions(
        jobs, study, store=setting.store, device=setting.device, at_once=at_once
    )
    found: dict[str, list[TrainedFusion]] = {name: [] for name in controls}
    for job, model in zip(jobs, trained):
        found[job.name].append(model)
    return found


class _Setting:
    """What the controls of one comparison share."""

    def __init__(self, config, study, encoder, encoder_config, store, device):
        self.config, self.study, self.encoder, self.encoder_config = (
            config,
            study,
            encoder,
            encoder_config,
        )
        self.store, self.device = (
            store if store is not None else FeatureStore(),
            pick_device(device),
        )
        self.backbone = study_backbone(study.backbone, self.device)
        self.source = sources.remembered(
            encoder_source(encoder, self.store, self.backbone, self.device)
        )
        self.reference = self.source(study.set("train"), self.tokens(study.set("train")))
        self.shared: dict[str, Any] = {}

    def tokens(self, stimuli: StimulusSet) -> Any:
        return self.store.get(
            self.backbone, stimuli, kind=self.config.kind, block=self.config.block
        )

    def job(self, name: str, seed: int) -> Job:
        changes: dict[str, Any] = {}
        encoder, source = self.encoder, self.source
        if name == "backbone":
            changes = {"head": "backbone"}
        elif name == "untrained brain transformer":
            changes = {"freeze_brain": True}
        elif name == "attributes":
            encoder = self.once(name, self._attributes)
            source = self.once("attribute source", lambda: self._asked(encoder))
            changes = {"regions": ("all",)}
        elif name != "fusion":
            source = self._source(name, seed)
        config = configs.replace(self.config, **changes)
        return Job(name, config, seed, encoder, source, encoder.atlas)

    def once(self, name: str, make: Any) -> Any:
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    def _source(self, name: str, seed: int) -> Any:
        train, width = self.study.set("train"), self.reference.shape[1]
        if name.startswith("noise"):
            return sources.remembered(
                sources.noise_source(self.reference, covariance="covariance" in name, seed=seed)
            )
        if name == "other image":
            return sources.remembered(sources.other_image_source(train, self.reference, seed=seed))
        if name == "same class":
            classes = self.once("classes", self._classes)
            return sources.remembered(
                sources.other_image_source(train, self.reference, classes=classes, seed=seed)
            )
        if name == "random encoder":
            return self._asked(sources.random_weight_encoder(self.encoder, seed))
        if name == "random backbone":
            return self.once(name, self._random_backbone)
        if name == "patch PCA":
            return self.once(name, lambda: self._pca(width))
        return sources.remembered(sources.projection_source(width, seed=seed))

    def _asked(self, encoder: Any) -> Any:
        return sources.remembered(encoder_source(encoder, self.store, self.backbone, self.device))

    def _classes(self) -> Any:
        config = configs.replace(self.config, head="backbone")
        job = Job("class of a partner", config, 0, self.encoder, None, self.encoder.atlas)
        (model,) = train_fusions([job], self.study, store=self.store, device=self.device)
        return lambda stimuli: model.logits(stimuli).argmax(1)

    def _random_backbone(self) -> Any:
        made = sources.random_backbone_encoder(
            self.encoder_config, self.study, store=self.store, device=self.device
        )
        return self._asked(made)

    def _attributes(self) -> Any:
        from bmfl_lab.training.compare import train_attribute_encoder

        return train_attribute_encoder(
            self.encoder_config, self.study, store=self.store, device=self.device
        )

    def _pca(self, width: int) -> Any:
        subject = self.study.subject()
        shown = self.tokens(subject.stimuli).patches[subject.rows("train")]
        return sources.remembered(sources.pca_source(shown, width))


def train_alphas(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any,
    alphas: Sequence[float] = (0.0, 0.1, 1.0, 10.0),
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    at_once: int | None = None,
) -> dict[str, list[TrainedFusion]]:
    """Train the fusion with several weights of the Pearson regulariser; parameters as `train_controls`.

    Returns
    -------
    dict of str to list of TrainedFusion
        "alpha 0", "alpha 0.1", ...

    Raises
    ------
    ConfigError
        If an alpha is negative.
    """
    setting = _Setting(config, study, encoder, None, store, device)
    jobs = [
        Job(
            f"alpha {alpha:g}",
            configs.replace(config, alpha=float(alpha)),
            s,
            encoder,
            setting.source,
            encoder.atlas,
        )
        for alpha in alphas
        for s in seeds
    ]
    return _grouped(jobs, study, setting, at_once)


def train_quality(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    at_once: int | None = None,
) -> dict[str, list[TrainedFusion]]:
    """Train the fusion on predicted responses mixed with noise, at several encoding accuracies.

    Parameters
    ----------
    shares : sequence of float
        Encoding accuracies as shares of the encoder's own mean validation r, 0 to 1.
    config, study, encoder, seeds, store, device, at_once
        As `train_controls`.

    Returns
    -------
    dict of str to list of TrainedFusion
        "r = 0.31", ...: the mean encoding accuracy of what the fusion reads.

    Raises
    ------
    ConfigError
        If a share lies outside 0..1.
    """
    setting = _Setting(config, study, encoder, None, store, device)
    reached = float(np.nanmean(encoder.scores))
    jobs = []
    for share in shares:
        for s in seeds:
            mixed = sources.mixed_source(
                setting.source, setting.reference, accuracy=share * reached, reached=reached, seed=s
            )
            jobs.append(
                Job(
                    f"r = {share * reached:.2f}",
                    config,
                    s,
                    encoder,
                    sources.remembered(mixed),
                    encoder.atlas,
                )
            )
    return _grouped(jobs, study, setting, at_once)


def train_forms(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any,
    queries: Sequence[str] = ("cls", "patch"),
    axes: Sequence[str] = ("feature", "batch"),
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    at_once: int | None = None,
) -> dict[str, list[TrainedFusion]]:
    """Train the fusion in every form that descriptions of NeuralOOD leave open.

    Parameters
    ----------
    queries : sequence of {"cls", "patch"}
        Who asks in the cross-attention.
    axes : sequence of {"feature", "batch"}
        Axis of the Pearson term.
    config, study, encoder, seeds, store, device, at_once
        As `train_controls`.

    Returns
    -------
    dict of str to list of TrainedFusion
        "cls query, feature axis", ...
    """
    setting = _Setting(config, study, encoder, None, store, device)
    jobs = [
        Job(
            f"{query} query, {axis} axis",
            configs.replace(config, query=query, pcc_axis=axis),
            s,
            encoder,
            setting.source,
            encoder.atlas,
        )
        for query in queries
        for axis in axes
        for s in seeds
    ]
    return _grouped(jobs, study, setting, at_once)


def _grouped(
    jobs: list[Job], study: Study, setting: _Setting, at_once: int | None
) -> dict[str, list[TrainedFusion]]:
    found: dict[str, list[TrainedFusion]] = {}
    for job, model in zip(
        jobs,
        train_fusions(jobs, study, store=setting.store, device=setting.device, at_once=at_once),
    ):
        found.setdefault(job.name, []).append(model)
    return found


def agreement(model: TrainedFusion, stimuli: StimulusSet) -> float:
    """Return the mean Pearson r between X_vb and X_bv over images, as the regulariser measures it.

    Raises
    ------
    ConfigError
        If the model has no fused features.
    """
    if model.config.head == "backbone" or not len(stimuli):
        raise ConfigError(
            message(
                "a model with two fused features, and images", f"{model.name!r}", "use a fusion"
            )
        )
    tokens, response = model.inputs(stimuli)
    ready = model.standardise(torch.from_numpy(np.array(response)))
    parts = []
    for start in range(0, len(stimuli), 256):
        rows = slice(start, start + 256)
        inputs = (
            torch.from_numpy(np.array(tokens.cls[rows])),
            torch.from_numpy(np.array(tokens.patches[rows])),
        )
        with torch.inference_mode():
            out = model.module(*(t.to(model.device).float() for t in (*inputs, ready[rows])))
            loss = pearson_regulariser(out.x_vb.float(), out.x_bv.float(), model.config.pcc_axis)
        parts.append((1 - float(loss)) * len(inputs[0]))
    return sum(parts) / len(stimuli)


def encoding_accuracy(model: TrainedFusion, subject: Subject, split: str = "test") -> float:
    """Return how well what a model reads predicts a subject's responses: mean Pearson r over vertices.

    Parameters
    ----------
    model : TrainedFusion
        Its source of responses is asked, whatever stands there.
    subject : Subject
        With as many vertices.
    split : str, default "test"
        Images that the brain encoder was not trained on.

    Raises
    ------
    ConfigError
        If the model has no brain.
    """
    rows = subject.rows(split)
    predicted = model.predict_responses(subject.stimuli.subset(rows, name=f"encoder-{split}"))
    return float(
        np.nanmean(pearson(np.asarray(subject.responses[rows], dtype=np.float64), predicted))
    )


def measured_rows(
    name: str,
    groups: Mapping[str, Sequence[TrainedFusion]],
    measure: Callable[[TrainedFusion], float],
    *,
    n: int,
    unit: str = "r",
    split: str = "test",
    notes: str = "",
) -> list[MetricRow]:
    """Measure every model: one row a seed, and their mean with an interval over seeds.

    Parameters
    ----------
    name, unit, split, notes : str
        For the rows.
    groups : mapping of str to list of TrainedFusion
        One model a seed.
    measure : callable
        ``measure(model) -> float``.
    n : int
        Stimuli behind each value.
    """
    rows = []
    for model, group in groups.items():
        values = [float(measure(one)) for one in group]
        shared = {
            "unit": unit,
            "split": split,
            "n": n,
            "model": model,
            "selection": group[0].selection,
            "notes": notes,
        }
        rows += [MetricRow(name, v, seed=one.seed, **shared) for v, one in zip(values, group)]
        found = seed_mean(np.asarray(values), n)
        rows.append(
            MetricRow(
                name,
                found.value,
                n_seeds=found.n_seeds,
                ci_low=found.low,
                ci_high=found.high,
                interval=found.method,
                **shared,
            )
        )
    return rows

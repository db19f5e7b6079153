"""Comparisons by one recipe: fusion, baselines, shorter trainings, silenced regions, controls."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data import Atlas, StimulusSet, Study, Subject
from bmfl_lab.errors import ConfigError, DataError, nearest, require
from bmfl_lab.losses import pearson_regulariser
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.metrics.statistics import seed_mean
from bmfl_lab.models.bmfl import ResponseSource, TokenBatch
from bmfl_lab.models.build import AXES, FusionConfig
from bmfl_lab.models.fusion import QUERIES
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import timed
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training import recipes, sources
from bmfl_lab.training.batches import fingerprint
from bmfl_lab.training.context import Context
from bmfl_lab.training.encoder import EncoderConfig
from bmfl_lab.training.external import ExternalEncoder
from bmfl_lab.training.fusion import (
    Inputs,
    TrainedFusion,
    max_parallel,
    train_fusion,
)
from bmfl_lab.training.names import COMPARED, CONTROL_MODELS
from bmfl_lab.training.parallel import train_each
from bmfl_lab.training.trained_encoder import TrainedEncoder

Groups = dict[str, list[TrainedFusion]]


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
        name in recipes.PRESETS,
        ConfigError,
        f"a preset among {recipes.PRESETS}",
        repr(name),
        nearest(name, recipes.PRESETS),
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
        kind="simulated",
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

    Returns
    -------
    TrainedEncoder

    Raises
    ------
    DataError
        See `attribute_subject`.
    """
    stand_in = attribute_subject(study.subject(subject))
    labelled = dataclasses.replace(study, subjects={stand_in.name: stand_in})
    return encoders.train_brain_encoder(config, labelled, **options)


def train_comparison(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder | None = None,
    attribute_encoder: TrainedEncoder | Callable[[], TrainedEncoder] | None = None,
    models: Sequence[str] = tuple(COMPARED),
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    fresh: bool = False,
    times: dict[str, float] | None = None,
) -> Groups:
    """Train several models by the same recipe, each with every seed.

    Parameters
    ----------
    config : FusionConfig
        Configuration of the fusion. The other models differ in `head` or in where the brain tokens
        come from, and in nothing else.
    study : Study
        Its set "train" trains, its set "val" selects the epoch.
    encoder : TrainedEncoder, optional
        Encoder that predicts the responses for "concat" and "fusion", and fixes the number of
        parameters of "backbone". Without one, "backbone" is trained alone.
    attribute_encoder : TrainedEncoder or callable, optional
        From `train_attribute_encoder`, or a function that trains it; needed for "attributes".
    models : sequence of str
        Names in `COMPARED`; all by default.
    seeds : sequence of int, default (0, 1, 2)
        Training seeds.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains and predicts.
    folder : str or Path, optional
        Folder in which trained models are kept; ``models`` in the cache folder by default. A model
        that is kept is read, and a training that was stopped continues from its newest checkpoint.
    fresh : bool, default False
        Train every model from the start, even if it is kept.
    times : dict of str to float, optional
        Receives the seconds spent on all models.

    Returns
    -------
    dict of str to list of TrainedFusion
        One trained model per seed for each name. On a CPU they are trained in parallel, see
        `bmfl_lab.training.parallel.train_each`.

    Raises
    ------
    ConfigError
        If a model is unknown, no seed is given, or a model that reads responses has no encoder.
    """
    models = configs.require_list("models", models, str, COMPARED)
    seeds = configs.require_list("seeds", seeds, int)
    require(
        encoder is not None or not {"concat", "fusion"} & set(models),
        ConfigError,
        "an encoder for the models 'concat' and 'fusion'",
        "none",
        "train one with train_brain_encoder and pass encoder=...",
    )
    require(
        "attributes" not in models or attribute_encoder is not None,
        ConfigError,
        "an attribute encoder for the model 'attributes'",
        "none",
        "train it with train_attribute_encoder and pass attribute_encoder=...",
    )
    context = Context.make(store, device).keeping(folder, fresh)
    attributes = functools.cache(
        attribute_encoder if callable(attribute_encoder) else lambda: attribute_encoder
    )
    changes = {name: {"head": name} for name in ("backbone", "concat", "fusion")}
    changes["attributes"] = {"head": "fusion", "regions": ("all",)}

    def train(name: str, seed: int, context: Context) -> TrainedFusion:
        return train_fusion(
            configs.replace(config, **changes[name]),
            study,
            encoder=attributes() if name == "attributes" else encoder,
            context=context,
            seed=seed,
            name=name,
        )

    with timed(times if times is not None else {}, "train models"):
        return _train_groups(
            [(name, functools.partial(train, name, s)) for name in models for s in seeds],
            _Setting(config, study, encoder, context),
            first=[lambda context: attributes()] if "attributes" in models else [],
        )


def _train_groups(
    trainings: Sequence[tuple[str, Callable[[Context], TrainedFusion]]],
    setting: _Setting,
    first: Sequence[Callable[[Context], object]] = (),
) -> Groups:
    """Return the models of each name in their order; `first` is begun before them."""
    trained = train_each(
        [*first, *(train for _, train in trainings)], setting.context, setting.max_parallel
    )
    found: Groups = {}
    for (name, _), model in zip(trainings, trained[len(first) :]):
        found.setdefault(name, []).append(model)
    return found


def train_baselines(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder | None = None,
    epochs: Sequence[int] = (1, 2, 4, 8),
    seeds: Sequence[int] = (0,),
    store: FeatureStore | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    fresh: bool = False,
) -> Groups:
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
        Device that trains and predicts.
    folder : str or Path, optional
        Folder in which trained models are kept; ``models`` in the cache folder by default. A model
        that is kept is read, and a training that was stopped continues from its newest checkpoint.
    fresh : bool, default False
        Train every model from the start, even if it is kept.

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
    seeds = configs.require_list("seeds", seeds, int)
    kept = [e for e in configs.require_list("epochs", epochs, int) if e < config.loop.epochs]
    require(
        kept and min(kept) >= 1,
        ConfigError,
        f"lengths from 1 to {config.loop.epochs - 1} epochs",
        tuple(epochs),
        "give lengths in this range, or raise the epochs of the comparison",
    )
    context = Context.make(store, device).keeping(folder, fresh)

    def train(name: str, length: int, seed: int, context: Context) -> TrainedFusion:
        shorter = configs.replace(
            config, head="backbone", loop=configs.replace(config.loop, epochs=length)
        )
        return train_fusion(shorter, study, encoder=encoder, context=context, seed=seed, name=name)

    names = {length: f"backbone, {length} epoch" + ("s" if length > 1 else "") for length in kept}
    return _train_groups(
        [(n, functools.partial(train, n, k, s)) for k, n in names.items() for s in seeds],
        _Setting(config, study, encoder, context),
    )


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
    known: Mapping[str, Sequence[TrainedFusion]] | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    fresh: bool = False,
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
        Encoder that predicts the responses.
    brain : callable, optional
        Response source in place of the predicted responses, as in `train_fusion`.
    atlas : Atlas, optional
        Atlas of the responses; the encoder's by default.
    known : mapping of str to sequence of TrainedFusion, optional
        Models that are trained already, by name, as `open_models` returns them. One of the same
        configuration and seed is taken instead of being trained.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains and predicts.
    folder : str or Path, optional
        Folder in which trained models are kept; ``models`` in the cache folder by default. A model
        that is kept is read, and a training that was stopped continues from its newest checkpoint.
    fresh : bool, default False
        Train every model from the start, even if it is kept.

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
    context = Context.make(store, device).keeping(folder, fresh)

    setting = _Setting(config, study, encoder, context, brain, atlas)

    def one(model: AblatedModel, context: Context) -> TrainedFusion:
        whole = np.all(model.mask)
        trained = _known(known, "fusion", config, model.seed) if whole else None
        if trained is None:
            trained = train_fusion(
                config,
                study,
                encoder=encoder,
                brain=brain,
                atlas=atlas,
                silent=None if whole else ~np.asarray(model.mask),
                context=context,
                seed=model.seed,
                name=model.name,
            )
        return dataclasses.replace(trained, name=model.name)

    def train(models: Sequence[AblatedModel]) -> list[TrainedFusion]:
        trainings = [functools.partial(one, model) for model in models]
        return train_each(trainings, context, setting.max_parallel)

    return train


def train_controls(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder,
    encoder_config: EncoderConfig | None = None,
    controls: Sequence[str] = tuple(CONTROL_MODELS),
    seeds: Sequence[int] = (0, 1, 2),
    known: Mapping[str, Sequence[TrainedFusion]] | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    fresh: bool = False,
) -> Groups:
    """Train the fusion and its controls by one recipe, each with every seed.

    Parameters
    ----------
    config : FusionConfig
        Configuration of the fusion.
    study : Study
        Its set "train" trains, its set "val" selects the epoch.
    encoder : TrainedEncoder
        Its predictions for the training images give the statistics of the noise and the responses
        of other images.
    encoder_config : EncoderConfig, optional
        Needed by "random backbone" and "attributes", which train an encoder of their own.
    controls : sequence of str
        Names in `CONTROL_MODELS`; all by default.
    seeds : sequence of int, default (0, 1, 2)
        Training seeds. The random numbers of a control are drawn anew for each seed.
    known : mapping of str to sequence of TrainedFusion, optional
        Models that are trained already, by name, as `open_models` returns them. One of the same
        configuration and seed is taken instead of being trained.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains and predicts.
    folder : str or Path, optional
        Folder in which trained models are kept; ``models`` in the cache folder by default. A model
        that is kept is read, and a training that was stopped continues from its newest checkpoint.
    fresh : bool, default False
        Train every model from the start, even if it is kept.

    Returns
    -------
    dict of str to list of TrainedFusion
        One model per seed for each control, as `bmfl_lab.evaluation.evaluate_ood` takes them.

    Raises
    ------
    ConfigError
        If a control is unknown, needs an `encoder_config` that is missing, or there is no seed.
    DataError
        If "attributes" is chosen for a measured subject.
    """
    controls = configs.require_list("controls", controls, str, CONTROL_MODELS)
    seeds = configs.require_list("seeds", seeds, int)
    own = {"random backbone", "attributes"} & set(controls)
    require(
        not own or encoder_config is not None,
        ConfigError,
        f"an encoder_config for {sorted(own)}",
        "none",
        "pass the configuration of the brain encoder as encoder_config=...",
    )
    lacking = {"random backbone", "random encoder", "permuted features"} & set(controls)
    require(
        not lacking or not isinstance(encoder, ExternalEncoder),
        ConfigError,
        f"a brain encoder for {sorted(lacking)}",
        encoder.label,
        "leave these controls out",
    )
    setting = _Setting(config, study, encoder, Context.make(store, device).keeping(folder, fresh))
    made = _ControlSources(setting, encoder_config)

    def train(name: str, seed: int, context: Context) -> TrainedFusion:
        changes = {
            "backbone": {"head": "backbone"},
            "untrained brain transformer": {"freeze_brain": True},
            "attributes": {"regions": ("all",)},
        }.get(name, {})
        chosen = configs.replace(config, **changes)
        return _known(known, name, chosen, seed) or setting.train(
            name, chosen, seed, *made.get(name, seed), context=context
        )

    return _train_groups(
        [(name, functools.partial(train, name, s)) for name in controls for s in seeds], setting
    )


def _known(
    known: Mapping[str, Sequence[TrainedFusion]] | None, name: str, config: FusionConfig, seed: int
) -> TrainedFusion | None:
    """Return the known model of a name, configuration and seed, if there is one."""
    models = (known or {}).get(name, ())
    return next((m for m in models if m.config == config and m.seed == seed), None)


class _Setting:
    """Hold what the models of one comparison share, and train them."""

    def __init__(
        self,
        config: FusionConfig,
        study: Study,
        encoder: TrainedEncoder | None,
        context: Context,
        source: ResponseSource | None = None,
        atlas: Atlas | None = None,
    ):
        self.atlas = getattr(encoder, "atlas", None) if atlas is None else atlas
        self.config, self.study, self.encoder, self.context = config, study, encoder, context
        if source is None and encoder is not None:
            external = isinstance(encoder, ExternalEncoder)
            source = encoder.source if external else sources.EncoderSource(encoder, context.device)
        self.source = source
        self.inputs = Inputs(
            context,
            context.backbone(study.backbone),
            config.kind,
            config.block,
            encoder,
            self.source,
        )

    def max_parallel(self) -> int:
        """Return how many trainings fit into memory together."""
        n = max_parallel(self.inputs, self.study, self.config.augment, self.atlas)
        if n > 1 and self.source is not None:
            self.reference()  # with all threads, as for one training: its bits name controls
        return n

    def reference(self) -> np.ndarray:
        """Return the predicted responses to the training images, (n_train, V)."""
        train = self.study.set("train")
        return self.inputs.responses(train, self.inputs.tokens(train))

    def train(
        self,
        name: str,
        config: FusionConfig,
        seed: int,
        source: ResponseSource | None = None,
        encoder: TrainedEncoder | None = None,
        context: Context | None = None,
    ) -> TrainedFusion:
        """Train one model, on the responses of the encoder by default."""
        return train_fusion(
            config,
            self.study,
            encoder=self.encoder if encoder is None else encoder,
            brain=source,
            backbone=self.inputs.backbone,
            context=self.context if context is None else context,
            seed=seed,
            name=name,
        )

    def train_all(self, models: Mapping[str, FusionConfig], seeds: Sequence[int]) -> Groups:
        """Train named configurations, each with every seed."""

        def train(name: str, seed: int, context: Context) -> TrainedFusion:
            return self.train(name, models[name], seed, context=context)

        return _train_groups(
            [(name, functools.partial(train, name, s)) for name in models for s in seeds], self
        )


class _ControlSources:
    """Make the response source of each control; what does not depend on the seed is made once."""

    def __init__(self, setting: _Setting, encoder_config: EncoderConfig | None):
        self.setting, self.encoder_config = setting, encoder_config
        # an encoder may have learned from several subjects, or from one of another study
        own = str(setting.encoder.facts.get("subject"))
        self.subject = own if own in setting.study.subjects else None
        options = {"store": setting.context.store, "device": setting.context.device}
        self.options = {**options, "subject": self.subject}

    def get(self, name: str, seed: int) -> tuple[ResponseSource | None, TrainedEncoder | None]:
        """Return source and encoder of a control; None for those of the fusion."""
        setting = self.setting
        if name in ("fusion", "backbone", "untrained brain transformer"):
            return None, None
        if name == "attributes":
            return None, self.attribute_encoder
        if name == "random backbone":
            return self.random_backbone, None
        if name == "random encoder":
            shuffled = sources.random_weight_encoder(setting.encoder, seed)
            return sources.EncoderSource(shuffled, setting.context.device), None
        if name == "permuted features":
            return sources.PermutedSource(setting.source, seed), None
        train, reference = setting.study.set("train"), setting.reference()
        if name.startswith("noise"):
            return sources.noise_source(reference, covariance="covariance" in name, seed=seed), None
        if name in ("other image", "same class"):
            classes = self.classes if name == "same class" else None
            return sources.other_image_source(train, reference, classes=classes, seed=seed), None
        if name == "patch PCA":
            return self.pca, None
        require(
            name == "random projection",
            ConfigError,
            f"a response source for the control {name!r}",
            "none",
            "return it in _ControlSources.get of bmfl_lab/training/compare.py",
        )
        return sources.projection_source(reference.shape[1], seed=seed), None

    @functools.cached_property
    def classes(self) -> Callable[[TokenBatch], np.ndarray]:
        """Classifier of the images that get a partner of their class."""
        config = configs.replace(self.setting.config, head="backbone")
        model = self.setting.train("class of a partner", config, 0)

        def classes(tokens: TokenBatch) -> np.ndarray:
            return model.classify(tokens.cls, tokens.patches)["logits"].argmax(1)

        classes.identity = fingerprint(model.module.state_dict())
        return classes

    @functools.cached_property
    def random_backbone(self) -> ResponseSource:
        """Responses predicted from tokens of a backbone with random weights."""
        encoder = sources.random_backbone_encoder(
            self.encoder_config, self.setting.study, **self.options
        )
        return sources.EncoderSource(encoder, self.setting.context.device)

    @functools.cached_property
    def attribute_encoder(self) -> TrainedEncoder:
        """Encoder of the attributes of a simulated subject."""
        return train_attribute_encoder(self.encoder_config, self.setting.study, **self.options)

    @functools.cached_property
    def pca(self) -> ResponseSource:
        """Principal components of patches, as many as vertices."""
        subject = self.setting.study.subject(self.subject)
        shown = self.setting.inputs.tokens(subject.stimuli).patches[subject.rows("train")]
        return sources.pca_source(shown, self.setting.reference().shape[1])


ALPHAS = (0.0, 0.1, 1.0, 10.0)
"""Weights of the Pearson regulariser that are compared (our choice)."""


def train_alphas(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder,
    alphas: Sequence[float] = ALPHAS,
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    fresh: bool = False,
) -> Groups:
    """Train the fusion with several weights of the Pearson regulariser.

    Parameters
    ----------
    config, study, encoder, seeds, store, device, folder, fresh
        See `train_controls`.
    alphas : sequence of float, default `ALPHAS`
        Weights of the regulariser.

    Returns
    -------
    dict of str to list of TrainedFusion
        "alpha 0", "alpha 0.1", ...: one model per seed.

    Raises
    ------
    ConfigError
        If an alpha is negative.
    """
    alphas = configs.require_list("alphas", alphas, float)
    seeds = configs.require_list("seeds", seeds, int)
    setting = _Setting(config, study, encoder, Context.make(store, device).keeping(folder, fresh))
    models = {f"alpha {a:g}": configs.replace(config, alpha=float(a)) for a in alphas}
    return setting.train_all(models, seeds)


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the encoder's accuracy that are compared (our choice)."""


def train_quality(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder,
    shares: Sequence[float] = SHARES,
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    fresh: bool = False,
) -> Groups:
    """Train the fusion on predicted responses mixed with noise, at several encoding accuracies.

    Parameters
    ----------
    config, study, encoder, seeds, store, device, folder, fresh
        See `train_controls`.
    shares : sequence of float from 0 to 1, default `SHARES`
        Encoding accuracies as shares of the encoder's own mean validation r; 0, 0.25, ... 1 by
        default.

    Returns
    -------
    dict of str to list of TrainedFusion
        "r = 0.31", ...: one model per seed, named by the mean encoding accuracy of the responses
        that it reads.

    Raises
    ------
    ConfigError
        If a share lies outside 0..1.
    """
    shares = configs.require_list("shares", shares, float)
    seeds = configs.require_list("seeds", seeds, int)
    setting = _Setting(config, study, encoder, Context.make(store, device).keeping(folder, fresh))
    reached = float(np.nanmean(encoder.scores))

    def train(name: str, share: float, seed: int, context: Context) -> TrainedFusion:
        accuracy = share * reached
        mixed = sources.mixed_source(
            setting.source, setting.reference(), accuracy=accuracy, reached=reached, seed=seed
        )
        return setting.train(name, config, seed, mixed, context=context)

    names = {share: f"r = {share * reached:.2f}" for share in shares}
    return _train_groups(
        [(n, functools.partial(train, n, share, s)) for share, n in names.items() for s in seeds],
        setting,
    )


def train_forms(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder,
    queries: Sequence[str] = QUERIES,
    axes: Sequence[str] = AXES,
    seeds: Sequence[int] = (0, 1, 2),
    store: FeatureStore | None = None,
    device: str = "auto",
    folder: str | Path | None = None,
    fresh: bool = False,
) -> Groups:
    """Train the fusion in every form that descriptions of NeuralOOD leave open.

    Parameters
    ----------
    config, study, encoder, seeds, store, device, folder, fresh
        See `train_controls`.
    queries : sequence of {"cls", "patch"}
        Which token is the query in the cross-attention; both by default.
    axes : sequence of {"feature", "batch"}
        Axis of the Pearson term; both by default.

    Returns
    -------
    dict of str to list of TrainedFusion
        "cls query, feature axis", ...: one model per seed.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024).
    """
    queries = configs.require_list("queries", queries, str, QUERIES)
    axes = configs.require_list("axes", axes, str, AXES)
    seeds = configs.require_list("seeds", seeds, int)
    setting = _Setting(config, study, encoder, Context.make(store, device).keeping(folder, fresh))
    models = {
        f"{query} query, {axis} axis": configs.replace(config, query=query, pcc_axis=axis)
        for query in queries
        for axis in axes
    }
    return setting.train_all(models, seeds)


def agreement(model: TrainedFusion, stimuli: StimulusSet) -> float:
    """Return the mean Pearson r between X_vb and X_bv over images, as the regulariser measures it.

    Parameters
    ----------
    model : TrainedFusion
        Model with head "fusion" or "concat".
    stimuli : StimulusSet
        One image or more.

    Raises
    ------
    ConfigError
        If the model has no fused features.
    """
    total = 0.0
    for x_vb, x_bv in _fused(model, stimuli):
        loss = pearson_regulariser(x_vb, x_bv, model.config.pcc_axis)
        total += (1 - float(loss)) * len(x_vb)
    return total / len(stimuli)


def fused_features(model: TrainedFusion, stimuli: StimulusSet) -> np.ndarray:
    """Return the two cross-attended features of each image, X_vb and X_bv.

    Parameters
    ----------
    model : TrainedFusion
        Model with head "fusion" or "concat".
    stimuli : StimulusSet
        One image or more.

    Returns
    -------
    ndarray of float32, shape (2, n_stimuli, W)

    Raises
    ------
    ConfigError
        If the model has no fused features.
    """
    parts = [torch.stack(pair).cpu().numpy() for pair in _fused(model, stimuli)]
    return np.concatenate(parts, axis=1)


def _fused(model: TrainedFusion, stimuli: StimulusSet) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield X_vb and X_bv (B, W) of each batch."""
    require(
        model.config.head != "backbone" and len(stimuli),
        ConfigError,
        "a model with two fused features, and images",
        f"{model.name!r} with head {model.config.head!r}, and {len(stimuli)} images",
        "pass a model with head='fusion' or 'concat', and at least one image",
    )
    batches = model.batches(stimuli)
    for start in range(0, batches.n, 256):
        batch = batches.take(np.arange(start, min(start + 256, batches.n)))
        with torch.inference_mode():
            out = model.path.classify(batch)
            yield out.x_vb.float(), out.x_bv.float()


def encoding_accuracy(model: TrainedFusion, subject: Subject, split: str = "test") -> float:
    """Return how well the responses that a model reads predict a subject's: mean r over vertices.

    Parameters
    ----------
    model : TrainedFusion
        Its response source is scored, whether it is a brain encoder or a control.
    subject : Subject
        Subject with as many vertices as the source.
    split : str, default "test"
        Split of the subject's images; one on which the brain encoder was not trained.

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
    """Return one row per model and seed, and rows of means with intervals over seeds.

    Parameters
    ----------
    name : str
        Name of the metric.
    groups : mapping of str to list of TrainedFusion
        Models of one name, one per seed.
    measure : callable
        ``measure(model) -> float``.
    n : int
        Number of stimuli behind each value.
    unit : str, default "r"
        Unit of the metric.
    split : str, default "test"
        Image set or split on which the models were measured.
    notes : str, optional
        Remarks for the rows.
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

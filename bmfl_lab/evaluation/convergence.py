"""What drives convergence with the brain: scores of many models against their size and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import DataError, message, require
from bmfl_lab.evaluation.layers import layer_features
from bmfl_lab.evaluation.open_questions import rank_trend
from bmfl_lab.evaluation.similarity import (
    ScoreTest,
    encoding_over_time,
    encoding_predictions,
    encoding_table,
    spatial_score,
    temporal_score,
)
from bmfl_lab.files import read_table
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.metrics.statistics import holm, percentiles
from bmfl_lab.runtime import rng
from bmfl_lab.training.context import load_spec

SCORES = ("encoding", "spatial", "temporal")
SIZE, DATA, LENGTH = ATTRIBUTES = (
    "millions of parameters",
    "millions of training images",
    "millions of images seen",
)
"""Attributes of a backbone: size, training data, and training length."""
KNOWN_TRAINING: dict[str, tuple[float, float]] = {
    **{f"dinov2_vit{size}14{end}": (142, np.nan) for size in "sblg" for end in ("", "_reg")},
    **{
        f"hub:facebook/dinov3-{name}-pretrain-lvd1689m": (1689, np.nan)
        for name in ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16")
    },
    **{
        f"hub:openai/clip-vit-{name}": (400, 12_800)
        for name in ("base-patch32", "base-patch16", "large-patch14")
    },
    "cornet_s": (1.28, np.nan),
}
"""Training images and images seen of known backbones, in millions; NaN is unknown.

Sources: the model card of DINOv2 (LVD-142M, Oquab et al. 2023, arXiv:2304.07193; the models below g
are distilled from it, so that their own images are not all that they learnt from); the names of the
weights of DINOv3 (LVD-1689M, Siméoni et al. 2025, arXiv:2508.10104); Radford et al. (2021), CLIP
(400 million pairs, 32 epochs); Kubilius et al. (2019), CORnet-S (ImageNet). A table of your own
(`read_models_table`) wins over these values.
"""
Layers = Mapping[str, np.ndarray]
"""Features (n_stimuli, d) by name of the layer, in the order of processing."""
Model = BackboneSpec | Callable[[StimulusSet], Layers]
"""A backbone to load, or a function from images to layers, such as a planted model."""


def read_models_table(path: str | Path) -> tuple[dict[str, BackboneSpec], pd.DataFrame]:
    """Read a table of backbones to compare.

    Parameters
    ----------
    path : str or Path
        CSV file with a column "model" (a name for `load_backbone`, or any label), optionally
        "backbone" (the name, if "model" is a label), "weights", "image_size" and "resize", and one
        numeric column per attribute, empty where it is unknown.

    Returns
    -------
    models : dict of str to BackboneSpec
        Backbones by label.
    attributes : DataFrame
        One row per model and one column per attribute; NaN is unknown.

    Raises
    ------
    DataError
        If the table has no column "model", a model stands there twice, or a value is no number.
    """
    places, models, rows = {"backbone", "weights", "image_size", "resize"}, {}, {}
    remedy = "write a CSV file with a column 'model' and one per attribute"
    for line, cells in read_table(path, ["model"], remedy):
        label = cells.pop("model")
        require(
            label not in models,
            DataError,
            f"each model once in {Path(path).name}",
            f"{label!r} again in line {line}",
            "give each a label of its own, and its name under 'backbone'",
        )
        given = {k: v for k, v in cells.items() if k in places and v}
        try:
            size = int(given.get("image_size", 224))
            rows[label] = {k: float(v or "nan") for k, v in cells.items() if k not in places}
        except ValueError as error:
            expected = f"numbers in line {line} of {Path(path).name}"
            do = "leave the cells of unknown attributes empty"
            raise DataError(message(expected, str(error), do)) from error
        name, resize = given.get("backbone", label), given.get("resize", "short")
        models[label] = BackboneSpec(name, given.get("weights"), size, resize)
    return models, pd.DataFrame.from_dict(rows, orient="index")


def sweep_models(
    models: Mapping[str, Model],
    subject: Subject,
    *,
    tokens: str = "cls+mean",
    distance: pd.Series | None = None,
    recording: tuple[EEG, StimulusSet, np.ndarray, np.ndarray] | None = None,
    given: pd.DataFrame | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
    n_boot: int = 200,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score many models against a subject, and collect their attributes.

    Parameters
    ----------
    models : mapping of str to BackboneSpec or callable
        Backbones, which are loaded one after the other, or functions from images to layers.
    subject : Subject
        Subject with the splits "train" and "test".
    tokens : str, default "cls+mean"
        Tokens that represent a block, see `layer_features`.
    distance : Series, optional
        See `brain_scores`.
    recording : (EEG, stimuli, train rows, test rows), optional
        M/EEG and its images; without it there is no temporal score.
    given : DataFrame, optional
        Attributes that the user knows, one row per model. They win over `KNOWN_TRAINING`.
    store : FeatureStore, optional
        Store of the tokens; without one they are extracted into memory.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of the backbones.
    n_boot, seed
        See `brain_scores`.

    Returns
    -------
    scores : DataFrame
        One row per model, columns of `brain_scores`.
    attributes : DataFrame
        One row per model, columns `ATTRIBUTES` and those of `given`; NaN is unknown. The size is
        counted from the weights; untrained weights saw no image. Columns without a value are left
        out.

    Notes
    -----
    Raugel et al. (2025) find encoding scores of .107, .105, .101 and .096 for DINOv3 Giant, Large,
    Base and Small, and .03 for untrained networks, with eight subjects of the Natural Scenes
    Dataset and four of THINGS-MEG: a table of these models and a study of these data repeat it.
    """
    scores, rows = {}, {}
    for label, model in models.items():
        rows[label] = dict.fromkeys(ATTRIBUTES, np.nan)
        if isinstance(model, BackboneSpec):
            backbone = load_spec(model, device)
            rows[label] |= _known_attributes(model, backbone)

            def layers(images: StimulusSet, network=backbone) -> Layers:
                return layer_features(network, images, tokens, store=store)
        else:
            layers = model
        recorded = None
        if recording is not None:
            eeg, images, fitted, held = recording
            recorded = eeg, layers(images), fitted, held
        found = layers(subject.stimuli)
        options = {"distance": distance, "recording": recorded, "n_boot": n_boot, "seed": seed}
        scores[label] = brain_scores(found, subject, **options)
    attributes = pd.DataFrame.from_dict(rows, orient="index")
    if given is not None:
        attributes = given.combine_first(attributes).reindex(list(models))
    return pd.DataFrame(scores).T, attributes.dropna(axis=1, how="all")


def _known_attributes(spec: BackboneSpec, network: object) -> dict[str, float]:
    """Return size, training data and training length of a backbone, in millions."""
    found = {}
    if isinstance(network, nn.Module):
        found[SIZE] = sum(p.numel() for p in network.parameters()) / 1e6
    if str(spec.weights or "").startswith("random"):
        return found | {DATA: 0.0, LENGTH: 0.0}
    name = f"hub:{spec.weights}" if spec.name == "hub" else spec.name
    own = spec.name != "hub" and spec.weights not in (None, "auto")
    images, seen = (np.nan, np.nan) if own else KNOWN_TRAINING.get(name, (np.nan, np.nan))
    return found | {DATA: images, LENGTH: seen}


def planted_models(
    backbone: Backbone, n: int = 5, *, store: FeatureStore | None = None
) -> dict[str, Model]:
    """Return models that know more and more of the layers of a backbone.

    Parameters
    ----------
    backbone : Backbone
        Frozen backbone, whose class and mean patch tokens are the layers.
    n : int, default 5
        Number of models; the last one has the least noise.
    store : FeatureStore, optional
        Store of the tokens.

    Returns
    -------
    dict of str to callable
        "planted 0" to "planted n - 1"; noise halves from one to the next.
    """

    def blurred(images: StimulusSet, k: int) -> Layers:
        draw = rng(k, "planted models", len(images))
        return {
            name: x + 2.0 ** (2 - k) * x.std(0) * draw.standard_normal(x.shape)
            for name, x in layer_features(backbone, images, store=store).items()
        }

    return {f"planted {k}": lambda images, k=k: blurred(images, k) for k in range(n)}


def brain_scores(
    features: Layers,
    subject: Subject,
    *,
    distance: pd.Series | None = None,
    recording: tuple[EEG, Layers, np.ndarray, np.ndarray] | None = None,
    n_boot: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Return the encoding, the spatial and the temporal score of one model.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
        Layers on the stimuli of the subject.
    subject : Subject
        Subject with the splits "train" and "test".
    distance : Series, optional
        Distance of ROIs from V1 in mm, see `distance_from_v1`; without it there is no spatial
        score.
    recording : (EEG, layers, train rows, test rows), optional
        M/EEG and the layers on its stimuli; without it there is no temporal score.
    n_boot : int, default 200
        Bootstrap resamples of the test stimuli.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    dict of str to float
        "encoding" (r of the best layer, mean over vertices), "spatial" and "temporal", each with
        the ends of its 95 % interval over test stimuli, such as "encoding_low" and "encoding_high";
        NaN where a score has no data.

    References
    ----------
    Raugel et al. (2025), arXiv:2508.18226: the three scores. That the best layer stands for the
    model is our choice.
    """
    train, test = subject.rows("train"), subject.rows("test")
    measured = np.asarray(subject.responses, np.float32)
    predicted = encoding_predictions(features, measured, train=train, test=test)
    r = {layer: pearson(measured[test], p) for layer, p in predicted.items()}
    best = max(r, key=lambda layer: np.nanmean(r[layer]))
    rois, by_roi, whole = [] if distance is None else list(distance.index), [], []
    for layer, prediction in predicted.items():
        drawn = bootstrap_pearson(measured[test], prediction, n_boot, seed)
        whole = np.nanmean(drawn, 1) if layer == best else whole
        if rois:
            by_roi.append(encoding_table(dict(enumerate(drawn)), subject.atlas)[rois].to_numpy())
    found = _with_ends("encoding", float(np.nanmean(r[best])), whole)
    if distance is None:
        found |= _with_ends("spatial", np.nan, [])
    else:
        places = distance.to_numpy()
        table = encoding_table(r, subject.atlas)[rois].to_numpy()
        resampled = [_depth(spatial_score, t, places) for t in np.stack(by_roi, 1)]
        found |= _with_ends("spatial", _depth(spatial_score, table, places), resampled)
    return found | _temporal(recording, n_boot, seed)


def _temporal(
    recording: tuple[EEG, Layers, np.ndarray, np.ndarray] | None, n_boot: int, seed: int
) -> dict[str, float]:
    """Return the temporal score with the ends of its interval, see `brain_scores`."""
    if recording is None:
        return _with_ends("temporal", np.nan, [])
    eeg, layers, train, test = recording
    course = encoding_over_time(
        layers, eeg.mean(), train=train, test=test, n_boot=n_boot, seed=seed
    )
    resampled = [_depth(temporal_score, one, eeg.times) for one in course.resampled]
    return _with_ends("temporal", _depth(temporal_score, course.values, eeg.times), resampled)


def _depth(score: Callable[..., ScoreTest], by_layer: np.ndarray, of: np.ndarray) -> float:
    """Return a spatial or temporal score without its test; NaN where it is undefined."""
    value = score(by_layer, of, n_permutations=1).value
    return np.nan if value is None else value


def _with_ends(name: str, value: float, samples: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return a score with the ends of its interval, NaN where fewer than half are defined."""
    low, high = (np.nan if end is None else end for end in percentiles(np.asarray(samples)))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def convergence_trends(
    scores: pd.DataFrame,
    attributes: pd.DataFrame,
    *,
    n_permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate the scores of models with their attributes, such as size or training length.

    Parameters
    ----------
    scores : DataFrame
        One row per model, columns among "encoding", "spatial" and "temporal".
    attributes : DataFrame
        One row per model, one numeric column per attribute (millions of parameters, images of
        training, steps). Models without a value in a column do not count in it.
    n_permutations : int, default 2000
        Permutations of the models.
    seed : int, default 0
        Seed of the permutations.

    Returns
    -------
    DataFrame
        Columns attribute, score, rho (Spearman over models), p (two-sided, permutation), n, p_holm.

    Raises
    ------
    DataError
        If a model has no row of attributes, or no pair of columns has four models.

    Notes
    -----
    Attributes are often confounded: larger models are trained on more images. The trends describe,
    they do not tell causes.
    """
    missing = [name for name in scores.index if name not in attributes.index]
    require(
        not missing,
        DataError,
        "attributes of every model",
        f"none for {missing[:3]}",
        "add a row for each model",
    )
    rows = []
    for attribute in attributes:
        for score in (s for s in SCORES if s in scores):
            both = pd.concat([attributes[attribute], scores[score]], axis=1).dropna()
            if len(both) >= 4:
                trend = rank_trend(both.iloc[:, 0], both.iloc[:, 1], n_permutations, seed)
                rows.append({"attribute": attribute, "score": score, **trend})
    require(
        rows,
        DataError,
        "four or more models with a score and an attribute",
        f"{len(scores)} models",
        "compare four or more models whose attributes are known",
    )
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy())
    return table

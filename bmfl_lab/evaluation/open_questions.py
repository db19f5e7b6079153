"""Questions that NeuralOOD leaves open: does a better encoder help, and does language suffice?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.data.containers import open_npz
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.embeddings import TextTower
from bmfl_lab.evaluation.layers import layer_features
from bmfl_lab.evaluation.transfer import folds
from bmfl_lab.files import load_npy
from bmfl_lab.metrics.rsa import ranks
from bmfl_lab.metrics.statistics import crossed_mean
from bmfl_lab.models.ridge import fit_ridge
from bmfl_lab.runtime import rng

READOUT_PENALTIES = tuple(float(a) for a in np.logspace(-1, 4, 6))
"""Penalties of the readout of a far domain (our choice)."""


@dataclass(frozen=True)
class ZeroShot:
    """Classify images by the text that is nearest to their embedding, without training.

    Parameters
    ----------
    backbone : Backbone
        Image tower.
    class_names : tuple of str
        Classes, in the order of the logits.
    words : ndarray of float, shape (n_classes, W)
        Text embedding of each class.
    projection : ndarray, shape (width, W), optional
        Linear map from class tokens to the space of the texts, as CLIP has one.
    store : FeatureStore, optional
        Store of the tokens; without one they are extracted into memory.
    name, selection : str
        Name in tables, and the rule of selection.
    seed : int, default 0
        Seed in tables; nothing is drawn.
    """

    backbone: Backbone
    class_names: tuple[str, ...]
    words: np.ndarray
    projection: np.ndarray | None = None
    store: FeatureStore | None = None
    name: str = "zero-shot"
    selection: str = "none"
    seed: int = 0

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the cosine of each image with each class, float32 (n_stimuli, n_classes)."""
        last = [self.backbone.n_blocks - 1]
        (x,) = layer_features(self.backbone, stimuli, "cls", blocks=last, store=self.store).values()
        x = x if self.projection is None else x @ self.projection
        x, words = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, self.words))
        return (x @ words.T).astype(np.float32)


def zero_shot(
    backbone: Backbone,
    class_names: Sequence[str],
    text: np.ndarray | TextTower,
    *,
    projection: np.ndarray | None = None,
    store: FeatureStore | None = None,
) -> ZeroShot:
    """Return a zero-shot classifier, which `evaluate_ood` takes beside a fusion and a probe.

    Parameters
    ----------
    backbone : Backbone
        Image tower, such as that of CLIP or SigLIP.
    class_names : sequence of str
        Classes of the study.
    text : callable or ndarray, shape (n_classes, W)
        Text tower of the same model, or the embeddings that it returned for the classes.
    projection : ndarray, shape (width, W), optional
        Linear map from class tokens to the space of the texts, as CLIP has one; without it W is the
        width of the backbone.
    store : FeatureStore, optional
        Store of the tokens.

    Returns
    -------
    ZeroShot

    Raises
    ------
    DataError
        If the text embeddings have another width or number.

    References
    ----------
    Radford et al. (2021), Learning transferable visual models from natural language supervision,
    ICML.
    """
    words = np.asarray(text(list(class_names)) if callable(text) else text, np.float64)
    shape = (backbone.width, backbone.width) if projection is None else np.shape(projection)
    require(
        words.shape == (len(class_names), shape[-1]) and shape[0] == backbone.width,
        DataError,
        f"text embeddings of shape ({len(class_names)}, {shape[-1]}), one per class, and images of "
        f"width {backbone.width}",
        f"texts of shape {words.shape} and a projection of shape {shape}",
        "use the text tower of the same model, and its projection of images if it has one",
    )
    return ZeroShot(backbone, tuple(class_names), words, projection, store)


@dataclass(frozen=True)
class Texts:
    """Embeddings of the classes by the text tower of an image-text model.

    Parameters
    ----------
    words : ndarray, shape (n_classes, W)
        Text embedding of each class.
    projection : ndarray, shape (width, W), optional
        Linear map from class tokens to the space of the texts.
    backbone : str, default ""
        Name of the image tower, as `bmfl_lab.backbones.load_backbone` takes it; "" for that of the
        study.
    """

    words: np.ndarray
    projection: np.ndarray | None = None
    backbone: str = ""


def read_texts(path: str | Path) -> Texts:
    """Read text embeddings that were computed elsewhere.

    Parameters
    ----------
    path : str or Path
        ``.npy`` file of the embeddings, in the order of the classes; or ``.npz`` file with arrays
        "words" and, optionally, "projection" and "backbone", see `Texts`.

    Returns
    -------
    Texts

    Raises
    ------
    DataError
        If the file is missing or damaged, or has no array "words".
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".npz":
        return Texts(load_npy(path))
    with open_npz(path) as opened:
        require(
            "words" in opened,
            DataError,
            f"an array 'words' in {path.name}",
            sorted(opened),
            "save the text embeddings under this name",
        )
        tower = str(opened["backbone"][()]) if "backbone" in opened else ""
        return Texts(opened["words"], opened.get("projection"), tower)


def read_out_far(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return which images of a far domain a linear readout classifies correctly.

    Parameters
    ----------
    features : ndarray, shape (n, d)
        Features of the n images of the domain, whose classes may be any.
    labels : ndarray of int, shape (n,)
        Class of each image.
    seed : int, default 0
        Seed of the folds.

    Returns
    -------
    ndarray of bool, shape (n,)
        Each image is tested once, by a ridge on one-hot labels that was fitted, with its penalty
        and its standardisation, on the images of the other three folds (our choice).

    Raises
    ------
    DataError
        If there are fewer than two classes, or fewer than eight images.
    """
    labels = np.asarray(labels)
    n_classes = len(np.unique(labels))
    require(
        n_classes >= 2 and len(labels) >= 8,
        DataError,
        "eight or more images of two or more classes in a far domain",
        f"{len(labels)} images of {n_classes} classes",
        "give a folder with one folder of images per class",
    )
    targets = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    right = np.zeros(len(labels), dtype=bool)
    with warnings.catch_warnings():
        # features may say nothing about a far domain; then no penalty is best
        warnings.filterwarnings("ignore", message="expected at most 5%")
        for known, held in folds(len(labels), 4, seed=seed):
            mean, spread = features[known].mean(0), features[known].std(0)
            x = (features - mean) / np.where(spread > 1e-6, spread, 1)
            fit = fit_ridge(x[known], targets[known], READOUT_PENALTIES, 3)
            right[held] = np.asarray(fit.predict(x[held])).argmax(1) == labels[held]
    return right


def gain_against_accuracy(
    variants: Sequence[tuple[str, str, float]],
    correct: Sequence[np.ndarray],
    baseline: np.ndarray,
    *,
    n_permutations: int = 2000,
    seed: int = 0,
) -> tuple[pd.DataFrame, Mapping[str, float]]:
    """Compare the encoding accuracy of encoders with the gain of the fusions that read them.

    Parameters
    ----------
    variants : sequence of (factor, level, accuracy)
        One per encoder, see `bmfl_lab.training.encoder_variants`.
    correct : sequence of ndarray, each of shape (n_seeds, n_images)
        Correctness of the fusion of each encoder on out-of-distribution images.
    baseline : ndarray, shape (n_seeds, n_images)
        Correctness of the backbone-only model on the same images.
    n_permutations : int, default 2000
        Permutations of the accuracies.
    seed : int, default 0
        Seed of the permutations.

    Returns
    -------
    table : DataFrame
        Columns model (the factor), level, accuracy (r), value (gain in accuracy), ci_low, ci_high.
    trend : dict
        "rho" (Spearman over encoders), "p" (two-sided, permutation) and "n".

    Raises
    ------
    DataError
        If there are fewer than four encoders.
    """
    require(
        len(variants) == len(correct) >= 4,
        DataError,
        "four or more encoders with the correctness of one fusion each",
        f"{len(variants)} encoders and {len(correct)} fusions",
        "vary the encoder in four or more ways, and train one fusion with each",
    )
    rows = []
    for (factor, level, accuracy), values in zip(variants, correct):
        found, _ = crossed_mean(np.asarray(values, float) - baseline, kind="difference")
        ends = {"ci_low": found.low, "ci_high": found.high}
        about = {"model": factor, "level": level, "accuracy": accuracy}
        rows.append({**about, "value": found.value, **ends})
    table = pd.DataFrame(rows)
    return table, rank_trend(table["accuracy"], table["value"], n_permutations, seed)


def sweep_table(
    quantity: str,
    values: Mapping[tuple[str, float], np.ndarray],
    x: str,
    *,
    kind: Literal["real", "correct"] = "correct",
) -> pd.DataFrame:
    """Return the mean of a quantity at each level of a sweep, with intervals, for `trend_figure`.

    Parameters
    ----------
    quantity : str
        Name of the quantity, e.g. "accuracy".
    values : mapping of (str, float) to ndarray of shape (n_seeds, n_images)
        Model and level of the swept parameter to one value per seed and image.
    x : str
        Name of the swept parameter.
    kind : {"real", "correct"}, default "correct"
        "correct" for correctness, "real" for any other value.

    Returns
    -------
    DataFrame
        Columns quantity, model, `x`, n (number of images), value, ci_low and ci_high. Intervals
        treat seeds and images as crossed random samples.
    """
    rows = []
    for (model, level), array in values.items():
        found, _ = crossed_mean(np.asarray(array, float), kind=kind)
        about = {"quantity": quantity, "model": model, x: level, "n": np.shape(array)[-1]}
        about["value"] = found.value
        rows.append({**about, "ci_low": found.low, "ci_high": found.high})
    return pd.DataFrame(rows)


def rank_trend(
    x: np.ndarray, y: np.ndarray, n_permutations: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Return Spearman's rho of two columns, its two-sided permutation p, and their length."""
    a, b = (ranks(np.asarray(v, float)[None])[0] for v in (x, y))
    a, b = ((v - v.mean()) / max(np.linalg.norm(v - v.mean()), 1e-12) for v in (a, b))
    draw = rng(seed, "rank trend")
    null = np.asarray([a @ b[draw.permutation(len(b))] for _ in range(n_permutations)])
    rho = float(a @ b)
    p = (1 + np.sum(np.abs(null) >= abs(rho) - 1e-12)) / (1 + n_permutations)
    return {"rho": rho, "p": float(p), "n": len(a)}

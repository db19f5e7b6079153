"""Comparisons with human observers: 16-class decisions, shape bias, error consistency."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import DataError, require
from bmfl_lab.metrics.classification import log_softmax

if TYPE_CHECKING:
    import pandas as pd


def coarse_decision(logits: np.ndarray, groups: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Decide among entry-level categories from the logits of a fine head.

    The probability of a category is the mean softmax probability of its classes; the highest wins,
    ties going to the first name.

    Parameters
    ----------
    logits : array-like, shape (n_stimuli, n_classes)
        Logits of the full head (1,000 classes for the 16 categories).
    groups : mapping name -> class indices
        Classes of each category, each at least one.

    Returns
    -------
    ndarray of str, shape (n_stimuli,)
        Category, "" where a logit is NaN.

    Raises
    ------
    DataError
        If a category has no class or an index lies outside the head.

    References
    ----------
    Geirhos et al. 2021, "Partial success in closing the gap between human and machine vision".
    """
    logits = np.asarray(logits, dtype=np.float64)
    names = sorted(groups)
    for name in names:
        index = np.asarray(groups[name])
        require(
            index.size and index.min() >= 0 and (index.max() < logits.shape[1]),
            DataError,
            f"class indices from 0 to {logits.shape[1] - 1} for category {name!r}",
            index.tolist(),
            "give at least one column of `logits` per category (people.decide does it by wnid)",
        )
    probabilities = np.exp(log_softmax(logits))
    means = np.stack([probabilities[:, np.asarray(groups[n])].mean(axis=1) for n in names], axis=1)
    chosen = np.asarray(names, dtype=object)[np.argmax(means, axis=1)]
    return np.where(np.isnan(logits).any(axis=1), "", chosen)


def shape_bias(
    decisions: Sequence[str], shapes: Sequence[str], textures: Sequence[str]
) -> float | None:
    """Return the share of shape decisions among shape and texture decisions on cue-conflict images.

    Images whose shape and texture agree are left out.

    Parameters
    ----------
    decisions, shapes, textures : sequence of str, shape (n_stimuli,)
        Category decided, category of the shape, category of the texture.

    Returns
    -------
    float or None
        None if neither cue was ever chosen.

    Raises
    ------
    DataError
        If lengths differ.

    References
    ----------
    Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture".
    """
    d, s, t = (np.asarray(a, dtype=object) for a in (decisions, shapes, textures))
    require(
        d.shape == s.shape == t.shape,
        DataError,
        "three lists of one length",
        f"{d.shape}, {s.shape}, {t.shape}",
        "pair them by image",
    )
    conflict = s != t
    by_shape, by_texture = int((conflict & (d == s)).sum()), int((conflict & (d == t)).sum())
    return by_shape / (by_shape + by_texture) if by_shape + by_texture else None


def error_consistency(correct_a: np.ndarray, correct_b: np.ndarray) -> float | None:
    """Return kappa, the agreement of two observers beyond that of independent observers.

    Kappa is ``(c_obs - c_exp) / (1 - c_exp)``, where ``c_obs`` is the share of stimuli on which
    both are right or both are wrong, and ``c_exp = p_a p_b + (1 - p_a)(1 - p_b)``.

    Parameters
    ----------
    correct_a, correct_b : array-like of bool, shape (n_stimuli,)
        True for each image that the observer classified correctly.

    Returns
    -------
    float or None
        None for an empty set, and where both are always right or always wrong (0/0).

    Raises
    ------
    DataError
        If shapes differ.

    References
    ----------
    Geirhos, Meding & Wichmann 2020, "Beyond accuracy: quantifying trial-by-trial behaviour of CNNs
    and humans".
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    require(
        a.shape == b.shape and a.ndim == 1,
        DataError,
        "two boolean arrays of one length",
        f"{a.shape} and {b.shape}",
        "pair them by image",
    )
    if not a.size:
        return None
    expected = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return None if expected >= 1 else float(((a == b).mean() - expected) / (1 - expected))


def observer_accuracy(trials: pd.DataFrame, by: Sequence[str] = ("set",)) -> pd.DataFrame:
    """Return mean accuracy over observers, with its spread.

    Parameters
    ----------
    trials : DataFrame
        One row per trial, with the columns of `by`, ``observer``, ``correct`` (see
        `data.modelvshuman.read_trials`); choose people by ``trials[trials["human"]]``.
    by : sequence of str, default ("set",)
        Add "condition" for a curve.

    Returns
    -------
    DataFrame
        Columns of `by`, ``accuracy`` (mean of the observers' accuracies), ``sd`` (over observers),
        ``n_observers``, ``n_trials``.
    """
    each = trials.groupby([*by, "observer"])["correct"].agg(["mean", "size"]).reset_index()
    table = each.groupby(list(by)).agg(
        accuracy=("mean", "mean"),
        sd=("mean", "std"),
        n_observers=("mean", "size"),
        n_trials=("size", "sum"),
    )
    return table.reset_index()


def mean_consistency(
    trials: pd.DataFrame, first: Sequence[str], second: Sequence[str]
) -> tuple[float | None, int]:
    """Return the mean error consistency (kappa) over pairs of observers.

    Each pair is compared on the images both saw, within each condition; conditions are averaged,
    then pairs.

    Parameters
    ----------
    trials : DataFrame
        Trials of one set: ``observer``, ``condition``, ``key`` (names the image), ``correct``.
    first, second : sequence of str
        Observers of each side; pairs of an observer with itself are left out, and each pair enters
        once.

    Returns
    -------
    kappa : float or None
        Mean kappa; None if it is undefined for every pair.
    n_pairs : int
        Number of pairs for which kappa is defined.

    References
    ----------
    Geirhos, Meding & Wichmann 2020, "Beyond accuracy: quantifying trial-by-trial behaviour of CNNs
    and humans".
    """
    tables = {
        o: trials[trials["observer"] == o]
        .drop_duplicates(["condition", "key"])
        .set_index(["condition", "key"])["correct"]
        for o in {*first, *second}
    }
    pairs = {tuple(sorted(p)) for p in itertools.product(first, second) if p[0] != p[1]}
    values = []
    for a, b in sorted(pairs):
        shared = tables[a].index.intersection(tables[b].index)
        left, right = tables[a].loc[shared].to_numpy(), tables[b].loc[shared].to_numpy()
        conditions = shared.get_level_values(0).to_numpy()
        found = [
            error_consistency(left[conditions == c], right[conditions == c])
            for c in np.unique(conditions)
        ]
        defined = [v for v in found if v is not None]
        if defined:
            values.append(float(np.mean(defined)))
    return (float(np.mean(values)) if values else None), len(values)

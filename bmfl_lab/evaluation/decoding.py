"""Identification of stimuli from responses, and preferred stimuli of ROIs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gammaln

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, require
from bmfl_lab.runtime import rng


@dataclass(frozen=True)
class Identification:
    """Which of n images evoked a response.

    Parameters
    ----------
    top1, top1_low, top1_high, top1_chance : float
        Share of responses whose own image is the best of `n_candidates`, with a 95 % bootstrap
        interval over stimuli.
    two_way, two_way_low, two_way_high : float
        The same of two candidates; chance is 0.5.
    n_candidates, n : int
        Candidates, and responses tested.
    per_stimulus : ndarray, shape (n,)
        Two-way score of each response.
    """

    top1: float
    top1_low: float
    top1_high: float
    top1_chance: float
    two_way: float
    two_way_low: float
    two_way_high: float
    n_candidates: int
    n: int
    per_stimulus: np.ndarray


def identify(
    measured: np.ndarray,
    predicted: np.ndarray,
    *,
    n_candidates: int | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Identification:
    """Identify the image behind each measured response by the correlation with predicted ones.

    Parameters
    ----------
    measured : ndarray, shape (n, n_vertices)
        Responses to n held-out images.
    predicted : ndarray, shape (n, n_vertices)
        An encoder's predictions for the same images, in the same order.
    n_candidates : int, optional
        Number of images to choose from, all n by default. For fewer, the result is the expectation
        over all sets of distractors, not a draw.
    n_boot, seed
        Of the intervals.

    Returns
    -------
    Identification
        A tie counts one half in two-way choices and as a miss in top-1. A constant response
        identifies nothing.

    Raises
    ------
    DataError
        If shapes differ, or there are fewer than two images or three vertices.

    References
    ----------
    Kay et al. 2008, Nature 452:352.
    """
    measured, predicted = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    require(
        measured.ndim == 2
        and measured.shape == predicted.shape
        and (len(measured) >= 2)
        and (measured.shape[1] >= 3),
        DataError,
        "two arrays of one shape (n >= 2, n_vertices >= 3)",
        f"{measured.shape} and {predicted.shape}",
        "give predictions for the same images and vertices",
    )
    n = len(measured)
    n_candidates = n if n_candidates is None else n_candidates
    require(
        2 <= n_candidates <= n,
        DataError,
        f"n_candidates from 2 to {n}",
        n_candidates,
        "use at most all images",
    )
    units = []
    for values in (measured, predicted):
        values = values - values.mean(axis=1, keepdims=True)
        size = np.linalg.norm(values, axis=1, keepdims=True)
        units.append(values / np.where(size > 1e-12, size, np.inf))
    r = units[0] @ units[1].T
    own = np.diag(r)[:, None]
    beaten = (r < own - 1e-12).sum(axis=1)
    tied = (np.abs(r - own) <= 1e-12).sum(axis=1) - 1
    two_way = (beaten + 0.5 * tied) / (n - 1)
    top1 = _beats_all(beaten, n - 1, n_candidates - 1)
    draws = rng(seed, "identify").integers(n, size=(n_boot, n))

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
        return float(values.mean()), float(low), float(high)

    return Identification(
        *interval(top1), 1 / n_candidates, *interval(two_way), n_candidates, n, two_way
    )


def _beats_all(beaten: np.ndarray, n_others: int, n_distractors: int) -> np.ndarray:
    """Probability that distractors drawn without replacement are all among the beaten ones."""

    def log_choose(a: np.ndarray, k: int) -> np.ndarray:
        return gammaln(a + 1) - gammaln(k + 1) - gammaln(np.maximum(a - k, 0) + 1)

    beaten = beaten.astype(np.float64)
    chance = np.exp(
        log_choose(beaten, n_distractors) - log_choose(np.asarray(float(n_others)), n_distractors)
    )
    return np.where(beaten >= n_distractors, chance, 0.0)


def preferred_stimuli(
    predicted: np.ndarray, mask: np.ndarray, stimuli: StimulusSet, *, n: int = 10
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank images by the mean predicted activity of an ROI.

    Parameters
    ----------
    predicted : ndarray, shape (n_stimuli, n_vertices)
        Predicted (or measured) responses to `stimuli`.
    mask : ndarray of bool, shape (n_vertices,)
        The ROI (``atlas.select(name)``).
    stimuli : StimulusSet
        The images.
    n : int, default 10
        Length of the top and the bottom list.

    Returns
    -------
    images : DataFrame
        Columns rank (1 = strongest), id, category, activity, list ("top" or "bottom").
    categories : DataFrame
        Per category: mean activity, n, and its share of the top list beside its share of all
        images.

    Raises
    ------
    DataError
        If shapes disagree or the ROI is empty.
    """
    mask = np.asarray(mask, dtype=bool)
    require(
        np.shape(predicted) == (len(stimuli), len(mask)) and mask.any(),
        DataError,
        f"predictions of shape ({len(stimuli)}, {len(mask)}) and a non-empty ROI",
        f"{np.shape(predicted)}, {int(mask.sum())} vertices",
        "predict the responses to these stimuli",
    )
    activity = np.asarray(predicted)[:, mask].mean(axis=1)
    labels = np.asarray(stimuli.labels)
    names = np.asarray(
        [stimuli.class_names[i] if 0 <= i < len(stimuli.class_names) else "" for i in labels],
        dtype=object,
    )
    order = np.argsort(-activity, kind="stable")
    n = min(n, len(order))
    picks = [(i + 1, order[i], "top") for i in range(n)]
    picks += [(len(order) - i, order[-1 - i], "bottom") for i in range(n)]
    images = pd.DataFrame(
        [
            {
                "rank": rank,
                "id": str(stimuli.ids[i]),
                "category": names[i],
                "activity": float(activity[i]),
                "list": which,
            }
            for rank, i, which in picks
        ]
    )
    rows = [
        {
            "category": name,
            "activity": float(activity[names == name].mean()),
            "n": int((names == name).sum()),
            "share_of_top": float((names[order[:n]] == name).mean()),
            "share_of_all": float((names == name).mean()),
        }
        for name in dict.fromkeys(names)
    ]
    return images, pd.DataFrame(rows).sort_values("activity", ascending=False, ignore_index=True)

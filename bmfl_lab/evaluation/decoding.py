"""Identification of stimuli from responses, and preferred stimuli of ROIs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, require
from bmfl_lab.runtime import rng


@dataclass(frozen=True)
class Identification:
    """Hold how well responses identify the images that evoked them.

    Parameters
    ----------
    top1, top1_low, top1_high, top1_chance : float
        Share of responses that fit their own image better than all others, with a 95 % bootstrap
        interval over stimuli, and the share by chance.
    two_way, two_way_low, two_way_high : float
        Share of pairs of images in which a response fits its own image better than the other one;
        chance is 0.5.
    n : int
        Number of responses, and of images to choose from.
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
    n: int
    per_stimulus: np.ndarray


def identify(
    measured: np.ndarray,
    predicted: np.ndarray,
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> Identification:
    """Identify the image behind each measured response by the correlation with predicted ones.

    Parameters
    ----------
    measured : ndarray, shape (n, n_vertices)
        Responses to n held-out images.
    predicted : ndarray, shape (n, n_vertices)
        Predicted responses to the same images, in the same order.
    n_boot : int, default 1000
        Number of bootstrap resamples of the stimuli.
    seed : int, default 0
        Seed of the resamples.

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
    draws = rng(seed, "identify").integers(n, size=(n_boot, n))

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
        return float(values.mean()), float(low), float(high)

    top1 = (beaten == n - 1).astype(np.float64)
    return Identification(*interval(top1), 1 / n, *interval(two_way), n, two_way)


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
    remedy = "choose an ROI that this subject has"
    require(mask.any(), DataError, "a non-empty ROI", "no vertex", remedy)
    require(
        np.shape(predicted) == (len(stimuli), len(mask)),
        DataError,
        f"predictions of shape ({len(stimuli)}, {len(mask)})",
        np.shape(predicted),
        "predict the responses to these stimuli",
    )
    activity = np.asarray(predicted)[:, mask].mean(axis=1)
    known = dict(enumerate(stimuli.class_names))
    names = np.asarray([known.get(int(i), "") for i in stimuli.labels], dtype=object)
    order = np.argsort(-activity, kind="stable")
    n = min(n, len(order))
    top = [(i + 1, order[i], "top") for i in range(n)]
    bottom = [(len(order) - i, order[-1 - i], "bottom") for i in range(n)]
    images = pd.DataFrame(
        [
            {
                "rank": rank,
                "id": str(stimuli.ids[i]),
                "category": names[i],
                "activity": float(activity[i]),
                "list": which,
            }
            for rank, i, which in top + bottom
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

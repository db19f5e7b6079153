"""Does an ROI prefer one category? Purity of its preferred and of its synthesised images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.errors import DataError, require
from bmfl_lab.models.ridge import fit_ridge
from bmfl_lab.runtime import rng

ALPHAS = tuple(float(a) for a in np.logspace(-1, 5, 13))


@dataclass(frozen=True)
class Purity:
    """Share of one category among chosen images.

    Parameters
    ----------
    value : float
        Share of the most frequent category.
    category : str
        The most frequent category.
    chance : float
        Mean purity of as many images drawn at random.
    p : float
        One-sided, (1 + draws at least as pure) / (1 + draws).
    n : int
        Number of chosen images.
    """

    value: float
    category: str
    chance: float
    p: float
    n: int


def _purity(labels_SN: np.ndarray, n_classes: int) -> np.ndarray:
    counts = np.stack([(labels_SN == c).sum(axis=-1) for c in range(n_classes)], axis=-1)
    return counts.max(axis=-1) / labels_SN.shape[-1]


def category_purity(
    chosen: np.ndarray,
    pool: np.ndarray,
    class_names: Sequence[str],
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> Purity:
    """Compare the purity of chosen images with that of random ones.

    Parameters
    ----------
    chosen : ndarray of int, shape (n,)
        Labels of the chosen images, e.g. of the top list of an ROI, or the predicted labels of
        synthesised images.
    pool : ndarray of int, shape (m,)
        Labels among which the choice was made, m >= n.
    class_names : sequence of str
    n_draws, seed
        Number of draws and seed of the comparison.

    Returns
    -------
    Purity

    Raises
    ------
    DataError
        If nothing was chosen, more than there is, or an image has no label.
    """
    chosen, pool = np.asarray(chosen), np.asarray(pool)
    require(
        1 <= len(chosen) <= len(pool) and min(chosen.min(initial=0), pool.min(initial=0)) >= 0,
        DataError,
        "labelled images, at most as many as the pool holds",
        f"{len(chosen)} of {len(pool)}, "
        f"smallest label {min(chosen.min(initial=0), pool.min(initial=0))}",
        "rank a labelled image set",
    )
    value = float(_purity(chosen[None], len(class_names))[0])
    draw = rng(seed, "category purity")
    random = np.stack([draw.choice(pool, len(chosen), replace=False) for _ in range(n_draws)])
    null = _purity(random, len(class_names))
    winner = int(np.bincount(chosen, minlength=len(class_names)).argmax())
    p = (1 + float(np.sum(null >= value - 1e-12))) / (1 + n_draws)
    return Purity(value, class_names[winner], float(null.mean()), p, len(chosen))


def nearest_category(
    features: np.ndarray, labels: np.ndarray, new: np.ndarray, n_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Name the category of new images by a ridge classifier on one-hot labels.

    Parameters
    ----------
    features : ndarray, shape (n, d)
        Features of labelled images.
    labels : ndarray of int, shape (n,)
    new : ndarray, shape (m, d)
        Features of the images to name, for example synthesised ones.
    n_classes : int

    Returns
    -------
    labels : ndarray of int64, shape (m,)
    scores : ndarray of float32, shape (m, n_classes)
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-6, spread, 1)
    x, targets = (
        ((features - mean) / scale).astype(np.float32),
        np.eye(n_classes, dtype=np.float32)[labels],
    )
    with (
        warnings.catch_warnings()
    ):  # features that know nothing of the categories have no best penalty
        warnings.filterwarnings("ignore", message="expected at most 5%")
        fit = fit_ridge(x, targets, ALPHAS, 5)
    scores = np.asarray(fit.predict(((new - mean) / scale).astype(np.float32)), dtype=np.float32)
    return scores.argmax(axis=1), scores

"""Noise ceilings from repeated presentations, and scores normalised by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, message, require
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.runtime import rng

_ROUNDING = 1e-5
"""Tolerance by which a correlation or a share in single precision may exceed 1."""


def ceiling_from_ncsnr(ncsnr: np.ndarray, repeats: int | Mapping[int, int] = 1) -> np.ndarray:
    """Return the explainable share of variance of averaged responses from the ncsnr.

    Parameters
    ----------
    ncsnr : ndarray, shape (n_vertices,)
        Standard deviation of the signal over that of the noise of a single presentation.
    repeats : int or mapping of int to int, default 1
        Presentations averaged per stimulus; or number of repeats to number of stimuli, e.g. ``{3:
        120, 2: 30, 1: 9}``.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)
        0 to 1; NaN where `ncsnr` is NaN or negative, which no standard deviation is. 1 where it is
        infinite: the responses have no noise.

    Raises
    ------
    DataError
        If a number of repeats is below 1 or no stimulus is counted.

    References
    ----------
    Allen et al. (2022), A massive 7T fMRI dataset, Nature Neuroscience 25; Gifford et al. (2023),
    The Algonauts Project 2023 Challenge, arXiv 2301.03198: ``s^2 / (s^2 + (r3/3 + r2/2 + r1) / (r3
    + r2 + r1))``.
    """
    counts = {repeats: 1} if isinstance(repeats, int) else dict(repeats)
    total = sum(counts.values())
    require(
        total >= 1 and (not any(k < 1 for k in counts)),
        DataError,
        "stimuli with at least one repeat",
        counts,
        "count the repeats that were averaged",
    )
    noise = sum(n / k for k, n in counts.items()) / total
    s = np.asarray(ncsnr, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        s2 = np.where(s >= 0, s, np.nan) ** 2
        return np.where(np.isinf(s2), 1, s2 / (s2 + noise)).astype(np.float32)


def ncsnr_from_repeats(repeats: np.ndarray) -> np.ndarray:
    """Estimate the signal-to-noise ratio per vertex from single presentations.

    The estimate is a one-way analysis of variance with stimuli as groups. Noise is the variance
    within stimuli. Signal is the variance between stimuli minus the part that noise explains, and
    at least 0.

    Parameters
    ----------
    repeats : ndarray, shape (n_stimuli, n_repeats, n_vertices)
        Responses; NaN for repeats that a stimulus lacks.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)
        Standard deviation of the signal over that of the noise; NaN where undefined (no noise and
        no signal, or no stimulus with two repeats).

    Raises
    ------
    DataError
        If the array is not three-dimensional or no stimulus has two presentations.

    References
    ----------
    Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial
    intelligence, Nature Neuroscience 25: definition of the ncsnr.
    """
    x = _repeats(repeats)
    seen = np.isfinite(x)
    n_i = seen.sum(1).astype(np.float64)
    n, groups = n_i.sum(0), (n_i > 0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_i = np.where(seen, x, 0).sum(1) / n_i
        within = np.where(seen, (x - mean_i[:, None]) ** 2, 0).sum((0, 1)) / (n - groups)
        grand = np.where(seen, x, 0).sum((0, 1)) / n
        between = np.nansum(n_i * (mean_i - grand) ** 2, 0) / (groups - 1)
        signal = np.maximum(between - within, 0) / ((n - (n_i**2).sum(0) / n) / (groups - 1))
        return np.sqrt(signal / within).astype(np.float32)


def _repeats(repeats: np.ndarray) -> np.ndarray:
    x = np.asarray(repeats, np.float64)
    require(
        x.ndim == 3 and np.any(np.isfinite(x).sum(1) >= 2),
        DataError,
        "repeats of shape (n_stimuli, n_repeats, n_vertices), two or more of some stimulus",
        f"shape {x.shape}",
        "give single presentations, not their mean",
    )
    return x


def ceiling_from_repeats(repeats: np.ndarray) -> np.ndarray:
    """Return the noise ceiling of the mean over the repeats that were made, shape (n_vertices,).

    Equal to the intraclass correlation ICC(1,k) when every stimulus has k repeats.

    Raises
    ------
    DataError
        See `ncsnr_from_repeats`.

    References
    ----------
    Shrout & Fleiss (1979), Intraclass correlations, Psychological Bulletin 86(2).
    """
    shown = np.isfinite(_repeats(repeats)).any(2).sum(1)
    values, counts = np.unique(shown[shown > 0], return_counts=True)
    return ceiling_from_ncsnr(
        ncsnr_from_repeats(repeats), dict(zip(values.tolist(), counts.tolist()))
    )


def split_half_ceiling(repeats: np.ndarray, n_splits: int = 20, seed: int = 0) -> np.ndarray:
    """Estimate the noise ceiling by correlating means of random halves of the repeats.

    Only stimuli with all repeats are used. The correlation of halves of size h is stepped up to the
    mean of all k repeats by the Spearman-Brown formula with factor k / h; with an odd k one repeat
    rests in each split.

    Parameters
    ----------
    repeats : ndarray, shape (n_stimuli, n_repeats, n_vertices)
        Responses; NaN for repeats that a stimulus lacks.
    n_splits : int, default 20
        Number of random halves (our choice).
    seed : int, default 0
        Seed of the halves.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)
        Share of explainable variance, at least 0; NaN where undefined.

    Raises
    ------
    DataError
        See `ncsnr_from_repeats`; also if fewer than three stimuli have all repeats.

    References
    ----------
    Spearman (1910), Brown (1910), British Journal of Psychology 3.
    """
    x = _repeats(repeats)
    x = x[np.isfinite(x).all((1, 2))]
    k = x.shape[1]
    half, draw = k // 2, rng(seed, "split-half")
    total = np.zeros(x.shape[2])
    for _ in range(n_splits):
        order = draw.permutation(k)
        total += pearson(x[:, order[:half]].mean(1), x[:, order[half : 2 * half]].mean(1))
    r, step = total / n_splits, k / half
    return np.maximum(step * r / (1 + (step - 1) * r), 0).astype(np.float32)


def noise_normalised(
    r: np.ndarray, ceiling: np.ndarray, convention: str = "undefined"
) -> np.ndarray:
    """Return ``100 * max(r, 0)^2 / NC`` per vertex, in per cent, capped at 100.

    Parameters
    ----------
    r : ndarray, shape (n_vertices,)
        Correlation of prediction and response.
    ceiling : ndarray, shape (n_vertices,)
        Noise ceiling NC, 0 to 1.
    convention : {"undefined", "challenge"}
        ``"undefined"``: NaN where NC is 0, negative or NaN, or r is NaN. ``"challenge"``: as the
        Algonauts 2023 challenge computes it, NC = 0 replaced by 1e-14, which gives such a vertex
        100 for any positive r.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)

    Raises
    ------
    ConfigError
        If the convention is unknown.
    DataError
        If the shapes differ, a noise ceiling is above 1, or a correlation is outside -1 to 1.
    """
    r, nc = np.asarray(r, np.float64), np.asarray(ceiling, np.float64)
    require(
        r.shape == nc.shape,
        DataError,
        "one noise ceiling per vertex",
        f"{r.shape} and {nc.shape}",
        "use the same vertices",
    )
    for what, values in (("noise ceilings", nc), ("correlations", np.abs(r))):
        highest = np.nanmax(values, initial=0)
        require(
            highest <= 1 + _ROUNDING,
            DataError,
            f"{what} of at most 1",
            f"{highest:g}",
            "give shares of variance and correlations; divide percentages by 100",
        )
    if convention == "challenge":
        nc = np.where(nc == 0, 1e-14, nc)
    elif convention == "undefined":
        nc = np.where(nc > 0, nc, np.nan)
    else:
        raise ConfigError(
            message("'undefined' or 'challenge'", repr(convention), "choose one of them")
        )
    score = 100 * np.maximum(r, 0) ** 2 / nc
    return np.minimum(score, 100).astype(np.float32)


def aggregate(values: np.ndarray) -> dict[str, Any]:
    """Return mean and median over defined vertices, and how many are defined and undefined.

    Returns
    -------
    dict
        ``mean``, ``median`` (NaN if nothing is defined), ``n``, ``n_undefined``.
    """
    values = np.asarray(values, np.float64).ravel()
    kept = values[np.isfinite(values)]
    return {
        "mean": float(kept.mean()) if len(kept) else float("nan"),
        "median": float(np.median(kept)) if len(kept) else float("nan"),
        "n": len(kept),
        "n_undefined": len(values) - len(kept),
    }

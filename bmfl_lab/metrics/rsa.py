"""Representational similarity analysis: RDMs and their comparison."""

from __future__ import annotations

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, nearest, require

RDM_METRICS = ("correlation", "cosine", "euclidean", "crossnobis")
RDM_METHODS = ("spearman", "pearson", "cosine", "kendall", "rho-a")
_BLOCK = 8  # RDMs ranked at a time: fresh memory for all of them would cost more than the product


def condense(square: np.ndarray) -> np.ndarray:
    """Return the upper triangle of a square matrix in the order of ``scipy`` ``pdist``.

    Parameters
    ----------
    square : ndarray, shape (n, n)
        Only the part above the diagonal is read.

    Returns
    -------
    ndarray, shape (n * (n - 1) / 2,)
    """
    n = len(square)
    out = np.empty(n * (n - 1) // 2, dtype=square.dtype)
    start = 0
    for i in range(n - 1):
        out[start : start + n - 1 - i] = square[i, i + 1 :]
        start += n - 1 - i
    return out


def expand(condensed: np.ndarray) -> np.ndarray:
    """Return a condensed RDM (n (n - 1) / 2,) as a symmetric matrix (n, n) with zero diagonal.

    Raises
    ------
    DataError
        If the length is not n (n - 1) / 2 for any n.
    """
    n = n_stimuli_of(len(condensed))
    square = np.zeros((n, n), dtype=condensed.dtype)
    start = 0
    for i in range(n - 1):
        row = condensed[start : start + n - 1 - i]
        square[i, i + 1 :] = row
        square[i + 1 :, i] = row
        start += n - 1 - i
    return square


def n_stimuli_of(length: int) -> int:
    """Return n for a condensed vector of n (n - 1) / 2 values.

    Raises
    ------
    DataError
        If there is no such n.
    """
    n = round((1 + (1 + 8 * length) ** 0.5) / 2)
    require(
        length >= 1 and n * (n - 1) // 2 == length,
        DataError,
        "a condensed RDM of n(n-1)/2 values",
        f"{length} values",
        "keep only the upper triangle",
    )
    return n


def rdm(
    X: np.ndarray,
    metric: str = "correlation",
    *,
    repeats: np.ndarray | None = None,
    precision: np.ndarray | None = None,
) -> np.ndarray:
    """Return the representational dissimilarity matrix of patterns, condensed.

    Parameters
    ----------
    X : ndarray, shape (n_stimuli, d)
        One pattern per stimulus. It is ignored (and may be None) when `repeats` is given. float32
        is computed in float32 except for Euclidean and crossnobis distances, where subtraction
        would lose digits.
    metric : {"correlation", "cosine", "euclidean", "crossnobis"}
        1 - Pearson, 1 - cosine, Euclidean distance (not squared), or the cross-validated squared
        Mahalanobis distance divided by d.
    repeats : ndarray, shape (n_stimuli, n_repeats, d), optional
        Independent presentations, needed by crossnobis.
    precision : ndarray, shape (d, d), optional
        Inverse noise covariance for crossnobis; the identity by default.

    Returns
    -------
    ndarray, shape (n_stimuli * (n_stimuli - 1) / 2,)
        In the order of ``scipy.spatial.distance.pdist``. NaN where a pattern is constant
        (correlation) or zero (cosine): the dissimilarity is undefined there, see
        `bmfl_lab.metrics.RDMs.defined`.

    Raises
    ------
    ConfigError
        If the metric is unknown.
    DataError
        If shapes are wrong, values are not finite, or crossnobis gets fewer than two repeats.

    References
    ----------
    Kriegeskorte, Mur, Bandettini 2008 (RDM); Walther et al. 2016, NeuroImage 137 (crossnobis).
    """
    require(
        metric in RDM_METRICS,
        ConfigError,
        "a known RDM metric",
        repr(metric),
        nearest(metric, RDM_METRICS),
    )
    if metric == "crossnobis":
        return _crossnobis(repeats, precision)
    X = _patterns(X, 2, "(n_stimuli, d)")
    if metric == "euclidean":
        return np.sqrt(_squared_distances(X.astype(np.float64)))
    size = np.abs(X).max(axis=1, keepdims=True) * np.sqrt(X.shape[1])
    if metric == "correlation":
        X = X - X.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    # a constant pattern keeps a rounding residue after centring, so "zero" is relative to its size
    X = np.divide(
        X, norm, out=np.full_like(X, np.nan), where=norm > 8 * np.finfo(X.dtype).eps * size
    )
    out = condense(X @ X.T)
    np.subtract(1, out, out=out)
    return np.clip(out, 0, 2, out=out)


def _patterns(X: np.ndarray, ndim: int, shape: str) -> np.ndarray:
    X = np.asarray(X)
    require(
        X.ndim == ndim,
        DataError,
        f"patterns of shape {shape}",
        f"shape {X.shape}",
        "flatten each stimulus to one row, e.g. with X.reshape(len(X), -1)",
    )
    require(
        X.shape[0] >= 2 and X.dtype.kind in "fiu",
        DataError,
        "numeric patterns of at least 2 stimuli",
        f"{len(X)} of type {X.dtype}",
        "give two stimuli or more, as numbers",
    )
    X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)
    require(
        np.isfinite(X).all(),
        DataError,
        "finite patterns",
        f"{int(np.sum(~np.isfinite(X)))} NaN or infinite values",
        "drop or mask those units",
    )
    return X


def _squared_distances(X: np.ndarray) -> np.ndarray:
    # distances do not depend on the origin, and a small mean keeps the Gram form from cancelling
    # digits
    X = X - X.mean(axis=0)
    gram = X @ X.T
    square = np.diag(gram)
    return np.maximum(condense(square[:, None] + square[None] - 2 * gram), 0)


def _crossnobis(repeats: np.ndarray | None, precision: np.ndarray | None) -> np.ndarray:
    require(
        repeats is not None and np.ndim(repeats) == 3 and (np.shape(repeats)[1] >= 2),
        DataError,
        "repeats of shape (n_stimuli, n_repeats >= 2, d) for crossnobis",
        "none" if repeats is None else f"shape {np.shape(repeats)}",
        "give independent presentations, or use metric='correlation'",
    )
    X = _patterns(repeats, 3, "(n_stimuli, n_repeats, d)").astype(np.float64)
    X = X - X.mean(axis=(0, 1))
    if precision is not None:
        X = X @ np.linalg.cholesky(precision)
    _, n, d = X.shape
    total = X.sum(axis=1) @ X.sum(axis=1).T
    within = sum(X[:, r] @ X[:, r].T for r in range(n))
    cross = total - within  # sum over pairs of different repeats of the inner products
    diagonal = np.diag(cross)
    return condense(diagonal[:, None] + diagonal[None] - cross - cross.T) / (n * (n - 1) * d)


def _rank_row(row: np.ndarray, ladder: np.ndarray, target: np.ndarray) -> bool:
    """Write ``ladder[rank - 1]`` of each value into `target`, ties averaged; return if any."""
    order = np.argsort(row)
    ordered = row[order]
    new = ordered[1:] != ordered[:-1]
    if new.all():
        target[order] = ladder
        return False
    edges = np.concatenate([[0], np.flatnonzero(new) + 1, [len(row)]])
    # the ladder is linear in the rank, so a tie's mean is the mean of its ends
    target[order] = np.repeat((ladder[edges[:-1]] + ladder[edges[1:] - 1]) / 2, np.diff(edges))
    return True


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1 along the last axis, ties averaged, as ``scipy.stats.rankdata`` does.

    Parameters
    ----------
    values : ndarray, shape (..., m)

    Returns
    -------
    ndarray of float64, same shape
    """
    values = np.asarray(values)
    m = values.shape[-1]
    out = np.empty(values.shape, dtype=np.float64)
    ladder = np.arange(1, m + 1, dtype=np.float64)
    for row, target in zip(values.reshape(-1, m), out.reshape(-1, m)):
        _rank_row(row, ladder, target)
    return out


def _rows(values: np.ndarray, name: str) -> np.ndarray:
    values = np.atleast_2d(np.asarray(values))
    require(
        values.ndim == 2 and values.shape[1] >= 3,
        DataError,
        f"{name} of shape (n_rdms, m >= 3), one condensed RDM per row",
        f"shape {values.shape}",
        "stack condensed RDMs of at least three stimuli",
    )
    bad = int(np.sum(~np.isfinite(values)))
    require(
        not bad,
        DataError,
        f"defined dissimilarities in {name}",
        f"{bad} NaN or infinite values",
        "leave out the stimuli with constant patterns (RDMs.defined)",
    )
    return values


def prepared(values: np.ndarray, method: str) -> np.ndarray:
    """Transform RDMs so that their similarity is an inner product (Kendall excepted).

    Parameters
    ----------
    values : ndarray, shape (k, m)
        Condensed RDMs.
    method : str
        See `compare_rdms`.

    Returns
    -------
    ndarray of float64, shape (k, m)
        Rows of unit length; all NaN for an RDM without variance (without length for cosine).
    """
    m = values.shape[1]
    if method in ("spearman", "rho-a"):
        # without ties every rank vector has the same length, so ranks are written centred and
        # scaled at once
        ladder = (np.arange(1, m + 1) - (m + 1) / 2) / np.sqrt((m**3 - m) / 12)
        x = np.empty(values.shape, dtype=np.float64)
        for row, target in zip(values, x):
            if _rank_row(row, ladder, target) and method == "spearman":
                norm = np.sqrt(target @ target)
                target /= norm if norm > 1e-13 else np.nan
        return x
    x = np.array(values, dtype=np.float64)
    if method != "cosine":
        x -= x.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.einsum("km,km->k", x, x))[:, None]
    size = np.abs(values).max(axis=1, keepdims=True) * np.sqrt(m)
    norm[norm <= 1e-13 * size] = np.nan
    x /= norm
    return x


def compare_rdms(A: np.ndarray, B: np.ndarray, method: str = "spearman") -> np.ndarray:
    """Return the similarity of every RDM in `A` with every RDM in `B`.

    Each RDM is ranked (or centred) once and all pairs come from one matrix product.

    Parameters
    ----------
    A : ndarray, shape (a, m)
        Condensed RDMs, e.g. of layers.
    B : ndarray, shape (b, m)
        Condensed RDMs of the same stimuli in the same order, e.g. of ROIs. Use `compare` for RDMs
        with ids.
    method : {"spearman", "pearson", "cosine", "kendall", "rho-a"}
        "kendall" is tau-a; "rho-a" is Spearman's rho that does not correct for ties (the
        expectation under random tie breaking).

    Returns
    -------
    ndarray of float64, shape (a, b)
        Similarities; NaN for an RDM without variance.

    Raises
    ------
    ConfigError
        If the method is unknown.
    DataError
        If the lengths differ, there are fewer than three dissimilarities, or a value is not finite.

    References
    ----------
    Schutt, Kipnis, Diedrichsen, Kriegeskorte 2023, eLife 12:e82566 (tau-a and rho-a for models with
    ties).
    """
    require(
        method in RDM_METHODS,
        ConfigError,
        "a known RDM comparison",
        repr(method),
        nearest(method, RDM_METHODS),
    )
    A, B = _rows(A, "A"), _rows(B, "B")
    require(
        A.shape[1] == B.shape[1],
        DataError,
        "RDMs of the same stimuli",
        f"{A.shape[1]} and {B.shape[1]} dissimilarities",
        "compare RDMs with ids (metrics.compare), which takes the shared stimuli",
    )
    if method == "kendall":
        return _tau_a(A, B)
    out, left = np.empty((len(A), len(B))), prepared(A, method)
    for start in range(0, len(B), _BLOCK):
        out[:, start : start + _BLOCK] = left @ prepared(B[start : start + _BLOCK], method).T
    return out


def _tau_a(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    from scipy.stats import kendalltau

    m = A.shape[1]
    total = m * (m - 1) / 2

    def untied(row: np.ndarray) -> float:
        counts = np.unique(row, return_counts=True)[1].astype(np.float64)
        return total - float(np.sum(counts * (counts - 1) / 2))

    free_a, free_b = [untied(r) for r in A], [untied(r) for r in B]
    # tau-b divides by the geometric mean of untied pairs; tau-a by all pairs
    return np.array(
        [
            [
                kendalltau(x, y).statistic * np.sqrt(fa) * np.sqrt(fb) / total
                if fa and fb
                else np.nan
                for y, fb in zip(B, free_b)
            ]
            for x, fa in zip(A, free_a)
        ]
    )

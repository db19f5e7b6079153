"""Centred kernel alignment (CKA) with linear kernels: plain, debiased and over minibatches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bmfl_lab.errors import DataError, require


def _pair(X: np.ndarray, Y: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    X, Y = (np.asarray(Z, dtype=np.float64).reshape(len(Z), -1) for Z in (X, Y))
    require(
        len(X) == len(Y) and len(X) >= least,
        DataError,
        f"at least {least} stimuli, the same in both",
        f"{len(X)} and {len(Y)}",
        f"pair the representations by stimulus id, at least {least} of them",
    )
    require(
        np.isfinite(X).all() and np.isfinite(Y).all(),
        DataError,
        "finite representations",
        "NaN or infinite values",
        "drop or mask those units",
    )
    return X, Y


def _hsic(K: np.ndarray, L: np.ndarray, debiased: bool) -> float:
    n = len(K)
    if not debiased:
        # both are centred by the caller through their features; the ratio cancels (n - 1)^2
        return float(np.sum(K * L))
    k, l = K.sum(axis=1), L.sum(axis=1)
    trace = float(np.sum(K * L))
    return (trace + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * float(k @ l) / (n - 2)) / (
        n * (n - 3)
    )


def _three(X: np.ndarray, Y: np.ndarray, debiased: bool) -> np.ndarray:
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    if not debiased and max(X.shape[1], Y.shape[1]) < len(X):
        # feature form: the same sums without n x n matrices
        return np.array([np.sum((A.T @ B) ** 2) for A, B in ((X, Y), (X, X), (Y, Y))])
    K, L = X @ X.T, Y @ Y.T
    if debiased:
        np.fill_diagonal(K, 0)
        np.fill_diagonal(L, 0)
    return np.array([_hsic(K, L, debiased), _hsic(K, K, debiased), _hsic(L, L, debiased)])


def _ratio(sums: np.ndarray) -> float:
    xy, xx, yy = sums
    return float(xy / np.sqrt(xx * yy)) if xx > 0 and yy > 0 else float("nan")


def cka(X: np.ndarray, Y: np.ndarray, *, debiased: bool = True) -> float:
    """Return the linear CKA of two representations of the same stimuli.

    Parameters
    ----------
    X : ndarray, shape (n_stimuli, d1)
    Y : ndarray, shape (n_stimuli, d2)
        Rows paired by stimulus.
    debiased : bool, default True
        Use the unbiased HSIC, which does not grow with d / n; it can fall below 0.

    Returns
    -------
    float
        1 for equal up to rotation and scale; NaN for a constant representation.

    Raises
    ------
    DataError
        If rows differ in number or there are fewer than 4 (debiased) or 2.

    References
    ----------
    Kornblith et al. 2019, ICML (linear CKA); Song et al. 2012, JMLR 13 (unbiased HSIC).
    """
    X, Y = _pair(X, Y, 4 if debiased else 2)
    return _ratio(_three(X, Y, debiased))


def minibatch_cka(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return linear CKA whose unbiased HSIC terms are averaged over batches.

    Parameters
    ----------
    batches : iterable of (ndarray (b, d1), ndarray (b, d2))
        Pairs of representations, b >= 4.

    Returns
    -------
    float

    Raises
    ------
    DataError
        If there is no batch, or a batch is too small.

    References
    ----------
    Nguyen, Raghu, Kornblith 2021, ICLR.
    """
    total, n = np.zeros(3), 0
    for X, Y in batches:
        total += _three(*_pair(X, Y, 4), debiased=True)
        n += 1
    require(
        n,
        DataError,
        "at least one batch",
        "none",
        "give batches of at least 4 stimuli",
    )
    return _ratio(total)

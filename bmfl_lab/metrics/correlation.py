"""Pearson correlation per vertex: two passes in chunks, or streamed over batches of stimuli."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import DataError, message
from bmfl_lab.metrics.statistics import percentiles
from bmfl_lab.runtime import rng

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1024
_EPS = float(np.finfo(np.float32).eps)


def _numbers(x: np.ndarray | Tensor) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.double().numpy() if x.element_size() == 8 else x.float().numpy()
    return np.asarray(x)


def _pair(
    Y: np.ndarray | Tensor, P: np.ndarray | Tensor, least: int
) -> tuple[np.ndarray, np.ndarray]:
    Y, P = _numbers(Y), _numbers(P)
    if Y.shape != P.shape or Y.ndim != 2:
        raise DataError(
            message(
                "responses and predictions of one shape (n_stimuli, n_vertices)",
                f"{Y.shape} and {P.shape}",
                "pair them stimulus by stimulus and vertex by vertex; nothing is broadcast",
            )
        )
    if len(Y) < least:
        raise DataError(
            message(
                f"at least {least} stimuli",
                f"{len(Y)}",
                "correlate over more stimuli: r of two points is always -1 or 1",
            )
        )
    return Y, P


def _centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values less their mean, the mean of what rounding left, and the mean."""
    x = x.astype(np.float64 if x.dtype == np.float64 else np.float32, copy=False)
    mean = x.mean(0, dtype=np.float64)
    c = x - mean.astype(x.dtype)
    return c, c.mean(0, dtype=np.float64), mean


def _correlate(
    sxy: np.ndarray,
    sxx: np.ndarray,
    syy: np.ndarray,
    n: int,
    mean_x: np.ndarray,
    mean_y: np.ndarray,
) -> np.ndarray:
    # below this spread the values differ from a constant by rounding only
    flat = (sxx <= n * (4 * _EPS * mean_x) ** 2) | (syy <= n * (4 * _EPS * mean_y) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = sxy / np.sqrt(sxx * syy)
    return np.where(flat, np.nan, np.clip(r, -1, 1)).astype(np.float32)


def pearson(Y: np.ndarray | Tensor, P: np.ndarray | Tensor, chunk: int = CHUNK) -> np.ndarray:
    """Correlate responses with predictions over stimuli, vertex by vertex.

    Two passes (means first), so that single precision is safe whatever the mean.

    Parameters
    ----------
    Y, P : array or Tensor, shape (n_stimuli, n_vertices)
        Measured and predicted responses; half precision is accumulated in single precision or
        better.
    chunk : int, default 1024
        Vertices at a time; memory beyond the inputs is two chunks of n_stimuli values.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)
        Pearson r; NaN where undefined, that is, if values on either side are constant or NaN.

    Raises
    ------
    DataError
        If shapes differ or there are fewer than three stimuli.
    """
    Y, P = _pair(Y, P, 3)
    n, out = len(Y), np.empty(Y.shape[1], np.float32)
    for start in range(0, Y.shape[1], chunk):
        part = slice(start, start + chunk)
        (y, dy, my), (p, dp, mp) = _centred(Y[:, part]), _centred(P[:, part])
        sxy = np.einsum("nv,nv->v", y, p).astype(np.float64) - n * dy * dp
        syy = np.einsum("nv,nv->v", y, y).astype(np.float64) - n * dy * dy
        spp = np.einsum("nv,nv->v", p, p).astype(np.float64) - n * dp * dp
        out[part] = _correlate(sxy, syy, spp, n, my, mp)
    return out


class StreamingPearson:
    """Correlation per vertex over batches that are never held together.

    Means and co-moments of batches are merged pairwise, so that the result does not depend on the
    mean's size.

    Parameters
    ----------
    n_vertices : int
        Number of vertices.

    References
    ----------
    Chan, Golub & LeVeque (1983), Algorithms for computing the sample variance, The American
    Statistician 37(3).
    """

    def __init__(self, n_vertices: int) -> None:
        self.n = 0
        self.n_vertices = n_vertices
        self.mean_y, self.mean_p, self.syy, self.spp, self.syp = (
            np.zeros(n_vertices) for _ in range(5)
        )

    def update(self, Y: np.ndarray | Tensor, P: np.ndarray | Tensor) -> StreamingPearson:
        """Add a batch of shape (n_batch, n_vertices); returns itself.

        Raises
        ------
        DataError
            If shapes differ from each other or from n_vertices.
        """
        Y, P = _pair(Y, P, 0)
        if Y.shape[1] != self.n_vertices:
            raise DataError(
                message(
                    f"{self.n_vertices} vertices",
                    f"{Y.shape[1]}",
                    "stream batches of one subject only",
                )
            )
        if not len(Y):
            return self
        (y, dy, my), (p, dp, mp) = _centred(Y), _centred(P)
        m, total = len(Y), self.n + len(Y)
        my, mp = my.astype(y.dtype) + dy, mp.astype(p.dtype) + dp
        gap_y, gap_p, share = my - self.mean_y, mp - self.mean_p, self.n * m / total
        self.syy += np.einsum("nv,nv->v", y, y) - m * dy * dy + gap_y * gap_y * share
        self.spp += np.einsum("nv,nv->v", p, p) - m * dp * dp + gap_p * gap_p * share
        self.syp += np.einsum("nv,nv->v", y, p) - m * dy * dp + gap_y * gap_p * share
        self.mean_y += gap_y * (m / total)
        self.mean_p += gap_p * (m / total)
        self.n = total
        return self

    def merge(self, other: StreamingPearson) -> StreamingPearson:
        """Add all batches of another stream of the same vertices; returns itself."""
        total = self.n + other.n
        if not other.n:
            return self
        gap_y, gap_p = other.mean_y - self.mean_y, other.mean_p - self.mean_p
        share = self.n * other.n / total
        self.syy += other.syy + gap_y * gap_y * share
        self.spp += other.spp + gap_p * gap_p * share
        self.syp += other.syp + gap_y * gap_p * share
        self.mean_y += gap_y * (other.n / total)
        self.mean_p += gap_p * (other.n / total)
        self.n = total
        return self

    def result(self) -> np.ndarray:
        """Return r per vertex, NaN where undefined, shape (n_vertices,).

        Raises
        ------
        DataError
            If fewer than three stimuli were added.
        """
        if self.n < 3:
            raise DataError(
                message("at least 3 stimuli", f"{self.n}", "update with more batches first")
            )
        return _correlate(self.syp, self.syy, self.spp, self.n, self.mean_y, self.mean_p)


def near_constant(X: np.ndarray | Tensor) -> np.ndarray:
    """Flag vertices whose variance is below single precision's epsilon times the squared mean.

    Their r is computed if they vary at all, but rests on the last digits of the values.

    Returns
    -------
    ndarray of bool, shape (n_vertices,)
    """
    X = _numbers(X).astype(np.float64)
    return X.var(0) <= _EPS * X.mean(0) ** 2


def bootstrap_pearson(
    Y: np.ndarray | Tensor,
    P: np.ndarray | Tensor,
    n_boot: int = 1000,
    seed: int = 0,
    chunk: int = CHUNK,
) -> np.ndarray:
    """Correlate on resampled stimuli; all vertices share the resamples.

    Parameters
    ----------
    Y, P : array, shape (n_stimuli, n_vertices)
        Responses and predictions.
    n_boot : int, default 1000
        Number of resamples.
    seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    ndarray of float32, shape (n_boot, n_vertices)
        Pearson r per resample; NaN where undefined.

    Raises
    ------
    DataError
        See `pearson`.
    """
    Y, P = _pair(Y, P, 3)
    n = len(Y)
    counts = (
        rng(seed, "bootstrap", "pearson")
        .multinomial(n, np.full(n, 1 / n), size=n_boot)
        .astype(np.float32)
    )
    out = np.empty((n_boot, Y.shape[1]), np.float32)
    for start in range(0, Y.shape[1], chunk):
        part = slice(start, start + chunk)
        (y, _, my), (p, _, mp) = _centred(Y[:, part]), _centred(P[:, part])
        y, p = y.astype(np.float32), p.astype(np.float32)
        sy, sp = counts @ y, counts @ p
        syp = counts @ (y * p) - sy * sp / n
        out[:, part] = _correlate(
            syp, counts @ (y * y) - sy * sy / n, counts @ (p * p) - sp * sp / n, n, my, mp
        )
    return out


def mean_pearson(
    Y: np.ndarray, P: np.ndarray, n_boot: int = 500, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Return the mean of r over vertices, 0 where it is undefined, with its interval.

    Parameters
    ----------
    Y, P : ndarray, shape (n_stimuli, n_vertices)
        Responses and predictions.
    n_boot : int, default 500
        Number of resamples of the stimuli.
    seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    value : float
    low, high : float or None
        Ends of the 95 % percentile interval over stimuli; see `percentiles`.

    Raises
    ------
    DataError
        See `pearson`.
    """
    drawn = np.nan_to_num(bootstrap_pearson(Y, P, n_boot, seed)).mean(axis=1)
    return float(np.nan_to_num(pearson(Y, P)).mean()), *percentiles(drawn)

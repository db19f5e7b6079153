"""Ridge regression with one penalty per vertex, chosen by cross-validation in Gram form.

For fold k with held-out rows X_k and Y_k, cross-validation needs only ``G_k = X_k'X_k`` and ``C_k =
X_k'Y_k``; the Gram matrix of the training rows is the difference ``G - G_k``. With the eigenvalues
l and eigenvectors V of that difference and ``w = V'(C - C_k) / (l + a)``, the held-out error of
penalty a is ``y'y - 2 sum(w * V'C_k) + sum(w * (V'G_k V) w)``. No prediction has to be computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bmfl_lab.errors import ConfigError, DataError, message, require, require_known

DEFAULT_ALPHAS = tuple(float(a) for a in np.logspace(-1, 8, 19))
EDGE_SHARE = 0.05
_SMALL = 2e9  # multiplications below which double precision costs no noticeable time

Folds = np.ndarray | Sequence[int] | Sequence[str] | Sequence[np.ndarray]
"""One label per stimulus, or the held-out rows of each fold."""


@dataclass(frozen=True)
class RidgeFit:
    """A fitted ridge regression.

    Parameters
    ----------
    alpha : ndarray of float32, shape (n_vertices,)
        Penalty of each vertex.
    coef : ndarray of float32, shape (n_features, n_vertices)
        Weights of the features.
    intercept : ndarray of float32, shape (n_vertices,)
        Constant term of each vertex.
    cv_score : ndarray of float32, shape (n_vertices,)
        Mean over folds of minus the mean squared error, at the chosen penalty.
    edge_share : float
        Share of vertices whose penalty lies at an end of the grid.
    """

    alpha: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    cv_score: np.ndarray
    edge_share: float

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return predicted responses.

        Parameters
        ----------
        X : ndarray, shape (n_stimuli, n_features)
            Features.

        Returns
        -------
        ndarray of float32, shape (n_stimuli, n_vertices)

        Raises
        ------
        DataError
            If the number of features differs.
        """
        X = np.asarray(X, np.float32)
        require(
            X.ndim == 2 and X.shape[1] == len(self.coef),
            DataError,
            f"features of shape (n, {len(self.coef)})",
            X.shape,
            "use the features on which the ridge was fitted",
        )
        return X @ self.coef + self.intercept


def fold_rows(n: int, n_folds: int = 5, folds: Folds | None = None) -> list[np.ndarray]:
    """Return the held-out rows of each fold.

    Parameters
    ----------
    n : int
        Number of stimuli.
    n_folds : int, default 5
        Number of contiguous, unshuffled folds. As in scikit-learn's KFold, the first ``n %
        n_folds`` have one stimulus more.
    folds : ndarray, shape (n,), or sequence of ndarray of int, optional
        One label per stimulus (with sessions as labels, one session is left out at a time), or the
        held-out rows of each fold. Replaces `n_folds`.

    Returns
    -------
    list of ndarray of int
        Row indices, one array per fold.

    Raises
    ------
    ConfigError
        If there are fewer than two folds, or they do not hold every stimulus exactly once.
    """
    if folds is None:
        require(
            2 <= n_folds <= n,
            ConfigError,
            f"2 to {n} folds, one per stimulus at the most",
            n_folds,
            f"set n_folds={min(n, 5)}" if n > 1 else "give two or more stimuli",
        )
        return [np.asarray(f) for f in np.array_split(np.arange(n), n_folds)]
    if len(folds) == n and all(np.ndim(f) == 0 for f in folds):
        labels = np.asarray(folds)
        rows = [np.flatnonzero(labels == v) for v in np.unique(labels)]
    else:
        rows = [np.asarray(f, np.int64) for f in folds]
    require(
        len(rows) >= 2 and np.array_equal(np.sort(np.concatenate(rows)), np.arange(n)),
        ConfigError,
        f"two or more folds that hold each of {n} stimuli once",
        f"{len(rows)} fold(s) with {sum(map(len, rows))} rows",
        "give one session label per stimulus, or disjoint row lists",
    )
    return rows


def fit_ridge(
    X: np.ndarray | Tensor,
    Y: np.ndarray | Tensor,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_folds: int = 5,
    *,
    folds: Folds | None = None,
    device: str = "cpu",
    chunk: int = 2048,
    precision: str = "auto",
) -> RidgeFit:
    """Fit a ridge regression per vertex, each with its own penalty chosen by cross-validation.

    Parameters
    ----------
    X : ndarray or Tensor, shape (n_stimuli, n_features)
        Features; they are centred within each training fold and never scaled.
    Y : ndarray or Tensor, shape (n_stimuli, n_vertices)
        Responses.
    alphas : sequence of float, default 19 values from 0.1 to 1e8
        Positive penalties to choose from.
    n_folds : int, default 5
        Number of contiguous folds, see `fold_rows`.
    folds : ndarray, shape (n_stimuli,), or sequence of ndarray of int, optional
        One label per stimulus, or the held-out rows of each fold, see `fold_rows`.
    device : str, default "cpu"
        Device of the computation.
    chunk : int, default 2048
        Number of vertices per block. Memory beyond inputs and result is about
        ``4 * chunk * (n_stimuli + (n_folds + 6) * n_features)`` bytes in single precision.
    precision : {"auto", "float32", "float64"}, default "auto"
        Precision of products with responses; decompositions are always in double precision. "auto"
        uses double precision for small problems and for float64 input.

    Returns
    -------
    RidgeFit
        Fit with `alpha` (n_vertices,), `coef` (n_features, n_vertices) and `intercept`
        (n_vertices,).

    Raises
    ------
    DataError
        If the numbers of stimuli differ, or a value is not finite.
    ConfigError
        If a penalty or a fold is not valid.

    Warns
    -----
    UserWarning
        If more than 5 % of the vertices choose a penalty at an end of the grid.

    Notes
    -----
    The criterion is that of himalaya's ``RidgeCV(fit_intercept=True)``: the mean over folds of the
    held-out mean squared error. The default penalties are our choice.

    References
    ----------
    Dupré la Tour et al. (2022), Feature-space selection with banded ridge regression, NeuroImage
    264 (himalaya).
    """
    X, Y, grid = _checked(X, Y, alphas)
    dtype = _precision(precision, X, Y)
    rows = fold_rows(len(X), n_folds, folds)
    features = _Features(X, rows, grid, dtype, device)
    alpha = np.empty(Y.shape[1], np.float32)
    coef = np.empty((X.shape[1], Y.shape[1]), np.float32)
    intercept, score = alpha.copy(), alpha.copy()
    for start in range(0, Y.shape[1], chunk):
        part = slice(start, start + chunk)
        block = torch.as_tensor(np.ascontiguousarray(Y[:, part]), device=device).to(dtype)
        alpha[part], coef[:, part], intercept[part], score[part] = features.solve(block)
    return RidgeFit(alpha, coef, intercept, score, share_at_edge(alpha, grid))


def share_at_edge(alpha: np.ndarray, alphas: Sequence[float]) -> float:
    """Return the share of vertices whose penalty lies at an end of the grid; 0 for a grid of one.

    Parameters
    ----------
    alpha : ndarray, shape (n_vertices,)
        Chosen penalties.
    alphas : sequence of float
        Penalties from which they were chosen.

    Returns
    -------
    float
        Share between 0 and 1.

    Warns
    -----
    UserWarning
        If the share is above 5 % (our choice).
    """
    grid = np.asarray(alphas, np.float32).ravel()
    edge = (
        float(np.mean((alpha == grid.min()) | (alpha == grid.max())))
        if len(grid) > 1 and len(alpha)
        else 0.0
    )
    if edge > EDGE_SHARE:
        warnings.warn(
            message(
                f"at most {EDGE_SHARE:.0%} of vertices at an end of the penalty grid",
                f"{edge:.1%} at {grid.min():g} or {grid.max():g}",
                "widen `alphas`",
            ),
            stacklevel=3,
        )
    return edge


def _checked(
    X: np.ndarray | Tensor, Y: np.ndarray | Tensor, alphas: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X, Y = (np.asarray(a.detach().cpu() if isinstance(a, Tensor) else a) for a in (X, Y))
    X, Y = (a if a.dtype in (np.float32, np.float64) else a.astype(np.float32) for a in (X, Y))
    # torch reads no reversed arrays
    X, Y = (a.copy() if min(a.strides, default=0) < 0 else a for a in (X, Y))
    require(
        X.ndim == 2 and Y.ndim == 2 and len(X) == len(Y),
        DataError,
        "features (n_stimuli, n_features) and responses (n_stimuli, n_vertices) "
        "of the same number of stimuli",
        f"shapes {X.shape} and {Y.shape}",
        "pair them by stimulus id",
    )
    for what, values in (("features", X), ("responses", Y)):
        bad = ~np.isfinite(values)
        if bad.any():
            raise DataError(
                message(
                    f"finite {what}",
                    f"{int(bad.sum())} NaN or infinite values in {int(bad.any(0).sum())} columns",
                    "drop those columns or mask them first",
                )
            )
    grid = np.asarray(alphas, np.float32).ravel()
    require(
        len(grid) and np.all(np.isfinite(grid)) and not np.any(grid <= 0),
        ConfigError,
        "one or more positive penalties",
        repr(list(alphas)),
        "use np.logspace(0, 8, 17)",
    )
    return X, Y, grid


def _precision(precision: str, X: np.ndarray, Y: np.ndarray) -> torch.dtype:
    kinds = ("auto", "float32", "float64")
    require_known(precision, kinds, ConfigError, f"a precision among {kinds}")
    if precision == "auto":
        small = X.shape[0] * X.shape[1] * Y.shape[1] < _SMALL
        precision = "float64" if small or np.float64 in (X.dtype, Y.dtype) else "float32"
    return torch.float64 if precision == "float64" else torch.float32


class _Features:
    """Decompositions of every fold, which do not depend on the responses."""

    def __init__(
        self,
        X: np.ndarray,
        rows: list[np.ndarray],
        grid: np.ndarray,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.rows = [torch.as_tensor(r, device=device) for r in rows]
        self.contiguous = all(
            len(r) and np.array_equal(r, np.arange(r[0], r[0] + len(r))) for r in rows
        )
        self.grid, self.dtype = torch.as_tensor(grid, device=device, dtype=torch.float64), dtype
        self.mean = torch.as_tensor(X.mean(0, dtype=np.float64), device=device)
        X64 = torch.as_tensor(X, device=device).double() - self.mean
        self.rotation = None
        if X.shape[1] > X.shape[0]:
            # ridge is invariant to rotation, and X has no more than n_stimuli directions
            lam, u = torch.linalg.eigh(X64 @ X64.T)
            kept = lam > 1e-13 * len(lam) * lam[-1].clamp(min=0)
            kept[-1] = True  # constant features leave one direction, of length zero
            u, s = u[:, kept], lam[kept].clamp(min=0).sqrt()
            X64, self.rotation = u * s, X64.T @ (u / s.clamp(min=1e-300))
        self.X = X64.to(dtype)
        parts = [X64[r] for r in self.rows]
        grams, sums = [p.T @ p for p in parts], [p.sum(0) for p in parts]
        gram, total = torch.stack(grams).sum(0), torch.stack(sums).sum(0)
        self.sums, self.total = [s.to(dtype) for s in sums], total.to(dtype)
        self.folds = []
        for r, g, s in zip(self.rows, grams, sums):
            n_train = len(X) - len(r)
            s_train = total - s
            m = s_train / n_train
            lam, V = _eigen(gram - g - torch.outer(s_train, m))
            held = g - torch.outer(s, m) - torch.outer(m, s) + len(r) * torch.outer(m, m)
            self.folds.append((lam, V.to(dtype), (V.T @ held @ V).to(dtype), m.to(dtype)))
        self.full = _eigen(gram - torch.outer(total, total) / len(X))

    def _cross(self, Y: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        r = self.rows[k]
        pick = slice(int(r[0]), int(r[-1]) + 1) if self.contiguous else r
        y = Y[pick]
        return self.X[pick].T @ y, y.sum(0), (y * y).sum(0)

    def _errors(
        self, k: int, cross: Tensor, total: Tensor, n: int, parts: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Return the held-out mean squared error of fold k, shape (n_alphas, vertices)."""
        lam, V, H, m = self.folds[k]
        c_k, t_k, yy_k = parts
        n_k = len(self.rows[k])
        my = (total - t_k) / (n - n_k)
        c_train = (cross - c_k).addr_(self.total - self.sums[k], my, alpha=-1)
        held = c_k.addr(self.sums[k] - n_k * m, my, alpha=-1).addr_(m, t_k, alpha=-1)
        Z, T = V.T @ c_train, V.T @ held
        yy = yy_k - 2 * my * t_k + n_k * my * my
        out = Z.new_empty((len(self.grid), Z.shape[1]))
        w = torch.empty_like(Z)
        for i, a in enumerate(self.grid):
            torch.mul(Z, _shrink(lam, a).to(self.dtype)[:, None], out=w)
            out[i] = torch.addmm(T, H, w, beta=-2).mul_(w).sum(0)
        return out.add_(yy).div_(n_k)

    def solve(self, Y: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return alpha, coef, intercept and score of a block of vertices, from Y (n, vertices)."""
        mean_y = Y.double().mean(0)
        Y = Y - mean_y.to(self.dtype)
        parts = [self._cross(Y, k) for k in range(len(self.rows))]
        cross, total = sum(p[0] for p in parts), sum(p[1] for p in parts)
        errors = sum(
            self._errors(k, cross, total, len(Y), parts[k]) for k in range(len(parts))
        ) / len(parts)
        best, index = errors.min(0)
        lam, V = self.full
        Z = V.T @ cross.double()
        coef = V @ (Z * _shrink(lam[:, None], self.grid[index]))
        if self.rotation is not None:
            coef = self.rotation @ coef
        intercept = mean_y + total.double() / len(Y) - self.mean @ coef
        alpha = self.grid[index]
        return tuple(t.cpu().numpy().astype(np.float32) for t in (alpha, coef, intercept, -best))


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    lam, V = torch.linalg.eigh(gram)
    # the other directions hold rounding errors only; their true cross-products are zero
    return torch.where(lam > 1e-13 * len(lam) * lam[-1].clamp(min=0), lam, torch.inf), V


def _shrink(lam: Tensor, alpha: Tensor) -> Tensor:
    return 1 / (lam + alpha)

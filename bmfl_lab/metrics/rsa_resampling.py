"""Bootstrap of many RDM similarities at once, by weights instead of copies."""

from __future__ import annotations

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.metrics.rsa import compare_rdms, n_stimuli_of, prepared, ranks
from bmfl_lab.runtime import rng

METHODS = ("spearman", "pearson", "cosine")


def weighted_similarity(
    A: np.ndarray, B: np.ndarray, weights: np.ndarray, *, centred: bool = True
) -> np.ndarray:
    """Weighted Pearson correlation (or cosine) of every row of `A` with every row of `B`.

    Parameters
    ----------
    A : ndarray, shape (a, m)
    B : ndarray, shape (b, m)
    weights : ndarray, shape (m,)
        Not negative; a weight of 2 counts as a value that stands there twice.
    centred : bool, default True
        Whether weighted means are removed.

    Returns
    -------
    ndarray of float64, shape (a, b)
        NaN where a row has no weighted variance.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    mean_a, mean_b = (A @ share, B @ share) if centred else (np.zeros(len(A)), np.zeros(len(B)))
    size = [np.maximum((x * x) @ share - m * m, 0) for x, m in ((A, mean_a), (B, mean_b))]
    scale = np.sqrt(np.outer(*size))
    return (A @ (B * share).T - np.outer(mean_a, mean_b)) / np.where(scale > 1e-14, scale, np.nan)


def similarity_samples(
    A: np.ndarray, B: np.ndarray, *, method: str = "spearman", n_boot: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of all pairs of RDMs and its bootstrap over stimuli, the same resamples for every pair.

    Parameters
    ----------
    A : ndarray, shape (a, m)
        Condensed RDMs, e.g. of layers of several models.
    B : ndarray, shape (b, m)
        Condensed RDMs of the same stimuli, e.g. of ROIs.
    method : {"spearman", "pearson", "cosine"}
    n_boot, seed
        Of the bootstrap.

    Returns
    -------
    value : ndarray, shape (a, b)
        As `compare_rdms`.
    samples : ndarray, shape (n_boot, a, b)

    Raises
    ------
    ConfigError
        If the method is unknown.
    DataError
        If lengths differ or a value is not finite.

    Notes
    -----
    A stimulus drawn c times gives its pairs with one drawn d times the weight c d; pairs of a
    stimulus with itself are left out. For Spearman the ranks are those of the full set, not ranked
    anew in every resample: our choice, which makes a resample one matrix product.
    """
    if method not in METHODS:
        raise ConfigError(
            message(f"a method among {METHODS}", repr(method), nearest(method, METHODS))
        )
    value = compare_rdms(A, B, method)
    m = np.shape(A)[-1]
    n = n_stimuli_of(m)
    if n < 4:
        raise DataError(message("RDMs of at least 4 stimuli", str(n), "use more stimuli"))
    x, y = (np.atleast_2d(v) for v in (A, B))
    if method == "spearman":
        x, y = ranks(x), ranks(y)
    x, y = (prepared(v, "cosine" if method == "cosine" else "pearson") * np.sqrt(m) for v in (x, y))
    left, right = np.triu_indices(n, 1)
    draw = rng(seed, "similarity samples")
    samples = np.empty((n_boot, *value.shape))
    for b in range(n_boot):
        counts = draw.multinomial(n, np.full(n, 1 / n))
        samples[b] = weighted_similarity(
            x, y, counts[left] * counts[right], centred=method != "cosine"
        )
    return value, samples

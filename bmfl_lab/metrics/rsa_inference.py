"""Uncertainty of RSA: noise ceilings, bootstraps over stimuli or subjects, permutation tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, nearest, require
from bmfl_lab.metrics.rdms import RDMs, shared
from bmfl_lab.metrics.rsa import compare_rdms, expand, n_stimuli_of, prepared, ranks
from bmfl_lab.runtime import rng


def pool(values: np.ndarray, method: str) -> np.ndarray:
    """Return the mean RDM of subjects, after the normalisation that suits the comparison.

    Parameters
    ----------
    values : ndarray, shape (n_subjects, m)
        Condensed RDMs.
    method : str
        See `compare_rdms`.

    Returns
    -------
    ndarray, shape (m,)
        Mean of ranks (spearman, rho-a, kendall), of z-scores (pearson) or of unit vectors (cosine).
    """
    if method in ("pearson", "cosine"):
        return prepared(np.atleast_2d(values), method).mean(axis=0)
    return ranks(np.atleast_2d(values)).mean(axis=0)


def noise_ceiling(subjects: np.ndarray | RDMs, method: str = "spearman") -> tuple[float, float]:
    """Return a lower and an upper bound of the similarity that the true model would reach.

    Parameters
    ----------
    subjects : ndarray, shape (n_subjects, m), or RDMs
        One RDM per subject, over the same stimuli.
    method : str
        See `compare_rdms`.

    Returns
    -------
    lower, upper : float
        Mean similarity of each subject with the pool of the *other* subjects, and with the pool of
        all.

    Raises
    ------
    DataError
        If there are fewer than two subjects, because the lower bound is then undefined.

    References
    ----------
    Nili et al. 2014, PLoS Comput Biol 10(4):e1003553.
    """
    values = subjects.values if isinstance(subjects, RDMs) else np.atleast_2d(subjects)
    n = len(values)
    require(
        n >= 2,
        DataError,
        "RDMs of at least 2 subjects for a noise ceiling",
        n,
        "leave the noise ceiling out, or add subjects",
    )
    upper = compare_rdms(values, pool(values, method)[None], method).mean()
    lower = [
        compare_rdms(values[i : i + 1], pool(np.delete(values, i, axis=0), method)[None], method)[
            0, 0
        ]
        for i in range(n)
    ]
    return float(np.mean(lower)), float(upper)


@dataclass(frozen=True)
class RSABootstrap:
    """Bootstrap of RSA similarities.

    Parameters
    ----------
    value : ndarray, shape (k,)
        Mean over subjects for each of the k models.
    low, high : ndarray, shape (k,)
        Percentile interval.
    samples : ndarray, shape (n_boot, k)
        Every resample.
    over : str
        Name of the resampled unit.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: np.ndarray
    over: str


def bootstrap_rsa(
    models: RDMs,
    subjects: RDMs,
    *,
    method: str = "spearman",
    over: str = "both",
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> RSABootstrap:
    """Return the bootstrap interval of the mean similarity of models with subjects.

    Parameters
    ----------
    models : RDMs
        k models (layers).
    subjects : RDMs
        One RDM per subject, paired with the models by stimulus id.
    method : str
        See `compare_rdms`.
    over : {"stimuli", "subjects", "both"}
        Units that are drawn with replacement; the interval generalises to new units of this kind.
        A stimulus drawn twice gives pairs of itself with itself; those are left out.
    n_boot : int, default 1000
        Number of resamples.
    level : float, default 0.95
        Coverage.
    seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    RSABootstrap

    Raises
    ------
    ConfigError
        If `over` is unknown.
    DataError
        If stimuli are disjoint, or subjects are to be resampled and there is one.

    References
    ----------
    Schutt, Kipnis, Diedrichsen & Kriegeskorte (2023), Statistical inference on representational
    geometries, eLife 12:e82566: bootstrap over stimuli, subjects or both.
    """
    require(
        over in ("stimuli", "subjects", "both"),
        ConfigError,
        "over='stimuli', 'subjects' or 'both'",
        repr(over),
        "choose one of them",
    )
    models, subjects = shared(models, subjects)
    n_subjects, n = len(subjects), len(models.ids)
    require(
        over == "stimuli" or n_subjects >= 2,
        DataError,
        "at least 2 subjects to resample",
        n_subjects,
        "use over='stimuli'",
    )
    value = compare_rdms(models.values, subjects.values, method)
    draw = rng(seed, "bootstrap_rsa", over)
    squares = (
        None
        if over == "subjects"
        else np.stack([expand(v) for v in (*models.values, *subjects.values)])
    )
    samples = np.empty((n_boot, len(models)))
    upper = np.triu_indices(n, 1)
    for b in range(n_boot):
        chosen = (
            draw.integers(n_subjects, size=n_subjects)
            if over != "stimuli"
            else np.arange(n_subjects)
        )
        found = value
        if squares is not None:
            index = draw.integers(n, size=n)
            left, right = index[upper[0]], index[upper[1]]
            distinct = left != right
            values = squares[:, left[distinct], right[distinct]]
            found = compare_rdms(values[: len(models)], values[len(models) :], method)
        samples[b] = found[:, chosen].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.nanquantile(samples, [tail, 1 - tail], axis=0)
    return RSABootstrap(value.mean(axis=1), low, high, samples, over)


@dataclass(frozen=True)
class RSAPermutation:
    """Result of a permutation test of all pairs at once.

    Parameters
    ----------
    value : ndarray, shape (a, b)
        Observed similarity.
    p : ndarray, shape (a, b)
        One-sided p of each pair, (1 + number of permutations at least as similar) / (1 +
        n_permutations).
    p_family : ndarray, shape (a, b)
        P value of each pair against the largest similarity of any pair in each permutation, which
        corrects for all pairs.
    n_permutations : int
    """

    value: np.ndarray
    p: np.ndarray
    p_family: np.ndarray
    n_permutations: int


def permutation_rsa(
    A: RDMs, B: RDMs, *, method: str = "spearman", n_permutations: int = 1000, seed: int = 0
) -> RSAPermutation:
    """Test whether RDMs are related, by relabelling the stimuli of `A`.

    Ranks are computed once; a relabelling only moves them, and every permutation is one matrix
    product.

    Parameters
    ----------
    A, B : RDMs
        E.g. layers and ROIs; paired by stimulus id.
    method : str
        See `compare_rdms`; "kendall" is refused, because it would take too long.
    n_permutations : int, default 1000
    seed : int, default 0

    Returns
    -------
    RSAPermutation

    Raises
    ------
    ConfigError
        If the method is Kendall's.
    DataError
        If fewer than four stimuli are shared.

    References
    ----------
    Nili et al. (2014), A toolbox for representational similarity analysis, PLoS Comput Biol
    10(4):e1003553: permutation of stimulus labels.
    """
    require(
        method != "kendall",
        ConfigError,
        "a method other than 'kendall' for permutations",
        repr(method),
        "use 'rho-a'",
    )
    A, B = shared(A, B)
    n = len(A.ids)
    require(
        n >= 4,
        DataError,
        "at least 4 shared stimuli to permute",
        n,
        "use more stimuli",
    )
    value = compare_rdms(A.values, B.values, method)
    squares = np.stack([expand(v) for v in prepared(A.values, method)])
    target = prepared(B.values, method).T
    upper = np.triu_indices(n, 1)
    draw = rng(seed, "permutation_rsa")
    count, family = np.zeros(value.shape), np.zeros(value.shape)
    for _ in range(n_permutations):
        order = draw.permutation(n)
        null = squares[:, order[upper[0]], order[upper[1]]] @ target
        # the slack counts a relabelling that leaves everything as it is, whatever the rounding
        count += null >= value - 1e-12
        family += np.nanmax(null) >= value - 1e-12
    p, p_family = (count + 1) / (n_permutations + 1), (family + 1) / (n_permutations + 1)
    undefined = ~np.isfinite(value)
    p[undefined] = p_family[undefined] = np.nan
    return RSAPermutation(value, p, p_family, n_permutations)


METHODS = ("spearman", "pearson", "cosine")


def weighted_similarity(
    A: np.ndarray, B: np.ndarray, weights: np.ndarray, *, centred: bool = True
) -> np.ndarray:
    """Return the weighted Pearson correlation (or cosine) of each row of `A` with each of `B`.

    Parameters
    ----------
    A : ndarray, shape (a, m)
    B : ndarray, shape (b, m)
    weights : ndarray, shape (m,)
        Weights of at least 0; a weight of 2 has the effect of entering the value twice.
    centred : bool, default True
        Whether weighted means are removed.

    Returns
    -------
    ndarray of float64, shape (a, b)
        Similarities; NaN for a row without weighted variance.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    mean_a, mean_b = (A @ share, B @ share) if centred else (np.zeros(len(A)), np.zeros(len(B)))
    size = [np.maximum((x * x) @ share - m * m, 0) for x, m in ((A, mean_a), (B, mean_b))]
    scale = np.sqrt(np.outer(*size))
    return (A @ (B * share).T - np.outer(mean_a, mean_b)) / np.where(scale > 1e-14, scale, np.nan)


def similarity_samples(
    A: np.ndarray, B: np.ndarray, *, method: str = "spearman", n_boot: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarity of all pairs of RDMs and its bootstrap over stimuli.

    Parameters
    ----------
    A : ndarray, shape (a, m)
        Condensed RDMs, e.g. of layers of several models.
    B : ndarray, shape (b, m)
        Condensed RDMs of the same stimuli, e.g. of ROIs.
    method : {"spearman", "pearson", "cosine"}
    n_boot : int, default 1000
        Number of resamples.
    seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    value : ndarray, shape (a, b)
        See `compare_rdms`.
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
    require(
        method in METHODS,
        ConfigError,
        f"a method among {METHODS}",
        repr(method),
        nearest(method, METHODS),
    )
    value = compare_rdms(A, B, method)
    m = np.shape(A)[-1]
    n = n_stimuli_of(m)
    require(
        n >= 4,
        DataError,
        "RDMs of at least 4 stimuli",
        n,
        "use more stimuli",
    )
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

"""Uncertainty of accuracies: tests over seeds and images, verdicts, Holm, robustness lines."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, message, require_known
from bmfl_lab.files import sha256_json
from bmfl_lab.runtime import rng

_CHUNK_VALUES = 4_000_000
Key = TypeVar("Key")


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Parameters
    ----------
    value : float or None
        The estimate; None when undefined (no data).
    low, high : float or None
        Ends of the interval; None when undefined (fewer than two units).
    n : int
        Number of stimuli.
    n_seeds : int
        Number of training seeds.
    level : float
        Nominal coverage of the interval.
    method : str
        How the interval was made, in words.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_seeds: int
    level: float
    method: str


def _check_values(values: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(
            message(
                f"finite {what}",
                f"{int((~np.isfinite(values)).sum())} that are not",
                "drop or count undefined values first",
            )
        )
    return values


def _resampled_means(
    values_SN: np.ndarray, n_boot: int, random: np.random.Generator, seeds: bool
) -> np.ndarray:
    # Stimuli with the same values under every seed are exchangeable: drawing how often each pattern
    # occurs has exactly the distribution of drawing stimuli, at a cost that does not grow with
    # their number.
    patterns_SK, times = np.unique(values_SN, axis=1, return_counts=True)
    n_seeds, n = values_SN.shape
    out = np.empty(n_boot)
    step = max(1, _CHUNK_VALUES // len(times))
    for start in range(0, n_boot, step):
        count = min(step, n_boot - start)
        images = random.multinomial(n, times / n, size=count) / n
        by_seed = images @ patterns_SK.T
        if seeds:
            weight = (
                random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=count) / n_seeds
            )
            out[start : start + count] = (by_seed * weight).sum(axis=1)
        else:
            out[start : start + count] = by_seed.mean(axis=1)
    return out


def bootstrap_mean(
    values: np.ndarray,
    *,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    resample_seeds: bool = True,
) -> Interval:
    """Return the mean of per-stimulus values with a percentile bootstrap interval.

    Parameters
    ----------
    values : array-like, shape (n_stimuli,) or (n_seeds, n_stimuli)
        For instance correctness (0, 1). With two axes the stimuli are drawn jointly for all seeds,
        and seeds are drawn too if `resample_seeds`.
    n_boot : int, default 2000
        Number of resamples.
    level : float, default 0.95
        Nominal coverage of the interval.
    seed : int, default 0
        Seed of the resampling.
    resample_seeds : bool, default True
        Whether training seeds are a random factor (hierarchical bootstrap) or fixed.

    Returns
    -------
    Interval
        Undefined (None) for an empty set; without ends for one stimulus.

    Raises
    ------
    DataError
        If a value is not finite, or `level` lies outside (0, 1).

    Notes
    -----
    With few seeds the interval over seeds is too narrow, as every bootstrap of few units is; show
    all seeds beside it.

    References
    ----------
    Efron & Tibshirani 1993, "An introduction to the bootstrap", ch. 13.
    """
    values = _check_values(values, "values")
    if not 0 < level < 1 or n_boot < 1:
        raise DataError(
            message(
                "level in (0, 1) and n_boot >= 1",
                f"{level}, {n_boot}",
                "use for example level=0.95 and n_boot=2000",
            )
        )
    grid = values[None] if values.ndim == 1 else values
    if grid.ndim != 2:
        raise DataError(
            message(
                "values of shape (n_stimuli,) or (n_seeds, n_stimuli)",
                str(values.shape),
                "stack seeds on axis 0",
            )
        )
    n_seeds, n = grid.shape
    hierarchical = resample_seeds and n_seeds > 1
    method = f"{100 * level:g} % percentile bootstrap over " + (
        "seeds and stimuli" if hierarchical else "stimuli"
    )
    if not grid.size:
        return Interval(None, None, None, n, n_seeds, level, method)
    if n == 1:
        return Interval(float(grid.mean()), None, None, n, n_seeds, level, method)
    means = _resampled_means(grid, n_boot, rng(seed, "bootstrap"), hierarchical)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(grid.mean()), float(low), float(high), n, n_seeds, level, method)


def holm(
    p_values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """Return p values adjusted for a family of tests by Holm's step-down method.

    Parameters
    ----------
    p_values : array-like, shape (n_tests,)
        P values from 0 to 1.
    weights : array-like, shape (n_tests,), optional
        Share of the level that each test has while none is rejected, above zero; equal by default.

    Returns
    -------
    ndarray, shape (n_tests,)
        In the order given; reject where it is at most the level.

    Raises
    ------
    DataError
        If a value lies outside [0, 1] or is NaN.

    References
    ----------
    Holm 1979, "A simple sequentially rejective multiple test procedure"; its section 4 has the
    weights.
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(
            message("p values from 0 to 1", str(p_values), "drop undefined tests before adjusting")
        )
    w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(p / w, kind="stable")
    left = np.cumsum(w[order][::-1])[::-1]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] / w[order] * left))
    return adjusted


PRIMARY_SHARE = 0.8
"""Share of the level of a report that its primary comparison has (our choice)."""


def holm_with_primary(
    p_values: Sequence[float] | np.ndarray, primary: Sequence[bool] | np.ndarray
) -> np.ndarray:
    """Return p values of all claims of a report, adjusted together by Holm's method with weights.

    Parameters
    ----------
    p_values : array-like, shape (n_tests,)
        P values from 0 to 1.
    primary : array-like of bool, shape (n_tests,)
        True for a test of the primary comparison, which is declared beforehand.

    Returns
    -------
    ndarray, shape (n_tests,)
        Adjusted p values. The tests of the primary comparison share `PRIMARY_SHARE` of the level,
        and all others, which are exploratory, the rest. If there are only tests of one kind, they
        share all of it.

    Raises
    ------
    DataError
        If a value is one that `holm` refuses.

    Notes
    -----
    The probability of any false claim in the whole report is at most the level, whichever
    hypotheses are true. Two families with the whole level each would make one with nearly twice
    that probability.
    """
    first = np.asarray(primary, dtype=bool)
    if first.all() or not first.any():
        return holm(p_values)
    share = np.where(first, PRIMARY_SHARE, 1 - PRIMARY_SHARE)
    return holm(p_values, share / np.where(first, first.sum(), (~first).sum()))


@dataclass(frozen=True)
class RobustnessLine:
    """The line of out-of-distribution on in-distribution accuracy, on a logit scale.

    Parameters
    ----------
    slope, intercept : float
        ``logit(ood) = slope logit(id) + intercept``.
    n : int
        Number of baseline models.
    r2 : float
        Share of variance explained on the logit scale.
    """

    slope: float
    intercept: float
    n: int
    r2: float

    def predict(self, id_accuracy: np.ndarray) -> np.ndarray:
        """Return the OOD accuracy expected at an in-distribution accuracy (fractions)."""
        return 1 / (
            1
            + np.exp(
                -(self.slope * _logit(np.asarray(id_accuracy, dtype=np.float64)) + self.intercept)
            )
        )


def _logit(p: np.ndarray) -> np.ndarray:
    if not ((p > 0) & (p < 1)).all():
        raise DataError(
            message(
                "accuracies strictly between 0 and 1",
                str(p),
                "a logit of 0 or 1 is infinite: leave the model out",
            )
        )
    return np.log(p / (1 - p))


def fit_robustness_line(id_accuracy: np.ndarray, ood_accuracy: np.ndarray) -> RobustnessLine:
    """Fit the line of baselines by least squares on the logit scale.

    Parameters
    ----------
    id_accuracy, ood_accuracy : array-like, shape (n_models,)
        Accuracies (fractions) of baseline models; at least three with different in-distribution
        accuracies.

    Returns
    -------
    RobustnessLine

    Raises
    ------
    DataError
        If there are fewer than three, all in-distribution values agree, or a value is not inside
        (0, 1).

    References
    ----------
    Taori et al. 2020, "Measuring robustness to natural distribution shifts in image
    classification".
    """
    x, y = (
        _logit(np.asarray(id_accuracy, dtype=np.float64)),
        _logit(np.asarray(ood_accuracy, dtype=np.float64)),
    )
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3 or np.ptp(x) < 1e-9:
        raise DataError(
            message(
                "at least three baselines of different in-distribution accuracy",
                f"{x.shape} and {y.shape}",
                "add baselines: a line through fewer says nothing about robustness",
            )
        )
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - slope * x - intercept
    spread = ((y - y.mean()) ** 2).sum()
    r2 = 1 - (residual**2).sum() / spread if spread > 0 else 1.0
    return RobustnessLine(float(slope), float(intercept), len(x), float(r2))


def effective_robustness(line: RobustnessLine, id_accuracy: float, ood_accuracy: float) -> float:
    """Return the OOD accuracy minus that expected by the baselines' line (fractions).

    References
    ----------
    Taori et al. 2020, "Measuring robustness to natural distribution shifts in image
    classification".
    """
    return float(ood_accuracy - line.predict(id_accuracy))


PRIMARY = "all comparisons, the primary one with four fifths of the level"
EXPLORATORY = "all comparisons, the exploratory ones with a fifth of the level"
"""What the p values of a report are adjusted for, see `holm_with_primary`."""
SMALLEST_EFFECT = 0.02
"""Smallest difference of two accuracies that counts as one (fraction; our choice)."""


def verdict(
    difference: Interval,
    p_adjusted: float | None = None,
    *,
    first: str = "A",
    second: str = "B",
    where: str = "",
    level: float = 0.05,
    smallest: float = SMALLEST_EFFECT,
    p_equivalence: float | None = None,
) -> str:
    """Return a sentence that says what a difference of two accuracies shows.

    Parameters
    ----------
    difference : Interval
        Interval of the accuracy of `first` minus that of `second`, as fractions.
    p_adjusted : float, optional
        Adjusted p value; where given, a difference is only claimed if it is at most `level` too.
    first, second : str
        Names of the models.
    where : str, default ""
        Name of the image set on which they were compared ("fog 3").
    level : float, default 0.05
        Level of the family.
    smallest : float, default 0.02
        Smallest effect of interest (fraction). "No difference" is only said where the whole
        interval is closer to zero.
    p_equivalence : float, optional
        Adjusted p value of `equivalence_p`; where given, "no difference" is only said if it is at
        most `level` too.

    Returns
    -------
    str
        One sentence, with n, seeds and the interval. There is no verdict from fewer than 20
        images, and one from a single seed is about these trained models.
    """
    on = f" on {where}" if where else ""
    pair, n = f"{first} and {second}{on}", difference.n
    seeds = f"{difference.n_seeds} seeds"
    if difference.n_seeds <= 1:
        seeds = "these trained models only (1 seed)"
    if n < LEAST_IMAGES or difference.value is None:
        few = "1 image is" if n == 1 else f"{n} images are"
        return f"No verdict on {pair}: {few} too few, at least {LEAST_IMAGES} are needed."
    if difference.low is None or difference.high is None:
        return f"No verdict on {pair}: there is no interval at n = {n} images, {seeds}."
    low, high = max(difference.low, -1.0), min(difference.high, 1.0)
    p_text = "" if p_adjusted is None else f", adjusted p {_p_text(p_adjusted)}"
    basis = (
        f"at n = {n} images, {seeds} ({100 * difference.value:+.1f} points, "
        f"{100 * difference.level:g} % interval [{100 * low:+.1f}, {100 * high:+.1f}]{p_text})."
    )
    if (low > 0 or high < 0) and (p_adjusted is None or p_adjusted <= level):
        better, worse = (first, second) if difference.value > 0 else (second, first)
        points = 100 * abs(difference.value)
        return f"{better} is better than {worse}{on} by {points:.1f} points {basis}"
    alike = -smallest < low and high < smallest
    if alike and (p_equivalence is None or p_equivalence <= level):
        return f"No difference of {100 * smallest:g} points or more between {pair} {basis}"
    return (
        f"Undecided between {pair}: neither a difference nor the absence of one of "
        f"{100 * smallest:g} points was shown {basis}"
    )


def _p_text(p: float) -> str:
    """Return "= 0.012", or "< 0.0001" for anything smaller."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


METHOD = "95 % generalised confidence interval, seeds and stimuli crossed"
SUBJECTS = "95 % generalised confidence interval, {n} subjects, seeds and stimuli crossed"
ONE_SEED = "95 % interval over stimuli for this trained model"
LEAST_IMAGES = 20
"""Fewest images that get a verdict: with fewer, the level was not checked."""


@dataclass(frozen=True)
class _Crossed:
    """Mean squares and means of T tables, which the crossed test reads, each of shape (n_tables,).

    `seed`, `stimulus` and `rest` are the mean squares of seeds, stimuli and residual, each divided
    by the number of values. `positive` and `negative` are the means of the positive and of the
    negative parts of the values. With subjects, `subject` is the mean square of their means and
    `subject_rest` what it holds of images.
    """

    mean: np.ndarray
    seed: np.ndarray
    stimulus: np.ndarray
    rest: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    n_seeds: int
    n: int
    subject: np.ndarray | None = None
    subject_rest: np.ndarray | None = None
    n_subjects: int = 1


def _summarise(values: np.ndarray) -> _Crossed:
    """Return means and mean squares of tables of shape (n_tables, n_seeds, n_stimuli)."""
    n_seeds, n = values.shape[1:]
    mean = values.mean(axis=(1, 2))
    stimulus = values.mean(axis=1).var(axis=1, ddof=1) / n
    seed = rest = np.zeros(len(values))
    if n_seeds > 1:
        seed = values.mean(axis=2).var(axis=1, ddof=1) / n_seeds
        total = ((values - mean[:, None, None]) ** 2).sum(axis=(1, 2)) / (n_seeds * n)
        rest = total - (n_seeds - 1) * seed - (n - 1) * stimulus
        rest = np.maximum(0, rest) / ((n_seeds - 1) * (n - 1))
    positive = np.maximum(values, 0).mean(axis=(1, 2))
    return _Crossed(mean, seed, stimulus, rest, positive, positive - mean, n_seeds, n)


def _summarise_subjects(values: np.ndarray, shared: bool) -> _Crossed:
    """Return mean squares of tables of shape (n_tables, n_subjects, n_seeds, n_stimuli).

    Seeds are shared by the subjects, and stimuli too if `shared`. What a factor's mean square holds
    of its interaction with stimuli is known from the table averaged over the other factor.
    """
    n_subjects, n = values.shape[1], values.shape[3]
    table, by_subject = _summarise(values.mean(axis=1)), _summarise(values.mean(axis=2))
    positive = np.maximum(values, 0).mean(axis=(1, 2, 3))
    stimulus, rest, subject_rest = table.stimulus, table.rest, by_subject.rest
    if not shared:  # the stimuli of a subject are part of what makes subjects differ
        stimulus = values.mean(axis=2).var(axis=2, ddof=1).mean(axis=1) / (n * n_subjects)
        rest = np.minimum(rest, stimulus)
        subject_rest = stimulus
    return dataclasses.replace(
        table,
        stimulus=stimulus,
        rest=rest,
        positive=positive,
        negative=positive - table.mean,
        subject=by_subject.seed,
        subject_rest=subject_rest,
        n_subjects=n_subjects,
    )


@functools.lru_cache(maxsize=64)
def _mean_square(df: int, n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of a mean square divided by its expectation (chi-squared / df)."""
    from scipy.stats import chi2

    logs = np.linspace(np.log(chi2.ppf(1e-10, df)), np.log(chi2.isf(1e-10, df)), n_nodes)
    weights = chi2.pdf(np.exp(logs), df) * np.exp(logs)
    return np.exp(logs) / df, weights / weights.sum()


def _generalised_p(
    gap: np.ndarray, table: _Crossed, stimulus: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Return the generalised p value of each table's distance `gap` from its mean.

    The normal tail is averaged over what the variances may be: that of stimuli is their mean square
    `stimulus` over a chi-squared variable; seeds add their mean square over another one, less the
    mean square of the residual, times `scale`, and never less than nothing.
    """
    from scipy.special import ndtr

    nodes, weights = _mean_square(table.n - 1, 16 if table.n > 10 else 100)
    variance = stimulus[:, None] / nodes
    factors = [(table.n_seeds, table.seed, table.rest)]
    if table.subject is not None:
        factors.append((table.n_subjects, table.subject, table.subject_rest))
    for count, square, rest in factors:
        if count > 1 and square.any():
            nodes, of_factor = _mean_square(count - 1, 100 if len(factors) == 1 else 40)
            added = np.maximum(0, square[:, None] / nodes - rest[:, None]) * scale[:, None]
            variance = (variance[:, :, None] + added[:, None, :]).reshape(len(gap), -1)
            weights = np.outer(weights, of_factor).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        z = gap[:, None] / np.sqrt(variance)
    return np.where(gap > 0, 2 * ndtr(-z) @ weights, 1.0)


def _binomial_p(successes: np.ndarray, trials: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Return the two-sided exact binomial p value, also for effective (fractional) counts."""
    from scipy.special import betainc

    failures = trials - successes
    some, any_failure = successes > 1e-9, failures > 1e-9
    at_least = betainc(np.where(some, successes, 1), failures + 1, chance)
    at_most = betainc(np.where(any_failure, failures, 1), successes + 1, 1 - chance)
    tails = np.minimum(np.where(some, at_least, 1), np.where(any_failure, at_most, 1))
    return np.minimum(1, 2 * tails)


def _crossed_p(table: _Crossed, at: np.ndarray, kind: str) -> np.ndarray:
    """Return the p value of the hypothesis that a table's expected mean is `at`, (n_tables,)."""
    gap, scale = np.abs(table.mean - at), np.ones(len(table.mean))
    if kind == "real":
        return _generalised_p(gap, table, table.stimulus, scale)
    up, down = table.positive, table.negative
    spread = up * (1 - up) if kind == "correct" else up + down - table.mean**2
    # Variance of the mean over seeds of one image in units of the variance of a single value. Where
    # hardly anything varies it cannot be estimated and tends to one, as if seeds always agreed.
    over_images = table.stimulus * (table.n - 1) * table.n
    least = 1 / (table.n_seeds * table.n_subjects)
    effect = np.clip((over_images + 1) / (spread * table.n + 1), least, 1)
    n = table.n / effect
    if kind == "correct":
        variance = at * (1 - at)
        # Seeds that differ equally on a logit scale differ more where the accuracy is nearer 1/2.
        here = up * (1 - up)
        scale = np.where(here > 0, np.maximum(1, variance / np.where(here > 0, here, 1)) ** 2, 1)
        exact = _binomial_p(up * n, n, at)
    else:
        both = up + down
        b = (2 - table.mean) * at - both
        least = (np.sqrt(np.maximum(0, b**2 + 8 * down * at * (1 - at))) - b) / 4
        variance = np.maximum(0, 2 * least + at - at**2)
        possible = (both > 0) & (np.abs(at) <= both)
        chance = (1 + at / np.where(possible, both, 2)) / 2
        exact = np.where(possible, _binomial_p(up * n, both * n, chance), 0)
    return np.maximum(_generalised_p(gap, table, variance / n, scale), exact)


def _ends(table: _Crossed, level: float, kind: str) -> tuple[float, float]:
    """Return the ends of the interval: the means next to the estimate with p = 1 - level."""
    from scipy.optimize import brentq

    def excess(at: float) -> float:
        return float(_crossed_p(table, np.array([at]), kind)[0]) - (1 - level)

    mean, ends = float(table.mean[0]), []
    of_subjects = 0.0 if table.subject is None else table.subject
    width = float(np.sqrt(table.seed + table.stimulus + of_subjects)[0])
    if kind == "real" and width == 0:
        return mean, mean
    for side in (-1, 1):
        limit = {"correct": max(side, 0), "difference": side}.get(kind)
        if limit is None:
            while excess(mean + side * width) > 0:
                width *= 2
            limit = mean + side * width
        inside = mean == limit or excess(limit) >= 0
        ends.append(float(limit) if inside else brentq(excess, mean, limit, xtol=1e-12))
    return ends[0], ends[1]


KINDS = {"real": (-np.inf, np.inf), "correct": (0.0, 1.0), "difference": (-1.0, 1.0)}
"""Kinds of values of `crossed_mean`, and the range of each."""


def crossed_mean(
    values: np.ndarray, *, level: float = 0.95, kind: str = "real", shared_stimuli: bool = True
) -> tuple[Interval, float]:
    """Test a mean over seeds, stimuli and subjects against zero, all taken as random samples.

    Parameters
    ----------
    values : array-like, shape (n_seeds, n_stimuli) or (n_subjects, n_seeds, n_stimuli)
        For instance differences in correctness between two models, the same stimuli under every
        seed, and the same seeds for every subject.
    level : float, default 0.95
        Nominal coverage of the interval.
    kind : {"real", "correct", "difference"}, default "real"
        "correct" for correctness (0 to 1), "difference" for the difference of two (-1 to 1): their
        variance follows from their mean, the interval stays in the range, and few errors do not
        make it too narrow. "real" for any other value.
    shared_stimuli : bool, default True
        Whether all subjects have the same stimuli (crossed) or each has its own (nested).

    Returns
    -------
    interval : Interval
        Interval of the mean; its ends are None for fewer than two stimuli. It excludes zero if p is
        below 1 - level.
    p : float
        Two-sided p value; 1.0 if all values are equal.

    Raises
    ------
    DataError
        If a value is not finite or outside the range of its kind, or the shape is another one.
    ConfigError
        If the kind is unknown.

    Notes
    -----
    The variance of the mean is the variance over seeds divided by their number, plus the variance
    over stimuli divided by theirs. Few seeds estimate the former badly, so p is averaged over what
    it may be given the mean squares (generalised p value). This keeps the level for every ratio of
    the two variances, which the degrees of freedom of Satterthwaite do not with few seeds; where
    seeds dominate it is the t test over seeds, and where stimuli dominate it is cautious with two
    or three seeds.

    For correctness the variance over stimuli is that under the hypothesis (Wilson 1927; Tango 1998
    for differences), times an effect of the design, because an image that is wrong under one seed
    is often wrong under others. The p value is never below the exact binomial one (Clopper-Pearson;
    McNemar for differences) of as many independent images.

    With one seed the test is about this trained model and says nothing about other seeds.
    For differences p is then at least that of the exact McNemar test, and for real values it is the
    t test over stimuli.

    Subjects are a third factor in the same way. One subject says nothing about other subjects.

    References
    ----------
    Tsui & Weerahandi 1989 (generalised p values); Clark 1973, "The language-as-fixed-effect
    fallacy"; Tango 1998 (paired proportions); Korn & Graubard 1998 (exact intervals with an
    effective sample size).
    """
    d = np.asarray(values, dtype=np.float64)
    if d.ndim not in (2, 3):
        raise DataError(
            message(
                "values of shape (n_seeds, n_stimuli) or (n_subjects, n_seeds, n_stimuli)",
                f"shape {d.shape}",
                "stack seeds on axis 0, and subjects before them",
            )
        )
    _check_values(d, "values")
    require_known(kind, KINDS, ConfigError, f"a kind among {tuple(KINDS)}")
    low, high = KINDS[kind]
    if d.size and (d.min() < low or d.max() > high):
        raise DataError(
            message(
                f"values from {low:g} to {high:g} of kind {kind!r}",
                f"{d.min():g} to {d.max():g}",
                'use kind="real" for other values',
            )
        )
    several = d.ndim == 3 and len(d) > 1
    if d.ndim == 3 and len(d) == 1:
        d = d[0]
    n_seeds, n = d.shape[-2:]
    method = METHOD if n_seeds > 1 else ONE_SEED
    if several:
        method = SUBJECTS.format(n=len(d)) + ("" if n_seeds > 1 else ", 1 seed")
    method = method.replace("95", f"{100 * level:g}")
    if n < 2 or not d.size:
        mean = float(d.mean()) if d.size else None
        return Interval(mean, None, None, n, n_seeds, level, method), 1.0
    table = _summarise_subjects(d[None], shared_stimuli) if several else _summarise(d[None])
    p = float(_crossed_p(table, np.zeros(1), kind)[0])
    ends = _ends(table, level, kind)
    return Interval(float(d.mean()), *ends, n, n_seeds, level, method), p


def claimed(differences: Mapping[Key, np.ndarray], *, level: float = 0.05) -> set[Key]:
    """Return the keys of the mean differences that differ from zero, all tested together.

    Parameters
    ----------
    differences : mapping of key to array-like, each of shape (n_seeds, n_stimuli)
        Differences in correctness of two models, -1 to 1.
    level : float, default 0.05
        Probability of any false claim.

    Returns
    -------
    set of keys
        Those whose p value of `crossed_mean`, adjusted by `holm` over all keys, is at most `level`.

    Raises
    ------
    DataError
        If a value is one that `crossed_mean` refuses.
    """
    p = [crossed_mean(d, kind="difference")[1] for d in differences.values()]
    return {key for key, adjusted in zip(differences, holm(p)) if adjusted <= level}


def mean_over_subjects(
    values: np.ndarray, errors: np.ndarray, n: int, *, level: float = 0.95
) -> tuple[Interval, float]:
    """Test the mean of one difference per subject against zero, from results of single subjects.

    Parameters
    ----------
    values : array-like, shape (n_subjects,)
        The difference of each subject; at least two.
    errors : array-like, shape (n_subjects,)
        Standard error of each, over seeds and stimuli.
    n : int
        Number of stimuli.
    level : float, default 0.95
        Nominal coverage of the interval.

    Returns
    -------
    interval : Interval
    p : float
        Two-sided p value.

    Notes
    -----
    For results whose single trials are gone. Subjects may share stimuli and seeds, so that the
    error within subjects is taken to be the same for all and does not shrink with their number.
    This is cautious; `crossed_mean` with three axes has more power.
    """
    v, e = np.asarray(values, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    parts = (v.mean(), 0.0, np.mean(e**2), 0.0, 0.0, 0.0)
    subject = np.array([v.var(ddof=1) / len(v)])
    one = [np.array([part]) for part in parts]
    table = _Crossed(*one, 1, max(n, 2), subject, np.zeros(1), len(v))
    method = SUBJECTS.format(n=len(v)).replace("95", f"{100 * level:g}")
    ends = _ends(table, level, "real")
    p = float(_crossed_p(table, np.zeros(1), "real")[0])
    return Interval(float(v.mean()), *ends, n, 1, level, method), p


def accuracy_interval(correct: np.ndarray, *, level: float = 0.95) -> Interval:
    """Return an accuracy with its interval over seeds and images.

    Parameters
    ----------
    correct : array-like, shape (n_images,) or (n_seeds, n_images)
        1 for a correct image and 0 for a wrong one, or the share of its variants that are correct.
    level : float, default 0.95
        Nominal coverage of the interval.

    Returns
    -------
    Interval
        Interval of `crossed_mean`; for one seed it is nearly the exact binomial interval.

    Raises
    ------
    DataError
        If a value is one that `crossed_mean` refuses.
    """
    return crossed_mean(np.atleast_2d(np.asarray(correct, float)), level=level, kind="correct")[0]


def equivalence_p(
    values: np.ndarray,
    smallest: float = SMALLEST_EFFECT,
    *,
    kind: str = "difference",
    shared_stimuli: bool = True,
) -> float:
    """Test whether a mean is closer to zero than the smallest effect of interest.

    Parameters
    ----------
    values : array-like, shape (n_seeds, n_stimuli) or (n_subjects, n_seeds, n_stimuli)
        Same as in `crossed_mean`.
    smallest : float, default 0.02
        Smallest effect of interest, above zero.
    kind : {"real", "correct", "difference"}, default "difference"
        Same as in `crossed_mean`.
    shared_stimuli : bool, default True
        Same as in `crossed_mean`.

    Returns
    -------
    float
        The larger of the two-sided p values at ``-smallest`` and ``smallest``; 1.0 where the mean
        itself is that large. It is at most 1 - level where the whole interval of `crossed_mean`
        lies between the two.

    Notes
    -----
    Two-sided tests make this stricter than the usual two one-sided tests (Schuirmann 1987), so that
    the words agree with the interval that is printed.
    """
    d = np.asarray(values, dtype=np.float64)
    if d.shape[-1] < 2 or abs(d.mean()) >= smallest:
        return 1.0
    if d.ndim == 3 and len(d) == 1:
        d = d[0]
    table = _summarise(d[None]) if d.ndim == 2 else _summarise_subjects(d[None], shared_stimuli)
    return max(float(_crossed_p(table, np.array([e]), kind)[0]) for e in (-smallest, smallest))


def crossed_bootstrap(
    values: np.ndarray, samples: np.ndarray, n_stimuli: int, *, level: float = 0.95
) -> tuple[Interval, float]:
    """Test a statistic's mean over seeds, with seeds and bootstrapped stimuli as samples.

    Parameters
    ----------
    values : array-like, shape (n_seeds,)
        The statistic of each seed, e.g. the difference of two models' RSA.
    samples : array-like, shape (n_boot, n_seeds)
        The statistic on resampled stimuli; all seeds share each resample.
    n_stimuli : int
        Number of stimuli that the statistic is computed from.
    level : float, default 0.95
        Nominal coverage of the interval.

    Returns
    -------
    interval : Interval
    p : float
        Two-sided p value; 1.0 if all values are equal.

    Raises
    ------
    DataError
        If a value is not finite or shapes disagree.

    Notes
    -----
    The method is that of `crossed_mean`, with the variances of the bootstrap in place of the mean
    squares over stimuli (our choice). Drawing three seeds with replacement instead would
    underestimate their variance by a third, and would ignore how uncertain a variance estimated
    from three values is.
    """
    d, drawn = np.asarray(values, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if d.ndim != 1 or drawn.shape[1:] != d.shape:
        raise DataError(
            message(
                "values (n_seeds,) with samples (n_boot, n_seeds)",
                f"shapes {d.shape} and {drawn.shape}",
                "resample the stimuli for every seed alike",
            )
        )
    _check_values(d, "values")
    _check_values(drawn, "resampled values")
    n_seeds, over_seeds = len(d), drawn.mean(axis=1)
    parts, method = [0.0, over_seeds.var(ddof=1), 0.0], ONE_SEED
    if n_seeds > 1:
        rest = (drawn - over_seeds[:, None]).var(axis=0, ddof=1).sum() / (n_seeds * (n_seeds - 1))
        parts, method = [d.var(ddof=1) / n_seeds, parts[1], rest], METHOD
    one = [np.array([v], dtype=np.float64) for v in (d.mean(), *parts, 0.0, 0.0)]
    table = _Crossed(*one, n_seeds, max(n_stimuli, 2))
    method = f"{method.replace('95', f'{100 * level:g}')}, bootstrap over stimuli"
    interval = Interval(
        float(d.mean()), *_ends(table, level, "real"), n_stimuli, n_seeds, level, method
    )
    return interval, float(_crossed_p(table, np.zeros(1), "real")[0])


def seed_mean(values: np.ndarray, n: int, *, level: float = 0.95) -> Interval:
    """Return the mean of one value per seed with its t interval over seeds.

    Parameters
    ----------
    values : array-like, shape (n_seeds,)
        Finite values.
    n : int
        Number of stimuli per value; they are not resampled.
    level : float, default 0.95
        Nominal coverage of the interval.

    Raises
    ------
    DataError
        If there is no value, or one is not finite.
    """
    from scipy.stats import t

    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not len(v) or not np.isfinite(v).all():
        raise DataError(
            message(
                "finite values of shape (n_seeds,)",
                f"shape {v.shape}",
                "give one finite value per seed",
            )
        )
    method = f"{100 * level:g} % t interval over seeds"
    if len(v) < 2:
        return Interval(float(v[0]), None, None, n, 1, level, method)
    half = float(t.ppf((1 + level) / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
    return Interval(
        float(v.mean()), float(v.mean()) - half, float(v.mean()) + half, n, len(v), level, method
    )


def image_weights(ids: Sequence[str] | np.ndarray, n_boot: int, seed: int = 0) -> np.ndarray:
    """Return image weights per resample, float32 (n_boot, n_stimuli); rows sum to 1.

    Parameters
    ----------
    ids : sequence of str, shape (n_stimuli,)
        The same ids in the same order give the same resamples: sets of the same images are
        resampled jointly, other sets independently.
    n_boot : int
        Number of resamples.
    seed : int, default 0
        Seed of the draws.
    """
    return _weights(sha256_json([str(i) for i in ids]), len(ids), n_boot, seed)


@functools.lru_cache(maxsize=4)
def _weights(key: str, n: int, n_boot: int, seed: int) -> np.ndarray:
    if not n:
        return np.zeros((n_boot, 0), np.float32)
    counts = rng(seed, "bootstrap", "images", key).multinomial(n, np.full(n, 1 / n), size=n_boot)
    found = (counts / n).astype(np.float32)
    found.flags.writeable = False
    return found


def seed_weights(n_seeds: int, n_boot: int, seed: int = 0) -> np.ndarray:
    """Return the weight of each training seed in each resample, float64 (n_boot, n_seeds)."""
    return (
        rng(seed, "bootstrap", "seeds").multinomial(
            n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_boot
        )
        / n_seeds
    )


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float | None, float | None]:
    """Return the percentile interval of resampled values; None twice if under half are defined."""
    values = np.asarray(values, dtype=np.float64)
    known = values[np.isfinite(values)]
    if len(known) < 2 or 2 * len(known) < len(values):
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

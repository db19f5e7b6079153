"""Uncertainty of accuracies: bootstraps, crossed t tests, McNemar, Holm, effective robustness."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.errors import DataError, message
from bmfl_lab.files import sha256_json
from bmfl_lab.runtime import rng

_CHUNK_VALUES = 4_000_000


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
        Stimuli behind it.
    n_seeds : int
        Training seeds behind it.
    level : float
        Coverage aimed at.
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
        if seeds and n_seeds > 1:
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
        Resamples.
    level : float, default 0.95
        Coverage aimed at.
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
            message("level in (0, 1) and n_boot >= 1", f"{level}, {n_boot}", "use level=0.95")
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


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    *,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    resample_seeds: bool = True,
) -> Interval:
    """Return the mean of ``a - b`` on the same stimuli with a percentile bootstrap interval.

    Both models are resampled jointly: the same stimuli (and the same seeds, where seed i of one is
    paired with seed i of the other) enter both means.

    Parameters
    ----------
    a, b : array-like, shape (n_stimuli,) or (n_seeds, n_stimuli)
        Values of two models, stimuli in one order.
    n_boot, level, seed, resample_seeds
        See `bootstrap_mean`.

    Raises
    ------
    DataError
        If shapes differ; see also `bootstrap_mean`.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError(
            message("two arrays of one shape", f"{a.shape} and {b.shape}", "pair stimuli by id")
        )
    return bootstrap_mean(
        a - b, n_boot=n_boot, level=level, seed=seed, resample_seeds=resample_seeds
    )


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[float, int, int]:
    """Test whether two models err on equally many stimuli (exact McNemar test, two-sided).

    Parameters
    ----------
    correct_a, correct_b : array-like of bool, shape (n_stimuli,)
        Whether each model was right.

    Returns
    -------
    p : float
        1.0 when they never disagree.
    only_a, only_b : int
        Stimuli that only one of them got right.

    Raises
    ------
    DataError
        If shapes differ.

    References
    ----------
    McNemar 1947; exact form: binomial test of the discordant pairs.
    """
    from scipy.stats import binom

    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(
            message(
                "two boolean arrays of one length", f"{a.shape} and {b.shape}", "pair them by image"
            )
        )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    return float(min(1.0, p)), only_a, only_b


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p values adjusted for a family of tests by Holm's step-down method.

    Parameters
    ----------
    p_values : array-like, shape (n_tests,)
        From 0 to 1.

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
    Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(
            message("p values from 0 to 1", str(p_values), "drop undefined tests before adjusting")
        )
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


@dataclass(frozen=True)
class RobustnessLine:
    """The line of out-of-distribution on in-distribution accuracy, on a logit scale.

    Parameters
    ----------
    slope, intercept : float
        ``logit(ood) = slope logit(id) + intercept``.
    n : int
        Baseline models behind it.
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


def verdict(
    difference: Interval,
    p_adjusted: float | None = None,
    *,
    first: str = "A",
    second: str = "B",
    where: str = "",
    level: float = 0.05,
) -> str:
    """Say in plain words what a difference of two accuracies shows.

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

    Returns
    -------
    str
        One sentence, with n, seeds and the interval.
    """
    on = f" on {where}" if where else ""
    over = f"n = {difference.n} images" + (
        f", {difference.n_seeds} seeds" if difference.n_seeds > 1 else ""
    )
    if difference.value is None or difference.low is None or difference.high is None:
        return f"Undefined: too few images to compare {first} with {second}{on} ({over})."
    value, low, high = (100 * v for v in (difference.value, difference.low, difference.high))
    shown = f"{value:+.1f} points, {100 * difference.level:g} % interval [{low:+.1f}, {high:+.1f}]"
    p_text = "" if p_adjusted is None else f", adjusted p = {p_adjusted:.2g}"
    clear = (low > 0 or high < 0) and (p_adjusted is None or p_adjusted <= level)
    if not clear:
        bound = max(abs(low), abs(high))
        if bound >= 100:  # a t interval over few seeds may leave the range of accuracies
            return (
                f"Undecided: no size of a difference between {first} and {second}{on} "
                f"is excluded at {over} ({shown}{p_text})."
            )
        return (
            f"No difference larger than {bound:.1f} points between {first} and {second}{on} "
            f"at {over} ({shown}{p_text})."
        )
    better, worse = (first, second) if value > 0 else (second, first)
    return (
        f"{better} is better than {worse}{on} by {abs(value):.1f} points "
        f"at {over} ({shown}{p_text})."
    )


METHOD = "95 % t interval, seeds and stimuli crossed"


def crossed_mean(values: np.ndarray, *, level: float = 0.95) -> tuple[Interval, float]:
    """Test a mean over seeds and stimuli against zero, both taken as random samples.

    Parameters
    ----------
    values : array-like, shape (n_seeds, n_stimuli)
        For instance differences in correctness between two models, the same stimuli under every
        seed.
    level : float, default 0.95
        Coverage aimed at.

    Returns
    -------
    interval : Interval
        Interval of the mean; without ends for fewer than two stimuli.
    p : float
        Two-sided; 1.0 where nothing varies.

    Raises
    ------
    DataError
        If a value is not finite or the shape is another one.

    Notes
    -----
    With mean squares of seeds, stimuli and residual, the variance of the mean is ``(MS_seed +
    MS_stimulus - MS_residual) / (n_seeds n_stimuli)``, its degrees of freedom are Satterthwaite's.
    It is never taken below what seeds or stimuli alone give (our choice: slightly too wide rather
    than too narrow). With one seed this is the t test over stimuli, and says nothing about other
    seeds. Unlike a bootstrap of a handful of seeds it keeps its level with few seeds.

    References
    ----------
    Clark 1973, "The language-as-fixed-effect fallacy"; Satterthwaite 1946.
    """
    d = np.asarray(values, dtype=np.float64)
    if d.ndim != 2 or not np.isfinite(d).all():
        raise DataError(
            message(
                "finite values of shape (n_seeds, n_stimuli)",
                f"shape {d.shape}",
                "stack seeds on axis 0",
            )
        )
    n_seeds, n = d.shape
    method = (
        METHOD.replace("95", f"{100 * level:g}")
        if n_seeds > 1
        else f"{100 * level:g} % t interval over stimuli"
    )
    if n < 2 or not n_seeds:
        return Interval(
            float(d.mean()) if d.size else None, None, None, n, n_seeds, level, method
        ), 1.0
    mean, by_seed, by_stimulus = d.mean(), d.mean(1), d.mean(0)
    squares = [0.0, n_seeds * by_stimulus.var(ddof=1), 0.0]
    if n_seeds > 1:
        squares[0] = n * by_seed.var(ddof=1)
        squares[2] = ((d - by_seed[:, None] - by_stimulus + mean) ** 2).sum() / (
            (n_seeds - 1) * (n - 1)
        )
    return _t_interval(float(mean), np.asarray(squares) / d.size, n_seeds, n, level, method)


def crossed_bootstrap(
    values: np.ndarray, samples: np.ndarray, n_stimuli: int, *, level: float = 0.95
) -> tuple[Interval, float]:
    """Test a statistic's mean over seeds, with seeds and bootstrapped stimuli as samples.

    Parameters
    ----------
    values : array-like, shape (n_seeds,)
        The statistic under every seed, e.g. the difference of two models' RSA.
    samples : array-like, shape (n_boot, n_seeds)
        The same on resampled stimuli; one resample serves every seed.
    n_stimuli : int
        Number of stimuli behind the statistic.
    level : float, default 0.95
        Coverage aimed at.

    Returns
    -------
    interval : Interval
    p : float
        Two-sided; 1.0 where nothing varies.

    Raises
    ------
    DataError
        If a value is not finite or shapes disagree.

    Notes
    -----
    The method is that of `crossed_mean`, with the variances of the bootstrap in place of the mean
    squares over stimuli (our choice). Drawing three seeds with replacement instead would give two
    thirds of their variance and no account of how uncertain a variance estimated from three values
    is.
    """
    d, drawn = np.asarray(values, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if (
        d.ndim != 1
        or drawn.shape[1:] != d.shape
        or not (np.isfinite(d).all() and np.isfinite(drawn).all())
    ):
        raise DataError(
            message(
                "finite values (n_seeds,) with samples (n_boot, n_seeds)",
                f"shapes {d.shape} and {drawn.shape}",
                "resample the stimuli for every seed alike",
            )
        )
    n_seeds, over_seeds = len(d), drawn.mean(axis=1)
    parts = np.array([0.0, over_seeds.var(ddof=1), 0.0])
    method = "95 % t interval, bootstrap over stimuli"
    if n_seeds > 1:
        rest = (drawn - over_seeds[:, None]).var(axis=0, ddof=1).sum() / (n_seeds * (n_seeds - 1))
        parts, method = (
            np.array([d.var(ddof=1) / n_seeds, parts[1], rest]),
            METHOD + ", bootstrap over stimuli",
        )
    return _t_interval(
        float(d.mean()), parts, n_seeds, n_stimuli, level, method.replace("95", f"{100 * level:g}")
    )


def _t_interval(
    mean: float, parts: np.ndarray, n_seeds: int, n: int, level: float, method: str
) -> tuple[Interval, float]:
    """Combine the variances of the mean over seeds, stimuli and their interaction."""
    from scipy.stats import t

    freedom = np.array(
        [max(n_seeds - 1, 1), n - 1, max((n_seeds - 1) * (n - 1), 1)], dtype=np.float64
    )
    total = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    error = float(np.sqrt(total))
    if error == 0:
        return Interval(mean, mean, mean, n, n_seeds, level, method), float(mean == 0)
    df = total**2 / float((parts**2 / freedom).sum())
    half = float(t.ppf((1 + level) / 2, df)) * error
    return Interval(mean, mean - half, mean + half, n, n_seeds, level, method), float(
        2 * t.sf(abs(mean) / error, df)
    )


def seed_mean(values: np.ndarray, n: int, *, level: float = 0.95) -> Interval:
    """Return the mean of one value per seed with its t interval over seeds.

    Parameters
    ----------
    values : array-like, shape (n_seeds,)
        Finite.
    n : int
        Stimuli behind each value; they are not resampled.
    level : float, default 0.95
        Coverage aimed at.

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
                "finite values of shape (n_seeds,)", f"shape {v.shape}", "give one value per seed"
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
        Resamples.
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
    """Return how much each training seed weighs in each resample, float64 (n_boot, n_seeds)."""
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

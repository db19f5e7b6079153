"""Mean differences over seeds and stimuli when both are samples: a t test for two crossed random factors."""

from __future__ import annotations

import numpy as np

from bmfl_lab.errors import DataError, message
from bmfl_lab.metrics.statistics import Interval

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
        Of the mean; without ends for fewer than two stimuli.
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
    """Test the mean over seeds of a statistic that is no mean over stimuli, both taken as random samples.

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
    As `crossed_mean`, with the bootstrap's variances in the place of mean squares over stimuli (our
    choice). Drawing three seeds with replacement instead would give two thirds of their variance
    and no account of how badly three values tell it.
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
    """Combine the variances of the mean that seeds, stimuli and their interaction show (see `crossed_mean`)."""
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
    """Return the mean of one value a seed with its t interval over seeds.

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
                "finite values of shape (n_seeds,)", f"shape {v.shape}", "give one value a seed"
            )
        )
    method = f"{100 * level:g} % t interval over seeds"
    if len(v) < 2:
        return Interval(float(v[0]), None, None, n, 1, level, method)
    half = float(t.ppf((1 + level) / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
    return Interval(
        float(v.mean()), float(v.mean()) - half, float(v.mean()) + half, n, len(v), level, method
    )

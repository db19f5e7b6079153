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
        For instance differences in correctness between two models, the same stimuli under every seed.
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
    With mean squares of seeds, stimuli and residual, the variance of the mean is
    ``(MS_seed + MS_stimulus - MS_residual) / (n_seeds n_stimuli)``, its degrees of freedom are Satterthwaite's. It is
    never taken below what seeds or stimuli alone give (our choice: slightly too wide rather than too narrow). With one
    seed this is the t test over stimuli, and says nothing about other seeds. Unlike a bootstrap of a handful of
    seeds it keeps its level with few seeds.

    References
    ----------
    Clark 1973, "The language-as-fixed-effect fallacy"; Satterthwaite 1946.
    """
    from scipy.stats import t

    d = np.asarray(values, dtype=np.float64)
    if d.ndim != 2 or not np.isfinite(d).all():
        raise DataError(
            message("finite values of shape (n_seeds, n_stimuli)", f"shape {d.shape}", "stack seeds on axis 0")
        )
    n_seeds, n = d.shape
    method = METHOD.replace("95", f"{100 * level:g}") if n_seeds > 1 else f"{100 * level:g} % t interval over stimuli"
    if n < 2 or not n_seeds:
        return Interval(float(d.mean()) if d.size else None, None, None, n, n_seeds, level, method), 1.0
    mean, by_seed, by_stimulus = d.mean(), d.mean(1), d.mean(0)
    ms_stimulus, ms_seed, ms_rest, freedom = n_seeds * by_stimulus.var(ddof=1), 0.0, 0.0, n - 1.0
    total = ms_stimulus
    if n_seeds > 1:
        ms_seed = n * by_seed.var(ddof=1)
        ms_rest = ((d - by_seed[:, None] - by_stimulus + mean) ** 2).sum() / ((n_seeds - 1) * (n - 1))
        total = max(ms_seed + ms_stimulus - ms_rest, ms_seed, ms_stimulus)
        below = ms_seed**2 / (n_seeds - 1) + ms_stimulus**2 / (n - 1) + ms_rest**2 / ((n_seeds - 1) * (n - 1))
        freedom = total**2 / below if below > 0 else 1.0
    error = float(np.sqrt(total / d.size))
    if error == 0:
        return Interval(float(mean), float(mean), float(mean), n, n_seeds, level, method), float(mean == 0)
    half = float(t.ppf((1 + level) / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom))
    return Interval(float(mean), float(mean) - half, float(mean) + half, n, n_seeds, level, method), p

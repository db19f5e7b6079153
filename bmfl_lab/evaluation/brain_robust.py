"""Relation of brain-likeness and robustness over the models of any number of records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from bmfl_lab.errors import DataError, require
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng


@dataclass(frozen=True)
class BrainRobust:
    """Brain-likeness and robustness of models, and their correlation.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per model and run, with columns ``model``, ``run``, ``brain``, ``brain_low``,
        ``brain_high``, ``robust``, ``robust_low``, ``robust_high``, and ``n_brain`` and
        ``n_robust``, the numbers of rows behind the values. Missing values are NaN; models that
        lack one side come last.
    r, low, high : float or None
        Spearman correlation over models that have both, with a 95 % bootstrap interval over models;
        None with fewer than 4 models.
    n : int
        Number of models that have both.
    verdict : str
        Conclusion in words.
    """

    table: pd.DataFrame
    r: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str


def _side(
    rows: pd.DataFrame, names: Sequence[str], under_shift: bool
) -> tuple[float, float, float, int]:
    """Return mean, low, high and number of rows of the first metric of `names` that a model has."""
    for name in names:
        part = rows[(rows["name"] == name) & rows["value"].notna()]
        part = part[part["shift"] != ""] if under_shift else part
        over = part[part["seed"].isna()]
        part = over if len(over) else part  # a row over seeds already includes the single seeds
        if len(part):
            ends = part[["ci_low", "ci_high"]].iloc[0] if len(part) == 1 else (np.nan, np.nan)
            low, high = (np.nan if e is None else float(e) for e in ends)
            return float(part["value"].mean()), low, high, len(part)
    return np.nan, np.nan, np.nan, 0


def brain_and_robust(
    rows: Iterable[MetricRow] | pd.DataFrame,
    *,
    brain: str | Sequence[str],
    robust: str | Sequence[str],
    n_boot: int = 2000,
    seed: int = 0,
) -> BrainRobust:
    """Compare the brain-likeness of models with their out-of-distribution results.

    Parameters
    ----------
    rows : iterable of MetricRow, or pandas.DataFrame
        Rows of one record, or of several records with a column ``run``, as
        `bmfl_lab.runs.collect.collect_records` returns them. A model is identified by its name and
        its run.
    brain : str or sequence of str
        Name of the metric of brain-likeness; of several names, the first that a model has is used.
        The value is the mean over ROIs and subjects.
    robust : str or sequence of str
        Name or names of the metric under shift (rows with a `shift`). The value is the mean over
        shifts and severities.
    n_boot : int, default 2000
        Number of bootstrap resamples of the models.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    BrainRobust
        The interval of a model is that of its record if the value is a single row; means over
        several rows have none.

    Raises
    ------
    DataError
        If no model has both metrics.

    Notes
    -----
    Models of one family are not independent, so that the interval of the correlation underestimates
    the uncertainty.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([asdict(r) for r in rows])
    frame = frame if "run" in frame else frame.assign(run="this run")
    names = [[n] if isinstance(n, str) else list(n) for n in (brain, robust)]
    frame = frame[frame["name"].isin(names[0] + names[1])]
    found = []
    for (run, model), part in frame.groupby(["run", "model"], sort=False):
        row = {"model": model, "run": run}
        for key, metric in zip(("brain", "robust"), names):
            keys = (key, f"{key}_low", f"{key}_high", f"n_{key}")
            row |= dict(zip(keys, _side(part, metric, key == "robust")))
        found.append(row)
    table = pd.DataFrame([r for r in found if r["n_brain"] or r["n_robust"]])
    both = table[(table["n_brain"] > 0) & (table["n_robust"] > 0)] if len(table) else table
    require(
        len(both),
        DataError,
        f"a model with both {brain!r} and {robust!r} under shift",
        "none",
        "evaluate the same models with both metrics",
    )
    table = table.sort_values(
        "brain", ascending=False, ignore_index=True, na_position="last", kind="stable"
    )
    lacks = (table["n_robust"] == 0) | (table["n_brain"] == 0)
    table = pd.concat([table[~lacks], table[lacks]], ignore_index=True)
    return BrainRobust(
        table, *_correlation(both["brain"].to_numpy(), both["robust"].to_numpy(), n_boot, seed)
    )


def _correlation(
    x: np.ndarray, y: np.ndarray, n_boot: int, seed: int
) -> tuple[float | None, float | None, float | None, int, str]:
    n = len(x)
    if n < 4:
        return None, None, None, n, f"{n} models: too few for a correlation"
    draws = rng(seed, "brain and robust").integers(n, size=(n_boot, n))
    low, high = np.nanquantile(_spearman(x[draws], y[draws]), [0.025, 0.975])
    verdict = "no relation shown"
    if low > 0 or high < 0:
        verdict = f"more brain-like models are {'more' if low > 0 else 'less'} robust"
    return float(_spearman(x, y)), float(low), float(high), n, verdict


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's rho along the last axis; NaN where one side is constant."""
    x, y = rankdata(x, axis=-1), rankdata(y, axis=-1)
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    size = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return (x * y).sum(axis=-1) / np.where(size > 0, size, np.nan)

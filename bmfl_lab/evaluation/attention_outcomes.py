"""Outcomes of the checks of attention maps: when a map passes, in words, tables and metric rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from bmfl_lab.errors import ConfigError, require, require_known
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.records import MetricRow

SIMILAR = 0.5
"""Mean rank correlation below which two sets of maps count as different; our choice."""


@dataclass(frozen=True)
class Check:
    """Describe what one check measures, and when a map passes it."""

    measure: str
    above: bool
    reference: float
    passed: str
    failed: str


CHECKS = {
    "weights": Check(
        "Spearman to the map with randomised weights",
        False,
        SIMILAR,
        "changes when all weights are randomised",
        "hardly changes when all weights are randomised",
    ),
    "labels": Check(
        "Spearman to the map after training on shuffled answers",
        False,
        SIMILAR,
        "changes when training answers are shuffled",
        "looks the same after training on shuffled answers",
    ),
    "deletion": Check(
        "area lost beyond random deletion",
        True,
        0.0,
        "marks patches whose loss hurts more than that of random ones",
        "marks patches whose loss hurts no more than that of random ones",
    ),
    "insertion": Check(
        "area gained beyond random insertion",
        True,
        0.0,
        "marks patches that suffice earlier than random ones",
        "marks patches that suffice no earlier than random ones",
    ),
    "planted region": Check(
        "share of the mass inside",
        True,
        float("nan"),
        "holds more mass in the planted region than its area",
        "holds no more mass in the planted region than its area",
    ),
    "completeness": Check(
        "relative gap of the sum",
        False,
        0.1,
        "adds up to the change of the score",
        "does not add up to the change of the score: take more steps",
    ),
}
"""Checks by name. A map passes if the whole 95 % interval is on the right side of the reference."""


@dataclass(frozen=True)
class CheckRow:
    """Hold the outcome of one check of one map.

    Parameters
    ----------
    map, check, measure : str
        Name of the map, name of the check, and what was measured.
    value, low, high : float or None
        Mean over images and its 95 % bootstrap interval.
    reference : float
        Value that the interval is compared with.
    passes : bool or None
        None if the check is undefined.
    n : int
        Number of images with a defined value.
    """

    map: str
    check: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    reference: float
    passes: bool | None
    n: int


def check_row(
    name: str, check: str, values: np.ndarray, reference: float | None = None, *, seed: int = 0
) -> CheckRow:
    """Decide from one value per image whether a map passes a check.

    Parameters
    ----------
    name : str
        Name of the map.
    check : str
        One of `CHECKS`.
    values : ndarray, shape (n_stimuli,)
        Measured values, NaN where undefined.
    reference : float, optional
        Replaces the reference of the check; needed for "planted region".
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    CheckRow

    Raises
    ------
    ConfigError
        If the check is unknown, or its reference is missing.
    """
    require_known(check, CHECKS, ConfigError, f"a check among {tuple(CHECKS)}")
    reference = CHECKS[check].reference if reference is None else float(reference)
    require(
        np.isfinite(reference),
        ConfigError,
        f"a reference for the check {check!r}",
        "none",
        "pass reference=area, the share of the area that region_share returns",
    )
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    mean = bootstrap_mean(known, n_boot=1000, seed=seed)
    return _decided(name, check, (mean.value, mean.low, mean.high), reference, len(known))


def _decided(
    name: str,
    check: str,
    measured: tuple[float | None, float | None, float | None],
    reference: float,
    n: int,
) -> CheckRow:
    """Return the outcome for a value and the ends of its interval."""
    rule, (value, low, high) = CHECKS[check], measured
    passes = None
    if low is not None and high is not None:
        passes = bool(low > reference if rule.above else high < reference)
    return CheckRow(name, check, rule.measure, value, low, high, reference, passes, n)


def rows_of_checks(rows: pd.DataFrame) -> list[CheckRow]:
    """Return the outcomes behind metric rows that `check_metrics` wrote.

    Parameters
    ----------
    rows : DataFrame
        Metric rows; others than those of checks are left out, and so is "planted region", whose
        reference belongs to one study.
    """
    names = {_metric(c): c for c, rule in CHECKS.items() if np.isfinite(rule.reference)}
    kept = rows[rows["name"].isin(names)].rename(columns={"name": "check"})
    numbers = kept[["value", "ci_low", "ci_high"]].astype(object).where(kept["value"].notna(), None)
    return [
        _decided(model, names[check], tuple(measured), CHECKS[names[check]].reference, int(n))
        for model, check, measured, n in zip(
            kept["model"], kept["check"], numbers.to_numpy(), kept["n"]
        )
    ]


def _metric(check: str) -> str:
    return "attention_" + check.replace(" ", "_")


def checks_table(rows: Iterable[CheckRow]) -> pd.DataFrame:
    """Return the checks as text, one row per map and one column per check.

    Each cell says whether the map passes, with the value, its interval and the reference.
    """
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row.map, {})[row.check] = _cell(row)
    table = pd.DataFrame.from_dict(cells, orient="index").fillna("")
    return table[[c for c in CHECKS if c in table]]


def checks_frame(rows: Iterable[CheckRow]) -> pd.DataFrame:
    """Return the checks as numbers for figures, one row per check and map.

    The column ``above`` says whether a map passes above the reference of the check or below it.
    """
    ordered = sorted(rows, key=lambda r: list(CHECKS).index(r.check))
    table = [asdict(r) | {"above": CHECKS[r.check].above} for r in ordered]
    return pd.DataFrame(table).astype({"passes": object})


def _cell(row: CheckRow) -> str:
    if row.value is None:
        return "undefined"
    outcome = {True: "pass", False: "FAIL", None: "undecided"}[row.passes]
    interval = "" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]"
    side = ">" if CHECKS[row.check].above else "<"
    return f"{outcome}: {row.value:.2f}{interval}, {side} {row.reference:.2f}"


def attention_verdict(rows: Iterable[CheckRow]) -> str:
    """Return one sentence per map that says which checks it passes and fails."""
    rows, lines = list(rows), []
    for name in dict.fromkeys(r.map for r in rows):
        own = [r for r in rows if r.map == name]
        failed = [CHECKS[r.check].failed for r in own if r.passes is False]
        passed = [CHECKS[r.check].passed for r in own if r.passes]
        text = f"{name} passes {len(passed)} of {len(own)} checks"
        if failed:
            text += ". It " + "; ".join(failed) + ": do not read it as what the model uses"
        elif passed and len(passed) == len(own):
            text += ". It " + "; ".join(passed)
        lines.append(text + ".")
    return "\n".join(lines)


def check_metrics(
    rows: Iterable[CheckRow], *, split: str, subject: str = "", notes: str = ""
) -> list[MetricRow]:
    """Return the checks as metric rows named ``attention_<check>``.

    Parameters
    ----------
    rows : iterable of CheckRow
        Outcomes; the name of the map is written into the column `model`.
    split : str
        Image set on which the maps were made.
    subject : str, default ""
        Subject of the brain encoder.
    notes : str, default ""
        Text to add to the notes of each row.

    Returns
    -------
    list of MetricRow
    """
    outcome = {True: "passes", False: "fails", None: "undefined"}
    return [
        MetricRow(
            name=_metric(r.check),
            value=r.value,
            unit="r" if r.check in ("weights", "labels") else "fraction",
            split=split,
            n=r.n,
            selection="none",
            model=r.map,
            subject=subject,
            ci_low=r.low,
            ci_high=r.high,
            interval="95 % bootstrap over stimuli" if r.low is not None else "",
            notes=f"{r.measure}, held against {r.reference:.3f}; {outcome[r.passes]}"
            + (f"; {notes}" if notes else ""),
        )
        for r in rows
    ]

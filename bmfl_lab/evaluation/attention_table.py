"""The checks of attention maps as a table, a sentence and metric rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.records import MetricRow

SIMILAR = 0.5
"""Mean rank correlation below which two sets of maps count as different; our choice."""


@dataclass(frozen=True)
class Check:
    """What one check measures, and when a map passes it."""

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
"""The checks by name. Passing needs the whole 95 % interval on the right side of the reference."""


@dataclass(frozen=True)
class CheckRow:
    """One check of one map.

    Parameters
    ----------
    map, check, measure : str
        Which map, which check, and what was measured.
    value, low, high : float or None
        Mean over images and its 95 % bootstrap interval.
    reference : float
        What it is held against.
    passes : bool or None
        None if undefined.
    n : int
        Images with a defined value.
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
    """Judge one check from a value per image.

    Parameters
    ----------
    name : str
        Of the map.
    check : str
        Among `CHECKS`.
    values : ndarray, shape (n_stimuli,)
        NaN where undefined.
    reference : float, optional
        In place of the check's own; needed for "planted region".
    seed : int
        Of the bootstrap.

    Raises
    ------
    ConfigError
        If the check is unknown, or its reference is missing.
    """
    if check not in CHECKS:
        raise ConfigError(
            message(f"a check among {tuple(CHECKS)}", repr(check), nearest(check, CHECKS))
        )
    rule = CHECKS[check]
    against = rule.reference if reference is None else float(reference)
    if not np.isfinite(against):
        raise ConfigError(
            message(f"a reference for the check {check!r}", "none", "pass the share of the area")
        )
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    found = bootstrap_mean(known, n_boot=1000, seed=seed)
    passes = None
    if found.low is not None:
        passes = bool(found.low > against if rule.above else found.high < against)
    return CheckRow(
        name, check, rule.measure, found.value, found.low, found.high, against, passes, len(known)
    )


def check_rows(
    name: str,
    *,
    weights: pd.DataFrame | None = None,
    labels: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
    region: tuple[np.ndarray, float] | None = None,
    gap: np.ndarray | None = None,
) -> list[CheckRow]:
    """Judge all checks that were measured for one map.

    Parameters
    ----------
    name : str
        Of the map.
    weights, labels : DataFrame, optional
        From `map_similarity`, to the maps of the model with randomised weights, and of one trained
        on shuffled answers.
    curves : DataFrame, optional
        From `DeletionInsertion.areas`.
    region : tuple, optional
        From `region_share`.
    gap : ndarray, optional
        `Attribution.relative_gap`.
    """
    found = [
        check_row(name, k, t["spearman"])
        for k, t in (("weights", weights), ("labels", labels))
        if t is not None
    ]
    if curves is not None:
        found.append(check_row(name, "deletion", curves["random_deletion"] - curves["deletion"]))
        found.append(check_row(name, "insertion", curves["insertion"] - curves["random_insertion"]))
    if region is not None:
        found.append(check_row(name, "planted region", region[0], region[1]))
    if gap is not None:
        found.append(check_row(name, "completeness", gap))
    return found


def checks_table(rows: Iterable[CheckRow]) -> pd.DataFrame:
    """Return the checks for reading: one row a map, one column a check, value with interval and the outcome."""
    rows = list(rows)
    order = [c for c in CHECKS if any(r.check == c for r in rows)]
    names = list(dict.fromkeys(r.map for r in rows))
    cells = {(r.map, r.check): _cell(r) for r in rows}
    return pd.DataFrame(
        [[cells.get((m, c), "") for c in order] for m in names], index=names, columns=order
    )


def checks_frame(rows: Iterable[CheckRow]) -> pd.DataFrame:
    """Return the checks as numbers, one row a check of a map, for figures."""
    ordered = sorted(rows, key=lambda r: list(CHECKS).index(r.check))
    return pd.DataFrame(
        [asdict(r) for r in ordered], columns=list(CheckRow.__dataclass_fields__)
    ).astype({"passes": object})


def _cell(row: CheckRow) -> str:
    if row.value is None:
        return "undefined"
    between = "" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]"
    against = f"{'>' if CHECKS[row.check].above else '<'} {row.reference:.2f}"
    return f"{'undecided' if row.passes is None else 'pass' if row.passes else 'FAIL'}: {row.value:.2f}{between}, {against}"


def attention_verdict(rows: Iterable[CheckRow]) -> str:
    """Return one sentence a map: what it passes and what it fails, in words."""
    rows = list(rows)
    lines = []
    for name in dict.fromkeys(r.map for r in rows):
        mine = [r for r in rows if r.map == name]
        failed = [CHECKS[r.check].failed for r in mine if r.passes is False]
        passed = [CHECKS[r.check].passed for r in mine if r.passes]
        text = f"{name} passes {len(passed)} of {len(mine)} checks"
        if failed:
            text += ". It " + "; ".join(failed) + ": do not read it as what the model uses"
        elif passed and len(passed) == len(mine):
            text += ". It " + "; ".join(passed)
        lines.append(text + ".")
    return "\n".join(lines)


def check_metrics(
    rows: Iterable[CheckRow], *, split: str, subject: str = "", notes: str = ""
) -> list[MetricRow]:
    """Return the checks as metric rows named ``attention_<check>``; the map stands where a model's name stands."""
    found = []
    for r in map(asdict, rows):
        found.append(
            MetricRow(
                name="attention_" + r["check"].replace(" ", "_"),
                value=r["value"],
                unit="r" if r["check"] in ("weights", "labels") else "fraction",
                split=split,
                n=r["n"],
                selection="none",
                model=r["map"],
                subject=subject,
                ci_low=r["low"],
                ci_high=r["high"],
                interval="95 % bootstrap over stimuli" if r["low"] is not None else "",
                notes=f"{r['measure']}, held against {r['reference']:.3f}; "
                + {True: "passes", False: "fails", None: "undefined"}[r["passes"]]
                + (f"; {notes}" if notes else ""),
            )
        )
    return found

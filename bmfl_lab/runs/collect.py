"""Tables of the metric rows of many runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bmfl_lab.errors import BmflError
from bmfl_lab.evaluation.findings import PLACE, prefer_over_seeds
from bmfl_lab.records import MetricRow, Record, read_record

COLUMNS = [
    *("spec", "run", "notebook", "study", "finished", "revision"),
    *MetricRow.__dataclass_fields__,
]


def study_label(record: Record) -> str:
    """Return the study's name, and whether its responses are simulated or measured."""
    # records of earlier versions say only whether responses are simulated
    kind = record.study.get("responses") or ("simulated" if record.study.get("simulated") else "")
    return str(record.study.get("name", "")) + (f" ({kind})" if kind else "")


def collect_records(
    folder: str | Path,
    *,
    study: str = "",
    without: Sequence[str] = ("09_report",),
    latest: bool = True,
) -> tuple[pd.DataFrame, list[str]]:
    """Read every ``record.json`` below a folder.

    Parameters
    ----------
    folder : str or Path
        For instance ``papermill_runs/out``.
    study : str, optional
        Keep only records of the study of this name.
    without : sequence of str
        Notebooks that are left out.
    latest : bool, default True
        Keep only the record finished last among those of one notebook with the same parameters and
        study.

    Returns
    -------
    rows : DataFrame
        Metric rows with ``spec, run, notebook, study, finished, revision``; no row where there is
        no record.
    problems : list of str
        Records that cannot be read, one sentence each.
    """
    problems: list[str] = []
    found: dict[str, tuple[Path, Record]] = {}
    for path in sorted(Path(folder).rglob("record.json")):
        try:
            record = read_record(path)
        except BmflError as error:
            problems.append(f"{path.parent.name}: {error}")
            continue
        if record.notebook in without or (study and record.study.get("name") != study):
            continue
        chosen = sorted((k, v) for k, v in record.parameters.items() if k != "out")
        key = str((record.notebook, chosen, study_label(record)) if latest else path)
        if key not in found or str(record.extra["finished"]) > str(found[key][1].extra["finished"]):
            found[key] = (path, record)
    frames = [
        record.to_frame().assign(
            spec=path.parent.parent.name,
            run=path.parent.name,
            notebook=record.notebook,
            study=study_label(record),
            finished=record.extra["finished"],
            revision=record.extra["code_revision"],
        )
        for path, record in found.values()
    ]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return rows[COLUMNS], problems


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: number of metric rows and seeds, time and revision."""
    if rows.empty:
        return pd.DataFrame(
            columns=["study", "notebook", "run", "n_rows", "n_seeds", "finished", "revision"]
        )
    grouped = rows.groupby(["study", "notebook", "run"], sort=True)
    table = grouped.agg(
        n_rows=("name", "size"),
        n_seeds=("seed", "nunique"),
        finished=("finished", "first"),
        revision=("revision", "first"),
    )
    return table.reset_index()


def grouped(
    rows: pd.DataFrame, metric: str, *, by: Sequence[str] = ("study", "notebook", "model")
) -> pd.DataFrame:
    """Return a metric as a table: one row per group and one column per image set.

    Parameters
    ----------
    rows : DataFrame
        From `collect_records`.
    metric : str
        Name of the metric.
    by : sequence of str
        Columns that identify a row.
    """
    part = rows[(rows["name"] == metric) & rows["value"].notna()].copy()
    if part.empty:
        return pd.DataFrame()
    part = prefer_over_seeds(part, [*by, *PLACE, "roi", "run"])
    part["set"] = [
        (s if not h else h + ("" if pd.isna(v) else f" {int(v)}")) + (f", {r}" if r else "")
        for s, h, v, r in zip(part["split"], part["shift"], part["severity"], part["roi"])
    ]
    return part.pivot_table(
        index=list(by), columns="set", values="value", aggfunc="mean", sort=False
    )

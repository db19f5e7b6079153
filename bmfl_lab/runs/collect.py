"""The metric rows of many runs, and the report of a spec with its figures and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bmfl_lab import evaluation
from bmfl_lab.errors import BmflError, RunError, require
from bmfl_lab.evaluation.report import headline, report
from bmfl_lab.files import files_below, write_bytes
from bmfl_lab.records import (
    MetricRow,
    Record,
    check_same_weights,
    original_weights,
    read_record,
    study_label,
)
from bmfl_lab.runs.execute import folder_of, state_of
from bmfl_lab.runs.export import page_of_markdown, pdf_of_page
from bmfl_lab.runs.spec import Run
from bmfl_lab.runtime import weights_text

COLUMNS = [
    *("spec", "run", "notebook", "study", "weights", "finished", "revision"),
    *MetricRow.__dataclass_fields__,
]


def _frame(record: Record) -> pd.DataFrame:
    """Return the rows of a record, which name the subject that its notebook was given."""
    frame, subject = record.to_frame(), str(record.parameters.get("subject", ""))
    return frame.assign(subject=frame["subject"].where(frame["subject"] != "", subject))


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
        Metric rows with ``spec, run, notebook, study, weights, finished, revision``; no row where
        there is no record. ``weights`` names the backbones of the run and their weights.
    problems : list of str
        Records that cannot be read, one sentence each.
    """
    problems: list[str] = []
    found: dict[str, tuple[Path, Record]] = {}
    for path in files_below(folder, "record.json"):
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
        _frame(record).assign(
            spec=path.parent.parent.name,
            run=path.parent.name,
            notebook=record.notebook,
            study=study_label(record),
            weights=weights_text(record.extra.get("backbones") or []),
            finished=record.extra["finished"],
            revision=record.extra["code_revision"],
        )
        for path, record in found.values()
    ]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return rows[COLUMNS], problems


def collect(runs: Sequence[Run], out: str | Path | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Return the metric rows of every ok run, with its run id and study, and registrations.

    Raises
    ------
    RunError
        If no run is ok.
    DataError
        If backbones of the runs have different weights, see `bmfl_lab.records.check_same_weights`.
    """
    frames, registered = [], []
    records = _ok_records(runs, out)
    check_same_weights(records)
    for run_id, record in records.items():
        frames.append(_frame(record).assign(run_id=run_id, study=study_label(record)))
        if declared := record.extra.get("preregistered"):
            registered += evaluation.registered_findings([declared], frames[-1])
    require(frames, RunError, "at least one ok run", "none", "run the spec first")
    return pd.concat(frames, ignore_index=True), registered


def _ok_records(runs: Sequence[Run], out: str | Path | None) -> dict[str, Record]:
    """Return the record of each ok run by the id of the run."""
    ok = [run for run in runs if state_of(run, out)[0] == "ok"]
    return {run.run_id: read_record(folder_of(run, out) / "record.json") for run in ok}


def write_report(
    runs: Sequence[Run],
    out: str | Path | None = None,
    to: str | Path | None = None,
    ending: str = ".md",
) -> Path:
    """Write the report of a spec and return its path.

    Every metric row goes into a CSV file beside the page, and so do the figures that a page in
    markdown shows.

    Parameters
    ----------
    runs : sequence of Run
        Runs of a spec.
    out : str or Path, optional
        Folder of all runs.
    to : str or Path, optional
        The file; ``papermill_runs/reports/<spec>`` with the ending by default. Where original
        weights served, ``<spec>_original_weights``: the committed reports are those of a stand-in.
    ending : {".md", ".html", ".pdf"}
        Kind of the file. The last two hold their figures.

    Raises
    ------
    RunError
        If no run is ok, or there is no converter to PDF.
    """
    reports = runs[0].root / "papermill_runs" / "reports"
    rows, registered = collect(runs, out)
    records = _ok_records(runs, out).values()
    apart = any(map(original_weights, records))
    name = runs[0].spec + ("_original_weights" if apart else "")
    path = Path(to).expanduser() if to else reports / f"{name}{ending}"
    states = [state_of(r, out)[0] for r in runs]
    ok = [run for run, state in zip(runs, states) if state == "ok"]
    shown = headline([run.notebook.stem for run in ok], rows)
    pictures: dict[str, Path] = {}
    for name in shown.figures:
        places = [folder_of(run, out) / "figures" / f"{name}.png" for run in ok]
        found = next((p for p in places if p.is_file()), None)
        pictures |= {f"{path.stem}_{name}.png": found} if found else {}
    page = report(
        rows,
        f"Report of {runs[0].spec}",
        states,
        shown,
        figures=list(pictures),
        numbers=f"{path.stem}.csv",
        registered=registered,
        weights=weights_text(b for record in records for b in record.extra.get("backbones") or []),
    )
    full = rows.dropna(axis=1, how="all").loc[:, lambda f: (f != "").any()]
    write_bytes(path.with_suffix(".csv"), full.to_csv(index=False, float_format="%.6g").encode())
    if ending == ".md":
        for name, source in pictures.items():
            write_bytes(path.with_name(name), source.read_bytes())
        write_bytes(path, page.encode())
    else:
        html = page_of_markdown(page, pictures, path.stem)
        write_bytes(path, html.encode() if ending == ".html" else pdf_of_page(html))
    return path

"""Reports: markdown tables grouped from the records of ok runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bmfl_lab.errors import RunError, message
from bmfl_lab.files import atomic_path
from bmfl_lab.records import Record, read_record
from bmfl_lab.runs.execute import folder_of, state_of
from bmfl_lab.runs.findings import findings, prefer_over_seeds
from bmfl_lab.runs.paths import project_root
from bmfl_lab.runs.spec import Run

CONDITION = ("study", "split", "shift", "severity", "subject", "roi", "layer")


def collect(runs: Sequence[Run], out: str | Path | None = None) -> pd.DataFrame:
    """Return the metric rows of every ok run, with its run id and study.

    Raises
    ------
    RunError
        If no run is ok.
    """
    frames = []
    for run in runs:
        if state_of(run, out)[0] != "ok":
            continue
        record: Record = read_record(folder_of(run, out) / "record.json")
        study = str(record.study.get("name", "")) + (" (simulated)" if record.study.get("simulated") else "")
        frames.append(record.to_frame().assign(run_id=run.run_id, study=study))
    if not frames:
        raise RunError(message("at least one ok run", "none", "run the spec first"))
    return pd.concat(frames, ignore_index=True)


def render(rows: pd.DataFrame, title: str, states: Sequence[str]) -> str:
    """Return the report as markdown: the findings in plain words, then one table a metric, a row a condition."""
    lines = [f"# {title}", "", f"{sum(s == 'ok' for s in states)} of {len(states)} runs ok; only those count here.", ""]
    found = findings(rows)
    lines += ["## What was found", "", *(f"- {line}" for line in found), ""] if found else []
    for (name, unit), part in rows.groupby(["name", "unit"], sort=True, dropna=False):
        lines += [f"## {name} ({unit})", ""]
        part = prefer_over_seeds(part, [*CONDITION, "model", "run_id"])
        # two sections of a run may evaluate the same model: its number stands once
        part = part.drop_duplicates([*CONDITION, "model", "run_id", "seed", "value"])
        keys = [k for k in CONDITION if part[k].fillna("").astype(str).ne("").any()]
        models = sorted(part["model"].unique())
        header = [*keys, *(m or "value" for m in models), "n"]
        lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        for condition, group in part.fillna({k: "" for k in keys}).groupby(keys or ["name"], sort=False):
            cells = [_cell(group[group["model"] == m]) for m in models]
            lines.append(
                "| " + " | ".join([*map(_plain, condition if keys else ()), *cells, _range(group["n"])]) + " |"
            )
        lines += ["", "Interval: " + ("; ".join(sorted(set(part["interval"]) - {""})) or "none") + "."]
        lines += ["Selection: " + "; ".join(sorted(set(part["selection"]))) + "."]
        lines += [f"Note: {n.rstrip('.')}." for n in _notes(part)] + [""]
    return "\n".join([*lines, "Runs: " + ", ".join(f"`{r}`" for r in sorted(rows["run_id"].unique())) + ".", ""])


def _notes(part: pd.DataFrame) -> list[str]:
    """Return the notes of a table; verdicts of single rows stand at the top of the report instead."""
    name = part["name"].iloc[0]
    if name in ("accuracy_difference", "p_holm") or name.endswith("_gain"):
        return []
    return sorted(set(part["notes"]) - {""})


def _cell(group: pd.DataFrame) -> str:
    values = group["value"].dropna()
    if group.empty:
        return ""
    if values.empty:
        return "undefined"
    # two runs of the same models tell the same numbers twice
    if len(group[["value", "ci_low", "ci_high"]].drop_duplicates()) == 1:
        low, high = group["ci_low"].iloc[0], group["ci_high"].iloc[0]
        interval = f" [{low:.3f}, {high:.3f}]" if pd.notna(low) and pd.notna(high) else ""
        return f"{values.iloc[0]:.3f}{interval}"
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f}, {len(values)} values)"


def _plain(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;")


def _range(values: pd.Series) -> str:
    return str(values.min()) if values.nunique() == 1 else f"{values.min()} to {values.max()}"


def write_report(runs: Sequence[Run], out: str | Path | None = None, to: str | Path | None = None) -> Path:
    """Write the report of a spec and return its path.

    Raises
    ------
    RunError
        If no run is ok.
    """
    path = Path(to) if to else project_root() / "papermill_runs" / "reports" / f"{runs[0].spec}.md"
    states = [state_of(r, out)[0] for r in runs]
    content = render(collect(runs, out), f"Report of {runs[0].spec}", states)
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path

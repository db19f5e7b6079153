"""Tables of the metric rows of many runs, and the report of a spec in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from bmfl_lab.errors import BmflError, RunError, require
from bmfl_lab.evaluation.findings import findings, prefer_over_seeds, verdicts
from bmfl_lab.files import atomic_path
from bmfl_lab.markup import markdown, markdown_rows
from bmfl_lab.records import MetricRow, Record, comparison_label, read_record
from bmfl_lab.runs.execute import folder_of, state_of
from bmfl_lab.runs.spec import Run

COLUMNS = [
    *("spec", "run", "notebook", "study", "finished", "revision"),
    *MetricRow.__dataclass_fields__,
]
CONDITION = ("study", "split", "shift", "severity", "subject", "roi", "layer")
_CLEAR = (
    "only where the interval leaves out zero and the p value, adjusted by Holm, is at most 0.05; "
    "alike only where the interval lies within the smallest effect of interest and the p value of "
    "that is at most 0.05; else open"
)
VERDICTS = {
    "accuracy_difference": ({}, f"the first model is better or worse {_CLEAR}"),
    "region_effect": (
        {"better": "more", "worse": "less"},
        f"the region matters more or less than its control {_CLEAR}",
    ),
}
"""Other words for the verdicts of `verdicts`, and their definition."""


def study_label(record: Record) -> str:
    """Return the study's name, and whether its responses are simulated or measured."""
    # records of earlier versions say only whether responses are simulated
    kind = record.study.get("responses") or ("simulated" if record.study.get("simulated") else "")
    # the demo's stand-in is the rule; results from the original weights never share its rows
    served = record.extra.get("backbones") or []
    if any(str(found.get("weights", "")).startswith("original weights") for found in served):
        kind += f"{', ' if kind else ''}original backbone weights"
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
        record = read_record(folder_of(run, out) / "record.json")
        frames.append(record.to_frame().assign(run_id=run.run_id, study=study_label(record)))
    require(frames, RunError, "at least one ok run", "none", "run the spec first")
    return pd.concat(frames, ignore_index=True)


def render(rows: pd.DataFrame, title: str, states: Sequence[str]) -> str:
    """Return the report in markdown: findings, then one table per metric, one row per condition."""
    lines = [
        f"# {markdown(title)}",
        "",
        f"{sum(s == 'ok' for s in states)} of {len(states)} runs ok; only those count here.",
        "",
    ]
    found = findings(rows)
    lines += ["## What was found", "", *(f"- {line}" for line in found), ""] if found else []
    rows = markdown_rows(rows)
    said = _verdicts(rows)
    named = zip(*(rows[k] for k in ("name", "model", "reference", "roi")))
    rows = rows.assign(model=[comparison_label(*fields) for fields in named])
    for (name, unit), every in rows.groupby(["name", "unit"], sort=True, dropna=False):
        part = prefer_over_seeds(every, [*CONDITION, "model", "run_id"])
        # two sections of a run may evaluate the same model: its number stands once
        part = part.drop_duplicates([*CONDITION, "model", "run_id", "seed", "value"])
        part = part.assign(verdict=said.reindex(part.index).fillna(""))
        lines += [f"## {name} ({unit})", "", *_table(part)]
        lines += [
            "",
            f"- Interval: {_by_model(part, 'interval')}.",
            f"- Selection: {_by_model(part, 'selection')}.",
        ]
        lines += [f"- Verdict: {VERDICTS[name][1]}."] if name in VERDICTS else []
        lines += [*dict.fromkeys(f"- Note: {n}." for n in _notes(part)), ""]
        lines += _seed_table(every) if name == "accuracy" else []
    return "\n".join(
        [*lines, "Runs: " + ", ".join(f"`{r}`" for r in sorted(rows["run_id"].unique())) + ".", ""]
    )


def _verdicts(rows: pd.DataFrame) -> pd.Series:
    """Return a word per difference, from its interval and its adjusted p values."""
    compared = rows[rows["name"].isin(VERDICTS) & rows["ci_low"].notna()]
    found = zip(compared["name"], verdicts(compared))
    words = [VERDICTS[name][0].get(said, said) for name, said in found]
    return pd.Series(words, index=compared.index, dtype=object)


def _keys(part: pd.DataFrame) -> list[str]:
    return [k for k in CONDITION if part[k].astype(object).fillna("").astype(str).ne("").any()]


def _blank(part: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    return part.assign(**{k: part[k].astype(object).where(part[k].notna(), "") for k in keys})


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _table(part: pd.DataFrame) -> list[str]:
    """Return a table of one metric: one row per condition and one column per model.

    A single model is named below the table instead.
    """
    keys, models = _keys(part), sorted(part["model"].unique())
    seeds = part["n_seeds"].notna() | part["seed"].notna()
    header = [*keys, *((m or "value" for m in models) if len(models) > 1 else ["value"]), "n"]
    header += ["seeds"] if seeds.any() else []
    lines = [_line(header), "|" + " --- |" * len(header)]
    for condition, group in _blank(part, keys).groupby(keys or ["name"], sort=False):
        cells = [_cell(group[group["model"] == m]) for m in models]
        counts = [_seeds(group[group["model"] == m]) for m in models if (group["model"] == m).any()]
        row = [*map(_plain, condition if keys else ()), *cells, _range(group["n"])]
        lines.append(_line([*row, *([_range(pd.Series(counts))] if seeds.any() else [])]))
    return [*lines, "", f"Model: {models[0]}."] if len(models) == 1 and models[0] else lines


def _seeds(group: pd.DataFrame) -> int:
    over = group["n_seeds"].dropna()
    return int(over.max()) if len(over) else int(group["seed"].nunique())


def _seed_table(every: pd.DataFrame) -> list[str]:
    """Return the values of single seeds: one row per condition and model, none without seeds."""
    single = every[every["seed"].notna()].assign(seed=lambda f: f["seed"].astype(int))
    keys, seeds = _keys(single), sorted(single["seed"].unique())
    if len(seeds) < 2:
        return []
    header = [*keys, "model", *(f"seed {s}" for s in seeds)]
    lines = ["### by seed", "", _line(header), "|" + " --- |" * len(header)]
    for condition, group in _blank(single, keys).groupby(keys, sort=False):
        for model, mine in group.groupby("model", sort=False):
            cells = [_cell(mine[mine["seed"] == s].assign(ci_low=None, verdict="")) for s in seeds]
            lines.append(_line([*map(_plain, condition), model, *cells]))
    return [*lines, ""]


def _by_model(part: pd.DataFrame, column: str) -> str:
    """Return the values of a column and, where they differ, the models that each belongs to."""
    shown = part[part[column] != ""]
    models = shown.groupby(column, sort=True)["model"].unique()
    if len(models) < 2:
        return next(iter(models.index), "none")
    return "; ".join(
        f"{value} ({', '.join(f'`{m}`' for m in sorted(names))})" for value, names in models.items()
    )


def _notes(part: pd.DataFrame) -> list[str]:
    """Return the notes of a table, each with the rows that it applies to, except verdicts."""
    name = part["name"].iloc[0]
    if name in VERDICTS or name == "p_holm" or name.endswith("_gain"):
        return []
    notes = [n.rstrip(".") for n in dict.fromkeys(part["notes"]) if n]
    if len(notes) < 2 and part["notes"].nunique() < 2:
        return notes
    severity = pd.to_numeric(part["severity"]).map(lambda s: "" if pd.isna(s) else f" {s:g}")
    place = part.assign(set=part["split"].where(part["shift"] == "", part["shift"] + severity))
    place = place.assign(row=place["set"] + ", " + place["model"])
    clauses_of_row = place["notes"].map(lambda n: n.rstrip(".").split("; "))
    found = []
    for clause in dict.fromkeys(c for n in notes for c in n.split("; ")):
        has = clauses_of_row.map(lambda clauses, clause=clause: clause in clauses)
        found.append(_rows_of(place[has], place[~has]) + clause)
    return found


def _rows_of(mine: pd.DataFrame, others: pd.DataFrame, limit: int = 6) -> str:
    """Return the ROIs, layers, image sets or models of some rows that the others lack."""
    if others.empty:
        return ""
    column = next(
        (k for k in ("roi", "layer", "set", "model") if not set(mine[k]) & set(others[k])), "row"
    )
    which = list(dict.fromkeys(mine[column]))
    more = f" and {len(which) - limit} more" if len(which) > limit else ""
    return f"{'; '.join(which[:limit])}{more}: "


def _cell(group: pd.DataFrame) -> str:
    values = group["value"].dropna()
    if group.empty:
        return ""
    if values.empty:
        return "undefined"
    words = sorted(set(group["verdict"]) - {""})
    verdict = f" {' or '.join(words)}" if words else ""
    # two runs of the same models give the same numbers twice
    if len(group[["value", "ci_low", "ci_high"]].drop_duplicates()) == 1:
        low, high = group["ci_low"].iloc[0], group["ci_high"].iloc[0]
        interval = f" [{low:.3f}, {high:.3f}]" if pd.notna(low) and pd.notna(high) else ""
        return f"{values.iloc[0]:.3f}{interval}{verdict}"
    spread = f"{values.min():.3f} to {values.max():.3f}, {len(values)} values"
    return f"{values.mean():.3f} ({spread}){verdict}"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(values: pd.Series) -> str:
    return str(values.min()) if values.nunique() == 1 else f"{values.min()} to {values.max()}"


def write_report(
    runs: Sequence[Run], out: str | Path | None = None, to: str | Path | None = None
) -> Path:
    """Write the report of a spec and return its path.

    Raises
    ------
    RunError
        If no run is ok.
    """
    reports = runs[0].root / "papermill_runs" / "reports"
    path = Path(to).expanduser() if to else reports / f"{runs[0].spec}.md"
    states = [state_of(r, out)[0] for r in runs]
    content = render(collect(runs, out), f"Report of {runs[0].spec}", states)
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path

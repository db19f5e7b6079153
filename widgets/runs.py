"""All records of a results folder: filter them, compare two, open an executed notebook."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from bmfl_lab.errors import BmflError, DataError, require
from bmfl_lab.records import Record, comparison_label, read_record, study_label
from bmfl_lab.viz.charts import PALETTE
from bmfl_lab.viz.explore import runs_figure
from bmfl_lab.viz.results import set_label
from widgets.figure import ERROR, LiveFigure, styled
from widgets.frame import LABEL, WIDE, Frame, dropdown, set_options

if TYPE_CHECKING:
    from bmfl_lab.viz.charts import Figure

_MOST_ROWS = 30


@dataclass(frozen=True)
class State:
    """State of the run browser.

    Parameters
    ----------
    text : str
        Only runs whose folder, notebook, study or parameters contain this text are listed.
    first, second : str
        Two runs, by their folder below the results folder; the newest two by default.
    metric : str
        Metric that is compared; the first one that both runs have by default.
    """

    text: str = ""
    first: str = ""
    second: str = ""
    metric: str = ""


class Source:
    """The records below a results folder.

    Parameters
    ----------
    folder : str or Path
        Results folder, for instance ``papermill_runs/out``.

    Attributes
    ----------
    records : dict of str to Record
        Folder of each run, relative to `folder`, to its record; newest first.
    damaged : dict of str to str
        Folder of each record that cannot be read, to the reason.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.records: dict[str, Record] = {}
        self.damaged: dict[str, str] = {}
        for path in sorted(self.folder.rglob("record.json"), key=lambda p: -p.stat().st_mtime):
            name = path.parent.relative_to(self.folder).as_posix()
            try:
                self.records[name] = read_record(path)
            except (BmflError, KeyError, TypeError) as error:
                self.damaged[name] = str(error)

    def notebook(self, name: str) -> Path | None:
        """Return the executed notebook of a run, or None."""
        return next(iter(sorted((self.folder / name).glob("*.ipynb"))), None)


def _matching(source: Source, text: str) -> list[str]:
    """Return the runs whose folder, notebook, study or parameters contain a text."""
    found = []
    for name, record in source.records.items():
        parts = [name, record.notebook, record.study.get("name", ""), dict(record.parameters)]
        if text.lower() in " ".join(map(str, parts)).lower():
            found.append(name)
    return found


def resolve(state: State, source: Source) -> State:
    """Return the state with two runs among those that match the text, and a metric they have."""
    names = _matching(source, state.text)
    first = state.first if state.first in names else next(iter(names), "")
    other = next((n for n in names if n != first), first)
    second = state.second if state.second in names else other
    metrics = _metrics(source, first, second)
    metric = state.metric if state.metric in metrics else next(iter(metrics), "")
    return dataclasses.replace(state, first=first, second=second, metric=metric)


def _metrics(source: Source, *names: str) -> list[str]:
    """Return the metrics that all named runs have, or those of any of them if they share none."""
    found = [list(dict.fromkeys(r.name for r in source.records[n].rows)) for n in names if n]
    shared = [m for m in found[0] if all(m in f for f in found)] if found else []
    return shared or sorted({m for f in found for m in f})


def select(state: State, source: Source) -> dict[str, object]:
    """Return what a state shows.

    Parameters
    ----------
    state : State
        The choices that are shown.
    source : Source
        Records.

    Returns
    -------
    dict
        ``runs``, one mapping per run that matches; ``labels``, the n conditions that are compared;
        ``values``, run to (n, 3): value, low and high; ``axis``, the metric's name and unit, and
        the kind of interval from low to high; ``said``, the text of the status panel.

    Raises
    ------
    DataError
        If there is no run, or none matches.
    """
    state = resolve(state, source)
    require(
        source.records,
        DataError,
        f"a record.json below {source.folder}",
        f"none ({len(source.damaged)} damaged)",
        "run a spec first",
    )
    require(
        state.first,
        DataError,
        "a run that contains the text",
        repr(state.text),
        "shorten or empty the filter",
    )
    runs = [_summary(n, source.records[n]) for n in _matching(source, state.text)]
    names = dict.fromkeys((state.first, state.second))
    rows = {n: _rows(source.records[n], state.metric) for n in names}
    labels = list(dict.fromkeys(label for found in rows.values() for label in found))
    missing = (np.nan,) * 3
    values = {n: np.array([found.get(k, missing) for k in labels]) for n, found in rows.items()}
    compared = [r for n in names for r in source.records[n].rows if r.name == state.metric]
    units, intervals = (
        ", ".join(sorted({getattr(r, field) for r in compared} - {""}))
        for field in ("unit", "interval")
    )
    said = f"{len(runs)} of {len(source.records)} runs shown"
    said += f"; {len(source.damaged)} records cannot be read" if source.damaged else ""
    said += f"; {len(labels)} conditions of {state.metric}"
    said += f", the first {_MOST_ROWS} drawn." if len(labels) > _MOST_ROWS else "."
    return {
        "runs": runs,
        "labels": labels,
        "values": values,
        "axis": f"{state.metric}, {units}" + (f" ({intervals})" if intervals else ""),
        "said": said,
    }


def _summary(name: str, record: Record) -> dict[str, str]:
    study = study_label(record)
    return {
        "run": name,
        "notebook": record.notebook,
        "study": study,
        "rows": str(len(record.rows)),
        "finished": str(record.extra.get("finished", ""))[:16].replace("T", " "),
        "revision": str(record.extra.get("code_revision", "")),
    }


def _rows(record: Record, metric: str) -> dict[str, tuple[float, float, float]]:
    """Return value, low and high of each row of a metric, by model, image set, ROI and seed."""
    found: dict[str, tuple] = {}
    for row in record.rows:
        if row.name == metric:
            named = comparison_label(row.name, row.model, row.reference, row.roi)
            parts = [named, set_label(row.split, row.shift, row.severity), row.roi]
            parts.append("" if row.seed is None else f"seed {row.seed}")
            numbers = (row.value, row.ci_low, row.ci_high)
            numbers = tuple(np.nan if v is None else float(v) for v in numbers)
            found.setdefault(" ".join(p for p in parts if p), numbers)
    return found


def figure_of(state: State, source: Source | str | Path) -> Figure:
    """Return the static figure of a state, made with matplotlib.

    Parameters
    ----------
    state : State
        The choices that are shown.
    source : Source, str or Path
        Records, or their folder.

    Raises
    ------
    DataError
        If there is no run, or none matches.
    """
    source = source if isinstance(source, Source) else Source(source)
    state = resolve(state, source)
    found = select(state, source)
    values = {n: v[:_MOST_ROWS] for n, v in found["values"].items()}
    labels, title = found["labels"][:_MOST_ROWS], f"{state.metric} of two runs"
    return runs_figure(labels, values, title=title, unit=found["axis"])


def run_browser(
    folder: str | Path = "papermill_runs/out", *, pictures: str | Path = "figures", **state
) -> Frame:
    """Browse the records of a results folder.

    Parameters
    ----------
    folder : str or Path, default "papermill_runs/out"
        Folder that is searched for ``record.json`` at any depth.
    pictures : str or Path, default "figures"
        Folder in which pictures are saved.
    **state
        Fields of the first `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell.
    """
    source = Source(folder)
    first = resolve(State(**state), source)
    figure = LiveFigure(_figure())
    table = w.HTML(layout={"max_height": "260px", "overflow": "auto"})
    names = list(source.records) or [""]
    text = w.Text(
        value=first.text,
        description="Filter",
        placeholder="part of a name",
        style=LABEL,
        layout=WIDE,
        continuous_update=False,
    )
    controls = {
        "text": text,
        "first": dropdown("First run", names, first.first or names[0]),
        "second": dropdown("Second run", names, first.second or names[0]),
        "metric": dropdown("Metric", [first.metric], first.metric),
    }

    def draw(found: dict, state: State) -> str:
        table.value = _table(found["runs"], source)
        _draw(figure.plot, found)
        return found["said"]

    return Frame(
        title=f"Runs in {source.folder.name}",
        state=first,
        controls=controls,
        groups={"Find": ("text", "metric"), "Compare": ("first", "second")},
        views=[([table], "1 1 100%"), (figure, "1 1 600px")],
        source=source,
        select=select,
        draw=draw,
        adjust=_adjust,
        twin=figure_of,
        given={"folder": folder},
        folder=pictures,
    )


def _adjust(state: State, controls: Mapping[str, w.Widget], source: Source) -> State:
    state = resolve(state, source)
    for name in ("first", "second"):
        set_options(controls[name], _matching(source, state.text))
    set_options(controls["metric"], _metrics(source, state.first, state.second))
    return state


def _table(runs: list[dict[str, str]], source: Source) -> str:
    cell, link_style = "style='padding:2px 10px'", "color:var(--jp-content-link-color,#0072B2)"
    head = "".join(
        f"<th scope='col' style='text-align:left;padding:2px 10px'>{k}</th>"
        for k in (*runs[0], "open")
    )
    rows = []
    for run in runs:
        path, link = source.notebook(run["run"]), "no notebook"
        if path is not None:
            # relative, because the root folder of the server is unknown
            address = quote(Path(os.path.relpath(path, Path.cwd())).as_posix())
            link = f"<a href='{address}' target='_blank' style='{link_style}'>notebook</a>"
        values = (*map(html.escape, run.values()), link)
        rows.append("<tr>" + "".join(f"<td {cell}>{v}</td>" for v in values) + "</tr>")
    return (
        f"<table style='border-collapse:collapse'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _figure() -> go.Figure:
    made = go.Figure()
    # an open ring around a small square: both are visible where two runs agree
    for colour, symbol, size in zip(PALETTE, ("circle-open", "square"), (14, 7)):
        error = {**ERROR, "symmetric": False, "color": colour}
        marker = {"color": colour, "symbol": symbol, "size": size, "line": {"width": 2}}
        made.add_scatter(x=[], y=[], mode="markers", marker=marker, error_x=error, name=symbol)
    made.update_yaxes(autorange="reversed")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    made.update_layout(legend=legend, scattermode="group")
    return styled(made, 380)


def _draw(figure: go.Figure, found: Mapping) -> None:
    labels, runs = found["labels"][:_MOST_ROWS], list(found["values"].items())
    for trace in figure.data:
        trace.visible = bool(runs)
        if runs:
            trace.name, values = runs.pop(0)
            value, low, high = values[:_MOST_ROWS].T
            trace.x, trace.y = value, labels
            trace.error_x.array = np.nan_to_num(high - value)
            trace.error_x.arrayminus = np.nan_to_num(value - low)
    # in two lines, or it is cut off on a narrow page
    figure.layout.xaxis.title.text = found["axis"].replace(" (", "<br>(", 1)
    figure.layout.height = max(300, 26 * len(labels) + 170)

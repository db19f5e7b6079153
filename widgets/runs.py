"""All records of a results folder: filter them, compare two, open the executed notebook."""

from __future__ import annotations

import dataclasses
import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from bmfl_lab.errors import BmflError, DataError, message
from bmfl_lab.records import Record, comparison_label, read_record
from bmfl_lab.viz.results import set_label
from bmfl_lab.viz.style import PALETTE
from widgets.frame import LABEL, WIDE, Frame, dropdown, undisturbed
from widgets.plots import ERROR, styled

_MOST = 30


@dataclass(frozen=True)
class State:
    """What the run browser shows.

    Parameters
    ----------
    text : str
        Only runs whose name, notebook, study or parameters hold this text.
    first, second : str
        Two runs, by their folder below the results folder; the newest two by default.
    metric : str
        Metric that is compared; the first one both have by default.
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
        For instance ``papermill_runs/out``.

    Attributes
    ----------
    records : dict of str to Record
        Folder of the run, relative to `folder`, to its record; newest first.
    damaged : dict of str to str
        Folders whose record cannot be read, and why.
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


def _about(name: str, record: Record) -> str:
    return " ".join(
        [name, record.notebook, str(record.study.get("name", "")), str(dict(record.parameters))]
    )


def resolve(state: State, source: Source) -> State:
    """Return the state with two runs among those that match the text, and a metric they have."""
    names = [n for n, r in source.records.items() if state.text.lower() in _about(n, r).lower()]
    first = state.first if state.first in names else (names[0] if names else "")
    second = (
        state.second if state.second in names else next((n for n in names if n != first), first)
    )
    metrics = _metrics(source, first, second)
    metric = state.metric if state.metric in metrics else (metrics[0] if metrics else "")
    return dataclasses.replace(state, first=first, second=second, metric=metric)


def _metrics(source: Source, *names: str) -> list[str]:
    found = [list(dict.fromkeys(r.name for r in source.records[n].rows)) for n in names if n]
    shared = [m for m in found[0] if all(m in f for f in found)] if found else []
    return shared or sorted({m for f in found for m in f})


def select(state: State, source: Source) -> dict[str, Any]:
    """Return what a state shows.

    Parameters
    ----------
    state : State
        What to show.
    source : Source
        Records.

    Returns
    -------
    dict
        ``runs`` (list of mappings, one a run that matches), ``labels`` (conditions), ``values``
        (run to (n, 3): value, low, high), ``unit``, ``interval`` (what low and high are), ``said``.

    Raises
    ------
    DataError
        If no run matches, or there is none.
    """
    state = resolve(state, source)
    if not source.records:
        raise DataError(
            message(
                f"a record.json below {source.folder}",
                f"none ({len(source.damaged)} damaged)",
                "run a spec first",
            )
        )
    if not state.first:
        raise DataError(
            message("a run that holds the text", repr(state.text), "shorten or empty the filter")
        )
    runs = [
        _summary(n, r)
        for n, r in source.records.items()
        if state.text.lower() in _about(n, r).lower()
    ]
    rows = {
        n: _rows(source.records[n], state.metric)
        for n in dict.fromkeys((state.first, state.second))
    }
    labels = list(dict.fromkeys(label for found in rows.values() for label in found))
    missing = (np.nan,) * 3
    values = {
        n: np.array([found.get(label, missing) for label in labels], float)
        for n, found in rows.items()
    }
    compared = [r for n in rows for r in source.records[n].rows if r.name == state.metric]
    units, intervals = {r.unit for r in compared}, {r.interval for r in compared if r.interval}
    said = f"{len(runs)} of {len(source.records)} runs shown"
    said += f"; {len(source.damaged)} records cannot be read" if source.damaged else ""
    said += f"; {len(labels)} conditions of {state.metric}" + (
        f", the first {_MOST} drawn." if len(labels) > _MOST else "."
    )
    return {
        "runs": runs,
        "labels": labels,
        "values": values,
        "unit": ", ".join(sorted(units)),
        "interval": ", ".join(sorted(intervals)),
        "said": said,
    }


def _axis(found: dict[str, Any]) -> str:
    """Return the unit, and what the error bars are."""
    return found["unit"] + (f" ({found['interval']})" if found["interval"] else "")


def _summary(name: str, record: Record) -> dict[str, str]:
    study = str(record.study.get("name", "")) + (
        " (simulated)" if record.study.get("simulated") else ""
    )
    return {
        "run": name,
        "notebook": record.notebook,
        "study": study,
        "rows": str(len(record.rows)),
        "finished": str(record.extra.get("finished", ""))[:16].replace("T", " "),
        "revision": str(record.extra.get("code_revision", "")),
    }


def _rows(record: Record, metric: str) -> dict[str, tuple]:
    found: dict[str, tuple] = {}
    for row in record.rows:
        if row.name != metric:
            continue
        named = comparison_label(row.name, row.model, row.reference, row.roi)
        parts = [named, set_label(row.split, row.shift, row.severity), row.roi]
        if row.seed is not None:
            parts.append(f"seed {row.seed}")
        numbers = tuple(
            np.nan if v is None else float(v) for v in (row.value, row.ci_low, row.ci_high)
        )
        found.setdefault(" ".join(p for p in parts if p), numbers)
    return found


def figure_of(state: State, source: Any) -> Any:
    """Return the static twin of the widget: a matplotlib figure.

    Parameters
    ----------
    state : State
        What to show.
    source : Source, str or Path
        Records, or their folder.

    Raises
    ------
    DataError
        As `select`.
    """
    from bmfl_lab.viz.explore import runs_figure

    source = source if isinstance(source, Source) else Source(source)
    state = resolve(state, source)
    found = select(state, source)
    values = {n: v[:_MOST] for n, v in found["values"].items()}
    return runs_figure(
        found["labels"][:_MOST], values, title=f"{state.metric} of two runs", unit=_axis(found)
    )


@undisturbed()
def run_browser(
    folder: str | Path = "papermill_runs/out", *, pictures: str | Path = "figures", **state: Any
) -> Frame:
    """Browse the records of a results folder.

    Parameters
    ----------
    folder : str or Path
        Searched for ``record.json`` at any depth.
    pictures : str or Path
        Where pictures are saved.
    **state
        First state, fields of `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell.
    """
    source = Source(folder)
    first = resolve(State(**state), source)
    figure, table = _figure(), w.HTML(layout={"max_height": "260px", "overflow": "auto"})
    names = list(source.records) or [""]
    text = w.Text(
        value=first.text,
        description="Filter",
        placeholder="any part of a name",
        style=LABEL,
        layout=WIDE,
    )
    text.continuous_update = False
    controls = {
        "text": text,
        "first": dropdown("First run", names, first.first or names[0]),
        "second": dropdown("Second run", names, first.second or names[0]),
        "metric": dropdown("Metric", [first.metric], first.metric),
    }
    for name in ("first", "second"):
        controls[name].layout.width = "420px"

    def draw(found: dict, state: State) -> str:
        table.value = _table(found["runs"], source)
        _draw(figure, found, state)
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


def _adjust(state: State, controls: Any, source: Source) -> State:
    state = resolve(state, source)
    names = [
        n for n, r in source.records.items() if state.text.lower() in _about(n, r).lower()
    ] or [""]
    options = {
        "first": names,
        "second": names,
        "metric": _metrics(source, state.first, state.second) or [""],
    }
    for name, found in options.items():
        if list(controls[name].options) != found:
            controls[name].options = found
    return state


def _table(runs: list[dict[str, str]], source: Source) -> str:
    cells = "".join(
        f"<th scope='col' style='text-align:left;padding:2px 10px'>{k}</th>"
        for k in (*runs[0], "open")
    )
    rows = []
    for run in runs:
        path = source.notebook(run["run"])
        link = "no notebook"
        if path is not None:
            # relative, so that the link holds wherever the server's root is
            address = quote(Path(os.path.relpath(path, Path.cwd())).as_posix())
            link = f"<a href='{address}' target='_blank' style='color:var(--jp-content-link-color,#0072B2)'>notebook</a>"
        values = "".join(
            f"<td style='padding:2px 10px'>{html.escape(v)}</td>" for v in run.values()
        )
        rows.append(f"<tr>{values}<td style='padding:2px 10px'>{link}</td></tr>")
    colour = "color:var(--jp-ui-font-color1,#222);border-collapse:collapse"
    return f"<table style='{colour}'><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _figure() -> go.Figure:
    made = go.Figure()
    # an open ring around a small square: both are seen where two runs agree
    for colour, symbol, size in zip(PALETTE, ("circle-open", "square"), (14, 7)):
        error = {**ERROR, "symmetric": False, "color": colour}
        marker = {"color": colour, "symbol": symbol, "size": size, "line": {"width": 2}}
        made.add_scatter(x=[], y=[], mode="markers", marker=marker, error_x=error, name=symbol)
    made.update_yaxes(autorange="reversed")
    made.update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, scattermode="group"
    )
    return styled(made, 380, "")


def _draw(figure: go.Figure, found: dict[str, Any], state: State) -> None:
    labels = found["labels"][:_MOST]
    with figure.batch_update():
        for i, trace in enumerate(figure.data):
            item = list(found["values"].items())[i : i + 1]
            trace.visible = bool(item)
            if item:
                name, values = item[0][0], item[0][1][:_MOST]
                trace.name, trace.x, trace.y = name, values[:, 0], labels
                trace.error_x.array = np.nan_to_num(values[:, 2] - values[:, 0])
                trace.error_x.arrayminus = np.nan_to_num(values[:, 0] - values[:, 1])
        # in two lines, or it is cut off on a narrow page
        figure.layout.xaxis.title.text = f"{state.metric}, {_axis(found)}".replace(" (", "<br>(", 1)
        figure.layout.height = max(300, 26 * len(labels) + 170)

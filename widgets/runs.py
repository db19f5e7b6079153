"""All records of a results folder: filter them, compare two, open an executed notebook."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go

from bmfl_lab.errors import BmflError, DataError, require
from bmfl_lab.files import read_json
from bmfl_lab.records import Record, comparison_label, read_record, study_label
from bmfl_lab.viz.charts import PALETTE, colours
from bmfl_lab.viz.explore import runs_figure
from bmfl_lab.viz.results import set_label
from widgets.figure import ERROR, LiveFigure, draw_chance, styled
from widgets.frame import LABEL, WIDE, Frame, dropdown, set_options
from widgets.table import ORDERS, Table

if TYPE_CHECKING:
    from bmfl_lab.viz.charts import Figure

_Condition = tuple[str, ...]
_MOST_ROWS = 30
_MOST_PARAMETERS = 8
_NEWEST = "newest first"
_CURVE = "val_accuracy"
_WITH_CHANCE = ("accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class State:
    """State of the run browser.

    Parameters
    ----------
    text : str
        Only runs whose folder, notebook, study or parameters contain this text are listed.
    first, second : str
        Two runs, by their folder below the results folder. By default the newest, and the newest
        other one that measured something in common with it.
    metric : str
        Metric that is compared; "accuracy" by default, or the first one that both runs have.
    sort : str, default "newest first"
        Column of the table by which runs are sorted: numbers from the largest to the smallest, text
        by the alphabet.
    reverse : bool, default False
        Sort the other way round.
    seeds : bool, default False
        Show single seeds instead of one value over the seeds.
    """

    text: str = ""
    first: str = ""
    second: str = ""
    metric: str = ""
    sort: str = _NEWEST
    reverse: bool = False
    seeds: bool = False


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

    def report(self, name: str) -> Path | None:
        """Return the report of a run, or of the spec that it belongs to, or None."""
        spec, reports = name.partition("/")[0], self.folder.parent / "reports"
        known = [*sorted((self.folder / name).glob("*.html"))]
        known += [reports / f"{spec}{ending}" for ending in (".html", ".md")]
        return next((path for path in known if path.is_file()), None)

    def curves(self, name: str) -> dict[str, list[list[tuple[float, float]]]]:
        """Return each model of a run to its validation accuracy: (epoch, fraction) per seed."""
        found: dict[str, list[list[tuple[float, float]]]] = {}
        for path in sorted((self.folder / name).glob("models/**/fusion.json")):
            with contextlib.suppress(BmflError, KeyError, TypeError):
                steps = [s for s in read_json(path)["history"] if _CURVE in s]
                model = path.relative_to(self.folder / name / "models").parts[0]
                found.setdefault(model, []).append([(s["epoch"], s[_CURVE]) for s in steps])
        return found


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
    second = state.second if state.second in names else _comparable(source, names, first)
    metrics = _metrics(source, first, second)
    metric = state.metric if state.metric in metrics else next(iter(metrics), "")
    return dataclasses.replace(state, first=first, second=second, metric=metric)


def _comparable(source: Source, names: Sequence[str], first: str) -> str:
    """Return the newest other run with rows of the first metric in common, or the newest other."""
    others = [n for n in names if n != first]
    metric = next(iter(_metrics(source, first)), "")
    known = set(_rows(source.records[first], metric, False)) if first else set()
    alike = (n for n in others if known & _rows(source.records[n], metric, False).keys())
    return next(alike, next(iter(others), first))


def _metrics(source: Source, *names: str) -> list[str]:
    """Return the metrics that all named runs have, or those of any of them if they share none."""
    found = [list(dict.fromkeys(r.name for r in source.records[n].rows)) for n in names if n]
    shared = [m for m in found[0] if all(m in f for f in found)] if found else []
    found = shared or sorted({m for f in found for m in f})
    return sorted(found, key=lambda name: name != "accuracy")


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
        ``runs``, one mapping per run that matches, with the parameters that differ; ``labels``, the
        n conditions that are compared, without the words that all share; ``shared``, these words;
        ``values``, run to (n, 3): value, low and high; ``axis``, the metric's name and unit, and
        the kind of interval from low to high; ``chance``, the chance levels of the metric in the
        studies of both runs, fractions; ``order``, one of `ORDERS`, or "" for newest first;
        ``curves``, run to the validation accuracies of its
        models, as `Source.curves` returns them; ``said``, the text of the status panel.

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
    names = dict.fromkeys((state.first, state.second))
    rows = {n: _rows(source.records[n], state.metric, state.seeds) for n in names}
    labels = list(dict.fromkeys(label for found in rows.values() for label in found))
    runs, order = _table_rows(state, source, next(iter(labels), ()))
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
    shared, labels = _without_shared(labels)
    return {
        "runs": runs,
        "order": order,
        "chance": _chance(source, names) if state.metric in _WITH_CHANCE else [],
        "labels": labels,
        "shared": shared,
        "curves": {n: source.curves(n) for n in names},
        "values": values,
        "axis": f"{state.metric}, {units}" + (f" ({intervals})" if intervals else ""),
        "said": said,
    }


def _without_shared(conditions: list[_Condition]) -> tuple[str, list[str]]:
    """Return the parts that all conditions share, and their labels without these parts."""
    shared = [p for p in conditions[0] if all(p in of for of in conditions)] if conditions else []
    labels = [" ".join(part for part in of if part not in shared) for of in conditions]
    if all(labels):
        return " ".join(shared), labels
    return "", [" ".join(of) for of in conditions]  # a single condition keeps its name


def _chance(source: Source, names: Iterable[str]) -> list[float]:
    """Return the different chance levels of the studies of some runs, fractions."""
    numbers = {int(source.records[n].study.get("n_classes") or 0) for n in names}
    return sorted(1 / n for n in numbers if n)


def _table_rows(
    state: State, source: Source, condition: _Condition
) -> tuple[list[dict[str, object]], str]:
    """Return one row per matching run, sorted, and the order of the column that sorts them.

    A row has the summary of the run, its value of a condition, and the parameters that differ.
    """
    names, rows = _matching(source, state.text), []
    given = [dict(source.records[n].parameters) for n in names]
    keys = dict.fromkeys(key for of in given for key in of)
    # values may be lists, which have no hash
    differ = [k for k in keys if len({str(of[k]) for of in given if k in of}) > 1]
    for name, of in zip(names, given):
        record = source.records[name]
        value = _rows(record, state.metric, state.seeds).get(condition, (np.nan,))[0]
        row = {"run": name, f"{state.metric}: {' '.join(condition)}": value}
        row |= {k: of.get(k, "") for k in differ[:_MOST_PARAMETERS]}
        rows.append({**row, **_summary(record)})
    if not rows or state.sort not in rows[0]:
        return rows, ""
    known = [r for r in rows if r[state.sort] not in ("", None) and r[state.sort] == r[state.sort]]
    numbers = all(isinstance(r[state.sort], (int, float)) for r in known)
    downwards = numbers != state.reverse
    known.sort(key=lambda r: r[state.sort] if numbers else str(r[state.sort]), reverse=downwards)
    # runs without a value stand last in either order
    return known + [r for r in rows if all(r is not other for other in known)], ORDERS[downwards]


def _summary(record: Record) -> dict[str, object]:
    study = study_label(record)
    return {
        "notebook": record.notebook,
        "study": study,
        "rows": len(record.rows),
        "finished": str(record.extra.get("finished", ""))[:16].replace("T", " "),
        "revision": str(record.extra.get("code_revision", "")),
    }


def _rows(record: Record, metric: str, seeds: bool) -> dict[_Condition, tuple[float, float, float]]:
    """Return value, low and high of each row of a metric, by model, image set, ROI and seed.

    Without `seeds` there is one row per condition: the one over seeds, the only seed's, or the mean
    of the seeds without an interval.
    """
    found: dict[_Condition, tuple] = {}
    single: dict[_Condition, list[tuple]] = {}
    for row in record.rows:
        if row.name == metric:
            named = comparison_label(row.name, row.model, row.reference, row.roi)
            parts = [named, set_label(row.split, row.shift, row.severity), row.roi]
            if seeds and row.seed is not None:
                parts.append(f"seed {row.seed}")
            numbers = (row.value, row.ci_low, row.ci_high)
            numbers = tuple(np.nan if v is None else float(v) for v in numbers)
            label = tuple(p for p in parts if p)
            if seeds or row.seed is None:
                found.setdefault(label, numbers)
            else:
                single.setdefault(label, []).append(numbers)
    for label, of in single.items():
        mean = float(np.mean([value for value, _, _ in of]))
        found.setdefault(label, of[0] if len(of) == 1 else (mean, np.nan, np.nan))
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
    labels, title = found["labels"][:_MOST_ROWS], _title(found, state)
    return runs_figure(labels, values, title=title, unit=found["axis"], chance=found["chance"])


def _title(found: Mapping, state: State) -> str:
    shared = f" ({found['shared']})" if found["shared"] else ""
    return f"{state.metric} of two runs{shared}"


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
    figure, curves = LiveFigure(_figure()), LiveFigure(_curves())
    table = Table("runs")

    def draw(found: dict, state: State) -> str:
        links = [_links(run["run"], source) for run in found["runs"]]
        table.show(found["runs"], links, state.sort, found["order"])
        _draw(figure.plot, found, _title(found, state))
        _draw_curves(curves.plot, found["curves"], _chance(source, found["curves"]))
        curves.layout.display = None if curves.plot.data else "none"
        return found["said"]

    frame = Frame(
        title=f"Runs in {source.folder.name}",
        state=first,
        controls=_controls(source, first),
        groups={
            "Find": ("text",),
            "Compare": ("first", "second"),
            "What": ("metric", "seeds"),
        },
        views=[([table], "1 1 100%"), (figure, "1 1 520px"), (curves, "1 1 380px")],
        source=source,
        select=select,
        draw=draw,
        adjust=_adjust,
        twin=figure_of,
        given={"folder": folder},
        folder=pictures,
        weights=lambda state: _weights(state, source),
    )

    def clicked(column: str) -> None:
        again = frame.state.sort == column
        frame.set(sort=column, reverse=again and not frame.state.reverse)

    table.on_click(clicked)
    return frame


def _controls(source: Source, first: State) -> dict[str, w.Widget]:
    names, look = list(source.records) or [""], {"style": LABEL, "layout": WIDE}
    text = {"description": "Filter", "placeholder": "part of a name", "continuous_update": False}
    return {
        "text": w.Text(value=first.text, **text, **look),
        "first": dropdown("First run", names, first.first or names[0]),
        "second": dropdown("Second run", names, first.second or names[0]),
        "metric": dropdown("Metric", [first.metric], first.metric),
        "seeds": w.Checkbox(value=first.seeds, description="Single seeds", **look),
    }


def _adjust(state: State, controls: Mapping[str, w.Widget], source: Source) -> State:
    state = resolve(state, source)
    for name in ("first", "second"):
        set_options(controls[name], _matching(source, state.text))
    set_options(controls["metric"], _metrics(source, state.first, state.second))
    if not state.first:
        return state
    labels = list(_rows(source.records[state.first], state.metric, state.seeds))
    rows, _ = _table_rows(state, source, next(iter(labels), ()))
    # the column of the metric has another name when the metric changes
    return state if state.sort in rows[0] else dataclasses.replace(state, sort=_NEWEST)


def _links(run: str, source: Source) -> dict[str, str]:
    """Return the addresses of a run's notebook and report, as far as they exist."""
    found = {"notebook": source.notebook(run), "report": source.report(run)}
    # relative, because the root folder of the server is unknown
    return {
        kind: quote(Path(os.path.relpath(path, Path.cwd())).as_posix())
        for kind, path in found.items()
        if path is not None
    }


def _weights(state: State, source: Source) -> str:
    """Return which weights the backbones of both runs had, as their records say."""
    found = {}
    for name in dict.fromkeys(filter(None, (state.first, state.second))):
        loaded = source.records[name].extra.get("backbones") or []
        named = dict.fromkeys(f"{one.get('name')}, {one.get('weights')}" for one in loaded)
        found.setdefault("; ".join(named) or "not recorded", []).append(name)
    return " ".join(f"Backbone of {' and '.join(names)}: {of}." for of, names in found.items())


def _figure() -> go.Figure:
    made = go.Figure()
    # an open ring around a small square: both are visible where two runs agree
    for colour, symbol, size in zip(PALETTE, ("circle-open", "square"), (14, 7)):
        error = {**ERROR, "symmetric": False, "color": colour}
        marker = {"color": colour, "symbol": symbol, "size": size, "line": {"width": 2}}
        look = {"mode": "markers", "marker": marker, "error_x": error, "name": symbol}
        # of one condition the runs stand one above the other
        made.add_scatter(x=[], y=[], orientation="h", **look)
    made.update_yaxes(autorange="reversed")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    made.update_layout(legend=legend, scattermode="group")
    return styled(made, 380).update_layout(margin={"t": 84}, title={"y": 0.99, "yanchor": "top"})


def _curves() -> go.Figure:
    made = styled(go.Figure(), 380, "Validation accuracy, one line per seed")
    made.update_xaxes(title_text="epoch")
    made.update_yaxes(title_text="accuracy, %")
    legend = {"orientation": "h", "y": -0.25, "x": 0}
    return made.update_layout(legend=legend, margin={"b": 90})


def _draw_curves(
    figure: go.Figure, curves: Mapping[str, Mapping[str, list]], chance: Sequence[float]
) -> None:
    """Draw a line per run, model and seed: the run sets the dash and the model the colour."""
    figure.data = []
    draw_chance(figure, [100 * level for level in chance])
    colour = colours(model for of in curves.values() for model in of)
    for (run, of), dash in zip(curves.items(), ("solid", "dot")):
        for model, seeds in of.items():
            for i, line in enumerate(seeds):
                epoch, value = np.reshape(line, (-1, 2)).T
                name = model if len(curves) == 1 else f"{model}, {run}"
                look = {"line": {"color": colour[model], "dash": dash, "width": 1.5}}
                look |= {"mode": "lines", "name": name, "legendgroup": name, "showlegend": i == 0}
                figure.add_scatter(x=epoch, y=100 * value, **look)


def _draw(figure: go.Figure, found: Mapping, title: str) -> None:
    figure.layout.title.text = title
    draw_chance(figure, found["chance"], "x")
    labels, runs = found["labels"][:_MOST_ROWS], list(found["values"].items())
    for trace in figure.data:
        trace.visible = bool(runs)
        if runs:
            trace.name, values = runs.pop(0)
            value, low, high = values[:_MOST_ROWS].T
            trace.x, trace.y = value, labels
            trace.error_x.array = np.nan_to_num(high - value)
            trace.error_x.arrayminus = np.nan_to_num(value - low)
    # in several lines, or it is cut off on a narrow page
    unit, bracket, method = found["axis"].partition(" (")
    lines = [unit, *textwrap.wrap(bracket.strip() + method, 36)]
    figure.layout.xaxis.title.text = "<br>".join(lines)
    figure.layout.height = max(300, 26 * len(labels) + 170)

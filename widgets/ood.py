"""Accuracy over shifts and severities, and the images on which two models differ."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from bmfl_lab.errors import DataError, require
from bmfl_lab.metrics.statistics import accuracy_interval, claimed
from bmfl_lab.viz.charts import DIVERGING, SEQUENTIAL, colours, ink_on, markers, require_rows
from bmfl_lab.viz.explore import sheet, shift_grid_figure
from widgets.figure import ERROR, SYMBOLS, LiveFigure, Pictures, draw_chance, styled
from widgets.frame import Frame, dropdown

if TYPE_CHECKING:
    import pandas as pd

    from bmfl_lab.evaluation import Explorer
    from bmfl_lab.evaluation.ood import OODResult
    from bmfl_lab.viz.charts import Figure

SHOW = ("other minus first", "accuracy of the first")
FLIPS = ("only the other is right", "only the first is right")
_MOST_SHOWN, _SIDE = 10, 150
_STAR = "* differs: p (Holm over the grid) at most 0.05"
_COLUMNS = ("model", "split", "shift", "severity", "id", "correct")


@dataclass(frozen=True)
class State:
    """State of the OOD explorer.

    Parameters
    ----------
    model, other : str
        Two models; by default the one called "backbone", or else the first one, and the next one.
    show : str, default "other minus first"
        Contents of the grid, one of `SHOW`.
    shift : str
        Shift or image set whose curve and images are shown; the first one by default.
    severity : int, default 0
        Severity of the images below the grid; 0 for an image set without severity. If this one was
        not evaluated, it is the largest one at which the better model keeps half of its accuracy,
        so that the images can still be recognised, or else the smallest one.
    flips : str
        Images that are shown, one of `FLIPS`.
    """

    model: str = ""
    other: str = ""
    show: str = SHOW[0]
    shift: str = ""
    severity: int = 0
    flips: str = FLIPS[0]


class Source:
    """Correct and wrong predictions of models per image, sorted by shift and severity.

    Parameters
    ----------
    result : OODResult or DataFrame
        Result of `evaluate_ood`, or its ``per_image`` frame: one row per model, image, shift,
        severity and seed.
    explorer : Explorer, optional
        Explorer of the same study, which shows the images and names the study.

    Attributes
    ----------
    models : tuple of str
        Names of the models.
    rows : tuple of str
        Rows of the grid: shifts, then image sets other than "test".
    severities : tuple of int
        Columns of the grid: 0 for a whole image set, and all severities that were evaluated.
    cells : dict of (str, str, int) to Series
        (model, row, severity) to the share of seeds that classify each image correctly.
    seeds : dict of (str, str, int) to DataFrame
        The same to whether each image (column) is right under each seed (row).
    answers : dict of (str, str, int) to DataFrame
        The same to the true class "label" and the answer "predicted" of each image, the most common
        one over seeds; empty if the rows have no such columns.

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """

    def __init__(self, result: OODResult | pd.DataFrame, explorer: Explorer | None = None):
        per_image = getattr(result, "per_image", result)
        require_rows(per_image, _COLUMNS, "per-image rows", "pass the result of evaluate_ood")
        self.explorer, self.title = explorer, "" if explorer is None else explorer.title
        frame = per_image.assign(severity=per_image["severity"].fillna(0).astype(int))
        self.models = tuple(dict.fromkeys(frame["model"]))
        made = [s for s in dict.fromkeys(frame["shift"]) if s]
        sets = [s for s in dict.fromkeys(frame.loc[frame["shift"] == "", "split"]) if s != "test"]
        self.rows, self.severities = (*made, *sets), tuple(sorted({0, *frame["severity"]}))
        self.cells: dict[tuple[str, str, int], pd.Series] = {}
        self.answers: dict[tuple[str, str, int], pd.DataFrame] = {}
        self.seeds: dict[tuple[str, str, int], pd.DataFrame] = {}
        self._ends: dict[tuple[str, str, int], tuple[float, float]] = {}
        frame = frame if "seed" in frame else frame.assign(seed=0)
        answered = {"label", "predicted"} <= set(frame.columns)
        for (model, split, shift, severity), part in frame.groupby(
            ["model", "split", "shift", "severity"], sort=False
        ):
            right = part.groupby("id", sort=False)["correct"].mean()
            rows = [shift] if shift else made if split == "test" else [split]
            self.cells |= {(model, row, severity): right for row in rows}
            table = part.assign(correct=part["correct"].astype(float))
            table = table.pivot_table("correct", "seed", "id", sort=False).dropna(axis=1)
            self.seeds |= {(model, row, severity): table for row in rows}
            if answered:
                self.answers |= {(model, row, severity): part for row in rows}

    def accuracy(self, model: str, row: str, severity: int) -> float:
        """Return the accuracy over images and seeds, NaN where nothing was evaluated."""
        cell = self.cells.get((model, row, severity))
        return np.nan if cell is None else float(cell.mean())

    def interval(self, model: str, row: str, severity: int) -> tuple[float, float, float]:
        """Return the accuracy with the 95 % interval that reports give (`accuracy_interval`)."""
        key = (model, row, severity)
        if key not in self._ends:
            found = None if key not in self.seeds else accuracy_interval(self.seeds[key])
            ends = (None, None) if found is None else (found.low, found.high)
            self._ends[key] = tuple(np.nan if end is None else end for end in ends)
        return self.accuracy(*key), *self._ends[key]

    def _classes(self, row: str) -> tuple[str, ...]:
        """Return the classes of the images of a row of the grid, () without an explorer."""
        if self.explorer is None:
            return ()
        return self.explorer.stimuli(row if row in self.explorer.sets else "test").class_names

    def chance(self, row: str) -> float | None:
        """Return the chance level of a row of the grid, a fraction.

        Without an explorer it follows from the number of classes among the images, and is None for
        rows without a true class.
        """
        found = next((of for (_, r, _), of in self.answers.items() if r == row), None)
        n = len(self._classes(row)) or (0 if found is None else found["label"].nunique())
        return 1 / n if n else None

    def answer(self, state: State, identifier: str) -> str:
        """Return the true class of an image and the answers of both models, one per line."""
        names, lines = self._classes(state.shift), []
        for model in (state.model, state.other):
            rows = self.answers[(model, state.shift, state.severity)]
            mine = rows[rows["id"] == identifier]
            said, true = int(mine["predicted"].mode()[0]), int(mine["label"].iloc[0])
            lines.append(f"{model}: {names[said] if said >= 0 else 'undefined'}")
        return "\n".join((f"true: {names[true]}", *lines))

    def image(self, state: State, identifier: str) -> np.ndarray:
        """Return the image with an id in the shift and severity of a state, uint8 (S, S, 3)."""
        split, shift = ("test", state.shift) if state.severity else (state.shift, "")
        index = int(self.explorer.stimuli(split).index_of([identifier])[0])
        return self.explorer.image(split, index, shift, state.severity or 3)


def resolve(state: State, source: Source) -> State:
    """Return the state with two models, a shift and a severity that was evaluated."""
    shift = state.shift or next(iter(source.rows), "")
    model = state.model or next((m for m in source.models if "backbone" in m), source.models[0])
    other = state.other or next((m for m in source.models if m != model), model)
    known = [s for s in source.severities if (model, shift, s) in source.cells]
    made = [s for s in known if s] or [0]
    severity = state.severity
    if severity not in made:
        best = {s: max(source.accuracy(m, shift, s) for m in (model, other)) for s in known}
        kept = [s for s in made if best.get(s, 0) >= best.get(0, 0) / 2]
        severity = kept[-1] if kept and 0 in best else made[0]
    return dataclasses.replace(state, model=model, other=other, shift=shift, severity=severity)


def select(state: State, source: Source) -> dict[str, object]:
    """Return the arrays that a state shows.

    Parameters
    ----------
    state : State
        The choices that are shown.
    source : Source
        Predictions of the models.

    Returns
    -------
    dict
        ``grid`` (n_rows, n_severities), fractions or their differences; ``curves``, model to
        (n_severities, 3), accuracy with its 95 % interval; ``flips``, image ids; ``images`` of the
        first ten of them, uint8 (S, S, 3), and their ``answers``; ``chance``, the chance level of
        the curves, a fraction or None; ``signed``, if the grid shows differences; ``marks``, "*"
        where they are significant, str (n_rows, n_severities); ``said``, the text of the status
        panel.

    Raises
    ------
    DataError
        If a model was not evaluated, or an image cannot be read.
    """
    state = resolve(state, source)
    for name in (state.model, state.other):
        require(
            name in source.models,
            DataError,
            f"a model among {source.models}",
            repr(name),
            "choose one of them",
        )
    severities, signed = source.severities, state.show == SHOW[0]
    first, other = (
        np.array([[source.accuracy(m, row, s) for s in severities] for row in source.rows])
        for m in (state.model, state.other)
    )
    grid = other - first if signed else np.where(np.isnan(other), np.nan, first)
    curves = {
        m: np.array([source.interval(m, state.shift, s) for s in severities]) for m in source.models
    }
    flips, counts, n = _flips(state, source)
    shown = [] if source.explorer is None else flips[:_MOST_SHOWN]
    said = (
        f"{state.shift} {state.severity or ''}, {n} images: only {state.other} right on "
        f"{counts[0]}, only {state.model} right on {counts[1]}. A model with several seeds is "
        "right if more than half of them are."
    )
    return {
        "grid": grid.reshape(-1, len(severities)),
        "curves": curves,
        "flips": flips,
        "images": [source.image(state, i) for i in shown],
        "answers": [source.answer(state, i) for i in shown] if source.answers else [],
        "chance": source.chance(state.shift),
        "signed": signed,
        "marks": _marks(state, source) if signed else np.full(grid.shape, ""),
        "said": said,
    }


def _marks(state: State, source: Source) -> np.ndarray:
    """Return "*" per cell of the grid whose difference is significant, str (n_rows, n_columns).

    All different cells of the grid are tested together, see `claimed`.
    """
    differences: dict[int, np.ndarray] = {}
    cells: dict[tuple[str, int], int] = {}
    for row in source.rows:
        for severity in source.severities:
            pair = [source.seeds.get((m, row, severity)) for m in (state.model, state.other)]
            if any(one is None for one in pair):
                continue
            first, other = pair[0].align(pair[1], join="inner")
            if first.size:
                # the unshifted test set stands in several rows and is one test
                cells[(row, severity)] = key = id(pair[0])
                differences[key] = other.to_numpy() - first.to_numpy()
    sure = claimed(differences)
    marks = np.full((len(source.rows), len(source.severities)), "", dtype=object)
    for (row, severity), key in cells.items():
        if key in sure:
            marks[source.rows.index(row), source.severities.index(severity)] = "*"
    return marks


def _flips(state: State, source: Source) -> tuple[list[str], tuple[int, int], int]:
    """Return ids of the chosen images, the numbers of both kinds, and the number of all images."""
    cells = [source.cells.get((m, state.shift, state.severity)) for m in (state.model, state.other)]
    if any(c is None for c in cells):
        return [], (0, 0), 0
    cells = [c > 0.5 for c in cells]
    first, other = cells[0].align(cells[1], join="inner")
    gained, lost = first.index[~first & other], first.index[first & ~other]
    chosen = gained if state.flips == FLIPS[0] else lost
    return [str(i) for i in chosen], (len(gained), len(lost)), len(first)


def figure_of(
    state: State, source: Source | OODResult | pd.DataFrame, explorer: Explorer | None = None
) -> Figure:
    """Return the static figure of a state, made with matplotlib.

    Parameters
    ----------
    state : State
        The choices that are shown.
    source : Source, OODResult or DataFrame
        Predictions of the models.
    explorer : Explorer, optional
        Explorer of the study, which is named in the title.

    Raises
    ------
    DataError
        If a model was not evaluated, or an image cannot be read.
    """
    source = source if isinstance(source, Source) else Source(source, explorer)
    state = resolve(state, source)
    found = select(state, source)
    return shift_grid_figure(
        found["grid"],
        source.rows,
        source.severities,
        found["curves"],
        title=": ".join(t for t in (source.title, _title(state)) if t),
        unit=_unit(state),
        signed=found["signed"],
        shift=state.shift,
        marks=found["marks"],
        note=_STAR if found["signed"] else "",
        chance=found["chance"],
    )


def _title(state: State) -> str:
    return (
        f"{state.other} minus {state.model}"
        if state.show == SHOW[0]
        else f"accuracy of {state.model}"
    )


def _unit(state: State) -> str:
    return "percentage points" if state.show == SHOW[0] else "accuracy, %"


def ood_explorer(
    result: OODResult | pd.DataFrame,
    explorer: Explorer | None = None,
    *,
    folder: str | Path = "figures",
    **state,
) -> Frame:
    """Browse accuracy over shifts and severities, and the images on which two models differ.

    Parameters
    ----------
    result : OODResult or DataFrame
        Result of `evaluate_ood`, or its ``per_image`` frame.
    explorer : Explorer, optional
        Explorer of the same study; with it the images themselves are shown.
    folder : str or Path, default "figures"
        Folder in which pictures are saved.
    **state
        Fields of the first `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell. A click on the grid chooses shift and severity.
    """
    source = Source(result, explorer)
    first = resolve(State(**state), source)
    grid, curves = LiveFigure(_grid(source)), LiveFigure(_curves(source))
    pictures = Pictures((_SIDE,) * _MOST_SHOWN, wrap=True)
    heading, listed = w.HTML(), w.HTML()

    def draw(found: dict, state: State) -> str:
        _draw_grid(grid.plot, found, state)
        _draw_curves(curves.plot, found, source, state)
        _show_flips(pictures, found)
        heading.value, listed.value = _counted(found, state), _listed(found["flips"])
        return found["said"]

    frame = Frame(
        title=f"Out of distribution: {source.title}".rstrip(": "),
        state=first,
        controls=_controls(source, first),
        groups={
            "Models": ("model", "other"),
            "Grid": ("show", "shift", "severity"),
            "Images on which the models differ": ("flips",),
        },
        views=[
            (grid, "1 1 400px"),
            (curves, "1 1 400px"),
            ([heading, pictures, listed], "1 1 100%"),
        ],
        source=source,
        select=select,
        draw=draw,
        adjust=lambda s, _, found: resolve(s, found),
        twin=figure_of,
        given={"result": result, "explorer": explorer},
        folder=folder,
        weights=lambda _: _weights(source),
    )

    def clicked(point: Mapping[str, object]) -> None:
        if point["trace"] == 0:
            severity = 0 if point["x"] == "none" else int(point["x"])
            frame.set(shift=str(point["y"]), severity=severity)

    grid.on_click(clicked)
    return frame


def _controls(source: Source, first: State) -> dict[str, w.Widget]:
    steps = [("whole set" if s == 0 else str(s), s) for s in source.severities]
    return {
        "model": dropdown("First", source.models, first.model),
        "other": dropdown("Other", source.models, first.other),
        "show": dropdown("Grid", SHOW, first.show),
        "shift": dropdown("Shift or set", source.rows or ("",), first.shift),
        "severity": dropdown("Severity", steps, first.severity),
        "flips": dropdown("Images", FLIPS, first.flips),
    }


def _weights(source: Source) -> str:
    if source.explorer is not None:
        return f"Backbone: {source.explorer.weights}."
    return "Backbone: unknown; pass the explorer of the study as the second argument to name it."


def _show_flips(pictures: Pictures, found: Mapping) -> None:
    """Show the images on which the models differ, with the true class and both answers."""
    answers = found["answers"] or [""] * len(found["images"])
    small = (sheet([image], 1, _SIDE) for image in found["images"])
    pictures.show(*zip(small, answers))


def _counted(found: Mapping, state: State) -> str:
    n, n_shown = len(found["flips"]), len(found["images"])
    first = f" (the first {n_shown} shown)" if 0 < n_shown < n else ""
    return f"<div>{n} images: {html.escape(state.flips)}{first}</div>"


def _listed(flips: list[str]) -> str:
    ids = html.escape(", ".join(flips[:40]) or "none") + (" ..." if len(flips) > 40 else "")
    return f"<div class='bmfl-status'>Image ids: {ids}</div>"


def _grid(source: Source) -> go.Figure:
    severities = ["none" if s == 0 else str(s) for s in source.severities]
    made = go.Figure()
    made.add_heatmap(
        z=np.zeros((len(source.rows), len(severities))),
        x=severities,
        y=list(source.rows),
        colorbar={"thickness": 12, "title": {"side": "right"}},
        hovertemplate="%{y}, severity %{x}: %{z:.1f}<extra></extra>",
    )
    made.add_scatter(x=[], y=[], mode="text", hoverinfo="skip", showlegend=False, name="numbers")
    made.update_xaxes(title_text="severity", type="category")
    made.update_yaxes(autorange="reversed", type="category")
    figure = styled(made, max(380, 26 * len(source.rows) + 150))
    return figure.update_layout(margin={"b": 70})


def _curves(source: Source) -> go.Figure:
    made = go.Figure()
    colour, marker = colours(source.models), markers(source.models)
    for name in source.models:
        error = {**ERROR, "symmetric": False, "color": colour[name]}
        look = {"color": colour[name], "symbol": SYMBOLS[marker[name]], "size": 8}
        made.add_scatter(x=[], y=[], name=name, mode="lines+markers", marker=look, error_y=error)
    made.update_xaxes(title_text="severity (0 = unshifted)", dtick=1)
    made.update_yaxes(title_text="accuracy, % (95 % interval)")
    made.update_layout(legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0})
    figure = styled(made, max(380, 26 * len(source.rows) + 150))
    return figure.update_layout(margin={"t": 84, "b": 70}, title={"y": 0.99, "yanchor": "top"})


def _draw_curves(figure: go.Figure, found: Mapping, source: Source, state: State) -> None:
    severities = np.asarray(source.severities)
    for trace, values in zip(figure.data, found["curves"].values()):
        known = np.isfinite(values[:, 0])
        value, low, high = 100 * values[known].T
        trace.x, trace.y = severities[known], value
        trace.error_y.array, trace.error_y.arrayminus = high - value, value - low
    draw_chance(figure, [] if found["chance"] is None else [100 * found["chance"]])
    figure.layout.title.text = state.shift


def _draw_grid(figure: go.Figure, found: Mapping, state: State) -> None:
    grid, (heatmap, numbers) = 100 * found["grid"], figure.data
    scale, top = SEQUENTIAL, 100
    if found["signed"]:
        scale, top = DIVERGING, max(1.0, float(np.nanmax(np.abs(grid), initial=0)))
    bottom = -top if found["signed"] else 0
    heatmap.update(z=grid, colorscale=scale, zmin=bottom, zmax=top)
    heatmap.colorbar.title.text = _unit(state)
    figure.layout.xaxis.title.text = "severity" + f"<br>{_STAR}" * found["signed"]
    figure.layout.title.text = _title(state)
    # numbers in black or white, whichever contrasts more with the colour of the cell
    rows, columns = np.nonzero(np.isfinite(grid))
    values = grid[rows, columns]
    numbers.x, numbers.y = [heatmap.x[c] for c in columns], [heatmap.y[r] for r in rows]
    form = "+.0f" if found["signed"] else ".0f"
    numbers.text = [f"{v:{form}}{found['marks'][r, c]}" for v, r, c in zip(values, rows, columns)]
    shares = np.clip((values - bottom) / (top - bottom), 0, 1).tolist()
    numbers.textfont.color = [
        ink_on(rgb) for rgb in sample_colorscale(scale, shares, colortype="tuple")
    ]

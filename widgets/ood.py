"""Accuracy over shifts and severities, and the images on which two models part."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.style import colours, ink_on, markers
from widgets.frame import Frame, dropdown, undisturbed
from widgets.pictures import Pictures, sheet
from widgets.plots import ERROR, sampled, styled

FLIPS = ("only the other is right", "only the first is right")
_COLUMNS = ("model", "split", "shift", "severity", "id", "correct")


@dataclass(frozen=True)
class State:
    """What the OOD explorer shows.

    Parameters
    ----------
    model, other : str
        Two models; the first two by default.
    show : str
        "accuracy of the first" or "other minus first".
    shift : str
        Shift or image set whose curve and flips are shown.
    severity : int
        Of the flips; 0 for an image set without severity.
    flips : str
        One of `FLIPS`.
    """

    model: str = ""
    other: str = ""
    show: str = "other minus first"
    shift: str = ""
    severity: int = 0
    flips: str = FLIPS[0]


SHOW = ("other minus first", "accuracy of the first")


class Source:
    """What the OOD explorer reads.

    Parameters
    ----------
    per_image : DataFrame
        ``OODResult.per_image``.
    image : callable, optional
        ``image(split, id, shift, severity) -> uint8 (H, W, 3)``.
    title : str
        Name of the study; says *simulated* where responses are.

    Attributes
    ----------
    models, rows : tuple of str
        Models; rows of the grid: made shifts, then natural image sets other than "test".
    severities : tuple of int
        0 for a whole set, and every severity that was evaluated.
    cells : dict of (str, str, int) to Series
        (model, row, severity) to the share of seeds that classify each image id correctly.

    Raises
    ------
    DataError
        If a column is missing.
    """

    def __init__(
        self, per_image: Any, image: Callable[..., np.ndarray] | None = None, title: str = ""
    ):
        missing = [c for c in _COLUMNS if c not in getattr(per_image, "columns", ())]
        if missing or per_image.empty:
            raise DataError(
                message(
                    f"per-image rows with columns {_COLUMNS}",
                    f"{len(per_image)} rows, missing {missing}",
                    "pass the result of evaluate_ood",
                )
            )
        self.image, self.title = image, title
        frame = per_image.assign(severity=per_image["severity"].fillna(0).astype(int))
        self.models = tuple(dict.fromkeys(frame["model"]))
        made = [s for s in dict.fromkeys(frame["shift"]) if s]
        sets = [s for s in dict.fromkeys(frame.loc[frame["shift"] == "", "split"]) if s != "test"]
        self.rows, self.severities = (*made, *sets), tuple(sorted({0, *frame["severity"]}))
        self.cells: dict[tuple[str, str, int], Any] = {}
        for (model, split, shift, severity), part in frame.groupby(
            ["model", "split", "shift", "severity"], sort=False
        ):
            right = part.groupby("id", sort=False)["correct"].mean()
            rows = [shift] if shift else made if split == "test" else [split]
            self.cells |= {(model, row, severity): right for row in rows}


def source_of(result: Any, explorer: Any = None) -> Source:
    """Return the source of a result of `evaluate_ood` (or its per-image frame), with images from an explorer.

    Raises
    ------
    DataError
        If the frame lacks a column.
    """
    frame = getattr(result, "per_image", result)

    def image(split: str, identifier: str, shift: str, severity: int) -> np.ndarray:
        index = int(explorer.stimuli(split).index_of([identifier])[0])
        return explorer.image(split, index, shift, severity or 3)

    return Source(frame, None if explorer is None else image, getattr(explorer, "title", ""))


def resolve(state: State, source: Source) -> State:
    """Return the state with models, shift and a severity that was evaluated."""
    shift = state.shift or (source.rows[0] if source.rows else "")
    model = state.model or source.models[0]
    known = [s for s in source.severities if (model, shift, s) in source.cells]
    made = [s for s in known if s] or [0]
    severity = (
        state.severity if state.severity in known and (state.severity or made == [0]) else made[-1]
    )
    other = state.other or next((m for m in source.models if m != model), model)
    return dataclasses.replace(state, model=model, other=other, shift=shift, severity=severity)


def select(state: State, source: Source) -> dict[str, Any]:
    """Return the arrays that a state shows.

    Parameters
    ----------
    state : State
        What to show.
    source : Source
        Where numbers come from.

    Returns
    -------
    dict
        ``grid`` (n_shifts, n_severities) of fractions, ``curves`` (model to (n_severities, 3)),
        ``flips`` (ids), ``images`` of the first flips, ``signed``, ``said``.

    Raises
    ------
    DataError
        If a model was not evaluated, or an image cannot be read.
    """
    state = resolve(state, source)
    for name in (state.model, state.other):
        if name not in source.models:
            raise DataError(
                message(f"a model among {source.models}", repr(name), "choose one of them")
            )
    severities, signed = source.severities, state.show == SHOW[0]
    grid = np.full((len(source.rows), len(severities)), np.nan)
    for i, row in enumerate(source.rows):
        for j, severity in enumerate(severities):
            first, other = (
                source.cells.get((m, row, severity)) for m in (state.model, state.other)
            )
            if first is not None and other is not None:
                grid[i, j] = other.mean() - first.mean() if signed else first.mean()
    curves = {
        m: np.array([_interval(source.cells.get((m, state.shift, s))) for s in severities])
        for m in source.models
    }
    flips, counts, n = _flips(state, source)
    images = []
    if source.image is not None:
        split = "test" if state.severity else state.shift
        shift = state.shift if state.severity else ""
        images = [source.image(split, i, shift, state.severity) for i in flips[:10]]
    said = (
        f"{state.shift} {state.severity or ''}, {n} images: only {state.other} right on {counts[0]}, only {state.model} "
        f"right on {counts[1]}. Majority over seeds where a model has several."
    )
    return {
        "grid": grid,
        "curves": curves,
        "flips": flips,
        "images": images,
        "signed": signed,
        "said": said,
    }


def _interval(cell: Any) -> tuple[float, float, float]:
    """Return the mean over images and seeds with the 95 % Wilson interval over images."""
    if cell is None:
        return (np.nan,) * 3
    p, n, z = float(cell.mean()), len(cell), 1.96
    centre, half = (p + z * z / (2 * n)), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def _flips(state: State, source: Source) -> tuple[list[str], tuple[int, int], int]:
    cells = [source.cells.get((m, state.shift, state.severity)) for m in (state.model, state.other)]
    if any(c is None for c in cells):
        return [], (0, 0), 0
    cells = [c > 0.5 for c in cells]
    first, other = cells[0].align(cells[1], join="inner")
    gained, lost = first.index[~first & other], first.index[first & ~other]
    chosen = gained if state.flips == FLIPS[0] else lost
    return [str(i) for i in chosen], (len(gained), len(lost)), len(first)


def figure_of(state: State, source: Any, explorer: Any = None) -> Any:
    """Return the static twin of the widget: a matplotlib figure.

    Parameters
    ----------
    state : State
        What to show.
    source : Source or OODResult
        Where numbers come from.
    explorer : Explorer, optional
        Names the study in the title.

    Raises
    ------
    DataError
        As `select`.
    """
    from bmfl_lab.viz.explore import shift_grid_figure

    source = source if isinstance(source, Source) else source_of(source, explorer)
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
    )


def _title(state: State) -> str:
    return (
        f"{state.other} minus {state.model}"
        if state.show == SHOW[0]
        else f"accuracy of {state.model}"
    )


def _unit(state: State) -> str:
    return "percentage points" if state.show == SHOW[0] else "accuracy, %"


@undisturbed()
def ood_explorer(
    result: Any, explorer: Any = None, *, folder: str | Path = "figures", **state: Any
) -> Frame:
    """Browse accuracy over shifts and severities, down to the images that flip between two models.

    Parameters
    ----------
    result : OODResult or DataFrame
        Of `evaluate_ood`, or its ``per_image`` frame.
    explorer : Explorer, optional
        Shows the images themselves.
    folder : str or Path
        Where pictures are saved.
    **state
        First state, fields of `State`.

    Returns
    -------
    Frame
        Display it as the last line of a cell. A click on the grid chooses shift and severity.
    """
    source = source_of(result, explorer)
    first = resolve(State(**state), source)
    figure, pictures, listed = _figure(source), Pictures((1000,)), w.HTML()
    steps = [("whole set" if s == 0 else str(s), s) for s in source.severities]
    controls = {
        "model": dropdown("First", source.models, first.model),
        "other": dropdown("Other", source.models, first.other),
        "show": dropdown("Grid", SHOW, first.show),
        "shift": dropdown("Shift or set", source.rows or ("",), first.shift),
        "severity": dropdown("Severity", steps, first.severity),
        "flips": dropdown("Flips", FLIPS, first.flips),
    }

    def draw(found: dict, state: State) -> str:
        _draw(figure, found, source, state)
        said = f"{len(found['flips'])} images: {state.flips}"
        pictures.show(
            *[(sheet(found["images"], len(found["images"])), said)] if found["images"] else ()
        )
        ids = html.escape(", ".join(found["flips"][:40]) or "none")
        listed.value = f"<div class='bmfl-status'>Image ids: {ids}{' ...' if len(found['flips']) > 40 else ''}</div>"
        return found["said"]

    frame = Frame(
        title=f"Out of distribution: {source.title}".rstrip(": "),
        state=first,
        controls=controls,
        groups={
            "Models": ("model", "other"),
            "Grid": ("show", "shift", "severity"),
            "Drill down": ("flips",),
        },
        views=[(figure, "1 1 600px"), ([pictures, listed], "1 1 100%")],
        source=source,
        select=select,
        draw=draw,
        adjust=lambda s, _, found: resolve(s, found),
        twin=figure_of,
        given={"result": result, "explorer": explorer},
        folder=folder,
    )
    frame.on_click(figure, lambda point: _grid_click(frame, point))
    return frame


def _grid_click(frame: Frame, point: dict[str, Any]) -> None:
    if point["trace"] == 0:
        frame.set(shift=str(point["y"]), severity=0 if point["x"] == "none" else int(point["x"]))


def _figure(source: Source) -> go.Figure:
    made = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.5, 0.5],
        subplot_titles=("grid", "curve"),
        horizontal_spacing=0.26,
    )
    severities = ["none" if s == 0 else str(s) for s in source.severities]
    bar = {"x": 0.38, "thickness": 12, "title": {"side": "right"}}
    made.add_heatmap(
        z=np.zeros((len(source.rows), len(severities))),
        x=severities,
        y=list(source.rows),
        colorbar=bar,
        hovertemplate="%{y}, severity %{x}: %{z:.1f}<extra></extra>",
        row=1,
        col=1,
    )
    colour, marker = colours(source.models), markers(source.models)
    symbols = {
        "o": "circle",
        "s": "square",
        "^": "triangle-up",
        "D": "diamond",
        "v": "triangle-down",
        "P": "cross",
    }
    for name in source.models:
        error = {**ERROR, "symmetric": False, "color": colour[name]}
        look = {"color": colour[name], "symbol": symbols.get(marker[name], "star"), "size": 8}
        made.add_scatter(
            x=[], y=[], mode="lines+markers", name=name, marker=look, error_y=error, row=1, col=2
        )
    made.add_scatter(
        x=[], y=[], mode="text", hoverinfo="skip", showlegend=False, name="numbers", row=1, col=1
    )
    made.update_xaxes(title_text="severity", type="category", row=1, col=1)
    made.update_yaxes(autorange="reversed", type="category", row=1, col=1)
    made.update_xaxes(title_text="severity (0 = unshifted)", dtick=1, row=1, col=2)
    made.update_yaxes(title_text="accuracy, % (95 % interval)", row=1, col=2)
    made.update_layout(legend={"orientation": "h", "y": 1.16, "yanchor": "bottom", "x": 0.62})
    figure = styled(made, max(380, 26 * len(source.rows) + 150))
    figure.update_layout(margin={"l": 10, "r": 14, "t": 84, "b": 56})
    return figure


def _draw(figure: go.Figure, found: dict[str, Any], source: Source, state: State) -> None:
    grid, signed = 100 * found["grid"], found["signed"]
    top = max(1.0, float(np.nanmax(np.abs(grid)))) if np.isfinite(grid).any() else 1.0
    scale = (
        {"colorscale": "RdBu", "zmin": -top, "zmax": top}
        if signed
        else {"colorscale": "Cividis", "zmin": 0, "zmax": 100}
    )
    with figure.batch_update():
        figure.data[0].update(z=grid, **scale)
        figure.data[0].colorbar.title.text = _unit(state)
        severities = np.asarray(source.severities)
        for trace, values in zip(figure.data[1:-1], found["curves"].values()):
            known = np.isfinite(values[:, 0])
            trace.x, trace.y = severities[known], 100 * values[known, 0]
            trace.error_y.array = 100 * (values[known, 2] - values[known, 0])
            trace.error_y.arrayminus = 100 * (values[known, 0] - values[known, 1])
        figure.layout.annotations[0].text = _title(state)
        figure.layout.annotations[1].text = state.shift
    with figure.batch_update():
        _write_numbers(figure.data[-1], figure.data[0], scale)


def _write_numbers(texts: Any, grid: Any, scale: dict[str, Any]) -> None:
    """Write each cell's number in black or white, whichever can be read on its colour."""
    rows, columns = np.nonzero(np.isfinite(grid.z))
    values = np.asarray(grid.z)[rows, columns]
    shares = (values - scale["zmin"]) / (scale["zmax"] - scale["zmin"])
    texts.x, texts.y = [grid.x[c] for c in columns], [grid.y[r] for r in rows]
    texts.text = [f"{v:.0f}" for v in values]
    texts.textfont.color = [ink_on(rgb) for rgb in sampled(scale["colorscale"], shares)]

"""Static figures of the states of interactive widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.viz.charts import (
    GREY,
    PALETTE,
    bare,
    colour_scale,
    colours,
    error_bars,
    figure_style,
    markers,
    panel,
    panels,
    write_cells,
)
from bmfl_lab.viz.results import grouped_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATES = ("intact", "lesion", "control: random vertices outside")
_GAP, _LINE = 6, 14  # pixels
_ENDS = ("value", "low", "high")
COLOURS = (PALETTE[0], PALETTE[1], "#9A9A9A")
KEPT_COLOURS = (PALETTE[2], PALETTE[3], PALETTE[4], PALETTE[5])
"""Colours of lesions that stand beside another one."""


def lesion_figure(
    image: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    label: int,
    table: Mapping[str, np.ndarray],
    sets: Sequence[str],
    *,
    title: str,
    chance: float,
    kept: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Figure:
    """Draw what a lesion does to one image and to whole image sets.

    Parameters
    ----------
    image : ndarray of uint8, shape (S, S, 3)
        The image.
    probabilities : mapping of str to ndarray, shape (C,)
        Class probabilities: "intact", and "lesion" if there is one.
    class_names : sequence of str, length C
        Names of the classes.
    label : int
        Number of the true class, -1 for none.
    table : mapping of str to ndarray
        ``accuracy``, ``low`` and ``high``, each (n_sets, 3), ``n`` (n_sets,) and ``changed``
        (n_sets, 2), as `Explorer.batch` returns them.
    sets : sequence of str
        Names of the image sets.
    title : str
        Title; contains *simulated* if responses are.
    chance : float
        Chance level of the accuracy, a fraction.
    kept : mapping of str to table, optional
        Name of a further lesion to its table of accuracies, drawn beside the lesion.

    Returns
    -------
    matplotlib.figure.Figure
    """
    kept = kept or {}
    numbers = {"class probability": pd.DataFrame(probabilities, class_names)}
    numbers |= {k: pd.DataFrame(table[k], sets, STATES) for k in ("accuracy", "low", "high")}
    for name, other in kept.items():
        numbers[f"kept: {name}"] = pd.DataFrame(
            {k: other[k][:, 1] for k in ("accuracy", "low", "high")}, sets
        )
    with panels(
        3,
        3,
        cell=(11 / 3, 3.9),
        title=title,
        numbers=pd.concat(numbers),
        width_ratios=(0.8, 1.3, 1.7),
    ) as drawn:
        picture, classes, accuracy = drawn
        picture.imshow(image)
        bare(picture)
        true = class_names[label] if label >= 0 else "none"
        picture.set_title(f"true class: {true}", fontsize=10)
        n = len(probabilities)
        y, height = np.arange(len(class_names)), 0.8 / n
        for i, (name, values) in enumerate(probabilities.items()):
            at = y + (i - (n - 1) / 2) * height
            classes.barh(at, 100 * values, height, color=COLOURS[i], label=name)
        classes.set_yticks(y, class_names)
        classes.invert_yaxis()
        classes.set(xlim=(0, 100), xlabel="class probability, %")
        classes.grid(True, axis="x")
        classes.legend(fontsize=8, loc="lower right")
        _accuracy_bars(accuracy, table, sets, chance, kept)
    return drawn.figure


def _accuracy_bars(
    axis: Axes,
    table: Mapping[str, np.ndarray],
    sets: Sequence[str],
    chance: float,
    kept: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    x = np.arange(len(sets))
    bars = [(name, table, column, COLOURS[column]) for column, name in enumerate(STATES)]
    others = zip(kept.items(), KEPT_COLOURS)
    bars += [(f"kept: {name}", other, 1, colour) for (name, other), colour in others]
    step = 0.81 / len(bars)
    for i, (name, of, column, colour) in enumerate(bars):
        low, value, high = (100 * of[k][:, column] for k in ("low", "accuracy", "high"))
        if np.isfinite(value).any():
            error = {"yerr": error_bars(value, low, high), "capsize": 3, "ecolor": "#222222"}
            at = x + (i - (len(bars) - 1) / 2) * step
            axis.bar(at, value, 0.93 * step, color=colour, label=name, **error)
    axis.axhline(100 * chance, ls="--", lw=1, color=GREY, label="chance")
    names = [f"{s}\nn = {n}" for s, n in zip(sets, table["n"])]
    if np.isfinite(table["accuracy"][:, 1]).any():
        turned = (f"{wrong} turned wrong, {right} right" for wrong, right in table["changed"])
        names = [f"{name}\n{text}" for name, text in zip(names, turned)]
    axis.set_xticks(x, names)
    axis.set(ylim=(0, 105), ylabel="accuracy, % (95 % interval)")
    axis.legend(
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, 1.06 + 0.08 * (1 + len(kept) / 3)),
        ncols=3,
    )


def region_figure(
    panel: Figure,
    image: np.ndarray | None,
    tuning: Mapping[str, np.ndarray] | None,
    class_names: Sequence[str],
    best: Sequence[np.ndarray],
    *,
    region: str,
) -> Figure:
    """Draw a brain map beside an image, the tuning of a region and its best images.

    Parameters
    ----------
    panel : matplotlib Figure
        The map, as made by `bmfl_lab.viz.surface.surface_panel`.
    image : ndarray of uint8, shape (S, S, 3), or None
        The image behind the map.
    tuning : mapping of str to ndarray, or None
        ``mean`` and ``error`` of the responses to each class, each (C,).
    class_names : sequence of str, length C
        Names of the classes.
    best : sequence of ndarray of uint8, each of shape (S, S, 3)
        Images with the largest mean response of the region.
    region : str
        Name of the region.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(panel)
    panel.set_dpi(150)
    canvas.draw()
    brain = np.asarray(canvas.buffer_rgba())
    layout = [["map"] * 3, ["image", "tuning", "best"]]
    look = {"width_ratios": (0.7, 1.6, 1.9), "height_ratios": (2.1, 1.2)}
    if tuning is None:
        layout = [["map"] if image is None else ["map", "image"]]
        look = {"width_ratios": (3.6, 1)[: len(layout[0])]}
    pictures = {
        "map": (brain, ""),
        "image": (image, "image"),
        "best": (sheet(best, len(best), 224), f"images with the largest response of {region}"),
    }
    with figure_style():
        figure = Figure(figsize=(11, 7.4 if len(layout) > 1 else 4.6), layout="constrained")
        figure.numbers = panel.numbers
        axes = figure.subplot_mosaic(layout, **look)
        for name in pictures.keys() & axes.keys():
            axes[name].set_axis_off()
            if pictures[name][0] is not None:
                axes[name].imshow(pictures[name][0])
                axes[name].set_title(pictures[name][1], fontsize=10)
        if tuning is not None:
            _tuning_bars(axes["tuning"], tuning, class_names)
            axes["tuning"].set_title(f"tuning of {region} (mean, standard error)", fontsize=10)
    return figure


def _tuning_bars(axis: Axes, tuning: Mapping[str, np.ndarray], class_names: Sequence[str]) -> None:
    look = {"color": PALETTE[5], "edgecolor": PALETTE[0], "ecolor": "#222222", "capsize": 3}
    axis.bar(range(len(class_names)), tuning["mean"], yerr=np.nan_to_num(tuning["error"]), **look)
    turned = {"rotation": 35, "ha": "right"} if len(class_names) > 4 else {}
    axis.set_xticks(range(len(class_names)), class_names, **turned)
    axis.set_ylabel("predicted response, z")


def sheet(
    images: Sequence[np.ndarray], columns: int, side: int = 72, labels: Sequence[str] = ()
) -> np.ndarray | None:
    """Return square thumbnails of images in rows, with labels below them.

    Parameters
    ----------
    images : sequence of ndarray of uint8, each of shape (S, S, 3)
        Images; their sizes may differ.
    columns : int
        Thumbnails per row.
    side : int, default 72
        Side of a thumbnail in pixels.
    labels : sequence of str, optional
        Text below each thumbnail, in black on white; all have the same number of lines.

    Returns
    -------
    ndarray of uint8, shape (H, W, 4), or None
        Thumbnails with transparent gaps; None without images.
    """
    from PIL import Image, ImageDraw

    if not len(images):
        return None
    columns, step = min(columns, len(images)), side + _GAP
    rows = -(-len(images) // columns)
    below = _LINE * (1 + labels[0].count("\n")) if labels else 0
    height = step + below
    made = np.zeros((rows * height - _GAP, columns * step - _GAP, 4), dtype=np.uint8)
    for i, image in enumerate(images):
        small = Image.fromarray(np.ascontiguousarray(image)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        y, x = height * (i // columns), step * (i % columns)
        made[y : y + side, x : x + side] = np.asarray(small.convert("RGBA"))
        if labels:
            text = Image.new("RGBA", (side, below), "white")
            ImageDraw.Draw(text).text((1, 0), labels[i], fill="black", font_size=11, spacing=2)
            made[y + side : y + side + below, x : x + side] = np.asarray(text)
    return made


def shares_figure(shares: Mapping[str, Mapping[str, float]], *, title: str) -> Figure:
    """Draw each ROI's share of the attention, for one image or several side by side.

    Parameters
    ----------
    shares : mapping of str to mapping of str to float
        Name of an image or model to the share of each ROI.
    title : str
        Title; contains *simulated* if responses are.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = [(roi, share, name) for name, of in shares.items() for roi, share in of.items()]
    frame = pd.DataFrame(rows, columns=["roi", "value", "model"])
    uniform = dict.fromkeys(frame["roi"], 1 / frame["roi"].nunique())
    look = {"title": title, "unit": "share of attention"}
    return grouped_figure(frame, ceiling=uniform, ceiling_name="uniform", **look)


def shift_grid_figure(
    grid: np.ndarray,
    shifts: Sequence[str],
    severities: Sequence[int],
    curves: Mapping[str, np.ndarray],
    *,
    title: str,
    unit: str,
    signed: bool,
    shift: str,
    marks: np.ndarray | None = None,
    note: str = "",
    chance: float | None = None,
) -> Figure:
    """Draw a grid of shifts and severities, and accuracy against severity for one shift.

    Parameters
    ----------
    grid : ndarray, shape (n_shifts, n_severities)
        Fractions or their differences; NaN where nothing was evaluated.
    shifts : sequence of str, length n_shifts
        Rows of the grid.
    severities : sequence of int, length n_severities
        Columns of the grid; severity 0 is the unshifted set.
    curves : mapping of str to ndarray, shape (n_severities, 3)
        Model to its accuracy and the ends of its interval, fractions.
    title, unit : str
        Title of the figure and label of the colour bar.
    signed : bool
        Whether colours are symmetric about zero.
    shift : str
        Shift that the curves belong to.
    marks : ndarray of str, shape (n_shifts, n_severities), optional
        Text behind the number of each cell.
    note : str, default ""
        Meaning of the marks, written below the grid.
    chance : float, optional
        Chance level of the accuracy, a fraction; no line by default.

    Returns
    -------
    matplotlib.figure.Figure
    """
    colour, marker = colours(curves), markers(curves)
    height, percent = max(3.4, 0.34 * len(shifts) + 1.6), 100 * grid
    numbers = {unit: pd.DataFrame(grid, shifts, severities)}
    numbers |= {k: pd.DataFrame(v, severities, _ENDS) for k, v in curves.items()}
    with panels(
        2, 2, cell=(5.5, height), title=title, numbers=pd.concat(numbers), width_ratios=(1.3, 1)
    ) as drawn:
        left, right = drawn
        top = max(1.0, float(np.nanmax(np.abs(percent), initial=0))) if signed else 100
        image = left.imshow(percent, aspect="auto", **colour_scale(percent, signed, top))
        write_cells(left, image, "+z.0f" if signed else "z.0f", marks)
        left.set_xticks(range(len(severities)), [str(s) if s else "none" for s in severities])
        left.set_yticks(range(len(shifts)), shifts)
        left.set_xlabel(f"severity\n{note}".rstrip())
        left.grid(False)
        drawn.figure.colorbar(image, ax=left, label=unit)
        for name, values in curves.items():
            known = np.isfinite(values[:, 0])
            value, low, high = 100 * values[known].T
            right.errorbar(
                np.asarray(severities)[known],
                value,
                yerr=error_bars(value, low, high),
                label=name,
                color=colour[name],
                marker=marker[name],
                capsize=3,
                lw=1.4,
            )
        if chance is not None:
            right.axhline(100 * chance, ls="--", lw=1, color=GREY, label="chance")
        right.set(xlabel="severity (0 = unshifted)", ylabel="accuracy, % (95 % interval)")
        right.set_title(shift, fontsize=10)
        right.legend(fontsize=8)
    return drawn.figure


def runs_figure(
    labels: Sequence[str],
    values: Mapping[str, np.ndarray],
    *,
    title: str,
    unit: str,
    chance: Sequence[float] = (),
) -> Figure:
    """Draw one metric of two runs side by side.

    Parameters
    ----------
    labels : sequence of str, length n
        Condition (model, image set, ROI and seed) of each row.
    values : mapping of str to ndarray, shape (n, 3)
        Run to value, low and high; NaN where it has no such row.
    title, unit : str
        Title and label of the horizontal axis.
    chance : sequence of float, optional
        Chance levels of the metric in the studies of the runs; no line by default.

    Returns
    -------
    matplotlib.figure.Figure
    """
    colour, marker = colours(values), markers(values)
    numbers = pd.concat({k: pd.DataFrame(v, labels, _ENDS) for k, v in values.items()})
    with panel(cell=(9, 0.34 * len(labels) + 1.6), title=title, numbers=numbers) as (drawn, axis):
        for i, (name, found) in enumerate(values.items()):
            y = np.arange(len(labels)) + (i - (len(values) - 1) / 2) * 0.25
            axis.errorbar(
                found[:, 0],
                y,
                xerr=error_bars(*found.T),
                label=name,
                fmt=marker[name],
                color=colour[name],
                capsize=2,
                lw=1.2,
            )
        for level in chance:
            name = "chance" if len(chance) == 1 else f"chance, {level:.3g}"
            axis.axvline(level, ls="--", lw=1, color=GREY, label=name)
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.set_xlabel(unit.replace(" (", "\n(", 1))
        axis.grid(True, axis="x")
        drawn.legend(2)
    return drawn.figure

"""Figures of a region ablation, of a sweep over alpha, and of controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.viz.charts import GREY, colours, markers, panel, panels, value_and_error
from bmfl_lab.viz.results import (
    count_note,
    interval_note,
    set_label,
    summary_rows,
    with_sets,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bmfl_lab.data.atlas import Atlas

_WIDTH_POINTS = 430  # of the panel of `agreement_figure`
_CONTROL = "#404040"  # of controls that stand in this figure alone
_TITLES = {
    "only": "region alone",
    "left_out": "retrained without",
    "lesioned": "lesioned at inference",
    "kept": "all other regions lesioned",
}


def effect_figure(table: pd.DataFrame, *, control: str, title: str = "") -> Figure:
    """Draw how much more each region matters than its control, with one panel per mode.

    Parameters
    ----------
    table : DataFrame
        Columns "mode", "control", "region", "split", "shift", "effect", "low", "high", "p_holm";
        effects are fractions.
    control : str
        Control that is compared with.
    title : str, default ""
        Title; contains *simulated* if responses are.

    Returns
    -------
    matplotlib Figure
        One mark per region and image set, with its interval; filled if its Holm-adjusted p value is
        at most 0.05.

    Raises
    ------
    DataError
        If there is no row of that control.
    """
    rows = table[table["control"] == control]
    known = sorted(set(table["control"]))
    expected = f"rows of the control {control!r}"
    require(control in known, DataError, expected, known, "choose one of them")
    rows = rows.assign(set=[set_label(a, b, None) for a, b in zip(rows["split"], rows["shift"])])
    modes, regions, sets = (list(dict.fromkeys(rows[k])) for k in ("mode", "region", "set"))
    colour, marker = colours(sets), markers(sets)
    offsets = np.linspace(-0.3, 0.3, len(sets)) if len(sets) > 1 else np.zeros(1)
    with panels(
        len(modes),
        len(modes),
        title=title,
        numbers=rows,
        cell=(3.1, 0.55 * len(regions)),
        margin=(1.6, 1.9),
        sharey=True,
    ) as drawn:
        for ax, mode in zip(drawn, modes):
            ax.axvline(0, color=GREY, lw=1, ls="--", label="no more than the control")
            _vertical_grid(ax)
            for name, offset in zip(sets, offsets):
                mine = rows[(rows["mode"] == mode) & (rows["set"] == name)]
                y = np.asarray([regions.index(r) for r in mine["region"]], dtype=float) + offset
                x, error = value_and_error(mine, ("effect", "low", "high"), 100)
                ax.errorbar(
                    x,
                    y,
                    xerr=error,
                    fmt=marker[name],
                    label=name,
                    color=colour[name],
                    ms=5,
                    capsize=2,
                    lw=1.2,
                    mfc="white",
                )
                sure = (mine["p_holm"] <= 0.05).to_numpy()
                ax.plot(x[sure], y[sure], marker[name], color=colour[name], ms=5, zorder=5)
            ax.set_title(_TITLES.get(mode, mode))
        drawn.label(
            "effect beyond control, accuracy points\n(above 0: it matters more than the control)"
        )
        note = "filled: adjusted p (Holm) at most 0.05"
        drawn.grid[0, 0].plot([], [], "o", color=GREY, ms=5, label=note)
        drawn.grid[0, 0].plot(
            [], [], "o", color=GREY, mfc="white", ms=5, label="hollow: above 0.05"
        )
        drawn.grid[0, 0].plot([], [], " ", label="bars: 95 % interval")
        drawn.grid[0, 0].set_yticks(range(len(regions)), regions)
        drawn.grid[0, 0].set_ylim(len(regions) - 0.4, -0.6)
        drawn.legend()
    return drawn.figure


def _vertical_grid(ax: Axes) -> None:
    ax.grid(axis="x", color="#E3E3E3")
    ax.grid(axis="y", visible=False)


def controls_figure(
    frame: pd.DataFrame,
    *,
    first: str,
    chance: float | None = None,
    title: str = "",
    n_columns: int = 3,
) -> Figure:
    """Draw a model and its controls, with one panel per image set and one row per model.

    Parameters
    ----------
    frame : DataFrame
        Metric rows of "accuracy", as made by `Record.to_frame`.
    first : str
        The model that the others are controls of; its mean is drawn as a dashed line.
    chance : float, optional
        Chance level, a fraction, drawn as a dotted line.
    title : str, default ""
        Title; contains *simulated* if responses are.
    n_columns : int, default 3
        Panels per row.

    Returns
    -------
    matplotlib Figure
        Large dots with intervals are means over seeds, small dots are single seeds.

    Raises
    ------
    DataError
        If there is no accuracy, or none of `first`.
    """
    rows = with_sets(summary_rows(frame, "accuracy"))
    sets, models = list(dict.fromkeys(rows["set"])), list(dict.fromkeys(rows["model"]))
    require(
        first in models,
        DataError,
        f"rows of {first!r}",
        sorted(models),
        "name an evaluated model",
    )
    every = with_sets(frame[(frame["name"] == "accuracy") & frame["seed"].notna()])
    known = colours(models, other=_CONTROL)
    colour = [known[m] for m in models]
    with panels(
        len(sets),
        n_columns,
        title=title,
        numbers=pd.concat([rows, every]),
        cell=(2.6, 0.26 * len(models) + 0.8),
        margin=(1.8, 0.5),
        sharey=True,
    ) as drawn:
        for ax, name in zip(drawn, sets):
            mine = rows[rows["set"] == name].set_index("model").reindex(models)
            ends = ("value", "ci_low", "ci_high")
            value, low, high = (100 * mine[k].to_numpy(float) for k in ends)
            ax.hlines(range(len(models)), low, high, color=colour, lw=1.4)
            ax.scatter(value, range(len(models)), c=colour, s=26, zorder=3)
            seeds = every[every["set"] == name]
            at = [models.index(m) + 0.25 for m in seeds["model"]]
            seed_values = 100 * seeds["value"].to_numpy(float)
            ax.plot(seed_values, at, ".", color=GREY, ms=3, label="single seeds")
            level = value[models.index(first)]
            ax.axvline(level, color=known[first], lw=1, ls="--", label=f"mean of {first}")
            if chance is not None:
                ax.axvline(100 * chance, color=GREY, lw=1, ls=":", label="chance")
            _vertical_grid(ax)
            ax.set_title(name)
            ax.set_xlabel("accuracy, %", fontsize=9)
        drawn.grid[0, 0].set_yticks(range(len(models)), models)
        drawn.grid[0, 0].set_ylim(len(models) - 0.4, -0.6)
        mark = {"marker": "o", "color": GREY, "lw": 1.4, "ms": 5}
        said = ", ".join(filter(None, ("mean over seeds, 95 % interval", count_note(rows))))
        drawn.grid[0, 0].plot([], [], label=said, **mark)
        drawn.legend(4)
    return drawn.figure


def roi_map(values: Mapping[str, float], atlas: Atlas) -> np.ndarray:
    """Paint one value per ROI on its vertices.

    Parameters
    ----------
    values : mapping of str to float
        Value of each ROI; names that are no ROI of the atlas are ignored.
    atlas : Atlas
        Atlas with the ROIs.

    Returns
    -------
    ndarray of float, shape (n_vertices,)
        NaN outside all ROIs, the mean where ROIs overlap.
    """
    known = [name for name in values if name in atlas.rois]
    masks = np.reshape([atlas.rois[name] for name in known], (len(known), atlas.n_vertices))
    total, count = np.asarray([values[name] for name in known]) @ masks, masks.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def agreement_figure(
    frame: pd.DataFrame,
    *,
    x: str,
    x_label: str,
    y: str = "accuracy",
    y_label: str = "accuracy, %",
    order: Sequence[str] = (),
    title: str = "",
    level: float | None = None,
    level_label: str = "chance",
    joined: str = "models in order",
) -> Figure:
    """Draw accuracy, or its gain, against a measured quantity, with one line per image set.

    Parameters
    ----------
    frame : DataFrame
        Columns "model", "set", "low", "high", `x` and `y`; `y` and its interval are fractions. Each
        model is one mark per line, named above it. A line joins the models in the order of the
        rows.
    x, x_label : str
        Column and axis label of the measured quantity.
    y, y_label : str
        Column and axis label of the vertical axis.
    order : sequence of str, optional
        Image sets in the order of their colours; by default by first row.
    title : str, default ""
        Title; contains *simulated* if responses are.
    level : float, optional
        Level to compare with, a fraction, drawn as a dashed line.
    level_label : str, default "chance"
        Name of the level.
    joined : str, default "models in order"
        Models that a line joins, and their order, as the legend names them.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If the frame is empty.
    """
    require(not frame.empty, DataError, "at least one row", "none", "evaluate the models first")
    sets = list(order) or list(dict.fromkeys(frame["set"]))
    colour, marker = colours(sets), markers(sets)
    with panel(cell=(7, 4.2), numbers=frame) as (drawn, ax):
        # sets at one place would hide each other's bars
        step = 0.008 * np.ptp(frame[x].to_numpy(float))
        for k, name in enumerate(sets):
            mine = frame[frame["set"] == name]
            value, error = value_and_error(mine, (y, "low", "high"), 100)
            ax.errorbar(
                mine[x].to_numpy(float) + step * (k - (len(sets) - 1) / 2),
                value,
                yerr=error,
                label=name,
                fmt=f"{marker[name]}-",
                color=colour[name],
                capsize=2,
                lw=1.2,
            )
        (left, right), top = ax.get_xlim(), ax.get_ylim()[1]
        look = {"rotation": 90, "ha": "center", "fontsize": 8, "color": GREY}
        last = -np.inf
        for model, at in frame.groupby("model", sort=False)[x].first().sort_values().items():
            # in points; a name close to the one on its left moves to the right
            place = (at - left) / (right - left) * _WIDTH_POINTS
            last = max(place, last + 11)
            offset = {"xytext": (last - place, 3), "textcoords": "offset points"}
            ax.annotate(model, (at, top), annotation_clip=False, **offset, **look)
        if level is not None:
            ax.axhline(100 * level, ls="--", lw=1, color=GREY, label=level_label)
        ax.plot([], [], " ", label=interval_note(frame))
        ax.plot([], [], "-", color=GREY, lw=1.2, label=f"lines join {joined}")
        ax.set_title(title, pad=10 + 5 * frame["model"].str.len().max())
        drawn.label(x_label, y_label)
        drawn.legend()
    return drawn.figure

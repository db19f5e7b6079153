"""Static twins of the interactive widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bmfl_lab.viz.style import GREY, PALETTE, colours, figure_style, ink_on, markers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES = ("intact", "lesion", "random lesion of the same size")
COLOURS = (PALETTE[0], PALETTE[1], "#9A9A9A")


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
) -> Figure:
    """Draw what a lesion does to one image and to whole sets.

    Parameters
    ----------
    image : ndarray of uint8, shape (S, S, 3)
        The image.
    probabilities : mapping of str to ndarray, shape (C,)
        "intact", and "lesion" where there is one.
    class_names : sequence of str
        The C classes.
    label : int
        True class, -1 for none.
    table : mapping
        ``accuracy``, ``low``, ``high`` (n_sets, 3), ``n`` and ``changed``, as `Explorer.batch`
        returns.
    sets : sequence of str
        Names of the sets.
    title : str
        Says what is lesioned, and *simulated*.
    chance : float
        Chance level of the accuracy.

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(11, 3.9), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=(0.8, 1.3, 1.7))
        axes[0].imshow(image)
        axes[0].set_axis_off()
        axes[0].set_title(
            f"true class: {class_names[label] if label >= 0 else 'none'}", fontsize=10
        )
        y, height = np.arange(len(class_names)), 0.8 / len(probabilities)
        for i, (name, values) in enumerate(probabilities.items()):
            axes[1].barh(
                y + (i - (len(probabilities) - 1) / 2) * height,
                100 * values,
                height,
                color=COLOURS[i],
                label=name,
            )
        axes[1].set_yticks(y, class_names)
        axes[1].invert_yaxis()
        axes[1].set_xlim(0, 100)
        axes[1].set_xlabel("class probability, %")
        axes[1].grid(True, axis="x")
        axes[1].legend(fontsize=8, loc="lower right")
        _accuracy_bars(axes[2], table, sets, chance)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _accuracy_bars(
    axis: Any, table: Mapping[str, np.ndarray], sets: Sequence[str], chance: float
) -> None:
    x = np.arange(len(sets))
    for column, (name, colour) in enumerate(zip(STATES, COLOURS)):
        values = 100 * table["accuracy"][:, column]
        if not np.isfinite(values).any():
            continue
        error = 100 * np.abs(
            np.stack([table["low"], table["high"]])[:, :, column] - table["accuracy"][:, column]
        )
        axis.bar(x + (column - 1) * 0.27, values, 0.25, color=colour, label=name)
        axis.errorbar(
            x + (column - 1) * 0.27,
            values,
            yerr=error,
            fmt="none",
            ecolor="#222222",
            capsize=3,
            lw=1,
        )
    axis.axhline(100 * chance, ls="--", lw=1, color=GREY)
    axis.annotate(
        "chance", (1.01, 100 * chance), xycoords=("axes fraction", "data"), va="center", fontsize=8
    )
    names = [f"{s}\nn = {n}" for s, n in zip(sets, table["n"])]
    if np.isfinite(table["accuracy"][:, 1]).any():
        turned = (f"{wrong} turned wrong, {right} right" for wrong, right in table["changed"])
        names = [f"{name}\n{text}" for name, text in zip(names, turned)]
    axis.set_xticks(x, names)
    axis.set_ylim(0, 105)
    axis.set_ylabel("accuracy, % (95 % interval)")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)


def region_figure(
    panel: Figure,
    image: np.ndarray | None,
    tuning: Mapping[str, np.ndarray] | None,
    class_names: Sequence[str],
    best: Sequence[np.ndarray],
    *,
    region: str,
) -> Figure:
    """Set a brain map beside an image, the tuning of a region and its best images.

    Parameters
    ----------
    panel : matplotlib Figure
        The map, as made by `surface_panel`.
    image : ndarray of uint8, or None
        The image behind the map.
    tuning : mapping, or None
        ``mean`` and ``error`` (C,).
    class_names : sequence of str
        The C classes.
    best : sequence of uint8 arrays
        Images with the largest mean response of the region.
    region : str
        Its name.

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(panel)
    panel.set_dpi(150)
    canvas.draw()
    with figure_style():
        if tuning is None:
            return _map_and_image(canvas.buffer_rgba(), image)
        figure = Figure(figsize=(11, 7.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(2.1, 1.2))
        axis = top.subplots()
        axis.imshow(np.asarray(canvas.buffer_rgba()))
        axis.set_axis_off()
        left, middle, right = bottom.subplots(1, 3, width_ratios=(0.7, 1.6, 1.9))
        for axis in (left, right):
            axis.set_axis_off()
        if image is not None:
            left.imshow(image)
            left.set_title("image", fontsize=10)
        x = np.arange(len(class_names))
        middle.bar(x, tuning["mean"], color=PALETTE[5], edgecolor=PALETTE[0])
        middle.errorbar(
            x,
            tuning["mean"],
            yerr=np.nan_to_num(tuning["error"]),
            fmt="none",
            ecolor="#222222",
            capsize=3,
        )
        middle.set_xticks(
            x,
            class_names,
            rotation=35 if len(class_names) > 4 else 0,
            ha="right" if len(class_names) > 4 else "center",
        )
        middle.set_ylabel("predicted response, z")
        middle.set_title(f"tuning of {region} (mean, standard error)", fontsize=10)
        if len(best):
            side = max(i.shape[0] for i in best)
            right.imshow(
                np.concatenate(
                    [
                        np.pad(i, ((0, side - len(i)), (0, 4), (0, 0)), constant_values=255)
                        for i in best
                    ],
                    1,
                )
            )
            right.set_title(f"images with the largest response of {region}", fontsize=10)
    return figure


def _map_and_image(panel: Any, image: np.ndarray | None) -> Figure:
    """Set a brain map beside the image behind it, if there is one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2 if image is None else 4.4), layout="constrained")
    axes = figure.subplots(
        1,
        1 if image is None else 2,
        squeeze=False,
        width_ratios=(1,) if image is None else (3.6, 1),
    )
    for axis, picture in zip(axes[0], (np.asarray(panel), image)):
        axis.imshow(picture)
        axis.set_axis_off()
    if image is not None:
        axes[0, 1].set_title("image", fontsize=10)
    return figure


def shares_figure(shares: Mapping[str, Mapping[str, float]], *, title: str) -> Figure:
    """Draw which ROI is consulted, for one image or several side by side.

    Parameters
    ----------
    shares : mapping of str to mapping of str to float
        Image or model name to the share of attention of each ROI.
    title : str
        Title.

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.figure import Figure

    regions = list(next(iter(shares.values())))
    colour = colours(shares)
    with figure_style():
        figure = Figure(figsize=(max(7, 0.5 * len(regions) + 2), 3.4), layout="constrained")
        axis = figure.subplots()
        width = 0.8 / len(shares)
        for i, (name, values) in enumerate(shares.items()):
            x = np.arange(len(regions)) + (i - (len(shares) - 1) / 2) * width
            axis.bar(x, [values[r] for r in regions], width, color=colour[name], label=name)
        axis.axhline(1 / len(regions), ls="--", lw=1, color=GREY, label="uniform")
        axis.set_xticks(np.arange(len(regions)), regions, rotation=45, ha="right")
        axis.set_ylabel("share of attention")
        axis.set_title(title)
        axis.legend(fontsize=8)
    return figure


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
) -> Figure:
    """Draw a shift by severity grid, and accuracy against severity for one shift.

    Parameters
    ----------
    grid : ndarray, shape (n_shifts, n_severities)
        Fractions or their differences; NaN where nothing was evaluated.
    shifts, severities : sequence
        Rows and columns; severity 0 is the unshifted set.
    curves : mapping of str to ndarray, shape (n_severities, 3)
        Model to value, low and high.
    title, unit : str
        Title and colour-bar label.
    signed : bool
        Diverging colours about zero.
    shift : str
        Which shift the curves belong to.

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.figure import Figure

    colour, marker = colours(curves), markers(curves)
    with figure_style():
        figure = Figure(figsize=(11, max(3.4, 0.34 * len(shifts) + 1.6)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        top = max(1.0, float(np.nanmax(np.abs(100 * grid)))) if np.isfinite(grid).any() else 1.0
        limits = (-top, top) if signed else (0, 100)
        drawn = left.imshow(
            100 * grid,
            cmap="RdBu" if signed else "cividis",
            vmin=limits[0],
            vmax=limits[1],
            aspect="auto",
        )
        left.set_xticks(range(len(severities)), [str(s) if s else "none" for s in severities])
        left.set_yticks(range(len(shifts)), shifts)
        left.set_xlabel("severity")
        left.grid(False)
        for row, col in zip(*np.nonzero(np.isfinite(grid))):
            ink = ink_on(drawn.to_rgba(100 * grid[row, col]))
            left.text(
                col,
                row,
                f"{100 * grid[row, col]:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color=ink,
            )
        figure.colorbar(drawn, ax=left, label=unit)
        for name, values in curves.items():
            known = np.isfinite(values[:, 0])
            error = np.nan_to_num(100 * np.abs(values[known, 1:] - values[known, :1]).T)
            right.errorbar(
                np.asarray(severities)[known],
                100 * values[known, 0],
                yerr=error,
                color=colour[name],
                marker=marker[name],
                capsize=3,
                lw=1.4,
                label=name,
            )
        right.set_xlabel("severity (0 = unshifted)")
        right.set_ylabel("accuracy, % (95 % interval)")
        right.set_title(shift, fontsize=10)
        right.legend(fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def runs_figure(
    labels: Sequence[str], values: Mapping[str, np.ndarray], *, title: str, unit: str
) -> Figure:
    """Draw one metric of two runs side by side.

    Parameters
    ----------
    labels : sequence of str
        Condition (model and image set) of each row.
    values : mapping of str to ndarray, shape (n_rows, 3)
        Run to value, low and high; NaN where it has no such row.
    title, unit : str
        Title and axis label.

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.figure import Figure

    colour, marker = colours(values), markers(values)
    with figure_style():
        figure = Figure(figsize=(9, 0.34 * len(labels) + 1.6), layout="constrained")
        axis = figure.subplots()
        for i, (name, found) in enumerate(values.items()):
            y = np.arange(len(labels)) + (i - (len(values) - 1) / 2) * 0.25
            error = np.nan_to_num(np.abs(found[:, 1:] - found[:, :1]).T)
            axis.errorbar(
                found[:, 0],
                y,
                xerr=error,
                fmt=marker[name],
                color=colour[name],
                capsize=2,
                lw=1.2,
                label=name,
            )
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.grid(True, axis="x")
        axis.set_title(title)
        axis.legend(fontsize=8)
    return figure

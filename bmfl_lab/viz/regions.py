"""Figures per region: distributions over vertices, tables of numbers and receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.viz.charts import colour_scale, colours, frame_cell, panel, panels, write_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def distribution_figure(
    groups: Mapping[str, np.ndarray],
    *,
    title: str,
    unit: str,
    reference: Mapping[str, float] | None = None,
    reference_name: str = "reference",
) -> Figure:
    """Draw the distribution of a value over the vertices of each region.

    Parameters
    ----------
    groups : mapping of str to ndarray of float, shape (n_vertices,)
        Region to the values of its vertices. Undefined values (NaN) are left out, and counted below
        the name.
    title, unit : str
        Title and label of the vertical axis.
    reference : mapping of str to float, optional
        A level per region, drawn as a line.
    reference_name : str, default "reference"
        Name of that level.

    Returns
    -------
    matplotlib Figure
        Box: middle half and median; whiskers: 5 % to 95 %; diamond: mean.

    Raises
    ------
    DataError
        If there is no region.
    """
    require(groups, DataError, "at least one region", "none", "give a mapping region -> values")
    clean, names = [], []
    for name, values in groups.items():
        clean.append(np.asarray(values, float)[np.isfinite(values)])
        n, undefined = len(clean[-1]), len(values) - len(clean[-1])
        names.append(f"{name}\n{n}" + (f"\n({undefined} undefined)" if undefined else ""))
    at = np.arange(1, len(groups) + 1)
    numbers = pd.concat({name: pd.Series(v) for name, v in groups.items()}, names=["region"])
    with panel(cell=(max(5.0, 0.75 * len(groups) + 1.2), 3.5), title=title, numbers=numbers) as (
        drawn,
        ax,
    ):
        boxes = ax.boxplot(
            clean,
            whis=(5, 95),
            showfliers=False,
            showmeans=True,
            patch_artist=True,
            widths=0.6,
            medianprops={"color": "#003A5C", "lw": 1.6},
            meanprops={"marker": "D", "mfc": "white", "mec": "#003A5C", "ms": 4},
        )
        for box in boxes["boxes"]:
            box.set(facecolor="#BFE0F5", edgecolor="#0072B2")
        if reference:
            level = np.asarray([reference.get(name, np.nan) for name in groups], float)
            ax.hlines(level, at - 0.4, at + 0.4, color="#D55E00", lw=2, label=reference_name)
            drawn.legend(place="outside upper right")
        ax.set_xticks(at, names, fontsize=8 if len(groups) > 10 else 9)
        note = "box: middle half and median; whiskers: 5 % to 95 %; diamond: mean"
        drawn.label(f"region, with its number of vertices\n({note})", unit)
    return drawn.figure


def table_figure(
    table: pd.DataFrame, *, title: str, unit: str, mark: str | None = "best"
) -> Figure:
    """Draw a table of numbers as colours with the numbers in them.

    Colours are symmetric about zero if a number is negative.

    Parameters
    ----------
    table : DataFrame
        Numbers, for instance of blocks (rows) and regions (columns). The name of its index labels
        the vertical axis.
    title, unit : str
        Title and label of the colour bar.
    mark : str, optional
        The largest value of each column is framed, and called by this word; None frames nothing.

    Returns
    -------
    matplotlib.figure.Figure
    """
    values = table.to_numpy(float)
    size = (0.62 * values.shape[1] + 2.6, 0.3 * values.shape[0] + 1.5)
    with panel(cell=size, title=title, numbers=table) as (drawn, ax):
        image = ax.imshow(values, aspect="auto", **colour_scale(values))
        write_cells(ax, image, "z.2f")
        for c in np.flatnonzero(np.isfinite(values).any(0)) if mark else ():
            frame_cell(ax, int(np.nanargmax(values[:, c])), c)
        ax.set_xticks(np.arange(values.shape[1]), [str(c) for c in table.columns], fontsize=9)
        ax.set_yticks(np.arange(values.shape[0]), [str(i) for i in table.index], fontsize=9)
        ax.grid(False)
        note = f"region (framed: {mark} in its column)" if mark else ""
        drawn.label(note, str(table.index.name or ""))
        drawn.figure.colorbar(image, ax=ax, label=unit)
    return drawn.figure


def fields_figure(
    fields: pd.DataFrame, rois: Sequence[str], *, title: str, degrees: float
) -> Figure:
    """Compare recovered receptive fields with the true ones.

    Parameters
    ----------
    fields : DataFrame
        One row per vertex, as `bmfl_lab.evaluation.receptive_field_error` returns it.
    rois : sequence of str, length n_vertices
        ROI of each row; rows with "" are left out.
    title : str
        Title; contains *simulated* if responses are.
    degrees : float
        Visual angle of the side of the image, in degrees.

    Returns
    -------
    matplotlib Figure
        Left: a line from each true centre (dot) to the recovered one. Right: distance per ROI.

    Raises
    ------
    DataError
        If no vertex has a true and a recovered field.
    """
    rois = np.asarray(rois, dtype=object)
    known = np.isfinite(fields["error_degrees"].to_numpy(float)) & (rois != "")
    names, half = sorted(set(rois[known])), degrees / 2
    require(
        names,
        DataError,
        "vertices with true and recovered fields",
        "none",
        "use a simulated subject, and name the ROIs of its vertices",
    )
    colour = colours(names)
    with panels(
        2, 2, cell=(4.3, 4.2), title=title, numbers=fields.assign(roi=rois), width_ratios=(1, 1.1)
    ) as drawn:
        field, errors = drawn
        for name in names:
            part = fields[known & (rois == name)]
            step = max(1, len(part) // 60)
            x, y, tx, ty = (part[c].to_numpy(float)[::step] for c in ("x", "y", "true_x", "true_y"))
            field.plot(np.stack([tx, x]), np.stack([ty, y]), color=colour[name], lw=0.6, alpha=0.6)
            field.plot(tx, ty, "o", color=colour[name], ms=3, label=name)
        field.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        field.set(xlabel="horizontal place (degrees)", ylabel="vertical place (degrees)")
        field.set_title("true centre (dot) to recovered one")
        groups = [fields["error_degrees"].to_numpy(float)[known & (rois == n)] for n in names]
        errors.boxplot(groups, whis=(5, 95), showfliers=False, medianprops={"color": "#003A5C"})
        errors.set_xticks(np.arange(1, len(names) + 1), names)
        errors.set_ylabel("distance of the centres (degrees)")
        errors.set_ylim(bottom=0)
        errors.set_title("error by region")
        errors.set_xlabel("box: middle half and median; whiskers: 5 % to 95 %", fontsize=8)
        drawn.legend(9)
    return drawn.figure

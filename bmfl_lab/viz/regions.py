"""Figures per region: distributions over vertices, grouped bars, tables as colours, receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.style import colours, figure_style

if TYPE_CHECKING:
    import pandas as pd
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
    groups : mapping of str to ndarray of float
        Region to the values of its vertices; undefined ones (NaN) are left out and counted below
        the name.
    title, unit : str
        Heading and axis label.
    reference : mapping of str to float, optional
        A level per region, drawn as a line.
    reference_name : str
        What that level is.

    Returns
    -------
    matplotlib.figure.Figure
        Box: middle half and median; whiskers: 5 % to 95 %; diamond: mean.

    Raises
    ------
    DataError
        If there is no group.
    """
    from matplotlib.figure import Figure

    if not groups:
        raise DataError(message("at least one region", "none", "give a mapping region -> values"))
    with figure_style():
        figure = Figure(figsize=(max(5.0, 0.75 * len(groups) + 1.2), 3.5), layout="constrained")
        ax = figure.subplots()
        clean = {
            name: np.asarray(v, float)[np.isfinite(np.asarray(v, float))]
            for name, v in groups.items()
        }
        boxes = ax.boxplot(
            list(clean.values()),
            whis=(5, 95),
            showfliers=False,
            showmeans=True,
            patch_artist=True,
            widths=0.6,
            medianprops={"color": "#003A5C", "lw": 1.6},
            meanprops={
                "marker": "D",
                "markerfacecolor": "white",
                "markeredgecolor": "#003A5C",
                "markersize": 4,
            },
        )
        for box in boxes["boxes"]:
            box.set(facecolor="#BFE0F5", edgecolor="#0072B2")
        if reference:
            level = np.asarray([reference.get(name, np.nan) for name in groups], float)
            at = np.arange(1, len(groups) + 1)
            ax.hlines(level, at - 0.4, at + 0.4, color="#D55E00", lw=2, label=reference_name)
            figure.legend(loc="outside upper right", fontsize=9)
        names = [
            f"{name}\n{len(v)}"
            + (f"\n({len(groups[name]) - len(v)} undefined)" if len(v) < len(groups[name]) else "")
            for name, v in clean.items()
        ]
        ax.set_xticks(np.arange(1, len(groups) + 1), names, fontsize=8 if len(groups) > 10 else 9)
        ax.set_xlabel("region, with its number of vertices")
        ax.set_ylabel(unit)
        ax.set_title(title)
    return figure


def grouped_figure(
    frame: pd.DataFrame,
    *,
    title: str,
    unit: str,
    by: str = "model",
    ceiling: Mapping[str, float] | None = None,
    ceiling_name: str = "noise ceiling",
) -> Figure:
    """Draw one mark per region and model with its interval, models side by side.

    Parameters
    ----------
    frame : DataFrame
        Columns "roi", "value", `by`, optionally "ci_low" and "ci_high"; one row a mark.
    title, unit : str
        Heading and axis label.
    by : str, default "model"
        Column whose values stand side by side.
    ceiling : mapping of str to float, optional
        Highest value that the noise allows, per region.
    ceiling_name : str
        What that level is called.

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    from matplotlib.figure import Figure

    missing = [c for c in ("roi", "value", by) if c not in frame]
    if missing or frame.empty:
        raise DataError(
            message(
                f"rows with columns roi, value, {by}", f"{missing or 'no row'}", "pass metric rows"
            )
        )
    rois, models = list(dict.fromkeys(frame["roi"])), list(dict.fromkeys(frame[by]))
    colour, width = colours(models), 0.8 / len(models)
    with figure_style():
        figure = Figure(
            figsize=(max(6.0, 0.28 * len(rois) * len(models) + 2.0), 3.7), layout="constrained"
        )
        ax = figure.subplots()
        for i, model in enumerate(models):
            part = frame[frame[by] == model].drop_duplicates("roi").set_index("roi").reindex(rois)
            x, y = np.arange(len(rois)) - 0.4 + (i + 0.5) * width, part["value"].to_numpy(float)
            nothing = "" if np.isfinite(y).any() else " (undefined)"
            ax.bar(x, y, width * 0.92, color=colour[model], label=f"{model}{nothing}", alpha=0.85)
            if {"ci_low", "ci_high"} <= set(part.columns):
                low, high = (part[c].to_numpy(float) for c in ("ci_low", "ci_high"))
                error = np.nan_to_num(np.clip(np.stack([y - low, high - y]), 0, None))
                ax.errorbar(x, y, yerr=error, fmt="none", ecolor="#222222", lw=0.9)
        if ceiling:
            level = np.asarray([ceiling.get(roi, np.nan) for roi in rois], float)
            at = np.arange(len(rois))
            ax.hlines(level, at - 0.42, at + 0.42, color="black", lw=1.6, label=ceiling_name)
        ax.axhline(0, color="#444444", lw=0.8)
        ax.set_xticks(np.arange(len(rois)), rois)
        ax.set_xlim(-0.6, len(rois) - 0.4)
        ax.set_ylabel(unit)
        ax.set_title(title)
        room = int(figure.get_figwidth() / (0.6 + 0.085 * max(len(str(m)) for m in models)))
        figure.legend(
            loc="outside lower center", ncols=min(room, len(models) + bool(ceiling)), fontsize=9
        )
    return figure


def table_figure(
    table: pd.DataFrame, *, title: str, unit: str, mark: str | None = "best"
) -> Figure:
    """Draw a table of numbers as colours with the numbers in them.

    Parameters
    ----------
    table : DataFrame
        Rows (blocks, say) by columns (regions); its index name and columns name label the axes.
    title, unit : str
        Heading and label of the colour bar.
    mark : str, optional
        Frame the highest value of each column and say so by this word; None frames nothing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    values = table.to_numpy(float)
    with figure_style():
        figure = Figure(
            figsize=(0.62 * values.shape[1] + 2.6, 0.3 * values.shape[0] + 1.5),
            layout="constrained",
        )
        ax = figure.subplots()
        top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
        image = ax.imshow(
            values, aspect="auto", cmap="cividis", vmin=min(0.0, float(np.nanmin(values))), vmax=top
        )
        for (r, c), v in np.ndenumerate(values):
            dark = np.isfinite(v) and image.norm(v) < 0.6
            ax.text(
                c,
                r,
                f"{v:.2f}" if np.isfinite(v) else "–",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
        if mark:
            for c in np.flatnonzero(np.isfinite(values).any(0)):
                r = int(np.nanargmax(values[:, c]))
                ax.add_patch(
                    mpl.patches.Rectangle(
                        (c - 0.46, r - 0.44), 0.92, 0.88, fill=False, ec="#D55E00", lw=2
                    )
                )
            ax.set_xlabel(f"region (framed: {mark} in its column)")
        ax.set_xticks(np.arange(values.shape[1]), [str(c) for c in table.columns], fontsize=9)
        ax.set_yticks(np.arange(values.shape[0]), [str(i) for i in table.index], fontsize=9)
        ax.set_ylabel(str(table.index.name or ""))
        ax.grid(False)
        ax.set_title(title)
        figure.colorbar(image, ax=ax, label=unit)
    return figure


def fields_figure(
    fields: pd.DataFrame, rois: Sequence[str], *, title: str, degrees: float
) -> Figure:
    """Compare recovered receptive fields with the truth.

    Parameters
    ----------
    fields : DataFrame
        One row a vertex, as `bmfl_lab.evaluation.receptive_field_error` returns it.
    rois : sequence of str
        ROI of each row; "" is left out.
    title : str
        Heading.
    degrees : float
        Visual angle of the image's side.

    Returns
    -------
    matplotlib.figure.Figure
        Left: from each true centre (dot) a line to the recovered one; right: distance by ROI.
    """
    from matplotlib.figure import Figure

    rois = np.asarray(rois, dtype=object)
    known = np.isfinite(fields["error_degrees"].to_numpy(float)) & (rois != "")
    names = sorted(set(rois[known]))
    if not names:
        raise DataError(
            message("vertices with true and recovered fields", "none", "use a simulated subject")
        )
    colour = colours(names)
    with figure_style():
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        field, errors = figure.subplots(1, 2, width_ratios=(1, 1.1))
        for name in names:
            part = fields[known & (rois == name)]
            step = max(1, len(part) // 60)
            x, y, tx, ty = (part[c].to_numpy(float)[::step] for c in ("x", "y", "true_x", "true_y"))
            field.plot(np.stack([tx, x]), np.stack([ty, y]), color=colour[name], lw=0.6, alpha=0.6)
            field.plot(tx, ty, "o", color=colour[name], ms=3, label=name)
        half = degrees / 2
        field.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        field.set_xlabel("horizontal place (degrees)")
        field.set_ylabel("vertical place (degrees)")
        field.set_title("true centre (dot) to recovered one")
        groups = [fields["error_degrees"].to_numpy(float)[known & (rois == n)] for n in names]
        errors.boxplot(groups, whis=(5, 95), showfliers=False, medianprops={"color": "#003A5C"})
        errors.set_xticks(np.arange(1, len(names) + 1), names)
        errors.set_ylabel("distance of the centres (degrees)")
        errors.set_ylim(bottom=0)
        errors.set_title("error by region")
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
        handles, labels = field.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(names), 9), fontsize=8
        )
    return figure

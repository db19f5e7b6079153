"""Figures of robustness: severity curves, effective robustness, reliability, single predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.viz.charts import (
    GREY,
    bare,
    colour_scale,
    colours,
    frame_cell,
    markers,
    panels,
    value_and_error,
    write_cells,
)
from bmfl_lab.viz.results import set_label, summary_rows, with_sets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def _logit(p: np.ndarray | Sequence[float] | float) -> np.ndarray:
    p = np.clip(np.asarray(p, dtype=float), 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


def _chosen(frame: pd.DataFrame, metric: str, models: Sequence[str] | None) -> pd.DataFrame:
    rows = summary_rows(frame, metric)
    rows = rows if models is None else rows[rows["model"].isin(list(models))]
    rows = rows[rows["value"].notna()]
    require(
        not rows.empty,
        DataError,
        f"values of {metric!r} for {models}",
        "none",
        "choose models that were evaluated",
    )
    return rows


def severity_figure(
    frame: pd.DataFrame,
    metric: str = "accuracy",
    *,
    models: Sequence[str] | None = None,
    chance: float | None = None,
    title: str = "",
    n_columns: int = 4,
) -> Figure:
    """Draw a metric with its interval against severity, with one panel per shift.

    Parameters
    ----------
    frame : DataFrame
        Metric rows as made by `Record.to_frame`. The value on the unshifted set "test" is drawn at
        severity 0.
    metric : str, default "accuracy"
        Name of the metric, a fraction.
    models : sequence of str, optional
        Models to draw; all by default.
    chance : float, optional
        Chance level, a fraction, drawn as a dashed line.
    title : str, default ""
        Title; contains *simulated* if responses are.
    n_columns : int, default 4
        Panels per row.

    Raises
    ------
    DataError
        If there is no shifted set.
    """
    rows = _chosen(frame, metric, models)
    shifts = [s for s in dict.fromkeys(rows["shift"]) if s]
    require(
        shifts,
        DataError,
        "values on made shifts",
        "none",
        "evaluate some shifts at several severities",
    )
    names = list(dict.fromkeys(rows["model"]))
    colour, marker = colours(names), markers(names)
    with panels(
        len(shifts), n_columns, title=title, cell=(2.9, 2.6), margin=(0.6, 0.9), sharey=True
    ) as drawn:
        for ax, shift in zip(drawn, shifts):
            clean = rows[(rows["split"] == "test") & (rows["shift"] == "")].assign(severity=0)
            part = pd.concat([clean, rows[rows["shift"] == shift]])
            for i, name in enumerate(names):
                mine = part[part["model"] == name].sort_values("severity")
                x = mine["severity"].to_numpy(float) + 0.06 * (i - (len(names) - 1) / 2)
                y, error = value_and_error(mine, scale=100)
                look = {"ms": 4.5, "lw": 1.4, "capsize": 1.5, "elinewidth": 1, "label": name}
                look |= {"color": colour[name], "marker": marker[name]}
                ax.errorbar(x, y, yerr=error, **look)
            if chance is not None:
                ax.axhline(100 * chance, ls="--", lw=1, color=GREY)
            levels = sorted(int(s) for s in part["severity"].dropna().unique())
            ax.set_xticks(levels, ["none" if s == 0 else str(s) for s in levels])
            ax.set_title(shift.replace("_", " "))
        drawn.label("severity", fontsize=9)
        drawn.figure.supylabel(f"{metric.replace('_', ' ')}, %", fontsize=10)
        drawn.legend()
    return drawn.figure


def robustness_figure(
    frame: pd.DataFrame,
    baselines: Sequence[str],
    *,
    sets: Sequence[str] | None = None,
    title: str = "",
    n_columns: int = 4,
) -> Figure:
    """Draw accuracy out of distribution against accuracy in distribution, one panel per set.

    Parameters
    ----------
    frame : DataFrame
        Metric rows with ``accuracy`` of every seed, and ``robustness_slope`` and
        ``robustness_intercept`` of the baselines' line.
    baselines : sequence of str
        Models that the line was fitted to, drawn in grey.
    sets : sequence of str, optional
        Labels of sets as `set_label` makes them; by default all sets with a line.
    title : str, default ""
        Title; contains *simulated* if responses are.
    n_columns : int, default 4
        Panels per row.

    Returns
    -------
    matplotlib Figure
        Both axes are logit axes, and there is one mark per model and seed.

    Raises
    ------
    DataError
        If no set has an accuracy and a line.
    """
    table, lines = _points(frame), _lines(frame)
    shown = [s for s in lines if s in set(table["set"]) and (sets is None or s in sets)]
    require(
        shown,
        DataError,
        "sets with a line of baselines",
        sorted(lines),
        "evaluate with baselines=...",
    )
    everyone = list(dict.fromkeys(table["model"]))
    colour, marker = colours(everyone), markers(everyone)
    with panels(len(shown), n_columns, cell=(3, 2.9), margin=(0.5, 0.9), title=title) as drawn:
        for ax, name in zip(drawn, shown):
            part = table[table["set"] == name]
            grey = part[part["model"].isin(list(baselines))]
            known = _logit(grey["id"])
            ax.plot(known, _logit(grey["ood"]), "o", color=GREY, ms=4, alpha=0.7, label="baselines")
            for model in everyone:
                if model not in baselines:
                    mine = part[part["model"] == model]
                    ax.plot(
                        _logit(mine["id"]),
                        _logit(mine["ood"]),
                        marker[model],
                        color=colour[model],
                        ms=5,
                        label=model,
                    )
            _line(ax, *lines[name], known)
            ax.set_title(name)
            _logit_ticks(ax)
        drawn.label("in distribution, %", fontsize=9)
        drawn.figure.supylabel("accuracy on the set, %", fontsize=10)
        drawn.legend()
    return drawn.figure


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model, seed and set: accuracy on "test" and on the set."""
    rows = frame[(frame["name"] == "accuracy") & frame["seed"].notna() & frame["value"].notna()]
    at_home = (rows["split"] == "test") & (rows["shift"] == "")
    home = rows[at_home].set_index(["model", "seed"])["value"]
    away = with_sets(rows[~at_home])
    away = away[[k in home.index for k in zip(away["model"], away["seed"])]]
    found = [float(home.loc[k]) for k in zip(away["model"], away["seed"])]
    return away[["model", "seed", "set"]].assign(id=found, ood=away["value"].astype(float))


def _lines(frame: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return slope and intercept of the baselines' line of each set that has both."""
    slopes, intercepts = {}, {}
    names = {"robustness_slope": slopes, "robustness_intercept": intercepts}
    for row in frame[frame["name"].isin(names)].itertuples():
        if not pd.isna(row.value):
            names[row.name][set_label(row.split, row.shift, row.severity)] = float(row.value)
    return {name: (slopes[name], intercepts[name]) for name in slopes if name in intercepts}


def _line(ax: Axes, slope: float, intercept: float, known: np.ndarray) -> None:
    """Draw the baselines' line, dashed where it is extrapolated."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    whole, label = np.array([left, right]), "line of the baselines (dashed: extrapolated)"
    ax.plot(whole, slope * whole + intercept, "--", color=GREY, lw=1, zorder=1)
    if len(known):
        inner = np.array([known.min(), known.max()])
        ax.plot(inner, slope * inner + intercept, color=GREY, lw=1.5, zorder=1, label=label)
    margin = 0.15 * (top - bottom)
    ax.set(xlim=(left, right), ylim=(bottom - margin, top + margin))


def _logit_ticks(ax: Axes) -> None:
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        inside = [t for t in _TICKS if limits[0] <= _logit(t) <= limits[1]]
        if len(inside) < 2:
            ends = 1 / (1 + np.exp(-np.asarray(limits)))
            inside = list(np.round(np.linspace(ends[0], ends[1], 5)[1:-1], 3))
        inside = inside[:: -(-len(inside) // 6)]
        axis.set_ticks(_logit(inside), [f"{100 * t:.3g}" for t in inside])
        axis.minorticks_off()


def reliability_figure(
    table: pd.DataFrame, *, title: str = "", n_columns: int = 4, min_count: int = 5
) -> Figure:
    """Draw accuracy against confidence by bin, with one panel per set.

    Parameters
    ----------
    table : DataFrame
        Columns ``model, split, shift, severity, count, confidence, accuracy``; one row per bin.
    title : str, default ""
        Title; contains *simulated* if responses are.
    n_columns : int, default 4
        Panels per row.
    min_count : int, default 5
        Bins with fewer predictions are not drawn.

    Returns
    -------
    matplotlib Figure
        The dashed diagonal is perfect calibration.

    Raises
    ------
    DataError
        If no bin has enough predictions.
    """
    rows = table[table["count"] >= min_count]
    require(
        not rows.empty,
        DataError,
        f"bins with {min_count} predictions",
        "none",
        "evaluate more images",
    )
    rows = with_sets(rows)
    sets, names = (list(dict.fromkeys(rows[k])) for k in ("set", "model"))
    rows = rows.sort_values("confidence")
    colour, marker = colours(names), markers(names)
    with panels(
        len(sets),
        n_columns,
        title=title,
        cell=(2.7, 2.7),
        margin=(0.6, 0.9),
        sharex=True,
        sharey=True,
    ) as drawn:
        for ax, name in zip(drawn, sets):
            ax.plot([0, 100], [0, 100], color=GREY, lw=1, ls="--")
            for model in names:
                part = rows[(rows["set"] == name) & (rows["model"] == model)]
                part = 100 * part[["confidence", "accuracy"]]
                ax.plot(
                    part["confidence"],
                    part["accuracy"],
                    label=model,
                    marker=marker[model],
                    color=colour[model],
                    ms=4,
                    lw=1.2,
                )
            ax.set_title(name)
            ax.set(xlim=(0, 102), ylim=(0, 102))
        drawn.label("confidence, %", fontsize=9)
        drawn.figure.supylabel("accuracy, %", fontsize=10)
        drawn.legend()
    return drawn.figure


def severity_heatmap(
    frame: pd.DataFrame,
    metric: str = "accuracy_difference",
    *,
    models: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw a metric per shift and severity as colours, with one panel per model.

    Parameters
    ----------
    frame : DataFrame
        Metric rows as made by `Record.to_frame`.
    metric : str, default "accuracy_difference"
        Name of the metric, a fraction, drawn in points (differences) or percent.
    models : sequence of str, optional
        Models to draw; all by default.
    title : str, default ""
        Title; contains *simulated* if responses are.

    Returns
    -------
    matplotlib Figure
        Colours of differences are symmetric about zero, and differences whose interval excludes
        zero have a frame.

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    rows = _chosen(frame, metric, models)
    rows = rows.assign(
        shift=rows["shift"].where(rows["shift"] != "", rows["split"]),
        severity=rows["severity"].fillna(0),
    )
    names, shifts = list(dict.fromkeys(rows["model"])), list(dict.fromkeys(rows["shift"]))
    levels = sorted(int(s) for s in rows["severity"].unique())
    signed = "difference" in metric or metric == "effective_robustness"
    scale = colour_scale(100 * rows["value"].to_numpy(float), signed, None if signed else 100)
    unit, form = ("points", "+.1f") if signed else ("%", ".0f")
    with panels(
        len(names),
        len(names),
        title=title,
        sharey=True,
        cell=(0.62 * len(levels) + 0.5, 0.42 * len(shifts)),
        margin=(2.4, 1.7),
    ) as drawn:
        for ax, name in zip(drawn, names):
            grid = np.full((len(shifts), len(levels)), np.nan)
            for row in rows[rows["model"] == name].itertuples():
                y, x = shifts.index(row.shift), levels.index(int(row.severity))
                grid[y, x] = 100 * row.value
                if signed and (row.ci_low > 0 or row.ci_high < 0):
                    frame_cell(ax, y, x, "black")
            image = ax.imshow(grid, aspect="auto", **scale)
            write_cells(ax, image, form)
            ax.set_title(name, fontsize=9.5)
            ax.set_xticks(range(len(levels)), ["–" if s == 0 else str(s) for s in levels])
            ax.set_yticks(range(len(shifts)), [s.replace("_", " ") for s in shifts])
            ax.grid(False)
        drawn.figure.supxlabel("severity (–: image sets without one)", fontsize=10)
        label = f"{metric.replace('_', ' ')}, {unit}"
        drawn.colour_bar(image, label, fraction=0.15, pad=0.05, shrink=0.9)
    return drawn.figure


def prediction_figure(
    rows: Mapping[str, Sequence[Mapping[str, object]]], *, title: str = "", cell: float = 1.45
) -> Figure:
    """Show single images with their class, the predicted class and the confidence.

    Parameters
    ----------
    rows : mapping of str to list of mappings
        Name of a row to its images: ``image`` uint8 (H, W, 3), ``true`` and ``predicted`` class,
        ``confidence`` (a fraction), and optionally ``where`` (name of the image set).
    title : str, default ""
        Title; contains *simulated* if responses are.
    cell : float, default 1.45
        Side of an image in inches.

    Returns
    -------
    matplotlib Figure
        The predicted class below the image is green if it is right, and red if it is wrong.

    Raises
    ------
    DataError
        If there is no image.
    """
    width = max((len(r) for r in rows.values()), default=0)
    require(width, DataError, "at least one image", "none", "pass at least one image per row")
    with panels(
        len(rows) * width, width, title=title, cell=(cell, cell + 0.62), margin=(1.1, 0.4)
    ) as drawn:
        for line, (name, items) in zip(drawn.grid, rows.items()):
            line[0].set_ylabel(name, fontsize=9)
            for ax in line[len(items) :]:
                ax.set_visible(False)
            for ax, item in zip(line, items):
                bare(ax)
                ax.imshow(item["image"])
                where = f"{item['where']}\n" if item.get("where") else ""
                ax.set_title(
                    f"{where}{item['true']}", fontsize=8, loc="center", fontweight="normal"
                )
                below = f"{item['predicted']} {100 * item['confidence']:.0f} %"
                ink = "#00674B" if item["true"] == item["predicted"] else "#B03A00"
                ax.set_xlabel(below, fontsize=8, color=ink)
    return drawn.figure

"""Figures of robustness: severity curves, effective robustness, reliability, heat maps, single predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.charts import GREY, colours, markers, panels
from bmfl_lab.viz.results import set_label, summary_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def _logit(p: Any) -> np.ndarray:
    p = np.clip(np.asarray(p, dtype=float), 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


def _chosen(frame: pd.DataFrame, metric: str, models: Sequence[str] | None) -> pd.DataFrame:
    rows = summary_rows(frame, metric)
    rows = rows if models is None else rows[rows["model"].isin(list(models))]
    rows = rows[rows["value"].notna()]
    if rows.empty:
        raise DataError(
            message(
                f"values of {metric!r} for {models}", "none", "choose models that were evaluated"
            )
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
    """Draw a metric against severity, one panel a shift, with intervals.

    Parameters
    ----------
    frame : DataFrame
        Metric rows as made by `Record.to_frame`; the value on the unshifted "test" is drawn at
        severity 0.
    metric : str
        A fraction.
    models : sequence of str, optional
        Which models; all by default.
    chance : float, optional
        Chance level, a dashed line.
    title : str
        Title; say here what is simulated.
    n_columns : int, default 4
        Panels a row.

    Raises
    ------
    DataError
        If there is no shifted set.
    """
    rows = _chosen(frame, metric, models)
    shifts = [s for s in dict.fromkeys(rows["shift"]) if s]
    if not shifts:
        raise DataError(
            message("values on made shifts", "none", "evaluate some shifts at several severities")
        )
    names = list(dict.fromkeys(rows["model"]))
    colour, marker = colours(names), markers(names)
    with panels(
        len(shifts), n_columns, cell=(2.9, 2.6), margin=(0.6, 0.9), title=title, sharey=True
    ) as drawn:
        for ax, shift in zip(drawn, shifts):
            clean = rows[(rows["split"] == "test") & (rows["shift"] == "")].assign(severity=0)
            part = pd.concat([clean, rows[rows["shift"] == shift]])
            for i, name in enumerate(names):
                _curve(
                    ax,
                    part[part["model"] == name],
                    name,
                    colour[name],
                    marker[name],
                    0.06 * (i - (len(names) - 1) / 2),
                )
            if chance is not None:
                ax.axhline(100 * chance, ls="--", lw=1, color=GREY)
            levels = sorted(int(s) for s in part["severity"].dropna().unique())
            ax.set_xticks(levels, ["none" if s == 0 else str(s) for s in levels])
            ax.set_title(shift.replace("_", " "))
        drawn.label("severity", fontsize=9)
        drawn.figure.supylabel(f"{metric.replace('_', ' ')}, %", fontsize=10)
        drawn.legend()
    return drawn.figure


def _curve(
    ax: Axes, rows: pd.DataFrame, name: str, colour: str, marker: str, offset: float
) -> None:
    rows = rows.sort_values("severity")
    y = 100 * rows["value"].to_numpy(float)
    ends = 100 * rows[["ci_low", "ci_high"]].to_numpy(float).T
    error = np.nan_to_num(np.abs(ends - y))
    ax.errorbar(
        rows["severity"].to_numpy(float) + offset,
        y,
        yerr=error,
        color=colour,
        marker=marker,
        ms=4.5,
        lw=1.4,
        capsize=1.5,
        elinewidth=1,
        label=name,
    )


def robustness_figure(
    frame: pd.DataFrame,
    baselines: Sequence[str],
    *,
    sets: Sequence[str] | None = None,
    title: str = "",
    n_columns: int = 4,
) -> Figure:
    """Draw OOD against ID accuracy on logit axes, with the baselines' line, one panel a set.

    Parameters
    ----------
    frame : DataFrame
        Metric rows with ``accuracy`` of every seed, and ``robustness_slope`` and
        ``robustness_intercept``.
    baselines : sequence of str
        Models behind the line, drawn in grey.
    sets : sequence of str, optional
        Labels of sets as `set_label` makes them; all with a line by default.
    title : str
        Title; say here what is simulated.
    n_columns : int, default 4
        Panels a row.

    Raises
    ------
    DataError
        If no set has an accuracy and a line.
    """
    table = _points(frame)
    lines = _lines(frame)
    shown = [s for s in lines if s in set(table["set"]) and (sets is None or s in sets)]
    if not shown:
        raise DataError(
            message(
                "sets with a line of baselines", f"{sorted(lines)}", "evaluate with baselines=..."
            )
        )
    names = [m for m in dict.fromkeys(table["model"]) if m not in baselines]
    everyone = list(dict.fromkeys(table["model"]))
    colour, marker = colours(everyone), markers(everyone)
    with panels(len(shown), n_columns, cell=(3, 2.9), margin=(0.5, 0.9), title=title) as drawn:
        for ax, name in zip(drawn, shown):
            part = table[table["set"] == name]
            grey = part[part["model"].isin(list(baselines))]
            ax.plot(
                _logit(grey["id"]),
                _logit(grey["ood"]),
                "o",
                color=GREY,
                ms=4,
                alpha=0.7,
                label="baselines",
            )
            for model in names:
                mine = part[part["model"] == model]
                ax.plot(
                    _logit(mine["id"]),
                    _logit(mine["ood"]),
                    marker[model],
                    color=colour[model],
                    ms=5,
                    label=model,
                )
            _line(ax, *lines[name], _logit(grey["id"]))
            ax.set_title(name)
            _logit_ticks(ax)
        drawn.label("in distribution, %", fontsize=9)
        drawn.figure.supylabel("accuracy on the set, %", fontsize=10)
        drawn.legend()
    return drawn.figure


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a model, seed and set: accuracy on "test" and on the set."""
    rows = frame[(frame["name"] == "accuracy") & frame["seed"].notna() & frame["value"].notna()]
    at_home = (rows["split"] == "test") & (rows["shift"] == "")
    home = rows[at_home].set_index(["model", "seed"])["value"]
    away = rows[~at_home]
    away = away.assign(
        set=[set_label(*t) for t in zip(away["split"], away["shift"], away["severity"])]
    )
    away = away[[k in home.index for k in zip(away["model"], away["seed"])]]
    found = [float(home.loc[k]) for k in zip(away["model"], away["seed"])]
    return away[["model", "seed", "set"]].assign(id=found, ood=away["value"].astype(float))


def _lines(frame: pd.DataFrame) -> dict[str, tuple[float, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in frame[frame["name"].isin(["robustness_slope", "robustness_intercept"])].itertuples():
        if not pd.isna(row.value):
            found.setdefault(set_label(row.split, row.shift, row.severity), {})[row.name] = float(
                row.value
            )
    return {
        k: (v["robustness_slope"], v["robustness_intercept"])
        for k, v in found.items()
        if len(v) == 2
    }


def _line(ax: Axes, slope: float, intercept: float, known: np.ndarray) -> None:
    """Draw the line: whole where there are baselines, dashed where it is extrapolated."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    for x, style in (
        (([left, right], "--"), ([known.min(), known.max()], "-"))
        if len(known)
        else (([left, right], "--"),)
    ):
        name = "line of the baselines (dashed: extrapolated)" if style == "-" else None
        ax.plot(
            x,
            slope * np.asarray(x) + intercept,
            style,
            color=GREY,
            lw=1.5 if name else 1,
            zorder=1,
            label=name,
        )
    ax.set_xlim(left, right)
    margin = 0.15 * (top - bottom)
    ax.set_ylim(bottom - margin, top + margin)


def _logit_ticks(ax: Axes) -> None:
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        inside = [t for t in TICKS if limits[0] <= _logit(t) <= limits[1]]
        if len(inside) < 2:
            ends = 1 / (1 + np.exp(-np.asarray(limits)))
            inside = list(np.round(np.linspace(ends[0], ends[1], 5)[1:-1], 3))
        inside = inside[:: -(-len(inside) // 6)]
        axis.set_ticks(_logit(inside), [f"{100 * t:.3g}" for t in inside])
        axis.minorticks_off()


def reliability_figure(
    table: pd.DataFrame, *, title: str = "", n_columns: int = 4, min_count: int = 5
) -> Figure:
    """Draw accuracy against confidence by bin, one panel a set, with the diagonal of perfect calibration.

    Parameters
    ----------
    table : DataFrame
        ``model, split, shift, severity, count, confidence, accuracy``, one row a bin.
    title : str
        Title; say here what is simulated.
    n_columns : int, default 4
        Panels a row.
    min_count : int, default 5
        Bins with fewer predictions are not drawn.

    Raises
    ------
    DataError
        If no bin is full enough.
    """
    rows = table[table["count"] >= min_count]
    if rows.empty:
        raise DataError(
            message(f"bins with {min_count} predictions", "none", "evaluate more images")
        )
    rows = rows.assign(
        set=[set_label(*t) for t in zip(rows["split"], rows["shift"], rows["severity"])]
    )
    sets, names = list(dict.fromkeys(rows["set"])), list(dict.fromkeys(rows["model"]))
    colour, marker = colours(names), markers(names)
    size = {"cell": (2.7, 2.7), "margin": (0.6, 0.9), "sharex": True, "sharey": True}
    with panels(len(sets), n_columns, title=title, **size) as drawn:
        for ax, name in zip(drawn, sets):
            ax.plot([0, 100], [0, 100], color=GREY, lw=1, ls="--")
            for model in names:
                part = rows[(rows["set"] == name) & (rows["model"] == model)].sort_values(
                    "confidence"
                )
                ax.plot(
                    100 * part["confidence"],
                    100 * part["accuracy"],
                    marker=marker[model],
                    color=colour[model],
                    ms=4,
                    lw=1.2,
                    label=model,
                )
            ax.set_title(name)
            ax.set_xlim(0, 102)
            ax.set_ylim(0, 102)
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
    """Draw a metric for each shift and severity, one panel a model; differences on a scale symmetric around zero.

    Parameters
    ----------
    frame : DataFrame
        Metric rows; a bold frame marks differences whose interval leaves out zero.
    metric : str
        A fraction; drawn in points (differences) or percent.
    models : sequence of str, optional
        Which; all by default.
    title : str
        Title; say here what is simulated.

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
    limit = 100 * float(rows["value"].abs().max()) or 1.0
    scale = (
        {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
        if signed
        else {"cmap": "viridis", "vmin": 0, "vmax": 100}
    )
    cell, margin = (0.62 * len(levels) + 0.5, 0.42 * len(shifts)), (2.4, 1.7)
    with panels(
        len(names), len(names), cell=cell, margin=margin, title=title, sharey=True
    ) as drawn:
        for ax, name in zip(drawn, names):
            image = _cells(ax, rows[rows["model"] == name], shifts, levels, scale, signed)
            ax.set_title(name, fontsize=9.5)
            ax.set_xticks(range(len(levels)), ["–" if s == 0 else str(s) for s in levels])
            ax.set_yticks(range(len(shifts)), [s.replace("_", " ") for s in shifts])
            ax.grid(False)
        drawn.figure.supxlabel("severity (–: image sets without one)", fontsize=10)
        unit = "points" if signed else "%"
        drawn.colour_bar(
            image, f"{metric.replace('_', ' ')}, {unit}", fraction=0.15, pad=0.05, shrink=0.9
        )
    return drawn.figure


def _cells(
    ax: Axes, rows: pd.DataFrame, shifts: list[str], levels: list[int], scale: dict, signed: bool
) -> Any:
    from matplotlib.patches import Rectangle

    grid = np.full((len(shifts), len(levels)), np.nan)
    for row in rows.itertuples():
        y, x = shifts.index(row.shift), levels.index(int(row.severity))
        grid[y, x] = 100 * row.value
        share = (grid[y, x] - scale["vmin"]) / (scale["vmax"] - scale["vmin"])
        dark = abs(share - 0.5) > 0.33 if signed else share < 0.6
        ax.text(
            x,
            y,
            f"{grid[y, x]:+.1f}" if signed else f"{grid[y, x]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
        if signed and pd.notna(row.ci_low) and (row.ci_low > 0 or row.ci_high < 0):
            ax.add_patch(
                Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, lw=1.8, ec="black")
            )
    return ax.imshow(grid, aspect="auto", **scale)


def prediction_figure(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str = "", cell: float = 1.45
) -> Figure:
    """Show single images with their class, the predicted class and the confidence.

    Parameters
    ----------
    rows : mapping of str to list of mappings
        Row name to images: ``image`` uint8 (H, W, 3), ``true``, ``predicted``, ``confidence``
        (fraction), and optionally ``where`` (name of the set).
    title : str
        Title.
    cell : float
        Side of an image in inches.

    Raises
    ------
    DataError
        If there is no image.
    """
    width = max((len(r) for r in rows.values()), default=0)
    if not width:
        raise DataError(message("at least one image", "none", "ask for n >= 1"))
    size = {"cell": (cell, cell + 0.62), "margin": (1.1, 0.4)}
    with panels(len(rows) * width, width, title=title, **size) as drawn:
        for line, (name, items) in zip(drawn.grid, rows.items()):
            for ax in line:
                ax.set(xticks=[], yticks=[])
                for spine in ax.spines.values():
                    spine.set_visible(False)
            for ax in line[len(items) :]:
                ax.set_visible(False)
            for ax, item in zip(line, items):
                right = item["true"] == item["predicted"]
                ax.imshow(item["image"])
                where = f"{item['where']}\n" if item.get("where") else ""
                ax.set_title(
                    f"{where}{item['true']}", fontsize=8, loc="center", fontweight="normal"
                )
                ax.set_xlabel(
                    f"{item['predicted']} {100 * item['confidence']:.0f} %",
                    fontsize=8,
                    color="#00674B" if right else "#B03A00",
                )
            line[0].set_ylabel(name, fontsize=9)
    return drawn.figure

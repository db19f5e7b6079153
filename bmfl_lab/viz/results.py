"""Figures and tables of metric rows: accuracy by image set, training curves, bars per ROI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.records import comparison_label
from bmfl_lab.viz.charts import GREY, colours, markers, panel, panels, require_rows, value_and_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def set_label(split: str, shift: str, severity: float | None) -> str:
    """Return the name of an evaluation set in figures ("masked 3", "clipart", "test").

    Parameters
    ----------
    split : str
        Image set.
    shift : str
        Shift of the images; "" for none.
    severity : int or float or None
        Severity of the shift; None or NaN for none.
    """
    if not shift:
        return split
    return shift if severity is None or pd.isna(severity) else f"{shift} {int(severity)}"


def with_sets(rows: pd.DataFrame) -> pd.DataFrame:
    """Return metric rows with a column "set", the name of the evaluation set of each row."""
    places = zip(rows["split"], rows["shift"], rows["severity"])
    return rows.assign(set=[set_label(*place) for place in places])


def accuracy_table(frame: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Tabulate a metric, with one row per model and one column per evaluation set.

    Parameters
    ----------
    frame : DataFrame
        Metric rows as made by `Record.to_frame`.
    metric : str, default "accuracy"
        Name of the metric, a fraction.

    Returns
    -------
    DataFrame of str, shape (n_models, n_sets)
        ``"61.3 [58.9, 63.6]"``: the value in percent and its interval, if it is known. The row over
        seeds is taken if there is one.

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    rows = with_sets(summary_rows(frame, metric))

    def cell(row: pd.Series) -> str:
        if pd.isna(row["value"]):
            return "undefined"
        low, high = row["ci_low"], row["ci_high"]
        interval = "" if pd.isna(low) or pd.isna(high) else f" [{100 * low:.1f}, {100 * high:.1f}]"
        return f"{100 * row['value']:.1f}{interval}"

    rows = rows.assign(cell=rows.apply(cell, axis=1))
    table = rows.pivot_table(
        index="model", columns="set", values="cell", aggfunc="first", sort=False
    )
    table.columns.name, table.index.name = f"{metric}, %", "model"
    return table


def interval_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a difference of fractions in points with its interval, or "undefined".

    Parameters
    ----------
    value, low, high : float, optional
        Difference and the ends of its interval, fractions; None or NaN if unknown.

    Returns
    -------
    str
        For instance ``"+2.1 [-0.3, +4.4]"``.
    """
    if value is None or pd.isna(value):
        return "undefined"
    ends = "" if low is None or pd.isna(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * value:+.1f}{ends}"


def summary_rows(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row per model and evaluation set: the row over seeds, or else the first seed's.

    Parameters
    ----------
    frame : DataFrame
        Metric rows as made by `Record.to_frame`.
    metric : str
        Name of the metric.

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    columns = ("name", "value", "split", "model", "shift", "severity", "seed")
    require_rows(frame, columns, "metric rows", "pass Record.to_frame()")
    rows = frame[frame["name"] == metric]
    require(
        not rows.empty,
        DataError,
        f"rows of the metric {metric!r}",
        f"only {sorted(frame['name'].unique())}",
        "choose one of them",
    )
    if "reference" in rows:
        named = zip(rows["name"], rows["model"], rows["reference"])
        rows = rows.assign(model=[comparison_label(*fields) for fields in named])
    over = rows["seed"].isna()
    keys = ["model", "split", "shift", "severity"]
    first = rows[over].drop_duplicates(keys)
    rest = rows[~over].drop_duplicates(keys)
    taken = first[keys].merge(rest[keys].reset_index(), on=keys)["index"]
    return pd.concat([first, rest.drop(index=taken)]).sort_index()


def accuracy_figure(
    frame: pd.DataFrame, metric: str = "accuracy", *, chance: float | None = None, title: str = ""
) -> Figure:
    """Draw a metric with its interval per model and evaluation set, and single seeds as dots.

    Parameters
    ----------
    frame : DataFrame
        Metric rows as made by `Record.to_frame`.
    metric : str, default "accuracy"
        Name of the metric, a fraction.
    chance : float, optional
        Chance level, a fraction, drawn as a dashed line.
    title : str, default ""
        Title; contains *simulated* if responses are.

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    rows = with_sets(summary_rows(frame, metric))
    seeds = with_sets(frame[(frame["name"] == metric) & frame["seed"].notna()])
    sets, models = list(dict.fromkeys(rows["set"])), list(dict.fromkeys(rows["model"]))
    colour, marker = colours(models), markers(models)
    offsets = np.linspace(-0.32, 0.32, len(models)) if len(models) > 1 else np.zeros(1)
    with panel(cell=(max(6.5, 1.35 * len(sets) + 1.5), 4.2), title=title) as (drawn, ax):
        for model, offset in zip(models, offsets):
            mine, single = rows[rows["model"] == model], seeds[seeds["model"] == model]
            x = offset + np.asarray([sets.index(s) for s in mine["set"]])
            style = {"fmt": marker[model], "ms": 6, "capsize": 2, "lw": 1.4, "label": model}
            y, error = value_and_error(mine, scale=100)
            ax.errorbar(x, y, yerr=error, color=colour[model], **style)
            x = offset + np.asarray([sets.index(s) for s in single["set"]], dtype=float)
            y = 100 * single["value"].to_numpy(float)
            ax.plot(x + 0.045, y, ".", color=colour[model], ms=3.5, alpha=0.45)
        if len(seeds):
            ax.plot([], [], ".", color=GREY, ms=3.5, label="single seeds")
        if chance is not None:
            ax.axhline(100 * chance, ls="--", lw=1, color=GREY, label="chance")
        ax.set_xticks(range(len(sets)), sets)
        ax.set_xlim(-0.6, len(sets) - 0.4)
        drawn.label(y=f"{metric.replace('_', ' ')}, %")
        drawn.legend(5)
    return drawn.figure


def curves_figure(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    keys: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Draw training curves, with one panel per quantity and one thin line per seed.

    Parameters
    ----------
    histories : mapping of str to list of histories
        Model to one history per seed. A history has one mapping per epoch, with "epoch" and the
        quantities.
    keys : sequence of str
        Quantities to draw; a model without a quantity is left out of its panel.
    title : str, default ""
        Title of the figure.

    Raises
    ------
    DataError
        If no history contains any of `keys`.
    """
    logged = {k for runs in histories.values() for run in runs for step in run for k in step}
    present = [k for k in keys if k in logged]
    require(
        present,
        DataError,
        f"histories with one of {tuple(keys)}",
        "none",
        f"choose among {sorted(logged)}",
    )
    colour = colours(histories)
    with panels(len(present), len(present), cell=(3.8, 3.3), title=title) as drawn:
        for ax, key in zip(drawn, present):
            for name, runs in histories.items():
                for run in runs:
                    points = np.array([(s["epoch"], s[key]) for s in run if key in s], float)
                    if len(points):
                        marker = "o" if len(points) < 6 else ""  # one epoch draws no line
                        ax.plot(
                            *points.T,
                            marker=marker,
                            label=name,
                            color=colour[name],
                            lw=1.3,
                            alpha=0.8,
                            ms=4,
                        )
            ax.set_title(key.replace("_", " "))
        drawn.label("epoch")
        drawn.legend(4)
    return drawn.figure


def grouped_figure(
    frame: pd.DataFrame,
    *,
    title: str,
    unit: str,
    by: str = "model",
    ceiling: Mapping[str, float] | None = None,
    ceiling_name: str = "noise ceiling",
) -> Figure:
    """Draw one bar per region and model with its interval, models side by side.

    Parameters
    ----------
    frame : DataFrame
        Columns "roi", "value", `by`, optionally "ci_low" and "ci_high"; one row per bar.
    title, unit : str
        Title and label of the vertical axis.
    by : str, default "model"
        Column whose values are drawn side by side.
    ceiling : mapping of str to float, optional
        Highest value that the noise allows, per region.
    ceiling_name : str, default "noise ceiling"
        Name of that level.

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    require_rows(frame, ("roi", "value", by), "rows", "pass metric rows")
    rois, models = list(dict.fromkeys(frame["roi"])), list(dict.fromkeys(frame[by]))
    colour, width, at = colours(models), 0.8 / len(models), np.arange(len(rois))
    size = (max(6.0, 0.28 * len(rois) * len(models) + 2.0), 3.7)
    with panel(cell=size, title=title) as (drawn, ax):
        for i, model in enumerate(models):
            part = frame[frame[by] == model].drop_duplicates("roi").set_index("roi")
            part = part.reindex(index=rois, columns=["value", "ci_low", "ci_high"])
            x, (y, error) = at - 0.4 + (i + 0.5) * width, value_and_error(part)
            name = model if np.isfinite(y).any() else f"{model} (undefined)"
            ax.bar(x, y, width * 0.92, color=colour[model], label=name, alpha=0.85)
            if error.any():
                ax.errorbar(x, y, yerr=error, fmt="none", ecolor="#222222", lw=0.9)
        if ceiling:
            level = np.asarray([ceiling.get(roi, np.nan) for roi in rois], float)
            ax.hlines(level, at - 0.42, at + 0.42, color="black", lw=1.6, label=ceiling_name)
        ax.axhline(0, color="#444444", lw=0.8)
        narrow = len(models) == 1 and len(rois) > 8
        ax.set_xticks(at, rois, rotation=45 if narrow else 0, ha="right" if narrow else "center")
        ax.set_xlim(-0.6, len(rois) - 0.4)
        drawn.label(y=unit)
        drawn.legend(int(size[0] / (0.6 + 0.085 * max(len(str(m)) for m in models))))
    return drawn.figure

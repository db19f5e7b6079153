"""Figures and tables of metric rows: accuracy, robustness, calibration, curves and bars per ROI."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.data.shifts import shift_note
from bmfl_lab.errors import DataError, require
from bmfl_lab.records import comparison_label
from bmfl_lab.viz.charts import (
    GREY,
    bare,
    colour_scale,
    colours,
    frame_cell,
    markers,
    panel,
    panels,
    require_rows,
    value_and_error,
    write_cells,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIGNIFICANT = 0.05
_LOGGED = {
    "loss": "training loss",
    "val_accuracy": "validation accuracy, fraction",
    "pearson": "Pearson r of the two features",
    "mse": "training mean squared error",
    "val_r": "validation Pearson r",
    "val_mse": "validation mean squared error",
    "val_contrast": "validation contrastive loss, nats",
    "val_cross_entropy": "validation cross-entropy, nats",
}
"""Labels of the vertical axes of training curves."""
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def set_label(split: str, shift: str, severity: float | None) -> str:
    """Return the name of an evaluation set in figures ("masked 3", "clipart", "frost (drawn) 3").

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
    shift += " (drawn)" * bool(shift_note(shift))
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
    numbers = zip(*(rows[k] for k in ("value", "ci_low", "ci_high")))
    rows = rows.assign(cell=[interval_text(*of, sign="") for of in numbers])
    table = rows.pivot_table(
        index="model", columns="set", values="cell", aggfunc="first", sort=False
    )
    table.columns.name, table.index.name = f"{metric}, %", "model"
    return table


def interval_text(
    value: float | None, low: float | None = None, high: float | None = None, *, sign: str = "+"
) -> str:
    """Return a fraction or a difference of fractions in percent with its interval, or "undefined".

    Parameters
    ----------
    value, low, high : float, optional
        Fraction and the ends of its interval; None or NaN if unknown.
    sign : {"+", ""}, default "+"
        "+" writes the sign of positive numbers, as for differences.

    Returns
    -------
    str
        For instance ``"+2.1 [-0.3, +4.4]"``.
    """
    if value is None or pd.isna(value):
        return "undefined"
    unknown = low is None or pd.isna(low)
    ends = "" if unknown else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{100 * value:{sign}.1f}{ends}"


def interval_note(rows: pd.DataFrame) -> str:
    """Return what the error bars of metric rows show, and their n if it is known, for a legend.

    Rows that do not say it have the 95 % of every interval here.
    """
    kinds = {str(kind)[:4] for kind in rows.get("interval", ()) if kind and kind != "none"}
    said = "bars: 95 % interval" if kinds <= {"95 %"} else "bars: interval"
    return ", ".join(filter(None, (said, count_note(rows))))


def count_note(rows: pd.DataFrame) -> str:
    """Return "n = 400" or "n = 102 to 400" from the column "n" of metric rows; "" without one."""
    counts = pd.to_numeric(rows["n"]).dropna().astype(int) if "n" in rows else pd.Series(dtype=int)
    if counts.empty:
        return ""
    low, high = counts.min(), counts.max()
    return f"n = {low}" if low == high else f"n = {low} to {high}"


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
    over_seeds_first = np.argsort(rows["seed"].notna(), kind="stable")
    keys = ["model", "split", "shift", "severity"]
    return rows.iloc[over_seeds_first].drop_duplicates(keys).sort_index()


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

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    rows = with_sets(summary_rows(frame, metric))
    seeds = with_sets(frame[(frame["name"] == metric) & frame["seed"].notna()])
    sets, models = list(dict.fromkeys(rows["set"])), list(dict.fromkeys(rows["model"]))
    colour, marker = colours(models), markers(models)
    # few models stand close to the middle of their set, so that it is clear which one it is
    reach = min(0.32, 0.11 * (len(models) - 1))
    offsets = np.linspace(-reach, reach, len(models))
    with panel(
        cell=(max(6.5, 1.35 * len(sets) + 1.5), 4.2), title=title, numbers=pd.concat([rows, seeds])
    ) as (drawn, ax):
        for model, offset in zip(models, offsets):
            mine, single = rows[rows["model"] == model], seeds[seeds["model"] == model]
            x = offset + np.asarray([sets.index(s) for s in mine["set"]])
            style = {"fmt": marker[model], "ms": 6, "capsize": 2, "lw": 1.4, "label": model}
            y, error = value_and_error(mine, scale=100, limits=(0, 100))
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
        ax.plot([], [], " ", label=interval_note(rows))
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

    Returns
    -------
    matplotlib.figure.Figure

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
        f"choose among {sorted(logged)}" if logged else "pass histories of at least one epoch",
    )
    rows = [
        {"model": name, "run": number, **step}
        for name, runs in histories.items()
        for number, run in enumerate(runs)
        for step in run
    ]
    colour = colours(histories)
    with panels(
        len(present), len(present), cell=(3.8, 3.3), title=title, numbers=pd.DataFrame(rows)
    ) as drawn:
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
            ax.set_ylabel(_LOGGED.get(key, key.replace("_", " ")))
            ax.xaxis.get_major_locator().set_params(integer=True)
            epochs = {step["epoch"] for runs in histories.values() for run in runs for step in run}
            if len(epochs) < 6:
                ax.set_xticks(sorted(epochs))
        if any(len(runs) > 1 for runs in histories.values()):
            ax.plot([], [], " ", label="one line per seed")
        drawn.label("epoch")
        drawn.legend(4)
    return drawn.figure


def trend_figure(
    frame: pd.DataFrame,
    x: str,
    *,
    title: str,
    unit: str | Mapping[str, str],
    x_label: str = "",
    level: float | Mapping[str, float] | None = None,
    level_name: str = "chance",
    ceiling: float | Mapping[str, float] | None = None,
    spread: bool = False,
) -> Figure:
    """Draw values against a number, one line with intervals per model.

    Parameters
    ----------
    frame : DataFrame
        Columns `x`, "model", "value", "ci_low" and "ci_high"; with several units also "quantity".
    x : str
        Column of the horizontal axis.
    title : str
        Title of the figure.
    unit : str, or mapping of str to str
        Label of the vertical axis; or that of each quantity, which then gets a panel of its own.
    x_label : str, optional
        Label of the horizontal axis; by default the name of the column.
    level : float, or mapping of str to float, optional
        Level that is drawn as a dashed line, such as chance; or that of each quantity.
    level_name : str, default "chance"
        Name of that level.
    ceiling : float, or mapping of str to float, optional
        Noise ceiling, drawn as a solid black line; or that of each quantity.
    spread : bool, default False
        Draw the values of `x` at equal distances, e.g. for 0, 0.1, 1 and 10.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    units = unit if isinstance(unit, Mapping) else {"": unit}
    need = (x, "model", "value", "ci_low", "ci_high", *(["quantity"] if units is unit else []))
    require_rows(
        frame, need, "rows", f"give one row per model and value of {x!r}, with all of them"
    )
    models, values = list(dict.fromkeys(frame["model"])), sorted(set(frame[x]))
    place = {v: k if spread else v for k, v in enumerate(values)}
    # several models at one place would hide each other's bars
    shared = frame.groupby(x)["model"].nunique().max() > 1
    step = 0.012 * (max(place.values()) - min(place.values())) if shared else 0
    apart = {model: step * (k - (len(models) - 1) / 2) for k, model in enumerate(models)}
    colour, marker = colours(models), markers(models)
    size = {"cell": (6.5, 3.8 if len(units) == 1 else 2.7), "sharex": True}
    with panels(len(units), title=title, numbers=frame, **size) as drawn:
        for ax, (quantity, label) in zip(drawn.grid[:, 0], units.items()):
            own = frame if units is not unit else frame[frame["quantity"] == quantity]
            for model in [model for model in models if model in set(own["model"])]:
                part = own[own["model"] == model].sort_values(x)
                y, error = value_and_error(part)
                style = {"fmt": marker[model] + "-", "ms": 5, "capsize": 2, "lw": 1.4}
                at = part[x].map(place) + apart[model]
                ax.errorbar(at, y, yerr=error, color=colour[model], label=model, **style)
            line = level.get(quantity) if isinstance(level, Mapping) else level
            if line is not None:
                name = level_name if isinstance(level, Mapping) else f"{level_name}, {line:g}"
                ax.axhline(line, ls="--", lw=1, color=GREY, label=name)
            top = ceiling.get(quantity) if isinstance(ceiling, Mapping) else ceiling
            if top is not None:
                ax.axhline(top, lw=1.4, color="black", label="noise ceiling")
            ax.set_ylabel(label)
        if spread:
            ax.set_xticks(range(len(values)), [f"{v:g}" for v in values])
        ax.set_xlabel(x_label or x.replace("_", " "))
        ax.plot([], [], " ", label=interval_note(frame))
        drawn.legend(4)
    return drawn.figure


def topography_figure(
    values: pd.Series, places: np.ndarray, *, title: str, unit: str, level: float = 0.5
) -> Figure:
    """Draw one value per sensor on a map of the head, seen from above.

    Parameters
    ----------
    values : Series
        Value of each sensor by name.
    places : ndarray, shape (n_sensors, 2)
        Place of each sensor, to the right and to the front; see `bmfl_lab.data.things_eeg.EEG`.
    title, unit : str
        Title, and label of the colour bar.
    level : float, default 0.5
        Value drawn in white, such as chance.

    Returns
    -------
    matplotlib.figure.Figure
    """
    places = np.asarray(places) / np.linalg.norm(places, axis=1).max()
    numbers = values.rename("value").to_frame().assign(x=places[:, 0], y=places[:, 1])
    top = max(float(np.abs(values - level).max()), 1e-6)
    with panel(cell=(5.0, 4.2), title=title, numbers=numbers) as (drawn, ax):
        turn = np.linspace(0, 2 * np.pi, 200)
        ax.plot(1.15 * np.cos(turn), 1.15 * np.sin(turn), color=GREY, lw=1)
        ax.plot([-0.12, 0, 0.12], [1.15, 1.3, 1.15], color=GREY, lw=1)
        scale = {"vmin": level - top, "vmax": level + top, "cmap": "RdBu_r"}
        dots = ax.scatter(*places.T, c=values, s=260, edgecolors=GREY, **scale)
        for name, (x, y) in zip(values.index, places):
            ax.annotate(name, (x, y), (0, -15), textcoords="offset points", ha="center", size=7)
        ax.text(0, 1.34, "front", ha="center", fontsize=8, color=GREY)
        ax.set(aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.3, 1.5))
        bare(ax)
        drawn.colour_bar(dots, f"{unit} (white: {level:g})")
    return drawn.figure


def convergence_figure(
    scores: pd.DataFrame,
    attributes: pd.DataFrame,
    trends: pd.DataFrame,
    *,
    title: str,
    ceiling: float | None = None,
) -> Figure:
    """Draw the scores of models against their attributes, one row per score, with the trends.

    Parameters
    ----------
    scores : DataFrame
        One row per model; columns "encoding", "spatial" and "temporal", and optionally the ends of
        their intervals, such as "encoding_low". A score without a value has no panel.
    attributes : DataFrame
        One row per model, one column per attribute; NaN is unknown and drawn at the right edge.
    trends : DataFrame
        Columns attribute, score, rho and p, from `bmfl_lab.evaluation.convergence_trends`.
    title : str
        Title.
    ceiling : float, optional
        Noise ceiling of the encoding score, drawn as a solid black line.

    Returns
    -------
    matplotlib Figure
        The grey line of a panel is the least-squares line of the models with a known attribute.

    Raises
    ------
    DataError
        If no score has a value.
    """
    names = [
        c for c in ("encoding", "spatial", "temporal") if c in scores and scores[c].notna().any()
    ]
    remedy = "pass the scores that sweep_models returns"
    require_rows(scores, names or ("encoding",), "one row per model", remedy)
    colour, marker = colours(list(scores.index)), markers(list(scores.index))
    cells = [(score, attribute) for score in names for attribute in attributes]
    shape = {"n": len(cells), "n_columns": attributes.shape[1], "cell": (3.2, 2.5)}
    with panels(**shape, title=title, numbers=scores.join(attributes)) as drawn:
        for ax, (score, attribute) in zip(drawn, cells):
            x = attributes[attribute].reindex(scores.index).astype(float)
            known = x.dropna()
            wide = len(known) and known.min() > 0 and known.max() > 20 * known.min()
            span = np.ptp(known) or 1.0 if len(known) else 1.0
            edge = known.max() * 3 if wide else known.max() + 0.3 * span if len(known) else 1.0
            ax.set_xscale("log" if wide else "linear")
            errors = _score_errors(scores, score)
            for (model, value), error in zip(scores[score].items(), errors):
                place = edge if np.isnan(x[model]) else x[model]
                face = "white" if np.isnan(x[model]) else colour[model]
                style = {"fmt": marker[model], "ms": 6, "capsize": 2, "color": colour[model]}
                never = attributes.reindex(scores.index).loc[model].isna().all()
                name = model if never or not np.isnan(x[model]) else None
                ax.errorbar(place, value, yerr=error, mfc=face, label=name, **style)
            pair = pd.concat([known, scores[score].astype(float)], axis=1, join="inner").dropna()
            if len(pair) >= 4 and np.ptp(pair.iloc[:, 0]):
                at = np.log(pair.iloc[:, 0]) if wide else pair.iloc[:, 0]
                slope, start = np.polyfit(at, pair.iloc[:, 1], 1)
                ends = np.array([at.min(), at.max()])
                line = {"color": GREY, "lw": 1, "zorder": 0, "label": "trend, least squares"}
                ax.plot(np.exp(ends) if wide else ends, start + slope * ends, **line)
            if score == "encoding" and ceiling is not None:
                ax.axhline(ceiling, lw=1.4, color="black", label="noise ceiling")
            row = trends[(trends["attribute"] == attribute) & (trends["score"] == score)]
            said = "too few models"
            if not row.empty:
                said = f"rho {row['rho'].iloc[0]:+z.2f}, p {row['p'].iloc[0]:.3f}"
            ax.set_title(said, fontsize=9)
            ax.set(xlabel=attribute, ylabel=f"{score} score, r")
        if attributes.isna().any(axis=None):
            ax.plot([], [], "o", mfc="white", color=GREY, label="hollow: attribute unknown")
        ax.plot([], [], " ", label="bars: 95 % interval")
        ax.plot([], [], " ", label="titles: Spearman over models, p not adjusted")
        drawn.legend()
    return drawn.figure


def _score_errors(scores: pd.DataFrame, score: str) -> list[np.ndarray | None]:
    """Return the error bar of each model's score, shape (2, 1), or None where ends are missing."""
    if f"{score}_low" not in scores:
        return [None] * len(scores)
    value, low, high = scores[[score, f"{score}_low", f"{score}_high"]].to_numpy(float).T
    # the score of all stimuli may lie beyond those of every resample
    ends = np.maximum([value - low, high - value], 0)
    return list(ends.T[:, :, None])


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

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    remedy = f"give one row per ROI and value of {by!r}, with all of them"
    require_rows(frame, ("roi", "value", by), "rows", remedy)
    rois, models = list(dict.fromkeys(frame["roi"])), list(dict.fromkeys(frame[by]))
    colour, width, at = colours(models), 0.8 / len(models), np.arange(len(rois))
    size = (max(6.0, 0.28 * len(rois) * len(models) + 2.0), 3.7)
    with panel(cell=size, title=title, numbers=frame) as (drawn, ax):
        bars, explained = {"fmt": "none", "ecolor": "#222222", "lw": 0.9}, False
        for i, model in enumerate(models):
            part = frame[frame[by] == model].drop_duplicates("roi").set_index("roi")
            part = part.reindex(index=rois, columns=["value", "ci_low", "ci_high"])
            x, (y, error) = at - 0.4 + (i + 0.5) * width, value_and_error(part)
            name = model if np.isfinite(y).any() else f"{model} (undefined)"
            ax.bar(x, y, width * 0.92, color=colour[model], label=name, alpha=0.85)
            if error.any():
                ax.errorbar(x, y, yerr=error, **bars)
                explained = True
        if explained:  # in the legend once, after all models
            ax.errorbar([], [], yerr=[], label=interval_note(frame), **bars)
        if ceiling:
            level = np.asarray([ceiling.get(roi, np.nan) for roi in rois], float)
            ax.hlines(level, at - 0.42, at + 0.42, color="black", lw=1.6, label=ceiling_name)
        ax.axhline(0, color="#444444", lw=0.8)
        narrow = len(models) == 1 and len(rois) > 8
        ax.set_xticks(at, rois, rotation=45 if narrow else 0, ha="right" if narrow else "center")
        ax.set_xlim(-0.6, len(rois) - 0.4)
        drawn.label(y=unit)
        drawn.legend(8)
    return drawn.figure


def _logit(p: np.ndarray | Sequence[float] | float) -> np.ndarray:
    p = np.clip(np.asarray(p, dtype=float), 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


def _is_difference(metric: str) -> bool:
    return "difference" in metric or metric == "effective_robustness"


def _chosen(frame: pd.DataFrame, metric: str, models: Sequence[str] | None) -> pd.DataFrame:
    rows = summary_rows(frame, metric)
    rows = rows[rows["value"].notna()]
    known = sorted(set(rows["model"]))
    rows = rows if models is None else rows[rows["model"].isin(list(models))]
    require(
        not rows.empty,
        DataError,
        f"values of {metric!r}" + ("" if models is None else f" for {list(models)}"),
        "none",
        f"choose models among {known}" if known else "choose a metric that has a value",
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

    Returns
    -------
    matplotlib.figure.Figure

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
    limits = None if _is_difference(metric) else (0, 100)
    with panels(
        len(shifts),
        n_columns,
        title=title,
        numbers=rows,
        cell=(2.9, 2.6),
        margin=(0.6, 0.9),
        sharey=True,
    ) as drawn:
        for ax, shift in zip(drawn, shifts):
            clean = rows[(rows["split"] == "test") & (rows["shift"] == "")].assign(severity=0)
            part = pd.concat([clean, rows[rows["shift"] == shift]])
            for i, name in enumerate(names):
                mine = part[part["model"] == name].sort_values("severity")
                x = mine["severity"].to_numpy(float) + 0.06 * (i - (len(names) - 1) / 2)
                y, error = value_and_error(mine, scale=100, limits=limits)
                look = {"ms": 4.5, "lw": 1.4, "capsize": 1.5, "elinewidth": 1, "label": name}
                look |= {"color": colour[name], "marker": marker[name]}
                ax.errorbar(x, y, yerr=error, **look)
            if chance is not None:
                ax.axhline(100 * chance, ls="--", lw=1, color=GREY, label="chance")
            levels = sorted(int(s) for s in part["severity"].dropna().unique())
            ax.set_xticks(levels, ["none" if s == 0 else str(s) for s in levels])
            ax.set_title(shift.replace("_", " "))
        drawn.label("severity", f"{metric.replace('_', ' ')}, %", fontsize=9)
        ax.plot([], [], " ", label=interval_note(rows))
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
    lined = [s for s in lines if s in set(table["set"])]
    shown = [s for s in lined if sets is None or s in sets]
    require(
        shown,
        DataError,
        "sets with a line of baselines",
        lined,
        f"choose sets among {lined}"
        if lined
        else "name baselines in evaluate_suite(baselines=...)",
    )
    everyone = list(dict.fromkeys(table["model"]))
    colour, marker = colours(everyone), markers(everyone)
    with panels(
        len(shown), n_columns, cell=(3, 2.9), margin=(0.5, 0.9), title=title, numbers=table
    ) as drawn:
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
        ax.plot([], [], " ", label="one mark per seed")
        labels = ("in distribution, % (logit scale)", "accuracy on the set, % (logit scale)")
        drawn.label(*labels, fontsize=9)
        drawn.legend()
    return drawn.figure


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model, seed and set: accuracy on "test" and on the set."""
    rows = frame[(frame["name"] == "accuracy") & frame["seed"].notna() & frame["value"].notna()]
    at_home = (rows["split"] == "test") & (rows["shift"] == "")
    keys = ["model", "seed"]
    home = rows[at_home].rename(columns={"value": "id"})[[*keys, "id"]]
    away = with_sets(rows[~at_home]).rename(columns={"value": "ood"})[[*keys, "set", "ood"]]
    return away.merge(home, on=keys).astype({"id": float, "ood": float})


def _lines(frame: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return slope and intercept of the baselines' line of each set that has both."""
    names = ["robustness_slope", "robustness_intercept"]
    rows = with_sets(frame[frame["name"].isin(names)]).astype({"value": float})
    table = rows.pivot_table(index="set", columns="name", values="value", sort=False)
    return {row[0]: row[1:] for row in table.reindex(columns=names).dropna().itertuples(name=None)}


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
        Columns ``model, split, shift, severity, count, confidence, accuracy, ci_low, ci_high``; one
        row per bin, as `bmfl_lab.evaluation.reliability_table` returns them.
    title : str, default ""
        Title; contains *simulated* if responses are.
    n_columns : int, default 4
        Panels per row.
    min_count : int, default 5
        Bins with fewer predictions are not drawn.

    Returns
    -------
    matplotlib Figure
        The dashed diagonal is perfect calibration. The area of a mark grows with the number of
        predictions in its bin, and bars are the intervals of the accuracy.

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
        "evaluate more images, or choose a smaller min_count",
    )
    rows = with_sets(rows)
    sets, names = (list(dict.fromkeys(rows[k])) for k in ("set", "model"))
    rows = rows.sort_values("confidence")
    colour, marker = colours(names), markers(names)
    most = int(rows["count"].max())
    with panels(
        len(sets),
        n_columns,
        title=title,
        numbers=rows,
        cell=(2.7, 2.7),
        margin=(0.6, 0.9),
        sharex=True,
        sharey=True,
    ) as drawn:
        for ax, name in zip(drawn, sets):
            ax.plot([0, 100], [0, 100], color=GREY, lw=1, ls="--", label="perfect calibration")
            for model in names:
                part = rows[(rows["set"] == name) & (rows["model"] == model)]
                x = 100 * part["confidence"].to_numpy(float)
                y, error = value_and_error(part, ("accuracy", "ci_low", "ci_high"), 100)
                look = {"color": colour[model], "marker": marker[model]}
                ax.errorbar(x, y, yerr=error, label=model, ms=3, lw=1.2, elinewidth=0.8, **look)
                ax.scatter(x, y, s=_bin_area(part["count"], most), alpha=0.75, lw=0, **look)
            ax.set_title(name)
            ax.set(xlim=(0, 102), ylim=(0, 102))
        for count in dict.fromkeys((int(rows["count"].min()), most)):
            look = {"color": GREY, "lw": 0, "label": f"{count} predictions in a bin"}
            ax.scatter([], [], s=_bin_area(count, most), **look)
        ax.plot([], [], " ", label=interval_note(rows))
        drawn.label("confidence, %", "accuracy, %", fontsize=9)
        drawn.legend()
    return drawn.figure


def _bin_area(count: pd.Series | int, most: int) -> pd.Series | float:
    """Return the area of a mark in square points; the bin with the most predictions has 110."""
    return 10 + 100 * count / most


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
        Colours of differences are symmetric about zero, red is positive, and differences whose
        adjusted p value (column "p_adjusted") is at most 0.05 have a frame.

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    rows = _chosen(frame, metric, models)
    rows = rows.assign(
        p_adjusted=rows["p_adjusted"].astype(float) if "p_adjusted" in rows else np.nan,
        shift=rows["shift"].where(rows["shift"] != "", rows["split"]),
        severity=rows["severity"].fillna(0),
    )
    names, shifts = list(dict.fromkeys(rows["model"])), list(dict.fromkeys(rows["shift"]))
    levels = sorted(int(s) for s in rows["severity"].unique())
    signed = _is_difference(metric)
    scale = colour_scale(100 * rows["value"].to_numpy(float), signed, None if signed else 100)
    unit, form = ("points", "+z.1f") if signed else ("%", ".0f")
    with panels(
        len(names),
        len(names),
        title=title,
        numbers=rows,
        sharey=True,
        cell=(0.62 * len(levels) + 0.9, max(1.4, 0.42 * len(shifts))),
        margin=(2.4, 1.9),
    ) as drawn:
        for ax, name in zip(drawn, names):
            grid = np.full((len(shifts), len(levels)), np.nan)
            for row in rows[rows["model"] == name].itertuples():
                y, x = shifts.index(row.shift), levels.index(int(row.severity))
                grid[y, x] = 100 * row.value
                if signed and row.p_adjusted <= _SIGNIFICANT:
                    frame_cell(ax, y, x)
            image = ax.imshow(grid, aspect="auto", **scale)
            write_cells(ax, image, form)
            ax.set_title(textwrap.fill(name, 7 + 6 * len(levels)), fontsize=9.5)
            ax.set_xticks(range(len(levels)), ["–" if s == 0 else str(s) for s in levels])
            ax.set_yticks(range(len(shifts)), [s.replace("_", " ") for s in shifts])
            ax.grid(False)
        note = "severity (–: image sets without one; white: not evaluated)"
        if any(ax.patches for ax in drawn):
            note += f"; framed: adjusted p at most {_SIGNIFICANT}"
        drawn.figure.supxlabel(note, fontsize=10)
        label = f"{metric.replace('_', ' ')},\n{unit}"
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
        The predicted class below the image is green with a tick if it is right, and red with a
        cross if it is wrong.

    Raises
    ------
    DataError
        If there is no image.
    """
    width = max((len(r) for r in rows.values()), default=0)
    require(width, DataError, "at least one image", "none", "pass at least one image")
    shown = [{"row": name, **item} for name, items in rows.items() for item in items]
    with panels(
        len(rows) * width,
        width,
        title=title,
        numbers=pd.DataFrame(shown).drop(columns="image"),
        cell=(cell, cell + 0.62),
        margin=(1.1, 0.4),
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
                right = item["true"] == item["predicted"]
                below = f"{item['predicted']} {100 * item['confidence']:.0f} %"
                look = {"fontsize": 8, "color": "#00674B" if right else "#B03A00"}
                ax.set_xlabel(f"{'✓' if right else '✗'} {below}", **look)
        note = "above: true class; below: predicted class and its probability (✓ right, ✗ wrong)"
        drawn.figure.supxlabel(note, fontsize=8)
    return drawn.figure

"""Figures and tables of metric rows: accuracy by image set, training curves, encoding accuracy by ROI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, message
from bmfl_lab.records import comparison_label
from bmfl_lab.viz.style import GREY, colours, figure_style, markers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _require(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in frame.columns]
    if missing or frame.empty:
        raise DataError(
            message(
                f"metric rows with columns {tuple(columns)}",
                f"{len(frame)} rows, missing {missing}",
                "pass Record.to_frame()",
            )
        )


def set_label(split: str, shift: str, severity: Any) -> str:
    """Return the name of an evaluation set as figures show it ("masked 3", "clipart", "test")."""
    if not shift:
        return split
    return shift if severity is None or pd.isna(severity) else f"{shift} {int(severity)}"


def accuracy_table(frame: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Tabulate a metric, one row a model and one column an evaluation set.

    Parameters
    ----------
    frame : DataFrame
        Metric rows as made by `Record.to_frame`.
    metric : str
        Name of the metric.

    Returns
    -------
    DataFrame of str
        ``"61.3 [58.9, 63.6]"`` in percent where an interval is known; the row over seeds where
        there is one.

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    rows = summary_rows(frame, metric)
    rows = rows.assign(
        set=[set_label(*t) for t in zip(rows["split"], rows["shift"], rows["severity"])]
    )

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
    """Return a difference of fractions in points with its interval: ``"+2.1 [-0.3, +4.4]"``, or "undefined"."""
    if value is None or pd.isna(value):
        return "undefined"
    ends = "" if low is None or pd.isna(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * value:+.1f}{ends}"


def summary_rows(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row per model and evaluation set: over seeds where such rows exist, else the only seed.

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    _require(frame, ("name", "value", "split", "model", "shift", "severity", "seed"))
    rows = frame[frame["name"] == metric]
    if rows.empty:
        raise DataError(
            message(
                f"rows of the metric {metric!r}",
                f"only {sorted(frame['name'].unique())}",
                "choose one of them",
            )
        )
    if "reference" in rows:
        named = zip(rows["name"], rows["model"], rows["reference"])
        rows = rows.assign(model=[comparison_label(*fields) for fields in named])
    over = rows["seed"].isna()
    # rows over seeds sort first, so that they win over the rows of single seeds; set order is kept
    # by the index
    keys = ["model", "split", "shift", "severity"]
    first = rows[over].drop_duplicates(keys)
    rest = rows[~over].drop_duplicates(keys)
    taken = first[keys].merge(rest[keys].reset_index(), on=keys)["index"]
    return pd.concat([first, rest.drop(index=taken)]).sort_index()


def accuracy_figure(
    frame: pd.DataFrame, metric: str = "accuracy", *, chance: float | None = None, title: str = ""
) -> Figure:
    """Draw a metric with its interval for each model and evaluation set, every seed as a small dot.

    Parameters
    ----------
    frame : DataFrame
        Metric rows.
    metric : str
        Name of the metric, a fraction.
    chance : float, optional
        Chance level, drawn as a dashed line.
    title : str
        Title; say here what is simulated.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If there is no row of that metric.
    """
    import matplotlib.pyplot as plt

    rows = summary_rows(frame, metric)
    every = frame[(frame["name"] == metric) & frame["seed"].notna()]
    label = lambda r: set_label(r["split"], r["shift"], r["severity"])  # noqa: E731
    sets = list(dict.fromkeys(rows.apply(label, axis=1)))
    models = list(dict.fromkeys(rows["model"]))
    colour, marker = colours(models), markers(models)
    offsets = np.linspace(-0.32, 0.32, len(models)) if len(models) > 1 else np.zeros(1)
    with figure_style():
        fig, ax = plt.subplots(
            figsize=(max(6.5, 1.35 * len(sets) + 1.5), 4.2), layout="constrained"
        )
        for model, offset in zip(models, offsets):
            mine = rows[rows["model"] == model]
            x = np.asarray([sets.index(label(r)) for _, r in mine.iterrows()]) + offset
            y = 100 * mine["value"].to_numpy(float)
            error = 100 * np.abs(
                np.stack([mine["value"] - mine["ci_low"], mine["ci_high"] - mine["value"]]).astype(
                    float
                )
            )
            ax.errorbar(
                x,
                y,
                yerr=np.nan_to_num(error),
                fmt=marker[model],
                color=colour[model],
                ms=6,
                capsize=2,
                lw=1.4,
                label=model,
            )
            seeds = every[every["model"] == model]
            xs = (
                np.asarray([sets.index(label(r)) for _, r in seeds.iterrows()], dtype=float)
                + offset
            )
            ax.plot(
                xs + 0.045,
                100 * seeds["value"].to_numpy(float),
                ".",
                color=colour[model],
                ms=3.5,
                alpha=0.45,
            )
        if chance is not None:
            ax.axhline(100 * chance, ls="--", lw=1, color=GREY)
            ax.annotate(
                "chance",
                (1, 100 * chance),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color=GREY,
                fontsize=8,
            )
        ax.set_xticks(range(len(sets)), sets)
        ax.set_xlim(-0.6, len(sets) - 0.4)
        ax.set_ylabel(f"{metric.replace('_', ' ')}, %")
        ax.set_title(title)
        fig.legend(
            *ax.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(4, len(models)),
            fontsize=9,
        )
    plt.close(fig)
    return fig


def curves_figure(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    keys: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Draw training curves, one panel a quantity, one thin line a seed.

    Parameters
    ----------
    histories : mapping of str to list of histories
        Model name to one history per seed; a history is a list of mappings with "epoch" and the
        quantities.
    keys : sequence of str
        Quantities to draw; a model that lacks one is left out of its panel.
    title : str
        Title of the figure.

    Raises
    ------
    DataError
        If no history holds any of `keys`.
    """
    import matplotlib.pyplot as plt

    present = [
        k
        for k in keys
        if any(k in step for runs in histories.values() for run in runs for step in run)
    ]
    if not present:
        raise DataError(
            message(
                f"histories with one of {tuple(keys)}",
                "none of them",
                "choose a quantity that training logged",
            )
        )
    colour = colours(histories)
    with figure_style():
        fig, axes = plt.subplots(
            1, len(present), figsize=(3.8 * len(present), 3.3), layout="constrained", squeeze=False
        )
        for ax, key in zip(axes[0], present):
            for name, runs in histories.items():
                for number, run in enumerate(runs):
                    points = [(s["epoch"], s[key]) for s in run if key in s]
                    if points:
                        ax.plot(
                            *np.asarray(points, dtype=float).T,
                            color=colour[name],
                            lw=1.3,
                            alpha=0.8,
                            marker="o" if len(points) < 6 else "",  # one epoch draws no line
                            ms=4,
                            label=name if not number else None,
                        )
            ax.set_xlabel("epoch")
            ax.set_title(key.replace("_", " "))
        handles, labels = max(
            (ax.get_legend_handles_labels() for ax in axes[0]), key=lambda found: len(found[1])
        )
        fig.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=9
        )
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
    plt.close(fig)
    return fig


def roi_figure(
    frame: pd.DataFrame,
    *,
    ceiling: Mapping[str, float] | None = None,
    title: str = "",
    unit: str = "Pearson r",
) -> Figure:
    """Draw encoding accuracy per ROI as bars with intervals, beside the noise ceiling.

    Parameters
    ----------
    frame : DataFrame
        Columns "roi", "value", optionally "ci_low", "ci_high"; one row a ROI.
    ceiling : mapping of str to float, optional
        ROI to the highest value that the noise allows, in the same unit.
    title, unit : str
        Title and axis label.

    Raises
    ------
    DataError
        If there is no row.
    """
    import matplotlib.pyplot as plt

    _require(frame, ("roi", "value"))
    rows = frame.drop_duplicates("roi").reset_index(drop=True)
    x = np.arange(len(rows))
    with figure_style():
        fig, ax = plt.subplots(
            figsize=(max(5.5, 0.62 * len(rows) + 1.5), 3.6), layout="constrained"
        )
        ax.bar(
            x,
            rows["value"].to_numpy(float),
            width=0.62,
            color="#56B4E9",
            edgecolor="#0072B2",
            label="model",
        )
        if {"ci_low", "ci_high"} <= set(rows.columns):
            error = np.abs(
                np.stack([rows["value"] - rows["ci_low"], rows["ci_high"] - rows["value"]]).astype(
                    float
                )
            )
            ax.errorbar(
                x,
                rows["value"].to_numpy(float),
                yerr=np.nan_to_num(error),
                fmt="none",
                ecolor="#003A5C",
                capsize=2,
                lw=1.2,
            )
        if ceiling:
            levels = np.asarray([ceiling.get(r, np.nan) for r in rows["roi"]], dtype=float)
            ax.hlines(levels, x - 0.4, x + 0.4, color="#D55E00", lw=2, label="noise ceiling")
        ax.set_xticks(
            x,
            rows["roi"],
            rotation=45 if len(rows) > 8 else 0,
            ha="right" if len(rows) > 8 else "center",
        )
        ax.set_ylabel(unit)
        ax.set_title(title)
        fig.legend(loc="outside upper right", ncols=2, fontsize=9)
    plt.close(fig)
    return fig

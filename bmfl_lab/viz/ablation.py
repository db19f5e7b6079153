"""Figures of a region ablation, of a sweep over alpha, and of controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.results import set_label, summary_rows
from bmfl_lab.viz.style import GREY, colours, figure_style, markers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bmfl_lab.data.atlas import Atlas

_TITLES = {
    "only": "region alone",
    "left_out": "retrained without",
    "lesioned": "lesioned at inference",
    "kept": "only it left at inference",
}


def effect_figure(table: pd.DataFrame, *, control: str, title: str = "") -> Figure:
    """Draw how much more each region matters than its control: one panel a mode, one mark a set.

    Parameters
    ----------
    table : DataFrame
        Columns "mode", "control", "region", "split", "shift", "effect", "low", "high", "p_holm",
        effects as fractions.
    control : str
        Which control.
    title : str
        Title; say here what is simulated.

    Raises
    ------
    DataError
        If there is no row of that control.
    """
    import matplotlib.pyplot as plt

    rows = table[table["control"] == control]
    if rows.empty:
        raise DataError(
            message(
                f"rows of the control {control!r}", f"{sorted(set(table['control']))}", "choose one"
            )
        )
    rows = rows.assign(set=[set_label(a, b, None) for a, b in zip(rows["split"], rows["shift"])])
    modes, regions, sets = (list(dict.fromkeys(rows[k])) for k in ("mode", "region", "set"))
    colour, marker = colours(sets), markers(sets)
    offsets = np.linspace(-0.3, 0.3, len(sets)) if len(sets) > 1 else np.zeros(1)
    with figure_style():
        size = (3.1 * len(modes) + 1.6, 0.55 * len(regions) + 1.9)
        fig, axes = plt.subplots(
            1, len(modes), figsize=size, layout="constrained", squeeze=False, sharey=True
        )
        for ax, mode in zip(axes[0], modes):
            ax.axvline(0, color=GREY, lw=1, ls="--")
            ax.grid(axis="x", color="#E3E3E3")
            ax.grid(axis="y", visible=False)
            for name, offset in zip(sets, offsets):
                mine = rows[(rows["mode"] == mode) & (rows["set"] == name)]
                y = np.asarray([regions.index(r) for r in mine["region"]], dtype=float) + offset
                x, low, high = (100 * mine[k].to_numpy(float) for k in ("effect", "low", "high"))
                error = np.nan_to_num(np.stack([x - low, high - x]))
                style = {"color": colour[name], "ms": 5, "capsize": 2, "lw": 1.2, "mfc": "white"}
                ax.errorbar(x, y, xerr=error, fmt=marker[name], label=name, **style)
                sure = (mine["p_holm"] <= 0.05).to_numpy()
                ax.plot(x[sure], y[sure], marker[name], color=colour[name], ms=5, zorder=5)
            ax.set_title(_TITLES.get(mode, mode))
            ax.set_xlabel("accuracy, points beyond control")
        axes[0, 0].set_yticks(range(len(regions)), regions)
        axes[0, 0].invert_yaxis()
        fig.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(6, len(sets)),
        )
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
    plt.close(fig)
    return fig


def controls_figure(
    frame: pd.DataFrame,
    *,
    first: str,
    chance: float | None = None,
    title: str = "",
    n_columns: int = 3,
) -> Figure:
    """Draw many models beside the one they are controls of: one panel a set, one row a model, small dots single seeds.

    Parameters
    ----------
    frame : DataFrame
        Metric rows of "accuracy".
    first : str
        The model in question; its mean is drawn through its panel.
    chance : float, optional
        Chance level, a dotted line.
    title : str
        Title; say here what is simulated.
    n_columns : int, default 3
        Panels a row.

    Raises
    ------
    DataError
        If there is no accuracy, or none of `first`.
    """
    import matplotlib.pyplot as plt

    rows = summary_rows(frame, "accuracy")
    if first not in set(rows["model"]):
        raise DataError(
            message(
                f"rows of {first!r}", f"{sorted(set(rows['model']))}", "name an evaluated model"
            )
        )
    label = lambda r: set_label(r["split"], r["shift"], r["severity"])  # noqa: E731
    rows, every = (
        rows.assign(set=rows.apply(label, axis=1)),
        frame[(frame["name"] == "accuracy") & frame["seed"].notna()],
    )
    every = every.assign(set=every.apply(label, axis=1) if len(every) else [])
    sets, models = list(dict.fromkeys(rows["set"])), list(dict.fromkeys(rows["model"]))
    height, width = -(-len(sets) // n_columns), min(n_columns, len(sets))
    with figure_style():
        size = (2.6 * width + 1.8, height * (0.26 * len(models) + 0.8) + 0.5)
        fig, axes = plt.subplots(
            height, width, figsize=size, layout="constrained", squeeze=False, sharey=True
        )
        for ax, name in zip(axes.flat, sets):
            mine = rows[rows["set"] == name].set_index("model").reindex(models)
            value, low, high = (
                100 * mine[k].to_numpy(float) for k in ("value", "ci_low", "ci_high")
            )
            colour = ["#D55E00" if m == first else "#0072B2" for m in models]
            ax.hlines(range(len(models)), low, high, color=colour, lw=1.4)
            ax.scatter(value, range(len(models)), c=colour, s=26, zorder=3)
            seeds = every[every["set"] == name]
            at = [models.index(m) + 0.25 for m in seeds["model"]]
            ax.plot(100 * seeds["value"].to_numpy(float), at, ".", color=GREY, ms=3)
            ax.axvline(value[models.index(first)], color="#D55E00", lw=1, ls="--")
            if chance is not None:
                ax.axvline(100 * chance, color=GREY, lw=1, ls=":")
            ax.grid(axis="x", color="#E3E3E3")
            ax.grid(axis="y", visible=False)
            ax.set_title(name)
            ax.set_xlabel("accuracy, %", fontsize=9)
        for ax in axes.flat[len(sets) :]:
            ax.set_visible(False)
        axes[0, 0].set_yticks(range(len(models)), models)
        axes[0, 0].invert_yaxis()
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
    plt.close(fig)
    return fig


def roi_map(values: Mapping[str, float], atlas: Atlas) -> np.ndarray:
    """Paint one value a ROI on its vertices, float (n_vertices,); NaN elsewhere, means where ROIs overlap."""
    total, count = np.zeros(atlas.n_vertices), np.zeros(atlas.n_vertices)
    for name, value in values.items():
        mask = (
            np.asarray(atlas.rois[name], dtype=bool)
            if name in atlas.rois
            else np.zeros(atlas.n_vertices, dtype=bool)
        )
        total[mask] += value
        count[mask] += 1
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
) -> Figure:
    """Draw accuracy (or its gain) against a measured quantity, one line a set, one mark a setting named above it.

    Parameters
    ----------
    frame : DataFrame
        Columns "model", "set", "low", "high", `x` and `y`; what is drawn upwards as fractions.
    x, x_label, y, y_label : str
        The measured quantity, what is drawn upwards, and what they are called.
    order : sequence of str
        Sets in the order of their colours.
    title : str
        Title; say here what is simulated.
    level, level_label : float and str, optional
        A level to compare with, dashed.

    Raises
    ------
    DataError
        If the frame is empty.
    """
    import matplotlib.pyplot as plt

    if frame.empty:
        raise DataError(message("at least one row", "none", "evaluate the models first"))
    sets = list(order) or list(dict.fromkeys(frame["set"]))
    colour, marker = colours(sets), markers(sets)
    with figure_style():
        fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for name in sets:
            mine = frame[frame["set"] == name].sort_values(x)
            at, value, low, high = (mine[k].to_numpy(float) for k in (x, y, "low", "high"))
            error = 100 * np.nan_to_num(np.stack([value - low, high - value]))
            ax.errorbar(
                at,
                100 * value,
                yerr=error,
                fmt=f"{marker[name]}-",
                color=colour[name],
                label=name,
                capsize=2,
                lw=1.2,
            )
        top = ax.get_ylim()[1]
        for model, part in frame.groupby("model", sort=False):
            ax.annotate(
                model,
                (part[x].iloc[0], top),
                rotation=35,
                fontsize=8,
                color=GREY,
                annotation_clip=False,
            )
        if level is not None:
            ax.axhline(100 * level, ls="--", lw=1, color=GREY)
            ax.annotate(
                level_label,
                (1.01, 100 * level),
                xycoords=("axes fraction", "data"),
                va="center",
                color=GREY,
                fontsize=8,
            )
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        ax.set_title(title, pad=44)
        fig.legend(
            *ax.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(6, len(sets)),
            fontsize=9,
        )
    plt.close(fig)
    return fig

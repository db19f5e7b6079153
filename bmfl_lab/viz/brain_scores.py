"""Figures of brain scores: effects of alignment, robustness, identification, preferred images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.viz.charts import (
    GREY,
    colours,
    contact_sheet,
    markers,
    panel,
    require_rows,
    value_and_error,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def preferred_figure(
    top: Mapping[str, Sequence[np.ndarray]],
    bottom: Mapping[str, Sequence[np.ndarray]],
    synthesised: Mapping[str, np.ndarray] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Show, per ROI, the images with the largest and the smallest predicted response.

    Parameters
    ----------
    top, bottom : mapping of str to sequence of ndarray of uint8, each of shape (H, W, 3)
        ROI to images, those with the largest response first, and those with the smallest first.
    synthesised : mapping of str to ndarray of uint8, shape (H, W, 3), optional
        ROI to an image made to have a large response.
    title : str, default ""
        Title; contains *simulated* if responses are.

    Raises
    ------
    DataError
        If the ROIs differ, or there is no image.
    """
    made = synthesised or {}
    require(
        set(top) == set(bottom) and (not made or set(made) == set(top)),
        DataError,
        "the same ROIs in every part",
        f"{list(top)}, {list(bottom)}",
        "rank every ROI",
    )
    rows = {}
    for roi in top:
        rows[roi] = {f"top {i + 1}": image for i, image in enumerate(top[roi])}
        rows[roi] |= {f"lowest {i + 1}": image for i, image in enumerate(bottom[roi])}
        rows[roi] |= {"made": made[roi]} if made else {}
    return contact_sheet(rows, title=title, cell=0.95)


def brain_robust_figure(
    table: pd.DataFrame,
    *,
    title: str = "",
    x_label: str = "RSA with the brain",
    y_label: str = "accuracy, %",
) -> Figure:
    """Draw every model's robustness against its similarity to the brain.

    Parameters
    ----------
    table : DataFrame
        Columns "model", "brain", "robust"; optionally "brain_low", "brain_high", "robust_low",
        "robust_high", the ends of intervals. "robust" is a fraction. One row per model.
    title : str, default ""
        Title; contains *simulated* if responses are.
    x_label, y_label : str
        Labels of the axes.

    Raises
    ------
    DataError
        If a column is missing or there is no model.
    """
    require_rows(table, ("model", "brain", "robust"), "one row per model", "use brain_and_robust")
    colour, marker = colours(table["model"]), markers(table["model"])
    x_columns, y_columns = ([k, f"{k}_low", f"{k}_high"] for k in ("brain", "robust"))
    rows = table.reindex(columns=[*x_columns, *y_columns])
    x, x_error = value_and_error(rows, x_columns)
    y, y_error = value_and_error(rows, y_columns, 100)
    with panel(cell=(6.2, 4), title=title) as (drawn, ax):
        for i, name in enumerate(table["model"]):
            ax.errorbar(
                x[i],
                y[i],
                xerr=x_error[:, [i]] if x_error[:, i].any() else None,
                yerr=y_error[:, [i]] if y_error[:, i].any() else None,
                fmt=marker[name],
                color=colour[name],
                ms=8,
                capsize=2,
                lw=1,
                label=name,
            )
        ax.grid(True, axis="both")
        drawn.label(x_label, y_label)
        drawn.legend(1, "outside right center")
    return drawn.figure


def effect_figure(
    table: pd.DataFrame,
    *,
    ceiling: tuple[float, float] | None = None,
    title: str = "",
    unit: str = "mean Spearman rho",
) -> Figure:
    """Draw one value per model with its interval, seeds as dots, and the noise ceiling as a band.

    Parameters
    ----------
    table : DataFrame
        Columns "model", "value", "low", "high", "per_seed" (list of float); one row per model.
    ceiling : (float, float), optional
        Lower and upper noise ceiling.
    title : str, default ""
        Title; contains *simulated* if responses are.
    unit : str, default "mean Spearman rho"
        Label of the vertical axis.

    Raises
    ------
    DataError
        If a column is missing or there is no model.
    """
    columns = ("model", "value", "low", "high", "per_seed")
    require_rows(table, columns, "one row per model", "select the rows of roi 'all'")
    colour, marker = colours(table["model"]), markers(table["model"])
    value, error = value_and_error(table, ("value", "low", "high"))
    with panel(cell=(max(4.5, 1.1 * len(table) + 1.2), 3.6), title=title) as (drawn, ax):
        for x, (name, seeds) in enumerate(zip(table["model"], table["per_seed"])):
            ax.errorbar(
                x,
                value[x],
                yerr=error[:, [x]],
                color=colour[name],
                fmt=marker[name],
                ms=8,
                capsize=3,
                lw=1.4,
            )
            ax.plot(np.full(len(seeds), x + 0.14), seeds, ".", color=colour[name], ms=5, alpha=0.6)
        if ceiling is not None and np.isfinite(ceiling).all():
            label = "noise ceiling of single presentations"
            ax.axhspan(*ceiling, color=GREY, alpha=0.18, lw=0, label=label)
            ax.legend(loc="upper right", fontsize=8)
        ax.axhline(0, color=GREY, lw=0.8)
        ax.set_xticks(range(len(table)), table["model"])
        ax.set_xlim(-0.5, len(table) - 0.5)
        ax.set_ylabel(unit)
    return drawn.figure


def identification_figure(
    frame: pd.DataFrame,
    *,
    chance: float = 0.5,
    title: str = "",
    unit: str = "two-way identification",
) -> Figure:
    """Draw how well images are identified from each ROI, with intervals and the chance level.

    Parameters
    ----------
    frame : DataFrame
        Columns "roi", "value", "ci_low", "ci_high", fractions; one row per ROI.
    chance : float, default 0.5
        Chance level, a fraction.
    title : str, default ""
        Title; contains *simulated* if responses are.
    unit : str, default "two-way identification"
        Label of the vertical axis.

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    require_rows(frame, ("roi", "value", "ci_low", "ci_high"), "one row per ROI", "use identify")
    value, error = value_and_error(frame)
    with panel(cell=(max(4.5, 0.6 * len(frame) + 1.2), 3.3), title=title) as (drawn, ax):
        ax.errorbar(
            range(len(frame)), value, yerr=error, fmt="o", color="#0072B2", ms=6, capsize=3, lw=1.3
        )
        ax.axhline(chance, ls="--", lw=1, color=GREY, label=f"chance, {chance:g}")
        ax.set_xticks(range(len(frame)), frame["roi"])
        ax.set_ylim(min(0.4, np.nanmin(value - error[0]) - 0.02), 1.02)
        ax.set_ylabel(unit)
        drawn.legend(place="outside lower right")
    return drawn.figure

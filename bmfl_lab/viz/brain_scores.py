"""Figures of brain scores: effects of alignment, brain beside robust, identification, preferred images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.charts import GREY, colours, contact_sheet, markers, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def preferred_figure(
    top: Mapping[str, Sequence[np.ndarray]],
    bottom: Mapping[str, Sequence[np.ndarray]],
    synthesised: Mapping[str, np.ndarray] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Show for every ROI the images predicted to drive it most and least, and one made to drive it.

    Parameters
    ----------
    top, bottom : mapping of str to images
        ROI to uint8 images (H, W, 3), strongest first, and weakest first.
    synthesised : mapping of str to image, optional
        One uint8 image an ROI.
    title : str

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If the ROIs differ, or there is no image.
    """
    if set(top) != set(bottom) or (synthesised is not None and set(synthesised) != set(top)):
        raise DataError(
            message("the same ROIs in every part", f"{list(top)}, {list(bottom)}", "rank every ROI")
        )
    rows = {}
    for roi in top:
        row = {f"top {i + 1}": im for i, im in enumerate(top[roi])}
        row |= {f"lowest {i + 1}": im for i, im in enumerate(bottom[roi])}
        rows[roi] = row | (
            {"made" if synthesised is not None else "": synthesised[roi]} if synthesised else {}
        )
    return contact_sheet(rows, title=title, cell=0.95)


def brain_robust_figure(
    table: pd.DataFrame,
    *,
    title: str = "",
    x_label: str = "RSA with the brain",
    y_label: str = "accuracy, %",
) -> Figure:
    """Draw every model's brain-likeness beside its robustness, with intervals where known.

    Parameters
    ----------
    table : DataFrame
        Columns "model", "brain", "robust"; optionally "brain_low", "brain_high", "robust_low",
        "robust_high". "robust" is a fraction.
    title, x_label, y_label : str

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If a column is missing or there is no model.
    """
    missing = {"model", "brain", "robust"} - set(table.columns)
    if missing or table.empty:
        raise DataError(
            message(
                "columns model, brain, robust", f"missing {sorted(missing)}", "use brain_and_robust"
            )
        )
    colour, marker = colours(table["model"]), markers(table["model"])
    with panels(cell=(6.2, 4), title=title) as drawn:
        (ax,) = drawn
        for row in table.to_dict("records"):
            error = {}
            for axis, key, scale in (("xerr", "brain", 1), ("yerr", "robust", 100)):
                ends = [row.get(f"{key}_low", np.nan), row.get(f"{key}_high", np.nan)]
                if np.isfinite(ends).all():
                    error[axis] = np.abs(scale * (np.asarray(ends) - row[key]))[:, None]
            ax.errorbar(
                row["brain"],
                100 * row["robust"],
                **error,
                fmt=marker[row["model"]],
                color=colour[row["model"]],
                ms=8,
                capsize=2,
                lw=1,
                label=row["model"],
            )
        ax.grid(True, axis="both")
        drawn.label(x_label, y_label)
        drawn.figure.legend(loc="outside right center", fontsize=9)
    return drawn.figure


def effect_figure(
    table: pd.DataFrame,
    *,
    ceiling: tuple[float, float] | None = None,
    title: str = "",
    unit: str = "mean Spearman rho",
) -> Figure:
    """Draw one value a model with its interval, every seed as a small dot, and the noise ceiling as a band.

    Parameters
    ----------
    table : DataFrame
        Columns "model", "value", "low", "high", "per_seed" (list); one row a model.
    ceiling : (float, float), optional
        Lower and upper noise ceiling.
    title, unit : str

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If a column is missing or there is no model.
    """
    missing = {"model", "value", "low", "high", "per_seed"} - set(table.columns)
    if missing or table.empty:
        raise DataError(
            message(
                "one row a model",
                f"{len(table)} rows, missing {sorted(missing)}",
                "select roi 'all'",
            )
        )
    colour, marker = colours(table["model"]), markers(table["model"])
    with panels(cell=(max(4.5, 1.1 * len(table) + 1.2), 3.6), title=title) as drawn:
        (ax,) = drawn
        for x, row in enumerate(table.to_dict("records")):
            error = np.abs([[row["value"] - row["low"]], [row["high"] - row["value"]]])
            name = row["model"]
            ax.errorbar(
                x,
                row["value"],
                yerr=error,
                fmt=marker[name],
                color=colour[name],
                ms=8,
                capsize=3,
                lw=1.4,
            )
            seeds = np.asarray(row["per_seed"], float)
            ax.plot(np.full(len(seeds), x + 0.14), seeds, ".", color=colour[name], ms=5, alpha=0.6)
        if ceiling is not None and np.isfinite(ceiling).all():
            ax.axhspan(
                *ceiling,
                color=GREY,
                alpha=0.18,
                lw=0,
                label="noise ceiling of single presentations",
            )
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
        Columns "roi", "value", "ci_low", "ci_high", fractions.
    chance : float, default 0.5
    title, unit : str

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    missing = {"roi", "value", "ci_low", "ci_high"} - set(frame.columns)
    if missing or frame.empty:
        raise DataError(
            message(
                "columns roi, value, ci_low, ci_high", f"missing {sorted(missing)}", "use identify"
            )
        )
    values = frame[["value", "ci_low", "ci_high"]].to_numpy(float).T
    with panels(cell=(max(4.5, 0.6 * len(frame) + 1.2), 3.3), title=title) as drawn:
        (ax,) = drawn
        error = np.abs(np.stack([values[0] - values[1], values[2] - values[0]]))
        ax.errorbar(
            range(len(frame)),
            values[0],
            yerr=error,
            fmt="o",
            color="#0072B2",
            ms=6,
            capsize=3,
            lw=1.3,
        )
        ax.axhline(chance, ls="--", lw=1, color=GREY, label=f"chance, {chance:g}")
        ax.set_xticks(range(len(frame)), frame["roi"])
        ax.set_ylim(min(0.4, np.nanmin(values) - 0.02), 1.02)
        ax.set_ylabel(unit)
        drawn.figure.legend(loc="outside lower right", fontsize=8)
    return drawn.figure

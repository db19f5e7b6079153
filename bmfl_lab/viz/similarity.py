"""Figures of brain similarity and brain scores: heat maps, RDMs, profiles, models and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.viz.charts import (
    GREY,
    SEQUENTIAL,
    colour_scale,
    colours,
    contact_sheet,
    error_bars,
    markers,
    panel,
    panels,
    require_rows,
    value_and_error,
    write_cells,
)
from bmfl_lab.viz.results import interval_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_SMALL = 0.1  # largest value of a heat map whose cells need a third decimal
_BEST_TIME = "mean of the times with at\nleast 95 % of the layer's\nhighest score"


def heat_map_figure(
    tables: Mapping[str, pd.DataFrame],
    *,
    title: str = "",
    unit: str = "Spearman rho",
    marked: Mapping[str, pd.DataFrame] | None = None,
    star: str = "adjusted p below 0.05",
    signed: Sequence[str] = (),
    x_label: str = "ROI",
    y_label: str = "layer",
    n_columns: int = 3,
    shared: bool = True,
) -> Figure:
    """Draw tables of layers and ROIs as heat maps, with the value in every cell.

    Parameters
    ----------
    tables : mapping of str to DataFrame, shape (n_layers, n_rois)
        Title of each panel to its values; NaN is left blank. All tables have the same rows and
        columns.
    title : str, default ""
        Title of the figure; contains *simulated* if responses are.
    unit : str, default "Spearman rho"
        Label of the colour bar.
    marked : mapping of str to DataFrame of bool, shape (n_layers, n_rois), optional
        Cells that get a star.
    star : str, default "adjusted p below 0.05"
        Meaning of a star, written below the panels.
    signed : sequence of str, optional
        Panels that share colours symmetric about zero (differences). The others share another
        scale, which is symmetric about zero if one of their values is negative.
    x_label, y_label : str
        Names of the columns and of the rows.
    n_columns : int, default 3
        Panels per row.
    shared : bool, default True
        Whether panels share colours. False gives each panel its own scale, for measures of
        different units.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no table, or the tables differ in rows or columns.
    """
    _check_tables(tables)
    first, marked = next(iter(tables.values())), marked or {}
    n_rows = -(-len(tables) // min(n_columns, len(tables)))
    cell = max(2.4, 0.58 * first.shape[1] + 0.4), max(1.9, 0.36 * first.shape[0] + 1.0)
    margin = 1.3 + 0.08 * _excess(first.index), 0.4 + 0.055 * _excess(first.columns) * n_rows
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    images: dict[bool, AxesImage] = {}
    with panels(
        len(tables), n_columns, cell=cell, margin=margin, title=title, numbers=pd.concat(tables)
    ) as drawn:
        for k, (ax, (name, table)) in enumerate(zip(drawn, tables.items())):
            alike = [t for n, t in tables.items() if (n in signed) == (name in signed)]
            scale = colour_scale(np.stack(alike if shared else [table]), name in signed)
            image = ax.imshow(table.to_numpy(float), aspect="auto", **scale)
            stars = np.where(marked[name], "*", "") if name in marked else None
            write_cells(ax, image, "z.2f" if scale["vmax"] >= _SMALL else "z.3f", stars)
            ax.set_xticks(range(table.shape[1]), table.columns, **turned)
            names = [] if k % drawn.grid.shape[1] else table.index
            ax.set_yticks(range(table.shape[0]), names)
            ax.set_title(name, fontsize=10)
            ax.grid(False)
            images[name in signed] = image
            if not shared:
                drawn.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
        for kind, image in images.items() if shared else ():
            names = ", ".join(name for name in tables if (name in signed) == kind)
            drawn.colour_bar(image, f"{unit}\n({names})" if len(images) > 1 else unit)
        drawn.label(x_label, y_label)
        if any(np.any(cells) for cells in marked.values()):
            drawn.figure.supxlabel(f"*: {star}", fontsize=9)
    return drawn.figure


def _excess(labels: Sequence[str]) -> int:
    """Return by how many characters the longest label exceeds six."""
    return max(0, max(len(str(k)) for k in labels) - 6)


def _check_tables(tables: Mapping[str, pd.DataFrame]) -> None:
    frames = list(tables.values())
    require(
        frames and not frames[0].empty,
        DataError,
        "at least one table of layers x ROIs",
        "none",
        "pass {title: table}",
    )
    others = [f"{list(t.index)} x {list(t.columns)}" for t in frames]
    others = [shape for shape in others if shape != others[0]]
    require(
        not others,
        DataError,
        "tables of the same rows and columns",
        others[:1],
        "reindex them to one another",
    )


def rdm_figure(
    squares: Mapping[str, np.ndarray],
    categories: Sequence[str],
    *,
    title: str = "",
    n_columns: int = 4,
    unit: str = "percentile of dissimilarity",
) -> Figure:
    """Draw RDMs with the stimuli ordered by category, and dissimilarities as percentiles.

    Parameters
    ----------
    squares : mapping of str to ndarray, shape (n, n)
        Title of each panel to a symmetric RDM; all of the same n stimuli in one order.
    categories : sequence of str, length n
        Category of each stimulus. White lines separate categories.
    title : str, default ""
        Title of the figure; contains *simulated* if responses are.
    n_columns : int, default 4
        Panels per row.
    unit : str, default "percentile of dissimilarity"
        Label of the colour bar.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no RDM, or one has another shape.
    """
    from scipy.stats import rankdata

    names = np.asarray(categories, dtype=object).astype(str)
    n = len(names)
    bad = [(k, np.shape(v)) for k, v in squares.items() if np.shape(v) != (n, n)]
    require(
        squares and not bad,
        DataError,
        f"square RDMs ({n}, {n})",
        bad[:1] or "none",
        "pass at least one RDM of these stimuli; expand condensed RDMs first",
    )
    order = np.argsort(names, kind="stable")
    groups, counts = np.unique(names[order], return_counts=True)
    edges, upper = np.cumsum(counts), np.triu_indices(n, 1)
    with panels(
        len(squares),
        n_columns,
        cell=(2.5, 2.6),
        margin=(1.6, 0.5),
        title=title,
        numbers=pd.concat({k: pd.DataFrame(v, names, names) for k, v in squares.items()}),
    ) as drawn:
        for ax, (name, square) in zip(drawn, squares.items()):
            picture = np.full((n, n), np.nan)
            values = np.asarray(square, float)[np.ix_(order, order)][upper]
            picture[upper] = 100 * rankdata(values, nan_policy="omit") / np.isfinite(values).sum()
            picture.T[upper] = picture[upper]
            image = ax.imshow(picture, cmap=SEQUENTIAL, vmin=0, vmax=100, interpolation="nearest")
            for edge in edges[:-1]:
                ax.axhline(edge - 0.5, color="white", lw=0.6)
                ax.axvline(edge - 0.5, color="white", lw=0.6)
            ax.set_title(name, fontsize=10)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
        for ax in drawn.grid[:, 0]:
            ax.set_yticks(edges - counts / 2 - 0.5, [g or "unlabelled" for g in groups], fontsize=7)
        drawn.colour_bar(image, unit, fraction=0.03)
        if len(groups) > 1:
            drawn.figure.supxlabel("white lines separate categories", fontsize=8)
    return drawn.figure


def layer_profile_figure(
    tables: Mapping[str, pd.DataFrame],
    *,
    ceiling: Mapping[str, float] | None = None,
    intervals: Mapping[str, Mapping[tuple[str, str], tuple[float, float]]] | None = None,
    title: str = "",
    unit: str = "Pearson r",
    n_columns: int = 5,
) -> Figure:
    """Draw scores along the layers, with one panel per ROI and one line per model.

    Parameters
    ----------
    tables : mapping of str to DataFrame, shape (n_layers, n_rois)
        Model to its scores, the layers in order. All tables have the same rows and columns.
    ceiling : mapping of str to float, optional
        ROI to the highest value that the noise allows, drawn as a dashed line.
    intervals : mapping of str to mapping of (str, str) to (float, float), optional
        Model to the ends of the 95 % interval of each layer and ROI, drawn as bars.
    title : str, default ""
        Title of the figure; contains *simulated* if responses are.
    unit : str, default "Pearson r"
        Label of the vertical axis.
    n_columns : int, default 5
        Panels per row.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no table, or the tables differ in rows or columns.
    """
    _check_tables(tables)
    first = next(iter(tables.values()))
    colour, marker = colours(tables), markers(tables)
    blocks = [str(k).removeprefix("block ") for k in first.index]
    with panels(
        first.shape[1],
        n_columns,
        title=title,
        numbers=pd.concat(tables),
        cell=(1.9, 2.1),
        margin=(0.6, 0.7),
        sharey=True,
    ) as drawn:
        for ax, roi in zip(drawn, first.columns):
            for name, table in tables.items():
                value, known = table[roi].to_numpy(float), (intervals or {}).get(name, {})
                ends = [known.get((layer, roi), (np.nan, np.nan)) for layer in table.index]
                ax.errorbar(
                    range(len(table)),
                    value,
                    yerr=error_bars(value, *np.transpose(ends)),
                    label=name,
                    marker=marker[name],
                    color=colour[name],
                    ms=4,
                    capsize=2 if known else 0,
                )
            level = (ceiling or {}).get(roi, np.nan)
            if np.isfinite(level):
                ax.axhline(level, ls="--", lw=1, color=GREY, label="noise ceiling")
            ax.set_title(roi, fontsize=10)
            ax.set_xticks(range(len(first)), blocks, fontsize=8)
        if intervals:
            ax.plot([], [], " ", label="bars: 95 % interval")
        drawn.label("block", unit)
        drawn.legend(5)
    return drawn.figure


def time_course_figure(
    scores: np.ndarray,
    times: np.ndarray,
    layers: Sequence[str],
    *,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    peaks: np.ndarray | None = None,
    truth: Sequence[float] | None = None,
    title: str = "",
    unit: str = "mean Pearson r over sensors",
) -> Figure:
    """Draw how well each layer predicts M/EEG over time, and when it predicts best.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_times)
        Score of each layer at each time. A curve that equals an earlier one is dashed
        and named so in the legend.
    times : ndarray, shape (n_times,)
        Times in seconds after image onset.
    layers : sequence of str, length n_layers
        Names of the layers, in order.
    interval : tuple of two ndarray, shape (n_layers, n_times), optional
        Lower and upper ends of the 95 % interval of each score, drawn as a band.
    peaks : ndarray, shape (n_layers,), optional
        Time of the best prediction in seconds, as `bmfl_lab.evaluation.peak_times` returns it;
        drawn as a triangle on the curve of the layer.
    truth : sequence of float, length n_layers, optional
        True (planted) latencies in seconds, drawn as dotted lines.
    title : str, default ""
        Title of the figure; contains *simulated* if responses are.
    unit : str, default "mean Pearson r over sensors"
        Label of the vertical axis.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If the shape of `scores` or of `interval` differs from (n_layers, n_times).
    """
    scores, times = np.asarray(scores, float), np.asarray(times, float)
    ends = () if interval is None else tuple(np.asarray(end, float) for end in interval)
    for given in (scores, *ends):
        require(
            given.shape == (len(layers), len(times)),
            DataError,
            f"scores and ends of intervals of shape ({len(layers)}, {len(times)})",
            given.shape,
            "pass one row per layer and one column per time",
        )
    colour = colours(layers)
    tables = [pd.DataFrame(v, layers, times) for v in (scores, *ends)]
    numbers = pd.concat(tables, keys=["r", "low", "high"][: len(tables)])
    with panel(cell=(6.8, 3.4), title=title, numbers=numbers) as (drawn, ax):
        for i, layer in enumerate(layers):
            same = [k for k in range(i) if np.array_equal(scores[i], scores[k], equal_nan=True)]
            style, name = ("--", f"{layer} (same as {layers[same[0]]})") if same else ("-", layer)
            ax.plot(1000 * times, scores[i], style, color=colour[layer], lw=1.6, label=name)
            if ends:
                ax.fill_between(
                    1000 * times, ends[0][i], ends[1][i], color=colour[layer], alpha=0.15, lw=0
                )
            if peaks is not None and np.isfinite(peaks[i]):
                ax.plot(
                    1000 * peaks[i],
                    np.interp(peaks[i], times, scores[i]),
                    "v",
                    color=colour[layer],
                    ms=8,
                    mec="black",
                    mew=0.6,
                )
            if truth is not None:
                ax.axvline(1000 * truth[i], color=colour[layer], lw=1, ls=":")
        ax.axhline(0, color=GREY, lw=0.8)
        if ends:
            ax.fill_between([], [], [], color=GREY, alpha=0.3, lw=0, label="bands: 95 % interval")
        if peaks is not None:
            ax.plot([], [], "v", color=GREY, ms=8, mec="black", mew=0.6, label=_BEST_TIME)
        if truth is not None:
            ax.plot([], [], color=GREY, lw=1, ls=":", label="planted latency")
        drawn.label("time after image onset, ms", unit)
        drawn.legend(1, "outside right center")
    return drawn.figure


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

    Returns
    -------
    matplotlib.figure.Figure

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
    rows = {
        roi: {f"top {i}": image for i, image in enumerate(top[roi], 1)}
        | {f"lowest {i}": image for i, image in enumerate(bottom[roi], 1)}
        | ({"made": made[roi]} if made else {})
        for roi in top
    }
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

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a column is missing or there is no model.
    """
    remedy = "pass the table of brain_and_robust"
    require_rows(table, ("model", "brain", "robust"), "one row per model", remedy)
    colour, marker = colours(table["model"]), markers(table["model"])
    x_columns, y_columns = ([k, f"{k}_low", f"{k}_high"] for k in ("brain", "robust"))
    rows = table.reindex(columns=[*x_columns, *y_columns])
    x, x_error = value_and_error(rows, x_columns)
    y, y_error = value_and_error(rows, y_columns, 100)
    with panel(cell=(6.2, 4), title=title, numbers=table) as (drawn, ax):
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
        if x_error.any() or y_error.any():
            ax.plot([], [], " ", label="bars: 95 % interval")
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

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a column is missing or there is no model.
    """
    columns = ("model", "value", "low", "high", "per_seed")
    require_rows(
        table, columns, "one row per model", "pass the rows of alignment_effect with roi 'all'"
    )
    colour, marker = colours(table["model"]), markers(table["model"])
    value, error = value_and_error(table, ("value", "low", "high"))
    with panel(cell=(max(4.5, 1.1 * len(table) + 1.2), 3.6), title=title, numbers=table) as (
        drawn,
        ax,
    ):
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
        ax.plot([], [], ".", color=GREY, ms=5, label="single seeds")
        ax.plot([], [], " ", label="bars: 95 % interval")
        if ceiling is not None and np.isfinite(ceiling).all():
            label = "noise ceiling of single presentations"
            ax.axhspan(*ceiling, color=GREY, alpha=0.18, lw=0, label=label)
        ax.axhline(0, color=GREY, lw=0.8)
        ax.set_xticks(range(len(table)), table["model"])
        ax.set(xlim=(-0.5, len(table) - 0.5), ylabel=unit)
        drawn.legend(3)
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
        Columns "roi", "value", "ci_low", "ci_high", fractions; one row per ROI, or per ROI and
        "model" where there are several.
    chance : float, default 0.5
        Chance level, a fraction.
    title : str, default ""
        Title; contains *simulated* if responses are.
    unit : str, default "two-way identification"
        Label of the vertical axis.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    remedy = "pass the two-way rows of decoding_rows"
    require_rows(frame, ("roi", "value", "ci_low", "ci_high"), "one row per ROI", remedy)
    rois, lowest = list(dict.fromkeys(frame["roi"])), 0.4
    models = list(dict.fromkeys(frame["model"])) if "model" in frame else [""]
    size, marker = (max(4.5, 0.6 * len(rois) + 1.2), 3.3), markers(models)
    with panel(cell=size, title=title, numbers=frame) as (drawn, ax):
        for k, (model, colour) in enumerate(colours(models).items()):
            part = frame[frame["model"] == model] if len(models) > 1 else frame
            value, error = value_and_error(part)
            x = [rois.index(roi) + 0.2 * (k - (len(models) - 1) / 2) for roi in part["roi"]]
            style = dict(fmt=marker[model], color=colour, ms=6, capsize=3, lw=1.3)
            ax.errorbar(x, value, yerr=error, label=model if len(models) > 1 else None, **style)
            lowest = min(lowest, np.nanmin(value - error[0]) - 0.02)
        ax.axhline(chance, ls="--", lw=1, color=GREY, label=f"chance, {chance:g}")
        ax.plot([], [], " ", label=interval_note(frame))
        ax.set_xticks(range(len(rois)), rois)
        ax.set(ylim=(lowest, 1.02), ylabel=unit)
        drawn.legend(place="outside lower right")
    return drawn.figure

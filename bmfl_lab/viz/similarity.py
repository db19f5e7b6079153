"""Figures of brain similarity along layers: heat maps, RDMs, layer profiles and time courses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.charts import GREY, colours, markers, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_map_figure(
    tables: Mapping[str, pd.DataFrame],
    *,
    title: str = "",
    unit: str = "Spearman rho",
    marked: Mapping[str, pd.DataFrame] | None = None,
    signed: Sequence[str] = (),
    x_label: str = "ROI",
    y_label: str = "layer",
    n_columns: int = 3,
    shared: bool = True,
) -> Figure:
    """Draw tables (layers x ROIs) as heat maps with the value in every cell.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Panel title to values; NaN is left blank. All panels have the same rows and columns.
    title, unit : str
        Heading, and what the colours measure.
    marked : mapping of str to DataFrame of bool, optional
        Cells that get a star, e.g. the significant ones.
    signed : sequence of str
        Panels that share a diverging scale about zero (differences); the others share another one.
    x_label, y_label : str
        What columns and rows are.
    n_columns : int, default 3
        Panels a row.
    shared : bool, default True
        Whether panels share colours; False for measures of different units, each with a scale of
        its own.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If there is no table, or the tables differ in rows or columns.
    """
    _check_tables(tables)
    first = next(iter(tables.values()))
    plain = [t.to_numpy(float) for n, t in tables.items() if n not in signed]
    top = max((np.nanmax(np.abs(v), initial=0) for v in plain), default=1) or 1
    low = min((np.nanmin(v, initial=0) for v in plain), default=0)
    reach = (
        max((np.nanmax(np.abs(tables[n].to_numpy(float)), initial=0) for n in signed), default=0)
        or 1.0
    )
    last = {
        next((n for n in reversed(tables) if (n in signed) == kind), None) for kind in (True, False)
    } - {None}
    columns = min(n_columns, len(tables))
    rows = -(-len(tables) // columns)
    cell = max(2.4, 0.58 * first.shape[1] + 0.4), max(1.9, 0.36 * first.shape[0] + 1.0)
    margin = 1.3 + 0.08 * _longest(first.index), 0.4 + 0.055 * _longest(first.columns) * rows
    with panels(len(tables), n_columns, cell=cell, margin=margin, title=title) as drawn:
        for k, (ax, (name, table)) in enumerate(zip(drawn, tables.items())):
            values = table.to_numpy(float)
            if not shared:
                low, top, reach = *_range(values), np.nanmax(np.abs(values), initial=1e-9)
            scale = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach} if name in signed else {}
            image = ax.imshow(
                values, aspect="auto", **(scale or {"cmap": "viridis", "vmin": low, "vmax": top})
            )
            _write_cells(ax, values, image, None if marked is None else marked.get(name))
            ax.set_xticks(
                range(table.shape[1]),
                table.columns,
                rotation=45,
                ha="right",
                rotation_mode="anchor",
            )
            ax.set_yticks(range(table.shape[0]), table.index if k % columns == 0 else [])
            ax.set_title(name, fontsize=10)
            ax.grid(False)
            if not shared:
                drawn.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
            elif name in last and len(last) == 1:
                drawn.colour_bar(image, unit)
            elif name in last:
                drawn.figure.colorbar(image, ax=ax, label=unit, fraction=0.04, pad=0.02)
        drawn.label(x_label, y_label)
    return drawn.figure


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=1e-9))


def _longest(labels: Sequence[str]) -> int:
    """Return by how many characters the longest label exceeds the usual ones."""
    return max(0, max(len(str(k)) for k in labels) - 6)


def _check_tables(tables: Mapping[str, pd.DataFrame]) -> None:
    frames = list(tables.values())
    if not frames or frames[0].empty:
        raise DataError(
            message("at least one table of layers x ROIs", "none", "pass {title: table}")
        )
    for table in frames[1:]:
        if list(table.columns) != list(frames[0].columns) or list(table.index) != list(
            frames[0].index
        ):
            raise DataError(
                message(
                    "tables of the same rows and columns",
                    f"{list(table.index)} x {list(table.columns)}",
                    "reindex them to one another",
                )
            )


def _write_cells(ax, values: np.ndarray, image, marked: pd.DataFrame | None) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            star = "*" if marked is not None and bool(marked.iloc[i, j]) else ""
            luminance = np.dot(image.cmap(image.norm(value))[:3], (0.3, 0.6, 0.1))
            colour = "white" if luminance < 0.5 else "black"
            ax.text(
                j,
                i,
                f"{value if abs(value) >= 0.005 else 0:.2f}{star}",
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
            )


def rdm_figure(
    squares: Mapping[str, np.ndarray],
    categories: Sequence[str],
    *,
    title: str = "",
    n_columns: int = 4,
    unit: str = "percentile of dissimilarity",
) -> Figure:
    """Draw RDMs with the stimuli ordered by category, dissimilarities shown as percentiles.

    Parameters
    ----------
    squares : mapping of str to ndarray, shape (n, n)
        Panel title to symmetric RDM; all of the same stimuli in one order.
    categories : sequence of str, length n
        Category of each stimulus; the figure orders by it and draws lines between categories.
    title, unit : str
        Heading and label of the colour bar.
    n_columns : int, default 4
        Panels a row.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If there is no RDM, or one is not square over the given stimuli.
    """
    from scipy.stats import rankdata

    names = np.asarray(categories, dtype=object)
    n = len(names)
    bad = [(k, np.shape(v)) for k, v in squares.items() if np.shape(v) != (n, n)]
    if bad or not squares:
        raise DataError(
            message(
                f"square RDMs ({n}, {n})", f"{bad[:1] or 'none'}", "expand condensed RDMs first"
            )
        )
    order = np.argsort(names.astype(str), kind="stable")
    groups, counts = np.unique(names[order].astype(str), return_counts=True)
    edges = np.cumsum(counts)
    upper = np.triu_indices(n, 1)
    with panels(len(squares), n_columns, cell=(2.5, 2.6), margin=(1.6, 0.5), title=title) as drawn:
        for ax, (name, square) in zip(drawn, squares.items()):
            picture = np.full((n, n), np.nan)
            values = np.asarray(square, float)[np.ix_(order, order)][upper]
            picture[upper] = 100 * rankdata(values, nan_policy="omit") / np.isfinite(values).sum()
            picture.T[upper] = picture[upper]
            image = ax.imshow(picture, cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
            for edge in edges[:-1]:
                ax.axhline(edge - 0.5, color="white", lw=0.6)
                ax.axvline(edge - 0.5, color="white", lw=0.6)
            ax.set_title(name, fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
        for ax in drawn.grid[:, 0]:
            ax.set_yticks(edges - counts / 2 - 0.5, [g or "unlabelled" for g in groups], fontsize=7)
        drawn.colour_bar(image, unit, fraction=0.03)
    return drawn.figure


def layer_profile_figure(
    tables: Mapping[str, pd.DataFrame],
    *,
    ceiling: Mapping[str, float] | None = None,
    title: str = "",
    unit: str = "Pearson r",
    n_columns: int = 5,
) -> Figure:
    """Draw scores along the layers, one panel an ROI and one line a model.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Model to a table of layers x ROIs, the layers in order.
    ceiling : mapping of str to float, optional
        ROI to the highest value that the noise allows, drawn as a dashed line.
    title, unit : str
    n_columns : int, default 5
        Panels a row.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        As `heat_map_figure`.
    """
    _check_tables(tables)
    first = next(iter(tables.values()))
    colour, marker = colours(tables), markers(tables)
    with panels(
        first.shape[1], n_columns, cell=(1.9, 2.1), margin=(0.6, 0.7), title=title, sharey=True
    ) as drawn:
        for ax, roi in zip(drawn, first.columns):
            for name, table in tables.items():
                style = {"marker": marker[name], "color": colour[name], "ms": 4}
                ax.plot(range(len(table)), table[roi].to_numpy(float), label=name, **style)
            level = (ceiling or {}).get(roi, np.nan)
            if np.isfinite(level):
                ax.axhline(level, ls="--", lw=1, color=GREY, label="noise ceiling")
            ax.set_title(roi, fontsize=10)
            ax.set_xticks(
                range(len(first)), [str(k).removeprefix("block ") for k in first.index], fontsize=8
            )
        drawn.label("block", unit)
        drawn.legend(5)
    return drawn.figure


def time_course_figure(
    scores: np.ndarray,
    times: np.ndarray,
    layers: Sequence[str],
    *,
    peaks: np.ndarray | None = None,
    truth: Sequence[float] | None = None,
    title: str = "",
    unit: str = "mean Pearson r over sensors",
) -> Figure:
    """Draw how well each layer predicts M/EEG over time, and when it does so best.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_times)
    times : ndarray, shape (n_times,)
        Seconds after image onset.
    layers : sequence of str
        Names, in order.
    peaks : ndarray, shape (n_layers,), optional
        Time of best prediction (s), drawn as a marker.
    truth : sequence of float, optional
        Planted latencies (s), drawn as a thin line each.
    title, unit : str

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If shapes disagree.
    """
    scores, times = np.asarray(scores, float), np.asarray(times, float)
    if scores.shape != (len(layers), len(times)):
        raise DataError(
            message(
                f"scores of shape ({len(layers)}, {len(times)})",
                str(scores.shape),
                "one row a layer",
            )
        )
    colour = colours(layers)
    with panels(cell=(6.8, 3.4), title=title) as drawn:
        (ax,) = drawn
        for i, layer in enumerate(layers):
            ax.plot(1000 * times, scores[i], color=colour[layer], lw=1.6, label=layer)
            if peaks is not None and np.isfinite(peaks[i]):
                ax.plot(
                    1000 * peaks[i],
                    scores[i].max(),
                    "v",
                    color=colour[layer],
                    ms=8,
                    mec="black",
                    mew=0.6,
                )
            if truth is not None:
                ax.axvline(1000 * truth[i], color=colour[layer], lw=1, ls=":")
        ax.axhline(0, color=GREY, lw=0.8)
        drawn.label("time after image onset, ms", unit)
        drawn.figure.legend(loc="outside right center", fontsize=9)
    return drawn.figure

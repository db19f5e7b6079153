"""Figures of attention: maps over images, shares of ROIs, checks of maps, and receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, require
from bmfl_lab.viz.charts import GREY, PALETTE, SEQUENTIAL, bare, colours, markers, panel, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OUTCOME = {True: ("pass", PALETTE[0]), False: ("FAIL", PALETTE[1]), None: ("undefined", GREY)}


def upsample_map(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a map over patches to the size of its image, bilinearly, within its own range.

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        One value per patch.
    size : (int, int)
        Height and width of the image in pixels.

    Returns
    -------
    ndarray of float32, shape size

    Raises
    ------
    DataError
        If the map is not two-dimensional or not finite.
    """
    from PIL import Image

    weights = np.asarray(weights, dtype=np.float32)
    require(
        weights.ndim == 2,
        DataError,
        "a map of shape (h, w), one value per patch",
        f"shape {weights.shape}",
        "reshape the patch axis to the grid",
    )
    require(
        np.isfinite(weights).all(),
        DataError,
        "a finite map",
        f"{int((~np.isfinite(weights)).sum())} values that are not",
        "leave out this map",
    )
    height, width = size
    return np.asarray(Image.fromarray(weights).resize((width, height), Image.Resampling.BILINEAR))


def overlay(image: np.ndarray, weights: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Draw a map over patches on its image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The image as the backbone reads it.
    weights : ndarray, shape (h, w)
        One value per patch. Colours run from the smallest to the largest value.
    opacity : float, default 0.55
        0 shows the image only, 1 the map only.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    DataError
        If the map is not two-dimensional or not finite, or the opacity is outside 0 to 1.
    """
    import matplotlib

    require(
        0 <= opacity <= 1,
        DataError,
        "an opacity from 0 to 1",
        repr(opacity),
        "choose for example 0.5",
    )
    large = upsample_map(weights, image.shape[:2])
    colour = matplotlib.colormaps[SEQUENTIAL](matplotlib.colors.Normalize()(large))[..., :3]
    return np.clip((1 - opacity) * image + opacity * 255 * colour, 0, 255).astype(np.uint8)


def attention_figure(
    images: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    *,
    titles: Sequence[str] = (),
    title: str = "",
    unit: str = "attention",
    opacity: float = 0.55,
) -> Figure:
    """Draw one row per image: the image and its maps.

    Parameters
    ----------
    images : sequence of ndarray of uint8, each of shape (H, W, 3)
        The images.
    maps : mapping of str to sequence of ndarray, each of shape (h, w)
        Name of a column to one map per image. Each map has its own colour range, so that colours
        compare places within a map, never the strength of two maps.
    titles : sequence of str, optional
        Label of each row.
    title : str, default ""
        Title of the figure.
    unit : str, default "attention"
        Quantity of the maps, for the label of the colour bar.
    opacity : float, default 0.55
        Opacity of the maps over the image, from 0 to 1.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If a column has another number of maps than there are images.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    for name, column in maps.items():
        require(
            len(column) == len(images),
            DataError,
            f"{len(images)} maps in {name!r}, one per image",
            len(column),
            "pass one map for every image",
        )
    n, n_columns = len(images), 1 + len(maps)
    with panels(
        n * n_columns, n_columns, title=title, cell=(1.65, 1.75), margin=(0.9, 0.4)
    ) as drawn:
        for row, image in enumerate(images):
            pictures = {"image": image}
            pictures |= {name: overlay(image, of[row], opacity) for name, of in maps.items()}
            for ax, (name, picture) in zip(drawn.grid[row], pictures.items()):
                bare(ax)
                ax.imshow(picture, interpolation="nearest")
                if row == 0:
                    ax.set_title(name, loc="center", fontsize=9)
        for ax, text in zip(drawn.grid[:, 0], titles):
            ax.set_ylabel(text, fontsize=9)
        if maps:
            colours_of = ScalarMappable(Normalize(0, 1), SEQUENTIAL)
            bar = drawn.figure.colorbar(colours_of, ax=drawn.grid, fraction=0.03, pad=0.02)
            bar.set_ticks([0, 1], labels=["lowest", "highest"], fontsize=8)
            bar.set_label(f"{unit} (each map scaled to its own range)", fontsize=8)
    return drawn.figure


def consulted_rois_figure(
    weights: pd.DataFrame, *, title: str = "", group: str | None = None
) -> Figure:
    """Draw each ROI's share of the attention of the image query over brain tokens.

    Parameters
    ----------
    weights : DataFrame, shape (n_images, n_rois)
        One row per image and one column per brain token (ROI); rows sum to 1.
    title : str, default ""
        Title; contains *simulated* if responses are.
    group : str, optional
        Name of the rows ("test images") in the axis label.

    Returns
    -------
    matplotlib Figure
        Mean share per ROI with the central 80 % of images, beside the uniform share.

    Raises
    ------
    DataError
        If there is no row.
    """
    require(
        not weights.empty,
        DataError,
        "at least one image's attention",
        "none",
        "pass the attention of some images",
    )
    order = weights.mean().sort_values(ascending=True)
    low, high = weights[order.index].quantile(0.1), weights[order.index].quantile(0.9)
    y = np.arange(len(order))
    with panel(cell=(6.2, 0.26 * len(order) + 1.4), title=title, numbers=weights) as (drawn, ax):
        ax.hlines(y, low, high, color=PALETTE[5], lw=3, label="central 80 % of images")
        ax.plot(order, y, "o", color=PALETTE[0], ms=5, label="mean")
        ax.axvline(1 / len(order), ls="--", color=GREY, lw=1, label="uniform")
        ax.set_yticks(y, order.index)
        ax.set_xlabel(f"share of attention{f', {len(weights)} {group}' if group else ''}")
        ax.legend(fontsize=8, loc="lower right")
    return drawn.figure


def checks_figure(
    image: np.ndarray,
    trained: Mapping[str, np.ndarray],
    randomised: Mapping[str, np.ndarray],
    checks: pd.DataFrame,
    *,
    title: str = "",
) -> Figure:
    """Draw one row per map: the map, the same map of a model with random weights, and its checks.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The image as the backbone reads it.
    trained, randomised : mapping of str to ndarray, shape (h, w)
        Name of a map to its values for this image. The place of a missing randomised map stays
        empty.
    checks : DataFrame
        Columns ``map``, ``check``, ``value``, ``low``, ``high``, ``reference``, ``above`` and
        ``passes``; one row per check of a map, which passes above or below the reference.
    title : str, default ""
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no map or no check.
    """
    names = list(dict.fromkeys(checks["check"])) if len(checks) else []
    require(
        trained and names,
        DataError,
        "at least one map with checks",
        f"{len(trained)} maps and {len(checks)} rows of checks",
        "pass at least one map and a row per check of it",
    )
    n_columns = 2 + len(names)
    with panels(
        len(trained) * n_columns,
        n_columns,
        title=title,
        numbers=checks,
        cell=(1.35, 1.38),
        margin=(0.9, 0.7),
    ) as drawn:
        for ax in drawn:
            bare(ax)
        for line, (name, weights) in zip(drawn.grid, trained.items()):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
            for ax, found in zip(line, (weights, randomised.get(name))):
                if found is None:
                    _write(ax, 0.5, "–", color=GREY)
                else:
                    ax.imshow(overlay(image, found), interpolation="nearest")
            for ax, check in zip(line[2:], names):
                rows = checks[(checks["map"] == name) & (checks["check"] == check)]
                _check_cell(ax, rows.iloc[0] if len(rows) else None)
        for ax, text in zip(drawn.grid[0], ["this model", "random weights", *names]):
            ax.set_title(text, loc="center", fontsize=9)
        note = (
            "checks: value, [95 % interval], and the side of the reference on which all of the "
            "interval must lie\n"
            "maps: each from its lowest (black) to its highest value (yellow)"
        )
        drawn.figure.supxlabel(note, fontsize=8)
    return drawn.figure


def _write(ax: Axes, height: float, text: str, **look) -> None:
    ax.text(0.5, height, text, ha="center", va="center", transform=ax.transAxes, **look)


def _check_cell(ax: Axes, row: pd.Series | None) -> None:
    """Write the outcome of a check and its numbers; None means that the check was not made."""
    if row is None:
        _write(ax, 0.5, "not measured", color=GREY, fontsize=7)
        return
    passes = None if pd.isna(row["passes"]) else bool(row["passes"])
    word, colour = _OUTCOME[passes]
    _write(ax, 0.66, word, color=colour, weight="bold")
    if passes is not None:
        interval = f"[{row['low']:z.2f}, {row['high']:z.2f}]"
        side = "above" if row["above"] else "below"
        lines = f"{row['value']:z.2f}\n{interval}\npasses {side} {row['reference']:.2f}"
        _write(ax, 0.3, lines, fontsize=7)


def deletion_figure(
    curves: pd.DataFrame,
    *,
    score: str,
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Draw deletion and insertion curves of maps and of random orders.

    Parameters
    ----------
    curves : DataFrame
        Columns ``map``, ``kind`` ("deletion", "insertion"), ``order`` ("map", "random"),
        ``fraction``, ``mean``, ``low``, ``high``, as `DeletionInsertion.table` returns them.
    score : str
        Quantity of the curves, the label of the vertical axis. Bands of a probability stay within
        0 and 1.
    levels : mapping of str to float, optional
        Name to score of reference levels, drawn as dotted lines. Curves of a score without limits
        may lie beyond them.
    title : str, default ""
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no curve.
    """
    require(
        not curves.empty,
        DataError,
        "at least one curve",
        "none",
        "pass the table() of deletion_insertion for at least one map",
    )
    kinds = {"deletion": ("lower", "removed"), "insertion": ("higher", "shown")}
    palette = colours(curves["map"])
    limits = (0, 1) if "probability" in score else (-np.inf, np.inf)
    with panels(2, 2, cell=(4.2, 3.3), title=title, numbers=curves, sharey=True) as drawn:
        for ax, (kind, (better, done)) in zip(drawn, kinds.items()):
            part = curves[curves["kind"] == kind]
            for name, colour in palette.items():
                line = part[(part["map"] == name) & (part["order"] == "map")]
                ax.plot(line["fraction"], line["mean"], color=colour, label=name, lw=1.8)
                low, high = np.clip((line["low"], line["high"]), *limits)
                ax.fill_between(line["fraction"], low, high, color=colour, alpha=0.15, lw=0)
            random = part[part["order"] == "random"].groupby("fraction")["mean"].mean()
            ax.plot(random.index, random, ls="--", color=GREY, label="random order")
            for (name, level), shade in zip((levels or {}).items(), ("black", GREY)):
                ax.axhline(level, ls=":", lw=1.2, color=shade, label=f"{name}, {level:g}")
            ax.set_title(f"{kind}: {better} is better", fontsize=10)
            ax.set_xlabel(f"share of the patches {done}")
        drawn.label(y=score)
        ax.fill_between([], [], [], color=GREY, alpha=0.3, lw=0, label="bands: 95 % interval")
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return drawn.figure


def fields_figure(
    fields: Mapping[str, np.ndarray],
    centres: pd.DataFrame,
    truth: pd.DataFrame | None = None,
    *,
    degrees: float,
    title: str = "",
    columns: int = 7,
) -> Figure:
    """Draw receptive fields in the visual field, with their estimated and their known centres.

    Parameters
    ----------
    fields : mapping of str to ndarray, shape (h, w)
        Name to average attention; each field has its own colour range.
    centres, truth : DataFrame, shape (n_fields, 2)
        ``x`` and ``y`` in degrees, one row per field in the order of `fields`; rows of `truth` may
        be NaN.
    degrees : float
        Visual angle of the side of a field, in degrees.
    title : str, default ""
        Title of the figure.
    columns : int, default 7
        Panels per row.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no field, or the number of centres differs from that of fields.
    """
    truth = centres * np.nan if truth is None else truth
    require(
        fields and len(centres) == len(truth) == len(fields),
        DataError,
        "one centre per field",
        f"{len(fields)} fields, {len(centres)} and {len(truth)} centres",
        "pass at least one field, and one row per field",
    )
    half, size = degrees / 2, {"cell": (1.4, 1.55), "margin": (0.6, 0.9)}
    ticks, both = [-int(half), 0, int(half)], (-half, half)
    with panels(
        len(fields),
        columns,
        title=title,
        numbers=centres.add_prefix("estimated_").join(truth.add_prefix("known_")),
        **size,
    ) as drawn:
        for i, (ax, (name, field)) in enumerate(zip(drawn, fields.items())):
            ax.imshow(field, cmap=SEQUENTIAL, extent=(*both, *both), interpolation="nearest")
            ax.axhline(0, color="white", lw=0.4, alpha=0.5)
            ax.axvline(0, color="white", lw=0.4, alpha=0.5)
            for label, place, marker, colour, width in (
                ("centre of attention", centres.iloc[i], "o", PALETTE[5], 7),
                ("known centre", truth.iloc[i], "P", "white", 8),
            ):
                if np.isfinite(place["x"]):
                    ax.plot(
                        place["x"],
                        place["y"],
                        marker,
                        label=label,
                        mfc=colour,
                        mec="black",
                        ms=width,
                        clip_on=marker == "o",
                    )
            ax.set(xticks=ticks, yticks=[] if i % drawn.grid.shape[1] else ticks)
            ax.set(xlim=both, ylim=both)
            ax.tick_params(labelsize=7)
            ax.grid(False)
            ax.set_title(name, fontsize=9, loc="center", fontweight="normal")
        note = "degrees of visual angle; each field from its lowest (black) to its highest (yellow)"
        drawn.figure.supxlabel(note, fontsize=8)
        drawn.legend(2, "outside upper right")
    return drawn.figure


def centres_figure(
    estimated: pd.DataFrame,
    truth: pd.DataFrame,
    rois: Sequence[str],
    *,
    title: str = "",
    known: str = "known",
) -> Figure:
    """Draw estimated against known centres of receptive fields, one dot per vertex.

    Parameters
    ----------
    estimated, truth : DataFrame, shape (n_vertices, 2)
        ``x`` and ``y`` in degrees, one row per vertex.
    rois : sequence of str, length n_vertices
        ROI of each vertex; vertices with "" are left out.
    title : str, default ""
        Title of the figure.
    known : str, default "known"
        Source of the known centres, in the label of the horizontal axis.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If no vertex has an ROI, an estimated and a known centre.
    """
    rois = np.asarray(rois, dtype=object)
    shown = (rois != "") & truth["x"].notna().to_numpy() & estimated["x"].notna().to_numpy()
    require(
        shown.any(),
        DataError,
        "a vertex with an ROI, an estimated and a known centre",
        "none",
        "choose retinotopic ROIs",
    )
    names = list(dict.fromkeys(rois[shown]))
    palette, shapes = colours(names), markers(names)
    directions = {"x": "horizontal (left to right)", "y": "vertical (down to up)"}
    with panels(
        2,
        2,
        cell=(4.2, 3.6),
        title=title,
        numbers=estimated.add_prefix("estimated_")
        .join(truth.add_prefix("known_"))
        .assign(roi=rois),
    ) as drawn:
        for ax, (key, direction) in zip(drawn, directions.items()):
            both = np.concatenate([estimated[key][shown], truth[key][shown]])
            reach = float(np.nanmax(np.abs(both))) * 1.08
            ax.plot([-reach, reach], [-reach, reach], ls="--", color=GREY, lw=1, label="equal")
            for name in names:
                rows, look = shown & (rois == name), {"s": 16, "alpha": 0.7, "linewidths": 0}
                look |= {"color": palette[name], "marker": shapes[name]}
                ax.scatter(truth[key][rows], estimated[key][rows], label=name, **look)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel=f"{known}, degrees")
            ax.set_title(direction, fontsize=10)
            ax.set_aspect("equal")
        drawn.label(y="estimated, degrees")
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return drawn.figure

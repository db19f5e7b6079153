"""Figures of attention: maps over images, shares of ROIs, checks of maps, and receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.charts import GREY, PALETTE, colours, figure_style, markers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CMAP = "inferno"
_OUTCOME = {True: ("pass", PALETTE[0]), False: ("FAIL", PALETTE[1]), None: ("undefined", GREY)}


def upsample_map(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a map over patches to image size, bilinearly, without changing its range.

    Parameters
    ----------
    weights : ndarray, shape (h, w)
        One value a patch.
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
    if weights.ndim != 2 or not np.isfinite(weights).all():
        raise DataError(
            message(
                "a finite map of shape (h, w), one value a patch",
                f"shape {weights.shape}",
                "reshape the patch axis to the grid",
            )
        )
    height, width = size
    return np.asarray(Image.fromarray(weights).resize((width, height), Image.Resampling.BILINEAR))


def overlay(image: np.ndarray, weights: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Lay a map over patches on its image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The image as the backbone saw it.
    weights : ndarray, shape (h, w)
        One value a patch; scaled to its own minimum and maximum.
    opacity : float, default 0.55
        0 shows the image only, 1 the map only.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    DataError
        As `upsample_map`, or if the opacity is outside 0..1.
    """
    import matplotlib

    if not 0 <= opacity <= 1:
        raise DataError(
            message("an opacity from 0 to 1", repr(opacity), "choose a value in that range")
        )
    large = upsample_map(weights, image.shape[:2])
    spread = float(large.max() - large.min())
    scaled = (large - large.min()) / spread if spread > 0 else np.zeros_like(large)
    colour = matplotlib.colormaps[CMAP](scaled)[..., :3]
    return np.clip((1 - opacity) * image + opacity * 255 * colour, 0, 255).astype(np.uint8)


def attention_figure(
    images: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    *,
    titles: Sequence[str] = (),
    title: str = "",
    opacity: float = 0.55,
) -> Figure:
    """Draw images in rows and, beside each, its maps by name.

    Parameters
    ----------
    images : sequence of uint8 arrays, shape (H, W, 3)
        One an image.
    maps : mapping of str to sequence of arrays, shape (h, w)
        Column name to one map an image; each map is scaled to its own range, so colours compare
        places in one map, never strength between maps.
    titles : sequence of str
        Label of each row.
    title : str
        Title of the figure.
    opacity : float
        Of the maps.

    Raises
    ------
    DataError
        If a column has another number of maps than there are images.
    """
    import matplotlib.pyplot as plt

    for name, column in maps.items():
        if len(column) != len(images):
            raise DataError(
                message(
                    f"{len(images)} maps in {name!r}, one an image",
                    str(len(column)),
                    "pass one map for every image",
                )
            )
    columns = 1 + len(maps)
    with figure_style():
        fig, axes = plt.subplots(
            len(images),
            columns,
            figsize=(1.65 * columns, 1.75 * len(images) + 0.4),
            squeeze=False,
            layout="constrained",
        )
        for row, image in enumerate(images):
            panels = [
                ("image", image),
                *((name, overlay(image, column[row], opacity)) for name, column in maps.items()),
            ]
            for ax, (name, picture) in zip(axes[row], panels):
                ax.imshow(picture, interpolation="nearest")
                ax.set_xticks([])
                ax.set_yticks([])
                ax.grid(False)
                for spine in ax.spines.values():
                    spine.set_visible(False)
                if row == 0:
                    ax.set_title(name, loc="center", fontsize=9)
            if titles:
                axes[row, 0].set_ylabel(titles[row], fontsize=9)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    plt.close(fig)
    return fig


def consulted_rois_figure(
    weights: pd.DataFrame, *, title: str = "", group: str | None = None
) -> Figure:
    """Draw which brain tokens the image query attends to.

    Parameters
    ----------
    weights : DataFrame
        One row an image, one column a brain token (ROI); rows sum to 1.
    title : str
        Title.
    group : str, optional
        What the rows are ("test images"), for the axis label.

    Returns
    -------
    matplotlib Figure
        Mean attention per ROI with the central 80 % of images, against the uniform share.

    Raises
    ------
    DataError
        If there is no row.
    """
    import matplotlib.pyplot as plt

    if weights.empty:
        raise DataError(
            message("at least one image's attention", "none", "pass the attention of some images")
        )
    order = weights.mean().sort_values(ascending=True)
    low, high = weights[order.index].quantile(0.1), weights[order.index].quantile(0.9)
    y = np.arange(len(order))
    with figure_style():
        fig, ax = plt.subplots(figsize=(6.2, 0.26 * len(order) + 1.4), layout="constrained")
        ax.hlines(y, low, high, color=PALETTE[5], lw=3, label="central 80 % of images")
        ax.plot(order, y, "o", color=PALETTE[0], ms=5, label="mean")
        ax.axvline(1 / len(order), ls="--", color=GREY, lw=1, label="uniform")
        ax.set_yticks(y, order.index)
        ax.set_xlabel(f"share of attention{f', {len(weights)} {group}' if group else ''}")
        ax.set_title(title)
        ax.legend(fontsize=8, loc="lower right")
    plt.close(fig)
    return fig


def checks_figure(
    image: np.ndarray,
    trained: Mapping[str, np.ndarray],
    randomised: Mapping[str, np.ndarray],
    checks: pd.DataFrame,
    *,
    title: str = "",
) -> Figure:
    """Draw each map on an image, the same map of a model with random weights, and its checks beside them.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        As the backbone saw it.
    trained, randomised : mapping of str to ndarray, shape (h, w)
        Map name to its values for this image; a map without a randomised version leaves that place
        empty.
    checks : DataFrame
        Columns ``map``, ``check``, ``value``, ``low``, ``high``, ``reference``, ``passes``; one row
        a check of a map.
    title : str
        Of the figure.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DataError
        If there is no map, or no check of any.
    """
    import matplotlib.pyplot as plt

    columns = list(dict.fromkeys(checks["check"])) if len(checks) else []
    if not trained or not columns:
        raise DataError(
            message("at least one map with checks", f"{len(trained)} maps", "measure checks first")
        )
    widths = [1.0, 1.0, *[1.0] * len(columns)]
    with figure_style():
        fig, axes = plt.subplots(
            len(trained),
            len(widths),
            figsize=(1.35 * len(widths) + 0.9, 1.38 * len(trained) + 0.7),
            squeeze=False,
            gridspec_kw={"width_ratios": widths},
            layout="constrained",
        )
        for row, (name, weights) in enumerate(trained.items()):
            _map_cell(axes[row, 0], overlay(image, weights))
            other = randomised.get(name)
            _map_cell(axes[row, 1], None if other is None else overlay(image, other))
            axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
            for column, check in enumerate(columns):
                found = checks[(checks["map"] == name) & (checks["check"] == check)]
                _check_cell(axes[row, 2 + column], found.iloc[0] if len(found) else None)
        for ax, text in zip(axes[0], ["this model", "random weights", *columns]):
            ax.set_title(text, loc="center", fontsize=9)
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    plt.close(fig)
    return fig


def _bare(ax) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _map_cell(ax, picture: np.ndarray | None) -> None:
    _bare(ax)
    if picture is None:
        ax.text(0.5, 0.5, "–", ha="center", va="center", transform=ax.transAxes, color=GREY)
    else:
        ax.imshow(picture, interpolation="nearest")


def _check_cell(ax, found) -> None:
    _bare(ax)
    if found is None:
        ax.text(
            0.5,
            0.5,
            "not measured",
            ha="center",
            va="center",
            transform=ax.transAxes,
            color=GREY,
            fontsize=7,
        )
        return
    passes = None if found["passes"] is None or pd.isna(found["passes"]) else bool(found["passes"])
    word, colour = _OUTCOME[passes]
    ax.text(
        0.5,
        0.66,
        word,
        ha="center",
        va="center",
        transform=ax.transAxes,
        color=colour,
        weight="bold",
    )
    if passes is None:
        return
    lines = f"{found['value']:.2f}\n[{found['low']:.2f}, {found['high']:.2f}]\nagainst {found['reference']:.2f}"
    ax.text(0.5, 0.3, lines, ha="center", va="center", transform=ax.transAxes, fontsize=7)


def deletion_figure(curves: pd.DataFrame, *, score: str, title: str = "") -> Figure:
    """Draw deletion and insertion curves of maps against random orders.

    Parameters
    ----------
    curves : DataFrame
        Columns ``map``, ``kind`` ("deletion", "insertion"), ``order`` ("map", "random"),
        ``fraction``, ``mean``, ``low``, ``high``, as from `DeletionInsertion.table`.
    score : str
        What the curves show, for the axis.
    title : str
        Of the figure.

    Raises
    ------
    DataError
        If there is no curve.
    """
    import matplotlib.pyplot as plt

    if curves.empty:
        raise DataError(
            message("at least one curve", "none", "measure deletion and insertion first")
        )
    kinds, names = ("deletion", "insertion"), list(dict.fromkeys(curves["map"]))
    palette = colours(names)
    with figure_style():
        fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.3), sharey=True, layout="constrained")
        for ax, kind in zip(axes, kinds):
            part = curves[curves["kind"] == kind]
            for name in names:
                line = part[(part["map"] == name) & (part["order"] == "map")]
                ax.plot(line["fraction"], line["mean"], color=palette[name], label=name, lw=1.8)
                ax.fill_between(
                    line["fraction"],
                    line["low"],
                    line["high"],
                    color=palette[name],
                    alpha=0.15,
                    lw=0,
                )
            random = (
                part[part["order"] == "random"].groupby("fraction", as_index=False)["mean"].mean()
            )
            ax.plot(random["fraction"], random["mean"], ls="--", color=GREY, label="random order")
            ax.set_title(
                f"{kind}: {'lower' if kind == 'deletion' else 'higher'} is better", fontsize=10
            )
            ax.set_xlabel("share of the patches " + ("removed" if kind == "deletion" else "shown"))
        axes[0].set_ylabel(score)
        axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    plt.close(fig)
    return fig


def fields_figure(
    fields: Mapping[str, np.ndarray],
    centres: pd.DataFrame,
    truth: pd.DataFrame | None = None,
    *,
    degrees: float,
    title: str = "",
    columns: int = 7,
) -> Figure:
    """Draw receptive fields over the visual field, with their centres and the known ones.

    Parameters
    ----------
    fields : mapping of str to ndarray, shape (h, w)
        Name to average attention; each is scaled to its own range.
    centres, truth : DataFrame
        ``x`` and ``y`` in degrees, one row a field, in the same order; rows of `truth` may be NaN.
    degrees : float
        Visual angle of a field's side.
    title : str
        Of the figure.
    columns : int
        Panels a row.

    Raises
    ------
    DataError
        If there is no field, or the rows do not fit.
    """
    import matplotlib.pyplot as plt

    if (
        not fields
        or len(centres) != len(fields)
        or (truth is not None and len(truth) != len(fields))
    ):
        raise DataError(
            message(
                "one centre a field", f"{len(fields)} fields, {len(centres)} centres", "align them"
            )
        )
    columns = min(columns, len(fields))
    rows, half = -(-len(fields) // columns), degrees / 2
    with figure_style():
        fig, axes = plt.subplots(
            rows,
            columns,
            figsize=(1.4 * columns + 0.6, 1.55 * rows + 0.9),
            squeeze=False,
            layout="constrained",
        )
        for i, ax in enumerate(axes.flat):
            if i >= len(fields):
                ax.set_visible(False)
                continue
            name, field = list(fields.items())[i]
            ax.imshow(field, cmap=CMAP, extent=(-half, half, -half, half), interpolation="nearest")
            ax.axhline(0, color="white", lw=0.4, alpha=0.5)
            ax.axvline(0, color="white", lw=0.4, alpha=0.5)
            ax.plot(
                centres["x"].iloc[i],
                centres["y"].iloc[i],
                "o",
                mfc=PALETTE[5],
                mec="black",
                ms=7,
                label="centre of attention",
            )
            if truth is not None and np.isfinite(truth["x"].iloc[i]):
                place = (truth["x"].iloc[i], truth["y"].iloc[i])
                ax.plot(
                    *place, "P", mfc="white", mec="black", ms=8, label="known centre", clip_on=False
                )
            ticks = [-int(half), 0, int(half)]
            ax.set(xticks=ticks, yticks=ticks if i % columns == 0 else [])
            ax.set(xlim=(-half, half), ylim=(-half, half))
            ax.tick_params(labelsize=7)
            ax.grid(False)
            ax.set_title(name, fontsize=9, loc="center", fontweight="normal")
        drawn = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels())}
        fig.supxlabel("degrees of visual angle", fontsize=8)
        fig.legend(drawn.values(), drawn.keys(), loc="outside upper right", fontsize=8, ncols=2)
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    plt.close(fig)
    return fig


def centres_figure(
    estimated: pd.DataFrame,
    truth: pd.DataFrame,
    rois: Sequence[str],
    *,
    title: str = "",
    known: str = "known",
) -> Figure:
    """Draw estimated against known field centres, one dot a vertex.

    Parameters
    ----------
    estimated, truth : DataFrame
        ``x`` and ``y`` in degrees, one row a vertex.
    rois : sequence of str
        ROI of each vertex; "" leaves a vertex out.
    title, known : str
        Of the figure; what the horizontal axis is.

    Raises
    ------
    DataError
        If lengths differ or no vertex is left.
    """
    import matplotlib.pyplot as plt

    rois = np.asarray(rois, dtype=object)
    shown = (rois != "") & truth["x"].notna().to_numpy() & estimated["x"].notna().to_numpy()
    if not shown.any():
        raise DataError(message("a vertex with a known field", "none", "choose retinotopic ROIs"))
    names = list(dict.fromkeys(rois[shown]))
    palette, shapes = colours(names), markers(names)
    with figure_style():
        fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
        for ax, key, word in zip(
            axes, ("x", "y"), ("horizontal (left to right)", "vertical (down to up)")
        ):
            reach = (
                float(np.nanmax(np.abs(np.concatenate([estimated[key][shown], truth[key][shown]]))))
                * 1.08
            )
            ax.plot([-reach, reach], [-reach, reach], ls="--", color=GREY, lw=1)
            for name in names:
                rows = shown & (rois == name)
                dots = {
                    "color": palette[name],
                    "marker": shapes[name],
                    "s": 16,
                    "alpha": 0.7,
                    "linewidths": 0,
                }
                ax.scatter(truth[key][rows], estimated[key][rows], label=name, **dots)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel=f"{known}, degrees")
            ax.set_title(word, fontsize=10)
            ax.set_aspect("equal")
        axes[0].set_ylabel("estimated, degrees")
        axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    plt.close(fig)
    return fig

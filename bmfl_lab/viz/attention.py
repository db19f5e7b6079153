"""Figures of attention: maps over image patches, and which ROI a fusion model consults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.style import GREY, PALETTE, figure_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CMAP = "inferno"


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

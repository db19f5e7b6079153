"""Contact sheets: the same images under many conditions, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import DataError, message
from bmfl_lab.viz.style import figure_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Row = Sequence[np.ndarray] | Mapping[str, np.ndarray]


def contact_sheet(
    images: Mapping[str, Row] | Sequence[np.ndarray],
    *,
    columns: Sequence[str] | None = None,
    title: str = "",
    cell: float = 1.1,
    n_columns: int = 8,
) -> Figure:
    """Show images in a labelled grid.

    Parameters
    ----------
    images : mapping row name -> images, or sequence of images
        Each image uint8 (H, W, 3). The images of a row are a sequence, or a mapping column name ->
        image. A plain sequence is wrapped after `n_columns`.
    columns : sequence of str, optional
        Column names ("clean", "severity 1", ...); default the keys of the first row, if it is a
        mapping.
    title : str, optional
        Above the sheet.
    cell : float, default 1.1
        Side of a cell in inches.
    n_columns : int, default 8
        For a plain sequence.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no image, or one is not uint8 (H, W, 3).
    """
    from matplotlib.figure import Figure

    if isinstance(images, Mapping):
        rows = {str(k): v for k, v in images.items()}
        first = next(iter(rows.values()), None)
        if columns is None and isinstance(first, Mapping):
            columns = [str(k) for k in first]
        grid = {k: list(v.values()) if isinstance(v, Mapping) else list(v) for k, v in rows.items()}
    else:
        flat = list(images)
        grid = {
            " " * i: flat[s : s + n_columns] for i, s in enumerate(range(0, len(flat), n_columns))
        }
    every = [im for row in grid.values() for im in row]
    bad = [np.shape(im) for im in every if np.ndim(im) != 3 or np.asarray(im).dtype != np.uint8]
    if bad or not every:
        raise DataError(
            message(
                "uint8 images of shape (H, W, 3)", f"{bad[:1] or 'no image'}", "pass decoded images"
            )
        )
    width = max(len(row) for row in grid.values())
    label = 0.085 * max(len(k.strip()) for k in grid) + 0.1
    top = (0.25 if columns else 0.05) + (0.35 if title else 0)
    size = (label + width * cell, top + len(grid) * cell)
    with figure_style():
        figure = Figure(figsize=size, layout="none")
        for r, (name, row) in enumerate(grid.items()):
            for c, image in enumerate(row):
                y = 1 - (top + (r + 1) * cell) / size[1]
                box = [
                    (label + c * cell) / size[0],
                    y,
                    0.97 * cell / size[0],
                    0.97 * cell / size[1],
                ]
                axes = figure.add_axes(box)
                axes.imshow(
                    image,
                    interpolation="nearest" if min(np.shape(image)[:2]) < 96 else "antialiased",
                )
                axes.set_axis_off()
                if r == 0 and columns is not None and c < len(columns):
                    axes.set_title(columns[c], fontsize=8, loc="center", pad=2, fontweight="normal")
            height = 1 - (top + (r + 0.5) * cell) / size[1]
            figure.text(
                (label - 0.06) / size[0], height, name.strip(), ha="right", va="center", fontsize=8
            )
        if title:
            figure.text(
                label / size[0],
                1 - 0.1 / size[1],
                title,
                ha="left",
                va="top",
                fontsize=11,
                fontweight="bold",
            )
    return figure

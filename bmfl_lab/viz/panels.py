"""Figures of several panels: one set-up for their size, unused places, labels, legend, colour bar and heading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bmfl_lab.viz.style import figure_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panels:
    """A figure and its panels.

    Parameters
    ----------
    figure : matplotlib Figure
    grid : ndarray of Axes, shape (n_rows, n_columns)
        With the places that stay empty.
    n : int
        Panels that are drawn on.
    """

    figure: Figure
    grid: np.ndarray
    n: int

    def __iter__(self) -> Iterator[Axes]:
        return iter(self.grid.flat[: self.n])

    @property
    def left(self) -> list[Axes]:
        """First panel of every row."""
        return list(self.grid[:, 0])

    @property
    def lowest(self) -> list[Axes]:
        """Lowest drawn panel of every column; a label of the whole figure would run into the legend."""
        return list(self.grid.flat[max(0, self.n - self.grid.shape[1]) : self.n])

    def label(self, x: str = "", y: str = "", **text: Any) -> None:
        """Name the axes once a column and once a row."""
        for axes in self.lowest if x else ():
            axes.set_xlabel(x, **text)
        for axes in self.left if y else ():
            axes.set_ylabel(y, **text)

    def legend(self, most: int = 6) -> None:
        """Put the first panel's legend below all panels, at most `most` entries a row."""
        handles, names = self.grid.flat[0].get_legend_handles_labels()
        self.figure.legend(
            handles, names, loc="outside lower center", ncols=min(most, len(names)), fontsize=9
        )

    def colour_bar(self, image: Any, label: str, **options: Any) -> None:
        """Draw one colour bar for all panels."""
        self.figure.colorbar(
            image, ax=self.grid, label=label, **{"fraction": 0.04, "pad": 0.02, **options}
        )


@contextlib.contextmanager
def panels(
    n: int = 1,
    n_columns: int = 1,
    *,
    cell: tuple[float, float],
    margin: tuple[float, float] = (0.0, 0.0),
    title: str = "",
    **options: Any,
) -> Iterator[Panels]:
    """Make a figure in the house style, and finish it at the end of the block.

    Parameters
    ----------
    n : int, default 1
        Panels.
    n_columns : int, default 1
        At most so many a row.
    cell, margin : (float, float)
        Width and height of a panel, and what the figure has beside them, inches.
    title : str
        Heading: of a lone panel without a name of its own, else of the figure.
    **options
        Of ``plt.subplots`` (sharex, sharey).

    Yields
    ------
    Panels
        ``panels.figure`` is what the caller returns after the block.
    """
    import matplotlib.pyplot as plt

    columns = min(n_columns, n)
    rows = -(-n // columns)
    size = (cell[0] * columns + margin[0], cell[1] * rows + margin[1])
    with figure_style():
        figure, grid = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **options
        )
        try:
            yield Panels(figure, grid, n)
            for axes in grid.flat[n:]:
                axes.set_visible(False)
            if title and grid.size == 1 and not grid[0, 0].get_title(loc="left"):
                grid[0, 0].set_title(title)
            elif title:
                figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        finally:
            plt.close(figure)

"""Style, colours, panels, heat-map cells and contact sheets of all figures."""

from __future__ import annotations

import colorsys
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import DataError, require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    Row = Sequence[np.ndarray] | Mapping[str, np.ndarray]

# Okabe & Ito (2008), ordered so that neighbours differ in lightness as well as in hue.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# Further colours for long legends, chosen one by one with the largest CIELAB distance to all
# earlier ones and to white, for normal and for deuteranopic vision (Machado et al., 2009).
_MORE_COLOURS = (
    "#0D0DF2 #0D0D73 #66591A #0DF273 #660D26 #8C59F2 #990D7F #E65959 #B2D9A6 #1A2659 #40E6F2 "
    "#266659 #1A0DB2 #7F8CF2 #590D4C #0D4CB2 #F2BFD9 #E60DB2 #7F4C40 #BF0D0D #A6BF40 #8C26F2 "
    "#D98C7F #A68C33 #1A4C0D #660D8C #D91A59 #8C59A6 #0DD9A6 #A60DCC #F273CC #CC1A7F"
).split()
_PALE = PALETTE[-1]  # yellow, which is hard to see as a thin line on white
MARKERS = ("o", "s", "^", "D", "v", ">", "X", "*")
# A model has the same colour and marker in every figure. Fusion models and aligned networks may
# stand in one figure.
_FUSION_COLOURS = {
    "backbone": PALETTE[0],
    "concat": PALETTE[1],
    "fusion": PALETTE[2],
    "attributes": PALETTE[3],
    "linear probe": PALETTE[4],
    "mean colour": PALETTE[5],
    "original": "#000000",
    "aligned": "#1A0DB2",
    "no_fmri": "#D98C7F",
    "shuffled": "#A6BF40",
    "noise": "#66591A",
    "head_only": "#590D4C",
}
# Encoders and decoders never stand beside them and share the first colours.
_ENCODER_COLOURS = {
    "ridge": PALETTE[0],
    "roi_query": PALETTE[1],
    "retinotopic": PALETTE[2],
    "ensemble": PALETTE[3],
    "linear": PALETTE[4],
    "decoder": PALETTE[0],
    "shuffled pairs": PALETTE[1],
    "ROI tokens": PALETTE[2],
    "ROI tokens, shuffled pairs": PALETTE[3],
}
_MODEL_COLOURS = _FUSION_COLOURS | _ENCODER_COLOURS
# no model is a star, which marks significance
_MODEL_MARKERS = {name: MARKERS[i % 7] for i, name in enumerate(_MODEL_COLOURS)}
GREY = "#6B6B6B"
# Inferno keeps a CIELAB distance of at least 12 to both greys of the cortex, also for colour-blind
# readers; cividis comes within 6 of them. Red is positive in every diverging map.
SEQUENTIAL, DIVERGING = "inferno", "RdBu_r"

_RC = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E3E3E3",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a name such as "$x$" is no formula
}


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style of this package to figures made inside the block."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def colours(names: Iterable[str], other: str = "") -> dict[str, str]:
    """Return one colour per name; no two names have the same colour unless `other` is given.

    A model of this package has the same colour in every figure. Other names get the remaining
    colours in order.

    Parameters
    ----------
    names : iterable of str
        Names, such as those of models or image sets.
    other : str, default ""
        Colour of all names that are no model of this package; by default one per name.
    """
    names = list(dict.fromkeys(names))
    fixed: dict[str, str] = {}
    for name in names:
        colour = _MODEL_COLOURS.get(name)
        if colour and colour not in fixed.values():
            fixed[name] = colour
    taken = set(fixed.values())
    if not _FUSION_COLOURS.keys().isdisjoint(fixed):
        # beside a model, no other name looks like a model of another figure
        taken |= {*_FUSION_COLOURS.values(), _PALE}
    free = [c for c in distinct_colours(len(names) + len(_MODEL_COLOURS)) if c not in taken]
    others = iter(free)
    return {name: fixed.get(name) or other or next(others) for name in names}


def distinct_colours(n: int, *, without: str = "") -> list[str]:
    """Return n different colours as "#RRGGBB": `PALETTE`, then further ones.

    Parameters
    ----------
    n : int
        Number of colours.
    without : str, default ""
        Colour to leave out, such as black on a map with black outlines.
    """
    found = [c for c in (*PALETTE, *_MORE_COLOURS) if c != without]
    for i in range(len(found), n):
        # multiples of the golden ratio spread evenly over the hues
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.5 + i % 3 * 0.2, 0.75)
        found.append("#" + "".join(f"{round(255 * part):02X}" for part in rgb))
    return found[:n]


def markers(names: Iterable[str]) -> dict[str, str]:
    """Return one marker per name; a model of this package has the same one in every figure.

    Other names get the markers in order, which repeat after eight names.
    """
    return {
        name: _MODEL_MARKERS.get(name, MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }


def ink_on(colour: Sequence[float]) -> str:
    """Return "black" or "white", whichever has more contrast to a colour.

    Parameters
    ----------
    colour : sequence of float
        Red, green and blue from 0 to 1; further values are ignored.

    References
    ----------
    WCAG 2.1, relative luminance and contrast ratio.
    """
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # the contrast to black is (luminance + 0.05) / 0.05, that to white 1.05 / (luminance + 0.05)
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


@dataclass(frozen=True)
class Panels:
    """A figure and its panels.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure.
    grid : ndarray of Axes, shape (n_rows, n_columns)
        All places, also those that stay empty.
    n : int
        Number of panels that are used.
    """

    figure: Figure
    grid: np.ndarray
    n: int

    def __iter__(self) -> Iterator[Axes]:
        return iter(self.grid.flat[: self.n])

    def label(self, x: str = "", y: str = "", **text) -> None:
        """Name the axes, once per column at the lowest panel and once per row at the first one.

        Parameters
        ----------
        x, y : str, default ""
            Labels; none is drawn for an empty one.
        **text
            Options of ``Axes.set_xlabel``.
        """
        lowest = self.grid.flat[max(0, self.n - self.grid.shape[1]) : self.n]
        for axes in lowest if x else ():
            axes.set_xlabel(x, **text)
            # with a shared axis, matplotlib numbers the last row only, also where that is empty
            axes.tick_params(labelbottom=True)
        for axes in self.grid[:, 0] if y else ():
            axes.set_ylabel(y, **text)

    def legend(self, n_columns: int = 6, place: str = "outside lower center") -> None:
        """Draw one legend for all panels, with each label once.

        Parameters
        ----------
        n_columns : int, default 6
            Largest number of entries per row; fewer if they would be wider than the figure.
        place : str, default "outside lower center"
            Option ``loc`` of ``Figure.legend``.
        """
        entries: dict[str, Artist] = {}
        for axes in self:
            for handle, name in zip(*axes.get_legend_handles_labels()):
                entries.setdefault(name, handle)
        # models first: points with error bars are tuples, which matplotlib lists after lines
        names = sorted(entries, key=lambda name: not isinstance(entries[name], tuple))
        lengths = [0.55 + 0.08 * len(name) for name in names]  # about, in inches
        columns, width = min(n_columns, len(names)), self.figure.get_figwidth()
        # each column is as wide as its longest name
        while columns > 1 and sum(max(lengths[k::columns]) for k in range(columns)) > width:
            columns -= 1
        # matplotlib fills one column after the other; people read one row after the other
        names = [name for k in range(columns) for name in names[k::columns]]
        handles = [entries[name] for name in names]
        self.figure.legend(handles, names, loc=place, ncols=columns, fontsize=9)

    def colour_bar(self, image: AxesImage, label: str, **options) -> None:
        """Draw one colour bar for all panels.

        Parameters
        ----------
        image : matplotlib AxesImage
            Image with the colours.
        label : str
            Quantity and unit.
        **options
            Options of ``Figure.colorbar``.
        """
        options = {"fraction": 0.04, "pad": 0.02, **options}
        self.figure.colorbar(image, ax=self.grid, label=label, **options)


@contextlib.contextmanager
def panels(
    n: int = 1,
    n_columns: int = 1,
    *,
    cell: tuple[float, float],
    margin: tuple[float, float] = (0.0, 0.0),
    title: str = "",
    numbers: pd.DataFrame | None = None,
    **options,
) -> Iterator[Panels]:
    """Make a figure in the style of this package, and finish it at the end of the block.

    Parameters
    ----------
    n : int, default 1
        Number of panels.
    n_columns : int, default 1
        Largest number of panels per row.
    cell : (float, float)
        Width and height of a panel in inches.
    margin : (float, float), default (0.0, 0.0)
        Width and height of the figure beside its panels in inches.
    title : str, default ""
        Title of the figure, or of its only panel if that has no title yet.
    numbers : DataFrame, optional
        Numbers of the figure, its attribute ``numbers``; `bmfl_lab.viz.saving` writes them as CSV.
    **options
        Options of ``Figure.subplots``, such as ``sharex`` and ``sharey``.

    Yields
    ------
    Panels
        ``panels.figure`` is complete after the block.
    """
    from matplotlib.figure import Figure

    columns = min(n_columns, n)
    rows = -(-n // columns)
    size = (cell[0] * columns + margin[0], cell[1] * rows + margin[1])
    with figure_style():
        figure = Figure(figsize=size, layout="constrained")
        figure.numbers = numbers
        grid = figure.subplots(rows, columns, squeeze=False, **options)
        yield Panels(figure, grid, n)
        for axes in grid.flat[n:]:
            axes.set_visible(False)
        if title and grid.size == 1 and not grid[0, 0].get_title(loc="left"):
            grid[0, 0].set_title(title)
        elif title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)


@contextlib.contextmanager
def panel(**options) -> Iterator[tuple[Panels, Axes]]:
    """Make a figure with one panel; yields `Panels` and the panel.

    Parameters
    ----------
    **options
        Arguments of `panels`.
    """
    with panels(**options) as drawn:
        yield drawn, drawn.grid[0, 0]


def value_and_error(
    rows: pd.DataFrame,
    columns: Sequence[str] = ("value", "ci_low", "ci_high"),
    scale: float = 1.0,
    limits: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of rows, (n,), and the lengths of their error bars, (2, n).

    Parameters
    ----------
    rows : DataFrame
        Table with n rows. An unknown interval has no error bar.
    columns : sequence of three str, default ("value", "ci_low", "ci_high")
        Columns with the values and with the ends of their intervals.
    scale : float, default 1.0
        Factor of values and errors, for instance 100 for percent.
    limits : (float, float), optional
        Smallest and largest possible value after scaling; no error bar reaches beyond them.
    """
    value, low, high = (scale * rows[k].to_numpy(float) for k in columns)
    if limits is not None:
        low, high = np.clip((low, high), *limits)
    return value, error_bars(value, low, high)


def error_bars(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the lengths of error bars, (2, n), from values and ends of intervals, each (n,)."""
    return np.nan_to_num(np.abs(np.stack([value - low, high - value])))


def colour_scale(
    values: np.ndarray, signed: bool = False, top: float | None = None
) -> dict[str, object]:
    """Return matplotlib's colour settings of a heat map.

    Parameters
    ----------
    values : ndarray of float
        Values of the map; NaN is ignored.
    signed : bool, default False
        Whether colours are symmetric about zero even if no value is negative. Otherwise they run
        from zero if no value is negative.
    top : float, optional
        Value of the last colour; by default the largest value or absolute value.
    """
    if signed or np.nanmin(values, initial=0) < 0:
        reach = top or float(np.nanmax(np.abs(values), initial=0)) or 1.0
        return {"cmap": DIVERGING, "vmin": -reach, "vmax": reach}
    return {"cmap": SEQUENTIAL, "vmin": 0.0, "vmax": top or np.nanmax(values, initial=1e-9)}


def write_cells(axes: Axes, image: AxesImage, form: str, marks: np.ndarray | None = None) -> None:
    """Write the value into each cell of a heat map, in black or white.

    Parameters
    ----------
    axes : Axes
        Panel with the heat map.
    image : AxesImage
        The heat map; cells with NaN stay empty.
    form : str
        Format of the numbers, for instance ".2f".
    marks : ndarray of str, same shape as the heat map, optional
        Text behind the number of each cell.
    """
    for (row, column), value in np.ndenumerate(np.ma.filled(image.get_array(), np.nan)):
        if np.isfinite(value):
            text = format(value, form) + ("" if marks is None else marks[row, column])
            ink = ink_on(image.to_rgba(value))
            axes.text(column, row, text, color=ink, ha="center", va="center", fontsize=8)


def frame_cell(axes: Axes, row: int, column: int) -> None:
    """Draw a black frame with a white edge, visible on every colour, around a heat map's cell."""
    from matplotlib.patches import Rectangle

    corner = (column - 0.46, row - 0.46)
    for colour, width in (("white", 4.0), ("black", 2.0)):
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, ec=colour, lw=width))


def require_rows(frame: pd.DataFrame, columns: Sequence[str], kind: str, remedy: str) -> None:
    """Refuse a table without rows or without some columns.

    Parameters
    ----------
    frame : DataFrame
        The table.
    columns : sequence of str
        Columns that it needs.
    kind : str
        Name of its rows, for the message.
    remedy : str
        Remedy, for the message.

    Raises
    ------
    DataError
        If the table has no row or a column is missing.
    """
    missing = [c for c in columns if c not in frame.columns]
    require(
        not missing and not frame.empty,
        DataError,
        f"{kind} with columns {', '.join(columns)}",
        f"{len(frame)} rows, missing {missing}",
        remedy,
    )


def bare(axes: Axes) -> None:
    """Remove ticks, grid and frame of a panel that shows an image."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def contact_sheet(
    images: Mapping[str, Row],
    *,
    columns: Sequence[str] = (),
    title: str = "",
    cell: float = 1.1,
) -> Figure:
    """Show images in a labelled grid.

    Parameters
    ----------
    images : mapping of str to row of ndarray of uint8, each of shape (H, W, 3)
        Images by the name of their row. A row is a sequence of images, or a mapping of the name of
        the column to its image.
    columns : sequence of str, optional
        Names of the columns ("clean", "severity 1", ...); by default the keys of the first row, if
        it is a mapping.
    title : str, default ""
        Title above the sheet.
    cell : float, default 1.1
        Side of a cell in inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If there is no image, or one is not uint8 (H, W, 3).
    """
    from matplotlib.figure import Figure

    first = next(iter(images.values()), ())
    columns = columns or (list(first) if isinstance(first, Mapping) else ())
    grid = {k: list(v.values() if isinstance(v, Mapping) else v) for k, v in images.items()}
    every = [image for row in grid.values() for image in row]
    bad = [np.shape(im) for im in every if np.ndim(im) != 3 or np.asarray(im).dtype != np.uint8]
    require(
        every and not bad,
        DataError,
        "uint8 images of shape (H, W, 3)",
        bad[:1] or "no image",
        "pass at least one image, decoded to RGB",
    )
    width = max(len(row) for row in grid.values())
    label = 0.085 * max(len(k) for k in grid) + 0.1
    top = (0.25 if columns else 0.05) + (0.35 if title else 0)
    size = np.array([label + width * cell, top + len(grid) * cell])
    with figure_style():
        figure = Figure(figsize=size, layout="none")
        for r, (name, row) in enumerate(grid.items()):
            for c, image in enumerate(row):
                place = np.array([label + c * cell, size[1] - top - (r + 1) * cell])
                axes = figure.add_axes((*(place / size), *(0.97 * cell / size)))
                smooth = "nearest" if min(np.shape(image)[:2]) < 96 else "antialiased"
                axes.imshow(image, interpolation=smooth)
                axes.set_axis_off()
                if r == 0 and c < len(columns):
                    axes.set_title(columns[c], fontsize=8, loc="center", pad=2, fontweight="normal")
            place = np.array([label - 0.06, size[1] - top - (r + 0.5) * cell]) / size
            figure.text(*place, name, ha="right", va="center", fontsize=8)
        place, bold = (
            np.array([label, size[1] - 0.1]) / size,
            {"fontsize": 11, "fontweight": "bold"},
        )
        figure.text(*place, title, ha="left", va="top", **bold)
    return figure

"""Saving figures for papers: PNG, PDF and SVG of a column's width, and CSV of their numbers."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.errors import ConfigError, require
from bmfl_lab.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

DPI, PRINT_DPI = 120, 300
COLUMN_INCHES = {"one": 3.5, "two": 7.2}
"""Widths of figures of one and of two columns (89 and 183 mm)."""

# text stays text: TrueType fonts are embedded in PDF, and named in SVG
_TEXT = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "bmfl_lab"}
_FORMATS = ("png", "pdf", "svg", "csv")
_PAD_INCHES = 0.05


def show(figure: Figure, folder: str | Path, name: str) -> None:
    """Display a figure as PNG, and save it under ``folder/figures`` with `save_figure`.

    An executed notebook shows a PNG without a kernel, without scripts and without being trusted.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure.
    folder : str or Path
        Folder of the run.
    name : str
        Name of the files without their endings.

    Raises
    ------
    ConfigError
        If the name contains a folder.
    """
    from IPython.display import Image, display

    save_figure(figure, Path(folder) / "figures", name)
    display(Image(data=png_bytes(figure), format="png", alt=name.replace("_", " ")))


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG file for a screen, in its own size at 120 dpi."""
    buffer, look = io.BytesIO(), {"dpi": DPI, "metadata": {"Software": None}}
    with _fixed_layout(figure) as box:
        figure.savefig(buffer, format="png", bbox_inches=box, **look)
    return buffer.getvalue()


def save_figure(
    figure: Figure, folder: str | Path, name: str, columns: str | None = None
) -> dict[str, Path]:
    """Write a figure as PNG at 300 dpi, PDF and SVG, and its numbers as CSV.

    The picture is scaled as a whole, letters and lines included, to the width of one or two
    columns. Text stays text: PDF files embed its TrueType font.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure. Its numbers are the table ``figure.numbers`` if it has one, and otherwise those
        of its lines, bars, dots, bands and heat maps.
    folder : str or Path
        Folder of the files; it is made if it does not exist.
    name : str
        Name of the files without their endings.
    columns : {"one", "two"}, optional
        Width, see `COLUMN_INCHES`; by default one column for a figure of up to 5 inches.

    Returns
    -------
    dict of str to Path
        "png", "pdf", "svg" and "csv" to the path of the file.

    Raises
    ------
    ConfigError
        If the name contains a folder, or the width is unknown.

    Notes
    -----
    The widths are those of Nature and, within 3 mm, of most other journals.
    """
    import matplotlib

    require(
        name and Path(name).name == name,
        ConfigError,
        "a plain file name for the figure",
        repr(name),
        "leave out folders",
    )
    paths = {kind: Path(folder) / f"{name}.{kind}" for kind in _FORMATS}
    with matplotlib.rc_context(_TEXT), _fixed_layout(figure) as box:
        columns = columns or ("one" if box.width <= 5 else "two")
        require(
            columns in COLUMN_INCHES,
            ConfigError,
            f"columns among {tuple(COLUMN_INCHES)}",
            repr(columns),
            "choose one of them",
        )
        scale = COLUMN_INCHES[columns] / box.width
        with atomic_path(paths["png"]) as path:
            look = {"dpi": PRINT_DPI * scale, "pil_kwargs": {"dpi": (PRINT_DPI, PRINT_DPI)}}
            figure.savefig(path, format="png", bbox_inches=box, metadata={"Software": None}, **look)
        with atomic_path(paths["svg"]) as path:
            path.write_text(_svg(figure, box, scale), encoding="utf-8")
        with atomic_path(paths["pdf"]) as path:
            _write_pdf(figure, path, box, scale)
    with atomic_path(paths["csv"]) as path:
        numbers_of(figure).to_csv(path, index=False)
    return paths


@contextlib.contextmanager
def _fixed_layout(figure: Figure) -> Iterator[Bbox]:
    """Lay a figure out once, keep the layout within the block, and yield its box in inches."""
    figure.draw_without_rendering()
    engine = figure.get_layout_engine()
    figure.set_layout_engine("none")
    try:
        yield figure.get_tightbbox().padded(_PAD_INCHES)
    finally:
        figure.set_layout_engine(engine)


def _svg(figure: Figure, box: Bbox, scale: float) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches=box, metadata={"Date": None})
    # the coordinates within stay as they are, and only the size of the whole changes
    size = f'width="{72 * scale * box.width:.2f}pt" height="{72 * scale * box.height:.2f}pt"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', size, buffer.getvalue(), count=1)


def _write_pdf(figure: Figure, path: Path, box: Bbox, scale: float) -> None:
    """Write a PDF of one scaled page; ``Figure.savefig`` writes no page of another scale."""
    from matplotlib.backends.backend_pdf import Op, PdfFile, RendererPdf

    dpi, figure.dpi = figure.dpi, 72
    file = PdfFile(path, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    try:
        file.newPage(scale * box.width, scale * box.height)
        # lines outside of this size would be left out
        file.width, file.height = np.maximum(figure.get_size_inches(), (box.x1, box.y1))
        left, bottom = (-72 * scale * side for side in (box.x0, box.y0))
        file.output(scale, 0, 0, scale, left, bottom, Op.concat_matrix)
        renderer = RendererPdf(file, 72, figure.get_figheight(), figure.get_figwidth())
        figure.draw(renderer)
        renderer.finalize()
        file.finalize()
    finally:
        file.close()
        figure.dpi = dpi


def numbers_of(figure: Figure) -> pd.DataFrame:
    """Return the numbers that a figure draws, with one row per point, bar, cell or segment's end.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure; its attribute ``numbers``, if it has one, is returned as it is.

    Returns
    -------
    DataFrame
        Columns "panel" (title or number of the panel), "series" (entry of the legend), "kind", "x",
        "y" (numbers, or names of the ticks), "value" (of heat maps), and "x_low", "x_high",
        "y_low", "y_high" (ends of error bars).
    """
    if hasattr(figure, "numbers"):  # set by figures whose picture does not hold their numbers
        return figure.numbers
    columns = ["panel", "series", "kind", "x", "y", "value", "x_low", "x_high", "y_low", "y_high"]
    rows = []
    for number, axes in enumerate(figure.axes, 1):
        if axes.get_visible() and axes.get_label() != "<colorbar>":
            titles = [axes.get_title(loc) for loc in ("left", "center")]
            panel = next((t.replace("\n", ", ") for t in titles if t), f"panel {number}")
            x_names, y_names = _tick_names(axes.xaxis), _tick_names(axes.yaxis)
            for row in _rows_of(axes):
                # marks stand beside the place of their category
                x, y = (
                    names.get(round(row[k]), row[k]) if names and np.isfinite(row[k]) else row[k]
                    for k, names in (("x", x_names), ("y", y_names))
                )
                rows.append({**row, "panel": panel, "x": x, "y": y})
    table = pd.DataFrame(rows, columns=columns)
    return table.dropna(axis="columns", how="all") if rows else table


def _tick_names(axis: Axis) -> dict[int, str]:
    """Return the name at each place of an axis of categories; none for an axis of numbers."""
    from matplotlib.ticker import ScalarFormatter

    at, text = axis.get_majorticklocs(), [label.get_text() for label in axis.get_ticklabels()]
    # names of categories stand at 0, 1, 2, ...; other texts are numbers in another form
    if isinstance(axis.get_major_formatter(), ScalarFormatter) or np.any(np.diff(at) != 1):
        return {}
    return {int(place): name.replace("\n", " ") for place, name in zip(at, text) if name}


def _rows_of(axes: Axes) -> Iterator[dict[str, object]]:
    """Yield the numbers of a panel, without its name."""
    from matplotlib.collections import LineCollection
    from matplotlib.container import BarContainer, ErrorbarContainer

    drawn: set[object] = set()
    for container in axes.containers:
        row = {"series": _series(container), "kind": "bar"}
        if isinstance(container, BarContainer):
            flat = container.orientation == "horizontal"
            for bar in container:
                middle = bar.get_y() + bar.get_height() / 2 if flat else bar.get_center()[0]
                end = bar.get_width() if flat else bar.get_height()
                yield {**row, "x": end if flat else middle, "y": middle if flat else end}
        elif isinstance(container, ErrorbarContainer):
            drawn.update([container[0], *container[1], *container[2]])
            yield from _points_of(container, {**row, "kind": "point"})
    for line in axes.lines:
        if line not in drawn:
            for x, y in zip(line.get_xdata(), line.get_ydata()):
                yield {"series": _series(line), "kind": "line", "x": x, "y": y}
    for part in axes.collections:
        row = {"series": _series(part), "kind": "points"}
        points = np.asarray(part.get_offsets(), float)
        if isinstance(part, LineCollection) or not np.any(points):
            row["kind"] = "segment" if isinstance(part, LineCollection) else "band"
            points = np.concatenate([np.zeros((0, 2)), *(p.vertices for p in part.get_paths())])
        for x, y in points if part not in drawn else ():
            yield {**row, "x": x, "y": y}
    for image in axes.images:
        cells = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
        for (y, x), value in np.ndenumerate(cells) if cells.ndim == 2 else ():
            if np.isfinite(value):
                yield {"series": "", "kind": "cell", "x": float(x), "y": float(y), "value": value}


def _points_of(container: ErrorbarContainer, row: dict[str, object]) -> Iterator[dict[str, object]]:
    """Yield the points of error bars with the ends of their intervals."""
    line, _, bars = container
    sides = [side for side in ("x", "y") if getattr(container, f"has_{side}err")]
    segments = {side: np.asarray(b.get_segments(), float) for side, b in zip(sides, bars)}
    middles = [part.mean(1) for part in segments.values()]
    points = np.asarray(line.get_xydata(), float) if line else middles[0]
    for i, point in enumerate(points):
        found = dict(zip("xy", point))
        for side, part in segments.items():
            if len(part) == len(points):
                found |= dict(zip((f"{side}_low", f"{side}_high"), part[i, :, "xy".index(side)]))
        yield {**row, **found}


def _series(artist: object) -> str:
    """Return the name of an artist in the legend; "" for none."""
    label = str(artist.get_label())
    return "" if label.startswith("_") else label

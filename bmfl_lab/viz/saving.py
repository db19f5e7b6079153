"""Saving figures for papers: PNG, PDF and SVG of a column's width, and CSV of their numbers."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pandas.api.types import is_numeric_dtype

from bmfl_lab.errors import ConfigError, require
from bmfl_lab.files import atomic_path
from bmfl_lab.runtime import loaded_backbones, weights_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

DPI, PRINT_DPI = 120, 300
COLUMN_INCHES = {"one": 3.5, "two": 7.2}
"""Widths of figures of one and of two columns (89 and 183 mm)."""

# text stays text: TrueType fonts are embedded in PDF, and named in SVG
_TEXT = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "bmfl_lab"}
_FORMATS = ("png", "pdf", "svg", "csv")
_PAD_INCHES, _NOTE_SIZE = 0.05, 7


def show(figure: Figure, folder: str | Path, name: str, weights: str = "") -> None:
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
    weights : str, optional
        Backbones and their weights, which stand below the figure; by default those that this
        process has loaded. Figures of records name those of the records.

    Raises
    ------
    ConfigError
        If the name contains a folder.
    """
    from IPython.display import Image, display

    if weights:
        figure.weights = weights
    with _fixed_layout(figure) as box:
        _write(figure, box, Path(folder) / "figures", name)
        data = _png(figure, box)
    display(Image(data=data, format="png", alt=name.replace("_", " ")))


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG file for a screen, in its own size at 120 dpi."""
    with _fixed_layout(figure) as box:
        return _png(figure, box)


def _png(figure: Figure, box: Bbox) -> bytes:
    buffer, look = io.BytesIO(), {"dpi": DPI, "metadata": _about(figure)}
    figure.savefig(buffer, format="png", bbox_inches=box, **look)
    return buffer.getvalue()


def _weights_note(figure: Figure) -> str:
    """Return which backbones a figure shows, by default those that this process has loaded."""
    return getattr(figure, "weights", None) or weights_text(loaded_backbones())


def _about(figure: Figure) -> dict[str, str | None]:
    """Return the notes inside a PNG file."""
    note = _weights_note(figure)
    return {"Software": None, **({"Description": f"backbone {note}"} if note else {})}


def save_figure(
    figure: Figure, folder: str | Path, name: str, columns: str | None = None
) -> dict[str, Path]:
    """Write a figure as PNG at 300 dpi, PDF and SVG, and its numbers as CSV.

    The picture is scaled as a whole, letters and lines included, to the width of one or two
    columns. Text stays text: PDF files embed its TrueType font.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure. Its numbers are the table in its attribute ``numbers``.
    folder : str or Path
        Folder of the files; it is made if it does not exist.
    name : str
        Name of the files without their endings.
    columns : {"one", "two"}, optional
        Width, see `COLUMN_INCHES`; by default one column for a figure of up to 5 inches.

    Returns
    -------
    dict of str to Path
        "png", "pdf", "svg" and "csv" to the path of the file; no CSV for a figure without numbers.

    Raises
    ------
    ConfigError
        If the name contains a folder, or the width is unknown.

    Notes
    -----
    The widths are those of one and two columns in Nature.
    """
    with _fixed_layout(figure) as box:
        return _write(figure, box, Path(folder), name, columns)


def _write(
    figure: Figure, box: Bbox, folder: Path, name: str, columns: str | None = None
) -> dict[str, Path]:
    """Write what lies within `box` in all formats, see `save_figure`."""
    import matplotlib

    require(
        name and Path(name).name == name,
        ConfigError,
        "a plain file name for the figure",
        repr(name),
        "give a name without a folder",
    )
    columns = columns or ("one" if box.width <= 5 else "two")
    require(
        columns in COLUMN_INCHES,
        ConfigError,
        f"columns among {tuple(COLUMN_INCHES)}",
        repr(columns),
        "choose one of them",
    )
    scale = COLUMN_INCHES[columns] / box.width
    paths = {kind: folder / f"{name}.{kind}" for kind in _FORMATS}
    with matplotlib.rc_context(_TEXT):
        with atomic_path(paths["png"]) as path:
            look = {"dpi": PRINT_DPI * scale, "pil_kwargs": {"dpi": (PRINT_DPI, PRINT_DPI)}}
            figure.savefig(path, format="png", bbox_inches=box, metadata=_about(figure), **look)
        with atomic_path(paths["svg"]) as path:
            path.write_text(_svg(figure, box, scale), encoding="utf-8")
        with atomic_path(paths["pdf"]) as path:
            _write_pdf(figure, path, box, scale)
    numbers = getattr(figure, "numbers", None)
    if numbers is None:
        del paths["csv"]
        return paths
    with atomic_path(paths["csv"]) as path:
        numbers.to_csv(path, index=not is_numeric_dtype(numbers.index.dtype))
    return paths


@contextlib.contextmanager
def _fixed_layout(figure: Figure) -> Iterator[Bbox]:
    """Lay a figure out once, keep the layout within the block, and yield its box in inches.

    Below the figure stands which weights the backbone had: results of the original weights and of
    the stand-in must not be taken for each other.
    """
    figure.draw_without_rendering()
    engine = figure.get_layout_engine()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        # matplotlib would move it to the edge of whatever box is saved
        corner = figure.transFigure.inverted().transform(legend.get_window_extent().p0)
        legend.set_loc("lower left")
        legend.borderaxespad = 0.0
        legend.set_bbox_to_anchor(corner, transform=figure.transFigure)
    notes = []
    try:
        if text := _weights_note(figure):
            box, size = figure.get_tightbbox(), figure.get_size_inches()
            place = box.x1 / size[0], (box.y0 - _PAD_INCHES) / size[1]
            style = {"ha": "right", "va": "top", "fontsize": _NOTE_SIZE, "color": "0.4"}
            width = round(box.width * 72 / (0.5 * _NOTE_SIZE))
            notes.append(figure.text(*place, textwrap.fill(text, width), **style))
        yield figure.get_tightbbox().padded(_PAD_INCHES)
    finally:
        for note in notes:
            note.remove()
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

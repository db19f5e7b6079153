"""Show a static figure in a notebook and keep it as a file, by one call."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from bmfl_lab.errors import ConfigError, message
from bmfl_lab.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120


def show(figure: Figure, folder: str | Path, name: str) -> None:
    """Display a matplotlib figure as PNG and save the same picture under ``folder/figures``.

    A PNG is what an executed notebook still shows without a kernel, without scripts and without
    trust.

    Parameters
    ----------
    figure : matplotlib Figure
        What to show.
    folder : str or Path
        Folder of the run.
    name : str
        File name without ending.

    Raises
    ------
    ConfigError
        If the name would leave the folder.
    """
    from IPython.display import Image, display

    if not name or Path(name).name != name:
        raise ConfigError(
            message("a plain file name for the figure", repr(name), "leave out folders")
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    path = Path(folder) / "figures" / f"{name}.png"
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    display(Image(data=buffer.getvalue(), format="png", alt=name.replace("_", " ")))

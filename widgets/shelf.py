"""plotly.js, sent to the page once a kernel; imports little, so that it is on its way while the rest is imported."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets
from plotly.offline import get_plotlyjs

SCRIPT = "\n".join(
    Path(__file__).with_name(name).read_text("utf-8") for name in ("meshes.js", "live.js")
)


class _Shelf(anywidget.AnyWidget):
    """Holds the text of plotly.js for all figures of a kernel."""

    _esm = SCRIPT
    source = traitlets.Unicode().tag(sync=True)


_shelves: list[_Shelf] = []


def shelf() -> _Shelf:
    """Return the shelf of this kernel; the first call sends it, so that the page has something to do meanwhile."""
    if not _shelves or _shelves[0].comm is None:
        _shelves[:] = [_Shelf(source=get_plotlyjs())]
    return _shelves[0]

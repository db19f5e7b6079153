"""A plotly figure on a page: parts that change are sent, the library is sent once a kernel."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from typing import Any

import anywidget
import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import traitlets

from widgets.shelf import SCRIPT, shelf

_FEW = 32
_GEOMETRY = ("x", "y", "z", "i", "j", "k", "hovertext", "customdata")
_VALUES = ("intensity",)


def packed(value: Any) -> Any:
    """Return a figure's part with its long arrays of numbers as base64 text, which plotly.js reads.

    Numbers are sent in single precision or as 32-bit integers: a picture needs no more.
    """
    if isinstance(value, dict):
        return {k: packed(v) for k, v in value.items()}
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.size <= _FEW:
        return value
    small = value.astype("<f4" if value.dtype.kind == "f" else "<i4")
    spec = {"dtype": small.dtype.str[1:], "bdata": base64.b64encode(small.tobytes()).decode()}
    return spec if small.ndim == 1 else {**spec, "shape": ", ".join(map(str, small.shape))}


def told(plot: go.Figure, skip: int = 0) -> dict[str, Any]:
    """Return what the page is told of a figure, part by part, without the first `skip` traces.

    Of a mesh, the places of its vertices (``b0``, ``b1``, ...) and its values (``v0``, ...), which
    change more often, go apart from the rest (``t0``, ...). Title and colour bar of a surface are
    HTML, ``key``: plotly.js would lay out the whole figure for another word in them.
    """
    look = plot.layout.to_plotly_json()
    found: dict[str, Any] = {"n_traces": len(plot.data), "key": "{}"}
    if plot.data and plot.data[-1].type == "mesh3d":
        found["key"] = json.dumps({"title": title_of(plot), "bar": colour_bar(plot.data[-1])})
        above = look["margin"]["t"]
        look |= {
            "title": {"text": ""},
            "height": look["height"] - above,
            "margin": {**look["margin"], "t": 0},
        }
    found["look"] = _text(look)
    for i, trace in enumerate(plot.data[skip:], skip):
        parts = trace.to_plotly_json()
        if trace.type == "mesh3d":
            parts = {k: v for k, v in parts.items() if k != "colorbar"} | {"showscale": False}
            for place, names in (("b", _GEOMETRY), ("v", _VALUES)):
                found[f"{place}{i}"] = _text({k: parts.pop(k) for k in names if k in parts})
        found[f"t{i}"] = _text(parts)
    return found


def title_of(plot: go.Figure) -> str:
    """Return a figure's title as HTML."""
    return html.escape((plot.layout.title.text or "").strip())


def round_numbers(low: float, high: float) -> np.ndarray:
    """Return two to six numbers from `low` to `high`, whole multiples of 1, 2 or 5 times a power of ten."""
    rough = (
        high - low
    ) / 5  # matplotlib knows this too, but importing it takes 0.15 s of a widget's opening
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return (
        step * np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) + 0.0
    )  # no negative zero


def colour_bar(mesh: Any) -> str:
    """Return the colour bar of a mesh as HTML: colours from the lowest value up, round numbers, the unit."""
    low, high = mesh.cmin, mesh.cmax
    colours = ", ".join(f"{colour} {100 * place:.2f}%" for place, colour in mesh.colorscale)
    texts = "".join(
        f"<span style='bottom:{100 * (tick - low) / (high - low):.2f}%'>{tick:.4g}</span>".replace(
            ">-", ">\u2212"
        )
        for tick in round_numbers(low, high)
    )
    unit = html.escape(mesh.colorbar.title.text or "")
    return f"<div style='background:linear-gradient(to top, {colours})'>{texts}</div><span>{unit}</span>"


def _seldom(fixed: int) -> set[str]:
    """Return the parts of the first traces, which never change."""
    return {f"{place}{i}" for place in "tv" for i in range(fixed)}


def _text(parts: dict[str, Any]) -> str:
    return pio.to_json(packed(parts), validate=False)


class Live(anywidget.AnyWidget):
    """A plotly figure on the page that follows a `plotly.graph_objects.Figure`.

    plotly's own FigureWidget, itself an anywidget, sends 5 MB of library with every figure and
    gives up where that takes the page more than two seconds; here the figures of a kernel share one
    copy, the page always draws the present state, and colours follow the page's theme.

    Parameters
    ----------
    plot : plotly Figure
        Changed in place by its owner; `push` brings the page up to date. It is not shown while its
        layout's ``meta`` is "hidden".
    beat : ipywidgets Label
        Changed by the owner once all its figures are pushed: then the page draws them, in one
        frame.
    fixed : int
        Number of first traces that never change.

    Notes
    -----
    What is drawn travels in two plain labels, `still` (what seldom changes) and `news`, because an
    anywidget whose page was too busy to load it within two seconds never hears of a change again.
    """

    _esm = SCRIPT
    library = traitlets.Unicode().tag(sync=True)
    still_id = traitlets.Unicode().tag(sync=True)
    news_id = traitlets.Unicode().tag(sync=True)
    beat_id = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(300).tag(sync=True)
    fixed = traitlets.Int(0).tag(sync=True)
    clicked = traitlets.Unicode("").tag(sync=True)

    def __init__(self, plot: go.Figure, beat: w.Label, fixed: int = 0):
        self.plot, self._told, self._n_changes = plot, told(plot), 0
        # all in the messages that open the labels: a page may draw before a later one arrives
        self.still, self.news = w.Label(self._still(fixed)), w.Label(self._news(fixed))
        self.beat = beat
        places = {
            "still_id": self.still.model_id,
            "news_id": self.news.model_id,
            "beat_id": beat.model_id,
        }
        super().__init__(
            library=shelf().model_id, height=int(plot.layout.height or 300), fixed=fixed, **places
        )

    def _still(self, fixed: int) -> str:
        seldom = _seldom(fixed)
        return json.dumps({k: v for k, v in self._told.items() if k[0] == "b" or k in seldom})

    def _news(self, fixed: int) -> str:
        seldom = _seldom(fixed)
        parts = {k: v for k, v in self._told.items() if k[0] != "b" and k not in seldom}
        return json.dumps({**parts, "change": self._n_changes})

    def push(self) -> None:
        """Send the traces and the layout where they changed."""
        # a figure that has nothing to say gives its place up
        self.layout.display = "none" if self.plot.layout.meta == "hidden" else None
        self._told |= told(self.plot, self.fixed)
        self._n_changes += 1
        self.still.value = self._still(self.fixed)
        self.news.value = self._news(self.fixed)

    def to_html(self, with_library: bool = True) -> str:
        """Return the figure, with plotly's own title and colour bar, as a part of a page; empty if it is not shown."""
        if self.plot.layout.meta == "hidden":
            return ""
        return pio.to_html(self.plot, full_html=False, include_plotlyjs=with_library)

    def on_click(self, act: Callable[[dict[str, Any]], None]) -> None:
        """Call ``act({"trace", "index", "x", "y"})`` when a point is clicked."""
        self.observe(lambda change: act(json.loads(change["new"])), names="clicked")

"""Live plotly figures, the cortex and rows of images, which follow changes in the kernel."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import traitlets
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from bmfl_lab.files import parse_json
from bmfl_lab.markup import plotly_text
from bmfl_lab.viz.charts import GREY, SEQUENTIAL
from bmfl_lab.viz.surface_interactive import (
    VIEWS,
    SurfaceLayout,
    aspect_ratio,
    axis_ranges,
    best_view,
    name_places,
    outline_lines,
    surface_figure,
    swap_map,
)

if TYPE_CHECKING:
    from bmfl_lab.data.atlas import Atlas

# figure.js replaces these colours by those of the page's theme.
INK, LINE, PAPER = "#222222", "#e3e3e3", "#ffffff"
SCENE = "#fefefe"  # behind a brain, where the names of regions are black in both themes
ERROR = {"type": "data", "color": INK, "thickness": 1.2}
_OUTLINE = "#D55E00"
# names stand nearer to the camera than the regions, or the edge of the brain covers half of them
_TOWARDS_MM = 50.0
_AROUND_MM, _SHARE = 65.0, 0.88  # room for them, in depth and at the edges of the figure
SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    ">": "triangle-right",
    "X": "x",
    "*": "star",
}
"""Plotly's name of each marker in `bmfl_lab.viz.charts.MARKERS`."""
_GEOMETRY = ("x", "y", "z", "i", "j", "k", "hovertext", "customdata")
_LEAST_SIDE = 224  # pixels
# of a figure on a saved page; on a wide one the colour bar would stand far from the brain
_SAVED_WIDTH = "min(100%, 860px)"
_libraries: list[w.Label] = []


def styled(figure: go.Figure, height: int, title: str = "") -> go.Figure:
    """Return the figure in the style of all live figures, in colours that follow the page's theme.

    Parameters
    ----------
    figure : plotly Figure
        Changed in place.
    height : int
        Height in pixels.
    title : str, default ""
        Title.
    """
    figure.update_layout(
        template="none",
        font={"size": 13, "color": INK, "family": "Helvetica, Arial, sans-serif"},
        height=height,
        autosize=True,
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        title={"text": title, "x": 0.02, "font": {"size": 15}},
        margin={"l": 10, "r": 14, "t": 54, "b": 44},
        hoverlabel={"font": {"size": 12}},
    )
    figure.update_xaxes(gridcolor=LINE, zerolinecolor=LINE, automargin=True)
    figure.update_yaxes(gridcolor=LINE, zerolinecolor=LINE, automargin=True)
    return figure


def draw_chance(figure: go.Figure, levels: Sequence[float], axis: str = "y") -> None:
    """Draw a dashed line at each chance level of the accuracy, named in the legend.

    Parameters
    ----------
    figure : plotly Figure
        Changed in place; its axis of the accuracy is in the unit of `levels`. Other lines of this
        kind are removed.
    levels : sequence of float
        Chance levels; none for a quantity that has no such level.
    axis : {"y", "x"}, default "y"
        Axis of the accuracy.
    """
    across = {"y": "x", "x": "y"}[axis]
    figure.layout.shapes = [
        {
            "type": "line",
            f"{across}ref": "paper",
            f"{across}0": 0,
            f"{across}1": 1,
            f"{axis}0": level,
            f"{axis}1": level,
            "line": {"dash": "dash", "color": GREY, "width": 1.5},
            "name": "chance" if len(levels) == 1 else f"chance, {level:.3g}",
            "showlegend": True,
        }
        for level in levels
    ]
    figure.layout.showlegend = True


def key(*items: tuple[str, str, str]) -> list[dict[str, object]]:
    """Return plotly annotations that explain colours and lines, in a row above a figure.

    Parameters
    ----------
    *items : tuple of (str, str, str)
        Sign, such as a square or a dash, its colour, and its meaning.
    """
    found, left = [], 10
    look = {"x": 0.0, "y": 1.0, "xref": "paper", "yref": "paper", "showarrow": False}
    look |= {"xanchor": "left", "yanchor": "bottom"}
    for sign, colour, text in items:
        found.append(
            {
                **look,
                "text": sign,
                "xshift": left,
                "font": {"color": colour, "size": 16},
                "bgcolor": SCENE,  # black lines are invisible on a dark page
                "borderpad": 0,
            }
        )
        found.append({**look, "text": text, "xshift": left + 20, "font": {"size": 13}})
        left += 40 + 8 * len(text)
    return found


def _library() -> w.Label:
    """Return the widget that holds the text of plotly.js, which is sent once per kernel."""
    if not _libraries or _libraries[0].comm is None:
        _libraries[:] = [w.Label(get_plotlyjs())]
    return _libraries[0]


def _description(plot: go.Figure) -> str:
    """Return the title of a figure and the range of its colours, for people who do not see it."""
    title = re.sub("<[^>]*>", " ", plot.layout.title.text or "").strip() or "figure"
    if not plot.data or plot.data[-1].type != "mesh3d":
        return title
    mesh = plot.data[-1]
    unit = mesh.colorbar.title.text or ""
    return f"{title}, colours from {mesh.cmin:.4g} to {mesh.cmax:.4g} {unit}".rstrip()


class LiveFigure(anywidget.AnyWidget):
    """Shows a plotly figure on the page and sends only the parts that change.

    Parameters
    ----------
    plot : plotly Figure
        Changed in place by its owner; `update` brings the page up to date.

    Notes
    -----
    Plotly's own FigureWidget sends 5 MB of JavaScript with every figure, and no longer follows
    changes on a page that needs more than two seconds to read them. Here all figures of a kernel
    share one copy, and the data travel in two labels: the geometry of meshes, and the state, which
    holds everything else.
    """

    _esm = Path(__file__).with_name("figure.js").read_text("utf-8")
    library_id = traitlets.Unicode().tag(sync=True)
    geometry_id = traitlets.Unicode().tag(sync=True)
    state_id = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(300).tag(sync=True)
    clicked = traitlets.Unicode("").tag(sync=True)

    def __init__(self, plot: go.Figure):
        self.plot = plot
        geometry, state = self._texts()
        self.geometry, self.state = w.Label(geometry), w.Label(state)
        super().__init__(
            library_id=_library().model_id,
            geometry_id=self.geometry.model_id,
            state_id=self.state.model_id,
            height=int(plot.layout.height or 300),
        )

    def _texts(self) -> tuple[str, str]:
        """Return the geometry of the meshes, and the state, which is everything else."""
        spec, geometry, values = plotly_text(self.plot.to_dict()), {}, {}
        for i, trace in enumerate(spec["data"]):
            if trace["type"] == "mesh3d":
                geometry[i] = {key: trace.pop(key) for key in _GEOMETRY if key in trace}
                values[i] = {"intensity": trace.pop("intensity")}
        look = {**spec, "label": _description(self.plot)}
        geometry, look, values = (pio.to_json(p, validate=False) for p in (geometry, look, values))
        return geometry, json.dumps({"look": look, "values": values})

    def update(self) -> None:
        """Send the parts of the figure that have changed to the page."""
        self.geometry.value, self.state.value = self._texts()

    def to_html(self, with_library: bool) -> str:
        """Return the figure as part of a web page.

        Parameters
        ----------
        with_library : bool
            Whether plotly.js is included; it is needed once per page.
        """
        plot = plotly_text(self.plot.to_dict())
        return pio.to_html(
            plot,
            full_html=False,
            include_plotlyjs=with_library,
            validate=False,
            default_width=_SAVED_WIDTH,
        )

    def on_click(self, act: Callable[[dict[str, object]], None]) -> None:
        """Call a function with each clicked point.

        Parameters
        ----------
        act : callable
            ``act(point)`` with ``point["trace"]`` and ``point["index"]``, the numbers of the trace
            and of the point in it, and ``point["x"]``, ``point["y"]``, its coordinates.
        """
        self.observe(lambda change: act(parse_json(change["new"])), names="clicked")


class Cortex(LiveFigure):
    """Shows one map on the cortical surface, with the outline of a region; clicks name a vertex.

    Parameters
    ----------
    atlas : Atlas or None
        Position of the vertices. Without an atlas on a surface the figure only says so.
    height : int, default 430
        Height in pixels.
    """

    def __init__(self, atlas: Atlas | None, height: int = 430):
        self.surface: SurfaceLayout | None = None
        if atlas is None or atlas.mesh is None:
            super().__init__(styled(go.Figure(), 60, "No cortical surface in this study"))
            return
        self.surface = SurfaceLayout(atlas)
        made = surface_figure(np.zeros(atlas.n_vertices), self.surface, title=" ")
        made.add_scatter3d(
            x=[None],
            y=[None],
            z=[None],
            mode="text",
            name="names",
            textfont={"size": 12, "color": "black", "weight": "bold"},
            hoverinfo="skip",
            showlegend=False,
            visible=False,
        )
        for name, line in (
            ("borders", {"color": "black", "width": 3}),
            ("outline", {"color": _OUTLINE, "width": 6}),
        ):
            made.add_scatter3d(
                x=[None],
                y=[None],
                z=[None],
                mode="lines",
                name=name,
                line=line,
                hoverinfo="skip",
                showlegend=False,
                visible=False,
            )
        brain, data, *lines = made.data
        made.data = (brain, *lines, data)  # swap_map changes the last trace
        styled(made, height).update_layout(margin={"l": 0, "r": 0, "t": 46, "b": 0})
        made.layout.title.update(y=1 - 16 / height, yanchor="middle")  # of the first line
        made.layout.scene.bgcolor = SCENE
        made.layout.scene.camera.eye = _eye("posterior")
        for axis, ends in axis_ranges(self.surface, _AROUND_MM).items():
            made.layout.scene[f"{axis}axis"].range = ends
        super().__init__(made)

    def show(
        self,
        values: np.ndarray,
        *,
        title: str,
        unit: str,
        signed: bool | None,
        outline: np.ndarray | None = None,
        outline_name: str = "",
        borders: np.ndarray | None = None,
        view: str = "posterior",
        colours: Sequence[tuple[str, str, str]] = (),
    ) -> None:
        """Show a map, the outline of a region and the borders of all ROIs, with names and a key.

        Parameters
        ----------
        values : ndarray, shape (n_vertices,)
            One value per vertex; NaN shows the grey brain.
        title, unit : str
            Title of the figure and label of the colour bar.
        signed : bool or None
            Whether colours are symmetric about zero; None finds it from the values.
        outline : ndarray of bool, shape (n_vertices,), optional
            The region that is outlined.
        outline_name : str, default ""
            Name that is written on it.
        borders : ndarray of bool, shape (n_vertices,), optional
            Vertices among which the borders of all ROIs are drawn; none are drawn by default.
        view : str, default "posterior"
            Direction of the camera, a key of `bmfl_lab.viz.surface_interactive.VIEWS`; "" for the
            one that shows most of the outlined region. The camera only turns when the view changes,
            so that turning by hand persists.
        colours : sequence of (str, str, str), optional
            Further items of the key beside those of the lines, as `key` takes them.
        """
        if self.surface is None:
            return
        # or it is cut off on a narrow page
        title = "<br>".join(part for of in title.split("<br>") for part in textwrap.wrap(of, 52))
        swap_map(self.plot, values, self.surface, title=title, unit=unit, signed=signed)
        self._draw_lines("outline", [] if outline is None else [outline])
        rois = {} if borders is None else self.surface.atlas.rois
        drawn = {name: np.asarray(roi, bool) & borders for name, roi in rois.items()}
        self._draw_lines("borders", list(drawn.values()))
        if outline is not None:
            drawn.setdefault(outline_name, outline)
        view = view or best_view(self.surface, drawn.get(outline_name, np.zeros(len(values), bool)))
        if self.plot.layout.uirevision != view:
            self.plot.layout.uirevision = view
            self.plot.layout.scene.camera.eye = _eye(view)
            size = aspect_ratio(self.surface, view, _AROUND_MM)
            self.plot.layout.scene.aspectratio = {a: _SHARE * part for a, part in size.items()}
        self._write_names(drawn, view)
        lines = [("\u2014", "black", "border of an ROI")] if rois else []
        if outline is not None and outline_name:
            lines.append(("\u2014", _OUTLINE, outline_name))
        self.plot.layout.annotations = key(*colours, *lines)
        n_lines = title.count("<br>") + 1 + bool(colours or lines)
        self.plot.layout.margin.t = 14 + 20 * n_lines

    def _draw_lines(self, name: str, masks: Sequence[np.ndarray]) -> None:
        """Draw the borders of regions, each bool (n_vertices,), in the trace of this name."""
        lines = [outline_lines(self.surface, mask) for mask in masks if np.any(mask)]
        points = np.concatenate(lines, axis=1) if lines else np.full((3, 1), np.nan)
        (trace,) = self.plot.select_traces({"name": name})
        trace.update(**dict(zip("xyz", points)), visible=bool(lines))

    def _write_names(self, masks: Mapping[str, np.ndarray], view: str) -> None:
        """Write the names of regions, each bool (n_vertices,), in front of them.

        The page does the same again when the brain is turned by hand.
        """
        places = {name: name_places(self.surface, mask) for name, mask in masks.items() if name}
        points = np.concatenate([np.empty((0, 3)), *places.values()])
        texts = [name for name, found in places.items() for _ in found]
        (trace,) = self.plot.select_traces({"name": "names"})
        towards = np.array([VIEWS[view][axis] for axis in "xyz"])
        near = points + _TOWARDS_MM * towards / np.linalg.norm(towards)
        trace.update(text=texts, **dict(zip("xyz", near.T)), visible=bool(texts))
        trace.customdata = points.tolist()  # a list, which the page reads as it is

    def best_view(self, mask: np.ndarray | None) -> str:
        """Return the direction of the camera that shows most of a region, bool (n_vertices,)."""
        return (
            "posterior" if mask is None or self.surface is None else best_view(self.surface, mask)
        )

    def vertex(self, point: Mapping[str, object]) -> int:
        """Return the atlas's vertex of a clicked point, -1 if the point is not on the map."""
        if self.surface is None or point["trace"] != len(self.plot.data) - 1:
            return -1
        return int(self.surface.order[point["index"]])


def _eye(view: str) -> dict[str, float]:
    """Return the place of the camera, so far away that names in front of the brain are seen.

    The camera is orthographic: its distance changes no size.
    """
    return {axis: 2 * part for axis, part in VIEWS[view].items()}


class Pictures(w.HTML):
    """Shows images in a row, each under a caption; the row takes no place while it is empty.

    Parameters
    ----------
    widths : sequence of int
        Largest width of each image in pixels; all become narrower on a narrow page.
    wrap : bool, default False
        Continue in further rows on a narrow page instead.
    scroll : bool, default False
        Keep all sizes and scroll sideways, for images whose text would become too small to read.
    """

    def __init__(self, widths: Sequence[int], *, wrap: bool = False, scroll: bool = False):
        super().__init__()
        self._widths, self._images = tuple(widths), [""] * len(widths)
        self._flow, self._scroll = "row wrap" if wrap else "row", scroll

    def show(
        self, *shown: tuple[np.ndarray | None, str] | tuple[np.ndarray, str, tuple[float, float]]
    ) -> None:
        """Show images with captions, and a colour bar under the caption of a map.

        Parameters
        ----------
        *shown : tuple of (ndarray of uint8, shape (H, W, 3 or 4), or None, str[, (float, float)])
            Image and caption of each place, and the ends of its colour bar. Without an image the
            caption stands alone; places beyond the last one given are left out.
        """
        parts = []
        for place, (image, caption, *limits) in enumerate(shown):
            caption = html.escape(caption)
            bar = _colour_bar(*limits[0]) if limits else ""
            if image is not None:
                self._images[place] = _tag(enlarged(image), caption, shrinks=not self._scroll)
            # a missing image keeps its place, so that the images beside it do not move
            visibility = "hidden" if image is None else "visible"
            flex = "none" if self._scroll else f"0 1 {self._widths[place]}px"
            parts.append(
                "<figure class='bmfl-picture' style='margin:0 12px 0 0;min-width:0;"
                f"flex:{flex}'>"
                "<figcaption style='white-space:pre-line;line-height:1.3;overflow-wrap:anywhere'>"
                f"{caption}</figcaption>"
                f"{bar}<div style='visibility:{visibility}'>{self._images[place]}</div></figure>"
            )
        row = f"display:flex;flex-flow:{self._flow};row-gap:8px;align-items:flex-end;"
        row += "font:13px Helvetica,Arial,sans-serif" + ";overflow-x:auto" * self._scroll
        self.value = f"<div style='{row}'>{''.join(parts)}</div>"
        empty = not any(image is not None or caption for image, caption, *_ in shown)
        self.layout.display = "none" if empty else None

    def to_html(self) -> str:
        """Return the images as part of a web page, which needs no other file."""
        return f"<div style='padding:8px 28px'>{self.value}</div>"


def enlarged(image: np.ndarray) -> np.ndarray:
    """Return a small photograph enlarged by a whole factor to about 224 pixels.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3) or (H, W, 4)
        Image; one with transparency, such as a `sheet`, has its final size and stays as it is.
    """
    scale = max(1, round(_LEAST_SIDE / max(image.shape[:2]))) if image.shape[2] == 3 else 1
    return image.repeat(scale, 0).repeat(scale, 1)


def _colour_bar(low: float, high: float) -> str:
    """Return the colours of unsigned maps with the values at their ends as an HTML element."""
    stops = ",".join(sample_colorscale(SEQUENTIAL, np.linspace(0, 1, 9).tolist()))
    return (
        "<div class='bmfl-bar' style='display:flex;gap:4px;font-size:11px;margin-bottom:3px'>"
        f"<span>{low:.2g}</span><span style='flex:1;background:linear-gradient(90deg,{stops})'>"
        f"</span><span>{high:.2g}</span></div>"
    )


def _tag(image: np.ndarray, text: str, shrinks: bool = True) -> str:
    """Return an image, uint8 (H, W, 3 or 4), as an HTML element that contains it as a PNG file."""
    from PIL import Image

    buffer, (height, width) = io.BytesIO(), image.shape[:2]
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", compress_level=1)
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    most = "100%" if shrinks else "none"
    size = f"width:{width}px;max-width:{most};aspect-ratio:{width}/{height};display:block"
    return f"<img style='{size}' src='{data}' alt='{text}'>"

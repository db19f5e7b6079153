"""Pieces of plotly figures that several widgets use: the house style, bars, the cortex."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from bmfl_lab.viz.explore import outline_lines
from bmfl_lab.viz.surface_interactive import (
    VIEWS,
    SurfaceLayout,
    aspect_ratio,
    surface_figure,
    swap_map,
)

# live.js puts the colours of the page's theme in the place of these three.
INK, LINE, PAPER = "#222222", "#e3e3e3", "#ffffff"
FONT = {"size": 13, "color": INK, "family": "Helvetica, Arial, sans-serif"}
ERROR = {"type": "data", "color": INK, "thickness": 1.2}


def styled(figure: go.Figure, height: int, title: str = "") -> go.Figure:
    """Return the figure in the house style; on a page it takes ink, lines and paper from the page's theme."""
    figure.update_layout(
        template="none",
        font=FONT,
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


def sampled(scale: str, shares: np.ndarray) -> list[tuple[float, float, float]]:
    """Return the colours (red, green, blue from 0 to 1) of a plotly colour scale at shares from 0 to 1."""
    if not len(shares):
        return []
    found = sample_colorscale(scale, np.clip(shares, 0, 1).tolist(), colortype="tuple")
    return [tuple(float(part) for part in rgb) for rgb in found]


class Cortex:
    """A live surface: one map, one outline, clicks that name a vertex.

    Parameters
    ----------
    atlas : Atlas
        Where the vertices lie; None or an atlas on no surface gives no figure.
    height : int
        In pixels.
    """

    def __init__(self, atlas: Any, height: int = 430):
        self.layout = None if atlas is None or atlas.mesh is None else SurfaceLayout(atlas)
        self.figure = styled(go.Figure(), 60, "No cortical surface in this study")
        if self.layout is None:
            return
        made = surface_figure(
            np.zeros(atlas.n_vertices), atlas, layout=self.layout, height=height, title=" "
        )
        made.add_scatter3d(
            x=[None],
            y=[None],
            z=[None],
            mode="lines",
            line={"color": "#D55E00", "width": 6},
            hoverinfo="skip",
            showlegend=False,
            name="outline",
            visible=False,
        )
        made.add_scatter3d(
            x=[None],
            y=[None],
            z=[None],
            mode="lines",
            line={"color": "black", "width": 3},
            hoverinfo="skip",
            showlegend=False,
            name="all outlines",
            visible=False,
        )
        meshes, lines = made.data[:-2], made.data[-2:]
        made.data = (
            *meshes[:-1],
            lines[1],
            lines[0],
            meshes[-1],
        )  # swap_map changes the last trace
        self._borders: dict[bytes, tuple] = {}
        self._outlined: bytes | None = None
        self._bordered: bytes | None = b""
        self.figure = styled(made, height)
        self.figure.update_layout(margin={"l": 0, "r": 0, "t": 46, "b": 0})

    def show(self, values: np.ndarray, outline: np.ndarray | None = None, **style: Any) -> None:
        """Show values per vertex, and the outline of a region."""
        if self.layout is None:
            return
        with self.figure.batch_update():
            swap_map(self.figure, values, self.layout, **style)
            key = None if outline is None else np.asarray(outline).tobytes()
            if key != self._outlined:
                self._outlined = key
                self._draw_lines(-2, outline_lines(self.layout, outline))

    def show_all(self, where: np.ndarray | None) -> None:
        """Show the borders of all ROIs among some vertices, bool (V,); None hides them."""
        if self.layout is None:
            return
        key = b"" if where is None else where.tobytes()
        if key not in self._borders:
            masks = (
                []
                if where is None
                else [np.asarray(m, bool) & where for m in self.layout.atlas.rois.values()]
            )
            lines = [outline_lines(self.layout, mask) for mask in masks] or [
                outline_lines(self.layout, None)
            ]
            self._borders[key] = tuple(np.concatenate(part) for part in zip(*lines))
        if key != self._bordered:
            self._bordered = key
            self._draw_lines(-3, self._borders[key])

    def _draw_lines(self, place: int, lines: tuple) -> None:
        """Give a trace its lines; without any it is not made on the page, where it would cost programs."""
        seen = bool(np.isfinite(np.asarray(lines[0], float)).any())
        self.figure.data[place].update(**dict(zip("xyz", lines)), visible=seen)

    def set_range(self, low: float, high: float) -> None:
        """Fix the ends of the colour bar."""
        if self.layout is not None:
            self.figure.data[-1].update(cmin=low, cmax=high)

    def look_from(self, view: str) -> None:
        """Turn the camera; a choice of view wins over turning by hand."""
        if self.layout is not None and self.figure.layout.uirevision != view:
            self.figure.layout.uirevision = view
            self.figure.layout.scene.camera.eye = VIEWS[view]
            self.figure.layout.scene.aspectratio = aspect_ratio(self.layout, view)

    def vertex(self, point: dict[str, Any]) -> int:
        """Return the atlas's vertex of a clicked point, -1 where it is none."""
        if self.layout is None or point["trace"] != len(self.figure.data) - 1 or point["index"] < 0:
            return -1
        return int(self.layout.order[point["index"]])

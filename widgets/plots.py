"""Pieces of plotly figures that several widgets use: pictures, bars, the cortex."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import plotly.graph_objects as go

from bmfl_lab.viz.explore import outline_lines
from bmfl_lab.viz.surface_interactive import VIEWS, SurfaceLayout, surface_figure, swap_map

_ZOOM = 1.9
FONT = {"size": 13, "color": "#222222", "family": "Helvetica, Arial, sans-serif"}


def styled(figure: go.Figure, height: int, title: str = "") -> go.Figure:
    """Return the figure in the house style: white card, dark text, readable in both themes."""
    figure.update_layout(
        font=FONT,
        height=height,
        autosize=True,
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        title={"text": title, "x": 0.02, "font": {"size": 15}},
        margin={"l": 10, "r": 14, "t": 54, "b": 44},
        hoverlabel={"font": {"size": 12}},
    )
    return figure


def picture(image: np.ndarray) -> str:
    """Return an image, uint8 (H, W, 3), as a data address that needs no file."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = Image.fromarray(np.ascontiguousarray(image))
    scale = max(1, round(224 / max(pixels.size)))
    pixels.resize((pixels.width * scale, pixels.height * scale), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def strip(images: list[np.ndarray], side: int = 72, gap: int = 6) -> np.ndarray:
    """Return square thumbnails in one row, uint8 (side, n * (side + gap) - gap, 3), on white."""
    from PIL import Image

    row = np.full((side, max(1, len(images)) * (side + gap) - gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        small = Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.BICUBIC)
        row[:, i * (side + gap) : i * (side + gap) + side] = np.asarray(small)
    return row


def no_axes(figure: go.Figure, row: int, col: int) -> None:
    """Hide the axes under a picture and keep its pixels square."""
    figure.update_xaxes(visible=False, row=row, col=col)
    figure.update_yaxes(visible=False, row=row, col=col)


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
        made = surface_figure(np.zeros(atlas.n_vertices), atlas, layout=self.layout, height=height, title=" ")
        made.add_scatter3d(
            x=[None], y=[None], z=[None], mode="lines", line={"color": "#D55E00", "width": 6}, hoverinfo="skip",
            showlegend=False, name="outline",
        )  # fmt: skip
        made.data = (*made.data[:-2], made.data[-1], made.data[-2])  # swap_map changes the last trace
        self.figure = styled(made, height)
        self.figure.update_layout(margin={"l": 0, "r": 0, "t": 46, "b": 0})
        # an orthographic camera does not come nearer; a larger box does
        extent = np.ptp(np.concatenate([points for points, _, _ in self.layout.base]), axis=0)
        ratio = dict(zip("xyz", _ZOOM * extent / extent.max()))
        self.figure.update_layout(scene={"aspectmode": "manual", "aspectratio": ratio})

    def show(self, values: np.ndarray, outline: np.ndarray | None = None, **style: Any) -> None:
        """Show values per vertex, and the outline of a region."""
        if self.layout is None:
            return
        with self.figure.batch_update():
            swap_map(self.figure, values, self.layout, **style)
            trace = self.figure.data[-2]
            trace.x, trace.y, trace.z = outline_lines(self.layout, outline)

    def set_range(self, low: float, high: float) -> None:
        """Fix the ends of the colour bar."""
        if self.layout is not None:
            self.figure.data[-1].update(cmin=low, cmax=high)

    def look_from(self, view: str) -> None:
        """Turn the camera; a choice of view wins over turning by hand."""
        if self.layout is not None:
            self.figure.layout.uirevision = view
            self.figure.layout.scene.camera.eye = VIEWS[view]

    def vertex(self, point: dict[str, Any]) -> int:
        """Return the atlas's vertex of a clicked point, -1 where it is none."""
        if self.layout is None or point["trace"] != len(self.figure.data) - 1 or point["index"] < 0:
            return -1
        return int(self.layout.order[point["index"]])

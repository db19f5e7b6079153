"""Which triangle of a cortical mesh each pixel of a view shows: found once, so that a map is only a look-up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.viz.mesh import curvature, load_mesh

PIXELS_PER_MM = 3.0
_MARGIN_MM = 2.0
# screen right, screen up, towards the viewer, in (right, anterior, superior) coordinates of a right
# hemisphere
_DIRECTIONS = {
    "lateral": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "medial": ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    "ventral": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "posterior": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "dorsal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}
VIEWS = tuple(_DIRECTIONS)


@dataclass(frozen=True)
class View:
    """One hemisphere seen from one side.

    Parameters
    ----------
    corners : ndarray of int32, shape (height, width, 3)
        Vertices of the triangle that each pixel shows, -1 beside the brain; the first row is the
        lowest.
    weights : ndarray of float32, shape (height, width, 3)
        Barycentric weight of each corner.
    light : ndarray of float32, shape (height, width)
        Cosine between the surface's normal and the viewing direction, 0 to 1.
    sulcus : ndarray of bool, shape (height, width)
        Whether the pixel lies in a sulcus.
    position : ndarray of float32, shape (n_vertices, 2)
        Place of each vertex on the screen, in mm.
    extent : tuple of float
        Left, right, bottom and top of the raster, in mm.
    """

    corners: np.ndarray
    weights: np.ndarray
    light: np.ndarray
    sulcus: np.ndarray
    position: np.ndarray
    extent: tuple[float, float, float, float]

    @property
    def inside(self) -> np.ndarray:
        """Pixels that show the brain."""
        return self.corners[..., 0] >= 0

    def interpolate(self, values: np.ndarray) -> np.ndarray:
        """Return values per pixel; NaN where the vertices with data weigh less than half."""
        at = values[self.corners]
        known = np.isfinite(at)
        weight = (self.weights * known).sum(-1)
        mean = (self.weights * np.where(known, at, 0)).sum(-1) / np.maximum(weight, 1e-6)
        return np.where((weight >= 0.5) & self.inside, mean, np.nan)

    def nearest(self, codes: np.ndarray) -> np.ndarray:
        """Return the code of the vertex nearest to each pixel; -1 beside the brain."""
        closest = np.take_along_axis(self.corners, self.weights.argmax(-1)[..., None], -1)[..., 0]
        return np.where(self.inside, codes[closest], -1)


@lru_cache(maxsize=24)
def view_of(hemisphere: str, view: str, surface: str = "inflated") -> View:
    """Return the raster of a view.

    Parameters
    ----------
    hemisphere : {"left", "right"}
        Side.
    view : {"lateral", "medial", "ventral", "posterior", "dorsal"}
        From where.
    surface : str
        As `bmfl_lab.viz.mesh.load_mesh`.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    if view not in _DIRECTIONS:
        raise ConfigError(message(f"a view among {VIEWS}", repr(view), nearest(view, VIEWS)))
    coordinates, faces = load_mesh(hemisphere, surface)
    right, up, towards = (np.asarray(v, np.float32) for v in _DIRECTIONS[view])
    if hemisphere == "left" and view in ("lateral", "medial"):
        right, towards = -right, towards * np.float32([-1, 1, 1])
    position = np.stack([coordinates @ right, coordinates @ up], 1)
    low, high = position.min(0) - _MARGIN_MM, position.max(0) + _MARGIN_MM
    normal = np.cross(*(coordinates[faces[:, i]] - coordinates[faces[:, 0]] for i in (1, 2)))
    facing = (normal @ towards) / np.maximum(np.linalg.norm(normal, axis=1), 1e-9)
    order = np.flatnonzero(facing > 0)
    order = order[np.argsort((coordinates @ towards)[faces[order]].mean(1))]
    shown = _paint(position[faces[order]], low, high)
    corners = np.where(shown[..., None] >= 0, faces[order][shown], -1)
    weights = _barycentric(position, corners, low)
    smooth = np.zeros_like(coordinates)
    for i in range(3):
        np.add.at(smooth, faces[:, i], normal)
    cosine = np.clip((smooth @ towards) / np.maximum(np.linalg.norm(smooth, axis=1), 1e-9), 0, 1)
    return View(
        corners,
        weights,
        (weights * cosine[corners]).sum(-1).astype(np.float32),
        (weights * curvature(hemisphere)[corners]).sum(-1) > 0.5,
        position,
        (float(low[0]), float(high[0]), float(low[1]), float(high[1])),
    )


def _paint(triangles: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the number of the last triangle painted on each pixel, -1 for none; shape (height, width)."""
    from PIL import Image, ImageDraw

    width, height = np.ceil((high - low) * PIXELS_PER_MM).astype(int)
    canvas = Image.new("I", (int(width), int(height)), 0)
    draw = ImageDraw.Draw(canvas)
    pixels = (triangles - low) * PIXELS_PER_MM - 0.5
    for number, corners in enumerate(pixels.reshape(len(pixels), 6).tolist()):
        draw.polygon(corners, fill=number + 1)
    return np.asarray(canvas, dtype=np.int64) - 1


def _barycentric(position: np.ndarray, corners: np.ndarray, low: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: corners.shape[0], : corners.shape[1]]
    pixel = np.stack([columns, rows], -1) / PIXELS_PER_MM + low + 0.5 / PIXELS_PER_MM
    a, b, c = (position[corners[..., i]] for i in range(3))

    def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    area = cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-6, 1e-6, area)
    second, third = cross(pixel - a, c - a) / area, cross(b - a, pixel - a) / area
    found = np.clip(np.stack([1 - second - third, second, third], -1), 0, 1)
    return (found / found.sum(-1, keepdims=True)).astype(np.float32)

"""Surfaces (fsaverage5 and fsLR 32k), a study's vertices on them, and static brain maps.

A map has views of both hemispheres, outlines and one colour bar. The full name of a surface begins
with its mesh: "inflated" is a surface of fsaverage5, "fsLR32k/inflated" one of the group average on
fsLR 32k, and "fsLR32k/sub-10/inflated" one of a subject.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.data import fslr
from bmfl_lab.data.containers import open_gifti
from bmfl_lab.errors import ConfigError, DataError, nearest, require
from bmfl_lab.viz.charts import DIVERGING, GREY, SEQUENTIAL, distinct_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from bmfl_lab.data.atlas import Atlas

HEMISPHERES = ("left", "right")
SURFACES = ("inflated", "pial", "white", "flat", "sphere")
N_FSAVERAGE5, N_FSAVERAGE4 = 10242, 2562
VALID_MESHES = ("fsaverage5", "fsaverage", fslr.MESH)
_FILES = {"inflated": "infl"}
VIEWS = ("lateral", "medial", "ventral", "posterior")
_BLACK = "#000000"
_MARGIN_MM, _SMALLEST_MM = 10.0, 46.0
_HEIGHT = 1.9
"""Inches of the highest view."""


PIXELS_PER_MM = 3.0
_FRAME_MM = 2.0
# screen right, screen up, towards the viewer, in (right, anterior, superior) coordinates of a right
# hemisphere
_DIRECTIONS = {
    "lateral": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "medial": ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    "ventral": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "posterior": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "dorsal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "flat": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),  # of the cut flat surface, occipital side inwards
}


@lru_cache(maxsize=16)
def load_mesh(hemisphere: str, surface: str = "inflated") -> tuple[np.ndarray, np.ndarray]:
    """Return the mesh of one hemisphere: fsaverage5 as shipped with nilearn, or fsLR 32k.

    Parameters
    ----------
    hemisphere : {"left", "right"}
        Hemisphere.
    surface : str, default "inflated"
        "inflated", "pial", "white", "flat" or "sphere" of fsaverage5, or the full name of a surface
        of fsLR 32k, which `bmfl_lab.data.fslr.load_surface` reads.

    Returns
    -------
    coordinates : ndarray of float32, shape (10242, 3), or (32492, 3) on fsLR 32k
        Coordinates of the vertices in mm.
    faces : ndarray of int32, shape (20480, 3) or (64980, 3), or fewer for a cut flat surface
        Vertex indices of each triangle.

    Raises
    ------
    ConfigError
        If the hemisphere or surface is unknown.
    """
    mesh, _, name = surface.rpartition("/")
    if mesh:
        return fslr.load_surface(hemisphere, name, mesh)
    require(
        hemisphere in HEMISPHERES,
        ConfigError,
        f"a hemisphere among {HEMISPHERES}",
        repr(hemisphere),
        nearest(hemisphere, HEMISPHERES),
    )
    require(
        surface in SURFACES,
        ConfigError,
        f"a surface among {SURFACES}",
        repr(surface),
        nearest(surface, SURFACES),
    )
    points, faces = _gifti(_FILES.get(surface, surface), hemisphere)
    return np.asarray(points, dtype=np.float32), np.asarray(faces, dtype=np.int32)


def surface_name(surface: str, atlas: Atlas) -> str:
    """Return the full name of a surface for the mesh of an atlas.

    Parameters
    ----------
    surface : str
        Name such as "inflated".
    atlas : Atlas
        Position of the vertices.

    Returns
    -------
    str
        The name as given, or for example "fsLR32k/inflated".
    """
    return f"{atlas.mesh}/{surface}" if _on_fslr(atlas) else surface


def _on_fslr(atlas: Atlas) -> bool:
    return str(atlas.mesh).split("/")[0] == fslr.MESH


def _gifti(name: str, hemisphere: str) -> list[np.ndarray]:
    """Return the arrays of one of nilearn's fsaverage5 files.

    The files are read directly: importing nilearn.datasets takes longer than drawing a cortex.
    """
    import importlib.util

    found = importlib.util.find_spec("nilearn")
    path = (
        Path(found.origin).parent
        / "datasets"
        / "data"
        / "fsaverage5"
        / f"{name}_{hemisphere}.gii.gz"
    )
    return [part.data for part in open_gifti(path, gzip.decompress(path.read_bytes())).darrays]


@lru_cache(maxsize=8)
def curvature(hemisphere: str, surface: str = "inflated") -> np.ndarray:
    """Return 1 in sulci and 0 on gyri of one hemisphere, float32 (n_vertices of the mesh,).

    Parameters
    ----------
    hemisphere : {"left", "right"}
        Hemisphere.
    surface : str, default "inflated"
        Full name of a surface, including its mesh.
    """
    mesh, _, _ = surface.rpartition("/")
    if mesh:
        return fslr.sulci(hemisphere, mesh)
    return (np.asarray(_gifti("sulc", hemisphere)[0], dtype=np.float32).ravel() > 0).astype(
        np.float32
    )


def coarser_faces(faces: np.ndarray, n_coarse: int = N_FSAVERAGE4) -> np.ndarray:
    """Return the triangles of the next coarser mesh of a nested icosahedron.

    From one of FreeSurfer's meshes to the next, every edge is halved, and the first vertices of the
    finer mesh are those of the coarser one. The middle one of four new triangles has the middles of
    the old edges as corners.

    Parameters
    ----------
    faces : ndarray of int, shape (4 * m, 3)
        Triangles of the finer mesh.
    n_coarse : int
        Number of vertices of the coarser mesh; by default 2562, that of fsaverage4.

    Returns
    -------
    ndarray of int, shape (m, 3)
        Corners among the first `n_coarse` vertices, with the same orientation.

    Raises
    ------
    DataError
        If the faces are not those of such a mesh, such as those of the cut flat surface.
    """
    edges = np.concatenate([faces[:, [i, j]] for i in range(3) for j in range(3) if i != j]).astype(
        np.int64
    )
    halves = edges[(edges[:, 0] >= n_coarse) & (edges[:, 1] < n_coarse)]
    # one number per edge is sorted much faster than rows
    halves = np.stack(
        np.divmod(np.unique(halves[:, 0] * n_coarse + halves[:, 1]), n_coarse), axis=1
    )
    middles = faces[(faces >= n_coarse).all(1)]
    found, counts = np.unique(halves[:, 0], return_counts=True)
    require(
        4 * len(middles) == len(faces)
        and np.array_equal(found, np.unique(middles))
        and np.all(counts == 2),
        DataError,
        f"a closed mesh whose first {n_coarse} vertices are those of the coarser one",
        f"{len(faces)} faces",
        "give the faces of a whole fsaverage hemisphere",
    )
    ends = np.zeros((faces.max() + 1, 2), dtype=faces.dtype)
    ends[found] = halves[:, 1].reshape(-1, 2)
    of = ends[middles]
    # a corner lies at the end of two edges whose middles follow each other
    return np.stack([_shared(of[:, k - 1], of[:, k]) for k in range(3)], axis=1)


def _shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the number that each row of two (m, 2) arrays has in common."""
    return np.where((one[:, :1] == other).any(1), one[:, 0], one[:, 1])


def vertex_normals(coordinates: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the unit normals of vertices: the mean of their triangles' normals, weighted by area.

    Parameters
    ----------
    coordinates : ndarray, shape (V, 3)
        Coordinates of the vertices.
    faces : ndarray of int, shape (m, 3)
        Vertices of each triangle.

    Returns
    -------
    ndarray of float, shape (V, 3)
    """
    a, b, c = (coordinates[faces[:, k]] for k in range(3))
    each = np.cross(b - a, c - a)
    total = np.zeros(coordinates.shape)
    for k in range(3):
        np.add.at(total, faces[:, k], each)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def mesh_index(atlas: Atlas) -> np.ndarray:
    """Return the vertex of the drawn mesh for each of the atlas's vertices, -1 if there is none.

    The meshes are nested: the first 10,242 of fsaverage's 163,842 vertices per hemisphere are those
    of fsaverage5. The others are left out.

    Parameters
    ----------
    atlas : Atlas
        Atlas on fsaverage5, fsaverage or fsLR 32k.

    Returns
    -------
    ndarray of int64, shape (n_vertices,)

    Raises
    ------
    DataError
        If the atlas lies on no surface that can be drawn.
    """
    require(
        str(atlas.mesh).split("/")[0] in VALID_MESHES and atlas.surface_index is not None,
        DataError,
        f"vertices on one of the surfaces {VALID_MESHES}",
        repr(atlas.mesh),
        "give the atlas a mesh and a surface_index",
    )
    index = np.asarray(atlas.surface_index, dtype=np.int64)
    return index if _on_fslr(atlas) else np.where(index < N_FSAVERAGE5, index, -1)


def vertex_positions(atlas: Atlas) -> np.ndarray:
    """Return the position of each vertex of an atlas on the white surface, (n_vertices, 3) in mm.

    Parameters
    ----------
    atlas : Atlas
        Atlas on fsaverage5, fsaverage or fsLR 32k. A vertex that the drawn mesh lacks is NaN.

    Raises
    ------
    DataError
        See `mesh_index`.
    """
    index, side = mesh_index(atlas), np.asarray(atlas.hemisphere)
    name = f"{atlas.mesh}/white" if _on_fslr(atlas) else "white"
    points = [load_mesh(hemisphere, name)[0] for hemisphere in HEMISPHERES]
    found = np.stack([points[s][max(i, 0)] for s, i in zip(side, index)]).astype(float)
    found[index < 0] = np.nan
    return found


def on_mesh(values: np.ndarray, atlas: Atlas) -> dict[str, np.ndarray]:
    """Assign values per vertex to the two hemispheres of the drawn mesh.

    Parameters
    ----------
    values : ndarray, shape (n_vertices,)
        One value per vertex of the atlas; NaN means no data.
    atlas : Atlas
        Position of the vertices.

    Returns
    -------
    dict of str to ndarray of float64, shape (10242,), or (32492,) on fsLR 32k
        "left" and "right"; NaN where there is no data.

    Raises
    ------
    DataError
        If lengths differ or the atlas lies on no surface.
    """
    values = np.asarray(values, dtype=np.float64)
    require(
        values.shape == (atlas.n_vertices,),
        DataError,
        f"one value for each of {atlas.n_vertices} vertices",
        f"shape {values.shape}",
        "use values and atlas of one subject",
    )
    index, side = mesh_index(atlas), np.asarray(atlas.hemisphere)
    found = {}
    for number, hemisphere in enumerate(HEMISPHERES):
        mine = (side == number) & (index >= 0)
        found[hemisphere] = np.full(fslr.N_VERTICES if _on_fslr(atlas) else N_FSAVERAGE5, np.nan)
        found[hemisphere][index[mine]] = values[mine]
    return found


def symmetric_range(values: np.ndarray, signed: bool | None = None) -> tuple[float, float, bool]:
    """Return the limits of the colours of a map, ignoring the most extreme 1 % of the values.

    Parameters
    ----------
    values : ndarray of float
        Values of the map; NaN is ignored.
    signed : bool, optional
        Whether the limits are symmetric about zero; by default if there are values on both sides.

    Returns
    -------
    low, high : float
        Limits. The lower one of an unsigned map is 0 or its minimum.
    signed : bool
        Whether the limits are symmetric about zero.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0, False
    if signed is None:
        signed = bool(finite.min() < 0 < finite.max())
    if signed:
        top = float(np.percentile(np.abs(finite), 99)) or 1.0
        return -top, top, True
    low, high = float(min(0.0, finite.min())), float(np.percentile(finite, 99))
    return low, high if high > low else low + 1.0, False


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
        Hemisphere.
    view : {"lateral", "medial", "ventral", "posterior", "dorsal", "flat"}
        Direction of view; "flat" is that of the flat surface.
    surface : str, default "inflated"
        Full name of the surface that is drawn, see `load_mesh`.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    require(
        view in _DIRECTIONS,
        ConfigError,
        f"a view among {tuple(_DIRECTIONS)}",
        repr(view),
        nearest(view, _DIRECTIONS),
    )
    coordinates, faces = load_mesh(hemisphere, surface)
    right, up, towards = (np.asarray(v, np.float32) for v in _DIRECTIONS[view])
    if hemisphere == "left" and view in ("lateral", "medial"):
        right, towards = -right, towards * np.float32([-1, 1, 1])
    position = np.stack([coordinates @ right, coordinates @ up], 1)
    drawn = position[np.unique(faces)]  # the flat surface is cut: some vertices have no triangle
    low, high = drawn.min(0) - _FRAME_MM, drawn.max(0) + _FRAME_MM
    normal = np.cross(*(coordinates[faces[:, i]] - coordinates[faces[:, 0]] for i in (1, 2)))
    facing = (normal @ towards) / np.maximum(np.linalg.norm(normal, axis=1), 1e-9)
    order = np.flatnonzero(facing > 0)
    order = order[np.argsort((coordinates @ towards)[faces[order]].mean(1))]
    shown = _paint(position[faces[order]], low, high)
    corners = np.where(shown[..., None] >= 0, faces[order][shown], -1)
    weights = _barycentric(position, corners, low)
    cosine = np.clip(vertex_normals(coordinates, faces) @ towards, 0, 1)
    return View(
        corners,
        weights,
        (weights * cosine[corners]).sum(-1).astype(np.float32),
        (weights * curvature(hemisphere, surface)[corners]).sum(-1) > 0.5,
        position,
        (float(low[0]), float(high[0]), float(low[1]), float(high[1])),
    )


def _paint(triangles: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the number of the last triangle painted on each pixel, (height, width); -1 for none.

    Triangles are (n, 3, 2) in mm, `low` and `high` (2,) the corners of the raster.
    """
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


def surface_panel(
    values: np.ndarray,
    atlas: Atlas,
    *,
    title: str,
    unit: str,
    signed: bool | None = None,
    outline: Iterable[str] = (),
    views: Sequence[str] = VIEWS,
    surface: str = "inflated",
    colour_map: str | None = None,
    limits: tuple[float, float] | None = None,
    whole: bool = False,
    zoom: bool = False,
) -> Figure:
    """Draw a map on the cortex.

    Parameters
    ----------
    values : ndarray of float, shape (n_vertices,)
        One value per vertex of `atlas`; NaN means no data and shows the grey cortex.
    atlas : Atlas
        Position of the vertices; those on "fsaverage" are shown at their place on fsaverage5.
    title, unit : str
        Title, and label of the colour bar.
    signed : bool, optional
        Use diverging colours, symmetric about zero; by default if there are values on both sides of
        zero.
    outline : iterable of str, optional
        ROIs or groups whose borders are drawn. The name of each stands on the view that shows most
        of it, once per hemisphere.
    views : sequence of str, default ("lateral", "medial", "ventral", "posterior")
        Directions of view, among these four and "dorsal".
    surface : str, default "inflated"
        Surface that is drawn, see `bmfl_lab.viz.surface.load_mesh`. "flat" draws the flat map of
        each hemisphere instead of the views.
    colour_map : str, optional
        Name of a matplotlib colour map; by default inferno, or RdBu_r for signed values.
    limits : (float, float), optional
        Ends of the colour bar; by default found by `bmfl_lab.viz.surface.symmetric_range`.
    whole : bool, default False
        Values are whole numbers (for instance of blocks): each has its own colour, and colours are
        not mixed between vertices.
    zoom : bool, default False
        Show only the part of the cortex where the atlas has vertices.

    Returns
    -------
    matplotlib Figure
        One row per hemisphere and one column per view; both flat maps stand side by side.

    Raises
    ------
    ConfigError
        If a view, surface or ROI is unknown.
    DataError
        If the values do not fit the atlas, or the atlas lies on no surface.
    """
    scale = _steps(values, colour_map) if whole else _scale([values], signed, colour_map, limits)
    outline = _line_colours(outline)
    rows, titles = _sides(values, views, surface)
    look = {"surface": surface, "zoom": zoom, "whole": whole}
    figure, _ = _draw_rows(rows, titles, atlas, scale, outline, **look)
    figure.numbers = _vertex_table(atlas, {unit: values})
    return _finish(figure, title, lines=outline, bar=(*scale, unit))


def surface_maps(
    maps: Mapping[str, np.ndarray],
    atlas: Atlas,
    *,
    title: str,
    unit: str,
    signed: bool | None = None,
    outline: Iterable[str] = (),
    views: Sequence[str] = ("lateral", "ventral", "posterior"),
    surface: str = "inflated",
    colour_map: str | None = None,
    limits: tuple[float, float] | None = None,
    zoom: bool = False,
) -> Figure:
    """Draw several maps of one atlas below each other with one scale of colours.

    Parameters
    ----------
    maps : mapping of str to ndarray of float, shape (n_vertices,)
        Name to values; one row per map, with views of the left beside those of the right
        hemisphere.
    views : sequence of str, default ("lateral", "ventral", "posterior")
        Directions of view of each hemisphere.
    atlas, title, unit, signed, outline, surface, colour_map, limits, zoom
        See `surface_panel`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ConfigError
        If a view, surface or ROI is unknown.
    DataError
        If there is no map, values do not fit the atlas, or the atlas lies on no surface.
    """
    require(maps, DataError, "at least one map", "none", "give a mapping name -> values")
    scale = _scale(list(maps.values()), signed, colour_map, limits)
    outline = _line_colours(outline)
    views = _views(views, surface)
    places = [("left", view) for view in views] + [("right", view) for view in reversed(views)]
    rows = [(name, values, places) for name, values in maps.items()]
    titles = [f"{side}\n{view}" for side, view in places]
    figure, _ = _draw_rows(rows, titles, atlas, scale, outline, surface=surface, zoom=zoom)
    figure.numbers = _vertex_table(atlas, maps)
    return _finish(figure, title, lines=outline, bar=(*scale, unit))


def category_map(
    labels: Sequence[str],
    atlas: Atlas,
    *,
    title: str,
    order: Sequence[str] | None = None,
    annotate: bool = False,
    views: Sequence[str] = VIEWS,
    surface: str = "inflated",
    zoom: bool = False,
) -> Figure:
    """Draw one category per vertex, with a legend.

    Parameters
    ----------
    labels : sequence of str, length n_vertices
        Category of each vertex; "" for none.
    order : sequence of str, optional
        Categories in the order of the legend; by default by first vertex.
    annotate : bool, default False
        Write the name of each category on the view that shows most of it.
    atlas, title, views, surface, zoom
        See `surface_panel`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ConfigError
        If a view or surface is unknown.
    DataError
        If a label is not in `order`, or labels do not fit the atlas.
    """
    import matplotlib as mpl

    labels = np.asarray(labels, dtype=object)
    names = [n for n in (dict.fromkeys(labels) if order is None else order) if n]
    unknown = ", ".join(sorted(set(labels) - set(names) - {""}))
    require(not unknown, DataError, f"labels among {names}", unknown, f"add {unknown} to `order`")
    codes = np.asarray([names.index(label) if label else np.nan for label in labels], dtype=float)
    colour = distinct_colours(max(1, len(names)), without=_BLACK)
    edges = np.arange(len(colour) + 1) - 0.5
    scale = mpl.colors.BoundaryNorm(edges, len(colour)), mpl.colors.ListedColormap(colour)
    rows, titles = _sides(codes, views, surface)
    look = {"surface": surface, "zoom": zoom, "whole": True}
    figure, painted = _draw_rows(rows, titles, atlas, scale, {}, **look)
    figure.numbers = _vertex_table(atlas, {"category": labels})
    if annotate:
        _write_names(
            (axis, side, raster, names[number], code == number)
            for axis, side, raster, code in painted
            for number in np.unique(code[code >= 0]).astype(int)
        )
    return _finish(figure, title, patches=dict(zip(names, colour)))


def roi_map(
    atlas: Atlas,
    *,
    title: str = "Regions of interest",
    rois: Sequence[str] | None = None,
    **options,
) -> Figure:
    """Draw the ROIs of an atlas in colours with their names.

    Parameters
    ----------
    atlas : Atlas
        Atlas with the ROIs.
    title : str, default "Regions of interest"
        Title.
    rois : sequence of str, optional
        ROIs to draw; by default all that have vertices. A vertex in several is shown as part of the
        smallest one.
    **options
        Further arguments of `category_map`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    shown = [r for r in (atlas.present if rois is None else rois) if np.any(atlas.rois[r])]
    labels = np.full(atlas.n_vertices, "", dtype=object)
    for roi in sorted(shown, key=lambda r: -int(np.sum(atlas.rois[r]))):
        labels[np.asarray(atlas.rois[roi], bool)] = roi
    kept = [roi for roi in shown if np.any(labels == roi)]
    return category_map(labels, atlas, title=title, order=kept, **{"annotate": True, **options})


def _views(views: Sequence[str], surface: str) -> Sequence[str]:
    return ("flat",) if surface.rpartition("/")[2] == "flat" else views


def _sides(
    values: np.ndarray, views: Sequence[str], surface: str
) -> tuple[list[tuple[str, np.ndarray, list[tuple[str, str]]]], Sequence[str]]:
    """Return one row per hemisphere and the titles of the columns; flat maps share one row."""
    if _views(views, surface) == ("flat",):
        return [("", values, [(side, "flat") for side in HEMISPHERES])], HEMISPHERES
    return [(side, values, [(side, view) for view in views]) for side in HEMISPHERES], views


def _line_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each outline: black, then different ones."""
    names = list(names)
    return dict(zip(names, [_BLACK, *distinct_colours(len(names), without=_BLACK)]))


def _scale(
    values: Sequence[np.ndarray],
    signed: bool | None,
    colour_map: str | None,
    limits: tuple[float, float] | None,
) -> tuple[Normalize, Colormap]:
    import matplotlib as mpl

    low, high, diverging = symmetric_range(np.concatenate([np.ravel(v) for v in values]), signed)
    if limits is not None:
        low, high = limits
        diverging = low < 0 < high if signed is None else signed
    name = colour_map or (DIVERGING if diverging else SEQUENTIAL)
    return mpl.colors.Normalize(low, high), mpl.colormaps[name]


def _steps(values: np.ndarray, colour_map: str | None) -> tuple[Normalize, Colormap]:
    """Return a scale with one colour for each whole number from the smallest to the largest."""
    import matplotlib as mpl

    found = np.asarray(values, float)[np.isfinite(values)]
    broken = found[found != np.rint(found)]
    require(
        not broken.size, DataError, "whole numbers", next(iter(broken), ""), "leave out whole=True"
    )
    low, high = (int(found.min()), int(found.max())) if found.size else (0, 1)
    n, colours = high - low + 1, mpl.colormaps[colour_map or SEQUENTIAL]
    return mpl.colors.BoundaryNorm(np.arange(low, high + 2) - 0.5, n), colours.resampled(n)


def _vertex_table(atlas: Atlas, maps: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the numbers of brain maps, one row per vertex, for `bmfl_lab.viz.saving`."""
    side = [HEMISPHERES[int(number)] for number in atlas.hemisphere]
    return pd.DataFrame({"hemisphere": side, "vertex": atlas.surface_index, **maps})


def _draw_rows(
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, str]]]],
    titles: Sequence[str],
    atlas: Atlas,
    scale: tuple[Normalize, Colormap],
    outline: Mapping[str, str],
    *,
    surface: str,
    zoom: bool,
    whole: bool = False,
) -> tuple[Figure, list[tuple[Axes, str, View, np.ndarray]]]:
    """Draw rows of views, and return the figure and what each view shows.

    Each row has a name, the values of a map, (n_vertices,), and the hemisphere and view of each of
    its places. A view shows its axes, hemisphere, raster and values per pixel. `outline` is the
    colour of each outlined region.
    """
    from matplotlib.figure import Figure

    surface = surface_name(surface, atlas)
    extents = [
        [_box(side, view, surface, atlas if zoom else None) for side, view in places]
        for _, _, places in rows
    ]
    widths, heights = ([box[i + 1] - box[i] for box in extents[-1]] for i in (0, 2))
    # flat maps share one row, and have place to be larger
    height = _HEIGHT * (1.6 if rows[0][2][0][1] == "flat" else 1)
    width = height / max(heights) * sum(widths) + 1.5
    figure = Figure(figsize=(width, (height + 0.05) * len(rows) + 1.1))
    axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    borders = {name: on_mesh(atlas.select(name).astype(float), atlas) for name in outline}
    norm, colours = scale
    painted, outlined = [], []
    for line, boxes, (name, values, places) in zip(axes, extents, rows):
        laid = on_mesh(values, atlas)
        look = {"rotation": 90, "va": "center", "ha": "center", "fontsize": 9}
        line[0].text(-0.06, 0.5, name, transform=line[0].transAxes, **look)
        for axis, (left, right, bottom, top), (side, view) in zip(line, boxes, places):
            axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
            axis.set_axis_off()
            raster = view_of(side, view, surface)
            shown = raster.nearest(laid[side]) if whole else raster.interpolate(laid[side])
            _draw(axis, raster, colours(norm(shown)), shown)
            for region, border in borders.items():
                inside = _outline(axis, raster, np.nan_to_num(border[side]), outline[region])
                outlined.append((axis, side, raster, region, inside))
            painted.append((axis, side, raster, shown))
    _write_names(outlined)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9, loc="center")
    return figure, painted


def _box(
    side: str, view: str, surface: str, atlas: Atlas | None
) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of the part of a view to show, in mm.

    It is the whole view, or the part around the atlas's vertices.
    """
    raster = view_of(side, view, surface)
    if atlas is None:
        return raster.extent
    there = np.isfinite(on_mesh(np.ones(atlas.n_vertices), atlas)[side])
    places = raster.position[there] if there.any() else raster.position
    middle = (places.min(0) + places.max(0)) / 2
    half = np.maximum((places.max(0) - places.min(0)) / 2 + _MARGIN_MM, _SMALLEST_MM / 2)
    (left, right), (bottom, top) = (
        np.clip((m - h, m + h), *raster.extent[2 * i : 2 * i + 2])
        for i, (m, h) in enumerate(zip(middle, half))
    )
    return left, right, bottom, top


def _draw(axis: Axes, raster: View, colours: np.ndarray, values: np.ndarray) -> None:
    """Paint colours where there is a value, else grey cortex with darker sulci."""
    grey = np.where(raster.sulcus, 0.60, 0.80)[..., None]
    picture = np.where(np.isfinite(values)[..., None], colours[..., :3], grey)
    picture = picture * (0.72 + 0.28 * raster.light)[..., None]
    picture = np.concatenate([picture, raster.inside[..., None]], -1)
    limits = (*axis.get_xlim(), *axis.get_ylim())
    axis.imshow(
        picture, extent=raster.extent, origin="lower", interpolation="antialiased", aspect="equal"
    )
    axis.set(xlim=limits[:2], ylim=limits[2:])


def _outline(axis: Axes, raster: View, inside: np.ndarray, colour: str) -> np.ndarray:
    """Draw the border of a region, float (n_vertices,) with 1 inside and 0 outside.

    Returns the pixels inside it, bool (height, width).
    """
    level = np.where(raster.inside, (raster.weights * inside[raster.corners]).sum(-1), np.nan)
    if np.nanmax(level) > 0.5:
        place = {"levels": [0.5], "extent": raster.extent, "origin": "lower"}
        axis.contour(level, colors=["white"], linewidths=2.2, **place)
        axis.contour(level, colors=[colour], linewidths=1.1, **place)
    return np.nan_to_num(level) > 0.5


def _apart(
    labels: list[tuple[Axes, str, tuple[float, float]]],
) -> list[tuple[Axes, str, tuple[float, float]]]:
    """Move labels of one view up until none covers another; each is an axis, a name and a place."""
    tallest, kept = max((np.ptp(axis.get_ylim()) for axis, _, _ in labels), default=1.0), []
    scale = tallest / (72 * _HEIGHT)  # mm per point
    for axis, name, (x, y) in sorted(labels, key=lambda item: item[2][1]):
        near = [(n, px, py) for a, n, (px, py) in kept if a is axis]
        while any(
            abs(x - px) < 2.6 * scale * (len(n) + len(name)) and abs(y - py) < 9 * scale
            for n, px, py in near
        ):
            y += scale
        kept.append((axis, name, (x, y)))
    return kept


def _write_names(regions: Iterable[tuple[Axes, str, View, str, np.ndarray]]) -> None:
    """Write each region's name, per hemisphere, on the view that shows most of it.

    The name stands where it is farthest from the border, so that a ring is named on itself.
    A region of one view has its axes, hemisphere, raster and name, and the pixels that show it,
    bool (height, width).
    """
    from matplotlib import patheffects
    from scipy.ndimage import distance_transform_edt

    best: dict[tuple[str, str], tuple[int, Axes, tuple[float, float]]] = {}
    for axis, side, raster, name, inside in regions:
        size = int(inside.sum())
        if size > best.get((side, name), (0,))[0]:
            left, right, bottom, top = raster.extent
            depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            x = left + (column + 0.5) / inside.shape[1] * (right - left)
            y = bottom + (row + 0.5) / inside.shape[0] * (top - bottom)
            best[(side, name)] = (size, axis, (x, y))
    stroke = [patheffects.withStroke(linewidth=2, foreground="white")]
    labels = [(axis, name, at) for (_, name), (_, axis, at) in best.items()]
    for axis, name, place in _apart(labels):
        axis.text(*place, name, fontsize=7, ha="center", va="center", path_effects=stroke)


def _bar(figure: Figure, norm: Normalize, colours: Colormap, unit: str) -> None:
    from matplotlib.cm import ScalarMappable

    width = figure.get_figwidth()
    axes = figure.add_axes((1 - 0.85 / width, 0.25, 0.14 / width, 0.5))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=axes)
    if hasattr(norm, "boundaries"):
        middles = (norm.boundaries[1:] + norm.boundaries[:-1]) / 2
        bar.set_ticks(middles[:: max(1, len(middles) // 12)])
        bar.ax.minorticks_off()
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _finish(
    figure: Figure,
    title: str,
    *,
    lines: Mapping[str, str] | None = None,
    patches: Mapping[str, str] | None = None,
    bar: tuple[Normalize, Colormap, str] | None = None,
) -> Figure:
    """Set margins, title, a legend of outlines or of patches with their colours, and a bar."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    legend = {name: Patch(color=colour) for name, colour in (patches or {}).items()}
    for name, colour in (lines or {}).items():
        legend[name] = Line2D([], [], color=colour, lw=1.8)
    width, height = figure.get_size_inches()
    columns = max(1, int((width - 1) / (0.45 + 0.08 * max((len(n) for n in legend), default=1))))
    rows = -(-len(legend) // columns)
    height += 0.17 * max(0, rows - 1)
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=0.3 / width,
        right=1 - (0.1 if bar is None else 1.05) / width,
        bottom=(0.12 + 0.2 * rows) / height,
        top=1 - 0.85 / height,
        wspace=0.03,
        hspace=0.03,
    )
    place = {"x": 0.3 / width, "ha": "left", "y": 1 - 0.08 / height, "va": "top"}
    figure.suptitle(title, fontsize=11, fontweight="bold", **place)
    note = "grey: cortex without data (dark: sulci, light: gyri)"
    figure.text(0.3 / width, 1 - 0.32 / height, note, fontsize=7, color=GREY, va="top")
    if legend:
        columns = min(columns, len(legend))
        # matplotlib fills one column after the other; people read one row after the other
        names = [name for k in range(columns) for name in list(legend)[k::columns]]
        figure.legend(
            [legend[name] for name in names],
            names,
            loc="lower center",
            ncols=columns,
            frameon=False,
            fontsize=8,
            handlelength=1.2,
            columnspacing=1.2,
        )
    if bar is not None:
        _bar(figure, *bar)
    return figure

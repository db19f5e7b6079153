"""An interactive cortical surface whose map can be changed without making the mesh anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.viz.charts import DIVERGING, SEQUENTIAL
from bmfl_lab.viz.surface import (
    HEMISPHERES,
    N_FSAVERAGE4,
    coarser_faces,
    curvature,
    load_mesh,
    mesh_index,
    surface_name,
    symmetric_range,
    vertex_normals,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from bmfl_lab.data.atlas import Atlas

VIEWS: dict[str, dict[str, float]] = {
    "posterior": {"x": 0.0, "y": -1.7, "z": 0.5},
    "ventral": {"x": 0.0, "y": -0.4, "z": -1.7},
    "left lateral": {"x": -1.7, "y": -0.6, "z": 0.4},
    "right lateral": {"x": 1.7, "y": -0.6, "z": 0.4},
    "dorsal": {"x": 0.0, "y": -0.7, "z": 1.7},
}
"""Directions of the camera, from outside of the brain; `aspect_ratio` sets the size."""
# plotly's orthographic camera sees one unit up and down, and to the sides as much more as the
# figure is wider
_HALF_HEIGHT, _HALF_WIDTH = 0.88, 1.12
_GAP_MM = 6.0
# invisible axes without ticks on the brain: plotly.js draws their labels all the same, which
# takes 0.3 s
_BARE: dict[str, object] = {
    **dict.fromkeys(
        ("showgrid", "zeroline", "showline", "showticklabels", "showbackground", "showspikes"),
        False,
    ),
    "title": {"text": ""},
    "ticks": "",
    "tickmode": "linear",
    "tick0": 5e5,
    "dtick": 1e6,
}
_GREYS = [[0.0, "rgb(195,195,195)"], [1.0, "rgb(150,150,150)"]]
_LIFT = 1.006
_NAME_MM = 14.0
# on the smooth inflated surface the triangles of fsaverage4 stay within 0.3 mm of those of
# fsaverage5: the grey brain is drawn with a quarter of the triangles, 0.3 mm below the map
_SUNK_MM = 0.3


class SurfaceLayout:
    """Geometry shared by all maps of one atlas.

    Parameters
    ----------
    atlas : Atlas
        Position of the vertices.

    Attributes
    ----------
    order : ndarray of int64, shape (n_drawn,)
        The atlas's vertex of each vertex of the map, left then right hemisphere.
    points : ndarray of float, shape (n_drawn, 3)
        Coordinates of the map's vertices in mm, a little above the surface.
    normals : ndarray of float, shape (n_drawn, 3)
        Unit normals of the surface at the map's vertices.
    faces : ndarray of int64, shape (n_triangles, 3)
        Triangles of the map, by the numbers of its vertices.
    base : list of (ndarray, ndarray, ndarray)
        Vertices, triangles and sulci of the grey brain, left then right hemisphere.

    Raises
    ------
    DataError
        If the atlas lies on no surface.
    """

    def __init__(self, atlas: Atlas):
        self.atlas, surface = atlas, surface_name("inflated", atlas)
        index, side = mesh_index(atlas), np.asarray(atlas.hemisphere)
        self.base: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        order, points, normals, faces, count = [], [], [], [], 0
        for number, hemisphere in enumerate(HEMISPHERES):
            coordinates, triangles = _placed(hemisphere, surface)
            sulci = curvature(hemisphere, surface)
            self.base.append(_brain(coordinates, triangles, sulci, surface))
            mine = np.flatnonzero((side == number) & (index >= 0))
            where = np.full(len(coordinates), -1, dtype=np.int64)
            where[index[mine]] = np.arange(len(mine)) + count
            inner = where[triangles]
            faces.append(inner[(inner >= 0).all(1)])
            centre = coordinates.mean(0)
            points.append(centre + (coordinates[index[mine]] - centre) * _LIFT)
            normals.append(vertex_normals(coordinates, triangles)[index[mine]])
            order.append(mine)
            count += len(mine)
        self.order = np.concatenate(order)
        self.points, self.normals = np.concatenate(points), np.concatenate(normals)
        self.faces = np.concatenate(faces)

    def faces_of(self, shown: np.ndarray) -> np.ndarray:
        """Return the triangles whose three corners all have data.

        Parameters
        ----------
        shown : ndarray of float, shape (n_drawn,)
            Values in the order of `order`; NaN means no data, and shows the grey brain.

        Returns
        -------
        ndarray of int64, shape (n_shown, 3)
        """
        finite = np.isfinite(shown)
        return self.faces if finite.all() else self.faces[finite[self.faces].all(1)]

    def names(self) -> np.ndarray:
        """Return the hover label of each vertex, str (n_drawn,): hemisphere, ROIs and number."""
        named: dict[int, list[str]] = {}
        for name, mask in self.atlas.rois.items():
            for vertex in np.flatnonzero(mask):
                named.setdefault(int(vertex), []).append(name)
        side = np.asarray(self.atlas.hemisphere)
        labels = [
            f"{HEMISPHERES[int(side[v])]} {' + '.join(named.get(v, ())) or 'no ROI'}, vertex {v}"
            for v in self.order.tolist()
        ]
        return np.asarray(labels, dtype=object)


def _placed(hemisphere: str, surface: str) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and triangles of an inflated hemisphere on its side of the midline."""
    coordinates, triangles = load_mesh(hemisphere, surface)
    x = coordinates[:, 0]
    shift = -(x.max() + _GAP_MM / 2) if hemisphere == "left" else -(x.min() - _GAP_MM / 2)
    return coordinates + np.asarray([shift, 0, 0], dtype=np.float32), triangles


def _brain(
    points: np.ndarray, faces: np.ndarray, sulci: np.ndarray, surface: str
) -> tuple[np.ndarray, ...]:
    """Return vertices, triangles and sulci of the grey brain that is drawn under a map."""
    if surface != "inflated":  # no nested coarser mesh on fsLR
        return points, faces, sulci
    corners, coarse = points[:N_FSAVERAGE4], coarser_faces(faces)
    sunk = corners - _SUNK_MM * vertex_normals(corners, coarse)
    return sunk.astype(points.dtype), coarse, sulci[:N_FSAVERAGE4]


def _map_style(values: np.ndarray, signed: bool | None = None) -> dict[str, object]:
    """Return plotly's colour settings (``colorscale``, ``cmin``, ``cmax``) of a map."""
    low, high, is_signed = symmetric_range(values, signed)
    return {"colorscale": DIVERGING if is_signed else SEQUENTIAL, "cmin": low, "cmax": high}


def surface_figure(
    values: np.ndarray,
    layout: SurfaceLayout,
    *,
    title: str = "",
    unit: str = "",
    signed: bool | None = None,
    view: str = "posterior",
    height: int = 520,
) -> go.Figure:
    """Draw values per vertex on both hemispheres as a plotly figure.

    Parameters
    ----------
    values : ndarray, shape (n_vertices,)
        One value per vertex; NaN means no data and shows the grey brain.
    layout : SurfaceLayout
        Geometry of the atlas.
    title, unit : str, default ""
        Title and label of the colour bar; the title contains *simulated* if responses are.
    signed : bool, optional
        Use diverging colours, symmetric about zero; by default if there are values on both sides of
        zero.
    view : str, default "posterior"
        Direction of the camera, a key of `VIEWS`.
    height : int, default 520
        Height in pixels.

    Returns
    -------
    plotly Figure
        Two traces: the grey brain, and the map, whose values `swap_map` replaces.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    _add_brain(figure, layout)
    _add_map(figure, layout, values, unit, signed)
    figure.update_layout(
        title={"text": title, "x": 0.02},
        height=height,
        margin={"l": 0, "r": 0, "t": 46 if title else 8, "b": 0},
        scene=_scene(layout, view),
        uirevision="keep the camera",
    )
    return figure


def _scene(geometry: SurfaceLayout, view: str) -> dict[str, object]:
    return {
        **dict.fromkeys(("xaxis", "yaxis", "zaxis"), _BARE),
        "aspectmode": "manual",
        "aspectratio": aspect_ratio(geometry, view),
        "camera": {"eye": VIEWS[view], "projection": {"type": "orthographic"}},
    }


def aspect_ratio(geometry: SurfaceLayout, view: str, around: float = 0.0) -> dict[str, float]:
    """Return plotly's ``aspectratio`` with which a view fills the figure in true proportions.

    Under an orthographic camera it sets the size on the screen, and the camera's distance does not.

    Parameters
    ----------
    geometry : SurfaceLayout
        Geometry that is drawn.
    view : str
        Direction of the camera, a key of `VIEWS`.
    around : float, default 0.0
        Free space on each side of the brain within the axes in mm, as in `axis_ranges`.
    """
    points = np.concatenate([points for points, _, _ in geometry.base])
    span = points.max(0) - points.min(0) + 2 * around
    centred = points - (points.max(0) + points.min(0)) / 2
    towards = np.array([VIEWS[view][axis] for axis in "xyz"])
    towards /= np.linalg.norm(towards)
    right = np.cross([0.0, 0.0, 1.0], towards)
    right /= np.linalg.norm(right)
    across, up = (float(np.abs(centred @ d).max()) for d in (right, np.cross(towards, right)))
    size = min(_HALF_WIDTH / across, _HALF_HEIGHT / up)
    return {axis: size * float(s) for axis, s in zip("xyz", span)}


def axis_ranges(geometry: SurfaceLayout, around: float) -> dict[str, tuple[float, float]]:
    """Return the ends of the axes x, y and z in mm.

    Parameters
    ----------
    geometry : SurfaceLayout
        Geometry that is drawn.
    around : float
        Free space on each side of the brain in mm, where names stand; plotly draws nothing outside.
    """
    points = np.concatenate([points for points, _, _ in geometry.base])
    ends = zip("xyz", points.min(0) - around, points.max(0) + around)
    return {axis: (float(low), float(high)) for axis, low, high in ends}


def _mesh(points: np.ndarray, faces: np.ndarray) -> dict[str, np.ndarray]:
    """Return plotly's names for vertices (n, 3) and triangles (m, 3)."""
    return {**dict(zip("xyz", points.T)), **dict(zip("ijk", faces.T))}


def _add_brain(figure: go.Figure, geometry: SurfaceLayout) -> None:
    """Add the grey brain with darker sulci, as one mesh, because each mesh costs a page time."""
    points, faces, sulci = zip(*geometry.base)
    first = np.cumsum([0, *(len(p) for p in points[:-1])])
    figure.add_mesh3d(
        **_mesh(np.concatenate(points), np.concatenate([f + k for f, k in zip(faces, first)])),
        intensity=np.concatenate(sulci),
        colorscale=_GREYS,
        cmin=0,
        cmax=1,
        hoverinfo="skip",
        name="brain",
        lighting={"ambient": 0.65, "diffuse": 0.5, "specular": 0.05},
        showscale=False,
    )


def _add_map(
    figure: go.Figure, geometry: SurfaceLayout, values: np.ndarray, unit: str, signed: bool | None
) -> None:
    """Add the data mesh, lifted a little above the grey one, with the colour bar."""
    shown = np.asarray(values, dtype=float)[geometry.order]
    figure.add_mesh3d(
        **_mesh(geometry.points, geometry.faces_of(shown)),
        intensity=np.where(np.isfinite(shown), shown, 0.0),
        hovertext=geometry.names(),
        customdata=geometry.order,
        hovertemplate=_hover(unit),
        name="map",
        colorbar={"title": {"text": unit, "side": "right"}, "thickness": 14, "len": 0.7},
        lighting={"ambient": 0.8, "diffuse": 0.35, "specular": 0.05},
        **_map_style(values, signed),
    )


def _hover(unit: str) -> str:
    """Return the text beside the pointer: hemisphere, ROIs, vertex and value."""
    return "%{hovertext}<br>%{intensity:.3f} " + unit + "<extra></extra>"


def swap_map(
    figure: go.Figure,
    values: np.ndarray,
    layout: SurfaceLayout,
    *,
    title: str,
    unit: str,
    signed: bool | None = None,
) -> None:
    """Show other values on a figure made by `surface_figure`, with the same mesh and camera.

    Parameters
    ----------
    figure : plotly Figure
        Figure whose last trace is the map.
    values : ndarray, shape (n_vertices,)
        One value per vertex; NaN means no data and shows the grey brain.
    layout : SurfaceLayout
        Geometry that the figure was made with.
    title, unit : str
        Title and label of the colour bar.
    signed : bool, optional
        Use diverging colours, symmetric about zero; by default if there are values on both sides of
        zero.
    """
    shown, trace = np.asarray(values, dtype=float)[layout.order], figure.data[-1]
    corners = layout.faces_of(shown)
    trace.update(**dict(zip("ijk", corners.T)))
    trace.intensity = np.where(np.isfinite(shown), shown, 0.0)
    trace.update(_map_style(values, signed))
    trace.colorbar.title.text, trace.hovertemplate = unit, _hover(unit)
    figure.layout.title.text = title


def best_view(layout: SurfaceLayout, mask: np.ndarray) -> str:
    """Return the direction of the camera that shows most of a region, a key of `VIEWS`.

    Parameters
    ----------
    layout : SurfaceLayout
        Geometry of the atlas.
    mask : ndarray of bool, shape (n_vertices,)
        The region; "posterior" is returned for an empty one.

    Notes
    -----
    A vertex counts with the cosine between its normal and the direction. The other hemisphere hides
    a medial surface from the side, so that "left lateral" counts the left hemisphere only.
    """
    inside = np.asarray(mask, dtype=bool)[layout.order]
    side = np.asarray(layout.atlas.hemisphere)[layout.order]
    seen = {}
    for view, eye in VIEWS.items():
        towards = np.array([eye[axis] for axis in "xyz"])
        drawn = inside & ((side == HEMISPHERES.index(view.split()[0])) if " " in view else True)
        cosine = layout.normals[drawn] @ (towards / np.linalg.norm(towards))
        seen[view] = float(np.clip(cosine, 0, None).sum())
    return max(seen, key=seen.get)


def name_places(layout: SurfaceLayout, mask: np.ndarray) -> np.ndarray:
    """Return where the name of a region stands, above its middle in each hemisphere that has it.

    Parameters
    ----------
    layout : SurfaceLayout
        Geometry of the atlas.
    mask : ndarray of bool, shape (n_vertices,)
        The region.

    Returns
    -------
    ndarray of float, shape (n_hemispheres, 3)
        Coordinates in mm; no row for a hemisphere without a vertex of the region.
    """
    inside, side = np.asarray(mask, bool)[layout.order], layout.atlas.hemisphere[layout.order]
    parts = [np.flatnonzero(inside & (side == number)) for number in range(len(HEMISPHERES))]
    found = []
    for mine in filter(len, parts):
        away = np.linalg.norm(layout.points[mine] - layout.points[mine].mean(0), axis=1)
        middle = mine[away.argmin()]  # a vertex: the mean of a curved region lies inside the brain
        found.append(layout.points[middle] + _NAME_MM * layout.normals[middle])
    return np.reshape(found, (-1, 3))


def outline_lines(layout: SurfaceLayout, mask: np.ndarray) -> np.ndarray:
    """Return the border of a region as line segments for a three-dimensional line trace.

    Parameters
    ----------
    layout : SurfaceLayout
        Geometry of the atlas.
    mask : ndarray of bool, shape (n_vertices,)
        The region.

    Returns
    -------
    ndarray of float, shape (3, 3 * n_edges)
        Coordinates x, y and z in mm. After the two ends of each edge follows a NaN, which ends the
        line. Empty if no triangle lies inside the region.
    """
    inside = np.asarray(mask, dtype=bool)[layout.order]
    faces = layout.faces[inside[layout.faces].all(1)]
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    unique, counts = np.unique(edges, axis=0, return_counts=True)
    border = unique[counts == 1]
    centre = layout.points.mean(0)
    points = centre + (layout.points[border] - centre) * 1.004  # above the map
    gaps = np.full((len(border), 1, 3), np.nan)
    return np.concatenate([points, gaps], axis=1).reshape(-1, 3).T

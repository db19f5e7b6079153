"""Static brain maps: four views of both hemispheres on fsaverage5, with one colour bar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.viz.mesh import HEMISPHERES, curvature, load_mesh, on_mesh, symmetric_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bmfl_lab.data.atlas import Atlas

# rows: screen right, screen up, towards the viewer, in (right, anterior, superior) coordinates of a right hemisphere
_VIEWS = {
    "lateral": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "medial": ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    "ventral": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "posterior": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
}
VIEWS = tuple(_VIEWS)
_LINES = ("black", "#d55e00", "#0072b2", "#009e73", "#cc79a7")


def surface_panel(
    values: np.ndarray,
    atlas: Atlas,
    *,
    title: str,
    unit: str,
    signed: bool | None = None,
    outline: Iterable[str] = (),
    views: Sequence[str] = VIEWS,
) -> Figure:
    """Draw a map on the inflated cortex.

    Parameters
    ----------
    values : ndarray of float, shape (n_vertices,)
        One value a vertex of `atlas`; NaN = no data, shown as bare cortex.
    atlas : Atlas
        Where the vertices lie; those on "fsaverage" are shown at their place on fsaverage5.
    title, unit : str
        Heading, and what the colour bar measures (with its unit).
    signed : bool, optional
        Use a diverging map with a range symmetric about zero; by default if any value is negative.
    outline : iterable of str
        ROIs or groups whose borders are drawn.
    views : sequence of str
        Among "lateral", "medial", "ventral", "posterior".

    Returns
    -------
    matplotlib.figure.Figure
        Rows: left and right hemisphere; columns: views.

    Raises
    ------
    ConfigError
        If a view or ROI is unknown, or the atlas lies on no surface.
    DataError
        If the values do not fit the atlas.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    for view in views:
        if view not in _VIEWS:
            raise ConfigError(message(f"a view among {VIEWS}", repr(view), nearest(view, VIEWS)))
    low, high, diverging = symmetric_range(values, signed)
    norm = mpl.colors.Normalize(low, high)
    colour_map = mpl.colormaps["RdBu_r" if diverging else "viridis"]
    maps = on_mesh(values, atlas)
    outline = list(outline)
    borders = {name: on_mesh(atlas.select(name).astype(float), atlas) for name in outline}
    figure = Figure(figsize=(2.4 * len(views) + 0.9, 4.6))
    widths = [1.5 if view in ("lateral", "medial") else 0.8 for view in views]
    axes = figure.subplots(2, len(views), squeeze=False, gridspec_kw={"width_ratios": widths})
    for row, side in enumerate(HEMISPHERES):
        shade = _shade(side)
        for axis, view in zip(axes[row], views):
            lines = [np.nan_to_num(borders[name][side]) > 0.5 for name in outline]
            _draw(axis, side, view, maps[side], shade, norm, colour_map, lines)
            if row == 0:
                axis.set_title(view, fontsize=9)
        axes[row, 0].text(-0.04, 0.5, side, transform=axes[row, 0].transAxes, rotation=90, va="center", ha="right")
    figure.subplots_adjust(left=0.04, right=0.88, bottom=0.1, top=0.86, wspace=0.02, hspace=0.02)
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, colour_map), cax=figure.add_axes((0.905, 0.25, 0.014, 0.5)))
    bar.set_label(unit)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=11)
    if outline:
        handles = [mpl.lines.Line2D([], [], color=_LINES[i % len(_LINES)], lw=1.5) for i in range(len(outline))]
        figure.legend(handles, outline, loc="lower center", ncols=len(outline), frameon=False, fontsize=8)
    return figure


def _shade(side: str) -> np.ndarray:
    """Return the grey of each vertex without data: sulci darker than gyri."""
    return np.where(np.asarray(curvature(side)) > 0, 0.62, 0.8)


def _draw(axis, side, view, values, shade, norm, colour_map, lines) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    coordinates, faces = load_mesh(side, "inflated")
    mirror = np.array([-1.0, 1.0, 1.0]) if side == "left" and view in ("lateral", "medial") else np.ones(3)
    right, up, towards = (np.asarray(v, float) for v in _VIEWS[view])
    if mirror[0] < 0:
        right, towards = -right, towards * mirror
    flat = np.stack([coordinates @ right, coordinates @ up], 1)
    depth = coordinates @ towards
    corners = coordinates[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = (normal @ towards) / np.maximum(np.linalg.norm(normal, axis=1), 1e-9)
    order = np.flatnonzero(facing > 0)
    order = order[np.argsort(depth[faces[order]].mean(1))]
    shown = np.isfinite(values)[faces].sum(1) >= 2
    level = np.where(shown, _mean(values[faces]), norm.vmin)
    colour = np.where(shown[:, None], colour_map(norm(level)), 1.0)
    colour[~shown, :3] = shade[faces[~shown]].mean(1)[:, None]
    colour[:, :3] *= (0.8 + 0.2 * np.clip(facing, 0, 1))[:, None]
    axis.add_collection(
        PolyCollection(
            flat[faces[order]], facecolors=colour[order], edgecolors=colour[order], linewidths=0.2, rasterized=True
        )
    )
    for i, inside in enumerate(lines):
        edges = _border(faces[order], inside)
        axis.add_collection(LineCollection(flat[edges], colors=_LINES[i % len(_LINES)], linewidths=1.0))
    axis.set_xlim(flat[:, 0].min() - 2, flat[:, 0].max() + 2, auto=True)
    axis.set_ylim(flat[:, 1].min() - 2, flat[:, 1].max() + 2)
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_axis_off()


def _mean(corners: np.ndarray) -> np.ndarray:
    """Mean over the corners that have data."""
    known = np.isfinite(corners)
    return np.where(known, corners, 0).sum(1) / np.maximum(known.sum(1), 1)


def _border(faces: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the edges between faces that lie inside a region and faces that do not."""
    member = inside[faces].all(1)
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]][member].reshape(-1, 2), axis=1)
    unique, counts = np.unique(edges, axis=0, return_counts=True)
    return unique[counts == 1]

"""Static brain maps: views of both hemispheres, outlines and one colour bar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.viz.charts import PALETTE
from bmfl_lab.viz.mesh import (
    HEMISPHERES,
    curvature,
    load_mesh,
    on_mesh,
    surface_name,
    symmetric_range,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    from bmfl_lab.data.atlas import Atlas

VIEWS = ("lateral", "medial", "ventral", "posterior")
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
_LINES = ("black", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MUTED = ("#332288", "#882255", "#999933", "#44AA99", "#AA4499", "#117733", "#661100", "#6699CC")
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
}
_VIEWS = tuple(_DIRECTIONS)


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
    view : {"lateral", "medial", "ventral", "posterior", "dorsal"}
        Direction of view.
    surface : str, default "inflated"
        Full name of the surface that is drawn, see `bmfl_lab.viz.mesh.load_mesh`.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    if view not in _DIRECTIONS:
        raise ConfigError(message(f"a view among {_VIEWS}", repr(view), nearest(view, _VIEWS)))
    coordinates, faces = load_mesh(hemisphere, surface)
    right, up, towards = (np.asarray(v, np.float32) for v in _DIRECTIONS[view])
    if hemisphere == "left" and view in ("lateral", "medial"):
        right, towards = -right, towards * np.float32([-1, 1, 1])
    position = np.stack([coordinates @ right, coordinates @ up], 1)
    low, high = position.min(0) - _FRAME_MM, position.max(0) + _FRAME_MM
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
        ROIs or groups whose borders are drawn.
    views : sequence of str, default ("lateral", "medial", "ventral", "posterior")
        Directions of view, among these four and "dorsal".
    surface : str, default "inflated"
        Surface that is drawn, see `bmfl_lab.viz.mesh.load_mesh`.
    colour_map : str, optional
        Name of a matplotlib colour map; by default cividis, or RdBu_r for signed values.
    limits : (float, float), optional
        Ends of the colour bar; by default found by `bmfl_lab.viz.mesh.symmetric_range`.
    whole : bool, default False
        Values are whole numbers (for instance of blocks): each has its own colour, and colours are
        not mixed between vertices.
    zoom : bool, default False
        Show only the part of the cortex where the atlas has vertices.

    Returns
    -------
    matplotlib Figure
        One row per hemisphere and one column per view.

    Raises
    ------
    ConfigError
        If a view, surface or ROI is unknown.
    DataError
        If the values do not fit the atlas, or the atlas lies on no surface.
    """
    if whole:
        norm, colours = _steps(values, colour_map)
    else:
        norm, colours = _scale([values], signed, colour_map, limits)
    laid, borders = on_mesh(values, atlas), _borders(atlas, outline)
    surface = surface_name(surface, atlas)
    figure, axes = _grid(2, views, surface, atlas if zoom else None)
    for row, side in zip(axes, HEMISPHERES):
        for axis, view in zip(row, views):
            seen = view_of(side, view, surface)
            shown = seen.nearest(laid[side]) if whole else seen.interpolate(laid[side])
            _draw(axis, seen, colours(norm(shown)), shown)
            _outline(axis, seen, side, borders)
    _finish(figure, title, {name: colour for name, (colour, _) in borders.items()})
    _bar(figure, norm, colours, unit)
    return figure


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
        As in `surface_panel`.

    Raises
    ------
    ConfigError
        If a view, surface or ROI is unknown.
    DataError
        If there is no map, values do not fit the atlas, or the atlas lies on no surface.
    """
    if not maps:
        raise DataError(message("at least one map", "none", "give a mapping name -> values"))
    norm, colours = _scale(list(maps.values()), signed, colour_map, limits)
    borders = _borders(atlas, outline)
    columns = [("left", view) for view in views] + [("right", view) for view in reversed(views)]
    names, surface = [v for _, v in columns], surface_name(surface, atlas)
    figure, axes = _grid(len(maps), names, surface, atlas if zoom else None, sides=columns)
    for row, (name, values) in zip(axes, maps.items()):
        laid = on_mesh(values, atlas)
        for axis, (side, view) in zip(row, columns):
            seen = view_of(side, view, surface)
            shown = seen.interpolate(laid[side])
            _draw(axis, seen, colours(norm(shown)), shown)
            _outline(axis, seen, side, borders)
        row[0].texts[0].set_text(name)
    _finish(figure, title, {name: colour for name, (colour, _) in borders.items()})
    _bar(figure, norm, colours, unit)
    return figure


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
        As in `surface_panel`.

    Raises
    ------
    ConfigError
        If a view or surface is unknown.
    DataError
        If a label is not in `order`, or labels do not fit the atlas.
    """
    labels = np.asarray(labels, dtype=object)
    names = [n for n in (dict.fromkeys(labels) if order is None else order) if n]
    unknown = sorted(set(labels) - set(names) - {""})
    if unknown:
        raise DataError(message(f"labels among {names}", repr(unknown[0]), "add it to `order`"))
    codes = np.asarray([names.index(label) if label else np.nan for label in labels], dtype=float)
    colour = _categorical(len(names))
    laid = {side: np.nan_to_num(v, nan=-1).astype(int) for side, v in on_mesh(codes, atlas).items()}
    surface = surface_name(surface, atlas)
    figure, axes = _grid(2, views, surface, atlas if zoom else None)
    best: dict[tuple[str, int], tuple[int, Axes, tuple[float, float]]] = {}
    for row, side in zip(axes, HEMISPHERES):
        for axis, view in zip(row, views):
            seen = view_of(side, view, surface)
            code = seen.nearest(laid[side])
            _draw(axis, seen, colour[code], np.where(code >= 0, code, np.nan))
            if annotate:
                _keep_best(best, axis, seen, side, code)
    _write_names([(axis, names[number], at) for (_, number), (_, axis, at) in best.items()])
    _finish(figure, title, dict(zip(names, colour)), patches=True)
    return figure


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
    """
    shown = [r for r in (atlas.present if rois is None else rois) if np.any(atlas.rois[r])]
    labels = np.full(atlas.n_vertices, "", dtype=object)
    for roi in sorted(shown, key=lambda r: -int(np.sum(atlas.rois[r]))):
        labels[np.asarray(atlas.rois[roi], bool)] = roi
    kept = [roi for roi in shown if np.any(labels == roi)]
    return category_map(labels, atlas, title=title, order=kept, **{"annotate": True, **options})


def _categorical(n: int) -> np.ndarray:
    """Return n colours, float (n + 1, 4), the last row for "none".

    They are those of Okabe & Ito, then Paul Tol's muted ones, then matplotlib's tab20.
    """
    import matplotlib as mpl

    base = [c for c in PALETTE if c != "#000000"]
    more = [mpl.colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
    found = [mpl.colors.to_rgba(c) for c in (*base, *_MUTED)] + more
    return np.asarray([found[i % len(found)] for i in range(n)] + [(1.0, 1.0, 1.0, 1.0)])


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
    if broken.size:
        raise DataError(message("whole numbers", f"{broken[0]:g}", "leave out whole=True"))
    low, high = (int(found.min()), int(found.max())) if found.size else (0, 1)
    n, colours = high - low + 1, mpl.colormaps[colour_map or SEQUENTIAL]
    return mpl.colors.BoundaryNorm(np.arange(low, high + 2) - 0.5, n), colours.resampled(n)


def _borders(atlas: Atlas, names: Iterable[str]) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """Return the colour of each region, and its membership per hemisphere, float."""
    found = {}
    for i, name in enumerate(names):
        laid = on_mesh(atlas.select(name).astype(float), atlas)
        inside = {side: np.nan_to_num(values) for side, values in laid.items()}
        found[name] = (_LINES[i % len(_LINES)], inside)
    return found


def _grid(
    n_rows: int,
    views: Sequence[str],
    surface: str,
    atlas: Atlas | None,
    sides: Sequence[tuple[str, str]] = (),
) -> tuple[Figure, np.ndarray]:
    """Return a figure with one axis per view, as wide as what it shows.

    Rows are hemispheres, unless `sides` names hemisphere and view of each column.
    """
    from matplotlib.figure import Figure

    two_rows, columns = not sides, sides or [("right", view) for view in views]
    boxes = {(s, v): _box(s, v, surface, atlas) for s in HEMISPHERES for _, v in columns}
    widths, heights = ([boxes[c][i + 1] - boxes[c][i] for c in columns] for i in (0, 2))
    width = _HEIGHT / max(heights) * sum(widths) + 1.5
    figure = Figure(figsize=(width, 1.95 * n_rows + 0.95))
    axes = figure.subplots(n_rows, len(columns), squeeze=False, width_ratios=widths)
    for row, line in enumerate(axes):
        for axis, (side, view) in zip(line, columns):
            left, right, bottom, top = boxes[(HEMISPHERES[row] if two_rows else side, view)]
            axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(view if two_rows else f"{side}\n{view}", fontsize=9, loc="center")
        line[0].text(
            -0.06,
            0.5,
            HEMISPHERES[row] if two_rows else "",
            transform=line[0].transAxes,
            rotation=90,
            va="center",
            ha="center",
            fontsize=9,
        )
    return figure, axes


def _box(
    side: str, view: str, surface: str, atlas: Atlas | None
) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of the part of a view to show, in mm.

    It is the whole view, or the part around the atlas's vertices.
    """
    seen = view_of(side, view, surface)
    if atlas is None:
        return seen.extent
    there = np.isfinite(on_mesh(np.ones(atlas.n_vertices), atlas)[side])
    places = seen.position[there] if there.any() else seen.position
    middle = (places.min(0) + places.max(0)) / 2
    half = np.maximum((places.max(0) - places.min(0)) / 2 + _MARGIN_MM, _SMALLEST_MM / 2)
    (left, right), (bottom, top) = (
        np.clip((m - h, m + h), *seen.extent[2 * i : 2 * i + 2])
        for i, (m, h) in enumerate(zip(middle, half))
    )
    return left, right, bottom, top


def _draw(axis: Axes, seen: View, colours: np.ndarray, values: np.ndarray) -> None:
    """Paint colours where there is a value, else grey cortex with darker sulci."""
    grey = np.where(seen.sulcus, 0.60, 0.80)[..., None]
    picture = np.where(np.isfinite(values)[..., None], colours[..., :3], grey)
    picture = picture * (0.72 + 0.28 * seen.light)[..., None]
    picture = np.concatenate([picture, seen.inside[..., None]], -1)
    limits = (*axis.get_xlim(), *axis.get_ylim())
    axis.imshow(
        picture, extent=seen.extent, origin="lower", interpolation="antialiased", aspect="equal"
    )
    axis.set(xlim=limits[:2], ylim=limits[2:])


def _outline(
    axis: Axes, seen: View, side: str, borders: Mapping[str, tuple[str, dict[str, np.ndarray]]]
) -> None:
    for colour, inside in borders.values():
        level = np.where(seen.inside, (seen.weights * inside[side][seen.corners]).sum(-1), np.nan)
        if np.nanmax(level) > 0.5:
            axis.contour(
                level,
                levels=[0.5],
                colors=[colour],
                linewidths=1.1,
                extent=seen.extent,
                origin="lower",
            )


def _keep_best(
    best: dict[tuple[str, int], tuple[int, Axes, tuple[float, float]]],
    axis: Axes,
    seen: View,
    side: str,
    code: np.ndarray,
) -> None:
    """Keep, per hemisphere and category, the view that shows most of it and the middle of that."""
    left, right, bottom, top = seen.extent
    height, width = code.shape
    for number in np.unique(code[code >= 0]).tolist():
        rows, columns = np.nonzero(code == number)
        if len(rows) > best.get((side, number), (0,))[0]:
            middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            x = left + (columns[middle] + 0.5) / width * (right - left)
            y = bottom + (rows[middle] + 0.5) / height * (top - bottom)
            best[(side, number)] = (len(rows), axis, (x, y))


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


def _write_names(labels: list[tuple[Axes, str, tuple[float, float]]]) -> None:
    from matplotlib import patheffects

    stroke = [patheffects.withStroke(linewidth=2, foreground="white")]
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
    figure: Figure, title: str, legend: Mapping[str, str | np.ndarray], patches: bool = False
) -> None:
    """Set margins, title and a legend of lines or patches, a mapping of names to colours."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    columns = max(1, int((width - 1) / (0.45 + 0.08 * max((len(n) for n in legend), default=1))))
    rows = -(-len(legend) // columns)
    height += 0.17 * max(0, rows - 1)
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=0.3 / width,
        right=1 - (0.1 if patches else 1.05) / width,
        bottom=(0.12 + 0.2 * rows) / height,
        top=1 - 0.7 / height,
        wspace=0.03,
        hspace=0.03,
    )
    figure.suptitle(
        title,
        fontsize=11,
        fontweight="bold",
        x=0.3 / width,
        ha="left",
        y=1 - 0.08 / height,
        va="top",
    )
    if legend:
        figure.legend(
            [
                Patch(color=c) if patches else Line2D([], [], color=c, lw=1.8)
                for c in legend.values()
            ],
            list(legend),
            loc="lower center",
            ncols=min(columns, len(legend)),
            frameon=False,
            fontsize=8,
            handlelength=1.2,
            columnspacing=1.2,
        )

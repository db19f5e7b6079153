"""Draw control vertices for a region: at random, or matched by noise ceiling."""

from __future__ import annotations

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import DataError, require


def control_vertices(
    atlas: Atlas,
    mask: np.ndarray,
    generator: np.random.Generator,
    *,
    ceiling: np.ndarray | None = None,
    nearest: int = 3,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many vertices outside a region as there are inside, hemisphere by hemisphere.

    In a hemisphere in which fewer vertices lie outside than inside, the control is all of those
    outside, and as many vertices of the region are drawn to be compared with them. What is compared
    is therefore always of one size and has no vertex in common.

    Parameters
    ----------
    atlas : Atlas
        Hemisphere of each vertex.
    mask : ndarray of bool, shape (n_vertices,)
        The region.
    generator : numpy.random.Generator
        Source of the draw.
    ceiling : ndarray of float, shape (n_vertices,), optional
        Noise ceiling or encoding accuracy; NaN counts as the smallest. If given, each vertex is
        matched by another one with nearly the same ceiling; otherwise all are equally likely.
    nearest : int, default 3
        Number of vertices with the nearest ceilings, of the same hemisphere and still free, among
        which one is drawn. The default is our own choice.

    Returns
    -------
    region : ndarray of bool, shape (n_vertices,)
        Mask of the region, or of the part of it that was drawn.
    control : ndarray of bool, shape (n_vertices,)
        Mask of the control: vertices outside the region, as many as `region` has.

    Raises
    ------
    DataError
        If the mask has another shape or is empty, if no vertex is left to compare with, or if the
        ceiling has another shape.
    """
    mask, side = np.asarray(mask, dtype=bool), np.asarray(atlas.hemisphere)
    require(
        mask.shape == (atlas.n_vertices,),
        DataError,
        f"a region mask of shape ({atlas.n_vertices},)",
        f"shape {mask.shape}",
        "give one value per vertex of this atlas",
    )
    require(
        mask.any() and not mask.all(),
        DataError,
        "a region with vertices inside and outside",
        f"{int(mask.sum())} of {mask.size} vertices inside",
        "choose a region that is neither empty nor the whole cortex",
    )
    if ceiling is not None:
        ceiling = _finite_ceiling(ceiling, mask)
    region, control = np.zeros_like(mask), np.zeros_like(mask)
    for hemisphere in (side == 0, side == 1):
        inside, outside = np.flatnonzero(mask & hemisphere), np.flatnonzero(~mask & hemisphere)
        if len(inside) <= len(outside):
            outside = _draw(inside, outside, generator, ceiling, nearest)
        else:
            inside = _draw(outside, inside, generator, ceiling, nearest)
        region[inside], control[outside] = True, True
    require(
        control.any(),
        DataError,
        "vertices outside the region in a hemisphere in which it lies",
        "none",
        "choose a smaller region",
    )
    return region, control


def _draw(
    few: np.ndarray,
    many: np.ndarray,
    generator: np.random.Generator,
    ceiling: np.ndarray | None,
    nearest: int,
) -> np.ndarray:
    """Return as many of `many` as there are `few`, at random or with nearly the same ceilings."""
    if ceiling is None:
        return generator.choice(many, len(few), replace=False)
    free, found = list(many), []
    for vertex in generator.permutation(few):
        order = np.argsort(np.abs(ceiling[free] - ceiling[vertex]), kind="stable")[:nearest]
        found.append(free.pop(int(generator.choice(order))))
    return np.array(found, dtype=int)


def _finite_ceiling(ceiling: np.ndarray, mask: np.ndarray) -> np.ndarray:
    ceiling = np.asarray(ceiling, dtype=np.float64)
    require(
        ceiling.shape == mask.shape,
        DataError,
        f"a ceiling of shape {mask.shape}, one value per vertex",
        f"{ceiling.shape}",
        "give the noise ceiling of the subject of this atlas",
    )
    known = np.isfinite(ceiling)
    return np.where(known, ceiling, ceiling[known].min() if known.any() else 0.0)

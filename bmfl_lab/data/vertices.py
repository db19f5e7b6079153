"""Draw control vertices for a region: at random, or matched by noise ceiling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import DataError, require


def random_vertices(atlas: Atlas, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw as many vertices as a region has in each hemisphere, outside the region.

    Parameters
    ----------
    atlas : Atlas
        Hemisphere of each vertex.
    mask : ndarray of bool, shape (n_vertices,)
        The region.
    generator : numpy.random.Generator
        Source of the draw.

    Returns
    -------
    ndarray of bool, shape (n_vertices,)
        A hemisphere in which fewer vertices lie outside the region than inside gives vertices of
        the region too.

    Raises
    ------
    DataError
        If the mask has another shape, is empty, or holds every vertex: then nothing is left to
        compare with.
    """
    mask, side = _checked(atlas, mask), np.asarray(atlas.hemisphere)
    found = np.zeros_like(mask)
    for inside, pool in _pools(mask, side):
        found[generator.choice(pool, len(inside), replace=False)] = True
    return found


def ceiling_matched_vertices(
    atlas: Atlas,
    mask: np.ndarray,
    ceiling: np.ndarray,
    generator: np.random.Generator,
    *,
    nearest: int = 3,
) -> np.ndarray:
    """Draw for each vertex of a region another one outside with nearly the same noise ceiling.

    Parameters
    ----------
    atlas, mask, generator
        See `random_vertices`.
    ceiling : ndarray of float, shape (n_vertices,)
        Noise ceiling or encoding accuracy; NaN counts as the smallest.
    nearest : int, default 3
        Number of vertices with the nearest ceilings, of the same hemisphere and still free, among
        which one is drawn. The default is our own choice.

    Returns
    -------
    ndarray of bool, shape (n_vertices,)
        Mask with as many vertices as the region has. If too few lie outside the region, vertices
        of the region are drawn, too.

    Raises
    ------
    DataError
        See `random_vertices`; also if the ceiling has another shape.
    """
    mask, side = _checked(atlas, mask), np.asarray(atlas.hemisphere)
    ceiling = np.asarray(ceiling, dtype=np.float64)
    require(
        ceiling.shape == mask.shape,
        DataError,
        f"a ceiling of shape {mask.shape}, one value per vertex",
        f"{ceiling.shape}",
        "use the same subject",
    )
    ceiling = np.where(
        np.isfinite(ceiling), ceiling, np.nanmin(ceiling) if np.isfinite(ceiling).any() else 0.0
    )
    found = np.zeros_like(mask)
    for inside, pool in _pools(mask, side):
        free = list(pool)
        for vertex in generator.permutation(inside):
            order = np.argsort(np.abs(ceiling[free] - ceiling[vertex]), kind="stable")[:nearest]
            found[free.pop(int(generator.choice(order)))] = True
    return found


def _pools(mask: np.ndarray, side: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per hemisphere the vertices of a region, and those from which controls are drawn."""
    for h in (0, 1):
        inside, outside = np.flatnonzero(mask & (side == h)), np.flatnonzero(~mask & (side == h))
        yield inside, outside if len(outside) >= len(inside) else np.flatnonzero(side == h)


def _checked(atlas: Atlas, mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask, dtype=bool)
    require(
        mask.shape == (atlas.n_vertices,) and mask.any() and not mask.all(),
        DataError,
        f"a region mask of shape ({atlas.n_vertices},) with vertices inside and outside",
        f"shape {mask.shape}, {int(mask.sum())} inside",
        "choose a region that is neither empty nor the whole cortex",
    )
    return mask

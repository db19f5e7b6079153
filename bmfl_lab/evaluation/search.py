"""Visual search guided by a map: how many items are visited before the target, and asymmetry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bmfl_lab.data.stimuli import StimulusSet, from_arrays
from bmfl_lab.errors import DataError, require
from bmfl_lab.metrics.statistics import Interval, crossed_mean
from bmfl_lab.runtime import rng


def search_displays(
    target: np.ndarray, distractor: np.ndarray, *, n: int = 40, side: int = 4, seed: int = 0
) -> tuple[StimulusSet, np.ndarray]:
    """Return displays with one target among distractors on a grid.

    Parameters
    ----------
    target, distractor : ndarray of uint8, shape (S, S, 3)
        Pictures of the two items.
    n : int, default 40
        Number of displays.
    side : int, default 4
        Items per row and column.
    seed : int, default 0
        Seed of the places of the target.

    Returns
    -------
    displays : StimulusSet
        n unlabelled images of side * S pixels.
    places : ndarray of int, shape (n,)
        Place of the target, counted row by row.

    Raises
    ------
    DataError
        If the two items have different shapes, or there are fewer than two places.
    """
    require(
        target.shape == distractor.shape and target.ndim == 3 and side >= 2,
        DataError,
        "two items of one shape (S, S, 3), and two or more per row",
        f"{target.shape} and {distractor.shape}, {side} per row",
        "draw both items with the same number of pixels per side, and side=2 or more per row",
    )
    places = rng(seed, "search displays").integers(0, side**2, n)
    size, images = len(target), np.tile(distractor, (n, side, side, 1))
    for image, place in zip(images, places):
        row, column = divmod(int(place), side)
        image[row * size : (row + 1) * size, column * size : (column + 1) * size] = target
    ids = [f"display-{seed}-{i:03d}" for i in range(n)]
    return from_arrays("displays", images, ids, np.full(n, -1)), places


def visits_to_target(maps: np.ndarray, places: np.ndarray, side: int = 4) -> np.ndarray:
    """Return how many items are visited until the target, in the order of a map.

    Parameters
    ----------
    maps : ndarray, shape (n, h, w)
        One map per display; h and w are multiples of `side`.
    places : ndarray of int, shape (n,)
        Place of the target.
    side : int, default 4
        Items per row and column.

    Returns
    -------
    ndarray of float, shape (n,)
        From 1 to side ** 2, ties averaged; (side ** 2 + 1) / 2 by chance. No item is visited twice.

    Raises
    ------
    DataError
        If the maps cannot be divided into items.
    """
    maps = np.asarray(maps, float)
    require(
        maps.ndim == 3 and maps.shape[1] % side == 0 and maps.shape[2] % side == 0,
        DataError,
        f"maps of shape (n, h, w) with h and w divisible by {side}",
        maps.shape,
        "draw items whose side is a multiple of the backbone's patches, and pass the `side` of the "
        "displays",
    )
    n, h, w = maps.shape
    items = maps.reshape(n, side, h // side, side, w // side).mean((2, 4)).reshape(n, -1)
    own = items[np.arange(n), np.asarray(places)][:, None]
    tolerance = 1e-9 * np.maximum(np.abs(items).max(1, keepdims=True), 1e-12)
    before, tied = (items > own + tolerance).sum(1), (np.abs(items - own) <= tolerance).sum(1)
    return before + (tied + 1) / 2


def search_asymmetry(
    maps_of: Callable[[StimulusSet], np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    *,
    n: int = 40,
    side: int = 4,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Compare the search for one item among others with the reverse.

    Parameters
    ----------
    maps_of : callable
        ``maps_of(displays) -> (n, h, w)``, for example the attention of a query to the patches.
    first, second : ndarray of uint8, shape (S, S, 3)
        The two items.
    n, side, seed
        See `search_displays`.

    Returns
    -------
    asymmetry : Interval
        Visits to `second` among `first`, minus visits to `first` among `second`, mean over displays
        with an interval. Above zero: `first` is found more easily. People find a figure with an
        additional feature more easily than one without it.
    p : float
        Two-sided p value.

    References
    ----------
    Treisman & Souther (1985), Search asymmetry: a diagnostic for preattentive processing of
    separable features, J. Exp. Psychol. Gen. 114. The score by visits is our choice.
    """
    visits = []
    for target, distractor in ((first, second), (second, first)):
        displays, places = search_displays(target, distractor, n=n, side=side, seed=seed)
        visits.append(visits_to_target(maps_of(displays), places, side))
    return crossed_mean((visits[1] - visits[0])[None])

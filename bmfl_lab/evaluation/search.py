"""Visual search guided by an attention map: which item of a display is looked at first.

Shapes: n displays, k items per display.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.stats import rankdata

from bmfl_lab.data import StimulusSet
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.metrics.statistics import Interval, bootstrap_mean
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng

_GREY, _SCALE = 128, 4
"""Background of the displays, and how much larger items are drawn before they are reduced."""


@dataclass(frozen=True)
class Displays:
    """Hold search displays, each with one target among distractors.

    Parameters
    ----------
    stimuli : StimulusSet
        The n images; their label is 0.
    boxes : ndarray of int, shape (n, k, 4)
        Left, top, right and bottom of each item in pixels; the target comes first.
    """

    stimuli: StimulusSet
    boxes: np.ndarray


def search_displays(
    target: np.ndarray,
    distractor: np.ndarray,
    *,
    name: str = "search",
    n: int = 20,
    n_items: int = 8,
    image_size: int = 224,
    seed: int = 0,
) -> Displays:
    """Make displays of one target among distractors at random places of a grid.

    Parameters
    ----------
    target, distractor : ndarray of uint8, shape (size, size, 3)
        Pictures of the two kinds of items.
    name : str, default "search"
        Name of the set.
    n, n_items : int, default 20 and 8
        Numbers of displays and of items per display.
    image_size : int, default 224
        Side of a display in pixels.
    seed : int, default 0
        Seed of the places, which are the same for every pair of pictures.

    Returns
    -------
    Displays

    Raises
    ------
    ConfigError
        If there are fewer than two items, or they do not fit into the display.
    """
    size = len(target)
    require(
        target.shape == distractor.shape == (size, size, 3),
        ConfigError,
        "two square pictures (size, size, 3) of one size",
        f"{target.shape} and {distractor.shape}",
        "resize one of them",
    )
    side = image_size // (size + 2)
    require(
        2 <= n_items <= side * side,
        ConfigError,
        f"2 to {side * side} items of {size} pixels in a display of {image_size}",
        n_items,
        "take fewer or smaller items",
    )
    cell, draw = image_size // side, rng(seed, "search displays")
    images = np.full((n, image_size, image_size, 3), _GREY, np.uint8)
    boxes = np.zeros((n, n_items, 4), np.int64)
    for image, places in zip(images, boxes):
        chosen = draw.permutation(side * side)[:n_items]
        for item, place in enumerate(chosen):
            corner = np.array(divmod(place, side)) * cell + draw.integers(0, cell - size + 1, 2)
            top, left = corner
            image[top : top + size, left : left + size] = distractor if item else target
            places[item] = left, top, left + size, top + size
    labels = np.zeros(n, np.int64)
    ids = [f"{name}-{i}" for i in range(n)]
    return Displays(from_arrays(name, images, ids, labels, ("display",)), boxes)


def ring_and_barred_ring(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of a ring and of a ring with a bar, uint8 (size, size, 3).

    People find a barred ring among rings at once and a ring among barred rings slowly.

    References
    ----------
    Treisman & Souther (1985), Search asymmetry, J Exp Psychol General 114:285-310.
    """
    pictures = []
    for barred in (False, True):
        large, width = size * _SCALE, max(1, size // 10) * _SCALE
        picture = Image.new("RGB", (large, large), (_GREY,) * 3)
        draw, edge = ImageDraw.Draw(picture), large // 8
        draw.ellipse([edge, edge, large - edge, large - edge], outline="black", width=width)
        if barred:
            draw.line([large // 2, large // 2, large // 2, large], fill="black", width=width)
        pictures.append(np.asarray(picture.resize((size, size), Image.Resampling.BOX)))
    return pictures[0], pictures[1]


def target_ranks(maps: np.ndarray, displays: Displays) -> np.ndarray:
    """Return which fixation finds the target if items are visited in the order of a map.

    Parameters
    ----------
    maps : ndarray, shape (n, h, w)
        One map per display, used by magnitude.
    displays : Displays
        Displays of which they are maps.

    Returns
    -------
    ndarray of float64, shape (n,)
        1 if the target is the item with the largest mean value, k if it is the one with the
        smallest; (k + 1) / 2 is chance. Items of equal value share their mean rank.

    Raises
    ------
    DataError
        If there is not one finite map per display.

    Notes
    -----
    No item is visited twice (inhibition of return). A patch counts for an item by the area that
    they share.
    """
    maps = np.abs(np.asarray(maps, np.float64))
    boxes, n = displays.boxes, len(displays.boxes)
    require(
        maps.ndim == 3 and len(maps) == n and np.isfinite(maps).all(),
        DataError,
        f"finite maps of shape ({n}, h, w)",
        f"shape {maps.shape}",
        "compute the maps for these displays, averaged over heads",
    )
    side = displays.stimuli.image(0).shape[0]
    rows, columns = (_shares(boxes[..., [k, k + 2]], maps.shape[2 - k], side) for k in (1, 0))
    values = np.einsum("nih,nhw,niw->ni", rows, maps, columns)
    return np.apply_along_axis(rankdata, 1, -values.round(12))[:, 0]


def _shares(ends: np.ndarray, n_cells: int, side: int) -> np.ndarray:
    """Return the share of each interval (n, k, 2) that lies in each cell of an axis, (n, k, c)."""
    edges = np.linspace(0, side, n_cells + 1)
    low, high = ends[..., :1], ends[..., 1:]
    inside = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
    return np.maximum(inside, 0) / (high - low)


def search_asymmetry(
    present: np.ndarray, absent: np.ndarray, *, n_boot: int = 1000, seed: int = 0
) -> Interval:
    """Compare the search for an item with a feature and for one without it.

    Parameters
    ----------
    present, absent : ndarray, shape (n,)
        `target_ranks` of the barred ring among rings, and of the ring among barred rings, at the
        same places.
    n_boot : int, default 1000
        Bootstrap resamples of the displays.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    Interval
        Mean of ``absent - present`` in fixations: positive where, as in people, the presence of a
        feature is found sooner than its absence; zero without an asymmetry.

    Raises
    ------
    DataError
        If the numbers of displays differ.

    References
    ----------
    Gupta, Zhang, Wu, Wolfe & Kreiman (2021), Visual search asymmetry, NeurIPS, arXiv:2106.02953,
    compare networks with people in such displays.
    """
    present, absent = np.asarray(present, np.float64), np.asarray(absent, np.float64)
    require(
        present.ndim == 1 and present.shape == absent.shape and len(present) > 1,
        DataError,
        "as many displays with the feature as without it, and at least 2",
        f"shapes {present.shape} and {absent.shape}",
        "make both with search_displays and the same n and seed",
    )
    return bootstrap_mean(absent - present, n_boot=n_boot, seed=seed)


def search_rows(
    ranks: dict[str, np.ndarray], asymmetry: Interval, n_items: int, **fields
) -> list[MetricRow]:
    """Return rows of the mean rank per kind of display (``search_rank``) and the asymmetry.

    Parameters
    ----------
    ranks : dict of str to ndarray, shape (n,)
        `target_ranks` by name of the displays.
    asymmetry : Interval
        Result of `search_asymmetry`.
    n_items : int
        Items per display, for the chance level in the notes.
    **fields
        Other fields of `MetricRow`.
    """
    said = "; ".join(filter(None, (f"chance {(n_items + 1) / 2:g}", fields.pop("notes", ""))))
    found = [("search_rank", name, bootstrap_mean(r), said) for name, r in ranks.items()]
    found.append(("search_asymmetry", "search", asymmetry, "chance 0, people above 0"))
    return [
        MetricRow(
            name,
            x.value,
            unit="fixations",
            split=split,
            n=x.n,
            ci_low=x.low,
            ci_high=x.high,
            interval=x.method,
            notes=notes,
            **{"selection": "none", **fields},
        )
        for name, split, x, notes in found
    ]

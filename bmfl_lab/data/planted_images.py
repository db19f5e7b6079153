"""Images of the planted study: a field of oriented patterns, one place of which tells the class.

Each image is a grid of 4 x 4 cells of 14 pixels, the patch size of the backbones. Each cell holds a
grating of random orientation; only the two cells of `PLANTED_CELLS`, left and right of the vertical
midline, share the orientation that is the image's class. Everything else is a nuisance, drawn
independently of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

SIDE = 56
CELL = 14
GRID = SIDE // CELL
DEGREES = 8.0
"""Degrees of visual angle that the image spans, so that one cell spans two degrees."""
PIXELS_PER_DEGREE = SIDE / DEGREES
WAVELENGTH = 7.0
CLASS_NAMES = ("horizontal", "rising", "vertical", "falling")
PLANTED_CELLS = ((1, 1), (1, 2))
"""(row, column) of the cells whose orientation is the class."""
DECOY_CELLS = ((2, 1), (2, 2))
"""Mirror image of the planted cells below the horizontal midline; holds distractors only."""
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_FILTER_REACH = 4


@dataclass(frozen=True)
class Nuisances:
    """Ranges from which everything but the class is drawn, in grey levels of 0 to 255 unless noted.

    Parameters
    ----------
    brightness : tuple of float
        Mean level of the image.
    chroma : float
        Standard deviation of the image's and of each cell's colour offset.
    contrast : tuple of float
        Amplitude of each cell's grating.
    tint : float
        Standard deviation of the grating's gain per colour channel (no unit).
    phase : float
        Largest phase offset of a grating, in radians.
    noise : float
        Standard deviation of the pixel noise.
    """

    brightness: tuple[float, float]
    chroma: float
    contrast: tuple[float, float]
    tint: float
    phase: float
    noise: float


STATISTICS: Mapping[str, Nuisances] = {
    "standard": Nuisances((110.0, 150.0), 14.0, (30.0, 70.0), 0.1, 0.9, 12.0),
    "recoloured": Nuisances((85.0, 170.0), 40.0, (22.0, 50.0), 0.35, 0.9, 16.0),
}
"""Nuisances of the usual sets and of the natural out-of-distribution set."""


def region_mask(cells: tuple[tuple[int, int], ...] = PLANTED_CELLS) -> np.ndarray:
    """Return which pixels the cells cover, bool (SIDE, SIDE)."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for row, column in cells:
        mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = True
    return mask


def _gabor(side: int, sigma: float, orientation: int, phase: float) -> np.ndarray:
    centred = np.arange(side, dtype=np.float32) - (side - 1) / 2
    x, y = np.meshgrid(centred, -centred)
    angle = np.pi * orientation / len(CLASS_NAMES)
    across = -x * np.sin(angle) + y * np.cos(angle)
    window = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    wave = window * np.cos(2 * np.pi * across / WAVELENGTH + phase)
    return (wave - window * wave.sum() / window.sum()).astype(np.float32)


@cache
def _gratings() -> np.ndarray:
    pairs = [
        [_gabor(CELL, 3.5, k, phase) for phase in (0.0, np.pi / 2)] for k in range(len(CLASS_NAMES))
    ]
    return np.asarray(pairs, dtype=np.float32)  # (4 orientations, 2 phases, CELL, CELL)


def draw(
    generator: np.random.Generator, labels: np.ndarray, statistics: str = "standard"
) -> np.ndarray:
    """Draw images of the given classes.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of the nuisances.
    labels : ndarray of int, shape (n,)
        Orientation in the planted cells, index into `CLASS_NAMES`.
    statistics : str
        Key of `STATISTICS`.

    Returns
    -------
    ndarray of uint8, shape (n, SIDE, SIDE, 3)
    """
    nuisance, n = STATISTICS[statistics], len(labels)
    orientation = generator.integers(0, len(CLASS_NAMES), (n, GRID, GRID))
    for row, column in PLANTED_CELLS:
        orientation[:, row, column] = labels
    contrast = generator.uniform(*nuisance.contrast, (n, GRID, GRID)).astype(np.float32)
    phase = generator.uniform(-nuisance.phase, nuisance.phase, (n, GRID, GRID)).astype(np.float32)
    even, odd = _gratings()[orientation, 0], _gratings()[orientation, 1]
    cells = contrast[..., None, None] * (
        np.cos(phase)[..., None, None] * even + np.sin(phase)[..., None, None] * odd
    )
    gain = (1 + nuisance.tint * generator.standard_normal((n, GRID, GRID, 1, 1, 3))).astype(
        np.float32
    )
    base = generator.uniform(*nuisance.brightness, (n, 1, 1, 1, 1, 1))
    colour = nuisance.chroma * (
        generator.standard_normal((n, 1, 1, 1, 1, 3))
        + generator.standard_normal((n, GRID, GRID, 1, 1, 3))
    )
    field = (base + colour).astype(np.float32) + gain * cells[..., None]
    pixels = field.transpose(0, 1, 3, 2, 4, 5).reshape(n, SIDE, SIDE, 3)
    pixels += nuisance.noise * generator.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def orientation_energy(images: np.ndarray) -> np.ndarray:
    """Return the local contrast energy in each orientation.

    The squared responses of a quadrature pair of Gabor filters to the luminance, summed: the energy
    model of complex cells.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, SIDE, SIDE, 3)
        The images.

    Returns
    -------
    ndarray of float32, shape (n, n_orientations, SIDE, SIDE)

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A
    2:284-299.
    """
    from scipy import fft

    grey = (images.astype(np.float32) @ LUMINANCE) / 255
    side = 2 * _FILTER_REACH + 1
    # Repeating the border keeps the frame from being an edge, whose energy would change with the
    # mean level.
    reach = ((0, 0), (_FILTER_REACH, _FILTER_REACH), (_FILTER_REACH, _FILTER_REACH))
    grey = np.pad(grey, reach, mode="edge")
    padded = SIDE + 4 * _FILTER_REACH
    spectrum = fft.rfft2(grey, (padded, padded))
    energy = np.zeros((len(images), len(CLASS_NAMES), SIDE, SIDE), dtype=np.float32)
    inside = slice(2 * _FILTER_REACH, 2 * _FILTER_REACH + SIDE)
    for k in range(len(CLASS_NAMES)):
        for phase in (0.0, np.pi / 2):
            kernel = fft.rfft2(_gabor(side, 2.2, k, phase), (padded, padded))
            found = fft.irfft2(spectrum * kernel, (padded, padded))[:, inside, inside]
            energy[:, k] += found.astype(np.float32) ** 2
    return energy


def clear_of_planted(x: float, y: float, radius: float) -> bool:
    """Tell whether a disc (degrees, from the image's centre, y up) sees no pixel of the planted cells."""
    rows, columns = np.nonzero(region_mask())
    px = (columns + 0.5 - SIDE / 2) / PIXELS_PER_DEGREE
    py = (SIDE / 2 - rows - 0.5) / PIXELS_PER_DEGREE
    # The filters reach 4 pixels to each side, so 4 * sqrt(2) along a diagonal.
    margin = (_FILTER_REACH * np.sqrt(2) + 1) / PIXELS_PER_DEGREE
    return bool(np.min(np.hypot(px - x, py - y)) > radius + margin)

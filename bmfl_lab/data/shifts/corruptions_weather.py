"""The weather corruptions of ImageNet-C; frost is drawn here, without outside photographs.

References
----------
Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations"; levels as published with the benchmark, for 224 px (ImageNet-C) and 32 px
(CIFAR-10-C) images.
"""

from __future__ import annotations

import numpy as np

from bmfl_lab.data.shifts.corruptions_blur import magnify, motion
from bmfl_lab.data.shifts.table import SHIFTS, grey, reference, smooth, to_uint8, unit

# mean, sd, magnification, threshold of the flakes; radius, sd of their motion; share of the
# unwhitened image
SNOW = {
    False: (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    True: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
}
# share of the image, share of the frost
FROST = {
    False: ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    True: ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
}
# density, decay of the plasma's amplitude an octave
FOG = {
    False: ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    True: ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
}


def plasma(size: int, decay: float, random: np.random.Generator) -> np.ndarray:
    """Draw a fractal height map by the diamond-square algorithm on a torus.

    Parameters
    ----------
    size : int
        Side, a power of two.
    decay : float
        The amplitude falls by ``decay`` squared from one octave to the next.
    random : Generator
        Draws the displacements.

    Returns
    -------
    ndarray, shape (size, size)
        Heights from 0 to 1.
    """
    height = np.zeros((size, size))
    step, amplitude = size, 1.0
    while step >= 2:
        half = step // 2
        corner = height[::step, ::step]
        shape = corner.shape
        pairs = corner + np.roll(corner, -1, axis=0)
        centre = (pairs + np.roll(pairs, -1, axis=1)) / 4 + amplitude * random.uniform(-1, 1, shape)
        height[half::step, half::step] = centre
        across = corner + np.roll(corner, -1, axis=1) + centre + np.roll(centre, 1, axis=0)
        height[::step, half::step] = across / 4 + amplitude * random.uniform(-1, 1, shape)
        down = corner + np.roll(corner, -1, axis=0) + centre + np.roll(centre, 1, axis=1)
        height[half::step, ::step] = down / 4 + amplitude * random.uniform(-1, 1, shape)
        step, amplitude = half, amplitude / decay**2
    height -= height.min()
    return height / height.max()


def ice(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Draw frost on a window: needles in a few directions, ridges, thicker towards the border.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    random : Generator
        Draws the crystals.

    Returns
    -------
    ndarray of float32, shape (height, width, 3)
        Bluish white on black, 0 to 1.

    Notes
    -----
    Our choice: the published corruption overlays crops of six photographs, which are not shipped
    here, so numbers on ``frost`` are not comparable with published ones.
    """
    side = min(height, width)
    needles = np.zeros((height, width), dtype=np.float32)
    for _ in range(6):
        seeds = (random.random((height, width)) > 0.985).astype(np.float32)
        length = side * random.uniform(0.03, 0.09)
        needles += motion(seeds, length, length, random.uniform(0, 360)) * length
    needles = np.clip(needles / (np.quantile(needles, 0.98) + 1e-6), 0, 1)
    cloud = smooth(random.normal(size=(height, width)).astype(np.float32), side / 40)
    ridge = np.exp(-np.abs(cloud) / (0.35 * cloud.std() + 1e-6))
    broad = smooth(random.normal(size=(height, width)).astype(np.float32), side / 8)
    yy, xx = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    rim = np.maximum(np.abs(yy), np.abs(xx)) ** 2
    cover = 1 / (1 + np.exp(-(1.2 * broad / (broad.std() + 1e-6) + 3 * rim - 0.6)))
    value = np.clip(cover * (0.35 + 0.45 * ridge + 0.5 * needles), 0, 1).astype(np.float32)
    return value[..., None] * np.asarray([0.86, 0.94, 1.0], dtype=np.float32)


@SHIFTS.register("snow")
def snow(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Whiten the image and add moving flakes twice, the second time turned by 180 degrees."""
    small, scale = reference(image)
    mean, sd, zoom, threshold, radius, sigma, share = SNOW[small][severity - 1]
    x = unit(image)
    flakes = magnify(
        random.normal(mean, sd, size=x.shape[:2]).astype(np.float32), max(1.0, zoom * scale)
    )
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = motion(flakes, radius * scale, sigma * scale, random.uniform(-135, -45))[..., None]
    whitened = share * x + (1 - share) * np.maximum(x, grey(x)[..., None] * 1.5 + 0.5)
    return to_uint8(whitened + flakes + flakes[::-1, ::-1])


@SHIFTS.register("frost")
def frost(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Add drawn frost (see `ice`) with the published weights of image and frost."""
    small, _ = reference(image)
    keep, add = FROST[small][severity - 1]
    return to_uint8(keep * unit(image) + add * ice(*image.shape[:2], random))


@SHIFTS.register("fog")
def fog(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Add a fractal haze of density d and rescale by ``max / (max + d)``, max the brightest value of the image."""
    small, _ = reference(image)
    density, decay = FOG[small][severity - 1]
    x = unit(image)
    size = 1 << int(np.ceil(np.log2(max(image.shape[:2]))))
    haze = plasma(size, decay, random)[: x.shape[0], : x.shape[1], None]
    brightest = float(x.max())
    return to_uint8((x + density * haze) * brightest / (brightest + density))

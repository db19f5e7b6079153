"""The 15 corruptions of ImageNet-C: noise, blur, weather and digital.

Each corruption is a function of an image (uint8, shape (H, W, 3), RGB), a severity from 1 to 5 and
a random generator, and returns the corrupted image (uint8, shape (H, W, 3)). The tables below hold
the levels for severity 1 to 5: under False those published for ImageNet-C (224 px), under True
those published for CIFAR-10-C (32 px). `bmfl_lab.data.shifts.table.published` chooses between them;
lengths in pixels grow with the image.

Notes
-----
``frost`` is the exception: the published corruption overlays photographs of frost, which are not
shipped here, so that the frost is drawn (our choice) and weaker than published. Where the
environment variable BMFL_FROST names a folder of such photographs, they are used.

References
----------
Hendrycks & Dietterich (2019), Benchmarking neural network robustness to common corruptions and
perturbations, ICLR, arXiv:1903.12261. The levels are those of the authors' released code.
"""

from __future__ import annotations

import functools
import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from bmfl_lab.data.images import decode_bytes, decode_image
from bmfl_lab.data.shifts.table import SHIFTS, grey, published, reference, smooth, to_uint8, unit
from bmfl_lab.errors import DataError, require

# --- noise ---

GAUSSIAN_SD = {False: (0.08, 0.12, 0.18, 0.26, 0.38), True: (0.04, 0.06, 0.08, 0.09, 0.10)}
PHOTONS = {False: (60, 25, 12, 5, 3), True: (500, 250, 100, 75, 50)}
IMPULSE_SHARE = {False: (0.03, 0.06, 0.09, 0.17, 0.27), True: (0.01, 0.02, 0.03, 0.05, 0.07)}


@SHIFTS.register("gaussian_noise")
def gaussian_noise(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Add independent normal noise to every value.

    Its standard deviation is 0.08 to 0.38 of full scale (0.04 to 0.10 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    sd, _ = published(GAUSSIAN_SD, image, severity)
    return to_uint8(unit(image) + sd * random.standard_normal(image.shape, dtype=np.float32))


@SHIFTS.register("shot_noise")
def shot_noise(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Replace every value by a Poisson count of photons.

    At full scale 60 to 3 photons are expected (500 to 50 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    photons, _ = published(PHOTONS, image, severity)
    return to_uint8(random.poisson(unit(image) * photons) / photons)


@SHIFTS.register("impulse_noise")
def impulse_noise(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Set a share of the values to 0 or 255 with equal probability.

    The share is 0.03 to 0.27 (0.01 to 0.07 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    share, _ = published(IMPULSE_SHARE, image, severity)
    draw = random.random(image.shape, dtype=np.float32)
    return np.where(draw < share / 2, 0, np.where(draw < share, 255, image)).astype(np.uint8)


# --- blur ---

# radius and standard deviation of the softening, both in pixels
DEFOCUS = {
    False: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    True: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
}
# standard deviation of the blur and largest displacement, both in pixels; number of rounds
GLASS = {
    False: ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    True: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
}
# radius and standard deviation of the kernel, both in pixels
MOTION = {
    False: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    True: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
}
# the magnifications run from 1 to an end (exclusive) by a step
ZOOM = {
    False: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    True: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
}


def disk_kernel(radius: float, softening: float) -> np.ndarray:
    """Return the kernel of a defocused lens: a disk softened by a small Gaussian.

    Parameters
    ----------
    radius : float
        Radius of the disk in pixels.
    softening : float
        Standard deviation in pixels of the Gaussian, which has 3 x 3 taps (5 x 5 above radius 8).

    Returns
    -------
    ndarray of float32, shape (k, k)
        Weights that sum to one; k is odd.
    """
    from scipy import signal

    half = int(max(np.ceil(radius), 1))
    grid = np.arange(-half, half + 1)
    disk = (grid[:, None] ** 2 + grid[None] ** 2 <= radius**2).astype(np.float32)
    reach = 1 if radius <= 8 else 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / softening) ** 2)
    soft = np.outer(taps, taps)
    kernel = signal.convolve2d(disk, soft)
    return (kernel / kernel.sum()).astype(np.float32)


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve each channel of an image with a kernel.

    Parameters
    ----------
    x : ndarray, shape (H, W, C)
        The image; its edges are mirrored about the edge pixel.
    kernel : ndarray, shape (h, w)
        The kernel; both sides are odd.

    Returns
    -------
    ndarray, shape (H, W, C)
    """
    from scipy import signal

    half = [k // 2 for k in kernel.shape]
    mode = "reflect" if min(x.shape[:2]) > max(half) else "symmetric"
    padded = np.pad(x, [(half[0], half[0]), (half[1], half[1]), (0, 0)], mode=mode)
    return signal.oaconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def motion(x: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """Smear an image to one side along a line.

    Parameters
    ----------
    x : ndarray, shape (H, W) or (H, W, C)
        The image.
    radius : float
        The kernel has ``2 radius + 1`` taps.
    sigma : float
        The weights of the taps are the right half of a Gaussian with this standard deviation in
        pixels.
    angle : float
        Direction in degrees; 0 is along the rows.

    Returns
    -------
    ndarray, same shape as `x`

    Notes
    -----
    The one-sided kernel on whole-pixel offsets and the repeated edges follow the ImageMagick
    operation that the published corruption calls.
    """
    taps = np.arange(2 * max(1, round(radius)) + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights = (weights / weights.sum()).astype(x.dtype)
    theta = np.deg2rad(angle)
    dx = np.ceil(taps * np.cos(theta) - 0.5).astype(int)
    dy = np.ceil(taps * np.sin(theta) - 0.5).astype(int)
    reach = int(max(np.abs(dx).max(), np.abs(dy).max()))
    padded = np.pad(x, [(reach, reach), (reach, reach)] + [(0, 0)] * (x.ndim - 2), mode="edge")
    height, width = x.shape[:2]
    out = np.zeros_like(x)
    for weight, right, down in zip(weights, dx, dy):
        out += (
            weight
            * padded[reach + down : reach + down + height, reach + right : reach + right + width]
        )
    return out


def _stretch(x: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """Enlarge the middle of one axis by `factor` to the full size, by linear interpolation."""
    size = x.shape[axis]
    part = int(np.ceil(size / factor))
    large = max(size, round(part * factor))
    where = (np.arange(size) + (large - size) // 2) * (part - 1) / max(large - 1, 1)
    low = np.minimum(where.astype(int), max(part - 2, 0))
    weight = (where - low).astype(x.dtype).reshape([-1 if d == axis else 1 for d in range(x.ndim)])
    first = (size - part) // 2
    below = np.take(x, first + low, axis=axis)
    above = np.take(x, first + np.minimum(low + 1, part - 1), axis=axis)
    return below + weight * (above - below)


def magnify(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of an image to the full size by bilinear interpolation.

    Parameters
    ----------
    x : ndarray, shape (H, W) or (H, W, C)
        The image.
    factor : float
        Magnification, at least 1. The corners of the cut-out fall on the corners of the result.

    Returns
    -------
    ndarray, same shape as `x`
    """
    return _stretch(_stretch(x, 0, factor), 1, factor)


def swap_neighbours(index: np.ndarray, reach: int, random: np.random.Generator) -> None:
    """Swap each pixel of an image with a pixel near it, chosen at random.

    The function works on the numbers of the pixels, so that the caller moves all colours at once:
    ``pixels[index]`` is the image with swapped pixels. A border of width `reach` takes part only as
    the partner of an inner pixel.

    Parameters
    ----------
    index : ndarray of int, shape (H, W)
        Number of the pixel at each place; changed in place.
    reach : int
        Largest distance to the partner in pixels. Both of its offsets are drawn uniformly from
        ``-reach`` to ``reach - 1``.
    random : numpy.random.Generator
        Source of the offsets.

    Notes
    -----
    The published code visits one pixel after another. Here, pixels whose distance is a multiple of
    ``2 reach + 1`` in both directions are swapped at once: no two of them can have the same
    partner. Each pixel is swapped once, as in the published code, but in another order.
    """
    height, width = index.shape
    stride = 2 * reach + 1
    for first_row in range(stride - 1, -1, -1):
        for first_column in range(stride - 1, -1, -1):
            rows = np.arange(reach + first_row, height - reach, stride)
            columns = np.arange(reach + first_column, width - reach, stride)
            r, c = np.meshgrid(rows, columns, indexing="ij")
            dr, dc = random.integers(-reach, reach, size=(2, *r.shape))
            here, there = index[r, c], index[r + dr, c + dc]
            index[r, c], index[r + dr, c + dc] = there, here


@SHIFTS.register("defocus_blur")
def defocus_blur(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Convolve with a softened disk of radius 3 to 10 px at 224 px (0.3 to 1.5 px at 32 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Not used.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    (radius, softening), scale = published(DEFOCUS, image, severity)
    return to_uint8(convolve(unit(image), disk_kernel(radius * scale, softening)))


@SHIFTS.register("glass_blur")
def glass_blur(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Imitate frosted glass: blur, swap pixels with near neighbours, and blur again.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    from scipy import ndimage

    (sigma, reach, rounds), scale = published(GLASS, image, severity)
    sigma, reach = sigma * scale, max(1, round(reach * scale))
    x = ndimage.gaussian_filter(unit(image), (sigma, sigma, 0), mode="nearest")
    index = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
    for _ in range(rounds):
        swap_neighbours(index, reach, random)
    x = x.reshape(-1, 3)[index]
    return to_uint8(ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


@SHIFTS.register("motion_blur")
def motion_blur(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Smear along a line whose angle is drawn from -45 to 45 degrees (see `motion`).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    (radius, sigma), scale = published(MOTION, image, severity)
    return to_uint8(motion(unit(image), radius * scale, sigma * scale, random.uniform(-45, 45)))


@SHIFTS.register("zoom_blur")
def zoom_blur(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Average the image with enlarged copies of itself.

    The largest magnification is 1.10 to 1.30 (1.05 to 1.25 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Not used.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    (end, step), _ = published(ZOOM, image, severity)
    x = unit(image)
    factors = np.arange(1, end, step)
    return to_uint8((x + sum(magnify(x, float(f)) for f in factors)) / (len(factors) + 1))


# --- weather ---

# mean, standard deviation, magnification and threshold of the flakes; radius and standard deviation
# of their motion; share of the original image in the whitened one
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
# weight of the image and weight of the frost
FROST = {
    False: ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    True: ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
}
# density of the haze, and decay of its amplitude per octave
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
        The amplitude is divided by ``decay`` squared from one octave to the next.
    random : numpy.random.Generator
        Generator that draws the displacements.

    Returns
    -------
    ndarray of float64, shape (size, size)
        Heights from 0 to 1.

    References
    ----------
    Fournier, Fussell & Carpenter (1982), Computer rendering of stochastic models, Communications of
    the ACM 25(6): 371-384.
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
    """Draw frost on a window: needles and ridges that grow thicker towards the border.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    random : numpy.random.Generator
        Generator that draws the crystals.

    Returns
    -------
    ndarray of float32, shape (height, width, 3)
        Bluish white on black, 0 to 1.

    Notes
    -----
    The drawing is our choice: the published corruption overlays crops of six photographs, which are
    not shipped here. Numbers on ``frost`` are therefore not comparable with published ones.
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
    """Whiten the image and add moving flakes twice, the second time turned by 180 degrees.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    levels, scale = published(SNOW, image, severity)
    mean, sd, zoom, threshold, radius, sigma, share = levels
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
    """Add frost with the published weights of image and frost.

    The frost is a crop of a photograph from the folder that BMFL_FROST names, or else drawn, see
    `ice`.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    (keep, add), _ = published(FROST, image, severity)
    pictures = frost_pictures()
    if not pictures:
        return to_uint8(keep * unit(image) + add * ice(*image.shape[:2], random))
    height, width = image.shape[:2]
    picture = _picture(pictures[random.integers(len(pictures))], height, width)
    top = random.integers(picture.shape[0] - height + 1)
    left = random.integers(picture.shape[1] - width + 1)
    crop = picture[top : top + height, left : left + width]
    return to_uint8(keep * unit(image) + add * unit(crop))


def frost_pictures() -> tuple[str, ...]:
    """Return the photographs of frost in the folder that BMFL_FROST names; none without it.

    Raises
    ------
    DataError
        If the variable names no folder, or one without images.
    """
    folder = os.environ.get("BMFL_FROST", "")
    if not folder:
        return ()
    endings = (".png", ".jpg", ".jpeg")
    found = sorted(str(p) for p in Path(folder).glob("*") if p.suffix.lower() in endings)
    require(
        found,
        DataError,
        "photographs of frost (*.png, *.jpg) in the folder of BMFL_FROST",
        f"none in {folder!r}",
        "name the folder that holds them, or unset BMFL_FROST to have frost drawn",
    )
    return tuple(found)


@functools.lru_cache(maxsize=16)
def _picture(path: str, height: int, width: int) -> np.ndarray:
    """Return a photograph that is not smaller than an image, uint8 (H, W, 3)."""
    picture = decode_image(path)
    factor = max(height / picture.shape[0], width / picture.shape[1])
    if factor <= 1:
        return picture
    size = [int(np.ceil(factor * side)) for side in picture.shape[1::-1]]
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


@SHIFTS.register("fog")
def fog(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Add a fractal haze of density d and rescale.

    The sum of image and haze is multiplied by ``m / (m + d)``, where m is the largest value in the
    image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    (density, decay), _ = published(FOG, image, severity)
    x = unit(image)
    size = 1 << int(np.ceil(np.log2(max(image.shape[:2]))))
    haze = plasma(size, decay, random)[: x.shape[0], : x.shape[1], None]
    brightest = float(x.max())
    return to_uint8((x + density * haze) * brightest / (brightest + density))


# --- digital (brightness counts as weather in the paper) ---

BRIGHTER = {False: (0.1, 0.2, 0.3, 0.4, 0.5), True: (0.05, 0.10, 0.15, 0.20, 0.30)}
CONTRAST = {False: (0.4, 0.3, 0.2, 0.1, 0.05), True: (0.75, 0.5, 0.4, 0.3, 0.15)}
# displacement, its smoothness, and shift of the three affine points, in units of 244 px and 32 px
ELASTIC = {
    False: (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    ),
    True: (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.10, 0.04, 0.05),
        (0.10, 0.03, 0.03),
    ),
}
PIXELS = {False: (0.6, 0.5, 0.4, 0.3, 0.25), True: (0.95, 0.90, 0.85, 0.75, 0.65)}
JPEG_QUALITY = {False: (25, 18, 15, 10, 7), True: (80, 65, 58, 50, 40)}


@SHIFTS.register("brightness")
def brightness(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Raise the value channel of HSV and keep hue and saturation.

    The value rises by 0.1 to 0.5 (0.05 to 0.3 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Not used.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    added, _ = published(BRIGHTER, image, severity)
    x = unit(image)
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + added, 1)
    # with hue and saturation fixed, RGB is proportional to the value; black has no hue and becomes
    # grey
    return to_uint8(np.where(value > 0, x / np.maximum(value, 1e-6), 1) * raised)


@SHIFTS.register("contrast")
def contrast(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Pull every channel towards its mean over the image.

    Deviations from the mean are multiplied by 0.4 to 0.05 (0.75 to 0.15 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Not used.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    factor, _ = published(CONTRAST, image, severity)
    x = unit(image)
    mean = x.mean(axis=(0, 1), keepdims=True)
    return to_uint8((x - mean) * factor + mean)


def _affine_from_points(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the affine map, shape (2, 3), that takes three points (3, 2) to three others."""
    return np.linalg.solve(np.hstack([source, np.ones((3, 1))]), target).T


@SHIFTS.register("elastic_transform")
def elastic_transform(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Warp the image by a random affine map and a smooth random displacement.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Notes
    -----
    The published levels distort the whole image at severities 1 and 2 and its details at 3 to 5, so
    that the distance to the original in pixels does not grow with the severity. Both warps are
    applied in one interpolation.
    """
    from scipy import ndimage

    levels, scale = published(ELASTIC, image, severity)
    # the released code for ImageNet-C multiplies by 244, although its images have 224 pixels
    size = (32 if reference(image)[0] else 244) * scale
    reach, softness, jitter = (size * level for level in levels)
    height, width = image.shape[:2]
    centre, third = np.asarray([height // 2, width // 2]), min(height, width) // 3
    points = centre + third * np.asarray([[1, 1], [1, -1], [-1, -1]], dtype=float)
    moved = points + random.uniform(-jitter, jitter, size=(3, 2))
    back = _affine_from_points(moved, points)
    where = np.mgrid[:height, :width].astype(float)
    if reach:
        where = where + reach * np.stack(
            [smooth(random.uniform(-1, 1, (height, width)), softness) for _ in range(2)]
        )
    source = np.tensordot(back[:, :2], where, axes=1) + back[:, 2, None, None]
    x = unit(image)
    return to_uint8(
        np.stack(
            [ndimage.map_coordinates(x[..., c], source, order=1, mode="mirror") for c in range(3)],
            -1,
        )
    )


@SHIFTS.register("pixelate")
def pixelate(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Shrink the image with a box filter and enlarge it again.

    The small image has 0.6 to 0.25 of the original size (0.95 to 0.65 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Not used.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    share, _ = published(PIXELS, image, severity)
    height, width = image.shape[:2]
    coarse = Image.fromarray(image).resize(
        (int(width * share), int(height * share)), Image.Resampling.BOX
    )
    return np.asarray(coarse.resize((width, height), Image.Resampling.BOX))


@SHIFTS.register("jpeg_compression")
def jpeg_compression(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Encode as JPEG and decode.

    The quality is 25, 18, 15, 10, 7 (80, 65, 58, 50, 40 below 85 px).

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 (mild) to 5 (strong).
    random : numpy.random.Generator
        Not used.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    quality, _ = published(JPEG_QUALITY, image, severity)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return decode_bytes(buffer.getvalue(), "a compressed copy", math.inf)

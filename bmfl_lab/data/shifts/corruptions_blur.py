"""The blur corruptions of ImageNet-C.

References
----------
Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations"; levels as published with the benchmark, for 224 px (ImageNet-C) and 32 px
(CIFAR-10-C) images. Lengths in pixels grow with the image (see
`bmfl_lab.data.shifts.table.reference`).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, signal

from bmfl_lab.data.shifts.table import SHIFTS, reference, to_uint8, unit

# radius, sd of the softening, pixels
DEFOCUS = {
    False: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    True: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
}
# sd of the blur, largest displacement, pixels; rounds
GLASS = {
    False: ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    True: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
}
# radius, sd, pixels
MOTION = {
    False: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    True: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
}
# end (exclusive), step of the magnifications from 1
ZOOM = {
    False: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    True: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
}


def disk_kernel(radius: float, softening: float) -> np.ndarray:
    """Return a disk of `radius` pixels, softened by a 3 x 3 (5 x 5 above radius 8) Gaussian, summing to one."""
    half = int(max(np.ceil(radius), 1))
    grid = np.arange(-half, half + 1)
    disk = (grid[:, None] ** 2 + grid[None] ** 2 <= radius**2).astype(np.float32)
    reach = 1 if radius <= 8 else 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / softening) ** 2)
    soft = np.outer(taps, taps)
    kernel = signal.convolve2d(disk, soft)
    return (kernel / kernel.sum()).astype(np.float32)


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve each channel of x (H, W, C) with an odd-sized kernel, edges mirrored about the edge pixel."""
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
    radius, sigma : float
        The kernel has ``2 radius + 1`` taps, weights the right half of a Gaussian of `sigma`
        pixels.
    angle : float
        Direction, degrees; 0 is along the rows.

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
    """Enlarge the middle of x (H, W, ...) by `factor` (at least 1) to the full size, bilinear, corners on corners."""
    return _stretch(_stretch(x, 0, factor), 1, factor)


def swap_neighbours(index: np.ndarray, reach: int, random: np.random.Generator) -> None:
    """Swap, in place, each inner pixel of an index map with a neighbour at most `reach` pixels away.

    Parameters
    ----------
    index : ndarray, shape (H, W)
        Changed in place.
    reach : int
        Offsets are drawn uniformly from ``-reach .. reach - 1`` in both directions.
    random : Generator
        Draws the offsets.

    Notes
    -----
    The published loop visits pixels one after another. Here pixels ``2 reach + 1`` apart are
    swapped at once (their neighbourhoods do not meet), coset after coset: one swap a pixel as
    published, in another order.
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
    """Convolve with a softened disk of radius 3 to 10 px at 224 px (0.3 to 1.5 px at 32 px)."""
    small, scale = reference(image)
    radius, softening = DEFOCUS[small][severity - 1]
    return to_uint8(convolve(unit(image), disk_kernel(radius * scale, softening)))


@SHIFTS.register("glass_blur")
def glass_blur(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Blur, swap pixels with near neighbours, blur again: frosted glass."""
    small, scale = reference(image)
    sigma, reach, rounds = GLASS[small][severity - 1]
    sigma, reach = sigma * scale, max(1, round(reach * scale))
    x = ndimage.gaussian_filter(unit(image), (sigma, sigma, 0), mode="nearest")
    index = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
    for _ in range(rounds):
        swap_neighbours(index, reach, random)
    x = x.reshape(-1, 3)[index]
    return to_uint8(ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


@SHIFTS.register("motion_blur")
def motion_blur(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Smear along a line at an angle drawn from -45 to 45 degrees (see `motion`)."""
    small, scale = reference(image)
    radius, sigma = MOTION[small][severity - 1]
    return to_uint8(motion(unit(image), radius * scale, sigma * scale, random.uniform(-45, 45)))


@SHIFTS.register("zoom_blur")
def zoom_blur(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Average the image with itself at magnifications from 1 to 1.10 ... 1.30 (1.05 ... 1.25 below 85 px)."""
    small, _ = reference(image)
    end, step = ZOOM[small][severity - 1]
    x = unit(image)
    factors = np.arange(1, end, step)
    return to_uint8((x + sum(magnify(x, float(f)) for f in factors)) / (len(factors) + 1))

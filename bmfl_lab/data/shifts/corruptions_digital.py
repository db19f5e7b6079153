"""The digital corruptions of ImageNet-C (with brightness, which its authors count as weather).

References
----------
Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations"; levels as published with the benchmark, for 224 px (ImageNet-C) and 32 px
(CIFAR-10-C) images.
"""

from __future__ import annotations

import io

import numpy as np
from scipy import ndimage

from bmfl_lab.data.shifts.table import SHIFTS, reference, smooth, to_uint8, unit

BRIGHTER = {False: (0.1, 0.2, 0.3, 0.4, 0.5), True: (0.05, 0.10, 0.15, 0.20, 0.30)}
CONTRAST = {False: (0.4, 0.3, 0.2, 0.1, 0.05), True: (0.75, 0.5, 0.4, 0.3, 0.15)}
# displacement, its smoothness, shift of the three affine points; units of 244 px and 32 px as
# published
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
    """Raise the value channel of HSV by 0.1 to 0.5 (0.05 to 0.3 below 85 px), hue and saturation kept."""
    small, _ = reference(image)
    x = unit(image)
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + BRIGHTER[small][severity - 1], 1)
    # With hue and saturation fixed, RGB is proportional to the value; black has no hue and becomes
    # grey.
    return to_uint8(np.where(value > 0, x / np.maximum(value, 1e-6), 1) * raised)


@SHIFTS.register("contrast")
def contrast(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Pull every channel towards its mean over the image by a factor of 0.4 to 0.05 (0.75 to 0.15 below 85 px)."""
    small, _ = reference(image)
    x = unit(image)
    mean = x.mean(axis=(0, 1), keepdims=True)
    return to_uint8((x - mean) * CONTRAST[small][severity - 1] + mean)


def _affine_from_points(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.linalg.solve(np.hstack([source, np.ones((3, 1))]), target).T


@SHIFTS.register("elastic_transform")
def elastic_transform(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Warp the image: three points are moved at random (affine), and a smooth random field is added.

    Notes
    -----
    The published levels trade large distortions of the whole (severity 1, 2) for fine ones (3 to
    5), so the distance to the original in pixels does not grow with the severity. Both warps are
    applied in one interpolation.
    """
    small, scale = reference(image)
    size = (32 if small else 244) * scale
    reach, softness, jitter = (size * c for c in ELASTIC[small][severity - 1])
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
    """Shrink to 0.6 to 0.25 of the size (0.95 to 0.65 below 85 px) and enlarge again, both with a box filter."""
    from PIL import Image

    small, _ = reference(image)
    share = PIXELS[small][severity - 1]
    height, width = image.shape[:2]
    coarse = Image.fromarray(image).resize(
        (int(width * share), int(height * share)), Image.Resampling.BOX
    )
    return np.asarray(coarse.resize((width, height), Image.Resampling.BOX))


@SHIFTS.register("jpeg_compression")
def jpeg_compression(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Encode as JPEG of quality 25, 18, 15, 10, 7 (80, 65, 58, 50, 40 below 85 px) and decode."""
    from PIL import Image

    small, _ = reference(image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY[small][severity - 1])
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))

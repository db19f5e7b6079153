"""The registry of shifts and the helpers that every shift uses."""

from __future__ import annotations

import numpy as np

from bmfl_lab.registry import Registry

SHIFTS = Registry("shift")
SEVERITIES = (1, 2, 3, 4, 5)

# Geometric mean of the two sizes that constants were published for (32 px and 224 px).
_SMALL_BELOW = 85


def reference(image: np.ndarray) -> tuple[bool, float]:
    """Say which published constants fit an image, and by how much its lengths differ.

    Parameters
    ----------
    image : ndarray, shape (H, W, ...)
        Any image.

    Returns
    -------
    small : bool
        True below 85 px (the shorter side): constants published for CIFAR-10-C (32 px); else those
        for ImageNet-C (224 px).
    scale : float
        Shorter side over 32 or 224; lengths in pixels are multiplied by it.

    Notes
    -----
    The split at the geometric mean of 32 and 224 and the scaling of lengths are our choice; at
    exactly 32 px and 224 px the published constants are used unchanged. Noise levels are per pixel
    and are not scaled.
    """
    side = min(image.shape[:2])
    small = side < _SMALL_BELOW
    return small, side / (32 if small else 224)


def unit(image: np.ndarray) -> np.ndarray:
    """Return a uint8 image as float32 in [0, 1], same shape."""
    return image.astype(np.float32) / np.float32(255)


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Return an image in [0, 1] (values outside are clipped) as uint8, rounded to the nearest level."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def grey(x: np.ndarray) -> np.ndarray:
    """Return the luma (ITU-R BT.601 weights) of an RGB image (H, W, 3), shape (H, W)."""
    return x @ np.asarray([0.299, 0.587, 0.114], dtype=x.dtype)


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Blur the first two axes by a Gaussian of `sigma` pixels, edges mirrored; exact for any sigma.

    A Gaussian with mirrored edges is diagonal under the cosine transform, so the cost does not grow
    with `sigma`.
    """
    from scipy.fft import dctn, idctn

    if sigma <= 0:
        return x
    decay = [
        np.exp(-0.5 * (np.pi * sigma * np.arange(n) / n) ** 2).astype(x.dtype) for n in x.shape[:2]
    ]
    gain = np.outer(*decay).reshape(x.shape[:2] + (1,) * (x.ndim - 2))
    return idctn(dctn(x, axes=(0, 1), norm="ortho") * gain, axes=(0, 1), norm="ortho").astype(
        x.dtype
    )

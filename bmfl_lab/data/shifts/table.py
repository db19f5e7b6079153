"""The registry of shifts and the helpers that every shift uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from bmfl_lab.registry import Registry

SHIFTS = Registry("shift")
SEVERITIES = (1, 2, 3, 4, 5)
L = TypeVar("L")

# geometric mean of the two image sizes for which levels were published, 32 px and 224 px
_SMALL_BELOW = 85


def reference(image: np.ndarray) -> tuple[bool, float]:
    """Return which published levels fit an image, and the factor for lengths in pixels.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, C)
        Any image.

    Returns
    -------
    small : bool
        True if the shorter side is below 85 px: the levels published for CIFAR-10-C (32 px) apply,
        else those for ImageNet-C (224 px).
    scale : float
        Shorter side divided by 32 or 224; lengths in pixels are multiplied by it.

    Notes
    -----
    The limit at the geometric mean of 32 and 224 and the scaling of lengths are our choice. At
    exactly 32 px and 224 px the published levels are used unchanged. Noise levels are per pixel and
    are not scaled.
    """
    side = min(image.shape[:2])
    small = side < _SMALL_BELOW
    return small, side / (32 if small else 224)


def published(
    levels: Mapping[bool, Sequence[L]], image: np.ndarray, severity: int
) -> tuple[L, float]:
    """Return the published level of a severity for an image, and the factor for lengths in pixels.

    Parameters
    ----------
    levels : mapping of bool to sequence of length 5
        Levels for severity 1 to 5, under True for small images and under False for the others.
    image : ndarray, shape (H, W, 3)
        The image.
    severity : int
        1 to 5.

    Returns
    -------
    level : float, int or tuple of them
        The entry of `levels`.
    scale : float
        See `reference`.
    """
    small, scale = reference(image)
    return levels[small][severity - 1], scale


def unit(image: np.ndarray) -> np.ndarray:
    """Return a uint8 image as floats.

    Parameters
    ----------
    image : ndarray of uint8, any shape
        Values from 0 to 255.

    Returns
    -------
    ndarray of float32, same shape
        Values in [0, 1].
    """
    return image.astype(np.float32) / np.float32(255)


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Return an image of floats as uint8.

    Parameters
    ----------
    x : ndarray of float, any shape
        The image; values are clipped to [0, 1].

    Returns
    -------
    ndarray of uint8, same shape
        Values rounded to the nearest of the 256 levels.
    """
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def grey(x: np.ndarray) -> np.ndarray:
    """Return the luma of an image.

    Parameters
    ----------
    x : ndarray of float, shape (H, W, 3)
        RGB image.

    Returns
    -------
    ndarray, shape (H, W), of the type of `x`

    References
    ----------
    ITU-R recommendation BT.601: the weights of red, green and blue.
    """
    return x @ np.asarray([0.299, 0.587, 0.114], dtype=x.dtype)


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Blur the first two axes by a Gaussian, with edges mirrored.

    A Gaussian with mirrored edges is diagonal under the cosine transform, so that the result is
    exact and the cost does not grow with `sigma`.

    Parameters
    ----------
    x : ndarray of float, shape (H, W) or (H, W, C)
        The image.
    sigma : float
        Standard deviation in pixels; 0 or less returns `x` itself.

    Returns
    -------
    ndarray, same shape and type as `x`
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

"""Turning a uint8 image into the input of a backbone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from bmfl_lab.errors import ConfigError, DataError, require

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet, per colour channel (R, G, B), of pixels in 0..1."""

MAX_ASPECT = 20
RESIZE = ("short", "direct")


@dataclass(frozen=True)
class Preprocess:
    """Resize an image (bicubic), crop its centre and normalise its colours.

    Parameters
    ----------
    image_size : int, default 224
        Side of the square that the backbone receives, in pixels; a multiple of `patch_size`.
    resize : {"short", "direct"}, default "short"
        "short": the short side becomes ``round(image_size * 256 / 224)``, then the centre is
        cropped, as is usual for photographs of ImageNet. "direct": the short side becomes
        `image_size`, so that nothing is cut off a square image; meant for images that are much
        smaller than the crop, such as photographs of 32 pixels.
    patch_size : int, default 14
        Side of a patch of the backbone, in pixels.
    mean, std : tuple of three floats
        Mean and standard deviation per colour channel (R, G, B) of pixels in 0..1. The default is
        that of ImageNet.

    Raises
    ------
    ConfigError
        If the size is not a positive multiple of the patch size, or the rule is unknown.

    Notes
    -----
    Images smaller than the crop are enlarged by the same rule. An image with an aspect ratio above
    20 is first cut to its central part of that ratio, so that a strip of one pixel cannot ask for
    gigabytes. The limit is our own choice; the pixels that are cut lie far outside the crop.
    """

    image_size: int = 224
    resize: str = "short"
    patch_size: int = 14
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        size, patch = self.image_size, self.patch_size
        require(
            size >= patch and size % patch == 0,
            ConfigError,
            f"an image_size that is a positive multiple of {patch}",
            repr(size),
            f"use {max(1, round(size / patch)) * patch}",
        )
        require(
            self.resize in RESIZE,
            ConfigError,
            f"a resize rule among {RESIZE}",
            repr(self.resize),
            "choose one of them",
        )

    @property
    def short_side(self) -> int:
        """Length of the short side after the resize, in pixels."""
        return self.image_size if self.resize == "direct" else round(self.image_size * 256 / 224)

    def describe(self) -> dict[str, object]:
        """Return everything that determines the pixels, as plain JSON values."""
        return {
            "resize": self.resize,
            "short_side": self.short_side,
            "filter": "bicubic (Pillow, antialiased)",
            "crop": "centre",
            "image_size": self.image_size,
            "max_aspect": MAX_ASPECT,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Return the pixels that the backbone receives, before normalisation.

        Parameters
        ----------
        image : ndarray of uint8, shape (H, W, 3)
            RGB image.

        Returns
        -------
        ndarray of uint8, shape (image_size, image_size, 3)

        Raises
        ------
        DataError
            If the array is not a non-empty uint8 RGB image.
        """
        require(
            image.dtype == np.uint8
            and image.ndim == 3
            and image.shape[2] == 3
            and 0 not in image.shape,
            DataError,
            "a uint8 image of shape (H, W, 3)",
            f"{image.dtype} {image.shape}",
            "decode it with bmfl_lab.data.images.decode_image",
        )
        image = _cut_strip(image)
        height, width = image.shape[:2]
        short = min(height, width)
        size = tuple(
            self.short_side if s == short else int(self.short_side * s / short)
            for s in (width, height)
        )
        picture = Image.fromarray(np.ascontiguousarray(image))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((s - self.image_size) / 2.0) for s in size)
        return np.asarray(picture.crop((left, top, left + self.image_size, top + self.image_size)))

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Return the input of the backbone.

        Parameters
        ----------
        image : ndarray of uint8, shape (H, W, 3)
            RGB image.

        Returns
        -------
        Tensor of float32, shape (3, image_size, image_size)

        Raises
        ------
        DataError
            If the array is not a non-empty uint8 RGB image.
        """
        pixels = self.crop(image).astype(np.float32) / np.float32(255)
        pixels = (pixels - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _cut_strip(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    if max(height, width) <= longest:
        return image
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return image[top : top + longest, left : left + longest]

"""Decoding of image files from untrusted sources into uint8 RGB arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bmfl_lab.errors import DataError, message, require

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 50e6
MAX_BYTES = 512 << 20
_BACKGROUND = (255, 255, 255)


def decode_image(path: str | Path) -> np.ndarray:
    """Decode an image file.

    Parameters
    ----------
    path : str or Path
        A JPEG, PNG, BMP, GIF, TIFF, WebP or PNM file, recognised by content and not by name.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        RGB.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated, damaged, not an image, or larger than 512 MiB or
        50 million pixels.

    Notes
    -----
    The following rules are our choice. Transparent pixels become white. Grey, palette, CMYK and
    1-bit images become RGB. 16-bit grey values are divided by 257. An EXIF orientation is ignored,
    as is usual for ImageNet. The first frame of an animated or multi-page image is used.
    """
    path = Path(path)
    require(
        path.is_file(),
        DataError,
        f"an image file {path.name}",
        f"nothing at {path}",
        "check the path",
    )
    size = path.stat().st_size
    require(
        size <= MAX_BYTES,
        DataError,
        f"an image of at most {MAX_BYTES} bytes at {path}",
        f"{size} bytes",
        "check the file",
    )
    return decode_bytes(path.read_bytes(), name=str(path))


def count_frames(path: str | Path) -> int:
    """Return the number of frames or pages of an image file.

    Parameters
    ----------
    path : str or Path
        The file; `decode_image` decodes its first frame.

    Raises
    ------
    DataError
        If the file is missing or not an image.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception as error:  # decoders raise many types of errors on damaged files
        raise DataError(
            message(
                f"an image {path}", f"{type(error).__name__}: {error}", "download or copy it again"
            )
        ) from error


def decode_bytes(data: bytes, name: str = "<bytes>", max_pixels: float = MAX_PIXELS) -> np.ndarray:
    """Decode an encoded image held in memory.

    Parameters
    ----------
    data : bytes
        Content of an image file.
    name : str, default "<bytes>"
        Name of the image in messages.
    max_pixels : float, default 5e7
        Largest accepted number of pixels, read from the header before anything is decoded.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        RGB, converted by the rules of `decode_image`.

    Raises
    ------
    DataError
        If the data are empty, truncated, damaged, too large, or not an image.
    """
    require(
        data,
        DataError,
        f"an image in {name}",
        "an empty file (0 bytes)",
        "download or copy it again",
    )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(picture.size, name, max_pixels)
            return _to_rgb(picture, name)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            message(f"at most {max_pixels:.0f} pixels in {name}", str(error), "remove the file")
        ) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(
            message(
                f"an image ({', '.join(FORMATS)}) in {name}",
                _describe(data),
                "replace or remove the file",
            )
        ) from error
    except Exception as error:  # decoders raise many types of errors on damaged files
        raise DataError(
            message(
                f"a complete image in {name}",
                f"{type(error).__name__}: {error}",
                "download or copy it again",
            )
        ) from error


def _check_size(size: tuple[int, int], name: str, max_pixels: float) -> None:
    width, height = size
    require(
        width * height <= max_pixels and width * height != 0,
        DataError,
        f"between 1 and {max_pixels:.0f} pixels in {name}",
        f"{width} x {height} = {width * height} in the header",
        "make the image smaller, or remove the file",
    )


def _to_rgb(picture: Image.Image, name: str) -> np.ndarray:
    """Return an opened picture as uint8 RGB, shape (H, W, 3)."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = _scale_deep_grey(np.asarray(picture), picture.mode, name)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "a" in picture.mode.lower() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (*_BACKGROUND, 255)), layer)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _scale_deep_grey(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    if mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            message(
                f"8 or 16 bits per channel in {name}",
                f"mode {mode} with values {values.min()} to {values.max()}",
                "convert the image to 8 bits, and choose which values become black and white",
            )
        )
    return np.rint(values / 257.0).astype(np.uint8)


def _describe(data: bytes) -> str:
    """Return what the data of an unreadable image look like."""
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "a web page or other markup"
    return f"{len(data)} bytes of an unknown format starting with {data[:8]!r}"

"""Decoding of image files that may come from anywhere into uint8 RGB arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bmfl_lab.errors import DataError, message

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 50e6
MAX_BYTES = 512 << 20
BACKGROUND = (255, 255, 255)


def decode_image(path: str | Path, max_pixels: float = MAX_PIXELS) -> np.ndarray:
    """Decode an image file.

    Parameters
    ----------
    path : str or Path
        A JPEG, PNG, BMP, GIF, TIFF, WebP or PNM file, recognised by content and not by name.
    max_pixels : float, default 5e7
        Largest size accepted; read from the header before anything is decoded.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        RGB.

    Raises
    ------
    DataError
        Naming the file, if it is missing, empty, truncated, damaged, too large or no image.

    Notes
    -----
    One rule for everybody (our choices): transparent pixels are laid on white; grey, palette, CMYK
    and 1-bit images become RGB; 16-bit grey is divided by 257; an EXIF orientation is ignored, as
    is usual for ImageNet; of a moving or multi-page image the first frame is taken.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            message(f"an image file {path.name}", f"nothing at {path}", "check the path")
        )
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            message(
                f"an image of at most {MAX_BYTES} bytes at {path}",
                f"{size} bytes",
                "check the file",
            )
        )
    return decode_bytes(path.read_bytes(), name=str(path), max_pixels=max_pixels)


def count_frames(path: str | Path) -> int:
    """Return the number of frames or pages of an image file, of which `decode_image` takes the first.

    Raises
    ------
    DataError
        If the file is missing or no image.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception as error:
        # as in `decode_bytes`: damaged files raise anything
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
    name : str
        What to call it in messages.
    max_pixels : float, default 5e7
        As in `decode_image`.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    DataError
        As `decode_image`.
    """
    if not data:
        raise DataError(
            message(f"an image in {name}", "an empty file (0 bytes)", "download or copy it again")
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(picture.size, name, max_pixels)
            return _to_rgb(picture, name)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            message(f"at most {max_pixels:.0f} pixels in {name}", str(error), "leave it out")
        ) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(
            message(
                f"an image ({', '.join(FORMATS)}) in {name}",
                _what(data),
                "replace or leave out the file",
            )
        ) from error
    except Exception as error:
        # decoders of damaged files raise whatever they stumble over: OSError, SyntaxError,
        # struct.error, ...
        raise DataError(
            message(
                f"a complete image in {name}",
                f"{type(error).__name__}: {error}",
                "download or copy it again",
            )
        ) from error


def _check_size(size: tuple[int, int], name: str, max_pixels: float) -> None:
    width, height = size
    if width * height > max_pixels or width * height == 0:
        raise DataError(
            message(
                f"between 1 and {max_pixels:.0f} pixels in {name}",
                f"{width} x {height} = {width * height} in the header",
                "make it smaller, leave it out, or raise max_pixels if you trust the file",
            )
        )


def _to_rgb(picture: Image.Image, name: str) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = _scale_deep_grey(np.asarray(picture), picture.mode, name)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "a" in picture.mode.lower() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (*BACKGROUND, 255)), layer)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _scale_deep_grey(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    if mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            message(
                f"8 or 16 bits a channel in {name}",
                f"mode {mode} with values {values.min()} to {values.max()}",
                "convert the image to 8 bit, choosing the range that shall be black to white",
            )
        )
    return np.rint(values / 257.0).astype(np.uint8)


def _what(data: bytes) -> str:
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "a web page or other markup"
    return f"{len(data)} bytes of an unknown format starting with {data[:8]!r}"

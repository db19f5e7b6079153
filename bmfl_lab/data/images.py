"""Decoding of image files from untrusted sources into uint8 RGB arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bmfl_lab.errors import DataError, message, require, translated
from bmfl_lab.files import existing_file, printable, system_errors

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 50e6
MAX_BYTES = 512 << 20
_BACKGROUND = (255, 255, 255)
# tags of a TIFF file, and their values
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_AGAIN = "download or copy it again"
_CONVERT = "convert it to PNG or JPEG"
_FOREIGN = (
    ((b"<!doctype", b"<html", b"<?xml", b"<svg"), "a web page or other markup", _AGAIN),
    ((b"version https://git-lfs",), "a pointer of git-lfs", "run 'git lfs pull' at its source"),
    ((b"/annex/objects",), "a pointer of git-annex", "run 'git annex get' at its source"),
    ((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000 image", _CONVERT),
    ((b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL image", _CONVERT),
    ((b"8BPS",), "a Photoshop document", _CONVERT),
    ((b"\0\0\1\0",), "an icon", _CONVERT),
    ((b"%PDF",), "a PDF document", _CONVERT),
    ((b"PK\3\4", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf"), "an archive", "unpack and remove it"),
    ((b"\x89HDF", b"\x93NUMPY"), "an array file", "move it out of the folder of images"),
)
"""Beginnings of files that are found among images, what they are, and what to do."""


@system_errors()
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
    1-bit images become RGB. 16-bit grey values are divided by 257, and 12-bit ones by 4095 / 255.
    An EXIF orientation is ignored, as is usual for ImageNet. The first frame of an animated or
    multi-page image is used.
    """
    path = existing_file(path, "an image file")
    size = path.stat().st_size
    require(
        size <= MAX_BYTES,
        DataError,
        f"an image of at most {MAX_BYTES} bytes at {path}",
        f"{size} bytes",
        "make the image smaller, or remove the file",
    )
    return decode_bytes(path.read_bytes(), name=printable(path))


@system_errors()
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
    with (
        translated(Exception, expected=f"an image {path}", remedy=_AGAIN),
        system_errors(path),
        Image.open(path, formats=FORMATS) as picture,
    ):
        return int(getattr(picture, "n_frames", 1))


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
    except Exception as error:  # Pillow raises many kinds
        wanted = f"a complete image in {name}"
        got, remedy = _explain(error, data)
        if isinstance(error, Image.DecompressionBombError):
            wanted = f"at most {max_pixels:.0f} pixels in {name}"
        raise DataError(message(wanted, got, remedy)) from error


def _explain(error: Exception, data: bytes) -> tuple[str, str]:
    """Return what is wrong with the content of an image file, and a remedy for this cause."""
    if isinstance(error, Image.UnidentifiedImageError):
        return _explain_foreign(data)
    got = f"{type(error).__name__}: {error}"
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return got, "make the image smaller, or remove the file"
    if "too large" in got:  # Pillow limits the text and the colour profile of a PNG
        return got, "save it without its text and colour profile, for example: mogrify -strip FILE"
    if "not available" in got or "not supported" in got or isinstance(error, NotImplementedError):
        return f"{got} (a compression that Pillow cannot read)", _CONVERT
    return got, _AGAIN


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
        return np.repeat(_scale_deep_grey(picture, name)[:, :, None], 3, axis=2)
    if "a" in picture.mode.lower() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (*_BACKGROUND, 255)), layer)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _scale_deep_grey(picture: Image.Image, name: str) -> np.ndarray:
    """Return a grey picture of more than 8 bits per pixel as uint8, shape (H, W)."""
    values = np.asarray(picture)
    # Pillow tells only of a TIFF how many bits it has; all other formats arrive as 16 bits
    tags = getattr(picture, "tag_v2", {})
    (bits,), (kind,) = tags.get(_BITS, (16,)), tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    require(
        picture.mode != "F" and bits <= 16 and kind == _UNSIGNED,
        DataError,
        f"8 or 16 bits per channel in {name}",
        f"{bits} bits, mode {picture.mode}, with values {values.min()} to {values.max()}",
        "convert the image to 8 bits, and choose which values become black and white",
    )
    grey = np.rint(values / ((2**bits - 1) / 255)).astype(np.uint8)
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _explain_foreign(data: bytes) -> tuple[str, str]:
    """Return what a file of no known image format holds, and what to do with it."""
    start = data[:256].lstrip()
    for beginnings, what, remedy in _FOREIGN:
        if start.startswith(beginnings) or start.lower().startswith(beginnings):
            return what, remedy
    if data[4:8] == b"ftyp":
        return "a HEIC or AVIF image, or a video", _CONVERT
    got = f"{len(data)} bytes of an unknown format starting with {data[:8]!r}"
    return got, "replace or remove the file"

"""Decoding of image files: what every odd file becomes, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from bmfl_lab.data.images import decode_bytes, decode_image
from bmfl_lab.errors import DataError


def encoded(picture, form="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def colourful(height=24, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_header(width, height):
    """Return a PNG that promises a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ending = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + ending
    )


def test_lossless_rgb_comes_back_to_the_bit(tmp_path):
    pixels = colourful()
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels)))
    assert np.array_equal(decode_image(tmp_path / "a.png"), pixels)


def test_the_name_does_not_decide_the_format(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(colourful())))
    assert np.array_equal(decode_image(tmp_path / "a.jpg"), colourful())


@pytest.mark.parametrize("size", [(9400, 9400), (30000, 30000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_from_its_header(tmp_path, size, monkeypatch):
    def forbidden(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image.Image, "convert", forbidden)
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(DataError, match=r"pixels in .*bomb\.png"):
        decode_image(tmp_path / "bomb.png")


def test_a_real_small_file_of_many_pixels_is_refused(tmp_path):
    (tmp_path / "flat.png").write_bytes(encoded(Image.new("1", (9400, 9400))))
    with pytest.raises(DataError, match="9400 x 9400 = 88360000 in the header"):
        decode_image(tmp_path / "flat.png")


def test_the_cap_is_the_callers_choice():
    data = encoded(Image.fromarray(colourful(10, 10)))
    assert decode_bytes(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(DataError, match="between 1 and 99 pixels in one"):
        decode_bytes(data, name="one", max_pixels=99)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_truncated_files_are_refused_by_name(tmp_path, form, share):
    data = encoded(Image.fromarray(colourful(200, 200)), form)
    (tmp_path / "half.img").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"half\.img"):
        decode_image(tmp_path / "half.img")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"<svg xmlns='x'/>", "markup"),
        (b"\x93NUMPY\x01\x00", "an array file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown format"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, content, found):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.jpg.*{found}"):
        decode_image(tmp_path / "x.jpg")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing at .*gone\.png"):
        decode_image(tmp_path / "gone.png")


def test_a_flipped_bit_in_compressed_pixels_is_refused():
    data = bytearray(encoded(Image.fromarray(colourful(60, 60))))
    data[len(data) // 2] ^= 4
    with pytest.raises(DataError, match="a complete image in <bytes>"):
        decode_bytes(bytes(data))


def test_a_text_bomb_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "A" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    with pytest.raises(DataError, match="a complete image in <bytes>"):
        decode_bytes(encoded(Image.fromarray(colourful()), pnginfo=info))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    picture = Image.fromarray(colourful()).convert(mode)
    form = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    expected = np.asarray(picture.convert("RGB"))
    # TIFF keeps these modes without loss
    assert np.array_equal(decode_bytes(encoded(picture, form)), expected)


def test_a_cmyk_jpeg_keeps_its_colours():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.allclose(decode_bytes(encoded(cyan, "JPEG"))[8, 8], (0, 255, 255), atol=3)


@pytest.mark.parametrize("alpha", [0, 51, 128, 255])
def test_alpha_is_laid_on_white(alpha):
    picture = Image.new("RGBA", (4, 4), (200, 100, 0, alpha))
    share = alpha / 255
    expected = np.asarray([200, 100, 0]) * share + 255 * (1 - share)
    assert np.allclose(decode_bytes(encoded(picture))[0, 0], expected, atol=1)


def test_grey_with_alpha_and_transparent_palette_are_laid_on_white():
    assert np.allclose(decode_bytes(encoded(Image.new("LA", (4, 4), (0, 51))))[0, 0], 204, atol=1)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert np.array_equal(decode_bytes(encoded(palette, transparency=0))[0, 0], [255, 255, 255])
    assert np.array_equal(decode_bytes(encoded(palette))[0, 0], [10, 20, 30])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_cut(form):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = decode_bytes(encoded(Image.fromarray(ramp), form))
    assert np.array_equal(found[..., 0], np.rint(ramp / 257).astype(np.uint8))
    assert np.array_equal(found[..., 0], found[..., 2])


def test_numbers_without_a_range_are_refused():
    with pytest.raises(DataError, match="8 or 16 bits per channel"):
        decode_bytes(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_exif_orientation_is_ignored():
    pixels = colourful()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(pixels), exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert np.array_equal(decode_bytes(data), pixels)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG"])
def test_of_many_frames_the_first_is_taken(form):
    frames = [Image.new("RGB", (8, 8), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.array_equal(decode_bytes(data)[4, 4], [250, 0, 0])


def tiff(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


def text_png(n):
    about = PngImagePlugin.PngInfo()
    about.add_itxt("x", "A" * n, zip=True)
    return encoded(Image.new("RGB", (4, 4)), pnginfo=about)


BEGINNINGS = {
    "html": (b"<HTML><body>not found", "a web page", "download or copy it again"),
    "svg": (b"\n<svg xmlns='x'></svg>", "other markup", "download or copy it again"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs", "git lfs pull"),
    "git-annex": (b"/annex/objects/SHA256E-s1--a.jpg", "git-annex", "git annex get"),
    "jpeg2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", "convert it to PNG or JPEG"),
    "jpegxl": (b"\xff\x0a\xfa\x1f", "a JPEG XL image", "convert it to PNG or JPEG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC or AVIF image", "convert it to PNG or JPEG"),
    "avif": (b"\0\0\0\x1cftypavif\0\0\0\0", "a HEIC or AVIF image", "convert it to PNG or JPEG"),
    "photoshop": (b"8BPS\0\1", "a Photoshop document", "convert it to PNG or JPEG"),
    "pdf": (b"%PDF-1.7", "a PDF document", "convert it to PNG or JPEG"),
    "zip": (b"PK\3\4", "an archive", "unpack and remove it"),
    "numpy": (b"\x93NUMPY\1\0", "an array file", "move it out of the folder"),
    "long text": (text_png(3 << 20), "too large", r"mogrify -strip FILE"),
    "truncated": (encoded(Image.new("RGB", (90, 90)))[:-30], "", "download or copy it again"),
    "random": (b"\x07" * 40, "40 bytes of an unknown format", "replace or remove the file"),
}


@pytest.mark.parametrize("case", BEGINNINGS)
def test_the_remedy_depends_on_what_is_wrong_with_the_file(case):
    data, got, remedy = BEGINNINGS[case]
    with pytest.raises(DataError, match=rf"(?s){got}.*To fix it: .*{remedy}"):
        decode_bytes(data)


def test_the_remedy_for_a_long_text_works(tmp_path):
    with Image.open(io.BytesIO(encoded(Image.new("RGB", (4, 4), "red")))) as picture:
        picture.save(tmp_path / "stripped.png")
    assert decode_image(tmp_path / "stripped.png")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 4), 40_000, np.int32),
        np.full((4, 4), 300, np.int32),
        np.full((4, 4), 0.5, np.float32),
        np.array([[0, 2**31 - 1]] * 2, np.int32),
        np.array([[-5, 5]] * 2, np.int32),
    ],
)
def test_grey_of_32_bits_is_refused_and_never_black(array):
    with pytest.raises(DataError, match=r"8 or 16 bits per channel .* choose which values become"):
        decode_bytes(tiff(array))


def test_grey_of_16_bits_keeps_its_range():
    found = decode_bytes(tiff(np.array([[0, 257, 65535]] * 3, np.uint16)))
    assert found[0, :, 0].tolist() == [0, 1, 255]

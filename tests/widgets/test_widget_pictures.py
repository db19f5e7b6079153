"""Pictures beside figures, and saved pages, without a browser."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import widgets
from bmfl_lab.viz.explore import sheet
from widgets.figure import Pictures


def shown(row):
    """The pixels of each image in a row that is visible."""
    found = re.findall(r"visibility:visible'><img[^>]*base64,([^']+)'", row.value)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "times"), [((32, 32), 7), ((300, 200), 1), ((96, 64), 2)])
def test_a_small_picture_is_enlarged_in_whole_pixels(size, times):
    image, row = noise(*size), Pictures((400,))
    row.show((image, "noise"))
    np.testing.assert_array_equal(shown(row)[0], image.repeat(times, 0).repeat(times, 1))
    assert "alt='noise'" in row.value


def test_a_picture_that_goes_keeps_its_place_and_takes_its_caption_along():
    row, one, other = Pictures((100, 100)), noise(8, 8), noise(8, 8, seed=1)
    row.show((one, "first"), (other, "<b>other</b>"))
    np.testing.assert_array_equal(shown(row)[1][::28, ::28], other)
    assert "&lt;b&gt;other" in row.value and "<b>" not in row.value and row.layout.display is None
    row.show((None, "no image"), (other, "other"))
    assert len(shown(row)) == 1 and row.value.count("<img") == 2
    assert "no image" in row.value and ">first<" not in row.value
    row.show((one, "alone"))
    assert len(shown(row)) == row.value.count("<img") == 1 and row.layout.display is None
    row.show()
    assert row.layout.display == "none" and "<img" not in row.value


@pytest.mark.parametrize(
    ("n", "columns", "shape"),
    [(8, 4, (150, 306)), (3, 4, (72, 228)), (5, 4, (150, 306)), (1, 4, (72, 72))],
)
def test_a_sheet_has_its_thumbnails_in_rows(n, columns, shape):
    images = [np.full((9, 9, 3), 20 * (i + 1), np.uint8) for i in range(n)]
    made = sheet(images, columns)
    assert made.shape == (*shape, 4)
    for i in range(n):
        part = made[78 * (i // columns) :, 78 * (i % columns) :][:72, :72]
        assert (part[..., :3] == 20 * (i + 1)).all() and (part[..., 3] == 255).all()
    assert (made[..., 3] == 255).sum() == n * 72 * 72  # clear between them
    row = Pictures((400,))
    row.show((made, "in its own size"))
    np.testing.assert_array_equal(shown(row)[0], made)
    assert sheet([], columns) is None


def test_a_saved_file_has_figures_and_pictures_and_needs_no_other(explorer, tmp_path):
    widgets.surface_viewer(explorer, folder=tmp_path).save_html()
    page = (tmp_path / "surface-1.html").read_text()
    assert (
        page.count("<img") == 1
        and "test image 0" in page
        and '"colorbar":' in page
        and "width:min(100%, 860px)" in page
    )
    bars = widgets.attention_explorer(explorer, folder=tmp_path)
    bars.save_html()
    page = (tmp_path / "attention-1.html").read_text()
    assert page.count("<img") == 2 and len(page) < 1e6, (
        "no figure is shown, so that plotly.js is not needed"
    )

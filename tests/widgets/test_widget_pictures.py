"""Pictures beside figures, and the key of a surface: what a person sees of them without a browser."""

import io
import re

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

import widgets
from widgets.live import colour_bar, round_numbers, told
from widgets.pictures import Pictures, png, sheet


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "times"), [((32, 32), 7), ((300, 200), 1), ((96, 64), 2)])
def test_a_small_picture_is_enlarged_in_whole_pixels(size, times):
    image = noise(*size)
    np.testing.assert_array_equal(pixels(png(image)), image.repeat(times, 0).repeat(times, 1))


def test_a_picture_that_goes_keeps_its_place_and_takes_its_caption_along():
    row, one, other = Pictures((100, 100)), noise(8, 8), noise(8, 8, seed=1)
    row.show((one, "first"), (other, "<b>other</b>"))
    first, second = row.children
    np.testing.assert_array_equal(pixels(second.children[1].value)[::28, ::28], other)
    assert "&lt;b&gt;other" in second.children[0].value and row.layout.display is None
    row.show((None, "no image"), (other, "other"))
    assert first.children[1].layout.visibility == "hidden" and first.layout.display is None
    assert "no image" in first.children[0].value
    page = row.to_html()
    assert page.count("<img") == 1 and "no image" not in page
    row.show((one, "alone"))
    assert second.layout.display == "none" and first.children[1].layout.visibility is None
    assert row.to_html().count("<img") == 1 and row.layout.display is None
    row.show()
    assert row.layout.display == "none" and row.to_html() == ""


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
    np.testing.assert_array_equal(pixels(png(made)), made)
    assert sheet([], columns) is None


def test_round_numbers_are_even_steps_inside_the_range():
    rng = np.random.default_rng(0)
    for _ in range(500):
        low = rng.normal() * 10 ** rng.uniform(-3, 3)
        high = low + 10 ** rng.uniform(-3, 4)
        found = round_numbers(low, high)
        assert (
            2 <= len(found) <= 6
            and low - 1e-6 * (high - low) <= found[0]
            and found[-1] <= high + 1e-6 * (high - low)
        )
        step = np.diff(found)
        np.testing.assert_allclose(step, step[0], rtol=1e-6)
        assert (
            min(abs(step[0] / 10 ** np.floor(np.log10(step[0] * 1.0001)) - m) for m in (1, 2, 5))
            < 1e-3
        )
    np.testing.assert_allclose(round_numbers(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1])
    for low, high in ((-1, 1), (0, 0.7), (-0.7, 0)):
        (zero,) = (k for k in round_numbers(low, high) if abs(k) < 1e-9)
        assert not np.signbit(zero), "would be written as -0"


def test_the_colour_bar_has_the_colours_the_values_and_the_unit_of_the_mesh():
    mesh = go.Mesh3d(colorscale="RdBu_r", cmin=-2, cmax=2, colorbar={"title": {"text": "a < b"}})
    bar = colour_bar(mesh)
    places = {float(p): text for p, text in re.findall(r"bottom:([\d.]+)%'>([^<]+)<", bar)}
    assert places == {0.0: "\u22122", 25.0: "\u22121", 50.0: "0", 75.0: "1", 100.0: "2"}
    stops = re.findall(r"rgb\((\d+), ?(\d+), ?(\d+)\) ([\d.]+)%", bar.partition("to top, ")[2])
    (lowest, *_, highest) = [(np.array(s[:3], float), float(s[3])) for s in stops]
    assert lowest[1] == 0 and highest[1] == 100
    # RdBu_r runs from blue to red: ColorBrewer's ends
    np.testing.assert_allclose(lowest[0] / 255, to_rgb("#053061"), atol=0.01)
    np.testing.assert_allclose(highest[0] / 255, to_rgb("#67001f"), atol=0.01)
    assert "<span>a &lt; b</span>" in bar


def test_the_page_draws_title_and_colour_bar_and_a_saved_file_plotly_does(explorer, tmp_path):
    frame = widgets.surface_viewer(explorer, folder=tmp_path)
    live = next(iter(frame.figures.values()))
    sent = told(live.plot)
    assert "predicted response" in sent["key"] and "predicted response" not in sent["look"]
    assert '"showscale": false' in sent["t3"].replace('":', '": ') and "colorbar" not in sent["t3"]
    frame.save_html()
    page = (tmp_path / "surface-1.html").read_text()
    assert (
        page.count("<img") == 1
        and "predicted response to test image 0" in page
        and '"colorbar":' in page
    )
    bars = widgets.attention_explorer(explorer, folder=tmp_path)
    bars.save_html()
    page = (tmp_path / "attention-1.html").read_text()
    assert page.count("<img") == 2 and len(page) < 1e6, (
        "no figure is shown, so that plotly.js is not needed"
    )

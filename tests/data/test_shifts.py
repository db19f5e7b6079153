"""Every shift against its published definition, worked out here by other means."""

from __future__ import annotations

import colorsys
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from scenes import scene
from scipy import ndimage

from bmfl_lab.data.shifts import (
    IMAGENET_C,
    SHIFTS,
    apply_shift,
    corruptions,
    made,
    shift_note,
    shifted,
    table,
)
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError

SMALL, LARGE = scene(32), scene(224)
FLAT = np.full((224, 224, 3), 128, dtype=np.uint8)


def test_names():
    assert SHIFTS.names() == ("masked", "low_light", "sketch", "stylised", *IMAGENET_C)


@pytest.mark.parametrize("name", SHIFTS.names())
def test_shape_type_and_determinism(name):
    wide = np.ascontiguousarray(scene(64)[:40])
    before = wide.copy()
    first = apply_shift(wide, name, 3, seed=5, stimulus_id="a")
    assert first.shape == wide.shape and first.dtype == np.uint8
    assert np.array_equal(first, apply_shift(wide, name, 3, seed=5, stimulus_id="a"))
    assert np.array_equal(wide, before)
    assert not np.array_equal(first, wide)


DRAWN = sorted(
    set(SHIFTS.names())
    - {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_differ_by_id_and_seed(name):
    by_id = {apply_shift(SMALL, name, 5, seed=0, stimulus_id=i).tobytes() for i in "abcd"}
    by_seed = {apply_shift(SMALL, name, 5, seed=i, stimulus_id="a").tobytes() for i in range(4)}
    assert len(by_id) > 1 and len(by_seed) > 1


# The published levels of these are not ordered by pixel distance (see their docstrings and the test
# below).
UNORDERED = {"elastic_transform", "glass_blur", "snow", "fog", "frost", "motion_blur"}


@pytest.mark.parametrize("name", [n for n in SHIFTS.names() if n not in UNORDERED])
@pytest.mark.parametrize("side", [32, 112])
def test_severity_is_monotone(name, side):
    images = [scene(side, s) for s in range(12 if side == 32 else 6)]
    distance = [
        np.mean(
            [
                np.abs(apply_shift(x, name, s, stimulus_id=str(i)) - x.astype(float)).mean()
                for i, x in enumerate(images)
            ]
        )
        for s in range(1, 6)
    ]
    assert (np.diff(distance) > 0).all(), distance


@pytest.mark.parametrize("name", sorted(UNORDERED - {"elastic_transform", "frost"}))
def test_published_levels_end_stronger_than_they_begin(name):
    images = [scene(224, s) for s in range(3)]
    first, last = (
        np.mean(
            [
                np.abs(apply_shift(x, name, s, stimulus_id=str(i)) - x.astype(float)).mean()
                for i, x in enumerate(images)
            ]
        )
        for s in (1, 5)
    )
    assert last > first


def test_refusals():
    with pytest.raises(ConfigError, match="did you mean 'masked'"):
        apply_shift(SMALL, "maskd", 1, 0)
    for severity in (0, 6, 1.5, True):
        with pytest.raises(ConfigError, match="severity from 1 to 5"):
            apply_shift(SMALL, "masked", severity, 0)
    for image in (SMALL.astype(float), SMALL[..., 0], SMALL[:4]):
        with pytest.raises(DataError, match=r"uint8 image of shape \(H, W, 3\)"):
            apply_shift(image, "masked", 1, 0)
    with pytest.raises(ConfigError, match="an option of shift 'masked'"):
        apply_shift(SMALL, "masked", 1, 0, colour="red")
    with pytest.raises(ConfigError, match="fill among"):
        apply_shift(SMALL, "masked", 1, 0, fill="red")
    with pytest.raises(ConfigError, match="patch and ratio in"):
        apply_shift(SMALL, "masked", 1, 0, ratio=1.5)
    with pytest.raises(ConfigError, match="form 'physical'"):
        apply_shift(SMALL, "low_light", 1, 0, form="x")
    with pytest.raises(ConfigError, match="form 'statistics'"):
        apply_shift(SMALL, "stylised", 1, 0, form="x")


def test_masked_covers_the_stated_share_of_whole_patches():
    for severity, ratio in enumerate(made.MASK_RATIOS, 1):
        out = apply_shift(LARGE, "masked", severity, 0, fill="black")
        patches = out.reshape(14, 16, 14, 16, 3).transpose(0, 2, 1, 3, 4).reshape(196, -1)
        covered = (patches == 0).all(1)
        assert covered.sum() == round(ratio * 196)
        whole = LARGE.reshape(14, 16, 14, 16, 3).transpose(0, 2, 1, 3, 4).reshape(196, -1)
        assert np.array_equal(patches[~covered], whole[~covered])
    mean = apply_shift(LARGE, "masked", 5, 0)
    assert np.median(mean.reshape(-1, 3), axis=0) == pytest.approx(LARGE.mean((0, 1)), abs=0.51)
    noise = apply_shift(LARGE, "masked", 5, 0, ratio=1.0, fill="noise")
    assert noise.std() == pytest.approx(256 / np.sqrt(12), rel=0.02)


def test_low_light_darkens_as_stated():
    # On a mid-grey image the developed value is x (k g)^(1/gamma): between the extremes of the
    # drawn ranges.
    levels = [
        np.mean([apply_shift(LARGE[:64, :64], "low_light", s, i).mean() for i in range(12)])
        for s in range(1, 6)
    ]
    assert (np.diff(levels) < 0).all() and levels[0] < 0.75 * LARGE.mean()
    random = np.random.default_rng(0)
    dark = made.darken_raw(np.full((400, 400, 3), 0.5), 0.1, random)
    assert dark.mean() == pytest.approx(0.05, abs=1e-3)


def test_low_light_noise_model():
    # With shot and read noise known, the variance of the raw values is k x shot + read.
    class Fixed:
        def __init__(self):
            self.inner = np.random.default_rng(0)

        def uniform(self, low, high, size=None):
            return np.log(0.005) if size is None else self.inner.uniform(low, high, size=size)

        def normal(self, *args, size=None):
            return 0.0 if size is None else self.inner.normal(size=size)

        def choice(self, options):
            return 12

    noisy = made.darken_raw(np.full((300, 300, 3), 0.8), 0.25, Fixed())
    read = np.exp(2.18 * np.log(0.005) + 1.20)
    expected = 0.2 * 0.005 + read + (2 / (255 * 12)) ** 2 / 12
    assert noisy.var() == pytest.approx(expected, rel=0.02)


def test_low_light_pipeline_inverts_without_darkening(monkeypatch):
    monkeypatch.setattr(made, "darken_raw", lambda raw, k, random: raw)

    class Neutral(np.random.Generator):
        def normal(self, *args, **kwargs):
            return 1.0

    x = np.random.default_rng(0).uniform(0.2, 0.6, size=(8, 8, 3))
    x = np.repeat(x.mean(axis=2, keepdims=True), 3, axis=2)  # greys stay inside the camera's gamut
    out = made._physical(x, 1.0, Neutral(np.random.PCG64(0)))
    assert out == pytest.approx(0.5 - np.sin(np.arcsin(1 - 2 * x) / 3), abs=1e-6)


def test_low_light_forms():
    for form in ("maet", "gamma"):
        assert apply_shift(LARGE, "low_light", 4, 0, form=form).mean() < 0.6 * LARGE.mean()


def test_sketch_is_line_art_at_five():
    out = apply_shift(LARGE, "sketch", 5, 0)
    assert np.ptp(out.astype(int), axis=2).max() == 0
    assert (out > 230).mean() > 0.6 and (out < 120).mean() > 0.01


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_noise_sd(severity):
    sd = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    found = apply_shift(FLAT, "gaussian_noise", severity, 0) / 255
    expected = np.clip(128 / 255 + sd * np.random.default_rng(1).normal(size=400000), 0, 1)
    assert found.std() == pytest.approx(expected.std(), rel=0.01)
    assert apply_shift(FLAT[:32, :32], "gaussian_noise", 5, 0).std() / 255 == pytest.approx(
        0.10, rel=0.03
    )


def test_shot_noise_mean_and_variance():
    dim = np.full((224, 224, 3), 51, dtype=np.uint8)
    found = apply_shift(dim, "shot_noise", 1, 0) / 255
    assert found.mean() == pytest.approx(0.2, abs=2e-3)
    assert found.var() == pytest.approx(0.2 / 60, rel=0.02)


def test_impulse_noise_share():
    out = apply_shift(FLAT, "impulse_noise", 5, 0)
    assert (out == 0).mean() == pytest.approx(0.135, abs=3e-3)
    assert (out == 255).mean() == pytest.approx(0.135, abs=3e-3)
    assert ((out == 0) | (out == 255) | (out == 128)).all()


def delta(side: int = 224) -> np.ndarray:
    image = np.zeros((side, side, 3), dtype=np.uint8)
    image[side // 2, side // 2] = 255
    return image


@pytest.mark.parametrize("radius", [3, 6, 10])
def test_defocus_kernel_is_a_disk(radius):
    kernel = corruptions.disk_kernel(radius, 0.5)
    grid = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    distance = np.hypot(*np.meshgrid(grid, grid))
    assert kernel.sum() == pytest.approx(1)
    assert kernel[distance < radius - 2] == pytest.approx(1 / np.sum(distance <= radius), rel=1e-3)
    assert (kernel[distance > radius + 2.9] == 0).all()


def test_defocus_of_a_delta_is_the_kernel():
    x = delta().astype(np.float32)
    kernel = corruptions.disk_kernel(6, 0.5)
    out = corruptions.convolve(x, kernel)[..., 0] / 255
    half = kernel.shape[0] // 2
    assert out[112 - half : 113 + half, 112 - half : 113 + half] == pytest.approx(kernel, abs=1e-6)
    random = np.random.default_rng(0).random((20, 24, 3))
    other = np.stack(
        [ndimage.correlate(random[..., c], kernel, mode="mirror") for c in range(3)], -1
    )
    assert corruptions.convolve(random, kernel) == pytest.approx(other, abs=1e-6)


def test_motion_of_a_delta():
    out = corruptions.motion(delta()[..., 0].astype(np.float64) / 255, 10, 3, 0)
    line = out[112, 112 - 20 : 113][::-1]
    expected = np.exp(-0.5 * (np.arange(21) / 3) ** 2)
    assert line == pytest.approx(expected / expected.sum())
    assert out.sum() == pytest.approx(1) and (out[111] == 0).all()
    steep = corruptions.motion(delta()[..., 0].astype(np.float64), 10, 3, 90)
    assert (steep[:, 112] > 0).sum() == 21


def test_zoom_blur_average():
    levels = np.arange(1, 1.11, 0.01)
    x = LARGE / 255
    total = x.copy()
    for f in levels:
        ch = int(np.ceil(224 / f))
        top = (224 - ch) // 2
        big = np.asarray(ndimage.zoom(x[top : top + ch, top : top + ch], (f, f, 1), order=1))
        trim = (big.shape[0] - 224) // 2
        total += big[trim : trim + 224, trim : trim + 224]
    expected = total / (len(levels) + 1) * 255
    assert np.abs(apply_shift(LARGE, "zoom_blur", 1, 0) - expected).max() < 1


def test_magnify_keeps_a_constant_and_a_ramp():
    ramp = np.tile(np.arange(60.0), (60, 1))
    out = corruptions.magnify(ramp, 2.0)
    assert np.diff(out[30]).mean() == pytest.approx(0.5, abs=0.02)
    assert corruptions.magnify(np.ones((31, 47)), 1.37).shape == (31, 47)


def literal_swaps(n, reach, rounds, random):
    """The published loop, pixel after pixel."""
    where = [[(r, c) for c in range(n)] for r in range(n)]
    for _ in range(rounds):
        for r in range(n - reach, reach, -1):
            for c in range(n - reach, reach, -1):
                dc, dr = random.integers(-reach, reach, 2)
                where[r][c], where[r + dr][c + dc] = where[r + dr][c + dc], where[r][c]
    return np.asarray(where)


@pytest.mark.parametrize("reach,rounds", [(1, 2), (2, 3), (4, 2)])
def test_glass_displacements_match_the_published_loop(reach, rounds):
    n, inner = 48, slice(8, -8)
    grid = np.stack(np.mgrid[:n, :n], -1)

    def spread(where):
        return np.sqrt((((where - grid)[inner, inner]) ** 2).sum(-1).mean())

    mine, theirs = [], []
    for seed in range(6):
        index = np.arange(n * n).reshape(n, n)
        random = np.random.default_rng(seed)
        for _ in range(rounds):
            corruptions.swap_neighbours(index, reach, random)
        assert sorted(index.ravel()) == list(range(n * n))
        mine.append(spread(np.stack(np.divmod(index, n), -1)))
        theirs.append(spread(literal_swaps(n, reach, rounds, np.random.default_rng(seed))))
    assert np.mean(mine) == pytest.approx(np.mean(theirs), rel=0.1)


def test_fog_formula_and_plasma():
    random = np.random.default_rng(0)
    haze = corruptions.plasma(256, 2.0, random)
    assert haze.min() == 0 and haze.max() == 1
    rough = [
        np.abs(np.diff(corruptions.plasma(256, d, np.random.default_rng(0)), axis=0)).mean()
        for d in (3, 2, 1.4)
    ]
    assert rough[0] < rough[1] < rough[2]
    out = apply_shift(FLAT, "fog", 1, 0) / 255
    m, d = 128 / 255, 1.5
    assert out.min() == pytest.approx(m * m / (m + d), abs=0.01)  # where the haze is 0
    assert out.max() == pytest.approx(m, abs=0.01)  # where it is 1


def test_snow_whitens_by_the_published_formula(monkeypatch):
    monkeypatch.setattr(corruptions, "motion", lambda x, *args: np.zeros_like(x))
    x = LARGE / 255
    luma = np.asarray(Image.fromarray(LARGE).convert("L"))[..., None] / 255
    expected = 0.8 * x + 0.2 * np.maximum(x, luma * 1.5 + 0.5)
    assert np.abs(apply_shift(LARGE, "snow", 1, 0) / 255 - np.clip(expected, 0, 1)).max() < 0.006


def test_frost_weights(monkeypatch):
    monkeypatch.setattr(
        corruptions, "ice", lambda h, w, random: np.full((h, w, 3), 0.5, dtype=np.float32)
    )
    for severity, (keep, add) in enumerate(
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), 1
    ):
        expected = np.clip(keep * LARGE / 255 + add * 0.5, 0, 1) * 255
        assert np.abs(apply_shift(LARGE, "frost", severity, 0) - expected).max() < 0.51


def test_photographs_of_frost_are_used_where_there_are_any(tmp_path, monkeypatch):
    assert "drawn" in shift_note("frost") and shift_note("fog") == ""
    drawn = shifted(from_arrays("x", LARGE[None], ["a"], [0]), "frost", 1)
    monkeypatch.setenv("BMFL_FROST", str(tmp_path))
    with pytest.raises(DataError, match="photographs of frost"):
        apply_shift(LARGE, "frost", 1)
    picture = np.full((40, 300, 3), (200, 220, 240), np.uint8)
    Image.fromarray(picture).save(tmp_path / "frost1.png")
    expected = np.clip(LARGE + 0.4 * picture[0, 0], 0, 255)
    assert np.abs(apply_shift(LARGE, "frost", 1) - expected).max() < 0.51
    assert shift_note("frost") == ""
    real = shifted(from_arrays("x", LARGE[None], ["a"], [0]), "frost", 1)
    assert real.digests() != drawn.digests()


def test_brightness_is_hsv_value():
    random = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    random[0, 0] = 0
    out = apply_shift(random, "brightness", 3, 0)
    for i in range(12):
        for j in range(12):
            h, s, v = colorsys.rgb_to_hsv(*(random[i, j] / 255))
            expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + 0.15, 1))) * 255
            assert np.abs(out[i, j] - expected).max() < 0.51


@pytest.mark.parametrize("severity,factor", [(1, 0.4), (5, 0.05)])
def test_contrast_formula(severity, factor):
    mean = LARGE.mean((0, 1))
    expected = (LARGE - mean) * factor + mean
    assert np.abs(apply_shift(LARGE, "contrast", severity, 0) - expected).max() < 0.51


@pytest.mark.parametrize("severity,quality", [(1, 25), (3, 15), (5, 7)])
def test_jpeg_quality_by_reencoding(severity, quality):
    buffer = io.BytesIO()
    Image.fromarray(LARGE).save(buffer, "JPEG", quality=quality)
    assert np.array_equal(
        apply_shift(LARGE, "jpeg_compression", severity, 0), np.asarray(Image.open(buffer))
    )


def test_pixelate_averages_blocks():
    out = apply_shift(LARGE, "pixelate", 5, 0)  # 224 -> 56: blocks of 4 x 4
    blocks = LARGE.reshape(56, 4, 56, 4, 3).mean((1, 3))
    assert np.abs(out.reshape(56, 4, 56, 4, 3)[:, 0, :, 0] - blocks).max() <= 1  # rounded twice
    assert len(np.unique(out.reshape(56, 4, 56, 4, 3), axis=1)[0]) == 1


def test_elastic_affine_moves_three_points():
    source = np.array([[10.0, 20], [30, 5], [7, 7]])
    target = source + np.array([[1.0, 2], [-3, 0.5], [0, -1]])
    m = corruptions._affine_from_points(source, target)
    assert (m[:, :2] @ source.T + m[:, 2:]).T == pytest.approx(target)


def test_elastic_displacement_field_has_the_published_smoothness():
    field = np.random.default_rng(0).uniform(-1, 1, (128, 128))
    mine = table.smooth(field, 2.44)
    assert mine == pytest.approx(
        ndimage.gaussian_filter(field, 2.44, mode="reflect", truncate=6), abs=1e-4
    )


def test_small_and_large_use_their_published_constants():
    assert table.reference(SMALL) == (True, 1.0)
    assert table.reference(LARGE) == (False, 1.0)
    assert table.reference(scene(96)) == (False, 96 / 224)


def test_severities_share_their_draws():
    masks = [(apply_shift(LARGE, "masked", s, 3, fill="black") == 0).all(-1) for s in range(1, 6)]
    for less, more in itertools.pairwise(masks):
        assert not (less & ~more).any()
    for seed in range(5):
        levels = [apply_shift(LARGE[:96, :96], "low_light", s, seed).mean() for s in range(1, 6)]
        assert (np.diff(levels) < 0).all()

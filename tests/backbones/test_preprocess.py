"""The one way from pixels to the backbone's input."""

import numpy as np
import pytest
import torch
from PIL import Image

from bmfl_lab.backbones import Preprocess, load_backbone
from bmfl_lab.errors import ConfigError, DataError


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_it_equals_the_image_processor_of_transformers():
    transformers = pytest.importorskip("transformers")
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    for height, width in ((300, 400), (375, 500), (500, 333), (224, 224), (90, 61)):
        expected = processor(Image.fromarray(noise(height, width)), return_tensors="np")[
            "pixel_values"
        ][0]
        found = Preprocess(224)(noise(height, width)).numpy()
        # the reference rounds the crop's corner the other way where the margin is odd: allow one
        # pixel of shift
        shifts = [
            np.abs(np.roll(found, (dy, dx), (1, 2)) - expected)[:, 2:-2, 2:-2].max()
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        assert min(shifts) < 1e-5, (height, width, shifts)


def test_statistics_are_those_of_imagenet():
    flat = np.full((64, 64, 3), 128, np.uint8)
    expected = (128 / 255 - np.asarray([0.485, 0.456, 0.406])) / np.asarray([0.229, 0.224, 0.225])
    found = Preprocess(56)(flat)
    assert found.dtype == torch.float32
    assert found.shape == (3, 56, 56)
    assert np.allclose(found.numpy(), expected[:, None, None], atol=1e-5)


def test_an_image_of_the_right_size_passes_untouched():
    pixels = noise(256, 256)
    assert np.array_equal(Preprocess(224).crop(pixels), pixels[16:240, 16:240])
    pixels = noise(98, 98)
    assert np.array_equal(Preprocess(98, resize="direct").crop(pixels), pixels)


def test_direct_keeps_the_border_and_short_cuts_it():
    framed = np.zeros((32, 32, 3), np.uint8)
    framed[:1], framed[-1:], framed[:, :1], framed[:, -1:] = 255, 255, 255, 255
    assert Preprocess(98, resize="direct").crop(framed)[0].min() > 200
    assert Preprocess(98, resize="short").crop(framed)[0].max() < 60


def test_the_crop_is_the_centre():
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 140:160] = 255
    found = Preprocess(98, resize="direct").crop(pixels)[50, :, 0].astype(float)
    assert abs((found * np.arange(98)).sum() / found.sum() - 48.5) < 0.6


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5000), (5000, 1), (3, 70), (13, 13), (2000, 99), (31, 33)]
)
@pytest.mark.parametrize("resize", ["short", "direct"])
def test_small_images_and_strips_give_the_same_shape(size, resize):
    found = Preprocess(98, resize=resize)(noise(*size))
    assert found.shape == (3, 98, 98)
    assert torch.isfinite(found).all()


def test_a_strip_costs_no_more_than_twenty_squares(monkeypatch):
    sizes = []
    resize = Image.Image.resize

    def watched(self, size, *rest):
        sizes.append(size)
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", watched)
    Preprocess(224)(np.zeros((1, 1_000_000, 3), np.uint8))
    assert sizes == [(5120, 256)]


def test_cutting_a_strip_does_not_change_the_crop(monkeypatch):
    pixels = noise(20, 402)
    cut = Preprocess(56).crop(pixels)
    monkeypatch.setattr("bmfl_lab.backbones.protocol.MAX_ASPECT", 10_000)
    whole = Preprocess(56).crop(pixels)
    assert np.abs(cut.astype(int) - whole).max() <= 2


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(DataError, match=r"a uint8 image of shape \(H, W, 3\)"):
        Preprocess(56)(array)


@pytest.mark.parametrize("size", [0, -14, 100, 13, 256])
def test_sizes_must_be_multiples_of_the_patch_size(size):
    with pytest.raises(ConfigError, match="multiple of 14"):
        Preprocess(size)


def test_a_missing_size_is_refused_with_what_a_loader_does():
    with pytest.raises(ConfigError, match=r"got None.*a loader replaces image_size=None"):
        Preprocess(image_size=None)


def test_a_patch_of_16_pixels_accepts_256():
    assert Preprocess(256, patch_size=16)(noise(300, 300)).shape == (3, 256, 256)
    with pytest.raises(ConfigError, match=r"multiple of 16; got 252\. To fix it: use 256"):
        Preprocess(252, patch_size=16)


def test_mean_and_standard_deviation_can_be_chosen():
    own = Preprocess(56, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    found = own(np.full((64, 64, 3), 255, np.uint8))
    assert torch.equal(found[:, 0, 0], torch.tensor([1.0, 2.0, 1.0]))
    assert own.describe()["std"] == [0.5, 0.25, 0.5]


def test_every_choice_is_described():
    a, b = Preprocess(98).describe(), Preprocess(98, resize="direct").describe()
    assert (a["short_side"], b["short_side"]) == (112, 98)
    assert a != b != Preprocess(112, resize="direct").describe()
    assert load_backbone("vit_tiny14", image_size=98, resize="direct").preprocess.describe() == b
    with pytest.raises(ConfigError, match="multiple of 14; got 0"):
        load_backbone("vit_tiny14", image_size=0)

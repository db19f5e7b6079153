"""The stylised shift: amplitude mixing, patch statistics and AdaIN, by their definitions."""

import numpy as np
import pytest
from scenes import scene

from bmfl_lab.data.shifts import apply_shift, made
from bmfl_lab.errors import ConfigError, DataError

SMALL, LARGE = scene(32), scene(224)


def test_style_statistics():
    random = np.random.default_rng(0)
    x, other = random.random((48, 40, 3)), random.random((30, 30, 3)) ** 2
    moved = made.colour_transfer(x, other)
    assert moved.mean((0, 1)) == pytest.approx(other.mean((0, 1)))
    assert np.cov(moved.reshape(-1, 3).T) == pytest.approx(np.cov(other.reshape(-1, 3).T), abs=2e-4)
    y = random.random((48, 40, 3))
    mixed = np.fft.fft2(made.mix_amplitude(x, y, 1.0), axes=(0, 1))
    assert np.abs(mixed[1:5, 1:5]) == pytest.approx(
        np.abs(np.fft.fft2(y, axes=(0, 1)))[1:5, 1:5], rel=1e-6
    )
    assert np.angle(mixed[1:5, 1:5]) == pytest.approx(
        np.angle(np.fft.fft2(x, axes=(0, 1)))[1:5, 1:5], abs=1e-6
    )
    assert made.mix_statistics(x, y, 0.0) == pytest.approx(x, abs=1e-6)
    a = made.adain(random.random((4, 6, 6)), 3 * random.random((4, 5, 5)))
    with pytest.raises(DataError, match="same channels"):
        made.adain(a, a[:2])


def test_adain_gives_the_moments_of_the_style():
    random = np.random.default_rng(0)
    content, other = random.random((4, 9, 9)), 3 + 2 * random.random((4, 7, 7))
    out = made.adain(content, other, eps=0)
    assert out.mean((1, 2)) == pytest.approx(other.mean((1, 2)))
    assert out.std((1, 2)) == pytest.approx(other.std((1, 2)))


def test_stylised_with_a_users_encoder():
    encoder, decoder = (lambda x: np.moveaxis(x, 2, 0)), (lambda f: np.moveaxis(f, 0, 2))
    out = apply_shift(
        LARGE, "stylised", 5, 0, form="adain", style=LARGE[::-1], encoder=encoder, decoder=decoder
    )
    assert np.abs(out.astype(int) - LARGE).max() <= 1  # a flipped image has the same moments
    with pytest.raises(ConfigError, match="encoder and decoder"):
        apply_shift(LARGE, "stylised", 5, 0, form="adain")
    with pytest.raises(DataError, match="a style of shape"):
        apply_shift(LARGE, "stylised", 5, 0, style=SMALL)

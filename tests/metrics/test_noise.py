"""Noise ceilings against planted signal and noise."""

import numpy as np
import pytest

from bmfl_lab.errors import DataError
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.metrics.noise import (
    aggregate,
    ceiling_from_ncsnr,
    ceiling_from_repeats,
    ncsnr_from_repeats,
    noise_normalised,
    split_half_ceiling,
)

SNR = np.array([0.0, 0.3, 0.7, 1.5])


def planted(n=3000, k=3, seed=0):
    g = np.random.default_rng(seed)
    signal = g.normal(size=(n, 1, len(SNR))) * SNR
    return signal[:, 0], 5 + signal + g.normal(size=(n, k, len(SNR)))


def test_published_formula_for_mixed_repeats():
    s, r3, r2, r1 = 0.8, 100, 40, 19
    by_hand = s**2 / (s**2 + (r3 / 3 + r2 / 2 + r1) / (r3 + r2 + r1))
    assert ceiling_from_ncsnr(np.array([s]), {3: r3, 2: r2, 1: r1})[0] == pytest.approx(
        by_hand, rel=1e-6
    )
    assert ceiling_from_ncsnr(np.array([s]), 3)[0] == pytest.approx(s**2 / (s**2 + 1 / 3), rel=1e-6)
    with pytest.raises(DataError, match="at least one repeat"):
        ceiling_from_ncsnr(np.array([s]), {0: 3})


def test_a_negative_ratio_has_no_ceiling_and_a_ratio_of_zero_has_zero():
    found = ceiling_from_ncsnr(np.array([-0.8, 0.0, np.nan, 0.8]), {3: 2, 1: 1})
    assert np.isnan(found[[0, 2]]).all() and found[1] == 0
    assert found[3] == pytest.approx(0.64 / (0.64 + (2 / 3 + 1) / 3), rel=1e-6)


def test_planted_ratio_is_recovered_also_with_missing_repeats():
    _, x = planted()
    np.testing.assert_allclose(ncsnr_from_repeats(x) ** 2, SNR**2, atol=0.08)
    x[:900, 2] = np.nan
    x[:200, 1] = np.nan
    np.testing.assert_allclose(ncsnr_from_repeats(x) ** 2, SNR**2, atol=0.08)
    expected = ceiling_from_ncsnr(SNR, {3: 2100, 2: 700, 1: 200})
    np.testing.assert_allclose(ceiling_from_repeats(x), expected, atol=0.06)


def test_stimuli_without_a_repeat_and_lone_missing_values_do_not_count():
    _, x = planted(n=500)
    x[:100, 2, 0] = np.nan  # one vertex of a presentation that took place
    counts = {3: 500}
    want = ceiling_from_ncsnr(ncsnr_from_repeats(x), counts)
    np.testing.assert_allclose(ceiling_from_repeats(x), want)
    never = np.concatenate([x, np.full((50, 3, len(SNR)), np.nan)])
    np.testing.assert_allclose(ceiling_from_repeats(never), want)


def test_best_possible_prediction_reaches_the_ceiling():
    signal, x = planted()
    ceiling = ceiling_from_repeats(x)
    r = pearson(signal[:, 1:], x.mean(1)[:, 1:])
    np.testing.assert_allclose(r**2, ceiling[1:], atol=0.04)
    np.testing.assert_allclose(split_half_ceiling(x), ceiling_from_ncsnr(SNR, 3), atol=0.08)
    assert aggregate(noise_normalised(r, ceiling[1:]))["mean"] > 93


def test_undefined_ceilings_are_counted_not_scored():
    r = np.array([0.5, -0.4, np.nan, 0.5, 0.5, 0.9])
    nc = np.array([0.5, 0.5, 0.5, 0.0, np.nan, 0.1])
    score = noise_normalised(r, nc)
    np.testing.assert_allclose(score[[0, 1, 5]], [50, 0, 100], atol=1e-4)
    assert np.isnan(score[2:5]).all()
    assert aggregate(score) == {
        "mean": pytest.approx(50),
        "median": pytest.approx(50),
        "n": 3,
        "n_undefined": 3,
    }
    assert noise_normalised(r, nc, "challenge")[3] == 100
    assert aggregate(np.array([np.nan]))["n_undefined"] == 1


def test_the_ratio_is_that_of_a_one_way_analysis_of_variance():
    from scipy.stats import f_oneway

    x = np.random.default_rng(3).normal(size=(7, 3, 2)) + np.arange(7)[:, None, None]
    x[0, 2] = x[3, 1] = np.nan
    groups = [[g[np.isfinite(g)] for g in x[:, :, v]] for v in range(2)]
    f = np.array([f_oneway(*g).statistic for g in groups])
    sizes = np.array([len(g) for g in groups[0]])
    size = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(sizes) - 1)
    np.testing.assert_allclose(ncsnr_from_repeats(x), np.sqrt((f - 1) / size), rtol=1e-6)
    two = x[1:3, :2]
    assert np.isfinite(ncsnr_from_repeats(two)).all()


def test_stimuli_that_were_shown_once_lower_the_ceiling():
    _, x = planted(n=400)
    x[:100, 1:] = np.nan  # one presentation
    x[100:150, 2] = np.nan
    expected = ceiling_from_ncsnr(ncsnr_from_repeats(x), {1: 100, 2: 50, 3: 250})
    np.testing.assert_allclose(ceiling_from_repeats(x), expected, rtol=1e-6)


def test_halves_are_stepped_up_to_all_repeats():
    _, x = planted(n=4000, k=5)
    r2 = np.square(SNR) / (np.square(SNR) + 1 / 5)
    np.testing.assert_allclose(split_half_ceiling(x), r2, atol=0.05)
    four = split_half_ceiling(x[:, :4])
    np.testing.assert_allclose(four, np.square(SNR) / (np.square(SNR) + 1 / 4), atol=0.05)
    with pytest.raises(DataError):
        split_half_ceiling(x[:2])
    some = x[:300].copy()
    some[:100, 1] = np.nan  # a stimulus that lacks a repeat is left out
    np.testing.assert_array_equal(split_half_ceiling(some), split_half_ceiling(x[100:300]))
    one = split_half_ceiling(x[:50, :2], n_splits=1, seed=4)
    assert np.array_equal(one, split_half_ceiling(x[:50, :2], n_splits=1, seed=4))


def test_the_edges_of_normalised_scores():
    found = noise_normalised(np.array([1.0, -1.0, 0.5, 0.9]), np.array([1.0, 1.0, 0.25, 0.5]))
    assert found.tolist() == [100, 0, 100, 100]
    assert noise_normalised(np.array([0.3]), np.array([0.36]))[0] == pytest.approx(25)
    challenge = noise_normalised(np.array([0.1, -0.1]), np.zeros(2), "challenge")
    assert challenge.tolist() == [100, 0]
    assert noise_normalised(np.array([0.5]), np.ones(1), "challenge").tolist() == [25]
    with pytest.raises(DataError, match="count the repeats that were averaged"):
        ceiling_from_ncsnr(np.ones(2), {0: 3, 1: 2})
    assert ceiling_from_ncsnr(np.ones(1), {1: 1})[0] == 0.5

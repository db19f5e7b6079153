"""Identification and preferred stimuli."""

import numpy as np
import pytest

from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.decoding import identify, preferred_stimuli


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_perfect_predictions_identify_all_and_noise_stays_at_chance():
    y = draw(40, 30)
    best = identify(y, 3 * y + 1)
    assert (best.top1, best.two_way, best.top1_chance) == (1, 1, 1 / 40)
    noise = identify(y, draw(40, 30, seed=1))
    assert noise.two_way_low < 0.5 < noise.two_way_high and noise.top1 < 0.15


def test_top1_counts_the_responses_that_fit_no_other_image_better():
    y, p = draw(6, 8), draw(6, 8, seed=1) + 0.5 * draw(6, 8)
    r = np.corrcoef(y, p)[:6, 6:]
    want = np.mean([all(r[i, i] > r[i, j] for j in range(6) if j != i) for i in range(6)])
    found = identify(y, p)
    assert 0 < want < 1 and found.top1 == want and found.top1_chance == 1 / 6


def test_constant_response_identifies_nothing():
    y = draw(5, 6)
    y[2] = 1.5
    found = identify(y, y)
    assert found.per_stimulus[2] == 0.5 and found.top1 == pytest.approx(0.8)
    with pytest.raises(DataError, match="one shape"):
        identify(y, y[:4])


def test_preferred_stimuli_rank_by_the_roi_alone():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    stimuli = from_arrays("s", images, list("abcdef"), [0, 0, 1, 1, 1, 0], ("face", "place"))
    predicted = np.stack([[5, 4, 0, 1, -2, 3], [9, -9, 9, -9, 9, -9]], 1).astype(float)
    found, categories = preferred_stimuli(predicted, np.array([True, False]), stimuli, n=2)
    assert list(found["id"]) == ["a", "b", "e", "c"] and list(found["rank"]) == [1, 2, 6, 5]
    assert list(categories["category"]) == ["face", "place"]
    assert list(categories["share_of_top"]) == [1, 0] and categories["activity"][
        0
    ] == pytest.approx(4)
    with pytest.raises(DataError, match="a non-empty ROI"):
        preferred_stimuli(predicted, np.zeros(2, bool), stimuli)

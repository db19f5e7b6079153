"""Infinite ratios, logits and impossible ceilings: a defined number or a refusal, and never a raw warning."""

import warnings

import numpy as np
import pytest

from bmfl_lab.errors import DataError
from bmfl_lab.metrics import classification as c
from bmfl_lab.metrics.noise import ceiling_from_ncsnr, noise_normalised


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_responses_without_noise_have_a_ceiling_of_one():
    found = ceiling_from_ncsnr(
        np.array([np.inf, 1e200, 1e30, 0.0, np.nan, -np.inf, -1.0]), {3: 2, 1: 1}
    )
    np.testing.assert_array_equal(found[:4], [1, 1, 1, 0])
    assert np.isnan(found[4:]).all() and found.dtype == np.float32


@pytest.mark.parametrize("ceiling", [1.4, 1.001, 40.0, 100.0, np.inf])
@pytest.mark.parametrize("convention", ["undefined", "challenge"])
def test_a_ceiling_above_one_is_refused(ceiling, convention):
    with pytest.raises(
        DataError, match=r"noise ceilings of at most 1; got .*divide percentages by 100"
    ):
        noise_normalised(np.array([0.5, 0.5]), np.array([0.4, ceiling]), convention)


def test_a_correlation_above_one_is_refused_and_rounding_is_not():
    with pytest.raises(DataError, match=r"correlations of at most 1; got 1\.2"):
        noise_normalised(np.array([-1.2]), np.array([0.4]))
    edge = np.nextafter(np.float32(1), np.float32(2))
    assert noise_normalised(np.array([edge, 0.5]), np.array([edge, 0.5])).tolist() == [100, 50]
    assert np.isnan(noise_normalised(np.array([np.nan]), np.array([np.nan]))).all()
    assert noise_normalised(np.zeros(0), np.zeros(0)).size == 0


LOGITS = np.array(
    [
        [np.inf, 0, 1],  # sure of class 0
        [np.inf, np.inf, 1],  # classes 0 and 1 alike
        [-np.inf, 2, 2],  # never class 0
        [-np.inf, -np.inf, -np.inf],  # nothing is known
        [1e308, -1e308, 0],
    ]
)


def test_infinite_logits_have_their_limits_as_probabilities():
    with np.errstate(all="ignore"):
        found = np.exp(c.log_softmax(LOGITS))
    third = 1 / 3
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [third] * 3, [1, 0, 0]]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("row", range(len(LOGITS)))
def test_infinite_logits_leave_calibration_and_accuracy_defined(row):
    labels = np.array([0, 1, 2])
    logits = np.vstack([LOGITS[row], [0, 3, 0], [0, 0, 3]])
    found = c.calibration(logits, labels)
    assert np.isfinite(found.ece) and found.count.sum() == 3 and found.n_excluded == 0
    assert 0 <= found.ece <= 1 and c.accuracy(logits, labels) is not None
    assert np.isfinite(c.top_k_accuracy(logits, labels, 2))


def test_a_nan_beside_an_infinite_logit_is_left_out():
    logits = np.array([[np.inf, np.nan, 0], [0, 3, 0]])
    found = c.calibration(logits, np.array([0, 1]))
    assert found.n_excluded == 1 and np.isfinite(found.ece)
    assert c.predictions(logits).tolist() == [-1, 1]


def test_finite_logits_keep_their_numbers():
    logits = np.random.default_rng(0).normal(scale=30, size=(200, 7))
    shifted = logits - logits.max(-1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    np.testing.assert_array_equal(c.log_softmax(logits), expected)

"""Identification, preferred stimuli, and the brain-like against robust table."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.decoding import brain_and_robust, identify, preferred_stimuli
from bmfl_lab.records import MetricRow


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_perfect_predictions_identify_all_and_noise_stays_at_chance():
    y = draw(40, 30)
    best = identify(y, 3 * y + 1)
    assert (best.top1, best.two_way, best.top1_chance) == (1, 1, 1 / 40)
    noise = identify(y, draw(40, 30, seed=1))
    assert noise.two_way_low < 0.5 < noise.two_way_high and noise.top1 < 0.15


def test_fewer_candidates_are_the_expectation_over_all_sets():
    y, p = draw(6, 8), draw(6, 8, seed=1) + 0.5 * draw(6, 8)
    r = np.corrcoef(y, p)[:6, 6:]
    for k in (2, 3, 5):
        want = np.mean([
            np.mean([all(r[i, i] > r[i, j] for j in s) for s in itertools.combinations([j for j in range(6) if j != i], k - 1)])
            for i in range(6)
        ])  # fmt: skip
        found = identify(y, p, n_candidates=k)
        assert found.top1 == pytest.approx(want) and found.top1_chance == 1 / k
    assert identify(y, p, n_candidates=2).top1 == pytest.approx(identify(y, p).two_way)


def test_constant_response_identifies_nothing():
    y = draw(5, 6)
    y[2] = 1.5
    found = identify(y, y)
    assert found.per_stimulus[2] == 0.5 and found.top1 == pytest.approx(0.8)
    with pytest.raises(DataError, match="one shape"):
        identify(y, y[:4])
    with pytest.raises(DataError, match="n_candidates from 2 to 5"):
        identify(y, y, n_candidates=6)


def test_preferred_stimuli_rank_by_the_roi_alone():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    stimuli = from_arrays("s", images, list("abcdef"), [0, 0, 1, 1, 1, 0], ("face", "place"))
    predicted = np.stack([[5, 4, 0, 1, -2, 3], [9, -9, 9, -9, 9, -9]], 1).astype(float)
    found, categories = preferred_stimuli(predicted, np.array([True, False]), stimuli, n=2)
    assert list(found["id"]) == ["a", "b", "e", "c"] and list(found["rank"]) == [1, 2, 6, 5]
    assert list(categories["category"]) == ["face", "place"]
    assert list(categories["share_of_top"]) == [1, 0] and categories["activity"][0] == pytest.approx(4)
    with pytest.raises(DataError, match="a non-empty ROI"):
        preferred_stimuli(predicted, np.zeros(2, bool), stimuli)


def rows(brain, robust):
    for i, (b, r) in enumerate(zip(brain, robust)):
        for seed in (0, 1):
            yield MetricRow("rsa", b, "rho", "test", 50, "none", model=f"m{i}", roi="V1", seed=seed)
            yield MetricRow("accuracy", r, "fraction", "test", 50, "none", model=f"m{i}", shift="masked", severity=3)
        yield MetricRow("accuracy", 0.99, "fraction", "test", 50, "none", model=f"m{i}")
    yield MetricRow("rsa", 0.3, "rho", "test", 50, "none", model="only brain")


def test_the_claim_can_hold_and_can_fail():
    brain = np.linspace(0.1, 0.5, 12)
    found = brain_and_robust(rows(brain, brain + 0.01 * draw(12)), brain="rsa", robust="accuracy")
    assert found.n == 12 and found.low > 0 and "are more robust" in found.verdict
    assert found.table.iloc[0]["model"] == "m11" and "only brain" not in set(found.table["model"])
    assert found.table["robust"].max() < 0.9  # in-distribution accuracy is left out
    against = brain_and_robust(rows(brain, -brain), brain="rsa", robust="accuracy")
    assert "less robust" in against.verdict
    values = (brain - brain.mean()) ** 2  # symmetric about the middle: no monotone relation by construction
    none = brain_and_robust(rows(brain, values), brain="rsa", robust="accuracy")
    assert none.verdict == "no relation shown"
    assert none.r == pytest.approx(spearmanr(brain, values).statistic)
    few = brain_and_robust(rows([0.1, 0.2], [0.3, 0.4]), brain="rsa", robust="accuracy")
    assert few.r is None and "too few" in few.verdict
    with pytest.raises(DataError, match="a model with both 'rsa' and 'nll'"):
        brain_and_robust(rows([0.1], [0.2]), brain="rsa", robust="nll")

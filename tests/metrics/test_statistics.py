"""Intervals by coverage on planted data, tests against scipy and hand-written formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bmfl_lab.errors import DataError
from bmfl_lab.metrics import statistics as s


def test_bootstrap_interval_agrees_with_the_normal_one():
    values = (np.random.default_rng(0).random(2000) < 0.7).astype(float)
    found = s.bootstrap_mean(values, n_boot=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found == s.bootstrap_mean(values, n_boot=4000)
    assert found != s.bootstrap_mean(values, n_boot=4000, seed=1)


def test_bootstrap_agrees_with_scipy_on_continuous_values():
    values = np.random.default_rng(0).normal(size=(1, 60)) ** 2
    found = s.bootstrap_mean(values[0], n_boot=8000)
    other = stats.bootstrap(
        values, np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert found.low == pytest.approx(other.low, abs=0.03)
    assert found.high == pytest.approx(other.high, abs=0.03)


def test_coverage_over_images():
    random = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        found = s.bootstrap_mean(random.random(200) < 0.6, n_boot=500, seed=i)
        hits += found.low <= 0.6 <= found.high
    assert stats.binom.sf(hits, 300, 0.95) > 1e-3 and stats.binom.cdf(hits, 300, 0.93) > 1e-3


def test_coverage_over_seeds_and_images():
    # The planted truth is the mean over all seeds and images; an interval over images alone must
    # miss it too often.
    random = np.random.default_rng(0)
    both = images = 0
    for i in range(200):
        by_seed = 0.6 + 0.1 * random.normal(size=20)
        values = (random.random((20, 300)) < by_seed[:, None]).astype(float)
        wide = s.bootstrap_mean(values, n_boot=300, seed=i)
        narrow = s.bootstrap_mean(values, n_boot=300, seed=i, resample_seeds=False)
        both += wide.low <= 0.6 <= wide.high
        images += narrow.low <= 0.6 <= narrow.high
    assert both >= 178  # 0.89
    assert images <= 120  # 0.41 expected


def test_bootstrap_of_nothing_and_of_one():
    assert s.bootstrap_mean([]).value is None
    one = s.bootstrap_mean([1.0])
    assert (one.value, one.low, one.high) == (1.0, None, None)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 -> .04 .06 .06 .06
    assert s.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert s.holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert s.holm([]).shape == (0,)
    for wrong in ([-0.1], [1.1, 0.5]):
        with pytest.raises(DataError, match="drop undefined tests before adjusting"):
            s.holm(wrong)


def test_a_primary_comparison_has_four_fifths_of_the_level():
    p = [0.01, 0.02, 0.03, 0.004]
    primary = [True, False, True, False]
    # weights .4 .1 .4 .1; p / weight .025 .2 .075 .04, times the weight left: 1, .1, .5, .6
    assert s.holm_with_primary(p, primary) == pytest.approx([0.025, 0.0375, 0.0375, 0.025])
    assert s.holm_with_primary(p, [False] * 4) == pytest.approx(s.holm(p))
    assert s.holm_with_primary(p, [True] * 4) == pytest.approx(s.holm(p))


def test_holm_keeps_the_family_error_rate():
    p = np.random.default_rng(0).random((3000, 8))
    rate = np.mean([(s.holm(row) <= 0.05).any() for row in p])
    assert 0.035 < rate < 0.062


@pytest.mark.parametrize("n_true", [0, 1, 3])
def test_a_report_keeps_its_level_whichever_primary_effects_are_real(n_true):
    p = np.random.default_rng(n_true).random((3000, 8))
    p[:, :n_true] = 1e-9
    adjusted = [s.holm_with_primary(row, np.arange(8) < 3) for row in p]
    rate = np.mean([(row[n_true:] <= 0.05).any() for row in adjusted])
    assert 0.035 < rate < 0.062


def test_effective_robustness_of_planted_models():
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    x = np.array([0.6, 0.7, 0.76, 0.8, 0.85])
    y = 1 / (1 + np.exp(-(0.9 * logit(x) - 1.2)))
    line = s.fit_robustness_line(x, y)
    assert (line.slope, line.intercept, line.r2) == pytest.approx((0.9, -1.2, 1.0))
    assert s.effective_robustness(line, 0.8, float(y[3]) + 0.05) == pytest.approx(0.05)


def interval(value, low, high, n=400, n_seeds=5):
    return s.Interval(value, low, high, n, n_seeds, 0.95, "")


NAMES = {"first": "fusion", "second": "probe"}


def test_a_difference_is_claimed_by_interval_and_adjusted_p():
    clear = s.verdict(interval(-0.04, -0.06, -0.02), 0.01, **NAMES)
    assert clear.startswith("probe is better than fusion by 4.0 points at n = 400 images, 5 seeds")
    assert clear.endswith("(-4.0 points, 95 % interval [-6.0, -2.0], adjusted p = 0.01).")
    assert s.verdict(interval(-0.04, -0.06, -0.02), 0.2).startswith("Undecided between A and B")
    assert s.verdict(interval(0.04, -0.01, 0.09), 0.01).startswith("Undecided between A and B")
    there = s.verdict(interval(0.04, 0.01, 0.07), first="a", second="b", where="fog 3")
    assert there.startswith("a is better than b on fog 3 by 4.0 points")
    assert "adjusted p < 0.0001" in s.verdict(interval(0.4, 0.3, 0.5), 0.0)


def test_no_difference_is_said_only_against_the_smallest_effect_of_interest():
    none = s.verdict(interval(0.004, -0.011, 0.019), **NAMES)
    assert none.startswith("No difference of 2 points or more between fusion and probe at n = 400")
    assert s.verdict(interval(0.004, -0.011, 0.021)).startswith("Undecided")
    assert s.verdict(interval(0.004, -0.021, 0.011)).startswith("Undecided")
    assert s.verdict(interval(0.004, -0.011, 0.021), smallest=0.03).startswith(
        "No difference of 3 points or more"
    )
    assert s.verdict(interval(0.0, -0.01, 0.01), p_equivalence=0.06).startswith("Undecided")
    assert s.verdict(interval(0.0, -0.01, 0.01), p_equivalence=0.04).startswith("No difference")


def test_words_at_the_edges():
    wide = s.verdict(interval(0.3, -0.5, 1.1))
    assert wide.startswith("Undecided") and "[-50.0, +100.0]" in wide
    few = s.verdict(interval(1.0, 0.9, 1.0, n=2, n_seeds=3), 0.0)
    assert few == "No verdict on A and B: 2 images are too few, at least 20 are needed."
    assert s.verdict(s.bootstrap_mean([])).startswith("No verdict on A and B: 0 images")
    for ends in ((None, None), (0.05, None), (None, 0.15)):
        assert "there is no interval" in s.verdict(interval(0.1, *ends))
    assert s.verdict(interval(0.04, 0.01, 0.07), 0.05).startswith("A is better")
    assert s.verdict(interval(0.0, -0.01, 0.01), p_equivalence=0.05).startswith("No difference")
    assert s.verdict(interval(0.04, 0.0, 0.07)).startswith("Undecided")
    assert s.verdict(interval(-0.04, -0.07, 0.0)).startswith("Undecided")
    assert s.verdict(interval(0.0, -0.02, 0.01)).startswith("Undecided")
    assert s.verdict(interval(0.0, -0.01, 0.02)).startswith("Undecided")
    assert s.verdict(interval(0.1, 0.05, 0.2, n=20)).startswith("A is better")
    one = s.verdict(interval(0.04, 0.01, 0.07, n_seeds=1))
    assert "better" in one and "these trained models only (1 seed)" in one


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_ten_right_for_both_is_not_the_absence_of_a_difference(n_seeds):
    found, p = s.crossed_mean(np.zeros((n_seeds, 10)), kind="difference")
    assert p == pytest.approx(1) and found.low < -0.25 and found.high > 0.25
    assert s.equivalence_p(np.zeros((n_seeds, 10))) > 0.5
    assert s.equivalence_p(np.zeros((n_seeds, 400))) < 0.01
    assert s.equivalence_p(np.full((n_seeds, 400), 0.03), kind="real") == 1.0


def test_a_percentile_interval_needs_two_values_and_half_of_them():
    assert s.percentiles([0.0, 1.0], level=0.5) == pytest.approx((0.25, 0.75))
    assert s.percentiles([0.0, 1.0, np.nan, np.nan], level=0.5) == pytest.approx((0.25, 0.75))
    assert s.percentiles([1.0]) == s.percentiles([0.0, 1.0, np.nan, np.nan, np.nan]) == (None, None)


def test_weights_of_resamples_sum_to_one_and_are_shared_by_equal_ids():
    images, seeds = s.image_weights(["a", "b", "c"], 50, seed=1), s.seed_weights(4, 50, seed=1)
    for weights in (images, seeds):
        assert weights.sum(1) == pytest.approx(1) and len(weights) == 50 and weights.std() > 0
    np.testing.assert_array_equal(images, s.image_weights(("a", "b", "c"), 50, seed=1))
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 1  # shared by all who ask for these images
    assert (images != s.image_weights(["a", "b", "d"], 50, seed=1)).any()
    assert (images != s.image_weights(["a", "b", "c"], 50, seed=2)).any()


def test_one_resample_and_the_edges_of_the_level():
    one = s.bootstrap_mean([0.0, 1.0, 1.0], n_boot=1)
    assert one.low == one.high
    for wrong in ({"n_boot": 0}, {"level": 0.0}, {"level": 1.0}):
        with pytest.raises(DataError, match=r"use for example level=0\.95"):
            s.bootstrap_mean([0.0, 1.0], **wrong)
    assert s.holm([0.0, 1.0]).tolist() == [0.0, 1.0]
    assert "over seeds and stimuli" in s.bootstrap_mean([[0.0, 1.0], [1.0, 1.0]]).method
    assert "over stimuli" in s.bootstrap_mean([[0.0, 1.0]]).method

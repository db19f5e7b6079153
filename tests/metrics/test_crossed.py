"""The crossed test against scipy where it reduces to a t test, and by simulation where its level is at stake."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from bmfl_lab.errors import DataError
from bmfl_lab.metrics.statistics import bootstrap_mean, crossed_bootstrap, crossed_mean, seed_mean


def test_one_seed_is_the_t_test_over_stimuli():
    d = np.random.default_rng(0).normal(0.1, 1, (1, 40))
    interval, p = crossed_mean(d)
    assert p == pytest.approx(ttest_1samp(d[0], 0).pvalue)
    low, high = ttest_1samp(d[0], 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_pure_seed_effects_are_the_t_test_over_seeds():
    seeds = np.array([0.1, 0.3, 0.2, 0.45])
    interval, p = crossed_mean(np.repeat(seeds[:, None], 50, 1))
    assert p == pytest.approx(ttest_1samp(seeds, 0).pvalue)
    assert interval.value == pytest.approx(seeds.mean())


def test_the_level_holds_with_three_seeds_where_stimuli_alone_would_mislead():
    random = np.random.default_rng(1)
    wrong, naive, n = 0, 0, 600
    for _ in range(n):
        d = (
            random.normal(0, 0.06, (3, 1))
            + random.normal(0, 0.2, (1, 80))
            + random.normal(0, 0.4, (3, 80))
        )
        wrong += crossed_mean(d)[1] <= 0.05
        interval = bootstrap_mean(d, n_boot=100, resample_seeds=False)
        naive += interval.low > 0 or interval.high < 0
    assert wrong / n <= 0.07 and naive / n > 0.1


def resampled(d, n_boot=4000):
    counts = np.random.default_rng(5).multinomial(
        d.shape[1], np.full(d.shape[1], 1 / d.shape[1]), n_boot
    )
    return counts @ d.T / d.shape[1]


@pytest.mark.parametrize("n_seeds", [1, 3, 6])
def test_the_bootstrap_form_of_a_mean_is_the_mean_form(n_seeds):
    random = np.random.default_rng(n_seeds)
    d = (
        0.1
        + random.normal(0, 0.1, (n_seeds, 1))
        + random.normal(0, 0.3, (1, 90))
        + random.normal(0, 0.4, (n_seeds, 90))
    )
    want, p = crossed_mean(d)
    found, q = crossed_bootstrap(d.mean(1), resampled(d), 90)
    assert found.value == pytest.approx(want.value) and q == pytest.approx(p, rel=0.25)
    assert (found.low, found.high) == pytest.approx(
        (want.low, want.high), abs=0.08 * (want.high - want.low)
    )
    assert (found.n, found.n_seeds) == (90, n_seeds) and found.method.startswith("95 % t interval")


def test_the_bootstrap_form_keeps_its_level_where_a_normal_approximation_does_not():
    random = np.random.default_rng(2)
    wrong, naive, n = 0, 0, 400
    for _ in range(n):
        d = (
            random.normal(0, 0.15, (3, 1))
            + random.normal(0, 0.1, (1, 60))
            + random.normal(0, 0.2, (3, 60))
        )
        samples = resampled(d, 200)
        wrong += crossed_bootstrap(d.mean(1), samples, 60)[1] <= 0.05
        picks = random.integers(3, size=(200, 3))
        spread = samples[np.arange(200)[:, None], picks].mean(1).std(ddof=1)
        naive += abs(d.mean()) / spread > 1.96
    assert wrong / n <= 0.075 and naive / n > 0.1
    with pytest.raises(DataError, match=r"finite values \(n_seeds,\) with samples"):
        crossed_bootstrap(np.zeros(3), np.zeros((10, 2)), 5)


def test_nothing_that_varies_is_no_evidence_and_bad_values_are_refused():
    assert crossed_mean(np.zeros((3, 5)))[1] == 1.0
    assert crossed_mean(np.full((3, 5), 0.2))[1] < 1e-20
    assert crossed_mean(np.zeros((2, 1)))[0].low is None
    with pytest.raises(DataError, match=r"finite values of shape \(n_seeds, n_stimuli\)"):
        crossed_mean(np.array([[np.nan, 1.0]]))


def test_a_value_a_seed_has_the_t_interval_of_its_mean():
    values = np.array([0.61, 0.64, 0.58, 0.66, 0.6])
    found = seed_mean(values, 400)
    low, high = ttest_1samp(values, 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert (found.n, found.n_seeds) == (400, 5) and seed_mean([0.5], 9).low is None
    for bad in ([], [np.nan, 1.0], [[1.0]]):
        with pytest.raises(DataError, match=r"finite values of shape \(n_seeds,\)"):
            seed_mean(bad, 9)

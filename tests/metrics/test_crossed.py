"""The crossed test against scipy where it reduces to a t test, and by simulation where its level is at stake."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from bmfl_lab.errors import DataError
from bmfl_lab.metrics.crossed import crossed_mean
from bmfl_lab.metrics.statistics import bootstrap_mean


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
        d = random.normal(0, 0.06, (3, 1)) + random.normal(0, 0.2, (1, 80)) + random.normal(0, 0.4, (3, 80))
        wrong += crossed_mean(d)[1] <= 0.05
        interval = bootstrap_mean(d, n_boot=100, resample_seeds=False)
        naive += interval.low > 0 or interval.high < 0
    assert wrong / n <= 0.07 and naive / n > 0.1


def test_nothing_that_varies_is_no_evidence_and_bad_values_are_refused():
    assert crossed_mean(np.zeros((3, 5)))[1] == 1.0
    assert crossed_mean(np.full((3, 5), 0.2))[1] < 1e-20
    assert crossed_mean(np.zeros((2, 1)))[0].low is None
    with pytest.raises(DataError, match=r"finite values of shape \(n_seeds, n_stimuli\)"):
        crossed_mean(np.array([[np.nan, 1.0]]))

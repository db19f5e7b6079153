"""The crossed test against scipy where it reduces to a t test, and by simulation where its level is at stake."""

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_1samp

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.metrics.statistics import (
    accuracy_interval,
    bootstrap_mean,
    claimed,
    crossed_bootstrap,
    crossed_mean,
    equivalence_p,
    mean_over_subjects,
    seed_mean,
)


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
    assert (found.n, found.n_seeds) == (90, n_seeds) and found.method.startswith("95 % ")


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
    for bad in (np.eye(3) * np.nan, np.vstack([np.ones((2, 3)), [1, np.nan, 1]])):
        with pytest.raises(DataError, match="finite resampled values"):
            crossed_bootstrap(np.zeros(3), bad, 5)


def test_nothing_that_varies_is_no_evidence_and_bad_values_are_refused():
    assert crossed_mean(np.zeros((3, 5)))[1] == 1.0
    assert crossed_mean(np.full((3, 5), 0.2))[1] < 1e-20
    assert crossed_mean(np.zeros((2, 1)))[0].low is None
    with pytest.raises(DataError, match="finite values; got 1 that are not"):
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


def correctness(random, accuracy, n_seeds, n, sd=0.0):
    logit = np.log(accuracy / (1 - accuracy)) + sd * random.normal(size=(n_seeds, 1))
    return random.random((n_seeds, n)) < 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize("right", [0, 1, 7, 50, 98, 100])
def test_accuracy_of_one_seed_is_at_least_the_exact_interval(right):
    found = accuracy_interval(np.arange(100) < right)
    low, high = binomtest(right, 100).proportion_ci()
    assert 0 <= found.low <= low + 1e-9 and high - 1e-9 <= found.high <= 1
    assert found.high - found.low < 1.15 * (high - low)
    assert found.value == right / 100 and "for this trained model" in found.method


@pytest.mark.parametrize("only_a,only_b", [(0, 0), (6, 0), (5, 0), (14, 3), (30, 18), (3, 30)])
def test_one_seed_is_never_surer_than_mcnemar_and_its_interval_agrees_with_p(only_a, only_b):
    a = np.zeros(200, bool)
    b = a.copy()
    a[:only_a] = True
    b[only_a : only_a + only_b] = True
    found, p = crossed_mean((a * 1.0 - b)[None], kind="difference")
    exact = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert exact - 1e-9 <= p < exact + 0.02
    assert (found.low > 0 or found.high < 0) == (p < 0.05)
    assert -1 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("only_a,only_b,n", [(20, 12, 100), (0, 0, 50), (60, 45, 400)])
def test_ends_solve_the_score_equation_of_tango(only_a, only_b, n):
    d = np.r_[np.ones(only_a), -np.ones(only_b), np.zeros(n - only_a - only_b)]
    found, _ = crossed_mean(d[None], kind="difference")
    for end in (found.low, found.high):
        # the maximum of the likelihood over the share that only b gets right, the difference fixed
        q = np.linspace(max(0, -end) + 1e-9, (1 - end) / 2 - 1e-9, 400_001)
        rest = n - only_a - only_b
        likelihood = only_a * np.log(q + end) + only_b * np.log(q) + rest * np.log(1 - 2 * q - end)
        best = q[np.argmax(likelihood)]
        z = (d.mean() - end) / np.sqrt((2 * best + end - end**2) / n)
        # where models disagree, the exact test makes it a little wider
        ratio = abs(z) / t.ppf(0.975, n - 1)
        assert 0.998 < ratio < (1.002 if only_a + only_b == 0 else 1.08)


def test_all_right_against_all_wrong_on_two_images_is_no_evidence():
    found, p = crossed_mean(np.ones((3, 2)), kind="difference")
    assert p > 0.1 and found.low < 0 and found.high == 1


def test_the_kinds_agree_where_there_are_many_images_of_middling_accuracy():
    random = np.random.default_rng(3)
    d = correctness(random, 0.55, 5, 4000, 0.1) * 1.0 - correctness(random, 0.5, 5, 4000, 0.1)
    plain, p = crossed_mean(d)
    scored, q = crossed_mean(d, kind="difference")
    assert (scored.low, scored.high) == pytest.approx((plain.low, plain.high), abs=5e-4)
    assert q == pytest.approx(p, rel=0.1, abs=1e-4)
    narrow, wide = (crossed_mean(d, level=level)[0] for level in (0.5, 0.99))
    assert wide.low < plain.low < narrow.low < narrow.high < plain.high < wide.high


@pytest.mark.parametrize("n_seeds,floor", [(1, 0.9), (3, 0.5), (5, 0.9)])
def test_a_planted_difference_is_found(n_seeds, floor):
    random, found = np.random.default_rng(n_seeds), 0
    for _ in range(40):
        a = correctness(random, 0.7, n_seeds, 400, 0.1)
        b = correctness(random, 0.55, n_seeds, 400, 0.1)
        interval, p = crossed_mean(a * 1.0 - b, kind="difference")
        found += p <= 0.05 and interval.low > 0
    assert found / 40 >= floor


def test_values_outside_their_kind_are_refused():
    for values, kind in (
        (np.full((1, 30), 1.5), "correct"),
        (np.full((1, 30), -1.5), "difference"),
    ):
        with pytest.raises(DataError, match="of kind"):
            crossed_mean(values, kind=kind)
    with pytest.raises(DataError, match="of kind"):
        crossed_mean(np.full((1, 30), -0.5), kind="correct")
    for value in (-0.1, 1.1):  # a single one
        with pytest.raises(DataError, match='use kind="real" for other values'):
            crossed_mean(np.array([[0.5, value, 0.5]]), kind="correct")


def test_equivalence_agrees_with_the_interval():
    random = np.random.default_rng(4)
    for n in (200, 2000, 20000):
        d = correctness(random, 0.9, 3, n) * 1.0 - correctness(random, 0.9, 3, n)
        found, _ = crossed_mean(d, kind="difference")
        inside = -0.02 < found.low and found.high < 0.02
        assert inside == (equivalence_p(d) < 0.05)


def test_two_stimuli_can_be_tested_and_one_cannot():
    pair = np.array([[0.01, -0.01]])
    lower, upper = (ttest_1samp(pair[0], end).pvalue for end in (-0.5, 0.5))
    assert equivalence_p(pair, 0.5, kind="real") == pytest.approx(max(lower, upper), rel=0.01)
    assert equivalence_p(pair[:, :1], 0.5, kind="real") == 1.0
    assert equivalence_p(np.array([[0.5, 0.5]]), 0.5, kind="real") == 1.0


def test_a_difference_that_all_subjects_share_is_found():
    random = np.random.default_rng(5)
    d = (random.random((5, 3, 400)) < 0.8) * 1.0 - (random.random((5, 3, 400)) < 0.6)
    found, p = crossed_mean(d, kind="difference")
    assert p < 0.01 and 0.05 < found.low < 0.2 < found.high < 0.35 and "5 subjects" in found.method
    assert equivalence_p(d) == 1.0
    crossed, nested = (equivalence_p(d, 0.4, shared_stimuli=shared) for shared in (True, False))
    assert equivalence_p(d[:1], 0.4) == equivalence_p(d[0], 0.4) < 1
    assert equivalence_p(d, 0.4) == crossed != nested and max(crossed, nested) < 0.05
    own, q = crossed_mean(d, kind="difference", shared_stimuli=False)
    assert q < 0.01 and own.value == found.value
    alone, single = crossed_mean(d[:1]), crossed_mean(d[0])
    assert alone == single


def test_pure_differences_of_subjects_are_the_t_test_over_subjects():
    people = np.array([0.1, 0.3, 0.2, 0.45])
    d = np.broadcast_to(people[:, None, None], (4, 2, 50))
    interval, p = crossed_mean(d)
    assert p == pytest.approx(ttest_1samp(people, 0).pvalue, rel=1e-3)
    low, high = ttest_1samp(people, 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-3)
    exact = mean_over_subjects(people, np.zeros(4), 50)
    assert exact[1] == pytest.approx(p, rel=1e-3)
    wider = mean_over_subjects(people, np.full(4, 0.1), 50)
    assert wider[0].low < exact[0].low and wider[1] > exact[1] and wider[0].value == 0.2625


def test_noise_that_all_seeds_share_takes_nothing_from_what_seeds_differ_by():
    seeds = np.array([0.1, 0.3, 0.2, 0.45])
    shared = 0.1 * np.random.default_rng(0).standard_normal((500, 1))
    interval, p = crossed_bootstrap(seeds, seeds + shared, 100)
    low, high = ttest_1samp(seeds, 0).confidence_interval()
    assert interval.low < low and interval.high > high and p > ttest_1samp(seeds, 0).pvalue


def test_the_bootstrap_form_follows_from_the_variances_of_few_resamples():
    from scipy.stats import chi2, norm

    random = np.random.default_rng(2)
    one = random.normal(0.3, 1, (6, 1))
    found, p = crossed_bootstrap(np.array([0.3]), one, 12)
    half = t.ppf(0.975, 11) * one.std(ddof=1)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), rel=1e-4)
    assert (found.n, found.n_seeds) == (12, 1) and p == pytest.approx(
        2 * t.sf(0.3 / one.std(ddof=1), 11), rel=1e-4
    )
    seeds, drawn = np.array([0.2, 0.5, 0.6]), random.normal(0, 0.3, (5, 3))
    q = (np.arange(3000) + 0.5) / 3000
    shared = drawn.mean(axis=1, keepdims=True)
    rest = (drawn - shared).var(axis=0, ddof=1).sum() / 6
    over_seeds = np.maximum(0, seeds.var(ddof=1) / 3 * 2 / chi2.ppf(q, 2) - rest)
    over_images = shared.var(ddof=1) * 29 / chi2.ppf(q[::10] + 0.5 / 3000, 29)
    expected = 2 * norm.sf(seeds.mean() / np.sqrt(over_seeds[:, None] + over_images)).mean()
    assert crossed_bootstrap(seeds, drawn, 30)[1] == pytest.approx(expected, rel=0.01)
    two = np.array([0.2, 0.5])
    found, p = crossed_bootstrap(two, np.repeat(two[None], 4, 0), 30)
    assert p == pytest.approx(ttest_1samp(two, 0).pvalue, rel=1e-3) and found.n_seeds == 2


def test_an_interval_of_seeds_that_disagree_reaches_the_end_of_the_range():
    low, high = (np.arange(40)[None] < n for n in (8, 36))
    found, _ = crossed_mean(1.0 * np.vstack([low, high]), kind="correct")
    assert (found.low, found.high) == (0, 1)
    found, _ = crossed_mean(np.vstack([-1.0 * high, low]), kind="difference")
    assert found.low == -1 and found.high > 0.5


def test_without_variance_a_real_mean_is_its_own_interval():
    found, _ = crossed_mean(np.full((3, 5), 0.25))
    assert (found.low, found.high) == (0.25, 0.25)


def test_what_an_interval_counts():
    alone = seed_mean([0.5], 9)
    assert (alone.value, alone.low, alone.high, alone.n, alone.n_seeds) == (0.5, None, None, 9, 1)
    pooled, _ = mean_over_subjects(np.array([0.1, 0.2, 0.3]), np.full(3, 0.01), 70)
    assert (pooled.n, pooled.n_seeds) == (70, 1) and "3 subjects" in pooled.method
    two, p = crossed_mean(np.array([[0.1, 0.3]]))
    assert two.low < 0 < two.high and p == pytest.approx(ttest_1samp([0.1, 0.3], 0).pvalue)
    empty, p = crossed_mean(np.zeros((2, 0)))
    assert (empty.value, empty.low, p) == (None, None, 1.0)
    edge = crossed_mean(np.array([[0.0, 1.0] * 10]), kind="correct")[0]
    assert edge.value == 0.5 and crossed_mean(-np.eye(3), kind="difference")[0].value == -1 / 3
    pair = seed_mean([0.1, 0.3], 9)
    low, high = ttest_1samp([0.1, 0.3], 0).confidence_interval()
    assert (pair.low, pair.high, pair.n_seeds) == pytest.approx((low, high, 2))
    wider = seed_mean([0.1, 0.2, 0.4], 5, level=0.99)
    assert wider.high - wider.low > seed_mean([0.1, 0.2, 0.4], 5).high


def test_claims_are_adjusted_for_all_that_is_compared():
    one = np.zeros((1, 100))
    one[0, :8] = 1  # 8 of 8 for one model: p = 2 / 2^8 = 0.0078
    assert claimed({"a": one}) == {"a"}
    several = {"a": one} | {f"none {k}": np.zeros((1, 100)) for k in range(6)}
    assert (
        claimed(several) == set() and claimed(several, level=0.06) == {"a"} and claimed({}) == set()
    )


def test_an_unknown_kind_is_refused_with_the_nearest_one():
    values = np.zeros((2, 4))
    with pytest.raises(ConfigError, match=r"got 'differences'.*difference"):
        crossed_mean(values, kind="differences")

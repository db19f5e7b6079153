"""RDMs and their comparison against scipy and rsatoolbox."""

import itertools

import numpy as np
import pytest
import rsatoolbox
from rsatoolbox.inference import boot_noise_ceiling
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.metrics.rdms import RDMs, compare, take
from bmfl_lab.metrics.rsa import compare_rdms, condense, expand, ranks, rdm
from bmfl_lab.metrics.rsa_inference import bootstrap_rsa, noise_ceiling, permutation_rsa

TOOLBOX = {
    "spearman": "spearman",
    "pearson": "corr",
    "cosine": "cosine",
    "kendall": "tau-a",
    "rho-a": "rho-a",
}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean"])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_rdm_is_pdist(metric, offset):
    X = draw(17, 40) + offset
    np.testing.assert_allclose(rdm(X, metric), pdist(X, metric), atol=1e-10)


def test_rdm_keeps_float32_and_nearly_its_precision():
    X = draw(30, 64).astype(np.float32)
    found = rdm(X)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pdist(X, "correlation"), atol=1e-6)


def test_crossnobis_is_rsatoolbox():
    X = draw(8, 4, 15)
    data = rsatoolbox.data.Dataset(
        X.transpose(1, 0, 2).reshape(32, 15),
        obs_descriptors={"c": np.tile(np.arange(8), 4), "s": np.repeat(np.arange(4), 8)},
    )
    noise = np.cov(draw(60, 15, seed=1).T)
    for precision in (None, np.linalg.inv(noise)):
        want = rsatoolbox.rdm.calc_rdm(
            data, "crossnobis", descriptor="c", cv_descriptor="s", noise=precision
        )
        np.testing.assert_allclose(
            rdm(None, "crossnobis", repeats=X, precision=precision),
            want.dissimilarities[0],
            atol=1e-10,
        )


def test_crossnobis_has_no_bias_under_noise():
    noise = draw(30, 3, 200)
    assert abs(rdm(None, "crossnobis", repeats=noise).mean()) < 0.02
    assert (rdm(noise.mean(1), "euclidean") ** 2 / 200).mean() > 0.5


def test_constant_pattern_is_undefined_and_dropped_by_id():
    X = draw(6, 9)
    X[2] = 0.1
    values = rdm(X)
    assert np.isnan(values).sum() == 5
    with pytest.raises(DataError, match="leave out the stimuli with constant patterns"):
        compare_rdms(values, values)
    kept = RDMs(values, list("abcdef")).defined()
    assert list(kept.ids) == list("abdef")
    np.testing.assert_allclose(kept.values[0], pdist(np.delete(X, 2, 0), "correlation"), atol=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_are_scipys(ties):
    values = draw(3, 500)
    values = np.round(values, 1) if ties else values
    np.testing.assert_array_equal(ranks(values), rankdata(values, axis=1))


@pytest.mark.parametrize("method", sorted(TOOLBOX))
@pytest.mark.parametrize("ties", [False, True])
def test_comparison_is_rsatoolbox(method, ties):
    A = np.stack([pdist(draw(12, 5, seed=s)) for s in range(3)])
    B = np.stack([pdist(draw(12, 5, seed=s)) for s in range(10, 14)]) + 0.5 * A[0]
    if ties:
        A, B = np.round(A), np.round(B)
    want = rsatoolbox.rdm.compare(
        rsatoolbox.rdm.RDMs(A), rsatoolbox.rdm.RDMs(B), method=TOOLBOX[method]
    )
    np.testing.assert_allclose(compare_rdms(A, B, method), want, atol=1e-10)


@pytest.mark.parametrize("method", sorted(TOOLBOX))
def test_noise_ceiling_is_rsatoolbox(method):
    truth = pdist(draw(10, 6))
    subjects = np.stack([truth + 0.5 * np.abs(draw(45, seed=s)) for s in range(5)])
    want = boot_noise_ceiling(rsatoolbox.rdm.RDMs(subjects), method=TOOLBOX[method])
    np.testing.assert_allclose(noise_ceiling(subjects, method), np.ravel(want), atol=1e-10)
    lower, upper = noise_ceiling(subjects, method)
    assert lower < upper


def test_two_subjects_bound_each_other():
    values = np.stack([rdm(draw(6, 5)), rdm(draw(6, 5, seed=1))])
    lower, upper = noise_ceiling(values)
    assert lower == pytest.approx(compare_rdms(values[:1], values[1:])[0, 0])
    assert lower < upper < 1


def test_constant_rdm_is_undefined_not_zero():
    flat, varied = np.ones(10), np.arange(10.0)
    for method in ("spearman", "pearson", "kendall"):
        assert np.isnan(compare_rdms(flat, varied, method)).all()
    large = np.full(499_500, 0.1)  # of 1,000 stimuli; its mean is rounded
    assert large.mean() != 0.1
    assert np.isnan(compare_rdms(large, np.arange(499_500.0), "pearson")).all()


def test_condense_and_expand_are_squareform():
    square = squareform(pdist(draw(7, 3)))
    np.testing.assert_array_equal(condense(square), squareform(square))
    np.testing.assert_array_equal(expand(condense(square)), square)


def test_rdms_are_paired_by_id_never_by_order():
    X, ids = draw(9, 20), [f"s{i}" for i in range(9)]
    order = np.random.default_rng(3).permutation(9)
    A, B = RDMs(rdm(X), ids), RDMs(rdm(X[order]), [ids[i] for i in order])
    assert compare(A, B)[0, 0] == pytest.approx(1)
    assert compare_rdms(A.values, B.values)[0, 0] < 0.9
    fewer = RDMs(rdm(X[order[:6]]), [ids[i] for i in order[:6]])
    assert compare(A, fewer)[0, 0] == pytest.approx(1)


def test_bootstrap_covers_and_over_subjects_is_exact():
    truth = draw(20, 8)
    subjects = RDMs(
        np.stack([rdm(truth + 0.8 * draw(20, 8, seed=s)) for s in range(1, 6)]), range(20)
    )
    models = RDMs(np.stack([rdm(truth), rdm(draw(20, 8, seed=99))]), range(20), ("true", "noise"))
    for over in ("stimuli", "subjects", "both"):
        found = bootstrap_rsa(models, subjects, over=over, n_boot=100)
        assert (found.low <= found.value).all() and (found.value <= found.high).all()
        ends = np.quantile(found.samples, [0.025, 0.975], axis=0)
        np.testing.assert_allclose([found.low, found.high], ends)
        assert found.low[0] > found.high[1]
    values = compare(models, subjects)
    picks = bootstrap_rsa(models, subjects, over="subjects", n_boot=50).samples
    assert picks.max() <= values.max() and picks.min() >= values.min()
    wide = bootstrap_rsa(models, subjects, over="both", n_boot=200)
    narrow = bootstrap_rsa(models, subjects, over="subjects", n_boot=200)
    assert (wide.high - wide.low)[0] > (narrow.high - narrow.low)[0]


def test_permutation_finds_the_planted_pair_and_holds_its_level():
    truth = draw(14, 10)
    A = RDMs(np.stack([rdm(truth), rdm(draw(14, 10, seed=5))]), range(14))
    B = RDMs(rdm(truth + 0.3 * draw(14, 10, seed=6)), range(14))
    found = permutation_rsa(A, B, n_permutations=199)
    np.testing.assert_allclose(found.value, compare(A, B), atol=1e-12)
    assert found.p[0, 0] == pytest.approx(1 / 200) and found.p[1, 0] > 0.05
    assert (found.p_family >= found.p).all()
    p = [
        permutation_rsa(
            RDMs(rdm(draw(8, 5, seed=2 * s + 100)), range(8)),
            RDMs(rdm(draw(8, 5, seed=2 * s + 101)), range(8)),
            n_permutations=39,
            seed=s,
        ).p[0, 0]
        for s in range(100)
    ]
    assert (
        np.mean(np.asarray(p) <= 0.1) < 0.2
    )  # 10 expected of 100; 20 or more has probability 0.002


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: rdm(draw(4, 3), "mahalanobis"), "a known RDM metric"),
        (lambda: compare_rdms(draw(3), draw(3), "kendal"), "did you mean 'kendall'"),
    ],
)
def test_unknown_names_are_refused(call, match):
    with pytest.raises(ConfigError, match=match):
        call()


def test_the_smallest_and_the_finest_patterns():
    X = 1e-3 * draw(6, 9)
    np.testing.assert_allclose(rdm(X, "euclidean"), pdist(X), rtol=1e-9)
    for metric in ("correlation", "cosine", "euclidean"):
        np.testing.assert_allclose(rdm(X[:2], metric), pdist(X[:2], metric), rtol=1e-9)
        with pytest.raises(DataError, match="at least 2 stimuli"):
            rdm(X[:1], metric)
    wide = np.full((3, 40_000), 0.1, np.float32)
    wide[0] = draw(40_000)
    assert np.isnan(rdm(wide)).all() and np.isfinite(rdm(wide, "cosine")).all()
    steady = 1 + 1e-4 * draw(3, 50)  # varies little, but it varies
    np.testing.assert_allclose(rdm(steady), pdist(steady, "correlation"), rtol=1e-6)


def test_the_stimulus_with_most_undefined_pairs_goes_first():
    square = np.ones((7, 7))
    for i, j in [(0, k) for k in range(1, 7)] + [(5, 2), (5, 3)]:
        square[i, j] = square[j, i] = np.nan
    kept = RDMs(condense(square), list("abcdefg")).defined()
    assert list(kept.ids) == list("bcdeg") and np.isfinite(kept.values).all()


def test_four_stimuli_can_be_permuted_and_three_shared_compared():
    A, B = RDMs(draw(6), "abcd"), RDMs(draw(6, seed=1), "abcd")
    p = permutation_rsa(A, B, n_permutations=500).p[0, 0]
    values = [
        compare_rdms(A.values, take(B.values[0], np.array(order))[None])[0, 0]
        for order in itertools.permutations(range(4))
    ]
    exact = np.mean(np.asarray(values) >= values[0] - 1e-12)
    assert p == pytest.approx(exact, abs=0.07)
    assert np.isfinite(compare(A.of(list("abc")), B)[0, 0])


def test_subjects_that_are_not_resampled_all_stay():
    truth = draw(12, 6)
    model = RDMs(rdm(truth), range(12))
    opposite = RDMs(np.stack([rdm(truth), -rdm(truth)]), range(12))
    samples = bootstrap_rsa(model, opposite, over="stimuli", n_boot=40).samples
    np.testing.assert_allclose(samples, 0, atol=1e-12)  # r and -r
    drawn = bootstrap_rsa(model, opposite, over="subjects", n_boot=40).samples
    assert set(np.round(drawn.ravel(), 9) + 0.0) == {-1.0, 0.0, 1.0}

"""Brain-likeness scores against planted hierarchies, scikit-learn and brute force."""

import itertools

import numpy as np
import pytest
from hierarchy_example import chain, draw, subject
from scipy.stats import bootstrap, pearsonr
from sklearn.linear_model import Ridge

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation import similarity as sim


def test_encoding_score_finds_each_rois_layer_and_equals_scikit_learn():
    layers, brain = chain()
    train, test = np.arange(60), np.arange(60, 90)
    scores = sim.encoding_scores(layers, brain, train=train, test=test)
    table = sim.encoding_table(scores, subject(brain).atlas)
    assert list(table.idxmax()) == ["L0", "L1", "L2"]
    one = sim.encoding_scores({"L0": layers["L0"]}, brain, train=train, test=test, alphas=(10.0,))[
        "L0"
    ]
    z = (layers["L0"] - layers["L0"][train].mean(0)) / layers["L0"][train].std(0)
    want = Ridge(10.0).fit(z[train], brain[train]).predict(z[test])
    np.testing.assert_allclose(
        one, [pearsonr(a, b).statistic for a, b in zip(brain[test].T, want.T)], atol=1e-4
    )
    few = sim.encoding_scores({"L0": layers["L0"]}, brain, train=train, test=test, n_components=4)[
        "L0"
    ]
    assert 0 < few[:8].mean() < scores["L0"][:8].mean()
    with pytest.raises(DataError, match="disjoint train and test rows"):
        sim.encoding_scores(layers, brain, train=train, test=train)
    with pytest.raises(DataError, match="90 stimuli in layer 'L'"):
        sim.encoding_scores({"L": layers["L0"][:5]}, brain, train=train, test=test)


def test_spatial_score_follows_a_planted_gradient_and_not_noise():
    distance = np.linspace(0, 40, 12)
    ladder = np.linspace(0, 1, 6)[:, None]
    planted = np.exp(-((ladder - distance / 40) ** 2) / 0.05)
    found = sim.spatial_score(planted, distance, n_permutations=500)
    assert found.value > 0.95 and found.p < 0.01 and found.n == 12
    assert sim.spatial_score(planted[::-1], distance, n_permutations=100).value < -0.95
    assert sim.spatial_score(np.abs(draw(6, 12)), distance, n_permutations=500).p > 0.05
    planted[:, 3] = -1
    assert sim.spatial_score(planted, distance, n_permutations=100).n == 11
    assert sim.spatial_score(np.ones((3, 5)), np.arange(5.0)).value is None


def test_distance_from_v1_is_between_centres_of_each_hemisphere():
    atlas = Atlas(
        np.array([0, 0, 1, 1], np.int8),
        {"V1": np.array([1, 0, 1, 0], bool), "LO": np.array([0, 1, 0, 1], bool)},
    )
    xyz = np.array([[-10, 0, 0], [-10, 3, 4], [10, 0, 0], [10, 0, 15]], float)
    assert sim.distance_from_v1(atlas, xyz) == {"V1": 0.0, "LO": 10.0}


def test_temporal_score_is_its_definition_with_an_exact_test():
    times = np.linspace(0, 0.5, 51)
    scores = np.stack([np.exp(-((times - t) ** 2) / 0.002) for t in (0.1, 0.2, 0.3, 0.4)])
    np.testing.assert_allclose(sim.peak_times(scores, times), [0.1, 0.2, 0.3, 0.4], atol=1e-6)
    found = sim.temporal_score(scores, times)
    assert (
        found.value == pytest.approx(1)
        and found.n_permutations == 24
        and found.p == pytest.approx(2 / 24)
    )
    order = [2, 0, 3, 1]
    r = [pearsonr(np.arange(4), np.asarray(o)).statistic for o in itertools.permutations(order)]
    want = np.mean(np.abs(r) >= abs(pearsonr(np.arange(4), order).statistic) - 1e-9)
    assert sim.temporal_score(scores[order], times).p == pytest.approx(want)
    assert np.isnan(sim.peak_times(-np.ones((1, 3)), np.arange(3.0)))[0]


def test_encoding_over_time_finds_the_planted_moment():
    layers, _ = chain()
    data = 0.3 * draw(90, 4, 6)
    for k, layer in enumerate(layers.values()):
        data[:, :, 2 * k] += layer @ draw(12, 4, seed=40 + k)
    found = sim.encoding_over_time(layers, data, train=np.arange(60), test=np.arange(60, 90))
    assert found.values.shape == (3, 6) and list(found.values.argmax(1)) == [0, 2, 4]
    low, high = found.interval()
    moments = np.arange(3), [0, 2, 4]
    assert (
        (low[moments] > 0.5).all() and (low <= found.values).all() and (found.values <= high).all()
    )
    # SciPy's percentile bootstrap of the mean over sensors, written out, for one layer and time
    p = sim.encoding_predictions(
        {"L": layers["L1"]}, data[:, :, 2], train=np.arange(60), test=np.arange(60, 90)
    )["L"]
    rows = np.arange(30)
    want = bootstrap(
        (rows,),
        lambda i: np.mean([pearsonr(data[60:][i, c, 2], p[i, c])[0] for c in range(4)]),
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        random_state=0,
    ).confidence_interval
    layer = list(layers).index("L1")
    np.testing.assert_allclose([low[layer, 2], high[layer, 2]], want, atol=0.03)


def test_permutation_tests_of_scores_hold_their_level():
    p = {"spatial": [], "temporal": []}
    for seed in range(200):
        random = np.random.default_rng(seed)
        p["spatial"].append(
            sim.spatial_score(
                random.random((12, 14)), random.random(14), n_permutations=99, seed=seed
            ).p
        )
        p["temporal"].append(
            sim.temporal_score(
                random.random((7, 40)), np.arange(40.0), n_permutations=99, seed=seed
            ).p
        )
    for values in p.values():
        # 10 % expected; fewer than 9 or more than 33 of 200 has a probability below 1 %
        assert 9 <= np.sum(np.asarray(values) <= 0.1) <= 33

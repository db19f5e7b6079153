"""Classification metrics against independent formulas, and every refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from bmfl_lab.errors import DataError
from bmfl_lab.metrics import behaviour as b
from bmfl_lab.metrics import classification as c


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 400)
    logits = random.normal(size=(400, 7)) + 1.5 * np.eye(7)[labels]
    return logits, labels


def test_against_sklearn(case):
    logits, labels = case
    probabilities = special.softmax(logits, axis=1)
    guess = logits.argmax(1)
    assert c.accuracy(logits, labels) == pytest.approx(sk.accuracy_score(labels, guess))
    assert c.balanced_accuracy(logits, labels) == pytest.approx(
        sk.balanced_accuracy_score(labels, guess)
    )
    assert c.nll(logits, labels) == pytest.approx(
        sk.log_loss(labels, probabilities, labels=range(7))
    )
    assert c.top_k_accuracy(logits, labels, 3) == pytest.approx(
        sk.top_k_accuracy_score(labels, probabilities, k=3, labels=range(7))
    )


def test_ece_by_hand():
    # confidences .9 (right), .9 (wrong), .6 (right): with ten bins |.5 - .9| * 2/3 + |1 - .6| * 1/3
    def row(p):
        return np.log([p, 1 - p])

    logits = np.stack([row(0.895), row(0.895), row(0.595)])
    found = c.calibration(logits, np.array([0, 1, 0]), n_bins=10)
    assert found.ece == pytest.approx(2 / 3 * 0.395 + 1 / 3 * 0.405)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 0]
    assert np.isnan(found.accuracy[0])


def test_ece_confidence_on_an_edge_and_one():
    logits = np.array([[0.0, 0.0], [1000.0, 0.0]])  # confidences 0.5 and 1
    assert c.calibration(logits, np.array([0, 0]), n_bins=2).count.tolist() == [1, 1]
    assert c.calibration(logits, np.array([0, 0]), n_bins=2).edges.tolist() == [0, 0.5, 1]


def test_ece_of_calibrated_probabilities_is_small():
    random = np.random.default_rng(1)
    p = random.uniform(0.5, 1, 40000)
    labels = (random.random(p.size) > p).astype(int)
    assert c.ece(np.log(np.stack([p, 1 - p], 1)), labels) < 0.012


def test_ties():
    logits = np.zeros((10, 5))
    labels = np.arange(10) % 5
    assert c.top_k_accuracy(logits, labels, 2) == pytest.approx(2 / 5)
    assert c.accuracy(logits, labels) == pytest.approx(1 / 5)  # argmax takes the lowest index
    assert c.top_k_accuracy(np.array([[3.0, 1, 1, 0]]), np.array([1]), 2) == pytest.approx(0.5)


def test_nan_logits_are_wrong_and_counted(case):
    logits, labels = case
    full = c.accuracy(logits, labels)
    spoiled = logits.copy()
    right = np.flatnonzero(logits.argmax(1) == labels)[:20]
    spoiled[right, 0] = np.nan
    assert c.accuracy(spoiled, labels) == pytest.approx(full - 20 / 400)
    assert c.top_k_accuracy(spoiled, labels, 7) == pytest.approx(1 - 20 / 400)
    assert c.n_nan(spoiled) == 20
    assert c.nll(spoiled, labels) is None
    assert c.calibration(spoiled, labels).n_excluded == 20
    assert (c.predictions(spoiled)[right] == -1).all()


@pytest.mark.parametrize("bad", [[-1, 0, 1], [0, 1, 3], [-100, 0, 0]])
def test_labels_outside_the_head_refused(bad):
    for metric in (c.accuracy, c.balanced_accuracy, c.nll, c.ece, c.top_k_accuracy):
        with pytest.raises(DataError, match="labels from 0 to 2"):
            metric(np.zeros((3, 3)), np.array(bad))


def test_empty_one_image_one_class():
    empty, none = np.zeros((0, 4)), np.zeros(0, dtype=int)
    for metric in (
        c.accuracy,
        c.balanced_accuracy,
        c.nll,
        c.ece,
        lambda x, y: c.top_k_accuracy(x, y, 1),
    ):
        assert metric(empty, none) is None
        value = metric(np.array([[0.0]]), np.array([0]))
        json.dumps(value, allow_nan=False)
        assert value is not None


def test_mask_classes(case):
    logits, _ = case
    masked = c.mask_classes(logits, [5, 1])
    assert np.array_equal(masked, logits[:, [5, 1]])
    last = logits.shape[1] - 1
    assert np.array_equal(c.mask_classes(logits, [0, last]), logits[:, [0, last]])
    with pytest.raises(DataError, match="list the columns of the head"):
        c.mask_classes(logits, [last + 1])
    assert c.mask_classes(logits, np.array([], int)).shape == (len(logits), 0)
    for bad in ([1, 1], [7], [-1, 2], [0.5]):
        with pytest.raises(DataError, match="different class indices"):
            c.mask_classes(logits, bad)


def test_corruption_error():
    errors = {name: dict.fromkeys(range(1, 6), value) for name, value in c.ALEXNET_ERRORS.items()}
    assert c.corruption_error(errors)[0] == pytest.approx(1)
    halved = {k: {s: e / 2 for s, e in v.items()} for k, v in errors.items()}
    mce, parts = c.corruption_error(halved)
    assert mce == pytest.approx(0.5) and set(parts) == set(c.ALEXNET_ERRORS) and len(parts) == 15
    del halved["fog"][4]
    with pytest.raises(DataError, match=r"missing fog severities \[4\].*snow 0.500"):
        c.corruption_error(halved)


def test_resnet50_published_mce():
    # ResNet-50's corruption errors as published with the benchmark (percent of AlexNet's) average
    # to mCE 76.7.
    published = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)
    errors = {
        n: dict.fromkeys(range(1, 6), e * p / 100)
        for (n, e), p in zip(c.ALEXNET_ERRORS.items(), published)
    }
    assert 100 * c.corruption_error(errors)[0] == pytest.approx(76.7, abs=0.3)


def reference_kappa(a, b):
    n = len(a)
    both = sum(1 for x, y in zip(a, b) if x == y) / n
    pa, pb = sum(a) / n, sum(b) / n
    chance = pa * pb + (1 - pa) * (1 - pb)
    return (both - chance) / (1 - chance)


def test_error_consistency():
    random = np.random.default_rng(0)
    a, other = random.random(500) < 0.7, random.random(500) < 0.6
    mixed = np.where(random.random(500) < 0.5, a, other)
    assert b.error_consistency(a, mixed) == pytest.approx(
        reference_kappa(a.tolist(), mixed.tolist())
    )
    assert b.error_consistency(a, mixed) == pytest.approx(sk.cohen_kappa_score(a, mixed))
    assert b.error_consistency(a, a) == pytest.approx(1)
    assert b.error_consistency([True] * 4, [True] * 4) is None
    assert b.error_consistency([], []) is None


def test_shape_bias():
    decisions = ["cat", "dog", "cat", "car", "cat"]
    shapes = ["cat", "cat", "cat", "cat", "cat"]
    textures = ["dog", "dog", "dog", "dog", "cat"]  # the last one is no conflict
    assert b.shape_bias(decisions, shapes, textures) == pytest.approx(2 / 3)
    assert b.shape_bias(["car"], ["cat"], ["dog"]) is None


def test_coarse_decision_uses_the_mean_not_the_sum():
    # "dog" holds three classes of probability .2 each (sum .6), "cat" one of .4: the mean decides
    # for the cat
    logits = np.log(np.array([[0.2, 0.2, 0.2, 0.4]]))
    groups = {"dog": [0, 1, 2], "cat": [3]}
    assert b.coarse_decision(logits, groups).tolist() == ["cat"]
    assert b.coarse_decision(np.array([[0.0, np.nan, 0, 0]]), groups).tolist() == [""]
    assert b.coarse_decision(np.zeros((1, 4)), groups).tolist() == ["cat"]
    with pytest.raises(DataError, match="for category 'cat'"):
        b.coarse_decision(logits, {"cat": [9]})

"""Gains of alignment under permutation, and axes of objects."""

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.axes import axis_targets, gain_test, read_axes

CLASSES = ("ant", "bus", "cat", "dam", "elk", "fan")
TABLE = pd.DataFrame(
    {"class": CLASSES, "animacy": [1, 0, 1, 0, 1, 0], "size": [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]}
)
N = 48


class Model:
    """Layers whose stimuli differ along one axis with a given weight."""

    def __init__(self, axis, weight, seed=0):
        self.axis, self.weight, self.seed = axis, weight, seed

    def activations(self, stimuli):
        draw = np.random.default_rng(self.seed)
        base = draw.normal(size=(len(stimuli), 20))
        direction = draw.normal(size=20)
        return {"low": base, "high": base + self.weight * np.outer(self.axis, direction)}


@pytest.fixture(scope="module")
def stimuli():
    labels = np.arange(N) % len(CLASSES)
    images = np.zeros((N, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(N)
    return from_arrays("s", images, [f"s{i}" for i in range(N)], labels, CLASSES)


def test_the_planted_axis_is_strengthened_and_no_other(stimuli):
    axes = read_axes(TABLE, CLASSES)
    labels = np.asarray(stimuli.labels)
    animacy = axes["animacy"].to_numpy()[labels]
    models = {
        "original": [Model(animacy, 0.0, seed) for seed in (0, 1)],
        "aligned": [Model(animacy, 1.0, seed) for seed in (0, 1)],
        "unchanged": [Model(animacy, 0.0, seed) for seed in (0, 1)],
    }
    table = gain_test(models, stimuli, axis_targets(labels, axes), n_permutations=300)
    gains = table.set_index(["model", "target"])
    assert gains.loc[("aligned", "animacy"), "p_holm"] < 0.05
    assert gains.loc[("aligned", "animacy"), "gain"] > 0.1
    assert gains.loc[("aligned", "size"), "p_holm"] > 0.05
    # a model that did not change gains exactly nothing
    assert (gains.loc["unchanged", "gain"] == 0).all() and (gains.loc["unchanged", "p"] == 1).all()
    assert np.allclose(gains["after"] - gains["before"], gains["gain"])


def test_the_layer_that_gained_is_found(stimuli):
    animacy = read_axes(TABLE, CLASSES)["animacy"].to_numpy()[np.asarray(stimuli.labels)]
    models = {"original": Model(animacy, 0.0), "aligned": Model(animacy, 1.0)}
    one = axis_targets(np.asarray(stimuli.labels), read_axes(TABLE, CLASSES))
    targets = one | {"both": np.stack([one["animacy"], one["size"]])}
    options = dict(n_permutations=200, by_layer=True)
    found = gain_test(models, stimuli, targets, **options).set_index(["layer", "target"])
    assert found.loc[("high", "animacy"), "p"] < 0.05 and found.loc[("low", "animacy"), "p"] == 1
    gains = found["gain"].unstack()
    np.testing.assert_allclose(gains.loc["all"], gains.loc[["low", "high"]].mean())
    np.testing.assert_allclose(gains["both"], gains[["animacy", "size"]].mean(axis=1))


def test_the_permutation_keeps_its_level(stimuli):
    labels, draw = np.asarray(stimuli.labels), np.random.default_rng(1)
    p = []
    for seed in range(25):
        models = {
            "original": Model(labels, 0.0, seed),
            "aligned": Model(draw.normal(size=N), 1, seed),
        }
        found = gain_test(models, stimuli, axis_targets(labels), n_permutations=60, seed=seed)
        p.append(found["p"].iloc[0])
    assert np.mean(np.asarray(p) <= 0.1) <= 0.3


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.replace({"class": {"cat": "cats"}}), "unknown .'cats'.*did you mean 'cat'"),
        (lambda t: t.iloc[:5], "one row per class"),
        (lambda t: t.drop(columns="class"), "a column 'class'"),
        (lambda t: t.assign(size="large"), "one column of numbers per axis"),
        (lambda t: t.assign(size=1.0), "a constant axis"),
    ],
)
def test_a_wrong_table_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        read_axes(change(TABLE), CLASSES)


def test_a_table_is_read_from_a_file(tmp_path):
    TABLE.to_csv(tmp_path / "axes.csv", index=False)
    found = read_axes(tmp_path / "axes.csv", CLASSES[::-1])
    assert list(found.index) == list(CLASSES[::-1]) and list(found) == ["animacy", "size"]
    with pytest.raises(DataError, match="check the path"):
        read_axes(tmp_path / "none.csv", CLASSES)
    (tmp_path / "axes.csv").write_text("animacy,size\n1,2\n")
    with pytest.raises(DataError, match="give a CSV file"):
        read_axes(tmp_path / "axes.csv", CLASSES)

"""Comparisons with observers against values counted by hand."""

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.errors import DataError
from bmfl_lab.metrics.behaviour import (
    coarse_decision,
    error_consistency,
    mean_consistency,
    observer_accuracy,
    shape_bias,
)


def test_the_category_with_the_highest_mean_probability_wins():
    logits = np.log(np.array([[0.5, 0.1, 0.4], [0.4, 0.5, 0.1], [0.2, 0.3, 0.5]]))
    groups = {"dog": [0, 1], "cat": [2]}  # means .3 and .4, .45 and .1, .25 and .5
    assert coarse_decision(logits, groups).tolist() == ["cat", "dog", "cat"]
    undefined = np.vstack([logits, [np.nan, 0, 0]])
    assert coarse_decision(undefined, groups).tolist() == ["cat", "dog", "cat", ""]
    for wrong in ([0, 3], [-1], []):
        with pytest.raises(DataError, match="at least one column of `logits` per category"):
            coarse_decision(logits, {"dog": wrong})


def test_shape_bias_counts_decisions_for_either_cue():
    shapes, textures = ["cat"] * 4 + ["dog"], ["car"] * 4 + ["dog"]
    assert shape_bias(["cat", "cat", "car", "car", "dog"], shapes, textures) == 0.5
    assert shape_bias(["cat", "cat", "cat", "car", "dog"], shapes, textures) == 0.75
    assert shape_bias(["bus"] * 5, shapes, textures) is None
    assert shape_bias(["car"] * 5, shapes, textures) == 0


def test_kappa_by_hand():
    a, b = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])
    # agree on 3 of 4; expected .75 * .5 + .25 * .5 = .5
    assert error_consistency(a, b) == pytest.approx(0.5)
    assert error_consistency(a, a) == 1 and error_consistency([], []) is None
    assert error_consistency([1, 1], [1, 1]) is None
    assert error_consistency([1, 0], [0, 1]) == -1


def test_pairs_of_observers_are_averaged_over_conditions_then_pairs():
    def trials(observer, *by_condition):
        return [
            {"observer": observer, "condition": c, "key": f"{c}{k}", "correct": bool(v)}
            for c, values in enumerate(by_condition)
            for k, v in enumerate(values)
        ]

    table = pd.DataFrame(
        trials("a", [1, 1, 1, 0], [1, 0])
        + trials("b", [1, 1, 0, 0], [1, 0])
        + trials("c", [1, 1, 1, 1], [1, 1])
    )
    assert mean_consistency(table, ["a"], ["b"]) == (pytest.approx((0.5 + 1) / 2), 1)
    assert mean_consistency(table, ["a", "b"], ["a", "b"]) == (pytest.approx(0.75), 1)
    assert mean_consistency(table, ["a"], ["a"]) == (None, 0)
    # always right against sometimes right: agreement is what is expected, kappa 0
    both = mean_consistency(table, ["a"], ["b", "c"])
    assert both == (pytest.approx(0.375), 2)
    found = observer_accuracy(table.assign(set="s"))
    assert found.n_trials[0] == 18 and found.n_observers[0] == 3
    assert found.accuracy[0] == pytest.approx((4 / 6 + 3 / 6 + 1) / 3)

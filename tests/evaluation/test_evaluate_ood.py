"""The OOD evaluation with models of known accuracy."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError
from bmfl_lab.evaluation import evaluate_ood


class Known:
    """Right for the images whose id is in `right`; the next class otherwise."""

    selection = "best validation accuracy"

    def __init__(self, right, seed=0, nan=()):
        self.right, self.seed, self.nan = set(right), seed, set(nan)

    def logits(self, stimuli):
        out = np.zeros((len(stimuli), 3), dtype=np.float32)
        for i, (identifier, label) in enumerate(zip(stimuli.ids, stimuli.labels)):
            out[i, label if identifier in self.right else (label + 1) % 3] = 1
            if identifier in self.nan:
                out[i, 0] = np.nan
        return out


@pytest.fixture(scope="module")
def study():
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    labels = np.array([0] * 18 + [1] * 8 + [2] * 4)
    test = from_arrays("test", images, [f"t{i}" for i in range(30)], labels, ("a", "b", "c"))
    empty = test.subset([], name="empty")
    return Study("known", "known accuracies", {"train": test, "test": test, "empty": empty}, ood=("empty",))


def _row(rows, name, **fields):
    found = [r for r in rows if r.name == name and all(getattr(r, k) == v for k, v in fields.items())]
    assert len(found) == 1, found
    return found[0]


def test_values_intervals_and_counts_are_right(study):
    right = [f"t{i}" for i in range(21)]
    result = evaluate_ood({"known": Known(right)}, study, shifts=[("masked", 2)], n_boot=500)
    row = _row(result.rows, "accuracy", split="test", shift="")
    assert row.value == pytest.approx(0.7) and row.n == 30 and row.selection == "best validation accuracy"
    assert row.ci_low == pytest.approx(0.7 - 1.96 * np.sqrt(0.21 / 30), abs=0.04)
    assert row.ci_high == pytest.approx(0.7 + 1.96 * np.sqrt(0.21 / 30), abs=0.04)
    table = result.per_image.query("split == 'test' and shift == ''")
    truth = balanced_accuracy_score(table.label, table.predicted)
    balanced = _row(result.rows, "balanced_accuracy", split="test", shift="")
    assert balanced.value == pytest.approx(truth) and balanced.ci_low < truth < balanced.ci_high
    assert _row(result.rows, "accuracy", shift="masked").severity == 2
    assert len(result.per_image) == 60


def test_an_empty_set_is_undefined(study):
    result = evaluate_ood({"known": Known([])}, study, shifts=())
    for name in ("accuracy", "balanced_accuracy"):
        row = _row(result.rows, name, split="empty")
        assert row.value is None and row.ci_low is None and row.n == 0


def test_nan_logits_are_wrong_and_reported(study):
    right = [f"t{i}" for i in range(30)]
    result = evaluate_ood({"known": Known(right, nan=["t3", "t4"])}, study, shifts=(), sets=("test",))
    assert _row(result.rows, "accuracy").value == pytest.approx(28 / 30)
    assert _row(result.rows, "nan_logits").value == 2
    assert set(result.per_image.query("predicted == -1").id) == {"t3", "t4"}


def test_seeds_get_a_row_each_and_one_over_them(study):
    models = [Known([f"t{i}" for i in range(n)], seed=s) for s, n in enumerate((15, 21, 24))]
    result = evaluate_ood({"known": models}, study, shifts=(), sets=("test",))
    assert [r.value for r in result.rows if r.name == "accuracy" and r.seed is not None] == [0.5, 0.7, 0.8]
    over = _row(result.rows, "accuracy", seed=None)
    assert over.value == pytest.approx(2 / 3) and over.n_seeds == 3 and "seeds and stimuli" in over.interval


def test_sets_that_choices_were_made_on_and_no_models_are_refused(study):
    with pytest.raises(ConfigError, match="no choice was made on"):
        evaluate_ood({"known": Known([])}, study, sets=("train",))
    with pytest.raises(ConfigError, match="at least one model"):
        evaluate_ood({}, study)

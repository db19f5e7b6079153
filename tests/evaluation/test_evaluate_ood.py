"""The OOD evaluation with models of known accuracy."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import Study
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation import as_model, compare_models, evaluate_ood
from bmfl_lab.records import Record


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
    return Study(
        "known", "known accuracies", {"train": test, "test": test, "empty": empty}, ood=("empty",)
    )


def _row(rows, name, **fields):
    found = [
        r for r in rows if r.name == name and all(getattr(r, k) == v for k, v in fields.items())
    ]
    assert len(found) == 1, found
    return found[0]


def test_values_intervals_and_counts_are_right(study):
    right = [f"t{i}" for i in range(21)]
    result = evaluate_ood({"known": Known(right)}, study, shifts=[("masked", 2)], n_boot=500)
    row = _row(result.rows, "accuracy", split="test", shift="")
    assert (
        row.value == pytest.approx(0.7)
        and row.n == 30
        and row.selection == "best validation accuracy"
    )
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
    result = evaluate_ood(
        {"known": Known(right, nan=["t3", "t4"])}, study, shifts=(), sets=("test",)
    )
    assert _row(result.rows, "accuracy").value == pytest.approx(28 / 30)
    assert _row(result.rows, "nan_logits").value == 2
    assert set(result.per_image.query("predicted == -1").id) == {"t3", "t4"}


def test_seeds_get_a_row_each_and_one_over_them(study):
    models = [Known([f"t{i}" for i in range(n)], seed=s) for s, n in enumerate((15, 21, 24))]
    result = evaluate_ood({"known": models}, study, shifts=(), sets=("test",))
    assert [r.value for r in result.rows if r.name == "accuracy" and r.seed is not None] == [
        0.5,
        0.7,
        0.8,
    ]
    over = _row(result.rows, "accuracy", seed=None)
    assert (
        over.value == pytest.approx(2 / 3)
        and over.n_seeds == 3
        and "seeds and stimuli" in over.interval
    )


class Head:
    """A head with named classes."""

    def __init__(self, names):
        self.class_names = tuple(names)

    def logits(self, stimuli):
        return np.zeros((len(stimuli), len(self.class_names)), dtype=np.float32)


def test_a_head_for_the_classes_of_another_set_is_refused(study):
    with pytest.raises(
        DataError, match=r"logits for the 3 classes of 'test'.*no class named \['a'\]"
    ):
        evaluate_ood({"other": Head("bcd")}, study, shifts=(), sets=("test",))
    with pytest.raises(DataError, match=r"3 logits, one per class .* got 4"):
        evaluate_ood(
            {"wide": as_model(lambda images: np.zeros((len(images), 4)), "wide")},
            study,
            shifts=(),
            sets=("test",),
        )


def sets_of_a_thousand():
    """ "test" with 1000 classes, and two sets with 200 of them each, 86 of which are common; image i has class i."""
    names = tuple(f"n{1440764 + 97 * i:08d}" for i in range(1000))
    part = {
        "imagenet-r": np.arange(200) * 5,
        "imagenet-a": np.r_[np.arange(86) * 5, np.arange(114) * 5 + 2],
    }

    def pixels(index):
        return np.asarray([np.full((4, 4, 3), (i // 256, i % 256, 0), np.uint8) for i in index])

    some = np.arange(0, 1000, 4)
    sets = {"test": from_arrays("imagenet-val", pixels(some), [f"t{i}" for i in some], some, names)}
    for name, index in part.items():
        own = tuple(sorted(names[i] for i in index))
        labels = [own.index(names[i]) for i in index]
        sets[name] = from_arrays(name, pixels(index), [f"{name}/{i}" for i in index], labels, own)
    return Study("imagenet", "wide", {"train": sets["test"], **sets}, ood=tuple(part)), names, part


def of_pixels(columns):
    """Return a classifier that reads the class of an image from its pixels and gives these columns of its logits."""
    return lambda images: (
        np.eye(1000)[[256 * int(im[0, 0, 0]) + int(im[0, 0, 1]) for im in images]][:, columns] * 10
    )


def test_one_wide_model_is_scored_by_name_on_every_set():
    study, names, _ = sets_of_a_thousand()
    order = np.random.default_rng(0).permutation(1000)
    wide = as_model(of_pixels(order), "wide", class_names=[names[i] for i in order])
    result = evaluate_ood({"wide": wide}, study, shifts=(), n_boot=10)
    for name, n in (("test", 250), ("imagenet-r", 200), ("imagenet-a", 200)):
        row = _row(result.rows, "accuracy", split=name)
        assert row.value == 1.0 and row.n == n
    assert result.per_image.query("split == 'imagenet-r'").predicted.nunique() == 200


def test_the_columns_of_one_set_are_refused_on_another():
    study, names, part = sets_of_a_thousand()
    columns = np.sort(part["imagenet-r"])
    unnamed = as_model(of_pixels(columns), "R")
    named = as_model(of_pixels(columns), "R", class_names=[names[i] for i in columns])
    assert (
        _row(
            evaluate_ood({"R": named}, study, sets=("imagenet-r",), shifts=(), n_boot=10).rows,
            "accuracy",
        ).value
        == 1
    )
    with pytest.raises(
        DataError, match=r"200 classes of 'imagenet-a'; got 200 logits; no class named \['n"
    ):
        evaluate_ood({"R": named}, study, sets=("imagenet-a",), shifts=())
    for name in ("imagenet-a", "imagenet-r"):  # nothing says whose the 200 columns are
        with pytest.raises(DataError, match=r"got 200 logits; 1000 class names, 1000 different"):
            evaluate_ood({"R": unnamed}, study, sets=(name,), shifts=())
    with pytest.raises(DataError, match="1000 class names, 999 different"):
        twice = as_model(of_pixels(np.arange(1000)), "twice", class_names=[*names[:999], names[0]])
        evaluate_ood({"twice": twice}, study, sets=("imagenet-r",), shifts=())


def test_a_set_without_images_of_some_classes_says_so(study):
    test = study.set("test")
    part = test.subset(np.flatnonzero(test.labels != 1), name="part")
    some = Study(
        "known", "x", {**study.sets, "part": part}, ood=("part", "empty"), shifts=(("masked", 2),)
    )
    result = evaluate_ood({"known": Known([]), "other": Known(["t0"])}, some, n_boot=10)
    notes = {(r.split, r.shift): r.notes for r in result.rows if r.name == "accuracy"}
    assert notes == {
        ("test", ""): "",
        ("test", "masked"): "",
        ("part", ""): "2 of 3 classes",
        ("empty", ""): "",
    }
    compared = compare_models(result, "known")[::2]
    said = {r.split: r.notes for r in compared if not r.shift}
    assert said["part"].endswith(" 2 of 3 classes") and "classes" not in said["test"]


def test_an_unlabelled_image_is_refused(study):
    test = study.set("test")
    labels = np.where(np.arange(30) == 7, -1, test.labels)
    sets = {**study.sets, "test": dataclasses.replace(test, labels=labels)}
    with pytest.raises(DataError, match="labels from 0 to 2"):
        evaluate_ood({"known": Known([])}, Study("known", "x", sets), shifts=(), sets=("test",))


def test_one_image_and_one_class_are_written_without_nan(study, tmp_path):
    one = study.set("test").subset([0], name="one")
    same = study.set("test").subset(range(5), name="same")
    models = {
        "known": [Known(["t0", "t1"], seed=s) for s in (0, 1)],
        "other": [Known([], seed=s) for s in (0, 1)],
    }
    sets = {**study.sets, "test": study.set("test"), "one": one, "same": same}
    small = Study("known", "x", sets, ood=("one", "same", "empty"))
    result = evaluate_ood(models, small, shifts=(), n_boot=50)
    record = Record("test", {}, {"name": "x", "fingerprint": "", "simulated": False})
    record.extend(result.rows)
    text = record.finish(tmp_path).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the record"))
    assert _row(result.rows, "accuracy", split="one", model="known", seed=None).ci_low is None
    assert _row(
        result.rows, "balanced_accuracy", split="same", model="known", seed=None
    ).value == pytest.approx(0.4)
    said = {
        r.split: r.notes for r in compare_models(result, "other") if r.name == "accuracy_difference"
    }
    assert "1 image is too few" in said["one"] and "empty" not in said

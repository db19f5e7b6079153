"""mCE from its definition written out again, refused where it is incomplete, and read from ImageNet-C's own sets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.shifts import IMAGENET_C, apply_shift
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import as_model, corruption_rows, evaluate_corruptions, evaluate_ood
from bmfl_lab.training import train_probe

# Published with the benchmark: AlexNet's errors in per cent, in the order of IMAGENET_C.
ALEXNET = (88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7)
N = 24


@pytest.fixture(scope="module")
def study():
    random = np.random.default_rng(0)
    images = random.integers(40, 200, (N, 32, 32, 3), dtype=np.uint8)
    test = from_arrays(
        "test", images, [f"t{i}" for i in range(N)], np.arange(N) % 2, ("dark", "bright")
    )
    return Study("known", "bright and dark", {"train": test, "test": test})


def by_mean(images):
    return [[120.0 - im.mean(), im.mean() - 120.0] for im in images]


def rows_of(rows, name, **fields):
    return [
        r for r in rows if r.name == name and all(getattr(r, k) == v for k, v in fields.items())
    ]


def test_mce_is_the_mean_of_the_ratios_to_alexnet(study):
    found = evaluate_corruptions({"brightness": as_model(by_mean, "brightness")}, study)
    test, ratios = study.set("test"), []
    for name, reference in zip(IMAGENET_C, ALEXNET):
        wrong = [
            (apply_shift(test.image(i), name, s, 0, stimulus_id=test.ids[i]).mean() > 120)
            != test.labels[i]
            for s in range(1, 6)
            for i in range(N)
        ]
        ratios.append(100 * np.mean(wrong) / reference)
        (row,) = rows_of(found.rows, "corruption_error", shift=name)
        assert (
            row.value == pytest.approx(ratios[-1], rel=2e-3)
            and row.ci_low <= row.value <= row.ci_high
        )
    (mce,) = rows_of(found.rows, "mce")
    assert (
        mce.value == pytest.approx(np.mean(ratios), rel=2e-3)
        and mce.n == N
        and mce.selection == "none"
    )
    assert "AlexNet" in mce.notes and "not ImageNet" in mce.notes and len(found.per_image) == 75 * N
    marked = {r.shift for r in found.rows if "frost is drawn" in r.notes}
    assert marked == {"frost", "15 corruptions"}


def test_a_missing_severity_refuses_mce_and_keeps_the_partial_table(study):
    model = {"brightness": as_model(by_mean, "brightness")}
    found = evaluate_corruptions(model, study, corruptions=("fog", "contrast"))
    assert len(rows_of(found.rows, "corruption_error")) == 2
    (mce,) = rows_of(found.rows, "mce")
    assert (
        mce.value is None
        and mce.ci_low is None
        and "refused" in mce.notes
        and "snow severities" in mce.notes
    )
    part = evaluate_corruptions(model, study, corruptions=("fog",), severities=(1, 3))
    assert not rows_of(part.rows, "corruption_error") and rows_of(part.rows, "mce")[0].value is None
    assert "fog severities [2, 4, 5]" in rows_of(part.rows, "mce")[0].notes
    plain = evaluate_ood(model, study, shifts=[("masked", 1)], n_boot=10)
    with pytest.raises(DataError, match="at least one corruption"):
        corruption_rows(plain)
    with pytest.raises(ConfigError, match="0 to 24 test images"):
        evaluate_corruptions(model, study, n=25)


def test_nan_logits_are_wrong_and_reported_for_every_severity(study):
    def broken(images):
        out = np.asarray(by_mean(images))
        out[[im.mean() > 120 for im in images]] = np.nan
        return out

    found = evaluate_corruptions(
        {"broken": as_model(broken, "broken")}, study, corruptions=("contrast",)
    )
    test = study.set("test")
    for severity in range(1, 6):
        bad = sum(
            apply_shift(test.image(i), "contrast", severity, 0, stimulus_id=test.ids[i]).mean()
            > 120
            for i in range(N)
        )
        (row,) = rows_of(found.rows, "nan_logits", severity=severity)
        assert (
            0 < bad < N
            and row.value == bad
            and row.shift == "contrast"
            and row.n == N
            and row.unit == "stimuli"
        )
        assert not found.per_image.query(
            f"severity == {severity} and predicted == -1"
        ).correct.any()
    assert not rows_of(
        evaluate_corruptions({"m": as_model(by_mean, "m")}, study, corruptions=("fog",)).rows,
        "nan_logits",
    )


def test_imagenet_c_on_disk_is_read_by_the_names_of_its_sets(study):
    test = study.set("test")
    sets = {
        f"{c}-{s}": dataclasses.replace(test, name=f"{c}-{s}")
        for c in IMAGENET_C
        for s in range(1, 6)
    }
    native = Study("imagenet", "as read from folders", {**study.sets, **sets}, ood=tuple(sets))
    right = as_model(
        lambda images: np.eye(2)[[0] * len(images)], "dark"
    )  # right on every second image
    rows = corruption_rows(evaluate_ood({"dark": right}, native, shifts=(), n_boot=10))
    (mce,) = rows_of(rows, "mce")
    assert mce.value == pytest.approx(np.mean(50 / np.asarray(ALEXNET)), rel=2e-3)
    assert "not ImageNet" not in mce.notes and "drawn" not in mce.notes


def test_models_are_compared_in_pairs_and_read_each_image_once(tmp_path, monkeypatch):
    planted = load_study(
        "planted", n_encoder=8, n_encoder_val=4, n_encoder_test=4, n_test=40, n_ood=8
    )
    store, passes = FeatureStore(tmp_path), []
    probes = [
        train_probe(planted, n_blocks=(1, 2), epochs=2, seed=s, store=store, device="cpu")
        for s in (0, 1)
    ]
    same = [dataclasses.replace(p, name="again") for p in probes]
    extract = FeatureStore._extract
    monkeypatch.setattr(
        FeatureStore, "_extract", lambda self, *a: (passes.append(1), extract(self, *a))[1]
    )
    found = evaluate_corruptions(
        {"probe": probes, "again": same},
        planted,
        n=6,
        corruptions=IMAGENET_C,
        baseline="probe",
    )
    assert (
        len(passes) == 15
    )  # a corruption with its severities and all blocks: one pass of the backbone
    (gap,) = rows_of(found.rows, "mce_difference")
    assert (
        gap.value == 0
        and (gap.model, gap.reference) == ("again", "probe")
        and gap.n_seeds == 2
        and gap.n == 6
    )
    with pytest.raises(ConfigError, match="a baseline among"):
        corruption_rows(found, baseline="nobody")
    with pytest.raises(DataError, match="on the same images and seeds"):
        evaluate_corruptions({"probe": probes, "again": same[:1]}, planted, n=4, baseline="probe")

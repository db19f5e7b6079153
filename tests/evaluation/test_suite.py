"""The suite: values from definitions written out again, paired resamples, masked heads, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, log_loss

from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import (
    compare_models,
    evaluate_ood,
    evaluate_suite,
    extreme_images,
    reliability_table,
)
from bmfl_lab.metrics import calibration
from bmfl_lab.metrics.statistics import image_weights, percentiles, seed_weights

N = 60
CLASSES = ("a", "b", "c")


class Noisy:
    """Logits with a known share of errors, drawn per image id; `counted` tells how often images were asked for."""

    selection = "best validation accuracy"

    def __init__(self, strength, seed=0, head=CLASSES):
        self.strength, self.seed, self.class_names, self.counted = strength, seed, head, 0

    def logits(self, stimuli):
        self.counted += 1
        random = np.random.default_rng(
            [self.seed, int(10 * self.strength), sum(map(ord, stimuli.name))]
        )
        out = random.standard_normal((len(stimuli), len(self.class_names)))
        for row, label in zip(out, stimuli.labels):
            row[[name == stimuli.class_names[label] for name in self.class_names]] += self.strength
        return out.astype(np.float32)


@pytest.fixture(scope="module")
def study():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
    test = from_arrays("test", images, [f"t{i}" for i in range(N)], np.arange(N) % 3, CLASSES)
    part = from_arrays(
        "part", images[:20], [f"p{i}" for i in range(20)], np.arange(20) % 2, ("c", "a")
    )
    return Study(
        "known",
        "noisy models",
        {"train": test, "test": test, "part": part},
        ood=("part",),
        shifts=(("masked", 3), ("low_light", 3)),
    )


@pytest.fixture(scope="module")
def suite(study):
    models = {"one": [Noisy(1.5, s) for s in (0, 1)], "two": [Noisy(2.5, s) for s in (0, 1)]}
    models |= {f"base {k}": Noisy(k, 7) for k in (0.3, 0.8, 1.3, 1.8)}
    return evaluate_suite(
        models,
        study,
        severities=(1, 5),
        baselines=[m for m in models if m[:4] == "base"],
        n_boot=300,
    )


def rows_of(result, name, **fields):
    return [
        r
        for r in result.rows
        if r.name == name and all(getattr(r, k) == v for k, v in fields.items())
    ]


def test_every_set_model_and_severity_is_there_with_all_a_reader_needs(suite):
    over = rows_of(suite, "accuracy", model="one", seed=None)
    assert {(r.split, r.shift, r.severity) for r in over} == {
        ("test", "", None),
        ("part", "", None),
        *(("test", s, k) for s in ("masked", "low_light") for k in (1, 5)),
    }
    for name in ("id_ood_gap", "ece", "nll", "error_consistency", "effective_robustness"):
        found = rows_of(suite, name)
        assert found and all(
            r.n in (N, 20) and r.n_seeds and r.selection == "best validation accuracy"
            for r in found
        )
        assert all(r.interval and r.ci_low <= r.ci_high for r in found)
    assert compare_models(suite, "one", models=["two"])[0].n_seeds == 2


def test_calibration_likelihood_and_consistency_follow_their_definitions(suite, study):
    logits = [Noisy(1.5, s).logits(study.set("test")) for s in (0, 1)]
    labels = study.set("test").labels
    place = {"split": "test", "shift": "", "model": "one"}
    assert rows_of(suite, "ece", **place)[0].value == pytest.approx(
        np.mean([calibration(z, labels).ece for z in logits]), abs=1e-6
    )
    p = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits]
    assert rows_of(suite, "nll", **place)[0].value == pytest.approx(
        np.mean([log_loss(labels, q) for q in p]), abs=1e-5
    )
    right = {
        s: {
            m: Noisy(k, s).logits(study.set("test")).argmax(1) == labels
            for m, k in (("one", 1.5), ("two", 2.5))
        }
        for s in (0, 1)
    }
    kappa = np.mean([cohen_kappa_score(right[s]["one"], right[s]["two"]) for s in (0, 1)])
    found = rows_of(suite, "error_consistency", split="test", shift="", model="one ~ two")[0]
    assert (
        found.value == pytest.approx(kappa)
        and found.ci_low < kappa < found.ci_high
        and found.n_seeds == 2
    )
    itself = rows_of(
        suite, "error_consistency", split="test", shift="", model="one ~ one (another seed)"
    )[0]
    assert itself.value == pytest.approx(cohen_kappa_score(right[0]["one"], right[1]["one"]))


def test_gaps_and_effective_robustness_follow_their_definitions(suite):
    def accuracy(model, **fields):
        return rows_of(suite, "accuracy", model=model, **fields)[-1].value

    gap = rows_of(suite, "id_ood_gap", model="two", shift="masked", severity=5)[0]
    home = accuracy("two", split="test", shift="", seed=None)
    away = accuracy("two", shift="masked", severity=5, seed=None)
    assert gap.value == pytest.approx(home - away) and "paired" in gap.interval
    assert "independently" in rows_of(suite, "id_ood_gap", model="two", split="part")[0].interval
    x, y = (
        [accuracy(f"base {k}", **f) for k in (0.3, 0.8, 1.3, 1.8)]
        for f in ({"split": "test", "shift": ""}, {"shift": "masked", "severity": 5})
    )
    logit = lambda p: np.log(np.asarray(p) / (1 - np.asarray(p)))  # noqa: E731
    slope, intercept = np.polyfit(logit(x), logit(y), 1)
    expected = [
        accuracy("two", shift="masked", severity=5, seed=s)
        - 1
        / (
            1
            + np.exp(-(slope * logit(accuracy("two", split="test", shift="", seed=s)) + intercept))
        )
        for s in (0, 1)
    ]
    row = rows_of(suite, "effective_robustness", model="two", shift="masked", severity=5)[0]
    assert (
        row.value == pytest.approx(np.mean(expected), abs=1e-6)
        and row.ci_low < row.value < row.ci_high
    )
    assert rows_of(suite, "robustness_slope", shift="masked", severity=5)[0].value == pytest.approx(
        slope
    )


def robustness(study, models, baselines, n_boot=300):
    result = evaluate_suite(
        models, study, shifts=["masked"], severities=[5], baselines=baselines, n_boot=n_boot
    )
    return result, {r.model: r for r in rows_of(result, "effective_robustness", shift="masked")}


class Fixed:
    """Right on the first share of the images of "test" and of shifted sets, as given; whatever their pixels are."""

    def __init__(self, home, away, seed=0):
        self.home, self.away, self.seed = home, away, seed

    def logits(self, stimuli):
        n = round(len(stimuli) * (self.home if stimuli.name == "test" else self.away))
        label = np.where(
            np.arange(len(stimuli)) < n,
            stimuli.labels,
            (np.asarray(stimuli.labels) + 1) % len(CLASSES),
        )
        return np.eye(len(CLASSES), dtype=np.float32)[label]


@pytest.fixture(scope="module")
def alone(study):
    return Study(
        "known", "the test images alone", {k: v for k, v in study.sets.items() if k != "part"}
    )


def test_effective_robustness_is_extrapolated_above_the_baselines_and_undefined_below(alone):
    models = {f"base {h}": Fixed(h, h - 0.1) for h in (0.4, 0.6, 0.8)}
    models |= {"under": Fixed(0.3, 0.3), "in": Fixed(0.5, 0.5), "over": Fixed(0.9, 0.9)}
    _, found = robustness(alone, models, list(models)[:3])
    assert found["under"].value is None and found["under"].ci_low is None
    assert "undefined: 30 % in distribution, the baselines begin at 40 %" in found["under"].notes
    assert (
        found["in"].value == pytest.approx(0.1, abs=0.01)
        and "extrapolated" not in found["in"].notes
    )
    assert (
        found["over"].value > 0
        and "extrapolated: the baselines reach 80 % in distribution" in found["over"].notes
    )


@pytest.mark.parametrize(("away", "poor"), [((0.2, 0.5, 0.8), False), ((0.5, 0.2, 0.5), True)])
def test_a_line_that_fits_poorly_says_so(alone, away, poor):
    models = {f"base {i}": Fixed(h, a) for i, (h, a) in enumerate(zip((0.3, 0.6, 0.9), away))} | {
        "in": Fixed(0.5, 0.5)
    }
    result, found = robustness(alone, models, list(models)[:3])
    (r2,) = rows_of(result, "robustness_r2", shift="masked")
    assert ("poor fit" in found["in"].notes) is ("poor fit" in r2.notes) is (r2.value < 0.5) is poor


def test_effective_robustness_resamples_training_seeds(alone):
    """Models whose seeds differ by 40 points on the shift have an interval of that width; alike ones have not."""
    base = {f"base {i}": Fixed(h, h) for i, h in enumerate((0.2, 0.5, 0.95))}
    models = base | {
        "alike": [Fixed(0.6, 0.6, s) for s in range(4)],
        "apart": [Fixed(0.6, a, s) for s, a in enumerate((0.4, 0.4, 0.8, 0.8))],
    }
    _, found = robustness(alone, models, list(base), n_boot=1000)
    assert (
        found["apart"].value == pytest.approx(found["alike"].value, abs=1e-6)
        and "seeds" in found["apart"].interval
    )
    width = {m: r.ci_high - r.ci_low for m, r in found.items()}
    # four seeds at -+ 0.2, drawn with replacement: a standard deviation of 0.1 beside that over
    # images
    assert width["apart"] ** 2 - width["alike"] ** 2 == pytest.approx(
        (2 * 1.96 * 0.1) ** 2, rel=0.4
    )


def test_baselines_are_resampled_over_their_seeds_too(alone):
    width = {}
    for spread in (0.0, 0.2):
        base = {
            f"base {i}": [Fixed(h, h + (spread if s % 2 else -spread), s) for s in range(4)]
            for i, h in enumerate((0.3, 0.5, 0.7))
        }
        row = robustness(alone, base | {"in": Fixed(0.5, 0.5)}, list(base))[1]["in"]
        width[spread] = row.ci_high - row.ci_low
        assert row.value == pytest.approx(0, abs=0.02)
    assert width[0.2] > 1.5 * width[0.0]


def test_too_few_baselines_leave_the_line_undefined(study):
    models = {"one": Noisy(1.5), "base": Noisy(1.0, 3)}
    result = evaluate_suite(
        models, study, shifts=["masked"], severities=[2], baselines=["base"], n_boot=50
    )
    rows = rows_of(result, "effective_robustness")
    assert rows and all(
        r.value is None and r.ci_low is None and "undefined" in r.notes for r in rows
    )


def test_a_set_with_fewer_classes_in_another_order_is_scored_by_name(study):
    model = Noisy(50.0)
    result = evaluate_ood({"m": model}, study, sets=("part",), shifts=(), n_boot=20)
    assert rows_of(result, "accuracy")[0].value == 1.0 and set(result.per_image["predicted"]) == {
        0,
        1,
    }
    with pytest.raises(DataError, match=r"no class named \['c'\]"):
        evaluate_ood(
            {"m": Noisy(1.0, head=("a", "b", "x"))}, study, sets=("part",), shifts=(), n_boot=20
        )


def test_each_image_set_is_asked_for_once_a_model(study):
    model = Noisy(1.0)
    evaluate_suite({"m": model}, study, shifts=["masked"], severities=(1, 2), n_boot=20)
    assert model.counted == 4


def test_unknown_names_are_refused_before_anything_runs(study):
    model = Noisy(1.0)
    with pytest.raises(ConfigError, match="low_light"):
        evaluate_suite({"m": model}, study, shifts=["low_lights"])
    with pytest.raises(ConfigError, match="baselines among"):
        evaluate_suite({"m": model}, study, baselines=["x"])
    assert model.counted == 0


def test_nan_logits_leave_the_likelihood_undefined_and_the_calibration_to_the_rest(study):
    class Broken(Noisy):
        def logits(self, stimuli):
            out = super().logits(stimuli)
            out[0] = np.nan
            return out

    result = evaluate_suite({"m": Broken(1.0)}, study, shifts=[], n_boot=50)
    assert rows_of(result, "nll", split="test")[0].value is None
    assert rows_of(result, "ece", split="test")[0].value == pytest.approx(
        calibration(Broken(1.0).logits(study.set("test")), study.set("test").labels).ece, abs=1e-6
    )


def test_reliability_bins_and_extreme_images(suite):
    table = reliability_table(suite.per_image, n_bins=10)
    one = table[(table.model == "one") & (table.split == "test") & (table["shift"] == "")]
    assert (
        one["count"].sum() == 2 * N
        and ((one.confidence > one.low) & (one.confidence <= one.high)).all()
    )
    # both seeds saw the same images, which count once
    assert (one.n_images <= one["count"]).all() and (one.n_images < one["count"]).any()
    single = reliability_table(suite.per_image[suite.per_image.seed == 0], n_bins=10)
    for row in single[single["n_images"] > 0].itertuples():
        right = binomtest(round(row.accuracy * row.n_images), row.n_images)
        wanted = right.proportion_ci(method="wilson")
        assert (row.ci_low, row.ci_high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    best, worst = extreme_images(suite.per_image, "two", n=3)
    frame = suite.per_image[suite.per_image.model == "two"]
    mean = (
        frame.assign(severity=frame.severity.fillna(0))
        .groupby(["split", "shift", "severity", "id"])
        .nll.mean()
    )
    assert worst.score[0] == pytest.approx(-mean.max()) and best.score[0] == pytest.approx(
        -mean.min()
    )
    gain, loss = extreme_images(suite.per_image, "two", against="one", n=2)
    assert gain.score[0] > 0 > loss.score[0] and len(loss) == 2
    with pytest.raises(ConfigError, match="a model among"):
        extreme_images(suite.per_image, "three")


def test_resamples_are_shared_by_the_same_images_and_by_no_others():
    a, b = image_weights(["x", "y", "z"], 50), image_weights(["x", "y", "w"], 50)
    assert np.array_equal(a, image_weights(["x", "y", "z"], 50)) and not np.array_equal(a, b)
    assert np.allclose(a.sum(1), 1) and np.allclose(seed_weights(4, 20).sum(1), 1)
    assert percentiles([np.nan, np.nan, 1.0]) == (None, None)
    low, high = percentiles(np.arange(1001) / 1000)
    assert (low, high) == (pytest.approx(0.025), pytest.approx(0.975))

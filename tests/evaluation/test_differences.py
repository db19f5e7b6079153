"""Paired comparisons find planted differences, and none where there is none."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.ood import OODResult
from bmfl_lab.evaluation.suite import compare_models
from bmfl_lab.metrics.statistics import crossed_mean, holm


def result(accuracies, n=400, seeds=(0, 1, 2), shared=0.0, generator=None):
    """Correctness drawn with a planted accuracy for each model, image difficulty shared between models."""
    generator = generator or np.random.default_rng(0)
    parts = []
    for shift, severity in (("", None), ("masked", 3)):
        difficulty = generator.random(n)
        for name, accuracy in accuracies.items():
            for seed in seeds:
                luck = np.where(generator.random(n) < shared, difficulty, generator.random(n))
                parts.append(
                    pd.DataFrame(
                        {
                            "model": name,
                            "seed": seed,
                            "split": "test",
                            "shift": shift,
                            "severity": severity,
                            "id": [f"i{k}" for k in range(n)],
                            "label": 0,
                            "predicted": 0,
                            "correct": luck < accuracy,
                        }
                    )
                )
    return OODResult([], pd.concat(parts, ignore_index=True))


def by(rows, name):
    return [r for r in rows if r.name == name]


def test_planted_difference_is_found_and_named():
    found = result({"backbone": 0.5, "fusion": 0.7}, seeds=range(5))
    rows = compare_models(found, "backbone")
    for row in by(rows, "accuracy_difference"):
        assert 0.08 < row.ci_low < 0.2 < row.ci_high < 0.32 and row.n == 400 and row.n_seeds == 5
        where = "masked 3" if row.shift else "test"
        assert f"fusion is better than backbone on {where} by" in row.notes
        assert (row.model, row.reference, row.n_compared) == ("fusion", "backbone", 2)
        assert 0 <= row.p <= row.p_adjusted < 0.01
    assert all(r.value == r.p_adjusted < 0.01 and not r.notes for r in by(rows, "p_holm"))


def test_what_was_not_shown_is_undecided_with_its_interval():
    rows = compare_models(result({"backbone": 0.6, "fusion": 0.6}), "backbone")
    assert all(
        r.notes.startswith("Undecided between fusion and backbone on")
        for r in by(rows, "accuracy_difference")
    )


def test_false_positive_rate_is_nominal():
    found = 0
    for trial in range(60):
        rows = compare_models(
            result(
                {"a": 0.6, "b": 0.6},
                n=120,
                seeds=(0,),
                shared=0.5,
                generator=np.random.default_rng(trial),
            ),
            "a",
        )
        found += any("is better than" in r.notes for r in rows)
    assert binomtest(found, 60, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("spread", [pytest.param(0.0, marks=pytest.mark.slow), 0.03])
def test_the_level_holds_where_seeds_differ_as_much_as_trainings_do(spread):
    found, n = 0, 150
    for trial in range(n):
        generator = np.random.default_rng(trial)
        parts = [
            result(
                {name: 0.6 + generator.normal(0, spread)},
                n=150,
                seeds=(seed,),
                generator=np.random.default_rng([trial, seed, k]),
            )
            for seed in (0, 1, 2)
            for k, name in enumerate(("a", "b"))
        ]
        rows = compare_models(
            OODResult([], pd.concat([p.per_image for p in parts], ignore_index=True)), "a"
        )
        found += any("is better than" in r.notes for r in rows)
    assert binomtest(found, n, 0.05, alternative="greater").pvalue > 0.01, found


def test_several_seeds_use_the_crossed_test():
    found = result({"a": 0.6, "b": 0.65}, n=80)
    (test, _), (p, _) = (
        by(compare_models(found, "a"), k) for k in ("accuracy_difference", "p_holm")
    )
    table = found.per_image[found.per_image["shift"] == ""].pivot(
        index=["model", "seed"], columns="id", values="correct"
    )
    interval, _ = crossed_mean(
        table.loc["b"].to_numpy(float) - table.loc["a"].to_numpy(float), kind="difference"
    )
    assert (test.value, test.ci_low, test.ci_high) == pytest.approx(
        (interval.value, interval.low, interval.high)
    )
    assert "seeds and stimuli crossed" in test.interval and 0 < p.value <= 1


def test_one_seed_is_about_these_trained_models():
    rows = compare_models(result({"a": 0.5, "b": 0.9}, seeds=(0,)), "a")
    assert all(r.value < 1e-6 for r in by(rows, "p_holm"))


def test_p_values_are_adjusted_by_holm_over_all_comparisons_of_the_call():
    found = result({"a": 0.6, "b": 0.65, "c": 0.5}, n=80)
    rows = by(compare_models(found, "a", also=[("b", "c")]), "accuracy_difference")
    assert [(r.model, r.reference) for r in rows[::2]] == [("b", "a"), ("c", "a"), ("b", "c")]
    np.testing.assert_allclose([r.p_adjusted for r in rows], holm([r.p for r in rows]))
    assert {(r.family, r.n_compared) for r in rows} == {("all comparisons", 6)}
    assert not any("xploratory" in r.notes for r in rows)


def test_a_primary_comparison_has_most_of_the_level_and_the_others_are_exploratory():
    found = result({"a": 0.6, "b": 0.65, "c": 0.5}, n=80)
    rows = by(compare_models(found, "a", primary=("b", "a")), "accuracy_difference")
    first, others = rows[:2], rows[2:]
    np.testing.assert_allclose(
        [r.p_adjusted for r in rows], holm([r.p for r in rows], [0.4, 0.4, 0.1, 0.1])
    )
    assert {(r.family, r.n_compared) for r in first} == {
        ("all comparisons, the primary one with four fifths of the level", 4)
    }
    assert {(r.family, r.n_compared) for r in others} == {
        ("all comparisons, the exploratory ones with a fifth of the level", 4)
    }
    assert all(r.notes.startswith("Exploratory: ") for r in others)
    assert not any(r.notes.startswith("Exploratory") for r in first)
    with pytest.raises(ConfigError, match="a primary comparison among"):
        compare_models(found, "a", primary=("b", "c"))


def test_subjects_are_a_factor_beside_seeds_and_images():
    people = [
        result({"a": 0.5, "b": 0.75}, n=100, generator=np.random.default_rng(k)) for k in range(4)
    ]
    tables = [r.per_image.assign(subject=f"s{k}") for k, r in enumerate(people)]
    rows = by(compare_models(OODResult([], pd.concat(tables)), "a"), "accuracy_difference")
    single = by(compare_models(people[0], "a"), "accuracy_difference")
    for row, one in zip(rows, single):
        assert row.p_adjusted < 0.05 and "4 subjects" in row.interval
        assert row.ci_high - row.ci_low < one.ci_high - one.ci_low
    own = [t.assign(id=t["subject"] + t["id"]) for t in tables]
    nested = by(compare_models(OODResult([], pd.concat(own)), "a"), "accuracy_difference")
    assert [r.value for r in nested] == [r.value for r in rows]
    assert all(r.ci_low != q.ci_low for r, q in zip(nested, rows))
    with pytest.raises(DataError, match="same seeds and number of images of"):
        compare_models(OODResult([], pd.concat([*tables[:3], tables[3][::2]])), "a")


def test_models_that_agree_on_many_images_are_alike():
    found = result({"a": 0.99, "b": 0.99}, n=4000, seeds=(0, 1, 2, 3, 4), shared=1.0)
    rows = by(compare_models(found, "a"), "accuracy_difference")
    assert all(r.notes.startswith("No difference of 2 points or more") for r in rows)
    assert all(r.smallest == 0.02 and r.p_equivalence < 0.05 for r in rows)
    strict = by(compare_models(found, "a", smallest=1e-5), "accuracy_difference")
    assert all(r.notes.startswith("Undecided") for r in strict)


def test_refusals():
    good = result({"a": 0.5, "b": 0.6}, n=20)
    with pytest.raises(ConfigError, match="a model among"):
        compare_models(good, "c")
    gap = OODResult([], good.per_image.drop(index=3))
    with pytest.raises(DataError, match="for every seed and image"):
        compare_models(gap, "a")
    frame = good.per_image
    other = OODResult([], frame[~((frame["model"] == "b") & (frame["id"] == "i3"))])
    with pytest.raises(DataError, match="on the same images and seeds"):
        compare_models(other, "a")

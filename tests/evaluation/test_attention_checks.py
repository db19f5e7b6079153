"""The checks themselves: a model whose answer is known, maps that are right and maps that are wrong."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.attention_checks import (
    deletion_insertion,
    map_similarity,
    redraw,
    region_share,
    shuffled_study,
    structural_similarity,
    weight_randomisation,
)
from bmfl_lab.evaluation.attention_outcomes import (
    attention_verdict,
    check_metrics,
    check_row,
    checks_table,
)

WEIGHTS = torch.tensor([[4.0, 1.0], [3.0, 2.0]])


def linear_score(images, index):
    """Sum over the four quarters of weight times mean: the deletion curve is the sum of the weights that are left."""
    return (nn.functional.avg_pool2d(images[:, 0], 4) * WEIGHTS).sum((1, 2))


def test_deletion_and_insertion_of_a_planted_linear_model_are_the_analytic_ones():
    images, empty = torch.ones(3, 3, 8, 8), torch.zeros(3, 3, 8, 8)
    maps = np.repeat(WEIGHTS.numpy()[None], 3, 0)
    found = deletion_insertion(linear_score, images, empty, maps, n_random=3)
    np.testing.assert_allclose(found.fraction, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.deletion, np.tile([10.0, 6, 3, 1, 0], (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(
        found.insertion, np.tile([0.0, 4, 7, 9, 10], (3, 1)), rtol=1e-6, atol=1e-6
    )
    areas = found.areas()
    np.testing.assert_allclose(areas["deletion"], 3.75)
    np.testing.assert_allclose(areas["insertion"], 6.25)


def test_random_orders_average_to_the_straight_line():
    n = 200
    images, empty = torch.ones(n, 3, 8, 8), torch.zeros(n, 3, 8, 8)
    found = deletion_insertion(
        linear_score, images, empty, np.zeros((n, 2, 2)), n_random=4, batch_size=64
    )
    np.testing.assert_allclose(found.random_deletion.mean(0), [10, 7.5, 5, 2.5, 0], atol=0.25)
    table = found.table("m")
    assert set(table["order"]) == {"map", "random"} and (table["low"] <= table["mean"]).all()


def test_curves_of_another_map_take_over_the_random_orders():
    n, calls = 5, []

    def score(images, index):
        calls.append(len(images))
        return linear_score(images, index)

    images, empty = torch.rand(n, 3, 8, 8), torch.zeros(n, 3, 8, 8)
    maps = np.random.default_rng(0).random((2, n, 2, 2))
    first = deletion_insertion(score, images, empty, maps[0])
    alone, n_alone = deletion_insertion(score, images, empty, maps[1]), sum(calls)
    calls.clear()
    shared = deletion_insertion(score, images, empty, maps[1], reference=first)
    for name in ("deletion", "insertion", "random_deletion", "random_insertion"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(alone, name))
    assert sum(calls) == n * (2 + 2 * 3) and n_alone == 2 * n * (2 + 2 * 3 + 4 * 3)
    with pytest.raises(DataError, match="reference curves of shape"):
        deletion_insertion(score, images[:2], empty[:2], maps[0, :2], reference=first)


def test_similarity_agrees_with_scipy_and_is_one_only_for_equal_order():
    rng = np.random.default_rng(0)
    a, b = rng.random((6, 8, 9)), np.round(rng.random((6, 8, 9)), 1)
    found = map_similarity(a, b)
    expected = [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b)]
    np.testing.assert_allclose(found["spearman"], expected, atol=1e-12)
    same = map_similarity(a, a**3)
    np.testing.assert_allclose(same["spearman"], 1)
    np.testing.assert_allclose(map_similarity(a, -5 * a)["ssim"], 1)
    assert (same["ssim"] < 1).all()


def test_structural_similarity_equals_a_loop_over_windows():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 9, 10))
    scaled = [(m - m.min()) / (m.max() - m.min()) for m in (a, b)]
    values = []
    for i in range(3):
        for j in range(4):
            x, y = (m[i : i + 7, j : j + 7].ravel() for m in scaled)
            cov = np.cov(x, y)
            top = (2 * x.mean() * y.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4)
            values.append(
                top / ((x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4))
            )
    assert structural_similarity(a, b) == pytest.approx(np.mean(values), abs=1e-10)


def test_a_constant_map_has_no_rank_correlation():
    found = map_similarity(np.ones((1, 4, 4)), np.random.default_rng(0).random((1, 4, 4)))
    assert np.isnan(found["spearman"][0]) and np.isfinite(found["ssim"][0])


def test_share_of_mass_is_one_inside_and_the_area_for_a_uniform_map():
    region = np.zeros((4, 4))
    region[1, 1:3] = 1
    maps = np.stack([region * 3, np.ones((4, 4)), -np.ones((4, 4)), np.zeros((4, 4))])
    share, area = region_share(maps, region)
    np.testing.assert_allclose(share, [1, 0.125, 0.125, np.nan])
    assert area == 0.125


def test_weights_are_randomised_stage_by_stage_on_a_copy():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16, bias=False), nn.Linear(16, 3, bias=False))
    before = [p.clone() for p in module.parameters()]
    stages = {"output": ("1.",), "input": ("0.",)}
    found = weight_randomisation(
        module, stages, lambda m: m[0].weight.detach().numpy().reshape(4, 4, 4)
    )
    assert list(found.maps) == ["trained", "output", "input"]
    np.testing.assert_array_equal(found.maps["output"], found.maps["trained"])
    once = weight_randomisation(
        module,
        stages,
        lambda m: m[0].weight.detach().numpy().reshape(4, 4, 4),
        trained=found.maps["trained"],
    )
    assert list(once.maps) == ["trained", "input"]
    np.testing.assert_array_equal(once.maps["input"], found.maps["input"])
    assert (
        found.table().loc["output", "spearman"] == 1 and abs(found.final["spearman"]).mean() < 0.6
    )
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before))
    with pytest.raises(ConfigError, match="parameters of the stage 'none'"):
        weight_randomisation(module, {"none": ("2.",)}, lambda m: np.ones((1, 2, 2)))


def test_new_weights_keep_scale_and_constants():
    tensor, constant = torch.linspace(-1, 5, 5000), torch.ones(7)
    old = tensor.clone()
    redraw(tensor, 1)
    redraw(constant, 1)
    assert float(tensor.mean()) == pytest.approx(float(old.mean()), abs=0.1)
    assert float(tensor.std()) == pytest.approx(float(old.std()), rel=0.05)
    assert abs(np.corrcoef(tensor, old)[0, 1]) < 0.05 and torch.equal(constant, torch.ones(7))


def test_shuffling_moves_answers_within_splits_only():
    study = load_study(
        "planted", n_encoder=30, n_encoder_val=8, n_encoder_test=8, n_test=8, n_ood=8
    )
    mixed, person = shuffled_study(study), study.subject()
    other = mixed.subject()
    for rows in person.splits.values():
        assert not np.array_equal(other.responses[rows], person.responses[rows])
        np.testing.assert_allclose(
            np.sort(other.responses[rows], 0), np.sort(person.responses[rows], 0)
        )
    assert other.repeats is None and not other.truth and mixed.fingerprint() != study.fingerprint()
    labels = shuffled_study(study, "labels")
    assert not np.array_equal(labels.set("train").labels, study.set("train").labels)
    np.testing.assert_array_equal(
        np.sort(labels.set("val").labels), np.sort(study.set("val").labels)
    )
    np.testing.assert_array_equal(labels.set("test").labels, study.set("test").labels)
    with pytest.raises(ConfigError, match="'responses' or 'labels'"):
        shuffled_study(study, "images")


def test_outcomes_need_the_whole_interval_and_are_told_in_words():
    rng = np.random.default_rng(0)
    good = check_row("m", "deletion", 0.3 + 0.05 * rng.standard_normal(30))
    unsure = check_row("m", "insertion", 0.02 + 0.5 * rng.standard_normal(30))
    same = check_row("m", "weights", np.full(30, 0.9))
    assert good.passes and unsure.passes is False and same.passes is False
    assert check_row("m", "planted region", [0.5, 0.6, 0.7], 0.125).passes
    assert check_row("m", "deletion", [np.nan]).passes is None
    text = attention_verdict([good, unsure, same])
    assert (
        text.startswith("m passes 1 of 3 checks")
        and "hardly changes when all weights are randomised" in text
    )
    assert "FAIL: 0.90" in checks_table([good, same]).loc["m", "weights"]
    rows = check_metrics([good], split="test")
    assert rows[0].name == "attention_deletion" and rows[0].ci_low > 0 and rows[0].n == 30


def test_refusals():
    with pytest.raises(DataError, match=r"finite maps of shape \(n_stimuli, h, w\)"):
        map_similarity(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(DataError, match="two sets of maps of one shape"):
        map_similarity(np.ones((2, 3, 3)), np.ones((2, 4, 4)))
    with pytest.raises(DataError, match=r"a region of shape \(3, 3\)"):
        region_share(np.ones((2, 3, 3)), np.ones((4, 4)))
    with pytest.raises(DataError, match="one map per image"):
        deletion_insertion(
            linear_score, torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8), np.ones((1, 2, 2))
        )
    with pytest.raises(ConfigError, match="a check among"):
        check_row("m", "delete", [1.0])
    with pytest.raises(ConfigError, match="a reference for the check 'planted region'"):
        check_row("m", "planted region", np.ones(3), float("nan"))

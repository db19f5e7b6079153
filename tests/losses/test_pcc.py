"""The Pearson regulariser against scipy, and its behaviour at the edges."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch.nn import functional

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.losses import fusion_loss, pearson_regulariser


def _pair(b=6, d=9, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(b, d, dtype=dtype, generator=generator) for _ in range(2))


@pytest.mark.parametrize("axis", ["feature", "batch"])
def test_it_is_one_minus_the_mean_of_scipys_correlation(axis):
    x, y = _pair()
    rows = zip(x, y) if axis == "feature" else zip(x.T, y.T)
    truth = 1 - np.mean([pearsonr(a.numpy(), b.numpy())[0] for a, b in rows])
    assert pearson_regulariser(x, y, axis).item() == pytest.approx(truth, abs=1e-12)


def test_affine_copies_score_zero_and_opposites_two():
    x, _ = _pair()
    assert pearson_regulariser(x, 3 * x + 5).item() == pytest.approx(0, abs=1e-12)
    assert pearson_regulariser(x, -x).item() == pytest.approx(2, abs=1e-12)


def test_a_large_offset_does_not_spoil_float32():
    x, y = _pair(d=64)
    exact = pearson_regulariser(x, y)
    assert pearson_regulariser((x + 4096).float(), y.float()).item() == pytest.approx(
        exact.item(), abs=1e-3
    )


@pytest.mark.parametrize("axis", ["feature", "batch"])
def test_gradients_are_right_in_double_precision(axis):
    x, y = (t.requires_grad_() for t in _pair(5, 6))
    assert torch.autograd.gradcheck(lambda a, b: pearson_regulariser(a, b, axis), (x, y))


@pytest.mark.parametrize("axis", ["feature", "batch"])
@pytest.mark.parametrize("value", [0.0, 1e4])
def test_constant_input_has_a_finite_small_gradient(axis, value):
    x = torch.full((4, 8), value, requires_grad=True)
    _, y = _pair(4, 8, torch.float32)
    loss = pearson_regulariser(x, y, axis)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(x.grad).all() and x.grad.norm() <= 1e3


@pytest.mark.parametrize("axis", ["feature", "batch"])
@pytest.mark.parametrize("value", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("spread", [1e-6, 1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 1e-2])
def test_nearly_constant_input_has_a_bounded_gradient(axis, value, spread):
    x, y = _pair(8, 32, torch.float32)
    x = (value + spread * x).requires_grad_()
    loss = pearson_regulariser(x, y, axis)
    loss.backward()
    assert 0 <= loss.item() <= 2
    assert torch.isfinite(x.grad).all() and 0 < x.grad.norm() <= 1e3


def test_inside_autocast_it_stays_in_float32():
    x, y = _pair(8, 32, torch.float32)
    plain = pearson_regulariser(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pearson_regulariser(x, y)
    assert inside.dtype == torch.float32 and torch.equal(plain, inside)
    assert pearson_regulariser(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shapes", [((4, 8), (3, 8)), ((4, 8), (4, 1)), ((4, 1, 8), (4, 1, 8))])
def test_shapes_are_never_broadcast(shapes):
    with pytest.raises(DataError, match=r"one shape \(B, d\).*with the same width"):
        pearson_regulariser(torch.randn(shapes[0]), torch.randn(shapes[1]))


@pytest.mark.parametrize("axis, shape", [("batch", (2, 8)), ("feature", (8, 1))])
def test_a_correlation_needs_three_values(axis, shape):
    with pytest.raises(DataError, match="at least 3"):
        pearson_regulariser(torch.randn(shape), torch.randn(shape), axis)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ConfigError, match="'feature' or 'batch'"):
        pearson_regulariser(torch.randn(4, 4), torch.randn(4, 4), "rows")


def test_fusion_loss_is_the_sum_of_its_parts():
    x, y = _pair()
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    loss, parts = fusion_loss(logits, labels, x, y, 0.7, label_smoothing=0.1)
    cross = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert loss.item() == pytest.approx(
        cross.item() + 0.7 * pearson_regulariser(x, y).item(), abs=1e-12
    )
    assert parts["pearson"].item() == pytest.approx(1 - pearson_regulariser(x, y).item())
    assert fusion_loss(logits, labels)[0].item() == pytest.approx(
        functional.cross_entropy(logits, labels).item()
    )


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"label_smoothing": 1.0}, ConfigError, "label_smoothing in"),
        ({"alpha": 0.5}, ConfigError, "alpha 0 for a model without"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, DataError, "one label per stimulus"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, match):
    given = {"logits": torch.randn(4, 3), "labels": torch.zeros(4, dtype=torch.long), **arguments}
    with pytest.raises(error, match=match):
        fusion_loss(**given)

"""Integrated gradients against captum, against an analytic answer, and through the whole path."""

import pytest
import torch
from torch import nn

from bmfl_lab.evaluation.attribution import integrated_gradients


def made_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(5 * 64, 7),
        nn.Tanh(),
        nn.Linear(7, 4),
    ).double()


def test_equals_captum_and_is_complete():
    captum = pytest.importorskip("captum.attr")
    network, inputs = made_network(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    baseline, target = torch.full_like(inputs, 0.1), torch.tensor([2, 0, 1])
    expected = captum.IntegratedGradients(network).attribute(
        inputs, baseline, target=target, n_steps=40, method="gausslegendre"
    )

    def score(x, index):
        return network(x).gather(1, target[index, None])[:, 0]

    for rows in (1, 16, 500):
        found, gap = integrated_gradients(score, inputs, baseline, steps=40, rows=rows)
        torch.testing.assert_close(
            found, expected, rtol=1e-6, atol=1e-8
        )  # captum forms its steps in single precision
        assert gap.abs().max() < 1e-6


def test_exact_for_a_polynomial_and_the_gap_says_when_it_is_not():
    inputs = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)

    def score(x, index):
        return x[:, 0] ** 2 * x[:, 1] + x[:, 1]

    found, gap = integrated_gradients(score, inputs, torch.zeros_like(inputs), steps=2)
    x, y = inputs.T
    torch.testing.assert_close(found, torch.stack([2 / 3 * x**2 * y, x**2 * y / 3 + y], 1))
    assert gap.abs().max() < 1e-12
    _, coarse = integrated_gradients(score, inputs, torch.zeros_like(inputs), steps=1)
    assert coarse.abs().min() > 0.1


def test_weights_receive_no_gradient_and_inference_is_left_alone():
    network = made_network()
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        integrated_gradients(
            lambda x, i: network(x)[:, 0], inputs, torch.zeros_like(inputs), steps=4
        )
    assert all(p.grad is None for p in network.parameters()) and not inputs.requires_grad

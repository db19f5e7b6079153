"""The alignment losses against pairwise scipy, finite differences and the released behaviour."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.losses.alignment import alignment_loss, contrastive


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_contrast_is_the_pairwise_definition():
    p, y = draw(5, 12), draw(5, 12, seed=1)
    r = np.array([[pearsonr(a, b).statistic for b in y.numpy()] for a in p.numpy()])
    want = 1 - np.mean(np.diag(r)) + r[~np.eye(5, dtype=bool)].mean()
    assert contrastive(p, y).item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("contrast", ["matrix", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_of_every_term(contrast, soft):
    logits, p = draw(4, 3).requires_grad_(), draw(4, 6, seed=1).requires_grad_()
    y = draw(4, 6, seed=2)
    targets = draw(4, 3, seed=3).softmax(1) if soft else torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(
        lambda a, b: alignment_loss(a, targets, b, y, beta=10.0, contrast=contrast)[0], (logits, p)
    )
    assert torch.autograd.gradcheck(lambda b: contrastive(b, y), (p,))
    for value, wrt in ((contrastive(p, y), p), ((p - y).square().mean(), p)):
        assert torch.autograd.grad(value, wrt)[0].abs().min() > 0


def gradients(contrast, dtype=torch.float32):
    logits, p = draw(4, 3).to(dtype).requires_grad_(), draw(4, 6, seed=1).to(dtype).requires_grad_()
    y, targets = draw(4, 6, seed=2).to(dtype), torch.tensor([0, 2, 1, 1])
    loss, parts = alignment_loss(logits, targets, p, y, beta=100.0, contrast=contrast)
    loss.backward()
    return loss.detach(), parts, logits.grad, p.grad


def test_detached_counts_the_value_and_trains_like_squared_error_to_the_bit():
    matrix, detached, none = (gradients(c) for c in ("matrix", "detached", "none"))
    assert matrix[0] == detached[0] and detached[0] != none[0]
    assert "contrast" in detached[1] and "contrast" not in none[1]
    assert torch.equal(detached[2], none[2]) and torch.equal(detached[3], none[3])
    assert not torch.equal(matrix[3], none[3])


@pytest.mark.parametrize("which", ["prediction", "measured", "both"])
def test_constant_responses_count_as_zero_with_finite_gradient(which):
    p, y = draw(4, 8), draw(4, 8, seed=1)
    if which != "measured":
        p[1] = 0.3
    if which != "prediction":
        y[2] = -1.0
    p.requires_grad_()
    loss = contrastive(p, y)
    (gradient,) = torch.autograd.grad(loss, p)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and gradient.abs().max() < 1e3
    q = torch.full((3, 5), 2.0, requires_grad=True)
    assert contrastive(q, torch.ones(3, 5)).item() == 1


def test_beta_zero_is_cross_entropy():
    logits, targets = draw(4, 3), torch.tensor([0, 2, 1, 1])
    loss, _ = alignment_loss(logits, targets, draw(4, 6), draw(4, 6, seed=1), beta=0.0)
    assert loss == torch.nn.functional.cross_entropy(logits, targets)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {
                "p_BE": draw(1, 6),
                "y_BE": draw(1, 6),
                "logits_BC": draw(1, 3),
                "targets": torch.tensor([0]),
            },
            DataError,
            "at least 2 stimuli",
        ),
        ({"y_BE": draw(4, 1)}, DataError, "of one shape"),
        ({"y_BE": draw(4, 1), "contrast": "none"}, DataError, "of one shape"),
        ({"targets": torch.tensor([0, 1])}, DataError, "one target per stimulus"),
        ({"contrast": "released"}, ConfigError, "a contrast among"),
        ({"beta": -1.0}, ConfigError, "beta of at least 0"),
    ],
)
def test_refusals(change, error, match):
    arguments = {
        "logits_BC": draw(4, 3),
        "targets": torch.tensor([0, 2, 1, 1]),
        "p_BE": draw(4, 6),
        "y_BE": draw(4, 6),
        "beta": 1.0,
    } | change
    with pytest.raises(error, match=match):
        alignment_loss(**arguments)


def test_the_loss_is_the_sum_of_its_terms():
    logits, targets = draw(4, 3), torch.tensor([0, 2, 1, 1])
    p, y = draw(4, 6), draw(4, 6, seed=1)
    entropy = -torch.log_softmax(logits, 1)[range(4), targets].mean()
    error, contrast = (p - y).square().mean(), contrastive(p, y)
    assert contrast.abs() > 0.1
    for name, extra in (("matrix", contrast), ("detached", contrast), ("none", 0)):
        loss, parts = alignment_loss(logits, targets, p, y, beta=3.0, contrast=name)
        torch.testing.assert_close(loss, entropy + 3 * (error + extra))
        torch.testing.assert_close(parts["mse"], error)
    smallest = contrastive(draw(2, 3), draw(2, 3, seed=1))
    assert torch.isfinite(smallest)
    for few in ((1, 3), (2, 2)):
        with pytest.raises(DataError, match="contrast='none'"):
            contrastive(draw(*few), draw(*few, seed=1))

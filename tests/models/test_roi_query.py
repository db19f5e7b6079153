"""ROI-query transformer against a plain masked readout and hand-made attention."""

import math

import numpy as np
import pytest
import torch

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.models.encoders import GroupedReadout, ROIQueryEncoder, query_masks, sine_positions


def overlapping(v=41, seed=0):
    g = np.random.default_rng(seed)
    hemisphere = (np.arange(v) >= 20).astype(np.int8)
    rois = {
        "V1": np.arange(v) % 4 == 0,
        "FFA": g.random(v) < 0.4,
        "EBA": g.random(v) < 0.3,
        "none": np.zeros(v, bool),
    }
    return hemisphere, rois


def test_queries_cover_every_vertex_in_its_hemisphere():
    hemisphere, rois = overlapping()
    names, masks = query_masks(hemisphere, rois)
    assert names == tuple(
        f"{s}:{r}" for s in ("left", "right") for r in ("V1", "FFA", "EBA", "rest")
    )
    assert masks.any(0).all() and not masks[:4, 20:].any() and not masks[4:, :20].any()
    assert np.array_equal(masks[1], rois["FFA"] & (hemisphere == 0))
    names, masks = query_masks(hemisphere, {})
    assert names == ("left:all", "right:all") and np.array_equal(masks.sum(0), np.ones(41))


def test_grouped_readout_equals_dense_readout_times_mask():
    _, masks = query_masks(*overlapping())
    torch.manual_seed(0)
    readout = GroupedReadout(masks=masks, width=24)
    torch.nn.init.normal_(readout.bias_V)
    q = torch.randn(5, len(masks), 24, requires_grad=True)
    w = readout.weight().detach().requires_grad_()
    dense = torch.einsum("bre,ve->brv", q, w) + readout.bias_V.detach()
    plain = (dense * torch.from_numpy(masks).float()).sum(1)
    out = readout(q)
    assert torch.allclose(out, plain, atol=1e-5)
    up = torch.randn_like(out)
    grads = torch.autograd.grad(plain, (q, w), up)
    ours = torch.autograd.grad(out, (q, *readout.weights), up)
    assert torch.allclose(grads[0], ours[0], atol=1e-5)
    assert torch.allclose(grads[1], torch.cat(ours[1:])[readout.inverse_V], atol=1e-5)


def reference(model, x, masks):
    """The encoder written out with dense attention, head by head, and a masked readout."""
    e, h = model.queries_RE.shape[1], model.n_heads
    k = e // h
    q, key, v = model.q(model.queries_RE), model.k(x + model.positions_PE), model.v(x)
    heads, weights = [], []
    for i in range(h):
        s = slice(i * k, (i + 1) * k)
        a = torch.softmax(q[:, s] @ key[:, :, s].transpose(1, 2) / math.sqrt(k), -1)
        weights.append(a)
        heads.append(a @ v[:, :, s])
    o = model.out(torch.cat(heads, -1))
    o = model.norm_out(o + model.ffn(model.norm_ffn(o)))
    dense = o @ model.readout.weight().T + model.readout.bias_V
    return (dense * torch.from_numpy(masks).float()).sum(1), torch.stack(weights, 2)


def test_encoder_equals_its_definition_and_shows_its_attention():
    _, masks = query_masks(*overlapping())
    torch.manual_seed(1)
    model = ROIQueryEncoder(
        masks=masks, token_width=16, grid=(3, 5), n_heads=4, ffn_width=32
    ).eval()
    torch.nn.init.normal_(model.readout.bias_V)
    x = torch.randn(2, 15, 16)
    expected, weights = reference(model, x, masks)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert torch.allclose(model.attention(x), weights, atol=1e-6)
    assert model.attention(x).shape == (2, 8, 4, 15)


def test_width_may_differ_and_dropout_acts_in_training_only():
    _, masks = query_masks(*overlapping())
    model = ROIQueryEncoder(
        masks=masks, token_width=12, grid=(2, 2), width=16, n_heads=4, dropout=0.5
    )
    x = torch.randn(3, 4, 12)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x)) and model(x).shape == (3, 41)


def test_positions_tell_rows_from_columns():
    p = sine_positions((3, 4), 16).reshape(3, 4, 16)
    assert torch.allclose(p[0, :, :8], p[0, :1, :8]) and torch.allclose(p[:, 0, 8:], p[:1, 0, 8:])
    assert len(torch.unique(p.reshape(12, 16), dim=0)) == 12


def test_positions_are_those_of_detr_written_out():
    rows, columns, width = 3, 4, 16
    expected = np.zeros((rows, columns, width))
    for r in range(rows):
        for c in range(columns):
            for half, place in (
                (0, (r + 1) / rows),
                (1, (c + 1) / columns),
            ):  # rows first, as in DETR
                for k in range(width // 2):
                    angle = place * 2 * math.pi / 10000 ** (2 * (k // 2) / (width // 2))
                    expected[r, c, half * width // 2 + k] = (
                        math.sin(angle) if k % 2 == 0 else math.cos(angle)
                    )
    found = sine_positions((rows, columns), width).reshape(rows, columns, width)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_refusals():
    hemisphere, rois = overlapping()
    _, masks = query_masks(hemisphere, rois)
    with pytest.raises(
        ConfigError, match="divisible by 4 and by the number of heads; got 16 and 5"
    ):
        ROIQueryEncoder(masks=masks, token_width=16, grid=(2, 2), n_heads=5)
    with pytest.raises(ConfigError, match="width divisible by 4"):
        sine_positions((2, 2), 6)
    with pytest.raises(
        DataError, match=r"every vertex in at least one query's mask; got \d+ without"
    ):
        GroupedReadout(masks=masks[:3], width=8)
    with pytest.raises(DataError, match=r"patches of shape \(B, 4, D\)"):
        ROIQueryEncoder(masks=masks, token_width=16, grid=(2, 2), n_heads=4)(torch.zeros(1, 9, 16))

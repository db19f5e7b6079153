"""Attention, tokenisers, fusion, lesions and the assembled path."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bmfl_lab.backbones.tokens import pool_patches
from bmfl_lab.errors import ConfigError
from bmfl_lab.losses import fusion_loss
from bmfl_lab.models.attention import MultiHeadAttention, sincos_positions
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.models.brain_transformer import BrainTransformer, ParcelTokeniser, PatchTokeniser
from bmfl_lab.models.fusion import (
    CrossAttentionFusion,
    FusionModel,
    Moments,
    count_parameters,
    matched_hidden,
)
from bmfl_lab.models.lesion import Lesion, apply_lesion

PARCELS = {
    "left:V1": np.array([0, 1, 2]),
    "left:V2": np.array([3]),
    "right:V1": np.array([9, 4, 5, 6, 7, 2]),
}


def _brain(n_vertices=10, width=16):
    tokeniser = ParcelTokeniser(parcels=PARCELS, n_vertices=n_vertices, width=width)
    return BrainTransformer(tokeniser=tokeniser, width=width, depth=1, n_heads=2)


def _model(head="fusion", **changes):
    torch.manual_seed(0)
    sizes = {
        "visual_width": 12,
        "n_classes": 3,
        "brain_width": 16,
        "width": 8,
        "n_heads": 2,
        **changes,
    }
    return FusionModel(head=head, brain=_brain(), **sizes)


def _inputs(b=5, p=7):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*s, generator=generator) for s in ((b, 12), (b, p, 12), (b, 10))]


def test_attention_is_torchs_own():
    torch.manual_seed(0)
    ours = MultiHeadAttention(width=12, n_heads=3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    layers = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([m.weight for m in layers])
    theirs.in_proj_bias.data = torch.cat([m.bias for m in layers])
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, context = torch.randn(2, 4, 12), torch.randn(2, 6, 12)
    expected, weights = theirs(x, context, context, average_attn_weights=False)
    plain, none = ours(x, context)
    asked, found = ours(x, context, weights=True)
    assert none is None
    for value in (plain, asked):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, weights)


def test_parcel_tokens_are_linear_readouts_of_their_own_vertices():
    tokeniser = ParcelTokeniser(parcels=PARCELS, n_vertices=10, width=4)
    nn.init.normal_(tokeniser.bias)
    x, start, expected = torch.randn(3, 10), 0, []
    for k, index in enumerate(PARCELS.values()):
        weight = tokeniser.weight[start : start + len(index)]
        expected.append(x[:, index] @ weight + tokeniser.bias[k])
        start += len(index)
    torch.testing.assert_close(tokeniser(x), torch.stack(expected, 1))
    assert tokeniser.n_tokens == 3 and tokeniser.names == tuple(PARCELS)
    assert count_parameters(tokeniser) == 4 * (10 + 3)


@pytest.mark.parametrize("n_vertices, tokens", [(48, 3), (37, 3), (5, 1)])
def test_patch_tokens_are_a_strided_convolution_over_the_wrapped_response(n_vertices, tokens):
    tokeniser = PatchTokeniser(n_vertices=n_vertices, width=6, patch=16)
    x = torch.randn(2, n_vertices)
    wrapped = torch.from_numpy(
        np.pad(x.numpy(), ((0, 0), (0, tokens * 16 - n_vertices)), mode="wrap")
    )
    expected = functional.conv1d(
        wrapped[:, None], tokeniser.linear.weight[:, None], tokeniser.linear.bias, stride=16
    )
    torch.testing.assert_close(tokeniser(x), expected.transpose(1, 2))
    assert tokeniser.n_tokens == tokens


def test_the_right_hemisphere_of_algonauts_subject_1_has_no_extra_patch():
    assert PatchTokeniser(n_vertices=20_544, width=2).n_tokens == 1_284
    assert PatchTokeniser(n_vertices=39_548, width=2).n_tokens == 2_472


def test_brain_transformer_shapes_and_fixed_positions():
    cls, tokens = _brain()(torch.randn(4, 10))
    assert cls.shape == (4, 16) and tokens.shape == (4, 3, 16)
    fixed = BrainTransformer(
        tokeniser=PatchTokeniser(n_vertices=33, width=16),
        width=16,
        depth=1,
        n_heads=2,
        positions="sincos",
    )
    assert "positions" not in dict(fixed.named_parameters())
    assert sincos_positions(5, 4)[3].tolist() == pytest.approx(
        [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], abs=1e-6
    )


@pytest.mark.parametrize("query", ["cls", "patch"])
def test_with_zero_value_weights_only_the_residual_remains(query):
    torch.manual_seed(0)
    fusion = CrossAttentionFusion(visual_width=12, brain_width=16, width=8, n_heads=2, query=query)
    nn.init.zeros_(fusion.attention_vb.value.weight)
    nn.init.zeros_(fusion.attention_bv.value.weight)
    cls, patches, brain_cls, brain = (
        torch.randn(3, 12),
        torch.randn(3, 5, 12),
        torch.randn(3, 16),
        torch.randn(3, 4, 16),
    )
    x_vb, x_bv, _ = fusion(cls, patches, brain_cls, brain)
    visual = fusion.project_visual(torch.cat([cls[:, None], patches], 1))
    own = fusion.project_brain(torch.cat([brain_cls[:, None], brain], 1))
    expected = (visual[:, 0], own[:, 0]) if query == "cls" else (visual.mean(1), own.mean(1))
    torch.testing.assert_close((x_vb, x_bv), expected)


@pytest.mark.parametrize("query, n_q", [("cls", (1, 1)), ("patch", (8, 4))])
def test_attention_weights_come_on_request_and_change_nothing(query, n_q):
    model = _model(query=query).eval()
    inputs = _inputs()
    plain, asked = model(*inputs), model(*inputs, weights=True)
    assert plain.attention is None
    assert asked.attention["vb"].shape == (5, 2, n_q[0], 3) and asked.attention["bv"].shape == (
        5,
        2,
        n_q[1],
        7,
    )
    for value in asked.attention.values():
        torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]))
    torch.testing.assert_close(plain.logits, asked.logits)


@pytest.mark.parametrize("head", ["fusion", "concat", "backbone"])
def test_every_trainable_parameter_gets_a_gradient(head):
    model = _model(head)
    out = model(*_inputs())
    x = (out.x_vb, out.x_bv)
    fusion_loss(
        out.logits, torch.tensor([0, 1, 2, 0, 1]), *x, alpha=0.0 if head == "backbone" else 0.5
    )[0].backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing and (out.x_vb is None) == (head == "backbone")


def test_a_fusion_learns_under_gradcheck():
    model = _model().double().eval()
    cls, patches, response = (t.double() for t in _inputs(3, 4))
    assert torch.autograd.gradcheck(
        lambda r: model(cls, patches, r).logits, (response.requires_grad_(),)
    )


@pytest.mark.parametrize("axis", ["feature", "batch"])
@pytest.mark.parametrize("query", ["cls", "patch"])
def test_the_gradient_of_the_whole_loss_is_right(axis, query):
    model = _model(query=query).double().eval()
    cls, patches, response = (t.double() for t in _inputs(4, 2))
    labels = torch.tensor([0, 1, 2, 1])

    def loss(c, p, r):
        out = model(c, p, r)
        return fusion_loss(
            out.logits, labels, out.x_vb, out.x_bv, 0.7, axis=axis, label_smoothing=0.1
        )[0]

    inputs = tuple(t.requires_grad_() for t in (cls, patches, response))
    assert torch.autograd.gradcheck(loss, inputs)


def test_tokens_are_standardised_by_training_moments():
    model = _model()
    cls, patches, _ = _inputs(600)
    moments = Moments(), Moments()
    for rows in (slice(0, 512), slice(512, 600)):
        moments[0].add((cls[rows] * 3 + 100).half())
        moments[1].add(patches[rows] * 0.5 - 7)
    model.standardise_tokens(*moments)
    torch.testing.assert_close(
        model.token_mean[1], (patches * 0.5 - 7).mean((0, 1)), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        model.token_scale[0], (cls * 3 + 100).half().float().std(0, correction=0)
    )


@pytest.mark.parametrize("width", [384, 768])
def test_the_backbone_head_matches_the_capacity(width):
    target = count_parameters(_model(visual_width=width, width=64))
    hidden = matched_hidden(target, visual_width=width, n_classes=3)
    found = count_parameters(
        FusionModel(head="backbone", visual_width=width, n_classes=3, hidden=hidden)
    )
    assert abs(found - target) <= 0.02 * target


def test_a_capacity_that_cannot_be_matched_is_refused():
    with pytest.raises(ConfigError, match="within 2 %"):
        matched_hidden(5_000, visual_width=4_000, n_classes=3)


def test_lesions_replace_only_what_they_mask():
    x, mask = torch.randn(6, 10), np.arange(10) < 4
    mean, donors = torch.randn(10), torch.randn(20, 10)
    for lesion, expected in (
        (Lesion(mask, "zero"), torch.zeros(6, 4)),
        (Lesion(mask, "mean"), mean[:4].expand(6, 4)),
        (Lesion(mask, "mean", 0.25), 0.75 * x[:, :4] + 0.25 * mean[:4]),
        (Lesion(mask, "zero", 0.0), x[:, :4]),
    ):
        out = apply_lesion(x, lesion, mean_V=mean)
        torch.testing.assert_close(out[:, :4], expected)
        assert torch.equal(out[:, 4:], x[:, 4:])
    out = apply_lesion(x, Lesion(mask, "resample", seed=3), donors_NV=donors)
    assert all((row == donors[:, :4]).all(1).any() for row in out[:, :4])
    assert torch.equal(out, apply_lesion(x, Lesion(mask, "resample", seed=3), donors_NV=donors))
    part = apply_lesion(
        x[2:5], Lesion(mask, "resample", seed=3), donors_NV=donors, rows=np.arange(2, 5)
    )
    assert torch.equal(part, out[2:5])  # a donor belongs to a position, not to a batch
    assert apply_lesion(x, None) is x


def test_an_unknown_query_is_refused():
    with pytest.raises(ConfigError, match=r"query among .* choose one of cls, patch"):
        CrossAttentionFusion(visual_width=4, brain_width=4, width=4, query="all")


class _Tokens(NamedTuple):
    cls: torch.Tensor
    patches: torch.Tensor
    grid: tuple


class _Backbone(nn.Module):
    """A real, small network in place of a vision transformer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 12, 14, 14), nn.Dropout(0.5))

    def forward(self, images):
        grid = self.conv(images)
        return _Tokens(grid.mean((2, 3)), grid.flatten(2).transpose(1, 2), tuple(grid.shape[2:]))


class _Encoder(nn.Sequential):
    """Mean patch, dropout, linear readout."""

    def forward(self, patches):
        return super().forward(patches.mean(1))


def test_backbone_and_encoder_get_no_gradient_and_do_not_change_by_a_bit():
    torch.manual_seed(0)
    model = BMFL(
        backbone=_Backbone(),
        encoder=_Encoder(nn.Dropout(0.5), nn.Linear(12, 20)),
        fusion=_model(),
        selected=np.arange(5, 15),
        mean=np.zeros(20, np.float32),
        scale=np.full(20, 2, np.float32),
        pool=2,
    ).train()
    assert model.fusion.training and not model.backbone.training and not model.encoder.training
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    images, labels = torch.randn(4, 3, 56, 56), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        optimiser.zero_grad()
        functional.cross_entropy(model(images).logits, labels).backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        frozen = name.startswith(("backbone.", "encoder.")) or name in dict(model.named_buffers())
        assert torch.equal(value, before[name]) == frozen, name
    assert all(p.grad is None for m in (model.backbone, model.encoder) for p in m.parameters())
    assert model(images, lesion=Lesion(np.ones(20, bool), "mean")).logits.shape == (4, 3)


def test_pooling_averages_cells():
    patches = torch.randn(2, 16, 3)
    pooled = pool_patches(patches, (4, 4), (2, 2))
    torch.testing.assert_close(pooled[:, 0], patches[:, [0, 1, 4, 5]].mean(1))

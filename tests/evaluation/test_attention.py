"""Attention maps: rows sum to one, registers are never patches, rollout is the product of the paper."""

import numpy as np
import pytest
import torch
from torch import nn

from bmfl_lab.backbones.protocol import Preprocess
from bmfl_lab.backbones.vit import Architecture, ViT
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError
from bmfl_lab.evaluation.attention import backbone_attention, image_batches, rollout, seen_images


def made_backbone(n_registers=0, seed=0):
    architecture = Architecture(
        "tiny_test", width=24, n_heads=3, n_blocks=3, n_registers=n_registers, grid=4
    )
    backbone = ViT(architecture, preprocess=Preprocess(image_size=56, resize="direct"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return backbone


@pytest.fixture(scope="module")
def stimuli():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 56, 56, 3), dtype=np.uint8)
    return from_arrays("some", pixels, [f"i{k}" for k in range(5)], [0, 1, 0, 1, 0], ("a", "b"))


def full_attention(backbone, stimuli):
    """The layers' attention (n, H, T, T) by the definition: softmax of q k' / sqrt(K), block by block."""
    layers = []
    (images,) = image_batches(backbone, stimuli, 99)
    x, _ = backbone.embed(images)
    for block in backbone.blocks:
        n, tokens, width = x.shape
        q, k, v = nn.functional.linear(
            block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias
        ).split(width, -1)
        q, k, v = (t.reshape(n, tokens, backbone.n_heads, -1).transpose(1, 2) for t in (q, k, v))
        weights = torch.exp(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5)
        layers.append(weights / weights.sum(-1, keepdim=True))
        x = x + block.ls1(
            block.attn.proj((layers[-1] @ v).transpose(1, 2).reshape(n, tokens, width))
        )
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return [layer.numpy() for layer in layers]


def rolled_by_hand(layers, skip, drop):
    """Rollout of one CLS token with loops over images, layers and tokens; `drop` columns are taken out."""
    found = []
    for image in range(len(layers[0])):
        flow = None
        for layer in layers:
            mean = layer[image].mean(0)
            if drop:
                mean = np.delete(np.delete(mean, drop, 0), drop, 1)
                mean = mean / mean.sum(1, keepdims=True)
            step = skip * np.eye(len(mean)) + (1 - skip) * mean
            flow = (
                step
                if flow is None
                else np.array([sum(a * row for a, row in zip(line, flow)) for line in step])
            )
        found.append(flow[0])
    return np.asarray(found)


@pytest.mark.parametrize("n_registers", [0, 2])
def test_cls_attention_is_that_of_the_definition_without_registers(stimuli, n_registers):
    backbone = made_backbone(n_registers)
    layers = full_attention(backbone, stimuli)
    raw = backbone_attention(backbone, stimuli, normalise=False, batch_size=2)
    assert raw.shape == (5, 3, 3, 4, 4)
    expected = np.stack([layer[:, :, 0, 1 + n_registers :] for layer in layers], 1)
    np.testing.assert_allclose(raw.reshape(expected.shape), expected, rtol=1e-4, atol=1e-7)
    left = np.stack([layer[:, :, 0, : 1 + n_registers].sum(-1) for layer in layers], 1)
    np.testing.assert_allclose(raw.sum((3, 4)) + left, 1, rtol=1e-5)


def test_maps_sum_to_one_and_the_mean_over_heads_keeps_the_axis(stimuli):
    backbone = made_backbone(2)
    np.testing.assert_allclose(backbone_attention(backbone, stimuli).sum((3, 4)), 1, rtol=1e-5)
    mean = backbone_attention(backbone, stimuli, blocks=(-1,), heads="mean", normalise=False)
    each = backbone_attention(backbone, stimuli, blocks=(2,), normalise=False)
    assert mean.shape == (5, 1, 1, 4, 4)
    np.testing.assert_allclose(mean[:, :, 0], each.mean(2), rtol=1e-5)


@pytest.mark.parametrize(
    "n_registers, kept, skip", [(0, True, 0.5), (2, True, 0.5), (2, False, 0.5), (2, False, 0.2)]
)
def test_rollout_equals_a_hand_written_loop(stimuli, n_registers, kept, skip):
    backbone = made_backbone(n_registers)
    drop = list(range(1, 1 + n_registers)) if not kept else []
    flow = rolled_by_hand(full_attention(backbone, stimuli), skip, drop)
    expected = flow[:, 1 + n_registers - len(drop) :]
    expected = expected / expected.sum(1, keepdims=True)
    found = rollout(backbone, stimuli, residual=skip, registers=kept, batch_size=3)
    np.testing.assert_allclose(found.reshape(5, 16), expected, rtol=1e-4)


def test_capture_is_off_unless_asked_for(stimuli):
    backbone = made_backbone(2)
    (images,) = image_batches(backbone, stimuli, 99)
    assert backbone(images).attention is None
    backbone_attention(backbone, stimuli)
    assert backbone(images).attention is None and not any(
        m._forward_hooks for m in backbone.modules()
    )


def test_maps_lie_on_the_pixels_the_backbone_sees(stimuli):
    backbone = made_backbone()
    seen = seen_images(backbone, stimuli)
    assert seen.shape == (5, 56, 56, 3)
    np.testing.assert_array_equal(seen[3], stimuli.image(3))


def test_no_images_give_no_maps(stimuli):
    backbone = made_backbone()
    assert backbone_attention(backbone, stimuli.subset([])).shape == (0, 3, 3, 4, 4)
    assert rollout(backbone, stimuli.subset([])).shape == (0, 4, 4)


def test_refusals(stimuli):
    backbone = made_backbone()
    with pytest.raises(ConfigError, match="block indices from -3 to 2"):
        backbone_attention(backbone, stimuli, blocks=(3,))
    with pytest.raises(ConfigError, match="heads 'each' or 'mean'"):
        backbone_attention(backbone, stimuli, heads="max")
    with pytest.raises(ConfigError, match="a residual share from 0 to below 1"):
        rollout(backbone, stimuli, residual=1.0)

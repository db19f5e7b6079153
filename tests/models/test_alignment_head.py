"""The alignment head: published size, one pass of the backbone, pooled form, token backbones."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bmfl_lab.backbones.cornet import CORnetS
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.models.alignment import AlignedNetwork, AlignmentHead, TokenNetwork


def test_published_parameter_count():
    with torch.device("meta"):
        sizes = CORnetS().sizes(224)
        head = AlignmentHead(sizes)
    assert sum(p.numel() for p in head.parameters()) == 48_694_784


@pytest.mark.parametrize("pool", [None, 2])
def test_one_pass_gives_both_outputs_and_gradients_everywhere(pool):
    backbone = CORnetS(n_classes=5, width=2)
    network = AlignedNetwork(
        backbone, AlignmentHead(backbone.sizes(64), n_responses=9, width=6, pool=pool)
    )
    passes = []
    backbone.V1.register_forward_hook(lambda *_: passes.append(1))
    logits, responses = network(torch.randn(3, 3, 64, 64))
    assert len(passes) == 1 and logits.shape == (3, 5) and responses.shape == (3, 9)
    (logits.square().sum() + responses.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_head_is_its_formula_and_a_pooled_one_takes_any_image_size():
    head = AlignmentHead({"a": (2, 3, 3)}, n_responses=4, width=5)
    x = torch.randn(2, 2, 3, 3)
    want = head.readout(
        torch.relu(x.reshape(2, 18) @ head.encoders["a"].weight.T + head.encoders["a"].bias)
    )
    torch.testing.assert_close(head({"a": x}), want)
    with pytest.raises(DataError, match=r"block 'a' of size \(2, 3, 3\); got size \(2, 4, 4\)"):
        head({"a": torch.randn(2, 2, 4, 4)})
    with pytest.raises(DataError, match="got the blocks"):
        head({"b": x})
    pooled = AlignmentHead({"a": (2, 3, 3)}, n_responses=4, width=5, pool=1)
    assert pooled({"a": torch.randn(2, 2, 7, 9)}).shape == (2, 4)
    with pytest.raises(ConfigError, match="at least one block"):
        AlignmentHead({})


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.grads = nn.Conv2d(3, 8, 14, 14), []

    def forward(self, images, blocks, grad=False):
        self.grads.append(grad)
        x = self.embed(images)
        grid, patches = x.shape[2:], x.flatten(2).transpose(1, 2)
        return tuple(
            SimpleNamespace(cls=patches.mean(1) + i, patches=patches + i, grid=tuple(grid))
            for i in blocks
        )


def test_token_backbone_takes_cornets_place():
    backbone = TokenNetwork(Tokens(), blocks=(0, 2), width=8, n_classes=3)
    _, maps = backbone(torch.zeros(2, 3, 28, 42), blocks=True)
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        "block0": (2, 8, 2, 3),
        "block2": (2, 8, 2, 3),
    }
    images = torch.randn(2, 3, 28, 42)
    tokens = backbone.backbone(images, (2,))[0].patches
    torch.testing.assert_close(backbone(images, blocks=True)[1]["block2"][1, :, 1, 2], tokens[1, 5])
    head = AlignmentHead({"block0": (8, 2, 3), "block2": (8, 2, 3)}, n_responses=4, pool=1)
    logits, responses = AlignedNetwork(backbone, head)(images)
    assert logits.shape == (2, 3) and responses.shape == (2, 4)


def test_gradients_reach_a_token_backbone_only_where_its_parameters_ask_for_them():
    tokens = Tokens()
    network = TokenNetwork(tokens, blocks=(0, 2), width=8, n_classes=3)
    network(torch.randn(2, 3, 28, 28))
    with torch.no_grad():
        network(torch.randn(2, 3, 28, 28))
    tokens.requires_grad_(False)
    network(torch.randn(2, 3, 28, 28))
    assert tokens.grads == [True, False, False]

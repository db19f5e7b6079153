"""CORnet-S against a plain re-implementation, its published sizes, and hostile checkpoints."""

import pickle

import pytest
import torch
from torch.nn import functional as F

from bmfl_lab.backbones import Backbone, load_backbone
from bmfl_lab.backbones.cornet import BLOCKS, CORnetS, load_cornet
from bmfl_lab.errors import CheckpointError, ConfigError


def plain(state, x):
    """The published recipe written out for evaluation mode, from the parameters alone."""

    def bn(x, p):
        return F.batch_norm(
            x,
            state[f"{p}.running_mean"],
            state[f"{p}.running_var"],
            state[f"{p}.weight"],
            state[f"{p}.bias"],
        )

    x = F.relu(bn(F.conv2d(x, state["V1.conv1.weight"], stride=2, padding=3), "V1.norm1"))
    x = F.relu(
        bn(F.conv2d(F.max_pool2d(x, 3, 2, 1), state["V1.conv2.weight"], padding=1), "V1.norm2")
    )
    out = {"V1": x}
    for area, times in (("V2", 2), ("V4", 4), ("IT", 2)):
        x = F.conv2d(x, state[f"{area}.conv_input.weight"])
        for t in range(times):
            skip = (
                bn(F.conv2d(x, state[f"{area}.skip.weight"], stride=2), f"{area}.norm_skip")
                if t == 0
                else x
            )
            x = F.relu(bn(F.conv2d(x, state[f"{area}.conv1.weight"]), f"{area}.norm1_{t}"))
            x = F.conv2d(x, state[f"{area}.conv2.weight"], stride=2 if t == 0 else 1, padding=1)
            x = F.relu(bn(x, f"{area}.norm2_{t}"))
            x = bn(F.conv2d(x, state[f"{area}.conv3.weight"]), f"{area}.norm3_{t}")
            x = F.relu(x + skip)
        out[area] = x
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return F.linear(pooled, state["decoder.linear.weight"], state["decoder.linear.bias"]), out


def small(seed=0):
    torch.manual_seed(seed)
    model = CORnetS(n_classes=7, width=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return model.eval()


def test_published_parameter_counts():
    with torch.device("meta"):
        model = CORnetS()
    counts = {
        n: sum(p.numel() for p in getattr(model, n).parameters()) for n in (*BLOCKS, "decoder")
    }
    assert counts == {
        "V1": 46_528,
        "V2": 2_519_808,
        "V4": 10_078_720,
        "IT": 40_258_560,
        "decoder": 513_000,
    }
    assert sum(counts.values()) == 53_416_616
    assert model.sizes(224) == {
        "V1": (64, 56, 56),
        "V2": (128, 28, 28),
        "V4": (256, 14, 14),
        "IT": (512, 7, 7),
    }


def test_names_of_the_published_checkpoint():
    """Names are written out from the published definition.

    Convolutions are shared between steps, each step has its own norms, and one layer is linear.
    """
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {f"V1.conv{i}.weight" for i in (1, 2)} | {
        f"V1.norm{i}.{k}" for i in (1, 2) for k in norm
    }
    for area, times in (("V2", 2), ("V4", 4), ("IT", 2)):
        names |= {f"{area}.{c}.weight" for c in ("conv_input", "skip", "conv1", "conv2", "conv3")}
        names |= {f"{area}.norm_skip.{k}" for k in norm}
        names |= {f"{area}.norm{i}_{t}.{k}" for i in (1, 2, 3) for t in range(times) for k in norm}
    names |= {"decoder.linear.weight", "decoder.linear.bias"}
    assert set(small().state_dict()) == names and len(names) == 164


@pytest.mark.parametrize("size", [64, 75])
def test_same_function_as_the_plain_recipe(size):
    model, x = small().double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    logits, blocks = model(x, blocks=True)
    want, outputs = plain(model.state_dict(), x)
    torch.testing.assert_close(logits, want, rtol=1e-10, atol=1e-10)
    assert list(blocks) == list(BLOCKS)
    for name in BLOCKS:
        torch.testing.assert_close(blocks[name], outputs[name], rtol=1e-10, atol=1e-10)
        assert blocks[name].shape[1:] == model.sizes(size)[name]
    torch.testing.assert_close(model(x), logits, rtol=0, atol=0)


def test_each_step_has_its_own_batch_statistics():
    model = small().train()
    model(torch.randn(4, 3, 64, 64))
    assert not torch.equal(model.V4.norm1_1.running_mean, model.V4.norm1_2.running_mean)
    assert int(model.V4.norm1_3.num_batches_tracked) == 1


@pytest.mark.parametrize("form", ["plain", "module", "nested", "uncounted"])
def test_loads_checkpoints_as_they_are_found(tmp_path, form):
    model = small()
    state = model.state_dict()
    if form != "plain":
        state = {f"module.{k}": v for k, v in state.items()}
    if form == "uncounted":
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(
        {"state_dict": state, "epoch": 43} if form == "nested" else state, tmp_path / "c.pth"
    )
    found = load_cornet(tmp_path / "c.pth", n_classes=7, width=4)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(found(x), model(x), rtol=0, atol=0)


class Bomb:
    def __reduce__(self):
        return (print, ("run",))


def test_refuses_what_is_not_a_cornet(tmp_path, capsys):
    path, state = tmp_path / "c.pth", small().state_dict()
    with pytest.raises(CheckpointError, match="nothing at"):
        load_cornet(path)
    torch.save(
        {k: v for k, v in state.items() if k != "V2.conv1.weight"}
        | {"V2.konv1.weight": state["V2.conv1.weight"]},
        path,
    )
    with pytest.raises(
        CheckpointError,
        match=r"1 missing: V2.conv1.weight; 1 extra: V2.konv1.weight.*keys of the published one",
    ):
        load_cornet(path, n_classes=7, width=4)
    torch.save(state, path)
    with pytest.raises(
        CheckpointError, match=r"134 mis-shaped: IT\.conv1\.weight \(128, 32, 1, 1\) for"
    ):
        load_cornet(path, n_classes=7, width=5)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="a mapping of names to tensors"):
        load_cornet(path)
    torch.save({"args": Bomb()}, path)
    with pytest.raises(CheckpointError, match="only tensors in"):
        load_cornet(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="only tensors in"):
        load_cornet(path)
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(CheckpointError, match=r"c\.pth"):
        load_cornet(path)
    torch.save(state | {"V1.norm1.running_var": state["V1.norm1.running_var"] * torch.nan}, path)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in V1\.norm1\.running_var"):
        load_cornet(path, n_classes=7, width=4)
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="at least 1"):
        CORnetS(width=0)


def test_as_a_backbone_its_tokens_are_the_positions_of_its_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    torch.manual_seed(3)
    model, x = CORnetS().eval(), torch.randn(2, 3, 64, 96)
    (tmp_path / "weights").mkdir()
    torch.save(model.state_dict(), tmp_path / "weights" / "cornet_s-1d3f7974.pth")
    backbone = load_backbone("cornet_s", image_size=64)
    assert isinstance(backbone, Backbone) and not backbone.has_cls
    assert backbone.weights_label == "file cornet_s-1d3f7974.pth"
    assert (backbone.name, backbone.n_blocks, backbone.width) == ("cornet_s", 4, 512)
    assert (backbone.patch_size, backbone.grid_of(64, 64)) == (32, (2, 2))
    outputs = model(x, blocks=True)[1]
    for i, name in enumerate(BLOCKS):
        (tokens,) = backbone(x, blocks=(i,))
        expected = outputs[name].flatten(2).transpose(1, 2)
        assert torch.equal(tokens.patches, expected)
        assert torch.equal(tokens.cls, expected.mean(1)) and tokens.registers.shape[1] == 0
        assert tokens.grid == tuple(outputs[name].shape[2:])
        assert backbone.block_shape(i) == (tuple(model.sizes(64)[name][1:]), expected.shape[2])
    assert torch.equal(backbone(x).patches, tokens.patches)
    assert load_backbone("cornet_s", weights="random:3", image_size=64).describe() == {
        **backbone.describe(),
        "weights_label": "random weights (seed 3), untrained",
    }


def test_as_a_backbone_without_weights_it_says_what_to_do(tmp_path, monkeypatch):
    for name in ("BMFL_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(CheckpointError, match=r"put cornet_s-1d3f7974\.pth into .*weights"):
        load_backbone("cornet_s")
    with pytest.raises(ConfigError, match=r"multiple of 32.*use 96"):
        load_backbone("cornet_s", weights="random", image_size=100)

"""The vision transformer against the ports in transformers and a plain copy of the original."""

import math

import pytest
import torch
from safetensors.torch import save_file

from bmfl_lab.backbones import load_backbone
from bmfl_lab.backbones.dinov2 import ARCHITECTURES
from bmfl_lab.backbones.vit import ViT
from bmfl_lab.backbones.weights import hash_state, random_state
from bmfl_lab.errors import ConfigError

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-4


def peer(registers, swiglu=False, seed=0):
    """Return a randomly initialised model of transformers with the sizes of vit_tiny14."""
    torch.manual_seed(seed)
    sizes = dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=224, patch_size=14
    )
    if registers:
        config = transformers.Dinov2WithRegistersConfig(
            **sizes, num_register_tokens=4, use_swiglu_ffn=swiglu
        )
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, use_swiglu_ffn=swiglu))
    with torch.no_grad():
        for name, value in model.named_parameters():
            # larger than the usual initialisation, so that no part hides behind another; every bias
            # is at work
            value.add_(
                torch.randn_like(value) * (0.3 if "norm" in name or "lambda" in name else 0.08)
            )
    return model.eval()


def images(height, width, n=2):
    return torch.randn(
        n, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width)
    )


def joined(tokens):
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "registers"])
def pair(request, tmp_path_factory):
    """Return a peer, and our backbone with the same weights read from its saved folder."""
    folder = tmp_path_factory.mktemp("hf")
    model = peer(request.param)
    model.save_pretrained(folder)
    return model, load_backbone("vit_tiny14" + "_reg" * request.param, weights=folder)


@pytest.mark.parametrize(
    "size", [(224, 224), (56, 56), (98, 154), (154, 98), (14, 14), (280, 252), (112, 448)]
)
def test_tokens_equal_those_of_transformers(pair, size):
    model, ours = pair
    with torch.no_grad():
        expected = model(images(*size)).last_hidden_state
    found = ours(images(*size))
    assert found.grid == (size[0] // 14, size[1] // 14)
    assert (joined(found) - expected).abs().max() <= TOLERANCE


def test_every_block_equals_that_of_transformers(pair):
    model, ours = pair
    with torch.no_grad():
        expected = model(images(98, 70), output_hidden_states=True).hidden_states
    found = ours(images(98, 70), blocks=(2, 0, 1), norm=False)
    for block, tokens in zip((2, 0, 1), found):
        assert (joined(tokens) - expected[block + 1]).abs().max() <= TOLERANCE
    normed = ours(images(98, 70), blocks=(0,))[0]
    assert (joined(normed) - model.layernorm(expected[1])).abs().max() <= TOLERANCE


def test_attention_weights_equal_those_of_transformers(pair):
    model, ours = pair
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(images(70, 98), output_attentions=True).attentions
    found = ours(images(70, 98), blocks=(0, 1, 2), attention=True)
    for block in range(3):
        assert (found[block].attention - expected[block]).abs().max() <= 1e-5
        assert torch.allclose(found[block].attention.sum(-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("registers", [False, True])
def test_the_gated_feed_forward_of_the_giant_equals_that_of_transformers(
    tmp_path, registers, monkeypatch
):
    import dataclasses

    name = "vit_tiny14" + "_reg" * registers
    monkeypatch.setitem(ARCHITECTURES, name, dataclasses.replace(ARCHITECTURES[name], ffn="swiglu"))
    model = peer(registers, swiglu=True)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(images(98, 126)).last_hidden_state
    assert (
        joined(load_backbone(name, weights=tmp_path)(images(98, 126))) - expected
    ).abs().max() <= TOLERANCE


def test_the_giant_has_the_published_sizes():
    giant = ARCHITECTURES["dinov2_vitg14"]
    assert (giant.width, giant.n_blocks, giant.n_heads, giant.ffn_width) == (1536, 40, 24, 4096)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dinov2_vits14", 22.06),
        ("dinov2_vitb14", 86.58),
        ("dinov2_vitl14", 304.37),
        ("dinov2_vitg14", 1136.48),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    # counts of the released checkpoints without their mask token, in millions
    with torch.device("meta"):
        backbone = ViT(ARCHITECTURES[name])
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def original_tokens(state, x, registers, n_heads=3):
    """Re-enact the original forward pass plainly, one image, one head and one block at a time."""
    norm = torch.nn.functional.layer_norm
    h, w = x.shape[1] // 14, x.shape[2] // 14
    kernel = state["patch_embed.proj.weight"].flatten(1)
    patches = torch.stack(
        [
            kernel @ x[:, 14 * r : 14 * r + 14, 14 * c : 14 * c + 14].reshape(-1)
            + state["patch_embed.proj.bias"]
            for r in range(h)
            for c in range(w)
        ]
    )
    table = state["pos_embed"][0]
    side = math.isqrt(len(table) - 1)
    plane = table[1:].T.reshape(1, -1, side, side)
    if (h, w) != (side, side):
        if registers:
            plane = torch.nn.functional.interpolate(
                plane, size=(h, w), mode="bicubic", antialias=True
            )
        else:
            scale = (float(h + 0.1) / side, float(w + 0.1) / side)
            plane = torch.nn.functional.interpolate(
                plane, scale_factor=scale, mode="bicubic", antialias=False
            )
    assert plane.shape[-2:] == (h, w)
    t = torch.cat([state["cls_token"][0], patches]) + torch.cat([table[:1], plane.flatten(2)[0].T])
    if registers:
        t = torch.cat([t[:1], state["register_tokens"][0], t[1:]])
    width = t.shape[1]
    for b in range(3):
        p = {
            k.removeprefix(f"blocks.{b}."): v
            for k, v in state.items()
            if k.startswith(f"blocks.{b}.")
        }
        y = (
            norm(t, (width,), p["norm1.weight"], p["norm1.bias"], 1e-6) @ p["attn.qkv.weight"].T
            + p["attn.qkv.bias"]
        )
        heads = []
        for k in range(n_heads):
            q, key, v = (y[:, i * width + k * 16 : i * width + k * 16 + 16] for i in range(3))
            heads.append((q @ key.T / 4.0).softmax(-1) @ v)
        y = torch.cat(heads, dim=1) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
        t = t + p["ls1.gamma"] * y
        y = (
            norm(t, (width,), p["norm2.weight"], p["norm2.bias"], 1e-6) @ p["mlp.fc1.weight"].T
            + p["mlp.fc1.bias"]
        )
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        t = t + p["ls2.gamma"] * (y @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"])
    return norm(t, (width,), state["norm.weight"], state["norm.bias"], 1e-6)


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (56, 56), (98, 154), (322, 70)])
def test_original_files_follow_the_original_positions(tmp_path, registers, size):
    name = "vit_tiny14" + "_reg" * registers
    state = random_state(ARCHITECTURES[name], seed=5)
    for key, value in state.items():
        value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(key)))
    save_file(state | {"mask_token": torch.zeros(1, 48)}, tmp_path / "w.safetensors")
    ours = load_backbone(name, weights=tmp_path / "w.safetensors")
    expected = original_tokens(state, images(*size)[0], registers)
    assert (joined(ours(images(*size)))[0] - expected).abs().max() <= TOLERANCE


def test_the_conventions_differ_only_without_registers(tmp_path):
    for registers in (False, True):
        model = peer(registers)
        model.save_pretrained(tmp_path / str(registers))
        name = "vit_tiny14" + "_reg" * registers
        port = load_backbone(name, weights=tmp_path / str(registers))
        save_file(port.state_dict(), tmp_path / f"{registers}.safetensors")
        original = load_backbone(name, weights=tmp_path / f"{registers}.safetensors")
        assert original.weights_hash == port.weights_hash == hash_state(port.state_dict())
        native = (joined(original(images(224, 224))) - joined(port(images(224, 224)))).abs().max()
        away = (joined(original(images(98, 154))) - joined(port(images(98, 154)))).abs().max()
        assert native == 0
        assert (away == 0) if registers else (away > 1e-3)
        assert (
            original.describe() == {**port.describe(), "weights_label": original.weights_label}
        ) == registers


def test_registers_are_never_patches():
    plain, ours = load_backbone("vit_tiny14"), load_backbone("vit_tiny14_reg")
    for backbone, n in ((plain, 0), (ours, 4)):
        tokens = backbone(images(42, 70), attention=True)
        assert tokens.cls.shape == (2, 48)
        assert tokens.registers.shape == (2, n, 48)
        assert tokens.patches.shape == (2, 15, 48)
        assert tokens.grid == (3, 5)
        assert tokens.attention.shape == (2, 3, 16 + n, 16 + n)


def test_patches_lie_row_by_row():
    backbone = load_backbone("vit_tiny14_reg")
    x = images(42, 70, n=1)
    changed = x.clone()
    changed[:, :, 14:28, 42:56] += 3.0
    moved = (backbone.embed(x)[0] - backbone.embed(changed)[0]).abs().amax(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 + 4 + 1 * 5 + 3]


@pytest.mark.parametrize(("part", "index"), [("q", 0), ("k", 1), ("v", 2)])
def test_projections_are_those_the_block_computes(part, index):
    backbone = load_backbone("vit_tiny14_reg")
    seen = {}
    handle = backbone.blocks[1].attn.qkv.register_forward_hook(lambda m, i, o: seen.update(qkv=o))
    (tokens,) = backbone(images(56, 56), blocks=(1,), features=part)
    handle.remove()
    assert torch.allclose(joined(tokens), seen["qkv"][..., 48 * index : 48 * index + 48], atol=1e-6)


def test_asking_for_attention_changes_tokens_by_rounding_only():
    backbone = load_backbone("vit_tiny14_reg")
    assert backbone(images(56, 56)).attention is None
    assert torch.allclose(
        joined(backbone(images(56, 56))),
        joined(backbone(images(56, 56), attention=True)),
        atol=1e-5,
    )


def test_last_block_by_any_name_is_the_default():
    backbone = load_backbone("vit_tiny14")
    default = joined(backbone(images(56, 56)))
    for block in (2, -1):
        assert torch.equal(joined(backbone(images(56, 56), blocks=(block,))[0]), default)


def test_blocks_after_the_last_asked_for_are_not_computed():
    backbone = load_backbone("vit_tiny14")
    calls = []
    for i, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    backbone(images(28, 28), blocks=(0, 1))
    assert calls == [0, 1]


def test_it_stays_frozen_inside_a_training_module():
    backbone = load_backbone("vit_tiny14_reg")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    head = torch.nn.Linear(48, 2)
    both = torch.nn.ModuleList([backbone, head]).train()
    assert not backbone.training and not backbone.blocks[0].training
    assert not any(p.requires_grad for p in backbone.parameters())
    optimiser = torch.optim.SGD([p for p in both.parameters() if p.requires_grad], lr=1.0)
    tokens = backbone(images(28, 28))
    assert not tokens.cls.requires_grad
    head(tokens.cls).sum().backward()
    optimiser.step()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_gradients_reach_the_pixels_on_request():
    backbone = load_backbone("vit_tiny14_reg")
    x = images(28, 28).requires_grad_()
    backbone(x, grad=True).cls.square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("size", [(50, 56), (56, 13), (0, 14)])
def test_sides_must_be_multiples_of_the_patch(size):
    with pytest.raises(ConfigError, match=f"multiples of 14 pixels; got {size[0]} x {size[1]}"):
        load_backbone("vit_tiny14")(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("blocks", [(), (3,), (0, -4)])
def test_unknown_blocks_are_refused(blocks):
    with pytest.raises(ConfigError, match="block indices from -3 to 2"):
        load_backbone("vit_tiny14")(torch.zeros(1, 3, 14, 14), blocks=blocks)


def test_unknown_features_and_shapes_are_refused():
    backbone = load_backbone("vit_tiny14")
    with pytest.raises(ConfigError, match="features among"):
        backbone(torch.zeros(1, 3, 14, 14), features="keys")
    with pytest.raises(ConfigError, match=r"images of shape \(B, 3, H, W\)"):
        backbone(torch.zeros(3, 14, 14))


@pytest.mark.filterwarnings("ignore:bfloat16 is emulated")
def test_bfloat16_stays_close_to_float32():
    wide = load_backbone("vit_tiny14_reg")
    narrow = load_backbone("vit_tiny14_reg", dtype="bfloat16")
    assert narrow.dtype == torch.bfloat16
    a, b = wide(images(98, 98, n=8)), narrow(images(98, 98, n=8))
    assert b.cls.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a.cls, b.cls).min() >= 0.9998
    assert wide.weights_hash == narrow.weights_hash

"""Loading weights: where they come from, what is refused, what the backbone says about them."""

import argparse
import datetime
import fractions
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bmfl_lab.backbones import load_backbone
from bmfl_lab.backbones.dinov2 import (
    ARCHITECTURES,
    STAND_IN_HASH,
    STAND_IN_LABEL,
    checkpoint_name,
    from_huggingface,
    local_candidates,
)
from bmfl_lab.backbones.vit import ViT
from bmfl_lab.backbones.weights import hash_state, random_state, read_tensors
from bmfl_lab.errors import CheckpointError, ConfigError, FetchError

NAME = "vit_tiny14_reg"


@pytest.fixture
def state():
    return random_state(ARCHITECTURES[NAME], seed=1)


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    """Let every search look into empty folders, and make any connection an error."""

    def refused(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_format_of_the_file_does_not_matter(tmp_path, state, suffix):
    path = tmp_path / f"w{suffix}"
    everything = state | {"mask_token": torch.zeros(1, 48)}
    torch.save(everything, path) if suffix == ".pth" else save_file(everything, path)
    backbone = load_backbone(NAME, weights=path)
    assert (
        backbone.weights_hash
        == hash_state(state)
        == load_backbone(NAME, weights="random:1").weights_hash
    )
    assert backbone.weights_label == f"file w{suffix}"
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())


def test_half_precision_files_are_widened(tmp_path, state):
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "w.pth")
    backbone = load_backbone(NAME, weights=tmp_path / "w.pth")
    assert backbone.dtype == torch.float32
    assert torch.equal(backbone.norm.weight, state["norm.weight"])


def test_random_weights_are_a_function_of_the_seed():
    first, again, other = (
        load_backbone("vit_tiny14", weights=f"random:{s}").weights_hash for s in (3, 3, 4)
    )
    assert first == again != other
    assert (
        load_backbone("vit_tiny14", weights="random").weights_hash
        == load_backbone("vit_tiny14").weights_hash
    )
    assert "random" in load_backbone("vit_tiny14").weights_label
    # the global generator has no say
    torch.manual_seed(0)
    torch.rand(3)
    assert load_backbone("vit_tiny14", weights="random:3").weights_hash == first


def test_untrained_tokens_still_tell_images_apart():
    backbone = load_backbone("vit_tiny14_reg")
    x = torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    cls = backbone(x).cls
    assert torch.pdist(cls).min() > 0.1
    assert 0.5 < cls.std() < 2


def test_any_changed_weight_changes_the_hash(state):
    before = hash_state(state)
    assert hash_state(dict(reversed(state.items()))) == before
    state["blocks.1.attn.proj.bias"][7] = 1e-7
    assert hash_state(state) != before


def test_missing_extra_and_misshaped_keys_are_all_listed(tmp_path, state):
    state["blocks.0.atn.qkv.weight"] = state.pop("blocks.0.attn.qkv.weight")
    state["norm.bias"] = torch.zeros(49)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(NAME, weights=tmp_path / "w.pth")
    text = str(caught.value)
    assert "1 missing: blocks.0.attn.qkv.weight" in text
    assert "1 extra: blocks.0.atn.qkv.weight" in text
    assert "1 mis-shaped: norm.bias (49,) for (48,)" in text


def test_another_architecture_is_named(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match="width 48, 3 blocks and 4 registers: load it under that name"
    ):
        load_backbone("dinov2_vits14", weights=tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="1 extra: register_tokens"):
        load_backbone("vit_tiny14", weights=tmp_path / "w.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path, state):
    state["norm.weight"][3] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in norm\.weight"):
        load_backbone(NAME, weights=tmp_path / "w.pth")


class Payload:
    """Something that would run code when unpickled."""

    def __reduce__(self):
        import os

        return os.mkdir, ("owned",)


def test_files_that_hold_more_than_tensors_are_refused_and_run_nothing(
    tmp_path, state, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(state | {"extra": Payload()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="save its state dict again as safetensors"):
        load_backbone(NAME, weights=tmp_path / "w.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "extra", [argparse.Namespace(lr=1), np.float64(3), np.zeros(2)], ids=lambda e: type(e).__name__
)
def test_settings_beside_the_tensors_are_refused_with_advice(tmp_path, state, extra):
    torch.save({"model": state, "args": extra}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError,
        match=r"only tensors in .*w\.pth; got .*save its state dict again as safetensors",
    ):
        load_backbone(NAME, weights=tmp_path / "w.pth")


def test_wrapped_checkpoints_are_explained(tmp_path, state):
    torch.save({"teacher": state, "iteration": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="a mapping of names to tensors"):
        load_backbone(NAME, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.98])
def test_truncated_files_are_refused(tmp_path, state, suffix, keep):
    path = tmp_path / f"w{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=rf"w\{suffix}"):
        load_backbone(NAME, weights=path)


def test_missing_files_are_refused_without_a_connection(tmp_path):
    with pytest.raises(CheckpointError, match="nothing at"):
        load_backbone(NAME, weights=tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="nothing at"):
        load_backbone(NAME, weights="gone/gone.safetensors")


@pytest.mark.parametrize("heads", [False, True])
def test_the_older_key_names_of_the_hub_are_known(state, heads):
    """The hub's files still carry these names."""
    old = {}
    for key, value in state.items():
        for new, name in (
            ("blocks.", "encoder.layer."),
            (".attn.proj.", ".attention.output.dense."),
            (".ls1.gamma", ".layer_scale1.lambda1"),
            (".ls2.gamma", ".layer_scale2.lambda1"),
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            ("pos_embed", "embeddings.position_embeddings"),
            ("cls_token", "embeddings.cls_token"),
            ("register_tokens", "embeddings.register_tokens"),
        ):
            key = key.replace(new, name)
        key = key.replace("norm.", "layernorm.") if key.startswith("norm.") else key
        prefix = "dinov2_with_registers." if heads else ""
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3)):
                old[prefix + key.replace(".attn.qkv.", f".attention.attention.{part}.")] = rows
        else:
            old[prefix + key] = value
    if heads:
        old["classifier.weight"] = torch.zeros(2, 96)
    found = from_huggingface(old)
    assert found.keys() == state.keys()
    assert hash_state(found) == hash_state(state)


def test_the_older_names_of_the_gated_layer_are_known():
    weight = torch.randn(256, 48)
    state = {
        "encoder.layer.0.mlp.weights_in.weight": weight,
        "encoder.layer.0.mlp.weights_out.weight": weight.T,
    }
    assert set(from_huggingface(state)) == {"blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.weight"}
    split = {
        "encoder.layer.0.mlp.gate_proj.weight": weight[:128],
        "encoder.layer.0.mlp.up_proj.weight": weight[128:],
    }
    assert torch.equal(from_huggingface(split)["blocks.0.mlp.w12.weight"], weight)


def hf_folder(folder, **changes):
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=224, patch_size=14
    )
    config = transformers.Dinov2WithRegistersConfig(**{**sizes, **changes}, num_register_tokens=4)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    return folder


def test_a_folder_of_another_architecture_is_refused_before_its_tensors(tmp_path):
    folder = hf_folder(tmp_path / "m", num_hidden_layers=2)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="num_hidden_layers 2 for 3"):
        load_backbone(NAME, weights=folder)
    with pytest.raises(CheckpointError, match="model_type 'dinov2_with_registers' for 'dinov2'"):
        load_backbone("vit_tiny14", weights=folder)


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path):
    folder = hf_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        load_backbone(NAME, weights=folder)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("config.json", "[1]", "names and values in .*config.json; got a list"),
        ("config.json", None, "a readable config.json"),
        ("config.json", "{", "a readable config.json"),
        ("model.safetensors.index.json", '{"metadata": {}}', "a weight_map of file names"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "a weight_map of file names"),
    ],
)
def test_damaged_descriptions_of_a_folder_are_refused(name, text, said, tmp_path):
    folder = hf_folder(tmp_path / "m")
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        load_backbone(NAME, weights=folder)


def test_sharded_folders_are_read_and_cannot_point_outside(tmp_path):
    folder = hf_folder(tmp_path / "m")
    expected = load_backbone(NAME, weights=folder).weights_hash
    tensors = read_tensors(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for part, keys in parts.items():
        save_file({k: tensors[k] for k in keys}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {k: part for part, keys in parts.items() for k in keys}})
    )
    assert load_backbone(NAME, weights=folder).weights_hash == expected
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../model-1.safetensors")}))
    with pytest.raises(CheckpointError, match="nothing there"):
        load_backbone(NAME, weights=folder)


def test_a_hub_id_is_taken_from_the_cache_without_a_connection(tmp_path):
    repository = tmp_path / "hf" / "hub" / "models--somebody--tiny-dino"
    revision = "a1" * 20
    folder = hf_folder(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    for text in ("somebody/tiny-dino", f"somebody/tiny-dino@{revision}"):
        backbone = load_backbone(NAME, weights=text)
        assert backbone.weights_label == f"Hugging Face hub {text}"
        assert backbone.weights_hash == load_backbone(NAME, weights=folder).weights_hash


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="the hub repository somebody/tiny-dino"):
        load_backbone(NAME, weights="somebody/tiny-dino")


def test_a_single_file_in_hub_names_asks_for_its_folder(tmp_path):
    folder = hf_folder(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"the folder that also holds config\.json"):
        load_backbone(NAME, weights=folder / "model.safetensors")


def test_the_search_takes_the_nearest_place_first(tmp_path):
    own = tmp_path / "home" / "weights" / "dinov2_vits14_pretrain.pth"
    hub = tmp_path / "torch" / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth"
    registers = hub.with_name("dinov2_vits14_reg4_pretrain.pth")
    snapshot = tmp_path / "hf" / "hub" / "models--facebook--dinov2-small" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for path in (own, hub, registers):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert local_candidates("dinov2_vits14") == [own, hub, snapshot]
    assert local_candidates("dinov2_vits14_reg") == [registers]
    (own.parent / "dinov2_vits14_reg.safetensors").write_bytes(b"x")
    assert local_candidates("dinov2_vits14_reg") == [
        own.parent / "dinov2_vits14_reg.safetensors",
        registers,
    ]
    assert local_candidates("dinov2_vits14") == [own, hub, snapshot]
    assert checkpoint_name("dinov2_vitg14_reg") == "dinov2_vitg14_reg4_pretrain.pth"


def test_weights_found_by_the_search_are_loaded(tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in ViT(ARCHITECTURES["dinov2_vits14"]).state_dict().items()}
    state = {k: torch.full(shape, 0.01) for k, shape in shapes.items()}
    torch.save(state, folder / "dinov2_vits14_pretrain.pth")
    backbone = load_backbone("dinov2_vits14", image_size=56)
    assert backbone.weights_label == "file dinov2_vits14_pretrain.pth"
    assert backbone.weights_hash == hash_state(state)
    assert backbone(torch.zeros(1, 3, 56, 56)).patches.shape == (1, 16, 384)


def test_nothing_found_says_where_and_what_to_do(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"none in .*home/weights.*put dinov2_vitb14_reg4_pretrain\.pth into"
    ):
        load_backbone("dinov2_vitb14_reg")


def test_the_stand_in_is_recognised_by_content_under_any_name(tmp_path, state, monkeypatch):
    monkeypatch.setattr("bmfl_lab.backbones.dinov2.STAND_IN_HASH", hash_state(state))
    save_file(state, tmp_path / "dinov2_original.safetensors")
    label = load_backbone(NAME, weights=tmp_path / "dinov2_original.safetensors").weights_label
    assert "stand-in" in label and "not frozen DINOv2" in label
    assert "stand-in" not in load_backbone(NAME, weights="random:2").weights_label


@pytest.mark.network
@pytest.mark.slow
def test_the_stand_in_is_fetched_and_labelled(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    backbone = load_backbone("dinov2_vits14_reg", image_size=56)
    assert backbone.weights_hash == STAND_IN_HASH
    assert backbone.weights_label == STAND_IN_LABEL


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "dinov2_vits14_regs"}, "did you mean 'dinov2_vits14_reg'"),
        ({"name": NAME, "dtype": "float16"}, "a dtype among"),
        ({"name": NAME, "device": "gpu"}, "a device among"),
        ({"name": NAME, "image_size": 100}, r"multiple of 14; got 100\. To fix it: use 98"),
        ({"name": NAME, "resize": "crop"}, "a resize rule among"),
        ({"name": NAME, "weights": "random:x"}, "a whole number as seed"),
    ],
)
def test_choices_are_checked(arguments, text):
    with pytest.raises(ConfigError, match=text):
        load_backbone(**arguments)


def test_auto_takes_float32_where_bfloat16_does_not_pay(monkeypatch):
    monkeypatch.setattr("bmfl_lab.backbones.load.bf16_pays", lambda device: False)
    assert load_backbone(NAME, dtype="auto").dtype == torch.float32
    with pytest.warns(UserWarning, match="bfloat16 is emulated on this cpu"):
        load_backbone(NAME, dtype="bfloat16")
    monkeypatch.setattr("bmfl_lab.backbones.load.bf16_pays", lambda device: True)
    assert load_backbone(NAME, dtype="auto").dtype == torch.bfloat16


def test_the_description_is_plain_json():
    described = load_backbone(NAME, image_size=98, resize="direct").describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["preprocess"]["image_size"] == 98
    assert np.isclose(described["position_interpolation"]["offset"], 0.0)


@pytest.mark.gpu
def test_gpu_and_cpu_agree():
    x = torch.randn(4, 3, 98, 98, generator=torch.Generator().manual_seed(0))
    cpu, gpu = load_backbone(NAME)(x), load_backbone(NAME, device="cuda")(x.cuda())
    assert torch.allclose(cpu.patches, gpu.patches.cpu(), atol=1e-4)
    narrow = load_backbone(NAME, device="cuda", dtype="bfloat16")(x.cuda())
    assert torch.nn.functional.cosine_similarity(cpu.cls, narrow.cls.cpu()).min() >= 0.9998


def _advice(weights, folder):
    torch.save(weights, folder / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(NAME, weights=folder / "w.pth")
    return str(caught.value).partition("To fix it: ")[2]


ADVICE = {
    "positions of 112 px": (lambda s: {**s, "pos_embed": s["pos_embed"][:, :65]}, "interpolate"),
    "positions of another rank": (lambda s: {**s, "pos_embed": s["pos_embed"][0]}, "interpolate"),
    "a head": (lambda s: {**s, "head.weight": torch.zeros(2, 2)}, "without head.weight"),
    "an optimiser": (lambda s: {**s, "step": torch.zeros(1)}, "without step"),
    "no norm": (lambda s: {k: v for k, v in s.items() if k != "norm.bias"}, "the whole backbone"),
    "a cut layer": (lambda s: {**s, "norm.bias": s["norm.bias"][:5]}, "the whole backbone"),
    "two registers": (
        lambda s: {**s, "register_tokens": torch.zeros(1, 2, 48)},
        "no DINOv2 model has these sizes",
    ),
    "four registers": (
        lambda s: (
            random_state(ARCHITECTURES[f"{NAME.removesuffix('_reg')}_reg"], 0)
            if not NAME.endswith("_reg")
            else random_state(ARCHITECTURES[NAME.removesuffix("_reg")], 0)
        ),
        "load it under that name",
    ),
    "a scalar token": (lambda s: {**s, "cls_token": torch.tensor(0.0)}, "no DINOv2 model has"),
    "other names": (lambda s: {f"module.{k}": v for k, v in s.items()}, "give a DINOv2 backbone's"),
}


@pytest.mark.parametrize("kind", ADVICE)
def test_advice_fits_the_cause(kind, state, tmp_path):
    change, expected = ADVICE[kind]
    assert expected in _advice(change(dict(state)), tmp_path)


def test_following_the_advice_loads_the_weights(state, tmp_path):
    grid = ARCHITECTURES[NAME].grid
    small = torch.nn.functional.interpolate(
        state["pos_embed"][:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2), size=8
    )
    first = state["pos_embed"][:, :1]

    def positions(grid_of):
        return torch.cat([first, grid_of.permute(0, 2, 3, 1).reshape(1, -1, first.shape[-1])], 1)

    assert "interpolate" in _advice({**state, "pos_embed": positions(small)}, tmp_path)
    large = torch.nn.functional.interpolate(small, size=grid)
    torch.save({**state, "pos_embed": positions(large)}, tmp_path / "w.pth")
    load_backbone(NAME, weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    "thing",
    [
        argparse.Namespace(a=1),
        datetime.date(2020, 1, 1),
        Path("x"),
        print,
        fractions.Fraction(1, 2),
    ],
)
def test_the_object_in_the_way_is_named(thing, tmp_path):
    torch.save({"model": {}, "args": thing}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(NAME, weights=tmp_path / "w.pth")
    name = "print" if thing is print else type(thing).__name__
    assert name in str(caught.value) and "\x1b" not in str(caught.value)

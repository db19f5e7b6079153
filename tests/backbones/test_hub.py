"""Vision models of transformers as backbones, from tiny folders with random weights."""

import json
import pickle
import socket
import sys

import numpy as np
import pytest
import torch
from extraction_process import stimuli as noise
from safetensors.torch import load_file, save_file

from bmfl_lab.backbones import Backbone, FeatureStore, load_backbone
from bmfl_lab.errors import CheckpointError, ConfigError, FetchError

transformers = pytest.importorskip("transformers")

VIT = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=64,
    patch_size=16,
)
TEXT = dict(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=48,
    vocab_size=100,
    max_position_embeddings=8,
    bos_token_id=0,
    eos_token_id=1,
)
CLIP = dict(vision_config=VIT, text_config=TEXT)
STAGES = dict(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
MAKE = {
    "dinov2": lambda t: t.Dinov2Model(t.Dinov2Config(**VIT)),
    "dinov3": lambda t: t.DINOv3ViTModel(t.DINOv3ViTConfig(**VIT, num_register_tokens=4)),
    "siglip": lambda t: t.SiglipVisionModel(t.SiglipVisionConfig(**VIT)),
    "clip": lambda t: t.CLIPVisionModel(t.CLIPVisionConfig(**VIT)),
    "vit": lambda t: t.ViTModel(t.ViTConfig(**VIT)),
    "resnet": lambda t: t.ResNetModel(t.ResNetConfig(**STAGES, layer_type="basic")),
}
CLS = {"dinov2", "dinov3", "clip", "vit"}
PROCESSOR = {
    "do_center_crop": True,
    "crop_size": {"height": 96, "width": 96},
    "size": {"shortest_edge": 112},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
}


def save(model, folder, processor=PROCESSOR):
    """Write a folder as the hub holds it, every weight changed at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.08 * torch.randn(value.shape, generator=generator))
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(autouse=True)
def no_connection(tmp_path, monkeypatch):
    """Let the hub cache be empty, and make any connection an error."""

    def refused(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module", params=MAKE)
def family(request, tmp_path_factory):
    torch.manual_seed(0)
    model = MAKE[request.param](transformers)
    return request.param, model, save(model, tmp_path_factory.mktemp(request.param))


def joined(tokens, has_cls):
    cls = [tokens.cls[:, None]] if has_cls else []
    return torch.cat([*cls, tokens.registers, tokens.patches], dim=1)


def flat(state):
    return state if state.ndim == 3 else state.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("size", [64, 96, 160])
def test_tokens_equal_those_of_transformers(family, size):
    name, model, folder = family
    backbone = load_backbone(f"hub:{folder}", image_size=size)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    options = {"interpolate_pos_encoding": True} if name in ("siglip", "clip", "vit") else {}
    with torch.no_grad():
        expected = model(x, output_hidden_states=True, **options)
    tokens, has_cls = backbone(x), name in CLS
    side = size // (32 if name == "resnet" else 16)
    assert isinstance(backbone, Backbone) and backbone.has_cls == has_cls
    assert backbone.patch_size == size // side and tokens.grid == (side, side)
    assert tokens.patches.shape == (2, side**2, 32)
    assert tokens.registers.shape[1] == backbone.n_registers == (4 if name == "dinov3" else 0)
    assert torch.allclose(joined(tokens, has_cls), flat(expected.last_hidden_state), atol=1e-5)
    if not has_cls:
        assert torch.allclose(tokens.cls, tokens.patches.mean(1))
    inner = expected.hidden_states[1:-1]
    assert backbone.n_blocks == len(inner) + 1 == (4 if name == "resnet" else 3)
    for i, state in enumerate(inner):
        (found,) = backbone(x, blocks=(i,))
        assert torch.allclose(joined(found, has_cls), flat(state), atol=1e-5)
    assert torch.equal(backbone(x, blocks=(-1,))[0].patches, tokens.patches)


def test_size_and_normalisation_are_those_of_the_folder(family):
    _, _, folder = family
    backbone = load_backbone("hub", weights=folder)
    described = backbone.describe()["preprocess"]
    assert backbone.image_size == 96
    assert (described["mean"], described["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    assert backbone.name == f"hub:{folder.name}"
    assert backbone.weights_label == f"Hugging Face folder {folder.name}"
    assert backbone.weights_hash == load_backbone(f"hub:{folder}", image_size=64).weights_hash


def test_the_store_keeps_tokens_of_a_model_without_class_token(tmp_path):
    backbone = load_backbone(f"hub:{save(MAKE['siglip'](transformers), tmp_path / 'm')}")
    stored = FeatureStore(tmp_path / "s").get(backbone, noise(3), "pooled:2", dtype="float32")
    expected = backbone(torch.stack([backbone.preprocess(noise(3).image(i)) for i in range(3)]))
    assert stored.patches.shape == (3, 4, 32)
    assert np.allclose(stored.cls, expected.patches.mean(1), atol=1e-5)


@pytest.mark.parametrize("processor", ["preprocessor", "processor"])
@pytest.mark.parametrize(
    "changes, size",
    [
        ({}, 96),
        ({"do_center_crop": False}, 112),
        ({"do_center_crop": False, "size": {"height": 128, "width": 128}}, 128),
        ({"crop_size": 80}, 80),
        ({"crop_size": None, "size": None}, 64),
    ],
)
def test_the_size_is_found_as_processors_write_it(tmp_path, changes, size, processor):
    folder = save(MAKE["vit"](transformers), tmp_path, PROCESSOR | changes)
    if processor == "processor":
        (folder / "preprocessor_config.json").unlink()
        nested = json.dumps({"image_processor": PROCESSOR | changes})
        (folder / "processor_config.json").write_text(nested)
    assert load_backbone(f"hub:{folder}").image_size == size


@pytest.mark.parametrize("whole, tower", [("CLIPModel", "clip"), ("SiglipModel", "siglip")])
def test_the_vision_tower_is_taken_out_of_a_model_with_text(tmp_path, whole, tower):
    config = getattr(transformers, whole.replace("Model", "Config"))(**CLIP)
    model = getattr(transformers, whole)(config)
    backbone = load_backbone(f"hub:{save(model, tmp_path)}")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.vision_model(x).last_hidden_state
    assert torch.allclose(joined(backbone(x), tower in CLS), expected, atol=1e-5)


def test_a_classifier_without_pooling_layer_has_one_hash(tmp_path):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))
    folder = save(model, tmp_path)
    first, again = (load_backbone(f"hub:{folder}") for _ in range(2))
    assert first.weights_hash == again.weights_hash
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.vit(x).last_hidden_state
    assert torch.allclose(joined(first(x), True), expected, atol=1e-5)


def test_a_hub_id_is_read_from_the_cache_alone(tmp_path):
    repository = tmp_path / "hf" / "hub" / "models--somebody--tiny"
    revision = "a1" * 20
    save(MAKE["vit"](transformers), repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    backbone = load_backbone("hub:somebody/tiny")
    assert backbone.name == "hub:somebody/tiny"
    assert backbone.weights_label == "Hugging Face hub somebody/tiny"
    with pytest.raises(FetchError, match="`hf download somebody/other`"):
        load_backbone("hub:somebody/other")
    with pytest.raises(CheckpointError, match="a folder or hub id; got nothing at"):
        load_backbone(f"hub:{tmp_path / 'gone'}")


class Payload:
    def __reduce__(self):
        import os

        return os.mkdir, ("owned",)


def test_pickled_weights_and_code_are_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save(MAKE["vit"](transformers), tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    (folder / "own.py").write_text("import os\nos.mkdir('owned')\n")
    (folder / "config.json").write_text(json.dumps(config))
    load_backbone(f"hub:{folder}")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    with pytest.raises(CheckpointError, match="a model in"):
        load_backbone(f"hub:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        load_backbone(f"hub:{folder}")
    assert not (tmp_path / "owned").exists()


def test_what_is_missing_or_damaged_is_named(tmp_path):
    folder = save(MAKE["vit"](transformers), tmp_path / "m")
    weights, processor = folder / "model.safetensors", folder / "preprocessor_config.json"
    state = load_file(weights)
    key = "embeddings.cls_token"
    save_file({k: v for k, v in state.items() if k != key}, weights)
    with pytest.raises(CheckpointError, match=r"1 missing: embeddings\.cls_token"):
        load_backbone(f"hub:{folder}")
    save_file(state | {key: state[key] * torch.nan}, weights)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_backbone(f"hub:{folder}")
    save_file(state | {key: torch.zeros(7)}, weights)
    with pytest.raises(CheckpointError, match="a model in"):
        load_backbone(f"hub:{folder}")
    save_file(state, weights)
    processor.write_text(json.dumps(PROCESSOR | {"image_std": [1, 0, 1]}))
    with pytest.raises(CheckpointError, match="save the model's own image processor"):
        load_backbone(f"hub:{folder}")
    processor.unlink()
    with pytest.raises(CheckpointError, match=r"a readable preprocessor_config\.json"):
        load_backbone(f"hub:{folder}")


def test_choices_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    folder = save(MAKE["vit"](transformers), tmp_path / "m")
    with pytest.raises(ConfigError, match=r"multiple of 16; got 252\. To fix it: use 256"):
        load_backbone(f"hub:{folder}", image_size=252)
    backbone = load_backbone(f"hub:{folder}", image_size=256)
    assert backbone.grid_of(256, 256) == (16, 16)
    with pytest.raises(ConfigError, match="square images; got 64 x 96"):
        backbone(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ConfigError, match="the weights once"):
        load_backbone(f"hub:{folder}", weights=folder)
    with pytest.raises(ConfigError, match="a folder or hub id after 'hub:'"):
        load_backbone("hub")
    text = transformers.BertModel(transformers.BertConfig(**TEXT))
    with pytest.raises(ConfigError, match=r"a vision model in .*BertModel"):
        load_backbone(f"hub:{save(text, tmp_path / 't')}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'bmfl-lab\[hub\]'"):
        load_backbone(f"hub:{folder}")

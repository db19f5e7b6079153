"""The remedies of `bmfl_lab.backbones` about models of transformers, each followed."""

import functools
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from following import follows
from hub_example import REVISION
from safetensors.torch import load_file, save_file

from bmfl_lab.backbones import BackboneTokens, Preprocess, load_backbone, wrap
from bmfl_lab.backbones.dinov2 import ARCHITECTURES
from bmfl_lab.backbones.vit import Architecture
from bmfl_lab.files import read_json, write_json

transformers = pytest.importorskip("transformers")

SIZES = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    image_size=32,
    patch_size=16,
)
TEXT = dict(vocab_size=9, max_position_embeddings=4)
PROCESSOR = {"size": 32, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


@functools.cache
def saved(kind="ViT"):
    """Return a folder of a tiny model, which no test changes."""
    sizes = SIZES if kind != "Bert" else SIZES | TEXT
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    folder = Path(tempfile.mkdtemp(prefix="hub-"))
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PROCESSOR)
    return folder


@pytest.fixture(scope="module", autouse=True)
def emptied():
    yield
    for kind in ("ViT", "Bert", "DeiT"):
        shutil.rmtree(saved(kind))
    saved.cache_clear()


def copy(folder, kind="ViT"):
    return shutil.copytree(saved(kind), folder, dirs_exist_ok=True)


def fill_cache(folder, env, repository):
    """Do what `hf download` does, and use the cache that it fills."""
    env.setenv("HF_HUB_CACHE", str(folder))
    place = folder / f"models--{repository.replace('/', '--')}"
    copy(place / "snapshots" / REVISION)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION)


@follows(
    ("backbones/hub.py", "write for example load_backbone('hub:facebook/dinov2-small')"),
    (
        "backbones/hub.py",
        "give a folder made by save_pretrained, or a hub id such as facebook/dinov2-small",
    ),
    ("backbones/hub.py", "fetch it once with `{}`, or give a local folder"),
)
def test_names_of_models(folder, env):
    names = ["hub"]
    remedy = yield lambda: load_backbone(names[-1])
    names.append(re.search(r"'(hub:.*)'", remedy)[1])
    fill_cache(folder / "a", env, names[-1].removeprefix("hub:"))
    load_backbone(names[-1])

    names.append(f"hub:{folder / 'gone'}")
    remedy = yield lambda: load_backbone(names[-1])
    names.append(f"hub:{saved()}")
    load_backbone(names[-1])
    names.append(f"hub:{re.search(r'such as (.*)', remedy)[1]}")
    load_backbone(names[-1])

    names.append("hub:somebody/tiny")
    remedy = yield lambda: load_backbone(names[-1])
    fill_cache(folder / "b", env, re.search(r"`hf download (\S+)`", remedy)[1])


@follows(("backbones/hub.py", "install it with pip install 'bmfl-lab[hub]'"))
def test_transformers_is_missing(folder, env):
    env.setitem(sys.modules, "transformers", None)
    yield lambda: load_backbone(f"hub:{saved()}")
    env.setitem(sys.modules, "transformers", transformers)


@follows(
    (
        "backbones/hub.py",
        "give the folder of a vision model that transformers knows, or use wrap",
    ),
    ("backbones/hub.py", "choose a model whose input is images"),
    ("backbones/hub.py", "get the folder again"),
    ("backbones/hub.py", "save the model's own image processor into the folder"),
)
def test_folders_of_models(folder, env):
    place = [copy(folder / "a")]

    def call():
        return load_backbone(f"hub:{place[-1]}")

    write_json(place[0] / "config.json", {"model_type": "own"})
    yield call
    place.append(saved())
    call()

    place.append(saved("Bert"))
    yield call
    place.append(saved())
    call()

    place.append(copy(folder / "c"))
    state = load_file(place[-1] / "model.safetensors")
    state.pop("embeddings.cls_token")
    save_file(state, place[-1] / "model.safetensors")
    yield call
    copy(place[-1])
    call()

    write_json(place[-1] / "preprocessor_config.json", {"size": 32})
    yield call
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(place[-1])
    assert json.loads((place[-1] / "preprocessor_config.json").read_text())["image_mean"]


@follows(("backbones/hub.py", "use backbone.preprocess"))
def test_images_that_are_not_square(folder, env):
    backbone = load_backbone(f"hub:{saved()}")
    images = [torch.zeros(1, 3, 32, 48, dtype=torch.uint8)]
    yield lambda: backbone(images[-1].float())
    images.append(backbone.preprocess(images[0][0].permute(1, 2, 0).numpy())[None])


@follows(("backbones/hub.py", "use wrap with a function that splits them"))
def test_a_model_with_two_class_tokens(folder, env):
    loaders = [lambda: load_backbone(f"hub:{saved('DeiT')}")]
    yield lambda: loaders[-1]()

    def split(output):
        state = output.last_hidden_state
        return BackboneTokens(state[:, 0], None, state[:, 2:], (2, 2))

    model = transformers.DeiTModel.from_pretrained(saved("DeiT"))
    preprocess = Preprocess(read_json(saved("DeiT") / "config.json")["image_size"], patch_size=16)
    loaders.append(lambda: wrap(model, preprocess=preprocess, tokens=split, name="deit"))


@follows(("backbones/dinov2.py", "give the folder that also holds config.json"))
def test_weights_of_dinov2_without_their_folder(folder, env):
    sizes = dict(width=16, n_heads=2, n_blocks=1, grid=4)
    env.setitem(ARCHITECTURES, "dinov2_vits14", Architecture("dinov2_vits14", **sizes))
    config = transformers.Dinov2Config(**SIZES | {"patch_size": 14, "image_size": 56})
    transformers.Dinov2Model(config).save_pretrained(folder)
    weights = [folder / "model.safetensors"]
    remedy = yield lambda: load_backbone("dinov2_vits14", weights=weights[-1], image_size=28)
    weights.append(weights[0].parent)
    assert (weights[-1] / re.search(r"holds (\S+)", remedy)[1]).is_file()

"""The remedies of `bmfl_lab.backbones` about networks and their weights, each followed."""

import argparse
import contextlib
import re
from pathlib import Path

import numpy as np
import torch
from following import follows
from hub_example import CONFIG, NAME, SMALL, serving
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn

from bmfl_lab.backbones import BackboneTokens, Preprocess, cornet, load_backbone, map_tokens, wrap
from bmfl_lab.backbones.cornet import CORnetS, load_cornet
from bmfl_lab.backbones.dinov2 import (
    ARCHITECTURES,
    connection_problem,
    read_huggingface_folder,
)
from bmfl_lab.backbones.load import DTYPES
from bmfl_lab.backbones.protocol import RESIZE
from bmfl_lab.backbones.vit import FEATURES, Architecture
from bmfl_lab.backbones.weights import random_state, read_tensors
from bmfl_lab.data.images import decode_image
from bmfl_lab.files import read_json, write_json

TINY = ARCHITECTURES["vit_tiny14"]
PLAIN = "dinov2_vits14"
STATE = random_state(SMALL, seed=1)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def tiny(**options):
    return load_backbone("vit_tiny14", **{"image_size": 28, **options})


def toy(tokens=map_tokens, module=None):
    module = module or nn.Conv2d(3, 4, 14, stride=14)
    return wrap(module, preprocess=Preprocess(28), tokens=tokens, name="toy")


def small_networks(folder, env):
    """Let small networks stand under two public names, with empty caches and no fixed address."""
    env.setitem(ARCHITECTURES, NAME, SMALL)
    sizes = dict(width=48, n_heads=3, n_blocks=2, grid=4)
    env.setitem(ARCHITECTURES, PLAIN, Architecture(PLAIN, **sizes))
    for variable, place in (("BMFL_HOME", "home"), ("TORCH_HOME", "torch"), ("HF_HOME", "hf")):
        env.setenv(variable, str(folder / place))
    env.delenv("HF_HUB_CACHE", raising=False)
    connection_problem.cache_clear()


def hub_folder(folder, state=STATE, config=CONFIG):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    return folder


@contextlib.contextmanager
def hub(env, state=STATE):
    with serving(save(state)) as server:
        env.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        env.delenv("BMFL_OFFLINE", raising=False)
        yield server


def cornet_file(path, **sizes):
    torch.save(CORnetS(**sizes).state_dict(), path)
    return path


@follows(("backbones/cornet.py", "pass the sizes in the file, n_classes={} and width={}"))
def test_a_cornet_of_other_sizes(folder, env):
    sizes, path = {}, cornet_file(folder / "c.pth", n_classes=3, width=2)
    remedy = yield lambda: load_cornet(path, **sizes)
    sizes.update({k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", remedy)})


@follows(
    ("backbones/cornet.py", "give the checkpoint of a CORnet-S, with the keys of the published one")
)
def test_the_file_of_another_network(folder, env):
    paths = [folder / "other.pth"]
    torch.save(nn.Linear(2, 2).state_dict(), paths[0])
    yield lambda: load_cornet(paths[-1], n_classes=3, width=2)
    paths.append(cornet_file(folder / "c.pth", n_classes=3, width=2))


@follows(
    (
        "backbones/cornet.py",
        "choose sizes of 1 or more, for example n_classes=1000 and width=64",
    )
)
def test_a_cornet_without_logits(folder, env):
    sizes = {"n_classes": 0, "width": 2}
    remedy = yield lambda: CORnetS(**sizes)
    sizes["n_classes"] = int(re.search(r"n_classes=(\d+)", remedy)[1])


@follows(
    (
        "backbones/cornet.py",
        "put cornet_s-1d3f7974.pth into {}, give a checkpoint as weights, or weights='random' for "
        "an untrained control",
    )
)
def test_cornet_without_weights(folder, env):
    small_networks(folder, env)
    env.setattr(cornet.load_cornet, "__kwdefaults__", {"n_classes": 3, "width": 2})
    remedy = yield lambda: load_backbone("cornet_s", image_size=32)
    name, place = re.search(r"put (\S+) into (.+), give", remedy).groups()
    Path(place).mkdir(parents=True)
    cornet_file(Path(place, name), n_classes=3, width=2)


@follows(
    (
        "backbones/dinov2.py",
        "put {} into {}, give a file, a Hugging Face folder or a hub id as weights, or "
        "weights='random' for an untrained control",
    )
)
def test_dinov2_without_weights(folder, env):
    small_networks(folder, env)
    remedy = yield lambda: load_backbone(PLAIN, image_size=28)
    given = re.search(r"weights='(\w+)'", remedy)[1]
    assert load_backbone(PLAIN, weights=given, image_size=28).weights_label.startswith("random")
    name, place = re.search(r"put (\S+) into (.+), give a file", remedy).groups()
    Path(place).mkdir(parents=True)
    torch.save(random_state(ARCHITECTURES[PLAIN], 0), Path(place, name))


@follows(
    ("backbones/dinov2.py", "load the folder under its own name, {}"),
    (
        "backbones/dinov2.py",
        "give the folder of {}, or load this one as 'hub:' and its path",
    ),
)
def test_the_folder_of_another_dinov2(folder, env):
    small_networks(folder, env)
    state, names = random_state(ARCHITECTURES[PLAIN], 0), [NAME]
    hub_folder(folder / "m", state, CONFIG | {"model_type": "dinov2"})
    remedy = yield lambda: load_backbone(names[-1], weights=folder / "m", image_size=28)
    names.append(re.search(r"own name, (\w+)", remedy)[1])
    load_backbone(names[-1], weights=folder / "m", image_size=28)

    used = [hub_folder(folder / "n", state, CONFIG | {"num_hidden_layers": 7})]
    remedy = yield lambda: load_backbone(NAME, weights=used[-1], image_size=28)
    own = ARCHITECTURES[re.search(r"folder of (\w+)", remedy)[1]]
    used.append(hub_folder(folder / "o", random_state(own, 0)))


@follows(
    (
        "backbones/dinov2.py",
        "check the id and the network, or give a local file or folder as weights",
    )
)
def test_a_hub_id_that_does_not_exist(folder, env):
    small_networks(folder, env)
    given = ["somebody/dinov2"]
    with hub(env):
        yield lambda: load_backbone(NAME, weights=given[-1], image_size=28)
        load_backbone(NAME, weights="facebook/dinov2-with-registers-small", image_size=28)
    given.append(hub_folder(folder / "m"))


@follows(("backbones/dinov2.py", "check the network, or {}"))
def test_a_network_that_does_not_answer(folder, env):
    small_networks(folder, env)
    env.delenv("BMFL_OFFLINE", raising=False)
    env.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    weights, state = ["auto"], random_state(ARCHITECTURES[PLAIN], 0)
    remedy = yield lambda: load_backbone(PLAIN, weights=weights[-1], image_size=28)
    with serving(save(state), CONFIG | {"model_type": "dinov2"}) as server:
        env.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        load_backbone(PLAIN, weights=weights[-1], image_size=28)
    assert remedy.endswith("give a local file or folder as weights")
    torch.save(state, folder / "w.pth")
    weights.append(folder / "w.pth")


@follows(
    ("backbones/dinov2.py", "give a local file or folder as weights"),
    ("runtime.py", "unset it, or {}"),
)
def test_a_download_that_fails_or_is_forbidden(folder, env):
    small_networks(folder, env)
    weights, state = ["auto"], random_state(ARCHITECTURES[PLAIN], 0)
    with serving(save(state), CONFIG | {"model_type": "dinov2"}) as server:
        env.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        env.delenv("BMFL_OFFLINE", raising=False)
        server.gone = True
        yield lambda: load_backbone(PLAIN, weights=weights[-1], image_size=28)
        torch.save(state, folder / "w.pth")
        load_backbone(PLAIN, weights=folder / "w.pth", image_size=28)
        server.gone = False
        env.setenv("BMFL_OFFLINE", "1")
        yield lambda: load_backbone(PLAIN, weights=weights[-1], image_size=28)
        env.delenv("BMFL_OFFLINE")
        load_backbone(PLAIN, weights=weights[-1], image_size=28)


@follows(("backbones/dinov2.py", "load it again, which downloads the file again"))
def test_other_bytes_than_the_hub_states(folder, env):
    small_networks(folder, env)
    state = random_state(ARCHITECTURES[PLAIN], 0)
    with serving(save(state), CONFIG | {"model_type": "dinov2"}) as server:
        env.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        env.delenv("BMFL_OFFLINE", raising=False)
        server.spoilt = True
        yield lambda: load_backbone(PLAIN, weights="auto", image_size=28)
        server.spoilt = False
        load_backbone(PLAIN, weights="auto", image_size=28)


@follows(
    (
        "backbones/dinov2.py",
        "give a DINOv2 backbone's state dict in the original or the Hugging Face key names",
    ),
    ("backbones/dinov2.py", "{}: load it under that name, {}, not {}"),
    ("backbones/dinov2.py", "{}: give weights of {}, as no DINOv2 model has these sizes"),
    ("backbones/dinov2.py", "save the state dict of the backbone by itself, without {}"),
    (
        "backbones/dinov2.py",
        "interpolate pos_embed to shape {}, that is {} x {} patches of images of {} px, or give "
        "the original checkpoint",
    ),
    ("backbones/dinov2.py", "give the state dict of the whole backbone, as it was saved"),
)
def test_weights_that_do_not_fit(folder, env):
    state, path, names = random_state(TINY, 0), folder / "w.pth", ["vit_tiny14"]

    def call():
        return load_backbone(names[-1], weights=path, image_size=28)

    torch.save({f"module.{k}": v for k, v in state.items()}, path)
    yield call
    torch.save(state, path)
    call()

    names.append("vit_tiny14_reg")
    remedy = yield call
    names.append(re.search(r"under that name, (\w+), not", remedy)[1])
    call()

    torch.save({k: v for k, v in state.items() if not k.startswith("blocks.2.")}, path)
    remedy = yield call
    torch.save(random_state(ARCHITECTURES[re.search(r"weights of (\w+)", remedy)[1]], 0), path)
    call()

    torch.save({**state, "head.weight": torch.zeros(2, 2)}, path)
    remedy = yield call
    name = re.search(r"without ([\w.]+\w)", remedy)[1]
    torch.save({k: v for k, v in torch.load(path).items() if k != name}, path)
    call()

    few = state["pos_embed"][:, 1:65].reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    torch.save({**state, "pos_embed": state["pos_embed"][:, :65]}, path)
    remedy = yield call
    shape, rows, columns = re.search(r"shape \((.+?)\), that is (\d+) x (\d+)", remedy).groups()
    more = nn.functional.interpolate(few, size=(int(rows), int(columns)), mode="bicubic")
    positions = torch.cat([state["pos_embed"][:, :1], more.flatten(2).transpose(1, 2)], 1)
    assert positions.shape == tuple(map(int, shape.split(",")))
    torch.save({**state, "pos_embed": positions}, path)
    call()

    torch.save({k: v for k, v in state.items() if k != "norm.bias"}, path)
    yield call
    torch.save(state, path)


@follows(
    ("backbones/load.py", "choose one of them"), ("backbones/load.py", "give them in one place")
)
def test_options_of_load_backbone(folder, env):
    dtypes = ["float16"]
    yield lambda: tiny(dtype=dtypes[-1])
    dtypes.append(DTYPES[0])
    tiny(dtype=dtypes[-1])
    options = {"weights": "random:1"}
    yield lambda: load_backbone("vit_tiny14:random:1", image_size=28, **options)
    options.clear()


@follows(
    (
        "backbones/protocol.py",
        "a loader replaces image_size=None by the size that its network was trained with",
    ),
    ("backbones/protocol.py", "use {}"),
    ("backbones/protocol.py", "choose one of them"),
)
def test_options_of_preprocess(folder, env):
    options = {"image_size": None}
    yield lambda: Preprocess(**options)
    options["image_size"] = 224 if options["image_size"] is None else options["image_size"]
    Preprocess(**options)
    options["image_size"] = 30
    remedy = yield lambda: Preprocess(**options)
    options["image_size"] = int(re.fullmatch(r"use (\d+)", remedy)[1])
    Preprocess(**options)
    options["resize"] = "long"
    yield lambda: Preprocess(**options)
    options["resize"] = RESIZE[0]


@follows(("backbones/protocol.py", "decode it with bmfl_lab.data.images.decode_image"))
def test_pixels_that_are_no_colour_image(folder, env):
    Image.fromarray(IMAGE[..., 0]).save(folder / "grey.png")
    images = [np.asarray(Image.open(folder / "grey.png"))]
    yield lambda: Preprocess(28)(images[-1])
    images.append(decode_image(folder / "grey.png"))


@follows(
    ("backbones/protocol.py", "use backbone.preprocess"),
    (
        "backbones/protocol.py",
        "use backbone.preprocess, with an image_size that is a multiple of {}",
    ),
)
def test_images_that_were_not_prepared(folder, env):
    backbone = toy()
    images = [torch.from_numpy(IMAGE)[None].float()]
    yield lambda: backbone(images[-1])
    images.append(backbone.preprocess(IMAGE)[None])
    backbone(images[-1])
    images.append(torch.zeros(1, 3, 30, 30))
    remedy = yield lambda: backbone(images[-1])
    size = 3 * int(re.search(r"multiple of (\d+)", remedy)[1])
    images.append(Preprocess(size)(IMAGE)[None])


@follows(
    ("backbones/protocol.py", "choose among the {} blocks of {}"),
    ("backbones/protocol.py", "use the tokens, or a DINOv2 backbone"),
    ("backbones/vit.py", "choose one of them"),
)
def test_blocks_and_features_that_a_backbone_lacks(folder, env):
    backbones, options, images = [tiny()], {"blocks": (12,)}, torch.zeros(1, 3, 28, 28)
    remedy = yield lambda: backbones[-1](images, **options)
    options["blocks"] = range(int(re.search(r"the (\d+) blocks", remedy)[1]))
    backbones[-1](images, **options)
    backbones.append(toy())
    options = {"features": "q"}
    yield lambda: backbones[-1](images, **options)
    backbones[-1](images)
    backbones.append(tiny())
    backbones[-1](images, **options)
    options["features"] = "query"
    yield lambda: backbones[-1](images, **options)
    options["features"] = FEATURES[1]


def averaged(x):
    return BackboneTokens(None, None, x.flatten(2).mean(2)[:, None], (2, 2))


@follows(
    (
        "backbones/protocol.py",
        "let the module return one, or pass wrap your own function that returns BackboneTokens",
    ),
    ("backbones/protocol.py", "let `tokens` return one, or one per block"),
    ("backbones/protocol.py", "let `tokens` return all patches, row by row, and their grid"),
)
def test_a_module_whose_tokens_are_not_understood(folder, env):
    network = nn.Conv2d(3, 4, 14, stride=14)
    module = [nn.Sequential(network, nn.Flatten(2))]
    yield lambda: toy(module=module[-1])
    toy(lambda x: BackboneTokens(None, None, x.transpose(1, 2), (2, 2)), module[-1])
    module.append(network)
    toy(module=module[-1])
    tokens = [lambda x: x.flatten(2)]
    yield lambda: toy(tokens[-1])
    tokens.append(lambda x: [map_tokens(x)])
    toy(tokens[-1])
    tokens.append(averaged)
    yield lambda: toy(tokens[-1])
    tokens.append(lambda x: BackboneTokens(None, None, x.flatten(2).transpose(1, 2), (2, 2)))


@follows(
    ("backbones/weights.py", "check the path"),
    ("backbones/weights.py", "give a whole number as seed"),
    ("backbones/weights.py", "the file is damaged: download or make it again"),
    ("backbones/weights.py", "get the file again"),
    ("backbones/weights.py", "save the backbone's state dict by itself"),
    (
        "backbones/weights.py",
        "on a machine where the file is trusted, save its state dict again as safetensors",
    ),
)
def test_files_of_weights(folder, env):
    state, path = random_state(TINY, 0), folder / "w.pth"
    weights = [folder / "v.pth"]
    torch.save(state, path)
    yield lambda: tiny(weights=weights[-1])
    weights.append(path)
    tiny(weights=weights[-1])

    weights.append("random:first")
    yield lambda: tiny(weights=weights[-1])
    weights.append("random:1")
    tiny(weights=weights[-1])

    weights.append(path)
    path.write_bytes(path.read_bytes()[:-100])
    yield lambda: tiny(weights=weights[-1])
    torch.save(state, path)
    tiny(weights=weights[-1])

    torch.save({**state, "norm.bias": state["norm.bias"] * torch.nan}, path)
    yield lambda: tiny(weights=weights[-1])
    torch.save(state, path)
    tiny(weights=weights[-1])

    torch.save({"model": state, "epoch": 3}, path)
    yield lambda: tiny(weights=weights[-1])
    torch.save(torch.load(path)["model"], path)
    tiny(weights=weights[-1])

    torch.save({"model": state, "args": argparse.Namespace(a=1)}, path)
    remedy = yield lambda: tiny(weights=weights[-1])
    weights.append(folder / f"w.{re.search(r'again as (.*)', remedy)[1]}")
    save_file(torch.load(path, weights_only=False)["model"], weights[-1])


@follows(
    ("backbones/weights.py", "save the model as safetensors; pickled weights are not read"),
    ("backbones/weights.py", "download the folder again"),
)
def test_folders_of_weights(folder, env):
    place = hub_folder(folder / "m")
    torch.save(read_tensors(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    yield lambda: read_huggingface_folder(place, SMALL)
    save_file(torch.load(place / "pytorch_model.bin"), place / "model.safetensors")
    read_huggingface_folder(place, SMALL)
    config = read_json(place / "config.json")
    write_json(place / "config.json", [config])
    yield lambda: read_huggingface_folder(place, SMALL)
    hub_folder(place)

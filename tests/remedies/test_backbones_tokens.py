"""The remedies of `bmfl_lab.backbones.tokens`, each followed."""

import dataclasses
import functools
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from extraction_process import stimuli as noise
from following import follows
from PIL import Image
from torch import nn

from bmfl_lab.backbones import FeatureStore, Preprocess, extract, load_backbone, map_tokens, wrap
from bmfl_lab.data.stimuli import from_files


@functools.cache
def tiny(size=28):
    return load_backbone("vit_tiny14", image_size=size)


def scaled(factor, dtype=torch.float32):
    """Return a backbone with large weights."""
    network = nn.Conv2d(3, 4, 14, stride=14, bias=False)
    with torch.no_grad():
        network.weight.fill_(factor)
    return wrap(network.to(dtype), preprocess=Preprocess(28), tokens=map_tokens, name="toy")


def pictures(folder, n=3):
    paths = [folder / f"{i}.png" for i in range(n)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((30, 30, 3), 40 * i, np.uint8)).save(path)
    return from_files("files", paths, [p.stem for p in paths], [0] * n)


@follows(
    ("backbones/tokens.py", "choose one of them, for example 'pooled:4'"),
    ("backbones/tokens.py", "pool to fewer cells, or use larger images"),
    ("backbones/tokens.py", "choose one of them"),
    ("backbones/tokens.py", "give an image, and a batch_size of 1 or more"),
)
def test_options_of_the_store(folder, env):
    store, backbones, options = FeatureStore(folder), [tiny(56)], {"kind": "pooled"}

    def call():
        return store.get(backbones[-1], noise(2), **options)

    remedy = yield call
    options["kind"] = re.search(r"example '(\S+)'", remedy)[1]
    call()

    backbones.append(tiny())
    yield call
    backbones.append(tiny(56))
    call()
    backbones.append(tiny())
    options["kind"] = "pooled:2"
    call()

    options["dtype"] = "float64"
    yield call
    options["dtype"] = "float16"
    call()

    options["batch_size"] = 0
    remedy = yield call
    options["batch_size"] = int(re.search(r"of (\d+) or more", remedy)[1])


@follows(
    ("backbones/tokens.py", "store as dtype='float32'"),
    ("backbones/tokens.py", "check the weights and compute in float32"),
)
def test_tokens_that_no_number_type_holds(folder, env):
    store, backbones, options = FeatureStore(folder), [scaled(1e3)], {}
    remedy = yield lambda: store.get(backbones[-1], noise(2), **options)
    options["dtype"] = re.search(r"dtype='(\w+)'", remedy)[1]
    store.get(backbones[-1], noise(2), **options)
    backbones.append(scaled(1e3, torch.float16))
    remedy = yield lambda: store.get(backbones[-1], noise(2), **options)
    backbones.append(scaled(1e3, getattr(torch, re.search(r"compute in (\w+)", remedy)[1])))


@follows(
    ("backbones/tokens.py", "set it to the largest size of the store, for example 100"),
    (
        "backbones/tokens.py",
        "delete folders in {}, raise limit_gb or BMFL_STORE_GB, or keep fewer tokens "
        "(kind='cls+mean' or 'pooled:4')",
    ),
    (
        "backbones/tokens.py",
        "delete folders in {}, raise limit_gb or BMFL_STORE_GB, or keep fewer tokens "
        "(kind='cls+mean' or 'pooled:4')",
    ),
)
def test_the_limit_of_the_store(folder, env):
    env.setenv("BMFL_STORE_GB", "much")
    remedy = yield lambda: FeatureStore(folder)
    env.setenv("BMFL_STORE_GB", re.search(r"example (\d+)", remedy)[1])
    assert FeatureStore(folder).limit_gb > 20

    limits, kinds = [1e-5], ["patches"]

    def call():
        return FeatureStore(folder, limits[-1]).get(tiny(112), noise(2), kinds[-1])

    remedy = yield call
    kinds += re.search(r"kind='(.+?)' or '(.+?)'", remedy).groups()
    for kind in kinds[1:]:
        kinds.append(kind)
        call()
    limits.append(1)
    kinds.append("patches")
    call()

    # a disk without room is emptied
    (folder / "old.partial").mkdir()
    usage, free = shutil.disk_usage(folder), [100, 1 << 30]
    full = lambda path: usage._replace(free=free[not (folder / "old.partial").exists()])  # noqa: E731
    env.setattr(shutil, "disk_usage", full)
    kinds.append("pooled:3")
    remedy = yield call
    shutil.rmtree(Path(re.search(r"folders in (.+?), raise", remedy)[1], "old.partial"))


@follows(
    (
        "backbones/tokens.py",
        "delete the folder; its tokens are extracted again at the next call",
    )
)
def test_stored_tokens_are_damaged(folder, env):
    key = FeatureStore(folder).get(tiny(), noise(2), "cls").key
    path = folder / key / "cls.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    yield lambda: FeatureStore(folder).get(tiny(), noise(2), "cls")
    shutil.rmtree(folder / key)


@follows(
    ("backbones/tokens.py", "repair the file or leave the stimulus out"),
    ("backbones/tokens.py", "repair the file or leave the stimulus out"),
)
def test_an_image_that_cannot_be_read(folder, env):
    used = [pictures(folder)]
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:40])
    yield lambda: extract(tiny(), used[-1], "cls")
    used.append(used[0].subset(np.array([0, 2])))
    extract(tiny(), used[-1], "cls")
    used.append(used[0])
    yield lambda: extract(tiny(), used[-1], "cls")
    (folder / "1.png").write_bytes(whole)


@follows(("backbones/tokens.py", "leave them alone, try again"))
def test_images_are_replaced_meanwhile(folder, env):
    images, others = pictures(folder), [1]

    def read(i):
        if i == 2 and others:
            others.pop()
            Image.fromarray(np.full((30, 30, 3), 200, np.uint8)).save(folder / "new.png")
            (folder / "new.png").replace(folder / "0.png")
        return images.read(i)

    watched = dataclasses.replace(images, read=read)
    yield lambda: FeatureStore(folder / "store").get(tiny(), watched, "cls")

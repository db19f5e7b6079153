"""A remedy that an error names helps: each one is followed, and the same call then works."""

import argparse
import json
import pickle
import re

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from bmfl_lab.backbones import load_backbone
from bmfl_lab.backbones.dinov2 import ARCHITECTURES
from bmfl_lab.backbones.weights import random_state
from bmfl_lab.config import require_list
from bmfl_lab.data import load_study
from bmfl_lab.data.containers import read_hdf5
from bmfl_lab.data.pickles import read_mapping, write_mapping
from bmfl_lab.data.study import read_study_file
from bmfl_lab.errors import BmflError
from bmfl_lab.files import link_guard, load_npy, read_json, read_yaml, write_json
from bmfl_lab.metrics.noise import noise_normalised

NAME = "vit_tiny14"


def list_as_text(folder):
    def follow(remedy):
        given.append(json.loads(re.search(r"seeds=(\[.*\])", remedy)[1]))

    given = ["0 1"]
    return lambda: require_list("seeds", given[-1], int), "write seeds=", follow


def external_link(folder):
    with h5py.File(folder / "other.h5", "w") as stream:
        stream["data"] = np.arange(4)
    with h5py.File(folder / "a.h5", "w") as stream:
        stream["data"] = h5py.ExternalLink("other.h5", "/data")

    def follow(remedy):
        with h5py.File(folder / "other.h5") as source, h5py.File(folder / "a.h5", "w") as stream:
            stream["data"] = source["data"][()]

    return lambda: read_hdf5(folder / "a.h5", ["data"]), "save the arrays themselves", follow


def sparse_array(folder):
    def write(array):
        with h5py.File(folder / "a.h5", "w") as stream:
            if array is None:
                stream.create_dataset("data", (1 << 30,), "f8", chunks=(1024,))
            else:
                stream["data"] = array

    write(None)
    return (
        lambda: read_hdf5(folder / "a.h5", ["data"]),
        "save the array again in full",
        lambda remedy: write(np.zeros(1000)),
    )


def object_beside_weights(folder):
    path, state = folder / "w.pth", random_state(ARCHITECTURES[NAME], 0)
    torch.save({"model": state, "args": argparse.Namespace(a=1)}, path)
    used = [path]

    def follow(remedy):
        used.append(folder / "w.safetensors")
        save_file(torch.load(path, weights_only=False)["model"], used[-1])

    return lambda: load_backbone(NAME, weights=used[-1]), "save its state dict again", follow


def weights_with_a_head(folder):
    path, state = folder / "w.pth", random_state(ARCHITECTURES[NAME], 0)
    torch.save({**state, "head.weight": torch.zeros(2, 2)}, path)

    def follow(remedy):
        name = re.search(r"without ([\w.]+\w)", remedy)[1]
        torch.save({k: v for k, v in torch.load(path).items() if k != name}, path)

    return lambda: load_backbone(NAME, weights=path), "without head.weight", follow


def weights_of_another_name(folder):
    path, names = folder / "w.pth", ["vit_tiny14_reg"]
    torch.save(random_state(ARCHITECTURES[NAME], 0), path)

    def follow(remedy):
        names.append(re.search(r"under that name, (\w+), not", remedy)[1])

    return lambda: load_backbone(names[-1], weights=path), "load it under that name", follow


def aliases(folder):
    path = folder / "a.yaml"
    lines = ["a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcde", "bcdef")]
    path.write_text("\n".join(lines))
    few = {"a": list(range(1, 10)), "b": [list(range(1, 10)) for _ in range(9)]}

    def follow(remedy):
        text = yaml.safe_dump(few)
        assert "*" not in text
        path.write_text(text)

    return lambda: read_yaml(path), "without aliases", follow


def damaged_json(folder):
    path = folder / "a.json"
    path.write_text('{"a": 1')

    def follow(remedy):
        path.unlink()
        write_json(path, {"a": 1})

    return lambda: read_json(path), "run what wrote it again", follow


def damaged_study_file(folder):
    path = folder / "mine.json"
    path.write_text('{"study": "planted",, "n_encoder": 30}')

    def follow(remedy):
        path.write_text('{"study": "planted", "n_encoder": 30}')

    return lambda: read_study_file(path), "mend the line", follow


def folder_without_images(folder):
    for name in ("cat", "dog", "notes"):
        (folder / name).mkdir()
        for i in range(12 if name != "notes" else 0):
            Image.new("RGB", (9, 9), (20 * i, ord(name[0]), 0)).save(folder / name / f"{i}.png")
    return (
        lambda: load_study(folder),
        "remove other folders",
        lambda remedy: (folder / "notes").rmdir(),
    )


def objects_in_an_array(folder):
    path = folder / "a.npy"
    np.save(path, np.array([1, 2, 3], object), allow_pickle=True)

    def follow(remedy):
        np.save(path, np.load(path, allow_pickle=True).astype(float))

    return lambda: load_npy(path), "plain numeric array", follow


def truncated_array(folder):
    path = folder / "a.npy"
    np.save(path, np.arange(9))
    path.write_bytes(path.read_bytes()[:-3])
    return lambda: load_npy(path), "make or download", lambda remedy: np.save(path, np.arange(9))


def link_out_of_the_folder(folder):
    root, other = folder / "root", folder / "other.txt"
    root.mkdir()
    other.write_text("x")
    (root / "a.txt").symlink_to(other)

    def follow(remedy):
        (root / "a.txt").unlink()
        (root / "a.txt").write_text(other.read_text())

    return lambda: link_guard(root)(root / "a.txt"), "copy the file in", follow


def link_that_is_the_users(folder):
    allowed = []
    link_out_of_the_folder(folder)
    root = folder / "root"
    return (
        lambda: link_guard(root, allowed=bool(allowed))(root / "a.txt"),
        "follow_links=True",
        allowed.append,
    )


def percentages(folder):
    ceiling = np.array([40.0, 70.0])

    def follow(remedy):
        ceiling[:] /= 100

    return lambda: noise_normalised(np.array([0.2, 0.3]), ceiling), "by 100", follow


def names_as_code(folder):
    path = folder / "names.npy"
    path.write_bytes(pickle.dumps({1: print}))
    return lambda: read_mapping(path), "", lambda remedy: write_mapping(path, {1: "V1"})


CASES = [
    *(list_as_text, external_link, sparse_array, object_beside_weights, weights_with_a_head),
    *(weights_of_another_name, aliases, damaged_json, objects_in_an_array, truncated_array),
    *(damaged_study_file, folder_without_images, link_out_of_the_folder),
    *(link_that_is_the_users, percentages, names_as_code),
]


@pytest.mark.parametrize("case", CASES)
def test_following_the_remedy_helps(case, tmp_path):
    call, expected, follow = case(tmp_path)
    with pytest.raises(BmflError) as caught:
        call()
    remedy = str(caught.value).partition("To fix it: ")[2]
    assert expected in remedy
    follow(remedy)
    call()

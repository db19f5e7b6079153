"""Remedies that name a file, an option, a parameter or an environment variable, each followed."""

import re

import h5py
import nbformat
import numpy as np
import pytest
from algonauts_example import make_subject
from nbformat.v4 import new_code_cell, new_notebook
from nsd_example import PER_SESSION, make_root
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data import algonauts, nsd, nsd_files
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.class_folders import read_by_stem
from bmfl_lab.data.containers import open_hdf5, open_npz
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.kamitani import read_plain
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.shifts.corruptions import frost_pictures
from bmfl_lab.data.splits import split_by_id
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import BmflError
from bmfl_lab.files import read_table, read_yaml
from bmfl_lab.metrics.classification import calibration
from bmfl_lab.metrics.rsa import rdm
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.runs.spec import load_spec
from bmfl_lab.runtime import home, pick_device, refuse_offline

IDS = [str(i) for i in range(5)]
VALUES = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)


def size_of_the_store(folder, env):
    env.setenv("BMFL_STORE_GB", "much")

    def follow(remedy):
        env.setenv("BMFL_STORE_GB", re.search(r"for example (\d+)", remedy)[1])

    return lambda: FeatureStore(folder), follow


def cache_folder(folder, env):
    for name in ("BMFL_HOME", "XDG_CACHE_HOME"):
        env.delenv(name, raising=False)
    env.setenv("HOME", "~nobody-at-all")
    env.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))

    def follow(remedy):
        env.setenv(re.search(r"variable (\w+)", remedy)[1], str(folder))

    return home, follow


def download(folder, env):
    env.setenv("BMFL_OFFLINE", "1")

    def follow(remedy):
        assert remedy.startswith("unset it")
        env.delenv("BMFL_OFFLINE")

    return lambda: refuse_offline("weights", "give a file"), follow


def frost_is_drawn(folder, env):
    env.setenv("BMFL_FROST", str(folder))
    return frost_pictures, lambda remedy: env.delenv(re.search(r"unset (\w+)", remedy)[1])


def frost_has_a_folder(folder, env):
    env.setenv("BMFL_FROST", str(folder))

    def follow(remedy):
        assert "name the folder that holds them" in remedy
        Image.new("RGB", (9, 9)).save(folder / "a.png")

    return frost_pictures, follow


def device(folder, env):
    env.setattr("torch.cuda.is_available", lambda: False)
    chosen = ["cuda"]
    return (
        lambda: pick_device(chosen[-1]),
        lambda remedy: chosen.append(re.search(r"device='(\w+)'", remedy)[1]),
    )


def transposed(folder, env):
    images = np.zeros((5, 8, 8, 3), np.uint8)
    stimuli, held = from_arrays("own", images, IDS, np.full(5, -1)), [VALUES.T]
    atlas = Atlas(np.zeros(9, np.int8), {})

    def follow(remedy):
        assert remedy.startswith("transpose the array")
        held.append(held[-1].T)

    return lambda: Subject("own", stimuli, held[-1], atlas, {}), follow


def name_of_an_array(folder, env):
    np.savez(folder / "r.npz", betas=VALUES, ids=IDS)
    options = {}

    def follow(remedy):
        options[re.search(r"as (\w+)=", remedy)[1]] = "betas"

    return lambda: read_responses(folder / "r.npz", space="voxels", **options), follow


def ids_of_rows(folder, env):
    np.save(folder / "r.npy", VALUES)
    options = {}

    def follow(remedy):
        options[re.search(r"pass (\w+)=, one per row", remedy)[1]] = IDS

    return lambda: read_responses(folder / "r.npy", space="voxels", **options), follow


def space_of_any_size(folder, env):
    np.save(folder / "r.npy", VALUES)
    spaces = ["fsaverage5"]

    def follow(remedy):
        spaces.append(re.search(r"'(\w+)' takes any number", remedy)[1])

    return lambda: read_responses(folder / "r.npy", IDS, space=spaces[-1]), follow


def repeated_rows(folder, env):
    np.save(folder / "r.npy", VALUES)
    ids = [*IDS[:4], IDS[0]]

    def follow(remedy):
        assert "average repeated presentations" in remedy
        mean = np.stack([VALUES[[0, 4]].mean(0), *VALUES[1:4]])
        np.save(folder / "r.npy", mean)
        ids.pop()

    return lambda: read_responses(folder / "r.npy", ids, space="voxels"), follow


def rows_with_nan(folder, env):
    values = VALUES.copy()
    values[2] = np.nan
    ids = list(IDS)
    np.save(folder / "r.npy", values)

    def follow(remedy):
        assert remedy.startswith("leave out these images")
        np.save(folder / "r.npy", np.delete(values, 2, 0))
        del ids[2]

    return lambda: read_responses(folder / "r.npy", ids, space="voxels"), follow


def nan_vertices(folder, env):
    own = algonauts.write_subject(folder / "own", make_subject())
    (own / "bmfl_lab.json").unlink()
    path = own / "training_split/training_fmri/lh_training_fmri.npy"
    values = np.load(path)
    values[3, 2] = np.nan
    np.save(path, values)
    options = {}

    def follow(remedy):
        name, value = re.search(r"pass (\w+)='(\w+)'", remedy).groups()
        options[name] = value

    return lambda: algonauts.read_subject(own, **options), follow


def own_data_under_a_known_name(folder, env):
    own = algonauts.write_subject(folder / "subj01", make_subject())
    options = {}

    def follow(remedy):
        options[re.search(r"pass (\w+)=False", remedy)[1]] = False

    return lambda: algonauts.read_subject(own, **options), follow


def percentages_of_noise(folder, env):
    own = algonauts.write_subject(folder / "own", make_subject())
    (own / "bmfl_lab.json").unlink()
    path = own / "test_split/noise_ceiling/lh_noise_ceiling.npy"
    np.save(path, np.load(path) * 100)

    def follow(remedy):
        np.save(path, np.load(path) / int(re.search(r"percentages by (\d+)", remedy)[1]))

    return lambda: algonauts.read_subject(own), follow


def sessions(folder, env):
    env.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    root, chosen = make_root(folder), [[1, 1]]

    def follow(remedy):
        found = re.search(r"sessions=\[([\d, ]+)\]", remedy)[1]
        chosen.append([int(n) for n in found.split(",")])

    return lambda: nsd.read_subject(root, 1, sessions=chosen[-1]), follow


def numbers_from_one(folder, env):
    with h5py.File(folder / "s.hdf5", "w") as stream:
        stream["imgBrick"] = np.zeros((4, 8, 8, 3), np.uint8)
    numbers = [np.arange(1, 5)]

    def follow(remedy):
        numbers.append(numbers[-1] - int(re.search(r"subtract (\d)", remedy)[1]))

    return lambda: nsd_files.open_stimuli(folder / "s.hdf5", numbers[-1]), follow


def held_out_ids(folder, env):
    held = ["13"]

    def follow(remedy):
        held.append(re.search(r"form '(nsd-\d+)'", remedy)[1])

    ids = [f"nsd-{i:05d}" for i in range(30)]
    return lambda: split_by_id(ids, held_out=[held[-1]]), follow


def missing_image(folder, env):
    def follow(remedy):
        suffix = re.search(r"\.png", remedy)[0]
        Image.new("RGB", (9, 9)).save(folder / f"a{suffix}")

    return lambda: read_by_stem("own", ["a"], folder), follow


def two_images_of_a_name(folder, env):
    for suffix in ("png", "jpg"):
        Image.new("RGB", (9, 9)).save(folder / f"a.{suffix}")

    def follow(remedy):
        assert remedy.startswith("remove all but one")
        (folder / "a.jpg").unlink()

    return lambda: read_by_stem("own", ["a"], folder), follow


def share_of_validation(folder, env):
    np.save(folder / "r.npy", VALUES)
    for i in IDS:
        Image.new("RGB", (9, 9)).save(folder / f"{i}.png")
    share = [1.5]
    paths = [folder / f"{i}.png" for i in IDS]

    def follow(remedy):
        share.append(float(re.search(r"use (0\.\d)", remedy)[1]))

    return lambda: read_plain(folder / "r.npy", paths, val_share=share[-1]), follow


def deep_groups(folder, env):
    with h5py.File(folder / "a.h5", "w") as stream:
        stream["/".join("g" * 60) + "/data"] = VALUES

    def follow(remedy):
        assert "closer to the top" in remedy
        with h5py.File(folder / "a.h5", "w") as stream:
            stream["data"] = VALUES

    return lambda: open_hdf5(folder / "a.h5").close(), follow


def objects_in_an_archive(folder, env):
    np.savez(folder / "a.npz", a=np.array([1, "b"], dtype=object))

    def follow(remedy):
        assert remedy.startswith("save the arrays again with numpy.savez")
        np.savez(folder / "a.npz", a=np.array(["1", "b"]))

    return lambda: open_npz(folder / "a.npz").close(), follow


def field_written_twice(folder, env):
    path = folder / "a.yaml"
    path.write_text("seed: 1\nseed: 2\n")

    def follow(remedy):
        assert remedy.startswith("mend the line")
        path.write_text("seed: 2\n")

    return lambda: read_yaml(path), follow


def table_in_latin_1(folder, env):
    path = folder / "t.csv"
    path.write_bytes("id\ncafé\n".encode("latin-1"))

    def follow(remedy):
        assert remedy.startswith("save it as UTF-8")
        path.write_text("id\ncafé\n", encoding="utf-8")

    return lambda: list(read_table(path, ["id"], "save it as UTF-8")), follow


def spec_without_fields(folder, env):
    cell = new_code_cell("n: int = 1  # a number", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), folder / "n.ipynb")
    path = folder / "s.yaml"
    path.write_text("- 1\n")

    def follow(remedy):
        path.write_text(re.search(r"start with '(notebook: )", remedy)[1] + "n.ipynb\n")

    return lambda: load_spec(path), follow


def level_in_percent(folder, env):
    level = [95]

    def follow(remedy):
        level.append(float(re.search(r"level=(0\.\d+)", remedy)[1]))

    return lambda: bootstrap_mean(np.arange(9.0), n_boot=20, level=level[-1]), follow


def bins(folder, env):
    n = [0]
    logits, labels = np.eye(3), np.arange(3)

    def follow(remedy):
        n.append(int(re.search(r"n_bins=(\d+)", remedy)[1]))

    return lambda: calibration(logits, labels, n_bins=n[-1]), follow


def distance_of_one_presentation(folder, env):
    patterns = np.random.default_rng(0).standard_normal((6, 9))
    metric = ["crossnobis"]

    def follow(remedy):
        metric.append(re.search(r"metric='(\w+)'", remedy)[1])

    return lambda: rdm(patterns, metric=metric[-1]), follow


def root_of_a_study(folder, env):
    env.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    root = make_root(folder)
    options = {"subject": "subj01"}

    def follow(remedy):
        options[re.search(r"pass (\w+)=\.\.\.", remedy)[1]] = root

    return lambda: load_study("nsd", **options), follow


CASES = [
    *(size_of_the_store, cache_folder, download, frost_is_drawn, frost_has_a_folder, device),
    *(transposed, name_of_an_array, ids_of_rows, space_of_any_size, repeated_rows, rows_with_nan),
    *(nan_vertices, own_data_under_a_known_name, percentages_of_noise, sessions),
    *(numbers_from_one, held_out_ids, missing_image, two_images_of_a_name, share_of_validation),
    *(deep_groups, objects_in_an_archive, field_written_twice, table_in_latin_1),
    *(spec_without_fields, level_in_percent, bins, distance_of_one_presentation, root_of_a_study),
]


@pytest.mark.parametrize("case", CASES)
def test_following_the_remedy_helps(case, tmp_path, monkeypatch):
    call, follow = case(tmp_path, monkeypatch)
    with pytest.raises(BmflError) as caught:
        call()
    follow(str(caught.value).partition("To fix it: ")[2])
    call()

"""Remedies of several packages that name a file, an option or a variable, each followed."""

import re

import h5py
import nbformat
import numpy as np
from following import follows
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.class_folders import read_by_stem
from bmfl_lab.data.containers import open_hdf5, open_npz
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.shifts.corruptions import frost_pictures
from bmfl_lab.data.splits import split_by_id
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.files import read_yaml
from bmfl_lab.metrics.classification import calibration
from bmfl_lab.metrics.rsa import rdm
from bmfl_lab.runs.spec import load_spec
from bmfl_lab.runtime import home, pick_device, refuse_offline

IDS = [str(i) for i in range(5)]
VALUES = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)


@follows(("backbones/tokens.py", "set it to the largest size of the store, for example 100"))
def test_the_size_of_the_store(folder, env):
    env.setenv("BMFL_STORE_GB", "much")
    remedy = yield lambda: FeatureStore(folder)
    env.setenv("BMFL_STORE_GB", re.search(r"for example (\d+)", remedy)[1])


@follows(
    ("runtime.py", "set the environment variable BMFL_HOME to a folder for downloads and caches")
)
def test_a_machine_without_a_home(folder, env):
    for name in ("BMFL_HOME", "XDG_CACHE_HOME"):
        env.delenv(name, raising=False)
    env.setenv("HOME", "~nobody-at-all")
    env.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    remedy = yield home
    env.setenv(re.search(r"variable (\w+)", remedy)[1], str(folder))


@follows(("runtime.py", "unset it, or {}"))
def test_a_download_that_is_forbidden(folder, env):
    env.setenv("BMFL_OFFLINE", "1")
    yield lambda: refuse_offline("weights", "give a file")
    env.delenv("BMFL_OFFLINE")


@follows(("runtime.py", "use device='auto' or 'cpu'"))
def test_a_machine_without_a_gpu(folder, env):
    env.setattr("torch.cuda.is_available", lambda: False)
    devices = ["cuda"]
    remedy = yield lambda: pick_device(devices[-1])
    name, other = re.search(r"device='(\w+)' or '(\w+)'", remedy).groups()
    assert pick_device(other) == pick_device(name)
    devices.append(name)


@follows(
    (
        "data/shifts/corruptions.py",
        "name the folder that holds them, or unset BMFL_FROST to have frost drawn",
    ),
    (
        "data/shifts/corruptions.py",
        "name the folder that holds them, or unset BMFL_FROST to have frost drawn",
    ),
)
def test_pictures_of_frost(folder, env):
    (folder / "empty").mkdir()
    env.setenv("BMFL_FROST", str(folder / "empty"))
    yield frost_pictures
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    env.setenv("BMFL_FROST", str(folder))
    frost_pictures()
    env.setenv("BMFL_FROST", str(folder / "empty"))
    remedy = yield frost_pictures
    env.delenv(re.search(r"unset (\w+)", remedy)[1])


@follows(("data/responses.py", "transpose the array"))
def test_vertices_by_stimuli(folder, env):
    images = np.zeros((5, 8, 8, 3), np.uint8)
    stimuli, held = from_arrays("own", images, IDS, np.full(5, -1)), [VALUES.T]
    atlas = Atlas(np.zeros(9, np.int8), {})
    yield lambda: Subject("own", stimuli, held[-1], atlas, {})
    held.append(held[-1].T)


@follows(("data/splits.py", "use ids of the form 'nsd-00013' (0-based)"))
def test_held_out_ids_of_another_form(folder, env):
    held, ids = ["13"], [f"nsd-{i:05d}" for i in range(30)]
    remedy = yield lambda: split_by_id(ids, held_out=[held[-1]])
    held.append(re.search(r"form '(nsd-\d+)'", remedy)[1])


@follows(
    (
        "data/class_folders.py",
        "add images ({}) of these names to the folder, or give the right folder",
    ),
    ("data/class_folders.py", "remove all but one"),
)
def test_images_by_name(folder, env):
    remedy = yield lambda: read_by_stem("own", ["a"], folder)
    suffix = re.search(r"\.png", remedy)[0]
    Image.new("RGB", (9, 9)).save(folder / f"a{suffix}")
    read_by_stem("own", ["a"], folder)
    Image.new("RGB", (9, 9)).save(folder / "a.jpg")
    yield lambda: read_by_stem("own", ["a"], folder)
    (folder / "a.jpg").unlink()


@follows(("data/containers.py", "save the arrays again, closer to the top of the file"))
def test_an_array_deep_in_a_file(folder, env):
    def write(name):
        with h5py.File(folder / "a.h5", "w") as stream:
            stream[name] = VALUES

    write("/".join("g" * 60) + "/data")
    yield lambda: open_hdf5(folder / "a.h5").close()
    write("data")


@follows(("data/containers.py", "save the arrays again with numpy.savez"))
def test_objects_in_an_archive(folder, env):
    np.savez(folder / "a.npz", a=np.array([1, "b"], dtype=object))
    yield lambda: open_npz(folder / "a.npz").close()
    np.savez(folder / "a.npz", a=np.array(["1", "b"]))


@follows(
    ("files.py", "mend the line"),
    ("files.py", "save it as UTF-8, or {}"),
)
def test_tables_and_lists(folder, env):
    (folder / "a.yaml").write_text("seed: 1\nseed: 2\n")
    yield lambda: read_yaml(folder / "a.yaml")
    (folder / "a.yaml").write_text("seed: 2\n")
    read_yaml(folder / "a.yaml")
    np.save(folder / "r.npy", VALUES)
    names, table = ["café", *IDS[1:]], folder / "ids.csv"
    table.write_text("\n".join(["id", *names]), encoding="latin-1")
    yield lambda: read_responses(folder / "r.npy", table, space="voxels")
    table.write_text("\n".join(["id", *names]), encoding="utf-8")


@follows(("runs/spec.py", "start with 'notebook: ...'"))
def test_a_spec_without_fields(folder, env):
    cell = new_code_cell("n: int = 1  # a number", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), folder / "n.ipynb")
    path = folder / "s.yaml"
    path.write_text("- 1\n")
    remedy = yield lambda: load_spec(path)
    path.write_text(re.search(r"start with '(notebook: )", remedy)[1] + "n.ipynb\n")


@follows(("metrics/classification.py", "use n_bins=15"))
def test_no_bins(folder, env):
    n, logits, labels = [0], np.eye(3), np.arange(3)
    remedy = yield lambda: calibration(logits, labels, n_bins=n[-1])
    n.append(int(re.search(r"n_bins=(\d+)", remedy)[1]))


@follows(("metrics/rsa.py", "give independent presentations, or use metric='correlation'"))
def test_a_distance_of_one_presentation(folder, env):
    patterns = np.random.default_rng(0).standard_normal((6, 9))
    metric = ["crossnobis"]
    remedy = yield lambda: rdm(patterns, metric=metric[-1])
    metric.append(re.search(r"metric='(\w+)'", remedy)[1])

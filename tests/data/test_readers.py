"""The registry of readers: a stranger's data set, and subjects that join images of another reader."""

import json

import numpy as np
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.data import Study, algonauts, register_reader
from bmfl_lab.data import study as module
from bmfl_lab.data.stimuli import from_files
from bmfl_lab.errors import ConfigError, DataError

SMALL = {"n_encoder": 30, "n_encoder_val": 10, "n_encoder_test": 10}
SIZES = {**SMALL, "n_train": 16, "n_val": 8, "n_test": 8, "n_ood": 8}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def classes(tmp_path):
    for k, split in enumerate(("train", "val", "test")):
        for j, label in enumerate(("bird", "cat")):
            for i in range(3):
                write(tmp_path / "classes" / split / label / f"{i}.png", 100 * k + 10 * j + i)
    return tmp_path / "classes"


@pytest.fixture
def person(tmp_path):
    subject = load_study("planted", **SIZES).subject()
    return algonauts.write_subject(tmp_path / "own01", subject)


def test_a_planted_subject_joins_class_folders(classes):
    study = load_study(classes, subject="planted", seed=3, image_size=56, **SMALL)
    planted = load_study("planted", seed=3, **SMALL)
    np.testing.assert_array_equal(study.subject().responses, planted.subject().responses)
    assert study.class_names == ("bird", "cat") and study.simulated
    assert study.backbone.image_size == 56 and study.extra["leakage"]["by_id"] == 0


def test_a_folder_of_a_subject_joins_planted_images(person):
    study = load_study("planted", subject=person, val=0.2, **SIZES)
    alone = load_study("planted", **SIZES)
    assert list(study.subjects) == ["own01"]
    assert study.set("test").fingerprint() == alone.set("test").fingerprint()
    assert study.fingerprint() != alone.fingerprint()
    assert study.subject().info["split"]["val"] == 0.2


def test_a_study_file_names_a_subject_beside_itself(classes, person):
    file = person.parent / "study.json"
    file.write_text(json.dumps({"study": "folder", "root": "classes", "subject": "../own01"}))
    assert list(load_study(file).subjects) == ["own01"]
    file.write_text(json.dumps({"study": "planted", "subject": "own01", **SIZES}))
    assert list(load_study(file).subjects) == ["own01"]


def test_images_that_the_subject_saw_are_refused(classes, person):
    shown = next((person / "training_split" / "training_images").iterdir())
    (classes / "train" / "cat" / "shown.png").write_bytes(shown.read_bytes())
    with pytest.raises(DataError, match="1 identical images in 'train' and 'stimuli of own01'"):
        load_study(classes, subject=person)
    assert load_study(classes, subject=person, verify=False).subject().name == "own01"


def test_wrong_subjects_and_options_are_refused(classes, person):
    with pytest.raises(DataError, match="no layout that a reader detects"):
        load_study("planted", subject=classes, **SIZES)
    with pytest.raises(ConfigError, match=r"an existing folder; got .*nowhere"):
        load_study(classes, subject="nowhere")
    with pytest.raises(ConfigError, match=r"got 'stim_inf'.*All options: root, .*, subject"):
        load_study(classes, subject=person, stim_inf="x")
    with pytest.raises(ConfigError, match="an option of study 'algonauts'; got 'ood'"):
        load_study(person, ood=("drawings",))
    with pytest.raises(ConfigError, match=r"pass root=\.\.\."):
        load_study("kamitani")
    with pytest.raises(ConfigError, match="'folder', which is taken"):
        register_reader("folder", load_study)


def test_a_strangers_reader_is_found_by_layout_and_by_name(tmp_path, monkeypatch, person):
    def detect(path):
        return (path / "labels.json").is_file()

    def load(root, *, only=None):
        labels = json.loads((root / "labels.json").read_text())
        names = sorted(n for n in labels if only is None or labels[n] == only)
        kinds = tuple(sorted(set(labels.values())))
        images = from_files(
            "train",
            [root / n for n in names],
            names,
            [kinds.index(labels[n]) for n in names],
            kinds,
        )
        return Study("flat", "images with a table of labels", {"train": images})

    monkeypatch.setattr(module, "READERS", dict(module.READERS))
    register_reader("flat", load, detect)
    root = tmp_path / "flat"
    names = [write(root / f"{i}.png", i).name for i in range(4)]
    (root / "labels.json").write_text(json.dumps(dict(zip(names, ("cat", "dog") * 2))))
    study = load_study(root, subject=person)
    assert study.name == "flat" and study.class_names == ("cat", "dog")
    assert study.subject().name == "own01"
    assert len(load_study("flat", root=root, only="cat").set("train")) == 2
    with pytest.raises(ConfigError, match="did you mean 'only'"):
        load_study(root, onli="cat")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Register a reader whose two sets are the images of two folders, and return its root."""

    def read(folder):
        paths = sorted(folder.iterdir())
        ids = [f"{folder.name}/{p.name}" for p in paths]
        return from_files(folder.name, paths, ids, [0] * len(ids), ("thing",))

    def load(root, *, verify=True):
        sets = {name: read(root / name) for name in ("train", "test")}
        return Study("toy", "two folders of images", sets)

    monkeypatch.setattr(module, "READERS", dict(module.READERS))
    register_reader("toy", load, lambda path: (path / "toy.txt").is_file(), layout="toy.txt")
    for k, name in enumerate(("train", "test")):
        for i in range(3):
            write(tmp_path / "toy" / name / f"{i}.png", 10 * k + i)
    (tmp_path / "toy" / "toy.txt").write_text("")
    return tmp_path / "toy"


def test_the_sets_of_a_strangers_reader_are_checked_for_shared_images(toy):
    found = load_study(toy).extra["leakage"]
    assert found["sizes"] == {"train": 3, "test": 3} and found["by_image"] == 0
    (toy / "test" / "9.png").write_bytes((toy / "train" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"1 identical images in 'train' and 'test', e\.g\. .*9"):
        load_study(toy)
    assert "leakage" not in load_study(toy, verify=False).extra


def test_the_error_for_a_foreign_layout_names_the_layouts_of_all_readers(toy, classes):
    with pytest.raises(DataError, match="no layout that a reader detects") as caught:
        load_study("planted", subject=classes, **SIZES)
    remedy = str(caught.value).split("To fix it: ")[1]
    found = [r for r in module.READERS.values() if r.detect is not None and not r.general]
    assert {r.name for r in found} >= {"algonauts", "nsd", "kamitani", "toy"}
    assert all(f"{r.name} ({r.layout})" in remedy for r in found) and "toy (toy.txt)" in remedy


def test_an_empty_name_is_not_the_working_folder():
    for name in ("", " "):
        with pytest.raises(ConfigError, match="the name of a study or an existing folder"):
            load_study(name)

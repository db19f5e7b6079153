"""Tar shards: the same study as from files, readable by any WebDataset reader, and made in parts."""

import dataclasses
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
from PIL import Image

from bmfl_lab.data import load_study
from bmfl_lab.data.__main__ import main
from bmfl_lab.data.images import decode_bytes
from bmfl_lab.data.shards import write_shards
from bmfl_lab.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of images in classes: JPEG, and a PNG."""
    root = tmp_path_factory.mktemp("images")
    for i in range(24):
        place = root / ("train", "val", "test", "drawings")[i % 4] / f"class{i // 4 % 2}"
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{i}.{'png' if i == 4 else 'JPEG'}")
    return root


@pytest.fixture(scope="module")
def study(folder):
    return load_study(folder)


@pytest.fixture
def shards(study, tmp_path):
    write_shards(study, tmp_path / "shards", per_shard=4)
    return tmp_path / "shards"


def test_a_study_of_shards_is_the_study_of_the_files(folder, study, tmp_path, capsys):
    out = str(tmp_path / "shards")
    assert main(["shards", str(folder), out, "--per-shard", "4"]) == 0
    assert "written 8, kept 0, broken 0" in capsys.readouterr().out
    again = load_study(out, verify=True)
    assert again.fingerprint() == study.fingerprint() and again.ood == ("drawings",)
    assert again.class_names == study.class_names and again.backbone == study.backbone
    for name, stimuli in study.sets.items():
        found = again.set(name)
        assert found.ids.tolist() == stimuli.ids.tolist()
        assert found.labels.tolist() == stimuli.labels.tolist()
        for i in reversed(range(len(stimuli))):
            np.testing.assert_array_equal(found.image(i), stimuli.image(i))
    part = again.set("train").subset([5, 0])
    np.testing.assert_array_equal(part.image(0), study.set("train").image(5))


def test_any_reader_of_webdataset_can_read_them(study, shards):
    pairs = []
    for tar in sorted(shards.glob("train-*.tar")):
        with tarfile.open(tar) as archive:
            members = archive.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, ending = image.name.split(".", 1)
                assert label.name == f"{key}.cls" and ending in ("jpg", "png")
                pixels = decode_bytes(archive.extractfile(image).read())
                pairs.append((key, pixels, int(archive.extractfile(label).read())))
    train = study.set("train")
    assert [key for key, *_ in pairs] == [f"{i:09d}" for i in range(len(train))]
    for i, (_, pixels, label) in enumerate(pairs):
        np.testing.assert_array_equal(pixels, train.image(i))
        assert label == train.labels[i]


def test_smaller_copies(study, tmp_path):
    write_shards(study, tmp_path, size=12)
    image = load_study(tmp_path).set("test").image(0)
    assert image.shape == (12, 16, 3)
    with pytest.raises(DataError, match=r"with these settings.*choose an empty folder"):
        write_shards(study, tmp_path, size=14)


def test_generated_images_and_broken_ones(study, tmp_path):
    base = study.set("train")

    def read(i):
        if i == 2:
            raise DataError("damaged")
        return base.read(i)

    train = dataclasses.replace(base, read=read, paths=None)
    with pytest.raises(DataError, match="damaged"):
        write_shards(dataclasses.replace(study, sets={"train": train}, ood=()), tmp_path / "a")
    train = dataclasses.replace(train, skip_broken=True)
    few = dataclasses.replace(study, sets={"train": train}, ood=())
    assert write_shards(few, tmp_path / "b")["broken"] == 1
    assert write_shards(few, tmp_path / "b") == {"written": 0, "kept": 1, "broken": 1}
    found = load_study(tmp_path / "b")
    assert found.left_out() == {"train": {"broken": 1}} and len(found.set("train")) == 5
    np.testing.assert_array_equal(found.set("train").image(2), base.image(3))


def test_a_maker_that_was_killed_goes_on(study, tmp_path):
    base = study.set("train")

    def read(i):
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return base.read(i)

    child = os.fork()
    if not child:
        dying = dataclasses.replace(base, read=read, paths=None)
        write_shards(
            dataclasses.replace(study, sets={"train": dying}, ood=()), tmp_path, per_shard=2
        )
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))
    with pytest.raises(DataError, match=r"train-00000[12]\.json"):
        load_study(tmp_path)
    whole = dataclasses.replace(base, paths=None)
    few = dataclasses.replace(study, sets={"train": whole}, ood=())
    counts = write_shards(few, tmp_path, per_shard=2)
    assert counts["kept"] == 2 and counts["written"] == 1
    assert not list(tmp_path.glob(".*.tmp"))
    assert load_study(tmp_path).set("train").ids.tolist() == base.ids.tolist()


def test_damage_is_named_and_mended(study, shards):
    tar = shards / "train-000001.tar"
    whole, index = tar.read_bytes(), tar.with_suffix(".json").read_bytes()
    tar.write_bytes(whole[:-700])
    with pytest.raises(DataError, match=r"bytes in .*train-000001\.tar.*cut off.*To fix it: copy"):
        load_study(shards)
    assert write_shards(study, shards, per_shard=4) == {"written": 1, "kept": 7, "broken": 0}
    assert tar.read_bytes() == whole and tar.with_suffix(".json").read_bytes() == index
    shutil.copy(shards / "train-000000.json", tar.with_suffix(".json"))
    with pytest.raises(DataError, match=r"index of train-000001\.tar.*that of train-000000\.tar"):
        load_study(shards)
    write_shards(study, shards, per_shard=4)
    flipped = bytearray(whole)
    flipped[700] ^= 1
    tar.write_bytes(flipped)
    with pytest.raises(DataError, match=r"image 'train/.*' as it was written in .*000001\.tar"):
        load_study(shards).set("train").image(4)
    with pytest.raises(DataError, match=r"000001\.tar as it was written; got another checksum"):
        load_study(shards, verify=True)
    tar.unlink()
    with pytest.raises(DataError, match="missing or cut off"):
        load_study(shards)

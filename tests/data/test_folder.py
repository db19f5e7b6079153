"""Reading studies from folders of images."""

import numpy as np
import pytest
from pictures import write
from PIL import Image

from bmfl_lab.data import load_study
from bmfl_lab.data.folder import load
from bmfl_lab.errors import ConfigError, DataError


def test_split_folders_are_read_with_labels_and_ids(root):
    study = load_study(root, ood=("drawings",), image_size=56)
    assert {k: len(v) for k, v in study.sets.items()} == {
        "train": 12,
        "val": 4,
        "test": 4,
        "drawings": 4,
    }
    assert (
        study.class_names == ("bird", "cat") and study.ood == ("drawings",) and not study.subjects
    )
    for stimuli in study.sets.values():
        for i, identifier in enumerate(stimuli.ids):
            assert f"/{study.class_names[stimuli.labels[i]]}/" in identifier
            assert np.array_equal(stimuli.image(i), np.asarray(Image.open(root / identifier)))


def test_class_folders_alone_are_split_by_seed(root):
    study, again, other = (load(root / "train", seed=s, val=0.2, test=0.2) for s in (1, 1, 2))
    found = [set(map(str, study.set(n).ids)) for n in ("train", "val", "test")]
    assert [len(f) for f in found] == [8, 2, 2] and len(set.union(*found)) == 12
    assert study.fingerprint() == again.fingerprint() != other.fingerprint()
    assert study.extra["split"]["seed"] == 1
    for name in ("train", "val", "test"):
        assert set(study.set(name).labels) == {0, 1}


def test_only_the_missing_part_is_split_off(root):
    import shutil

    test = load(root).set("test").fingerprint()
    shutil.rmtree(root / "val")
    study = load(root, val=0.34)
    assert study.set("test").fingerprint() == test
    assert len(study.set("val")) == 4 and len(study.set("train")) == 8


def test_class_lists_must_agree(root):
    (root / "test" / "cat").rename(root / "test" / "kat")
    with pytest.raises(DataError, match=r"1 missing \['cat'\], 1 unknown \['kat'\]"):
        load(root)


def test_fewer_classes_only_when_declared(root):
    (root / "drawings" / "cat").rename(root / "gone")
    with pytest.raises(DataError, match="pass partial=True"):
        load(root, ood=("drawings",))
    assert set(load(root, ood=("drawings",), partial=True).set("drawings").labels) == {0}


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + b"x" * 40]
)
def test_unreadable_images_are_refused_or_counted(root, content):
    bad = root / "train" / "cat" / "img_3.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"img_3\.png"):
        load(root)
    study = load(root, tolerant=True)
    assert (
        list(study.extra["skipped"]["train"]) == ["train/cat/img_3.png"]
        and len(study.set("train")) == 11
    )
    assert study.summary()["skipped"] == {
        "train": ["train/cat/img_3.png"]
    }  # what every record keeps of its study


def test_files_of_several_frames_are_counted(root, capsys):
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "green", "blue")]
    frames[0].save(
        root / "train" / "cat" / "img_3.png", format="GIF", save_all=True, append_images=frames[1:]
    )
    study = load(root)
    assert study.extra["first_frame_of"] == {"train": {"train/cat/img_3.png": 3}}
    assert "train: 1 of 12 files have several frames" in capsys.readouterr().out
    where = list(study.set("train").ids).index("train/cat/img_3.png")
    assert study.set("train").image(where)[0, 0].tolist() == [255, 0, 0]


def test_the_same_image_in_two_sets_is_refused(root):
    (root / "test" / "bird" / "copy.png").write_bytes(
        (root / "train" / "bird" / "img_0.png").read_bytes()
    )
    with pytest.raises(DataError, match="1 identical images in 'train' and 'test'"):
        load_study(root)


def test_copies_stay_together_when_splitting(root):
    for i in range(6):
        original = root / "train" / "bird" / f"img_{i}.png"
        (root / "train" / "bird" / f"copy_{i}.png").write_bytes(original.read_bytes())
    study = load(root / "train", val=0.2, test=0.2)
    assert sum(len(s) for s in study.sets.values()) == 18


def test_links_that_leave_the_folder_are_refused(root, tmp_path):
    write(tmp_path / "outside.png", 999)
    (root / "train" / "cat" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"a link to .*outside\.png"):
        load(root)
    assert len(load(root, follow_links=True).set("train")) == 13


def test_other_files_are_left_out_aloud_and_counted(root, capsys):
    (root / "train" / "cat" / "notes.txt").write_text("x")
    study = load(root)
    assert study.summary()["left_out"] == {"train": {".txt": 1}}
    assert capsys.readouterr().out.count("train: left out 1 .txt") == 1


def test_wrong_ood_names_are_refused(root):
    with pytest.raises(ConfigError, match="did you mean 'drawings'"):
        load(root, ood=("drawing",))
    with pytest.raises(ConfigError, match="'test', a split"):
        load(root, ood=("test",))
    with pytest.raises(ConfigError, match="move the class folders into train"):
        load(root / "train", ood=("drawings",))


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="put the images of each class into a folder"):
        load(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(
        DataError, match=r"images in each of the 1 class folders .* 1 missing \['cat'\]"
    ):
        load(tmp_path)

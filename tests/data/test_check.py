"""The check of a study says what is there, and refuses what a training would refuse."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from bmfl_lab.data.__main__ import main

CLASSES = ("dog", "horse")
STUDY = "mine.yaml"
SMALL = "study: folder\nroot: mine\nbackbone: vit_tiny14\nimage_size: 28\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for s, part in enumerate(("train", "val", "test", "sketch")):
        for c, label in enumerate(CLASSES):
            place = tmp_path / "mine" / part / label
            place.mkdir(parents=True)
            for i in range(3 + c * (part == "train")):
                noise = np.random.default_rng([s, c, i]).integers(0, 255, (20 + i, 30, 3), np.uint8)
                Image.fromarray(noise).save(place / f"{i}.png")
    (tmp_path / STUDY).write_text(SMALL)
    return tmp_path / "mine"


def said(capsys, *arguments, code=0):
    assert main(["check", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return out if not code else err


def test_what_is_there_is_said(folder, capsys):
    (folder / "train" / "dog" / "notes.txt").write_text("x")
    shutil.copy(folder / "train" / "dog" / "0.png", folder / "train" / "dog" / "copy.png")
    out = said(capsys, STUDY)
    assert "train: 8 images, 2 classes with 4 each; 30 x 20 to 30 x 23 px" in out
    assert "test: 6 images, 2 classes with 3 each; 30 x 20 to 30 x 22 px" in out
    assert "sketch (out of distribution): 6 images" in out
    assert out.count("train: left out 1 .txt") == 1
    assert out.count("train: 1 of 8 images are copies of others in it") == 1
    assert re.search(r"decoding all 26 images once takes about \d+\.\d s", out)
    counts = r"images per class +train +val +test +sketch\ndog +4 +3 +3 +3\nhorse +4 +3 +3 +3\n"
    assert re.search(counts, out)
    assert "backbone vit_tiny14 at 28 px: random weights" in out
    assert "stages of notebook 03 (an estimate): vit_tiny14 at 28 px, no subject" in out
    assert re.search(r"fusion training +8 images, +1 pass, +about \d+ s; .* 120 epochs", out)
    assert re.search(r"memory: about [\d.]+ GB of tokens and responses at a time", out)


@pytest.mark.parametrize(
    "line, said_of_it",
    [
        ("image_size: 30", "expected an image_size that is a positive multiple of 14; got 30"),
        ("backbone: vit_tny14", "expected a known backbone; got 'vit_tny14'"),
        ("weights: nowhere.pth", "nowhere.pth"),
    ],
)
def test_what_a_training_would_refuse_is_refused(line, said_of_it, folder, capsys):
    key = line.split(":")[0]
    kept = [each for each in SMALL.splitlines() if not each.startswith(key)]
    (folder.parent / STUDY).write_text("\n".join([*kept, line]))
    err = said(capsys, STUDY, code=2)
    assert err.startswith("error: ") and said_of_it in err
    assert not list(folder.parent.glob("*.png"))


def test_images_of_two_sets_that_look_alike_are_warned_of(folder, capsys):
    assert "warning" not in said(capsys, STUDY)
    blurred = np.random.default_rng(1).integers(0, 255, (9, 9, 3), np.uint8)
    source = Image.fromarray(blurred).resize((60, 42), Image.Resampling.BICUBIC)
    source.save(folder / "train" / "dog" / "1.png")
    source.resize((90, 63)).save(folder / "test" / "dog" / "larger.jpg", quality=90)
    mirrored = source.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(folder / "sketch" / "horse" / "flipped.png")
    out = said(capsys, STUDY)
    for part, name in (("test", "dog/larger.jpg"), ("sketch", "horse/flipped.png")):
        assert f"1 images of 'train' look like images of {part!r}" in out and name in out
    assert out.count("warning") == 3  # the two copies look like each other, too


def test_an_image_saved_in_another_format_is_the_same_image(folder, capsys):
    Image.open(folder / "train" / "dog" / "1.png").save(folder / "test" / "dog" / "new.bmp")
    err = said(capsys, STUDY, code=2)
    assert "1 identical images in 'train' and 'test'" in err and "dog/new.bmp" in err


def test_the_contact_sheet_shows_the_images_themselves(folder, capsys):
    assert "mine_check.png" in said(capsys, STUDY)
    for part in ("train", "sketch"):
        for label in CLASSES:
            file = folder / part / label / "0.png"
            Image.new("RGB", (32, 32), "red" if label == "dog" else "blue").save(file)
    for i in (1, 2, 3):
        for label in CLASSES:
            (folder / "sketch" / label / f"{i}.png").unlink(missing_ok=True)
    shutil.rmtree(folder / "train")
    shutil.copytree(folder / "val", folder / "train")
    for k, file in enumerate(sorted((folder / "train").rglob("*.png"))):
        Image.new("RGB", (9, 9), (0, 200, k)).save(file)
    said(capsys, STUDY, "--sheet", "sheet.png")
    changed = np.asarray(Image.open("sheet.png").convert("RGB")).astype(int)
    for colour in ((255, 0, 0), (0, 0, 255), (0, 200, 0)):
        assert (changed == colour).all(2).sum() >= 90 * 90, colour


def test_a_broken_image_and_a_missing_class_are_refused(folder, capsys):
    (folder / "test" / "horse" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found = said(capsys, STUDY, code=2)
    assert "1.png" in found and "replace or remove the file" in found
    for file in (folder / "test" / "horse").iterdir():
        file.unlink()
    assert "horse" in said(capsys, STUDY, code=2)


@pytest.mark.parametrize("bad", ["nothing_here", "study.yaml"])
def test_a_study_that_cannot_be_loaded_is_one_sentence(bad, folder, capsys):
    (folder.parent / "study.yaml").write_text("study: folder\nrooot: mine\n")
    assert said(capsys, bad, code=2).startswith("error: expected")

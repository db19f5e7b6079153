"""What counts as an image, as a class, as hidden and as a match is one rule for all readers."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.data import modelvshuman, ood_sets
from bmfl_lab.data.class_folders import is_hidden, read_by_stem, read_class_folders
from bmfl_lab.data.imagenet import read_imagenet_train, read_imagenet_val
from bmfl_lab.data.prepare import prepare_images
from bmfl_lab.errors import ConfigError, DataError

WNIDS = ["n01440764", "n01443537", "n01484850"]


def write(path, value, form=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=form)
    return path


def fill(root, splits=("",), classes=("cat", "dog"), n=12, start=0):
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            for i in range(n):
                write(root / split / name / f"{i}.png", start + 100 * s + 10 * c + i)
    return root


SYSTEM = [
    *("__macosx", "@EaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"),
    *("lost+found", "__pycache__", ".ipynb_checkpoints", ".git", ".Trash-1000", "~$tmp"),
    *("#snapshot", "Network Trash Folder", "RECYCLED", ".AppleDouble", "@Recently-Snapshot"),
]


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("where", ["", "train"])
def test_folders_of_systems_are_no_classes_and_are_counted_aloud(tmp_path, capsys, name, where):
    root = fill(tmp_path / "s", ("train", "val", "test") if where else ("",))
    write(root / where / name / "cat.png", 999)
    study = load_study(root)
    kind = "hidden" if name.startswith((".", "~")) else name
    assert study.class_names == ("cat", "dog")
    assert sum(map(len, study.sets.values())) == (72 if where else 24)
    assert study.summary()["left_out"] == {"train": {kind: 1}}
    assert capsys.readouterr().out.count(f"train: left out 1 {kind}, which are no images") == 1


@pytest.mark.parametrize(
    "name", ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "ehthumbs.db"]
)
def test_files_of_systems_are_no_images(tmp_path, name):
    root = fill(tmp_path / "s")
    (root / "cat" / name).write_bytes(b"\0\5\x16\7")
    assert is_hidden(name) and not is_hidden("a" + name.lstrip("._"))
    assert sum(map(len, load_study(root).sets.values())) == 24
    assert list(read_class_folders("x", root, ["cat", "dog"]).left_out.values()) == [1]


SUFFIXES = {
    **{".jpe": "JPEG", ".JPG": "JPEG", ".Jpeg": "JPEG", ".PNG": "PNG", ".BMP": "BMP"},
    **{".TIFF": "TIFF", ".Tif": "TIFF", ".GIF": "GIF", ".webp": "WEBP", ".ppm": "PPM"},
    **{".pnm": "PPM", ".jfif": "JPEG"},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_a_readable_format_counts(tmp_path, suffix):
    root = fill(tmp_path / "s", classes=("cat",), n=8)
    for i in range(8):
        write(root / "dog" / f"{i}{suffix}", 50 + i, SUFFIXES[suffix])
    study = load_study(root)
    assert study.class_names == ("cat", "dog") and "left_out" not in study.summary()
    assert sum(map(len, study.sets.values())) == 16
    for images in study.sets.values():
        assert all(images.image(i).shape == (12, 12, 3) for i in range(len(images)))


OTHERS = {
    "boxes": {"a.xml": b"<annotation/>"},
    "training_fmri": {"lh.npy": b"x", "rh.npy": b"x"},
    "masks_json": {"masks.json": b"{}"},
    "videos": {"a.mp4": b"x"},
    "raw": {"a.cr2": b"x", "b.dng": b"x"},
    "deeper": {"inside/a.png": b"x"},
    "archives": {"cat.zip": b"PK"},
    "empty": {},
    "only_hidden": {".a.png": b"x", "Thumbs.db": b"x"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_without_images_is_refused_by_its_name(tmp_path, name):
    root = fill(tmp_path / "s")
    (root / name).mkdir()
    for file, content in OTHERS[name].items():
        (root / name / file).parent.mkdir(exist_ok=True)
        (root / name / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"1 missing \['{name}'\].*remove other folders"):
        load_study(root)
    for file in sorted((root / name).rglob("*"), reverse=True):  # what the message advises
        file.rmdir() if file.is_dir() else file.unlink()
    (root / name).rmdir()
    assert load_study(root).class_names == ("cat", "dog")


READERS = {
    "training images": lambda root: load_study(root),
    "ImageNet, train": lambda root: read_imagenet_train(root / "train"),
    "ImageNet, val": lambda root: read_imagenet_val(root / "val", WNIDS),
    "Sketch": lambda root: ood_sets.read_ood_set("imagenet-sketch", root / "val", WNIDS),
    "Stylized": lambda root: ood_sets.read_ood_set("stylized-imagenet", root / "val", WNIDS),
    "ImageNet-C": lambda root: ood_sets.read_imagenet_c(root, "fog", 3, WNIDS),
    "domains": lambda root: ood_sets.read_domains(root / "domains"),
    "ImageNet as a study": lambda root: load_study("imagenet", root=root, val_per_class=1),
    "with declared classes": lambda root: read_class_folders("x", root / "val", WNIDS),
}


@pytest.mark.parametrize("how", ["empty", "gone", "only other files"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_a_class_without_images(tmp_path, reader, how):
    places = ("train", "val", "test", "fog/3", "domains/a", "domains/b")
    root = tmp_path / "i"
    for k, place in enumerate(places):
        fill(root / place, classes=WNIDS, n=6, start=1000 * k)
    if reader == "training images":  # the other places are no splits
        import shutil

        shutil.rmtree(root / "fog"), shutil.rmtree(root / "domains")
    READERS[reader](root)
    for place in places:
        folder = root / place / WNIDS[1]
        if not folder.is_dir() or (how == "gone" and place in ("train", "domains/a")):
            continue
        for path in folder.iterdir():
            path.unlink()
        if how == "gone":
            folder.rmdir()
        elif how == "only other files":
            (folder / "0.png.crdownload").write_bytes(b"x")
    if how == "gone" and reader == "ImageNet, train":
        return  # its folders are its classes
    with pytest.raises(DataError, match=rf"1 missing \['{WNIDS[1]}'\]"):
        READERS[reader](root)


@pytest.mark.parametrize(
    "names",
    [
        *(("Train", "val", "test"), ("TRAIN", "VAL", "TEST"), ("train", "valid", "test")),
        *(("training", "validation", "testing"), ("Training", "Valid", "Test")),
        *(("train", "Validation", "test"), ("Train", "VALID", "Testing"), ("train", "Val", "TEST")),
    ],
)
def test_splits_are_known_under_their_usual_names(tmp_path, names):
    root = fill(tmp_path / "s", names, n=3)
    study = load_study(root)
    assert study.class_names == ("cat", "dog")
    assert {k: len(v) for k, v in study.sets.items()} == dict.fromkeys(("train", "val", "test"), 6)
    assert all(str(i).startswith(names[1] + "/") for i in study.set("val").ids)
    with pytest.raises(ConfigError, match=f"'{names[1]}', a split"):
        load_study(root, ood=[names[1]])
    fill(root, ("validAtion",), n=1, start=900)
    with pytest.raises(DataError, match=r"one folder of val images .* remove or rename one"):
        load_study(root)


def test_a_class_may_be_called_train(tmp_path):
    study = load_study(fill(tmp_path / "s", classes=("plane", "test", "train")))
    assert study.class_names == ("plane", "test", "train")


ACCENTS = ["café", "naïve", "Ångström", "éclair", "jalapeño", "crème brûlée", "Škoda", "수달"]


@pytest.mark.parametrize("name", ACCENTS)
def test_accents_of_macos_and_linux_are_the_same_name(tmp_path, name):
    composed, apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert composed != apart
    fill(tmp_path / "s", ("train",), classes=("0", composed), n=6)
    fill(tmp_path / "s", ("val", "test"), classes=("0", apart), n=6, start=500)
    study = load_study(tmp_path / "s")
    assert study.class_names == ("0", composed)
    assert study.set("val").labels.tolist() == [0] * 6 + [1] * 6
    write(tmp_path / "images" / f"{apart}.png", 1)
    assert read_by_stem("x", [composed], tmp_path / "images").ids.tolist() == [composed]


BESIDE = {
    "boxes": ("a.xml", b"<annotation/>"),
    "a caption": ("a.txt", b"a cat"),
    "a sidecar": ("a.JSON", b"{}"),
    "a mask": ("a.npy", b"\x93NUMPY"),
    "a half download": ("a.png.part", b"x"),
    "the resource fork": ("._a.png", b"\0\5\x16\7"),
    "an embedding": ("deep/a.pt", b"x"),
    "a copy in the bin": ("__MACOSX/a.png", b"x"),
    "a thumbnail": ("@eaDir/a.png", b"x"),
    "no suffix": ("a", b"x"),
    "a table": ("a.csv", b"x"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_only_an_image_belongs_to_a_stem(tmp_path, capsys, case):
    picture = write(tmp_path / "images" / "sub" / "a.png", 1)
    name, content = BESIDE[case]
    (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "images" / name).write_bytes(content)
    found = read_by_stem("shown", ["a"], tmp_path / "images")
    assert found.paths == (str(picture),) and found.image(0).shape == (12, 12, 3)
    assert sum(found.left_out.values()) == 1 and "shown: left out 1" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["a.jpg", "deep/a.png", "A/a.PNG", "z/a.tif"])
def test_two_images_of_one_stem_are_refused(tmp_path, other):
    write(tmp_path / "images" / "b" / "a.png", 1)
    second = write(tmp_path / "images" / other, 2)
    with pytest.raises(DataError, match=r"one image named 'a' .*; got .* and .*remove all but one"):
        read_by_stem("shown", ["a"], tmp_path / "images")
    second.unlink()
    assert len(read_by_stem("shown", ["a"], tmp_path / "images")) == 1


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff.png", b"na\xefve.jpg", b"\xc3.png"])
def test_names_that_are_not_utf8_are_told(tmp_path, name):
    root = fill(tmp_path / "s")
    os.rename(root / "cat" / "0.png", os.fsencode(root / "cat") + b"/" + name)
    with pytest.raises(DataError, match=r"file names in UTF-8 .*rename them") as caught:
        load_study(root)
    assert str(caught.value).isprintable()


def test_other_readers_use_the_same_rule(tmp_path):
    write(tmp_path / "m" / "cat" / "0.tif", 1)
    (tmp_path / "m" / "cat" / "._0.png").write_bytes(b"x")
    (tmp_path / "m" / "readme.md").write_text("x")
    found = modelvshuman.read_images(tmp_path / "m", "sketch")
    assert found.ids.tolist() == ["cat/0.tif"] and found.left_out == {".md": 1, "hidden": 1}
    counts = prepare_images(tmp_path / "m", tmp_path / "small")
    assert counts == {"written": 1, "kept": 0, "failed": 0}

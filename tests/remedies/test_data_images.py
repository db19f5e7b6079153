"""The remedies of `bmfl_lab.data` about image files, class folders, image sets and shards, each followed."""

import hashlib
import io
import os
import re
import shlex
import shutil
import zipfile

import numpy as np
from following import follows
from pictures import write
from PIL import Image, PngImagePlugin
from scipy.io import savemat

from bmfl_lab import load_study
from bmfl_lab.data import Study, demo, folder, images, modelvshuman
from bmfl_lab.data.check import check_study
from bmfl_lab.data.class_folders import (
    head_columns,
    read_by_stem,
    read_class_folders,
    read_wnids,
    scan,
)
from bmfl_lab.data.imagenet import read_devkit, read_imagenet_val
from bmfl_lab.data.images import count_frames, decode_bytes, decode_image
from bmfl_lab.data.ood_sets import (
    check_indices,
    group_columns,
    read_domains,
    read_imagenet_c,
)
from bmfl_lab.data.prepare import prepare_images
from bmfl_lab.data.shards import write_shards
from bmfl_lab.data.stimuli import from_arrays

CLASSES = ("bird", "cat")
WNIDS = tuple(f"n{1440764 + 97 * i:08d}" for i in range(1000))
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)


def class_images(root, sets=("train", "val", "test"), n=1, start=0):
    """Write `n` images per class in each set of a study of class folders."""
    for k, name in enumerate(sets):
        for j, label in enumerate(CLASSES):
            for i in range(n):
                write(root / name / label / f"{i}.png", start + 100 * k + 10 * j + i)
    return root


def image_set(name, rows):
    """Return some of the pictures in memory, of the two classes in turn."""
    labels = np.asarray(rows) % 2
    return from_arrays(name, PIXELS[rows], [f"{name}-{r}" for r in rows], labels, CLASSES)


# --- one image ---


@follows(
    ("data/images.py", "make the image smaller, or remove the file"),
    ("data/images.py", "make the image smaller, or remove the file"),
    ("data/images.py", "download or copy it again"),
    ("data/images.py", "download or copy it again"),
)
def test_an_image_that_is_too_large_or_empty(tmp, env):
    path = tmp / "a.png"
    write(path, 0)
    env.setattr(images, "MAX_BYTES", 1000)
    yield lambda: decode_image(path)
    with Image.open(path) as picture:
        smaller = picture.resize((9, 9))
    smaller.save(path)
    decode_image(path)
    whole = [path.read_bytes()]
    yield lambda: decode_bytes(whole[-1], max_pixels=50)
    smaller.resize((7, 7)).save(path)
    whole.append(path.read_bytes())
    decode_bytes(whole[-1], max_pixels=50)
    whole.append(b"")
    yield lambda: decode_bytes(whole[-1])
    whole.append(path.read_bytes())
    path.write_bytes(b"<html>")
    yield lambda: count_frames(path)
    path.write_bytes(whole[-1])


@follows(
    (
        "data/images.py",
        "convert the image to 8 bits, and choose which values become black and white",
    )
)
def test_an_image_of_32_bits(tmp, env):
    path, values = tmp / "a.tif", np.linspace(-5, 5, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(path)
    yield lambda: decode_image(path)
    grey = np.rint(255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)
    Image.fromarray(grey).save(path)


def unpack(path):
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        path.unlink()
        archive.extractall(path.parent)


def convert(path):
    with Image.open(path) as picture:
        picture.save(path.with_suffix(".png"))


def strip(path):
    """Keep of a PNG only what its pixels need."""
    data, kept, place = path.read_bytes(), b"", 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in (b"IHDR", b"IDAT", b"IEND"):
            kept += data[place:end]
        place = end
    path.write_bytes(data[:8] + kept)


def encoded(form, **options):
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, form, **options)
    return stream.getvalue()


def archive_of_an_image():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("1.png", encoded("PNG"))
    return stream.getvalue()


def lfs_pointer():
    content = encoded("PNG")
    digest = hashlib.sha256(content).hexdigest()
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{digest}")
    return "\n".join([*lines, f"size {len(content)}\n"]).encode()


def annex_pointer():
    content = encoded("PNG")
    digest = hashlib.sha256(content).hexdigest()
    return f"/annex/objects/SHA256E-s{len(content)}--{digest}.png\n".encode()


def pull(path):
    """Replace a pointer by the content that it names, as git-lfs and git-annex do."""
    content = encoded("PNG")
    assert hashlib.sha256(content).hexdigest() in path.read_text()
    path.write_bytes(content)


def array_file():
    stream = io.BytesIO()
    np.save(stream, PIXELS)
    return stream.getvalue()


def image_with_a_long_text():
    about = PngImagePlugin.PngInfo()
    about.add_itxt("x", "A" * (3 << 20), zip=True)
    return encoded("PNG", pnginfo=about)


def download(path):
    path.write_bytes(encoded("PNG"))


@follows(
    ("data/images.py", "download or copy it again"),
    ("data/images.py", "unpack and remove it"),
    ("data/images.py", "convert it to PNG or JPEG"),
    ("data/images.py", "move it out of the folder of images"),
    (
        "data/images.py",
        "save it without its text and colour profile, for example: mogrify -strip FILE",
    ),
    ("data/images.py", "replace or remove the file"),
    ("data/images.py", "run 'git lfs pull' at its source"),
    ("data/images.py", "run 'git annex get' at its source"),
)
def test_files_among_images_that_are_none(folder, env):
    class_images(folder)
    path = folder / "train" / "cat" / "1.png"
    for content, follow in (
        (lambda: b"<!DOCTYPE html>", download),
        (archive_of_an_image, unpack),
        (lambda: encoded("JPEG2000"), convert),
        (array_file, lambda path: path.rename(path.parents[1] / "array.npy")),
        (image_with_a_long_text, strip),
        (lambda: b"notes", lambda path: path.unlink()),
        (lfs_pointer, pull),
        (annex_pointer, pull),
    ):
        path.write_bytes(content())
        yield lambda: load_study(folder)
        follow(path)
        assert len(load_study(folder).set("train")) in (2, 3)
        for left in (folder / "train").rglob("1.*"):
            left.unlink()


# --- class folders ---


@follows(
    ("data/class_folders.py", "check the path"),
    (
        "data/class_folders.py",
        "rename them, for example with: convmv -r -f latin1 -t utf8 --notest {}",
    ),
)
def test_a_folder_that_is_missing_or_of_another_encoding(tmp, env):
    class_images(tmp, ["train"])
    places = [tmp / "trian"]
    yield lambda: read_class_folders("train", places[-1])
    places.append(tmp / "train")
    read_class_folders("train", places[-1])
    os.rename(tmp / "train" / "cat", os.fsencode(tmp / "train") + "/k\xe4tzchen".encode("latin1"))
    remedy = yield lambda: scan(places[-1], {})
    options = shlex.split(remedy.partition("convmv ")[2])
    old, new = (options[options.index(o) + 1] for o in ("-f", "-t"))
    for name in os.listdir(os.fsencode(options[-1])):
        renamed = name.decode(old).encode(new)
        os.rename(os.fsencode(options[-1]) + b"/" + name, os.fsencode(options[-1]) + b"/" + renamed)


@follows(
    ("data/class_folders.py", "remove all but one"),
    (
        "data/class_folders.py",
        "add images ({}) of these names to the folder, or give the right folder",
    ),
)
def test_images_by_name(tmp, env):
    ids = ["a", "b"]
    for name in ("a.png", "a.jpg"):
        write(tmp / name, 0)
    yield lambda: read_by_stem("own", ids[:1], tmp)
    (tmp / "a.jpg").unlink()
    read_by_stem("own", ids[:1], tmp)
    remedy = yield lambda: read_by_stem("own", ids, tmp)
    suffixes = re.search(r"\((.*)\)", remedy)[1].split(", ")
    write(tmp / f"b{suffixes[-1]}", 1)


@follows(
    ("data/class_folders.py", "save it as UTF-8"),
    ("data/class_folders.py", "give the ImageNet folder or a list of wnids"),
    ("data/class_folders.py", "give the wnids of the head in its own order"),
)
def test_lists_of_wnids(tmp, env):
    path, text = tmp / "wnids.txt", f"{WNIDS[1]} café\n{WNIDS[0]} fish\n"
    path.write_bytes(text.encode("latin1"))
    yield lambda: read_wnids(path)
    path.write_text(text, encoding="utf-8")
    read_wnids(path)
    given = [["bird", "cat"]]
    yield lambda: read_wnids(given[-1])
    given.append(list(WNIDS[:2]))
    head = [("cat", "bird")]
    yield lambda: head_columns(WNIDS[:2], head[-1])
    head.append(WNIDS[1::-1])


# --- studies of class folders ---


@follows(
    (
        "data/folder.py",
        "put the images of each class into a folder of its name in every set; remove other "
        "folders. Of a data set of brain responses give the folder of a subject, not one inside it",
    ),
    ("data/folder.py", "remove or rename one of them"),
    ("data/folder.py", "leave it out of ood"),
)
def test_folders_of_sets(tmp, env):
    class_images(tmp)
    (tmp / "val" / "cat").rename(tmp / "val" / "dog")
    options = {}
    yield lambda: load_study(tmp, **options)
    (tmp / "val" / "cat").mkdir()
    shutil.move(tmp / "val" / "dog" / "0.png", tmp / "val" / "cat")
    (tmp / "val" / "dog").rmdir()
    load_study(tmp, **options)
    (tmp / "validation").mkdir()
    yield lambda: load_study(tmp, **options)
    (tmp / "validation").rmdir()
    options["ood"] = ["test"]
    yield lambda: load_study(tmp, **options)
    options["ood"].remove("test")


@follows(
    (
        "data/folder.py",
        "add the folder of another class, or give the folder that holds those of the classes, or, "
        "for brain responses, that of a subject",
    ),
    ("data/folder.py", "move the class folders into train/"),
)
def test_class_folders_at_another_place(tmp, env):
    class_images(tmp / "own", ["all"], n=3)
    for i in range(3):
        write(tmp / "single" / "cat" / f"{i}.png", i)
    options, places = {"val": 0.4, "test": 0.4}, [tmp / "single"]
    yield lambda: folder.load(places[-1], **options)
    shutil.copytree(tmp / "own" / "all" / "bird", tmp / "single" / "bird")
    folder.load(places[-1], **options)
    places.append(tmp / "own" / "all")
    folder.load(places[-1], **options)
    class_images(tmp / "own", ["drawings"], n=1, start=1000)
    for label in CLASSES:
        shutil.move(tmp / "own" / "all" / label, tmp / "own")
    places.append(tmp / "own")
    options["ood"] = ["drawings"]
    remedy = yield lambda: folder.load(places[-1], **options)
    target = places[-1] / re.search(r"into (\w+)/", remedy)[1]
    target.mkdir()
    for label in CLASSES:
        shutil.move(places[-1] / label, target)


@follows(
    ("data/folder.py", "add images or a folder {}/, or pass a larger {}=..."),
    ("data/folder.py", "add images or a folder {}/, or pass a larger {}=..."),
    ("data/folder.py", "replace the images that cannot be read"),
)
def test_too_few_images_that_can_be_read(tmp, env):
    class_images(tmp, ["train", "test"], n=3)
    options = {"tolerant": True}
    remedy = yield lambda: load_study(tmp, **options)
    options[re.search(r"larger (\w+)=", remedy)[1]] = 0.4
    load_study(tmp, **options)
    del options["val"]
    remedy = yield lambda: load_study(tmp, **options)
    class_images(tmp, [re.search(r"a folder (\w+)/", remedy)[1]], start=1000)
    load_study(tmp, **options)
    (tmp / "val" / "cat" / "0.png").write_bytes(b"cut off")
    yield lambda: load_study(tmp, **options)
    write(tmp / "val" / "cat" / "0.png", 2000)


@follows(
    ("data/check.py", "mend or remove these files"),
    ("data/check.py", "remove them from one of the two"),
    ("data/check.py", "add images of these classes, or take them out of 'train'"),
)
def test_a_check_of_a_study(tmp, env):
    class_images(tmp, n=2)
    (tmp / "test" / "cat" / "2.png").write_bytes(b"cut off")
    yield lambda: check_study(load_study(tmp, verify=False))
    (tmp / "test" / "cat" / "2.png").unlink()
    check_study(load_study(tmp, verify=False))
    rows = {"train": [0, 1, 2, 3], "test": [2, 4, 5]}
    yield lambda: check_study(Study("own", "own", {k: image_set(k, r) for k, r in rows.items()}))
    rows["test"].remove(2)
    check_study(Study("own", "own", {k: image_set(k, r) for k, r in rows.items()}))
    rows["test"].remove(5)
    yield lambda: check_study(Study("own", "own", {k: image_set(k, r) for k, r in rows.items()}))
    rows["test"].append(7)


@follows(("data/demo.py", "ask for fewer photographs"))
def test_more_photographs_than_there_are(tmp, env):
    rows = {
        name: (30 * k, 30 * k + 30) for k, name in enumerate(("encoder", "train", "val", "test"))
    }
    pictures = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
    data = {"images": pictures, "labels": np.arange(120) % 10}
    env.setattr(demo, "load_cifar10", lambda: data)
    env.setattr(demo, "_ROWS", rows)
    sizes = dict.fromkeys(("n_encoder", "n_encoder_val", "n_encoder_test", "n_val", "n_test"), 10)
    sizes["n_train"] = 40
    yield lambda: demo.load(**sizes, subject=False, clipart=False)
    sizes["n_train"] = 30


# --- ImageNet and the sets made after it ---


@follows(
    ("data/imagenet.py", "pass root=..., or write a study file (see load_study)"),
    (
        "data/class_folders.py",
        "{}; pass partial=True for a declared subset of its classes",
    ),
    (
        "data/imagenet.py",
        "use e.g. val_per_class=10, and train_per_class=0 for all images",
    ),
    ("data/imagenet.py", "lower val_per_class or complete the folder"),
)
def test_imagenet_as_a_study(tmp, env):
    for i in range(11):
        write(tmp / "train" / WNIDS[0] / f"{i}.JPEG", i)
    write(tmp / "val" / WNIDS[0] / "0.JPEG", 100)
    options = {}
    remedy = yield lambda: load_study("imagenet", **options)
    options[re.search(r"pass (\w+)=", remedy)[1]] = tmp
    load_study("imagenet", **options)
    (tmp / "train" / WNIDS[1]).mkdir()
    remedy = yield lambda: load_study("imagenet", **options)
    options[re.search(r"pass (\w+)=True", remedy)[1]] = True
    load_study("imagenet", **options)
    options["train_per_class"] = -1
    remedy = yield lambda: load_study("imagenet", **options)
    options.update((name, int(n)) for name, n in re.findall(r"(\w+)=(\d+)", remedy))
    load_study("imagenet", **options)
    options["val_per_class"] = 11
    remedy = yield lambda: load_study("imagenet", **options)
    options[re.search(r"lower (\w+)", remedy)[1]] = 5


def devkit(folder, ids, wnids):
    """Write the two files of the development kit."""
    folder.mkdir(exist_ok=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, ids)))
    synsets = np.zeros(len(wnids), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    for row, (i, wnid) in zip(synsets, enumerate(wnids, 1)):
        row["ILSVRC2012_ID"], row["WNID"] = float(i), wnid
    savemat(folder / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    return folder


@follows(
    (
        "data/imagenet.py",
        "put Kaggle's {} beside the folder, or pass its path or the folder of the ILSVRC2012 "
        "devkit as devkit=..., or sort the images into class folders",
    ),
    ("data/imagenet.py", "download {} of Kaggle's ImageNet again"),
    ("data/imagenet.py", "pass partial=True for some of them"),
    (
        "data/imagenet.py",
        "remove the files of other names, or give the labels of these images as devkit=...",
    ),
    ("data/imagenet.py", "unpack the validation images there"),
)
def test_flat_validation_images_of_imagenet(tmp, env):
    write(tmp / "val" / "ILSVRC2012_val_00000001.JPEG", 1)
    options = {}
    lines = [f"ILSVRC2012_val_{i:08d},{WNIDS[0]} 1 1 9 9" for i in (1, 2)]
    remedy = yield lambda: read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    table = tmp / re.search(r"Kaggle's (\S+)", remedy)[1]
    table.write_text("\n".join(["ImageId,PredictionString", lines[0]]))
    read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    right = table.read_text()
    table.write_text(right.replace(WNIDS[0], "fish"))
    remedy = yield lambda: read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    assert table.name in remedy
    table.write_text(right)
    read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    table.write_text("\n".join([right, lines[1]]))
    remedy = yield lambda: read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    options[re.search(r"pass (\w+)=True", remedy)[1]] = True
    read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    write(tmp / "val" / "holiday.JPEG", 2)
    yield lambda: read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    (tmp / "val" / "holiday.JPEG").unlink()
    read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    (tmp / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    yield lambda: read_imagenet_val(tmp / "val", WNIDS[:1], **options)
    write(tmp / "val" / "ILSVRC2012_val_00000001.JPEG", 1)


@follows(
    ("data/imagenet.py", "unpack the devkit there"),
    ("data/imagenet.py", "unpack both files of one devkit again"),
    ("data/imagenet.py", "unpack both files of one devkit again"),
)
def test_the_devkit_of_imagenet(tmp, env):
    yield lambda: read_devkit(tmp / "kit")
    devkit(tmp / "kit", [2, 1], WNIDS[:2])
    read_devkit(tmp / "kit")
    devkit(tmp / "kit", [2, 3], WNIDS[:2])
    yield lambda: read_devkit(tmp / "kit")
    devkit(tmp / "kit", [2, 3], WNIDS[:3])
    read_devkit(tmp / "kit")
    savemat(tmp / "kit" / "meta.mat", {"classes": np.arange(3)})
    yield lambda: read_devkit(tmp / "kit")
    devkit(tmp / "kit", [2, 3], WNIDS[:3])


def indices_of_imagenet_r():
    """Return 200 indices with the beginning and the sum that are published for ImageNet-R."""
    start, places = [1, 2, 4, 6, 8], np.arange(344, 539)
    places[-(86135 - sum(start) - places.sum()) :] += 1
    return [*start, *places]


@follows(
    (
        "data/ood_sets.py",
        "give all of them, or pass partial=True for a declared part of the classes",
    ),
    ("data/ood_sets.py", "give the folder of that set and the 1000 wnids of ImageNet"),
)
def test_the_classes_of_imagenet_r(tmp, env):
    known, found = [WNIDS[:200]], [[WNIDS[i] for i in indices_of_imagenet_r()]]
    yield lambda: check_indices("imagenet-r", found[-1], known[-1])
    known.append(WNIDS)
    check_indices("imagenet-r", found[-1], known[-1])
    found.append(WNIDS[:200])
    yield lambda: check_indices("imagenet-r", found[-1], known[-1])
    found.append(found[0])


@follows(
    ("data/ood_sets.py", "give the folder above them"),
    (
        "data/class_folders.py",
        "check that this folder is that set, complete it, and remove folders that are no classes",
    ),
    ("data/ood_sets.py", "unpack that archive of ImageNet-C, or leave it out of mCE"),
    ("data/ood_sets.py", "correct the table"),
)
def test_other_image_sets(tmp, env):
    class_images(tmp / "pacs", ["art", "photo"])
    places = [tmp / "pacs" / "art" / "bird"]
    yield lambda: read_domains(places[-1])
    while places[-1].name != "pacs":
        places.append(places[-1].parent)
    read_domains(places[-1])
    (tmp / "pacs" / "art" / "bird" / "0.png").rename(tmp / "bird.png")
    (tmp / "pacs" / "photo" / "notes").mkdir()
    yield lambda: read_domains(places[-1])
    (tmp / "bird.png").rename(tmp / "pacs" / "art" / "bird" / "0.png")
    (tmp / "pacs" / "photo" / "notes").rmdir()
    read_domains(places[-1])
    write(tmp / "weather" / "fog" / "2" / WNIDS[0] / "0.JPEG", 0)
    yield lambda: read_imagenet_c(tmp, "fog", 3, WNIDS[:1])
    write(tmp / "weather" / "fog" / "3" / WNIDS[0] / "0.JPEG", 0)
    read_imagenet_c(tmp, "fog", 3, WNIDS[:1])
    table = {"bird": WNIDS[:2], "cat": WNIDS[1:3]}
    yield lambda: group_columns(table, WNIDS)
    table["cat"] = WNIDS[2:3]


# --- model-vs-human ---

TRIAL = "subject-01,1,1,0.6,bird,bird,0,0001_ske_s01_0_bird_00_bird-0001-sketch-3.png\n"


@follows(
    ("data/modelvshuman.py", "give the folder of one set's raw data"),
    ("data/modelvshuman.py", "name the file SET_OBSERVER_session_NUMBER.csv"),
    ("data/modelvshuman.py", "keep the columns of the download"),
    ("data/modelvshuman.py", "correct the column category, or take the file out"),
    ("data/modelvshuman.py", "take the file out"),
)
def test_tables_of_trials(tmp, env):
    path = tmp / "sketch" / "sketch_subject-01_session_1.csv"
    path.parent.mkdir()
    path.write_text(",".join(modelvshuman.COLUMNS) + "\n" + TRIAL)
    places = [tmp]
    yield lambda: modelvshuman.read_trials(places[-1])
    places.append(path.parent)
    modelvshuman.read_trials(places[-1])
    path = path.rename(path.with_name("trials.csv"))
    remedy = yield lambda: modelvshuman.read_trials(places[-1])
    name = re.search(r"\S+\.csv", remedy)[0]
    for part, value in (("SET", "sketch"), ("OBSERVER", "subject-02"), ("NUMBER", "1")):
        name = name.replace(part, value)
    path = path.rename(path.with_name(name))
    modelvshuman.read_trials(places[-1])
    right = path.read_text()
    path.write_text(right.replace("imagename", "image"))
    yield lambda: modelvshuman.read_trials(places[-1])
    path.write_text(right)
    modelvshuman.read_trials(places[-1])
    path.write_text(right.replace("bird,bird,", "bird,brid,"))
    yield lambda: modelvshuman.read_trials(places[-1])
    path.write_text(right)
    modelvshuman.read_trials(places[-1])
    empty = path.with_name("sketch_subject-03_session_1.csv")
    empty.write_text(",".join(modelvshuman.COLUMNS) + "\n")
    yield lambda: modelvshuman.read_trials(places[-1])
    empty.unlink()


@follows(
    ("data/modelvshuman.py", "unpack the set there"),
    ("data/modelvshuman.py", "keep the folders and names of the download"),
    ("data/modelvshuman.py", "pass cue-conflict images"),
    ("data/modelvshuman.py", "pass the whole list (read_wnids)"),
)
def test_images_of_model_vs_human(tmp, env):
    yield lambda: modelvshuman.read_images(tmp, "sketch")
    write(tmp / "bird" / "bird1.png", 0)
    modelvshuman.read_images(tmp, "sketch")
    (tmp / "bird").rename(tmp / "mine")
    yield lambda: modelvshuman.read_images(tmp, "sketch")
    (tmp / "mine").rename(tmp / "bird")
    names = ["bird1.png"]
    yield lambda: modelvshuman.cue_conflict(names[-1:])
    names.append("bird1-cat2.png")
    modelvshuman.cue_conflict(names[-1:])
    for wnid in WNIDS:
        (tmp / "train" / wnid).mkdir(parents=True)
    wnids = [WNIDS[:16]]
    remedy = yield lambda: modelvshuman.category_wnids(wnids[-1])
    assert "read_wnids" in remedy
    wnids.append(read_wnids(tmp / "train"))


# --- copies and shards ---


@follows(
    ("data/prepare.py", "check the path"),
    ("data/prepare.py", "choose another target"),
    ("data/prepare.py", "choose an empty target folder"),
)
def test_smaller_copies(tmp, env):
    write(tmp / "images" / "0.png", 0)
    sources, targets = [tmp / "pictures"], [tmp / "images" / "small"]
    yield lambda: prepare_images(sources[-1], targets[-1], size=8)
    sources.append(tmp / "images")
    targets.append(tmp / "small")
    prepare_images(sources[-1], targets[-1], size=16)
    targets.append(tmp / "images" / "small")
    yield lambda: prepare_images(sources[-1], targets[-1], size=8)
    targets.append(tmp / "other")
    prepare_images(sources[-1], targets[-1], size=8)
    targets.append(tmp / "small")
    yield lambda: prepare_images(sources[-1], targets[-1], size=8)
    targets.append(tmp / "smaller")


@follows(
    (
        "data/shards.py",
        "give a study of images, size=0 for files as they are, and per_shard=1 or more",
    ),
    ("data/shards.py", "choose an empty folder, or call with what they were made from"),
    (
        "data/shards.py",
        "copy it again, or delete it and make the shards again into the same folder",
    ),
    (
        "data/shards.py",
        "copy the right index, or delete this one and make the shards again into the same folder",
    ),
)
def test_shards(tmp, env):
    study = Study("own", "own", {"train": image_set("train", [0, 1, 2])})
    options, places = {"per_shard": 0}, [tmp / "a"]
    remedy = yield lambda: write_shards(study, places[-1], **options)
    options.update((name, int(n)) for name, n in re.findall(r"(\w+)=(\d)", remedy))
    options["per_shard"] = 2
    write_shards(study, places[-1], **options)
    options["size"] = 4
    yield lambda: write_shards(study, places[-1], **options)
    places.append(tmp / "b")
    write_shards(study, places[-1], **options)
    first, second = sorted(places[-1].glob("*.tar"))
    second.write_bytes(second.read_bytes()[:700])
    yield lambda: load_study(places[-1])
    second.unlink()
    write_shards(study, places[-1], **options)
    load_study(places[-1])
    shutil.copy(first.with_suffix(".json"), second.with_suffix(".json"))
    yield lambda: load_study(places[-1])
    second.with_suffix(".json").unlink()
    write_shards(study, places[-1], **options)

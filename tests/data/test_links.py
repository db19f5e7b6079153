"""No reader follows a symbolic link out of the folder that the user named, unless it is allowed to."""

import shutil

import numpy as np
import pytest
from algonauts_example import make_subject
from PIL import Image

from bmfl_lab.data import algonauts, load_study, modelvshuman, ood_sets, prepare
from bmfl_lab.data.class_folders import read_class_folders
from bmfl_lab.errors import DataError, FileError


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def classes_of(root, n=12, names=("cat", "dog")):
    for k, name in enumerate(names):
        for i in range(n):
            picture(root / name / f"{i}.png", 100 * k + i)
    return root


def class_folders(root):
    classes_of(root)
    return root / "cat" / "3.png", lambda **links: load_study(root, **links)


def class_folder_as_link(root):
    classes_of(root)
    return root / "cat", lambda **links: load_study(root, **links)


def linked_test_images(root):
    classes_of(root / "train"), classes_of(root / "val", 2), classes_of(root / "test", 2)
    for i, path in enumerate(sorted(root.glob("[vt]*/*/*.png"))):
        picture(path, 1000 + i)
    return root / "test", lambda **links: load_study(root, **links)


def one_image_set(root):
    classes_of(root, 2)
    return root / "dog" / "1.png", lambda **links: read_class_folders(
        "x", root, ("cat", "dog"), **links
    )


def imagenet_c(root):
    classes_of(root / "fog" / "1", 2, ("n00000001", "n00000002"))
    wnids = ("n00000001", "n00000002")
    return root / "fog" / "1" / "n00000001" / "0.png", lambda **links: ood_sets.read_imagenet_c(
        root, "fog", 1, wnids, **links
    )


def a_whole_corruption(root):
    _, read = imagenet_c(root)
    return root / "fog", read


def a_whole_domain(root):
    classes_of(root / "photo", 2), classes_of(root / "sketch", 2)
    return root / "sketch", lambda **links: ood_sets.read_domains(root, **links)


def an_image_of_a_domain(root):
    classes_of(root / "photo", 2), classes_of(root / "sketch", 2)
    return root / "photo" / "cat" / "0.png", lambda **links: ood_sets.read_domains(root, **links)


def images_that_people_saw(root):
    picture(root / "cat" / "a.png", 0), picture(root / "dog" / "b.png", 1)
    return root / "dog" / "b.png", lambda **links: modelvshuman.read_images(root, "sketch", **links)


def images_to_make_smaller(root):
    classes_of(root, 2)
    target = root.parent / f"{root.name}-small"
    return root / "cat" / "1.png", lambda **links: prepare.prepare_images(root, target, **links)


def a_subject(root):
    folder = algonauts.write_subject(root / "own", make_subject())
    (folder / "bmfl_lab.json").unlink()
    responses = folder / "training_split" / "training_fmri" / "lh_training_fmri.npy"
    return responses, lambda **links: algonauts.read_subject(folder, **links)


def an_image_of_a_subject(root):
    folder = algonauts.write_subject(root / "own", make_subject())
    (folder / "bmfl_lab.json").unlink()
    image = sorted((folder / "training_split" / "training_images").iterdir())[0]
    return image, lambda **links: algonauts.read_subject(folder, **links)


def a_folder_of_labels(root):
    folder = algonauts.write_subject(root / "own", make_subject())
    (folder / "bmfl_lab.json").unlink()
    return folder / "roi_masks", lambda **links: algonauts.read_subject(folder, **links)


READERS = (
    class_folders,
    class_folder_as_link,
    linked_test_images,
    one_image_set,
    imagenet_c,
    a_whole_corruption,
    a_whole_domain,
    an_image_of_a_domain,
    images_that_people_saw,
    images_to_make_smaller,
    a_subject,
    an_image_of_a_subject,
    a_folder_of_labels,
)


@pytest.mark.parametrize("make", READERS, ids=lambda f: f.__name__)
def test_a_link_out_of_the_folder_is_refused_and_read_where_it_is_allowed(make, tmp_path):
    path, read = make(tmp_path / "inside")
    read(follow_links=False)
    outside = tmp_path / "outside" / path.name
    outside.parent.mkdir()
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(DataError, match=rf"a link to .*{path.name}.*follow_links=True"):
        read()
    read(follow_links=True)


@pytest.mark.parametrize(
    "make",
    [
        class_folders,
        class_folder_as_link,
        linked_test_images,
        one_image_set,
        images_to_make_smaller,
    ],
    ids=lambda f: f.__name__,
)
def test_a_link_within_the_folder_needs_no_leave(make, tmp_path):
    path, read = make(tmp_path / "inside")
    kept = tmp_path / "inside" / ".kept"
    kept.mkdir()
    shutil.move(path, kept / path.name)
    path.symlink_to(kept / path.name)
    read()


@pytest.mark.parametrize("place", ["image", "class", "root"])
def test_a_link_to_itself_is_refused_by_name(place, tmp_path):
    root = classes_of(tmp_path / "set")
    looped = {"image": root / "cat" / "13.png", "class": root / "cow", "root": tmp_path / "loop"}[
        place
    ]
    looped.symlink_to(looped)
    with pytest.raises((FileError, ValueError), match=rf"{looped.name}"):
        load_study(looped if place == "root" else root)

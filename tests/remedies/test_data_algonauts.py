"""The remedies of `bmfl_lab.data.algonauts`, each followed."""

import os
import re
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
from algonauts_example import LEFT, NUMBERS, RIGHT, N, make_subject
from following import follows

from bmfl_lab.data import algonauts
from bmfl_lab.data.pickles import write_mapping
from bmfl_lab.files import save_npy

FMRI = "training_split/training_fmri/{}_training_fmri.npy"
IMAGES = "training_split/training_images"
CEILING = "test_split/noise_ceiling/lh_noise_ceiling.npy"
subject = cache(make_subject)


@cache
def written(base, test_rows):
    return algonauts.write_subject(
        base / f"served-algonauts-{len(test_rows)}", subject(), test_rows=test_rows
    )


def own_copy(folder, test_rows=(), whole=False):
    """A folder that a test may damage: its files are replaced, never changed in place.

    Unless it is to be whole, it is one without the note and with one class of ROIs, which is read
    faster.
    """
    source = written(folder.parent, test_rows)
    copy = shutil.copytree(source, folder / "own", copy_function=os.link)
    if not whole:
        (copy / algonauts.NOTE).unlink()
        for path in (copy / "roi_masks").iterdir():
            if "streams" not in path.name and "all-vertices" not in path.name:
                path.unlink()
    return copy


def change(path, function):
    save_npy(path, function(np.load(path)))


def again(folder, path):
    """Take a file or a folder from the whole copy once more."""
    source, place = written(folder.parent, ()) / path, folder / "own" / path
    if source.is_dir():
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place, copy_function=os.link)
    else:
        place.unlink(missing_ok=True)
        os.link(source, place)


def image(folder, number):
    return next((folder / IMAGES).glob(f"train-{number:04d}_*"))


@follows(("data/algonauts.py", "check the path"))
def test_a_mistyped_folder(folder, env):
    own, paths = own_copy(folder), [folder / "owm"]
    yield lambda: algonauts.read_subject(paths[-1])
    paths.append(own)


@follows(
    (
        "data/algonauts.py",
        "check which subject this is; if these are data of yours, rename the folder, or pass "
        "enforce_counts=False to read_subject",
    )
)
def test_own_data_under_a_known_name(folder, env):
    own, options = own_copy(folder).rename(folder / "subj01"), {}
    remedy = yield lambda: algonauts.read_subject(own, **options)
    options[re.search(r"pass (\w+)=False", remedy)[1]] = False


@follows(("data/algonauts.py", "put it there, or pass stim_info or shared_ids"))
def test_a_subject_of_the_challenge_without_the_shared_images(folder, env):
    own = own_copy(folder, whole=True)
    env.setitem(algonauts.VERTEX_COUNTS, "own", (LEFT, RIGHT))
    env.setitem(algonauts.IMAGE_COUNTS, "own", N)
    options, rows = {}, [f"{i},True" for i in NUMBERS[:2]]
    remedy = yield lambda: algonauts.read_subject(own, **options)
    option, other = re.search(r"pass (\w+) or (\w+)", remedy).groups()
    table = folder / "table.csv"
    table.write_text("nsdId,shared1000\n" + "\n".join(rows))
    for given in ({option: table}, {other: [f"nsd-{NUMBERS[0]:05d}"]}):
        assert algonauts.read_subject(own, **given).info["split"]["method"] == "held-out ids"
    table.rename(own / algonauts.STIM_INFO)  # "there" is the folder that the error names


@follows(("data/algonauts.py", "download the subject again"))
def test_no_folder_of_images(folder, env):
    own = own_copy(folder)
    shutil.rmtree(own / IMAGES)
    yield lambda: algonauts.read_subject(own)
    again(folder, "training_split")


@follows(("data/algonauts.py", "rename or remove it"))
def test_a_file_of_another_name_among_the_images(folder, env):
    own = own_copy(folder)
    (own / IMAGES / "notes.txt").write_text("mine")
    yield lambda: algonauts.read_subject(own)
    (own / IMAGES / "notes.txt").unlink()


@follows(("data/algonauts.py", "remove the one that does not belong to row {} of the responses"))
def test_two_images_of_one_number(folder, env):
    own = own_copy(folder)
    extra = own / IMAGES / f"train-1_nsd-{NUMBERS[0]:05d}.png"
    shutil.copy(image(own, 1), extra)
    yield lambda: algonauts.read_subject(own)
    extra.unlink()


@follows(
    (
        "data/algonauts.py",
        "restore the missing files: rows of the responses are counted by these numbers",
    )
)
def test_a_gap_in_the_numbers(folder, env):
    own = own_copy(folder)
    lost = image(own, 10).rename(folder / image(own, 10).name)
    yield lambda: algonauts.read_subject(own)
    lost.rename(own / IMAGES / lost.name)


@follows(
    (
        "data/algonauts.py",
        "average the repeats, or give images their own numbers",
    )
)
def test_an_image_under_two_numbers(folder, env):
    own = own_copy(folder)
    path = image(own, 2).rename(own / IMAGES / f"train-0002_nsd-{NUMBERS[0]:05d}.png")
    yield lambda: algonauts.read_subject(own)
    path.rename(own / IMAGES / f"train-0002_nsd-{NUMBERS[1]:05d}.png")


@follows(("data/algonauts.py", "use files of one subject"))
def test_test_responses_of_another_subject(folder, env):
    own = own_copy(folder, test_rows=range(20, 24))
    path = own / "test_split/test_fmri/lh_test_fmri.npy"
    right = np.load(path)
    save_npy(path, right[:, 1:])
    yield lambda: algonauts.read_subject(own)
    save_npy(path, right)


@follows(("data/algonauts.py", "save images x vertices as float32"))
def test_responses_as_whole_numbers(folder, env):
    own = own_copy(folder)
    path = own / FMRI.format("lh")
    change(path, lambda a: np.rint(a * 100).astype(np.int16))
    yield lambda: algonauts.read_subject(own)
    change(path, lambda a: (a / 100).astype(np.float32))


@follows(("data/algonauts.py", "transpose the array"))
def test_vertices_by_images(folder, env):
    own = own_copy(folder)
    change(own / FMRI.format("lh"), np.transpose)
    yield lambda: algonauts.read_subject(own)
    change(own / FMRI.format("lh"), lambda a: np.ascontiguousarray(a.T))


@follows(("data/algonauts.py", "use images and responses of the same download"))
def test_fewer_rows_than_images(folder, env):
    own = own_copy(folder)
    change(own / FMRI.format("lh"), lambda a: a[:-1])
    yield lambda: algonauts.read_subject(own)
    again(folder, "training_split/training_fmri")


@follows(("data/algonauts.py", "put lh and rh files back in their places"))
def test_left_and_right_swapped(folder, env):
    own = own_copy(folder)
    left, right = (own / FMRI.format(side) for side in ("lh", "rh"))

    def swap():
        left.rename(folder / "other.npy")
        right.rename(left)
        (folder / "other.npy").rename(right)

    swap()
    yield lambda: algonauts.read_subject(own)
    swap()


@follows(("data/responses.py", "pass nan_policy='drop' to leave these vertices out"))
def test_vertices_with_nan(folder, env):
    own, options = own_copy(folder), {}
    change(own / FMRI.format("lh"), lambda a: np.where(a == a[3, 2], np.nan, a).astype(np.float32))
    remedy = yield lambda: algonauts.read_subject(own, **options)
    name, value = re.search(r"pass (\w+)='(\w+)'", remedy).groups()
    options[name] = value


@follows(("data/algonauts.py", "divide percentages by 100, or use the file of this subject"))
def test_noise_ceilings_in_percent(folder, env):
    own = own_copy(folder)
    change(own / CEILING, lambda a: a * 100)
    remedy = yield lambda: algonauts.read_subject(own)
    change(own / CEILING, lambda a: a / int(re.search(r"percentages by (\d+)", remedy)[1]))


@follows(("data/algonauts.py", "use masks and responses of the same subject"))
def test_masks_of_another_subject(folder, env):
    own = own_copy(folder)
    path = own / "roi_masks/lh.all-vertices_fsaverage_space.npy"
    change(path, lambda a: np.where(np.arange(a.size) == np.argmax(a), 0, a))
    yield lambda: algonauts.read_subject(own)
    again(folder, "roi_masks")


@follows(
    ("data/algonauts.py", "download the folder again"),
    ("data/algonauts.py", "download it again"),
)
def test_masks_that_are_missing_or_empty(folder, env):
    own = own_copy(folder)
    (own / "roi_masks/mapping_streams.npy").unlink()
    yield lambda: algonauts.read_subject(own)
    again(folder, "roi_masks")
    change(own / "roi_masks/rh.all-vertices_fsaverage_space.npy", np.zeros_like)
    yield lambda: algonauts.read_subject(own)
    again(folder, "roi_masks/rh.all-vertices_fsaverage_space.npy")


@follows(
    ("data/algonauts.py", "use the masks that belong to these responses"),
    ("data/algonauts.py", "use mask files of one subject and one version"),
    ("data/algonauts.py", "use mask and mapping files of one version"),
)
def test_masks_of_another_version(folder, env):
    own = own_copy(folder)
    place = "roi_masks/lh.streams_challenge_space.npy"
    change(own / place, lambda a: a[:-1])
    yield lambda: algonauts.read_subject(own)
    again(folder, place)
    algonauts.read_subject(own)
    change(own / place, lambda a: (a + 1) % 7)
    yield lambda: algonauts.read_subject(own)
    again(folder, place)
    algonauts.read_subject(own)
    mapping = own / "roi_masks/mapping_streams.npy"
    write_mapping(mapping, {0: "Unknown", 1: "early"})
    yield lambda: algonauts.read_subject(own)
    again(folder, "roi_masks/mapping_streams.npy")


@follows(("data/algonauts.py", "rename one of them"))
def test_one_name_for_two_rois(folder, env):
    own, masks = own_copy(folder), folder / "own/roi_masks"
    for side in ("lh", "rh"):
        for space in ("challenge", "fsaverage"):
            values = np.load(masks / f"{side}.streams_{space}_space.npy")
            save_npy(masks / f"{side}.mine_{space}_space.npy", np.where(values == 1, 1, 0))
    write_mapping(masks / "mapping_mine.npy", {0: "Unknown", 1: "early"})
    yield lambda: algonauts.read_subject(own)
    write_mapping(masks / "mapping_mine.npy", {0: "Unknown", 1: "my early"})


@follows(
    ("data/algonauts.py", "correct or delete the file"),
    ("data/algonauts.py", "correct or delete the file"),
)
def test_a_damaged_note(folder, env):
    own = own_copy(folder)
    note = own / algonauts.NOTE
    note.write_text('{"simulated": "no"}')
    yield lambda: algonauts.read_subject(own)
    note.write_text('{"simulated": false}')
    algonauts.read_subject(own)
    note.write_text('{"simulated": false, "sha256": []}')
    yield lambda: algonauts.read_subject(own)
    note.unlink()


@follows(
    (
        "data/algonauts.py",
        "write the folder again; or, if you changed it on purpose, delete {} "
        "(and note that it says whether responses are simulated)",
    )
)
def test_a_file_that_was_changed_after_writing(folder, env):
    own = own_copy(folder, whole=True)
    change(own / FMRI.format("lh"), lambda a: a + np.float32(1))
    remedy = yield lambda: algonauts.read_subject(own)
    (own / re.search(r"delete (\S+)", remedy)[1]).unlink()


@follows(("data/algonauts.py", "choose another folder"))
def test_writing_into_a_folder_with_files(folder, env):
    places = [folder]
    (folder / "notes.txt").write_text("mine")
    yield lambda: algonauts.write_subject(places[-1], subject())
    places.append(folder / "another")


@follows(
    ("data/algonauts.py", "number each once"),
    ("data/algonauts.py", "give each vertex its own place on fsaverage"),
    ("data/algonauts.py", "give each vertex one"),
)
def test_a_subject_that_cannot_be_written(folder, env):
    numbers, people = [[7] * N], [subject()]

    def write():
        return algonauts.write_subject(folder / "own", people[-1], nsd_numbers=numbers[-1])

    yield write
    numbers.append(range(N))
    atlas = people[0].atlas
    one_place = replace(atlas, surface_index=np.zeros_like(atlas.surface_index))
    people.append(replace(people[0], atlas=one_place))
    yield write
    overlap = {**atlas.rois, "V1d": atlas.rois["V1v"]}
    people.append(replace(people[0], atlas=replace(atlas, rois=overlap)))
    yield write
    people.append(people[0])

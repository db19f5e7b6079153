"""The remedies of `bmfl_lab.data.imported`, each followed."""

import json
import re

import nibabel as nib
import numpy as np
from following import follows
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ScalarAxis, SeriesAxis
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.imported import FORMATS, load, read_responses

IDS = [f"{k}.png" for k in range(5)]
VALUES = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)


def saved(folder, values=VALUES, name="r.npy"):
    np.save(folder / name, values)
    return folder / name


def pictures(folder, names):
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 200, 10)).save(folder / name)
    return folder


@follows(
    ("data/imported.py", "name both hemispheres"),
    ("data/imported.py", "check the path"),
    ("data/imported.py", "export both again"),
)
def test_a_file_per_hemisphere(folder, env):
    left, right = saved(folder, VALUES[:, :4], "lh.npy"), folder / "rh.npy"
    files = {"left": left}
    yield lambda: read_responses(files, IDS, space="voxels")
    files["right"] = folder / "hr.npy"
    yield lambda: read_responses(files, IDS, space="voxels")
    files["right"] = saved(folder, VALUES[1:, 4:], "rh.npy")
    yield lambda: read_responses(files, IDS, space="voxels")
    saved(folder, VALUES[:, :4], "lh.npy")
    saved(folder, VALUES[:, 4:], right.name)


@follows(
    ("data/imported.py", "write responses: file.npy, or 'left: ...' and 'right: ...' below it")
)
def test_a_list_of_files_in_a_study_file(folder, env):
    saved(folder)
    pictures(folder / "images", IDS)
    (folder / "ids.txt").write_text("\n".join(IDS))
    study, rest = folder / "s.yaml", "study: file\nimages: images\nspace: voxels\nids: ids.txt\n"
    rest += f"root: {folder}\n"
    study.write_text(f"{rest}responses: [lh.npy, rh.npy]\n")
    remedy = yield lambda: load_study(study)
    option, left, right = re.search(
        r"write (\w+): file.npy, or '(\w+): ...' and '(\w+):", remedy
    ).groups()
    study.write_text(f"{rest}{option}: r.npy\n")
    load_study(study)
    saved(folder, VALUES[:, :4], "lh.npy")
    saved(folder, VALUES[:, 4:], "rh.npy")
    study.write_text(f"{rest}{option}:\n  {left}: lh.npy\n  {right}: rh.npy\n")


@follows(("data/imported.py", "save it in one of these formats"))
def test_a_file_of_another_format(folder, env):
    files = [saved(folder).rename(folder / "r.mat")]
    yield lambda: read_responses(files[-1], IDS, space="voxels")
    assert FORMATS[0] == ".npy"
    files.append(saved(folder))


@follows(("data/imported.py", "save one row per image"))
def test_a_single_row(folder, env):
    path = saved(folder, VALUES[0])
    yield lambda: read_responses(path, IDS, space="voxels")
    saved(folder)


@follows(("data/imported.py", "pass its name as key="), ("data/imported.py", "save it again"))
def test_an_archive_of_arrays(folder, env):
    path, options = folder / "r.npz", {}
    np.savez(path, betas=VALUES, ids=IDS)
    remedy = yield lambda: read_responses(path, space="voxels", **options)
    options[re.search(r"as (\w+)=", remedy)[1]] = "betas"
    read_responses(path, space="voxels", **options)
    many = np.tile(VALUES, (1, 1000))
    np.savez(path, betas=many, ids=IDS)
    data = bytearray(path.read_bytes())
    data[data.index(many[-1].tobytes())] ^= 1  # far behind the header, which is read first
    path.write_bytes(bytes(data))
    yield lambda: read_responses(path, space="voxels", **options)
    np.savez(path, betas=many, ids=IDS)


@follows(("data/imported.py", "export it again"))
def test_maps_of_different_lengths(folder, env):
    def export(rows):
        arrays = [nib.gifti.GiftiDataArray(row, intent="NIFTI_INTENT_SHAPE") for row in rows]
        nib.save(nib.GiftiImage(darrays=arrays), folder / "r.func.gii")

    export([*VALUES[:4], VALUES[4, :5]])
    yield lambda: read_responses(folder / "r.func.gii", IDS, space="voxels")
    export(VALUES)


def cifti(path, values, columns=None):
    models = BrainModelAxis.from_surface(np.array([0, 5, 7, 32491]), 32492, "CortexLeft")
    models += BrainModelAxis.from_surface(np.array([2, 3, 100, 200, 300]), 32492, "CortexRight")
    maps = ScalarAxis([f"{k}.png" for k in range(len(values))])
    nib.save(Cifti2Image(values, header=(maps, columns or models)), path)
    return path


@follows(
    ("data/imported.py", "save one map per image, with one column per grayordinate"),
    ("data/imported.py", "export it again"),
    ("data/imported.py", "pass space='fsLR32k'"),
)
def test_a_cifti_file(folder, env):
    path, spaces = cifti(folder / "r.dscalar.nii", VALUES, SeriesAxis(0, 1, 9)), ["voxels"]
    yield lambda: read_responses(path, space="fsLR32k")
    cifti(path, VALUES)
    read_responses(path, space="fsLR32k")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0 5 7 32491", b"0 5 7      "))
    yield lambda: read_responses(path, space="fsLR32k")
    cifti(path, VALUES)
    read_responses(path, space="fsLR32k")
    remedy = yield lambda: read_responses(path, space=spaces[-1])
    spaces.append(re.search(r"space='(\w+)'", remedy)[1])


@follows(
    ("data/imported.py", "pass ids=, one per row"),
    ("data/imported.py", "list the image of each row, in the order of the rows"),
)
def test_rows_without_ids(folder, env):
    path, options = saved(folder), {}
    remedy = yield lambda: read_responses(path, space="voxels", **options)
    option = re.search(r"pass (\w+)=, one per row", remedy)[1]
    options[option] = IDS[:4]
    yield lambda: read_responses(path, space="voxels", **options)
    options[option] = IDS


@follows(
    ("data/imported.py", "check the path"),
    ("data/imported.py", "save the list again"),
    ("data/imported.py", "write a list of texts"),
    ("data/imported.py", "save it as UTF-8"),
    ("data/imported.py", "write a table with a column {}"),
)
def test_a_file_of_ids(folder, env):
    path, listed = saved(folder), [folder / "idz.json"]

    def read():
        return read_responses(path, listed[-1], space="voxels")

    yield read
    listed.append(folder / "ids.json")
    listed[-1].write_text(json.dumps(IDS)[:-3])
    yield read
    listed[-1].write_text(json.dumps({"ids": IDS}))
    yield read
    listed[-1].write_text(json.dumps(IDS))
    read()
    listed.append(folder / "ids.txt")
    listed[-1].write_text("\n".join(["ä.png", *IDS[1:]]), encoding="latin-1")
    yield read
    listed[-1].write_text("\n".join(["ä.png", *IDS[1:]]), encoding="utf-8")
    read()
    listed.append(folder / "ids.csv")
    listed[-1].write_text("\n".join(["image", *IDS]))
    remedy = yield read
    listed[-1].write_text("\n".join([re.search(r"a column '(\w+)'", remedy)[1], *IDS]))


@follows(("data/imported.py", "average repeated presentations before saving"))
def test_an_image_that_was_shown_twice(folder, env):
    path, ids = saved(folder), [*IDS[:4], IDS[0]]
    yield lambda: read_responses(path, ids, space="voxels")
    saved(folder, np.stack([VALUES[[0, 4]].mean(0), *VALUES[1:4]]))
    ids.pop()


@follows(("data/imported.py", "leave out these images or these vertices before saving"))
def test_rows_with_nan(folder, env):
    values, ids = VALUES.copy(), list(IDS)
    values[2] = np.nan
    path = saved(folder, values)
    yield lambda: read_responses(path, ids, space="voxels")
    saved(folder, np.delete(values, 2, 0))
    del ids[2]


@follows(
    ("data/imported.py", "name the space that the responses are in; 'voxels' takes any number"),
    ("data/imported.py", "take the atlas of a subject in the same space"),
)
def test_another_space(folder, env):
    path, spaces, atlases = saved(folder), ["fsaverage5"], [Atlas(np.zeros(8, np.int8), {})]
    remedy = yield lambda: read_responses(path, IDS, space=spaces[-1])
    spaces.append(re.search(r"'(\w+)' takes any number", remedy)[1])
    read_responses(path, IDS, space=spaces[-1])
    yield lambda: read_responses(path, IDS, space="voxels", atlas=atlases[-1])
    atlases.append(Atlas(np.zeros(9, np.int8), {}))


@follows(
    ("data/imported.py", "pass {}=..."),
    ("data/imported.py", "pass {}=..."),
    ("data/imported.py", "pass {}=..."),
)
def test_options_that_are_missing(folder, env):
    images = pictures(folder / "images", IDS)
    known = {"responses": saved(folder), "images": images, "space": "voxels"}
    options = {"ids": IDS}
    for _ in known:
        remedy = yield lambda: load(**options)
        option = re.search(r"pass (\w+)=\.\.\.", remedy)[1]
        options[option] = known[option]


@follows(("data/imported.py", "check the path"))
def test_a_mistyped_folder_of_images(folder, env):
    options = {"responses": saved(folder), "images": folder / "image", "space": "voxels"}
    yield lambda: load(ids=IDS, **options)
    options["images"] = pictures(folder / "images", IDS)


@follows(("data/imported.py", "use the paths of the images below their folder as ids"))
def test_ids_that_match_several_images(folder, env):
    paths = ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/3.png", "dogs/4.png"]
    images, ids = pictures(folder / "images", paths), ["1", "2", "5", "3", "4"]
    options = {"responses": saved(folder), "images": images, "space": "voxels"}
    yield lambda: load(ids=ids, **options)
    ids[:] = paths


@follows(
    ("data/imported.py", "leave out areas; the ROIs of vertices come from atlas="),
    ("data/imported.py", "write one row per electrode, in the order of the columns"),
)
def test_areas_of_electrodes(folder, env):
    images = pictures(folder / "images", IDS)
    options = {"responses": saved(folder), "images": images, "ids": IDS, "space": "voxels"}
    options["areas"] = ["V4"] * 9
    remedy = yield lambda: load(**options)
    options.pop(re.search(r"leave out (\w+)", remedy)[1])
    load(**options)
    options |= {"space": "electrodes", "areas": ["V4"] * 8}
    yield lambda: load(**options)
    options["areas"] = ["V4"] * 9


SETS = {"train": 2, "val": 8, "test": 2}


def study_of_images(folder):
    names = [f"{s}/{c}/{s}{c}{k}.png" for s, n in SETS.items() for c in "ab" for k in range(n // 2)]
    return pictures(folder / "study", names), [name.split("/")[2] for name in names]


@follows(("data/imported.py", "load the study of the images with subject='file'"))
def test_predictions_without_the_images(folder, env):
    images, ids = study_of_images(folder)
    draw = np.random.default_rng(1)
    path = saved(folder, draw.standard_normal((len(ids), 9)).astype(np.float32))
    options = {"responses": path, "ids": ids, "space": "voxels", "predicted_by": "mine"}
    names = ["file"]
    remedy = yield lambda: load_study(names[-1], **options)
    option, value = re.search(r"with (\w+)='(\w+)'", remedy).groups()
    options[option] = value
    names.append(images)


@follows(
    (
        "data/imported.py",
        "leave out images; or leave out predicted_by if the responses were measured",
    ),
    ("data/imported.py", "standardise with mean and standard deviation of the training images"),
)
def test_predictions_for_a_study(folder, env):
    images, ids = study_of_images(folder)
    draw = np.random.default_rng(1)
    values = draw.standard_normal((len(ids), 9)).astype(np.float32)
    options = {"responses": saved(folder, values), "ids": ids, "space": "voxels"}
    options |= {"predicted_by": "mine", "images": images}
    remedy = yield lambda: load_study(images, subject="file", **options)
    first, second = re.search(r"leave out (\w+); or leave out (\w+)", remedy).groups()
    load_study("file", **{k: v for k, v in options.items() if k != second})
    del options[first]
    load_study(images, subject="file", **options)
    val = [name.startswith("val") for name in ids]
    train = [name.startswith("train") for name in ids]
    known = values.copy()
    known[val] = (values[val] - values[val].mean(0)) / values[val].std(0)
    saved(folder, known)
    yield lambda: load_study(images, subject="file", **options)
    saved(folder, (values - values[train].mean(0)) / values[train].std(0))


@follows(("files.py", "save it as UTF-8, or {}"))
def test_a_table_of_ids_in_latin_1(folder, env):
    path, table = saved(folder), folder / "ids.csv"
    lines = "\n".join(["id", "café", *IDS[1:]])
    table.write_text(lines, encoding="latin-1")
    yield lambda: read_responses(path, table, space="voxels")
    table.write_text(lines, encoding="utf-8")

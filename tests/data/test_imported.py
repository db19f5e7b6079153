"""Responses of any origin: every format gives the same array, and ids decide, never positions."""

import json

import h5py
import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ScalarAxis, SeriesAxis
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.data.imported import SPACES, load, read_responses
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.metrics.noise import ceiling_from_repeats

IDS = ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/7.png", "birds/x.png"]
N_LEFT = 4
SMALL = {"n_encoder": 30, "n_encoder_val": 10, "n_encoder_test": 10, "n_train": 16, "n_val": 8}


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)


@pytest.fixture
def images(tmp_path):
    for k, name in enumerate([*IDS, "dogs/unseen.png"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def _npy(folder, values):
    np.save(folder / "r.npy", values)
    return folder / "r.npy", IDS


def _npz(folder, values):
    np.savez(folder / "r.npz", responses=values, ids=IDS)
    return folder / "r.npz", None


def _h5(folder, values):
    with h5py.File(folder / "r.h5", "w") as opened:
        opened["responses"], opened["ids"] = values, IDS
    return folder / "r.h5", None


def _mgh(folder, values):
    image = nib.MGHImage(values.T[:, None, None, :].copy(), np.eye(4))
    nib.save(image, folder / "r.mgz")
    return folder / "r.mgz", IDS


def _nifti(folder, values):
    volume = values.T.reshape(3, 3, 1, len(values)).copy()
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "r.nii.gz")
    return folder / "r.nii.gz", IDS


def _gifti(folder, values):
    arrays = [nib.gifti.GiftiDataArray(row, intent="NIFTI_INTENT_SHAPE") for row in values]
    nib.save(nib.GiftiImage(darrays=arrays), folder / "r.func.gii")
    return folder / "r.func.gii", IDS


def _sides(folder, values):
    np.save(folder / "lh.npy", values[:, :N_LEFT])
    np.save(folder / "rh.npy", values[:, N_LEFT:])
    return {"left": folder / "lh.npy", "right": folder / "rh.npy"}, IDS


FORMATS = (_npy, _npz, _h5, _mgh, _nifti, _gifti, _sides)


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_array_that_was_written(write, values, tmp_path):
    path, ids = write(tmp_path, values)
    found = read_responses(path, ids, space="voxels")
    np.testing.assert_array_equal(found.values, values)
    assert found.ids == tuple(IDS) and found.values.dtype == np.float32
    assert found.atlas.mesh is None and found.atlas.n_vertices == 9
    assert found.atlas.n_left == (N_LEFT if write is _sides else 9)


def test_cifti_keeps_the_cortex_and_takes_vertices_from_its_header(tmp_path):
    left, right = np.array([0, 5, 7, 32491]), np.array([2, 3, 100])
    models = BrainModelAxis.from_surface(left, 32492, "CortexLeft")
    models += BrainModelAxis.from_mask(np.ones((1, 1, 2), bool), name="thalamus_left")
    models += BrainModelAxis.from_surface(right, 32492, "CortexRight")
    values = np.arange(2 * 9, dtype=np.float32).reshape(2, 9)
    image = Cifti2Image(values, header=(ScalarAxis(["a.png", "b.png"]), models))
    nib.save(image, tmp_path / "r.dscalar.nii")
    found = read_responses(tmp_path / "r.dscalar.nii", space="fsLR32k")
    np.testing.assert_array_equal(found.values, values[:, [0, 1, 2, 3, 6, 7, 8]])
    np.testing.assert_array_equal(found.atlas.surface_index, [*left, *right])
    assert found.atlas.n_left == 4 and found.ids == ("a.png", "b.png")
    series = Cifti2Image(values.T.copy(), header=(SeriesAxis(0, 1, 9), SeriesAxis(0, 1, 2)))
    nib.save(series, tmp_path / "t.dscalar.nii")
    with pytest.raises(DataError, match="one value per grayordinate"):
        read_responses(tmp_path / "t.dscalar.nii", IDS[:2], space="fsLR32k")


@pytest.mark.parametrize("suffix", [".txt", ".json", ".csv", ".tsv"])
def test_ids_come_from_every_kind_of_list(suffix, values, tmp_path):
    np.save(tmp_path / "r.npy", values)
    listed = tmp_path / f"ids{suffix}"
    rows = {
        ".txt": "\ufeff" + "\n".join(IDS) + "\n",  # with the mark that Windows editors write
        ".json": json.dumps(IDS),
        ".csv": "trial,id\n" + "".join(f"{k},{i}\n" for k, i in enumerate(IDS)),
        ".tsv": "id\ttrial\n" + "".join(f"{i}\t{k}\n" for k, i in enumerate(IDS)),
    }
    listed.write_text(rows[suffix], encoding="utf-8")
    assert read_responses(tmp_path / "r.npy", listed, space="voxels").ids == tuple(IDS)


@pytest.mark.parametrize("space", [s for s, n in SPACES.items() if n and sum(n) < 100_000])
def test_a_surface_numbers_its_vertices_per_hemisphere(space, tmp_path):
    n_left, n_right = SPACES[space]
    np.save(tmp_path / "r.npy", np.zeros((1, n_left + n_right), np.float32))
    atlas = read_responses(tmp_path / "r.npy", ["a"], space=space).atlas
    assert (atlas.n_left, atlas.n_vertices) == (n_left, n_left + n_right)
    if space != "challenge":
        assert atlas.mesh == space and atlas.surface_index[[0, n_left, -1]].tolist() == [
            0,
            0,
            n_right - 1,
        ]


def test_ids_decide_which_image_a_row_belongs_to(values, images, tmp_path):
    order = [3, 0, 4, 1, 2]
    np.savez(tmp_path / "r.npz", responses=values[order], ids=np.array(IDS)[order])
    study = load_study("file", responses=tmp_path / "r.npz", images=images, space="voxels")
    subject = study.subject()
    for identifier, row in zip(subject.stimuli.ids, subject.responses):
        np.testing.assert_array_equal(row, values[IDS.index(identifier)])
        pixels = np.asarray(Image.open(images / identifier))
        image = subject.stimuli.image(list(subject.stimuli.ids).index(identifier))
        np.testing.assert_array_equal(image, pixels)
    assert subject.info["images_without_row"] == 1 and not study.simulated
    assert "measured" in study.description and "measured" in repr(subject)


@pytest.mark.parametrize(
    ("ids", "remedy"),
    [
        (["1.png", "2.png", "1.png", "7.png", "x.png"], "average repeated presentations"),
        (["1.png", "2.png", "3.png", "7.png", "x.png"], "paths of the images below their folder"),
        (["1", "2", "a/1", "7", "x"], "paths of the images below their folder"),
        (IDS[:4], "list the image of each row"),
    ],
)
def test_ids_that_match_no_image_or_several_are_refused(ids, remedy, values, images, tmp_path):
    np.save(tmp_path / "r.npy", values)
    options = {"responses": tmp_path / "r.npy", "images": images, "space": "voxels"}
    with pytest.raises(DataError, match=remedy):
        load_study("file", ids=ids, **options)


def test_stems_are_enough_where_they_are_unique(values, images, tmp_path):
    np.save(tmp_path / "r.npy", values[[1, 3, 4]])
    options = {"responses": tmp_path / "r.npy", "images": images, "space": "voxels"}
    subject = load_study("file", ids=["2", "7", "x"], **options).subject()
    assert list(subject.stimuli.ids) == ["cats/2.png", "dogs/7.png", "birds/x.png"]


def _damaged(kind, folder, values):
    """Write responses with one fault; return the arguments of the reader."""
    path = folder / "r.npy"
    np.save(path, values.astype(str) if kind == "text" else values)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    if kind == "zip of pickles":
        np.savez(folder / "r.npz", responses=np.array([{}], dtype=object), ids=IDS)
        path = folder / "r.npz"
    return path, IDS


@pytest.mark.parametrize(
    ("kind", "space", "remedy"),
    [
        ("text", "voxels", "save one row per image"),
        ("cut off", "voxels", "To fix it"),
        ("zip of pickles", "voxels", "save the arrays again"),
        ("", "fsaverag5", "did you mean 'fsaverage5'"),
    ],
)
def test_a_damaged_file_is_refused_with_a_remedy(kind, space, remedy, values, tmp_path):
    path, ids = _damaged(kind, tmp_path, values)
    with pytest.raises((DataError, ConfigError), match=remedy):
        read_responses(path, ids, space=space)


def test_predictions_of_another_encoder_reach_the_images_of_a_study(values, tmp_path):
    study = load_study("planted", n_test=5, **SMALL)
    test = study.set("test")
    order = [2, 0, 4, 3, 1]
    np.savez(tmp_path / "p.npz", responses=values[order], ids=np.asarray(test.ids, str)[order])
    found = read_responses(tmp_path / "p.npz", space="voxels")
    np.testing.assert_array_equal(found.values[found.rows(test)], values)
    with pytest.raises(DataError, match="match none"):
        found.rows(study.set("val"))


def test_the_rois_of_another_subject_in_the_same_space_are_lent(images, values, tmp_path):
    atlas = load_study("planted", **SMALL).subject().atlas
    np.save(tmp_path / "r.npy", np.zeros((5, atlas.n_vertices), np.float32))
    found = read_responses(tmp_path / "r.npy", IDS, space="voxels", atlas=atlas)
    assert found.atlas.present == atlas.present and len(atlas.present) > 2
    np.save(tmp_path / "r.npy", values)
    with pytest.raises(DataError, match="take the atlas of a subject in the same space"):
        read_responses(tmp_path / "r.npy", IDS, space="voxels", atlas=atlas)


def test_an_array_of_electrodes_needs_no_surface(values, images, tmp_path):
    draw = np.random.default_rng(1)
    repeats = values[:, None] + 0.1 * draw.standard_normal((5, 3, 9)).astype(np.float32)
    repeats[2, 2] = np.nan  # one image was shown twice
    np.savez(tmp_path / "r.npz", responses=repeats, ids=IDS)
    (tmp_path / "areas.csv").write_text("area\n" + "V4\n" * 4 + "IT\n" * 5)
    options = dict(responses="r.npz", images="images", space="electrodes", name="monkey")
    person = load(tmp_path, areas="areas.csv", **options).subject()
    assert person.atlas.present == ("V4", "IT") and person.atlas.mesh is None
    np.testing.assert_array_equal(person.atlas.select("V4"), np.arange(9) < 4)
    np.testing.assert_allclose(person.responses, np.nanmean(repeats, axis=1), atol=1e-6)
    np.testing.assert_array_equal(person.repeats, repeats)
    assert ceiling_from_repeats(person.repeats).min() > 0.9
    assert load(tmp_path, **options).subject().atlas.present == ("array",)
    with pytest.raises(DataError, match=r"area of each of the 9 electrodes.*got 2 areas"):
        load(tmp_path, areas=["V4", "IT"], **options)
    with pytest.raises(ConfigError, match="areas of electrodes, with space='electrodes'"):
        load(tmp_path, areas="areas.csv", **(options | {"space": "voxels"}))
    np.save(tmp_path / "left.npy", repeats[:, :2])
    np.save(tmp_path / "right.npy", repeats)
    halves = {"left": "left.npy", "right": "right.npy"}
    with pytest.raises(DataError, match="as many images, and repeats"):
        load(tmp_path, **(options | {"responses": halves, "ids": IDS}))
    np.savez(tmp_path / "r.npz", responses=repeats[:, :1], ids=IDS)
    assert load(tmp_path, **options).subject().repeats is None
    np.savez(tmp_path / "r.npz", responses=np.full((5, 2, 9), np.nan), ids=IDS)
    with pytest.raises(DataError, match="finite responses"):
        load(tmp_path, **options)

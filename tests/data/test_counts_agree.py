"""Images and responses that differ in number are refused by each reader, with both numbers."""

import pickle
import re

import h5py
import numpy as np
import pytest
from algonauts_example import LEFT, make_subject
from nsd_example import GRID, MESH, PER_SESSION, make_root, mgh, nifti
from PIL import Image

from bmfl_lab.data import algonauts, nsd, nsd_files
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.kamitani import read_plain
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.things_eeg import read_things_eeg, read_with_images
from bmfl_lab.errors import DataError
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.models.ridge import fit_ridge

N = 24
"""Images of every reader below, which gets one response fewer or more."""


def _subject(folder, n):
    images = np.zeros((N, 8, 8, 3), np.uint8)
    stimuli = from_arrays("own", images, [str(i) for i in range(N)], np.full(N, -1))
    responses = np.zeros((n, 3), np.float32)
    return Subject("own", stimuli, responses, Atlas(np.zeros(3, np.int8), {}), {})


def _algonauts(folder, n):
    own = algonauts.write_subject(folder / "own", make_subject(N))
    (own / "bmfl_lab.json").unlink()
    values = np.zeros((n, LEFT), np.float32)
    np.save(own / "training_split/training_fmri/lh_training_fmri.npy", values)
    return algonauts.read_subject(own)


def _plain(folder, n):
    np.save(folder / "r.npy", np.zeros((n, 3), np.float32))
    return read_plain(folder / "r.npy", [f"{i}.png" for i in range(N)])


def _imported(folder, n):
    np.save(folder / "r.npy", np.zeros((n, 3), np.float32))
    return read_responses(folder / "r.npy", [str(i) for i in range(N)], space="voxels")


def _imported_hdf5(folder, n):
    with h5py.File(folder / "r.h5", "w") as opened:
        opened["responses"], opened["ids"] = np.zeros((n, 3)), [str(i) for i in range(N)]
    return read_responses(folder / "r.h5", space="voxels")


def _imported_hemispheres(folder, n):
    for side, rows in (("left", N), ("right", n)):
        np.save(folder / f"{side}.npy", np.zeros((rows, 3), np.float32))
    files = {side: folder / f"{side}.npy" for side in ("left", "right")}
    return read_responses(files, [str(i) for i in range(N)], space="voxels")


def _eeg(n, names):
    rng = np.random.default_rng(0)
    data = {"preprocessed_eeg_data": rng.normal(size=(n, 2, 3, 4)), "ch_names": ["O1", "O2", "Oz"]}
    return pickle.dumps({**data, "times": np.linspace(0, 1, 4), **names}, 4)


def _things_eeg(folder, n):
    (folder / "preprocessed_eeg_test.npy").write_bytes(_eeg(n, {}))
    return read_things_eeg(folder, ids=[str(i) for i in range(N)])


def _things_eeg_unpacked(folder, n):
    (folder / "sub-01").mkdir()
    (folder / "sub-01/preprocessed_eeg_test.npy").write_bytes(_eeg(n, {}))
    pictures = folder / "image_set/test_images"
    pictures.mkdir(parents=True)
    for i in range(N):
        Image.new("RGB", (8, 8)).save(pictures / f"{i}.png")
    names = {"test_img_files": np.array([f"{i}.png" for i in range(N)])}
    np.save(folder / "image_set/image_metadata.npy", names)
    return read_with_images(folder / "sub-01")


def _nsd_surface(folder, n):
    root = make_root(folder)
    betas = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    for side in ("lh", "rh"):
        values = np.random.default_rng(0).normal(size=(MESH, PER_SESSION + n - N))
        mgh(betas / f"{side}.betas_session02.mgh", values)
    return nsd.read_subject(root, 1)


def _nsd_one_hemisphere(folder, n):
    root = make_root(folder)
    betas = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    values = np.random.default_rng(0).normal(size=(MESH, PER_SESSION + n - N))
    mgh(betas / "rh.betas_session02.mgh", values)
    return nsd.read_subject(root, 1)


def _nsd_volume(folder, n):
    root = make_root(folder)
    betas = root / f"nsddata_betas/ppdata/subj01/func1pt8mm/{nsd.BETAS}"
    (betas / "betas_session02.hdf5").unlink()
    values = np.random.default_rng(0).integers(-9, 9, (*GRID, PER_SESSION + n - N))
    nifti(betas / "betas_session02.nii.gz", values.astype(np.int16))
    return nsd.read_subject(root, 1, space="func1pt8mm")


def _ridge(folder, n):
    rng = np.random.default_rng(0)
    return fit_ridge(rng.normal(size=(N, 4)), rng.normal(size=(n, 3)))


def _pearson(folder, n):
    rng = np.random.default_rng(0)
    return pearson(rng.normal(size=(N, 4)), rng.normal(size=(n, 4)))


READERS = {
    f.__name__[1:]: f
    for f in (
        *(_subject, _algonauts, _plain, _imported, _imported_hdf5, _imported_hemispheres),
        *(_things_eeg, _things_eeg_unpacked, _nsd_surface, _nsd_one_hemisphere, _nsd_volume),
        *(_ridge, _pearson),
    )
}


@pytest.mark.parametrize("more", [-1, 1], ids=["fewer", "more"])
@pytest.mark.parametrize("reader", READERS)
def test_other_numbers_of_images_and_responses_are_refused(reader, more, tmp_path, monkeypatch):
    monkeypatch.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    n = PER_SESSION if reader.startswith("nsd") else N
    with pytest.raises(DataError) as error:
        READERS[reader](tmp_path, N + more)
    wanted, got = str(error.value).split("To fix it:")[0].split("; got ")
    assert {str(n), str(n + more)} <= set(re.findall(r"\d+", f"{wanted} {got}")), error.value

"""The remedies of `bmfl_lab.data` about files of arrays and tables, each followed."""

import io
import re
import zipfile

import h5py
import nibabel
import numpy as np
from following import follows
from scipy.io import savemat

from bmfl_lab.data import containers, pickles
from bmfl_lab.data.containers import (
    load_image,
    load_mat,
    open_gifti,
    open_hdf5,
    open_npz,
    read_hdf5,
)
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.pickles import read_mapping, read_pickled_arrays, write_mapping
from bmfl_lab.evaluation.axes import read_axes

VALUES = np.random.default_rng(0).standard_normal((40, 50))


def save_hdf5(path, name="data", values=VALUES, **options):
    """Write an HDF5 file with one array."""
    with h5py.File(path, "w") as stream:
        stream.create_dataset(name, data=values, **options)


@follows(
    ("data/containers.py", "download the file again"),
    ("data/containers.py", "give a file in the layout of its authors"),
    ("data/containers.py", "save the arrays again, closer to the top of the file"),
    (
        "data/containers.py",
        "save the arrays themselves in one file where the other files are, and give that one",
    ),
)
def test_an_hdf5_file(folder, env):
    paths = [folder / "a.h5"]
    save_hdf5(paths[-1])
    whole = paths[-1].read_bytes()
    paths[-1].write_bytes(whole[:900])
    yield lambda: read_hdf5(paths[-1], ["data"])
    paths[-1].write_bytes(whole)
    read_hdf5(paths[-1], ["data"])
    save_hdf5(paths[-1], "betas")
    yield lambda: read_hdf5(paths[-1], ["data"])
    save_hdf5(paths[-1], "data")
    read_hdf5(paths[-1], ["data"])
    save_hdf5(paths[-1], "/".join("g" * 60) + "/data")
    yield lambda: open_hdf5(paths[-1]).close()
    save_hdf5(paths[-1])
    open_hdf5(paths[-1]).close()
    paths.append(folder / "elsewhere" / "b.h5")
    paths[-1].parent.mkdir()
    with h5py.File(paths[-1], "w") as stream:
        stream["data"] = h5py.ExternalLink(str(folder / "a.h5"), "/data")
    yield lambda: open_hdf5(paths[-1]).close()
    paths.append(folder / "c.h5")
    save_hdf5(paths[-1], values=read_hdf5(folder / "a.h5", ["data"])["data"])


@follows(
    ("data/containers.py", "download the file again"),
    ("data/containers.py", "download the file again"),
    ("data/containers.py", "download the file again"),
    ("data/containers.py", "download the file again"),
)
def test_files_of_other_formats_that_are_cut_off(folder, env):
    values = VALUES[:, :, None].astype(np.float32)
    mat, nifti, mgh, gifti = (folder / f"a{end}" for end in (".mat", ".nii", ".mgz", ".gii"))
    savemat(mat, {"betas": VALUES})
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), nifti)
    nibabel.save(nibabel.MGHImage(values, np.eye(4)), mgh)
    array = nibabel.gifti.GiftiDataArray(values[:, :, 0])
    nibabel.save(nibabel.gifti.GiftiImage(darrays=[array]), gifti)
    whole = {path: path.read_bytes() for path in (mat, nifti, mgh, gifti)}
    for path, content in whole.items():
        path.write_bytes(content[:-200])
    yield lambda: load_mat(mat, ["betas"])
    mat.write_bytes(whole[mat])
    load_mat(mat, ["betas"])
    yield lambda: load_image(nifti, "betas")
    nifti.write_bytes(whole[nifti])
    load_image(nifti, "betas")
    yield lambda: load_image(mgh, "betas")
    mgh.write_bytes(whole[mgh])
    load_image(mgh, "betas")
    yield lambda: open_gifti(gifti)
    gifti.write_bytes(whole[gifti])


@follows(
    (
        "data/containers.py",
        "check where the file comes from; if it is right, save the array again in full",
    ),
    ("data/containers.py", "close other programs, or save a part of the array"),
)
def test_an_array_that_is_larger_than_its_file_or_than_the_memory(folder, env):
    env.setattr(containers, "_SMALL", 1000)
    path = folder / "a.h5"
    with h5py.File(path, "w") as stream:
        stream.create_dataset("data", (500, 500), np.float32, chunks=(10, 10))
    yield lambda: read_hdf5(path, ["data"])
    save_hdf5(path)
    read_hdf5(path, ["data"])
    env.setattr(containers, "free_memory", lambda: 9000)
    yield lambda: read_hdf5(path, ["data"])
    save_hdf5(path, values=VALUES[:20])


@follows(
    ("data/containers.py", "download it again, or save the arrays again with numpy.savez"),
    ("data/containers.py", "save the arrays again with numpy.savez"),
)
def test_an_npz_file(folder, env):
    path = folder / "a.npz"
    np.savez(path, a=VALUES)
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    yield lambda: open_npz(path).close()
    path.write_bytes(whole)
    open_npz(path).close()
    stream = io.BytesIO()
    np.save(stream, VALUES)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a", "a.npy"):
            archive.writestr(name, stream.getvalue())
    yield lambda: open_npz(path).close()
    np.savez(path, a=VALUES)


@follows(("data/containers.py", "save the arrays themselves in this file"))
def test_a_gifti_file_that_points_to_another(folder, env):
    path, values = folder / "a.func.gii", VALUES[0].astype(np.float32)
    image = nibabel.gifti.GiftiImage(darrays=[nibabel.gifti.GiftiDataArray(values)])
    nibabel.save(image, path)
    whole = path.read_text()
    assert 'ExternalFileName=""' in whole
    path.write_text(whole.replace('ExternalFileName=""', 'ExternalFileName="a.data"'))
    yield lambda: open_gifti(path)
    nibabel.save(image, path)


@follows(
    ("data/imported.py", "write a table with a column {}"),
    ("evaluation/axes.py", "give a CSV file"),
)
def test_a_table_without_the_column_that_is_needed(folder, env):
    path = folder / "ids.csv"
    np.save(folder / "betas.npy", VALUES[:2].astype(np.float32))
    path.write_text("image\na\nb\n")
    remedy = yield lambda: read_responses(folder / "betas.npy", path, space="voxels")
    path.write_text(path.read_text().replace("image", re.search(r"column '(\w+)'", remedy)[1]))
    read_responses(folder / "betas.npy", path, space="voxels")
    path = folder / "axes.csv"
    path.write_text("class;animacy\nbird;1\nbus;0\n")
    yield lambda: read_axes(path, ("bird", "bus"))
    path.write_text(path.read_text().replace(";", ","))


@follows(
    (
        "data/pickles.py",
        "give the file of labels and names, mapping_*.npy, which is much smaller",
    ),
    ("data/pickles.py", "download the file again, or write it with write_mapping"),
    ("data/pickles.py", "correct the mapping"),
)
def test_a_table_of_labels(folder, env):
    np.save(folder / "lh.all_voxels.npy", np.zeros(20_000, np.int64))
    write_mapping(folder / "mapping_floc-bodies.npy", {1: "EBA"})
    found = [folder / "lh.all_voxels.npy"]
    remedy = yield lambda: read_mapping(found[-1])
    pattern = remedy.partition("names, ")[2].partition(",")[0]
    found += folder.glob(pattern)
    read_mapping(found[-1])
    np.save(found[-1], np.arange(3))
    remedy = yield lambda: read_mapping(found[-1])
    getattr(pickles, remedy.split()[-1])(found[-1], {1: "EBA"})
    read_mapping(found[-1])
    mapping = {1: 2}
    yield lambda: write_mapping(found[-1], mapping)
    mapping[1] = "EBA"


@follows(
    (
        "data/pickles.py",
        "download the file again, or save the dictionary of its arrays with numpy.save",
    )
)
def test_a_pickled_dictionary(folder, env):
    path = folder / "eeg.npy"
    np.save(path, np.array([{1, 2}], dtype=object))
    yield lambda: read_pickled_arrays(path)
    np.save(path, {"times": np.arange(3)})

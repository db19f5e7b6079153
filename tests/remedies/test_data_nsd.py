"""The remedies of `bmfl_lab.data.nsd` and `bmfl_lab.data.nsd_files`, each followed."""

import re
import shutil
from functools import cache

import h5py
import nibabel
import numpy as np
import scipy.io
from following import follows
from nsd_example import GRID, MESH, PER_SESSION, make_root, mgh, nifti

from bmfl_lab import load_study
from bmfl_lab.data import nsd, nsd_files

BETAS = f"nsddata_betas/ppdata/subj01/{{}}/{nsd.BETAS}"
SURFACE, VOLUME = BETAS.format("fsaverage"), BETAS.format("func1pt8mm")
LABEL, OWN_LABEL = (f"nsddata/freesurfer/{name}/label" for name in ("fsaverage", "subj01"))
ROI = "nsddata/ppdata/subj01/func1pt8mm/roi"
TRANSFORM = "nsddata/ppdata/subj01/transforms/{}.white-to-fsaverage.mgz"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
whole = cache(lambda base: make_root(base / "served-nsd"))


def own_copy(folder, env):
    env.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    return shutil.copytree(whole(folder.parent), folder / "nsd")


def again(folder, *paths):
    """Take files from the whole copy once more."""
    for path in paths:
        shutil.copy(whole(folder.parent) / path, folder / "nsd" / path)


def values(path):
    return np.squeeze(np.asarray(nibabel.load(path).dataobj))


@follows(("data/study.py", "pass {}=..."))
def test_a_study_without_a_root(folder, env):
    root, options = own_copy(folder, env), {"subject": "subj01"}
    remedy = yield lambda: load_study("nsd", **options)
    options[re.search(r"pass (\w+)=\.\.\.", remedy)[1]] = root


@follows(
    ("data/nsd.py", "choose a space and a subject from these"),
    ("data/nsd.py", "pass space={}"),
    (
        "data/nsd.py",
        "name each session once, for example sessions=[1, 2], or leave out the option for all",
    ),
)
def test_what_is_read(folder, env):
    root = own_copy(folder, env)
    options = {"subject": 9}
    yield lambda: nsd.read_subject(root, **options)
    options["subject"] = 1
    shutil.rmtree(root / SURFACE)
    remedy = yield lambda: nsd.read_subject(root, **options)
    options["space"] = re.search(r"space='(\w+)'", remedy)[1]
    nsd.read_subject(root, **options)
    options["sessions"] = [1, 1]
    remedy = yield lambda: nsd.read_subject(root, **options)
    found = re.search(r"(\w+)=\[([\d, ]+)\]", remedy)
    options[found[1]] = [int(n) for n in found[2].split(",")]


@follows(("data/nsd.py", "download betas_session01 and so on of this subject into this folder"))
def test_a_subject_without_betas(folder, env):
    root = own_copy(folder, env)
    (root / "nsddata_betas").rename(folder / "elsewhere")
    yield lambda: nsd.read_subject(root, 1)
    (folder / "elsewhere").rename(root / "nsddata_betas")


@follows(("data/nsd.py", "leave out unseen images"))
def test_the_noise_ceiling_of_unseen_images(folder, env):
    counts, ncsnr = [np.array([3, 0, 2])], np.array([0.5, 0.7])
    yield lambda: nsd.noise_ceiling(ncsnr, counts[-1])
    counts.append(counts[-1][counts[-1] > 0])


@follows(("data/nsd.py", "read other sessions"))
def test_no_vertex_is_finite_in_all_sessions(folder, env):
    root, options = own_copy(folder, env), {"nan_policy": "drop"}
    for side, session in (("lh", 1), ("rh", 2)):
        path = root / SURFACE / f"{side}.betas_session{session:02d}.mgh"
        mgh(path, np.full((MESH, PER_SESSION), np.nan))
    yield lambda: nsd.read_subject(root, 1, **options)
    options["sessions"] = [2]


@follows(
    ("data/nsd.py", "use betas in fsaverage space"),
    ("data/nsd.py", "download the session again"),
    ("data/nsd.py", "download the session again"),
    ("data/nsd.py", "use the maps in fsaverage space"),
)
def test_betas_on_the_surface(folder, env):
    root = own_copy(folder, env)
    left, right = (f"{SURFACE}/{side}.betas_session02.mgh" for side in ("lh", "rh"))
    betas = values(root / left)
    mgh(root / left, betas[1:])
    yield lambda: nsd.read_subject(root, 1)
    mgh(root / left, betas[:, 1:])
    yield lambda: nsd.read_subject(root, 1)
    mgh(root / right, betas[:, 1:])
    yield lambda: nsd.read_subject(root, 1)
    again(folder, left, right)
    mgh(root / SURFACE / "lh.ncsnr.mgh", np.ones(MESH - 1))
    yield lambda: nsd.read_subject(root, 1)
    again(folder, f"{SURFACE}/lh.ncsnr.mgh")


def transforms(root, size, change=lambda source: source):
    for side in ("lh", "rh"):
        mgh(root / TRANSFORM.format(side), change(np.arange(MESH) % size + 1.0))


@follows(
    (
        "data/nsd.py",
        "put labels on fsaverage there, and those of the subject's own surface into its own folder",
    ),
    ("data/nsd.py", "download the two transforms from NSD"),
    ("data/nsd.py", "download the file again from NSD"),
    ("data/nsd.py", "use labels and transforms of one subject"),
)
def test_labels_of_the_subjects_own_surface(folder, env):
    root, size = own_copy(folder, env), 41
    for side in ("lh", "rh"):
        mgh(root / LABEL / f"{side}.floc-faces.mgz", np.arange(size) % 2)
    (root / LABEL / "floc-faces.mgz.ctab").write_text("0 Unknown 0 0 0 0\n1 OFA 1 2 3 0\n")
    yield lambda: nsd.read_subject(root, 1)
    (root / OWN_LABEL).mkdir(parents=True)
    for path in (root / LABEL).glob("*floc-faces*"):
        path.rename(root / OWN_LABEL / path.name)
    yield lambda: nsd.read_subject(root, 1)
    transforms(root, size)
    nsd.read_subject(root, 1)
    transforms(root, size, lambda source: source - 1)
    yield lambda: nsd.read_subject(root, 1)
    transforms(root, size)
    nsd.read_subject(root, 1)
    transforms(root, size, lambda source: source + 1)
    yield lambda: nsd.read_subject(root, 1)
    transforms(root, size)


@follows(
    ("data/nsd.py", "download the masks again"),
    ("data/nsd.py", "use the labels in func1pt8mm"),
    ("data/nsd.py", "use the map in func1pt8mm"),
)
def test_files_of_the_volume(folder, env):
    root = own_copy(folder, env)
    masks = [f"{ROI}/{side}.nsdgeneral.nii.gz" for side in ("lh", "rh")]

    def read():
        return nsd.read_subject(root, 1, space="func1pt8mm")

    shutil.copy(root / masks[0], root / masks[1])
    yield read
    again(folder, masks[1])
    read()
    (root / OWN_LABEL).mkdir(parents=True)
    (root / OWN_LABEL / "streams.mgz.ctab").write_text("0 Unknown 0 0 0 0\n1 early 1 2 3 0\n")
    labels = np.ones(GRID, np.int16)
    for side in ("lh", "rh"):
        nifti(root / ROI / f"{side}.streams.nii.gz", labels[1:])
    yield read
    for side in ("lh", "rh"):
        nifti(root / ROI / f"{side}.streams.nii.gz", labels)
    read()
    nifti(root / VOLUME / "ncsnr.nii.gz", np.ones(GRID, np.float32)[1:])
    yield read
    again(folder, f"{VOLUME}/ncsnr.nii.gz")


@follows(
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "use both files of one NSD release"),
    ("data/nsd_files.py", "download the file again from NSD"),
)
def test_the_order_of_the_stimuli(folder, env):
    root = own_copy(folder, env)

    def read():
        return nsd.read_subject(root, 1)

    right = scipy.io.loadmat(root / DESIGN)
    right = {name: right[name] for name in ("masterordering", "subjectim", "sharedix")}
    for change in ({"sharedix": "abc"}, {"masterordering": right["masterordering"] + 10}):
        scipy.io.savemat(root / DESIGN, right | change)
        yield read
        again(folder, DESIGN)
        read()
    scipy.io.savemat(root / DESIGN, right | {"masterordering": right["masterordering"][:, ::-1]})
    yield read
    again(folder, DESIGN, nsd.STIM_INFO)
    read()
    table = root / nsd.STIM_INFO
    line = next(line for line in table.read_text().splitlines()[1:] if not line.endswith(",0,0,0"))
    table.write_text(f"{table.read_text()}\n{line}")
    yield read
    again(folder, nsd.STIM_INFO)


@follows(
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "subtract 1 from 73k ids"),
)
def test_the_images(folder, env):
    root = own_copy(folder, env)
    with h5py.File(root / STIMULI, "a") as stream:
        stream.move("imgBrick", "other")
    numbers = [np.arange(1, 15)]
    yield lambda: nsd_files.open_stimuli(root / STIMULI, numbers[-1] - 1)
    again(folder, STIMULI)
    nsd_files.open_stimuli(root / STIMULI, numbers[-1] - 1)
    remedy = yield lambda: nsd_files.open_stimuli(root / STIMULI, numbers[-1])
    numbers.append(numbers[-1] - int(re.search(r"subtract (\d)", remedy)[1]))


@follows(
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "download the file again from NSD"),
    ("data/nsd_files.py", "download the file again from NSD"),
)
def test_damaged_betas_and_labels(folder, env):
    root, space = own_copy(folder, env), ["fsaverage"]

    def read():
        return nsd.read_subject(root, 1, space=space[-1])

    betas, labels = f"{SURFACE}/lh.betas_session01.mgh", f"{LABEL}/lh.streams.mgz"
    mgh(root / betas, np.ones(MESH))
    yield read
    again(folder, betas)
    mgh(root / labels, np.arange(MESH) % 3 + 0.5)
    yield read
    again(folder, labels)
    (root / LABEL / "streams.mgz.ctab").write_text("1 early 1 2 3 0\n")
    yield read
    again(folder, f"{LABEL}/streams.mgz.ctab")
    read()
    space.append("func1pt8mm")
    betas = f"{VOLUME}/betas_session01.hdf5"
    with h5py.File(root / betas, "a") as stream:
        stream.move("betas", "beta")
    yield read
    (root / betas).unlink()
    betas = f"{VOLUME}/betas_session01.nii.gz"
    nifti(root / betas, np.ones(GRID, np.int16))
    yield read
    nifti(root / betas, np.ones((*GRID, PER_SESSION), np.float32))
    yield read
    again(folder, betas)

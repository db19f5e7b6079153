"""NSD's own layout, small: files as NSD writes them, with random content."""

import h5py
import nibabel
import numpy as np
import scipy.io

from bmfl_lab.data import nsd

MESH, GRID, PER_SESSION, IMAGES = 60, (5, 6, 4), 12, 14


def mgh(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.asarray(data, np.float32).reshape(len(data), 1, 1, *np.shape(data)[1:])
    nibabel.save(nibabel.MGHImage(data, np.eye(4)), str(path))


def nifti(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), str(path))


def make_root(folder):
    """Two sessions of PER_SESSION trials, 10 seen images, on a small mesh and a small grid."""
    rng = np.random.default_rng(0)
    ordering = np.concatenate([np.arange(1, 11), rng.integers(1, 11, 14)])
    images = np.stack([rng.permutation(IMAGES)[:10] + 1 for _ in range(8)])
    experiment = folder / "nsddata/experiments/nsd"
    experiment.mkdir(parents=True)
    scipy.io.savemat(
        experiment / "nsd_expdesign.mat",
        {"masterordering": ordering[None], "subjectim": images, "sharedix": images[0, :2][None]},
    )
    seen = images[0, ordering - 1] - 1
    columns = [f"subject1_rep{r}" for r in range(3)]
    lines = ["nsdId,shared1000," + ",".join(columns)]
    for image in range(IMAGES):
        trials = [*(np.flatnonzero(seen == image) + 1)[:3], 0, 0, 0][:3]
        lines.append(f"{image},{image + 1 in images[0, :2]}," + ",".join(map(str, trials)))
    (experiment / "nsd_stim_info_merged.csv").write_text("\n".join(lines))
    stimuli = folder / "nsddata_stimuli/stimuli/nsd"
    stimuli.mkdir(parents=True)
    with h5py.File(stimuli / "nsd_stimuli.hdf5", "w") as stream:
        stream["imgBrick"] = np.arange(IMAGES, dtype=np.uint8)[:, None, None, None] * np.ones(
            (1, 8, 8, 3), np.uint8
        )
    label = folder / "nsddata/freesurfer/fsaverage/label"
    betas = folder / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    for side in ("lh", "rh"):
        mgh(label / f"{side}.nsdgeneral.mgz", rng.integers(0, 2, MESH))
        mgh(label / f"{side}.streams.mgz", np.arange(MESH) % 3)
        mgh(betas / f"{side}.ncsnr.mgh", rng.uniform(0.2, 1, MESH))
        for session in (1, 2):
            mgh(
                betas / f"{side}.betas_session{session:02d}.mgh",
                rng.standard_normal((MESH, PER_SESSION)) * 3 + 5,
            )
    (label / "streams.mgz.ctab").write_text(
        "0 Unknown 0 0 0 0\n1 early 1 2 3 0\n2 midventral 4 5 6 0\n"
    )
    volume = folder / f"nsddata_betas/ppdata/subj01/func1pt8mm/{nsd.BETAS}"
    roi = folder / "nsddata/ppdata/subj01/func1pt8mm/roi"
    mask = rng.integers(0, 2, GRID).astype(np.int16)
    half = np.arange(GRID[0])[:, None, None] < 2
    nifti(roi / "lh.nsdgeneral.nii.gz", np.where(half, mask, 0).astype(np.int16))
    nifti(roi / "rh.nsdgeneral.nii.gz", np.where(half, 0, mask).astype(np.int16))
    nifti(volume / "ncsnr.nii.gz", rng.uniform(0.2, 1, GRID).astype(np.float32))
    volume.mkdir(parents=True, exist_ok=True)
    for session in (1, 2):
        data = rng.integers(-3000, 3000, (*GRID, PER_SESSION)).astype(np.int16)
        nifti(volume / f"betas_session{session:02d}.nii.gz", data)
        with h5py.File(volume / f"betas_session{session:02d}.hdf5", "w") as stream:
            stream["betas"] = data.transpose(3, 2, 1, 0)
    return folder


def inside(root, side):
    label = root / "nsddata/freesurfer/fsaverage/label"
    return np.asarray(nibabel.load(str(label / f"{side}.nsdgeneral.mgz")).dataobj).ravel() > 0


def damage_vertex(root, side, session, vertex, value):
    """Put `value` into one trial of one vertex of nsdgeneral; return the vertex's place on the mesh."""
    base = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    path = base / f"{side}.betas_session{session:02d}.mgh"
    data = np.asarray(nibabel.load(str(path)).dataobj).reshape(MESH, -1).copy()
    place = np.flatnonzero(inside(root, side))[vertex]
    data[place, 3] = value
    mgh(path, data)
    return place

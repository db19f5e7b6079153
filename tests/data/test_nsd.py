"""NSD's own layout, written small with nibabel, h5py and scipy and read back."""

import tracemalloc

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io

from bmfl_lab.data import nsd, nsd_files
from bmfl_lab.errors import ConfigError, DataError

MESH, GRID, PER_SESSION, IMAGES = 60, (5, 6, 4), 12, 14


def mgh(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.asarray(data, np.float32).reshape(len(data), 1, 1, *np.shape(data)[1:])
    nibabel.save(nibabel.MGHImage(data, np.eye(4)), str(path))


def nifti(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), str(path))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two sessions of 12 trials, 10 seen images, on a small mesh and a small grid."""
    monkeypatch.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    rng = np.random.default_rng(0)
    ordering = np.concatenate([np.arange(1, 11), rng.integers(1, 11, 14)])
    images = np.stack([rng.permutation(IMAGES)[:10] + 1 for _ in range(8)])
    experiment = tmp_path / "nsddata/experiments/nsd"
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
    stimuli = tmp_path / "nsddata_stimuli/stimuli/nsd"
    stimuli.mkdir(parents=True)
    with h5py.File(stimuli / "nsd_stimuli.hdf5", "w") as stream:
        stream["imgBrick"] = np.arange(IMAGES, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    label = tmp_path / "nsddata/freesurfer/fsaverage/label"
    betas = tmp_path / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    for side in ("lh", "rh"):
        mgh(label / f"{side}.nsdgeneral.mgz", rng.integers(0, 2, MESH))
        mgh(label / f"{side}.streams.mgz", np.arange(MESH) % 3)
        mgh(betas / f"{side}.ncsnr.mgh", rng.uniform(0.2, 1, MESH))
        for session in (1, 2):
            mgh(betas / f"{side}.betas_session{session:02d}.mgh", rng.standard_normal((MESH, PER_SESSION)) * 3 + 5)
    (label / "streams.mgz.ctab").write_text("0 Unknown 0 0 0 0\n1 early 1 2 3 0\n2 midventral 4 5 6 0\n")
    volume = tmp_path / f"nsddata_betas/ppdata/subj01/func1pt8mm/{nsd.BETAS}"
    roi = tmp_path / "nsddata/ppdata/subj01/func1pt8mm/roi"
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
    return tmp_path


def reference(root):
    """Averages by a plain loop over trials, in float64."""
    base = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    label = root / "nsddata/freesurfer/fsaverage/label"
    rows, shown = [], []
    design = scipy.io.loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    for session in (1, 2):
        parts = []
        for side in ("lh", "rh"):
            keep = np.asarray(nibabel.load(str(label / f"{side}.nsdgeneral.mgz")).dataobj).ravel() > 0
            data = np.asarray(nibabel.load(str(base / f"{side}.betas_session{session:02d}.mgh")).dataobj, np.float64)
            parts.append(data.reshape(MESH, -1)[keep])
        both = np.concatenate(parts)
        rows.append(((both - both.mean(1, keepdims=True)) / both.std(1, keepdims=True)).T)
        order = design["masterordering"].ravel()[(session - 1) * PER_SESSION : session * PER_SESSION]
        shown.append(design["subjectim"][0, order - 1] - 1)
    rows, shown = np.concatenate(rows), np.concatenate(shown)
    return {int(i): rows[shown == i] for i in np.unique(shown)}


def test_surface_subject_equals_a_plain_loop(root):
    subject = nsd.read_subject(root, 1, keep_repeats=True)
    truth = reference(root)
    assert [int(i[4:]) for i in subject.stimuli.ids] == sorted(truth)
    for row, image in enumerate(sorted(truth)):
        np.testing.assert_allclose(subject.responses[row], truth[image].mean(0), atol=2e-5)
        n = min(3, len(truth[image]))
        np.testing.assert_allclose(subject.repeats[row, :n], truth[image][:n], atol=2e-5)
        assert np.isnan(subject.repeats[row, n:]).all()
        assert (subject.stimuli.image(row) == image).all()
    assert subject.info["sessions"] == [1, 2] and "floc-faces" in subject.info["missing_classes"]
    early = subject.atlas.surface_index % 3 == 1
    np.testing.assert_array_equal(subject.atlas.rois["early"], early)
    assert len(subject.splits["test"]) == 2 and subject.info["split"]["method"] == "held-out ids"


def test_both_id_routes_agree_and_disagreement_is_refused(root):
    base = root / "nsddata/experiments/nsd"
    design = nsd_files.read_design(base / "nsd_expdesign.mat")
    trials = nsd_files.read_stim_info_trials(base / "nsd_stim_info_merged.csv", 1)
    assert len(trials) >= 10 and all(design.trials(1)[t - 1] == image for t, image in trials.items())
    shifted = {t: image + 1 for t, image in trials.items()}
    with pytest.raises(DataError, match=r"trials that differ, first trial 1"):
        nsd_files.check_trials(design, shifted, 1)


def test_volume_hdf5_and_nifti_agree(root):
    from_hdf5 = nsd.read_subject(root, 1, space="func1pt8mm")
    folder = root / f"nsddata_betas/ppdata/subj01/func1pt8mm/{nsd.BETAS}"
    raw = np.asarray(nibabel.load(str(folder / "betas_session01.nii.gz")).dataobj)
    for path in folder.glob("*.hdf5"):
        mask = np.ones(GRID, bool)
        if "01" in path.name:
            np.testing.assert_allclose(nsd_files.volume_betas(path, mask), raw[mask] / 300, rtol=1e-6)
        path.unlink()
    from_nifti = nsd.read_subject(root, 1, space="func1pt8mm")
    np.testing.assert_array_equal(from_hdf5.responses, from_nifti.responses)
    np.testing.assert_array_equal(from_hdf5.noise_ceiling, from_nifti.noise_ceiling)


def test_noise_ceiling_for_the_repeats_used():
    s = np.array([0.5, 0.0, np.nan])
    np.testing.assert_allclose(nsd_files.noise_ceiling(s, np.full(9, 3))[0], 0.25 / (0.25 + 1 / 3), rtol=1e-6)
    mixed = np.repeat([3, 2, 1], [5, 3, 2])
    np.testing.assert_allclose(
        nsd_files.noise_ceiling(s, mixed)[0], 0.25 / (0.25 + (5 / 3 + 3 / 2 + 2) / 10), rtol=1e-6
    )
    assert np.isnan(nsd_files.noise_ceiling(s, mixed)[1:]).all()
    with pytest.raises(DataError, match="at least one repeat"):
        nsd_files.noise_ceiling(s, np.array([0, 1]))


@pytest.mark.parametrize("sessions", [(1,), (1, 2)])
def test_ceiling_counts_the_presentations_that_were_averaged(root, sessions):
    subject = nsd.read_subject(root, 1, sessions=sessions)
    shown = nsd_files.read_design(root / "nsddata/experiments/nsd/nsd_expdesign.mat").trials(1)[: 12 * len(sessions)]
    counts = [int(np.sum(shown == int(i[4:]))) for i in subject.stimuli.ids]
    assert min(counts) >= 1 and max(counts) > 1
    base = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    label = root / "nsddata/freesurfer/fsaverage/label"
    s = []
    for side in ("lh", "rh"):
        keep = np.asarray(nibabel.load(str(label / f"{side}.nsdgeneral.mgz")).dataobj).ravel() > 0
        s.append(np.asarray(nibabel.load(str(base / f"{side}.ncsnr.mgh")).dataobj).ravel()[keep])
    s = np.concatenate(s).astype(np.float64)
    r1, r2, r3 = (counts.count(k) for k in (1, 2, 3))
    more = sum(1 / c for c in counts if c > 3)
    expected = s**2 / (s**2 + (r3 / 3 + r2 / 2 + r1 + more) / len(counts))
    np.testing.assert_allclose(subject.noise_ceiling, expected, rtol=1e-5)
    assert subject.info["repeats_used"] == {k: counts.count(k) for k in sorted(set(counts))}


def test_volume_rois_are_named_by_their_colour_table(root):
    roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    codes = (np.arange(np.prod(GRID)).reshape(GRID) % 3).astype(np.int16)
    for side in ("lh", "rh"):
        nifti(roi / f"{side}.floc-faces.nii.gz", np.where(codes == 0, -1, codes).astype(np.int16))  # -1: no cortex
    table = root / "nsddata/freesurfer/subj01/label"
    table.mkdir(parents=True)
    (table / "floc-faces.mgz.ctab").write_text("0 Unknown 0 0 0 0\n1 OFA 1 2 3 0\n2 FFA-1 4 5 6 0\n")
    subject = nsd.read_subject(root, 1, space="func1pt8mm")
    inside = [np.asarray(nibabel.load(str(roi / f"{s}.nsdgeneral.nii.gz")).dataobj) > 0 for s in ("lh", "rh")]
    flat = np.concatenate([codes[m] for m in inside])
    np.testing.assert_array_equal(subject.atlas.rois["OFA"], flat == 1)
    np.testing.assert_array_equal(subject.atlas.rois["FFA-1"], flat == 2)
    assert subject.atlas.surface_index is None and "floc-faces" not in subject.info["missing_classes"]


def test_one_session_in_memory_at_a_time():
    n_vertices, n_trials = 4000, nsd_files.TRIALS_PER_SESSION
    trials = np.tile(np.arange(50), 8 * n_trials // 50)
    tracemalloc.start()
    rng = np.random.default_rng(0)
    nsd._average(
        lambda s: rng.standard_normal((n_vertices, n_trials), dtype=np.float32),
        list(range(1, 9)),
        trials,
        n_vertices,
        False,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    session = n_vertices * n_trials * 4
    assert session < peak < 2.6 * session  # eight sessions would need more than eight


def test_damage_is_refused_with_the_place_inside_the_file(root):
    design = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
    stimuli = root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    with pytest.raises(DataError, match=r"0-based numbers 0..13"):
        nsd_files.open_stimuli(stimuli, [14])
    with h5py.File(stimuli, "a") as stream:
        stream.move("imgBrick", "other")
    with pytest.raises(DataError, match=r"nsd_stimuli.hdf5:/imgBrick, uint8"):
        nsd_files.open_stimuli(stimuli, [0])
    stimuli.write_bytes(b"damaged")
    with pytest.raises(DataError, match="an HDF5 file"):
        nsd_files.open_stimuli(stimuli, [0])
    scipy.io.savemat(design, {"masterordering": np.ones((1, 4)), "subjectim": np.ones((8, 4))})
    with pytest.raises(DataError, match=r"nsd_expdesign.mat:sharedix, numbers from 1"):
        nsd_files.read_design(design)
    design.write_bytes(b"x" * 300)
    with pytest.raises(DataError, match="a MATLAB file"):
        nsd_files.read_design(design)
    folder = root / f"nsddata_betas/ppdata/subj01/func1pt8mm/{nsd.BETAS}"
    with h5py.File(folder / "betas_session01.hdf5", "a") as stream:
        stream.move("betas", "beta")
    with pytest.raises(DataError, match=r"hdf5:/betas with four axes; got \['beta'\]"):
        nsd_files.volume_betas(folder / "betas_session01.hdf5", np.ones(GRID, bool))
    with pytest.raises(DataError, match="int16 betas on the grid"):
        nsd_files.volume_betas(folder / "betas_session02.hdf5", np.ones((2, 2, 2), bool))
    with pytest.raises(ConfigError, match="a space among"):
        nsd.read_subject(root, 9)


def test_labels_without_a_name_and_betas_with_nan(root):
    label = root / "nsddata/freesurfer/fsaverage/label"
    (label / "streams.mgz.ctab").write_text("1 early 0 0 0 0\n")
    with pytest.raises(DataError, match=r"none for \[2\]"):
        nsd_files.read_labels(label / "lh.streams.mgz", label / "streams.mgz.ctab")
    with pytest.raises(DataError, match="1 vertices with NaN or infinity"):
        nsd._average(lambda s: np.full((1, PER_SESSION), np.nan, np.float32), [1], np.arange(PER_SESSION), 1, False)


def test_constant_vertices_become_zero_and_are_counted():
    z, constant = nsd.zscore_session(np.array([[2, 2, 2], [1, 2, 3]], np.float32))
    assert constant.tolist() == [True, False] and (z[0] == 0).all()
    np.testing.assert_allclose(z[1], [-1.2247449, 0, 1.2247449], rtol=1e-6)

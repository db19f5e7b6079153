"""NSD's own layout, written small with nibabel, h5py and scipy and read back."""

import tracemalloc

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
from nsd_example import GRID, MESH, PER_SESSION, damage_vertex, inside, make_root, mgh, nifti

from bmfl_lab.data import nsd, nsd_files
from bmfl_lab.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    return make_root(tmp_path)


def reference(root):
    """Averages by a plain loop over trials, in float64."""
    base = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    rows, shown = [], []
    design = scipy.io.loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    for session in (1, 2):
        parts = []
        for side in ("lh", "rh"):
            keep = inside(root, side)
            data = np.asarray(
                nibabel.load(str(base / f"{side}.betas_session{session:02d}.mgh")).dataobj,
                np.float64,
            )
            parts.append(data.reshape(MESH, -1)[keep])
        both = np.concatenate(parts)
        rows.append(((both - both.mean(1, keepdims=True)) / both.std(1, keepdims=True)).T)
        order = design["masterordering"].ravel()[
            (session - 1) * PER_SESSION : session * PER_SESSION
        ]
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
    assert len(trials) >= 10 and all(
        design.trials(1)[t - 1] == image for t, image in trials.items()
    )
    shifted = {t: image + 1 for t, image in trials.items()}
    with pytest.raises(DataError, match=r"trials that differ, first trial \[1\]"):
        nsd_files.check_trials(design, shifted, 1)


def test_volume_hdf5_and_nifti_agree(root):
    from_hdf5 = nsd.read_subject(root, 1, space="func1pt8mm")
    folder = root / f"nsddata_betas/ppdata/subj01/func1pt8mm/{nsd.BETAS}"
    raw = np.asarray(nibabel.load(str(folder / "betas_session01.nii.gz")).dataobj)
    for path in folder.glob("*.hdf5"):
        mask = np.ones(GRID, bool)
        if "01" in path.name:
            np.testing.assert_allclose(
                nsd_files.volume_betas(path, mask), raw[mask] / 300, rtol=1e-6
            )
        path.unlink()
    from_nifti = nsd.read_subject(root, 1, space="func1pt8mm")
    np.testing.assert_array_equal(from_hdf5.responses, from_nifti.responses)
    np.testing.assert_array_equal(from_hdf5.noise_ceiling, from_nifti.noise_ceiling)


def test_noise_ceiling_for_the_repeats_used():
    s = np.array([0.5, 0.0, np.nan])
    np.testing.assert_allclose(
        nsd.noise_ceiling(s, np.full(9, 3))[0], 0.25 / (0.25 + 1 / 3), rtol=1e-6
    )
    mixed = np.repeat([3, 2, 1], [5, 3, 2])
    np.testing.assert_allclose(
        nsd.noise_ceiling(s, mixed)[0], 0.25 / (0.25 + (5 / 3 + 3 / 2 + 2) / 10), rtol=1e-6
    )
    assert np.isnan(nsd.noise_ceiling(s, mixed)[1:]).all()
    with pytest.raises(DataError, match="at least one repeat"):
        nsd.noise_ceiling(s, np.array([0, 1]))


@pytest.mark.parametrize("sessions", [(1,), (1, 2)])
def test_ceiling_counts_the_presentations_of_the_test_images(root, sessions):
    subject = nsd.read_subject(root, 1, sessions=sessions)
    shown = nsd_files.read_design(root / "nsddata/experiments/nsd/nsd_expdesign.mat").trials(1)[
        : 12 * len(sessions)
    ]
    counts = [int(np.sum(shown == int(i[4:]))) for i in subject.stimuli.ids]
    scored = [counts[row] for row in subject.splits["test"]]
    base = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    s = []
    for side in ("lh", "rh"):
        keep = inside(root, side)
        s.append(np.asarray(nibabel.load(str(base / f"{side}.ncsnr.mgh")).dataobj).ravel()[keep])
    s = np.concatenate(s).astype(np.float64)
    r1, r2, r3 = (scored.count(k) for k in (1, 2, 3))
    more = sum(1 / c for c in scored if c > 3)
    share = (r3 / 3 + r2 / 2 + r1 + more) / len(scored)
    np.testing.assert_allclose(subject.noise_ceiling, s**2 / (s**2 + share), rtol=1e-5)
    over_all = float(np.mean(1 / np.asarray(counts, float)))
    assert abs(over_all - share) > 0.02  # the images that are not scored have other repeats
    assert subject.info["repeats_used"] == {k: counts.count(k) for k in sorted(set(counts))}
    assert subject.info["noise_ceiling"]["repeats"] == {
        k: scored.count(k) for k in sorted(set(scored))
    }


def test_vertices_with_nan_in_any_session_are_refused_or_dropped_from_everything(root):
    whole = nsd.read_subject(root, 1, keep_repeats=True)
    left = damage_vertex(root, "lh", 1, 2, np.nan)
    right = [damage_vertex(root, "rh", 2, 0, np.inf), damage_vertex(root, "rh", 1, 4, np.nan)]
    with pytest.raises(
        DataError, match=r"session 1; got NaN or infinity in 1 left and 1 right vertices.*'drop'"
    ):
        nsd.read_subject(root, 1)
    with pytest.raises(ConfigError, match="nan_policy 'refuse' or 'drop'"):
        nsd.read_subject(root, 1, nan_policy="zero")
    found = nsd.read_subject(root, 1, keep_repeats=True, nan_policy="drop")
    assert (
        found.info["dropped_vertices"] == {"left": 1, "right": 2}
        and found.info["nan_policy"] == "drop"
    )
    places, side = np.asarray(whole.atlas.surface_index), np.asarray(whole.atlas.hemisphere)
    gone = ((side == 0) & (places == left)) | ((side == 1) & np.isin(places, right))
    assert gone.sum() == 3 and found.n_vertices == whole.n_vertices - 3
    np.testing.assert_array_equal(found.responses, whole.responses[:, ~gone])
    np.testing.assert_array_equal(found.repeats, whole.repeats[:, :, ~gone])
    np.testing.assert_array_equal(found.noise_ceiling, whole.noise_ceiling[~gone])
    np.testing.assert_array_equal(found.atlas.surface_index, places[~gone])
    np.testing.assert_array_equal(found.atlas.rois["early"], whole.atlas.rois["early"][~gone])
    assert found.info["constant_vertices"] == 0


def native_labels(root, sizes, kind="floc-faces"):
    """Labels 0 to 2 on a surface of the subject's own, of `sizes` vertices, as NSD ships them."""
    label = root / "nsddata/freesurfer/subj01/label"
    rng = np.random.default_rng(5)
    maps = {side: rng.integers(0, 3, n) for side, n in zip(("lh", "rh"), sizes)}
    for side, values in maps.items():
        mgh(label / f"{side}.{kind}.mgz", values)
    (label / f"{kind}.mgz.ctab").write_text(
        "0 Unknown 0 0 0 0\n1 OFA 1 2 3 0\n2 FFA-1 4 5 6 0\n3 FFA-2 7 8 9 0\n"
    )
    return maps


@pytest.mark.parametrize(
    "sizes", [(83, 71), (MESH, MESH)], ids=["other sizes", "as many vertices as the mesh"]
)
def test_labels_of_the_own_surface_come_to_fsaverage_by_nsds_transform(root, sizes):
    maps = native_labels(root, sizes)
    with pytest.warns(
        UserWarning, match="white-to-fsaverage.mgz in .*floc-faces of subj01 are left out"
    ):
        without = nsd.read_subject(root, 1)
    assert "OFA" not in without.atlas.rois and "early" in without.atlas.rois
    assert (
        without.info["native_only_classes"] == ["floc-faces"]
        and "floc-faces" in without.info["missing_classes"]
    )
    rng = np.random.default_rng(6)
    expected = []
    for side, size in zip(("lh", "rh"), sizes):
        source = rng.integers(1, size + 1, MESH)  # NSD counts vertices from 1
        source[:2] = 1, size
        mgh(root / f"nsddata/ppdata/subj01/transforms/{side}.white-to-fsaverage.mgz", source)
        expected += [maps[side][source[v] - 1] for v in np.flatnonzero(inside(root, side))]
    found = nsd.read_subject(root, 1)
    np.testing.assert_array_equal(found.atlas.rois["OFA"], np.asarray(expected) == 1)
    np.testing.assert_array_equal(found.atlas.rois["FFA-1"], np.asarray(expected) == 2)
    assert "FFA-2" in found.atlas.absent and found.info["native_only_classes"] == []
    assert "floc-faces" not in found.info["missing_classes"]


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda s: s - 1,
            "vertex numbers from 1 in .*lh.white-to-fsaverage.mgz; got 60 values, smallest 0",
        ),
        (lambda s: s[:-1], "60 vertex numbers from 1 in .*got 59 values"),
        (lambda s: s + 0.5, "60 vertex numbers from 1"),
        (
            lambda s: s + 1,
            "labels of at least 84 vertices, to which white-to-fsaverage refers.*got 83",
        ),
    ],
    ids=["counted from 0", "short", "between vertices", "beyond the labels"],
)
def test_a_transform_that_does_not_fit_is_refused(root, change, match):
    sizes = (83, 71)
    native_labels(root, sizes)
    for side, size in zip(("lh", "rh"), sizes):
        source = np.resize(np.arange(1, size + 1), MESH).astype(float)
        source[-2:] = 1, size
        source[:1] = size
        mgh(
            root / f"nsddata/ppdata/subj01/transforms/{side}.white-to-fsaverage.mgz", change(source)
        )
    with pytest.raises(DataError, match=match):
        nsd.read_subject(root, 1)


def test_a_table_whose_numbers_are_shifted_by_one_is_refused_by_the_reader(root):
    table = root / nsd.STIM_INFO
    head, *lines = table.read_text().splitlines()
    shifted = [f"{int(line.split(',')[0]) + 1},{line.split(',', 1)[1]}" for line in lines]
    table.write_text("\n".join([head, *shifted]))  # as if nsdId were counted from 1
    with pytest.raises(
        DataError, match=r"the same image in nsd_expdesign\.mat and .*\.csv for subject 1"
    ):
        nsd.read_subject(root, 1)


@pytest.mark.parametrize(
    "damage, match",
    [
        (
            lambda t: t.replace(b"\n3,", b"\nx3,", 1),
            r"under nsdId in .*nsd_stim_info_merged.csv, line 5; got 'x3'",
        ),
        (lambda t: t.replace(b"\n3,", b"\n-3,", 1), r"line 5; got '-3'"),
        (lambda t: t[: t.rindex(b",")], r"line 15; got a short line"),
        (
            lambda t: t[:120] + b"\xff\xfe" + t[120:],
            r"a table as text in .*csv; got UnicodeDecodeError",
        ),
        (lambda t: t.replace(b"subject1_rep2", b"subject1_rep3"), r"no \['subject1_rep2'\]"),
        (lambda t: b"", "columns nsdId"),
    ],
    ids=["letters", "negative", "cut off", "no text", "other column", "empty"],
)
def test_a_damaged_table_is_refused_with_its_line(root, damage, match):
    table = root / nsd.STIM_INFO
    table.write_bytes(damage(table.read_bytes()))
    with pytest.raises(DataError, match=match):
        nsd.read_subject(root, 1)


@pytest.mark.parametrize("space", nsd.SPACES)
def test_links_out_of_the_root_need_leave(root, tmp_path_factory, space):
    name = "lh.betas_session02.mgh" if space == "fsaverage" else "betas_session02.hdf5"
    path = root / f"nsddata_betas/ppdata/subj01/{space}/{nsd.BETAS}/{name}"
    outside = tmp_path_factory.mktemp("outside") / path.name
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(DataError, match=f"files inside .*{name}, a link to .*follow_links=True"):
        nsd.read_subject(root, 1, space=space)
    assert nsd.read_subject(root, 1, space=space, follow_links=True).info["sessions"] == [1, 2]
    stimuli = root / "nsddata_stimuli"
    stimuli.rename(outside.parent / "stimuli")
    stimuli.symlink_to(outside.parent / "stimuli")
    path.unlink()
    outside.rename(path)
    with pytest.raises(DataError, match=r"nsd_stimuli\.hdf5, a link to"):
        nsd.read_subject(root, 1, space=space)


def test_volume_rois_are_named_by_their_colour_table(root):
    roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    codes = (np.arange(np.prod(GRID)).reshape(GRID) % 3).astype(np.int16)
    for side in ("lh", "rh"):
        nifti(
            roi / f"{side}.floc-faces.nii.gz", np.where(codes == 0, -1, codes).astype(np.int16)
        )  # -1: no cortex
    table = root / "nsddata/freesurfer/subj01/label"
    table.mkdir(parents=True)
    (table / "floc-faces.mgz.ctab").write_text(
        "0 Unknown 0 0 0 0\n1 OFA 1 2 3 0\n2 FFA-1 4 5 6 0\n"
    )
    subject = nsd.read_subject(root, 1, space="func1pt8mm")
    inside = [
        np.asarray(nibabel.load(str(roi / f"{s}.nsdgeneral.nii.gz")).dataobj) > 0
        for s in ("lh", "rh")
    ]
    flat = np.concatenate([codes[m] for m in inside])
    np.testing.assert_array_equal(subject.atlas.rois["OFA"], flat == 1)
    np.testing.assert_array_equal(subject.atlas.rois["FFA-1"], flat == 2)
    assert (
        subject.atlas.surface_index is None and "floc-faces" not in subject.info["missing_classes"]
    )


def test_one_session_in_memory_at_a_time():
    n_vertices, n_trials = 4000, nsd_files.TRIALS_PER_SESSION
    trials = np.tile(np.arange(50), 8 * n_trials // 50)
    tracemalloc.start()
    rng = np.random.default_rng(0)
    nsd._average(
        lambda s: rng.standard_normal((n_vertices, n_trials), dtype=np.float32),
        list(range(1, 9)),
        trials,
        np.zeros(n_vertices, np.int8),
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
    with h5py.File(stimuli, "a") as stream:
        stream.create_group("imgBrick/inner")
    with pytest.raises(DataError, match=r"nsd_stimuli.hdf5:/imgBrick, uint8 .*; got None None"):
        nsd_files.open_stimuli(stimuli, [0])
    stimuli.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"an HDF5 file .*nsd_stimuli.hdf5"):
        nsd_files.open_stimuli(stimuli, [0])
    scipy.io.savemat(design, {"masterordering": np.ones((1, 4)), "subjectim": np.ones((8, 4))})
    with pytest.raises(DataError, match=r"nsd_expdesign.mat:sharedix, numbers from 1"):
        nsd_files.read_design(design)
    for name, values, match in (
        ("masterordering", np.full((1, 4), 5), "masterordering up to 4; got 5"),
        ("masterordering", np.full((1, 4), 0.5), "masterordering, numbers from 1; got float64"),
        ("subjectim", np.zeros((8, 4)), "subjectim, numbers from 1"),
        ("sharedix", "abc", "sharedix, numbers from 1; got <U3"),
    ):
        right = dict.fromkeys(("masterordering", "subjectim", "sharedix"), np.ones((1, 4)))
        scipy.io.savemat(design, {**right, name: values})
        with pytest.raises(DataError, match=f"nsd_expdesign.mat:{match}"):
            nsd_files.read_design(design)
    design.write_bytes(b"x" * 300)
    with pytest.raises(DataError, match=r"a MATLAB file .*nsd_expdesign.mat"):
        nsd_files.read_design(design)
    folder = root / f"nsddata_betas/ppdata/subj01/func1pt8mm/{nsd.BETAS}"
    with h5py.File(folder / "betas_session01.hdf5", "a") as stream:
        stream.move("betas", "beta")
    with pytest.raises(DataError, match=r"hdf5:/betas with four axes; got \['beta'\]"):
        nsd_files.volume_betas(folder / "betas_session01.hdf5", np.ones(GRID, bool))
    with pytest.raises(DataError, match=r"int16 betas on the grid .* in .*session02.hdf5:/betas"):
        nsd_files.volume_betas(folder / "betas_session02.hdf5", np.ones((2, 2, 2), bool))
    with pytest.raises(ConfigError, match="a space among"):
        nsd.read_subject(root, 9)


def test_labels_without_a_name_are_refused(root):
    label = root / "nsddata/freesurfer/fsaverage/label"
    (label / "streams.mgz.ctab").write_text("1 early 0 0 0 0\n")
    with pytest.raises(DataError, match=r"none for \[2\]"):
        nsd_files.read_labels(label / "lh.streams.mgz", label / "streams.mgz.ctab")


def test_constant_vertices_become_zero_and_are_counted():
    z, constant = nsd.zscore_session(np.array([[2, 2, 2], [1, 2, 3]], np.float32))
    assert constant.tolist() == [True, False] and (z[0] == 0).all()
    np.testing.assert_allclose(z[1], [-1.2247449, 0, 1.2247449], rtol=1e-6)


@pytest.mark.parametrize(
    "sessions",
    [
        *([2, 2], [1, 2, 1], (), [], [0], [-1], [3], [1, 41], "12", ["1"], [1.5], [True], [None]),
        *([[1, 2], [2]], np.array([1, 1]), np.zeros(0, int)),
    ],
    ids=str,
)
def test_sessions_are_checked_before_anything_is_read(root, sessions):
    with pytest.raises(ConfigError, match=r"different sessions among \[1, 2\].* leave out the opt"):
        nsd.read_subject(root, 1, sessions=sessions)


@pytest.mark.parametrize("sessions", [[2], (2,), np.array([2]), range(2, 3), 2, np.int64(2)])
def test_sessions_may_be_given_in_any_form(root, sessions):
    assert nsd.read_subject(root, 1, sessions=sessions).info["sessions"] == [2]


def test_a_design_of_matlab_73_is_the_same_design(root):
    path = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
    before, variables = nsd_files.read_design(path), scipy.io.loadmat(path)
    with h5py.File(path, "w", userblock_size=512) as stream:
        for name in ("masterordering", "subjectim", "sharedix"):
            stream[name] = variables[name].T
    after = nsd_files.read_design(path)
    assert all(np.array_equal(getattr(before, k), getattr(after, k)) for k in vars(before))

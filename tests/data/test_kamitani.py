"""Kamitani-lab files of the true layout, generated."""

import h5py
import numpy as np
import pytest
from kamitani_example import (
    DISTRIBUTED,
    NAMES,
    NUMBERS,
    damaged,
    pictures,
    without,
    write,
    write_part,
)
from PIL import Image

from bmfl_lab.data.kamitani import read_bdata, read_plain, read_subject, stimulus_name
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import DataError


def test_reads_averages_and_orders(tmp_path):
    brain = write(tmp_path / "Subject1.h5")
    subject = read_subject(tmp_path / "Subject1.h5", pictures(tmp_path / "images"), val_share=1 / 3)
    assert (
        list(subject.stimuli.ids) == NAMES and subject.name == "Subject1" and not subject.simulated
    )
    left_first = [1, 3, 4, 0, 2, 5]
    np.testing.assert_allclose(subject.responses[0], brain[:2, left_first].mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        subject.responses[3], brain[6:9, left_first].mean(0), rtol=1e-6
    )  # imagery left out
    assert (
        subject.atlas.n_left == 3
        and list(subject.splits["test"]) == [3]
        and len(subject.splits["val"]) == 1
    )
    np.testing.assert_array_equal(subject.atlas.select("V1"), [1, 0, 0, 1, 0, 0])
    assert subject.stimuli.image(2)[0, 0, 0] == 80


def test_names_of_stimuli():
    assert [stimulus_name(n) for n in NUMBERS] == NAMES


def test_selects_by_metadata(tmp_path):
    brain = write(tmp_path / "s.h5")
    data = read_bdata(tmp_path / "s.h5")
    np.testing.assert_array_equal(data.select("ROI_FFA")[:, 0], brain[:, 4])
    assert data.rois == ("V1", "FFA")
    with pytest.raises(DataError, match="did you mean 'ROI_V1'"):
        data.select("ROI_V2")


def test_refusals(tmp_path):
    folder = pictures(tmp_path / "images")
    write(tmp_path / "leak.h5", leak=True)
    with pytest.raises(DataError, match=r"'n01443537_2655'\] in both"):
        read_subject(tmp_path / "leak.h5", folder)
    write(tmp_path / "s.h5")
    (folder / "n02128385_20.png").unlink()
    with pytest.raises(DataError, match=r"1 missing, e\.g\. \['n02128385_20'\]"):
        read_subject(tmp_path / "s.h5", folder)
    with pytest.raises(DataError, match="nothing at"):
        read_bdata(tmp_path / "no.h5")
    (tmp_path / "text.h5").write_text("<html>")
    with pytest.raises(DataError, match=r"an HDF5 file .*text\.h5; .*download the file again"):
        read_bdata(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["betas"] = np.zeros(3)
    with pytest.raises(DataError, match=r"\['dataset', .* in .*other\.h5; got \['betas'\]"):
        read_bdata(tmp_path / "other.h5")
    with h5py.File(tmp_path / "s.h5", "a") as f:
        del f["metadata/value"]
        f["metadata/value"] = np.zeros((2, 2))
    with pytest.raises(DataError, match=r"shape \(6, 8\) in .*:/metadata/value"):
        read_bdata(tmp_path / "s.h5")


def test_plain_arrays(tmp_path):
    folder = pictures(tmp_path / "images")
    paths = [str(folder / f"{n}.png") for n in NAMES]
    np.save(tmp_path / "sub-01_avg_1024d.npy", np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "test.npy", np.ones((1, 4)))
    np.save(tmp_path / "imgpaths.npy", np.asarray(paths[:3]))
    subject = read_plain(
        tmp_path / "sub-01_avg_1024d.npy",
        tmp_path / "imgpaths.npy",
        test_responses=tmp_path / "test.npy",
        test_images=paths[3:],
        val_share=1 / 3,
    )
    assert subject.responses.shape == (4, 4) and list(subject.splits["test"]) == [3]
    assert sorted([*subject.splits["train"], *subject.splits["val"]]) == [0, 1, 2]
    with pytest.raises(DataError, match=r"numeric responses of shape \(2, n_features\)"):
        read_plain(tmp_path / "sub-01_avg_1024d.npy", paths[:2])


def test_a_folder_of_files_is_a_study_and_joins_class_folders(tmp_path):
    root = tmp_path / "god"
    root.mkdir()
    for name in ("Subject1", "Subject2"):
        write(root / f"{name}.h5")
    with pytest.raises(DataError, match=r"a folder 'images' beside Subject1\.h5"):
        load_study(root)
    pictures(root / "images")
    study = load_study(root, val=0.34)
    assert (
        list(study.subjects) == ["Subject1", "Subject2"] and not study.sets and not study.simulated
    )
    assert len(study.subject("Subject2").rows("val")) == 1 and study.fingerprint()
    assert list(load_study(root, subject="Subject2").subjects) == ["Subject2"]
    with pytest.raises(DataError, match=r"a subject in god; got 'Subject'"):
        load_study(root, subject="Subject")
    for split in ("train", "val", "test"):
        for k, kind in enumerate(("cat", "dog")):
            (tmp_path / "classes" / split / kind).mkdir(parents=True)
            colour = (10 * k, 200, 60 * ("train", "val", "test").index(split) + 5)
            Image.new("RGB", (8, 8), colour).save(
                tmp_path / "classes" / split / kind / f"{split}{k}.png"
            )
    both = load_study(tmp_path / "classes", subject=root)
    assert list(both.subjects) == ["Subject1", "Subject2"] and both.class_names == ("cat", "dog")


def with_nan(keys, values, data):
    data[0, 2] = np.nan
    return keys, values, data


def as_text(keys, values, data):
    return keys, values, np.full(data.shape, b"x", dtype="S1")


def words_for_values(keys, values, data):
    return keys, np.full(values.shape, b"x", dtype="S1"), data


def fewer_columns(keys, values, data):
    return keys, values[:, :-1], data


def no_voxel(keys, values, data):
    values[0] = 0
    return keys, values, data


def unnamed(keys, values, data):
    data[0, 7] = 0
    return keys, values, data


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("VoxelData"), "a key in s.h5:/metadata/key; got 'VoxelData'"),
        (without("voxel_x"), "a key in s.h5:/metadata/key; got 'voxel_x'"),
        (without("DataType"), "a key in s.h5:/metadata/key; got 'DataType'"),
        (without("stimulus_id"), "a key in s.h5:/metadata/key; got 'stimulus_id'"),
        (
            with_nan,
            "finite responses of at least one voxel in s.h5:/dataset; got 6 voxels, some undefined",
        ),
        (as_text, r"numbers in s.h5:/dataset; got \|S1"),
        (words_for_values, r"numbers in s.h5:/metadata/value; got \|S1"),
        (fewer_columns, r"shape \(6, 8\) in s.h5:/metadata/value; got \(6, 7\) for a dataset of"),
        (no_voxel, "at least one voxel in"),
        (unnamed, "a number above 0 under 'stimulus_id' for every presentation; got 1 without"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, match):
    damaged(tmp_path / "s.h5", change)
    with pytest.raises(DataError, match=match):
        read_subject(tmp_path / "s.h5", pictures(tmp_path / "images"), val_share=1 / 3)


def test_bad_shares_folders_and_arrays_are_refused(tmp_path):
    write(tmp_path / "s.h5")
    folder = pictures(tmp_path / "images")
    with pytest.raises(DataError, match=r"a share of at least 0 and below 1; got 1\.5"):
        read_subject(tmp_path / "s.h5", folder, val_share=1.5)
    with pytest.raises(DataError, match=r"a folder; got nothing at .*nowhere"):
        read_subject(tmp_path / "s.h5", tmp_path / "nowhere")
    data = (tmp_path / "s.h5").read_bytes()
    for cut in (10, len(data) // 2, len(data) - 50):
        (tmp_path / "cut.h5").write_bytes(data[:cut])
        with pytest.raises(DataError):
            read_subject(tmp_path / "cut.h5", folder)
    paths = [str(folder / f"{n}.png") for n in NAMES]
    for bad, match in (
        (np.array([["a", "b"]] * 4), "numeric responses"),
        (np.full((4, 3), np.nan), "finite responses"),
        (np.zeros(4), "numeric responses"),
    ):
        np.save(tmp_path / "bad.npy", bad)
        with pytest.raises(DataError, match=match):
            read_plain(tmp_path / "bad.npy", paths)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        read_plain(tmp_path / "objects.npy", paths)
    np.save(tmp_path / "good.npy", np.ones((4, 3)))
    with pytest.raises(DataError, match="one name per image"):
        read_plain(tmp_path / "good.npy", [*paths[:3], paths[0]])
    np.save(tmp_path / "wide.npy", np.ones((1, 5)))
    np.save(tmp_path / "three.npy", np.ones((3, 3)))
    with pytest.raises(
        DataError, match="as many features in test as in training responses; got 5 and 3"
    ):
        read_plain(
            tmp_path / "three.npy",
            paths[:3],
            test_responses=tmp_path / "wide.npy",
            test_images=paths[3:],
        )


@pytest.mark.parametrize("name", ["Subject1.h5", "images"])
def test_links_out_of_the_folder_need_leave(tmp_path, name):
    root = tmp_path / "god"
    root.mkdir()
    write(root / "Subject1.h5")
    pictures(root / "images")
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    with pytest.raises(
        DataError, match=rf"files inside .*god/{name}, a link to .*follow_links=True"
    ):
        load_study(root)
    assert len(load_study(root, follow_links=True).subject().stimuli) == 4


def test_a_linked_image_needs_leave(tmp_path):
    write(tmp_path / "Subject1.h5")
    pictures(tmp_path / "images")
    first = sorted(p for p in (tmp_path / "images").rglob("*") if p.is_file())[0]
    first.rename(tmp_path / first.name)
    first.symlink_to(tmp_path / first.name)
    with pytest.raises(DataError, match=f"{first.name}, a link to"):
        read_subject(tmp_path / "Subject1.h5", tmp_path / "images")
    assert read_subject(tmp_path / "Subject1.h5", tmp_path / "images", follow_links=True).n_vertices


@pytest.mark.parametrize(
    "names, subject",
    [
        (
            (DISTRIBUTED.format("sub-02", "Training"), DISTRIBUTED.format("sub-02", "Test")),
            "sub-02",
        ),
        (("S1_train.h5", "S1_test.h5"), "S1"),
        (("S1-Training.h5", "S1-Test.h5"), "S1"),
        (("sub-03_NaturalImageTraining_VC.h5", "sub-03_NaturalImageTest_VC.h5"), "sub-03"),
        (("KH_perceptionTraining.h5", "KH_perceptionTest.h5"), "KH"),
        (("a_b_train_LVC.h5", "a_b_test_LVC.h5"), "a_b"),
        (("P_TRAINING.H5", "P_TEST.H5"), "P"),
        (
            ("sub-01_perceptionNaturalImageTraining.h5", "sub-01_perceptionNaturalImageTest.h5"),
            "sub-01",
        ),
    ],
)
@pytest.mark.parametrize("labels", [("stimulus_id",), ("stimulus_id", "DataType")])
def test_training_and_test_files_are_one_subject(tmp_path, names, subject, labels):
    root = tmp_path / "dir"
    root.mkdir()
    pictures(root / "images")
    write_part(root / names[0], NUMBERS[:3] * 2, 1, labels)
    write_part(root / names[1], NUMBERS[3:] * 3, 2, labels)
    write_part(root / "X_imagery_original_VC.h5", NUMBERS[3:], 9)
    study = load_study(root, val=0.34)
    found = study.subjects[subject]
    assert list(study.subjects) == [subject] and list(found.stimuli.ids) == NAMES
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert found.responses[:, 0].tolist() == [1, 1, 1, 2] and found.splits["test"].tolist() == [3]


def test_parts_of_several_subjects_stay_apart(tmp_path):
    root = tmp_path / "dir"
    pictures(tmp_path / "shown").rename(tmp_path / "images")
    for k, who in enumerate(("sub-01", "sub-02")):
        write_part(root / DISTRIBUTED.format(who, "Training"), NUMBERS[:3], k + 1)
        write_part(root / DISTRIBUTED.format(who, "Test"), NUMBERS[3:], k + 1)
    (tmp_path / "images").rename(root / "images")
    study = load_study(root)
    assert {n: s.responses[0, 0] for n, s in study.subjects.items()} == {"sub-01": 1, "sub-02": 2}
    assert list(load_study(root, subject="sub-02").subjects) == ["sub-02"]
    (root / DISTRIBUTED.format("sub-02", "Test")).unlink()
    with pytest.raises(DataError, match=r"one Training and one Test file of sub-02; .*put both"):
        load_study(root)
    assert list(load_study(root, subject="sub-01").subjects) == ["sub-01"]


def test_parts_must_agree(tmp_path):
    folder = pictures(tmp_path / "images")
    train = write_part(tmp_path / "S_train.h5", NUMBERS[:3], 1)
    moved = write_part(tmp_path / "S_test.h5", NUMBERS[3:], 1, shift=0.5)
    with pytest.raises(DataError, match=r"the same voxels and ROIs in .*files of one subject"):
        read_subject([train, moved], folder)
    shared = write_part(tmp_path / "T_test.h5", NUMBERS[:1], 1)
    with pytest.raises(DataError, match=r"'n01443537_2655' in both.*in the files of the subject"):
        read_subject([train, shared], folder)

"""Kamitani-lab files of the true layout, generated."""

import h5py
import numpy as np
import pytest
from PIL import Image

from bmfl_lab.data.kamitani import read_bdata, read_plain, read_subject, stimulus_name
from bmfl_lab.errors import DataError

NUMBERS = [1443537.002655, 1518878.005958, 2128385.000020, 3345487.010001]
NAMES = ["n01443537_2655", "n01518878_5958", "n02128385_20", "n03345487_10001"]


def write(path, leak=False):
    """Six voxels, then DataType and stimulus_id; training stimuli twice, the last stimulus a test one."""
    g = np.random.default_rng(0)
    rows = [(1, n) for n in NUMBERS[:3] for _ in range(2)] + [(2, NUMBERS[3])] * 3 + [(3, NUMBERS[3])]
    if leak:
        rows.append((2, NUMBERS[0]))
    brain = g.normal(size=(len(rows), 6))
    keys = ["VoxelData", "voxel_x", "ROI_V1", "ROI_FFA", "DataType", "stimulus_id"]
    values = np.full((6, 8), np.nan)
    values[0, :6], values[0, 6:] = 1, 0
    values[1, :6] = [5, -3, 2, -1, -7, 4]
    values[2, :6] = [1, 1, 0, 0, 0, 0]
    values[3, :6] = [0, 0, 0, 0, 1, 0]
    values[4], values[5] = np.arange(8) == 6, np.arange(8) == 7
    with h5py.File(path, "w") as f:
        f["dataset"] = np.column_stack([brain, np.asarray(rows)])
        f["metadata/key"] = np.asarray(keys, dtype="S")
        f["metadata/description"] = np.asarray(keys, dtype="S")
        f["metadata/value"] = values
    return brain


def pictures(folder):
    folder.mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (9, 8), (40 * i, 0, 0)).save(folder / f"{name}.png")
    return folder


def test_reads_averages_and_orders(tmp_path):
    brain = write(tmp_path / "Subject1.h5")
    subject = read_subject(tmp_path / "Subject1.h5", pictures(tmp_path / "images"), val_share=1 / 3)
    assert list(subject.stimuli.ids) == NAMES and subject.name == "Subject1" and not subject.simulated
    left_first = [1, 3, 4, 0, 2, 5]
    np.testing.assert_allclose(subject.responses[0], brain[:2, left_first].mean(0), rtol=1e-6)
    np.testing.assert_allclose(subject.responses[3], brain[6:9, left_first].mean(0), rtol=1e-6)  # imagery left out
    assert subject.atlas.n_left == 3 and list(subject.splits["test"]) == [3] and len(subject.splits["val"]) == 1
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
    with pytest.raises(DataError, match="'n01443537_2655' in both"):
        read_subject(tmp_path / "leak.h5", folder)
    write(tmp_path / "s.h5")
    (folder / "n02128385_20.png").unlink()
    with pytest.raises(DataError, match=r"1 missing, e\.g\. 'n02128385_20'"):
        read_subject(tmp_path / "s.h5", folder)
    with pytest.raises(DataError, match="nothing at"):
        read_bdata(tmp_path / "no.h5")
    (tmp_path / "text.h5").write_text("<html>")
    with pytest.raises(DataError, match=r"an HDF5 file in text\.h5"):
        read_bdata(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["betas"] = np.zeros(3)
    with pytest.raises(DataError, match=r"'dataset' in other\.h5; got \['betas'\]"):
        read_bdata(tmp_path / "other.h5")
    with h5py.File(tmp_path / "s.h5", "a") as f:
        del f["metadata/value"]
        f["metadata/value"] = np.zeros((2, 2))
    with pytest.raises(DataError, match=r"metadata of shape \(6, 8\)"):
        read_bdata(tmp_path / "s.h5")


def test_plain_arrays(tmp_path):
    folder = pictures(tmp_path / "images")
    paths = [str(folder / f"{n}.png") for n in NAMES]
    np.save(tmp_path / "sub-01_avg_1024d.npy", np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "test.npy", np.ones((1, 4)))
    np.save(tmp_path / "imgpaths.npy", np.asarray(paths[:3]))
    subject = read_plain(
        tmp_path / "sub-01_avg_1024d.npy", tmp_path / "imgpaths.npy",
        test_responses=tmp_path / "test.npy", test_images=paths[3:], val_share=1 / 3,
    )  # fmt: skip
    assert subject.responses.shape == (4, 4) and list(subject.splits["test"]) == [3]
    assert sorted([*subject.splits["train"], *subject.splits["val"]]) == [0, 1, 2]
    with pytest.raises(DataError, match=r"numeric responses of shape \(2, n_features\)"):
        read_plain(tmp_path / "sub-01_avg_1024d.npy", paths[:2])

"""The alignment notebook on a user's files: Kamitani-lab HDF5, a CORnet-S checkpoint and THINGS-EEG2, all generated."""

from pathlib import Path

import h5py
import numpy as np
import papermill
import pytest
import torch
from PIL import Image

from bmfl_lab.backbones.cornet import CORnetS
from bmfl_lab.records import read_record

ROOT = Path(__file__).resolve().parents[2]
N_TRAIN, N_TEST, N_VOXELS = 60, 15, 48


def responses(folder, images, seed):
    """Write one subject whose voxels are a fixed linear reading of small pictures, with noise."""
    random = np.random.default_rng(seed)
    small = np.stack([im[::7, ::7].astype(float).ravel() for im in images])
    brain = small @ np.random.default_rng(seed + 10).normal(size=(small.shape[1], N_VOXELS))
    rows = [(1, i) for i in range(N_TRAIN) for _ in range(2)]
    rows += [(2, N_TRAIN + i) for i in range(N_TEST) for _ in range(3)]
    numbers = [1000000 + (i + 1) * 1e-6 for i in range(N_TRAIN + N_TEST)]
    table = [
        np.r_[brain[i] + brain.std() * random.normal(size=N_VOXELS), kind, numbers[i]]
        for kind, i in rows
    ]
    keys = ["VoxelData", "voxel_x", "ROI_V1", "ROI_LOC", "DataType", "stimulus_id"]
    values = np.full((6, N_VOXELS + 2), np.nan)
    values[0] = np.arange(N_VOXELS + 2) < N_VOXELS
    values[1, :N_VOXELS] = np.where(np.arange(N_VOXELS) % 2, 1, -1)
    values[2, :N_VOXELS], values[3, :N_VOXELS] = np.arange(N_VOXELS) < 24, np.arange(N_VOXELS) >= 24
    values[4], values[5] = (
        np.arange(N_VOXELS + 2) == N_VOXELS,
        np.arange(N_VOXELS + 2) == N_VOXELS + 1,
    )
    with h5py.File(folder / f"Subject{seed}.h5", "w") as f:
        f["dataset"], f["metadata/key"], f["metadata/value"] = (
            np.stack(table),
            np.asarray(keys, dtype="S"),
            values,
        )


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    images = np.kron(
        random.integers(0, 255, (N_TRAIN + N_TEST, 8, 8, 3)), np.ones((1, 7, 7, 1))
    ).astype(np.uint8)
    names = [f"n01000000_{i + 1}" for i in range(N_TRAIN + N_TEST)]
    (tmp_path / "god" / "images").mkdir(parents=True)
    for name, image in zip(names, images):
        Image.fromarray(image).save(tmp_path / "god" / "images" / f"{name}.png")
    for seed in (1, 2):
        responses(tmp_path / "god", images, seed)
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in CORnetS(width=4).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "cornet.pth")
    shown = tmp_path / "things" / "image_set" / "test_images"
    shown.mkdir(parents=True)
    for i in range(18):
        Image.fromarray(np.roll(images[i], 9, axis=0)).save(shown / f"concept_{i:02d}.png")
    files = [f"concept_{i:02d}.png" for i in range(18)]
    np.save(shown.parent / "image_metadata.npy", {"test_img_files": files})
    subject = tmp_path / "things" / "eeg_dataset" / "sub-01"
    subject.mkdir(parents=True)
    content = {
        "preprocessed_eeg_data": random.normal(size=(18, 4, 5, 12)),
        "ch_names": [f"O{k}" for k in range(5)],
        "times": np.linspace(-0.1, 0.4, 12),
    }
    np.save(subject / "preprocessed_eeg_test.npy", content)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_alignment_runs_on_measured_files_and_never_calls_them_simulated(files):
    out = files / "out"
    out.mkdir()
    chosen = {
        "study": str(files / "god"),
        "weights": str(files / "cornet.pth"),
        "eeg": str(files / "things/eeg_dataset/sub-01"),
        "controls": ["no_fmri"],
        "seeds": [0, 1],
        "n_boot": 100,
        "out": str(out),
    }
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "07_brain_alignment.ipynb"),
        str(out / "nb.ipynb"),
        chosen,
        progress_bar=False,
    )
    frame = read_record(out / "record.json").to_frame()
    assert not frame["notes"].str.contains("simulated").any()
    transfer = frame[frame["name"] == "rsa_transfer"]
    assert set(transfer["subject"]) == {"Subject1", "Subject2"}
    assert {"original", "aligned with Subject1", "aligned with Subject2"} <= set(transfer["model"])
    eeg = frame[frame["name"] == "eeg_encoding_r"]
    assert set(eeg["subject"]) == {"sub-01"} and eeg["notes"].str.startswith("measured M/EEG").all()
    assert (eeg["n"] == 18).all() and set(eeg["model"]) == {"original", "aligned", "no_fmri"}
    assert "accuracy" not in set(frame["name"])  # no labelled images, nothing to classify
    assert (frame[frame["name"] == "rsa_mean"]["n"] == N_TEST).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_data_notebook_runs_without_a_surface_and_says_so(files):
    out = files / "out"
    out.mkdir()
    done = papermill.execute_notebook(
        str(ROOT / "notebooks" / "01_data_and_regions.ipynb"),
        str(out / "nb.ipynb"),
        {"study": str(files / "god"), "out": str(out)},
        progress_bar=False,
    )
    printed = "".join(
        o.get("text", "")
        for c in done.cells
        for o in c.get("outputs", ())
        if o["output_type"] == "stream"
    )
    assert (
        "these vertices lie on no surface" in printed and "right vertices on no surface" in printed
    )
    drawn = {p.stem for p in (out / "figures").glob("*.png")}
    assert "images" in drawn and not drawn & {
        "spread",
        "ceiling_map",
        "regions",
        "groups",
        "response",
    }
    assert read_record(out / "record.json").study["simulated"] is False

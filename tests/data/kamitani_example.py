"""Kamitani-lab files of the true layout, small, with random content."""

import h5py
import numpy as np
from PIL import Image

NUMBERS = [1443537.002655, 1518878.005958, 2128385.000020, 3345487.010001]
NAMES = ["n01443537_2655", "n01518878_5958", "n02128385_20", "n03345487_10001"]


def write(path, leak=False):
    """Six voxels, then DataType and stimulus_id; training stimuli twice, the last stimulus a test one."""
    g = np.random.default_rng(0)
    rows = (
        [(1, n) for n in NUMBERS[:3] for _ in range(2)] + [(2, NUMBERS[3])] * 3 + [(3, NUMBERS[3])]
    )
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


VOXELS = {"VoxelData": [1] * 6, "voxel_x": [5, -3, 2, -1, -7, 4], "ROI_V1": [1, 1, 0, 0, 0, 0]}


def write_part(path, numbers, value, labels=("stimulus_id",), shift=0.0):
    """One file of Deep Image Reconstruction: six voxels, then the label columns."""
    keys = [*VOXELS, *labels]
    values = np.full((len(keys), 6 + len(labels)), np.nan)
    for row, column in enumerate(VOXELS.values()):
        values[row, :6] = column
    values[1, :6] += shift
    for k in range(len(labels)):
        values[len(VOXELS) + k, 6 + k] = 1
    table = [np.full((len(numbers), 6), value, float), np.asarray(numbers)[:, None]]
    table += [np.full((len(numbers), 1), 1.0)] * (len(labels) - 1)
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as f:
        f["dataset"] = np.column_stack(table)
        f["metadata/key"] = np.asarray(keys, dtype="S")
        f["metadata/value"] = values
    return path


DISTRIBUTED = "{}_perceptionNaturalImage{}_original_VC.h5"


def damaged(path, change):
    write(path)
    with h5py.File(path, "a") as f:
        keys = [k.decode() for k in f["metadata/key"][()]]
        values, data = f["metadata/value"][()], f["dataset"][()]
        keys, values, data = change(keys, values, data)
        for name, new in (
            ("metadata/key", np.asarray(keys, dtype="S")),
            ("metadata/value", values),
            ("dataset", data),
        ):
            del f[name]
            f[name] = new


def without(key):
    def change(keys, values, data):
        kept = [i for i, k in enumerate(keys) if k != key]
        return [keys[i] for i in kept], values[kept], data

    return change

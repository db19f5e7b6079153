"""Damaged files of every kind that is read: each is read or refused by a sentence, in bounded time.

Real files are written once and then damaged at random, most often in their headers.
"""

import io
import json
import resource
import struct
import tarfile
import time
import warnings
import zipfile
from collections import Counter

import h5py
import nibabel
import numpy as np
import pytest
import scipy.sparse
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from bmfl_lab.backbones.weights import read_tensors
from bmfl_lab.data.containers import load_image, load_mat, read_hdf5
from bmfl_lab.data.fetch import list_members, read_members
from bmfl_lab.data.fslr import read_dlabel
from bmfl_lab.data.images import decode_image
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.nod_planted import planted_cortex, write_dlabel, write_dscalar
from bmfl_lab.errors import BmflError
from bmfl_lab.files import load_npy, read_json, read_sealed_json, read_yaml, write_sealed_json
from bmfl_lab.records import MetricRow, Record, read_record
from bmfl_lab.runs.notebook import read_notebook
from bmfl_lab.training.checkpoint import read_bundle, write_bundle

VALUES = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
IDS = ["a.png", "b.png", "c.png"]
PIXELS = np.random.default_rng(1).integers(0, 255, (24, 20, 3), np.uint8)


def _npz(path):
    np.savez_compressed(path, responses=VALUES, ids=np.array(IDS))


def _hdf5(path, **options):
    with h5py.File(path, "w") as stream:
        stream.create_dataset("responses", data=VALUES, **options)
        stream["metadata/key"] = np.arange(6)


def _mat(path, **options):
    sparse = scipy.sparse.csc_matrix(np.eye(3))
    inner = np.array(["a", np.array([VALUES[:, :2], "b"], object)], object)
    values = {"responses": VALUES, "name": inner, "about": {"a": ["x", 1], "b": sparse}}
    savemat(path, values | {"text": ["one", "two"], "c": 1j}, **options)


NAMES = ["responses", "name", "about", "text", "c"]


def _matlab73(path):
    with h5py.File(path, "w", userblock_size=512) as stream:
        stream["responses"] = VALUES
    with open(path, "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def _volume(kind):
    return lambda path: nibabel.save(kind(VALUES.reshape(40, 1, 1, 3), np.eye(4)), str(path))


def _gifti(path, encoding="B64GZ"):
    options = {"datatype": "NIFTI_TYPE_FLOAT32", "encoding": f"GIFTI_ENCODING_{encoding}"}
    arrays = [nibabel.gifti.GiftiDataArray(row, **options) for row in VALUES]
    nibabel.save(nibabel.GiftiImage(darrays=arrays), str(path))


def _dlabel(path):
    n = len(planted_cortex().left) + len(planted_cortex().right)
    write_dlabel(path, {"V1": np.arange(n) < 9})


def _dscalar(path):
    n = len(planted_cortex().left) + len(planted_cortex().right)
    write_dscalar(path, np.ones((3, n)))


def _picture(kind, **options):
    return lambda path: Image.fromarray(PIXELS).save(path, format=kind, **options)


def _zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("a/b.txt", "text" * 99)
        stream.writestr("c.txt", "c")


def _tar(mode):
    def make(path):
        with tarfile.open(path, mode) as stream:
            for name in ("a/b.txt", "c.txt"):
                member = tarfile.TarInfo(name)
                member.size = 9
                stream.addfile(member, io.BytesIO(b"123456789"))

    return make


def _record(path):
    record = Record("03_x", {"seed": 1}, {"name": "planted", "fingerprint": "f", "simulated": True})
    record.rows.append(MetricRow("ece", 0.1, unit="", split="test", n=9, selection="none"))
    record.finish(path.parent).rename(path)


def _notebook(path):
    cells = [{"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "outputs": []}]
    cells[0] |= {"execution_count": None, "source": ["seed: int = 0  # seed\n"]}
    about = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(about))


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)}
PLAIN = {"a": [1, 2.5, None, {"b": "text", "c": [True, [[]]]}], "d": {"e": -1e9}, "f": "\u00e9"}


def _bundle(path):
    write_bundle(path.parent, "model", STATE, {"what": "model", "sizes": [1, 2]})


def _responses(path):
    return read_responses(path, IDS, space="voxels")


def _archive(path):
    return read_members(path, list_members(path))


READERS = {
    "npy": (".npy", lambda path: np.save(path, VALUES), load_npy),
    "npy, mapped": (".npy", lambda p: np.save(p, VALUES.T), lambda p: load_npy(p, mmap=True)),
    "npz": (".npz", _npz, _responses),
    "HDF5": (".h5", _hdf5, lambda path: read_hdf5(path, ["responses", "metadata/key"])),
    "HDF5, compressed": (
        ".h5",
        lambda path: _hdf5(path, compression="gzip", shuffle=True, chunks=(1, 20)),
        lambda path: read_hdf5(path, ["responses"]),
    ),
    "MATLAB 5": (".mat", _mat, lambda path: load_mat(path, NAMES)),
    "MATLAB 5, compressed": (
        ".mat",
        lambda path: _mat(path, do_compression=True),
        lambda path: load_mat(path, NAMES),
    ),
    "MATLAB 7.3": (".mat", _matlab73, lambda path: load_mat(path, ["responses"])),
    "NIfTI": (".nii", _volume(nibabel.Nifti1Image), lambda p: load_image(p, "a volume")),
    "NIfTI, compressed": (".nii.gz", _volume(nibabel.Nifti1Image), _responses),
    "MGH": (".mgh", _volume(nibabel.MGHImage), lambda p: load_image(p, "a surface")),
    "MGZ": (".mgz", _volume(nibabel.MGHImage), _responses),
    "GIFTI": (".gii", _gifti, _responses),
    "GIFTI, as text": (".gii", lambda path: _gifti(path, "ASCII"), _responses),
    "CIFTI labels": (".dlabel.nii", _dlabel, read_dlabel),
    "CIFTI maps": (
        ".dscalar.nii",
        _dscalar,
        lambda path: read_responses(path, IDS, space="fsLR32k"),
    ),
    "PNG": (".png", _picture("PNG"), decode_image),
    "JPEG": (".jpg", _picture("JPEG"), decode_image),
    "TIFF": (".tif", _picture("TIFF", compression="tiff_lzw"), decode_image),
    "JSON": (".json", lambda path: path.write_text(json.dumps(PLAIN)), read_json),
    "sealed JSON": (".json", lambda path: write_sealed_json(path, PLAIN), read_sealed_json),
    "YAML": (".yaml", lambda path: path.write_text(yaml.safe_dump(PLAIN)), read_yaml),
    "safetensors": (".safetensors", lambda path: save_file(STATE, path), read_tensors),
    "torch": (".pth", lambda path: torch.save(STATE, path), read_tensors),
    "torch, before 1.6": (
        ".pth",
        lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
        read_tensors,
    ),
    "zip": (".zip", _zip, _archive),
    "tar": (".tar", _tar("w"), _archive),
    "tar.gz": (".tgz", _tar("w:gz"), _archive),
    "record": (".json", _record, read_record),
    "notebook": (".ipynb", _notebook, read_notebook),
    "checkpoint": (".json", _bundle, lambda path: read_bundle(path.parent, "model")),
    "checkpoint's tensors": (".safetensors", _bundle, lambda p: read_bundle(p.parent, "model")),
}
NUMBERS = [struct.pack(f, v) for f in ("<i", ">i", "<q", ">q") for v in (0, -1, 1, 1 << 30)]
NUMBERS += [b"\xff", b"\x00", b"9" * 12, b"-", b"{", b"[" * 40, b"&a ", b"*a", b'"', b"\n", b"nan"]


def damaged(data, random):
    """Return bytes with one to four changes, half of them in the first 400 bytes."""
    found = bytearray(data)
    for _ in range(random.integers(1, 5)):
        end = max(1, min(len(found), 400) if random.random() < 0.5 else len(found))
        start, kind = int(random.integers(end)), random.integers(6)
        if kind == 0:
            found[start : start + 1] = bytes([random.integers(256)])
        elif kind == 1 and found:
            found[min(start, len(found) - 1)] ^= 1 << int(random.integers(8))
        elif kind == 2:
            number = NUMBERS[random.integers(len(NUMBERS))]
            found[start : start + len(number)] = number
        elif kind == 3:
            number = NUMBERS[random.integers(len(NUMBERS))]
            found[start:start] = number
        elif kind == 4:
            del found[start : start + int(random.integers(1, 40))]
        elif random.random() < 0.3:
            del found[start:]
        else:
            found[start:start] = found[start : start + int(random.integers(1, 200))]
    return bytes(found)


def read_damaged(kind, folder, n, seed):
    """Read a file of one kind with n damages; return how often it was read and refused."""
    suffix, make, read = READERS[kind]
    path = folder / f"{'model' if kind.startswith('checkpoint') else 'file'}{suffix}"
    make(path)
    read(path)
    whole, random, counts, slowest = path.read_bytes(), np.random.default_rng(seed), Counter(), 0.0
    for i in range(n):
        path.write_bytes(damaged(whole, random))
        began = time.process_time()
        try:
            read(path)
            counts["read"] += 1
        except BmflError as error:
            assert str(error).startswith("expected ") or ": expected " in str(error)
            counts["refused"] += 1
        except BaseException as error:
            (folder / "crash").write_bytes(path.read_bytes())
            raise AssertionError(f"input {i} of {kind}: {type(error).__name__}: {error}") from error
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 5, f"{slowest:.1f} s of processor time"
    assert counts["refused"]
    return counts


@pytest.fixture(autouse=True)
def quiet():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn about what they can repair
        yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2 << 20, f"{grown} KiB more memory"


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    read_damaged(kind, tmp_path, 60, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_hundred_thousand_damaged_files_are_read_or_refused(kind, tmp_path):
    read_damaged(kind, tmp_path, -(-100_000 // len(READERS)), seed=1)

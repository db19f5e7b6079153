"""Files that point to other files, or promise more than they hold, are refused by their opener."""

import base64
import io
import resource
import struct
import time
import tracemalloc
import zipfile
import zlib

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import savemat

from bmfl_lab.data import containers, nsd_files
from bmfl_lab.data.containers import (
    load_image,
    load_mat,
    open_gifti,
    open_hdf5,
    open_npz,
    read_hdf5,
)
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.kamitani import read_bdata
from bmfl_lab.errors import DataError

SECRET = np.arange(64, dtype=np.uint8)


def other(folder):
    with h5py.File(folder / "other.h5", "w") as stream:
        stream["data"] = SECRET
        stream["group/data"] = SECRET
    (folder / "raw.bin").write_bytes(SECRET.tobytes())
    return folder / "other.h5"


def external_link(stream, folder):
    stream["data"] = h5py.ExternalLink(str(other(folder)), "/data")


def relative_link(stream, folder):
    stream["data"] = h5py.ExternalLink(other(folder).name, "/data")


def external_group(stream, folder):
    stream["metadata"] = h5py.ExternalLink(str(other(folder)), "/group")


def deep_link(stream, folder):
    stream.create_group("a/b/c")["data"] = h5py.ExternalLink(str(other(folder)), "/data")


def link_to_nothing(stream, folder):
    stream["data"] = h5py.ExternalLink("/dev/zero", "/data")


def external_storage(stream, folder):
    other(folder)
    place = [(str(folder / "raw.bin"), 0, 64)]
    stream.create_dataset("data", (64,), np.uint8, external=place)


def deep_storage(stream, folder):
    other(folder)
    place = [(str(folder / "raw.bin"), 8, 56)]
    stream.create_dataset("metadata/value", (56,), np.uint8, external=place)


def virtual(stream, folder):
    layout = h5py.VirtualLayout((64,), np.uint8)
    layout[:] = h5py.VirtualSource(str(other(folder)), "data", (64,))
    stream.create_virtual_dataset("data", layout)


def virtual_part(stream, folder):
    layout = h5py.VirtualLayout((8, 64), np.uint8)
    layout[3] = h5py.VirtualSource(str(other(folder)), "group/data", (64,))
    stream.create_virtual_dataset("a/data", layout)


def link_behind_a_link(stream, folder):
    stream["x"] = h5py.ExternalLink(str(other(folder)), "/")
    stream["data"] = h5py.SoftLink("/x/data")


POINTERS = [external_link, relative_link, external_group, deep_link, link_to_nothing]
POINTERS += [external_storage, deep_storage, virtual, virtual_part, link_behind_a_link]


@pytest.mark.parametrize("make", POINTERS)
def test_hdf5_that_points_to_another_file_is_refused(tmp_path, make):
    with h5py.File(tmp_path / "a.h5", "w") as stream:
        make(stream, tmp_path)
    match = r"holds its data itself; got the (external|virtual) .*save the arrays themselves in one"
    for read in (open_hdf5, read_bdata, lambda path: nsd_files.open_stimuli(path, [0])):
        with pytest.raises(DataError, match=match):
            read(tmp_path / "a.h5")


def never_written(stream):
    stream.create_dataset("data", (1 << 20, 1 << 18), np.float32, chunks=(1024, 1024))


def fill_value(stream):
    stream.create_dataset("data", (1 << 40,), np.uint8, chunks=(1 << 20,), fillvalue=7)


def one_chunk(stream):
    data = stream.create_dataset("data", (1 << 20, 1 << 18), np.uint8, chunks=(256, 256))
    data[:256, :256] = 1


def deep(stream):
    stream.create_dataset("metadata/value", (1 << 40,), np.float64, chunks=(1 << 16,))


def compressed(stream):
    options = {"chunks": (1024, 1024), "compression": "gzip"}
    stream.create_dataset("data", (1 << 18, 1 << 18), np.float64, **options)


def strings(stream):
    stream.create_dataset("data", (1 << 34,), "S100", chunks=(1 << 16,))


def compound(stream):
    kind = [("a", "f8"), ("b", "f8", (100,))]
    stream.create_dataset("data", (1 << 34,), kind, chunks=(1 << 12,))


def many_axes(stream):
    stream.create_dataset("data", (64,) * 6, np.float64, chunks=(8,) * 6)


@pytest.mark.parametrize(
    "make",
    [never_written, fill_value, one_chunk, deep, compressed, strings, compound, many_axes],
)
def test_hdf5_that_promises_more_than_it_stores_is_refused(tmp_path, make):
    with h5py.File(tmp_path / "a.h5", "w") as stream:
        make(stream)
    assert (tmp_path / "a.h5").stat().st_size < 8 << 20
    with pytest.raises(DataError, match=r"that is stored in full; .*save the array again in full"):
        open_hdf5(tmp_path / "a.h5")


def test_honest_files_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as stream:
        stream["group/data"] = SECRET
        stream["alias"] = h5py.SoftLink("/group/data")
        stream["hard"] = stream["group/data"]
        stream["group/up"] = stream["/"]  # a circle
        stream.create_dataset("zeros", data=np.zeros(1 << 25, np.uint8), compression="gzip")
        stream.create_dataset("empty", (0, 5), np.float32)
        stream["nothing"] = h5py.Empty("f")
    found = read_hdf5(tmp_path / "a.h5", ["group/data", "alias", "hard", "zeros", "empty"])
    assert all(np.array_equal(found[k], SECRET) for k in ("group/data", "alias", "hard"))
    assert found["zeros"].sum() == 0 and found["empty"].shape == (0, 5)
    with pytest.raises(DataError, match=r"the arrays \['lost'\] in .*; got \['alias', "):
        read_hdf5(tmp_path / "a.h5", ["alias", "lost"])


def test_npz_that_unpacks_to_much_more_is_refused_before_it_is_read(tmp_path):
    values = np.zeros((2, 80 << 20), np.float32)  # as large as 600 kB can be
    np.savez_compressed(tmp_path / "a.npz", responses=values)
    with pytest.raises(DataError, match=r"'responses\.npy' .*stored in full"):
        read_responses(tmp_path / "a.npz", ["a", "b"], space="voxels")


def _npy(values, shape=None):
    """Return the bytes of a ``.npy`` file, whose header may name another shape of 7 digits."""
    stream = io.BytesIO()
    np.save(stream, values)
    data = stream.getvalue()
    return data if shape is None else data.replace(str(values.shape).encode(), shape)


def _zip(path, *members, **options):
    with zipfile.ZipFile(path, "w", **options) as stream:
        for name, data in members:
            stream.writestr(name, data)


def _again(path, **fields):
    """Change fields of the first entry of a zip's directory."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")
    for name, value in fields.items():
        place = {"packed": 20, "size": 24, "offset": 42}[name]
        data[start + place : start + place + 4] = value.to_bytes(4, "little")
    path.write_bytes(bytes(data))


FEW = np.arange(7, dtype=np.float32)
HOSTILE_NPZ = {
    "a header that promises terabytes": (
        lambda p: _zip(p, ("responses.npy", _npy(FEW, b"(999999999999,)"))),
        r"3999999999996 bytes of .responses\.npy. .* got 39 bytes",
    ),
    "a header that promises less": (
        lambda p: _zip(p, ("responses.npy", _npy(FEW, b"(3,)"))),
        r"12 bytes of 'responses\.npy' .* got 28 bytes",
    ),
    "a negative shape": (
        lambda p: _zip(p, ("responses.npy", _npy(FEW, b"(-7,)"))),
        r"-28 bytes of 'responses\.npy'",
    ),
    "a member twice": (
        lambda p: _zip(p, ("responses.npy", _npy(FEW)), ("responses.npy", _npy(FEW + 1))),
        "each array once in",
    ),
    "a member with and without its suffix": (
        lambda p: _zip(p, ("responses.npy", _npy(FEW)), ("responses", _npy(FEW + 1))),
        "each array once in",
    ),
    "one name in two Unicode forms": (
        lambda p: _zip(p, ("\u00e9.npy", _npy(FEW)), ("e\u0301.npy", _npy(FEW))),
        "each array once in",
    ),
    "objects": (
        lambda p: np.savez(p, responses=np.array([{}], dtype=object)),
        "of numbers or text .* got pickled Python objects",
    ),
    "no array": (lambda p: _zip(p, ("responses.txt", b"1 2 3")), "plain arrays at"),
    "an empty member": (lambda p: _zip(p, ("responses.npy", b"")), "plain arrays at"),
    "a directory that promises a longer member": (
        lambda p: (_zip(p, ("responses.npy", _npy(FEW))), _again(p, size=1 << 20)),
        "save it again|save the arrays again",
    ),
    "more packed bytes than the file has": (
        lambda p: (_zip(p, ("responses.npy", _npy(FEW))), _again(p, packed=1 << 30)),
        "its own length; got 1073741824 bytes of arrays",
    ),
    "an array file under the name of an archive": (
        lambda p: p.write_bytes(_npy(FEW, b"(999999999999,)")),
        "plain arrays at",
    ),
    "a wrong checksum": (
        lambda p: (_zip(p, ("ids.npy", _npy(FEW))), p.write_bytes(p.read_bytes()[::-1])),
        "plain arrays at",
    ),
}


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("fault", HOSTILE_NPZ)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_is_believed_in_nothing(tmp_path, fault, in_memory):
    make, match = HOSTILE_NPZ[fault]
    make(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes() if in_memory else None
    tracemalloc.start()
    with pytest.raises(DataError, match=match):
        open_npz(tmp_path / "a.npz", content)["responses"]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_honest_npz_of_every_kind_is_read(tmp_path):
    arrays = {
        "responses": np.random.default_rng(0).random((3, 4)),
        "ids": np.array(["a", "b"]),
        "none": np.zeros((0, 5)),
        "one": np.float32(2),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "A": np.ones(2, bool),
        "a": np.zeros(2, bool),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        for content in (None, (tmp_path / "a.npz").read_bytes()):
            with open_npz(tmp_path / "a.npz", content) as found:
                assert sorted(found) == sorted(arrays)
                for name, values in arrays.items():
                    np.testing.assert_array_equal(found[name], values)


def test_groups_without_end_are_refused_at_once(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as stream:
        group = stream
        for _ in range(3000):
            group = group.create_group("a")
        stream["data"], stream["around"] = SECRET, stream["/"]
    start = time.process_time()
    with pytest.raises(DataError, match=r"groups inside each other .*closer to the top"):
        read_hdf5(tmp_path / "a.h5", ["data"])
    assert time.process_time() - start < 30


def test_matlab_files_of_both_kinds_agree(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    savemat(tmp_path / "old.mat", {"x": values, "y": np.arange(4)})
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as stream:
        stream["x"], stream["y"] = values.T, np.arange(4)[:, None]
    old, new = (load_mat(tmp_path / n, ("x", "y", "z")) for n in ("old.mat", "new.mat"))
    assert list(old) == list(new) == ["x", "y"]
    assert all(np.array_equal(old[k], new[k]) for k in old)
    assert load_mat(tmp_path / "new.mat", ("y",), squeeze=True)["y"].shape == (4,)
    with pytest.raises(DataError, match=r"a MATLAB file .*download the file again"):
        (tmp_path / "bad.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(200))
        load_mat(tmp_path / "bad.mat", ("x",))


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind, *parts, axes=(1, 1), name=b"x", axes_type=5):
    flags = element(6, struct.pack("<II", kind, 0))
    shape = element(axes_type, struct.pack(f"<{len(axes)}i", *axes))
    return element(14, b"".join([flags, shape, element(1, name), *parts]))


ONE = matrix(6, element(9, struct.pack("<d", 1)), name=b"")
FIELDS = element(5, struct.pack("<i", 8)), element(1, b"a".ljust(8, b"\0") + b"b".ljust(8, b"\0"))
NAMES = b"".join(element(1, name) for name in (b"x", b"MCOS", b"string"))


def nested(depth):
    value = ONE
    for _ in range(depth):
        value = matrix(1, value)
    return value


WRONG_MATRICES = {
    "text without axes": matrix(4, element(16, b"a"), axes=()),
    "one axis": matrix(6, element(9, bytes(8)), axes=(1,)),
    "33 axes": matrix(6, element(9, bytes(8)), axes=(1,) * 33),
    "axes with fractions": matrix(6, element(9, bytes(8)), axes_type=7),
    "no flags": element(14, element(5, bytes(8)) + element(1, b"x") + element(9, bytes(8))),
    "flags only": element(14, element(6, struct.pack("<II", 4, 0))),
    "a matrix among numbers": matrix(6, ONE),
    "a matrix in text": matrix(4, ONE),
    "cells inside each other": nested(20_000),
    "cells of another number": matrix(1, ONE, axes=(1, 2)),
    "cells by the million": matrix(1, ONE, axes=(1 << 14, 1 << 14)),
    "cells of a negative number": matrix(1, ONE, axes=(-1, 3)),
    "fewer values than fields": matrix(2, *FIELDS, ONE),
    "fields without a width": matrix(2, element(5, bytes(4)), FIELDS[1], ONE),
    "fields without names": matrix(2, ONE),
    "a sparse one without its values": matrix(5, element(5, bytes(4)), element(5, bytes(8))),
    "a complex one without its second part": matrix(0x806, element(9, bytes(8))),
    "numbers without any": matrix(6),
    "a function without its matrix": matrix(16),
    "an object without its matrix": element(14, element(6, struct.pack("<II", 17, 0)) + NAMES),
    "an unknown type": matrix(6, element(0, bytes(8))),
    "longer than the file": matrix(6, element(9, bytes(8)))[:-8],
    "longer than its matrix": matrix(6, struct.pack("<II", 9, 1 << 20) + bytes(8)),
}


AFTER = matrix(1, ONE, ONE, axes=(1, 2), name=b"after")
"""Where SciPy reads on if a part is missing."""


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", WRONG_MATRICES)
def test_matlab_files_that_would_end_the_process_are_refused(tmp_path, kind, compressed):
    content = WRONG_MATRICES[kind]
    if compressed:
        packed = zlib.compress(content)
        content = struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + content + AFTER)
    with pytest.raises(DataError, match=r"MATLAB file .*a\.mat.*download the file again"):
        load_mat(tmp_path / "a.mat", ["x"])


def test_matrices_inside_each_other_are_read(tmp_path):
    values = matrix(2, *FIELDS, ONE, nested(10))
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + values)
    found = load_mat(tmp_path / "a.mat", ["x"])["x"][0, 0]["b"]
    for _ in range(10):
        found = found[0, 0]
    assert found == 1


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "shape", [(2000, 2000, 2000), (30000, 30000, 30), (4, 5, 30000, 30000), (30000, 30000, 1, 90)]
)
def test_images_that_promise_more_than_they_store_are_refused(tmp_path, suffix, shape):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    data = bytearray(image.to_bytes())
    struct.pack_into("<8h", data, 40, len(shape), *shape, *(1,) * (7 - len(shape)))
    import gzip

    content = bytes(data) if suffix == ".nii" else gzip.compress(bytes(data))
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(DataError, match="that is stored in full"):
        load_image(tmp_path / f"a{suffix}", "betas")


def test_honest_images_are_read(tmp_path):
    values = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.MGHImage(values.astype(np.float32), np.eye(4)), tmp_path / "a.mgz")
    for name in ("a.nii.gz", "a.mgz"):
        assert np.array_equal(load_image(tmp_path / name, "betas"), values)


def gifti(path, content="", **changed):
    """Write a GIFTI file of eight values, or of what is named."""
    names = {"Dimensionality": 1, "Dim0": 8, "Encoding": "GZipBase64Binary"} | changed
    names |= {"ArrayIndexingOrder": "RowMajorOrder", "DataType": "NIFTI_TYPE_FLOAT32"}
    names |= {"Endian": "LittleEndian", "Intent": "NIFTI_INTENT_NONE"}
    about = " ".join(f'{name}="{value}"' for name, value in names.items())
    array = f"<DataArray {about}><MetaData/><Data>{content}</Data></DataArray>"
    whole = f'<GIFTI Version="1.0" NumberOfDataArrays="1">{array}</GIFTI>'
    path.write_text(f'<?xml version="1.0"?>{whole}')
    return path


def packed(data):
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize("encoding", ["ExternalFileBinary", "GZipBase64Binary"])
def test_gifti_that_points_to_another_file_is_refused(tmp_path, encoding):
    (tmp_path / "other.bin").write_bytes(np.arange(8, dtype="<f4").tobytes())
    place = {"ExternalFileName": "other.bin", "ExternalFileOffset": 0, "Encoding": encoding}
    path = gifti(tmp_path / "a.gii", **place)
    with pytest.raises(DataError, match=r"holds its data itself.*save the arrays themselves in"):
        read_responses(path, ["a"], space="voxels")


def test_gifti_that_promises_or_holds_more_than_it_stores_is_refused(tmp_path):
    full = r"that is stored in full; got .*save the array again in full"
    few = packed(np.arange(8, dtype="<f4").tobytes())
    with pytest.raises(DataError, match=full):  # 4 TB
        open_gifti(gifti(tmp_path / "a.gii", few, Dim0=1 << 40))
    shape = {"Dimensionality": 3, "Dim0": 1 << 14, "Dim1": 1 << 14, "Dim2": 1 << 14}
    with pytest.raises(DataError, match=full):
        open_gifti(gifti(tmp_path / "a.gii", few, **shape))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=full):  # 8 values by its header, 600 MB in truth
        open_gifti(gifti(tmp_path / "a.gii", packed(bytes(600 << 20))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10
    values = open_gifti(gifti(tmp_path / "a.gii", few)).darrays[0].data
    assert np.array_equal(values, np.arange(8, dtype=np.float32))


def test_an_array_larger_than_the_free_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    values = np.random.default_rng(0).random((9, 30), np.float32)
    np.savez(tmp_path / "a.npz", responses=values)
    with h5py.File(tmp_path / "a.h5", "w") as stream:
        stream["responses"] = values
    nibabel.save(nibabel.Nifti1Image(values.reshape(30, 1, 1, 9), np.eye(4)), tmp_path / "a.nii")
    gifti(tmp_path / "a.gii", packed(values.tobytes()), Dim0=values.size)
    monkeypatch.setattr(containers, "free_memory", lambda: values.nbytes - 1)
    for name, n in {"a.npz": 9, "a.h5": 9, "a.nii": 9, "a.gii": 1}.items():
        match = (
            rf"{values.nbytes / 1e9:.2f} GB of free memory for '.* of .*{name}; got .* GB\. To fix "
            "it: close other programs, or save a part of the array"
        )
        with pytest.raises(DataError, match=match):
            read_responses(tmp_path / name, [str(i) for i in range(n)], space="voxels")


def test_matlab_values_that_are_stored_in_a_smaller_type_count_by_their_class(tmp_path):
    """A matrix of doubles may be stored as bytes, and compressed to almost nothing."""
    n = 1 << 28
    savemat(tmp_path / "a.mat", {"data": np.zeros((1, 8))})
    body = (tmp_path / "a.mat").read_bytes()[136:]
    flags, name = body[:16], body[32:40]
    axes = struct.pack("<IIii", 5, 8, 1, n)
    real = struct.pack("<II", 2, n)
    pack = zlib.compressobj(9)
    size = len(flags) + len(axes) + len(name) + 8 + n
    packed = pack.compress(struct.pack("<II", 14, size) + flags + axes + name + real)
    packed += b"".join(pack.compress(bytes(1 << 24)) for _ in range(n >> 24)) + pack.flush()
    head = (tmp_path / "a.mat").read_bytes()[:128]
    (tmp_path / "b.mat").write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    assert (tmp_path / "b.mat").stat().st_size < 1 << 20
    began = time.process_time()
    with pytest.raises(DataError, match=r"stored in full.*save the array again in full"):
        load_mat(tmp_path / "b.mat", ["data"])
    assert time.process_time() - began < 20

"""Open HDF5, NPZ, MATLAB, NIfTI, MGH, GIFTI and CIFTI files of users: one guarded way per format.

A file may come from anywhere. None of these functions reads a second file to which the first one
points, and none makes an array that is much larger than what the file can hold.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import math
import struct
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.npyio import NpzFile

from bmfl_lab.errors import DataError, normal, require, translated
from bmfl_lab.files import existing_file, read_npy_header, system_errors
from bmfl_lab.runtime import free_memory

if TYPE_CHECKING:
    import h5py
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.gifti import GiftiImage

REDO = "download the file again"
_RATIO, _SMALL, _MAX_ELEMENT = 200, 512 << 20, 1 << 30
"""Arrays above 512 MiB are at most 200 times as large as what is stored, which is our own choice:
deflate reaches 1032 for zeros, and about 40 for responses in a volume of which 5 % is cortex."""

_MATRIX, _COMPRESSED, _DEPTH = 14, 15, 50
_NUMBERS = {*range(1, 8), 9, *range(12, 14), *range(16, 19)}
"""Types of elements of MATLAB 5 files that hold numbers or text."""
_MAT_BYTES = {"double": 8, "single": 4, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4}
_MAT_BYTES |= {"int16": 2, "uint16": 2, "char": 4}
"""Bytes of a value by class of a MATLAB array; 1 for all others."""
_CELL, _STRUCT, _OBJECT, _SPARSE, _FUNCTION, _OPAQUE, _COMPLEX = 1, 2, 3, 5, 16, 17, 0x800
"""Classes of MATLAB 5 matrices, and the flag of those with a real and an imaginary part."""


def check_size(name: str, shape: Sequence[int], itemsize: int, stored: int, path: Path) -> None:
    """Refuse an array whose shape promises much more than its file stores.

    Parameters
    ----------
    name : str
        The array, for the message.
    shape : sequence of int
        Its shape.
    itemsize, stored : int
        Bytes of one value, and bytes that the file stores for all of them.
    path : Path
        The file, for the message.

    Raises
    ------
    DataError
        If the array is larger than 512 MiB and than 200 times what is stored.
    """
    size = math.prod(map(int, shape)) * itemsize
    require(
        size <= max(_SMALL, _RATIO * stored),
        DataError,
        f"an array {name!r} in {path} that is stored in full",
        f"shape {tuple(shape)}, {size} bytes, of which {stored} are stored",
        "check where the file comes from; if it is right, save the array again in full",
    )


def check_room(name: str, size: int, path: Path) -> None:
    """Refuse to read an array as a whole that does not fit into the free memory.

    Parameters
    ----------
    name : str
        The array, for the message.
    size : int
        Its bytes once it is read.
    path : Path
        The file, for the message.

    Raises
    ------
    DataError
        If less memory is free.
    """
    free = free_memory()
    require(
        size <= free,
        DataError,
        f"{size / 1e9:.2f} GB of free memory for {name!r} of {path}",
        f"{free / 1e9:.2f} GB",
        "close other programs, or save a part of the array",
    )


def open_hdf5(path: str | Path) -> h5py.File:
    """Open an HDF5 file for reading, after checking that it holds all of its data itself.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    h5py.File

    Raises
    ------
    DataError
        If the file is missing or damaged, points to other files (by external links, external
        storage or virtual data sets), or promises much larger arrays than it stores.
    """
    import h5py

    path = existing_file(path, "an HDF5 file")
    # h5py raises many kinds on damaged files, SystemError among them
    with (
        translated(Exception, expected=f"an HDF5 file {path}", remedy=REDO),
        system_errors(path),
    ):
        stream = h5py.File(path, "r")
        try:
            _check_hdf5(stream, path)
        except BaseException:
            stream.close()
            raise
    return stream


def _check_hdf5(stream: h5py.File, path: Path) -> None:
    import h5py

    outside: list[str] = []

    def check_link(name: str, link: object) -> str | None:
        if name.count("/") >= _DEPTH or len(name) > 4096:  # the time to visit it grows with both
            return name  # which ends the visit
        if isinstance(link, h5py.ExternalLink):
            outside.append(f"the external link {name!r}")
        return None

    def check_item(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            if item.is_virtual or item.external:
                outside.append(f"the {'virtual' if item.is_virtual else 'external'} array {name!r}")
            else:
                stored = item.id.get_storage_size()
                check_size(name, item.shape, item.dtype.itemsize, stored, path)

    deep = stream.visititems_links(check_link)
    require(
        not deep,
        DataError,
        f"at most {_DEPTH} groups inside each other in {path}, and short names",
        f"{str(deep)[:40]}...",
        "save the arrays again, closer to the top of the file",
    )
    stream.visititems(check_item)
    require(
        not outside,
        DataError,
        f"an HDF5 file {path} that holds its data itself",
        f"{', '.join(outside[:3])}, which point to other files",
        "save the arrays themselves in one file where the other files are, and give that one",
    )


def open_npz(path: str | Path, content: bytes | None = None) -> NpzFile:
    """Open an ``.npz`` file for reading, after checking what its arrays promise.

    Parameters
    ----------
    path : str or Path
        The file.
    content : bytes, optional
        Content of the file if it is in memory; `path` is then its name in messages.

    Returns
    -------
    numpy.lib.npyio.NpzFile

    Raises
    ------
    DataError
        If the file is missing or damaged, holds an array twice or anything but arrays of numbers
        and text, or promises larger arrays than it stores.
    """
    path = Path(path) if content else existing_file(path, "an .npz file")
    with (
        translated(
            Exception,
            expected=f"an .npz file of plain arrays at {path}",
            remedy="download it again, or save the arrays again with numpy.savez",
        ),
        system_errors(path),
    ):
        stream = io.BytesIO(content) if content else open(path, "rb")
        try:
            _check_npz(zipfile.ZipFile(stream), path)
            return NpzFile(stream, own_fid=True, allow_pickle=False)
        except BaseException:
            stream.close()
            raise


def _check_npz(archive: zipfile.ZipFile, path: Path) -> None:
    """Check the members of an ``.npz`` file: its directory, and the header of each array.

    NumPy makes an array as large as its header says before it reads a value, and takes the last of
    two members of one name.
    """
    members = archive.infolist()
    names = (normal(m.filename.removesuffix(".npy")) for m in members)
    twice = [name for name, n in Counter(names).items() if n > 1]
    redo = "save the arrays again with numpy.savez"
    require(not twice, DataError, f"each array once in {path}", f"{twice[:3]} twice", redo)
    packed, size = sum(m.compress_size for m in members), archive.fp.seek(0, 2)
    expected = f"arrays of at most {size} bytes in {path}, its own length"
    require(packed <= size, DataError, expected, f"{packed} bytes of arrays", redo)
    for member in members:
        check_size(member.filename, (member.file_size,), 1, member.compress_size, path)
        check_room(member.filename, member.file_size, path)
        with archive.open(member) as stream:
            shape, _, dtype = read_npy_header(stream)
            held = member.file_size - stream.tell()
        expected = f"an array {member.filename!r} of numbers or text in {path}"
        require(not dtype.hasobject, DataError, expected, "pickled Python objects", redo)
        promised = math.prod(shape) * dtype.itemsize
        expected = f"{promised} bytes of {member.filename!r} in {path} for shape {shape} {dtype}"
        require(promised == held, DataError, expected, f"{held} bytes", redo)


def read_hdf5(
    path: str | Path, names: Sequence[str], *, partial: bool = False
) -> dict[str, np.ndarray]:
    """Read whole arrays of an HDF5 file.

    Parameters
    ----------
    path : str or Path
        The file.
    names : sequence of str
        Arrays to read ("metadata/key").
    partial : bool, default False
        Leave out arrays that are not there.

    Returns
    -------
    dict of str to ndarray
        Each array in shape and type as stored.

    Raises
    ------
    DataError
        If the file is refused by `open_hdf5`, or an array is missing or larger than the memory.
    """
    found = {}
    with (
        open_hdf5(path) as stream,
        translated(Exception, expected=f"arrays in {path}", remedy=REDO),
        system_errors(path),
    ):
        for name in names:
            array = stream.get(name)
            if getattr(array, "shape", None) is not None:
                check_room(name, array.nbytes, path)
                found[name] = array[()]
        missing = [name for name in names if name not in found]
        require(
            partial or not missing,
            DataError,
            f"the arrays {missing} in {path}",
            f"{sorted(stream)}",
            "give a file in the layout of its authors",
        )
    return found


def load_mat(path: str | Path, names: Sequence[str], *, squeeze: bool = False) -> dict:
    """Read variables of a MATLAB file of any version.

    Parameters
    ----------
    path : str or Path
        The file; version 7.3 is HDF5.
    names : sequence of str
        Variables to read.
    squeeze : bool, default False
        Drop axes of length 1.

    Returns
    -------
    dict of str to ndarray
        Arrays of the variables that the file holds, with axes in the order of MATLAB.

    Raises
    ------
    DataError
        If the file is missing or damaged, or promises much larger arrays than it stores.
    """
    import h5py
    import scipy.io

    path = existing_file(path, "a MATLAB file")
    if h5py.is_hdf5(path):  # MATLAB counts the axes from the other end
        arrays = read_hdf5(path, names, partial=True)
        return {k: np.squeeze(v.T) if squeeze else v.T for k, v in arrays.items()}
    # scipy raises many kinds on damaged files
    with translated(Exception, expected=f"a MATLAB file {path}", remedy=REDO), system_errors(path):
        if scipy.io.matlab.matfile_version(str(path))[0] == 1:
            _check_mat5(path)
        for name, shape, kind in scipy.io.whosmat(str(path)):
            # values may be stored in a smaller type than that of their class
            itemsize = _MAT_BYTES.get(kind, 1)
            check_size(name, shape, itemsize, path.stat().st_size, path)
            check_room(name, math.prod(shape) * itemsize * (name in names), path)
        found = scipy.io.loadmat(str(path), variable_names=list(names), squeeze_me=squeeze)
    return {name: found[name] for name in names if name in found}


def _check_mat5(path: Path) -> None:
    """Check that a MATLAB 5 file is built as its format demands.

    SciPy takes the types, the numbers of axes and the depth of nesting on trust, and a wrong one
    ends the whole process.
    """
    data = path.read_bytes()
    order = "<" if data[126:128] == b"IM" else ">"
    place = 128
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, place)
        element = memoryview(data)[place : place + 8 + size]
        place += 8 + size
        if kind == _COMPRESSED:
            element = memoryview(zlib.decompressobj().decompress(element[8:], _MAX_ELEMENT))
        _check_elements(element, order, path, 0)


def _check_elements(
    data: memoryview, order: str, path: Path, depth: int
) -> list[tuple[int, memoryview]]:
    """Check a sequence of elements and the matrices among them; return their types and contents."""
    found, place = [], 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, place)
        small = kind >> 16  # the size of an element whose content follows within the same 8 bytes
        start, size = (place + 4, small) if small else (place + 8, size)
        kind, content = kind & 0xFFFF, data[start : start + size]
        _require_mat5(kind in _NUMBERS or (kind == _MATRIX and not small), f"type {kind}", path)
        _require_mat5(
            (size <= 4 if small else len(content) == size) or len(data) >= _MAX_ELEMENT,
            f"an element of {size} bytes, of which {len(content)} are there",
            path,
        )
        if kind == _MATRIX and size:
            _require_mat5(depth < _DEPTH, f"more than {_DEPTH} matrices inside each other", path)
            _check_matrix(content, order, path, depth + 1)
        found.append((kind, content))
        place = place + 8 if small else start + size + -size % 8
    return found


def _check_matrix(data: memoryview, order: str, path: Path, depth: int) -> None:
    """Check the flags, the axes and the number of parts of a matrix."""
    kinds, parts = zip(*_check_elements(data, order, path, depth)) if len(data) >= 8 else ((), ())
    _require_mat5(kinds[:1] == (6,) and len(parts[0]) == 8, f"flags of type {kinds[:1]}", path)
    flags = struct.unpack_from(order + "I", parts[0])[0]
    name, held = flags & 0xFF, kinds.count(_MATRIX)
    if name == _OPAQUE:  # three names and a matrix
        _require_mat5(kinds[4:] == (_MATRIX,), f"an object of types {kinds}", path)
        return
    n_axes, rest = (len(parts[1]) // 4, len(parts[1]) % 4) if len(parts) > 2 else (0, 0)
    _require_mat5(kinds[1] in (5, 6) and 2 <= n_axes <= 32 and not rest, f"{n_axes} axes", path)
    if name in (_CELL, _STRUCT, _OBJECT):
        n = math.prod(struct.unpack(f"{order}{n_axes}i", parts[1]))
        if name != _CELL:  # the width of a field's name, and the names
            width, names = parts[3:5] if name == _STRUCT else parts[4:6]
            n *= len(names) // int.from_bytes(width, "little" if order == "<" else "big")
        _require_mat5(held == n, f"{held} of {n} matrices in one of class {name}", path)
    elif name == _FUNCTION:
        _require_mat5(held == 1, f"{held} matrices in a function", path)
    else:
        n = (3 if name == _SPARSE else 1) + bool(flags & _COMPLEX)
        _require_mat5(
            not held and len(parts) >= 3 + n, f"{len(parts) - 3} parts for class {name}", path
        )


def _require_mat5(right: bool, got: str, path: Path) -> None:
    require(
        right, DataError, f"elements of known types and sizes in the MATLAB file {path}", got, REDO
    )


def load_image(path: str | Path, what: str, content: bytes | None = None) -> np.ndarray:
    """Read the data of a NIfTI or MGH file.

    Parameters
    ----------
    path : str or Path
        The file.
    what : str
        Name of its content in messages.
    content : bytes, optional
        Content of an MGH file if it is in memory; `path` is then its name in messages.

    Returns
    -------
    ndarray
        Shape and type as stored, scaled as the file's own header says.

    Raises
    ------
    DataError
        If the file is missing or damaged, or promises a much larger array than it stores.
    """
    import nibabel

    path = Path(path) if content else existing_file(path, what)
    size = len(content) if content else path.stat().st_size
    # nibabel, zlib and NumPy raise many kinds on damaged files
    with translated(Exception, expected=f"{what} in {path}", remedy=REDO), system_errors(path):
        with contextlib.ExitStack() as stack:
            if path.suffix.lower() in (".mgh", ".mgz"):  # nibabel itself would not close the file
                stream = io.BytesIO(content) if content else stack.enter_context(open(path, "rb"))
                if path.suffix.lower() == ".mgz":
                    stream = stack.enter_context(gzip.open(stream))
                parts = nibabel.MGHImage.make_file_map({"image": stream})
                image = nibabel.MGHImage.from_file_map(parts, mmap=False)
            else:  # a memory map would keep the file open
                image = nibabel.load(str(path), mmap=False)
            itemsize = image.get_data_dtype().itemsize
            check_size(what, image.shape, itemsize, size, path)
            check_room(what, math.prod(image.shape) * itemsize, path)
            return np.asanyarray(image.dataobj)


def open_gifti(path: str | Path, content: bytes | None = None) -> GiftiImage:
    """Open a GIFTI file after checking that it holds its data itself and in full.

    Parameters
    ----------
    path : str or Path
        The file.
    content : bytes, optional
        Content of the file if it is in memory; `path` is then its name in messages.

    Returns
    -------
    nibabel.gifti.GiftiImage

    Raises
    ------
    DataError
        If the file is missing or damaged, points to another file, or holds or promises much more
        than it stores.
    """
    from nibabel.gifti import GiftiImage

    path = Path(path) if content else existing_file(path, "a GIFTI file")
    # expat, base64, zlib and nibabel raise many kinds on damaged files
    with translated(Exception, expected=f"a GIFTI file {path}", remedy=REDO), system_errors(path):
        raw = path.read_bytes() if content is None else content
        _check_gifti(raw, path)
        return GiftiImage.from_bytes(raw)


def _check_gifti(raw: bytes, path: Path) -> None:
    """Check the arrays of a GIFTI file, because nibabel inflates whatever they hold."""
    from nibabel.nifti1 import data_type_codes

    promised = held = 0
    for _, element in ElementTree.iterparse(io.BytesIO(raw)):
        if element.tag != "DataArray":
            continue
        require(
            not element.get("ExternalFileName") and "External" not in element.get("Encoding", ""),
            DataError,
            f"a GIFTI file {path} that holds its data itself",
            "a reference to another file",
            "save the arrays themselves in this file",
        )
        shape = [int(element.get(f"Dim{k}")) for k in range(int(element.get("Dimensionality")))]
        item = data_type_codes.dtype[element.get("DataType")].itemsize
        promised += math.prod(shape) * item
        check_size("arrays", (promised,), 1, len(raw), path)
        if "GZip" in element.get("Encoding", ""):
            packed, inflate = base64.b64decode(element.findtext("Data")), zlib.decompressobj()
            while packed:
                held += len(inflate.decompress(packed, 1 << 24))
                packed = inflate.unconsumed_tail
                check_size("arrays", (held,), 1, len(raw), path)
        element.clear()
    check_room("arrays", max(promised, held), path)


_CIFTI_EXTENSION = 32
"""Code of the header extension of NIfTI-2 that holds the XML of CIFTI-2."""


@dataclass(frozen=True, eq=False)
class BrainModel:
    """Hold one structure of a CIFTI-2 file.

    Parameters
    ----------
    structure : str
        Its name without its prefix: "CORTEX_LEFT", "THALAMUS_LEFT".
    offset, count : int
        First of its columns, and number of them.
    n_surface : int
        Vertices of the whole surface; 0 for a volume.
    vertices : ndarray of int64, shape (count,)
        Index of each column in the surface; empty for a volume.
    """

    structure: str
    offset: int
    count: int
    n_surface: int
    vertices: np.ndarray


@dataclass(frozen=True, eq=False)
class CiftiFile:
    """Hold what the header of a CIFTI-2 file says; values are read when they are needed.

    Parameters
    ----------
    path : Path
        The file, for messages.
    models : tuple of BrainModel
        Structures of the columns; empty if columns are something else.
    names : tuple of str, optional
        Names of the maps; None if rows are no named maps.
    labels : dict of int to str
        Name of each key of the first map's table of labels; empty without one.
    values : nibabel.arrayproxy.ArrayProxy, shape (1, 1, 1, 1, n_maps, n_columns)
        The values on disk.
    """

    path: Path
    models: tuple[BrainModel, ...]
    names: tuple[str, ...] | None
    labels: dict[int, str]
    values: ArrayProxy

    def read(self) -> np.ndarray:
        """Read all maps, float32 (n_maps, n_columns)."""
        # nibabel raises many kinds on damaged files
        with (
            translated(Exception, expected=f"values of a CIFTI-2 file {self.path}", remedy=REDO),
            system_errors(self.path),
        ):
            check_room("maps", math.prod(self.values.shape) * 4, self.path)
            return np.asarray(self.values, dtype=np.float32).reshape(self.values.shape[4:])


def open_cifti(path: str | Path, content: bytes | None = None) -> CiftiFile:
    """Open a CIFTI-2 file without reading its values.

    Parameters
    ----------
    path : str or Path
        A ``.dscalar.nii`` or ``.dlabel.nii`` file.
    content : bytes, optional
        Content of the file if it is in memory; `path` is then its name in messages.

    Returns
    -------
    CiftiFile

    Raises
    ------
    DataError
        If the file is missing, damaged, cut off or no CIFTI-2 file.

    Notes
    -----
    The XML in the header is read directly: nibabel's own axes take 0.5 s per file.
    """
    import nibabel

    path = Path(path) if content else existing_file(path, "a CIFTI-2 file")
    # nibabel and expat raise many kinds on damaged files
    with (
        translated(Exception, expected=f"a CIFTI-2 file {path}", remedy=REDO),
        system_errors(path),
        # it warns about pixel sizes, which CIFTI has not
        nibabel.imageglobals.LoggingOutputSuppressor(),
    ):
        if content:
            image, size = nibabel.Nifti2Image.from_bytes(content), len(content)
        else:
            image = nibabel.Nifti2Image.from_filename(path, mmap=False)
            size = path.stat().st_size
        tree = ElementTree.fromstring(
            next(e.content for e in image.header.extensions if e.get_code() == _CIFTI_EXTENSION)
        )
        rows, columns = (
            tree.find(f".//MatrixIndicesMap[@AppliesToMatrixDimension='{k}']") for k in (0, 1)
        )
        named = rows.findall("NamedMap")
        names = tuple((m.findtext("MapName") or "").strip() for m in named) if named else None
        table = rows.findall("NamedMap[1]/LabelTable/Label")
        labels = {int(label.get("Key")): label.text or "" for label in table}
        models = tuple(map(_brain_model, columns.findall("BrainModel")))
        n_maps, n_columns = image.shape[4:]
        proxy = image.dataobj
        needed = int(proxy.offset) + math.prod(map(int, image.shape)) * proxy.dtype.itemsize
        described = sum(model.count for model in models) if models else n_columns
        require(
            size >= needed and n_maps >= 1 and n_columns == described,
            DataError,
            f"{needed} bytes for {described} vertices in {path}",
            f"{size} bytes for {n_columns} vertices: the file is cut off or damaged",
            REDO,
        )
    return CiftiFile(path, models, names, labels, proxy)


def _brain_model(element: ElementTree.Element) -> BrainModel:
    vertices = np.array((element.findtext("VertexIndices") or "").split(), dtype=np.int64)
    return BrainModel(
        structure=element.get("BrainStructure", "").removeprefix("CIFTI_STRUCTURE_"),
        offset=int(element.get("IndexOffset")),
        count=int(element.get("IndexCount")),
        n_surface=int(element.get("SurfaceNumberOfVertices", 0)),
        vertices=vertices,
    )

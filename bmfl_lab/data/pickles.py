"""Read pickled dictionaries (ROI mappings, EEG arrays) without unpickling them.

Unpickling can run any code, and even an unpickler with an allow-list reaches NumPy's C code, which
random bytes can crash. Here the opcodes of a pickle are interpreted symbolically: numbers, strings
and containers become values, the few globals that NumPy writes for an array become inert marks, and
the raw buffer of an array is read by ``numpy.frombuffer``. Anything else is refused. Nothing that a
file names is imported or called.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from bmfl_lab.errors import DataError, message, require
from bmfl_lab.files import atomic_path, existing_file, read_npy_header, system_errors

MAX_BYTES = 64 << 10
"""Largest ROI mapping file in bytes."""
_MAX_ENTRIES = 256
_MAX_DEPTH = 20
_MAPPING_OPCODES, _ARRAY_OPCODES = 20_000, 500_000
_CORE = ("numpy.core", "numpy._core")
_RECONSTRUCT = tuple(f"{m}.multiarray._reconstruct" for m in _CORE)
_SCALAR = tuple(f"{m}.multiarray.scalar" for m in _CORE)
_FROM_BUFFER = tuple(f"{m}.numeric._frombuffer" for m in _CORE)
_ALLOWED = frozenset(
    (
        *_RECONSTRUCT,
        *_SCALAR,
        *_FROM_BUFFER,
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)
_DTYPE = re.compile(r"[biufcSU]\d{1,6}")
_MARK = object()
_Checked = TypeVar("_Checked")


class _Refused(Exception):
    """The file holds something else; the text becomes part of a `DataError`."""


def _need(condition: object, otherwise: str) -> None:
    """Refuse the file, with the text of what it holds, unless a condition holds."""
    if not condition:
        raise _Refused(otherwise)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Type:
    """A NumPy type that the pickle describes."""

    code: str
    order: str = "|"

    def dtype(self) -> np.dtype:
        _need(_DTYPE.fullmatch(self.code), f"an array of type {self.code!r}")
        return np.dtype(self.code).newbyteorder(self.order if self.order in "<>" else "=")


@dataclass
class _Array:
    """An array whose content a later opcode sets."""

    value: object = None


@system_errors()
def read_mapping(path: str | Path) -> dict[int, str]:
    """Read the label table of an ROI class (``mapping_*.npy``).

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file that holds one pickled dictionary, as ``numpy.save`` writes it; protocols 0
        to 5.

    Returns
    -------
    dict of int to str
        ROI name of each label, sorted by label.

    Raises
    ------
    DataError
        If the file is missing, larger than 64 kB, has more than 256 entries, is damaged, names a
        global that such a file does not need, or holds anything but whole numbers and names.
        Nothing in the file is ever run.
    """
    path = existing_file(path, "an ROI mapping")
    require(
        path.stat().st_size <= MAX_BYTES,
        DataError,
        f"an ROI mapping of at most {MAX_BYTES} bytes in {path}",
        f"{path.stat().st_size} bytes",
        "give the file of labels and names, mapping_*.npy, which is much smaller",
    )
    return parse_mapping(path.read_bytes(), str(path))


def parse_mapping(data: bytes, where: str = "the mapping") -> dict[int, str]:
    """Read a label table from the bytes of a ``.npy`` file.

    Parameters
    ----------
    data : bytes
        Content of the file.
    where : str
        Name of the source in error messages.

    Returns
    -------
    dict of int to str
        ROI name of each label, sorted by label.

    Raises
    ------
    DataError
        If the bytes hold anything else, see `read_mapping`.
    """
    wanted = f"a dictionary of ROI labels and names in {where}"
    remedy = "download the file again, or write it with write_mapping"
    return _parse(io.BytesIO(data), _checked_mapping, _MAPPING_OPCODES, wanted, remedy)


def write_mapping(path: str | Path, mapping: Mapping[int, str]) -> None:
    """Write a label table as ``numpy.save`` writes a dictionary.

    Parameters
    ----------
    path : str or Path
        File to write.
    mapping : mapping of int to str
        ROI name of each label.

    Raises
    ------
    DataError
        If a label is not a whole number, a name is not a string, or there are more than 256.
    """
    wanted = {int(k) if isinstance(k, np.integer) else k: v for k, v in mapping.items()}
    try:
        _checked_mapping(wanted)
    except _Refused as error:
        raise DataError(
            message("ROI labels and names, e.g. {1: 'EBA'}", str(error), "correct the mapping")
        ) from None
    array = np.empty((), dtype=object)
    array[()] = wanted
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(pickle.dumps(array, protocol=4))


def read_pickled_arrays(path: str | Path) -> dict[str, object]:
    """Read a pickled dictionary of arrays, lists, strings and numbers.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file that holds one dictionary (as ``numpy.save`` writes it) or a bare pickle of
        one, whatever its name; protocols 0 to 5.

    Returns
    -------
    dict of str to object
        Arrays are read-only and share the bytes that were read.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds anything else. Nothing in it is ever run.
    """
    path = existing_file(path, "a file of arrays")
    wanted = f"a dictionary of numeric arrays in {path.name}"
    remedy = "download the file again, or save the dictionary of its arrays with numpy.save"
    require(path.stat().st_size, DataError, wanted, "an empty file", remedy)
    with (
        system_errors(path),
        open(path, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return _parse(data, _checked_arrays, _ARRAY_OPCODES, wanted, remedy)


def _parse(
    stream: BinaryIO | mmap.mmap,
    check: Callable[[object], _Checked],
    max_opcodes: int,
    wanted: str,
    remedy: str,
) -> _Checked:
    """Interpret a stream and check the result; every failure becomes one kind of `DataError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged escapes in the header or in protocol 0 text
            _skip_header(stream)
            return check(_plain(_interpret(stream, max_opcodes)))
    except _Refused as error:
        got = str(error)[:200]
    except Exception as error:  # pickletools and NumPy's header reader raise many kinds
        got = f"a damaged pickle ({type(error).__name__})"
    raise DataError(message(wanted, f"{got} (nothing in it was run)", remedy))


def _checked_mapping(value: object) -> dict[int, str]:
    _need(type(value) is dict, f"a {type(value).__name__}")
    _need(len(value) <= _MAX_ENTRIES, f"{len(value)} entries, more than {_MAX_ENTRIES} entries")
    for label, name in value.items():
        _need(
            type(label) is int and type(name) is str,
            f"an entry of types {type(label).__name__} and {type(name).__name__}",
        )
        _need(abs(label) < 1 << 31 and len(name) <= 200, "a label or a name out of bounds")
    return dict(sorted(value.items()))


def _checked_arrays(value: object) -> dict[str, object]:
    _need(
        isinstance(value, dict) and all(isinstance(k, str) for k in value),
        f"a {type(value).__name__}",
    )
    return value


def _skip_header(stream: BinaryIO | mmap.mmap) -> None:
    """Move a stream behind the header of an object array, if it starts with one."""
    magic = stream.read(6)
    stream.seek(0)
    if magic != b"\x93NUMPY":
        return
    shape, _, dtype = read_npy_header(stream)
    _need(
        dtype.hasobject and shape in ((), (1,)),
        f"an array of {dtype} with shape {shape}; read it with load_npy",
    )


def _interpret(stream: BinaryIO | mmap.mmap, max_opcodes: int) -> object:
    """Follow the opcodes symbolically and return what the pickle stands for."""
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        _need(count < max_opcodes, f"more than {max_opcodes} pickle operations")
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, argument)
    raise _Refused("a pickle without an end")


class _Machine:
    """Stack and memo of the pickle protocol, for the operations that plain data need."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def step(self, name: str, argument: object) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            return
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.name_global(argument)
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self.stack.append(_called(function, arguments))
        elif name == "BUILD":
            state = self.pop()
            _set_state(self.top(), state)
        else:
            self.collect(name)

    def top(self) -> object:
        _need(self.stack and self.stack[-1] is not _MARK, "a pickle that takes from an empty stack")
        return self.stack[-1]

    def pop(self) -> object:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def name_global(self, argument: object) -> None:
        parts = str(argument).split(" ", 1) if argument else [self.pop(), self.pop()][::-1]
        _need(all(type(part) is str for part in parts), "a global without a name")
        name = ".".join(parts)
        _need(
            name in _ALLOWED,
            f"a reference to the global {name[:80]!r}, which such a file never needs",
        )
        self.stack.append(_Global(name))

    def collect(self, name: str) -> None:
        """Carry out the operations that make containers or fill them."""
        if name in ("EMPTY_DICT", "EMPTY_LIST"):
            self.stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self.pop() for _ in range(int(name[-1])))[::-1])
        elif name in ("TUPLE", "LIST"):
            items = self.pop_to_mark()
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = self.pop_to_mark()
            self.stack.append({})
            self.set_items(items)
        elif name in ("APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self.pop_to_mark()
            target = self.top()
            _need(type(target) is list, "elements for something that is no list")
            target.extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            many = name == "SETITEMS"
            self.set_items(self.pop_to_mark() if many else [self.pop(), self.pop()][::-1])
        else:
            raise _Refused(f"the pickle opcode {name}")

    def set_items(self, items: list[object]) -> None:
        target = self.top()
        _need(
            type(target) is dict and not (len(items) % 2),
            "items for something that is no dictionary",
        )
        for key, value in zip(items[::2], items[1::2]):
            key = int(key) if isinstance(key, np.integer) else key
            _need(type(key) in (int, str), f"a label of type {type(key).__name__}")
            target[key] = value


def _called(function: object, arguments: object) -> object:
    """Return the symbolic result of calling one of the allowed globals."""
    _need(
        type(function) is _Global and type(arguments) is tuple,
        "a call of something else than NumPy's own",
    )
    name, kinds = function.name, [type(a) for a in arguments]
    if name == "numpy.dtype" and kinds[:1] == [str]:
        return _Type(arguments[0])
    if name in _RECONSTRUCT and len(kinds) == 3 and kinds[0] is _Global:
        return _Array()
    if name in _SCALAR and kinds[:1] == [_Type] and len(kinds) == 2:
        return _filled(arguments[1], arguments[0], (), False)[()]
    if name in _FROM_BUFFER and len(kinds) == 4 and kinds[1] is _Type:
        buffer, kind, shape, order = arguments
        return _filled(buffer, kind, shape, order == "F")
    if name == "_codecs.encode" and kinds == [str, str] and arguments[1] == "latin1":
        return arguments[0].encode("latin1")
    raise _Refused(f"an unknown use of {name!r}")


def _set_state(target: object, state: object) -> None:
    _need(type(state) is tuple and len(state) >= 5, "an unknown state")
    if type(target) is _Type:
        _need(
            state[1] in ("<", ">", "|", "=") and not any(s is not None for s in state[2:5]),
            "a structured array",
        )
        target.order = state[1]
    elif type(target) is _Array and len(state) == 5 and type(state[2]) is _Type:
        _, shape, kind, fortran, data = state
        if kind.code in ("O8", "O4", "O") and shape in ((), (1,)) and type(data) is list:
            _need(len(data) == 1, "an array that does not hold exactly one object")
            target.value = data[0]
        else:
            target.value = _filled(data, kind, shape, bool(fortran))
    else:
        raise _Refused("an unknown state")


def _filled(data: object, kind: _Type, shape: object, fortran: bool) -> np.ndarray:
    """Return the array behind a raw buffer after checking that type, shape and length agree."""
    dtype = kind.dtype()
    _need(
        isinstance(data, (bytes, bytearray)) and type(shape) is tuple, "an array without raw data"
    )
    _need(
        all(type(s) is int and s >= 0 for s in shape)
        and math.prod(shape) * dtype.itemsize == len(data),
        f"{len(data)} bytes for shape {shape} {dtype}",
    )
    _need(dtype.itemsize, f"an array of empty {dtype}")
    array = np.frombuffer(bytes(data) if isinstance(data, bytearray) else data, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _plain(value: object, depth: int = 0) -> object:
    """Replace the symbolic arrays in nested containers by their values."""
    _need(depth <= _MAX_DEPTH, f"containers nested more than {_MAX_DEPTH} deep")
    if type(value) is _Array:
        return _plain(value.value, depth + 1)
    _need(
        type(value) not in (_Global, _Type) and value is not _MARK,
        "a NumPy type where a value should be",
    )
    if type(value) is dict:
        return {k: _plain(v, depth + 1) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(v, depth + 1) for v in value)
    return value

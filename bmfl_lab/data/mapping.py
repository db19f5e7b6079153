"""ROI mapping files (``mapping_*.npy``): a pickled ``{label: name}``, read without constructing any object.

Unpickling can run any code, and even an unpickler with an allow-list reaches NumPy's C code, which
random bytes can crash. Here the pickle's opcodes are interpreted symbolically: numbers, strings and
containers become values, the few globals that a NumPy array of a dictionary needs become inert
marks, and anything else is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.errors import DataError, message
from bmfl_lab.files import atomic_path

MAX_BYTES = 64 << 10
MAX_ENTRIES = 256
_MAX_OPCODES = 20_000
_ALLOWED = frozenset(
    f"{module} {name}"
    for module, names in {
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy": ("ndarray", "dtype"),
        "_codecs": ("encode",),
    }.items()
    for name in names
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_IGNORED = frozenset(("PROTO", "FRAME"))
_MARK = object()


class _Malformed(Exception):
    """The opcodes make no mapping; the message becomes part of a `DataError`."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Made:
    """What a call of an allowed global would have made: kind, arguments and the state set on it later."""

    kind: str
    args: tuple
    state: Any = None


def read_mapping(path: str | Path) -> dict[int, str]:
    """Read the label table of an ROI class.

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
        If the file is missing, above 64 kB or 256 entries, damaged, names a global that such a file
        does not need, or holds anything but whole numbers and names. Nothing in the file is ever
        run.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            message(
                f"an ROI mapping {path.name}", f"nothing at {path}", "check the folder is complete"
            )
        )
    if path.stat().st_size > MAX_BYTES:
        raise DataError(
            message(
                f"an ROI mapping of at most {MAX_BYTES} bytes in {path}",
                f"{path.stat().st_size} bytes",
                "check which file this is",
            )
        )
    return parse_mapping(path.read_bytes(), str(path))


def parse_mapping(data: bytes, where: str = "the mapping") -> dict[int, str]:
    """Read a label table from the bytes of a ``.npy`` file; see `read_mapping`.

    Raises
    ------
    DataError
        As `read_mapping`.
    """
    try:
        found = _plain(_interpret(_pickle_of(data)))
    except _Malformed as error:
        raise DataError(
            message(
                f"a dictionary of ROI labels and names in {where}",
                str(error),
                "download the file again, or write it with write_mapping; nothing in it was run",
            )
        ) from None
    return dict(sorted(found.items()))


def write_mapping(path: str | Path, mapping: Mapping[int, str]) -> None:
    """Write a label table as ``numpy.save`` writes a dictionary.

    Raises
    ------
    DataError
        If a label is not a whole number, a name is not a string, or there are more than 256.
    """
    wanted = {int(k) if isinstance(k, np.integer) else k: v for k, v in mapping.items()}
    try:
        _plain(wanted)
    except _Malformed as error:
        raise DataError(
            message("ROI labels and names, e.g. {1: 'EBA'}", str(error), "correct the mapping")
        ) from None
    array = np.empty((), dtype=object)
    array[()] = wanted
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    stream.write(pickle.dumps(array, protocol=4))
    with atomic_path(path) as temporary:
        temporary.write_bytes(stream.getvalue())


def _pickle_of(data: bytes) -> bytes:
    """Return the pickle behind an object array's header of shape ()."""
    if len(data) > MAX_BYTES:
        raise _Malformed(f"{len(data)} bytes, more than {MAX_BYTES}")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged escapes in the header's text
            shape, _, dtype = reader(stream)
    except Exception as error:  # NumPy's header reader raises many kinds on damaged bytes
        raise _Malformed(f"a damaged .npy header ({type(error).__name__})") from None
    if shape not in ((), (1,)) or dtype != np.dtype(object):
        raise _Malformed(f"an array of {dtype} with shape {shape}")
    return data[stream.tell() :]


def _interpret(data: bytes) -> Any:
    """Run the opcodes symbolically and return what STOP would return."""
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged escapes in protocol 0 text
            for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if count >= _MAX_OPCODES:
                    raise _Malformed(f"more than {_MAX_OPCODES} pickle operations")
                if opcode.name == "STOP":
                    return machine.pop()
                machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise _Malformed(f"a damaged pickle ({type(error).__name__})") from None
    raise _Malformed("a pickle without an end")


class _Machine:
    """The stack and memo of the pickle protocol, for the operations that a mapping needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name not in _IGNORED:
            operation = _OPERATIONS.get(name)
            if operation is None:
                raise _Malformed(f"the pickle operation {name}")
            operation(self, argument)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Malformed("a pickle that takes from an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        found: list[Any] = []
        while self.stack:
            item = self.stack.pop()
            if item is _MARK:
                return found[::-1]
            found.append(item)
        raise _Malformed("a pickle without a mark")

    def put(self, key: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Malformed("a pickle that remembers nothing")
        self.memo[key] = self.stack[-1]

    def global_(self, name: str) -> None:
        if name not in _ALLOWED:
            raise _Malformed(
                f"a reference to the global {name[:80]!r}, which such a file never needs"
            )
        self.stack.append(_Global(name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise _Malformed("a global without a name")
        self.global_(f"{module} {name}")

    def tuple_of(self, size: int) -> None:
        self.stack.append(tuple(self.pop() for _ in range(size))[::-1])

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if type(target) is not dict or len(items) % 2:
            raise _Malformed("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            key, value = _simple(key), _simple(value)
            if type(key) not in (int, str):
                raise _Malformed(f"a label of type {type(key).__name__}")
            target[key] = value
        if len(target) > MAX_ENTRIES:
            raise _Malformed(f"more than {MAX_ENTRIES} entries")

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if type(target) is not list:
            raise _Malformed("elements for something that is no list")
        target.extend(items)

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if type(function) is not _Global or type(args) is not tuple:
            raise _Malformed("a call of something that is no function")
        kind = function.name.split()[-1]
        if kind == "encode":
            if (
                len(args) != 2
                or type(args[0]) is not str
                or args[1] != "latin1"
                or len(args[0]) > MAX_BYTES
            ):
                raise _Malformed("an unknown text encoding")
            self.stack.append(args[0].encode("latin1"))
        elif kind == "ndarray":
            raise _Malformed("an array made in an unknown way")
        else:
            self.stack.append(_Made(kind, args))

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if type(target) is not _Made or type(state) is not tuple:
            raise _Malformed("a state for something that has none")
        target.state = state


def _pairs(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.stack.append({})
    machine.set_items(items)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _set_items(machine: _Machine, _: Any) -> None:
    machine.set_items(machine.pop_mark())


def _append(machine: _Machine, _: Any) -> None:
    machine.append([machine.pop()])


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.stack.append(_MARK),
    "GLOBAL": lambda m, a: m.global_(a),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "DICT": _pairs,
    "APPEND": _append,
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "PUT": lambda m, a: m.put(a),
    "BINPUT": lambda m, a: m.put(a),
    "LONG_BINPUT": lambda m, a: m.put(a),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
}


def _simple(value: Any) -> Any:
    """Turn the symbolic form of a NumPy whole number into an int; leave everything else alone."""
    if type(value) is not _Made or value.kind != "scalar":
        return value
    kind, raw = value.args if len(value.args) == 2 else (None, None)
    name = kind.args[0] if type(kind) is _Made and kind.kind == "dtype" and kind.args else None
    if (
        type(name) is not str
        or name not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
        or type(raw) is not bytes
    ):
        raise _Malformed("a NumPy scalar that is no whole number")
    if len(raw) != int(name[1]):
        raise _Malformed("a NumPy scalar of the wrong size")
    state = kind.state or (3, "<")
    order = "big" if len(state) > 1 and state[1] == ">" else "little"
    return int.from_bytes(raw, order, signed=name[0] == "i")


def _plain(value: Any) -> dict[int, str]:
    """Unwrap the array around the dictionary and check every label and name."""
    if type(value) is _Made and value.kind == "_reconstruct":
        state = value.state or ()
        content = state[4] if len(state) == 5 else None
        if type(content) is not list or len(content) != 1:
            raise _Malformed("an array that does not hold exactly one object")
        value = content[0]
    if type(value) is not dict:
        raise _Malformed(f"a {type(value).__name__.strip('_').lower()}")
    if len(value) > MAX_ENTRIES:
        raise _Malformed(f"{len(value)} entries, more than {MAX_ENTRIES}")
    for label, name in value.items():
        if type(label) is not int or type(name) is not str:
            raise _Malformed(f"an entry of types {type(label).__name__} and {type(name).__name__}")
        if abs(label) >= 1 << 31 or len(name) > 200:
            raise _Malformed("a label or a name out of bounds")
    return value

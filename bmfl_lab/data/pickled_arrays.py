"""Arrays inside pickles (a dictionary saved with ``numpy.save`` or ``pickle.dump``), read without unpickling.

Unpickling runs whatever the file says. Here the opcodes are walked through and only the pattern
that NumPy writes for an array is recognised; its raw buffer becomes an array by
``numpy.frombuffer``. Nothing named in the file is imported or called; anything else is refused.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
import struct
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.errors import DataError, message

_MAX_OPCODES = 500_000
_MARK = object()
_CORE = ("numpy.core.multiarray", "numpy._core.multiarray")
_RECONSTRUCT = tuple(f"{m} _reconstruct" for m in _CORE)
_SCALAR = tuple(f"{m} scalar" for m in _CORE)
_FROM_BUFFER = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
_ALLOWED = frozenset((*_RECONSTRUCT, *_SCALAR, *_FROM_BUFFER, "numpy ndarray", "numpy dtype"))
_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_DTYPE = re.compile(r"[biufcSU]\d{1,6}")


class _Refused(Exception):
    """The opcodes are not a dictionary of arrays; the message becomes part of a `DataError`."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Type:
    code: str
    order: str = "|"

    def dtype(self) -> np.dtype:
        if not _DTYPE.fullmatch(self.code):
            raise _Refused(f"an array of type {self.code!r}")
        return np.dtype(self.code).newbyteorder(self.order if self.order in "<>" else "=")


@dataclass
class _Array:
    value: Any = None


def read_pickled_arrays(path: str | Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, lists, strings and numbers.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file that holds one dictionary (as ``numpy.save`` writes it) or a bare pickle of
        one, of protocol 3 to 5, whatever its name.

    Returns
    -------
    dict of str to object
        Arrays are read-only and share the bytes that were read.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds anything else. Nothing in it is ever run.
    """
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        raise DataError(
            message(f"a file {path.name} with data", f"nothing at {path}", "check the path")
        )
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _skip_header(data)
            found = _plain(_interpret(data))
            if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
                raise _Refused(f"a {type(found).__name__}")
        except (
            _Refused,
            struct.error,
            ArithmeticError,
            LookupError,
            MemoryError,
            RecursionError,
            SyntaxError,
            TypeError,
            ValueError,
            tokenize.TokenError,
        ) as error:
            raise DataError(
                message(
                    f"a dictionary of numeric arrays in {path.name}",
                    str(error)[:200] or type(error).__name__,
                    "download the file again, or save its arrays one by one with numpy.save; nothing in it was run",
                )
            ) from None
    return found


def _skip_header(data: mmap.mmap) -> None:
    if data[:6] != b"\x93NUMPY":
        return
    data.seek(0)
    version = np.lib.format.read_magic(data)
    reader = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = reader(data)
    if not dtype.hasobject or shape != ():
        raise _Refused(f"a plain array {dtype} {shape}; read it with load_npy")


def _interpret(data: mmap.mmap) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > _MAX_OPCODES:
            raise _Refused(f"more than {_MAX_OPCODES} opcodes")
        name = opcode.name
        if name == "STOP":
            if len(stack) != 1:
                raise _Refused("an unfinished pickle")
            return stack[0]
        if name in ("PROTO", "FRAME"):
            continue
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        else:
            _act(name, argument, stack)
    raise _Refused("a truncated pickle")


def _act(name: str, argument: Any, stack: list[Any]) -> None:
    if name == "MARK":
        stack.append(_MARK)
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        named = argument if name == "GLOBAL" else " ".join([str(stack.pop(-2)), str(stack.pop())])
        if named not in _ALLOWED:
            raise _Refused(f"a call of {named.replace(' ', '.')!r}")
        stack.append(_Global(named))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        size = int(name[-1])
        if len(stack) < size:
            raise _Refused("a damaged tuple")
        stack[-size:] = [tuple(stack[-size:])]
    elif name in ("TUPLE", "APPENDS", "SETITEMS"):
        _collect(name, _to_mark(stack), stack)
    elif name in ("APPEND", "SETITEM"):
        size = 1 if name == "APPEND" else 2
        items = stack[-size:]
        del stack[-size:]
        _collect(f"{name}S", items, stack)
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_made(function, arguments))
    elif name == "BUILD":
        state = stack.pop()
        _set_state(stack[-1], state)
    else:
        raise _Refused(f"opcode {name}")


def _to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _collect(name: str, items: list[Any], stack: list[Any]) -> None:
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "APPENDS" and isinstance(stack[-1], list):
        stack[-1].extend(items)
    elif name == "SETITEMS" and isinstance(stack[-1], dict) and len(items) % 2 == 0:
        stack[-1].update(zip(items[::2], items[1::2]))
    else:
        raise _Refused("items of something that is no list or dictionary")


def _made(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Refused("a call of something else than NumPy's own")
    if function.name == "numpy dtype" and arguments and isinstance(arguments[0], str):
        return _Type(arguments[0])
    if (
        function.name in _RECONSTRUCT
        and len(arguments) == 3
        and arguments[0] == _Global("numpy ndarray")
    ):
        return _Array()
    if function.name in _SCALAR and len(arguments) == 2 and isinstance(arguments[0], _Type):
        return _filled(arguments[1], arguments[0], (), False)[()]
    if function.name in _FROM_BUFFER and len(arguments) == 4 and isinstance(arguments[1], _Type):
        buffer, kind, shape, order = arguments
        return _filled(buffer, kind, shape, order == "F")
    raise _Refused(f"an unknown use of {function.name.replace(' ', '.')!r}")


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, _Type) and isinstance(state, tuple) and len(state) >= 5:
        if state[1] not in ("<", ">", "|", "=") or any(s is not None for s in state[2:5]):
            raise _Refused("a structured array")
        target.order = state[1]
    elif (
        isinstance(target, _Array)
        and isinstance(state, tuple)
        and len(state) == 5
        and isinstance(state[2], _Type)
    ):
        _, shape, kind, fortran, data = state
        if kind.code in ("O8", "O") and shape == () and isinstance(data, list) and len(data) == 1:
            target.value = data[0]
        else:
            target.value = _filled(data, kind, shape, bool(fortran))
    else:
        raise _Refused("an unknown state")


def _filled(data: Any, kind: _Type, shape: Any, fortran: bool) -> np.ndarray:
    dtype = kind.dtype()
    if not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise _Refused("an array without raw data")
    if not all(isinstance(s, int) and s >= 0 for s in shape) or math.prod(
        shape
    ) * dtype.itemsize != len(data):
        raise _Refused(f"{len(data)} bytes for shape {shape} {dtype}")
    if not dtype.itemsize:
        raise _Refused(f"an array of empty {dtype}")
    array = np.frombuffer(bytes(data) if isinstance(data, bytearray) else data, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > 20:
        raise _Refused("containers nested more than 20 deep")
    if isinstance(value, _Array):
        return _plain(value.value, depth + 1)
    if isinstance(value, (_Global, _Type)) or value is _MARK:
        raise _Refused("a NumPy type where a value should be")
    if isinstance(value, dict):
        return {_plain(k, depth + 1): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v, depth + 1) for v in value)
    return value

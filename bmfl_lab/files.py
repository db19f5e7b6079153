"""Files that are either complete or absent: atomic writes, checksums, locks and guarded reads."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tokenize
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.errors import DataError, LockedError, message

_CHUNK = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """Return the SHA-256 of the canonical JSON form of `value` (sorted keys, no NaN)."""
    return sha256_bytes(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    )


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` only if the block succeeds.

    The file is flushed to disk before it is renamed, so that after a crash the final name holds
    either the old content or the whole new one.

    Raises
    ------
    OSError
        Whatever the writer raises; nothing is left under the final name then.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, atomically, refusing NaN and infinity.

    Raises
    ------
    ValueError
        If a number is not finite: an undefined metric is written as null.
    """
    text = _json_text(value)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


_SEAL = ("sealed", "seal")


def write_sealed_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON with a checksum of itself, so that `read_sealed_json` sees any change of a single bit.

    Raises
    ------
    ValueError
        As `write_json`.
    """
    body = {**{k: v for k, v in value.items() if k not in _SEAL}, "sealed": "sha256"}
    write_json(path, {**body, "seal": sha256_bytes(_json_text(body).encode())})


def read_sealed_json(path: str | Path) -> Any:
    """Read what `write_sealed_json` wrote; JSON of an earlier version, without any seal, is read as it is.

    Raises
    ------
    DataError
        If the file is missing or is no JSON, or differs by a bit from what was written.
    """
    value = read_json(path)
    if isinstance(value, dict) and any(k in value for k in _SEAL):
        body = {k: v for k, v in value.items() if k != "seal"}
        # equal text leaves no byte unchecked, blanks and repeated keys included
        same = Path(path).read_bytes() == (_json_text(value) + "\n").encode()
        if not same or value.get("seal") != sha256_bytes(_json_text(body).encode()):
            raise DataError(
                message(
                    f"{path} as it was written",
                    "a changed or damaged file",
                    "delete it and make it again",
                )
            )
        value = {k: v for k, v in body.items() if k not in _SEAL}
    return value


def _json_text(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)


def read_json(path: str | Path, max_bytes: int = 64 << 20) -> object:
    """Read a JSON file.

    Raises
    ------
    DataError
        If the file is missing, larger than `max_bytes` or not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            message(
                f"a JSON file {path.name}", f"nothing at {path}", "check the path, or make it again"
            )
        )
    if path.stat().st_size > max_bytes:
        raise DataError(
            message(
                f"{path.name} of at most {max_bytes} bytes",
                f"{path.stat().st_size} bytes",
                "check which file this is",
            )
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # no text, no JSON, a number of 10,000 digits, a tower of brackets
        raise DataError(
            message(f"valid JSON in {path}", str(error), "delete the file and make it again")
        ) from error


def load_npy(path: str | Path, *, mmap: bool = False) -> np.ndarray:
    """Read a ``.npy`` array of numbers without ever constructing Python objects.

    Parameters
    ----------
    path : str or Path
        The file.
    mmap : bool, default False
        Map the file read-only instead of reading it.

    Raises
    ------
    DataError
        If it is missing, not an array file, holds objects, or its header promises more data than
        the file has.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            message(f"an array file {path.name}", f"nothing at {path}", "check the path")
        )
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            reader = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = reader(stream)
            available = path.stat().st_size - stream.tell()
    except (
        ValueError,
        EOFError,
        SyntaxError,
        TypeError,
        KeyError,
        OverflowError,
        tokenize.TokenError,
    ) as error:
        raise DataError(
            message(
                f"a NumPy array in {path}",
                str(error) or "a damaged header",
                "make or download the file again",
            )
        ) from error
    if dtype.hasobject:
        raise DataError(
            message(
                f"an array of numbers in {path}",
                "pickled Python objects, which can run code",
                "save it as a plain numeric array",
            )
        )
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if needed != available:
        raise DataError(
            message(
                f"{needed} bytes of data in {path} for shape {tuple(shape)} {dtype}",
                f"{available} bytes",
                "the file is truncated or damaged: make or download it again",
            )
        )
    return np.load(path, mmap_mode="r" if mmap and needed else None, allow_pickle=False)


def link_guard(root: str | Path, allowed: bool = False) -> Callable[[Path], Path]:
    """Return a function that hands paths through and refuses those that a link leads out of `root`.

    Parameters
    ----------
    root : str or Path
        The folder that the user named; it may be a link itself.
    allowed : bool, default False
        Hand every path through.

    Returns
    -------
    callable
        ``guard(path) -> path``; raises `DataError` naming the link and where it leads.
    """
    home = Path(root).resolve()

    def guard(path: Path) -> Path:
        if not allowed and not path.resolve().is_relative_to(home):
            raise DataError(
                message(
                    f"files inside {root}",
                    f"{path}, a link to {path.resolve()}",
                    "copy the file in, or pass follow_links=True if the link is yours",
                )
            )
        return path

    return guard


@contextlib.contextmanager
def lock(path: str | Path, *, wait: bool = True, what: str = "this folder") -> Iterator[None]:
    """Hold an exclusive lock file while the block runs.

    Parameters
    ----------
    path : str or Path
        The lock file; made if missing and left in place.
    wait : bool, default True
        Wait for the other holder, or refuse at once.
    what : str
        What is protected, for the message.

    Raises
    ------
    DataError
        If `wait` is false and another process holds the lock; the message names its process id. Or
        if the lock file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise DataError(
            message(
                f"to write in {what} ({path.parent})",
                str(error),
                "make it writable, or choose another folder",
            )
        ) from error
    with opened as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise LockedError(
                message(
                    f"sole use of {what}",
                    f"process {holder} at work in it",
                    "wait for it to end, or choose another folder",
                )
            ) from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)

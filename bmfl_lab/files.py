"""Files that are either complete or absent: atomic writes, checksums, locks and checked reads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import tokenize
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import SoftFileLock, Timeout

from bmfl_lab.errors import DataError, LockedError, message, require, translated

_ARRAYS_SCHEMA = 1


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of the content of a file.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Return the hexadecimal SHA-256 of the canonical JSON form of `value`.

    The keys are sorted; NaN and infinity raise `ValueError`.
    """
    return sha256_bytes(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    )


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` if the block succeeds.

    The file is flushed to disk before it is renamed, so that after a crash the final name holds
    either the old content or the whole new content. If the block raises an error, the temporary
    file is deleted.

    Parameters
    ----------
    path : str or Path
        Final path; missing folders are made.

    Yields
    ------
    Path
        A path in the same folder, at which the block writes the file.

    Raises
    ------
    OSError
        If the file cannot be written.
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
    """Write a value as a JSON file, atomically.

    Parameters
    ----------
    path : str or Path
        The file.
    value : object
        Dicts, lists, strings, finite numbers, booleans and None.

    Raises
    ------
    ValueError
        If a number is NaN or infinite. Use None for an undefined number.
    """
    text = _json_text(value)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


_SEAL = ("sealed", "seal")


def write_sealed_json(path: str | Path, value: Mapping[str, object]) -> None:
    """Write a mapping as JSON together with a checksum of it, for `read_sealed_json`.

    Parameters
    ----------
    path : str or Path
        The file.
    value : mapping of str to object
        See `write_json`; the keys "sealed" and "seal" are replaced.

    Raises
    ------
    ValueError
        If a number is NaN or infinite.
    """
    body = {**{k: v for k, v in value.items() if k not in _SEAL}, "sealed": "sha256"}
    write_json(path, {**body, "seal": sha256_bytes(_json_text(body).encode())})


def read_sealed_json(path: str | Path) -> object:
    """Read a file written by `write_sealed_json` and check that no bit of it has changed.

    Parameters
    ----------
    path : str or Path
        The file. JSON without a checksum, as earlier versions wrote it, is read without a check.

    Returns
    -------
    object
        The value, without the keys "sealed" and "seal".

    Raises
    ------
    DataError
        If the file is missing, is not JSON, or was changed after it was written.
    """
    value = read_json(path)
    if isinstance(value, dict) and any(k in value for k in _SEAL):
        body = {k: v for k, v in value.items() if k != "seal"}
        # comparing the text checks every byte, blanks and repeated keys included
        same = Path(path).read_bytes() == (_json_text(value) + "\n").encode()
        require(
            same and value.get("seal") == sha256_bytes(_json_text(body).encode()),
            DataError,
            f"{path} as it was written",
            "a changed or damaged file",
            "delete it and run what wrote it again",
        )
        value = {k: v for k, v in body.items() if k not in _SEAL}
    return value


def _json_text(value: object) -> str:
    """Return the text of a JSON file, without the newline at its end."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)


def read_json(path: str | Path, max_bytes: int = 64 << 20) -> object:
    """Read a JSON file.

    Parameters
    ----------
    path : str or Path
        The file.
    max_bytes : int, default 64 MiB
        Largest size that is read.

    Returns
    -------
    object
        Dicts, lists, strings, numbers, booleans and None.

    Raises
    ------
    DataError
        If the file is missing, larger than `max_bytes` or not JSON.
    """
    path = existing_file(path, "a JSON file")
    require(
        path.stat().st_size <= max_bytes,
        DataError,
        f"{path.name} of at most {max_bytes} bytes",
        f"{path.stat().st_size} bytes",
        "check that the path names the file you meant",
    )
    # not UTF-8, not JSON, a number of 10,000 digits, or brackets nested too deeply
    with translated(
        ValueError,
        RecursionError,
        expected=f"valid JSON in {path}",
        remedy="delete the file and run what wrote it again",
    ):
        return json.loads(path.read_text(encoding="utf-8"))


def existing_file(path: str | Path, what: str) -> Path:
    """Return a path if there is a file.

    Parameters
    ----------
    path : str or Path
        The file.
    what : str
        Name of the file's kind in the message, with its article.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        If there is no file.
    """
    path = Path(path)
    got = f"nothing at {path}"
    require(
        path.is_file(), DataError, what, got, "check the path, and that the download is complete"
    )
    return path


def load_npy(path: str | Path, *, mmap: bool = False) -> np.ndarray:
    """Read a ``.npy`` array of numbers without constructing Python objects.

    Parameters
    ----------
    path : str or Path
        The file.
    mmap : bool, default False
        Map the file into memory, read-only, instead of reading it.

    Returns
    -------
    ndarray
        Shape and type as stored.

    Raises
    ------
    DataError
        If the file is missing, is not an array file, holds Python objects, or is not as long as its
        header says.
    """
    path = existing_file(path, "an array file")
    with (
        translated(
            *_HEADER_ERRORS,
            expected=f"a NumPy array in {path}",
            remedy="make or download the file again",
        ),
        open(path, "rb") as stream,
    ):
        shape, _, dtype = read_npy_header(stream)
        available = path.stat().st_size - stream.tell()
    require(
        not dtype.hasobject,
        DataError,
        f"an array of numbers in {path}",
        "pickled Python objects, which can run code",
        "save it as a plain numeric array",
    )
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    require(
        needed == available,
        DataError,
        f"{needed} bytes of data in {path} for shape {tuple(shape)} {dtype}",
        f"{available} bytes",
        "make or download the file again, as it is truncated or damaged",
    )
    return np.load(path, mmap_mode="r" if mmap and needed else None, allow_pickle=False)


_HEADER_ERRORS = (
    *(ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError),
    tokenize.TokenError,
)
"""What NumPy raises for damaged headers."""


def read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a ``.npy`` file and leave the stream behind it.

    Parameters
    ----------
    stream : binary file
        At its beginning.

    Returns
    -------
    shape : tuple of int
    fortran : bool
        Whether the first index varies fastest.
    dtype : numpy.dtype
    """
    old = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    return read(stream)


def save_npy(path: str | Path, values: np.ndarray) -> None:
    """Write an array of numbers as a ``.npy`` file, atomically.

    Parameters
    ----------
    path : str or Path
        The file, under exactly this name.
    values : ndarray
        Numbers of any shape.

    Raises
    ------
    ValueError
        If the array holds Python objects.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, values, allow_pickle=False)


@contextlib.contextmanager
def new_npy(path: str | Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield a new array that is mapped from a ``.npy`` file; the file appears when the block ends.

    Parameters
    ----------
    path : str or Path
        The file.
    shape : tuple of int
        Shape of the array.

    Yields
    ------
    ndarray of float32
        Filled by the block.
    """
    with atomic_path(path) as temporary:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        yield mapped
        mapped.flush()


Guard = Callable[[Path], Path]
"""Returns a path that may be read and refuses any other, see `link_guard`."""


def link_guard(root: str | Path, allowed: bool = False) -> Guard:
    """Return a function that refuses paths which a symbolic link leads out of a folder.

    Parameters
    ----------
    root : str or Path
        The folder that the user named; it may be a link itself.
    allowed : bool, default False
        Accept every path.

    Returns
    -------
    callable
        ``guard(path) -> path`` returns its argument, or raises `DataError` with the link and its
        target.
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


_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of file systems without flock: Lustre without its option, NFS without a lock daemon."""


@contextlib.contextmanager
def lock(path: str | Path, *, wait: bool = True, what: str = "this folder") -> Iterator[None]:
    """Hold an exclusive lock file while the block runs.

    Parameters
    ----------
    path : str or Path
        The lock file; made if missing, and left in place.
    wait : bool, default True
        Whether to wait for another process that holds the lock, or to raise an error.
    what : str, default "this folder"
        Name of the locked thing in messages.

    Raises
    ------
    DataError
        If `wait` is false and another process holds the lock (the message names its process id), or
        if the lock file cannot be written.
    """
    path = Path(path)
    with translated(
        OSError,
        expected=f"to write in {what} ({path.parent})",
        remedy="make it writable, or choose another folder",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = open(path, "a+", encoding="utf-8")
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(opened)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise _locked(what, stream.read().strip() or "unknown") from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            try:
                # a second file whose existence is the lock; filelock takes over stale ones
                stack.enter_context(SoftFileLock(f"{path}.held", timeout=-1 if wait else 0))
            except Timeout:
                raise _locked(what, "unknown") from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield  # closing the stream releases its lock


def _locked(what: str, holder: str) -> LockedError:
    remedy = "wait for it to end, or choose another folder"
    return LockedError(message(f"sole use of {what}", f"process {holder} at work in it", remedy))


def store_arrays(
    folder: str | Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, object]
) -> None:
    """Write a folder of arrays with their checksums; the folder is complete or absent.

    Parameters
    ----------
    folder : str or Path
        The folder; replaced if it exists.
    arrays : mapping of str to ndarray
        Arrays of numbers of any shape; the names become file names.
    about : mapping of str to object
        Further JSON values for the manifest.

    Raises
    ------
    OSError
        If the folder cannot be written.
    ValueError
        If an array holds Python objects.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock"), what=str(folder)):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            sums = {}
            for name, values in arrays.items():
                np.save(temporary / f"{name}.npy", np.ascontiguousarray(values), allow_pickle=False)
                sums[name] = sha256_file(temporary / f"{name}.npy")
            write_sealed_json(
                temporary / "manifest.json", {"schema": _ARRAYS_SCHEMA, "sha256": sums, **about}
            )
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)


def load_arrays(folder: str | Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of a folder that `store_arrays` wrote, as read-only memory maps.

    Parameters
    ----------
    folder : str or Path
        The folder.

    Returns
    -------
    dict of str to ndarray, or None
        None if there is no such folder, or if it is damaged and has to be made again. Damage is
        printed.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        return None
    try:
        manifest = read_sealed_json(folder / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("schema") != _ARRAYS_SCHEMA:
            return None
        found = {}
        for name, expected in manifest["sha256"].items():
            if sha256_file(folder / f"{name}.npy") != expected:
                raise DataError(f"{name}.npy does not have its recorded checksum")
            found[name] = load_npy(folder / f"{name}.npy", mmap=True)
        return found
    except (DataError, OSError, KeyError, AttributeError) as error:
        print(f"the cached {folder.name} is damaged ({error}) and is made again", flush=True)
        return None

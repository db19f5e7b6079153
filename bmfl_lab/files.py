"""Files that are either complete or absent: atomic writes, checksums, locks and checked reads."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import fnmatch
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
import tokenize
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

import numpy as np
from filelock import SoftFileLock, Timeout

from bmfl_lab.errors import DataError, FileError, LockedError, message, require, translated

if TYPE_CHECKING:
    import yaml

_ARRAYS_SCHEMA = 1
_MAX_VALUES, _MAX_DIGITS = 100_000, 1000
_REMAKE = "delete the file and run what wrote it again"
_REMEDIES = {
    "free some space, or choose a folder on another disk": (errno.ENOSPC, errno.EDQUOT),
    "close other programs, or allow more open files with 'ulimit -n 4096'": (
        errno.EMFILE,
        errno.ENFILE,
    ),
    "use fewer vertices, images or sessions at a time, or a machine with more memory": (
        errno.ENOMEM,
    ),
    "allow larger files with 'ulimit -f unlimited', or choose a folder on another disk": (
        errno.EFBIG,
    ),
    "ask the owner for permission, or choose another folder": (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
    ),
    "remove the link that leads back to itself": (errno.ELOOP,),
    "choose a shorter name": (errno.ENAMETOOLONG,),
    "put another copy of the file on another disk, as this one cannot read or write it": (
        errno.EIO,
        errno.ENXIO,
    ),
    "mount the network folder again": (
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EREMOTEIO,
    ),
    "wait until no other program uses it": (errno.EBUSY, errno.ETXTBSY, errno.EAGAIN),
    "give the path of a file": (errno.EISDIR,),
    "give the path of a folder, or move away the file that has its name": (
        errno.ENOTDIR,
        errno.EEXIST,
    ),
}
"""Remedy for each reason for which the operating system refuses a file, with its error numbers."""
_NO_PATH = ("embedded null", "Could not determine home")
"""How messages of Python begin about texts that can be no path: with a null, or "~nobody"."""
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")


@contextlib.contextmanager
def system_errors(path: str | Path | None = None) -> Iterator[None]:
    """Turn errors of the operating system inside the block into `FileError`.

    Parameters
    ----------
    path : str or Path, optional
        Name of the file or folder in the message, for errors that do not name one themselves.

    Raises
    ------
    FileError
        If the operating system refuses a file or has no memory. The message holds the path, the
        reason with its number, and a remedy for this reason.

    Notes
    -----
    Errors of this package pass unchanged, and so do errors without a number, with which libraries
    report a damaged content. `pathlib` reports a link to itself as a RuntimeError, and NumPy a full
    disk by the numbers of values that it wrote.
    """
    try:
        yield
    except FileError:
        raise
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        number = getattr(error, "errno", None)
        if str(error).startswith(_NO_PATH):
            number = errno.EINVAL
        elif isinstance(error, MemoryError):
            number = errno.ENOMEM
        elif isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
            number = errno.ELOOP
        elif _CUT_SHORT.fullmatch(str(error)):
            number = errno.ENOSPC
        if number is None:
            raise
        reason = f"{os.strerror(number)} (error {number})"
        remedies = [do for do, numbers in _REMEDIES.items() if number in numbers]
        place = getattr(error, "filename", None) or path or "a file"
        wanted = f"access to {place if isinstance(place, int) else printable(place)}"
        found = FileError(message(wanted, reason, remedies[0] if remedies else "check the path"))
        found.errno = number
        raise found from error


def printable(path: str | bytes | Path) -> str:
    """Return a path as text that can be printed and stored as UTF-8.

    Bytes that are not UTF-8, as in names from old archives, become escapes such as ``\\udce9``.
    """
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


def files_below(folder: str | Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose names fit a pattern such as "*.npy", sorted.

    Unlike `Path.rglob`, this raises no error where another process removes a folder meanwhile, and
    it returns an empty list if there is no folder.
    """
    walked = ((top, fnmatch.filter(names, pattern)) for top, _, names in os.walk(folder))
    return sorted(Path(top, name) for top, names in walked for name in names)


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
    FileError
        If the file cannot be read.
    """
    with system_errors(path), open(path, "rb") as stream:
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
    FileError
        If the file cannot be written.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    with system_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, final)
        finally:
            with contextlib.suppress(OSError, ValueError):  # why nothing was written is told
                temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, atomically; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


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
    write_bytes(path, f"{_json_text(value)}\n".encode())


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
            _REMAKE,
        )
        value = {k: v for k, v in body.items() if k not in _SEAL}
    return value


def _json_text(value: object) -> str:
    """Return the text of a JSON file, without the newline at its end."""
    # a byte of a file name that is not UTF-8 becomes an escape, which JSON reads back
    return printable(
        json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    )


@system_errors()
def read_json(
    path: str | Path,
    max_bytes: int = 64 << 20,
    remedy: str = _REMAKE,
) -> object:
    """Read a JSON file.

    Parameters
    ----------
    path : str or Path
        The file.
    max_bytes : int, default 64 MiB
        Largest size that is read.
    remedy : str, optional
        How to mend a damaged file, for error messages; by default how to make a file again that the
        library wrote itself.

    Returns
    -------
    object
        Dicts, lists, strings, numbers, booleans and None.

    Raises
    ------
    DataError
        If the file is missing, larger than `max_bytes` or not JSON, or a field is written twice.
    """
    path = _small_file(path, "a JSON file", max_bytes)
    # not UTF-8, not JSON, a number of 10,000 digits, or brackets nested too deeply
    with translated(
        ValueError,
        RecursionError,
        expected=f"valid JSON in {path}",
        remedy=remedy,
    ):
        return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> object:
    """Return the value of a text in JSON.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    object
        Dicts, lists, strings, numbers, booleans and None.

    Raises
    ------
    ValueError
        If the text is not JSON, or if a field is written twice, of which Python would take the
        last.
    RecursionError
        If brackets are nested too deeply.
    """

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{name!r} is written twice")
            found[name] = value
        return found

    return json.loads(text, object_pairs_hook=collect)


def read_table(
    path: str | Path, columns: Sequence[str], remedy: str, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the lines of a table as text.

    Parameters
    ----------
    path : str or Path
        The file; UTF-8, with or without a byte order mark.
    columns : sequence of str
        Columns that the table must have, and in which every line must have a cell.
    remedy : str
        How to get a table that can be read, for error messages.
    delimiter : str, default ","
        Character between two cells.

    Yields
    ------
    int
        Number of the line, counted from 1.
    dict of str to str
        Column to cell.

    Raises
    ------
    DataError
        If there is no such file, it is not text, columns are missing, or a line has too few cells;
        the message names the line.
    """
    path, number = existing_file(path, "a table"), 1
    with system_errors(path), open(path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        try:
            missing = sorted(set(columns) - set(reader.fieldnames or []))
            kind = "the column" if len(columns) == 1 else "columns"
            wanted = f"{kind} {', '.join(columns)} in {path}"
            require(not missing, DataError, wanted, f"no {missing}", remedy)
            for row in reader:
                number = reader.line_num
                wanted = f"a cell for each column in {path}, line {number}"
                short = any(row[c] is None for c in columns)
                require(not short, DataError, wanted, "a short line", remedy)
                yield number, row
        except (UnicodeDecodeError, csv.Error) as error:
            got = f"{type(error).__name__} after line {number}: {error}"
            if isinstance(error, UnicodeDecodeError):
                remedy = f"save it as UTF-8, or {remedy}"
            raise DataError(message(f"a table as text in {path}", got, remedy)) from error


def _count_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return how many values a YAML node stands for; infinity if it holds itself.

    A field that is written twice is refused, because YAML would silently take the last one, and so
    is a number that Python would not print.
    """
    from yaml.constructor import ConstructorError

    if id(node) not in known:
        known[id(node)] = math.inf
        if str(getattr(node, "tag", "")).endswith(":int") and len(node.value) > _MAX_DIGITS:
            said = f"a whole number of {len(node.value)} characters"
            raise ConstructorError(None, None, said, node.start_mark)
        content = getattr(node, "value", None)
        parts = content if isinstance(content, list) else []
        flat = [p for part in parts for p in (part if isinstance(part, tuple) else (part,))]
        fields: set[tuple[str, object]] = set()
        for field in (part[0] for part in parts if isinstance(part, tuple)):
            if isinstance(field.value, str) and (field.tag, field.value) in fields:
                said = f"{field.value!r} is written twice"
                raise ConstructorError(None, None, said, field.start_mark)
            fields.add((field.tag, str(field.value)))
        known[id(node)] = 1 + sum(_count_values(part, known) for part in flat)
    return known[id(node)]


@system_errors()
def read_yaml(path: str | Path, max_bytes: int = 1 << 20) -> object:
    """Read a YAML file, without letting a short text stand for a huge value.

    Parameters
    ----------
    path : str or Path
        The file.
    max_bytes : int, default 1 MiB
        Largest size that is read.

    Returns
    -------
    object
        Dicts, lists, strings, numbers, booleans, dates and None.

    Raises
    ------
    DataError
        If the file is missing, larger than `max_bytes`, not UTF-8 or not YAML, if a field is
        written twice, if it holds more than 100,000 values, counting each alias as what it stands
        for, if a value holds itself, or if brackets are nested too deeply.
    """
    import yaml

    path = _small_file(path, "a YAML file", max_bytes)
    n_expected = f"at most {_MAX_VALUES} values in {path.name}"
    remedy = "write the values out, without aliases"
    with (
        translated(RecursionError, expected=n_expected, remedy=remedy),
        translated(
            yaml.YAMLError, ValueError, expected=f"YAML in {path.name}", remedy="mend the line"
        ),
    ):
        text = path.read_text(encoding="utf-8-sig")
        n_values = _count_values(yaml.compose(text, Loader=yaml.SafeLoader), {})
        got = f"{n_values}, with each alias written out"
        require(n_values <= _MAX_VALUES, DataError, n_expected, got, remedy)
        return yaml.safe_load(text)


def _small_file(path: str | Path, what: str, max_bytes: int) -> Path:
    """Return a path if there is a file of at most `max_bytes` bytes."""
    path = existing_file(path, what)
    size = path.stat().st_size
    remedy = "check that the path names the file you meant"
    require(
        size <= max_bytes,
        DataError,
        f"{path.name} of at most {max_bytes} bytes",
        f"{size} bytes",
        remedy,
    )
    return path


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
    if path.exists() and not path.is_file():
        got = f"{'a folder' if path.is_dir() else 'something that is no plain file'} at {path}"
        raise DataError(message(what, got, "give the file itself"))
    got = f"nothing at {path}"
    require(
        path.is_file(), DataError, what, got, "check the path, and that the download is complete"
    )
    return path


@system_errors()
def load_npy(path: str | Path, *, mmap: bool = False, writable: bool = False) -> np.ndarray:
    """Read a ``.npy`` array of numbers without constructing Python objects.

    Parameters
    ----------
    path : str or Path
        The file.
    mmap : bool, default False
        Map the file into memory instead of reading it.
    writable : bool, default False
        Let what is written into the map change the file.

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
    with system_errors(path):
        mode = ("r+" if writable else "r") if mmap and needed else None
        return np.load(path, mmap_mode=mode, allow_pickle=False)


_HEADER_ERRORS = (
    *(ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError),
    tokenize.TokenError,
)
"""Errors that NumPy raises for damaged headers."""


def read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a ``.npy`` file and leave the stream at the first value.

    Parameters
    ----------
    stream : binary file
        At its beginning.

    Returns
    -------
    shape : tuple of int
    fortran : bool
        True if the first index varies fastest (Fortran order).
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

    Raises
    ------
    DataError
        If the disk has no room for the array.
    """
    with atomic_path(path) as temporary:
        mapped = map_new_npy(temporary, shape)
        yield mapped
        mapped.flush()


def map_new_npy(
    path: str | Path, shape: tuple[int, ...], dtype: np.dtype | type = np.float32
) -> np.memmap:
    """Return a new array that is mapped from a ``.npy`` file for which there is room on the disk.

    A full disk found only when a page of the map is written would kill the process.

    Parameters
    ----------
    path : str or Path
        The file.
    shape : tuple of int
        Shape of the array.
    dtype : dtype, default float32
        Its type.

    Raises
    ------
    FileError
        If the disk has no room for the array, or the file cannot be made.
    """
    with system_errors(path):
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with open(path, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)
    return mapped


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
    with system_errors(root):
        home = Path(root).resolve()

    def guard(path: Path) -> Path:
        with system_errors(path):
            target = path.resolve()
        if not allowed and not target.is_relative_to(home):
            raise DataError(
                message(
                    f"files inside {root}",
                    f"{path}, a link to {target}",
                    "copy the file in, or pass follow_links=True if the link is yours",
                )
            )
        return path

    return guard


_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of file systems without flock: Lustre without its option, NFS without a lock daemon."""


@contextlib.contextmanager
def lock(
    path: str | Path, *, wait: bool | float = True, what: str = "this folder"
) -> Iterator[None]:
    """Hold an exclusive lock file while the block runs.

    Parameters
    ----------
    path : str or Path
        The lock file; made if missing, and left in place.
    wait : bool or float, default True
        True waits until another process releases the lock, and False raises an error at once. A
        number is the longest wait in seconds, after which the error is raised.
    what : str, default "this folder"
        Name of the locked thing in messages.

    Raises
    ------
    DataError
        If `wait` is not true and another process holds the lock (the message names its process id),
        or if the lock file cannot be written.
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
            _flock(stream, wait)
        except BlockingIOError:
            stream.seek(0)
            raise _locked(what, stream.read().strip() or "unknown") from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                with system_errors(path):
                    raise
            try:
                # a second file whose existence is the lock; filelock takes over stale ones
                stack.enter_context(
                    SoftFileLock(f"{path}.held", timeout=-1 if wait is True else float(wait))
                )
            except Timeout:
                raise _locked(what, "unknown") from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        _LOCKED.add(stream.fileno())
        stack.callback(_LOCKED.discard, stream.fileno())
        yield  # closing the stream releases its lock


_LOCKED: set[int] = set()
"""Descriptors of the files whose locks this process holds."""


def _let_go() -> None:
    """Let go of the locks of the process that forked this one, which may end before it."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in _LOCKED:  # closed by the objects that own them, and not here
        os.dup2(nothing, descriptor)
    os.close(nothing)
    _LOCKED.clear()


os.register_at_fork(after_in_child=_let_go)


def share(stream: BinaryIO) -> None:
    """Hold a lock that keeps `sole_user` out, and other sharers not, until a file is closed."""
    try:
        fcntl.flock(stream, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise


@contextlib.contextmanager
def sole_user(path: str | Path) -> Iterator[None]:
    """Hold a lock that keeps `share` out while the block runs.

    Parameters
    ----------
    path : str or Path
        A file, which exists.

    Raises
    ------
    LockedError
        If another user shares the file, or if this cannot be known.
    FileNotFoundError
        If there is no such file.
    """
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(stack.enter_context(open(path, "r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            raise
        except OSError:
            raise _locked(str(path), "unknown") from None
        yield


def _flock(stream: TextIO, wait: bool | float) -> None:
    if wait is True:
        fcntl.flock(stream, fcntl.LOCK_EX)
        return
    until = time.monotonic() + wait
    while True:
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.05)


def _locked(what: str, holder: str) -> LockedError:
    remedy = "wait for it to end, or choose another folder"
    return LockedError(message(f"sole use of {what}", f"process {holder} at work in it", remedy))


def folder_bytes(folder: str | Path, pattern: str = "*") -> int:
    """Return the size in bytes of the files below a folder whose names fit a pattern."""
    total = 0
    for path in files_below(folder, pattern):
        with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
            total += path.stat().st_size
    return total


def evict(
    marks: Iterable[Path],
    n_bytes: float,
    claim: Callable[[Path], contextlib.AbstractContextManager[object]],
    name: Callable[[Path], str],
) -> list[str]:
    """Delete the folders that were used longest ago until `n_bytes` are free.

    Parameters
    ----------
    marks : iterable of Path
        A file in each folder whose time of change is that of the folder's last use.
    n_bytes : float
        Bytes to free.
    claim : callable
        ``claim(folder)`` keeps others from the folder while it is removed, or raises `LockedError`
        if it is in use; such a folder is kept.
    name : callable
        ``name(folder)`` is the name of its content for the user.

    Returns
    -------
    list of str
        Name, size and last use of each folder that was deleted.
    """
    used = []
    for mark in marks:
        with contextlib.suppress(FileNotFoundError):
            used.append((mark.stat().st_mtime, mark.parent))
    evicted = []
    for when, folder in sorted(used):
        if n_bytes <= 0:
            break
        gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        with contextlib.suppress(LockedError, FileNotFoundError):
            with claim(folder):
                what = name(folder)
                os.rename(folder, gone)
            size = folder_bytes(gone)
            shutil.rmtree(gone, ignore_errors=True)
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
            evicted.append(f"{what} ({size / 1e6:.1f} MB, last used {day})")
            n_bytes -= size
    return evicted


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
    FileError
        If the folder cannot be written.
    ValueError
        If an array holds Python objects.
    """
    folder = Path(folder)
    with lock(folder.with_name(f".{folder.name}.lock"), what=str(folder)), system_errors(folder):
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
    except (DataError, KeyError, AttributeError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise  # what cannot be read now may be whole
        print(f"the cached {folder.name} is damaged ({error}) and is made again", flush=True)
        return None

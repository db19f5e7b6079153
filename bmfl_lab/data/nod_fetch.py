"""Fetch parts of the Natural Object Dataset from OpenNeuro's public bucket and verify every byte.

``python -m bmfl_lab.data nod --subjects 10`` fetches what one encoder needs. A manifest in this
package lists path, size and SHA-256 of each file of version 2.1.2, so that the size of a download
is known before it starts. A file gets its name after its checksum was verified; an interrupted
download continues where it stopped.

Notes
-----
The transfer is written with requests. pooch, which has checksums and retries, fetches a file from
its beginning after every interruption, and a file of betas has 24 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import lzma
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests

from bmfl_lab.data import fslr
from bmfl_lab.data.fetch import fetch_archive
from bmfl_lab.data.nod import image_path, read_events, subject_names
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import BmflError, ConfigError, DataError, FetchError, message, require
from bmfl_lab.files import lock, sha256_bytes, sha256_file
from bmfl_lab.runtime import home, refuse_offline

ADDRESS = "https://s3.amazonaws.com/openneuro.org/ds004496"
VERSION = "# NOD OpenNeuro ds004496 version 2.1.2, schema 1"
"""Beginning of the first line of the manifest."""
N_TRIALS = 100
"""Photographs per run."""
SURFACES = ("inflated", "very_inflated", "midthickness", "pial", "white")
_LEAST_PEOPLE = 5
"""Subjects over whom a verdict needs an interval at least (our choice)."""
_PARTIAL = ".partial"
Manifest = Mapping[str, tuple[int, str]]
"""Path below the root to size in bytes and the first 32 hexadecimal digits of the SHA-256."""


def read_manifest(path: str | Path | None = None) -> Manifest:
    """Read the list of NOD's files.

    Parameters
    ----------
    path : str or Path, optional
        A file ``.tsv.xz`` of the same form; by default the one in this package.

    Returns
    -------
    mapping of str to (int, str)
        Path below the root to size in bytes and the first 32 hexadecimal digits of the SHA-256.

    Raises
    ------
    DataError
        If the file is damaged, is of another version, or names a path outside the root.
    """
    name = "nod_manifest.tsv.xz" if path is None else str(path)
    source = resources.files("bmfl_lab.data") / name if path is None else Path(path)
    try:
        lines = lzma.decompress(source.read_bytes()).decode().splitlines()
        rows = [line.split("\t") for line in lines[1:]]
        found = {p: (int(size), digest) for p, size, digest in rows}
    except (OSError, lzma.LZMAError, ValueError) as error:
        got = f"{type(error).__name__}: {error}"
        raise DataError(
            message(f"a manifest {name}", got, "use the one of this package")
        ) from error
    first = lines[0] if lines else ""
    remedy = "use the manifest and the code of one version of this package"
    require(first.startswith(VERSION), DataError, f"{VERSION!r} in {name}", first[:80], remedy)
    for p in found:
        parts = p.split("/")  # far faster than PurePosixPath
        outside = "" in parts or ".." in parts or "\\" in p or p == "."
        require(not outside, DataError, f"paths below the root in {name}", repr(p), remedy)
    return found


@dataclass(frozen=True)
class Plan:
    """Files to fetch.

    Parameters
    ----------
    events : tuple of str
        Tables of events, which name the photographs.
    others : tuple of str
        All other files except photographs.
    n_photographs : int
        Number of photographs, from the number of tables.
    """

    events: tuple[str, ...]
    others: tuple[str, ...]
    n_photographs: int

    def describe(self, manifest: Manifest) -> str:
        """Return the size of the files by the manifest, and about that of the photographs."""
        listed = [*self.events, *self.others]
        sizes = [size for path, (size, _) in manifest.items() if path.endswith(".JPEG")]
        about = self.n_photographs * sum(sizes) / max(1, len(sizes))
        return (
            f"{_mb(sum(manifest[p][0] for p in listed))} in {len(listed)} files, and about "
            f"{_mb(about)} in {self.n_photographs} photographs"
        )


def plan(
    manifest: Manifest,
    subjects: Sequence[str],
    *,
    sessions: Sequence[int] | None = None,
    images_of: Sequence[str] = (),
    coco: bool = False,
    localisers: bool = False,
    surfaces: bool = False,
) -> Plan:
    """Return the files of a part of NOD.

    Parameters
    ----------
    manifest : Manifest
        All files.
    subjects : sequence of str
        Subjects ("sub-10") with betas, labels, events, areas and photographs.
    sessions : sequence of int, optional
        Sessions of `subjects` to fetch; by default all.
    images_of : sequence of str, default ()
        Subjects with events and photographs only.
    coco : bool, default False
        Add the runs of COCO images, for noise ceilings.
    localisers : bool, default False
        Add the regions of the functional localisers.
    surfaces : bool, default False
        Add the subjects' own surfaces.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        If a subject has no such session.
    """
    events, others = [], []
    for name in subjects:
        base = f"derivatives/ciftify/{name}"
        runs = rf"{base}/results/ses-imagenet(\d\d)_task-imagenet_run-\d+/.*"
        found = {p: int(m[1]) for p in manifest if (m := re.fullmatch(runs, p))}
        there = sorted(set(found.values()))
        missing = sorted(set(sessions or ()) - set(there))
        expected = f"sessions of {name} among {there}"
        require(not missing, ConfigError, expected, str(missing), "name other sessions")
        kept = set(there if sessions is None else sessions)
        others += [p for p, session in found.items() if session in kept]
        others.append(f"{base}/standard_fsLR_surface/{name}.BA_exvivo.32k_fs_LR.dlabel.nii")
        events += [
            p for p in _events(manifest, name) if int(p.split("ses-imagenet")[1][:2]) in kept
        ]
        others += [
            p
            for p in manifest
            if p.startswith(base)
            and (
                (coco and f"{base}/results/ses-coco" in p)
                or (localisers and f"{base}/results/ses-floc" in p and ".dlabel." in p)
                or (surfaces and _is_surface(p))
            )
        ]
    events += [p for name in images_of for p in _events(manifest, name)]
    return Plan(tuple(events), tuple(others), N_TRIALS * len(events))


def _events(manifest: Manifest, name: str) -> list[str]:
    return [p for p in manifest if p.startswith(f"{name}/ses-imagenet")]


def _is_surface(path: str) -> bool:
    kinds = [*(f".{s}.32k_fs_LR.surf.gii" for s in SURFACES), ".sulc.32k_fs_LR.dscalar.nii"]
    return path.endswith(tuple(kinds))


def photographs(manifest: Manifest, root: Path, events: Iterable[str]) -> list[str]:
    """Return the paths of the photographs that fetched tables of events name, each once.

    Raises
    ------
    DataError
        If the manifest lacks one of them.
    """
    ids = dict.fromkeys(i for path in events for i in read_events(root / path))
    paths = [image_path(".", i).as_posix() for i in ids]
    missing = [p for p in paths if p not in manifest]
    remedy = "use the manifest of this package with version 2.1.2 of NOD"
    got = f"none of {missing[:1]}"
    require(not missing, DataError, "the photographs of the events in the manifest", got, remedy)
    return paths


@dataclass(frozen=True)
class Source:
    """The servers that files are fetched from, with time limits and numbers of attempts.

    Parameters
    ----------
    address : str
        Address before the path of a file.
    timeout : float, default 30
        Seconds without a byte after which a connection is given up.
    attempts : int, default 6
        Attempts in a row without any progress after which a file is given up.
    pause : float, default 1
        Seconds before the second attempt; doubled before each further one, up to 30.
    workers : int, default 8
        Files fetched at the same time.
    chunk : int, default 16384
        Bytes that are read at once; an interruption loses less than this.
    """

    address: str = ADDRESS
    timeout: float = 30.0
    attempts: int = 6
    pause: float = 1.0
    workers: int = 8
    chunk: int = 1 << 14


@dataclass
class _Progress:
    """Counts bytes over all threads and prints a line every five seconds."""

    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)
    guard: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def add(self, n: int) -> None:
        with self.guard:
            self.done += n
            now = time.monotonic()
            if now - self.printed > 5:
                self.printed = now
                rate = self.done / max(now - self.started, 1e-9)
                left = (self.total - self.done) / max(rate, 1)
                print(
                    f"fetched {_mb(self.done)} of {_mb(self.total)}, about {left:.0f} s left",
                    flush=True,
                )


class _Again(Exception):
    """The attempt failed in a way that another one may mend."""


def _mb(n: int) -> str:
    return f"{n / 1e6:.1f} MB"


def is_complete(root: Path, path: str, manifest: Manifest) -> bool:
    """Return whether a file is there with the size and the checksum of the manifest."""
    size, digest = manifest[path]
    file = root / path
    return file.is_file() and file.stat().st_size == size and sha256_file(file)[:32] == digest


def check_connection(source: Source, path: str, seconds: float = 5.0) -> None:
    """Refuse to start without a connection, after five seconds at most.

    Parameters
    ----------
    source : Source
        Server, with time limits and numbers of attempts.
    path : str
        A file to ask for; its content is not fetched.
    seconds : float, default 5
        Server, with time limits for the connection and for its response.

    Raises
    ------
    FetchError
        If ``BMFL_OFFLINE=1`` forbids downloads, or the server does not respond.
    """
    host = urlsplit(source.address).netloc
    refuse_offline(f"NOD from {host}", "pass root=...")
    try:
        with requests.head(f"{source.address}/{quote(path)}", timeout=seconds):
            return
    except requests.RequestException as error:
        raise FetchError(
            message(
                f"an answer of {host} within {seconds:.0f} s",
                type(error).__name__,
                "check the network and the proxy (HTTPS_PROXY), or copy NOD from another machine "
                "and pass its folder as root",
            )
        ) from error


def download(root: Path, paths: Sequence[str], manifest: Manifest, source: Source) -> int:
    """Fetch files that are not complete yet, several at a time.

    Parameters
    ----------
    root : Path
        Folder of the copy.
    paths : sequence of str
        Files below it.
    manifest : Manifest
        Sizes and checksums.
    source : Source
        Server, with time limits and numbers of attempts.

    Returns
    -------
    int
        Number of bytes of the files that were fetched.

    Raises
    ------
    FetchError
        If a file is not there, cannot be fetched, or arrives with other bytes.
    DataError
        If the disk is full.
    """
    todo = [p for p in dict.fromkeys(paths) if not is_complete(root, p, manifest)]
    total = sum(manifest[p][0] for p in todo)
    if not todo:
        return 0
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    expected = f"{_mb(total)} free for {root}"
    require(free > total, DataError, expected, f"{_mb(free)}", "free space, or choose another root")
    check_connection(source, todo[0])
    progress, local = _Progress(total), threading.local()

    def one(path: str) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        _fetch_file(root, path, manifest[path], source, local.session, progress)

    with ThreadPoolExecutor(source.workers) as pool:
        jobs = [pool.submit(one, path) for path in todo]
        try:
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            for job in done:
                job.result()
        finally:
            progress.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return total


def _fetch_file(
    root: Path,
    path: str,
    entry: tuple[int, str],
    source: Source,
    session: requests.Session,
    progress: _Progress,
) -> None:
    """Fetch one file, with further attempts that go on where the last one stopped."""
    size, digest = entry
    # two files may have the same name or the same content, and a new version has a new digest
    partial = root / _PARTIAL / f"{sha256_bytes(path.encode())[:16]}-{digest[:16]}"
    failed, wrong = 0, 0
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        while True:
            before = partial.stat().st_size if partial.is_file() else 0
            try:
                _transfer(
                    f"{source.address}/{quote(path)}", partial, size, source, session, progress
                )
            except _Again as problem:
                got = partial.stat().st_size if partial.is_file() else 0
                failed = 1 if got > before else failed + 1
                if failed >= source.attempts or progress.stop.is_set():
                    expected = f"{path} from {urlsplit(source.address).netloc}"
                    remedy = "check the network, then run again: what is complete is kept"
                    raise FetchError(message(expected, str(problem), remedy)) from problem
                progress.stop.wait(min(30.0, source.pause * 2 ** (failed - 1)))
                continue
            found = sha256_file(partial)[:32]
            if found == digest:
                break
            partial.unlink()
            wrong += 1
            if wrong == 2:
                raise FetchError(
                    message(
                        f"{path} with a SHA-256 that begins with {digest}",
                        f"{found}, twice",
                        "do not use the file: the server holds another one than version 2.1.2",
                    )
                )
        final = root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, final)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        expected, got = f"room for {path} ({_mb(size)})", f"a full disk at {root}"
        raise DataError(message(expected, got, "free space, then run again")) from error


def _transfer(
    address: str,
    partial: Path,
    size: int,
    source: Source,
    session: requests.Session,
    progress: _Progress,
) -> None:
    """Append what is missing of a file to its partial copy; raise `_Again` where that fails."""
    have = partial.stat().st_size if partial.is_file() else 0
    if have > size:
        partial.unlink()
        have = 0
    if have == size and size:
        return
    # the bytes as they are stored: with a content encoding, ranges would count other bytes
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with session.get(address, headers=headers, timeout=source.timeout, stream=True) as answer:
            start = _start(answer, address, have)
            if start is None:
                partial.unlink(missing_ok=True)
                raise _Again(f"HTTP {answer.status_code} for bytes from {have}")
            with open(partial, "ab") as stream:
                stream.truncate(start)
                got = start
                for chunk in answer.iter_content(source.chunk):
                    if progress.stop.is_set():
                        raise _Again("another file failed")
                    stream.write(chunk)
                    progress.add(len(chunk))
                    got += len(chunk)
                    if got > size:
                        break
    except requests.RequestException as error:
        raise _Again(f"{type(error).__name__}: {error}"[:300]) from error
    if got < size:
        raise _Again(f"{got} of {size} bytes")
    if got > size:
        os.truncate(partial, 0)
        raise _Again(f"more than {size} bytes")


def _start(answer: requests.Response, address: str, have: int) -> int | None:
    """Return the position at which the bytes of a response begin; None if it cannot be used."""
    code = answer.status_code
    if code == 200:
        return 0
    if code == 206:
        match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        return have if match and int(match[1]) == have else None
    if code == 416:
        return None
    if code in (401, 403, 404, 410):
        host = urlsplit(address).netloc
        remedy = "check the address, or fetch the file by other means"
        raise FetchError(message(f"{address.rsplit('/', 1)[-1]} on {host}", f"HTTP {code}", remedy))
    raise _Again(f"HTTP {code}")


def fetch(
    root: str | Path | None = None,
    subjects: str | int | Sequence[str | int] = 10,
    *,
    sessions: Sequence[int] | None = None,
    images_of: Sequence[str | int] = (),
    coco: bool = False,
    localisers: bool = False,
    surfaces: bool = False,
    manifest: Manifest | None = None,
    source: Source | None = None,
) -> Path:
    """Fetch a part of NOD into a local copy of its layout.

    Parameters
    ----------
    root : str or Path, optional
        Folder of the copy; by default ``studies/nod`` in the cache.
    subjects : int, str, or sequence of these, default 10
        Subjects whose responses are fetched.
    sessions, images_of, coco, localisers, surfaces
        See `plan`; `images_of` takes names and numbers.
    manifest : Manifest, optional
        All files; by default those of version 2.1.2.
    source : Source, optional
        Server, with time limits and numbers of attempts; by default OpenNeuro's public bucket.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If a subject or session is unknown.
    FetchError
        If there is no connection, or a file cannot be fetched as it is listed.
    DataError
        If the disk is full, or another process fetches into the same folder.
    """
    place = Path(root).expanduser() if root else home() / "studies" / "nod"
    manifest = read_manifest() if manifest is None else manifest
    source = source or Source()
    names, more = subject_names(subjects), subject_names(images_of) if images_of else ()
    parts = {"coco": coco, "localisers": localisers, "surfaces": surfaces}
    wanted = plan(manifest, names, sessions=sessions, images_of=more, **parts)
    print(f"NOD {', '.join(names)} into {place}: {wanted.describe(manifest)}", flush=True)
    if len(names) < _LEAST_PEOPLE or not more:
        print(
            f"{len(names)} subjects are enough for encoders and maps; a verdict takes at least "
            f"{_LEAST_PEOPLE}, and the photographs of other people (--images-of)",
            flush=True,
        )
    with lock(place / ".fetch.lock", wait=False, what=str(place)):
        download(place, wanted.events, manifest, source)
        shown = photographs(manifest, place, wanted.events)
        everything = [*wanted.events, *wanted.others, *shown]
        total = sum(manifest[p][0] for p in everything)
        started = time.monotonic()
        fetched = download(place, everything, manifest, source)
        seconds = time.monotonic() - started
        with contextlib.suppress(OSError):  # it holds what another part left unfinished
            (place / _PARTIAL).rmdir()
    print(
        f"{_mb(total)} in {len(everything)} files are complete and verified; "
        f"{_mb(fetched)} of them fetched in {seconds:.0f} s",
        flush=True,
    )
    return place


def differing(root: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the files of a copy that do not have the size and checksum of the manifest."""
    for path in manifest:
        if (root / path).is_file() and not is_complete(root, path, manifest):
            yield path


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m bmfl_lab.data nod``; return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m bmfl_lab.data nod",
        description="fetch a part of the Natural Object Dataset (CC0) and verify it",
    )
    add = parser.add_argument
    add("--subjects", nargs="+", default=["10"], help="subjects with responses, 1 to 30 (10)")
    add("--sessions", nargs="+", type=int, help="only these sessions of subjects 1 to 9")
    add("--images-of", nargs="+", default=[], help="subjects whose photographs alone are fetched")
    add("--coco", action="store_true", help="runs of COCO images, for noise ceilings")
    add("--localisers", action="store_true", help="regions of the functional localisers")
    add("--surfaces", action="store_true", help="the subjects' own surfaces")
    add("--root", help="folder of the copy (by default in the cache)")
    add("--address", default=ADDRESS, help="another server with the same paths")
    add("--check", action="store_true", help="only verify what is there; nothing is fetched")
    given = parser.parse_args(arguments)
    if given.check:
        return _check(Path(given.root).expanduser() if given.root else home() / "studies" / "nod")
    parts = {k: getattr(given, k) for k in ("sessions", "images_of", "coco")}
    parts |= {k: getattr(given, k) for k in ("localisers", "surfaces")}
    place = fetch(given.root, given.subjects, **parts, source=Source(given.address))
    try:
        fetch_archive(*fslr.PIP, megabytes=8)
    except BmflError as error:
        print(f"note: the areas of Glasser et al. were not fetched ({error})", flush=True)
    print(load_study("nod", root=place, subjects=given.subjects).description)
    return 0


def _check(place: Path) -> int:
    manifest = read_manifest()
    there = [path for path in manifest if (place / path).is_file()]
    wrong = list(differing(place, manifest))
    remedy = "fetch them again: a file that differs is replaced"
    got = f"{len(wrong)} that differ, e.g. {', '.join(wrong[:3])}"
    require(
        not wrong, DataError, f"the published bytes of {len(there)} files in {place}", got, remedy
    )
    print(f"{len(there)} files in {place}, all as published")
    return 0

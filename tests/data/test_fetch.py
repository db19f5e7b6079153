"""Archives read as data, and clients that fail."""

import hashlib
import io
import os
import stat
import tarfile
import zipfile

import pytest

from bmfl_lab.data import fetch
from bmfl_lab.errors import ConfigError, DataError, FetchError

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BMFL_OFFLINE", raising=False)  # the clients here are local programs
    return tmp_path / "home"


def make_tar(path, entries):
    with tarfile.open(path, "w:gz") as out:
        for name, kind in entries:
            info = tarfile.TarInfo(name)
            if kind == "file":
                info.size = len(CONTENT)
                out.addfile(info, io.BytesIO(CONTENT))
            else:
                info.type, info.linkname = kind, "/etc/passwd"
                out.addfile(info)
    return path


def make_zip(path, names, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as out:
        for name in names:
            out.writestr(name, CONTENT)
    return path


def test_members_are_read_from_both_kinds(tmp_path):
    tar = make_tar(tmp_path / "a.tgz", [("p/a.bin", "file"), ("p/b.bin", "file")])
    packed = make_zip(tmp_path / "a.whl", ["p/a.bin", "p/b.bin"])
    for archive in (tar, packed):
        assert fetch.read_members(archive, ["p/b.bin", "p/a.bin"]) == {
            "p/a.bin": CONTENT,
            "p/b.bin": CONTENT,
        }
        assert fetch.list_members(archive) == ["p/a.bin", "p/b.bin"]
        with pytest.raises(DataError, match=r"'p/c\.bin' in .*2 other members"):
            fetch.read_members(archive, ["p/c.bin"])
        with pytest.raises(DataError, match="at most 100 bytes; got 10240 bytes declared"):
            fetch.read_members(archive, ["p/a.bin"], max_bytes=100)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "..\\a", "C:/a", ""])
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", ["ok"])
    with pytest.raises(DataError, match="a relative path inside an archive"):
        fetch.read_members(archive, [name])
    with pytest.raises(DataError, match="a relative path inside an archive"):
        fetch.fetch_member("x", "1", "pip", "0" * 64, name)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_tar_links_and_devices_are_refused(tmp_path, kind):
    archive = make_tar(tmp_path / "a.tgz", [("p/a", kind)])
    with pytest.raises(DataError, match="'p/a' as a regular file"):
        fetch.read_members(archive, ["p/a"])


def test_zip_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="'link' as a regular file"):
        fetch.read_members(tmp_path / "a.zip", ["link"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [["p/a", "p/a"], ["p/a", "P/A"], ["p/\u00e9", "p/e\u0301"]])
def test_ambiguous_names_are_refused(tmp_path, names):
    for archive in (
        make_zip(tmp_path / "a.zip", names),
        make_tar(tmp_path / "a.tgz", [(name, "file") for name in names]),
    ):
        with pytest.raises(DataError, match="2 with that name"):
            fetch.read_members(archive, [names[0]])


def test_zip_bomb_is_refused_from_its_directory(tmp_path):
    path = make_zip(tmp_path / "a.zip", ["bomb"], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 20 : start + 24] = (3).to_bytes(
        4, "little"
    )  # the compressed size that the directory declares
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="compressed at most 2000 times"):
        fetch.read_members(path, ["bomb"])


def test_damaged_archives_are_refused(tmp_path):
    tar = make_tar(tmp_path / "a.tgz", [("p/a", "file")])
    tar.write_bytes(tar.read_bytes()[:-60])
    packed = make_zip(tmp_path / "a.zip", ["p/a"], zipfile.ZIP_STORED)
    data = bytearray(packed.read_bytes())
    data[100] ^= 1  # inside the stored content: the CRC no longer fits
    packed.write_bytes(bytes(data))
    (tmp_path / "page").write_text("<html>not found</html>")
    for archive in (tar, packed, tmp_path / "page", tmp_path / "absent"):
        with pytest.raises(DataError, match=r"fetch (it|the archive) again"):
            fetch.read_members(archive, ["p/a"])


def fake_client(monkeypatch, write):
    """Stand in for the index, which cannot be made to serve damaged files on demand."""
    calls = []

    def run(package, version, manager, sha256, folder):
        calls.append(package)
        target = folder / "delivered"
        write(target)
        return target

    monkeypatch.setattr(fetch, "_run_client", run)
    return calls


def test_wrong_checksum_leaves_nothing(monkeypatch, cache):
    fake_client(monkeypatch, lambda p: p.write_bytes(CONTENT[:-1]))
    with pytest.raises(FetchError, match=r"with SHA-256 .* got .*10239 bytes"):
        fetch.fetch_archive("thing", "1.0", "pip", hashlib.sha256(CONTENT).hexdigest())
    assert not [p for p in (cache / "downloads" / "pip-thing-1.0").rglob("*")]


def test_interrupted_download_leaves_nothing(monkeypatch, cache):
    def interrupted(path):
        path.write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    fake_client(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_archive("thing", "1.0", "pip", hashlib.sha256(CONTENT).hexdigest())
    assert not [p for p in (cache / "downloads" / "pip-thing-1.0").rglob("*")]


def test_complete_parts_are_not_fetched_again_and_damaged_ones_are(monkeypatch, tmp_path, capsys):
    whole = make_zip(tmp_path / "a.whl", ["p/a"]).read_bytes()
    sha = hashlib.sha256(whole).hexdigest()
    calls = fake_client(monkeypatch, lambda p: p.write_bytes(whole))
    first = fetch.fetch_archive("thing", "1.0", "pip", sha, megabytes=3)
    assert "fetching thing 1.0 with pip, 3 MB expected" in capsys.readouterr().out
    assert fetch.fetch_archive("thing", "1.0", "pip", sha) == first and len(calls) == 1
    damaged = bytearray(whole)
    damaged[50] ^= 1
    first.write_bytes(bytes(damaged))
    assert fetch.fetch_archive("thing", "1.0", "pip", sha).read_bytes() == whole and len(calls) == 2
    member = fetch.fetch_member(
        "thing", "1.0", "pip", sha, "p/a", hashlib.sha256(CONTENT).hexdigest()
    )
    assert member.read_bytes() == CONTENT
    first.unlink()
    assert (
        fetch.fetch_member("thing", "1.0", "pip", sha, "p/a", hashlib.sha256(CONTENT).hexdigest())
        == member
    )
    assert len(calls) == 2
    with pytest.raises(DataError, match="check the pinned checksum of the member"):
        fetch.fetch_member("thing", "1.0", "pip", sha, "p/a", "0" * 64)


def test_missing_npm_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FetchError, match=r"the command npm.*install Node\.js"):
        fetch.fetch_archive("thing", "1.0", "npm", "0" * 64)


def test_failing_client_is_reported_with_its_last_words(monkeypatch, cache):
    # A real pip against an index that is an empty folder.
    (cache / "empty").mkdir(parents=True)
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(cache / "empty")),
        ("PIP_CONFIG_FILE", os.devnull),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        FetchError,
        match=r"pip to fetch thing-that-is-not 1\.0; got exit code 1 .*No matching distribution",
    ):
        fetch.fetch_archive("thing-that-is-not", "1.0", "pip", "0" * 64)
    assert not [p for p in (cache / "downloads" / "pip-thing-that-is-not-1.0").rglob("*")]


def test_pip_itself_refuses_another_archive(monkeypatch, cache, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    make_zip(links / "thing-1.0-py3-none-any.whl", ["thing/a"])
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(links)),
        ("PIP_CONFIG_FILE", os.devnull),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(FetchError, match="DO NOT MATCH THE HASHES"):
        fetch.fetch_archive("thing", "1.0", "pip", "0" * 64)


@pytest.mark.parametrize("name", ["--index-url=x", "a/b", "..", "a;b", ""])
def test_package_names_cannot_carry_options(name):
    with pytest.raises(ConfigError, match="a plain package name"):
        fetch.fetch_archive(name, "1.0", "pip", "0" * 64)


def test_unknown_manager_is_refused():
    with pytest.raises(ConfigError, match="a package manager among"):
        fetch.fetch_archive("thing", "1.0", "conda", "0" * 64)


@pytest.mark.network
@pytest.mark.slow
def test_source_archive_is_fetched_by_pip_for_real(cache):
    from bmfl_lab.data.surfaces import PIP, read_templates

    found = read_templates()
    assert fetch.fetch_archive(*PIP).stat().st_size > 19e6
    # Counts of V1, V2 and V3 on the left of fsaverage5 as published with the template.
    assert [int((found["left"]["area"] == k).sum()) for k in (1, 2, 3)] == [231, 186, 128]


def test_an_archive_is_not_fetched_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("BMFL_OFFLINE", "1")
    with pytest.raises(FetchError, match=r"BMFL_OFFLINE=1.*copy archive-0{16}\.pkg of another"):
        fetch.fetch_archive("x", "1", "pip", "0" * 64)

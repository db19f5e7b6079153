"""The remedies of `bmfl_lab.files`, each followed."""

import contextlib
import errno
import re
import resource
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from following import follows
from test_system_errors import refuse_opening

from bmfl_lab.files import (
    link_guard,
    load_npy,
    lock,
    map_new_npy,
    read_json,
    read_sealed_json,
    read_yaml,
    sha256_file,
    write_bytes,
    write_json,
    write_sealed_json,
)


@contextlib.contextmanager
def limited(kind, value):
    """Lower a limit of this process for a moment."""
    soft, hard = resource.getrlimit(kind)
    most = soft if value == resource.RLIM_INFINITY else value
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@follows(("files.py", "free some space, or choose a folder on another disk"))
def test_a_full_disk(folder, env):
    paths = ["/dev/full"]
    yield lambda: map_new_npy(paths[-1], (9,))
    paths.append(folder / "a.npy")


@follows(("files.py", "close other programs, or allow more open files with 'ulimit -n 4096'"))
def test_too_many_open_files(folder, env):
    path, most = folder / "a.json", [3]
    write_json(path, {})

    def call():
        with limited(resource.RLIMIT_NOFILE, most[-1]):
            return read_json(path)

    remedy = yield call
    wanted = int(re.search(r"ulimit -n (\d+)", remedy)[1])
    most.append(min(wanted, *resource.getrlimit(resource.RLIMIT_NOFILE)))


@follows(
    (
        "files.py",
        "allow larger files with 'ulimit -f unlimited', or choose a folder on another disk",
    )
)
def test_a_file_that_is_too_large(folder, env):
    most = [1000]

    def call():
        with limited(resource.RLIMIT_FSIZE, most[-1]):
            write_bytes(folder / "a", bytes(5000))

    remedy = yield call
    assert re.search(r"ulimit -f (\w+)", remedy)[1] == "unlimited"
    most.append(resource.RLIM_INFINITY)


@follows(
    (
        "files.py",
        "use fewer vertices, images or sessions at a time, or a machine with more memory",
    )
)
def test_too_little_memory(folder, env):
    path, shape = folder / "responses.npy", (1000, 1 << 18)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=shape)  # sparse
    with open("/proc/self/statm") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()

    def call():
        with limited(resource.RLIMIT_AS, taken + (1 << 29)):
            return load_npy(path)

    yield call
    np.save(path, np.zeros((10, 100)))


@follows(
    ("files.py", "ask the owner for permission, or choose another folder"),
    (
        "files.py",
        "put another copy of the file on another disk, as this one cannot read or write it",
    ),
    ("files.py", "mount the network folder again"),
)
def test_files_that_the_system_refuses(folder, env):
    paths = [folder / "own" / "a.json"]
    for place in ("own", "other", "disk"):
        write_json(folder / place / "a.json", {})
    refused = {str(paths[0]): errno.EACCES}

    def call():
        with pytest.MonkeyPatch.context() as patch:
            for path, number in refused.items():
                refuse_opening(patch, path, number)
            return read_json(paths[-1])

    yield call
    paths.append(folder / "other" / "a.json")
    call()
    refused = {str(paths[-1]): errno.EIO}
    yield call
    paths.append(folder / "disk" / "a.json")
    call()
    refused = {str(paths[-1]): errno.ESTALE}
    yield call
    refused.clear()


@follows(("files.py", "wait until no other program uses it"))
def test_a_file_that_a_program_uses(folder, env):
    path = shutil.copy(shutil.which("sleep"), folder / "sleep")
    program = subprocess.Popen([path, "60"])
    try:
        yield lambda: map_new_npy(path, (3,))
    finally:
        program.kill()
        program.wait()


@follows(
    ("files.py", "check the path"),
    ("files.py", "remove the link that leads back to itself"),
    ("files.py", "choose a shorter name"),
    ("files.py", "give the path of a file"),
    ("files.py", "give the path of a folder, or move away the file that has its name"),
    ("files.py", "give the path of a folder, or move away the file that has its name"),
)
def test_paths_that_lead_to_no_file(folder, env):
    write_json(folder / "here.json", {})
    paths = [folder / "her.json"]
    yield lambda: sha256_file(paths[-1])
    paths.append(folder / "here.json")
    sha256_file(paths[-1])

    paths = [folder / "link"]
    paths[0].symlink_to(paths[0])
    yield lambda: sha256_file(paths[-1])
    paths[0].unlink()
    write_json(paths[0], {})
    sha256_file(paths[0])

    paths.append(folder / ("n" * 300))
    yield lambda: write_json(paths[-1], {})
    paths.append(folder / "n")
    write_json(paths[-1], {})

    paths.append(folder)
    yield lambda: sha256_file(paths[-1])
    paths.append(folder / "n")
    sha256_file(paths[-1])

    paths.append(folder / "n" / "a.json")
    yield lambda: write_json(paths[-1], {})
    paths.append(folder / "m" / "a.json")
    write_json(paths[-1], {})
    paths.append(folder / "n" / "a.json")
    yield lambda: write_json(paths[-1], {})
    (folder / "n").rename(folder / "away")


@follows(
    ("files.py", "give the file itself"),
    ("files.py", "check the path, and that the download is complete"),
    ("files.py", "check that the path names the file you meant"),
    ("files.py", "delete the file and run what wrote it again"),
    ("files.py", "delete the file and run what wrote it again"),
)
def test_files_of_json(folder, env):
    path, paths = folder / "a.json", [folder]
    write_sealed_json(path, {"a": 1})

    def call():
        return read_json(paths[-1], max_bytes=1000)

    yield call
    paths.append(path)
    call()
    paths.append(folder / "b.json")
    yield call
    paths.append(path)
    call()
    paths.append(folder / "c.json")
    write_json(paths[-1], "x" * 1000)
    yield call
    paths.append(path)
    call()

    whole = path.read_text()
    path.write_text(whole[:-3])
    yield call
    path.unlink()
    write_sealed_json(path, {"a": 1})
    call()
    path.write_text(whole.replace('"a": 1', '"a": 2'))
    yield lambda: read_sealed_json(path)
    path.unlink()
    write_sealed_json(path, {"a": 1})


@follows(
    ("files.py", "mend the line"),
    ("files.py", "write the values out, without aliases"),
)
def test_files_of_yaml(folder, env):
    path = folder / "a.yaml"
    path.write_text("a: [1, 2\nb: 3")
    yield lambda: read_yaml(path)
    path.write_text("a: [1, 2]\nb: 3")
    read_yaml(path)

    lines = ["a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcde", "bcdef")]
    path.write_text("\n".join(lines))
    yield lambda: read_yaml(path)
    text = yaml.safe_dump({"a": list(range(9)), "b": [list(range(9)) for _ in range(9)]})
    assert "*" not in text
    path.write_text(text)


@follows(
    ("files.py", "save it as a plain numeric array"),
    ("files.py", "make or download the file again"),
    ("files.py", "make or download the file again, as it is truncated or damaged"),
)
def test_files_of_arrays(folder, env):
    path = folder / "a.npy"
    np.save(path, np.array([1, 2, 3], object), allow_pickle=True)
    yield lambda: load_npy(path)
    np.save(path, np.load(path, allow_pickle=True).astype(float))
    whole = load_npy(path)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    yield lambda: load_npy(path)
    np.save(path, whole)
    load_npy(path)
    path.write_bytes(path.read_bytes()[:-3])
    yield lambda: load_npy(path)
    np.save(path, whole)


@follows(
    ("files.py", "copy the file in, or pass follow_links=True if the link is yours"),
    ("files.py", "copy the file in, or pass follow_links=True if the link is yours"),
)
def test_a_link_that_leads_out_of_a_folder(folder, env):
    root, other, follow_links = folder / "root", folder / "other.txt", []
    root.mkdir()
    other.write_text("x")
    path = root / "a.txt"

    def call():
        return link_guard(root, allowed=any(follow_links))(path)

    path.symlink_to(other)
    yield call
    path.unlink()
    path.write_text(other.read_text())
    call()
    path.unlink()
    path.symlink_to(other)
    remedy = yield call
    follow_links.append(re.search(r"follow_links=(\w+)", remedy)[1] == "True")


@follows(
    ("files.py", "wait for it to end, or choose another folder"),
    ("files.py", "wait for it to end, or choose another folder"),
    ("files.py", "make it writable, or choose another folder"),
)
def test_locks(folder, env):
    paths, held = [folder / "a" / "lock"], contextlib.ExitStack()

    def call():
        with lock(paths[-1], wait=False):
            pass

    held.enter_context(lock(paths[0]))
    yield call
    paths.append(folder / "b" / "lock")
    call()
    paths.append(folder / "a" / "lock")
    yield call
    held.close()
    call()
    paths.append(folder / "a" / "lock" / "lock")
    yield call
    paths.append(folder / "c" / "lock")

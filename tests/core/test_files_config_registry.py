"""Errors, registry, files and config: the lowest layer of the package."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from bmfl_lab import config, files
from bmfl_lab.errors import ConfigError, DataError, LockedError, message, nearest
from bmfl_lab.files import lock
from bmfl_lab.registry import Registry
from bmfl_lab.runtime import home


def test_a_message_has_three_parts_and_names_the_nearest():
    assert message("a", "b", "c") == "expected a; got b. To fix it: c."
    assert nearest("plantd", ["planted", "demo"]) == "did you mean 'planted'?"
    assert nearest("zzz", ["planted", "demo"]) == "choose one of demo, planted"
    assert "none to choose from" in nearest("zzz", [])
    question = nearest("plantd", ["planted"])
    assert message("a", "b", question) == "expected a; got b. To fix it: did you mean 'planted'?"


def test_registry_refuses_unknown_and_taken_names():
    registry = Registry("shift")
    registry.register("masked")(abs)
    assert (
        registry["masked"](-1) == 1
        and registry.names() == ("masked",)
        and len(registry) == 1
        and "masked" in registry
    )
    with pytest.raises(ConfigError, match="did you mean 'masked'"):
        registry["maskd"]
    with pytest.raises(ConfigError, match="which is taken"):
        registry.register("masked")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"x": math.nan})
    with pytest.raises(RuntimeError, match="stop"), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert files.read_json(path) == {"x": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "content, match",
    [
        ("{", "valid JSON"),
        ("é".encode("latin1"), "valid JSON"),
        ("[" * 100_000, "valid JSON"),
        ("1" * 10_000, "valid JSON"),
        (None, "nothing at"),
    ],
)
def test_a_damaged_json_file_is_refused(content, match, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=match):
        files.read_json(path)
    if content is not None:
        with pytest.raises(DataError, match="at most 0 bytes"):
            files.read_json(path, max_bytes=0)


def npy(path, header):
    text = repr(header).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 16)
    return path


def test_an_array_file_is_checked_before_memory_is_taken(tmp_path):
    huge = npy(tmp_path / "huge.npy", {"descr": "<f8", "fortran_order": False, "shape": (1 << 39,)})
    with pytest.raises(DataError, match="truncated or damaged"):
        files.load_npy(huge)
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickled Python objects"):
        files.load_npy(tmp_path / "object.npy")
    good = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "good.npy", good)
    whole = (tmp_path / "good.npy").read_bytes()
    for mmap in (False, True):
        np.testing.assert_array_equal(files.load_npy(tmp_path / "good.npy", mmap=mmap), good)
    for cut in (0, 5, 20, len(whole) - 1):
        (tmp_path / "cut.npy").write_bytes(whole[:cut])
        with pytest.raises(DataError):
            files.load_npy(tmp_path / "cut.npy")
    with pytest.raises(DataError, match="check the path"):
        files.load_npy(tmp_path / "absent.npy")


def test_mutated_array_headers_are_read_or_refused_never_anything_else(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.int16))
    whole = bytearray((tmp_path / "a.npy").read_bytes())
    generator, refused = np.random.default_rng(0), 0
    for _ in range(1500):
        mutated = bytearray(whole)
        for position in generator.integers(0, len(whole), 3):
            mutated[position] = generator.integers(0, 256)
        (tmp_path / "m.npy").write_bytes(mutated)
        try:
            files.load_npy(tmp_path / "m.npy")
        except DataError:
            refused += 1
    assert refused > 200


def test_a_second_process_learns_who_holds_the_lock(tmp_path):
    code = f"from bmfl_lab.files import lock\nwith lock({str(tmp_path / 'l')!r}, wait=False, what='the run'): pass"
    with files.lock(tmp_path / "l"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode != 0
        and "sole use of the run" in done.stderr
        and f"process {__import__('os').getpid()}" in done.stderr
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_lock_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"to write in the run .*make it writable, or choose another folder"
    ):
        with files.lock(tmp_path / "file" / "l", what="the run"):
            pass


def test_hashes_are_those_of_the_standard_tool(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "f") == files.sha256_bytes(b"abc") == expected
    assert files.sha256_json({"b": 1, "a": 2}) == files.sha256_json({"a": 2, "b": 1})


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1


@dataclass(frozen=True)
class Outer:
    head: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1,)
    name: str | None = None
    inner: Inner = field(default_factory=Inner)


def test_a_config_survives_json_and_changes_its_hash_with_any_choice():
    first = Outer(sizes=(1, 2), inner=Inner(lr=0.5))
    again = config.from_dict(Outer, json.loads(json.dumps(config.to_dict(first))))
    assert again == first and config.config_hash(again) == config.config_hash(first)
    assert config.config_hash(config.replace(first, name="x")) != config.config_hash(first)
    assert config.from_dict(Outer, {"inner": {"lr": 1}}).inner.lr == 1.0


def test_every_problem_of_a_config_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        config.from_dict(
            Outer,
            {"haed": "a", "head": "c", "sizes": [1, "2"], "inner": {"lr": math.nan}, "name": 3},
        )
    said = str(caught.value)
    assert (
        "5 problem" in said
        and "did you mean 'head'" in said
        and "inner.lr expected float; got nan" in said
    )


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_lock_holds_on_file_systems_without_flock(number, tmp_path, monkeypatch):
    def refused(stream, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    with lock(tmp_path / "x"):
        with pytest.raises(LockedError, match="wait for it to end, or choose another folder"):
            with lock(tmp_path / "x", wait=False):
                pass
    with lock(tmp_path / "x", wait=False):
        pass


def test_a_broken_file_system_is_not_taken_for_one_without_flock(tmp_path, monkeypatch):
    def broken(stream, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match="Input/output error"), lock(tmp_path / "x"):
        pass


def test_without_a_home_folder_the_message_names_the_variable(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    for name in ("BMFL_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(ConfigError, match="set the environment variable BMFL_HOME"):
        home()


def test_a_forked_process_does_not_keep_a_lock_beyond_the_end_of_its_parent(tmp_path):
    """Processes that decode images are forked while a training holds the lock of its folder."""
    script = (
        "import os, sys, time\n"
        "from bmfl_lab.files import lock\n"
        "with lock(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.close(1)\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    print(child, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "held.lock"
    ran = subprocess.run(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    child = int(ran.stdout)
    try:
        os.kill(child, 0)  # it lives
        with lock(path, wait=False):
            pass
    finally:
        os.kill(child, signal.SIGKILL)

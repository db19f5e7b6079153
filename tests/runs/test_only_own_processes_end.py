"""A runner that meets another one's folder removes nothing and ends nothing that it did not start."""

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys

import psutil
import pytest
from notebook_example import write_notebook

from bmfl_lab import files
from bmfl_lab.runs import execute
from bmfl_lab.runs.spec import load_spec


@pytest.fixture
def bystander():
    """A process with a group of its own that is no business of any run."""
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    yield child
    child.kill()
    child.wait()


def right(pid):
    return {"host": platform.node(), "pid": pid, "started": psutil.Process(pid).create_time()}


NOTES = {
    "number given to another process": lambda pid: {**right(pid), "started": 1.0},
    "a second later": lambda pid: {**right(pid), "started": right(pid)["started"] + 1},
    "another machine": lambda pid: {**right(pid), "host": "elsewhere"},
    "no host": lambda pid: {"pid": pid, "started": right(pid)["started"]},
    "no time": lambda pid: {"host": platform.node(), "pid": pid},
    "time as text": lambda pid: {**right(pid), "started": str(right(pid)["started"])},
    "number as text": lambda pid: {**right(pid), "pid": str(pid)},
    "a list of numbers": lambda pid: {**right(pid), "pid": [pid]},
    "a list": lambda pid: [right(pid)],
    "every process": lambda pid: {**right(pid), "pid": -1},
    "a number beyond all": lambda pid: {**right(pid), "pid": 1 << 70},
    "a fraction": lambda pid: {**right(pid), "pid": pid + 0.5},
    "the own group": lambda pid: {**right(pid), "pid": 0},
    "a process that is gone": lambda pid: {**right(pid), "pid": 4_000_000},
    "nothing": lambda pid: None,
}


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_is_not_exactly_right_ends_nothing(note, bystander, tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(NOTES[note](bystander.pid)))
    execute.end_process(tmp_path / "w.json")
    assert bystander.poll() is None and not (tmp_path / "w.json").exists()


def test_a_damaged_note_ends_nothing(bystander, tmp_path):
    text = json.dumps(right(bystander.pid))
    for content in (
        text[:-1],
        "",
        text[:20] + "\0" + text[20:],
        text + text,
        f'{text[:-1]}, "pid": 1}}',
    ):
        (tmp_path / "w.json").write_text(content)
        execute.end_process(tmp_path / "w.json")
        assert bystander.poll() is None, content
    execute.end_process(tmp_path / "w.json")  # there is none


def test_the_process_of_a_right_note_ends(bystander, tmp_path):
    execute.note_process(tmp_path / "w.json", bystander.pid)
    assert json.loads((tmp_path / "w.json").read_text()) == right(bystander.pid)
    execute.end_process(tmp_path / "w.json")
    assert bystander.poll() is not None


@pytest.fixture
def run(tmp_path):
    cells = ("n: int = 1  # a number", "raise SystemExit('a second runner has started it')")
    write_notebook(tmp_path / "probe.ipynb", *cells)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "probe.yaml").write_text("notebook: probe.ipynb\n")
    return load_spec(tmp_path / "probe.yaml")[0]


def no_flock(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "no flock here")

    monkeypatch.setattr(files.fcntl, "flock", refuse)


@pytest.fixture(scope="module")
def holders():
    """Two processes that hold a lock while they are asked to: one with flock and one without it."""
    code = """
import errno, sys
from pathlib import Path
from bmfl_lab import files
if sys.argv[1] == "no flock":
    def refuse(*_): raise OSError(errno.ENOSYS, "no")
    files.fcntl.flock = refuse
while line := sys.stdin.readline():
    with files.lock(Path(line.strip())):
        print("held", flush=True)
        sys.stdin.readline()
    print("free", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "text": True}
    with contextlib.ExitStack() as stack:
        yield {
            flock: stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code, name], **pipes)
            )
            for flock, name in ((True, "flock"), (False, "no flock"))
        }


@contextlib.contextmanager
def _held_by(holder, path):
    """Let another process hold the lock."""
    print(path, file=holder.stdin, flush=True)
    assert holder.stdout.readline() == "held\n"
    try:
        yield
    finally:
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "free\n"


STATES = {
    "just begun": {},
    "with a worker": {"worker": True},
    "with a kernel": {"kernel": True},
    "with both": {"worker": True, "kernel": True},
    "half written": {"state": '{"state": "o'},
    "ended with an error before": {"state": '{"state": "error", "reason": "x"}'},
    "ended well before": {"state": '{"state": "ok", "reason": ""}'},
    "with results": {"record": "{}"},
}


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
@pytest.mark.parametrize("state", STATES)
def test_the_folder_of_a_runner_at_work_is_left_to_it(
    state, flock, run, bystander, holders, monkeypatch
):
    monkeypatch.setattr(execute, "_LOOK_S", 0.05)
    force = (list(STATES).index(state) + flock) % 2 == 0
    if not flock:
        no_flock(monkeypatch)
    folder = execute.folder_of(run)
    folder.mkdir(parents=True)
    (folder / "half.npy").write_bytes(b"what the first one has written")
    about = STATES[state]
    for name, file in (("worker", execute.WORKER_FILE), ("kernel", execute.KERNEL_FILE)):
        if about.get(name):
            execute.note_process(folder / file, bystander.pid)
    for name in ("state", "record"):
        if name in about:
            (folder / f"{name}.json").write_text(about[name])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    lock = execute._lock_of(folder)
    with _held_by(holders[flock], lock):
        assert execute.execute_one(run, None, force) == "running"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert bystander.poll() is None

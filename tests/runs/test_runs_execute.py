"""Small notebooks that misbehave in every way a run can, and what the runner says about them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest

from bmfl_lab.runs.__main__ import main

PARAMETERS = """
study: str = "planted"  # study to load
n: int = 3  # how many [1..10]
rate: float = 0.5  # a share [0..1]
label: str = "plain"  # a text
out: str = ""  # folder of results, set by the runner
"""
RECORD = """
from bmfl_lab.records import Record
from bmfl_lab.runs import run_folder
record = Record(notebook="probe", parameters={"n": n}, study={"name": study, "fingerprint": "0", "simulated": True})
_ = record.add("accuracy", rate, unit="fraction", split="test", n=n, selection="none")
"""
FINISH = 'record.finish(run_folder(out, "probe"))'


def write_notebook(path, *cells):
    code = [nbformat.v4.new_code_cell(textwrap.dedent(c).strip()) for c in (PARAMETERS, *cells)]
    code[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=code)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))

    # the source tree may be under edit while the tests run; staleness has its own test
    monkeypatch.setattr("bmfl_lab.runs.execute.code_revision", lambda: "abcdefabcdef")
    monkeypatch.setattr("bmfl_lab.runs.execute.code_digest", lambda: "0" * 16)

    def make(*cells, **fields):
        write_notebook(tmp_path / "probe.ipynb", *cells)
        spec = tmp_path / "probe.yaml"
        spec.write_text(json.dumps({"notebook": "probe.ipynb", "timeout_min": 1.0, **fields}))
        return spec

    return make


def run(spec, *more):
    return main(["run", str(spec), "--out", str(spec.parent / "out"), *more])


def folder_of(spec):
    (found,) = (spec.parent / "out" / "probe").iterdir()
    return found


def kernels_of(folder):
    """Processes that mention the folder or are the kernel a run noted."""
    found = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if str(folder) in line and "<defunct>" not in line]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_good_run_is_ok_then_skipped_then_stale(project, capsys):
    hint = "x" * 12
    spec = project(
        RECORD,
        f'print("token hf_{hint}{hint} label is", label)',
        FINISH,
        params={"label": "'); import os; os.abort() #", "n": 4},
        expect=[{"metric": "accuracy", "split": "test", "low": 0.4, "high": 0.6}],
    )
    assert main(["plan", str(spec), "--out", str(spec.parent / "out")]) == 0
    assert "absent" in capsys.readouterr().out and not (spec.parent / "out").exists()
    assert run(spec) == 0
    folder = folder_of(spec)
    assert {p.name for p in folder.iterdir()} >= {"spec.json", "executed.ipynb", "record.json", "log.txt", "figures"}
    text = (folder / "log.txt").read_text()
    assert "label is '); import os; os.abort() #" in text and "hf_" not in text
    assert "hf_" not in json.dumps(nbformat.read(folder / "executed.ipynb", 4).cells[3].outputs)
    assert not list(folder.glob("*.tmp")) and not (folder / ".executing.ipynb").exists()
    record = json.loads((folder / "record.json").read_text())
    assert record["parameters"] == {"n": 4} and record["rows"][0]["value"] == 0.5
    stamp = (folder / "record.json").stat().st_mtime_ns
    assert run(spec) == 0 and (folder / "record.json").stat().st_mtime_ns == stamp
    report = spec.parent / "report.md"
    assert main(["report", str(spec), "--out", str(spec.parent / "out"), "--to", str(report)]) == 0
    assert folder.name in report.read_text() and "| test | 0.500 | 4 |" in report.read_text()
    plan = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({**plan, "code_revision": "0123456789ab"}))
    capsys.readouterr()
    assert main(["status", str(spec), "--out", str(spec.parent / "out")]) == 1
    assert "stale" in capsys.readouterr().out


BAD = {
    "exit": ((RECORD, "import sys; sys.exit(0)", FINISH), {}, "incomplete", "not completed: import sys"),
    "exception": ((RECORD, "1 / 0", FINISH), {}, "error", "ZeroDivisionError"),
    "hang": ((RECORD, "while True: pass", FINISH), {"cell_timeout_min": 0.03}, "error", "CellTimeoutError in cell 3"),
    "killed": ((RECORD, "import os; os.kill(os.getpid(), 9)", FINISH), {}, "error", "cell 3.*peak memory was [1-9]"),
    "no record": ((RECORD,), {}, "incomplete", "record.json is missing"),
    "bounds": ((RECORD, FINISH), {"expect": [{"metric": "accuracy", "low": 0.9}]}, "error", "expected from 0.9"),
    "no row": ((RECORD, FINISH), {"expect": [{"metric": "nll", "low": 0}]}, "error", "no row with name=nll"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_run_is_never_counted_as_success(case, project, capsys):
    cells, fields, state, reason = BAD[case]
    spec = project(*cells, **fields)
    start = time.monotonic()
    assert run(spec) == 1
    said = capsys.readouterr().out
    assert f": {state}" in said
    import re

    assert re.search(reason, said), said
    assert (folder_of(spec) / "executed.ipynb").is_file()
    assert not kernels_of(folder_of(spec)) and time.monotonic() - start < 30


def test_long_output_is_capped_with_a_pointer_to_the_log(project):
    spec = project(RECORD, 'for _ in range(60): print("y" * 100_000)', FINISH)
    assert run(spec) == 0
    folder = folder_of(spec)
    assert (folder / "executed.ipynb").stat().st_size < 2_500_000
    assert "see log.txt" in (folder / "executed.ipynb").read_text()
    assert (folder / "log.txt").stat().st_size > 5_900_000


def test_no_kernel_is_left_after_sigterm(project, tmp_path):
    spec = project(
        RECORD, "import os, time, pathlib", 'pathlib.Path("pid").write_text(str(os.getpid())); time.sleep(60)'
    )
    command = [sys.executable, "-m", "bmfl_lab.runs", "run", str(spec), "--out", str(tmp_path / "out")]
    runner = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 40
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(timeout=10) == 143
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)
    assert main(["status", str(spec), "--out", str(tmp_path / "out")]) == 1


@pytest.mark.parametrize(
    "params, match",
    [
        ({"rat": 0.1}, "unknown parameter 'rat': did you mean 'rate'"),
        ({"rate": "0.5"}, r"rate expected float; got '0.5' \(str\)"),
        ({"rate": float("nan")}, "rate expected a finite number; got nan"),
        ({"rate": 2.0}, "rate expected a value from 0 to 1; got 2"),
        ({"n": True}, r"n expected int; got True \(bool\)"),
        ({"label": ["a"]}, "label expected str"),
        ({"out": "x"}, "no parameter 'out'"),
    ],
)
def test_bad_parameters_are_refused_before_a_kernel_starts(params, match, project, capsys):
    import re

    spec = project(RECORD, FINISH, params={k: v for k, v in params.items() if v == v})
    if "nan" in match:
        spec.write_text(spec.read_text().replace('"params": {}', '"params": {"rate": .nan}'))
    assert run(spec) == 2
    assert re.search(match, capsys.readouterr().err)
    assert not (spec.parent / "out").exists()


@pytest.mark.parametrize("damage", ["{", '{"nbformat": 3}', '{"nbformat": 4, "cells": 1}', None])
def test_a_damaged_notebook_is_refused_at_once(damage, project, capsys):
    spec = project(RECORD)
    target = spec.parent / "probe.ipynb"
    target.unlink() if damage is None else target.write_text(damage)
    assert run(spec) == 2
    assert "probe.ipynb" in capsys.readouterr().err and not (spec.parent / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(project, capsys):
    spec = project(RECORD, FINISH)
    (spec.parent / "out").write_text("a file")
    assert run(spec) == 2 and "writable folder" in capsys.readouterr().err


def test_run_folder_is_the_same_from_the_root_and_from_notebooks(tmp_path, monkeypatch):
    from bmfl_lab.runs import run_folder

    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "notebooks").mkdir()
    found = []
    for folder in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(folder)
        found.append(run_folder("", "03_x"))
    assert found[0] == found[1] == tmp_path / "papermill_runs" / "out" / "manual" / "03_x"
    assert (found[0] / "figures").is_dir() and os.path.isdir(run_folder(tmp_path / "other", "03_x"))

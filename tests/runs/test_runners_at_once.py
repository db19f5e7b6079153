"""Several runners on one spec at the same time: every run is executed once, and no result is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from notebook_example import write_notebook

from bmfl_lab.records import read_record

ROOT = Path(__file__).resolve().parents[2]
CELLS = (
    """
    n: int = 1  # which run
    out: str = ""  # folder of results
    """,
    """
    import os, pathlib, time
    from bmfl_lab.records import Record
    from bmfl_lab.runs.paths import run_folder
    with open(f"begun-{n}", "a") as log: print(os.getpid(), file=log)
    time.sleep(2)
    """,
    """
    record = Record(notebook="probe", parameters={"n": n}, study={"name": "x", "fingerprint": "0", "simulated": True})
    _ = record.add("accuracy", n / 10, unit="fraction", split="test", n=n, selection="none")
    _ = record.finish(run_folder(out, "probe"))
    with open(f"ended-{n}", "a") as log: print(os.getpid(), file=log)
    """,
)


@pytest.fixture
def spec(tmp_path):
    write_notebook(tmp_path / "probe.ipynb", *CELLS)
    (tmp_path / "pyproject.toml").write_text("")
    runs = {"notebook": "probe.ipynb", "timeout_min": 15.0, "grid": {"n": [1, 2]}}
    (tmp_path / "probe.yaml").write_text(json.dumps(runs))
    return tmp_path / "probe.yaml"


def start(spec, *more):
    command = [sys.executable, "-m", "bmfl_lab.runs", "run", str(spec), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=spec.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def check(spec, runners):
    """Wait for the runners and check that each run was executed once and stands whole on disk."""
    said = [tuple(b.decode() for b in r.communicate(timeout=1500)) for r in runners]
    for n in (1, 2):
        for name in ("begun", "ended"):
            noted = spec.parent / f"{name}-{n}"
            assert noted.is_file() and len(noted.read_text().splitlines()) == 1, said
    text = "".join(out for out, _ in said)
    assert text.count(": started, log in") == 2 and not any(err for _, err in said), said
    # a runner that left a run to another one says so and does not count it as its own success
    for runner, (out, _) in zip(runners, said):
        assert runner.returncode == (0 if "2 of 2 runs ok" in out else 1)
        assert "Traceback" not in out and all(s in ("ok", "running") for s in states(out)), out
    folders = sorted((spec.parent / "papermill_runs" / "out" / "probe").iterdir())
    values = [read_record(f / "record.json").rows[0].value for f in folders]
    assert sorted(values) == [0.1, 0.2]
    for folder in folders:
        assert nbformat.read(folder / "executed.ipynb", 4).cells
        assert not list(folder.glob(".*")) and not list(folder.glob("*.tmp"))
    after = start(spec)
    out, _ = after.communicate(timeout=600)
    assert after.returncode == 0 and b"started" not in out


def states(out):
    return [
        line.split(": ")[1].split(" ")[0]
        for line in out.splitlines()
        if line.startswith("probe-") and ": started" not in line
    ]


@pytest.mark.timeout(900)
def test_three_runners(spec):
    check(spec, [start(spec) for _ in range(3)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n", [2, 4, 8])
def test_many_runners_with_two_notebooks_at_a_time(spec, n):
    check(spec, [start(spec, "--jobs", "2") for _ in range(n)])

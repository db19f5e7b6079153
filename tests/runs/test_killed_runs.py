"""A run of the planted study that is killed at random instants is run again and ends with the same report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from notebook_example import write_notebook

ROOT = Path(__file__).resolve().parents[2]
CELLS = (
    """
    study: str = "planted"  # study to load
    seed: int = 0  # seed of training [0..]
    out: str = ""  # folder of results
    """,
    """
    from bmfl_lab import load_study
    from bmfl_lab.backbones import FeatureStore
    from bmfl_lab.evaluation import evaluate_ood
    from bmfl_lab.records import Record
    from bmfl_lab.runs import start_notebook
    from bmfl_lab.training import presets, train_fusion
    folder, parameters = start_notebook(globals(), "probe")
    data = load_study(study, n_encoder=40, n_encoder_val=20, n_encoder_test=20)
    """,
    """
    config, _ = presets("tiny", epochs=1, head="backbone")
    model = train_fusion(config, data, store=FeatureStore(), folder=folder / "model", seed=seed)
    """,
    """
    record = Record("probe", parameters, data.summary())
    record.extend(evaluate_ood({"backbone": model}, data, shifts=[("masked", 3)], n_boot=20).rows)
    _ = record.finish(folder)
    """,
)


@pytest.fixture
def spec(tmp_path):
    write_notebook(tmp_path / "probe.ipynb", *CELLS)
    (tmp_path / "pyproject.toml").write_text("")
    about = {"notebook": "probe.ipynb", "timeout_min": 30.0, "seeds": [0]}
    (tmp_path / "probe.yaml").write_text(json.dumps(about))
    return tmp_path / "probe.yaml"


def command(spec, verb, out):
    """Return the options of a process that runs a spec or makes its report."""
    home = spec.parent / "homes" / out
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BMFL_HOME": str(home)}
    words = [
        sys.executable,
        "-m",
        "bmfl_lab.runs",
        verb,
        str(spec),
        "--out",
        str(spec.parent / out),
    ]
    words += ["--to", str(spec.parent / f"{out}.md")] if verb == "report" else []
    return {"args": words, "env": environment, "cwd": spec.parent}


def report(spec, out):
    """Run to the end, and return the report and the rows without what tells the time."""
    done = subprocess.run(**command(spec, "run", out), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0 and "1 of 1 runs ok" in done.stdout, done.stdout + done.stderr
    subprocess.run(**command(spec, "report", out), check=True, timeout=600)
    text = (spec.parent / f"{out}.md").read_text(encoding="utf-8")
    (record,) = (spec.parent / out / "probe").glob("*/record.json")
    rows = [r for r in json.loads(record.read_text())["rows"] if not r["unit"].endswith("/s")]
    assert not list(record.parent.glob(".*")) and not list(record.parent.rglob("*.tmp"))
    text = text.replace(out, "run")
    return re.sub(
        r"\\b\\d+(\\.\\d+)? (s|min|h|MB|GB)\\b|\\d{4}-\\d\\d-\\d\\d[^|\\n]*", "", text
    ), rows


def family(process):
    """Return the ids of a process, its worker and its kernel, as far as they live."""
    found, new = [process], [process]
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    while new:
        new = [child for child, parent in parents if parent in new]
        found += new
    return found


def kill(spec, out, seconds, generator):
    """Kill one or all processes of a run after some seconds; return whether it was under way."""
    runner = subprocess.Popen(
        **command(spec, "run", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    processes = family(runner.pid)
    under_way = runner.poll() is None
    chosen = processes if generator.random() < 0.3 else [generator.choice(processes)]
    for process in chosen:
        try:
            os.kill(int(process), signal.SIGKILL)
        except ProcessLookupError:
            under_way = under_way and len(chosen) > 1
    runner.wait(timeout=3000)
    return under_way


def check(spec, n):
    """Kill `n` runs, each in its own folder and most of them once, and compare their reports."""
    generator = np.random.default_rng(0)
    began = time.monotonic()
    expected = report(spec, "whole")
    took, kills, same = time.monotonic() - began, 0, 0
    while kills < n:
        out = f"killed-{kills}"
        if kill(spec, out, generator.uniform(0.05, 0.95) * took, generator):
            kills += 1
            same += report(spec, out) == expected
            print(f"{kills} kills, {same} with the same report", flush=True)
    assert same == kills == n


@pytest.mark.timeout(1200)
def test_a_killed_run_ends_with_the_same_report(spec):
    check(spec, 1)


@pytest.mark.slow
@pytest.mark.timeout(36000)
def test_a_hundred_killed_runs_end_with_the_same_report(spec):
    check(spec, int(os.environ.get("BMFL_KILLS", 100)))

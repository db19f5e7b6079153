"""A run of the planted study that is killed at random instants is run again and ends with the same report."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from notebook_example import write_notebook

from bmfl_lab.runtime import home

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
    """Return the options of a process that runs a spec or makes its report into a folder `out`."""
    place = out.parent / "homes" / out.name
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BMFL_HOME": str(place)}
    words = [
        sys.executable,
        "-m",
        "bmfl_lab.runs",
        verb,
        str(spec),
        "--out",
        str(out),
    ]
    words += ["--to", f"{out}.md"] if verb == "report" else []
    return {"args": words, "env": environment, "cwd": spec.parent}


def report(spec, out):
    """Run to the end, and return the report and the rows without what tells the time."""
    done = subprocess.run(**command(spec, "run", out), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0 and "1 of 1 runs ok" in done.stdout, done.stdout + done.stderr
    subprocess.run(**command(spec, "report", out), check=True, timeout=600)
    text = Path(f"{out}.md").read_text(encoding="utf-8")
    (record,) = out.glob("*/*/record.json")
    rows = [r for r in json.loads(record.read_text())["rows"] if not r["unit"].endswith("/s")]
    assert not list(record.parent.glob(".*")) and not list(record.parent.rglob("*.tmp"))
    return text.replace(out.name, "run"), rows


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


def check(spec, folder, n):
    """Kill `n` runs, each in its own folder and most of them once, and compare their reports."""
    generator = np.random.default_rng(0)
    began = time.monotonic()
    expected = report(spec, folder / "whole")
    took, kills, same = time.monotonic() - began, 0, 0
    while kills < n:
        out = folder / f"killed-{kills}"
        if kill(spec, out, generator.uniform(0.05, 0.95) * took, generator):
            kills += 1
            same += report(spec, out) == expected
            print(f"{kills} kills, {same} with the same report", flush=True)
    assert same == kills == n


@pytest.mark.timeout(1200)
def test_a_killed_run_ends_with_the_same_report(spec):
    check(spec, spec.parent, 1)


@pytest.mark.slow
@pytest.mark.timeout(36000)
def test_a_hundred_killed_runs_end_with_the_same_report(spec):
    check(spec, spec.parent, int(os.environ.get("BMFL_KILLS", 100)))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(36000)
def test_killed_runs_of_the_main_job_end_with_the_same_report(tmp_path):
    for name in ("whole", "killed-0", "killed-1", "killed-2"):  # what is fetched is fetched once
        (tmp_path / "homes" / name).mkdir(parents=True)
        (tmp_path / "homes" / name / "downloads").symlink_to(home() / "downloads")
    check(ROOT / "papermill_runs" / "specs" / "main.yaml", tmp_path, 3)


def test_a_worker_that_outlives_its_runner_does_not_disturb_the_next_run(spec):
    cells = (
        CELLS[0],
        """
        from bmfl_lab.records import Record
        from bmfl_lab.runs import start_notebook
        folder, parameters = start_notebook(globals(), "probe")
        import time
        time.sleep(4)
        """,
        """
        record = Record("probe", parameters, {"name": study, "fingerprint": "a"})
        record.add("accuracy", 0.5, unit="fraction", split="test", n=9, selection="none")
        _ = record.finish(folder)
        """,
    )
    write_notebook(spec.parent / "probe.ipynb", *cells)
    runner = subprocess.Popen(
        **command(spec, "run", spec.parent / "out"), stdout=subprocess.DEVNULL
    )
    processes = []
    while runner.poll() is None and len(processes) < 3:  # until the kernel has started
        time.sleep(0.2)
        processes = family(runner.pid)
    worker, *others = map(psutil.Process, processes[1:])
    time.sleep(2)
    worker.suspend()  # as on a machine so busy that it cannot notice the end of its runner
    runner.kill()
    runner.wait()

    def resume():
        def noted():
            return {p.read_text() for p in (spec.parent / "out").glob("probe/*/.kernel*")}

        before, until = noted(), time.monotonic() + 60
        while noted() <= before and time.monotonic() < until:
            time.sleep(0.05)
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()

    resuming = threading.Thread(target=resume)
    resuming.start()
    assert report(spec, spec.parent / "out")[1][0]["value"] == 0.5
    resuming.join()
    assert not any(process.is_running() for process in (worker, *others))

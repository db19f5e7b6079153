"""Runs as jobs: a bound on how many at once, preemption, cancelling, and a real SLURM."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from notebook_example import write_notebook
from test_runners_at_once import CELLS, ROOT, start

from bmfl_lab.errors import RunError
from bmfl_lab.records import read_record
from bmfl_lab.runs.cluster import execute_as_jobs, job_of
from bmfl_lab.runs.spec import load_spec

SLOW_AT_FIRST = """
if not pathlib.Path("first").exists():
    pathlib.Path("first").touch()
    time.sleep(600)
"""


def make_spec(folder, cells, **fields):
    write_notebook(folder / "probe.ipynb", *cells)
    (folder / "pyproject.toml").write_text("")
    fields = {"notebook": "probe.ipynb", "timeout_min": 15.0} | fields
    (folder / "probe.yaml").write_text(json.dumps(fields))
    return folder / "probe.yaml"


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def records(spec):
    return sorted(spec.parent.glob("papermill_runs/out/probe/*/record.json"))


def test_jobs_end_ok_and_no_more_than_asked_run_at_once(tmp_path, monkeypatch):
    spec = make_spec(tmp_path, CELLS, grid={"n": [1, 2, 3]})
    runner = start(spec, "--executor", "local", "--jobs", "2")
    said, problem = (text.decode() for text in runner.communicate(timeout=600))
    assert runner.returncode == 0, said + problem
    assert "3 of 3 runs ok" in said and len(records(spec)) == 3
    times = [
        tuple((tmp_path / f"{word}-{n}").stat().st_mtime for word in ("begun", "ended"))
        for n in (1, 2, 3)
    ]
    together = [sum(a <= begun < b for a, b in times) for begun, _ in times]
    assert max(together) <= 2
    runs = load_spec(spec)
    assert all("of local, log " in job_of(run) for run in runs)
    again = start(spec, "--executor", "local")
    assert b"3 of 3 runs ok" in again.communicate(timeout=200)[0]


def test_a_preempted_job_is_done_again_and_ends_ok(tmp_path):
    spec = make_spec(tmp_path, [*CELLS[:2], SLOW_AT_FIRST, CELLS[2]])
    runner = start(spec, "--executor", "local")
    wait_for((tmp_path / "first").exists)
    (note,) = tmp_path.glob("papermill_runs/out/.jobs/probe/*.json")
    controller = psutil.Process(int(json.loads(note.read_text())["job"]))
    (task,) = controller.children()
    task.send_signal(signal.SIGUSR2)
    said, problem = (text.decode() for text in runner.communicate(timeout=600))
    assert runner.returncode == 0, said + problem
    (record,) = records(spec)
    assert read_record(record).rows[0].value == 0.1
    assert len((tmp_path / "begun-1").read_text().split()) == 2


@pytest.mark.slow
def test_an_interrupted_runner_leaves_no_job_and_no_kernel(tmp_path):
    spec = make_spec(tmp_path, [*CELLS[:2], SLOW_AT_FIRST, CELLS[2]])
    runner = start(spec, "--executor", "local")
    wait_for((tmp_path / "first").exists)
    kernel = psutil.Process(int((tmp_path / "begun-1").read_text()))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(timeout=120) == 128 + signal.SIGTERM
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)


def test_what_a_job_asks_for_is_checked_before_anything_starts(tmp_path):
    wrong = {"gpu": 1, "cpus": "two", "memory_gb": -1, "nodes": 2}
    spec = make_spec(tmp_path, CELLS, resources=wrong)
    with pytest.raises(RunError) as caught:
        load_spec(spec)
    said = str(caught.value)
    for part in ("unknown resource 'gpu'", "'gpus'", "cpus is 'two'", "memory_gb is -1"):
        assert part in said
    assert "several nodes train 03_fusion_training and 04_ood_evaluation" in said


def test_without_slurm_the_way_to_run_here_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runs = load_spec(make_spec(tmp_path, CELLS))
    with pytest.raises(RunError, match="leave --executor out to run on this machine"):
        execute_as_jobs(runs, "slurm")
    assert job_of(runs[0]) == ""


ON_TWO_NODES = (
    """
    study: str = "small.json"  # study
    models: list[str] = ["backbone"]  # models
    seeds: list[int] = [0]  # seeds
    epochs: int = 1  # epochs
    preset: str = "tiny"  # preset
    device: str = "cpu"  # device
    subject: str = ""  # subject
    out: str = ""  # folder of results
    """,
    """
    from bmfl_lab.records import Record
    from bmfl_lab.runs.paths import run_folder
    from bmfl_lab.runtime import home
    kept = len([p for p in (home() / "models").iterdir() if p.is_dir()])
    record = Record("03_fusion_training", {}, {"name": "x", "fingerprint": "0", "simulated": True})
    _ = record.add("accuracy", kept, unit="fraction", split="test", n=1, selection="none")
    _ = record.finish(run_folder(out, "03_fusion_training"))
    """,
)


def spec_on_two_nodes(folder):
    (folder / "notebooks").mkdir()
    write_notebook(folder / "notebooks" / "03_fusion_training.ipynb", *ON_TWO_NODES)
    sizes = {"n_encoder": 60, "n_encoder_val": 20, "n_encoder_test": 20}
    sizes |= {"n_train": 16, "n_val": 8, "n_test": 8}
    (folder / "small.json").write_text(json.dumps({"study": "planted", **sizes}))
    resources = {"nodes": 2, "cpus": 1, "memory_gb": 2}
    notebook = "notebooks/03_fusion_training.ipynb"
    return make_spec(folder, CELLS, notebook=notebook, resources=resources)


def check_two_nodes(spec, runner):
    """Check that both nodes took part, and that the notebook found the model they had trained."""
    said, problem = (text.decode() for text in runner.communicate(timeout=900))
    assert runner.returncode == 0, said + problem
    (record,) = records(spec)
    assert read_record(record).rows[0].value == 1
    logs = [p.read_text() for p in spec.parent.glob("papermill_runs/out/.jobs/probe/*/*_log.out")]
    assert len(logs) == 2 and "trained and kept: backbone" in logs[0] + logs[1]
    assert all("feature store: " in log for log in logs)  # each node extracted, or waited for it


@pytest.mark.slow
def test_two_nodes_train_one_model_and_the_first_executes_the_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    spec = spec_on_two_nodes(tmp_path)
    check_two_nodes(spec, start(spec, "--executor", "local"))


CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/ctld.pid
SlurmdPidFile={place}/d-%n.pid
SlurmctldLogFile={place}/ctld.log
SlurmdLogFile={place}/d-%n.log
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeAddr=127.0.0.{last} Port={port} CPUs={cpus} RealMemory=4000 State=UNKNOWN"
)


@pytest.fixture
def slurm(request, tmp_path, monkeypatch):
    """A SLURM of one node or more from Debian's packages; it takes a root user.

    All nodes are this machine, the second of them under another name.
    """
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("needs Debian and root")
    packages = ["slurm-wlm", "munge"]
    if not shutil.which("sbatch"):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"SLURM cannot be installed: {done.stderr[-200:]}")
    place = tmp_path / "slurm"
    (place / "state").mkdir(parents=True)
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True).stdout.strip()
    config = place / "slurm.conf"
    names = [host, f"{host}-2"][: getattr(request, "param", 1)]
    for name in names:
        (place / f"spool-{name}").mkdir()
    nodes = "\n".join(
        NODE.format(name=name, last=i + 1, port=17_001 + i, cpus=os.cpu_count())
        for i, name in enumerate(names)
    )
    config.write_text(CONFIG.format(host=host, place=place, nodes=nodes))
    monkeypatch.setenv("SLURM_CONF", str(config))
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    started = [
        subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--foreground", "--force"]),
        subprocess.Popen(["slurmctld", "-D", "-i"]),
        *(
            subprocess.Popen(["unshare", "--uts", "sh", "-c", f"hostname {name}; exec slurmd -D"])
            for name in names
        ),
    ]
    try:
        wait_for(lambda: b"idle" in subprocess.run(["sinfo", "-h"], capture_output=True).stdout, 90)
        yield
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in started:
            process.wait(timeout=60)


@pytest.mark.slow
def test_a_job_array_of_slurm_ends_ok_and_status_tells_its_jobs(tmp_path, slurm):
    resources = {"cpus": 1, "memory_gb": 1, "minutes": 10}
    spec = make_spec(tmp_path, CELLS, grid={"n": [1, 2, 3]}, resources=resources)
    runner = start(spec, "--executor", "slurm", "--jobs", "2")
    said, problem = (text.decode() for text in runner.communicate(timeout=900))
    assert runner.returncode == 0, said + problem
    assert "3 of 3 runs ok" in said and len(records(spec)) == 3
    command = [sys.executable, "-m", "bmfl_lab.runs", "status", str(spec)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_job_that_slurm_requeues_goes_on(tmp_path, slurm):
    spec = make_spec(tmp_path, [*CELLS[:2], SLOW_AT_FIRST, CELLS[2]], resources={"memory_gb": 1})
    runner = start(spec, "--executor", "slurm")
    wait_for((tmp_path / "first").exists)
    (run,) = load_spec(spec)
    job = job_of(run).split()[1]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    said, problem = (text.decode() for text in runner.communicate(timeout=900))
    assert runner.returncode == 0, said + problem
    assert len((tmp_path / "begun-1").read_text().split()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("slurm", [2], indirect=True)
def test_two_nodes_of_slurm_train_one_model(tmp_path, monkeypatch, slurm):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    spec = spec_on_two_nodes(tmp_path)
    check_two_nodes(spec, start(spec, "--executor", "slurm"))

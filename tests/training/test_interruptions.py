"""Trainings that are killed at any instant, or go on with another number of processes."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fit_example as example
import numpy as np
import pytest

from bmfl_lab.errors import ConfigError
from bmfl_lab.training import checkpoint
from bmfl_lab.training.batches import Order

HERE = Path(__file__).parent
MEMORY = Path("/dev/shm")


@pytest.fixture
def fast(tmp_path):
    """Return a folder where a sync to disk costs nothing, if there is one: a kill is no power cut."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def trials(kind, folder, n, processes, timeout):
    command = [
        sys.executable,
        str(HERE / "kill_trials.py"),
        kind,
        str(folder),
        str(n),
        str(processes),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_kill_at_any_call_of_a_save_loses_at_most_that_save_and_resumes_to_the_bit(fast):
    found = trials("inside", fast, 18, 1, 280)
    assert len(found["reference"]) == 1 and found["same"] == 18
    assert found["half"] >= 6  # otherwise the kills did not fall into saves
    assert (
        found["steps"] == sorted(found["steps"])
        and found["steps"][0] == 0
        and found["steps"][-1] >= 1
    )


def test_another_number_of_processes_sees_the_same_rows_and_loses_only_bits(fast):
    found = trials("world", fast, 13, 2, 280)
    never, whole = found.pop("never"), found["1-1"]
    assert (
        whole["digest"] == never["digest"]
    )  # both in fresh processes: other threads may round otherwise
    for change, run in found.items():
        first, then = change.split("-")
        assert run["codes"] == [0] * (int(first) + int(then)) and run["step"] == 13
        assert run["rows"] == whole["rows"]
        np.testing.assert_allclose(run["loss"], whole["loss"], rtol=0, atol=1e-5)
        said = [f"resumed, not bitwise: processes {first} -> {then}"] if first != then else []
        assert run["notes"] == said


def test_fewer_stimuli_a_batch_than_processes_are_refused():
    with pytest.raises(
        ConfigError, match=r"at least 6 stimuli per batch; got 5.*set batch_size=7 or more"
    ):
        Order(len(example.data()["x"]), 5, 0, n_processes=6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_one_hundred_kills_at_random_instants_resume_to_the_bit(fast, processes):
    found = trials("random", fast, 100, processes, 3500)
    print(json.dumps(found))
    assert len(found["reference"]) == 1 and found["kills"] == found["same"] == 100
    assert len(set(found["steps"])) > 20
    assert found["survivor_s"] < 60


@pytest.mark.slow
def test_when_one_of_two_processes_dies_the_other_ends_and_a_restart_resumes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import fit_example as e\n"
        "calls = [0]\n"
        "def loss(model, batch):\n"
        "    calls[0] += 1\n"
        "    if len(sys.argv) > 2 and os.environ['RANK'] == '1' and calls[0] == 9: os._exit(9)\n"
        "    return e.loss_fn(model, batch)\n"
        "r = e.train(sys.argv[1], loss)\n"
        "print('loss', *[h['loss'] for h in r.history])\n"
    )

    def launch(*arguments):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            str(script),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def losses(done):
        assert done.returncode == 0, done.stderr
        return next(row for row in done.stdout.splitlines() if row.startswith("loss"))

    began = time.monotonic()
    dead = launch(str(tmp_path / "a"), "die")
    assert time.monotonic() - began < 90  # the imports of both, and at most 60 s after the death
    assert dead.returncode != 0 and "exitcode" in dead.stderr
    assert checkpoint.newest_step(tmp_path / "a") == 8
    assert losses(launch(str(tmp_path / "a"))) == losses(launch(str(tmp_path / "b")))

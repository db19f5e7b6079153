"""A brain encoder is trained by two processes of one machine, and read by both afterwards."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import two_processes

from bmfl_lab.training import context

SCRIPT = Path(two_processes.__file__)


def scores(folder, name):
    return np.array(ast.literal_eval((folder / f"rank-{name}.txt").read_text()))


def run(command, folder, kind):
    done = subprocess.run(
        [sys.executable, *command, str(SCRIPT), str(folder), kind],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "encoder" / "encoder.json").is_file()
    np.testing.assert_array_equal(scores(folder, 0), scores(folder, 1))
    return scores(folder, 0)


def test_two_processes_train_what_one_process_trains(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    two_processes.train(tmp_path / "one", "roi_query")
    shared = run([], tmp_path / "two", "roi_query")
    np.testing.assert_allclose(shared, scores(tmp_path / "one", "alone"), rtol=0, atol=1e-4)


def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch):
    taken = []
    monkeypatch.setattr(
        context, "pick_device", lambda device: "cuda" if device != "cpu" else device
    )
    monkeypatch.setattr(context.torch.cuda, "set_device", taken.append)
    assert context.local_device() == "cuda" and not taken
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert context.local_device("cpu") == "cpu" and not taken
    assert context.local_device() == "cuda" and taken == [3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["roi_query", "ridge", "ensemble"])
def test_torchrun_ends_for_every_kind_of_encoder(tmp_path, kind):
    run(["-m", "torch.distributed.run", "--nproc-per-node", "2"], tmp_path, kind)

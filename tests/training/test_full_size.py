"""ImageNet's true counts, from study to a resumed training, in memory that does not grow with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("full_size.py")


def run(folder, stage, *sizes, timeout=280):
    """Run a stage, and return what it printed and the step at which it was stopped or None."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), stage, *map(str, sizes)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
    )
    ending = {"killed": -9, "resumed": 143, "store": 143}[stage]
    assert done.returncode == ending, done.stderr
    stopped = [line for line in done.stdout.splitlines() if "stopped at step" in line]
    found = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return found, stopped[0] if stopped else done.stdout


def walk(folder, n_train, n_val, n_vertices, stop, timeout=280):
    """Walk through all stages, and return the peak above names and labels of each in MB."""
    sizes, grown, peaks = (n_train, n_val, n_vertices, stop), {}, {}
    for stage in ("killed", "resumed", "store"):
        found, said = run(folder, stage, *sizes, timeout=timeout)
        assert found["steps"] == stop
        if stage == "killed":
            assert "batches from images, because they are augmented" in said
        if stage == "resumed":  # the checkpoint of half the steps, and as many again
            assert f"stopped at step {stop // 2 + stop:,} of {-(-n_train // 128):,}" in said
        grown[stage], peaks[stage] = found["peak"] - found["names"], found["peak"]
        print(n_train, stage, found)
    return grown, peaks


def test_a_small_walk_is_killed_and_goes_on(tmp_path):
    walk(tmp_path, 2_600, 64, 4_096, 12)


@pytest.mark.slow
def test_memory_at_the_true_counts(tmp_path):
    few, _ = walk(tmp_path / "few", 1_281_167 // 16, 50_000 // 16, 39_548, 200, timeout=3000)
    many, peaks = walk(tmp_path / "many", 1_281_167, 50_000, 39_548, 200, timeout=7200)
    assert max(peaks.values()) < 2_500
    # a permutation of the order, labels and digests of 8 bytes each are beside the names
    assert all(many[stage] < few[stage] + 100 for stage in few)

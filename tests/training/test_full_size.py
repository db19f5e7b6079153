"""ImageNet's true counts, from study to a resumed training, in memory that does not grow with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("full_size.py")


STAGES = ("killed", "resumed", "store")


def walk(folder, n_train, n_val, n_vertices, stop, timeout=280):
    """Walk through all stages, and return their peaks in MB, above names and labels and in all."""
    sizes = map(str, (n_train, n_val, n_vertices, stop))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), ",".join(STAGES), *sizes],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("ended")] == [
        "ended -9",
        "ended 143",
        "ended 143",
    ], done.stderr
    assert any("batches from images, because they are augmented" in line for line in lines)
    # from the checkpoint of half the steps, as many again
    said = f"stopped at step {stop // 2 + stop:,} of {-(-n_train // 128):,}"
    assert any(said in line for line in lines)
    found = [json.loads(line) for line in lines if line.startswith("{")]
    print(n_train, found)
    assert [each["steps"] for each in found] == [stop] * 3
    return [each["peak"] - each["names"] for each in found], [each["peak"] for each in found]


def test_a_small_walk_is_killed_and_goes_on(tmp_path):
    walk(tmp_path, 1_100, 64, 4_096, 4)


@pytest.mark.slow
def test_memory_at_the_true_counts(tmp_path):
    few, _ = walk(tmp_path / "few", 1_281_167 // 16, 50_000 // 16, 39_548, 200, timeout=3000)
    many, peaks = walk(tmp_path / "many", 1_281_167, 50_000, 39_548, 200, timeout=7200)
    assert max(peaks) < 2_500
    # beside the names: the order of the images, and their labels once more
    assert all(a < b + 100 for a, b in zip(many, few))

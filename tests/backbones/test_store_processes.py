"""The feature store between processes: killed extractions go on, and two do the work once."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from extraction_process import failing
from extraction_process import stimuli as noise

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.backbones import tokens as module
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError

PROCESS = Path(__file__).with_name("extraction_process.py")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("vit_tiny14_reg", image_size=28, resize="direct")


def run(root, n, after):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, str(PROCESS), str(root), str(n), str(after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_killed_extraction_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch):
    killed = run(tmp_path / "a", 64, after=41)
    killed.communicate(timeout=280)
    assert killed.returncode == -9
    (partial,) = (tmp_path / "a").glob("*.partial")
    done = json.loads((partial / "progress.json").read_text())["shards"]
    assert 1 <= len(done) <= 2
    monkeypatch.setattr(module, "_SHARD_ROWS", 16)
    backbone = load_backbone("vit_tiny14_reg", image_size=28)
    read = []
    base = noise(64)
    watched = StimulusSet(
        base.name,
        base.ids,
        lambda i: (read.append(i), base.read(i))[1],
        base.digest_of,
        base.labels,
    )
    resumed = FeatureStore(tmp_path / "a").get(backbone, watched, batch_size=8)
    whole = FeatureStore(tmp_path / "b").get(backbone, base, batch_size=8)
    assert sorted(read) == list(range(16 * len(done), 64))
    assert resumed.key == whole.key
    for name in ("cls", "mean", "patches"):
        files = [(tmp_path / s / whole.key / f"{name}.npy").read_bytes() for s in "ab"]
        assert files[0] == files[1]
    assert resumed.manifest["shards"] == whole.manifest["shards"]
    assert not list((tmp_path / "a").glob("*.partial"))


def test_a_damaged_part_is_made_again(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_ROWS", 8)
    base = noise(32)
    with pytest.raises(DataError):
        FeatureStore(tmp_path).get(backbone, failing(base, 30, OSError("gone")), batch_size=4)
    (partial,) = tmp_path.glob("*.partial")
    assert len(json.loads((partial / "progress.json").read_text())["shards"]) >= 1
    array = np.load(partial / "patches.npy", mmap_mode="r+")
    array[3] = 7
    array.flush()
    stored = FeatureStore(tmp_path).get(backbone, base, dtype="float16", batch_size=4)
    assert np.array_equal(
        stored.patches, FeatureStore(tmp_path / "b").get(backbone, base, batch_size=4).patches
    )


def test_two_processes_on_one_store_do_the_work_once(tmp_path):
    both = [run(tmp_path, 300, after=0) for _ in range(2)]
    outputs = [p.communicate(timeout=280) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    assert outputs[0][0].split()[-1] == outputs[1][0].split()[-1]
    assert sum("feature store: patches of 300" in out for out, _ in outputs) == 1


def test_threads_of_one_process_do_the_work_once(tmp_path, backbone, monkeypatch):
    calls = []
    original = FeatureStore._extract
    monkeypatch.setattr(
        FeatureStore, "_extract", lambda self, *a: (calls.append(1), original(self, *a))
    )
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(FeatureStore(tmp_path).get(backbone, noise(50)))
        )
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(calls) == 1
    assert all(np.array_equal(f.patches, found[0].patches) for f in found)
    assert len(found) == 3

"""A process that may hold few files open still reads many images, stores and studies."""

import os
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.training import study_backbone
from bmfl_lab.training.batches import ImageBatches

ROOT = Path(__file__).resolve().parents[1]
FILES = 64
"""How many files the process may hold open; a study has several times as many."""

READ_ALL = f"""
import resource, sys
import torch, pandas, scipy.stats, PIL.Image
from pathlib import Path
import numpy as np
import bmfl_lab.data.study, bmfl_lab.data.demo, bmfl_lab.training
from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore, load_backbone
backbone = load_backbone("vit_tiny14_reg", image_size=28)
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
root = Path(sys.argv[1])
study = load_study(root / "set")
store = FeatureStore(root / "store")
for repeat in range(3):
    for name, stimuli in study.sets.items():
        for block in range(3):
            store.get(backbone, stimuli, "pooled:1", block=block, batch_size=8)
study.summary()
print("ok", sum(map(len, study.sets.values())))
"""

OPEN_AND_CLOSE = """
import os, sys, warnings
warnings.simplefilter("error", ResourceWarning)
import nibabel, numpy as np
from bmfl_lab.data.containers import load_image
folder, values = sys.argv[1], np.arange(120, dtype=np.float32).reshape(4, 5, 6)
kept, raised = [], []
for name, kind in (("a.nii", nibabel.Nifti1Image), ("a.nii.gz", nibabel.Nifti1Image),
                   ("a.mgh", nibabel.MGHImage), ("a.mgz", nibabel.MGHImage)):
    nibabel.save(kind(values, np.eye(4)), f"{folder}/{name}")
    sys.unraisablehook = raised.append
    kept.append(load_image(f"{folder}/{name}", "it"))
    assert np.array_equal(kept[-1], values)
    sys.unraisablehook = sys.__unraisablehook__
links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
held = [t for t in (os.readlink(p) for p in links if os.path.lexists(p)) if t.startswith(folder)]
mapped = [line for line in open("/proc/self/maps") if folder in line]
print(held, mapped, raised)
"""


def run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )


def test_a_study_of_many_images_needs_few_open_files(tmp_path):
    generator = np.random.default_rng(0)
    for label in ("bird", "cat"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(150):
            pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{i}.png")
    done = run(READ_ALL, tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "ok 300", done.stderr[-2000:]


def test_files_of_nibabel_are_closed(tmp_path):
    done = run(OPEN_AND_CLOSE, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[] [] []"


def test_worker_processes_share_no_memory_through_files(monkeypatch):
    # a container often has 64 MB of /dev/shm, through which workers send tensors but not arrays
    def refuse(tensor):
        raise AssertionError("a tensor crosses processes")

    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.Tensor, refuse)
    study = load_study("planted", n_encoder=9, n_encoder_val=4, n_encoder_test=4)
    train, backbone = study.set("train"), study_backbone(study.backbone, "cpu")
    batches = ImageBatches(train, BMFL(backbone=backbone), workers=1)
    rows = np.arange(len(train))
    batches.expect([(0, rows)])
    here = ImageBatches(train, BMFL(backbone=backbone), workers=0).take(rows)
    np.testing.assert_array_equal(batches.take(rows)["cls"], here["cls"])
    with pytest.raises(AssertionError, match="crosses processes"):
        ForkingPickler.dumps(torch.zeros(3))

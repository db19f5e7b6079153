"""The benchmark command: what it counts is right, and the main job needs no plotting, notebook or surface package."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import bench_stages as benchmark
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bmfl_lab.backbones import load_backbone

ROOT = Path(__file__).resolve().parents[2]
UNNEEDED = (
    "papermill",
    "nilearn",
    "nibabel",
    "plotly",
    "jupyterlab",
    "ipykernel",
    "ipywidgets",
    "anywidget",
    "IPython",
)
UNNEEDED += ("matplotlib", "himalaya", "rsatoolbox", "transformers", "torchvision", "timm")


@pytest.mark.parametrize("name", ["vit_tiny14", "vit_tiny14_reg", "dinov2_vits14"])
def test_the_operations_are_those_torch_counts(name):
    backbone = load_backbone(name, weights="random", image_size=42)
    with FlopCounterMode(display=False) as counter:
        # with weights, because torch does not count its fused attention on a CPU
        backbone(torch.zeros(1, 3, 42, 42), blocks=range(backbone.n_blocks), attention=True)
    assert benchmark.forward_flops(backbone, 42) == counter.get_total_flops()


def test_rates_are_positive_and_paired():
    rates, ceilings = benchmark.forward_rate(
        load_backbone("vit_tiny14", image_size=28), 28, n=2, batch=2
    )
    assert rates.shape == ceilings.shape == (2,) and np.all(rates > 0) and np.all(ceilings > 1e8)


def test_a_stage_knows_its_own_peak_memory(capsys):
    found = []
    with benchmark.measured(found, "large") as count:
        # pages of its own: memory that this process has kept free would not raise the peak
        block = mmap.mmap(-1, 240_000_000)
        np.frombuffer(block, np.uint8)[:] = 1
        count["n"] = 3
    block.close()
    with benchmark.measured(found, "small"):
        pass
    large, small = found
    assert large.n == 3 and large.memory_mb - small.memory_mb > 200
    assert "large: " in capsys.readouterr().out
    table = benchmark.stage_table(found)
    assert "| large | 3 |" in table and table.splitlines()[-1].startswith("| all |")


def test_a_wrong_choice_is_one_line(capsys):
    assert benchmark.main(["--device", "tpu"]) == 2
    assert "a device among" in capsys.readouterr().err
    assert benchmark.main(["-n", "0"]) == 2
    assert "at least one repetition" in capsys.readouterr().err


def test_the_main_job_runs_where_only_the_numerical_packages_are(tmp_path):
    code = (
        f"import sys; sys.path.append({str(ROOT / 'tests' / 'benchmarks')!r})\n"
        f"for name in {UNNEEDED!r}: sys.modules[name] = None\n"
        "import bench_stages as benchmark\n"
        "stages, study, rate = benchmark.main_job('planted', 'cpu', epochs=1, encoder='ridge', n_encoder=60,\n"
        "    n_encoder_val=20, n_encoder_test=20, n_test=20, n_ood=20)\n"
        "print(benchmark.stage_table(stages)); print(benchmark.backbone_table(study, 'cpu', [56], 1, rate))\n"
    )
    environment = {
        **os.environ,
        "BMFL_HOME": str(tmp_path),
        "BMFL_HEADLESS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for stage in (
        "study load",
        "feature extraction",
        "brain encoder",
        "attribute",
        "training of fusion",
        "evaluation",
    ):
        assert f"| {stage}" in done.stdout
    assert "from images to the store" in done.stdout

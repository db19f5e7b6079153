"""Compare costs with their bounds: extraction into the store, two processes, and more images.

    python tests/benchmarks/bench_scale.py [-n 3] [--images 256]

Store: time from images in memory to tokens in the feature store, divided by the time of the
backbone alone on the same pixels. Processes: time of an epoch of training on images with one
process of one thread, divided by that of two such processes (torchrun). Images: time per image of
an epoch with 4 and 16 times as many images, divided by that with the first number; the work per
image is made small, so that a cost that grows with the number of images would show. Both sides of
a ratio are measured in turns; the table shows median, lowest and highest ratio of n turns.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.config import replace
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.training import LoopConfig, train_fusion
from bmfl_lab.training.recipes import tiny

SIDE = 126


def generated(name: str, n: int) -> StimulusSet:
    """Return n images of ten classes that are made from their index."""
    return StimulusSet(
        name=name,
        ids=np.array([f"{name}-{i}" for i in range(n)], object),
        read=lambda i: np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
        digest_of=lambda i: f"{i:064x}",
        labels=np.arange(n) % 10,
        class_names=tuple("abcdefghij"),
    )


def epoch(n: int, backbone: str, size: int, folder: str | Path) -> float:
    """Return the seconds of one epoch of training on n generated images."""
    network = load_backbone(backbone, "random", image_size=size)
    sets = {"train": generated("train", n), "val": generated("val", 16)}
    study = Study("generated", "generated images", sets | {"test": generated("test", 16)})
    loop = LoopConfig(epochs=1, batch_size=32)
    config = replace(tiny(head="backbone", loop=loop), augment="crop_flip")
    where = {"store": FeatureStore(Path(folder) / "features"), "folder": Path(folder) / "model"}
    start = time.perf_counter()
    train_fusion(config, study, backbone=network, device="cpu", **where)
    return time.perf_counter() - start


def in_processes(count: int, n: int) -> float:
    """Return the seconds of an epoch in `count` processes of one thread, without their start."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(count), __file__, "--images", str(n), "--epoch"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, folder], env=environment, capture_output=True, text=True, check=True
        )
    return max(map(float, re.findall(r"^seconds (\S+)$", done.stdout, re.MULTILINE)))


def store_ratio(n: int) -> float:
    """Return the time of an extraction into the store over that of the backbone alone."""
    network = load_backbone("dinov2_vits14", "random", image_size=SIDE)
    stimuli = generated("stored", n)
    pixels = torch.stack([network.preprocess(stimuli.image(i)) for i in range(n)])
    start = time.perf_counter()
    with torch.inference_mode():
        for part in pixels.split(32):
            network(part)
    alone = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        FeatureStore(folder).get(network, stimuli, "patches", batch_size=32)
        return (time.perf_counter() - start) / alone


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epoch", help=argparse.SUPPRESS)  # what a process of torchrun does
    options = parser.parse_args()
    if options.epoch:
        print(f"seconds {epoch(options.images, 'dinov2_vits14', SIDE, options.epoch)}")
        return
    found: dict[str, list[float]] = {}
    for _ in range(options.n):
        with tempfile.TemporaryDirectory() as folder:
            epoch(options.images, "vit_tiny14", 28, f"{folder}/first")  # the libraries start
            times = [
                epoch(options.images * k, "vit_tiny14", 28, f"{folder}/{k}") / k for k in (1, 4, 16)
            ]
        row = {
            "store, time against the backbone alone": store_ratio(options.images),
            "one process, time against two": in_processes(1, options.images)
            / in_processes(2, options.images),
            "4 times as many images, time per image": times[1] / times[0],
            "16 times as many images, time per image": times[2] / times[0],
        }
        for name, ratio in row.items():
            found.setdefault(name, []).append(ratio)
    print(f"| {options.images} images, {os.cpu_count()} cores | ratio | lowest | highest |")
    print("|---|---|---|---|")
    for name, ratios in found.items():
        print(f"| {name} | {np.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")


if __name__ == "__main__":
    main()

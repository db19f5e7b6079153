"""Compare images as the source of batches with the parts they are made of, as ratios in one run.

    python tests/benchmarks/bench_images.py [-n 5] [--images 2048] [--workers 1]

Decoding: rate of the loader with W workers, divided by W times the rate of decoding and cropping
the same JPEG files in this process. Step: time with W workers, divided by the sum of its parts,
decoding (over W) and the backbone alone on pixels in memory, and by the longer of them, which is
what no overlap can beat. The loader includes the start of its workers. All are measured in turns;
the table shows median, lowest and highest ratio of n turns.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bmfl_lab.backbones import load_backbone
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.training.batches import ImageBatches

BATCH = 32


def photographs(folder: Path, n: int) -> StimulusSet:
    """Write JPEG files of 500 x 375 pixels, smooth as photographs are, and return their set."""
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        coarse = np.random.default_rng(i).integers(0, 256, (47, 63, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return from_files("photographs", paths, [p.stem for p in paths], np.zeros(n, int))


def seconds(action) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    backbone = load_backbone("vit_tiny14", "random", image_size=224)
    path, workers = BMFL(backbone=backbone), options.workers
    with tempfile.TemporaryDirectory() as folder:
        stimuli = photographs(Path(folder), options.images)
        rows = np.array_split(np.arange(len(stimuli)), -(-len(stimuli) // BATCH))
        batches = ImageBatches(stimuli, path, workers=workers)
        pixels = torch.stack([backbone.preprocess(stimuli.image(int(i))) for i in rows[0]])

        def load() -> None:
            batches.expect((0, r) for r in rows)
            for r in rows:
                batches._take_pixels(r)
            batches.expect(())

        def step() -> None:
            batches.expect((0, r) for r in rows)
            for r in rows:
                batches.take(r)
            batches.expect(())

        def compute() -> None:
            for _ in rows:
                path.tokens(pixels)

        def decode() -> None:
            for i in range(len(stimuli)):
                backbone.preprocess.crop(stimuli.image(i))

        found: dict[str, list[float]] = {
            "decoding, rate": [],
            "online step, time against the sum of its parts": [],
            "online step, time against the longer part": [],
        }
        for _ in range(options.n):
            alone, loaded, network, online = map(seconds, (decode, load, compute, step))
            parts = alone / workers, network
            ratios = alone / workers / loaded, online / sum(parts), online / max(parts)
            for row, ratio in zip(found.values(), ratios):
                row.append(ratio)
    print(
        f"| with {workers} worker(s) on {len(os.sched_getaffinity(0))} cores | ratio | lowest | highest |"
    )
    print("|---|---|---|---|")
    for name, ratios in found.items():
        print(f"| {name} | {np.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")


if __name__ == "__main__":
    main()

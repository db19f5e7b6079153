"""Ridge encoders of NOD's true size, subject after subject in one process: time and memory of each.

Every subject has 1,000 x 59,412 generated responses, planted with noise on the mean colours of the
quarters of 1,000 shared images, so that a validation r far from zero shows that rows and images
were paired. The tokens are those of a network with random weights, by default DINOv2 ViT-S/14, and images of 28 px; the
encoder reads a 2 x 2 grid of its patches.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_nod_encoders.py [--subjects 30]
    [--penalties 20] [--backbone NAME] [--folder F]

Exits with 1 if the memory in use after the last subject is more than 0.05 GiB, a quarter of one
subject's responses, above that after the second one.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import replace
from bmfl_lab.data import Atlas, Study, Subject
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.training import train_brain_encoder
from bmfl_lab.training.encoder import base

N, LEFT, RIGHT, SIDE = 1000, 29_696, 29_716, 28
SPLITS = {"train": np.arange(800), "val": np.arange(800, 900), "test": np.arange(900, N)}


def person(number: int, stimuli, drivers: np.ndarray) -> Subject:
    """Return a subject whose vertices follow random mixtures of the drivers, and as much noise."""
    draw = np.random.default_rng(number)
    mixing = draw.standard_normal((drivers.shape[1], LEFT + RIGHT), dtype=np.float32)
    responses = drivers @ (mixing / np.float32(np.sqrt(drivers.shape[1])))
    for start in range(0, N, 100):
        noise = draw.standard_normal((100, LEFT + RIGHT), dtype=np.float32)
        responses[start : start + 100] += noise
    hemisphere = np.repeat(np.arange(2, dtype=np.int8), [LEFT, RIGHT])
    atlas = Atlas(hemisphere, {"V1": np.arange(LEFT + RIGHT) % 50 == 0})
    return Subject(f"made-{number}", stimuli, responses, atlas, SPLITS, kind="simulated")


def resident() -> float:
    """Return the memory in use by this process, in GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--subjects", type=int, default=30)
    parser.add_argument("--folder", help="where to work; by default the temporary folder")
    parser.add_argument("--backbone", default="dinov2_vits14_reg", help="random weights")
    parser.add_argument("--penalties", type=int, help="of the grid; by default all, which is slow")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        return run(place, options.subjects, options.penalties, options.backbone)
    finally:
        shutil.rmtree(place)


def run(place: Path, n_subjects: int, n_penalties: int | None, backbone: str) -> int:
    pixels = np.random.default_rng(0).integers(0, 255, (N, SIDE, SIDE, 3), dtype=np.uint8)
    stimuli = from_arrays("shared", pixels, [f"{i:04d}" for i in range(N)], np.full(N, -1))
    store, spec = (
        FeatureStore(place / "features"),
        BackboneSpec(backbone, "random:0", SIDE),
    )
    drivers = pixels.reshape(N, 2, SIDE // 2, 2, SIDE // 2, 3).mean((2, 4)).reshape(N, -1)
    drivers = ((drivers - drivers.mean(0)) / drivers.std(0)).astype(np.float32)
    config = base("ridge")
    step = 1 if n_penalties is None else max(1, len(config.alphas) // n_penalties)
    config = replace(config, alphas=config.alphas[::-step][:n_penalties][::-1])
    print(f"{len(config.alphas)} penalties, {config.n_folds} folds")
    used, seconds = [], []
    print("subject  seconds  CPU-s  GiB after  peak GiB  validation r", flush=True)
    for number in range(n_subjects):
        who = person(number, stimuli, drivers)
        study = Study("bench", "generated", {}, {who.name: who}, backbone=spec)
        start, cpu = time.perf_counter(), time.process_time()
        encoder = train_brain_encoder(
            config, study, store=store, folder=place / "encoder", device="cpu"
        )
        seconds.append(time.perf_counter() - start)
        r = float(np.nanmean(encoder.scores))
        shutil.rmtree(place / "encoder")
        spent = time.process_time() - cpu
        del who, study, encoder
        used.append(resident())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = f"{number + 1:7d} {seconds[-1]:8.0f} {spent:6.0f} {used[-1]:10.2f} {peak:9.2f}"
        print(f"{row} {r:13.3f}", flush=True)
    growth = used[-1] - used[min(1, len(used) - 1)]
    print(f"memory after the last subject against after the second: {growth:+.2f} GiB")
    return int(growth > 0.05)


if __name__ == "__main__":
    sys.exit(main())

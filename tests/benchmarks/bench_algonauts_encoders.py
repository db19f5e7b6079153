"""An Algonauts folder of subject 1's true size: read, train ridge and ROI queries, evaluate; time and peak memory.

The images are small and few differ; the responses are planted on them with noise, so that a score
far from zero shows that rows and images were paired.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_algonauts_encoders.py [--folder F] [--backbone
    NAME] [--epochs 3]

``vit_tiny14`` (random weights) needs no download; ``dinov2_vits14_reg`` takes the weights of the
cache. Needs about 5 GB in the folder, deleted at the end.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_algonauts import LEFT, RIGHT, N, make

from bmfl_lab import load_study
from bmfl_lab.config import replace
from bmfl_lab.data import algonauts
from bmfl_lab.training.encoder import base as preset

SIDE = 56


def plant(subject) -> None:
    """Replace the noise by a response to the image plus noise of three times its variance, in place."""
    generator = np.random.default_rng(1)
    pattern = generator.standard_normal((64, LEFT + RIGHT), dtype=np.float32)
    for start in range(0, N, 512):
        rows = np.arange(start, min(start + 512, N))
        subject.responses[rows] = 0.5 * pattern[rows % 64] + np.sqrt(0.75) * subject.responses[rows]


def measured(what: str, job):
    start, cpu = time.perf_counter(), time.process_time()
    found = job()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = f"{time.perf_counter() - start:.0f} s ({time.process_time() - cpu:.0f} CPU-s)"
    print(f"{what}: {seconds}, peak so far {peak:.2f} GiB", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", help="where to work; by default the temporary folder")
    parser.add_argument("--backbone", default="vit_tiny14")
    parser.add_argument(
        "--epochs", type=int, default=3, help="of the ROI queries; the preset has 15"
    )
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        pid = os.fork()  # making the folder must not count in the peak
        if not pid:
            subject = make(place / "made.npy")
            plant(subject)
            algonauts.write_subject(place / "subj01", subject)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("the folder could not be made")
        (place / "made.npy").unlink()
        # every tenth image is one of the shared ones, as NSD's own table would say
        names = sorted(p.stem for p in (place / "subj01/training_split/training_images").iterdir())
        rows = [f"{int(n.split('-')[-1])},{i % 10 == 0}" for i, n in enumerate(names)]
        (place / "nsd_stim_info_merged.csv").write_text("\n".join(["nsdId,shared1000", *rows]))
        run(place, options.backbone, options.epochs)
    finally:
        shutil.rmtree(place)


def run(place: Path, name: str, epochs: int) -> None:
    from bmfl_lab.backbones import FeatureStore, load_backbone
    from bmfl_lab.evaluation import evaluate_encoder
    from bmfl_lab.training import train_brain_encoder

    weights = "random:0" if name == "vit_tiny14" else None
    options = {"backbone": name, "weights": weights, "image_size": SIDE, "cache": place / "cache"}
    study = measured("read", lambda: load_study(place / "subj01", **options))
    subject = study.subject()
    print(
        subject.responses.shape,
        {k: len(v) for k, v in subject.splits.items()},
        subject.info["split"]["method"],
    )
    backbone, store = (
        load_backbone(name, weights, image_size=SIDE),
        FeatureStore(place / "features"),
    )
    wanted = [("patches", -1), ("pooled:2", -1)]
    measured(
        f"tokens of {name}, {SIDE} px", lambda: store.get_many(backbone, subject.stimuli, wanted)
    )
    queries = preset("roi_query")
    if name == "vit_tiny14":
        queries = replace(queries, n_heads=8)
    configs = {
        "ridge": preset("ridge"),
        f"ROI queries, {epochs} of {queries.loop.epochs} epochs": replace(
            queries, loop=replace(queries.loop, epochs=epochs)
        ),
    }
    for what, config in configs.items():
        where = {"store": store, "device": "cpu", "folder": place / "encoders" / config.kind}
        encoder = measured(
            f"train {what}", lambda c=config, w=where: train_brain_encoder(c, study, **w)
        )
        result = measured(
            f"evaluate {what}",
            lambda e=encoder: evaluate_encoder(e, study, store=store, n_boot=100, device="cpu"),
        )
        r = result.table().set_index("roi").loc["all"]
        print(
            f"  test r, all vertices: {r['pearson_r']:.4f} [{r['ci_low']:.4f}, {r['ci_high']:.4f}], noise allows 0.5"
        )


if __name__ == "__main__":
    main()

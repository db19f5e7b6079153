"""An Algonauts folder of subject 1's true size: read, train ridge and ROI queries, evaluate; time and peak memory.

The images are small and few differ; the responses are planted on them with noise, so that a score far from zero shows
that rows and images were paired. Usage: ``python tests/benchmarks/bench_algonauts_encoders.py [FOLDER] [BACKBONE]``;
needs about 4 GB in FOLDER.
"""

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_algonauts import LEFT, RIGHT, N, make

from bmfl_lab import load_study
from bmfl_lab.config import replace
from bmfl_lab.data import algonauts

EPOCHS = 2


def plant(subject) -> None:
    """Replace the noise by a response to the image plus noise of three times its variance, in place."""
    generator = np.random.default_rng(1)
    pattern = generator.standard_normal((64, LEFT + RIGHT), dtype=np.float32)
    for start in range(0, N, 512):
        rows = np.arange(start, min(start + 512, N))
        subject.responses[rows] = 0.5 * pattern[rows % 64] + np.sqrt(0.75) * subject.responses[rows]


def measured(what: str, job):
    start = time.perf_counter()
    found = job()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.perf_counter() - start:.1f} s, peak so far {peak:.2f} GiB", flush=True)
    return found


def main() -> None:
    base = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    os.environ["BMFL_HOME"] = str(base / "home")
    name = sys.argv[2] if len(sys.argv) > 2 else "vit_tiny14"
    try:
        pid = os.fork()  # making the folder must not count in the peak
        if not pid:
            subject = make(base / "made.npy")
            plant(subject)
            algonauts.write_subject(base / "subj01", subject)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("the folder could not be made")
        (base / "made.npy").unlink()
        run(base, name)
    finally:
        shutil.rmtree(base)


def run(base: Path, name: str) -> None:
    from bmfl_lab.backbones import FeatureStore, load_backbone
    from bmfl_lab.evaluation import evaluate_encoder
    from bmfl_lab.training import train_brain_encoder
    from bmfl_lab.training.encoder_config import EncoderConfig, tiny

    weights = "random:0" if name == "vit_tiny14" else None
    options = {"backbone": name, "weights": weights, "image_size": 56, "cache": base / "cache"}
    study = measured("read", lambda: load_study(base / "subj01", **options))
    print(study.subject().responses.shape, {k: len(v) for k, v in study.subject().splits.items()})
    backbone, store = load_backbone(name, weights, image_size=56), FeatureStore()
    wanted = [("patches", -1), ("pooled:2", -1)]
    measured(f"tokens of {name}", lambda: store.get_many(backbone, study.subject().stimuli, wanted))
    configs = {
        "ridge on a 2 x 2 grid": EncoderConfig(kind="ridge", tokens="pooled:2"),
        f"ROI queries, {EPOCHS} epochs": replace(tiny(), loop=replace(tiny().loop, epochs=EPOCHS)),
    }
    for what, config in configs.items():
        encoder = measured(f"train {what}", lambda c=config: train_brain_encoder(c, study, store=store, device="cpu"))
        result = measured(
            f"evaluate {what}",
            lambda e=encoder: evaluate_encoder(e, study, store=store, n_boot=20, device="cpu"),
        )
        r = result.table().set_index("roi").loc["all"]
        print(f"  test r, all vertices: {r['pearson_r']:.4f} [{r['ci_low']:.4f}, {r['ci_high']:.4f}], ceiling 0.5")


if __name__ == "__main__":
    main()

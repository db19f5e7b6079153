"""Many small fusion models at once against one by one: CPU seconds of both in one process, and their ratio.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_ensemble.py [n_models ...]

Tokens and responses are random numbers of the sizes of the planted study, of many models of the
demo study (preset quick), and of the demo study with all patches.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import numpy as np
import torch

from bmfl_lab import config as configs
from bmfl_lab.data.study import load_study
from bmfl_lab.training import recipes
from bmfl_lab.training.ensemble import Job, train_fusions

SIZES = {
    "planted: 16 x 48, batch 32, width 32": (16, 48, recipes.tiny(), 5),
    "demo, quick: 16 x 384, batch 64, width 32": (16, 384, recipes.quick(kind="patches"), 2),
    "demo: 49 x 384, batch 128, width 64": (49, 384, recipes.small(), 1),
}


class RandomTokens:
    """Stands for the feature store, so that only training is timed."""

    def __init__(self, n_patches: int, width: int):
        random = np.random.default_rng(0)
        self.cls = random.standard_normal((400, width), dtype=np.float32).astype(np.float16)
        self.patches = random.standard_normal((400, n_patches, width), dtype=np.float32).astype(
            np.float16
        )

    def get_many(self, backbone, stimuli, wanted):
        """Return as many tokens as there are stimuli, once for each kind wanted."""
        n = len(stimuli)
        return [
            SimpleNamespace(cls=self.cls[:n], patches=self.patches[:n], grid=(4, 4)) for _ in wanted
        ]


def main(counts: list[int]) -> None:
    """Print one row a size and number of models."""
    study = load_study(
        "planted",
        n_encoder=8,
        n_encoder_val=4,
        n_encoder_test=4,
        n_train=256,
        n_val=64,
        n_test=4,
        n_ood=4,
    )
    atlas = study.subject().atlas
    values = np.random.default_rng(1).standard_normal((400, atlas.n_vertices)).astype(np.float32)

    def source(stimuli, tokens):
        return values[: len(stimuli)]

    print(f"{torch.get_num_threads()} threads, {len(study.set('train'))} images")
    print(f"{'size':44s} models   one by one, s   at once, s   ratio")
    for name, (n_patches, width, config, epochs) in SIZES.items():
        config = configs.replace(config, loop=configs.replace(config.loop, epochs=epochs))
        jobs = [
            Job("fusion", config, seed=s, brain=source, atlas=atlas) for s in range(max(counts))
        ]
        options = {"store": RandomTokens(n_patches, width), "device": "cpu"}
        train_fusions(jobs[:2], study, at_once=2, **options)
        for count in counts:
            seconds = []
            for at_once in (1, count):
                start = time.process_time()
                train_fusions(jobs[:count], study, at_once=at_once, **options)
                seconds.append(time.process_time() - start)
            print(
                f"{name:44s} {count:6d}   {seconds[0]:13.2f}   {seconds[1]:10.2f}   {seconds[0] / seconds[1]:5.2f}"
            )


if __name__ == "__main__":
    main([int(v) for v in sys.argv[1:]] or [5, 16])

"""Many small fusion models at once against one by one: seconds of both in one process, and their ratio.

OMP_NUM_THREADS=2 python tests/benchmarks/bench_ensemble.py [planted|demo] [n_models ...]
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.training import recipes
from bmfl_lab.training.ensemble import Job, train_fusions


def main(name: str, counts: list[int]) -> None:
    """Print one row a number of models."""
    if name == "planted":
        study = load_study("planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_test=40, n_ood=40)
        config, store = recipes.tiny(kind="pooled:4"), FeatureStore(tempfile.mkdtemp())
    else:
        study, config, store = load_study("demo"), recipes.small(kind="patches"), FeatureStore()
    config = configs.replace(config, loop=configs.replace(config.loop, epochs=5 if name == "planted" else 1))
    atlas = study.subject().atlas
    values = np.random.default_rng(0).standard_normal((2000, atlas.n_vertices)).astype(np.float32)

    def source(stimuli, tokens):
        return values[: len(stimuli)]

    jobs = [Job("fusion", config, seed=s, brain=source, atlas=atlas) for s in range(max(counts))]
    train_fusions(jobs[:1], study, store=store, device="cpu")
    print(f"{name}: {torch.get_num_threads()} threads, {len(study.set('train'))} images, {config.loop.epochs} epochs")
    print("models   one by one, s   at once, s   ratio")
    for count in counts:
        seconds = []
        for at_once in (1, count):
            start = time.process_time()
            if at_once == 1:
                for job in jobs[:count]:
                    recipes.train_fusion(
                        config, study, brain=source, atlas=atlas, store=store, device="cpu", seed=job.seed
                    )
            else:
                train_fusions(jobs[:count], study, store=store, device="cpu", at_once=count)
            seconds.append(time.process_time() - start)
        print(f"{count:6d}   {seconds[0]:13.2f}   {seconds[1]:10.2f}   {seconds[0] / seconds[1]:5.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "planted", [int(v) for v in sys.argv[2:]] or [4, 16])

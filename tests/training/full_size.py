"""Stages of a training at a given size: ``python full_size.py FOLDER STAGES N_TRAIN N_VAL N_VERTICES STOP``.

The images are made from their index. The stages are "killed" (dies of SIGKILL at step STOP),
"resumed" (goes on from the checkpoint and is stopped after STOP steps) and "store" (the same from
mapped tokens, stopped at step STOP). Each prints as JSON the memory in MB that names and labels take
above the start of the process, the peak above it, and the number of steps.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore, Preprocess, map_tokens, wrap
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.evaluation import power_statement
from bmfl_lab.runtime import peak_memory_mb
from bmfl_lab.training import LoopConfig, train_fusion
from bmfl_lab.training import fusion as recipe
from bmfl_lab.training.recipes import tiny
from bmfl_lab.training.sources import projection_source

N_CLASSES = 1000


def images(name, n):
    """Return n images that are made from their index; names have the length of ImageNet's."""
    return StimulusSet(
        name=name,
        ids=np.array([f"n{i % N_CLASSES:08d}/n{i:08d}_{name}.JPEG" for i in range(n)], object),
        read=lambda i: np.full((32, 32, 3), i % 256, np.uint8),
        digest_of=lambda i: f"{i:064x}",
        labels=np.arange(n) % N_CLASSES,
        class_names=tuple(f"n{i:08d}" for i in range(N_CLASSES)),
    )


def main(folder, stage, n_train, n_val, n_vertices, stop):
    """Train, note the steps, and end at one of them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 14, stride=14), nn.GELU())
    backbone = wrap(net, preprocess=Preprocess(image_size=28), tokens=map_tokens, name="toy")
    torch.randn(9, 9) @ torch.randn(9, 9)  # the libraries have started
    start = peak_memory_mb()
    sets = {"train": images("train", n_train), "val": images("val", n_val)}
    sets["test"] = sets["val"].subset(np.arange(n_val), name="test")
    study = Study("full", "generated images", sets)
    names = peak_memory_mb() - start
    study.fingerprint()
    power_statement(study, {"seeds": [0]})
    steps, original = 0, recipe._loss

    def counted(*arguments, **options):
        nonlocal steps
        steps += 1
        if steps == stop:
            found = {"names": names, "peak": peak_memory_mb() - start, "steps": steps}
            print(json.dumps(found), flush=True)
            os.kill(os.getpid(), signal.SIGKILL if stage == "killed" else signal.SIGTERM)
        return original(*arguments, **options)

    recipe._loss = counted
    loop = LoopConfig(epochs=1, batch_size=128, checkpoint_every=stop // 2)
    online = stage != "store"
    config = tiny(head="fusion" if online else "backbone", tokeniser="patch", patch=2048, loop=loop)
    train_fusion(
        configs.replace(config, augment="crop_flip" if online else "none"),
        study,
        backbone=backbone,
        brain=projection_source(n_vertices) if online else None,
        store=FeatureStore(folder / "features"),
        folder=folder / ("online" if online else "store"),
        device="cpu",
        batches="auto" if online else "store",
    )


if __name__ == "__main__":
    for stage in sys.argv[2].split(","):
        child = os.fork()  # all stages share the imports
        if not child:
            main(Path(sys.argv[1]), stage, *map(int, sys.argv[3:]))
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

"""Extracts tokens in a process of its own, for tests that kill it or let two of them meet.

Arguments: store folder, number of images, number of images after which the process kills itself (0
for never).
"""

import os
import signal
import sys
import time

import numpy as np

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.backbones import tokens as module
from bmfl_lab.data.stimuli import StimulusSet, from_arrays


def stimuli(n):
    """Return n small random images."""
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return from_arrays("noise", images, [f"n{i}" for i in range(n)], np.zeros(n, dtype=int))


def deadly(base, after):
    """Return `base` with an image whose reading kills the process after shards are on disk."""

    def read(i):
        if i == after:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return base.read(i)

    return StimulusSet(base.name, base.ids, read, base.digest_of, base.labels)


def failing(base, position, error):
    """Return `base` with one image that cannot be read."""

    def read(i):
        if i == position:
            raise error
        return base.read(i)

    return StimulusSet(base.name, base.ids, read, base.digest_of, base.labels, paths=base.paths)


if __name__ == "__main__":
    root, n, after = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    module._SHARD_ROWS = 16
    images = stimuli(n)
    images = deadly(images, after) if after else images
    stored = FeatureStore(root).get(
        load_backbone("vit_tiny14_reg", image_size=28), images, "patches", batch_size=8
    )
    print(stored.key)

"""Measure how many images per second this machine computes and decodes, for plans."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from bmfl_lab.backbones import Backbone
from bmfl_lab.data.images import decode_bytes
from bmfl_lab.runtime import use_bfloat16
from bmfl_lab.training.batches import default_workers

JPEG = (500, 375)
"""Width and height of a typical image of ImageNet in pixels."""


def computed_per_second(backbone: Backbone, device: str) -> float:
    """Return how many images per second a backbone takes, in the number type of a training.

    Parameters
    ----------
    backbone : Backbone
        Its weights do not matter.
    device : "cpu" or "cuda"
    """
    side, kind = backbone.image_size, torch.device(device).type
    backbone = backbone.to(device=device)
    batch = torch.zeros(256 if kind == "cuda" else 4, 3, side, side, device=device)

    def compute() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(kind, torch.bfloat16, enabled=use_bfloat16("auto", kind)),
        ):
            backbone(batch).cls.sum().item()

    return len(batch) / _seconds(compute)


def decoded_per_second(backbone: Backbone, n: int) -> tuple[float, int]:
    """Return how many images per second are decoded for n images, and by how many processes.

    Parameters
    ----------
    backbone : Backbone
        Its preprocessing crops the images.
    n : int
        Number of images.
    """
    coarse = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    smooth, stream = Image.fromarray(coarse).resize(JPEG, Image.Resampling.BICUBIC), io.BytesIO()
    smooth.save(stream, "JPEG", quality=90)
    workers = max(1, default_workers(n))
    spent = _seconds(lambda: backbone.preprocess.crop(decode_bytes(stream.getvalue())))
    return workers / spent, workers


def _seconds(action: Callable[[], object]) -> float:
    """Return the shortest of three durations in seconds, after one call to warm up."""
    found = []
    for _ in range(4):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return min(found[1:])

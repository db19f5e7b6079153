"""Measure how long the parts of a training take per image on this machine, for plans."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bmfl_lab.backbones import Backbone
from bmfl_lab.backbones.tokens import array_shapes
from bmfl_lab.config import replace
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.images import decode_bytes
from bmfl_lab.losses import fusion_loss
from bmfl_lab.models.build import FusionConfig, build_fusion
from bmfl_lab.runtime import use_bfloat16
from bmfl_lab.training.batches import default_workers
from bmfl_lab.training.encoder import EncoderConfig, build_roi_query, encoder_loss

JPEG = (500, 375)
"""Width and height of a typical image of ImageNet in pixels."""
_MOST_ON_CPU = 64
"""Images of a measured batch on a CPU (our choice); larger ones take as long per image there."""


@dataclass(frozen=True)
class Seconds:
    """Seconds per image of each part of a training; 0 for a part that is not there.

    Parameters
    ----------
    decoded, computed : float
        Decoding by all processes together, and the backbone.
    encoder_step, responded : float
        A training step of the brain encoder, and its prediction.
    fusion_step, classified : float
        A training step of the fusion, and its classification.
    """

    decoded: float
    computed: float
    encoder_step: float
    responded: float
    fusion_step: float
    classified: float

    @property
    def read(self) -> float:
        """Seconds per image until its tokens are there: decoding goes on beside the backbone."""
        return max(self.decoded, self.computed)

    @property
    def read_and_responded(self) -> float:
        """Seconds per image until its predicted responses are there."""
        return max(self.decoded, self.computed + self.responded)


def measure(
    backbone: Backbone,
    fusion: FusionConfig,
    encoder: EncoderConfig,
    *,
    atlas: Atlas | None,
    n_classes: int,
    n_images: int,
    device: str,
) -> Seconds:
    """Measure each part of a training on images and tokens without content.

    Parameters
    ----------
    backbone : Backbone
        Its weights do not matter.
    fusion : FusionConfig
        Configuration of the fusion; with `atlas` None, of its "backbone" head.
    encoder : EncoderConfig
        Configuration of the brain encoder, of kind "roi_query".
    atlas : Atlas or None
        Regions and vertices of the subject; None without one.
    n_classes : int
        Number of classes.
    n_images : int
        Number of training images, on which the number of decoding processes depends.
    device : {"cpu", "cuda"}
        Device of the training.
    """
    decoded = _decoding_seconds(backbone) / decoding_processes(n_images)
    computed = _backbone_seconds(backbone, device)
    learned = responded = 0.0
    if atlas is not None:
        learned, responded = _encoder_seconds(backbone, encoder, atlas, device)
    return Seconds(
        decoded,
        computed,
        learned,
        responded,
        *_fusion_seconds(backbone, fusion, atlas, n_classes, device),
    )


def _backbone_seconds(backbone: Backbone, device: str) -> float:
    """Return the seconds per image of a backbone, in the number type of a training."""
    side, kind = backbone.image_size, torch.device(device).type
    backbone = backbone.to(device=device)
    batch = torch.zeros(256 if kind == "cuda" else 4, 3, side, side, device=device)

    def compute() -> None:
        with torch.inference_mode(), _number_type("auto", kind):
            backbone(batch).cls.sum().item()

    return _seconds(compute) / len(batch)


def decoding_processes(n: int) -> int:
    """Return the number of processes that decode n images, at least this one."""
    return max(1, default_workers(n))


def _decoding_seconds(backbone: Backbone) -> float:
    """Return the seconds in which one process decodes an image and crops it for a backbone."""
    coarse = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    smooth, stream = Image.fromarray(coarse).resize(JPEG, Image.Resampling.BICUBIC), io.BytesIO()
    smooth.save(stream, "JPEG", quality=90)
    return _seconds(lambda: backbone.preprocess.crop(decode_bytes(stream.getvalue())))


def _encoder_seconds(
    backbone: Backbone, config: EncoderConfig, atlas: Atlas, device: str
) -> tuple[float, float]:
    """Return the seconds per image of a training step of an encoder, and of its prediction."""
    shapes, grid = array_shapes(backbone, 1, config.tokens, config.blocks[0])
    _, n_patches, width = shapes["patches"]
    n = _batch_size(config.loop.batch_size, device)
    with torch.random.fork_rng(devices=[]):
        module = build_roi_query(config, atlas, width * len(config.blocks), grid).to(device)
    tokens = torch.randn(n, n_patches, width * len(config.blocks), device=device)
    target = torch.zeros(n, atlas.n_vertices, device=device)
    scale = torch.ones(atlas.n_vertices, device=device)

    def loss() -> Tensor:
        return encoder_loss(module(tokens).float(), target, scale, atlas.n_left)

    return _step_and_pass(module, loss, lambda: module(tokens), n, config.loop.precision, device)


def _fusion_seconds(
    backbone: Backbone, config: FusionConfig, atlas: Atlas | None, n_classes: int, device: str
) -> tuple[float, float]:
    """Return the seconds per image of a training step of a fusion, and of its classification."""
    if atlas is None:
        config = replace(config, head="backbone", alpha=0.0)
    shapes, _ = array_shapes(backbone, 1, config.kind, config.block)
    n = _batch_size(config.loop.batch_size, device)
    width = shapes["cls"][-1]
    module, selected = build_fusion(config, visual_width=width, n_classes=n_classes, atlas=atlas)
    module = module.to(device)
    inputs: Mapping[str, Tensor] = {
        "cls": torch.randn(n, width, device=device),
        "patches": torch.randn(n, *shapes["patches"][1:], device=device),
    }
    response = None if atlas is None else torch.randn(n, len(selected), device=device)
    labels = torch.zeros(n, dtype=torch.long, device=device)

    def classify() -> object:
        return module(inputs["cls"], inputs["patches"], response)

    def loss() -> Tensor:
        out = classify()
        return fusion_loss(out.logits, labels, out.x_vb, out.x_bv, config.alpha)[0]

    return _step_and_pass(module, loss, classify, n, config.loop.precision, device)


def _batch_size(wanted: int, device: str) -> int:
    return wanted if torch.device(device).type == "cuda" else min(wanted, _MOST_ON_CPU)


def _number_type(precision: str, kind: str) -> torch.autocast:
    return torch.autocast(kind, torch.bfloat16, enabled=use_bfloat16(precision, kind))


def _step_and_pass(
    module: nn.Module,
    loss: Callable[[], Tensor],
    forward: Callable[[], object],
    n: int,
    precision: str,
    device: str,
) -> tuple[float, float]:
    """Return the seconds per image of a training step, and of a pass without gradients."""
    kind = torch.device(device).type
    optimiser = torch.optim.AdamW(module.parameters())

    def finish() -> None:
        if kind == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with _number_type(precision, kind):
            value = loss()
        value.backward()
        optimiser.step()
        finish()

    def predict() -> None:
        with torch.inference_mode(), _number_type(precision, kind):
            forward()
        finish()

    module.train()
    trained = _seconds(step) / n
    module.eval()
    return trained, _seconds(predict) / n


def _seconds(action: Callable[[], object]) -> float:
    """Return the shortest of three durations in seconds, after one call to warm up."""
    found = []
    for _ in range(4):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return min(found[1:])

"""A trained brain encoder as one differentiable function of pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.errors import ConfigError, message
from bmfl_lab.runtime import pick_device
from bmfl_lab.training.encoder_io import TrainedEncoder


def image_function(encoder: TrainedEncoder, *, device: str = "auto") -> Callable[[Tensor], Tensor]:
    """Return a function from pixels to predicted responses through which gradients flow.

    Parameters
    ----------
    encoder : TrainedEncoder
        Reads "patches" or "pooled:G" tokens.
    device : "auto", "cpu" or "cuda"

    Returns
    -------
    callable
        ``function(images (B, 3, S, S) in 0..1) -> (B, n_vertices)``, S being the backbone's image
        size; it has the attributes ``image_size`` and ``device``.

    Raises
    ------
    ConfigError
        If the encoder reads tokens without places.
    """
    kinds = {s["kind"] for s in encoder.sources}
    if not all(k == "patches" or k.startswith("pooled:") for k in kinds):
        raise ConfigError(
            message(
                "an encoder of 'patches' or 'pooled:G' tokens",
                f"{sorted(kinds)}",
                "train one that reads patches",
            )
        )
    where = pick_device(device)
    backbone = encoder.load_backbone(device)
    module = copy.deepcopy(encoder.module).to(where).eval()
    colours = backbone.preprocess.mean, backbone.preprocess.std
    mean, std = (torch.tensor(v, device=where).view(1, 3, 1, 1) for v in colours)

    def part(images_BCHW: Tensor, source) -> Tensor:
        found = backbone(
            images_BCHW, blocks=(source["block"],), features=source["features"], grad=True
        )[0]
        if source["kind"] == "patches":
            return found.patches
        plane = found.patches.unflatten(1, found.grid).permute(0, 3, 1, 2)
        return (
            functional.adaptive_avg_pool2d(plane, int(source["kind"].split(":")[1]))
            .flatten(2)
            .transpose(1, 2)
        )

    def function(images_BCHW: Tensor) -> Tensor:
        x_BCHW = (images_BCHW.to(where) - mean) / std
        return module(torch.cat([part(x_BCHW, s) for s in encoder.sources], dim=2))

    function.image_size, function.device = encoder.backbone.image_size, where
    return function

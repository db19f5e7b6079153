"""The head that reads responses out of a network's blocks, and the network with its head.

Shape suffixes: B batch, C channels or classes, H height, W width, P patches, D width of tokens, E
responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmfl_lab.errors import ConfigError, DataError, message


class AlignmentHead(nn.Module):
    """One encoder a block (to `width`, ReLU), concatenated, and a linear map to the responses.

    Parameters
    ----------
    sizes : mapping of str to (channels, height, width)
        Output size of each block that is read.
    n_responses : int, default 1024
        Response features.
    width : int, default 128
        Outputs of each block's encoder.
    pool : int, optional
        Average each block's map to pool x pool first, so that the head's size does not depend on
        the image's. None reads every value, as published.

    Raises
    ------
    ConfigError
        If there is no block or a size is not positive.

    References
    ----------
    Lu & Wang 2025, Cognitive Neurodynamics 19:61 (arXiv:2407.10414); pooling is our choice.
    """

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, int, int]],
        *,
        n_responses: int = 1024,
        width: int = 128,
        pool: int | None = None,
    ):
        super().__init__()
        if not sizes or min(n_responses, width, 1 if pool is None else pool) < 1:
            raise ConfigError(
                message(
                    "at least one block and positive sizes",
                    f"{len(sizes)} blocks, n_responses={n_responses}, width={width}, pool={pool}",
                    "name the blocks to read",
                )
            )
        self.pool = pool
        self.sizes = {name: tuple(size) for name, size in sizes.items()}
        self.encoders = nn.ModuleDict(
            {
                name: nn.Linear(size[0] * pool**2 if pool else math.prod(size), width)
                for name, size in self.sizes.items()
            }
        )
        self.readout = nn.Linear(width * len(self.sizes), n_responses)

    def forward(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """Return responses (B, n_responses) from block outputs (B, C, H, W) by name.

        Raises
        ------
        DataError
            If a block is missing or of another size than the head was made for.
        """
        encoded = []
        for name, encoder in self.encoders.items():
            x_BCHW = blocks.get(name)
            got = None if x_BCHW is None else tuple(x_BCHW.shape[1:])
            if x_BCHW is None or (
                got != self.sizes[name] if self.pool is None else got[0] != self.sizes[name][0]
            ):
                raise DataError(
                    message(
                        f"block {name!r} of size {self.sizes[name]}",
                        "none" if got is None else f"size {got}",
                        "use the image size the head was made for, or a pooled head",
                    )
                )
            if self.pool is not None:
                x_BCHW = functional.adaptive_avg_pool2d(x_BCHW, self.pool)
            encoded.append(functional.relu(encoder(x_BCHW.flatten(1))))
        return self.readout(torch.cat(encoded, 1))


class AlignedNetwork(nn.Module):
    """A backbone and an alignment head that read one and the same pass.

    Parameters
    ----------
    backbone : nn.Module
        ``backbone(images, blocks=True) -> (logits (B, C), {name: (B, C, H, W)})``.
    head : AlignmentHead
        Reads the blocks.
    """

    def __init__(self, backbone: nn.Module, head: AlignmentHead):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and responses (B, E) of images (B, 3, H, W)."""
        logits_BC, blocks = self.backbone(images_BCHW, blocks=True)
        return logits_BC, self.head(blocks)


class TokenNetwork(nn.Module):
    """A token backbone (DINOv2) in the place of CORnet-S: chosen blocks as maps, a linear classifier on CLS.

    Parameters
    ----------
    backbone : nn.Module
        ``backbone(images, blocks=indices, grad=bool)`` returns, for each index, an object with
        ``cls`` (B, D), ``patches`` (B, P, D) and ``grid`` (h, w), through which gradients flow if
        `grad`.
    blocks : sequence of int
        Which blocks to read; classification reads the last one given.
    width : int
        D.
    n_classes : int
        Number of logits.

    Notes
    -----
    Gradients reach the backbone only where its parameters ask for them.
    """

    def __init__(self, backbone: nn.Module, *, blocks: Sequence[int], width: int, n_classes: int):
        super().__init__()
        self.backbone, self.blocks = backbone, tuple(blocks)
        self.decoder = nn.Linear(width, n_classes)

    def forward(self, images_BCHW: Tensor, blocks: bool = False) -> Any:
        """Return logits (B, C) and, if asked, {"block3": (B, D, h, w), ...}."""
        # backbones of the workbench are frozen unless told otherwise: alignment must reach their
        # weights
        learns = torch.is_grad_enabled() and any(
            p.requires_grad for p in self.backbone.parameters()
        )
        found = self.backbone(images_BCHW, blocks=self.blocks, grad=learns)
        logits_BC = self.decoder(found[-1].cls)
        if not blocks:
            return logits_BC
        maps = {
            f"block{i}": t.patches.transpose(1, 2).unflatten(2, t.grid)
            for i, t in zip(self.blocks, found)
        }
        return logits_BC, maps

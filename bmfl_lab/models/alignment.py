"""Heads and networks for the alignment of a vision network with brain responses.

Shape suffixes: B batch, C channels or classes, H height, W width, P patches, D width of tokens, E
responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmfl_lab.errors import ConfigError, DataError, require


class AlignmentHead(nn.Module):
    """Predict response features from the feature maps of a network's blocks.

    Each block has a linear map to `width` values with a ReLU; a linear map of all of them gives the
    response features.

    Parameters
    ----------
    sizes : mapping of str to (channels, height, width)
        Size of the output of each block to read.
    n_responses : int, default 1024
        Number of response features E.
    width : int, default 128
        Number of values per block.
    pool : int, optional
        Average each feature map to pool x pool first, so that the size of the head does not depend
        on that of the image. None reads every value, as published.

    Raises
    ------
    ConfigError
        If there is no block or a size is not positive.

    References
    ----------
    Lu & Wang (2025), Cognitive Neurodynamics 19:61 (arXiv:2407.10414), and its released code: width
    128, 1,024 response features. Pooling is our choice.
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
        require(
            sizes and min(n_responses, width, 1 if pool is None else pool) >= 1,
            ConfigError,
            "at least one block and positive sizes",
            f"{len(sizes)} blocks, n_responses={n_responses}, width={width}, pool={pool}",
            "give 1 or more for each of these" if sizes else "name the blocks to read",
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
        """Return response features.

        Parameters
        ----------
        blocks : mapping of str to Tensor, shape (B, C, H, W)
            Output of each block by its name.

        Returns
        -------
        Tensor, shape (B, E)

        Raises
        ------
        DataError
            If a block is missing or its size is not the one in `sizes`.
        """
        encoded = []
        for name, encoder in self.encoders.items():
            x_BCHW = blocks.get(name)
            got = None if x_BCHW is None else tuple(x_BCHW.shape[1:])
            # a pooled map may have any height and width
            n_equal = 3 if self.pool is None else 1
            require(
                got is not None and got[:n_equal] == self.sizes[name][:n_equal],
                DataError,
                f"block {name!r} of size {self.sizes[name]}",
                f"the blocks {list(blocks)}" if got is None else f"size {got}",
                "pass the outputs of all blocks on which the head was trained"
                if got is None
                else "use the image size of the training, or train with AlignConfig.pool",
            )
            if self.pool is not None:
                x_BCHW = functional.adaptive_avg_pool2d(x_BCHW, self.pool)
            encoded.append(functional.relu(encoder(x_BCHW.flatten(1))))
        return self.readout(torch.cat(encoded, 1))


class AlignedNetwork(nn.Module):
    """Run a backbone once and return both its logits and the response features of its head.

    Parameters
    ----------
    backbone : nn.Module
        ``backbone(images, blocks=True) -> (logits (B, C), {name: (B, C, H, W)})``.
    head : AlignmentHead
        Head that reads the blocks.
    frozen : bool, default False
        Keep the backbone in eval mode, so that batch normalisation does not change it either.
    """

    def __init__(self, backbone: nn.Module, head: AlignmentHead, frozen: bool = False):
        super().__init__()
        self.backbone, self.head, self.frozen = backbone, head, frozen

    def train(self, mode: bool = True) -> AlignedNetwork:
        """Set the mode of training; a frozen backbone stays in eval mode."""
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and response features (B, E) of images (B, 3, H, W)."""
        logits_BC, blocks = self.backbone(images_BCHW, blocks=True)
        return logits_BC, self.head(blocks)


class TokenNetwork(nn.Module):
    """Give a token backbone (DINOv2) the interface of CORnet-S.

    Patch tokens of chosen blocks are returned as feature maps; a linear classifier reads the class
    token.

    Parameters
    ----------
    backbone : nn.Module
        ``backbone(images, blocks=indices, grad=bool)`` returns for each index an object with
        ``cls`` (B, D), ``patches`` (B, P, D) and ``grid`` (h, w); gradients flow if `grad`.
    blocks : sequence of int
        Indices of the blocks to read; the classifier reads the last one of the sequence.
    width : int
        Width D of the tokens.
    n_classes : int
        Number of logits.

    Notes
    -----
    Gradients reach those parameters of the backbone that require them.
    """

    def __init__(self, backbone: nn.Module, *, blocks: Sequence[int], width: int, n_classes: int):
        super().__init__()
        self.backbone, self.blocks = backbone, tuple(blocks)
        self.decoder = nn.Linear(width, n_classes)

    def forward(
        self, images_BCHW: Tensor, blocks: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, C); with `blocks` also the maps ``{"block3": (B, D, h, w), ...}``."""
        # a backbone runs without gradients by default, but alignment must reach its weights
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

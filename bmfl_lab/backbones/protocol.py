"""What every backbone offers, what it returns, and the registry of backbones.

Shape suffixes: B batch, P patches, D width, H and W height and width of an image in pixels, C
channels, h and w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bmfl_lab.backbones.preprocess import Preprocess
from bmfl_lab.errors import ConfigError, require
from bmfl_lab.registry import Registry

BACKBONES = Registry("backbone")
"""Name of a backbone to its loader.

A loader is a function ``(name, weights=None, *, image_size, dtype, device, resize) -> Backbone``.
`load_backbone` has checked and resolved the options: `image_size` is an int, or None for the
backbone's own size; `dtype` is a torch dtype; `device` is "cpu" or "cuda".
"""


@dataclass(frozen=True)
class BackboneTokens:
    """Tokens of one block.

    Parameters
    ----------
    cls : Tensor, shape (B, D)
        Class token. A backbone without one returns the mean patch token here. The `tokens` function
        that is given to `wrap` may leave it None.
    registers : Tensor, shape (B, n_registers, D)
        Register tokens [1]_. They have no position in the image and are never patches; there may be
        none. The `tokens` function that is given to `wrap` may leave them None.
    patches : Tensor, shape (B, P, D)
        Patch tokens, row by row.
    grid : tuple of int
        Rows and columns of patches, ``P = h * w``.
    attention : Tensor, shape (B, n_heads, T, T), optional
        Attention weights of this block between all T tokens, in the order class token, registers,
        patches. Each row sums to 1.

    References
    ----------
    .. [1] Darcet et al. (2024). Vision transformers need registers. ICLR, arXiv:2309.16588.
    """

    cls: Tensor | None
    registers: Tensor | None
    patches: Tensor
    grid: tuple[int, int]
    attention: Tensor | None = None


@runtime_checkable
class Backbone(Protocol):
    """A frozen vision model that turns images into tokens.

    A backbone is also a `torch.nn.Module` in evaluation mode, none of whose parameters requires a
    gradient. `load_backbone` returns one by name, `wrap` makes one from any module.

    Attributes
    ----------
    name : str
        Public name.
    width, n_blocks, n_registers : int
        Token width of the last block, number of blocks, number of register tokens.
    has_cls : bool
        Whether there is a class token. If not, the mean patch token stands for it.
    patch_size : int
        Side of a patch of the last block, in pixels.
    image_size : int
        Side of the square that `preprocess` makes, in pixels.
    weights_hash : str
        SHA-256 over the names, shapes and float32 values of all weights.
    weights_label : str
        Source of the weights for figures and records; says "random" or "stand-in" if they are.
    preprocess : Preprocess
        The only function from a uint8 image to the input of this backbone.
    """

    name: str
    width: int
    n_blocks: int
    n_registers: int
    has_cls: bool
    patch_size: int
    image_size: int
    weights_hash: str
    weights_label: str
    preprocess: Preprocess

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights and of the computation."""

    def describe(self) -> dict[str, object]:
        """Return everything that determines the tokens of an image, as plain JSON values."""

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the last block's patches for an image size in pixels."""

    def block_shape(self, block: int = -1) -> tuple[tuple[int, int], int]:
        """Return the patch grid (rows, columns) and token width of a block at `image_size`."""

    def indices(self, blocks: Sequence[int]) -> list[int]:
        """Return block indices counted from 0; negative ones count from the end."""

    def __call__(
        self,
        images: Tensor,
        blocks: Sequence[int] | None = None,
        *,
        features: str = "tokens",
        grad: bool = False,
    ) -> BackboneTokens | tuple[BackboneTokens, ...]:
        """Return the float32 tokens of the last block, or one BackboneTokens per entry of `blocks`.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            Preprocessed images on the backbone's device.
        blocks : sequence of int, optional
            Block indices; None means the last block.
        features : str, default "tokens"
            Which part of the block to return; a DINOv2 backbone also knows "q", "k" and "v".
        grad : bool, default False
            Let gradients reach `images`.
        """


def map_tokens(x_BCHW: Tensor) -> BackboneTokens:
    """Return the channels at each position of a feature map as patch tokens, without class token.

    Parameters
    ----------
    x_BCHW : Tensor, shape (B, C, h, w)
        Output of a convolutional layer.

    Returns
    -------
    BackboneTokens
        `patches` has shape (B, h * w, C); `cls` and `registers` are None, for `wrap` to fill in.
    """
    return BackboneTokens(None, None, x_BCHW.flatten(2).transpose(1, 2), tuple(x_BCHW.shape[2:]))


def block_indices(blocks: Sequence[int], n_blocks: int, name: str) -> list[int]:
    """Return block indices counted from 0.

    Raises
    ------
    ConfigError
        If an index is out of range, or there is none.
    """
    require(
        blocks and all(-n_blocks <= b < n_blocks for b in blocks),
        ConfigError,
        f"block indices from {-n_blocks} to {n_blocks - 1}",
        tuple(blocks),
        f"choose among the {n_blocks} blocks of {name}",
    )
    return [int(b) % n_blocks for b in blocks]


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Return rows and columns of the patches of an image.

    Raises
    ------
    ConfigError
        If a side is not a positive multiple of the patch size.
    """
    require(
        min(height, width) >= patch_size and not height % patch_size and not width % patch_size,
        ConfigError,
        f"image sides that are multiples of {patch_size} pixels",
        f"{height} x {width}",
        f"use backbone.preprocess, with an image_size that is a multiple of {patch_size}",
    )
    return height // patch_size, width // patch_size


def check_images(images: Tensor) -> None:
    """Check that a batch of images has the shape (B, 3, H, W).

    Raises
    ------
    ConfigError
        If it has not.
    """
    require(
        images.ndim == 4 and images.shape[1] == 3,
        ConfigError,
        "images of shape (B, 3, H, W)",
        tuple(images.shape),
        "use backbone.preprocess",
    )

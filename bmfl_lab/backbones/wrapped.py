"""Making a backbone from any module."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bmfl_lab.backbones.preprocess import Preprocess
from bmfl_lab.backbones.protocol import (
    Backbone,
    BackboneTokens,
    block_indices,
    check_images,
    patch_grid,
)
from bmfl_lab.backbones.weights import hash_state, refuse_not_finite
from bmfl_lab.errors import ConfigError, require


def wrap(
    module: nn.Module,
    *,
    preprocess: Preprocess,
    tokens: Callable[[object], BackboneTokens | Sequence[BackboneTokens]],
    name: str,
    patch_size: int | None = None,
) -> Backbone:
    """Return a frozen backbone that computes its tokens with `module`.

    Parameters
    ----------
    module : nn.Module
        Called with images (B, 3, H, W). It is frozen and set to evaluation mode in place.
    preprocess : Preprocess
        Image size, resize rule and normalisation that `module` expects.
    tokens : callable
        Takes the output of `module` and returns the `BackboneTokens` of its last block, or a
        sequence with one `BackboneTokens` per block. ``cls=None`` states that there is no class
        token, ``registers=None`` that there are no registers. For a feature map (B, C, h, w),
        `map_tokens` is such a function.
    name : str
        Name in figures, records and the feature store. Choose another name for another `tokens`
        function on the same weights.
    patch_size : int, optional
        Side of a patch of the last block, in pixels. By default the image size divided by the
        number of rows of its patches, rounded down.

    Returns
    -------
    Backbone
        Its tokens are float32, and its weights hash is computed from the state dict of `module`.

    Raises
    ------
    ConfigError
        If `tokens` returns something else, or the patches do not fill their grid.
    CheckpointError
        If a weight is not finite.

    Notes
    -----
    Tokens on a GPU differ from those on a CPU by the rounding of torch's default settings, which
    compute float32 convolutions in TF32 on recent GPUs.

    Examples
    --------
    >>> from torch import nn
    >>> from bmfl_lab.backbones import Preprocess, map_tokens, wrap
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.GELU())
    >>> preprocess = Preprocess(image_size=64, patch_size=16)
    >>> backbone = wrap(net, preprocess=preprocess, tokens=map_tokens, name="toy")
    >>> backbone.width, backbone.grid_of(64, 64), backbone.has_cls
    (8, (4, 4), False)
    """
    refuse_not_finite(module.state_dict(), name)
    return _Wrapped(module, preprocess, tokens, name, patch_size)


class _Wrapped(nn.Module):
    """The backbone that `wrap` returns; its members are described in `Backbone`."""

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        tokens: Callable[[object], BackboneTokens | Sequence[BackboneTokens]],
        name: str,
        patch_size: int | None,
    ):
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        self.preprocess, self.image_size = preprocess, preprocess.image_size
        self.name, self._tokens = name, tokens
        self.weights_hash = hash_state(module.state_dict())
        self.weights_label = f"weights of a {type(module).__name__}"
        # sizes are read from the tokens of one blank image
        with torch.no_grad():
            blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
            blocks = self._blocks(blank)
        self.has_cls = blocks[-1].cls is not None
        blocks = [_complete(b) for b in blocks]
        self._shapes = [(b.grid, b.patches.shape[2]) for b in blocks]
        self.n_blocks, self.n_registers = len(blocks), blocks[-1].registers.shape[1]
        (rows, _), self.width = self._shapes[-1]
        self.patch_size = patch_size or self.image_size // rows

    def _blocks(self, images: Tensor) -> Sequence[BackboneTokens]:
        found = self._tokens(self.module(images.to(self.dtype)))
        blocks = (found,) if isinstance(found, BackboneTokens) else tuple(found)
        require(
            blocks and all(isinstance(b, BackboneTokens) for b in blocks),
            ConfigError,
            f"BackboneTokens of {self.name}",
            ", ".join(type(b).__name__ for b in blocks) or "nothing",
            "let `tokens` return one, or one per block",
        )
        return blocks

    @property
    def _first(self) -> Tensor:
        weights = itertools.chain(self.module.parameters(), self.module.buffers())
        return next((t for t in weights if t.is_floating_point()), torch.zeros(0))

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    def train(self, mode: bool = True) -> _Wrapped:
        return super().train(False)

    def describe(self) -> dict[str, object]:
        return {
            "name": self.name,
            "weights_hash": self.weights_hash,
            "weights_label": self.weights_label,
            "dtype": str(self.dtype).removeprefix("torch."),
            "module": type(self.module).__qualname__,
            "preprocess": self.preprocess.describe(),
        }

    def indices(self, blocks: Sequence[int]) -> list[int]:
        return block_indices(blocks, self.n_blocks, self.name)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        if height == width == self.image_size:
            return self._shapes[-1][0]
        return patch_grid(height, width, self.patch_size)

    def block_shape(self, block: int = -1) -> tuple[tuple[int, int], int]:
        return self._shapes[self.indices((block,))[0]]

    def forward(
        self,
        images: Tensor,
        blocks: Sequence[int] | None = None,
        attention: bool = False,
        *,
        features: str = "tokens",
        grad: bool = False,
    ) -> BackboneTokens | tuple[BackboneTokens, ...]:
        require(
            not attention and features == "tokens",
            ConfigError,
            f"features='tokens' of {self.name}",
            "attention weights" if attention else repr(features),
            "use the tokens, or a DINOv2 backbone",
        )
        wanted = self.indices((-1,) if blocks is None else blocks)
        check_images(images)
        self.grid_of(*images.shape[2:])
        with contextlib.nullcontext() if grad else torch.no_grad():
            found = self._blocks(images)
            chosen = tuple(_complete(found[i]) for i in wanted)
        return chosen[0] if blocks is None else chosen


def _complete(tokens: BackboneTokens) -> BackboneTokens:
    """Return float32 tokens; the mean patch stands for a missing class token."""
    patches, grid = tokens.patches.float(), tuple(map(int, tokens.grid))
    require(
        patches.ndim == 3 and patches.shape[1] == grid[0] * grid[1],
        ConfigError,
        f"patches of shape (B, P, D) with P = {grid[0]} x {grid[1]}",
        tuple(patches.shape),
        "let `tokens` return all patches, row by row, and their grid",
    )
    cls = patches.mean(1) if tokens.cls is None else tokens.cls.float()
    registers = patches[:, :0] if tokens.registers is None else tokens.registers.float()
    return BackboneTokens(cls, registers, patches, grid)

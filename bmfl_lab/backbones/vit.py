"""The vision transformer of DINOv2, frozen, with the original parameter names.

Shape suffixes: B batch, T tokens (CLS + registers + patches), P patches, D width, H heads, K head
width, h and w rows and columns of patches, s and t those of pixels in a patch, c colours, X pixels
of a patch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bmfl_lab.backbones.architecture import Architecture, Interpolation
from bmfl_lab.backbones.preprocess import Preprocess
from bmfl_lab.errors import ConfigError, message

FEATURES = ("tokens", "q", "k", "v")


@dataclass(frozen=True)
class BackboneTokens:
    """Tokens of one block.

    Parameters
    ----------
    cls : Tensor, shape (B, D)
        Class token.
    registers : Tensor, shape (B, n_registers, D)
        Register tokens; they stand for no place in the image and are never patches.
    patches : Tensor, shape (B, P, D)
        Patch tokens, row by row.
    grid : tuple of int
        Rows and columns of patches, ``P = h * w``.
    attention : Tensor, shape (B, H, T, T), optional
        Attention weights of this block (rows sum to 1), order CLS, registers, patches.
    """

    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int]
    attention: torch.Tensor | None = None


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches.

    Notes
    -----
    Computed as a matrix product, which is the same function as the convolution whose weights it
    holds. torch runs float32 convolutions of a recent GPU in TF32 unless told otherwise
    (``torch.backends.cudnn.allow_tf32``), and matrix products in full float32
    (``torch.backends.cuda.matmul.allow_tf32``); this package sets neither.
    """

    def __init__(self, *, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, H, W) to patch embeddings (B, P, D)."""
        side = self.proj.stride[0]
        cut_Bchswt = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        pixels_BPX = cut_Bchswt.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(pixels_BPX, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, *, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x_BTD: torch.Tensor, weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended tokens (B, T, D) and, on request, the attention weights (B, H, T, T)."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            self.qkv(x_BTD).view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        )
        a_BHTT = None
        if weights:
            # the fused kernel never forms the weights, so they are only computed when somebody
            # looks at them
            scale = q_BHTK.shape[-1] ** -0.5
            a_BHTT = (q_BHTK * scale @ k_BHTK.transpose(-2, -1)).float().softmax(-1)
            y_BHTK = a_BHTT.to(v_BHTK.dtype) @ v_BHTK
        else:
            y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK)
        return self.proj(y_BHTK.transpose(1, 2).reshape(B, T, D)), a_BHTT

    def part(self, x_BTD: torch.Tensor, name: str) -> torch.Tensor:
        """Return the query, key or value projection ("q", "k", "v") of the tokens, (B, T, D)."""
        start = "qkv".index(name) * x_BTD.shape[-1]
        rows = slice(start, start + x_BTD.shape[-1])
        return F.linear(x_BTD, self.qkv.weight[rows], self.qkv.bias[rows])


class LayerScale(nn.Module):
    """Learned gain per channel."""

    def __init__(self, *, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Scale the channels."""
        return x_BTD * self.gamma


class Mlp(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, T, D) to tokens (B, T, D)."""
        return self.fc2(F.gelu(self.fc1(x_BTD)))


class SwiGLU(nn.Module):
    """Gated feed-forward layer, ``w3(silu(a) * b)`` with ``a, b = w12(x)``.

    References
    ----------
    Shazeer (2020). GLU variants improve transformer. arXiv:2002.05202.
    """

    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, T, D) to tokens (B, T, D)."""
        a, b = self.w12(x_BTD).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both residual branches."""

    def __init__(self, *, architecture: Architecture):
        super().__init__()
        width = architecture.width
        feed_forward = Mlp if architecture.ffn == "mlp" else SwiGLU
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width=width, n_heads=architecture.n_heads)
        self.ls1 = LayerScale(width=width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = feed_forward(width=width, hidden=architecture.ffn_width)
        self.ls2 = LayerScale(width=width)

    def forward(
        self, x_BTD: torch.Tensor, weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the next tokens (B, T, D) and, on request, the attention weights (B, H, T, T)."""
        y_BTD, a_BHTT = self.attn(self.norm1(x_BTD), weights)
        x_BTD = x_BTD + self.ls1(y_BTD)
        return x_BTD + self.ls2(self.mlp(self.norm2(x_BTD))), a_BHTT


class Backbone(nn.Module):
    """A frozen DINOv2 vision transformer. Made by `load_backbone`.

    Attributes
    ----------
    name, width, n_heads, n_blocks, n_registers, patch_size, image_size
        As in `Architecture`; `image_size` is the side that `preprocess` makes.
    blocks : ModuleList
        The transformer blocks, for hooks.
    interpolation : Interpolation
        Convention for the positional embedding.
    weights_hash : str
        SHA-256 over the names, shapes and float32 values of all parameters.
    weights_label : str
        Where the weights come from, for people; says "stand-in" or "random" when they are.
    preprocess : Preprocess
        The one way from a uint8 image to this backbone's input.

    References
    ----------
    Oquab et al. (2024). DINOv2: learning robust visual features without supervision. TMLR,
    arXiv:2304.07193. Darcet et al. (2024). Vision transformers need registers. ICLR,
    arXiv:2309.16588.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        interpolation: Interpolation | None = None,
        preprocess: Preprocess | None = None,
    ):
        super().__init__()
        self.architecture = architecture
        self.name = architecture.name
        self.width, self.n_heads = architecture.width, architecture.n_heads
        self.n_blocks, self.n_registers = architecture.n_blocks, architecture.n_registers
        self.patch_size = architecture.patch_size
        self.interpolation = interpolation or Interpolation()
        self.preprocess = preprocess or Preprocess()
        self.image_size = self.preprocess.image_size
        self.weights_hash = self.weights_label = ""

        width = self.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + architecture.grid**2, width))
        if self.n_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, self.n_registers, width))
        self.patch_embed = PatchEmbed(width=width, patch_size=self.patch_size)
        self.blocks = nn.ModuleList(Block(architecture=architecture) for _ in range(self.n_blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights and of the computation."""
        return self.cls_token.dtype

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, whatever a surrounding module is told."""
        return super().train(False)

    def describe(self) -> dict[str, Any]:
        """Return what determines the tokens of an image, as plain JSON values for manifests."""
        return {
            "name": self.name,
            "weights_hash": self.weights_hash,
            "weights_label": self.weights_label,
            "dtype": str(self.dtype).removeprefix("torch."),
            "position_interpolation": {
                "mode": "bicubic",
                "offset": self.interpolation.offset,
                "antialias": self.interpolation.antialias,
            },
            "preprocess": self.preprocess.describe(),
        }

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches of an image.

        Raises
        ------
        ConfigError
            If a side is not a positive multiple of the patch size.
        """
        if (
            height < self.patch_size
            or width < self.patch_size
            or height % self.patch_size
            or width % self.patch_size
        ):
            raise ConfigError(
                message(
                    f"image sides that are multiples of {self.patch_size} pixels",
                    f"{height} x {width}",
                    "resize with backbone.preprocess, or choose image_size = 14 n",
                )
            )
        return height // self.patch_size, width // self.patch_size

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the positional embedding (1, 1 + P, D) for a grid of patches, computed in float32."""
        native = self.architecture.grid
        if grid == (native, native):
            return self.pos_embed
        table = self.pos_embed.float()
        plane = table[:, 1:].reshape(1, native, native, self.width).permute(0, 3, 1, 2)
        rule = self.interpolation
        if rule.offset:
            target: dict[str, Any] = {
                "scale_factor": tuple((side + rule.offset) / native for side in grid)
            }
        else:
            target = {"size": grid}
        plane = F.interpolate(
            plane, mode="bicubic", align_corners=False, antialias=rule.antialias, **target
        )
        moved = plane.permute(0, 2, 3, 1).reshape(1, -1, self.width)
        return torch.cat([table[:, :1], moved], dim=1).to(self.dtype)

    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the tokens (B, T, D) that enter the first block, and the grid."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(
                message(
                    "images of shape (B, 3, H, W)",
                    f"{tuple(images.shape)}",
                    "use backbone.preprocess",
                )
            )
        grid = self.grid_of(images.shape[2], images.shape[3])
        x_BPD = self.patch_embed(images.to(self.dtype))
        cls_B1D = self.cls_token.expand(len(images), -1, -1)
        x_BTD = torch.cat([cls_B1D, x_BPD], dim=1) + self.positions(grid)
        if self.n_registers:
            # registers have no position, so they come in after the positional embedding
            registers = self.register_tokens.expand(len(images), -1, -1)
            x_BTD = torch.cat([x_BTD[:, :1], registers, x_BTD[:, 1:]], dim=1)
        return x_BTD, grid

    def forward(
        self,
        images: torch.Tensor,
        blocks: Sequence[int] | None = None,
        attention: bool = False,
        *,
        features: str = "tokens",
        norm: bool = True,
        grad: bool = False,
    ) -> BackboneTokens | tuple[BackboneTokens, ...]:
        """Return the tokens of the last block, or of chosen blocks.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            Preprocessed images on the backbone's device; H and W multiples of 14.
        blocks : sequence of int, optional
            Block indices from 0 (negative ones count from the end). None means the last one.
        attention : bool, default False
            Also return the attention weights of these blocks.
        features : {"tokens", "q", "k", "v"}
            Tokens after the block, or its query, key or value projections, which some brain
            encoders read.
        norm : bool, default True
            Apply the final LayerNorm to the tokens of every chosen block, as the original
            ``get_intermediate_layers`` does; projections are never normed.
        grad : bool, default False
            Let gradients reach `images` (for saliency); the weights stay frozen either way.

        Returns
        -------
        BackboneTokens or tuple of BackboneTokens
            In float32. One for ``blocks=None``, else one a requested block in the order asked for.

        Raises
        ------
        ConfigError
            If the image shape, a block index or `features` is not valid.
        """
        if features not in FEATURES:
            raise ConfigError(
                message(f"features among {FEATURES}", repr(features), "choose one of them")
            )
        wanted = self.indices((-1,) if blocks is None else blocks)
        found: dict[int, BackboneTokens] = {}
        with contextlib.nullcontext() if grad else torch.no_grad():
            x_BTD, grid = self.embed(images)
            for index, block in enumerate(self.blocks[: max(wanted) + 1]):
                chosen = index in wanted
                part = (
                    block.attn.part(block.norm1(x_BTD), features)
                    if chosen and features != "tokens"
                    else None
                )
                x_BTD, weights = block(x_BTD, attention and chosen)
                if chosen:
                    tokens = part if part is not None else self.norm(x_BTD) if norm else x_BTD
                    found[index] = self._split(tokens, grid, weights)
        return found[wanted[0]] if blocks is None else tuple(found[i] for i in wanted)

    def indices(self, blocks: Sequence[int]) -> list[int]:
        """Return block indices counted from 0.

        Raises
        ------
        ConfigError
            If one is out of range, or there is none.
        """
        if not blocks or any(not -self.n_blocks <= b < self.n_blocks for b in blocks):
            raise ConfigError(
                message(
                    f"block indices from {-self.n_blocks} to {self.n_blocks - 1}",
                    f"{tuple(blocks)}",
                    f"{self.name} has {self.n_blocks} blocks",
                )
            )
        return [int(b) % self.n_blocks for b in blocks]

    def _split(
        self, tokens_BTD: torch.Tensor, grid: tuple[int, int], weights: torch.Tensor | None
    ) -> BackboneTokens:
        tokens_BTD = tokens_BTD.float()
        first = 1 + self.n_registers
        return BackboneTokens(
            tokens_BTD[:, 0], tokens_BTD[:, 1:first], tokens_BTD[:, first:], grid, weights
        )

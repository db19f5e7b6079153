"""The vision transformer of DINOv2, frozen, with the original parameter names.

Shape suffixes: B batch, T tokens (class token, registers, patches), P patches, D width, H heads, K
width of a head, h and w rows and columns of patches, s and t rows and columns of pixels in a patch,
c colours, X pixels of a patch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bmfl_lab.backbones.protocol import (
    BackboneTokens,
    Preprocess,
    block_indices,
    check_images,
    patch_grid,
)
from bmfl_lab.errors import ConfigError, require

FEATURES = ("tokens", "q", "k", "v")


@dataclass(frozen=True)
class Architecture:
    """Sizes of a DINOv2 vision transformer.

    Parameters
    ----------
    name : str
        Public name.
    width, n_heads, n_blocks : int
        Token width, attention heads per block, transformer blocks.
    n_registers : int, default 0
        Number of register tokens.
    ffn : {"mlp", "swiglu"}, default "mlp"
        Form of the feed-forward layer; the giant model uses SwiGLU.
    grid : int, default 37
        Rows (and columns) of patches that the positional embedding was trained for.
    patch_size : int, default 14
        Side of a patch in pixels.

    References
    ----------
    Oquab et al. (2024). DINOv2: learning robust visual features without supervision. TMLR,
    arXiv:2304.07193. Darcet et al. (2024). Vision transformers need registers. ICLR,
    arXiv:2309.16588.
    """

    name: str
    width: int
    n_heads: int
    n_blocks: int
    n_registers: int = 0
    ffn: str = "mlp"
    grid: int = 37
    patch_size: int = 14

    @property
    def ffn_width(self) -> int:
        """Hidden width of the feed-forward layer.

        It is 4 D; for SwiGLU two thirds of that, rounded up to a multiple of 8.
        """
        hidden = 4 * self.width
        return hidden if self.ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shape of each tensor by its name in the state dict, without making any."""
        with torch.device("meta"):
            return {name: value.shape for name, value in ViT(self).state_dict().items()}


@dataclass(frozen=True)
class Interpolation:
    """Rule by which the positional embedding is resampled to another grid.

    Parameters
    ----------
    offset : float, default 0
        Added to the number of patches before the scale factor is computed. 0 resamples to the exact
        output size.
    antialias : bool, default False
        Low-pass filter when the grid shrinks.

    Notes
    -----
    Three conventions exist and give different tokens away from the native grid. The original hub
    models without registers use offset 0.1 and no antialiasing, those with registers offset 0 and
    antialiasing. The Hugging Face ports use offset 0 for both, with antialiasing for the register
    models only.
    """

    offset: float = 0.0
    antialias: bool = False


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches.

    Notes
    -----
    The projection is computed as a matrix product, which equals the convolution whose weights it
    holds. On a recent GPU, torch computes float32 convolutions in TF32 by default
    (``torch.backends.cudnn.allow_tf32``), but matrix products in full float32
    (``torch.backends.cuda.matmul.allow_tf32``). This package changes neither setting.
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
        """Return the attended tokens (B, T, D) and the attention weights (B, H, T, T) or None."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            self.qkv(x_BTD).view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        )
        a_BHTT = None
        if weights:
            # the fused kernel never forms the weights, so they are computed only on request
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
    """Feed-forward block of a transformer: two linear layers with a GELU between them."""

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
        """Return the next tokens (B, T, D) and the attention weights (B, H, T, T) or None."""
        y_BTD, a_BHTT = self.attn(self.norm1(x_BTD), weights)
        x_BTD = x_BTD + self.ls1(y_BTD)
        return x_BTD + self.ls2(self.mlp(self.norm2(x_BTD))), a_BHTT


class ViT(nn.Module):
    """A frozen DINOv2 vision transformer; `load_backbone` returns one by name.

    It has the attributes of `bmfl_lab.backbones.Backbone` and the ones listed here.

    Attributes
    ----------
    architecture : Architecture
        Sizes.
    n_heads : int
        Attention heads per block.
    blocks : ModuleList
        The transformer blocks, for hooks.
    interpolation : Interpolation
        Convention for the positional embedding.
    dtype : torch.dtype
        Number type of the weights and of the computation.
    reentrant : bool
        True: the forward pass keeps nothing in the module, so that threads may share it.

    References
    ----------
    Oquab et al. (2024). DINOv2: learning robust visual features without supervision. TMLR,
    arXiv:2304.07193. Darcet et al. (2024). Vision transformers need registers. ICLR,
    arXiv:2309.16588.
    """

    has_cls = True
    reentrant = True

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
        self.preprocess = preprocess or Preprocess(patch_size=self.patch_size)
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
        """Device of the weights."""
        return self.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights and of the computation."""
        return self.cls_token.dtype

    def train(self, mode: bool = True) -> ViT:
        """Stay in evaluation mode when a surrounding module is set to training mode."""
        return super().train(False)

    def describe(self) -> dict[str, object]:
        """Return everything that determines the tokens of an image, as plain JSON values."""
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
        """Return rows and columns of patches for an image of this size (pixels).

        Raises
        ------
        ConfigError
            If a side is not a positive multiple of the patch size.
        """
        return patch_grid(height, width, self.patch_size)

    def block_shape(self, block: int = -1) -> tuple[tuple[int, int], int]:
        """Return the patch grid (rows, columns) and the width of a block's tokens at `image_size`.

        Raises
        ------
        ConfigError
            If the block index is out of range.
        """
        self.indices((block,))
        return self.grid_of(self.image_size, self.image_size), self.width

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the positional embedding (1, 1 + P, D) for a grid, resampled in float32."""
        native = self.architecture.grid
        if grid == (native, native):
            return self.pos_embed
        table = self.pos_embed.float()
        plane = table[:, 1:].reshape(1, native, native, self.width).permute(0, 3, 1, 2)
        rule = self.interpolation
        target: dict[str, tuple[float, ...]] = {"size": grid}
        if rule.offset:
            target = {"scale_factor": tuple((side + rule.offset) / native for side in grid)}
        plane = F.interpolate(
            plane, mode="bicubic", align_corners=False, antialias=rule.antialias, **target
        )
        moved = plane.permute(0, 2, 3, 1).reshape(1, -1, self.width)
        return torch.cat([table[:, :1], moved], dim=1).to(self.dtype)

    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the tokens (B, T, D) that enter the first block, and the grid."""
        check_images(images)
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
            Preprocessed images on the backbone's device. H and W are multiples of the patch size.
        blocks : sequence of int, optional
            Block indices from 0; negative ones count from the end. None means the last block.
        attention : bool, default False
            Also return the attention weights of these blocks.
        features : {"tokens", "q", "k", "v"}, default "tokens"
            Tokens after the block, or its query, key or value projections, which some brain
            encoders read.
        norm : bool, default True
            Apply the final LayerNorm to the tokens of every chosen block, as the original
            ``get_intermediate_layers`` does. Projections are never normalised.
        grad : bool, default False
            Let gradients reach `images`, for saliency. The weights stay frozen in both cases.

        Returns
        -------
        BackboneTokens or tuple of BackboneTokens
            Float32 tokens of the last block for ``blocks=None``; otherwise one BackboneTokens per
            entry of `blocks`, in their order.

        Raises
        ------
        ConfigError
            If the image shape, a block index or `features` is not valid.
        """
        require(
            features in FEATURES,
            ConfigError,
            f"features among {FEATURES}",
            repr(features),
            "choose one of them",
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
            If an index is out of range, or there is none.
        """
        return block_indices(blocks, self.n_blocks, self.name)

    def _split(
        self, tokens_BTD: torch.Tensor, grid: tuple[int, int], weights: torch.Tensor | None
    ) -> BackboneTokens:
        tokens_BTD = tokens_BTD.float()
        first = 1 + self.n_registers
        return BackboneTokens(
            tokens_BTD[:, 0], tokens_BTD[:, 1:first], tokens_BTD[:, first:], grid, weights
        )

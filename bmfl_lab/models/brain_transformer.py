"""Tokenisers of predicted responses, and the transformer over a CLS token and the brain tokens.

Shape suffixes: B batch, V vertices, R brain tokens (parcels or patches), L padded parcel size, E
brain width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.errors import ConfigError, require
from bmfl_lab.models.attention import TransformerBlock, sincos_positions


class ParcelTokeniser(nn.Module):
    """Make one brain token per parcel: a linear readout of the vertices of that parcel.

    Parameters
    ----------
    parcels : mapping of str to ndarray of int64
        Vertex indices of each parcel (ROI, or hemisphere and ROI) by its name. Parcels may overlap
        and need not cover all vertices.
    n_vertices : int
        Number V of vertices in a response.
    width : int
        Width E of the tokens.

    Raises
    ------
    ConfigError
        If there is no parcel, one is empty, or an index lies outside the response.

    Notes
    -----
    Parcels of similar size are computed together as one padded batched product; the padding reads
    zeros. NeuralOOD does not state its tokeniser; one token per parcel is our choice.
    """

    def __init__(
        self,
        *,
        parcels: Mapping[str, np.ndarray],
        n_vertices: int,
        width: int,
    ):
        super().__init__()
        self.names = tuple(parcels)
        arrays = [np.asarray(v, dtype=np.int64) for v in parcels.values()]
        wrong = [
            n
            for n, v in zip(self.names, arrays)
            if not len(v) or v.min() < 0 or v.max() >= n_vertices
        ]
        require(
            arrays and not wrong,
            ConfigError,
            f"parcels of at least one vertex with indices 0..{n_vertices - 1}",
            f"{len(arrays)} parcels, wrong: {wrong[:5]}",
            "choose regions that this subject has",
        )
        sizes = np.asarray([len(v) for v in arrays])
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.n_tokens, self.n_vertices = len(arrays), n_vertices
        scale = torch.as_tensor(np.repeat(sizes**-0.5, sizes), dtype=torch.float32)[:, None]
        self.weight = nn.Parameter(torch.randn(int(sizes.sum()), width) * scale)
        self.bias = nn.Parameter(torch.zeros(len(arrays), width))
        order = self._make_buckets(arrays, sizes, starts, n_vertices)
        self.register_buffer("order", torch.as_tensor(np.argsort(order)), persistent=False)

    def _make_buckets(
        self, arrays: list[np.ndarray], sizes: np.ndarray, starts: np.ndarray, n_vertices: int
    ) -> np.ndarray:
        level = np.ceil(np.log2(sizes)).astype(int)
        self.n_buckets = len(np.unique(level))
        order = []
        for bucket, value in enumerate(np.unique(level)):
            members = np.flatnonzero(level == value)
            shape = (len(members), sizes[members].max())
            vertex = np.full(shape, n_vertices)
            row = np.full(shape, sizes.sum())
            for k, parcel in enumerate(members):
                vertex[k, : sizes[parcel]] = arrays[parcel]
                row[k, : sizes[parcel]] = starts[parcel] + np.arange(sizes[parcel])
            self.register_buffer(f"vertex_{bucket}", torch.as_tensor(vertex), persistent=False)
            self.register_buffer(f"row_{bucket}", torch.as_tensor(row), persistent=False)
            order.append(members)
        return np.concatenate(order)

    def forward(self, response_BV: Tensor) -> Tensor:
        """Return brain tokens, shape (B, R, E)."""
        padded_BV = torch.cat([response_BV, response_BV.new_zeros(response_BV.shape[0], 1)], 1)
        weight_SE = torch.cat([self.weight, self.weight.new_zeros(1, self.weight.shape[1])], 0)
        parts = []
        for bucket in range(self.n_buckets):
            x_BRL = padded_BV[:, getattr(self, f"vertex_{bucket}")]
            parts.append(
                torch.einsum("brl,rle->bre", x_BRL, weight_SE[getattr(self, f"row_{bucket}")])
            )
        return torch.cat(parts, 1)[:, self.order] + self.bias


class PatchTokeniser(nn.Module):
    """Make one brain token per `patch` consecutive vertices; the last token wraps around.

    Parameters
    ----------
    n_vertices : int
        Number V of vertices.
    width : int
        Width E of the tokens.
    patch : int, default 16
        Number of vertices per token.

    Raises
    ------
    ConfigError
        If `patch` or `n_vertices` is below 1.

    Notes
    -----
    MinD-Vis adds a whole extra patch when `patch` divides V; this tokeniser adds none.

    References
    ----------
    Chen et al., Seeing beyond the brain (MinD-Vis), CVPR 2023: patches of 16 voxels, wrap padding.
    """

    def __init__(self, *, n_vertices: int, width: int, patch: int = 16):
        super().__init__()
        require(
            patch >= 1 and n_vertices >= 1,
            ConfigError,
            "patch and n_vertices >= 1",
            f"{patch} and {n_vertices}",
            "give a patch of 1 or more vertices, and the number of vertices of the responses",
        )
        self.n_tokens, self.n_vertices, self.patch = (
            math.ceil(n_vertices / patch),
            n_vertices,
            patch,
        )
        self.names = tuple(
            f"{i * patch}-{min((i + 1) * patch, n_vertices) - 1}" for i in range(self.n_tokens)
        )
        self.linear = nn.Linear(patch, width)
        wrapped = torch.arange(self.n_tokens * patch) % n_vertices
        self.register_buffer("wrapped", wrapped, persistent=False)

    def forward(self, response_BV: Tensor) -> Tensor:
        """Return brain tokens, shape (B, R, E)."""
        return self.linear(response_BV[:, self.wrapped].unflatten(1, (self.n_tokens, self.patch)))


class BrainTransformer(nn.Module):
    """Turn a response into a CLS token and brain tokens.

    Parameters
    ----------
    tokeniser : ParcelTokeniser or PatchTokeniser
        Maps responses (B, V) to tokens (B, R, E); its weights are trained with the transformer.
    width : int
        Width E of the tokens.
    depth : int, default 2
        Number of transformer blocks.
    n_heads : int, default 4
        Number of attention heads; must divide `width`.
    positions : "learned" or "sincos", default "learned"
        Learned position embeddings, or fixed sines and cosines for tokens that have an order.
    mlp_ratio : float, default 2
        Hidden width of each MLP divided by `width`.
    dropout : float, default 0
        Dropout rate of the blocks while training.

    Raises
    ------
    ConfigError
        If `n_heads` does not divide `width`, `positions` is unknown, or `width` is odd with
        "sincos".

    Notes
    -----
    Blocks are pre-norm, and a LayerNorm follows the last block. NeuralOOD does not state depth,
    width, heads and positions of its brain transformer; all are our choice.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024): CLS token and patch tokens of the predicted
    fMRI.
    """

    def __init__(
        self,
        *,
        tokeniser: nn.Module,
        width: int,
        depth: int = 2,
        n_heads: int = 4,
        positions: str = "learned",
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        require(
            positions in ("learned", "sincos"),
            ConfigError,
            "positions 'learned' or 'sincos'",
            repr(positions),
            "use 'sincos' if the order of the tokens has a meaning, and else 'learned'",
        )
        self.tokeniser = tokeniser
        self.cls = nn.Parameter(torch.randn(width) * 0.02)
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn(tokeniser.n_tokens, width) * 0.02)
        else:
            self.register_buffer(
                "positions", sincos_positions(tokeniser.n_tokens, width), persistent=False
            )
        self.blocks = nn.ModuleList(
            TransformerBlock(width=width, n_heads=n_heads, mlp_ratio=mlp_ratio, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, response_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the CLS token, shape (B, E), and the brain tokens, shape (B, R, E).

        Parameters
        ----------
        response_BV : Tensor, shape (B, V)
            Predicted responses.

        Raises
        ------
        RuntimeError
            If the response has another number of vertices than the tokeniser.
        """
        tokens_BRE = self.tokeniser(response_BV) + self.positions
        cls_B1E = self.cls.to(tokens_BRE.dtype).expand(len(tokens_BRE), 1, -1)
        x_BRE = torch.cat([cls_B1E, tokens_BRE], 1)
        for block in self.blocks:
            x_BRE = block(x_BRE)
        x_BRE = self.norm(x_BRE)
        return x_BRE[:, 0], x_BRE[:, 1:]

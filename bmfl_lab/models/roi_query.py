"""ROI-query transformer: one learned query per region and hemisphere attends to patches and predicts its vertices.

Shape suffixes: B batch, P patches, D backbone width, R queries, E model width, H heads, K head
width, V vertices, G groups of vertices that are read out from the same set of queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmfl_lab.errors import ConfigError, DataError, message

SIDES = ("left", "right")


def query_masks(
    hemisphere: np.ndarray, rois: Mapping[str, np.ndarray]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return which query reads out which vertex.

    Parameters
    ----------
    hemisphere : ndarray of int, shape (n_vertices,)
        0 left, 1 right.
    rois : mapping of str to ndarray of bool, shape (n_vertices,)
        Regions that get a query in each hemisphere where they have vertices; they may overlap.
        Vertices of no region belong to a query "rest". An empty mapping gives one query a
        hemisphere, named "all".

    Returns
    -------
    names : tuple of str
        ``"left:V1"``, ..., one a query.
    masks : ndarray of bool, shape (n_queries, n_vertices)
        Every vertex belongs to at least one query.
    """
    side = np.asarray(hemisphere)
    taken = (
        np.any([np.asarray(m, bool) for m in rois.values()], axis=0)
        if rois
        else np.zeros(len(side), bool)
    )
    regions = {
        **{k: np.asarray(m, bool) for k, m in rois.items()},
        ("rest" if rois else "all"): ~taken,
    }
    found = {f"{SIDES[s]}:{k}": m & (side == s) for s in (0, 1) for k, m in regions.items()}
    names = tuple(k for k, m in found.items() if m.any())
    return names, np.stack([found[k] for k in names])


def sine_positions(grid: tuple[int, int], width: int, temperature: float = 10000.0) -> Tensor:
    """Return fixed two-dimensional sine and cosine positions, shape (rows * columns, width).

    The first half of the width codes the row, the second the column, each scaled to 2 pi over the
    grid, as in DETR.

    Raises
    ------
    ConfigError
        If the width is not divisible by 4.

    References
    ----------
    Carion et al. (2020), End-to-end object detection with transformers, ECCV.
    """
    if width % 4:
        raise ConfigError(message("a width divisible by 4", str(width), "change the model width"))
    half = width // 2
    scale = temperature ** (2 * (torch.arange(half) // 2) / half)

    def axis(n: int) -> Tensor:
        angle = (torch.arange(1, n + 1) / n * 2 * math.pi)[:, None] / scale
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1)

    rows, columns = axis(grid[0]), axis(grid[1])
    return torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], 1)


class GroupedReadout(nn.Module):
    """Linear readout of masked queries that computes each vertex once.

    ``out[v] = (sum_r m[r, v] q_r) . w_v + (sum_r m[r, v]) b_v``: vertices that share their queries
    are read out together from the sum of those queries, instead of every vertex from every query
    and a mask afterwards.

    Parameters
    ----------
    masks : ndarray of bool, shape (R, V)
        Which query reads out which vertex.
    width : int
        Width E of the queries.

    Raises
    ------
    DataError
        If a vertex belongs to no query.
    """

    def __init__(self, *, masks: np.ndarray, width: int) -> None:
        super().__init__()
        masks = np.asarray(masks, bool)
        if masks.ndim != 2 or not masks.any(0).all():
            raise DataError(
                message(
                    "every vertex in at least one query's mask",
                    f"{int((~masks.any(0)).sum()) if masks.ndim == 2 else masks.shape} without",
                    "use query_masks, which adds a query for the rest",
                )
            )
        patterns, group = np.unique(masks, axis=1, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        sizes = np.bincount(group.ravel())
        self.register_buffer("mixing_GR", torch.from_numpy(patterns.T.astype(np.float32)))
        self.register_buffer("inverse_V", torch.from_numpy(np.argsort(order)))
        self.register_buffer("order_V", torch.from_numpy(order))
        bound = 1 / math.sqrt(width)
        # one parameter a group: slices of one large weight would each cost a full-size gradient
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.empty(n, width).uniform_(-bound, bound)) for n in sizes]
        )
        self.bias_V = nn.Parameter(torch.zeros(masks.shape[1]))
        self.register_buffer("count_V", torch.from_numpy(masks.sum(0).astype(np.float32)))

    def forward(self, queries_BRE: Tensor) -> Tensor:
        """Return responses, shape (B, V), in the order of the masks' vertices."""
        mixed_GBE = torch.einsum("gr,bre->gbe", self.mixing_GR.to(queries_BRE.dtype), queries_BRE)
        parts = [F.linear(m, w) for m, w in zip(mixed_GBE.unbind(0), self.weights)]
        return torch.cat(parts, 1).index_select(1, self.inverse_V) + self.count_V * self.bias_V

    def weight(self) -> Tensor:
        """Return all weights in the order of the vertices, shape (V, E)."""
        return torch.cat(list(self.weights), 0)[self.inverse_V]


class ROIQueryEncoder(nn.Module):
    """Patch tokens to responses through one cross-attention with a learned query per region and hemisphere.

    Parameters
    ----------
    masks : ndarray of bool, shape (R, V)
        From `query_masks`.
    token_width : int
        Width D of the backbone's tokens (times the number of blocks, if several are joined).
    grid : tuple of int
        Rows and columns of the patches.
    width : int, optional
        Width E; default D. If it differs from D, tokens are first projected linearly.
    n_heads : int, default 16
        Attention heads; divides E.
    ffn_width : int, default 1024
        Hidden width of the feed-forward block.
    dropout : float, default 0.1
        On attention weights, on both branches and inside the feed-forward block.

    Raises
    ------
    ConfigError
        If sizes do not fit each other.

    Notes
    -----
    Self-attention among queries is left out: with one layer and zero input it gives every query the
    same vector. Queries do not depend on the image, so their projection is computed once, not once
    an image.

    References
    ----------
    Adeli, Minni & Kriegeskorte (2023), Predicting brain activity using transformers, bioRxiv; Adeli
    et al. (2025), Transformer brain encoders explain human high-level visual responses, arXiv
    2505.17329.
    """

    def __init__(
        self,
        *,
        masks: np.ndarray,
        token_width: int,
        grid: tuple[int, int],
        width: int | None = None,
        n_heads: int = 16,
        ffn_width: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        width = width or token_width
        if width % n_heads:
            raise ConfigError(
                message(
                    "a width divisible by the number of heads",
                    f"{width} and {n_heads}",
                    "change one of them",
                )
            )
        self.n_heads, self.dropout, self.grid = n_heads, dropout, tuple(grid)
        self.project = nn.Identity() if width == token_width else nn.Linear(token_width, width)
        self.queries_RE = nn.Parameter(torch.randn(len(masks), width))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        for linear in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(linear.weight)
        self.norm_ffn, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn_width, width)
        )
        self.drop = nn.Dropout(dropout)
        self.readout = GroupedReadout(masks=masks, width=width)
        self.register_buffer("positions_PE", sine_positions(self.grid, width), persistent=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)

    def _queries_keys(self, patches_BPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if patches_BPD.ndim != 3 or patches_BPD.shape[1] != len(self.positions_PE):
            raise DataError(
                message(
                    f"patches of shape (B, {len(self.positions_PE)}, D) for a grid of {self.grid}",
                    f"{tuple(patches_BPD.shape)}",
                    "use the image size and token kind the encoder was made for",
                )
            )
        tokens_BPE = self.project(patches_BPD)
        q_HRK = self._heads(self.q(self.queries_RE))
        k_BHPK = self._heads(self.k(tokens_BPE + self.positions_PE))
        return q_HRK.expand(len(patches_BPD), -1, -1, -1), k_BHPK, tokens_BPE

    def tokens(self, patches_BPD: Tensor) -> Tensor:
        """Return one vector per query, shape (B, R, E)."""
        q, k, tokens_BPE = self._queries_keys(patches_BPD)
        v = self._heads(self.v(tokens_BPE))
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        x_BRE = self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        x_BRE = x_BRE + self.drop(self.ffn(self.norm_ffn(x_BRE)))
        return self.norm_out(x_BRE)

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Return predicted responses, shape (B, V).

        Raises
        ------
        DataError
            If the number of patches is not that of the grid.
        """
        return self.readout(self.tokens(patches_BPD))

    def attention(self, patches_BPD: Tensor) -> Tensor:
        """Return attention weights per query and head over patches, shape (B, R, H, P); each sums to 1."""
        q, k, _ = self._queries_keys(patches_BPD)
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).transpose(1, 2)

"""Multi-head attention and the transformer block of the encoders, brain transformer and fusion.

Shape suffixes: B batch, Q queries, P keys (patches or tokens), D width, H heads, K head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmfl_lab.errors import ConfigError, require


class MultiHeadAttention(nn.Module):
    """Attend from queries to a context with several heads.

    Parameters
    ----------
    width : int
        Width D of queries and output.
    n_heads : int
        Number of heads H; must divide `width`.
    value_bias : bool, default True
        Whether the value and output layers have a bias. Without a bias, zero value weights give an
        output of exactly zero.

    Raises
    ------
    ConfigError
        If `n_heads` does not divide `width`.
    """

    def __init__(
        self,
        *,
        width: int,
        n_heads: int,
        value_bias: bool = True,
    ):
        super().__init__()
        require(
            n_heads >= 1 and width % n_heads == 0,
            ConfigError,
            f"a number of heads that divides the width {width}",
            n_heads,
            f"set n_heads={math.gcd(width, max(1, n_heads))}, or choose a multiple of n_heads as "
            "the width",
        )
        self.n_heads = n_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width, bias=value_bias)
        self.output = nn.Linear(width, width, bias=value_bias)

    def memory(self, context_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a context, for several calls with the same context.

        Parameters
        ----------
        context_BPD : Tensor, shape (B, P, D)

        Returns
        -------
        key, value : Tensor, shape (B, H, P, K)
        """
        key, value = (
            layer(context_BPD).unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)
            for layer in (self.key, self.value)
        )
        return key, value

    def forward(
        self,
        x_BQD: Tensor,
        context_BPD: Tensor | None = None,
        *,
        weights: bool = False,
        memory: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return a mixture of the context's values for each query.

        Parameters
        ----------
        x_BQD : Tensor, shape (B, Q, D)
            Queries.
        context_BPD : Tensor, shape (B, P, D), optional
            Keys and values; the queries themselves when not given.
        weights : bool, default False
            Return the attention weights as well; slower, the output is the same up to rounding.
        memory : tuple of Tensor, shape (B, H, P, K) each, optional
            Result of `memory` for the context; then `context_BPD` is not read.

        Returns
        -------
        output : Tensor, shape (B, Q, D)
        weights : Tensor, shape (B, H, Q, P), or None
            Rows sum to one.

        Raises
        ------
        RuntimeError
            If widths do not agree.
        """
        q_BHQK = self.query(x_BQD).unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)
        k_BHPK, v_BHPK = (
            self.memory(x_BQD if context_BPD is None else context_BPD) if memory is None else memory
        )
        weights_BHQP = None
        if weights:
            weights_BHQP = (
                (q_BHQK @ k_BHPK.transpose(-2, -1) * q_BHQK.shape[-1] ** -0.5).float().softmax(-1)
            )
            mixed_BHQK = weights_BHQP.to(v_BHPK.dtype) @ v_BHPK
        else:
            mixed_BHQK = functional.scaled_dot_product_attention(q_BHQK, k_BHPK, v_BHPK)
        return self.output(mixed_BHQK.transpose(-3, -2).flatten(-2)), weights_BHQP


class TransformerBlock(nn.Module):
    """Apply pre-norm self-attention, then a pre-norm MLP, each with a residual.

    Parameters
    ----------
    width : int
        Width D of the tokens.
    n_heads : int
        Number of attention heads; must divide `width`.
    mlp_ratio : float, default 2
        Hidden width of the MLP divided by `width`.
    dropout : float, default 0
        Dropout rate after attention and after the MLP while training.

    Raises
    ------
    ConfigError
        If `n_heads` does not divide `width`.
    """

    def __init__(self, *, width: int, n_heads: int, mlp_ratio: float = 2.0, dropout: float = 0.0):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width=width, n_heads=n_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Return tokens of the same shape (B, P, D)."""
        x_BPD = x_BPD + self.drop(self.attention(self.norm_attention(x_BPD))[0])
        return x_BPD + self.drop(self.mlp(self.norm_mlp(x_BPD)))


def sincos_positions(n: int, width: int) -> Tensor:
    """Return fixed one-dimensional positions, shape (n, width): sines, then cosines.

    Raises
    ------
    ConfigError
        If `width` is odd.

    References
    ----------
    Vaswani et al., Attention is all you need, NeurIPS 2017; in the layout of MinD-Vis (Chen et al.,
    CVPR 2023).
    """
    require(
        width % 2 == 0,
        ConfigError,
        "an even width for sine-cosine positions",
        width,
        f"use an even width, for example {width + 1}",
    )
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = torch.arange(n, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1).float()

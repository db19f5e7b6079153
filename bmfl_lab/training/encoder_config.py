"""Choices of a brain encoder, with presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bmfl_lab.config import replace
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.models.ridge import DEFAULT_ALPHAS
from bmfl_lab.training.loop import LoopConfig


@dataclass(frozen=True)
class EncoderConfig:
    """How to make a brain encoder.

    Parameters
    ----------
    kind : {"roi_query", "ridge", "linear", "retinotopic", "ensemble"}
        ROI-query transformer; linear map by cross-validated ridge, or by gradient descent; one
        receptive field a vertex; or ridge, ROI queries and receptive fields weighted per vertex by
        validation r.
    blocks : tuple of int, default (-1,)
        Backbone blocks; several are joined along the width.
    tokens : str, default "patches"
        "cls", "cls+mean", "patches" or "pooled:G".
    features : {"tokens", "q"}
        The block's output, or the query part of its attention's input projection, which Adeli et
        al. used.
    scheme : {"rois", "streams", "hemispheres"}
        What gets a query: every ROI and the rest, the streams and the rest, or each hemisphere.
    pooling : {"auto", "mean", "grid"}
        For linear kinds: mean over patches or a weight per patch; "auto" is the mean of full
        patches, and every cell of a pooled grid.
    backbone, weights, image_size
        Override the study's backbone.
    width, n_heads, ffn_width, dropout
        Of the ROI-query transformer; width None is the tokens'.
    alphas, n_folds, leave_session_out
        Of the ridge.
    n_features, per_side
        Of the receptive fields: principal components of the tokens, candidate centres a side.
    val_fraction : float, default 0.1
        Share of "train" held out when the subject has no "val" split.
    split_seed : int, default 0
        Of that split.
    temperature : float, default 40
        Of the ensemble's softmax.
    loop : LoopConfig
        Of the gradient descent.

    References
    ----------
    Adeli et al. (2025), arXiv 2505.17329: width 768, 16 heads, feed-forward 1024, dropout 0.1,
    AdamW at 5e-4 with weight decay 1e-4, batch 16, 15 epochs, clipping at 0.1.
    """

    kind: Literal["roi_query", "ridge", "linear", "retinotopic", "ensemble"] = "roi_query"
    blocks: tuple[int, ...] = (-1,)
    tokens: str = "patches"
    features: Literal["tokens", "q"] = "tokens"
    scheme: Literal["rois", "streams", "hemispheres"] = "rois"
    pooling: Literal["auto", "mean", "grid"] = "auto"
    backbone: str | None = None
    weights: str | None = None
    image_size: int | None = None
    width: int | None = None
    n_heads: int = 16
    ffn_width: int = 1024
    dropout: float = 0.1
    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    n_folds: int = 5
    leave_session_out: bool = False
    n_features: int = 64
    per_side: int = 8
    val_fraction: float = 0.1
    split_seed: int = 0
    temperature: float = 40.0
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            epochs=15, batch_size=16, lr=5e-4, weight_decay=1e-4, clip_norm=0.1
        )
    )

    def __post_init__(self) -> None:
        if not self.blocks or not 0 < self.val_fraction < 1:
            raise ConfigError(
                message(
                    "at least one block and 0 < val_fraction < 1",
                    f"{self.blocks}, {self.val_fraction}",
                    "correct it",
                )
            )
        if self.kind in ("retinotopic", "ensemble") and self.tokens in ("cls", "cls+mean"):
            raise ConfigError(
                message(
                    f"tokens with places for kind {self.kind!r}",
                    repr(self.tokens),
                    "use 'patches' or 'pooled:G'",
                )
            )


def tiny(kind: str = "roi_query") -> EncoderConfig:
    """Return a configuration for the planted study: seconds on a CPU."""
    loop = LoopConfig(epochs=25, batch_size=64, lr=5e-3, weight_decay=1e-3, clip_norm=1.0)
    return replace(
        EncoderConfig(),
        kind=kind,
        tokens=_tokens(kind),
        width=64,
        n_heads=8,
        ffn_width=128,
        dropout=0.0,
        n_features=32,
        loop=loop,
    )


def small(kind: str = "roi_query") -> EncoderConfig:
    """Return a configuration for the demo, for backbones of 12 blocks: about a minute on a CPU.

    Notes
    -----
    Chosen on the demo's validation images: an early block for place, a late one for meaning. Early
    areas lose most with the last block alone. A ridge reads the early block on a grid.
    """
    loop = LoopConfig(epochs=12, batch_size=64, lr=2e-3, weight_decay=1e-3, clip_norm=1.0)
    blocks = (2,) if kind in ("ridge", "linear") else (2, 8)
    sizes = {"width": 192, "n_heads": 8, "ffn_width": 384}
    return replace(
        EncoderConfig(), kind=kind, blocks=blocks, tokens=_tokens(kind), loop=loop, **sizes
    )


quick = small
"""The heads of preset "quick" read the same encoder as those of "small"."""


def _tokens(kind: str) -> str:
    """Return "pooled:4" for linear maps, which lose the place of everything if tokens are averaged over the image."""
    return "pooled:4" if kind in ("ridge", "linear") else "patches"


def base(kind: str = "roi_query") -> EncoderConfig:
    """Return the settings of Adeli et al. (2025), for measured responses.

    Notes
    -----
    For linear kinds a 2 x 2 grid of pooled patches is our choice: it keeps some place, and
    cross-validation over 40,000 vertices takes minutes on a CPU, where 16 cells would take hours.
    """
    return replace(
        EncoderConfig(), kind=kind, tokens="pooled:2" if kind in ("ridge", "linear") else "patches"
    )

"""The whole path from images: frozen backbone, frozen brain encoder, region selection or lesion, fusion.

Shape suffixes: B batch, P patches, D width, V vertices, S selected vertices, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.backbones.tokens import read_tokens
from bmfl_lab.models.fusion import FusionModel, FusionOutput
from bmfl_lab.models.lesion import Lesion, apply_lesion


class BMFL(nn.Module):
    """Brain-machine fusion model for inference and explanation from images.

    Only `fusion` is trainable. Backbone and encoder stay in eval mode, receive no gradient and
    never change.

    Parameters
    ----------
    backbone : nn.Module
        ``backbone(images)`` returns an object with ``cls``, ``patches`` and ``grid``.
    encoder : nn.Module or None
        ``encoder(patches (B, P, D)) -> (B, V)``; None for a backbone-only model.
    fusion : FusionModel
        Trained on the same tokens.
    selected : ndarray of int64, shape (S,), optional
        Vertices the fusion reads; all when not given.
    mean, scale : ndarray, shape (V,), optional
        Training mean and standard deviation of the predicted responses; none for no standardising.
    pool : int, optional
        Side of the pooled patch grid that the fusion sees; None for all patches.
    block : int, default -1
        Block of the backbone whose tokens the fusion sees.
    reads : sequence of (str, int), optional
        Kind and block of each part of the tokens that the encoder reads, side by side; the patches
        of the last block by default.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024).
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        encoder: nn.Module | None,
        fusion: FusionModel,
        selected: np.ndarray | None = None,
        mean: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        pool: int | None = None,
        block: int = -1,
        reads: Sequence[tuple[str, int]] = (("patches", -1),),
    ):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.encoder = None if encoder is None else encoder.requires_grad_(False).eval()
        self.fusion, self.pool, self.block, self.reads = fusion, pool, block, tuple(reads)
        for name, value in (("selected", selected), ("mean", mean), ("scale", scale)):
            self.register_buffer(
                name, None if value is None else torch.as_tensor(np.asarray(value))
            )

    def train(self, mode: bool = True) -> BMFL:
        """Set the mode of the fusion; backbone and encoder stay in eval mode."""
        super().train(mode)
        self.backbone.eval()
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def forward(
        self,
        images: Tensor,
        *,
        lesion: Lesion | None = None,
        weights: bool = False,
        grad: bool = False,
    ) -> FusionOutput:
        """Classify images.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            Normalised as the backbone expects.
        lesion : Lesion, optional
            Applied to the predicted response, on all V vertices.
        weights : bool, default False
            Return attention weights.
        grad : bool, default False
            Let gradients reach `images`, for attribution; the backbone must take ``grad=True``, as
            those of this package do. No weight of the frozen parts receives a gradient either way.

        Returns
        -------
        FusionOutput

        Raises
        ------
        ConfigError
            As `apply_lesion`.
        """
        with contextlib.nullcontext() if grad else torch.no_grad():
            tokens, read_BPD = self._tokens(images, grad)
            response_BS = (
                None if self.encoder is None else self.select(self.encoder(read_BPD), lesion)
            )
            patches_BPD = tokens.patches
            if self.pool:
                patches_BPD = read_tokens(tokens, f"pooled:{self.pool}")
        # clones leave inference mode, so that the fusion can be trained on the outputs of the
        # frozen parts
        frozen = (t if t is None else t.clone() for t in (tokens.cls, patches_BPD, response_BS))
        return self.fusion(*frozen, weights=weights)

    def _tokens(self, images: Tensor, grad: bool) -> tuple[Any, Tensor]:
        """Return the fusion's tokens and the encoder's patches, from one pass through the backbone."""
        options = {"grad": True} if grad else {}
        if self.block == -1 and self.reads == (("patches", -1),):
            tokens = self.backbone(images, **options)
            return tokens, tokens.patches
        blocks = tuple(dict.fromkeys((self.block, *(b for _, b in self.reads))))
        found = dict(zip(blocks, self.backbone(images, blocks=blocks, **options)))
        return found[self.block], torch.cat(
            [read_tokens(found[b], kind) for kind, b in self.reads], 2
        )

    def select(self, response_BV: Tensor, lesion: Lesion | None = None) -> Tensor:
        """Return lesioned, standardised responses of the selected vertices, shape (B, S)."""
        response_BV = apply_lesion(response_BV, lesion, mean_V=self.mean)
        if self.mean is not None and self.scale is not None:
            response_BV = (response_BV - self.mean) / self.scale
        return response_BV if self.selected is None else response_BV[:, self.selected]

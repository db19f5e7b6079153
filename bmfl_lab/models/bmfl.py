"""The whole path: image -> tokens -> predicted responses -> lesion and selection -> class scores.

This is the only place where the parts are put together. Training, evaluation, attribution and the
explorer call it; they differ only in where a batch comes from.

Shape suffixes: B batch, P patches, D width, Q and E number and width of the tokens that the encoder
reads, V vertices, S selected vertices, C classes, N donors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.backbones.tokens import StoredTokens, read_tokens
from bmfl_lab.errors import ConfigError, DataError, message, require
from bmfl_lab.models.fusion import FusionModel, FusionOutput, ImageSide
from bmfl_lab.models.lesion import Lesion, apply_lesion

LAST_PATCHES = (("patches", -1),)
"""Kind and block of the tokens that an encoder reads by default."""


class TokenBatch(NamedTuple):
    """Hold the tokens of a batch of images, as a response source reads them.

    Parameters
    ----------
    cls : ndarray, shape (B, D)
        CLS tokens that the fusion reads, in the type of the store (float16) or float32.
    patches : ndarray, shape (B, P, D)
        Patch tokens that the fusion reads, of the same type.
    encoder : tuple of StoredTokens
        Tokens of the same B images for the source's own brain encoder, one per block that it reads;
        empty for a source without an encoder.
    """

    cls: np.ndarray
    patches: np.ndarray
    encoder: tuple[StoredTokens, ...] = ()


ResponseSource = Callable[[TokenBatch, Sequence[str]], np.ndarray]
"""``source(tokens, ids) -> (B, V)``: responses to a batch of images.

`tokens` is a `TokenBatch`, `ids` are the B stimulus ids. A source that reads a brain encoder's
tokens has that encoder as its attribute ``encoder``.
"""


class BMFL(nn.Module):
    """Classify images by brain-machine fusion: backbone, brain encoder, lesion, fusion.

    Only `fusion` is trainable. Backbone and encoder stay in eval mode, receive no gradient and
    never change.

    Parameters
    ----------
    backbone : nn.Module
        ``backbone(images)`` returns an object with ``cls``, ``patches`` and ``grid``.
    fusion : FusionModel, optional
        Reads tokens and selected responses; None for a path that computes tokens and responses
        only.
    encoder : nn.Module, optional
        ``encoder(tokens (B, Q, E)) -> (B, V)``, the network of a brain encoder on this backbone.
    source : callable, optional
        ``source(tokens, ids) -> (B, V)``, a `ResponseSource`: a control, or an encoder on another
        backbone. It is used where there is no `encoder`.
    selected : ndarray of int64, shape (S,), optional
        Vertices that the fusion reads; all by default.
    mean, scale : ndarray of float32, shape (V,), optional
        Training mean and standard deviation of the responses, by which they are standardised; by
        default they are not standardised. A scale of infinity keeps a vertex at its mean.
    donors : ndarray of float32, shape (N, V), optional
        Responses to training images, from which a "resample" lesion takes its replacements.
    pool : int, optional
        Side of the pooled patch grid that the fusion reads; all patches by default.
    block : int, default -1
        Block of the backbone whose tokens the fusion reads.
    reads : sequence of (str, int)
        Kind and block of each part of the tokens that the encoder reads, joined along the width;
        the patches of the last block by default.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024).
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        fusion: FusionModel | None = None,
        encoder: nn.Module | None = None,
        source: ResponseSource | None = None,
        selected: np.ndarray | None = None,
        mean: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        donors: np.ndarray | None = None,
        pool: int | None = None,
        block: int = -1,
        reads: Sequence[tuple[str, int]] = LAST_PATCHES,
    ):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.encoder = None if encoder is None else encoder.requires_grad_(False).eval()
        self.fusion, self.source = fusion, source
        self.pool, self.block, self.reads = pool, block, tuple(reads)
        arrays = {"selected": selected, "mean": mean, "scale": scale, "donors": donors}
        for name, value in arrays.items():
            tensor = None if value is None else torch.as_tensor(np.asarray(value))
            self.register_buffer(name, tensor)

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
        ids: Sequence[str] | None = None,
    ) -> FusionOutput:
        """Return class scores of images.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            Images, normalised by the backbone's ``preprocess``.
        lesion : Lesion, optional
            Replaces the predicted responses of some of the V vertices.
        weights : bool, default False
            Return attention weights.
        grad : bool, default False
            Let gradients reach `images`, for attribution; the backbone must take ``grad=True``, as
            those of this package do. No weight of the frozen parts receives a gradient either way.
        ids : sequence of str, length B, optional
            Stimulus ids; needed where the responses come from a control.

        Returns
        -------
        FusionOutput

        Raises
        ------
        ConfigError
            If the responses cannot be computed from images, or as `apply_lesion`.
        """
        with contextlib.nullcontext() if grad else torch.no_grad():
            batch = self.tokens(images, grad=grad)
            response_BV = self.respond(batch, ids)
        if response_BV is not None:
            batch["response"] = response_BV
        if not grad:
            # a clone leaves inference mode, so that the fusion can be trained on the outputs of
            # the frozen parts
            batch = {name: value.clone() for name, value in batch.items()}
        return self.classify(batch, lesion=lesion, weights=weights)

    def tokens(self, images: Tensor, *, grad: bool = False) -> dict[str, Tensor]:
        """Return the tokens of images, from one pass through the backbone.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            Images, normalised by the backbone's ``preprocess``.
        grad : bool, default False
            Let gradients reach `images`.

        Returns
        -------
        dict of str to Tensor
            ``"cls"`` (B, D) and ``"patches"`` (B, P, D) as the fusion reads them, and, where there
            is an encoder, ``"encoder"`` (B, Q, E) as the encoder reads them.
        """
        options = {"grad": True} if grad else {}
        reads = self.reads if self.encoder is not None else ()
        if self.block == -1 and reads in ((), LAST_PATCHES):
            found = {-1: self.backbone(images, **options)}
        else:
            blocks = tuple(dict.fromkeys((self.block, *(block for _, block in reads))))
            found = dict(zip(blocks, self.backbone(images, blocks=blocks, **options)))
        kind = f"pooled:{self.pool}" if self.pool else "patches"
        own = found[self.block]
        batch = {"cls": own.cls, "patches": read_tokens(own, kind)}
        if reads:
            parts = [read_tokens(found[block], kind) for kind, block in reads]
            batch["encoder"] = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        return batch

    def respond(
        self, batch: Mapping[str, Tensor], ids: Sequence[str] | None = None
    ) -> Tensor | None:
        """Return the responses to a batch: those it holds, the encoder's, or the control's.

        Parameters
        ----------
        batch : mapping of str to Tensor
            Output of `tokens`. If it holds ``"response"`` (B, V), that is returned.
        ids : sequence of str, length B, optional
            Stimulus ids; needed by a control.

        Returns
        -------
        Tensor, shape (B, V), or None
            None for a model without a brain.

        Raises
        ------
        ConfigError
            If the responses cannot be computed from the batch: the encoder has no network that
            reads tokens of this backbone, or a control lacks the ids.
        DataError
            If a control returns another number of rows, or values that are not finite.
        """
        if "response" in batch:
            return batch["response"]
        if self.encoder is not None:
            # a trained encoder that shares this network moves it to where it predicts
            return self.encoder.to(batch["encoder"].device)(batch["encoder"])
        if self.source is None:
            return None
        require(
            ids is not None,
            ConfigError,
            "the stimulus ids, from which a control computes its responses",
            "None",
            "pass ids=..., one id per image, or use a model whose responses an encoder predicts",
        )
        if getattr(self.source, "encoder", None) is not None:
            raise ConfigError(
                message(
                    "an encoder that reads tokens of the same backbone by one network",
                    "one with another backbone, with several networks, or inside a control",
                    "use stored tokens: `logits` of a stimulus set, batches='store' in training",
                )
            )
        tokens = (batch[name].float().cpu().numpy() for name in ("cls", "patches"))
        response = check_responses(self.source(TokenBatch(*tokens), ids), ids)
        return torch.from_numpy(response).to(batch["cls"].device)

    def select(
        self, response_BV: Tensor, lesion: Lesion | None = None, rows: np.ndarray | None = None
    ) -> Tensor:
        """Return lesioned, standardised responses of the selected vertices, shape (B, S).

        Parameters
        ----------
        response_BV : Tensor, shape (B, V)
            Responses as `respond` returns them.
        lesion : Lesion, optional
            Replaces the responses of some vertices.
        rows : ndarray of int64, shape (B,), optional
            Position of each response in its image set, as in `apply_lesion`.
        """
        response_BV = apply_lesion(
            response_BV, lesion, mean_V=self.mean, donors_NV=self.donors, rows=rows
        )
        if self.mean is not None:
            response_BV = (response_BV - self.mean) / self.scale
        return response_BV if self.selected is None else response_BV[:, self.selected]

    def classify(
        self,
        batch: Mapping[str, Tensor],
        *,
        lesion: Lesion | None = None,
        weights: bool = False,
        image_side: ImageSide | None = None,
        fusion: nn.Module | None = None,
    ) -> FusionOutput:
        """Return class scores of a batch of tokens and responses.

        Parameters
        ----------
        batch : mapping of str to Tensor
            ``"cls"`` (B, D) and ``"patches"`` (B, P, D). Unless the head is "backbone", also
            ``"response"`` (B, V). ``"index"`` (B,), the position of each image in its set, is
            optional: with it, a "resample" lesion gives an image the same donor in batches of any
            size.
        lesion : Lesion, optional
            Replaces the responses of some vertices.
        weights : bool, default False
            Return attention weights.
        image_side : ImageSide, optional
            Result of ``fusion.image_side`` for the same tokens. It saves time if many lesions of
            the same images are classified.
        fusion : nn.Module, optional
            Module to run instead of the path's own fusion, e.g. the same fusion wrapped by
            `accelerate` for training in several processes.

        Returns
        -------
        FusionOutput

        Raises
        ------
        ConfigError
            If a "backbone" model is lesioned, or the lesion does not fit the responses (see
            `apply_lesion`).
        """
        response_BS = None
        if self.fusion.head != "backbone":
            rows = batch["index"].cpu().numpy() if "index" in batch and lesion else None
            response_BS = self.select(batch["response"], lesion, rows)
        elif lesion is not None:
            raise ConfigError(
                message(
                    "a model with a brain to lesion", "head 'backbone'", "lesion a fusion model"
                )
            )
        fusion = self.fusion if fusion is None else fusion
        options = {} if image_side is None else {"image_side": image_side}
        return fusion(
            batch["cls"].float(), batch["patches"].float(), response_BS, weights=weights, **options
        )


def check_responses(
    response: np.ndarray, ids: Sequence[str], n_vertices: int | None = None
) -> np.ndarray:
    """Return the responses of a source as float32 (B, V), refusing what is not one row per image.

    Raises
    ------
    DataError
        If the shape is not (B, V) or a value is not finite.
    """
    response = np.asarray(response, dtype=np.float32)
    require(
        response.ndim == 2
        and len(response) == len(ids)
        and n_vertices in (None, response.shape[1]),
        DataError,
        f"responses of shape ({len(ids)}, {n_vertices or 'n_vertices'})",
        f"shape {response.shape}",
        "let the response source return one row per stimulus",
    )
    fine = np.isfinite(response).all(1)
    if not fine.all():
        raise DataError(
            message(
                "finite responses",
                f"NaN or infinity for {str(ids[int(np.flatnonzero(~fine)[0])])!r}",
                "let the response source return finite values for this image",
            )
        )
    return response

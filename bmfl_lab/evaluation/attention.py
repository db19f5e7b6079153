"""Attention maps of every stage of the path: backbone, brain encoder and fusion.

Every function takes trained objects and stimuli and returns arrays. Models record attention only
when these functions call them.

Shape suffixes: B batch, T tokens (CLS, registers, patches), P patches, H heads, R queries or brain
tokens, h and w rows and columns of patches, n stimuli.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.backbones.tokens import StoredTokens, stored_patches
from bmfl_lab.data.atlas import HEMISPHERES, Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, require, require_known
from bmfl_lab.models.encoders import ROIQueryEncoder
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.training.fusion import TrainedFusion
from bmfl_lab.training.trained_encoder import TrainedEncoder

_BATCH = 8
_REST = ("rest", "all")


def seen_images(backbone: Backbone, stimuli: StimulusSet) -> np.ndarray:
    """Return images after the resizing and cropping of the backbone, to draw maps on.

    Resizing and cropping move the content of an image, so that a map fits these pixels and not the
    original image.

    Parameters
    ----------
    backbone : Backbone
        Backbone whose preprocessing is applied.
    stimuli : StimulusSet
        Images.

    Returns
    -------
    ndarray of uint8, shape (n_stimuli, image_size, image_size, 3)

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    pixels = [backbone.preprocess.crop(stimuli.image(i)) for i in range(len(stimuli))]
    return np.asarray(pixels, np.uint8).reshape(-1, backbone.image_size, backbone.image_size, 3)


def image_batches(
    backbone: Backbone, stimuli: StimulusSet, batch_size: int = _BATCH
) -> Iterator[Tensor]:
    """Yield preprocessed images on the device of the backbone.

    Parameters
    ----------
    backbone : Backbone
        Backbone whose preprocessing is applied.
    stimuli : StimulusSet
        Images.
    batch_size : int, default 8
        Number of images per batch.

    Yields
    ------
    Tensor of float32, shape (B, 3, H, W)

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    for start in range(0, len(stimuli), batch_size):
        rows = range(start, min(start + batch_size, len(stimuli)))
        yield torch.stack([backbone.preprocess(stimuli.image(i)) for i in rows]).to(backbone.device)


def backbone_attention(
    backbone: Backbone,
    stimuli: StimulusSet,
    *,
    blocks: Sequence[int] | None = None,
    heads: str = "each",
    normalise: bool = True,
    batch_size: int = _BATCH,
) -> np.ndarray:
    """Return how strongly the CLS token attends to each patch.

    Parameters
    ----------
    backbone : Backbone
        Any vision transformer of this package.
    stimuli : StimulusSet
        Images.
    blocks : sequence of int, optional
        Block indices; all blocks by default.
    heads : {"each", "mean"}, default "each"
        One map per head, or their mean (the axis stays, with length 1).
    normalise : bool, default True
        Divide each map by its sum over patches. With False, a map sums to less than 1: the rest is
        the attention to the CLS token itself and to registers, which belong to no place in the
        image.
    batch_size : int, default 8
        Number of images per forward pass.

    Returns
    -------
    ndarray of float32, shape (n_stimuli, n_blocks, n_heads, h, w)

    Raises
    ------
    ConfigError
        If a block does not exist, or `heads` is unknown.
    DataError
        If an image cannot be read.
    """
    require_known(heads, ("each", "mean"), ConfigError, "heads 'each' or 'mean'")
    wanted = backbone.indices(range(backbone.n_blocks) if blocks is None else tuple(blocks))
    parts = []
    for images in image_batches(backbone, stimuli, batch_size):
        tokens = backbone(images, blocks=wanted, attention=True)
        first = 1 + backbone.n_registers  # the CLS token and the registers come before the patches
        weights = torch.stack([t.attention[:, :, 0, first:] for t in tokens], 1)
        weights = weights.mean(2, keepdim=True) if heads == "mean" else weights
        weights = weights / weights.sum(-1, keepdim=True) if normalise else weights
        parts.append(weights.unflatten(-1, tokens[0].grid).cpu().numpy())
    return _joined(
        parts, (len(wanted), 1 if heads == "mean" else backbone.n_heads, *_grid(backbone))
    )


def rollout(
    backbone: Backbone,
    stimuli: StimulusSet,
    *,
    residual: float = 0.5,
    registers: bool = True,
    batch_size: int = _BATCH,
) -> np.ndarray:
    """Return attention rollout from the last block's CLS token to the patches.

    The mean attention A over the heads of each block is replaced by ``(1 - residual) A +
    residual I``. The product over blocks is the share of each input token in the CLS token under
    the assumption that information moves between tokens by attention alone.

    Parameters
    ----------
    backbone, stimuli, batch_size
        Same as in `backbone_attention`.
    residual : float, default 0.5
        Share of the skip connection, from 0 to below 1; 0.5 as in the paper.
    registers : bool, default True
        Keep the register tokens in the product. With False, their rows and columns are removed from
        every block and the other weights are divided by their sum. Registers are never among the
        returned patches.

    Returns
    -------
    ndarray of float32, shape (n_stimuli, h, w)
        Each map sums to 1.

    Raises
    ------
    ConfigError
        If `residual` is not from 0 to below 1.
    DataError
        If an image cannot be read.

    References
    ----------
    Abnar & Zuidema (2020), Quantifying attention flow in transformers, ACL, arXiv:2005.00928.
    """
    require(
        0 <= residual < 1,
        ConfigError,
        "a residual share from 0 to below 1",
        repr(residual),
        "use 0.5, as in the paper",
    )
    parts = []
    for images in image_batches(backbone, stimuli, batch_size):
        tokens = backbone(images, blocks=range(backbone.n_blocks), attention=True)
        layers, n_registers = [t.attention.mean(1) for t in tokens], backbone.n_registers
        if not registers:
            layers = [_without_registers(mean_BTT, n_registers) for mean_BTT in layers]
            n_registers = 0
        cls_BP = _roll_out(layers, residual)[:, 0, 1 + n_registers :]
        cls_BP = cls_BP / cls_BP.sum(-1, keepdim=True)
        parts.append(cls_BP.unflatten(-1, tokens[0].grid).cpu().numpy())
    return _joined(parts, _grid(backbone))


def _roll_out(layers: Sequence[Tensor], residual: float) -> Tensor:
    """Return the product (B, T, T) of attention matrices with skip connections, last one left."""
    total, identity = None, torch.eye(layers[0].shape[-1]).to(layers[0])
    for weights_BTT in layers:
        step = (1 - residual) * weights_BTT + residual * identity
        step = step / step.sum(-1, keepdim=True)
        total = step if total is None else step @ total
    return total


def _without_registers(weights_BTT: Tensor, n_registers: int) -> Tensor:
    """Return attention among CLS and patches alone, with rows that sum to 1."""
    kept = [0, *range(1 + n_registers, weights_BTT.shape[-1])]
    reduced = weights_BTT[:, kept][:, :, kept]
    return reduced / reduced.sum(-1, keepdim=True)


def query_names(encoder: TrainedEncoder) -> tuple[str, ...]:
    """Return the name of each ROI query of an encoder, e.g. ``"left:V1"`` or ``"right:rest"``.

    Parameters
    ----------
    encoder : TrainedEncoder
        Encoder with an ROI-query transformer inside.

    Returns
    -------
    tuple of str, length n_queries

    Raises
    ------
    ConfigError
        If the encoder has no ROI queries.
    """
    return tuple(_query_name(mask, encoder.atlas) for mask in query_vertices(encoder))


def query_vertices(encoder: TrainedEncoder) -> np.ndarray:
    """Return which vertices are read out from each ROI query, bool (n_queries, n_vertices).

    Raises
    ------
    ConfigError
        If the encoder has no ROI queries.
    """
    readout = queries_of(encoder).readout
    counts = torch.as_tensor([len(w) for w in readout.weights], device=readout.mixing_GR.device)
    return readout.mixing_GR.bool().repeat_interleave(counts, 0)[readout.inverse_V].T.cpu().numpy()


def _query_name(mask: np.ndarray, atlas: Atlas) -> str:
    side = int(np.asarray(atlas.hemisphere)[mask][0])
    here = np.asarray(atlas.hemisphere) == side
    for name in atlas.present:
        if np.array_equal(np.asarray(atlas.rois[name], bool) & here, mask):
            return f"{HEMISPHERES[side]}:{name}"
    return f"{HEMISPHERES[side]}:{_REST[int(mask.sum() == here.sum())]}"


def queries_of(encoder: TrainedEncoder) -> ROIQueryEncoder:
    """Return the ROI-query transformer inside an encoder.

    Raises
    ------
    ConfigError
        If there is none.
    """
    queries = encoder.query_module()
    require(
        queries is not None,
        ConfigError,
        "an encoder with ROI queries",
        f"{encoder.label!r}",
        "train one of kind 'roi_query' or 'ensemble'",
    )
    return queries


def roi_attention(
    encoder: TrainedEncoder,
    stimuli: StimulusSet,
    *,
    store: FeatureStore | None = None,
    backbone: Backbone | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Return how strongly each ROI query of the brain encoder attends to each image patch.

    Parameters
    ----------
    encoder : TrainedEncoder
        Encoder with an ROI-query transformer inside.
    stimuli : StimulusSet
        Images.
    store : FeatureStore, optional
        Store of the tokens; without one they are computed.
    backbone : Backbone, optional
        The backbone of the encoder, if it is loaded already; it is loaded by default.
    batch_size : int, default 32
        Number of images per forward pass.

    Returns
    -------
    ndarray of float32, shape (n_stimuli, n_queries, n_heads, h, w)
        Each map sums to 1; `query_names` returns the names of the queries.

    Raises
    ------
    ConfigError
        If the encoder has no ROI queries.
    DataError
        If an image cannot be read.

    References
    ----------
    Adeli et al. (2025), Transformer brain encoders explain human high-level visual responses,
    arXiv:2505.17329: one query per ROI, after Carion et al. (2020), DETR, arXiv:2005.12872.
    """
    return query_weights(
        encoder, encoder.tokens(stimuli, store=store, backbone=backbone), batch_size
    )


def query_weights(
    encoder: TrainedEncoder, stored: Sequence[StoredTokens], batch_size: int = 32
) -> np.ndarray:
    """Return the maps of `roi_attention` from tokens that `TrainedEncoder.tokens` returned."""
    query, patches = queries_of(encoder), stored_patches(stored)
    device, parts = next(query.parameters()).device, []
    for start in range(0, len(patches), batch_size):
        rows = torch.from_numpy(np.array(patches[start : start + batch_size], np.float32)).to(
            device
        )
        with torch.inference_mode():
            parts.append(query.attention(rows).unflatten(-1, query.grid).cpu().numpy())
    return _joined(parts, (len(query.queries_RE), query.n_heads, *query.grid))


def consulted_rois(
    fusion: TrainedFusion, stimuli: StimulusSet, *, query: str = "cls", lesion: Lesion | None = None
) -> pd.DataFrame:
    """Return the cross-attention weight of the image on each brain token, averaged over heads.

    Parameters
    ----------
    fusion : TrainedFusion
        Model with cross-attention.
    stimuli : StimulusSet
        Images.
    query : {"cls", "patch"}, default "cls"
        Which image token is the query: the CLS token, or each patch, averaged over patches (models
        with patch queries only).
    lesion : Lesion, optional
        Replaces the predicted responses of some vertices.

    Returns
    -------
    DataFrame
        One row per image (index: its id), one column per brain token (name of its parcel). Rows
        sum to 1.

    Raises
    ------
    ConfigError
        If the model has no cross-attention, or `query` is "patch" and it has no patch queries.

    Notes
    -----
    The brain transformer mixes parcels before the cross-attention. A large weight on the token
    "left:V1" therefore does not show that the response of V1 decides the class; region ablation
    tests that.
    """
    attention = fusion.attention(stimuli, lesion)
    return pd.DataFrame(
        select_queries(attention["vb"], query).mean((1, 2)),
        index=pd.Index(map(str, stimuli.ids), name="image"),
        columns=list(attention["brain_tokens"]),
    )


def patch_consultation(
    fusion: TrainedFusion, stimuli: StimulusSet, *, lesion: Lesion | None = None
) -> np.ndarray:
    """Return how strongly each image patch attends to each brain token.

    Parameters
    ----------
    fusion, stimuli, lesion
        Same as in `consulted_rois`; the model needs patch queries.

    Returns
    -------
    ndarray of float32, shape (n_stimuli, n_heads, n_brain_tokens, h, w)
        At each patch the weights over brain tokens sum to 1.

    Raises
    ------
    ConfigError
        If the model has no patch queries.
    """
    attention = fusion.attention(stimuli, lesion)
    weights = select_queries(attention["vb"], "patch")
    return np.moveaxis(weights, 2, -1).reshape(*weights.shape[:2], -1, *attention["grid"])


def brain_attention(
    fusion: TrainedFusion, stimuli: StimulusSet, *, lesion: Lesion | None = None
) -> np.ndarray:
    """Return how strongly the CLS token of the brain attends to each image patch.

    Parameters
    ----------
    fusion, stimuli, lesion
        Same as in `consulted_rois`.

    Returns
    -------
    ndarray of float32, shape (n_stimuli, n_heads, h, w)
        Each map sums to 1.

    Raises
    ------
    ConfigError
        If the model has no cross-attention.
    """
    return brain_maps(fusion.attention(stimuli, lesion))


def brain_maps(attention: Mapping[str, np.ndarray | tuple[int, int]]) -> np.ndarray:
    """Return the maps of `brain_attention`, (n, H, h, w), from weights ``"bv"`` and ``"grid"``."""
    weights = attention["bv"][:, :, 0]
    return weights.reshape(*weights.shape[:2], *attention["grid"])


def select_queries(weights: np.ndarray, query: str) -> np.ndarray:
    """Return the rows of weights ``"vb"`` (n, H, 1 or 1 + P, R) whose query is CLS or a patch.

    Raises
    ------
    ConfigError
        If `query` is unknown, or there are no patch queries.
    """
    require_known(query, ("cls", "patch"), ConfigError, "query 'cls' or 'patch'")
    require(
        query != "patch" or weights.shape[2] != 1,
        ConfigError,
        "a model with patch queries",
        "CLS queries only",
        "train it with query='patch'",
    )
    return weights[:, :, :1] if query == "cls" else weights[:, :, 1:]


def _grid(backbone: Backbone) -> tuple[int, int]:
    return backbone.grid_of(backbone.image_size, backbone.image_size)


def _joined(parts: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, *shape), np.float32)

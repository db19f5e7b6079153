"""Attention maps of every stage of the path: backbone, brain encoder and fusion.

Every function takes trained objects and stimuli and returns arrays; nothing is captured while
models run otherwise.

Shape suffixes: B batch, T tokens (CLS, registers, patches), P patches, H heads, R queries or brain
tokens, h and w rows and columns of patches, n stimuli.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bmfl_lab.data.atlas import HEMISPHERES, Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.models.lesion import Lesion

_BATCH = 8
REST = ("rest", "all")


def seen_images(backbone: Any, stimuli: StimulusSet) -> np.ndarray:
    """Return the pixels that maps lie on, uint8 (n_stimuli, image_size, image_size, 3).

    Resizing and cropping move the image's content: a map belongs on these pixels, not on the
    original image.

    Parameters
    ----------
    backbone : Backbone
        Whose preprocessing is applied.
    stimuli : StimulusSet
        Images.

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    side = backbone.image_size
    found = np.empty((len(stimuli), side, side, 3), np.uint8)
    for i in range(len(stimuli)):
        found[i] = backbone.preprocess.crop(stimuli.image(i))
    return found


def image_batches(
    backbone: Any, stimuli: StimulusSet, batch_size: int = _BATCH
) -> Iterator[Tensor]:
    """Yield preprocessed images (B, 3, H, W) on the backbone's device.

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    for start in range(0, len(stimuli), batch_size):
        rows = range(start, min(start + batch_size, len(stimuli)))
        yield torch.stack([backbone.preprocess(stimuli.image(i)) for i in rows]).to(backbone.device)


def backbone_attention(
    backbone: Any,
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
        Block indices; all blocks when not given.
    heads : {"each", "mean"}
        One map a head, or their mean (the axis stays, with length 1).
    normalise : bool, default True
        Let each map sum to 1 over patches. False keeps the weights as computed; what is missing
        from 1 went to the CLS token itself and to registers, which stand for no place and are never
        drawn.
    batch_size : int
        Images at a time.

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
    check_heads(heads)
    wanted = backbone.indices(range(backbone.n_blocks) if blocks is None else tuple(blocks))
    parts = []
    for images in image_batches(backbone, stimuli, batch_size):
        found = backbone(images, blocks=wanted, attention=True)
        weights = torch.stack(
            [patch_columns(t.attention[:, :, 0], backbone.n_registers) for t in found], 1
        )
        weights = weights.mean(2, keepdim=True) if heads == "mean" else weights
        weights = weights / weights.sum(-1, keepdim=True) if normalise else weights
        parts.append(weights.unflatten(-1, found[0].grid).cpu().numpy())
    return _joined(
        parts, (len(wanted), 1 if heads == "mean" else backbone.n_heads, *_grid(backbone))
    )


def patch_columns(weights: Tensor, n_registers: int) -> Tensor:
    """Return the patches' part (..., P) of weights over all tokens (..., T): CLS and registers come first."""
    return weights[..., 1 + n_registers :]


def rollout(
    backbone: Any,
    stimuli: StimulusSet,
    *,
    residual: float = 0.5,
    registers: bool = True,
    batch_size: int = _BATCH,
) -> np.ndarray:
    """Return attention rollout from the last block's CLS token to the patches.

    Each block's mean over heads, A, becomes ``(1 - residual) A + residual I``; the product over
    blocks says how much of each input token reaches the CLS token, if attention were all that moves
    information.

    Parameters
    ----------
    backbone, stimuli, batch_size
        As `backbone_attention`.
    residual : float, default 0.5
        Share of the skip connection.
    registers : bool, default True
        Keep register tokens as way stations of the product. False takes their rows and columns out
        of every block and lets the rest sum to 1 again. In neither case are they among the patches
        that are returned.

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
    if not 0 <= residual < 1:
        raise ConfigError(
            message(
                "a residual share from 0 to below 1", repr(residual), "use 0.5, as in the paper"
            )
        )
    parts = []
    for images in image_batches(backbone, stimuli, batch_size):
        found = backbone(images, blocks=range(backbone.n_blocks), attention=True)
        kept, n_registers = (slice(None), backbone.n_registers) if registers else (None, 0)
        layers = []
        for tokens in found:
            mean_BTT = tokens.attention.mean(1)
            if kept is None:
                mean_BTT = without_registers(mean_BTT, backbone.n_registers)
            layers.append(mean_BTT)
        cls_BP = patch_columns(rolled(layers, residual)[:, 0], n_registers)
        parts.append(
            (cls_BP / cls_BP.sum(-1, keepdim=True)).unflatten(-1, found[0].grid).cpu().numpy()
        )
    return _joined(parts, _grid(backbone))


def rolled(layers: Sequence[Tensor], residual: float = 0.5) -> Tensor:
    """Return the product of attention matrices (B, T, T) with skip connections, first layer rightmost."""
    total = None
    for weights_BTT in layers:
        identity = torch.eye(
            weights_BTT.shape[-1], device=weights_BTT.device, dtype=weights_BTT.dtype
        )
        step = (1 - residual) * weights_BTT + residual * identity
        step = step / step.sum(-1, keepdim=True)
        total = step if total is None else step @ total
    return total


def without_registers(weights_BTT: Tensor, n_registers: int) -> Tensor:
    """Return attention among CLS and patches alone, rows summing to 1 again."""
    kept = [0, *range(1 + n_registers, weights_BTT.shape[-1])]
    reduced = weights_BTT[:, kept][:, :, kept]
    return reduced / reduced.sum(-1, keepdim=True)


def query_names(encoder: Any) -> tuple[str, ...]:
    """Return the name of each ROI query of an encoder: ``"left:V1"``, ``"right:rest"``.

    Parameters
    ----------
    encoder : TrainedEncoder
        With an ROI-query transformer inside.

    Raises
    ------
    ConfigError
        If the encoder has no ROI queries.
    """
    return tuple(_query_name(mask, encoder.atlas) for mask in query_vertices(encoder))


def query_vertices(encoder: Any) -> np.ndarray:
    """Return which vertices each ROI query reads out, bool (n_queries, n_vertices).

    Raises
    ------
    ConfigError
        As `query_names`.
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
    return f"{HEMISPHERES[side]}:{REST[int(mask.sum() == here.sum())]}"


def queries_of(encoder: Any) -> Any:
    """Return the ROI-query transformer inside an encoder.

    Raises
    ------
    ConfigError
        If there is none.
    """
    found = encoder.query_module()
    if found is None:
        raise ConfigError(
            message(
                "an encoder with ROI queries",
                f"{encoder.label!r}",
                "train one of kind 'roi_query' or 'ensemble'",
            )
        )
    return found


def roi_attention(
    encoder: Any,
    stimuli: StimulusSet,
    *,
    store: Any = None,
    backbone: Any = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Return how strongly each ROI query attends to each image patch.

    Parameters
    ----------
    encoder : TrainedEncoder
        With an ROI-query transformer inside.
    stimuli : StimulusSet
        Images.
    store : FeatureStore, optional
        Where the tokens are kept; computed anew without one.
    backbone : Backbone, optional
        The encoder's backbone, if it is loaded already.
    batch_size : int
        Images at a time.

    Returns
    -------
    ndarray of float32, shape (n_stimuli, n_queries, n_heads, h, w)
        Each map sums to 1. The queries are named by `query_names`.

    Raises
    ------
    ConfigError
        As `query_names`.
    DataError
        If an image cannot be read.
    """
    return query_weights(
        encoder, encoder.tokens(stimuli, store=store, backbone=backbone), batch_size
    )


def query_weights(encoder: Any, stored: Sequence[Any], batch_size: int = 32) -> np.ndarray:
    """Return the maps of `roi_attention` from tokens at hand, as `TrainedEncoder.tokens` gives them."""
    query, patches = queries_of(encoder), token_patches(stored)
    device, parts = next(query.parameters()).device, []
    for start in range(0, len(patches), batch_size):
        rows = torch.from_numpy(np.array(patches[start : start + batch_size], np.float32)).to(
            device
        )
        with torch.inference_mode():
            parts.append(query.attention(rows).unflatten(-1, query.grid).cpu().numpy())
    return _joined(parts, (len(query.queries_RE), query.n_heads, *query.grid))


def token_patches(stored: Sequence[Any]) -> np.ndarray:
    """Return stored tokens of one or more blocks as patches, shape (n, P, D * n_blocks)."""
    parts = [
        np.asarray(s.patches if s.patches is not None else s.features()[:, None]) for s in stored
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def consulted_rois(
    fusion: Any, stimuli: StimulusSet, *, query: str = "cls", lesion: Lesion | None = None
) -> pd.DataFrame:
    """Return how much the image consults each brain token, mean over heads.

    Parameters
    ----------
    fusion : TrainedFusion
        With cross-attention.
    stimuli : StimulusSet
        Images.
    query : {"cls", "patch"}
        Who asks: the CLS token, or the mean over patches (models with patch queries only).
    lesion : Lesion, optional
        Applied to the predicted response first.

    Returns
    -------
    DataFrame, one row an image (index: its id), one column a brain token (parcel name)
        Rows sum to 1.

    Raises
    ------
    ConfigError
        If the model has no cross-attention, or no patch queries where they are asked for.

    Notes
    -----
    Brain tokens have passed the brain transformer, which mixes parcels: weight on the token
    "left:V1" is weight on that place of the sequence, not proof that V1's response decides. Region
    ablation answers that.
    """
    found = fusion.attention(stimuli, lesion)
    weights = asked(found["vb"], query)
    return pd.DataFrame(
        weights.mean((1, 2)),
        index=pd.Index(map(str, stimuli.ids), name="image"),
        columns=list(found["brain_tokens"]),
    )


def patch_consultation(
    fusion: Any, stimuli: StimulusSet, *, lesion: Lesion | None = None
) -> np.ndarray:
    """Return which brain token each image patch consults, float32 (n_stimuli, n_heads, n_brain_tokens, h, w).

    At each place the weights over brain tokens sum to 1.

    Raises
    ------
    ConfigError
        If the model has no patch queries.
    """
    found = fusion.attention(stimuli, lesion)
    weights = asked(found["vb"], "patch")
    return np.moveaxis(weights, 2, -1).reshape(*weights.shape[:2], -1, *found["grid"])


def brain_attention(
    fusion: Any, stimuli: StimulusSet, *, lesion: Lesion | None = None
) -> np.ndarray:
    """Return how strongly the brain's CLS token attends to each image patch, float32 (n_stimuli, n_heads, h, w).

    Each map sums to 1.

    Raises
    ------
    ConfigError
        If the model has no cross-attention.
    """
    return brain_maps(fusion.attention(stimuli, lesion))


def brain_maps(found: Mapping[str, Any]) -> np.ndarray:
    """Return the maps of `brain_attention` from a model's answer with its weights ``bv`` and ``grid``."""
    weights = found["bv"][:, :, 0]
    return weights.reshape(*weights.shape[:2], *found["grid"])


def asked(weights: np.ndarray, query: str) -> np.ndarray:
    """Return the rows (n, H, Q, R) of who asks, of a model's weights ``vb``; parameters as `consulted_rois`."""
    if query not in ("cls", "patch"):
        raise ConfigError(message("query 'cls' or 'patch'", repr(query), "choose one of the two"))
    if query == "patch" and weights.shape[2] == 1:
        raise ConfigError(
            message("a model with patch queries", "CLS queries only", "train it with query='patch'")
        )
    return weights[:, :, :1] if query == "cls" else weights[:, :, 1:]


def check_heads(heads: str) -> None:
    """Refuse an unknown way to treat heads.

    Raises
    ------
    ConfigError
    """
    if heads not in ("each", "mean"):
        raise ConfigError(message("heads 'each' or 'mean'", repr(heads), "choose one of the two"))


def _grid(backbone: Any) -> tuple[int, int]:
    return backbone.grid_of(backbone.image_size, backbone.image_size)


def _joined(parts: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, *shape), np.float32)

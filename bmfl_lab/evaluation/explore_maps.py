"""Attention maps of one image for the widgets: from the backbone, the brain encoder and the fusion.

Shape suffixes: H heads, P patches, T tokens, R brain tokens or queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bmfl_lab.errors import ConfigError, message, nearest

BACKBONE, ENCODER = "backbone: CLS over patches", "encoder: ROI query over patches"
CONSULTED, LOOKED = "fusion: image over ROIs", "fusion: brain over patches"


def sources(explorer: Any) -> tuple[str, ...]:
    """Return the attention sources at hand, the backbone's always."""
    found = [BACKBONE]
    if _query_module(explorer) is not None:
        found.append(ENCODER)
    if any(_has_fusion(explorer._model(m)) for m in explorer.models):
        found += [CONSULTED, LOOKED]
    return tuple(found)


def _has_fusion(model: Any) -> bool:
    return getattr(getattr(model, "config", None), "head", "") == "fusion"


def _query_module(explorer: Any) -> Any:
    ask = getattr(explorer.encoder, "query_module", None)
    return ask() if ask else None


def query_names(module: Any, atlas: Any) -> tuple[str, ...]:
    """Return the name ("left:V1") of each query of a ROI-query encoder, found from the vertices it reads out."""
    readout = module.readout
    counts = torch.tensor([len(w) for w in readout.weights])
    masks_RV = readout.mixing_GR.bool().repeat_interleave(counts, 0)[readout.inverse_V].T.numpy()
    side = np.asarray(atlas.hemisphere)
    regions = {
        f"{s}:{r}": np.asarray(m, bool) & (side == i)
        for r, m in atlas.rois.items()
        for i, s in ((0, "left"), (1, "right"))
    }
    names = []
    for number, mask in enumerate(masks_RV):
        same = [name for name, region in regions.items() if np.array_equal(region, mask)]
        half = "left" if not mask[side == 1].any() else "right" if not mask[side == 0].any() else f"query {number}"
        names.append(same[0] if same else f"{half}:rest")
    return tuple(names)


def choices(explorer: Any, source: str, model: str = "") -> dict[str, Any]:
    """Return the number of heads and blocks and the region names of a source."""
    if source == BACKBONE:
        return {"n_heads": explorer.backbone.n_heads, "n_blocks": explorer.backbone.n_blocks, "regions": ()}
    if source == ENCODER:
        module = _query_module(explorer)
        if module is None:
            raise ConfigError(
                message(
                    "a ROI-query encoder", "another kind or none", "train one with presets(..., encoder='roi_query')"
                )
            )
        return {"n_heads": module.n_heads, "n_blocks": 1, "regions": query_names(module, explorer.atlas)}
    if source in (CONSULTED, LOOKED):
        return {"n_heads": _fusion(explorer, model).config.n_heads, "n_blocks": 1, "regions": ()}
    raise ConfigError(message("an attention source", repr(source), nearest(source, sources(explorer))))


def _fusion(explorer: Any, model: str) -> Any:
    found = explorer._model(model or next(iter(explorer.models), ""))
    if not _has_fusion(found):
        raise ConfigError(
            message("a model with cross-attention", f"{model!r}, which has none", "choose a model with head='fusion'")
        )
    return found


def attention(
    explorer: Any,
    source: str,
    name: str,
    index: int,
    shift: str = "",
    severity: int = 3,
    *,
    model: str = "",
    block: int = -1,
    head: int = -1,
    region: str = "",
) -> dict[str, Any]:
    """Return the attention of one image.

    Parameters
    ----------
    explorer : Explorer
        Of the study and its models.
    source : str
        One of `sources`.
    name, index, shift, severity
        Which image.
    model : str
        For the fusion's attention.
    block : int, default -1
        Block of the backbone.
    head : int, default -1
        A head; -1 for the mean over heads.
    region : str
        Query of the encoder, e.g. "left:V1"; the first one by default.

    Returns
    -------
    dict
        ``map`` (h, w), summing to the share of attention that patches get; or, for "fusion: image over ROIs",
        ``weights`` (R,) summing to 1 and their ``regions``.

    Raises
    ------
    ConfigError
        If the source, head, block or region does not exist in the models at hand.
    """
    known = choices(explorer, source, model)
    if not -1 <= head < known["n_heads"]:
        raise ConfigError(message(f"a head from 0 to {known['n_heads'] - 1}, or -1", str(head), "choose another head"))
    key = ("attention", source, name, index, shift, shift and severity, model, block)
    if source == BACKBONE:
        weights_HP, grid = explorer._remember(
            key, lambda: _backbone_maps(explorer, name, index, shift, severity, block)
        )
        return {"map": _pick(weights_HP, head).reshape(grid)}
    if source == ENCODER:
        regions = known["regions"]
        if region and region not in regions:
            raise ConfigError(message("a region with a query in this subject", repr(region), nearest(region, regions)))
        weights_RHP, grid = explorer._remember(key, lambda: _query_maps(explorer, name, index, shift, severity))
        return {"map": _pick(weights_RHP[regions.index(region) if region else 0], head).reshape(grid)}
    key = ("attention", "fusion", *key[2:])  # one forward pass gives both directions
    found = explorer._remember(key, lambda: _fused(explorer, model, name, index, shift, severity))
    if source == CONSULTED:
        names = _fusion(explorer, model).module.brain.tokeniser.names
        return {"weights": _pick(found["vb"][0].mean(1), head), "regions": tuple(names)}
    return {"map": _pick(found["bv"][0].mean(1), head).reshape(found["grid"])}


def _fused(explorer: Any, model: str, name: str, index: int, shift: str, severity: int) -> dict[str, Any]:
    _fusion(explorer, model)
    return explorer._answer(model or next(iter(explorer.models)), name, index, shift, severity, None, weights=True)


def _pick(weights_HX: np.ndarray, head: int) -> np.ndarray:
    return weights_HX.mean(0) if head < 0 else weights_HX[head]


def _backbone_maps(explorer: Any, name: str, index: int, shift: str, severity: int, block: int) -> tuple:
    backbone = explorer.backbone
    image = backbone.preprocess(explorer._one(name, index, shift, severity).image(0))[None].to(backbone.device)
    (tokens,) = backbone(image, blocks=(block,), attention=True)
    # registers stand for no place in the image
    return tokens.attention[0, :, 0, 1 + backbone.n_registers :].float().cpu().numpy(), tokens.grid


def _query_maps(explorer: Any, name: str, index: int, shift: str, severity: int) -> tuple:
    module, encoder = _query_module(explorer), explorer.encoder
    tokens = encoder.tokens(explorer._one(name, index, shift, severity), backbone=explorer._same_backbone())
    patches = np.concatenate([t.patches for t in tokens], axis=2)
    with torch.inference_mode():
        weights_RHP = module.attention(torch.from_numpy(patches.astype(np.float32)))[0].numpy()
    return weights_RHP, tokens[0].grid

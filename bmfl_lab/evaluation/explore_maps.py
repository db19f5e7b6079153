"""Attention maps of one image for the widgets: from the backbone, the brain encoder and the fusion.

Shape suffixes: L blocks, H heads, R queries, h and w rows and columns of patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.evaluation.attention import (
    asked,
    backbone_attention,
    brain_maps,
    query_names,
    query_weights,
)
from bmfl_lab.evaluation.explore_tokens import for_encoder

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


def models(explorer: Any, source: str) -> tuple[str, ...]:
    """Return the names of the models that can show a source."""
    needs = source in (CONSULTED, LOOKED)
    return tuple(m for m in explorer.models if not needs or _has_fusion(explorer._model(m)))


def _query_module(explorer: Any) -> Any:
    ask = getattr(explorer.encoder, "query_module", None)
    return ask() if ask else None


def choices(explorer: Any, source: str, model: str = "") -> dict[str, Any]:
    """Return the number of heads and blocks and the region names of a source."""
    if source == BACKBONE:
        return {
            "n_heads": explorer.backbone.n_heads,
            "n_blocks": explorer.backbone.n_blocks,
            "regions": (),
        }
    if source == ENCODER:
        module = _query_module(explorer)
        if module is None:
            raise ConfigError(
                message(
                    "a ROI-query encoder",
                    "another kind or none",
                    "train one with presets(..., encoder='roi_query')",
                )
            )
        names = explorer._remember(("query names",), lambda: query_names(explorer.encoder))
        return {"n_heads": module.n_heads, "n_blocks": 1, "regions": names}
    if source in (CONSULTED, LOOKED):
        return {"n_heads": _fusion(explorer, model).config.n_heads, "n_blocks": 1, "regions": ()}
    raise ConfigError(
        message("an attention source", repr(source), nearest(source, sources(explorer)))
    )


def _fusion(explorer: Any, model: str) -> Any:
    found = explorer._model(model or next(iter(explorer.models), ""))
    if not _has_fusion(found):
        raise ConfigError(
            message(
                "a model with cross-attention",
                f"{model!r}, which has none",
                "choose a model with head='fusion'",
            )
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
        ``map`` (h, w), summing to the share of attention that patches get; or, for "fusion: image
        over ROIs", ``weights`` (R,) of the image's CLS token, summing to 1, and their ``regions``.
        The same numbers as the functions of `bmfl_lab.evaluation.attention` give for a whole set.

    Raises
    ------
    ConfigError
        If the source, head, block or region does not exist in the models at hand.
    """
    known = choices(explorer, source, model)
    if not -1 <= head < known["n_heads"]:
        raise ConfigError(
            message(
                f"a head from 0 to {known['n_heads'] - 1}, or -1", str(head), "choose another head"
            )
        )
    place = (name, index, shift, shift and severity)
    if source == BACKBONE:
        (row,) = explorer.backbone.indices((block,))
        # one forward pass gives all blocks
        maps_LHhw = explorer._remember(
            ("attention", source, *place),
            lambda: backbone_attention(
                explorer.backbone, explorer._one(name, index, shift, severity), normalise=False
            )[0],
        )
        return {"map": _pick(maps_LHhw[row], head)}
    if source == ENCODER:
        regions = known["regions"]
        if region and region not in regions:
            raise ConfigError(
                message(
                    "a region with a query in this subject", repr(region), nearest(region, regions)
                )
            )
        maps_RHhw = explorer._remember(
            ("attention", source, *place),
            lambda: query_weights(
                explorer.encoder, for_encoder(explorer, name, index, shift, severity)
            )[0],
        )
        return {"map": _pick(maps_RHhw[regions.index(region) if region else 0], head)}
    # one forward pass gives both directions
    found = explorer._remember(
        ("attention", "fusion", model, *place),
        lambda: _fused(explorer, model, name, index, shift, severity),
    )
    if source == CONSULTED:
        names = _fusion(explorer, model).module.brain.tokeniser.names
        return {"weights": _pick(asked(found["vb"], "cls")[0, :, 0], head), "regions": tuple(names)}
    return {"map": _pick(brain_maps(found)[0], head)}


def _fused(
    explorer: Any, model: str, name: str, index: int, shift: str, severity: int
) -> dict[str, Any]:
    _fusion(explorer, model)
    return explorer._answer(
        model or next(iter(explorer.models)), name, index, shift, severity, None, weights=True
    )


def _pick(weights_HX: np.ndarray, head: int) -> np.ndarray:
    return weights_HX.mean(0) if head < 0 else weights_HX[head]

"""Neural modules, fitted encoders, and the path that puts them together."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "MultiHeadAttention": "attention",
    "TransformerBlock": "attention",
    "BMFL": "bmfl",
    "BrainTransformer": "brain_transformer",
    "ParcelTokeniser": "brain_transformer",
    "PatchTokeniser": "brain_transformer",
    "FusionConfig": "build",
    "build_fusion": "build",
    "ResponseSource": "bmfl",
    "TokenBatch": "bmfl",
    "CrossAttentionFusion": "fusion",
    "FusionModel": "fusion",
    "FusionOutput": "fusion",
    "Lesion": "lesion",
    "apply_lesion": "lesion",
    "EnsembleEncoder": "brain_encoder",
    "LinearEncoder": "brain_encoder",
    "RetinotopicEncoder": "brain_encoder",
    "ScaledEncoder": "brain_encoder",
    "ensemble_weights": "brain_encoder",
    "fit_retinotopic": "brain_encoder",
    "GroupedReadout": "roi_query",
    "ROIQueryEncoder": "roi_query",
    "query_masks": "roi_query",
    "RidgeFit": "ridge",
    "fit_ridge": "ridge",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bmfl_lab.models.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.models' has no attribute {name!r}")

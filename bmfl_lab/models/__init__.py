"""Neural modules and fitted encoders; flat keyword arguments, no configs."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "MultiHeadAttention": "attention",
    "TransformerBlock": "attention",
    "BMFL": "bmfl",
    "BrainTransformer": "brain_transformer",
    "ParcelTokeniser": "brain_transformer",
    "PatchTokeniser": "brain_transformer",
    "CrossAttentionFusion": "fusion",
    "FusionModel": "fusion",
    "FusionOutput": "fusion",
    "Lesion": "lesion",
    "apply_lesion": "lesion",
    "LinearEncoder": "encoders",
    "ROIQueryEncoder": "encoders",
    "RidgeFit": "ridge",
    "fit_ridge": "ridge",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bmfl_lab.models.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.models' has no attribute {name!r}")

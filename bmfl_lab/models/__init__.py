"""Neural modules, fitted encoders, and the path that puts them together."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "BMFL": "bmfl",
    "BrainTransformer": "brain_transformer",
    "PatchTokeniser": "brain_transformer",
    "FusionConfig": "build",
    "build_fusion": "build",
    "ResponseSource": "bmfl",
    "TokenBatch": "bmfl",
    "FusionModel": "fusion",
    "FusionOutput": "fusion",
    "Lesion": "lesion",
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

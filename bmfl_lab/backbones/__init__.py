"""Frozen vision backbones and the store of their features."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "CORnetS": "cornet",
    "load_cornet": "cornet",
    "load_backbone": "dinov2",
    "Backbone": "vit",
    "BackboneTokens": "vit",
    "Preprocess": "preprocess",
    "FeatureStore": "features",
    "StoredTokens": "tokens",
    "extract": "tokens",
}
__all__ = [
    "Backbone",
    "BackboneTokens",
    "CORnetS",
    "FeatureStore",
    "Preprocess",
    "StoredTokens",
    "extract",
    "load_backbone",
    "load_cornet",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"bmfl_lab.backbones.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.backbones' has no attribute {name!r}")

"""Frozen vision backbones and the store of their tokens."""

from __future__ import annotations

import importlib

_MODULES = {
    "BACKBONES": "load",
    "Backbone": "protocol",
    "BackboneTokens": "protocol",
    "CORnetS": "cornet",
    "FeatureStore": "tokens",
    "Preprocess": "protocol",
    "StoredTokens": "tokens",
    "extract": "tokens",
    "load_backbone": "load",
    "map_tokens": "protocol",
    "wrap": "protocol",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f"bmfl_lab.backbones.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.backbones' has no attribute {name!r}")

"""Interactive widgets: state -> pure select -> figure. No torch in here."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "attention_explorer": "attention",
    "surface_viewer": "surface",
    "region_ablation": "ablation",
    "ood_explorer": "ood",
    "run_browser": "runs",
}

__all__ = ["attention_explorer", "ood_explorer", "region_ablation", "run_browser", "surface_viewer"]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"widgets.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'widgets' has no attribute {name!r}")

"""Evaluation of trained models: encoding accuracy, OOD suites, ablations, similarity."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "OODResult": "ood",
    "evaluate_ood": "ood",
    "evaluation_sets": "ood",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bmfl_lab.evaluation.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.evaluation' has no attribute {name!r}")

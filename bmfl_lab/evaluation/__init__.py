"""Evaluation of trained models: encoding accuracy, OOD suites, ablations, similarity."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "CallableModel": "adapters",
    "as_model": "adapters",
    "best_layers": "similarity",
    "distance_from_v1": "similarity",
    "encoding_over_time": "similarity",
    "encoding_scores": "similarity",
    "encoding_table": "similarity",
    "peak_times": "similarity",
    "rsa_scores": "similarity",
    "spatial_score": "similarity",
    "temporal_score": "similarity",
    "brain_and_robust": "decoding",
    "identify": "decoding",
    "preferred_stimuli": "decoding",
    "synthesise_preferred": "synthesis",
    "EncodingResult": "encoding",
    "block_table": "encoding_tables",
    "encoding_controls": "encoding_tables",
    "evaluate_encoder": "encoding",
    "evaluate_encoder_shifts": "encoding",
    "receptive_field_error": "encoding",
    "compare_models": "differences",
    "Explorer": "explore",
    "OODResult": "ood",
    "evaluate_ood": "ood",
    "evaluation_sets": "ood",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bmfl_lab.evaluation.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.evaluation' has no attribute {name!r}")

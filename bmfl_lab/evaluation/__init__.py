"""Evaluation of trained models: encoding accuracy, OOD suites, ablations, similarity."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "backbone_attention": "attention",
    "brain_attention": "attention",
    "consulted_rois": "attention",
    "patch_consultation": "attention",
    "query_names": "attention",
    "roi_attention": "attention",
    "rollout": "attention",
    "seen_images": "attention",
    "Attribution": "attribution",
    "class_attribution": "attribution",
    "integrated_gradients": "attribution",
    "response_attribution": "attribution",
    "attention_verdict": "attention_checks",
    "checks_table": "attention_checks",
    "deletion_insertion": "attention_checks",
    "map_similarity": "attention_checks",
    "region_share": "attention_checks",
    "shuffled_study": "attention_checks",
    "weight_randomisation": "attention_randomised",
    "field_centres": "pointing",
    "retinotopy_agreement": "pointing",
    "roi_fields": "pointing",
    "vertex_fields": "pointing",
    "CallableModel": "adapters",
    "as_model": "adapters",
    "alignment_effect": "effect",
    "effect_rows": "effect",
    "shift_mean_rows": "effect",
    "across_subjects": "transfer",
    "on_eeg": "transfer",
    "encoding_rows": "similarity_rows",
    "identification_rows": "similarity_rows",
    "rsa_intervals": "similarity_rows",
    "rsa_rows": "similarity_rows",
    "score_rows": "similarity_rows",
    "synthesis_rows": "similarity_rows",
    "encoding_predictions": "similarity",
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
    "evaluate_suite": "suite",
    "extreme_images": "image_tables",
    "reliability_table": "image_tables",
    "OODResult": "ood",
    "evaluate_ood": "ood",
    "evaluation_sets": "ood",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bmfl_lab.evaluation.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.evaluation' has no attribute {name!r}")

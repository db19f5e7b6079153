"""Training: the loop, its checkpoints, and one recipe per model."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "EncoderConfig": "encoder",
    "TrainedEncoder": "trained_encoder",
    "load_encoder": "trained_encoder",
    "train_brain_encoder": "encoder",
    "EncoderEnsemble": "trained_encoder",
    "combine_encoders": "trained_encoder",
    "combine_subjects": "trained_encoder",
    "encoder_variants": "variants",
    "presets": "compare",
    "COMPARED": "names",
    "train_comparison": "compare",
    "runnable_models": "study_models",
    "train_models": "study_models",
    "train_attribute_encoder": "compare",
    "fit": "loop",
    "LoopConfig": "loop",
    "Context": "context",
    "study_backbone": "context",
    "FusionConfig": "recipes",
    "train_fusion": "fusion",
    "TrainedFusion": "fusion",
    "load_fusion": "fusion",
    "models_fingerprint": "saved",
    "open_models": "saved",
    "open_study": "saved",
    "save_models": "saved",
    "AlignConfig": "aligned",
    "TrainedAligned": "aligned",
    "image_function": "trained_encoder",
    "with_classes": "readout",
    "prepare_original": "aligned",
    "train_aligned": "aligned",
    "ablation_trainer": "compare",
    "CONTROL_MODELS": "names",
    "agreement": "compare",
    "fused_features": "compare",
    "train_alphas": "compare",
    "train_controls": "compare",
    "encoding_accuracy": "compare",
    "measured_rows": "compare",
    "train_forms": "compare",
    "train_quality": "compare",
    "train_probe": "probe",
    "rank_statement": "sources",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bmfl_lab.training.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.training' has no attribute {name!r}")

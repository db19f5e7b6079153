"""Training: the loop, its checkpoints, and one recipe a model."""

from __future__ import annotations

import importlib

_PUBLIC = {
    "EncoderConfig": "encoder",
    "TrainedEncoder": "trained_encoder",
    "load_encoder": "trained_encoder",
    "train_brain_encoder": "encoder",
    "train_brain_encoders": "encoder",
    "EncoderEnsemble": "trained_encoder",
    "combine_encoders": "trained_encoder",
    "presets": "compare",
    "COMPARED": "compare",
    "train_comparison": "compare",
    "train_baselines": "baselines",
    "train_attribute_encoder": "compare",
    "fit": "loop",
    "FitResult": "loop",
    "LoopConfig": "loop",
    "FusionConfig": "recipes",
    "ResponseSource": "recipes",
    "build_fusion": "recipes",
    "train_fusion": "recipes",
    "TrainedFusion": "trained_fusion",
    "load_fusion": "fusion_io",
    "AlignConfig": "aligned",
    "TrainedAligned": "aligned",
    "load_aligned": "aligned",
    "image_function": "trained_encoder",
    "fit_readout": "readout",
    "with_classes": "readout",
    "prepare_original": "aligned",
    "train_aligned": "aligned",
    "ablation_trainer": "ablation",
    "Job": "ensemble",
    "train_fusions": "ensemble",
    "CONTROL_MODELS": "controls",
    "agreement": "controls",
    "train_alphas": "controls",
    "train_controls": "controls",
    "encoding_accuracy": "controls",
    "measured_rows": "controls",
    "train_forms": "controls",
    "train_quality": "controls",
    "TrainedProbe": "probe",
    "train_probe": "probe",
    "mixed_source": "sources",
    "noise_source": "sources",
    "other_image_source": "sources",
    "pca_source": "sources",
    "projection_source": "sources",
    "random_backbone_encoder": "sources",
    "random_weight_encoder": "sources",
    "rank_statement": "sources",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"bmfl_lab.training.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.training' has no attribute {name!r}")

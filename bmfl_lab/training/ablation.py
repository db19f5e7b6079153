"""Train what an ablation asks for: the same fusion with some vertices silenced, all models at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.study import Study
from bmfl_lab.runtime import pick_device
from bmfl_lab.training.ensemble import Job, train_fusions
from bmfl_lab.training.fusion_parts import ResponseSource, encoder_source, study_backbone
from bmfl_lab.training.recipes import FusionConfig
from bmfl_lab.training.sources import remembered
from bmfl_lab.training.trained_fusion import TrainedFusion


def ablation_trainer(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any = None,
    brain: ResponseSource | None = None,
    atlas: Atlas | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
    at_once: int | None = None,
) -> Callable[[Sequence[Any]], list[TrainedFusion]]:
    """Return what `bmfl_lab.evaluation.ablate_regions` takes as `train`.

    Parameters
    ----------
    config : FusionConfig
        Of every model; `regions` stays ("all",), because all have the same tokens.
    study, store, device
        As `train_fusion`.
    encoder, brain, atlas
        Predicted responses, or another source on an atlas.
    at_once : int, optional
        As `train_fusions`.

    Returns
    -------
    callable
        From requests with ``name``, ``mask`` (vertices that may be read) and ``seed`` to trained
        models.

    Notes
    -----
    A region is left out by keeping its vertices at their mean, in training and after. All models of
    an ablation then have the same number of tokens and of weights, and differ in information alone.
    """
    device = pick_device(device)
    store = store if store is not None else FeatureStore()
    if brain is None:
        brain = encoder_source(encoder, store, study_backbone(study.backbone, device), device)
    atlas = atlas if atlas is not None else getattr(encoder, "atlas", None)
    shared = remembered(brain)

    def train(wanted: Sequence[Any]) -> list[TrainedFusion]:
        jobs = [
            Job(
                w.name,
                config,
                w.seed,
                encoder,
                shared,
                atlas,
                None if np.all(w.mask) else ~np.asarray(w.mask),
            )
            for w in wanted
        ]
        return train_fusions(jobs, study, store=store, device=device, at_once=at_once)

    return train

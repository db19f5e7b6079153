"""Training the models of an ablation: the same fusion with some vertices silenced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.study import Study
from bmfl_lab.models.bmfl import ResponseSource
from bmfl_lab.models.build import FusionConfig
from bmfl_lab.training.context import Context
from bmfl_lab.training.encoder_io import TrainedEncoder
from bmfl_lab.training.fusion import train_fusion
from bmfl_lab.training.trained import TrainedFusion


class AblatedModel(Protocol):
    """Name a model of an ablation: the vertices it may read, bool (n_vertices,), and its seed."""

    name: str
    mask: np.ndarray
    seed: int


def ablation_trainer(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder | None = None,
    brain: ResponseSource | None = None,
    atlas: Atlas | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> Callable[[Sequence[AblatedModel]], list[TrainedFusion]]:
    """Return the function that `bmfl_lab.evaluation.ablate_regions` takes as `train`.

    Parameters
    ----------
    config : FusionConfig
        Configuration of every model. `regions` stays ("all",), because all models have the same
        tokens.
    study : Study
        Its set "train" trains, its set "val" selects the epoch.
    encoder : TrainedEncoder, optional
        Predicts the responses.
    brain : callable, optional
        Response source in place of the predicted responses, as in `train_fusion`.
    atlas : Atlas, optional
        Atlas of the responses; the encoder's by default.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Where to train and predict.

    Returns
    -------
    callable
        Trains one model for each request with ``name``, ``mask`` (vertices that may be read, bool
        (n_vertices,)) and ``seed``, and returns them in the same order.

    Notes
    -----
    A region is left out by keeping its vertices at their mean, in training and after. All models of
    an ablation then have the same number of tokens and of weights, and differ in information alone.
    """
    context = Context.make(store, device)

    def train(models: Sequence[AblatedModel]) -> list[TrainedFusion]:
        return [
            train_fusion(
                config,
                study,
                encoder=encoder,
                brain=brain,
                atlas=atlas,
                silent=None if np.all(model.mask) else ~np.asarray(model.mask),
                context=context,
                seed=model.seed,
                name=model.name,
            )
            for model in models
        ]

    return train

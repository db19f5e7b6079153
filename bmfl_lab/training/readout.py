"""A linear readout of the study's classes, fitted by the same recipe on any network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bmfl_lab.data import StimulusSet, Study
from bmfl_lab.errors import DataError, require
from bmfl_lab.models.ridge import RidgeFit, fit_ridge

ALPHAS = tuple(float(a) for a in np.logspace(-1, 5, 13))
RECIPE = "ridge on one-hot labels, penalty by 5-fold cross-validation within training images"


class PooledModel(Protocol):
    """A network whose last block can be read, e.g. `TrainedAligned` or `FrozenModel`."""

    selection: str
    n_classes: int
    seed: int

    def pooled(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the last block averaged over space, float32 (n_stimuli, width)."""
        ...


@dataclass(frozen=True)
class Readout:
    """A network with a linear readout on its last block.

    Parameters
    ----------
    model : PooledModel
        The network.
    mean, scale : ndarray of float32, shape (width,)
        Mean and standard deviation over the training images of the last block, averaged over space.
    fit : RidgeFit
        Linear map from these features to one score per class.
    selection : str
        Rules by which the epoch of the network and the penalty were chosen.
    seed : int
        Seed of the network.
    """

    model: PooledModel
    mean: np.ndarray
    scale: np.ndarray
    fit: RidgeFit
    selection: str
    seed: int

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes)."""
        x = (self.model.pooled(stimuli) - self.mean) / self.scale
        return np.asarray(self.fit.predict(x), dtype=np.float32)


def fit_readout(model: PooledModel, study: Study, *, alphas: Sequence[float] = ALPHAS) -> Readout:
    """Fit a ridge readout of the study's classes on the last block, averaged over space.

    Parameters
    ----------
    model : PooledModel
        A network with any number of classes, e.g. before or after alignment.
    study : Study
        Study whose images and labels of the set "train" are used, and no others.
    alphas : sequence of float, default 13 values from 0.1 to 1e5
        Penalties to choose from.

    Returns
    -------
    Readout

    Raises
    ------
    DataError
        If a training image has no label.

    Notes
    -----
    Ridge regression on one-hot targets is our choice. It needs no learning schedule, so that
    networks cannot differ in how well their readout was trained.
    """
    images = study.set("train")
    labels = np.asarray(images.labels)
    require(
        labels.min() >= 0,
        DataError,
        "labelled training images",
        f"{int((labels < 0).sum())} without",
        "label them, or leave them out of the study",
    )
    x = model.pooled(images)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-6, spread, 1).astype(np.float32)
    targets = np.eye(len(study.class_names), dtype=np.float32)[labels]
    with warnings.catch_warnings():
        # the features of a network may say nothing about the classes; then no penalty is best
        warnings.filterwarnings("ignore", message="expected at most 5%")
        fit = fit_ridge((x - mean) / scale, targets, alphas, 5)
    return Readout(model, mean, scale, fit, f"{model.selection}; {RECIPE}", model.seed)


def with_classes(model: PooledModel, study: Study, how: str = "auto") -> PooledModel | Readout:
    """Return a model that classifies the study's classes.

    Parameters
    ----------
    model : PooledModel
        A network with any number of classes.
    study : Study
        Study with labelled images.
    how : {"auto", "own", "ridge"}, default "auto"
        "own" returns the model itself, "ridge" its readout by `fit_readout`. "auto" returns the
        model itself if it has as many classes as the study, and its readout otherwise.

    Returns
    -------
    PooledModel or Readout

    Raises
    ------
    DataError
        If `how` is "own" and the number of classes differs.
    """
    same = model.n_classes == len(study.class_names)
    require(
        how != "own" or same,
        DataError,
        f"{len(study.class_names)} classes",
        f"{model.n_classes} of the decoder",
        "use how='ridge'",
    )
    return model if same and how != "ridge" else fit_readout(model, study)

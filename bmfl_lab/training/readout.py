"""A linear readout that gives any aligned network the study's classes, by one recipe for all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import DataError, message
from bmfl_lab.models.ridge import RidgeFit, fit_ridge
from bmfl_lab.training.aligned import TrainedAligned

ALPHAS = tuple(float(a) for a in np.logspace(-1, 5, 13))
RECIPE = "ridge on one-hot labels, penalty by 5-fold cross-validation within training images"


@dataclass(frozen=True)
class Readout:
    """A network with a linear readout on its last block.

    Parameters
    ----------
    model : TrainedAligned
        The network.
    mean, scale : ndarray of float32, shape (width,)
        Of the last block, averaged over space, on the training images.
    fit : RidgeFit
        Features to one score a class.
    selection : str
        How the network's epoch and the penalty were chosen.
    seed : int
        Of the network.
    """

    model: TrainedAligned
    mean: np.ndarray
    scale: np.ndarray
    fit: RidgeFit
    selection: str
    seed: int

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes)."""
        x = (self.model.pooled(stimuli) - self.mean) / self.scale
        return np.asarray(self.fit.predict(x), dtype=np.float32)


def fit_readout(
    model: TrainedAligned, study: Study, *, alphas: Sequence[float] = ALPHAS
) -> Readout:
    """Fit a ridge readout of the study's classes on the last block, averaged over space.

    Parameters
    ----------
    model : TrainedAligned
        A network of any number of classes, before or after alignment, or any model with
        ``pooled(stimuli)``, ``selection``, ``n_classes`` and ``seed``.
    study : Study
        Its "train" images and labels are used, no others.
    alphas : sequence of float
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
    Our choice: least squares on one-hot targets needs no schedule, so networks cannot differ in how
    well their readout was trained.
    """
    images = study.set("train")
    labels = np.asarray(images.labels)
    if labels.min() < 0:
        raise DataError(
            message(
                "labelled training images",
                f"{int((labels < 0).sum())} without",
                "give their classes",
            )
        )
    x = model.pooled(images)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-6, spread, 1).astype(np.float32)
    targets = np.eye(len(study.class_names), dtype=np.float32)[labels]
    with (
        warnings.catch_warnings()
    ):  # a network that knows nothing of the classes has no best penalty
        warnings.filterwarnings("ignore", message="expected at most 5%")
        fit = fit_ridge((x - mean) / scale, targets, alphas, 5)
    return Readout(model, mean, scale, fit, f"{model.selection}; {RECIPE}", model.seed)


def with_classes(
    model: TrainedAligned, study: Study, how: str = "auto"
) -> TrainedAligned | Readout:
    """Return the model itself if its classes are the study's, else the model with `fit_readout`.

    Parameters
    ----------
    model : TrainedAligned
    study : Study
    how : {"auto", "own", "ridge"}
        "own" keeps the network's decoder, "ridge" fits a readout in any case.

    Raises
    ------
    DataError
        If "own" is asked for and the number of classes differs.
    """
    same = model.n_classes == len(study.class_names)
    if how == "own" and not same:
        raise DataError(
            message(
                f"{len(study.class_names)} classes",
                f"{model.n_classes} of the decoder",
                "use how='ridge'",
            )
        )
    return model if same and how != "ridge" else fit_readout(model, study)

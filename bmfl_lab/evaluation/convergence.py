"""What drives convergence with the brain: scores of many models against their size and training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bmfl_lab.data.responses import Subject
from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.open_questions import rank_trend
from bmfl_lab.evaluation.similarity import (
    encoding_over_time,
    encoding_predictions,
    encoding_table,
    spatial_score,
    temporal_score,
)
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.metrics.statistics import holm, percentiles

SCORES = ("encoding", "spatial", "temporal")
Layers = Mapping[str, np.ndarray]
"""Features (n_stimuli, d) by name of the layer, in the order of processing."""


def brain_scores(
    features: Layers,
    subject: Subject,
    *,
    distance: pd.Series | None = None,
    recording: tuple[EEG, Layers, np.ndarray, np.ndarray] | None = None,
    n_boot: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Return the encoding, the spatial and the temporal score of one model.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
        Layers on the stimuli of the subject.
    subject : Subject
        Subject with the splits "train" and "test".
    distance : Series, optional
        Distance of ROIs from V1 in mm, see `distance_from_v1`; without it there is no spatial
        score.
    recording : (EEG, layers, train rows, test rows), optional
        M/EEG and the layers on its stimuli; without it there is no temporal score.
    n_boot : int, default 200
        Bootstrap resamples of the test stimuli.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    dict of str to float
        "encoding" (r of the best layer, mean over vertices), "encoding_low" and "encoding_high"
        (95 % interval over test stimuli), "spatial", "temporal"; NaN where a score has no data.

    References
    ----------
    Raugel et al. (2025), arXiv:2508.18226: the three scores. That the best layer stands for the
    model is our choice.
    """
    train, test = subject.rows("train"), subject.rows("test")
    measured = np.asarray(subject.responses, np.float32)
    predicted = encoding_predictions(features, measured, train=train, test=test)
    r = {layer: pearson(measured[test], p) for layer, p in predicted.items()}
    best = max(r, key=lambda layer: np.nanmean(r[layer]))
    drawn = bootstrap_pearson(measured[test], predicted[best], n_boot, seed)
    low, high = percentiles(np.nanmean(drawn, 1))
    found = {"encoding": float(np.nanmean(r[best])), "encoding_low": low, "encoding_high": high}
    found |= {"spatial": np.nan, "temporal": np.nan}
    if distance is not None:
        table = encoding_table(r, subject.atlas)[list(distance.index)]
        value = spatial_score(table.to_numpy(), distance.to_numpy()).value
        found["spatial"] = np.nan if value is None else value
    if recording is not None:
        eeg, layers, fitted, held = recording
        course = encoding_over_time(layers, eeg.mean(), train=fitted, test=held)
        value = temporal_score(course, eeg.times).value
        found["temporal"] = np.nan if value is None else value
    return found


def convergence_trends(
    scores: pd.DataFrame,
    attributes: pd.DataFrame,
    *,
    n_permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate the scores of models with their attributes, such as size or training length.

    Parameters
    ----------
    scores : DataFrame
        One row per model, columns among "encoding", "spatial" and "temporal".
    attributes : DataFrame
        One row per model, one numeric column per attribute (millions of parameters, images of
        training, steps). Models without a value in a column do not count in it.
    n_permutations : int, default 2000
        Permutations of the models.
    seed : int, default 0
        Seed of the permutations.

    Returns
    -------
    DataFrame
        Columns attribute, score, rho (Spearman over models), p (two-sided, permutation), n, p_holm.

    Raises
    ------
    DataError
        If a model has no row of attributes, or no pair of columns has four models.

    Notes
    -----
    Attributes are often confounded: larger models are trained on more images. The trends describe,
    they do not tell causes.
    """
    missing = [name for name in scores.index if name not in attributes.index]
    require(
        not missing,
        DataError,
        "attributes of every model",
        f"none for {missing[:3]}",
        "add a row for each model",
    )
    rows = []
    for attribute in attributes:
        for score in (s for s in SCORES if s in scores):
            both = pd.concat([attributes[attribute], scores[score]], axis=1).dropna()
            if len(both) >= 4:
                trend = rank_trend(both.iloc[:, 0], both.iloc[:, 1], n_permutations, seed)
                rows.append({"attribute": attribute, "score": score, **trend})
    require(
        rows,
        DataError,
        "four or more models with a score and an attribute",
        f"{len(scores)} models",
        "compare more models",
    )
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy())
    return table

"""What makes models brain-like: three scores per model, and their trends over properties of models.

Shapes: n stimuli, V vertices, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from bmfl_lab.data import Atlas
from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.similarity import (
    ScoreTest,
    correlation_test,
    encoding_over_time,
    encoding_predictions,
    encoding_table,
    spatial_score,
    temporal_score,
)
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.records import MetricRow

SCORES = ("encoding", "spatial", "temporal")
_LEAST_MODELS = 3


def brain_scores(
    features: Mapping[str, np.ndarray],
    responses: np.ndarray,
    atlas: Atlas,
    *,
    train: np.ndarray,
    test: np.ndarray,
    distance: Mapping[str, float] | None = None,
    recording: EEG | None = None,
    n_components: int | None = None,
    seed: int = 0,
) -> dict[str, float | None]:
    """Return the encoding, the spatial and the temporal score of one model.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n, d)
        Features of each layer, in the order of processing.
    responses : ndarray, shape (n, V)
        Responses of a subject to the same stimuli.
    atlas : Atlas
        Vertices of the subject.
    train, test : ndarray of int64
        Rows for fits and for scores.
    distance : mapping of str to float, optional
        Distance of each ROI from V1 in mm; the spatial score is None without it.
    recording : EEG, optional
        M/EEG responses to the same stimuli, row by row; the temporal score is None without it.
    n_components : int, optional
        See `encoding_predictions`.
    seed : int, default 0
        Seed of the halves of the test stimuli.

    Returns
    -------
    dict of str to float or None
        "encoding": mean over vertices of the Pearson r of the best layer, which is chosen on one
        half of the test stimuli and scored on the other, both ways. "spatial" and "temporal": see
        `spatial_score` and `temporal_score`.

    Raises
    ------
    DataError
        If there are fewer than 6 test stimuli, or the recording has other stimuli.

    References
    ----------
    Raugel et al. (2025), arXiv:2508.18226: the three scores over size, training length and images
    of DINOv3. That the layer is chosen on other stimuli than it is scored on is our choice.
    """
    require(
        len(test) >= 6,
        DataError,
        "at least 6 test stimuli, three to choose a layer and three to score it",
        len(test),
        "hold out more stimuli",
    )
    options = {"train": train, "test": test, "n_components": n_components}
    predicted = encoding_predictions(features, responses, **options)
    measured = np.asarray(responses)[test]
    order = np.random.default_rng(seed).permutation(len(test))
    halves = [order[: len(test) // 2], order[len(test) // 2 :]]
    by_half = [
        np.stack([np.nan_to_num(pearson(measured[h], p[h])) for p in predicted.values()])
        for h in halves
    ]
    chosen = [np.take_along_axis(b, a.argmax(0)[None], 0) for a, b in (by_half, by_half[::-1])]
    found: dict[str, float | None] = dict.fromkeys(SCORES)
    found["encoding"] = float(np.mean(chosen))
    if distance is not None:
        scores = {k: np.asarray(pearson(measured, p)) for k, p in predicted.items()}
        table = encoding_table(scores, atlas)[list(distance)]
        found["spatial"] = spatial_score(table.to_numpy(), np.array([*distance.values()])).value
    if recording is not None:
        data = recording.mean()
        require(
            len(data) == len(responses),
            DataError,
            f"a recording of the {len(responses)} stimuli",
            f"{len(data)} stimuli",
            "select the same stimuli, in the same order",
        )
        courses = encoding_over_time(features, data, **options)
        found["temporal"] = temporal_score(courses, recording.times).value
    return found


def score_trend(
    values: Sequence[float | None], factor: Sequence[float], *, seed: int = 0
) -> ScoreTest:
    """Correlate a score with a property of models over models (Spearman rho).

    Parameters
    ----------
    values : sequence of float or None, one per model
        A score of `brain_scores`; models without it are left out.
    factor : sequence of float, one per model
        Number of weights, of training images or of training steps, for instance.
    seed : int, default 0
        Seed of the permutations, which are all tried for up to seven models.

    Returns
    -------
    ScoreTest
        With five models the smallest possible p value is 1/60.

    Raises
    ------
    DataError
        If lengths differ, or fewer than three models have the score.
    """
    require(
        len(values) == len(factor),
        DataError,
        "one value of the property per model",
        f"{len(values)} scores and {len(factor)} values",
        "look the property up for every model, or leave the model out",
    )
    pairs = [(v, f) for v, f in zip(values, factor) if v is not None and np.isfinite(v)]
    require(
        len(pairs) >= _LEAST_MODELS,
        DataError,
        f"at least {_LEAST_MODELS} models with this score",
        len(pairs),
        "compare more models",
    )
    ranks = [rankdata(side) for side in zip(*pairs)]
    return correlation_test(*ranks, 10_000, seed, "trend over models")


def convergence_rows(
    table: pd.DataFrame, factor: str, trends: Mapping[str, ScoreTest], **fields
) -> list[MetricRow]:
    """Return rows of the scores of each model and of their trends.

    Parameters
    ----------
    table : DataFrame
        One row per model with the columns of `SCORES` and `factor`.
    factor : str
        Name of the property.
    trends : mapping of str to ScoreTest
        `score_trend` by score.
    **fields
        Other fields of `MetricRow`, ``n`` and ``split`` among them.
    """
    shared = {"unit": "r", "selection": "none", **fields}
    rows = []
    for model, line in table.iterrows():
        for score in trends:
            about = {**shared, "notes": f"{factor} {line[factor]:g}; {shared.get('notes', '')}"}
            value = None if pd.isna(line[score]) else float(line[score])
            rows.append(MetricRow(f"convergence_{score}", value, model=str(model), **about))
    for score, test in trends.items():
        notes = f"Spearman rho of the {score} score with {factor} over {test.n} models; chance 0"
        about = {**shared, "unit": "spearman rho", "n": test.n, "notes": notes}
        rows.append(MetricRow("convergence_trend", test.value, model=score, p=test.p, **about))
    return rows

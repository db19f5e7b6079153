"""Compare layers with the brain: encoding, spatial and temporal scores, and their metric rows."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import DataError, require
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.models.ridge import fit_ridge
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng

if TYPE_CHECKING:
    from bmfl_lab.evaluation.decoding import Identification
    from bmfl_lab.evaluation.synthesis import Synthesis

ALPHAS = tuple(float(a) for a in np.logspace(0, 8, 10))
"""Ridge penalties of the encoding score (Raugel et al. 2025)."""


@dataclass(frozen=True)
class ScoreTest:
    """A correlation with its permutation test.

    Parameters
    ----------
    value : float or None
        Pearson r; None where undefined.
    p : float or None
        Two-sided; exact when all orders were tried.
    n : int
        Number of units behind it (ROIs, vertices or layers).
    n_permutations : int
        Orders that were tried.
    """

    value: float | None
    p: float | None
    n: int
    n_permutations: int


def _r(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 1e-15 else math.nan


def _tested(x: np.ndarray, y: np.ndarray, n_permutations: int, seed: int, name: str) -> ScoreTest:
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    value = _r(x, y) if len(x) >= 3 else math.nan
    if not math.isfinite(value):
        return ScoreTest(None, None, len(x), 0)
    if math.factorial(min(len(x), 20)) <= n_permutations:
        null = [_r(x, y[list(order)]) for order in itertools.permutations(range(len(x)))]
        p = float(np.mean(np.abs(null) >= abs(value) - 1e-12))
    else:
        draw = rng(seed, name)
        null = [_r(x, y[draw.permutation(len(x))]) for _ in range(n_permutations)]
        p = (1 + float(np.sum(np.abs(null) >= abs(value) - 1e-12))) / (1 + n_permutations)
    return ScoreTest(value, p, len(x), len(null))


def _reduced(X: np.ndarray, train: np.ndarray, n_components: int | None) -> np.ndarray:
    """Z-score by the training rows and optionally project on their principal components."""
    X = np.asarray(X, dtype=np.float32)
    X = X - X[train].mean(axis=0)
    spread = X[train].std(axis=0)
    X = X / np.where(spread > 1e-12, spread, np.inf)
    if n_components is None or n_components >= X.shape[1]:
        return X
    directions = np.linalg.svd(X[train], full_matrices=False)[2][:n_components]
    return X @ directions.T


def encoding_scores(
    features: Mapping[str, np.ndarray],
    responses: np.ndarray,
    *,
    train: np.ndarray,
    test: np.ndarray,
    alphas: Sequence[float] = ALPHAS,
    n_folds: int = 5,
    n_components: int | None = None,
) -> dict[str, np.ndarray]:
    """Held-out correlation of ridge predictions with responses, per layer and vertex.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
        Layers, in the order of processing; rows are the stimuli of `responses`.
    responses : ndarray, shape (n_stimuli, n_vertices)
        Vertices, or sensor-times.
    train, test : ndarray of int64
        Disjoint rows; penalties are chosen by cross-validation within `train`.
    alphas, n_folds
        As in `bmfl_lab.models.fit_ridge`.
    n_components : int, optional
        Principal components (fitted on `train`) to which wide layers are reduced.

    Returns
    -------
    dict of str to ndarray, shape (n_vertices,)
        Pearson r on `test`; NaN for a constant vertex.

    Raises
    ------
    DataError
        If rows overlap or a layer has another number of stimuli.

    References
    ----------
    Raugel et al. 2025, arXiv:2508.18226 (encoding score; 10 penalties from 1 to 1e8, 5 folds).
    """
    predicted = encoding_predictions(
        features,
        responses,
        train=train,
        test=test,
        alphas=alphas,
        n_folds=n_folds,
        n_components=n_components,
    )
    measured = np.asarray(responses, dtype=np.float32)[test]
    return {layer: np.asarray(pearson(measured, p)) for layer, p in predicted.items()}


def encoding_predictions(
    features: Mapping[str, np.ndarray],
    responses: np.ndarray,
    *,
    train: np.ndarray,
    test: np.ndarray,
    alphas: Sequence[float] = ALPHAS,
    n_folds: int = 5,
    n_components: int | None = None,
) -> dict[str, np.ndarray]:
    """Return the ridge predictions (n_test, n_vertices) of each layer on the test rows.

    Raises
    ------
    DataError
        If rows overlap or a layer has another number of stimuli.
    """
    responses = np.asarray(responses, dtype=np.float32)
    require(
        not np.intersect1d(train, test).size,
        DataError,
        "disjoint train and test rows",
        "rows in both",
        "make the split from these stimuli",
    )
    found = {}
    for layer, X in features.items():
        require(
            len(X) == len(responses),
            DataError,
            f"{len(responses)} stimuli in layer {layer!r}",
            len(X),
            "pair layers by stimulus id",
        )
        X = _reduced(np.asarray(X).reshape(len(X), -1), train, n_components)
        with warnings.catch_warnings():  # a layer that predicts nothing has no best penalty
            warnings.filterwarnings("ignore", message="expected at most 5%")
            found[layer] = fit_ridge(X[train], responses[train], alphas, n_folds).predict(X[test])
    return found


def encoding_table(
    scores: Mapping[str, np.ndarray], atlas: Atlas, rois: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return mean scores over defined vertices, one row per layer and one column per ROI."""
    rois = list(rois or atlas.present)
    masks = {r: atlas.select(r) for r in rois}
    rows = {
        layer: {
            r: float(np.nanmean(v[m])) if np.isfinite(v[m]).any() else math.nan
            for r, m in masks.items()
        }
        for layer, v in scores.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=rois).rename_axis(
        index="layer", columns="roi"
    )


def best_layers(scores: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Return the depth (0 first, 1 last) of each unit's best layer; NaN if none exceeds `least`.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_units)
    """
    scores = np.asarray(scores, dtype=np.float64)
    filled = np.where(np.isfinite(scores), scores, -np.inf)
    depth = filled.argmax(axis=0) / max(1, len(scores) - 1)
    return np.where(filled.max(axis=0) > least, depth, np.nan)


def distance_from_v1(
    atlas: Atlas, coordinates: np.ndarray, rois: Sequence[str] | None = None
) -> dict[str, float]:
    """Return each ROI's distance from V1 in the unit of `coordinates`, mean over hemispheres.

    Parameters
    ----------
    atlas : Atlas
        Has "V1", or "V1v" and "V1d".
    coordinates : ndarray, shape (n_vertices, 3)
        Place of each vertex (MNI or surface, mm).
    rois : sequence of str, optional
        All that are present by default.

    Returns
    -------
    dict of str to float
        Euclidean distance between centres of gravity.
    """
    v1 = atlas.select([r for r in ("V1", "V1v", "V1d") if r in atlas.present] or ["V1"])
    sides = np.asarray(atlas.hemisphere)
    found = {}
    for roi in rois or atlas.present:
        mask = atlas.select(roi)
        parts = [
            np.linalg.norm(
                coordinates[mask & (sides == s)].mean(axis=0)
                - coordinates[v1 & (sides == s)].mean(axis=0)
            )
            for s in (0, 1)
            if (mask & (sides == s)).any() and (v1 & (sides == s)).any()
        ]
        found[roi] = float(np.mean(parts)) if parts else math.nan
    return found


def spatial_score(
    scores: np.ndarray, distance: np.ndarray, *, n_permutations: int = 10_000, seed: int = 0
) -> ScoreTest:
    """Does the best layer of a unit lie deeper, the farther the unit is from V1?

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_units)
        Encoding scores, layers in order.
    distance : ndarray, shape (n_units,)
        Distance from V1 (mm).
    n_permutations, seed
        Of the test, which relabels units.

    Returns
    -------
    ScoreTest

    Notes
    -----
    Neighbouring vertices are not independent: give ROIs as units when the p value matters.

    References
    ----------
    Raugel et al. 2025, arXiv:2508.18226 (spatial score).
    """
    return _tested(
        best_layers(scores), np.asarray(distance, float), n_permutations, seed, "spatial score"
    )


def peak_times(scores: np.ndarray, times: np.ndarray, share: float = 0.95) -> np.ndarray:
    """Return each layer's mean time over the times with at least `share` of its maximum score.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_times)
    times : ndarray, shape (n_times,)
        Seconds.

    Returns
    -------
    ndarray, shape (n_layers,)
        Seconds; NaN for a layer that predicts nothing (maximum not above 0).
    """
    scores, times = np.asarray(scores, dtype=np.float64), np.asarray(times, dtype=np.float64)
    top = scores.max(axis=1, keepdims=True)
    near = scores >= share * top
    return np.where(
        top[:, 0] > 0, (near * times).sum(axis=1) / np.maximum(near.sum(axis=1), 1), np.nan
    )


def temporal_score(
    scores: np.ndarray, times: np.ndarray, *, n_permutations: int = 10_000, seed: int = 0
) -> ScoreTest:
    """Are deeper layers best at later times? Correlation over layers of depth with `peak_times`.

    References
    ----------
    Raugel et al. 2025, arXiv:2508.18226 (temporal score).
    """
    depth = np.linspace(0, 1, len(scores))
    return _tested(depth, peak_times(scores, times), n_permutations, seed, "temporal score")


def encoding_over_time(
    features: Mapping[str, np.ndarray],
    data: np.ndarray,
    *,
    train: np.ndarray,
    test: np.ndarray,
    **options,
) -> np.ndarray:
    """Encoding score of each layer at each time, mean over sensors.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
    data : ndarray, shape (n_stimuli, n_channels, n_times)
        M/EEG averaged over repeats.
    train, test, **options
        As in `encoding_scores`.

    Returns
    -------
    ndarray, shape (n_layers, n_times)
    """
    n, channels, times = data.shape
    found = encoding_scores(features, data.reshape(n, -1), train=train, test=test, **options)
    return np.stack([np.nanmean(v.reshape(channels, times), axis=0) for v in found.values()])


INTERVAL = "95 % percentile bootstrap over stimuli"


def encoding_rows(
    predicted: Mapping[str, np.ndarray],
    measured: np.ndarray,
    atlas: Atlas,
    *,
    model: str,
    subject: str,
    split: str = "test",
    selection: str = "penalty by cross-validation within training stimuli",
    rois: Sequence[str] | None = None,
    n_boot: int = 500,
    seed: int = 0,
    notes: str = "",
) -> list[MetricRow]:
    """Encoding score of each layer and ROI.

    Parameters
    ----------
    predicted : mapping of str to ndarray, shape (n_test, n_vertices)
        From `encoding_predictions`.
    measured : ndarray, shape (n_test, n_vertices)
        Responses to the same stimuli.
    atlas : Atlas
        Atlas of the vertices.
    model, subject, split, selection, notes : str
        For every row.
    rois : sequence of str, optional
        All that are present by default.
    n_boot, seed
        Of the interval.

    Returns
    -------
    list of MetricRow
        ``encoding_r``: mean r over the ROI's defined vertices; None where there is none.

    Raises
    ------
    DataError
        If predictions and responses differ in shape.
    """
    rows = []
    for layer, p in predicted.items():
        r = np.asarray(pearson(measured, p))
        resampled = bootstrap_pearson(measured, p, n_boot=n_boot, seed=seed)
        for roi in rois or atlas.present:
            kept = atlas.select(roi) & np.isfinite(r)
            value = float(r[kept].mean()) if kept.any() else None
            low, high = (
                np.nanquantile(resampled[:, kept].mean(axis=1), [0.025, 0.975])
                if kept.any()
                else (None, None)
            )
            rows.append(
                MetricRow(
                    "encoding_r",
                    value,
                    unit="r",
                    split=split,
                    n=len(measured),
                    selection=selection,
                    model=model,
                    subject=subject,
                    roi=roi,
                    layer=layer,
                    ci_low=_number(low),
                    ci_high=_number(high),
                    interval=INTERVAL if kept.any() else "",
                    notes=notes,
                )
            )
    return rows


def _number(value) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def rsa_rows(
    table: pd.DataFrame,
    *,
    model: str,
    split: str = "test",
    selection: str = "none",
    intervals: Mapping[tuple[str, str, str], tuple[float, float]] | None = None,
    unit: str = "spearman rho",
    notes: str = "",
) -> list[MetricRow]:
    """Rows of `rsa_scores`.

    Parameters
    ----------
    table : DataFrame
        From `rsa_scores`.
    model, split, selection, unit, notes : str
        For every row.
    intervals : mapping of (subject, layer, roi) to (low, high), optional
        From `bmfl_lab.evaluation.rsa_intervals`.

    Returns
    -------
    list of MetricRow
        ``rsa`` and ``p_family``, and ``rsa_ceiling_low`` / ``rsa_ceiling_high`` once an ROI and
        subject.

    Raises
    ------
    DataError
        If the table lacks a column.
    """
    wanted = (
        "subject",
        "layer",
        "roi",
        "value",
        "p_family",
        "ceiling_low",
        "ceiling_high",
        "n_stimuli",
    )
    missing = [c for c in wanted if c not in table.columns]
    require(
        not missing,
        DataError,
        "a table of rsa_scores",
        f"without {missing}",
        "pass what rsa_scores returned",
    )
    rows = []
    for r in table.itertuples():
        shared = {
            "split": split,
            "n": int(r.n_stimuli),
            "selection": selection,
            "subject": r.subject,
            "roi": r.roi,
            "notes": notes,
        }
        low, high = (intervals or {}).get((r.subject, r.layer, r.roi), (None, None))
        ends = {"ci_low": low, "ci_high": high, "interval": INTERVAL if low is not None else ""}
        rows.append(
            MetricRow(
                "rsa", _number(r.value), unit=unit, model=model, layer=r.layer, **ends, **shared
            )
        )
        rows.append(
            MetricRow(
                "p_family", _number(r.p_family), unit="p", model=model, layer=r.layer, **shared
            )
        )
    for r in table.drop_duplicates(["subject", "roi"]).itertuples():
        shared = {
            "split": split,
            "n": int(r.n_stimuli),
            "selection": "none",
            "subject": r.subject,
            "roi": r.roi,
        }
        for name in ("ceiling_low", "ceiling_high"):
            rows.append(
                MetricRow(
                    f"rsa_{name}", _number(getattr(r, name)), unit=unit, notes=notes, **shared
                )
            )
    return rows


def score_rows(name: str, test: ScoreTest, *, unit_counted: str, **fields) -> list[MetricRow]:
    """Rows of a spatial or temporal score and its permutation test.

    Parameters
    ----------
    name : str
        "spatial_score" or "temporal_score".
    test : ScoreTest
        The score.
    unit_counted : str
        What `test.n` counts ("ROIs", "vertices", "layers").
    **fields
        Of `MetricRow`: ``split``, ``model``, ``subject``, ``selection``, ``notes``.
    """
    shared = {"selection": "none", **fields, "n": test.n}
    shared["notes"] = "; ".join(
        v for v in (f"n counts {unit_counted}", shared.get("notes", "")) if v
    )
    how = f"permutation test, {test.n_permutations} orders"
    return [
        MetricRow(name, test.value, unit="r", interval=how, **shared),
        MetricRow(f"{name}_p", test.p, unit="p", interval=how, **shared),
    ]


def identification_rows(found: Identification, **fields) -> list[MetricRow]:
    """Rows of `identify`: top-1 and two-way accuracy with intervals; chance stands in the notes.

    Parameters
    ----------
    found : Identification
    **fields
        Of `MetricRow`: ``split``, ``model``, ``subject``, ``roi``, ``selection``, ``notes``.
    """
    shared = {"selection": "none", **fields, "n": found.n, "unit": "fraction", "interval": INTERVAL}
    said = shared.pop("notes", "")
    parts = {
        "identification_top1": (found.top1, found.top1_low, found.top1_high, found.top1_chance),
        "identification_two_way": (found.two_way, found.two_way_low, found.two_way_high, 0.5),
    }
    return [
        MetricRow(
            name,
            value,
            ci_low=low,
            ci_high=high,
            **shared,
            notes="; ".join(v for v in (f"chance {chance:.4g} of {found.n} images", said) if v),
        )
        for name, (value, low, high, chance) in parts.items()
    ]


def synthesis_rows(found: Synthesis, **fields) -> list[MetricRow]:
    """Return rows of mean activity at the start, at the end and by the held-out encoder.

    Parameters
    ----------
    found : Synthesis
    **fields
        Of `MetricRow`: ``model``, ``subject``, ``roi``, ``notes``.
    """
    shared = {
        "split": "synthesised",
        "selection": "none",
        **fields,
        "n": len(found.activity),
        "unit": "z",
    }
    shared["notes"] = "; ".join(v for v in (found.prior, shared.get("notes", "")) if v)
    parts = {
        "synthesis_start": found.start,
        "synthesis_activity": found.activity,
        "synthesis_judged": found.judged,
    }
    return [MetricRow(k, float(np.mean(v)), **shared) for k, v in parts.items() if v is not None]

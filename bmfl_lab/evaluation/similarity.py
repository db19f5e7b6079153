"""Compare layers with the brain: encoding, spatial and temporal scores, and their metric rows."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.decoding import Identification
from bmfl_lab.evaluation.synthesis import Synthesis
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.metrics.statistics import percentiles
from bmfl_lab.models.ridge import fit_ridge
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng

ALPHAS = tuple(float(a) for a in np.logspace(0, 8, 10))
"""Ridge penalties of the encoding score (Raugel et al. 2025)."""


@dataclass(frozen=True)
class ScoreTest:
    """A correlation and its permutation test.

    Parameters
    ----------
    value : float or None
        Pearson r; None if it is undefined.
    p : float or None
        Two-sided p value; exact if all orders were tried.
    n : int
        Number of units that are correlated (ROIs, vertices or layers).
    n_permutations : int
        Number of orders that were tried.
    """

    value: float | None
    p: float | None
    n: int
    n_permutations: int


def _r(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson r; NaN if one side is constant."""
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 1e-15 else math.nan


def _tested(x: np.ndarray, y: np.ndarray, n_permutations: int, seed: int, name: str) -> ScoreTest:
    """Correlate x (n,) with y (n,) where both are finite, and test by permutations of y."""
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
    """Z-score features (n, d) by the training rows, and project them on principal components."""
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
    **options,
) -> dict[str, np.ndarray]:
    """Correlate the ridge predictions of each layer with measured responses, per vertex.

    Parameters
    ----------
    features, responses, train, test, **options
        Same as in `encoding_predictions`.

    Returns
    -------
    dict of str to ndarray, shape (n_vertices,)
        Pearson r on `test`, by name of the layer; NaN for a constant vertex.

    Raises
    ------
    DataError
        If training and test rows overlap, or a layer has another number of stimuli.

    References
    ----------
    Raugel et al. (2025), arXiv:2508.18226: encoding score.
    """
    predicted = encoding_predictions(features, responses, train=train, test=test, **options)
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
    """Fit a ridge regression from each layer to responses, and predict the test responses.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
        Features of each layer, in the order of processing. Rows are the stimuli of `responses`.
    responses : ndarray, shape (n_stimuli, n_vertices)
        Measured responses. Columns are vertices, or pairs of sensor and time.
    train, test : ndarray of int64
        Rows for the fit and for the prediction, without overlap.
    alphas : sequence of float, default `ALPHAS`
        Penalties to choose from by cross-validation within `train`.
    n_folds : int, default 5
        Number of folds of the cross-validation.
    n_components : int, optional
        Number of principal components, fitted on `train`, to which wider layers are reduced. By
        default all features are used.

    Returns
    -------
    dict of str to ndarray, shape (n_test, n_vertices)
        Predicted responses to the test stimuli, by name of the layer.

    Raises
    ------
    DataError
        If training and test rows overlap, or a layer has another number of stimuli.

    References
    ----------
    Raugel et al. (2025), arXiv:2508.18226: 10 penalties from 1 to 1e8 and 5 folds.
    """
    responses = np.asarray(responses, dtype=np.float32)
    require(
        not np.intersect1d(train, test).size,
        DataError,
        "disjoint train and test rows",
        "rows in both",
        "leave the rows of `test` out of `train`",
    )
    found = {}
    for layer, X in features.items():
        require(
            len(X) == len(responses),
            DataError,
            f"{len(responses)} stimuli in layer {layer!r}",
            len(X),
            "give each layer one row per stimulus, in the order of the responses",
        )
        X = _reduced(np.asarray(X).reshape(len(X), -1), train, n_components)
        # a layer that predicts nothing has no best penalty, of which fit_ridge would warn
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="expected at most 5%")
            found[layer] = fit_ridge(X[train], responses[train], alphas, n_folds).predict(X[test])
    return found


def encoding_table(
    scores: Mapping[str, np.ndarray], atlas: Atlas, rois: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return mean scores over defined vertices, one row per layer and one column per ROI.

    Parameters
    ----------
    scores : mapping of str to ndarray, shape (n_vertices,)
        Scores by name of the layer, as `encoding_scores` returns them.
    atlas : Atlas
        Atlas of the vertices.
    rois : sequence of str, optional
        ROIs; by default all that have vertices.
    """
    columns = {
        roi: [
            float(np.nanmean(v[mask])) if np.isfinite(v[mask]).any() else math.nan
            for v in scores.values()
        ]
        for roi, mask in ((roi, atlas.select(roi)) for roi in rois or atlas.present)
    }
    return pd.DataFrame(columns, index=list(scores)).rename_axis(index="layer", columns="roi")


def best_layers(scores: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Return the depth of the layer with the highest score for each unit.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_units)
        Scores of the layers, in the order of processing, for each vertex or ROI.
    least : float, default 0
        A unit without a score above this value has no best layer.

    Returns
    -------
    ndarray of float64, shape (n_units,)
        Depth from 0 (first layer) to 1 (last layer); NaN for a unit without a best layer.
    """
    scores = np.asarray(scores, dtype=np.float64)
    filled = np.where(np.isfinite(scores), scores, -np.inf)
    depth = filled.argmax(axis=0) / max(1, len(scores) - 1)
    return np.where(filled.max(axis=0) > least, depth, np.nan)


def distance_from_v1(
    atlas: Atlas, coordinates: np.ndarray, rois: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the distance of each ROI from V1, averaged over hemispheres.

    Parameters
    ----------
    atlas : Atlas
        Atlas with the ROI "V1", or with "V1v" and "V1d".
    coordinates : ndarray, shape (n_vertices, 3)
        Position of each vertex, e.g. in MNI space or on a surface, in mm; a vertex of NaN does not
        count.
    rois : sequence of str, optional
        ROIs; by default all that have vertices.

    Returns
    -------
    dict of str to float
        Euclidean distance between the centres of gravity, in the unit of `coordinates`; NaN for an
        ROI without vertices in a hemisphere that has V1.
    """
    v1 = atlas.select([r for r in ("V1", "V1v", "V1d") if r in atlas.present] or ["V1"])
    sides = np.asarray(atlas.hemisphere)
    found = {}
    for roi in rois or atlas.present:
        mask = atlas.select(roi)
        parts = [
            np.linalg.norm(
                np.nanmean(coordinates[mask & (sides == s)], axis=0)
                - np.nanmean(coordinates[v1 & (sides == s)], axis=0)
            )
            for s in (0, 1)
            if (mask & (sides == s)).any() and (v1 & (sides == s)).any()
        ]
        found[roi] = float(np.mean(parts)) if parts else math.nan
    return found


def spatial_score(
    scores: np.ndarray, distance: np.ndarray, *, n_permutations: int = 10_000, seed: int = 0
) -> ScoreTest:
    """Correlate the depth of the best layer of each unit with its distance from V1 (Pearson r).

    A positive score means that units far from V1 resemble deeper layers.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_units)
        Encoding scores of the layers, in the order of processing, for each vertex or ROI.
    distance : ndarray, shape (n_units,)
        Distance of each unit from V1, in mm.
    n_permutations : int, default 10000
        Number of random permutations of the units; all orders are tried if there are not more.
    seed : int, default 0
        Seed of the permutations.

    Returns
    -------
    ScoreTest

    Notes
    -----
    Neighbouring vertices are not independent, so that the p value is valid for ROIs only.

    References
    ----------
    Raugel et al. (2025), arXiv:2508.18226: spatial score.
    """
    return _tested(
        best_layers(scores), np.asarray(distance, float), n_permutations, seed, "spatial score"
    )


def peak_times(scores: np.ndarray, times: np.ndarray, share: float = 0.95) -> np.ndarray:
    """Return the time at which each layer has its highest scores.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_times)
        Encoding scores at each time.
    times : ndarray, shape (n_times,)
        Times in seconds.
    share : float, default 0.95
        Times count whose score is at least this share of the maximum of the layer; their mean is
        returned.

    Returns
    -------
    ndarray, shape (n_layers,)
        Mean of these times in seconds; NaN for a layer whose maximum is not above 0.
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
    """Correlate the depth of layers with the time at which each has its highest scores (Pearson r).

    A positive score means that deeper layers resemble later responses.

    Parameters
    ----------
    scores : ndarray, shape (n_layers, n_times)
        Encoding scores of the layers, in the order of processing, at each time.
    times : ndarray, shape (n_times,)
        Times in seconds.
    n_permutations, seed
        Same as in `spatial_score`; layers are permuted.

    Returns
    -------
    ScoreTest

    Notes
    -----
    The time of a layer is that of `peak_times`.

    References
    ----------
    Raugel et al. (2025), arXiv:2508.18226: temporal score.
    """
    depth, peaks = np.linspace(0, 1, len(scores)), peak_times(scores, times)
    return _tested(depth, peaks, n_permutations, seed, "temporal score")


@dataclass(frozen=True)
class TimeCourse:
    """Encoding scores of layers over time, with bootstrap intervals.

    Parameters
    ----------
    values : ndarray, shape (n_layers, n_times)
        Pearson r, averaged over sensors.
    resampled : ndarray, shape (n_boot, n_layers, n_times)
        The same on resamples of the test stimuli.
    """

    values: np.ndarray
    resampled: np.ndarray

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the 95 % intervals.

        Returns
        -------
        low, high : ndarray, shape (n_layers, n_times)
            Percentiles over the resamples; NaN where fewer than half of them are defined.
        """
        ends = np.apply_along_axis(percentiles, 0, self.resampled).astype(float)
        return ends[0], ends[1]


def encoding_over_time(
    features: Mapping[str, np.ndarray],
    data: np.ndarray,
    *,
    train: np.ndarray,
    test: np.ndarray,
    n_boot: int = 500,
    seed: int = 0,
    **options,
) -> TimeCourse:
    """Score how well each layer predicts M/EEG responses at each time.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
        Features of each layer.
    data : ndarray, shape (n_stimuli, n_channels, n_times)
        M/EEG responses, averaged over repeats.
    train, test, **options
        Same as in `encoding_predictions`.
    n_boot : int, default 500
        Number of bootstrap resamples of the test stimuli, shared by layers and sensors.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    TimeCourse
    """
    sensors = data.reshape(len(data), -1)
    found = encoding_predictions(features, sensors, train=train, test=test, **options).values()

    def over_sensors(r: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mean over sensors, (n_resamples, n_layers, n_times)."""
        return np.stack([np.nanmean(v.reshape(-1, *data.shape[1:]), axis=1) for v in r], axis=1)

    measured = np.asarray(sensors, dtype=np.float32)[test]
    (values,) = over_sensors([np.asarray(pearson(measured, p)) for p in found])
    return TimeCourse(
        values, over_sensors([bootstrap_pearson(measured, p, n_boot, seed) for p in found])
    )


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
    """Return the encoding score of each layer and ROI as metric rows.

    Parameters
    ----------
    predicted : mapping of str to ndarray, shape (n_test, n_vertices)
        Predictions of each layer, as `encoding_predictions` returns them.
    measured : ndarray, shape (n_test, n_vertices)
        Responses to the same stimuli.
    atlas : Atlas
        Atlas of the vertices.
    model, subject, split, selection, notes : str
        Fields of every row, as in `MetricRow`.
    rois : sequence of str, optional
        ROIs; by default all that have vertices.
    n_boot : int, default 500
        Number of bootstrap resamples of the stimuli.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    list of MetricRow
        ``encoding_r`` per layer and ROI: mean r over the vertices with a defined r; None if there
        is none.

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
            value = low = high = None
            if kept.any():
                value = float(r[kept].mean())
                low, high = np.nanquantile(resampled[:, kept].mean(axis=1), [0.025, 0.975])
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


def _number(value: float | None) -> float | None:
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
    """Turn the table of `rsa_scores` into metric rows.

    Parameters
    ----------
    table : DataFrame
        Table that `rsa_scores` returned.
    model, split, selection, unit, notes : str
        Fields of every row, as in `MetricRow`.
    intervals : mapping of (subject, layer, roi) to (low, high), optional
        Intervals that `bmfl_lab.evaluation.rsa_intervals` returned.

    Returns
    -------
    list of MetricRow
        ``rsa`` and ``p_family`` per subject, layer and ROI; ``rsa_ceiling_low`` and
        ``rsa_ceiling_high`` per subject and ROI.

    Raises
    ------
    DataError
        If the table lacks a column.
    """
    wanted = "subject layer roi value p_family ceiling_low ceiling_high n_stimuli".split()
    missing = [c for c in wanted if c not in table.columns]
    require(
        not missing,
        DataError,
        "a table of rsa_scores",
        f"without {missing}",
        "pass what rsa_scores returned",
    )
    rows, shared = [], {"split": split, "notes": notes}
    for r in table.itertuples():
        about = shared | {"n": int(r.n_stimuli), "subject": r.subject, "roi": r.roi}
        about |= {"model": model, "layer": r.layer, "selection": selection}
        low, high = (intervals or {}).get((r.subject, r.layer, r.roi), (None, None))
        ends = {"ci_low": low, "ci_high": high, "interval": INTERVAL if low is not None else ""}
        rows += [
            MetricRow("rsa", _number(r.value), unit=unit, **ends, **about),
            MetricRow("p_family", _number(r.p_family), unit="p", **about),
        ]
    for r in table.drop_duplicates(["subject", "roi"]).itertuples():
        about = shared | {"n": int(r.n_stimuli), "subject": r.subject, "roi": r.roi}
        rows += [
            MetricRow(f"rsa_{name}", _number(value), unit=unit, selection="none", **about)
            for name, value in (("ceiling_low", r.ceiling_low), ("ceiling_high", r.ceiling_high))
        ]
    return rows


def score_rows(name: str, test: ScoreTest, *, unit_counted: str, **fields) -> list[MetricRow]:
    """Turn a spatial or temporal score and its permutation test into metric rows.

    Parameters
    ----------
    name : str
        "spatial_score" or "temporal_score".
    test : ScoreTest
        Score and test.
    unit_counted : str
        Units whose number is ``test.n`` ("ROIs", "vertices" or "layers").
    **fields
        Other fields of `MetricRow`: ``split``, ``model``, ``subject``, ``selection``, ``notes``.

    Returns
    -------
    list of MetricRow
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
    """Turn the result of `identify` into metric rows: top-1 and two-way accuracy.

    Parameters
    ----------
    found : Identification
        Result of `identify`. The notes of the rows name the accuracy by chance.
    **fields
        Other fields of `MetricRow`: ``split``, ``model``, ``subject``, ``roi``, ``selection``,
        ``notes``.

    Returns
    -------
    list of MetricRow
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
    """Return the mean predicted activity for synthesised images as metric rows.

    Parameters
    ----------
    found : Synthesis
        Result of `synthesise_preferred` or `synthesise_with_diffusion`.
    **fields
        Other fields of `MetricRow`: ``model``, ``subject``, ``roi``, ``notes``.

    Returns
    -------
    list of MetricRow
        ``synthesis_start`` for the images before the first step, ``synthesis_activity`` for the
        result, and ``synthesis_judged`` for the result by the held-out encoder, if there is one.
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

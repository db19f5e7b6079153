"""Score the representational similarity of layers and ROIs, paired by stimulus id."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bmfl_lab.data.responses import Subject
from bmfl_lab.errors import DataError, require
from bmfl_lab.metrics.rdms import RDMs, shared
from bmfl_lab.metrics.rsa import rdm
from bmfl_lab.metrics.rsa_inference import (
    METHODS,
    noise_ceiling,
    permutation_rsa,
    similarity_samples,
)


def model_rdm(X: np.ndarray, metric: str = "correlation") -> np.ndarray:
    """Return the condensed RDM of a layer; a layer has no noise, so crossnobis is Euclidean."""
    return rdm(np.asarray(X).reshape(len(X), -1), "euclidean" if metric == "crossnobis" else metric)


def brain_rdm(
    subject: Subject, roi: str, ids: Sequence[str], metric: str = "correlation"
) -> np.ndarray:
    """Return the condensed RDM of an ROI; crossnobis uses the single presentations.

    Raises
    ------
    DataError
        If the metric is crossnobis without two complete presentations of every stimulus.
    """
    rows, mask = subject.stimuli.index_of(ids), subject.atlas.select(roi)
    if metric != "crossnobis":
        return rdm(np.asarray(subject.responses[rows])[:, mask], metric)
    repeats = None if subject.repeats is None else np.asarray(subject.repeats[rows])[:, :, mask]
    if repeats is not None and not np.isfinite(repeats).all():
        whole = np.isfinite(repeats).all(axis=(0, 2))
        repeats = repeats[:, whole]
    return rdm(None, metric, repeats=repeats)


def rsa_ceiling(
    subjects: Sequence[Subject], roi: str, ids: list[str], metric: str, method: str
) -> tuple[float, float]:
    """Return the noise ceiling across subjects or across one subject's repeats, else NaN twice."""
    if len(subjects) > 1:
        values = np.stack([brain_rdm(s, roi, ids, metric) for s in subjects])
    elif (
        subjects[0].repeats is not None and metric != "crossnobis"
    ):  # one presentation has no crossnobis RDM
        s = subjects[0]
        repeats = s.repeats[s.stimuli.index_of(ids)][:, :, s.atlas.select(roi)]
        if not np.isfinite(repeats).all():
            return math.nan, math.nan
        values = np.stack([rdm(p, metric) for p in np.moveaxis(repeats, 1, 0)])
    else:
        return math.nan, math.nan
    return (
        noise_ceiling(values, method)
        if np.isfinite(values).all() and len(values) > 1
        else (math.nan, math.nan)
    )


def rsa_scores(
    features: Mapping[str, np.ndarray],
    ids: Sequence[str],
    subjects: Subject | Sequence[Subject],
    *,
    rois: Sequence[str] | None = None,
    metric: str = "correlation",
    method: str = "spearman",
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Similarity of every layer's RDM with every ROI's, per subject, with ceilings and tests.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
        Layers.
    ids : sequence of str
        Stimulus id of each row; stimuli are paired with a subject's by id.
    subjects : Subject or sequence of Subject
        One, or several to see whether alignment with one carries over to others.
    rois : sequence of str, optional
        ROIs or groups; by default those that every subject has. ROIs of fewer than two vertices are
        refused by the correlation metric.
    metric, method
        As in `bmfl_lab.metrics.rdm` and `compare_rdms`; with "crossnobis" ROIs are compared by
        their presentations and layers by Euclidean distances.
    n_permutations, seed
        Permutations and seed of the test over stimuli.

    Returns
    -------
    DataFrame
        Columns subject, layer, roi, value, p, p_family (over all layers and ROIs of the subject),
        ceiling_low, ceiling_high (over subjects; with one subject over its repeats, which bounds
        single presentations and is below the ceiling of their average), n_stimuli.

    Raises
    ------
    DataError
        If fewer than four stimuli are shared, or no ROI is present in all subjects.
    """
    subjects = [subjects] if isinstance(subjects, Subject) else list(subjects)
    rois = list(
        rois
        or [r for r in subjects[0].atlas.present if all(r in s.atlas.present for s in subjects)]
    )
    require(rois, DataError, "an ROI that all subjects have", "none", "name the ROIs to compare")
    layers = RDMs(np.stack([model_rdm(X, metric) for X in features.values()]), ids, tuple(features))
    rows = []
    for subject in subjects:
        known = {str(s) for s in subject.stimuli.ids}
        own = [str(i) for i in ids if str(i) in known]
        require(
            len(own) >= 4,
            DataError,
            f"at least 4 of these stimuli shown to {subject.name!r}",
            len(own),
            "check the id scheme",
        )
        measured = RDMs(
            np.stack([brain_rdm(subject, r, own, metric) for r in rois]), own, tuple(rois)
        )
        model, measured = shared(layers, measured)
        joint = RDMs(np.concatenate([model.values, measured.values]), model.ids).defined()
        model = RDMs(joint.values[: len(model)], joint.ids, model.names)
        measured = RDMs(joint.values[len(model) :], joint.ids, measured.names)
        test = permutation_rsa(
            model, measured, method=method, n_permutations=n_permutations, seed=seed
        )
        common = [i for i in model.ids if all(i in set(map(str, s.stimuli.ids)) for s in subjects)]
        for j, roi in enumerate(rois):
            low, high = (
                rsa_ceiling(subjects, roi, common, metric, method)
                if len(common) > 3
                else (math.nan, math.nan)
            )
            rows += [
                {
                    "subject": subject.name,
                    "layer": layer,
                    "roi": roi,
                    "value": test.value[i, j],
                    "p": test.p[i, j],
                    "p_family": test.p_family[i, j],
                    "ceiling_low": low,
                    "ceiling_high": high,
                    "n_stimuli": len(model.ids),
                }
                for i, layer in enumerate(features)
            ]
    return pd.DataFrame(rows)


def rsa_intervals(
    features: Mapping[str, np.ndarray],
    ids: Sequence[str],
    subjects: Subject | Sequence[Subject],
    *,
    rois: Sequence[str] | None = None,
    metric: str = "correlation",
    method: str = "spearman",
    n_boot: int = 500,
    seed: int = 0,
) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Bootstrap intervals over stimuli for the values of `rsa_scores`.

    Parameters
    ----------
    features, ids, subjects, rois, metric, method
        As in `rsa_scores`.
    n_boot, seed
        Of the bootstrap, see `bmfl_lab.metrics.rsa_inference.similarity_samples`.

    Returns
    -------
    dict of (subject, layer, roi) to (low, high)
        Empty for a method that has no such bootstrap, and without a subject whose RDMs are
        undefined somewhere.
    """
    if method not in METHODS:
        return {}
    subjects, found = [subjects] if isinstance(subjects, Subject) else list(subjects), {}
    where = {str(i): k for k, i in enumerate(ids)}
    for subject in subjects:
        own = [str(i) for i in subject.stimuli.ids if str(i) in where]
        at = [where[i] for i in own]
        names = list(rois or subject.atlas.present)
        brain = np.stack([brain_rdm(subject, r, own, metric) for r in names])
        layers = np.stack([model_rdm(np.asarray(X)[at], metric) for X in features.values()])
        if not (np.isfinite(brain).all() and np.isfinite(layers).all()):
            continue
        samples = similarity_samples(layers, brain, method=method, n_boot=n_boot, seed=seed)[1]
        low, high = np.nanquantile(samples, [0.025, 0.975], axis=0)
        for i, layer in enumerate(features):
            for j, roi in enumerate(names):
                found[subject.name, layer, roi] = (float(low[i, j]), float(high[i, j]))
    return found

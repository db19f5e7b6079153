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
    RSAPermutation,
    noise_ceiling,
    permutation_rsa,
    similarity_samples,
)


def model_rdm(X: np.ndarray, metric: str = "correlation") -> np.ndarray:
    """Return the condensed RDM of features (n_stimuli, d) of a layer.

    Features have no noise, so that the crossnobis distance is the Euclidean one.
    """
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
    if repeats is not None:
        repeats = repeats[:, np.isfinite(repeats).all(axis=(0, 2))]
    return rdm(None, metric, repeats=repeats)


def rsa_ceiling(
    subjects: Sequence[Subject], roi: str, ids: list[str], metric: str, method: str
) -> tuple[float, float]:
    """Return the lower and the upper noise ceiling of the RDM of an ROI.

    Parameters
    ----------
    subjects : sequence of Subject
        With several subjects the ceiling is computed from their RDMs, with one subject from the
        RDMs of its repeats.
    roi : str
        ROI or group.
    ids : list of str
        Stimulus ids.
    metric, method : str
        Same as in `rsa_scores`.

    Returns
    -------
    low, high : float
        NaN if an RDM is undefined, or one subject has no two complete repeats. One repeat has no
        crossnobis RDM.
    """
    if len(subjects) > 1:
        values = np.stack([brain_rdm(s, roi, ids, metric) for s in subjects])
    elif subjects[0].repeats is None or metric == "crossnobis":
        return math.nan, math.nan
    else:
        s = subjects[0]
        repeats = s.repeats[s.stimuli.index_of(ids)][:, :, s.atlas.select(roi)]
        if not np.isfinite(repeats).all():
            return math.nan, math.nan
        values = np.stack([rdm(p, metric) for p in np.moveaxis(repeats, 1, 0)])
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    return noise_ceiling(values, method)


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
    """Compare the RDM of each layer with that of each ROI, with noise ceilings and tests.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_stimuli, d)
        Features by name of the layer.
    ids : sequence of str
        Stimulus id of each row. Stimuli are matched with those of a subject by id.
    subjects : Subject or sequence of Subject
        Subjects, each of which is compared on its own.
    rois : sequence of str, optional
        ROIs or groups; by default those that every subject has. The correlation metric needs at
        least two vertices per ROI.
    metric : str, default "correlation"
        Distance of `bmfl_lab.metrics.rdm`. With "crossnobis" the RDMs of ROIs are computed from
        single presentations, and those of layers from Euclidean distances.
    method : str, default "spearman"
        Similarity of `bmfl_lab.metrics.compare_rdms`.
    n_permutations : int, default 1000
        Number of permutations of the stimuli.
    seed : int, default 0
        Seed of the permutations.

    Returns
    -------
    DataFrame
        One row per subject, layer and ROI, with the columns ``subject``, ``layer``, ``roi``,
        ``value``, ``p``, ``p_family`` (adjusted over the layers and ROIs of a subject),
        ``ceiling_low``, ``ceiling_high`` and ``n_stimuli``. The ceiling is that over subjects. With
        one subject it is over repeats: it then holds for single presentations and is lower than
        that of their average.

    Raises
    ------
    DataError
        If fewer than four stimuli are shared, or no ROI is present in all subjects.

    References
    ----------
    Nili et al. (2014), A toolbox for representational similarity analysis, PLoS Comput Biol
    10(4):e1003553: noise ceiling and permutation test.
    """
    subjects = [subjects] if isinstance(subjects, Subject) else list(subjects)
    everywhere = set.intersection(*(set(s.atlas.present) for s in subjects))
    rois = list(rois or [r for r in subjects[0].atlas.present if r in everywhere])
    remedy = "pass rois=['all'] to compare all vertices, or groups that all subjects have"
    require(rois, DataError, "an ROI that all subjects have", "none", remedy)
    layers = RDMs(np.stack([model_rdm(X, metric) for X in features.values()]), ids, tuple(features))
    rows, shown = [], [set(map(str, s.stimuli.ids)) for s in subjects]
    for subject in subjects:
        tested, test = _test_subject(layers, subject, rois, metric, method, n_permutations, seed)
        common = [i for i in tested if all(i in own for own in shown)]
        for j, roi in enumerate(rois):
            low, high = math.nan, math.nan
            if len(common) > 3:
                low, high = rsa_ceiling(subjects, roi, common, metric, method)
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
                    "n_stimuli": len(tested),
                }
                for i, layer in enumerate(features)
            ]
    return pd.DataFrame(rows)


def _test_subject(
    layers: RDMs,
    subject: Subject,
    rois: list[str],
    metric: str,
    method: str,
    n_permutations: int,
    seed: int,
) -> tuple[np.ndarray, RSAPermutation]:
    """Compare layers with one subject; return the ids of the stimuli that were used, and the test.

    These are the stimuli that the subject saw and for which all RDMs are defined.
    """
    known = {str(s) for s in subject.stimuli.ids}
    own = [i for i in layers.ids if i in known]
    require(
        len(own) >= 4,
        DataError,
        f"at least 4 of these stimuli shown to {subject.name!r}",
        len(own),
        "pass stimuli that this subject saw, with the ids of subject.stimuli.ids",
    )
    brain = np.stack([brain_rdm(subject, r, own, metric) for r in rois])
    model, measured = shared(layers, RDMs(brain, own, tuple(rois)))
    joint = RDMs(np.concatenate([model.values, measured.values]), model.ids).defined()
    model = RDMs(joint.values[: len(model)], joint.ids, model.names)
    measured = RDMs(joint.values[len(model) :], joint.ids, measured.names)
    return joint.ids, permutation_rsa(
        model, measured, method=method, n_permutations=n_permutations, seed=seed
    )


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
    """Return 95 % bootstrap intervals over stimuli for the values of `rsa_scores`.

    Parameters
    ----------
    features, ids, subjects, rois, metric, method
        Same as in `rsa_scores`.
    n_boot : int, default 500
        Number of resamples, see `bmfl_lab.metrics.rsa_inference.similarity_samples`.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    dict of (subject, layer, roi) to (low, high)
        Empty for a method without such a bootstrap. Subjects with an undefined RDM are left out.
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

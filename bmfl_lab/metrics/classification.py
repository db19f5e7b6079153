"""Classification metrics on logits: accuracy, likelihood, calibration, corruption error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.errors import DataError, message, require

# Top-1 errors of AlexNet on ImageNet-C, mean over the five severities, as published with the
# benchmark (Hendrycks & Dietterich 2019); the normaliser of mCE.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def check(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels as arrays after checking that they fit.

    Parameters
    ----------
    logits : array-like, shape (n_stimuli, n_classes)
        Scores; NaN is allowed here and counted by the metrics.
    labels : array-like of integers, shape (n_stimuli,)
        True class indices.

    Returns
    -------
    logits : ndarray of float64, shape (n_stimuli, n_classes)
    labels : ndarray of int64, shape (n_stimuli,)

    Raises
    ------
    DataError
        If shapes differ, labels are no integers, are negative, or lie outside the head.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    require(
        logits.ndim == 2 and logits.shape[1] >= 1 and (labels.shape == logits.shape[:1]),
        DataError,
        "logits of shape (n_stimuli, n_classes) and one label per stimulus",
        f"{logits.shape} and {labels.shape}",
        "pair each image with its label by stimulus id",
    )
    require(
        not labels.size or labels.dtype.kind in "iu",
        DataError,
        "integer labels",
        f"dtype {labels.dtype}",
        "give class indices, not names or scores",
    )
    labels = labels.astype(np.int64)
    if labels.size and (labels.min() < 0 or labels.max() >= logits.shape[1]):
        raise DataError(
            message(
                f"labels from 0 to {logits.shape[1] - 1}, the classes of the head",
                f"values {labels.min()}..{labels.max()}",
                "drop unlabelled images (-1, -100) and map labels to the head's classes by name",
            )
        )
    return logits, labels


def n_nan(logits: np.ndarray) -> int:
    """Return the number of stimuli with at least one NaN logit; report it beside every accuracy."""
    return int(np.isnan(np.asarray(logits, dtype=np.float64)).any(axis=1).sum())


def mask_classes(logits: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Restrict logits to some of the head's classes (ImageNet-R and -A use 200 of 1,000).

    Parameters
    ----------
    logits : array-like, shape (n_stimuli, n_head)
        Logits of the full head.
    classes : sequence of int, shape (n_classes,)
        Head index of each class of the set, in the order of the set's labels.

    Returns
    -------
    ndarray, shape (n_stimuli, n_classes)
        ``logits[:, classes]``; column c belongs to label c of the set.

    Raises
    ------
    DataError
        If an index repeats or lies outside the head.
    """
    logits, index = np.asarray(logits), np.asarray(classes)
    if (
        index.ndim != 1
        or index.dtype.kind not in "iu"
        or len(np.unique(index)) != len(index)
        or (len(index) and (index.min() < 0 or index.max() >= logits.shape[1]))
    ):
        raise DataError(
            message(
                f"different class indices from 0 to {logits.shape[1] - 1}",
                f"{index.dtype} array of {index.size}, {len(np.unique(index))} different",
                "list the columns of the head, each once; for ImageNet-R and -A see data.ood_sets",
            )
        )
    return logits[:, index]


def predictions(logits: np.ndarray) -> np.ndarray:
    """Return the predicted class of each stimulus, shape (n_stimuli,); -1 where a logit is NaN.

    Ties go to the lowest class index.
    """
    logits = np.asarray(logits, dtype=np.float64)
    bad = np.isnan(logits).any(axis=1)
    return np.where(bad, -1, np.argmax(np.where(np.isnan(logits), -np.inf, logits), axis=1))


def correct(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return correctness, bool (n_stimuli,); stimuli with NaN logits are wrong.

    Raises
    ------
    DataError
        See `check`.
    """
    logits, labels = check(logits, labels)
    return predictions(logits) == labels


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the share of correctly classified stimuli; None for an empty set.

    Stimuli with NaN logits count as wrong. Ties go to the lowest class index.

    Raises
    ------
    DataError
        See `check`.
    """
    right = correct(logits, labels)
    return float(right.mean()) if right.size else None


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int = 5) -> float | None:
    """Return the expected top-k accuracy when ties are broken at random; None for an empty set.

    With g classes scored above the true class and t scored equal to it (itself included), the
    stimulus counts ``clip((k - g) / t, 0, 1)``. Constant logits therefore give k / n_classes,
    whatever the order of classes. `accuracy` breaks ties by index instead, as a deployed argmax
    does.

    Parameters
    ----------
    logits, labels
        See `check`.
    k : int, default 5
        At most the number of classes.

    Raises
    ------
    DataError
        If k is not from 1 to n_classes; see also `check`.
    """
    logits, labels = check(logits, labels)
    require(
        1 <= k <= logits.shape[1],
        DataError,
        f"k from 1 to {logits.shape[1]}",
        k,
        f"choose for example k={min(5, logits.shape[1])}",
    )
    if not len(labels):
        return None
    own = logits[np.arange(len(labels)), labels][:, None]
    share = np.clip(
        (k - (logits > own).sum(axis=1)) / np.maximum((logits == own).sum(axis=1), 1), 0, 1
    )
    return float(np.where(np.isnan(logits).any(axis=1), 0.0, share).mean())


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the mean over classes of the accuracy within the class; None for an empty set.

    Classes without a stimulus are left out of the mean, as there is nothing to measure.

    Raises
    ------
    DataError
        See `check`.
    """
    right = correct(logits, labels)
    if not right.size:
        return None
    _, index, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return float((np.bincount(index, weights=right) / counts).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities along the last axis, computed without overflow.

    Infinite logits have their limits: classes at plus infinity share the whole probability.
    """
    logits = np.asarray(logits, dtype=np.float64)
    highest = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = np.where(logits == highest, 0, logits - highest)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def nll(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the mean negative log likelihood (nats); None without stimuli or finite logits.

    Raises
    ------
    DataError
        See `check`.
    """
    logits, labels = check(logits, labels)
    if not len(labels) or not np.isfinite(logits).all():
        return None
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


@dataclass(frozen=True)
class Calibration:
    """Reliability of the top-1 probability, by bins of equal width.

    Parameters
    ----------
    edges : ndarray, shape (n_bins + 1,)
        Bin edges from 0 to 1; a confidence on an edge belongs to the bin below it.
    count : ndarray, shape (n_bins,)
        Number of stimuli per bin.
    confidence, accuracy : ndarray, shape (n_bins,)
        Mean confidence and accuracy of each bin; NaN for an empty bin.
    ece : float or None
        Expected calibration error; None for an empty set.
    n_excluded : int
        Number of stimuli with NaN logits, which have no confidence and are left out.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float | None
    n_excluded: int


def calibration(logits: np.ndarray, labels: np.ndarray, n_bins: int = 15) -> Calibration:
    """Bin stimuli by their top-1 probability and compare it with the accuracy in each bin.

    Parameters
    ----------
    logits, labels
        See `check`.
    n_bins : int, default 15
        Bins of equal width over (0, 1], the usual number.

    Returns
    -------
    Calibration

    Raises
    ------
    DataError
        If `n_bins` is below one; see also `check`.

    References
    ----------
    Guo et al. 2017, "On calibration of modern neural networks", eq. 3.
    """
    logits, labels = check(logits, labels)
    require(
        n_bins >= 1,
        DataError,
        "at least one bin",
        n_bins,
        "use n_bins=15",
    )
    keep = ~np.isnan(logits).any(axis=1)
    logits, labels = logits[keep], labels[keep]
    confidence = np.exp(log_softmax(logits)).max(axis=1) if len(labels) else np.zeros(0)
    right = predictions(logits) == labels
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, weights=confidence, minlength=n_bins) / count
        mean_accuracy = np.bincount(bins, weights=right, minlength=n_bins) / count
    gaps = np.where(count > 0, count * np.abs(mean_accuracy - mean_confidence), 0)
    return Calibration(
        edges=np.linspace(0, 1, n_bins + 1),
        count=count,
        confidence=mean_confidence,
        accuracy=mean_accuracy,
        ece=float(gaps.sum() / len(labels)) if len(labels) else None,
        n_excluded=int((~keep).sum()),
    )


def ece(logits: np.ndarray, labels: np.ndarray, n_bins: int = 15) -> float | None:
    """Return the expected calibration error (see `calibration`); empty bins add nothing."""
    return calibration(logits, labels, n_bins).ece


def corruption_error(
    errors: Mapping[str, Mapping[int, float]], normaliser: Mapping[str, float] | None = None
) -> tuple[float, dict[str, float]]:
    """Return mCE, the mean corruption error relative to AlexNet, and its parts.

    Parameters
    ----------
    errors : mapping corruption -> mapping severity -> top-1 error
        Errors as fractions.
    normaliser : mapping corruption -> error, default `ALEXNET_ERRORS`
        Mean error over severities of the reference model, as fraction.

    Returns
    -------
    mce : float
        Mean of the parts (1.0 is AlexNet; published tables multiply by 100).
    parts : dict
        Corruption error of each corruption.

    Raises
    ------
    DataError
        If a corruption or a severity is missing; the message holds the partial table.

    References
    ----------
    Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
    perturbations".
    """
    normaliser = ALEXNET_ERRORS if normaliser is None else normaliser
    parts, missing = {}, []
    for name, reference in normaliser.items():
        found = errors.get(name, {})
        absent = [s for s in range(1, 6) if not np.isfinite(found.get(s, np.nan))]
        if absent:
            missing.append(f"{name} severities {absent}")
        else:
            parts[name] = float(np.mean([found[s] for s in range(1, 6)]) / reference)
    if missing:
        table = ", ".join(f"{k} {v:.3f}" for k, v in parts.items()) or "none complete"
        raise DataError(
            message(
                f"{len(normaliser)} corruptions with five severities each",
                f"missing {'; '.join(missing)} (complete so far: {table})",
                "evaluate the missing ones; mCE over a part is not comparable",
            )
        )
    return float(np.mean(list(parts.values()))), parts

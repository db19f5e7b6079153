"""Accuracy in and out of distribution, with intervals, for several models and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bmfl_lab.data.ood_sets import partial_note
from bmfl_lab.data.shifts import shifted
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.metrics import classification
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.models.protocols import Classifier
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import progress, rng

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class OODResult:
    """What `evaluate_ood` found.

    Parameters
    ----------
    rows : list of MetricRow
        ``accuracy``, ``balanced_accuracy`` and, where there were any, ``nan_logits``: one row a
        model, set and seed, and one over the seeds where a model has several.
    per_image : pandas.DataFrame
        One row per model, seed, set and image: ``model, seed, split, shift, severity, id, label,
        predicted, correct, confidence, nll``. Labels and predictions index the classes of the set;
        predicted is -1 and confidence (the probability of the predicted class) NaN where a logit
        was NaN; nll (nats) is NaN where a logit was not finite.
    """

    rows: list[MetricRow]
    per_image: pd.DataFrame


def evaluation_sets(
    study: Study,
    *,
    shifts: Sequence[tuple[str, int]] | None = None,
    sets: Sequence[str] | None = None,
    seed: int = 0,
) -> list[tuple[StimulusSet, str, str, int | None]]:
    """Return what is evaluated: (images, split, shift, severity).

    Parameters
    ----------
    study : Study
        Its "test" set is in distribution.
    shifts : sequence of (str, int), optional
        Made shifts of "test"; the study's own by default, () for none.
    sets : sequence of str, optional
        Image sets; "test" and the natural OOD sets by default.
    seed : int, default 0
        Seed of the artificial shifts.

    Raises
    ------
    ConfigError
        If a set is "train" or "val", or a shift is unknown.
    DataError
        If a set is unknown.
    """
    names = ("test", *study.ood) if sets is None else tuple(sets)
    if {"train", "val"} & set(names):
        raise ConfigError(
            message(
                "sets that no choice was made on",
                f"{names}",
                "evaluate 'test' and out-of-distribution sets",
            )
        )
    found: list[tuple[StimulusSet, str, str, int | None]] = [
        (study.set(n), n, "", None) for n in names
    ]
    for name, severity in study.shifts if shifts is None else shifts:
        found.append((shifted(study.set("test"), name, severity, seed), "test", name, severity))
    return found


def evaluate_ood(
    models: Mapping[str, Classifier | Sequence[Classifier]],
    study: Study,
    *,
    shifts: Sequence[tuple[str, int]] | None = None,
    sets: Sequence[str] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> OODResult:
    """Evaluate models on the ID test set, natural OOD sets and made shifts.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Each has ``logits(stimuli) -> (n, C)``, and may have ``seed`` and ``selection``. A list
        holds one model a training seed.
    study : Study
        The images.
    shifts, sets
        As in `evaluation_sets`.
    n_boot : int, default 1000
        Bootstrap resamples.
    seed : int, default 0
        Of the made shifts and of the bootstrap.

    Returns
    -------
    OODResult
        A value of an empty set is None (undefined). NaN logits count as wrong and are reported.
        Where a set holds only some of the head's classes, the logits of the others are left out,
        matched by class name. Where a set lacks images of some of its classes, the notes of its
        rows say of how many there are.

    Raises
    ------
    ConfigError
        If there is no model, or a set is "train" or "val".
    DataError
        If labels and logits do not fit.
    """
    import pandas as pd

    groups = {n: list(m) if isinstance(m, (list, tuple)) else [m] for n, m in models.items()}
    if not groups or not all(groups.values()):
        raise ConfigError(
            message(
                "at least one model a name",
                f"{ {k: len(v) for k, v in groups.items()} }",
                "add one",
            )
        )
    rows: list[MetricRow] = []
    frames = []
    # sets outside, models inside: a shifted set is made and its tokens are read once for all models
    for stimuli, split, shift, severity in progress(
        evaluation_sets(study, shifts=shifts, sets=sets, seed=seed), "image sets evaluated"
    ):
        said = partial_note(study.set(split)), f"{study.kind} fMRI" if study.kind else ""
        place = {
            "split": split,
            "shift": shift,
            "severity": severity,
            "notes": "; ".join(t for t in said if t),
        }
        read_once([m for group in groups.values() for m in group], stimuli)
        for name, group in groups.items():
            logits = [masked_logits(m, stimuli, study) for m in group]
            rows += _rows(name, group, logits, np.asarray(stimuli.labels), place, n_boot, seed)
            frames += [
                image_frame(name, _seed(m, i), z, stimuli, place)
                for i, (m, z) in enumerate(zip(group, logits))
            ]
    return OODResult(rows, pd.concat(frames, ignore_index=True))


def notes_of(result: OODResult, split: str, shift: str, severity: int | None) -> str:
    """Return the notes of an image set, such as "simulated fMRI" or that classes are missing."""
    place = (split, shift, int(severity or 0))
    found = (
        r.notes
        for r in result.rows
        if r.name == "accuracy" and (r.split, r.shift, r.severity or 0) == place
    )
    return next(found, "")


def read_once(models: Sequence[Classifier], stimuli: StimulusSet) -> None:
    """Extract in one pass of the backbone what all models will read of a set.

    Parameters
    ----------
    models : sequence of model
        Those with ``reads()`` (kind and block of their tokens), ``store`` and ``backbone`` take
        part.
    stimuli : StimulusSet
        May be empty.
    """
    wanted: dict[tuple[int, int], tuple[Any, list]] = {}
    for model in models:
        if hasattr(model, "reads") and len(stimuli):
            key = (id(model.store), id(model.backbone))
            wanted.setdefault(key, (model, []))[1].extend(model.reads())
    for model, tokens in wanted.values():
        model.store.get_many(model.backbone, stimuli, list(dict.fromkeys(tokens)))


def masked_logits(model: Classifier, stimuli: StimulusSet, study: Study) -> np.ndarray:
    """Return a model's logits for the classes of a set, shape (n_stimuli, n_classes of the set).

    Parameters
    ----------
    model : Classifier
        Its head has the classes ``model.class_names``, or, where it names none, those of the study.
    stimuli : StimulusSet
        May hold some of these classes only, in any order.
    study : Study
        Names the classes.

    Raises
    ------
    DataError
        If the head has no logit for a class of the set, names a class twice, or has another number
        of logits than names: as many logits as the set has classes may be those of another set.
    """
    logits = np.asarray(model.logits(stimuli))
    head, wanted = (
        tuple(getattr(model, "class_names", None) or study.class_names),
        tuple(stimuli.class_names),
    )
    if head == wanted and (not wanted or logits.shape[1] == len(head)):
        return logits
    missing = sorted(set(wanted) - set(head))
    if missing or logits.shape[1] != len(head) or len(set(head)) < len(head):
        lack = (
            f"no class named {missing[:3]}"
            if missing
            else f"{len(head)} class names, {len(set(head))} different"
        )
        raise DataError(
            message(
                f"logits for the {len(wanted)} classes of {stimuli.name!r}",
                f"{logits.shape[1]} logits; {lack}",
                "name the classes of the set as the head does, and give every class of the head "
                "a logit and a name",
            )
        )
    where = {name: i for i, name in enumerate(head)}
    return classification.mask_classes(
        logits, np.asarray([where[name] for name in wanted], dtype=np.int64)
    )


def _seed(model: Classifier, position: int) -> int:
    return int(getattr(model, "seed", position))


def _rows(name, group, logits, labels, place, n_boot, seed) -> list[MetricRow]:
    correct = np.stack([classification.correct(z, labels) for z in logits])
    selection = "; ".join(sorted({str(getattr(m, "selection", "none")) for m in group}))
    base = {"unit": "fraction", "n": len(labels), "selection": selection, "model": name, **place}
    rows = []
    for i, (model, z) in enumerate(zip(group, logits)):
        own = {**base, "seed": _seed(model, i)}
        rows += _pair(correct[i : i + 1], labels, own, n_boot, seed)
        rows += nan_row(
            classification.n_nan(z) if len(z) else 0,
            **{k: v for k, v in own.items() if k != "unit"},
        )
    if len(group) > 1:
        rows += _pair(correct, labels, {**base, "n_seeds": len(group)}, n_boot, seed)
    return rows


def _pair(
    correct_SN: np.ndarray, labels: np.ndarray, base: dict, n_boot: int, seed: int
) -> list[MetricRow]:
    plain = bootstrap_mean(
        correct_SN if len(correct_SN) > 1 else correct_SN[0], n_boot=n_boot, seed=seed
    )
    value, low, high = _balanced(correct_SN, labels, n_boot, seed)
    return [
        MetricRow(
            "accuracy",
            plain.value,
            ci_low=plain.low,
            ci_high=plain.high,
            interval=plain.method,
            **base,
        ),
        MetricRow(
            "balanced_accuracy",
            value,
            ci_low=low,
            ci_high=high,
            interval=_WITHIN[len(correct_SN) > 1],
            **base,
        ),
    ]


_WITHIN = {
    False: "95 % percentile bootstrap over stimuli within class",
    True: "95 % percentile bootstrap over seeds and stimuli within class",
}


def _balanced(correct_SN: np.ndarray, labels: np.ndarray, n_boot: int, seed: int) -> tuple:
    """Return the mean recall over classes and its interval, each class resampled by itself."""
    classes = np.unique(labels)
    if not len(classes):
        return None, None, None
    value = float(np.mean([correct_SN[:, labels == c].mean() for c in classes]))
    if len(labels) < 2:
        return value, None, None
    random, n_seeds = rng(seed, "bootstrap", "balanced"), len(correct_SN)
    recall_BS = np.zeros((n_boot, n_seeds))
    for c in classes:
        part = correct_SN[:, labels == c].astype(np.float64)
        patterns, times = np.unique(part, axis=1, return_counts=True)
        recall_BS += (
            random.multinomial(part.shape[1], times / times.sum(), size=n_boot)
            / part.shape[1]
            @ patterns.T
        )
    weight = random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_boot) / n_seeds
    low, high = np.quantile((recall_BS * weight).sum(1) / len(classes), [0.025, 0.975])
    return value, float(low), float(high)


def nan_row(n_bad: int, **fields: str | int | None) -> list[MetricRow]:
    """Return a row with the number of stimuli with NaN logits, which are wrong, if any."""
    return [MetricRow("nan_logits", float(n_bad), "stimuli", **fields)] if n_bad else []


def image_frame(
    name: str,
    seed: int,
    logits: np.ndarray,
    stimuli: StimulusSet,
    place: Mapping[str, str | int | None],
) -> pd.DataFrame:
    """Return the rows of `OODResult.per_image` of one model, seed and set (named by `place`)."""
    import pandas as pd

    predicted = classification.predictions(logits) if len(logits) else np.zeros(0, dtype=np.int64)
    labels, rows = np.asarray(stimuli.labels), np.arange(len(logits))
    with np.errstate(invalid="ignore"):
        logs = classification.log_softmax(logits) if len(logits) else np.zeros((0, 1))
    confidence = np.where(predicted >= 0, np.exp(logs[rows, np.maximum(predicted, 0)]), np.nan)
    finite = np.isfinite(logits).all(axis=1) if len(logits) else np.zeros(0, dtype=bool)
    return pd.DataFrame(
        {
            "model": name,
            "seed": seed,
            "split": place["split"],
            "shift": place["shift"],
            "severity": place["severity"],
            "id": np.asarray(stimuli.ids, dtype=object),
            "label": labels,
            "predicted": predicted,
            "correct": predicted == labels,
            "confidence": confidence,
            "nll": np.where(finite, -logs[rows, labels], np.nan) if len(logits) else np.zeros(0),
        }
    )

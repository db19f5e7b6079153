"""Accuracy in and out of distribution, with intervals, for several models and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bmfl_lab.data import StimulusSet, Study
from bmfl_lab.data.ood_sets import partial_note
from bmfl_lab.data.shifts import shift_note, shifted
from bmfl_lab.errors import ConfigError, DataError, nearest, require
from bmfl_lab.metrics import classification
from bmfl_lab.metrics.power import power_sentence
from bmfl_lab.metrics.statistics import accuracy_interval
from bmfl_lab.models.protocols import Classifier
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import divided, progress, rng


@dataclass(frozen=True)
class OODResult:
    """Hold the results of models on image sets.

    Parameters
    ----------
    rows : list of MetricRow
        ``accuracy`` and ``balanced_accuracy`` per model, set and seed, and over the seeds of a
        model with several. ``nan_logits`` counts the images with NaN logits, and
        ``skipped_images`` the broken images that a model was trained without, if there are any.
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
    """Return the image sets and shifts of an evaluation, as (images, split, shift, severity).

    Parameters
    ----------
    study : Study
        Study of the images; its set "test" is in distribution.
    shifts : sequence of (str, int), optional
        Names and severities of artificial shifts that are applied to "test"; by default those of
        the study. () for none.
    sets : sequence of str, optional
        Image sets; by default "test" and the natural OOD sets.
    seed : int, default 0
        Seed of the artificial shifts.

    Raises
    ------
    ConfigError
        If a set is "train" or "val", a shift is unknown, or the responses to shifted images are not
        known because they were predicted elsewhere.
    DataError
        If a set is unknown.
    """
    names = ("test", *study.ood) if sets is None else tuple(sets)
    require(
        not {"train", "val"} & set(names),
        ConfigError,
        "sets that no choice was made on",
        names,
        "evaluate 'test' and out-of-distribution sets",
    )
    made = study.shifts if shifts is None else shifts
    require(
        not made or study.kind != "predicted",
        ConfigError,
        "predicted responses to shifted images",
        "predictions for the images themselves only",
        "leave out artificial shifts (shifts=[]), and put shifted copies of the images into "
        "out-of-distribution sets, with predictions of their own",
    )
    return [(study.set(n), n, "", None) for n in names] + [
        (shifted(study.set("test"), name, severity, seed), "test", name, severity)
        for name, severity in made
    ]


def power_statement(study: Study, parameters: Mapping[str, Any]) -> str:
    """Return what a study can detect, from the number of its images and seeds alone.

    Parameters
    ----------
    study : Study
        Study of the images.
    parameters : mapping of str to object
        Parameters of a notebook: ``seeds``, and, if it has them, ``shifts`` and ``severities``
        (by default 3). Without ``shifts`` those of the study count.

    Returns
    -------
    str
        See `bmfl_lab.metrics.power.power_sentence`.
    """
    made = [f"{name} {severity}" for name, severity in study.shifts]
    if "shifts" in parameters:
        levels = parameters.get("severities", [3])
        made = [f"{name} {severity}" for name in parameters["shifts"] for severity in levels]
    sizes = {name: len(study.set(name)) for name in ("test", *study.ood)}
    sizes |= dict.fromkeys(made, sizes["test"])
    return power_sentence(sizes, len(parameters["seeds"]))


def evaluate_ood(
    models: Mapping[str, Classifier | Sequence[Classifier]],
    study: Study,
    *,
    shifts: Sequence[tuple[str, int]] | None = None,
    sets: Sequence[str] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> OODResult:
    """Evaluate models on the test set, on natural OOD sets and under artificial shifts.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Each model has ``logits(stimuli) -> (n, C)``, and may have ``seed`` and ``selection``. A
        list contains one model per training seed.
    study : Study
        Study of the images.
    shifts, sets
        Same as in `evaluation_sets`.
    n_boot : int, default 1000
        Number of bootstrap resamples.
    seed : int, default 0
        Seed of the artificial shifts and of the bootstrap.

    Returns
    -------
    OODResult
        The value of an empty set is None. Images with NaN logits count as wrong. If a set has only
        some of the classes of a model, matched by name, the logits of the other classes are left
        out. If a set has no images of some of its classes, the notes of its rows say so.

    Raises
    ------
    ConfigError
        If there is no model, or a set is "train" or "val".
    DataError
        If labels and logits do not fit.

    Notes
    -----
    Under ``torchrun`` every process calls this; the images are divided over the processes, and each
    returns the whole result, equal to that of one process.
    """
    groups = {n: list(m) if isinstance(m, (list, tuple)) else [m] for n, m in models.items()}
    require(
        groups and all(groups.values()),
        ConfigError,
        "at least one model per name",
        {k: len(v) for k, v in groups.items()} or "no model",
        "pass models={name: model}, or a list with one model per seed in place of a model",
    )
    rows: list[MetricRow] = []
    frames = []
    # sets outside, models inside: a shifted set is made and its tokens are read once for all models
    for stimuli, split, shift, severity in progress(
        evaluation_sets(study, shifts=shifts, sets=sets, seed=seed), "image sets evaluated"
    ):
        fmri = f"{study.kind} fMRI" if study.kind else ""
        said = partial_note(study.set(split)), fmri, shift_note(shift)
        place = {
            "split": split,
            "shift": shift,
            "severity": severity,
            "notes": "; ".join(t for t in said if t),
        }
        read_once([m for group in groups.values() for m in group], stimuli)
        for name, group in groups.items():
            with divided():
                logits = [masked_logits(m, stimuli, study) for m in group]
            rows += _rows(name, group, logits, np.asarray(stimuli.labels), place, n_boot, seed)
            frames += [
                image_frame(name, _seed(m, i), z, stimuli, place)
                for i, (m, z) in enumerate(zip(group, logits))
            ]
    rows += [
        MetricRow(
            "skipped_images",
            n,
            "stimuli",
            "train",
            len(study.set("train")),
            model.selection,
            model=name,
            seed=_seed(model, i),
        )
        for name, group in groups.items()
        for i, model in enumerate(group)
        if (n := getattr(model, "n_skipped", 0))
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


def known_names(wanted: Iterable[str], known: Iterable[str], what: str) -> tuple[str, ...]:
    """Return names without repetitions, after a check that all of them are known.

    Raises
    ------
    ConfigError
        If a name is unknown; the message says that `what` was expected.
    """
    names, known = tuple(dict.fromkeys(wanted)), tuple(known)
    for name in names:
        require(
            name in known, ConfigError, f"{what} among {known}", repr(name), nearest(name, known)
        )
    return names


def read_once(models: Sequence[Classifier], stimuli: StimulusSet) -> None:
    """Extract the tokens that models read from a set, in one pass per backbone.

    Parameters
    ----------
    models : sequence of model
        Models. Those without ``reads()`` (kind and block of their tokens) are left out, and those
        that stream the set because its tokens do not fit the store.
    stimuli : StimulusSet
        Images; the set can be empty.
    """
    wanted: dict[tuple[int, int], tuple[Any, list]] = {}
    for model in models:
        streams = getattr(model, "streams", None)
        if hasattr(model, "reads") and len(stimuli) and not (streams and streams(stimuli)):
            key = (id(model.store), id(model.backbone))
            wanted.setdefault(key, (model, []))[1].extend(model.reads())
    for model, tokens in wanted.values():
        model.store.get_many(model.backbone, stimuli, list(dict.fromkeys(tokens)))


def masked_logits(model: Classifier, stimuli: StimulusSet, study: Study) -> np.ndarray:
    """Return a model's logits for the classes of a set, shape (n_stimuli, n_classes of the set).

    Parameters
    ----------
    model : Classifier
        Model whose logits are those of ``model.class_names``, or of the classes of the study if it
        has no such names.
    stimuli : StimulusSet
        Images of some or all of these classes, in any order.
    study : Study
        Study whose classes are used for a model without names.

    Raises
    ------
    DataError
        If the head has no logit for a class of the set, names a class twice, or has another number
        of logits than of names.
    """
    logits = np.asarray(model.logits(stimuli))
    head = tuple(getattr(model, "class_names", None) or study.class_names)
    wanted = tuple(stimuli.class_names)
    if head == wanted and (not wanted or logits.shape[1] == len(head)):
        return logits
    missing = sorted(set(wanted) - set(head))
    lack = f"{len(head)} class names, {len(set(head))} different"
    require(
        not missing and logits.shape[1] == len(head) == len(set(head)),
        DataError,
        f"logits for the {len(wanted)} classes of {stimuli.name!r}",
        f"{logits.shape[1]} logits; {f'no class named {missing[:3]}' if missing else lack}",
        "name the classes of the set as the head does, and give every class of the head a logit "
        "and a name",
    )
    columns = np.asarray([head.index(name) for name in wanted], dtype=np.int64)
    return classification.mask_classes(logits, columns)


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
    plain = accuracy_interval(correct_SN)
    value, low, high = _balanced(correct_SN, labels, n_boot, seed)
    units = "seeds and stimuli" if len(correct_SN) > 1 else "stimuli"
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
            interval=f"95 % percentile bootstrap over {units} within class",
            **base,
        ),
    ]


def _balanced(correct_SN: np.ndarray, labels: np.ndarray, n_boot: int, seed: int) -> tuple:
    """Return the mean recall over classes and its interval, each class resampled separately."""
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
    """Return a row ``nan_logits`` with the number of stimuli with NaN logits, if there are any."""
    return [MetricRow("nan_logits", float(n_bad), "stimuli", **fields)] if n_bad else []


def image_frame(
    name: str,
    seed: int,
    logits: np.ndarray,
    stimuli: StimulusSet,
    place: Mapping[str, str | int | None],
) -> pd.DataFrame:
    """Return the rows of `OODResult.per_image` of one model, seed and set (named by `place`)."""
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

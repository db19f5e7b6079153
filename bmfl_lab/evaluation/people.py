"""Comparison of models with people on the 16-class image sets of model-vs-human.

The measures are accuracy, shape bias and error consistency.

References
----------
Geirhos et al. (2021), Partial success in closing the gap between human and machine vision, NeurIPS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bmfl_lab.data.modelvshuman import (
    CATEGORIES,
    category_wnids,
    cue_conflict,
    image_key,
    read_images,
    read_trials,
)
from bmfl_lab.data.ood_sets import group_columns
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.ood import nan_row
from bmfl_lab.metrics.behaviour import (
    coarse_decision,
    mean_consistency,
    observer_accuracy,
    shape_bias,
)
from bmfl_lab.metrics.statistics import accuracy_interval
from bmfl_lab.models.protocols import Classifier
from bmfl_lab.records import MetricRow


def decide(
    model: Classifier, stimuli: StimulusSet, wnids: Sequence[str] | None = None
) -> np.ndarray:
    """Return a model's decision among the 16 categories for each image.

    Parameters
    ----------
    model : Classifier
        Model whose logits are those of the 16 categories or of the 1,000 classes `wnids`.
    stimuli : StimulusSet
        Images that `bmfl_lab.data.modelvshuman.read_images` returned.
    wnids : sequence of str, length 1000, optional
        Class of each logit of an ImageNet classifier; default: ``model.class_names``.

    Returns
    -------
    ndarray of object, shape (n_stimuli,)
        Names of categories; "" if a logit is NaN.

    Raises
    ------
    DataError
        If the model has neither 16 nor 1,000 classes.

    References
    ----------
    Geirhos et al. (2021), NeurIPS: mapping of the 1,000 classes to 16 categories.
    """
    logits = np.asarray(model.logits(stimuli))
    if logits.shape[1] == len(CATEGORIES):
        names = tuple(getattr(model, "class_names", None) or CATEGORIES)
        return coarse_decision(logits, {name: [i] for i, name in enumerate(names)})
    head = tuple(wnids if wnids is not None else getattr(model, "class_names", None) or ())
    require(
        logits.shape[1] == 1000 and len(head) == 1000,
        DataError,
        "a head of the 16 categories or of the 1000 classes of ImageNet with their wnids",
        f"{logits.shape[1]} logits and {len(head)} wnids",
        "pass wnids=read_wnids(folder of ImageNet) in the order of the head",
    )
    return coarse_decision(logits, group_columns(category_wnids(head), head)[0])


def compare_with_people(
    models: Mapping[str, Classifier],
    images: str | Path,
    trials: str | Path | Sequence[str | Path],
    name: str,
    *,
    wnids: Sequence[str] | None = None,
) -> list[MetricRow]:
    """Compare models with people who classified the same images.

    Parameters
    ----------
    models : mapping of str to Classifier
        Models by name, see `decide`.
    images : str or Path
        Folder of the set's images.
    trials : str, Path or sequence of them
        Tables of the set's trials.
    name : str
        Name of the set, e.g. "sketch" or "cue-conflict".
    wnids : sequence of str, optional
        Classes of ImageNet classifiers, as in `decide`.

    Returns
    -------
    list of MetricRow
        ``accuracy`` of each model and of people (mean over people, with an interval of 1.96
        standard errors); ``error_consistency`` of each model with people and of people with each
        other; ``shape_bias`` for cue conflict; ``nan_logits`` of a model whose logits contain NaN,
        which counts as a wrong decision. ``n`` is the number of images.

    Raises
    ------
    DataError
        If the trials contain no person, or none of their images is in the folder.

    References
    ----------
    Geirhos et al. (2021), NeurIPS.
    """
    stimuli, table = read_images(images, name), read_trials(trials)
    people = table[table["human"]]
    keys = [image_key(Path(str(i)).name) for i in stimuli.ids]
    require(
        set(people["key"]) & set(keys),
        DataError,
        f"trials of people on the images of {name!r}",
        "no person" if people.empty else f"trials on images like {people['key'].iloc[0]!r}",
        "give the trials and the images of one set",
    )
    observers = sorted(people["observer"].unique())
    truth = np.asarray([CATEGORIES[i] for i in stimuli.labels], dtype=object)
    cues = cue_conflict([str(i) for i in stimuli.ids]) if name.startswith("cue") else None
    place = {"split": name, "selection": "none"}
    rows = [
        _people_accuracy(people, place),
        _consistency("people ~ people", people, observers, observers, place),
    ]
    for name_of_model, model in models.items():
        decisions = decide(model, stimuli, wnids)
        rows += _model_rows(name_of_model, decisions, truth, place)
        trials_too = _with_model(people, name_of_model, keys, decisions == truth)
        rows.append(
            _consistency(f"{name_of_model} ~ people", trials_too, [name_of_model], observers, place)
        )
        if cues is not None:
            bias, n = shape_bias(decisions, *cues), len(truth)
            rows.append(
                MetricRow("shape_bias", bias, unit="fraction", n=n, model=name_of_model, **place)
            )
    if cues is not None:
        rows.append(_people_bias(people, place))
    return rows


def _model_rows(
    model: str,
    decisions: np.ndarray,
    truth: np.ndarray,
    place: Mapping[str, str],
) -> list[MetricRow]:
    """Return the accuracy of a model, and the number of its images with NaN logits."""
    found = accuracy_interval(decisions == truth)
    return [
        *nan_row(int((decisions == "").sum()), n=len(truth), model=model, **place),
        MetricRow(
            "accuracy",
            found.value,
            unit="fraction",
            n=len(truth),
            model=model,
            ci_low=found.low,
            ci_high=found.high,
            interval=found.method,
            **place,
        ),
    ]


def _people_accuracy(people: pd.DataFrame, place: Mapping[str, str]) -> MetricRow:
    row = observer_accuracy(people.assign(set="all")).iloc[0]
    low = high = None
    if row["n_observers"] > 1:
        half = 1.96 * row["sd"] / np.sqrt(row["n_observers"])
        low, high = float(row["accuracy"] - half), float(row["accuracy"] + half)
    return MetricRow(
        "accuracy",
        float(row["accuracy"]),
        unit="fraction",
        n=int(people["key"].nunique()),
        model="people",
        ci_low=low,
        ci_high=high,
        interval="mean over people -+ 1.96 standard errors",
        notes=f"{int(row['n_observers'])} people, {int(row['n_trials'])} trials",
        **place,
    )


def _with_model(
    people: pd.DataFrame, model: str, keys: Sequence[str], right: np.ndarray
) -> pd.DataFrame:
    conditions = people.drop_duplicates("key").set_index("key")["condition"]
    shown = [i for i, k in enumerate(keys) if k in conditions.index]
    mine = pd.DataFrame(
        {
            "observer": model,
            "condition": [conditions[keys[i]] for i in shown],
            "key": [keys[i] for i in shown],
            "correct": right[shown],
        }
    )
    return pd.concat([people[["observer", "condition", "key", "correct"]], mine], ignore_index=True)


def _consistency(
    name: str,
    trials: pd.DataFrame,
    first: Sequence[str],
    second: Sequence[str],
    place: Mapping[str, str],
) -> MetricRow:
    kappa, n_pairs = mean_consistency(trials, first, second)
    return MetricRow(
        "error_consistency",
        kappa,
        unit="kappa",
        n=int(trials["key"].nunique()),
        model=name,
        notes=f"mean over {n_pairs} pairs",
        **place,
    )


def _people_bias(people: pd.DataFrame, place: Mapping[str, str]) -> MetricRow:
    shapes, textures = cue_conflict(list(people["imagename"]))
    cues = people.assign(shape=shapes, texture=textures)
    found = [
        shape_bias(part["object_response"], part["shape"].to_numpy(), part["texture"].to_numpy())
        for _, part in cues.groupby("observer")
    ]
    known = [v for v in found if v is not None]
    value = float(np.mean(known)) if known else None
    return MetricRow(
        "shape_bias",
        value,
        unit="fraction",
        n=int(people["key"].nunique()),
        model="people",
        notes=f"mean over {len(known)} people",
        **place,
    )

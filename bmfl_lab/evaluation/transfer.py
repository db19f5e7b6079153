"""Transfer of alignment from one subject to other subjects and to another modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bmfl_lab.data import StimulusSet, Subject
from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.evaluation.axes import brain_targets, gain_test
from bmfl_lab.evaluation.effect import (
    ALL,
    Models,
    add_holm,
    alignment_effect,
    difference_fields,
    seed_groups,
)
from bmfl_lab.evaluation.similarity import TimeCourse, encoding_predictions
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.metrics.statistics import holm
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng

N_PERMUTATIONS = 1000
"""Relabellings of the stimuli in tests of the transfer to M/EEG (our choice)."""


def shared_test(subjects: Sequence[Subject], split: str = "test") -> dict[str, np.ndarray]:
    """Return the rows of each subject whose stimuli no subject was trained or selected with.

    Parameters
    ----------
    subjects : sequence of Subject
        Subjects; stimuli are matched by id.
    split : str, default "test"
        Split from which the rows are taken.

    Returns
    -------
    dict of str to ndarray of int
        Row indices by name of the subject.

    Raises
    ------
    DataError
        If fewer than four stimuli are left for a subject.
    """
    used = {
        str(s.stimuli.ids[i])
        for s in subjects
        for part in ("train", "val")
        for i in s.splits.get(part, ())
    }
    found = {
        s.name: np.asarray([i for i in s.rows(split) if str(s.stimuli.ids[i]) not in used])
        for s in subjects
    }
    for name, rows in found.items():
        require(
            len(rows) >= 4,
            DataError,
            f"at least 4 {split} stimuli of {name!r} that trained no subject's model",
            len(rows),
            "give a stimulus the same split in every subject",
        )
    return found


def across_subjects(
    models: Models, subjects: Sequence[Subject], *, split: str = "test", **options: object
) -> pd.DataFrame:
    """Compare models with the subject they were aligned with and with other subjects, by RSA.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Models with ``activations(stimuli)``, or lists with one model per seed, by the name of the
        subject they were aligned with. "" names the network before alignment, which is the
        baseline. Other names, e.g. "shuffled", are controls.
    subjects : sequence of Subject
        Subjects on whom the models are tested, with those stimuli of `split` that no subject was
        trained or selected with (see `shared_test`).
    split : str, default "test"
        Split of the stimuli.
    **options
        Other arguments of `alignment_effect`.

    Returns
    -------
    pandas.DataFrame
        Table of `alignment_effect` with columns ``trained_on``, ``subject`` (tested) and ``own``
        (both are the same) in place of ``model``. In the rows over all layers and ROIs, ``p_holm``
        is adjusted over all pairs of trained-on and tested subject, and so is ``p_permutation``,
        the one-sided p value of `gain_test`.

    Raises
    ------
    ConfigError
        If there is no subject, no aligned model, or no model before alignment.
    DataError
        See `alignment_effect` and `shared_test`.
    """
    require(
        "" in models and len(models) >= 2 and subjects,
        ConfigError,
        "a model before alignment (named ''), an aligned one, and a subject",
        f"models {tuple(models)}, {len(subjects)} subjects",
        "pass models={'': original, 'subj01': aligned} and at least one subject",
    )
    rows, tables = shared_test(subjects, split), {}
    for subject in subjects:
        held = replace(subject, splits={split: rows[subject.name]})
        table = alignment_effect(models, held, baseline="", split=split, **options)
        metric = options.get("metric", "correlation")
        rdms = brain_targets(held, split, metric)
        target = {ALL: np.stack([rdms[roi] for roi in options.get("rois") or rdms])}
        shown = held.stimuli.subset(rows[subject.name])
        tested = gain_test(models, shown, target, baseline="", metric=metric)
        p = table["model"].map(tested.set_index("model")["p"])
        tables[subject.name] = table.assign(p_permutation=p.where(table["roi"] == ALL))
    table = pd.concat(tables, names=["subject"]).reset_index("subject")
    table = table.rename(columns={"model": "trained_on"}).reset_index(drop=True)
    table.insert(2, "own", table["trained_on"] == table["subject"])
    whole = (table["roi"] == ALL) & table["p"].notna()
    for column, p in (("p_holm", "p"), ("p_permutation", "p_permutation")):
        table.loc[whole, column] = holm(table.loc[whole, p].to_numpy())
    return table


def transfer_rows(
    table: pd.DataFrame, *, selection: str, split: str = "test", notes: str = ""
) -> list[MetricRow]:
    """Turn the table of `across_subjects` into metric rows.

    Parameters
    ----------
    table : pandas.DataFrame
        Table that `across_subjects` returned.
    selection : str
        Rule by which the aligned models were selected.
    split : str, default "test"
        Split of every row.
    notes : str, default ""
        Notes of every row.

    Returns
    -------
    list of MetricRow
        For each pair of trained-on and tested subject ``rsa_transfer``, the mean RSA over layers
        and ROIs, and ``rsa_transfer_gain``, its difference to the network before alignment. `model`
        names the subject it was aligned with, or the control; `subject` is the tested one.
    """
    rows, people = [], set(table["subject"])
    n_compared = int((np.isfinite(table["p"]) & (table["roi"] == ALL)).sum())
    for r in table[table["roi"] == ALL].itertuples():
        shared = {
            "unit": "spearman rho",
            "split": split,
            "n": r.n_stimuli,
            "subject": r.subject,
            "n_seeds": r.n_seeds,
            "interval": r.interval,
        }
        name = (
            f"aligned with {r.trained_on}" if r.trained_on in people else r.trained_on or "original"
        )
        kept = {"selection": selection if r.trained_on else "none", "model": name}
        said = "; ".join(v for v in ("own subject" if r.own else "", notes) if v)
        rows.append(
            MetricRow(
                "rsa_transfer", r.value, ci_low=r.low, ci_high=r.high, notes=said, **kept, **shared
            )
        )
        if np.isfinite(r.p):
            ends = {
                "ci_low": r.difference_low,
                "ci_high": r.difference_high,
                "p": float(r.p),
                "p_adjusted": float(r.p_holm),
                "family": "pairs",
                "n_compared": n_compared,
                "notes": said,
            }
            rows.append(MetricRow("rsa_transfer_gain", r.difference, **ends, **kept, **shared))
    return rows


@dataclass(frozen=True)
class EEGTransfer:
    """Accuracy with which models predict M/EEG.

    Parameters
    ----------
    course : pandas.DataFrame
        One row per model, layer and time, with columns ``model``, ``layer`` ("all": the mean over
        layers), ``time`` (s), ``value`` (mean r over sensors and seeds), ``low`` and ``high`` (95 %
        percentile bootstrap over stimuli) and ``n_stimuli``.
    effect : pandas.DataFrame
        One row per model for the mean over layers, sensors and the times of the window, with
        columns ``model``, ``value``, ``low``, ``high``, ``difference`` (to the baseline),
        ``difference_low``, ``difference_high``, ``p``, ``p_holm`` and ``p_permutation`` (both
        adjusted over the models; the latter is one-sided, from relabelling the recorded stimuli),
        ``n_stimuli``, ``n_seeds`` and ``interval``.
    """

    course: pd.DataFrame
    effect: pd.DataFrame


def folds(n: int, k: int = 3, *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return random folds of rows for training and test.

    Parameters
    ----------
    n : int
        Number of rows.
    k : int, default 3
        Number of folds.
    seed : int, default 0
        Seed of the random order.

    Returns
    -------
    list of (ndarray of int, ndarray of int)
        k pairs of sorted training and test rows; every row is tested once.
    """
    parts = np.array_split(rng(seed, "eeg folds").permutation(n), k)
    return [
        (np.sort(np.concatenate([p for p in parts if p is not part])), np.sort(part))
        for part in parts
    ]


def on_eeg(
    models: Models,
    eeg: EEG,
    stimuli: StimulusSet,
    *,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    baseline: str = "original",
    window: tuple[float, float] = (0.0, np.inf),
    n_boot: int = 500,
    seed: int = 0,
    **options: object,
) -> EEGTransfer:
    """Score how well models, e.g. networks aligned with fMRI, predict M/EEG at each time.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Models with ``activations(stimuli)``, or lists with one model per seed, in the same order
        for every name.
    eeg : EEG
        Evoked responses; their mean over repeats is used.
    stimuli : StimulusSet
        Images of `eeg`, matched by id. They must not have been used to train the models.
    splits : sequence of (ndarray of int, ndarray of int)
        Disjoint training and test rows of `eeg` for the ridge regression, e.g. from `folds`.
        Predictions for all test rows are scored together.
    baseline : str, default "original"
        Model that the others are compared with.
    window : tuple of float, default (0, inf)
        First and last time of the mean, in seconds after the image's onset.
    n_boot : int, default 500
        Number of bootstrap resamples of the tested stimuli.
    seed : int, default 0
        Seed of the resamples.
    **options
        Other arguments of `bmfl_lab.evaluation.encoding_predictions`.

    Returns
    -------
    EEGTransfer

    Raises
    ------
    ConfigError
        If the baseline is unknown.
    DataError
        If an EEG stimulus has no image, training and test rows overlap, a row is tested twice, no
        time lies in the window, or models have unequal numbers of seeds.
    """
    groups = seed_groups(models, baseline)
    tested = np.concatenate([test for _, test in splits])
    inside = (eeg.times >= window[0]) & (eeg.times <= window[1])
    require(
        len(np.unique(tested)) == len(tested) and inside.any(),
        DataError,
        "every row tested at most once, and times in the window",
        f"{len(tested) - len(np.unique(tested))} rows twice, "
        f"{int(inside.sum())} times of {window} s",
        "use folds(), and a window of this recording",
    )
    shown, data = stimuli.subset(stimuli.index_of(eeg.ids)), eeg.mean()
    courses, values, samples, matches = [], [], [], {}
    for name, group in groups.items():
        scores = [
            _scored(m.activations(shown), data, splits, n_boot, seed, inside, options)
            for m in group
        ]
        courses.append(_course_table(name, scores, eeg.times, len(tested)))
        values.append([s.in_window for s in scores])
        samples.append(np.stack([s.resampled_in_window for s in scores], axis=1))
        matches[name] = np.mean([s.match for s in scores], axis=0)
    names, found = list(groups), (np.asarray(values), np.stack(samples))
    effect = [
        {"model": name, **difference_fields(*found, i, names.index(baseline), len(tested))}
        for i, name in enumerate(names)
    ]
    table = add_holm(pd.DataFrame(effect))
    others, draw = [name for name in names if name != baseline], rng(seed, "eeg permutation")
    orders = np.stack([draw.permutation(len(tested)) for _ in range(N_PERMUTATIONS)])
    p = [_relabelled(matches[name] - matches[baseline], orders) for name in others]
    table["p_permutation"] = table["model"].map(dict(zip(others, holm(np.asarray(p)))))
    return EEGTransfer(pd.concat(courses, ignore_index=True), table)


def _relabelled(match: np.ndarray, orders: np.ndarray) -> float:
    """Return the one-sided p value of the mean diagonal of (n, n) under orders of the columns."""
    null = match[np.arange(len(match)), orders].sum(axis=1)
    return (1 + np.sum(null >= np.trace(match) - 1e-12)) / (1 + len(orders))


@dataclass(frozen=True)
class _Scores:
    """Scores of one network: the r of its predictions, averaged over sensors.

    ``courses`` holds the `TimeCourse` of all layers. The other fields average over layers and the
    window, too: ``in_window`` and ``resampled_in_window`` (n_boot,). ``match`` (n, n) holds the
    products of each predicted with each measured pattern; those on its diagonal add up to the mean
    r.
    """

    layers: tuple[str, ...]
    courses: TimeCourse
    in_window: float
    resampled_in_window: np.ndarray
    match: np.ndarray


def _scored(
    features: Mapping[str, np.ndarray],
    data: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    n_boot: int,
    seed: int,
    inside: np.ndarray,
    options: Mapping[str, object],
) -> _Scores:
    """Score one network on responses (n, n_channels, n_times); `inside` masks the window."""
    measured, shape = data.reshape(len(data), -1), data.shape[1:]
    parts = [
        encoding_predictions(features, measured, train=train, test=test, **options)
        for train, test in splits
    ]
    # each fold is centred on its own mean: its prediction contains the mean of the other folds, so
    # that means of predicted and measured responses would correlate negatively over folds
    predicted = {
        layer: np.concatenate([p[layer] - p[layer].mean(axis=0) for p in parts])
        for layer in features
    }
    centred = np.concatenate([measured[test] - measured[test].mean(axis=0) for _, test in splits])
    kept = np.tile(inside, shape[0])
    actual = _unit_columns(centred[:, kept])
    values, resampled, in_window, resampled_in_window, match = [], [], [], [], []
    for p in predicted.values():
        r = np.asarray(pearson(centred, p))
        drawn = bootstrap_pearson(centred, p, n_boot=n_boot, seed=seed)
        values.append(np.nanmean(r.reshape(shape), axis=0))
        resampled.append(np.nanmean(drawn.reshape(-1, *shape), axis=1))
        in_window.append(np.nanmean(r[kept]))
        resampled_in_window.append(np.nanmean(drawn[:, kept], axis=1))
        match.append(_unit_columns(p[:, kept]) @ actual.T / kept.sum())
    return _Scores(
        tuple(predicted),
        TimeCourse(np.stack(values), np.stack(resampled, axis=1)),
        float(np.mean(in_window)),
        np.mean(resampled_in_window, axis=0),
        np.mean(match, axis=0),
    )


def _course_table(
    name: str, scores: Sequence[_Scores], times: np.ndarray, n_stimuli: int
) -> pd.DataFrame:
    """Return the courses of one model, see `EEGTransfer`; `scores` holds one entry per seed."""
    values = np.mean([s.courses.values for s in scores], axis=0)
    resampled = np.mean([s.courses.resampled for s in scores], axis=0)
    both = TimeCourse(
        np.concatenate([values, values.mean(axis=0, keepdims=True)]),
        np.concatenate([resampled, resampled.mean(axis=1, keepdims=True)], axis=1),
    )
    layers = (*scores[0].layers, ALL)
    low, high = both.interval()
    return pd.DataFrame(
        {
            "model": name,
            "layer": np.repeat(layers, len(times)),
            "time": np.tile(np.asarray(times, float), len(layers)),
            "value": both.values.ravel(),
            "low": low.ravel(),
            "high": high.ravel(),
            "n_stimuli": n_stimuli,
        }
    )


def _unit_columns(x: np.ndarray) -> np.ndarray:
    """Return columns (n, n_columns) without their mean, of length 1; constant ones are 0."""
    x = x - x.mean(axis=0)
    length = np.linalg.norm(x, axis=0)
    return x / np.where(length > 1e-12, length, np.inf)


def eeg_rows(
    found: EEGTransfer,
    *,
    subject: str,
    selection: Mapping[str, str],
    split: str = "test",
    notes: str = "",
) -> list[MetricRow]:
    """Turn the result of `on_eeg` into metric rows.

    Parameters
    ----------
    found : EEGTransfer
        Result of `on_eeg`.
    subject : str
        Subject of the M/EEG, or the subject from whom it was simulated.
    selection : mapping of str to str
        Rule by which each model was selected, by its name.
    split : str, default "test"
        Split of every row.
    notes : str, default ""
        Notes of every row.

    Returns
    -------
    list of MetricRow
        ``eeg_encoding_r`` per model, and ``eeg_encoding_gain``, its difference to the baseline.

    Raises
    ------
    ConfigError
        If a model's selection is not given.
    """
    rows, n_compared = [], int(np.isfinite(found.effect["p"]).sum())
    for r in found.effect.itertuples():
        require(
            r.model in selection,
            ConfigError,
            f"the selection of {r.model!r}",
            "none",
            "add it to the mapping `selection`",
        )
        shared = {
            "unit": "r",
            "split": split,
            "n": r.n_stimuli,
            "model": r.model,
            "subject": subject,
            "selection": selection[r.model],
            "interval": r.interval,
            "n_seeds": r.n_seeds,
        }
        rows.append(
            MetricRow(
                "eeg_encoding_r", r.value, ci_low=r.low, ci_high=r.high, notes=notes, **shared
            )
        )
        if np.isfinite(r.p):
            ends = {
                "ci_low": r.difference_low,
                "ci_high": r.difference_high,
                "p": float(r.p),
                "p_adjusted": float(r.p_holm),
                "family": "models",
                "n_compared": n_compared,
                "notes": notes,
            }
            rows.append(MetricRow("eeg_encoding_gain", r.difference, **ends, **shared))
    return rows

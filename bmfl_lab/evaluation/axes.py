"""Permutation tests of what alignment adds: similarity to a brain, and axes of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, nearest, normal, require, translated
from bmfl_lab.evaluation.effect import LayeredModel, Models, seed_groups
from bmfl_lab.evaluation.rsa_scores import brain_rdm, model_rdm
from bmfl_lab.files import read_table
from bmfl_lab.metrics.rsa import expand, prepared, rdm
from bmfl_lab.metrics.statistics import holm
from bmfl_lab.runtime import rng

CATEGORY = "category"
"""Axis that every list of classes has: the same class or another one."""


def read_axes(table: str | Path | pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Return values of classes on axes such as animacy, real-world size or spikiness.

    Parameters
    ----------
    table : str, Path or DataFrame
        CSV file, or table, with a column "class" and one numeric column per axis.
    class_names : sequence of str
        Classes of the study, each of which needs a row.

    Returns
    -------
    DataFrame
        Float values, one row per class in the order of `class_names`, one column per axis.

    Raises
    ------
    DataError
        If the file is no such table, a value is not a number, a class has two rows, a class of the
        table is unknown, or one of the study has no row.
    """
    wanted = "a table with a column 'class' and one column of numbers per axis"
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame([row for _, row in read_table(table, ["class"], "give a CSV file")])
    require(
        "class" in table and len(table.columns) > 1,
        DataError,
        wanted,
        f"columns {tuple(table.columns)}",
        "name the classes in a column 'class'",
    )
    names, class_names = list(map(normal, table["class"])), list(map(normal, class_names))
    unknown = [name for name in names if name not in class_names]
    hint = nearest(unknown[0], class_names) if unknown else ""
    require(not unknown, DataError, "classes of the study", f"unknown {unknown[:3]}", hint)
    missing = [name for name in class_names if names.count(name) != 1]
    remedy = "give each class of the study one row"
    require(not missing, DataError, "one row per class", f"none or two for {missing[:3]}", remedy)
    with translated(ValueError, TypeError, expected=wanted, remedy="write numbers"):
        values = table.drop(columns="class").replace("", np.nan).astype(float).set_axis(names)
    require(
        np.isfinite(values.to_numpy()).all() and (values.std() > 0).all(),
        DataError,
        "finite values that differ between classes on each axis",
        "empty cells or a constant axis",
        "fill in the cells, or take the axis out",
    )
    return values.loc[class_names]


ALL_LAYERS = "all"
"""Layer of the rows for the mean over all layers."""


def _similarities(
    group: Sequence[LayeredModel], stimuli: StimulusSet, metric: str, by_layer: bool
) -> tuple[list[str], np.ndarray]:
    """Return names of layers and their prepared RDMs, mean over seeds, (n_layers, n_pairs)."""
    names, per_seed = [], []
    for model in group:
        found = model.activations(stimuli)
        names = list(found)
        rdms = prepared(np.stack([model_rdm(x, metric) for x in found.values()]), "spearman")
        whole = rdms.mean(0, keepdims=True)
        per_seed.append(np.concatenate([whole, rdms]) if by_layer else whole)
    return [ALL_LAYERS, *names][: len(per_seed[0])], np.mean(per_seed, axis=0)


def _tested(
    difference: np.ndarray, goal: np.ndarray, n_permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return gains of similarity and their one-sided p under relabelling, each (n_layers, t).

    `difference` holds prepared RDMs (n_layers, n_pairs), `goal` prepared targets (n_pairs, t).
    """
    gain, square = difference @ goal, np.stack([expand(row) for row in difference])
    upper, draw = np.triu_indices(square.shape[1], 1), rng(seed, "gain permutation")
    count = np.zeros(gain.shape)
    for _ in range(n_permutations):
        order = draw.permutation(square.shape[1])
        count += square[:, order[upper[0]], order[upper[1]]] @ goal >= gain - 1e-12
    return gain, (count + 1) / (n_permutations + 1)


def gain_test(
    models: Models,
    stimuli: StimulusSet,
    targets: Mapping[str, np.ndarray],
    *,
    baseline: str = "original",
    metric: str = "correlation",
    by_layer: bool = False,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test by permutation whether models became more similar to RDMs than they were before.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Models by name; a list holds one model per seed, paired with those of the baseline.
    stimuli : StimulusSet
        The n held-out stimuli.
    targets : mapping of str to ndarray, shape (n * (n - 1) / 2,) or (k, n * (n - 1) / 2)
        RDMs of the stimuli, from `brain_targets` or `axis_targets`. Of k RDMs, such as all ROIs of
        a subject, the mean similarity counts.
    baseline : str, default "original"
        Model before alignment.
    metric : str, default "correlation"
        Distance of the RDMs of the models.
    by_layer : bool, default False
        Test each layer, too, and not only their mean.
    n_permutations : int, default 1000
        Relabellings of the stimuli.
    seed : int, default 0
        Seed of the relabellings.

    Returns
    -------
    DataFrame
        Columns model, layer ("all" for their mean), target, before and after (Spearman correlation,
        mean over seeds), gain, p (one-sided) and p_holm (over all rows).

    Raises
    ------
    ConfigError, DataError
        See `alignment_effect`.

    Notes
    -----
    The same relabelling moves the RDMs before and after, so that the null hypothesis is that what
    changed has nothing to do with the target. The test is our choice; the released code of ReAlnet
    tests none of its gains by permutation.
    """
    groups = seed_groups(models, baseline)
    found = [prepared(np.atleast_2d(rdms), "spearman").mean(0) for rdms in targets.values()]
    goal = np.stack(found).T
    layers, base = _similarities(groups[baseline], stimuli, metric, by_layer)
    before, rows = base @ goal, []
    for name in [name for name in groups if name != baseline]:
        after = _similarities(groups[name], stimuli, metric, by_layer)[1]
        gains, p = _tested(after - base, goal, n_permutations, seed)
        rows += [
            {
                "model": name,
                "layer": layer,
                "target": target,
                "before": before[i, j],
                "after": before[i, j] + gains[i, j],
                "gain": gains[i, j],
                "p": p[i, j],
            }
            for i, layer in enumerate(layers)
            for j, target in enumerate(targets)
        ]
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy())
    return table


def brain_targets(
    subject: Subject, split: str = "test", metric: str = "correlation"
) -> dict[str, np.ndarray]:
    """Return the RDM of each ROI for the stimuli of a split, as targets of `gain_test`."""
    ids = list(map(str, subject.stimuli.ids[subject.rows(split)]))
    return {roi: brain_rdm(subject, roi, ids, metric) for roi in subject.atlas.present}


def axis_targets(labels: np.ndarray, axes: pd.DataFrame | None = None) -> dict[str, np.ndarray]:
    """Return the RDM of the category and of each axis, as targets of `gain_test`.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        Class of each stimulus.
    axes : DataFrame, optional
        Values of the classes, from `read_axes`.

    Returns
    -------
    dict of str to ndarray, shape (n * (n - 1) / 2,)
        "category" is 1 for pairs of different classes; an axis is the distance along it.
    """
    labels = np.asarray(labels)
    members = np.eye(labels.max() + 1)[labels]
    found = {CATEGORY: rdm(members, "euclidean")}
    for name in () if axes is None else axes:
        found[str(name)] = rdm(axes[name].to_numpy()[labels][:, None], "euclidean")
    return found

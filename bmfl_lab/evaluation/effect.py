"""Effect of alignment: brain-likeness and robustness of aligned networks and their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from bmfl_lab.data import StimulusSet, Subject
from bmfl_lab.errors import ConfigError, DataError, nearest, require
from bmfl_lab.evaluation.ood import OODResult
from bmfl_lab.evaluation.rsa_scores import brain_rdm, model_rdm, rsa_ceiling
from bmfl_lab.metrics.rsa_inference import similarity_samples
from bmfl_lab.metrics.statistics import accuracy_interval, crossed_bootstrap, crossed_mean, holm
from bmfl_lab.records import MetricRow

ALL = "all"


class LayeredModel(Protocol):
    """A model whose layers can be read, e.g. `TrainedAligned` or `FrozenModel`."""

    def activations(self, stimuli: StimulusSet) -> Mapping[str, np.ndarray]:
        """Return features (n_stimuli, d) by name of the layer."""
        ...


Models = Mapping[str, LayeredModel | Sequence[LayeredModel]]
"""Models by name, or lists with one model per seed, in the same order of seeds for every name."""


def seed_groups(models: Models, baseline: str) -> dict[str, list[LayeredModel]]:
    """Return lists of models, with one model per seed, by name.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Single models become lists of one.
    baseline : str
        Name that must be among them.

    Returns
    -------
    dict of str to list of models

    Raises
    ------
    ConfigError
        If the baseline is unknown.
    DataError
        If models have unequal numbers of seeds.
    """
    groups = {n: list(m) if isinstance(m, (list, tuple)) else [m] for n, m in models.items()}
    require(
        baseline in groups,
        ConfigError,
        f"a baseline among {tuple(groups)}",
        repr(baseline),
        nearest(baseline, groups),
    )
    sizes = {n: len(g) for n, g in groups.items()}
    require(
        len(set(sizes.values())) == 1 and sizes[baseline],
        DataError,
        "the same number of seeds for every model",
        sizes,
        "train every model with every seed",
    )
    return groups


def alignment_effect(
    models: Models,
    subject: Subject,
    *,
    baseline: str = "original",
    split: str = "test",
    rois: Sequence[str] | None = None,
    metric: str = "correlation",
    method: str = "spearman",
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the RSA of models with that of the network before alignment, per layer and ROI.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Each model has ``activations(stimuli) -> {layer: (n_stimuli, d)}``. A list holds one model
        per training seed, in the same order for every name: model i is paired with baseline i, from
        which its training started.
    subject : Subject
        Subject whose responses to the stimuli of `split` are used.
    baseline : str, default "original"
        Model that the others are compared with.
    split : str, default "test"
        Stimuli that took no part in training or selection.
    rois : sequence of str, optional
        ROIs; default: all that have vertices.
    metric : str, default "correlation"
        Distance of `bmfl_lab.metrics.rdm`.
    method : str, default "spearman"
        Similarity of `bmfl_lab.metrics.compare_rdms`.
    n_boot : int, default 1000
        Number of bootstrap resamples of the stimuli.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    pandas.DataFrame
        One row per model, layer and ROI, and one row per model with layer and ROI "all" for their
        mean. Columns: ``value`` (mean over seeds), ``low``, ``high``, ``difference`` (to the
        baseline), ``difference_low``, ``difference_high``, ``p``, ``p_holm`` (adjusted over the
        layers and ROIs of a model), ``ceiling_low``, ``ceiling_high``, ``n_stimuli``, ``n_seeds``,
        ``per_seed`` (list of values) and ``interval`` (method of the intervals).

    Raises
    ------
    ConfigError
        If the baseline is unknown.
    DataError
        If models have unequal numbers of seeds, or an RDM is undefined.

    Notes
    -----
    Intervals and p treat seeds and stimuli as crossed random samples, see
    `bmfl_lab.metrics.statistics.crossed_bootstrap`. This is our choice: a p value from a count of
    resamples is too coarse for a correction over many cells, and resampling a few seeds
    underestimates the uncertainty. With one seed the results do not generalise to other seeds.

    References
    ----------
    Lu & Wang (2025), Cognitive Neurodynamics 19:61 (arXiv:2407.10414), and its released code: RDMs
    of 1 - Pearson r, compared by Spearman correlation.
    """
    groups = seed_groups(models, baseline)
    rows = subject.rows(split)
    stimuli, rois = subject.stimuli.subset(rows), list(rois or subject.atlas.present)
    found = {n: [m.activations(stimuli) for m in g] for n, g in groups.items()}
    layers = list(found[baseline][0])
    ids = list(map(str, stimuli.ids))
    model_rdms = np.stack(
        [model_rdm(a[k], metric) for g in found.values() for a in g for k in layers]
    )
    brain_rdms = np.stack([brain_rdm(subject, r, ids, metric) for r in rois])
    value, samples = similarity_samples(
        model_rdms, brain_rdms, method=method, n_boot=n_boot, seed=seed
    )
    shape = (len(groups), len(groups[baseline]), len(layers), len(rois))
    value, samples = value.reshape(shape), samples.reshape(n_boot, *shape)
    ceilings = {r: rsa_ceiling([subject], r, ids, metric, method) for r in rois}
    return _effect_table(value, samples, list(groups), layers, rois, baseline, ceilings, len(rows))


def _effect_table(
    value: np.ndarray,
    samples: np.ndarray,
    names: list[str],
    layers: list[str],
    rois: list[str],
    baseline: str,
    ceilings: Mapping[str, tuple[float, float]],
    n: int,
) -> pd.DataFrame:
    base, rows = names.index(baseline), []
    places = [(ALL, ALL, (slice(None), slice(None)))]
    places += [
        (layer, roi, (slice(k, k + 1), slice(j, j + 1)))
        for k, layer in enumerate(layers)
        for j, roi in enumerate(rois)
    ]
    for i, name in enumerate(names):
        cells = []
        for layer, roi, at in places:
            # means over the layers and ROIs of the cell, of shapes (n_models, n_seeds) and
            # (n_boot, n_models, n_seeds)
            found, drawn = (a[..., at[0], at[1]].mean(axis=(-2, -1)) for a in (value, samples))
            ends = ceilings.get(roi) or tuple(np.mean([ceilings[r] for r in rois], axis=0))
            cells.append(
                {
                    "model": name,
                    "layer": layer,
                    "roi": roi,
                    **difference_fields(found, drawn.swapaxes(0, 1), i, base, n),
                    "ceiling_low": ends[0],
                    "ceiling_high": ends[1],
                    "per_seed": found[i].tolist(),
                }
            )
        frame = pd.DataFrame(cells)
        frame.loc[frame["difference_low"] == frame["difference_high"], "p"] = np.nan
        rows.append(add_holm(frame, frame["roi"] != ALL))
    return pd.concat(rows, ignore_index=True)


def difference_fields(
    values: np.ndarray, samples: np.ndarray, model: int, baseline: int, n: int
) -> dict[str, float | int | str]:
    """Return the value of a model and its difference to a baseline, as fields of a table's row.

    Parameters
    ----------
    values : ndarray, shape (n_models, n_seeds)
        Statistic of each model and seed.
    samples : ndarray, shape (n_models, n_boot, n_seeds)
        The statistic on resampled stimuli.
    model, baseline : int
        Positions among the models. The p value of the baseline itself is NaN.
    n : int
        Number of stimuli.
    """
    own, _ = crossed_bootstrap(values[model], samples[model], n)
    change, p = crossed_bootstrap(
        values[model] - values[baseline], samples[model] - samples[baseline], n
    )
    return {
        "value": own.value,
        "low": own.low,
        "high": own.high,
        "difference": change.value,
        "difference_low": change.low,
        "difference_high": change.high,
        "p": np.nan if model == baseline else p,
        "n_stimuli": n,
        "n_seeds": values.shape[1],
        "interval": own.method,
    }


def add_holm(table: pd.DataFrame, kept: pd.Series | bool = True) -> pd.DataFrame:
    """Add `p_holm` to a table, in place: `p` adjusted over the rows `kept` that have one."""
    tested = kept & table["p"].notna()
    table["p_holm"] = table["p"]
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy())
    return table


def compare_alignment(
    models: Models, subject: Subject, *, model: str = "aligned", **options: object
) -> pd.DataFrame:
    """Compare the mean RSA of one model with that of each other model.

    The mean is over layers and ROIs. Both models of a comparison are evaluated on the same stimuli
    and under the same seeds.

    Parameters
    ----------
    models, subject
        See `alignment_effect`.
    model : str, default "aligned"
        Model that is compared with all others.
    **options
        Other arguments of `alignment_effect`, without `baseline`.

    Returns
    -------
    pandas.DataFrame
        One row per other model, with the columns ``against`` (its name), ``difference`` (RSA of
        `model` minus that of the other), ``low``, ``high``, ``p``, ``p_holm`` (adjusted over the
        comparisons), ``n_stimuli``, ``n_seeds``, ``interval`` and ``verdict``.

    Raises
    ------
    ConfigError
        If `model` is unknown or the only model.
    DataError
        See `alignment_effect`.
    """
    others = [n for n in models if n != model]
    require(
        model in models and others,
        ConfigError,
        f"{model!r} and another model",
        tuple(models),
        nearest(model, models)
        if model not in models
        else "pass the models to compare it with, too",
    )
    found = [
        alignment_effect({o: models[o], model: models[model]}, subject, baseline=o, **options)
        for o in others
    ]
    whole = [t[(t["roi"] == ALL) & (t["model"] == model)].iloc[0] for t in found]
    adjusted = holm([1.0 if np.isnan(w["p"]) else w["p"] for w in whole])
    rows = []
    for other, w, p in zip(others, whole, adjusted):
        said = (
            "no difference shown"
            if p >= 0.05
            else ("more" if w["difference"] > 0 else "less") + " brain-like"
        )
        rows.append(
            {
                "against": other,
                "difference": w["difference"],
                "low": w["difference_low"],
                "high": w["difference_high"],
                "p": w["p"],
                "p_holm": float(p),
                "n_stimuli": w["n_stimuli"],
                "n_seeds": w["n_seeds"],
                "interval": w["interval"],
                "verdict": f"{model} against {other}: {said}",
            }
        )
    return pd.DataFrame(rows)


def effect_rows(
    table: pd.DataFrame,
    *,
    subject: str,
    selection: Mapping[str, str] | str,
    split: str = "test",
    notes: str = "",
) -> list[MetricRow]:
    """Turn `alignment_effect` into metric rows.

    Parameters
    ----------
    table : pandas.DataFrame
        Table that `alignment_effect` returned.
    subject : str
        Name of the subject.
    selection : str or mapping of str to str
        Rule by which all models, or each model by name, were selected.
    split : str, default "test"
        Split of every row.
    notes : str, default ""
        Notes of every row.

    Returns
    -------
    list of MetricRow
        ``rsa`` and ``rsa_difference`` per layer and ROI; ``rsa_mean`` and ``rsa_mean_difference``
        over all of them, ``rsa_mean`` also per seed; ``p_holm`` for the differences.
    """
    rows = []
    for r in table.itertuples():
        whole = r.roi == ALL
        shared = {
            "split": split,
            "n": r.n_stimuli,
            "model": r.model,
            "subject": subject,
            "roi": "" if whole else r.roi,
            "layer": "" if whole else r.layer,
            "notes": notes,
            "selection": selection
            if isinstance(selection, str)
            else selection.get(r.model, "none"),
        }
        over = shared | {"n_seeds": r.n_seeds, "interval": r.interval}
        name = "rsa_mean" if whole else "rsa"
        rows.append(
            MetricRow(name, r.value, unit="spearman rho", ci_low=r.low, ci_high=r.high, **over)
        )
        if whole and r.n_seeds > 1:
            rows += [
                MetricRow(name, v, unit="spearman rho", seed=i, **shared)
                for i, v in enumerate(r.per_seed)
            ]
        if np.isfinite(r.p):
            ends = {"ci_low": r.difference_low, "ci_high": r.difference_high}
            rows += [
                MetricRow(f"{name}_difference", r.difference, unit="spearman rho", **ends, **over),
                MetricRow("p_holm", float(r.p_holm), unit="p", **shared, n_seeds=r.n_seeds),
            ]
    return rows


def shift_mean_rows(result: OODResult, *, baseline: str) -> list[MetricRow]:
    """Return the accuracy of each model over all shifts, and its difference to a baseline.

    Parameters
    ----------
    result : OODResult
        Result of `bmfl_lab.evaluation.evaluate_ood` for a study with shifts.
    baseline : str
        Model that the others are compared with.

    Returns
    -------
    list of MetricRow
        ``accuracy_over_shifts`` per model and ``accuracy_over_shifts_difference`` (model minus
        baseline, paired by image). The value of an image is the share of shifts under which it was
        classified correctly, so that images are the units of the statistics.

    Raises
    ------
    ConfigError
        If the baseline is unknown.
    DataError
        If there are no results under shifts.
    """
    frame = result.per_image[result.per_image["shift"] != ""]
    require(
        not frame.empty,
        DataError,
        "results under shifts",
        "none",
        "evaluate a study whose `shifts` are not empty",
    )
    names = list(dict.fromkeys(frame["model"]))
    require(
        baseline in names,
        ConfigError,
        f"a baseline among {tuple(names)}",
        repr(baseline),
        nearest(baseline, names),
    )
    grids = {
        n: part.pivot_table(index="seed", columns="id", values="correct", aggfunc="mean")
        .sort_index()
        .to_numpy(float)
        for n, part in frame.groupby("model", sort=False)
    }
    n_shifts = frame.groupby(["shift", "severity"], dropna=False).ngroups
    rows = []
    for name in names:
        kept = next((r for r in result.rows if r.model == name), None)
        shared = {
            "unit": "fraction",
            "split": "test",
            "n": grids[name].shape[1],
            "shift": f"mean of {n_shifts} shifts",
            "selection": kept.selection if kept else "none",
            "notes": kept.notes if kept else "",
            "n_seeds": len(grids[name]),
        }
        found = {"accuracy_over_shifts": accuracy_interval(grids[name])}
        if name != baseline:
            found["accuracy_over_shifts_difference"], _ = crossed_mean(
                grids[name] - grids[baseline], kind="difference"
            )
        rows += [
            MetricRow(
                k,
                i.value,
                model=name,
                reference=baseline if k.endswith("_difference") else "",
                ci_low=i.low,
                ci_high=i.high,
                interval=i.method,
                **shared,
            )
            for k, i in found.items()
        ]
    return rows

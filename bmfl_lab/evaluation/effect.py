"""What alignment did: brain-likeness and robustness of aligned networks beside their controls, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bmfl_lab.data.responses import Subject
from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.evaluation.ood import OODResult
from bmfl_lab.evaluation.rsa_scores import brain_rdm, model_rdm, rsa_ceiling
from bmfl_lab.metrics.rsa_inference import similarity_samples
from bmfl_lab.metrics.statistics import bootstrap_mean, crossed_bootstrap, holm, paired_bootstrap
from bmfl_lab.records import MetricRow

ALL = "all"


def seed_groups(models: Mapping[str, Any], baseline: str) -> dict[str, list[Any]]:
    """Return lists of models, one a seed, by name.

    Raises
    ------
    ConfigError, DataError
        If the baseline is unknown, or models have unequal numbers of seeds.
    """
    groups = {n: list(m) if isinstance(m, (list, tuple)) else [m] for n, m in models.items()}
    if baseline not in groups:
        raise ConfigError(
            message(f"a baseline among {tuple(groups)}", repr(baseline), nearest(baseline, groups))
        )
    sizes = {n: len(g) for n, g in groups.items()}
    if len(set(sizes.values())) != 1 or not sizes[baseline]:
        raise DataError(
            message("as many seeds of every model", f"{sizes}", "train every model with every seed")
        )
    return groups


def alignment_effect(
    models: Mapping[str, Any],
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
    """RSA of every layer with every ROI for each model, and its difference to the network before alignment.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Each has ``activations(stimuli) -> {layer: (n, d)}``. A list holds one model a training
        seed, seeds in the same order for every model: model i is paired with baseline i, which it
        started from.
    subject : Subject
        Responses; only `split` is used.
    baseline : str, default "original"
        The model that the others are compared with.
    split : str, default "test"
        Stimuli that took no part in training or selection.
    rois : sequence of str, optional
        All that are present by default.
    metric, method
        As in `bmfl_lab.metrics.rdm` and `compare_rdms`.
    n_boot, seed
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row a model, layer and ROI, and one with layer and ROI "all" for their mean: ``value``
        (mean over seeds), ``low``, ``high``, ``difference`` (to the baseline), ``difference_low``,
        ``difference_high``, ``p``, ``p_holm`` (over the layers and ROIs of a model),
        ``ceiling_low``, ``ceiling_high``, ``n_stimuli``, ``n_seeds``, ``per_seed`` (list of
        values), ``interval`` (what the intervals are).

    Raises
    ------
    ConfigError, DataError
        If the baseline is unknown, models have unequal numbers of seeds, or an RDM is undefined.

    Notes
    -----
    Intervals and p take seeds and stimuli as crossed random samples, see
    `bmfl_lab.metrics.statistics.crossed_bootstrap` (our choice: a count of resamples could not pass a
    correction over many cells, and resampling a handful of seeds claims too much). With one seed
    they say nothing about other seeds.
    """
    groups = seed_groups(models, baseline)
    rows = subject.rows(split)
    stimuli, rois = subject.stimuli.subset(rows), list(rois or subject.atlas.present)
    found = {n: [m.activations(stimuli) for m in g] for n, g in groups.items()}
    layers = list(found[baseline][0])
    ids = [str(i) for i in stimuli.ids]
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


def _effect_table(value, samples, names, layers, rois, baseline, ceilings, n) -> pd.DataFrame:
    n_seeds, base, rows = value.shape[1], names.index(baseline), []
    for i, name in enumerate(names):
        cells = []
        for layer, roi, at in _cells(layers, rois):
            # over the layers and ROIs of the cell: (n_models, n_seeds) and (n_boot, n_models,
            # n_seeds)
            found, drawn = (a[..., at[0], at[1]].mean(axis=(-2, -1)) for a in (value, samples))
            own, _ = crossed_bootstrap(found[i], drawn[:, i], n)
            change, p = crossed_bootstrap(found[i] - found[base], drawn[:, i] - drawn[:, base], n)
            ends = ceilings.get(roi) or tuple(np.mean([ceilings[r] for r in rois], axis=0))
            cells.append(
                {
                    "model": name,
                    "layer": layer,
                    "roi": roi,
                    "value": own.value,
                    "low": own.low,
                    "high": own.high,
                    "difference": change.value,
                    "difference_low": change.low,
                    "difference_high": change.high,
                    "p": np.nan if i == base or change.low == change.high else p,
                    "ceiling_low": ends[0],
                    "ceiling_high": ends[1],
                    "n_stimuli": n,
                    "n_seeds": n_seeds,
                    "per_seed": found[i].tolist(),
                    "interval": own.method,
                }
            )
        frame = pd.DataFrame(cells)
        single = (frame["roi"] != ALL) & frame["p"].notna()
        frame["p_holm"] = frame["p"]
        if single.any():
            frame.loc[single, "p_holm"] = holm(frame.loc[single, "p"].to_numpy())
        rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def _cells(layers: list[str], rois: list[str]) -> Iterable[tuple[str, str, Any]]:
    yield ALL, ALL, (slice(None), slice(None))
    for k, layer in enumerate(layers):
        for j, roi in enumerate(rois):
            yield layer, roi, (slice(k, k + 1), slice(j, j + 1))


def compare_alignment(
    models: Mapping[str, Any], subject: Subject, *, model: str = "aligned", **options: Any
) -> pd.DataFrame:
    """Compare one model's mean RSA with that of every other, paired over stimuli and seeds.

    Parameters
    ----------
    models, subject, **options
        As in `alignment_effect`, without `baseline`.
    model : str, default "aligned"
        The model whose gain is asked for.

    Returns
    -------
    DataFrame
        One row a comparison: against, difference, low, high, p, p_holm (over the comparisons),
        n_stimuli, n_seeds, interval, verdict.

    Raises
    ------
    ConfigError, DataError
        As `alignment_effect`.
    """
    others = [n for n in models if n != model]
    if model not in models or not others:
        raise ConfigError(
            message(
                f"{model!r} and another model",
                f"{tuple(models)}",
                nearest(model, models) if models else "add one",
            )
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
    table : DataFrame
        From `alignment_effect`.
    subject : str
        Name of the subject.
    selection : str or mapping of model name to str
        How the models were selected.
    split, notes : str
        For every row.

    Returns
    -------
    list of MetricRow
        ``rsa`` and ``rsa_difference`` per layer and ROI, ``rsa_mean`` and ``rsa_mean_difference``
        over all of them (with one row a seed), ``p_holm`` for the differences.
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
            rows.append(
                MetricRow(f"{name}_difference", r.difference, unit="spearman rho", **ends, **over)
            )
            rows.append(MetricRow("p_holm", float(r.p_holm), unit="p", **shared, n_seeds=r.n_seeds))
    return rows


def shift_mean_rows(
    result: OODResult, *, baseline: str, n_boot: int = 2000, seed: int = 0
) -> list[MetricRow]:
    """Return each model's accuracy averaged over the made shifts, and its paired difference to a baseline.

    Parameters
    ----------
    result : OODResult
        From `bmfl_lab.evaluation.evaluate_ood`, of a study with made shifts.
    baseline : str
        Model that the others are compared with.
    n_boot, seed
        Of the bootstrap.

    Returns
    -------
    list of MetricRow
        ``accuracy_over_shifts`` a model and ``accuracy_over_shifts_difference`` (model - baseline);
        an image counts with the share of shifts under which it was classified correctly, so images
        stay the units.

    Raises
    ------
    ConfigError
        If the baseline is unknown.
    DataError
        If there is no made shift.
    """
    frame = result.per_image[result.per_image["shift"] != ""]
    if frame.empty:
        raise DataError(message("results under made shifts", "none", "evaluate with shifts"))
    names = list(dict.fromkeys(frame["model"]))
    if baseline not in names:
        raise ConfigError(
            message(f"a baseline among {tuple(names)}", repr(baseline), nearest(baseline, names))
        )
    grids = {
        n: part.pivot_table(index="seed", columns="id", values="correct", aggfunc="mean")
        .sort_index()
        .to_numpy(float)
        for n, part in frame.groupby("model", sort=False)
    }
    label = f"mean of {frame.groupby(['shift', 'severity'], dropna=False).ngroups} shifts"
    rows = []
    for name in names:
        kept = next((r for r in result.rows if r.model == name), None)
        shared = {
            "unit": "fraction",
            "split": "test",
            "n": grids[name].shape[1],
            "shift": label,
            "selection": kept.selection if kept else "none",
            "notes": kept.notes if kept else "",
            "n_seeds": len(grids[name]),
        }
        found = {
            "accuracy_over_shifts": (name, bootstrap_mean(grids[name], n_boot=n_boot, seed=seed))
        }
        if name != baseline:
            difference = paired_bootstrap(grids[name], grids[baseline], n_boot=n_boot, seed=seed)
            found["accuracy_over_shifts_difference"] = (name, difference)
        rows += [
            MetricRow(
                k,
                i.value,
                model=who,
                reference=baseline if k.endswith("_difference") else "",
                ci_low=i.low,
                ci_high=i.high,
                interval=i.method,
                **shared,
            )
            for k, (who, i) in found.items()
        ]
    return rows

"""Are two models different? Paired over images and seeds, adjusted over the family of image sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.evaluation.ood import OODResult, notes_of
from bmfl_lab.metrics.statistics import (
    Interval,
    crossed_mean,
    holm,
    mcnemar,
    paired_bootstrap,
    verdict,
)
from bmfl_lab.records import MetricRow

if TYPE_CHECKING:
    import pandas as pd


def paired_correct(frame: pd.DataFrame, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return whether a model was right: (n_seeds, n_stimuli) bool, the seeds, and the image ids, both sorted.

    Raises
    ------
    DataError
        If an image lacks a prediction under some seed.
    """
    mine = frame[frame["model"] == model]
    table = (
        mine.pivot(index="seed", columns="id", values="correct")
        .sort_index(axis=0)
        .sort_index(axis=1)
    )
    if table.isna().any().any():
        raise DataError(
            message(
                f"a prediction of {model!r} for every seed and image",
                "gaps",
                "evaluate all seeds on the same set",
            )
        )
    return table.to_numpy(dtype=bool), table.index.to_numpy(), table.columns.to_numpy()


def compare_models(
    result: OODResult,
    baseline: str,
    *,
    models: list[str] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> list[MetricRow]:
    """Compare every model with a baseline on every image set.

    Parameters
    ----------
    result : OODResult
        From `evaluate_ood`; all models on the same images.
    baseline : str
        Name of the model that the others are compared with.
    models : list of str, optional
        Which to compare; all others by default.
    n_boot, seed
        Of the bootstrap.

    Returns
    -------
    list of MetricRow
        ``accuracy_difference`` (fraction, model minus baseline) with a paired 95 % interval, and
        ``p_holm``. Both name the model and, as ``reference``, the baseline, and hold the p value
        alone and adjusted by Holm over the image sets of one model. With one seed the interval is a
        bootstrap over images and p comes from the exact McNemar test; with several seeds both come
        from the t test over seeds and images as crossed samples (`crossed_mean`). The ``notes`` of
        the difference hold the verdict in plain words, with the name of the image set.

    Raises
    ------
    ConfigError
        If a name is unknown.
    DataError
        If two models were not evaluated on the same images and seeds.

    Notes
    -----
    A test over images alone takes the seeds at hand for the only ones there are, and drawing a
    handful of seeds with replacement makes their spread too small: where seeds differ by some
    points, both call differences that the next seeds would not show.
    """
    known = list(dict.fromkeys(result.per_image["model"]))
    others = [m for m in known if m != baseline] if models is None else list(models)
    for name in (baseline, *others):
        if name not in known:
            raise ConfigError(
                message(f"a model among {tuple(known)}", repr(name), nearest(name, known))
            )
    frame = result.per_image.assign(
        severity=result.per_image["severity"].astype("Float64").fillna(0)
    )
    groups = dict(list(frame.groupby(["split", "shift", "severity"], sort=False, dropna=False)))
    rows: list[MetricRow] = []
    for name in others:
        found = {
            key: _difference(part, name, baseline, n_boot, seed) for key, part in groups.items()
        }
        rows += _rows(found, name, baseline, result)
    return rows


def _difference(
    part: pd.DataFrame, name: str, baseline: str, n_boot: int, seed: int
) -> tuple[Interval, float]:
    a, seeds_a, ids_a = paired_correct(part, name)
    b, seeds_b, ids_b = paired_correct(part, baseline)
    if list(ids_a) != list(ids_b) or list(seeds_a) != list(seeds_b):
        raise DataError(
            message(
                f"{name!r} and {baseline!r} on the same images and seeds",
                "different ones",
                "evaluate them together",
            )
        )
    if len(a) > 1:
        return crossed_mean(a.astype(np.float64) - b)
    return paired_bootstrap(a[0], b[0], n_boot=n_boot, seed=seed), mcnemar(a[0], b[0])[0]


def _rows(
    found: Mapping[tuple[str, str, float], tuple[Interval, float]],
    name: str,
    baseline: str,
    result: OODResult,
) -> list[MetricRow]:
    adjusted = holm([p for _, p in found.values()])
    selection = next((r.selection for r in result.rows if r.model == name), "none")
    rows = []
    for (key, (interval, p)), p_adjusted in zip(found.items(), map(float, adjusted)):
        split, shift, severity = key
        where = split if not shift else shift + (f" {int(severity)}" if severity else "")
        said = verdict(interval, p_adjusted, first=name, second=baseline, where=where)
        about = notes_of(result, *key)
        common = {
            "split": split,
            "n": interval.n,
            "selection": selection,
            "model": name,
            "reference": baseline,
            "shift": shift,
            "severity": int(severity) or None,
            "n_seeds": interval.n_seeds,
            "p": p,
            "p_adjusted": p_adjusted,
            "family": "image sets",
            "n_compared": len(found),
        }
        ends = {"ci_low": interval.low, "ci_high": interval.high, "interval": interval.method}
        rows.append(
            MetricRow(
                "accuracy_difference",
                interval.value,
                unit="fraction",
                notes=f"{said} {about}".strip(),
                **ends,
                **common,
            )
        )
        rows.append(MetricRow("p_holm", p_adjusted, unit="p", notes=about, **common))
    return rows

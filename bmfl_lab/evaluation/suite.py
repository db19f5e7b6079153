"""Evaluate a family of models on many image sets: suites, paired differences, single images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from bmfl_lab.data.shifts import SHIFTS, shifted
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.evaluation.ood import OODResult, evaluate_ood, known_names, notes_of
from bmfl_lab.metrics.behaviour import error_consistency
from bmfl_lab.metrics.statistics import (
    EXPLORATORY,
    PRIMARY,
    SMALLEST_EFFECT,
    Interval,
    RobustnessLine,
    crossed_mean,
    effective_robustness,
    equivalence_p,
    fit_robustness_line,
    holm_with_primary,
    image_weights,
    percentiles,
    seed_weights,
    verdict,
)
from bmfl_lab.models.protocols import Classifier
from bmfl_lab.records import MetricRow

SEVERITIES = (1, 2, 3, 4, 5)
KEYS = ("split", "shift", "severity")
OVER = "95 % percentile bootstrap over stimuli"
POOR_FIT = 0.5
"""R2 (logit scale) of the baselines' line below which the fit is called poor; our choice."""


def evaluate_suite(
    models: Mapping[str, Classifier | Sequence[Classifier]],
    study: Study,
    *,
    shifts: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    sets: Sequence[str] | None = None,
    baselines: Sequence[str] = (),
    n_bins: int = 15,
    n_boot: int = 1000,
    seed: int = 0,
) -> OODResult:
    """Evaluate models on image sets and shifts, with calibration and effective robustness.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Same as in `evaluate_ood`.
    study : Study
        Study whose images are used; its set "test" is in distribution.
    shifts : sequence of str, optional
        Names of artificial shifts that are applied to "test"; by default those of the study.
    severities : sequence of int, default (1, 2, 3, 4, 5)
        Severities of every artificial shift, 1 to 5.
    sets : sequence of str, optional
        Image sets; by default "test" and the natural OOD sets. Without "test" there are no rows for
        gaps and effective robustness.
    baselines : sequence of str, default ()
        Names of models without a brain. Effective robustness is measured from the line through
        their points, so that their accuracies should differ.
    n_bins : int, default 15
        Number of bins of the calibration error.
    n_boot : int, default 1000
        Number of bootstrap resamples.
    seed : int, default 0
        Seed of the shifts and of the bootstrap.

    Returns
    -------
    OODResult
        Rows of `evaluate_ood`, and rows over seeds with an interval. ``id_ood_gap`` is the accuracy
        on "test" minus that on the set, ``ece`` the expected calibration error, ``nll`` the
        negative log likelihood in nats, and ``error_consistency`` Cohen's kappa of the errors of
        two models. With baselines there are also ``effective_robustness``, the accuracy above the
        baselines' line, and this line: ``robustness_slope``, ``robustness_intercept`` and
        ``robustness_r2``. Effective robustness is None if fewer than three baseline points differ,
        and for a model below all baselines in distribution. Its notes say when a model lies above
        all baselines, so that the line is extrapolated, and when the line fits poorly.

    Raises
    ------
    ConfigError
        If a shift, severity or baseline is unknown; see also `evaluate_ood`.

    Notes
    -----
    Each baseline and seed is one point of the line. The errors of two models are compared under the
    same seed. The errors of one model are also compared between successive seeds, which shows how
    much two runs of one recipe agree.

    References
    ----------
    Taori et al. (2020), Measuring robustness to natural distribution shifts in image
    classification. Guo et al. (2017), On calibration of modern neural networks, eq. 3. Geirhos,
    Meding & Wichmann (2020), Beyond accuracy: quantifying trial-by-trial behaviour of CNNs and
    humans.
    """
    names = [n for n, _ in study.shifts] if shifts is None else shifts
    names = known_names(names, SHIFTS.names(), "shifts")
    known_names(baselines, models, "baselines")
    pairs = [(n, int(s)) for n in names for s in severities]
    result = evaluate_ood(models, study, shifts=pairs, sets=sets, n_boot=n_boot, seed=seed)
    cells = list(_cells(result))
    family = [m for m in dict.fromkeys(result.per_image["model"]) if m not in baselines]
    rows = [*result.rows, *_calibration_rows(result, cells, n_bins, n_boot, seed)]
    rows += _consistency_rows(result, cells, family, n_boot, seed)
    home = next((c for c in cells if c.key == ("test", "", None)), None)
    if home is not None:
        others = [c for c in cells if c is not home and len(c.ids)]
        rows += _gap_rows(result, home, others, n_boot, seed)
        if baselines:
            rows += _robustness_rows(result, home, others, baselines, n_boot, seed)
    return OODResult(rows, result.per_image)


@dataclasses.dataclass(frozen=True)
class _Cell:
    """Hold the results on one image set: tables (n_seeds, n_stimuli) of each model."""

    key: tuple[str, str, int | None]
    ids: np.ndarray
    tables: Mapping[str, Mapping[str, np.ndarray]]
    seeds: Mapping[str, np.ndarray]

    def row(
        self,
        result: OODResult,
        name: str,
        model: str,
        value: float | None = None,
        **fields: str | float | None,
    ) -> MetricRow:
        """Return a row about this set, with the selection, seeds and notes of the model."""
        first = model.split(" ~ ")[0]  # of a pair of models
        selection = next((r.selection for r in result.rows if r.model == first), "none")
        split, shift, severity = self.key
        fields["notes"] = "; ".join(
            t for t in (fields.get("notes", ""), notes_of(result, *self.key)) if t
        )
        fields.setdefault("n_seeds", len(self.seeds.get(first, ())) or None)
        return MetricRow(
            name,
            value,
            split=split,
            shift=shift,
            severity=severity,
            n=len(self.ids),
            model=model,
            selection=selection,
            **fields,
        )


def _cells(result: OODResult) -> Iterator[_Cell]:
    frame = result.per_image.assign(
        severity=result.per_image["severity"].astype("Float64").fillna(0)
    )
    for (split, shift, severity), part in frame.groupby(list(KEYS), sort=False):
        tables, seeds, ids = {}, {}, None
        for model, mine in part.groupby("model", sort=False):
            wide = mine.pivot(index="seed", columns="id", values=["correct", "confidence", "nll"])
            found = {v: wide[v].sort_index(axis=1) for v in ("correct", "confidence", "nll")}
            ids = list(found["correct"].columns)
            tables[model] = {v: t.to_numpy(dtype=np.float64) for v, t in found.items()}
            seeds[model] = wide.index.to_numpy()
        yield _Cell((split, shift, int(severity) or None), np.asarray(ids), tables, seeds)


def _gap_rows(
    result: OODResult, home: _Cell, others: Sequence[_Cell], n_boot: int, seed: int
) -> list[MetricRow]:
    """Return ``id_ood_gap``; shifts of "test" are paired with it by image, other sets are not."""
    rows = []
    for cell in others:
        w_id, w_ood = image_weights(home.ids, n_boot, seed), image_weights(cell.ids, n_boot, seed)
        how = f"{OVER} and seeds" + (
            ", paired" if list(home.ids) == list(cell.ids) else ", sets resampled independently"
        )
        for model, tables in cell.tables.items():
            a, b = home.tables[model]["correct"], tables["correct"]
            drawn = ((w_id @ a.T - w_ood @ b.T) * seed_weights(len(a), n_boot, seed)).sum(1)
            low, high = percentiles(drawn)
            rows.append(
                cell.row(
                    result,
                    "id_ood_gap",
                    model,
                    float(a.mean() - b.mean()),
                    unit="fraction",
                    ci_low=low,
                    ci_high=high,
                    interval=how,
                )
            )
    return rows


def _calibration_rows(
    result: OODResult, cells: Sequence[_Cell], n_bins: int, n_boot: int, seed: int
) -> list[MetricRow]:
    """Return the rows ``ece`` and ``nll``, means over seeds.

    Sampling noise biases the calibration error upwards, and that of resamples even more, so that
    the interval can lie above the value.
    """
    rows = []
    for cell in cells:
        weights = image_weights(cell.ids, n_boot, seed)
        for model, tables in cell.tables.items():
            over = seed_weights(len(tables["nll"]), n_boot, seed)
            found = {"ece": _ece(tables, n_bins, weights), "nll": _nll(tables, weights)}
            notes = {"ece": f"{n_bins} bins of equal width of the top-1 probability", "nll": ""}
            units = {"ece": "fraction", "nll": "nats"}
            for name, (value, drawn_BS) in found.items():
                low, high = (None, None) if value is None else percentiles((drawn_BS * over).sum(1))
                rows.append(
                    cell.row(
                        result,
                        name,
                        model,
                        value,
                        unit=units[name],
                        ci_low=low,
                        ci_high=high,
                        interval=f"{OVER} and seeds",
                        notes=notes[name],
                    )
                )
    return rows


def _ece(
    tables: Mapping[str, np.ndarray], n_bins: int, weights: np.ndarray
) -> tuple[float | None, np.ndarray]:
    known = np.isfinite(tables["confidence"])
    if not known.any(axis=1).all():
        return None, np.zeros((len(weights), len(known)))
    values, drawn = [], []
    for correct, confidence, use in zip(tables["correct"], tables["confidence"], known):
        bins = np.clip(
            np.ceil(np.where(use, confidence, 1) * n_bins).astype(int) - 1, 0, n_bins - 1
        )
        gap_NK = np.zeros((len(use), n_bins))
        gap_NK[np.arange(len(use)), bins] = np.where(use, correct - np.where(use, confidence, 0), 0)
        values.append(np.abs(gap_NK.sum(0)).sum() / use.sum())
        share = weights @ use
        drawn.append(np.abs(weights @ gap_NK).sum(1) / np.where(share > 0, share, np.nan))
    return float(np.mean(values)), np.stack(drawn, axis=1)


def _nll(tables: Mapping[str, np.ndarray], weights: np.ndarray) -> tuple[float | None, np.ndarray]:
    nll = tables["nll"]
    if not nll.size or not np.isfinite(nll).all():
        return None, np.zeros((len(weights), len(nll)))
    return float(nll.mean()), weights @ nll.T


def _consistency_rows(
    result: OODResult, cells: Sequence[_Cell], models: Sequence[str], n_boot: int, seed: int
) -> list[MetricRow]:
    """Return ``error_consistency`` of each pair of models, and of successive seeds of a model."""
    rows = []
    for cell in cells:
        names = [m for m in cell.tables if m in models]
        weights = image_weights(cell.ids, n_boot, seed)
        for a, b in itertools.combinations_with_replacement(names, 2):
            pairs = _paired_seeds(cell, a, b)
            if not pairs:
                continue
            values = [error_consistency(x.astype(bool), y.astype(bool)) for x, y in pairs]
            known = [v for v in values if v is not None]
            low, high = percentiles(np.mean([_kappa(weights, x, y) for x, y in pairs], axis=0))
            rows.append(
                cell.row(
                    result,
                    "error_consistency",
                    f"{a} ~ {b}" + (" (another seed)" if a == b else ""),
                    float(np.mean(known)) if known else None,
                    unit="kappa",
                    ci_low=low,
                    ci_high=high,
                    interval=OVER,
                    n_seeds=len(pairs),
                )
            )
    return rows


def _paired_seeds(cell: _Cell, a: str, b: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return correctness of two models under the same seed, or of one under successive seeds."""
    first, second = cell.tables[a]["correct"], cell.tables[b]["correct"]
    if a == b:
        return list(itertools.pairwise(first))
    by_seed = dict(zip(cell.seeds[b], second))
    return [(x, by_seed[s]) for s, x in zip(cell.seeds[a], first) if s in by_seed]


def _kappa(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    p_a, p_b, same = weights @ a, weights @ b, weights @ (a == b)
    expected = p_a * p_b + (1 - p_a) * (1 - p_b)
    return np.where(
        expected < 1 - 1e-6,
        (same - expected) / np.where(expected < 1 - 1e-6, 1 - expected, 1),
        np.nan,
    )


def _robustness_rows(
    result: OODResult,
    home: _Cell,
    others: Sequence[_Cell],
    baselines: Sequence[str],
    n_boot: int,
    seed: int,
) -> list[MetricRow]:
    """Return the rows of effective robustness, and of the line through the baselines."""
    rows = []
    for cell in others:
        x, y = (np.concatenate([c.tables[b]["correct"] for b in baselines]) for c in (home, cell))
        points = _inside(x.mean(1), len(home.ids)), _inside(y.mean(1), len(cell.ids))
        line = fit_robustness_line(*points) if len(x) >= 3 and np.ptp(points[0]) > 0 else None
        about = f"line through {len(x)} baseline points"
        about += f", R2 = {line.r2:.2f}" if line else ": undefined"
        if line and line.r2 < POOR_FIT:
            about += "; poor fit: the line explains less than half of the spread"
        rows += [
            cell.row(
                result,
                f"robustness_{name}",
                "baselines",
                None if line is None else float(getattr(line, name)),
                unit="logit",
                notes=about,
            )
            for name in ("slope", "intercept", "r2")
        ]
        weights = image_weights(home.ids, n_boot, seed), image_weights(cell.ids, n_boot, seed)
        over = [seed_weights(len(home.seeds[b]), n_boot, seed) for b in baselines]
        drawn_line = _drawn_lines(
            _inside(weights[0] @ x.T, len(home.ids)),
            _inside(weights[1] @ y.T, len(cell.ids)),
            np.concatenate(over, axis=1),
        )
        for model in (m for m in cell.tables if m not in baselines):
            a, b = home.tables[model]["correct"], cell.tables[model]["correct"]
            reach, known = _reach(_inside(a.mean(1), len(home.ids)), points[0])
            found = {}
            if known and line is not None:
                found = _above_line(a, b, line, drawn_line, weights, seed)
            rows.append(
                cell.row(
                    result,
                    "effective_robustness",
                    model,
                    unit="fraction",
                    interval=f"{OVER} and seeds",
                    notes=about + reach,
                    **found,
                )
            )
    return rows


def _above_line(
    a: np.ndarray,
    b: np.ndarray,
    line: RobustnessLine,
    drawn_line: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> dict[str, float | None]:
    """Return effective robustness and its interval from correctness (n_seeds, n_stimuli)."""
    own = zip(_inside(a.mean(1), a.shape[1]), b.mean(1))
    drawn = _residual(*drawn_line, _inside(weights[0] @ a.T, a.shape[1]), weights[1] @ b.T)
    low, high = percentiles((drawn * seed_weights(len(a), len(drawn), seed)).sum(1))
    value = float(np.mean([effective_robustness(line, *point) for point in own]))
    return {"value": value, "ci_low": low, "ci_high": high}


def _reach(own: np.ndarray, points: np.ndarray) -> tuple[str, bool]:
    """Return a note on a model outside the baselines' range, and whether it has a value.

    For a model above all baselines the line is extrapolated, because a better model is bound to lie
    there. A model below all of them has no value: baselines of lower accuracy can be trained, and a
    line that is extrapolated to chance level is no comparison.
    """
    low, high = points.min(), points.max()
    if own.mean() < low:
        reached = f"{100 * own.mean():.0f} % in distribution"
        return f"; undefined: {reached}, the baselines begin at {100 * low:.0f} %", False
    note = f"; extrapolated: the baselines reach {100 * high:.0f} % in distribution"
    return "" if own.mean() <= high else note, True


def _inside(accuracy: np.ndarray, n: int) -> np.ndarray:
    """Keep accuracies at least 1 / (2 n) away from 0 and 1, where the logit is infinite."""
    return np.clip(accuracy, 0.5 / n, 1 - 0.5 / n)


def _drawn_lines(
    x_BK: np.ndarray, y_BK: np.ndarray, w_BK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return slope and intercept (B,) per resample, with points weighted by their draws."""
    x, y = (np.log(v / (1 - v)) for v in (x_BK, y_BK))
    w = w_BK / w_BK.sum(1, keepdims=True)
    mean_x, mean_y = (w * x).sum(1), (w * y).sum(1)
    dx = x - mean_x[:, None]
    spread = (w * dx**2).sum(1)
    slope = (w * dx * y).sum(1) / np.where(spread > 1e-12, spread, np.nan)
    return slope, mean_y - slope * mean_x


def _residual(
    slope: np.ndarray, intercept: np.ndarray, id_BS: np.ndarray, ood_BS: np.ndarray
) -> np.ndarray:
    """Return the accuracies minus those on the lines, (B, S)."""
    at = slope[:, None] * np.log(id_BS / (1 - id_BS)) + intercept[:, None]
    return ood_BS - 1 / (1 + np.exp(-at))


def _correct(frame: pd.DataFrame, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return correctness (n_seeds, n_stimuli) of a model, its seeds and the image ids, sorted.

    With a column ``subject`` of several subjects, the first axis of correctness and ids is that of
    the subjects.
    """
    mine = frame[frame["model"] == model]
    if "subject" in mine and mine["subject"].nunique() > 1:
        parts = [
            _correct(part.drop(columns="subject"), model)
            for _, part in mine.groupby("subject", sort=True)
        ]
        sizes = sorted({part[0].shape for part in parts})
        require(
            len(sizes) == 1 and all(list(p[1]) == list(parts[0][1]) for p in parts),
            DataError,
            f"the same seeds and number of images of {model!r} for every subject",
            f"shapes {sizes}",
            "evaluate every subject with the same seeds and as many images",
        )
        ids = np.stack([part[2] for part in parts])
        return np.stack([part[0] for part in parts]), parts[0][1], ids
    table = mine.pivot(index="seed", columns="id", values="correct")
    require(
        not table.isna().any().any(),
        DataError,
        f"a prediction of {model!r} for every seed and image",
        "gaps",
        "evaluate all seeds on the same images",
    )
    return table.to_numpy(dtype=bool), table.index.to_numpy(), table.columns.to_numpy()


def compare_models(
    result: OODResult,
    baseline: str,
    *,
    models: list[str] | None = None,
    also: Sequence[tuple[str, str]] = (),
    primary: tuple[str, str] | None = None,
    smallest: float = SMALLEST_EFFECT,
) -> list[MetricRow]:
    """Compare models in pairs on every image set.

    Parameters
    ----------
    result : OODResult
        Result of `evaluate_ood` for all models on the same images. Results of several subjects are
        one table with a further column ``subject``; subjects are then a random factor beside seeds
        and images.
    baseline : str
        Name of the model that the others are compared with.
    models : list of str, optional
        Names of the models to compare with the baseline; by default all others.
    also : sequence of (str, str), default ()
        Further pairs of models to compare, such as ``("fusion", "attributes")``.
    primary : (str, str), optional
        The pair that the study is about, declared beforehand. It gets four fifths of the level; all
        other comparisons are then exploratory, see `holm_with_primary`.
    smallest : float, default 0.02
        Smallest effect of interest (fraction): "no difference" means one that is smaller.

    Returns
    -------
    list of MetricRow
        ``accuracy_difference`` (fraction, first model minus second) with its interval, and
        ``p_holm``. Both name the second model as their ``reference``, and hold the p value
        unadjusted and adjusted by Holm over all pairs and image sets of this call, and that of the
        equivalence test. Interval and p are those of `crossed_mean`: over seeds and images, or with
        one seed over images for these trained models. The ``notes`` of the difference contain the
        verdict in words.

    Raises
    ------
    ConfigError
        If a name is unknown, or the primary pair is not among the pairs.
    DataError
        If two models were not evaluated on the same images and seeds.

    Notes
    -----
    A test over images alone does not generalise to other seeds, and a bootstrap of a few seeds
    underestimates how much they vary. Where seeds differ by some points, both find differences that
    the next seeds would not show. Compare everything that a report claims in one call: the p values
    are adjusted for what is in the call.
    """
    known = result.per_image["model"].unique()
    others = [m for m in known if m != baseline] if models is None else list(models)
    known_names((baseline, *others, *itertools.chain(*also)), known, "a model")
    pairs = [*((name, baseline) for name in others), *also]
    require(
        primary is None or primary in pairs,
        ConfigError,
        f"a primary comparison among {pairs}",
        primary,
        "name a pair that is compared, or add it to `also`",
    )
    frame = result.per_image.assign(
        severity=result.per_image["severity"].astype("Float64").fillna(0)
    )
    groups = dict(list(frame.groupby(["split", "shift", "severity"], sort=False, dropna=False)))
    places = [(pair, key) for pair in pairs for key in groups]
    compared = dict.fromkeys(itertools.chain(*pairs))
    right = {key: {m: _correct(part, m) for m in compared} for key, part in groups.items()}
    found = [_difference(right[key], *pair, smallest) for pair, key in places]
    first = [pair == primary for pair, _ in places]
    adjusted = holm_with_primary([p for _, p, _ in found], first)
    alike = holm_with_primary([p for _, _, p in found], first)
    others_family = EXPLORATORY if any(first) else "all comparisons"
    rows: list[MetricRow] = []
    for k, (pair, key) in enumerate(places):
        interval, p, _ = found[k]
        tests = {
            "p": p,
            "p_adjusted": float(adjusted[k]),
            "p_equivalence": float(alike[k]),
            "smallest": smallest,
            "family": PRIMARY if first[k] else others_family,
            "n_compared": len(places),
        }
        rows += _difference_rows(pair, key, interval, tests, result)
    return rows


def main_comparisons(
    result: OODResult, models: Sequence[str], *, smallest: float = SMALLEST_EFFECT
) -> list[MetricRow]:
    """Compare models with the first one, and the fusion with its controls, as the notebooks do.

    Parameters
    ----------
    result : OODResult
        Result of `evaluate_ood` or `evaluate_suite` for these models and perhaps others.
    models : sequence of str
        Names of the models. The first is the baseline; "fusion" against it is the primary
        comparison. "fusion" is also compared with "attributes" and "linear probe".
    smallest : float, default 0.02
        Smallest difference of interest, a fraction.

    Returns
    -------
    list of MetricRow
        See `compare_models`; empty for a single model.
    """
    first = models[0]
    others = [m for m in result.per_image["model"].unique() if m in models and m != first]
    controls = [m for m in ("attributes", "linear probe") if {m, "fusion"} <= {*others}]
    if not others:
        return []
    return compare_models(
        result,
        first,
        models=others,
        also=[("fusion", control) for control in controls],
        primary=("fusion", first) if "fusion" in others else None,
        smallest=smallest,
    )


def _difference(
    right: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    name: str,
    baseline: str,
    smallest: float,
) -> tuple[Interval, float, float]:
    """Return the difference of two models on one set with its interval, p and equivalence p."""
    (a, seeds_a, ids_a), (b, seeds_b, ids_b) = right[name], right[baseline]
    require(
        a.shape == b.shape and (ids_a == ids_b).all() and list(seeds_a) == list(seeds_b),
        DataError,
        f"{name!r} and {baseline!r} on the same images and seeds",
        "different ones",
        "evaluate them together, with the same seeds",
    )
    difference = a.astype(np.float64) - b
    shared = ids_a.ndim == 1 or bool((ids_a == ids_a[0]).all())
    interval, p = crossed_mean(difference, kind="difference", shared_stimuli=shared)
    return interval, p, equivalence_p(difference, smallest, shared_stimuli=shared)


def _difference_rows(
    pair: tuple[str, str],
    key: tuple[str, str, float],
    interval: Interval,
    tests: Mapping[str, Any],
    result: OODResult,
) -> list[MetricRow]:
    """Return the row of a difference, with its verdict in words, and that of its adjusted p."""
    (name, baseline), (split, shift, severity) = pair, key
    said = verdict(
        interval,
        tests["p_adjusted"],
        first=name,
        second=baseline,
        where=split if not shift else shift + (f" {int(severity)}" if severity else ""),
        smallest=tests["smallest"],
        p_equivalence=tests["p_equivalence"],
    )
    if tests["family"] == EXPLORATORY:
        said = f"Exploratory: {said}"
    about = notes_of(result, *key)
    common = {
        "split": split,
        "n": interval.n,
        "selection": next((r.selection for r in result.rows if r.model == name), "none"),
        "model": name,
        "reference": baseline,
        "shift": shift,
        "severity": int(severity) or None,
        "n_seeds": interval.n_seeds,
        **tests,
    }
    ends = {"ci_low": interval.low, "ci_high": interval.high, "interval": interval.method}
    notes = f"{said} {about}".strip()
    return [
        MetricRow(
            "accuracy_difference", interval.value, unit="fraction", notes=notes, **ends, **common
        ),
        MetricRow("p_holm", tests["p_adjusted"], unit="p", notes=about, **common),
    ]


def reliability_table(per_image: pd.DataFrame, n_bins: int = 15) -> pd.DataFrame:
    """Return mean confidence and accuracy per bin of confidence, for reliability diagrams.

    Parameters
    ----------
    per_image : DataFrame
        Table ``per_image`` of an `OODResult`; the seeds of a model are pooled.
    n_bins : int, default 15
        Number of bins of equal width of the top-1 probability.

    Returns
    -------
    DataFrame
        One row per model, image set and bin with images, with the columns ``model, split, shift,
        severity, bin, low, high, count, n_images, confidence, accuracy, ci_low, ci_high``. The
        interval of the accuracy is the 95 % Wilson interval of as many independent predictions as
        there are different images in the bin.
    """
    frame = per_image[per_image["confidence"].notna()]
    bins = np.clip(np.ceil(frame["confidence"] * n_bins).astype(int) - 1, 0, n_bins - 1)
    frame = frame.assign(bin=bins, severity=frame["severity"].astype("Float64"))
    table = frame.groupby(["model", *KEYS, "bin"], sort=False, dropna=False).agg(
        count=("correct", "size"),
        n_images=("id", "nunique"),
        confidence=("confidence", "mean"),
        accuracy=("correct", "mean"),
    )
    # the seeds of a model answer one image alike, so that images count and not predictions
    ends = _wilson(table["accuracy"].to_numpy(float), table["n_images"].to_numpy(float))
    table = table.assign(ci_low=ends[0], ci_high=ends[1])
    order = {m: i for i, m in enumerate(dict.fromkeys(frame["model"]))}
    table = table.reset_index().sort_values("bin", kind="stable")
    table = table.sort_values(
        "model", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )
    return table.assign(low=table["bin"] / n_bins, high=(table["bin"] + 1) / n_bins)


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % Wilson interval of shares of n independent answers."""
    z = ndtri(0.975)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return middle - half, middle + half


def extreme_images(
    per_image: pd.DataFrame, model: str, *, against: str | None = None, n: int = 6
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images with the highest and with the lowest likelihood of the true class.

    Parameters
    ----------
    per_image : DataFrame
        Table ``per_image`` of an `OODResult`.
    model : str
        Name of the model.
    against : str, optional
        Name of another model. The images are then those where the log likelihood of `model` exceeds
        that of the other model most, and least.
    n : int, default 6
        Number of images in each table.

    Returns
    -------
    best, worst : DataFrame
        One row per image, most extreme first, with the columns ``split, shift, severity, id, label,
        predicted`` (of the first seed), ``confidence, accuracy`` (means over seeds) and ``score``
        (log likelihood in nats, mean over seeds, or its difference between the models).

    Raises
    ------
    ConfigError
        If a model is unknown.
    """
    known_names((model, *([against] if against else [])), per_image["model"].unique(), "a model")
    frame = per_image.assign(
        severity=per_image["severity"].astype("Float64").fillna(0), score=-per_image["nll"]
    )
    keys = [*KEYS, "id"]
    mine = (
        frame[frame["model"] == model]
        .groupby(keys, sort=False)
        .agg(
            label=("label", "first"),
            predicted=("predicted", "first"),
            confidence=("confidence", "mean"),
            accuracy=("correct", "mean"),
            score=("score", "mean"),
        )
    )
    if against:
        mine["score"] -= frame[frame["model"] == against].groupby(keys, sort=False)["score"].mean()
    mine = mine[mine["score"].notna()].reset_index()
    mine["severity"] = [int(s) or None for s in mine["severity"]]
    ordered = mine.sort_values("score", kind="stable")
    return ordered[::-1].head(n).reset_index(drop=True), ordered.head(n).reset_index(drop=True)


def image_of(study: Study, row: pd.Series, *, seed: int = 0) -> dict[str, Any]:
    """Return the image of a row of `extreme_images`, with what figures show beside it.

    Parameters
    ----------
    study : Study
        Study that was evaluated.
    row : pandas.Series or named tuple
        Row with the fields ``split, shift, severity, id, label, predicted, confidence``.
    seed : int, default 0
        Seed of the artificial shifts.

    Returns
    -------
    dict
        ``stimulus`` (StimulusSet of one image), ``image`` (uint8 (H, W, 3)), ``true`` and
        ``predicted`` (names of classes), ``confidence`` (0 to 1) and ``where`` (name of the set).

    Raises
    ------
    DataError
        If the study has no such image.
    """
    stimuli = study.set(row.split)
    one = stimuli.subset(stimuli.index_of([row.id]))
    where = row.split
    if row.shift:
        one = shifted(one, row.shift, int(row.severity), seed)
        where = f"{row.shift} {int(row.severity)}"
    names = stimuli.class_names
    return {
        "stimulus": one,
        "image": one.image(0),
        "true": names[row.label],
        "predicted": names[row.predicted] if row.predicted >= 0 else "none",
        "confidence": float(row.confidence),
        "where": where,
    }

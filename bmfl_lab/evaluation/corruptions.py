"""Compute the mean corruption error (mCE) over the 15 corruptions of ImageNet-C."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from bmfl_lab.data import StimulusSet, Study
from bmfl_lab.data.ood_sets import partial_note
from bmfl_lab.data.shifts import IMAGENET_C, SEVERITIES, shift_note, shifted
from bmfl_lab.errors import ConfigError, DataError, require, require_known
from bmfl_lab.evaluation.ood import OODResult, image_frame, masked_logits, nan_row, read_once
from bmfl_lab.metrics.classification import ALEXNET_ERRORS, corruption_error
from bmfl_lab.metrics.statistics import Interval, crossed_mean
from bmfl_lab.models.protocols import Classifier
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import progress, rng

NORMALISER = "divided by AlexNet's published errors on ImageNet-C (Hendrycks & Dietterich 2019)"
OTHER_IMAGES = (
    "not ImageNet: the ratio orders models here, its level does not compare with published ones"
)
ALL = "15 corruptions"
HIGHEST = float(np.mean([1 / ALEXNET_ERRORS[c] for c in IMAGENET_C]))
"""The mCE of a model that is always wrong."""


def evaluate_corruptions(
    models: Mapping[str, Classifier | Sequence[Classifier]],
    study: Study,
    *,
    n: int = 0,
    corruptions: Sequence[str] = IMAGENET_C,
    severities: Sequence[int] = SEVERITIES,
    baseline: str | None = None,
    seed: int = 0,
) -> OODResult:
    """Apply the corruptions of ImageNet-C to the test images, and compute models' errors and mCE.

    Parameters
    ----------
    models : mapping of str to model or list of models
        Same as in `evaluate_ood`.
    study : Study
        Study whose "test" images are corrupted.
    n : int, default 0
        Number of images, drawn at random; 0 takes all. Each is corrupted 75 times.
    corruptions : sequence of str
        Names of the corruptions; by default all 15. The mCE needs all.
    severities : sequence of int, default (1, 2, 3, 4, 5)
        Severities of each corruption. The mCE needs all.
    baseline : str, optional
        Name of a model whose mCE is subtracted from that of the others.
    seed : int, default 0
        Seed of the corruptions and of the draw of images.

    Returns
    -------
    OODResult
        Rows of `corruption_rows`, and a row ``nan_logits`` per model, seed, corruption and severity
        with NaN logits, which count as wrong.

    Raises
    ------
    ConfigError
        If `n` is negative or above the number of test images; see also `evaluate_ood`.

    References
    ----------
    Hendrycks & Dietterich (2019), Benchmarking neural network robustness to common corruptions and
    perturbations, ICLR, arXiv:1903.12261: corruptions and mCE.
    """
    test = study.set("test")
    require(
        0 <= n <= len(test),
        ConfigError,
        f"0 to {len(test)} test images to corrupt",
        n,
        "0 takes all",
    )
    if n:
        test = test.subset(np.sort(rng(seed, "corrupted images").permutation(len(test))[:n]))
    groups = {k: list(m) if isinstance(m, (list, tuple)) else [m] for k, m in models.items()}
    frames = [
        frame
        for c in progress(list(corruptions), "corruptions evaluated")
        for frame in _one_corruption(groups, study, test, c, severities, seed)
    ]
    per_image = pd.concat(frames, ignore_index=True)
    selection = {
        k: "; ".join(sorted({str(getattr(m, "selection", "none")) for m in g}))
        for k, g in groups.items()
    }
    said = OTHER_IMAGES, partial_note(test), f"{study.kind} fMRI" if study.kind else ""
    notes = "; ".join(t for t in said if t)
    rows = _rows(per_image, selection, notes, baseline)
    return OODResult(rows + _nan_rows(per_image, selection, len(test), notes), per_image)


def _nan_rows(
    per_image: pd.DataFrame, selection: Mapping[str, str], n: int, notes: str
) -> list[MetricRow]:
    bad = per_image[per_image["predicted"] < 0]
    return [
        row
        for (model, seed, shift, severity), part in bad.groupby(
            ["model", "seed", "shift", "severity"], sort=False
        )
        for row in nan_row(
            len(part),
            split="test",
            n=n,
            selection=selection[model],
            model=model,
            seed=int(seed),
            shift=shift,
            severity=int(severity),
            notes=notes,
        )
    ]


def _one_corruption(
    groups: Mapping[str, Sequence[Classifier]],
    study: Study,
    test: StimulusSet,
    name: str,
    severities: Sequence[int],
    seed: int,
) -> Iterator[pd.DataFrame]:
    """Yield the per-image tables of one corruption, whose severities are read in one pass."""
    parts = [shifted(test, name, s, seed) for s in severities]
    joined = StimulusSet(
        name=f"{test.name}/{name}",
        ids=np.asarray([f"{i}|{s}" for s in severities for i in test.ids], dtype=object),
        read=lambda i: parts[i // len(test)].image(i % len(test)),
        digest_of=lambda i: parts[i // len(test)].digest_of(i % len(test)),
        labels=np.tile(np.asarray(test.labels), len(parts)),
        class_names=test.class_names,
    )
    read_once([m for group in groups.values() for m in group], joined)
    for model, group in groups.items():
        for k, one in enumerate(group):
            logits = masked_logits(one, joined, study)
            for part, severity, rows in zip(parts, severities, np.split(logits, len(parts))):
                place = {"split": "test", "shift": name, "severity": int(severity)}
                yield image_frame(model, int(getattr(one, "seed", k)), rows, part, place)


def corruption_rows(result: OODResult, *, baseline: str | None = None) -> list[MetricRow]:
    """Return the corruption errors and the mCE of each model.

    Parameters
    ----------
    result : OODResult
        Result under artificial shifts with the names of ImageNet-C, or on image sets with names
        such as "fog-3", which the study "imagenet" gives to the sets of ImageNet-C.
    baseline : str, optional
        Name of a model whose mCE is subtracted from that of the others.

    Returns
    -------
    list of MetricRow
        ``corruption_error`` per model and corruption (error divided by that of AlexNet, mean over
        severities), ``mce``, its mean over corruptions (1 for AlexNet), and ``mce_difference`` to
        the baseline, negative where the model errs less. A corruption without all severities has no
        ``corruption_error``. The ``mce`` is then None and its notes name what is missing, because
        the mean over a part of the corruptions cannot be compared.

    Raises
    ------
    ConfigError
        If the baseline is unknown.
    DataError
        If there is no corruption, or its severities were evaluated on different images.

    References
    ----------
    Hendrycks & Dietterich (2019), Benchmarking neural network robustness to common corruptions and
    perturbations, ICLR.
    """
    selection = {r.model: r.selection for r in reversed(result.rows)}
    # notes of all rows, because each set of ImageNet-C can lack other classes
    notes = "; ".join(
        dict.fromkeys(
            t for r in result.rows if r.name == "accuracy" for t in r.notes.split("; ") if t
        )
    )
    return _rows(result.per_image, selection, notes, baseline)


def _rows(
    per_image: pd.DataFrame,
    selection: Mapping[str, str],
    notes: str,
    baseline: str | None,
) -> list[MetricRow]:
    """Return corruption errors and mCE of each model, and differences of mCE to the baseline."""
    tables = _error_tables(per_image)
    if baseline is not None:
        require_known(baseline, tables, ConfigError, f"a baseline among {tuple(tables)}")
    make = functools.partial(_row, selection, notes)
    drawn = shift_note("frost") if per_image["shift"].eq("frost").any() else ""
    rows: list[MetricRow] = []
    whole: dict[str, np.ndarray] = {}
    for model, errors in tables.items():
        ratios = {
            c: np.mean(list(by_severity.values()), axis=0) / ALEXNET_ERRORS[c]
            for c, by_severity in errors.items()
            if set(by_severity) == set(SEVERITIES)
        }
        for c, ratio in ratios.items():
            said = "; ".join([NORMALISER, *([drawn] if drawn and c == "frost" else [])])
            found = _ratio(ratio, 1 / ALEXNET_ERRORS[c])
            rows.append(make("corruption_error", model, found, c, said))
        try:
            corruption_error(
                {c: {s: float(e.mean()) for s, e in by.items()} for c, by in errors.items()}
            )
        except DataError as error:
            undefined = Interval(None, None, None, 0, 0, 0.95, "none")
            rows.append(make("mce", model, undefined, ALL, f"refused: {error}"))
            continue
        whole[model] = np.mean([ratios[c] for c in IMAGENET_C], axis=0)
        said = "; ".join([NORMALISER, *([drawn] if drawn else [])])
        rows.append(make("mce", model, _ratio(whole[model], HIGHEST), ALL, said))
    for model in whole if baseline in whole else ():
        if model != baseline:
            found = _difference(whole, model, baseline)
            note = "negative where the first errs less; unadjusted" + (f"; {drawn}" * bool(drawn))
            rows.append(make("mce_difference", model, found, ALL, note, baseline))
    return rows


def _row(
    selection: Mapping[str, str],
    notes: str,
    name: str,
    model: str,
    found: Interval,
    shift: str,
    note: str,
    reference: str = "",
) -> MetricRow:
    return MetricRow(
        name,
        found.value,
        "ratio to AlexNet's error",
        "test",
        found.n,
        selection.get(model, "none"),
        model=model,
        reference=reference,
        shift=shift,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.method,
        n_seeds=found.n_seeds,
        notes="; ".join(t for t in (note, notes) if t),
    )


def _ratio(values: np.ndarray, highest: float, kind: str = "correct") -> Interval:
    """Return the mean of ratios with its interval; `highest` is that of a model always wrong."""
    found = crossed_mean(values / highest, kind=kind)[0]
    ends = [v if v is None else highest * v for v in (found.value, found.low, found.high)]
    return Interval(*ends, found.n, found.n_seeds, found.level, found.method)


def _difference(whole: Mapping[str, np.ndarray], model: str, baseline: str) -> Interval:
    a, b = whole[model], whole[baseline]
    require(
        a.shape == b.shape,
        DataError,
        f"{model!r} and {baseline!r} on the same images and seeds",
        f"(n_seeds, n_stimuli) {a.shape} and {b.shape}",
        "train both with the same seeds, and evaluate them together",
    )
    return _ratio(a - b, HIGHEST, "difference")


def _error_tables(per_image: pd.DataFrame) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """Return errors (n_seeds, n_stimuli) by model, corruption and severity."""
    named = re.compile(rf"({'|'.join(IMAGENET_C)})-([1-5])")
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    ids: dict[str, list[str]] = {}
    groups = per_image.groupby(["model", "split", "shift", "severity"], sort=False, dropna=False)
    for (model, split, shift, severity), part in groups:
        native = named.fullmatch(split) if not shift else None
        if shift not in IMAGENET_C and native is None:
            continue
        corruption, level = (native[1], int(native[2])) if native else (shift, int(severity))
        wide = part.pivot(index="seed", columns="id", values="correct")
        require(
            ids.setdefault(corruption, list(wide.columns)) == list(wide.columns),
            DataError,
            f"the same images under every severity of {corruption}",
            "other images under some of them",
            "evaluate all corruptions of the same images in one call of evaluate_ood",
        )
        found.setdefault(model, {}).setdefault(corruption, {})[level] = 1 - wide.to_numpy(
            dtype=np.float64
        )
    require(
        found,
        DataError,
        "at least one corruption of ImageNet-C",
        "none",
        f"evaluate some of {IMAGENET_C}",
    )
    return found

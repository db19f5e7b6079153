"""Compare how much each region of the predicted responses matters with control vertices.

A region is left out, or left alone, by training without other vertices or by lesions at inference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bmfl_lab.config import require_list
from bmfl_lab.data import Atlas, StimulusSet, Study
from bmfl_lab.data.vertices import control_vertices
from bmfl_lab.errors import ConfigError, require
from bmfl_lab.evaluation.ood import evaluation_sets, known_names, nan_row
from bmfl_lab.metrics.classification import correct, n_nan
from bmfl_lab.metrics.statistics import (
    Interval,
    accuracy_interval,
    crossed_mean,
    holm,
    verdict,
)
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.models.protocols import LesionableClassifier
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import progress, rng

MODES = {
    "only": "trained with this region's vertices alone",
    "left_out": "trained without this region's vertices",
    "lesioned": "trained with all vertices, this region's silenced at inference",
    "kept": "trained with all vertices, all but this region's silenced at inference",
}
LESIONS = ("lesioned", "kept")
"""Modes that lesion one trained model and need no further training."""
CONTROLS = {
    "random_vertices": "as many vertices at random outside the region, hemisphere by hemisphere",
    "ceiling_matched": "as many vertices outside the region with nearly the same noise ceiling",
}
PART = ", part of the region"
"""Follows a control's name where a region is too large to be compared as a whole."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """Describe a model that must be trained for an ablation.

    Parameters
    ----------
    name : str
        Name in progress messages and tables.
    mask : ndarray of bool, shape (n_vertices,)
        Vertices that the model reads.
    seed : int
        Training seed.
    """

    name: str
    mask: np.ndarray
    seed: int


Correct = Mapping[tuple, Mapping[tuple, np.ndarray]]
"""Correctness (n_seeds, n_stimuli) by (split, shift, severity) and (mode, control, region)."""
Train = Callable[[Sequence[Wanted]], Sequence[LesionableClassifier]]


@dataclass(frozen=True)
class AblationResult:
    """Hold the accuracies of an ablation, and how much each region matters.

    Parameters
    ----------
    rows : list of MetricRow
        - ``accuracy`` of the intact model, and of each mode, region and control, per image set and
          over seeds.
        - ``region_effect``: how much more the region matters than its control, as a difference of
          accuracies with an interval. Its ``notes`` contain the verdict.
        - ``p_holm``: p value of the effect, adjusted over the regions and image sets of one mode
          and control.
        - ``nan_logits`` per model, image set and seed with NaN logits, which count as wrong; the
          number is the sum over draws of control vertices.
    per_image : pandas.DataFrame
        One row per image, with the columns ``mode, control, region, seed, split, shift, severity,
        id, correct``. ``control`` is "" for the region itself. For a control, ``correct`` is the
        mean over draws. A region that is larger than what lies outside has, for each control, also
        the rows of the drawn parts of it, with `PART` after the control's name.
    """

    rows: list[MetricRow]
    per_image: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return effect, interval, adjusted p and verdict per mode, control, region and set."""
        return pd.DataFrame(
            [
                {
                    "mode": r.model,
                    "control": r.reference,
                    "region": r.roi,
                    "split": r.split,
                    "shift": r.shift,
                    "effect": r.value,
                    "low": r.ci_low,
                    "high": r.ci_high,
                    "n": r.n,
                    "n_seeds": r.n_seeds,
                    "p_holm": r.p_adjusted,
                    "verdict": r.notes,
                }
                for r in self.rows
                if r.name == "region_effect"
            ]
        )

    def named(
        self, mode: str, control: str = "random_vertices", *, level: float = 0.05
    ) -> tuple[str, ...]:
        """Return the regions with a positive effect and adjusted p <= `level` on any image set."""
        table = self.table()
        mine = table[(table["mode"] == mode) & (table["control"] == control)]
        kept = mine[(mine["effect"] > 0) & (mine["p_holm"] <= level)]
        return tuple(dict.fromkeys(kept["region"]))


def ablate_regions(
    study: Study,
    train: Train,
    atlas: Atlas,
    *,
    regions: Sequence[str] | None = None,
    modes: Sequence[str] = tuple(MODES),
    controls: Sequence[str] = ("random_vertices",),
    seeds: Sequence[int] = (0, 1, 2),
    n_draws: int = 1,
    ceiling: np.ndarray | None = None,
    lesion: str = "mean",
    shifts: Sequence[tuple[str, int]] | None = None,
    sets: Sequence[str] | None = None,
    seed: int = 0,
) -> AblationResult:
    """Measure how much each region matters for the accuracy, compared with control vertices.

    Parameters
    ----------
    study : Study
        Study whose image sets and shifts are evaluated.
    train : callable
        ``train([Wanted, ...]) -> models`` returns one model per description, e.g.
        `bmfl_lab.training.ablation_trainer`. Each model has ``logits(stimuli, lesion=None)``.
    atlas : Atlas
        Atlas of the responses.
    regions : sequence of str, optional
        ROIs and groups; by default all ROIs of the atlas, and the groups "LVC" and "HVC" if they
        have vertices.
    modes : sequence of str
        Ways to test a region, among `MODES`; by default all.
    controls : sequence of str, default ("random_vertices",)
        Kinds of control vertices, among `CONTROLS`.
    seeds : sequence of int, default (0, 1, 2)
        Training seeds. Control vertices are drawn anew for each seed, so that the interval over
        seeds includes the variation between draws.
    n_draws : int, default 1
        Number of draws of control vertices per seed, region and control. It is multiplied by four
        for the modes in `LESIONS`, which need no training.
    ceiling : ndarray, shape (n_vertices,), optional
        Noise ceiling; needed for the control "ceiling_matched".
    lesion : {"mean", "zero", "resample"}, default "mean"
        Kind of the lesions.
    shifts, sets
        Same as in `evaluation_sets`.
    seed : int, default 0
        Seed of the draws, shifts and lesions.

    Returns
    -------
    AblationResult

    Raises
    ------
    ConfigError
        If a mode, control or region is unknown, or there is no seed.
    DataError
        If a region is the whole cortex, or the ceiling has another number of vertices.

    Notes
    -----
    ``region_effect`` is positive where the region matters more than its control. For "only" and
    "kept", where the model reads nothing but the region, it is accuracy(region) -
    accuracy(control). For "left_out" and "lesioned" it is accuracy(control) - accuracy(region). It
    is tested with seeds and images as crossed random factors (`crossed_mean`). A region and its
    control have no vertex in common and are of one size: where a region is larger than what lies
    outside, parts of it are compared, see `bmfl_lab.data.vertices.control_vertices`.
    """
    names = _regions(atlas, regions)
    modes = known_names(modes, MODES, "modes")
    controls = known_names(controls, CONTROLS, "controls")
    seeds = require_list("seeds", seeds, int)
    require(
        n_draws >= 1 and ("ceiling_matched" not in controls or ceiling is not None),
        ConfigError,
        "at least one draw, and a ceiling for 'ceiling_matched'",
        f"{n_draws} draws, ceiling {'missing' if ceiling is None else 'given'}",
        "pass n_draws=1 or more, and ceiling=subject.noise_ceiling (or leave 'ceiling_matched' out "
        "of `controls`)",
    )
    masks = {name: atlas.select(name) for name in names}
    cells = _cells(atlas, masks, modes, controls, seeds, n_draws, ceiling, seed)
    models = _train(train, cells, seeds, atlas.n_vertices)
    correct_of: dict[tuple, dict[tuple, np.ndarray]] = {}
    places, bad_of = {}, {}
    for stimuli, split, shift, severity in progress(
        evaluation_sets(study, shifts=shifts, sets=sets, seed=seed), "image sets evaluated"
    ):
        place = (split, shift, severity)
        places[place] = stimuli
        correct_of[place], bad_of[place] = _evaluate(models, cells, stimuli, seeds, lesion, seed)
    selection = "; ".join(sorted({str(getattr(m, "selection", "none")) for m in models.values()}))
    notes = f"{study.kind} fMRI" if study.kind else ""
    rows = _accuracy_rows(correct_of, selection, notes)
    rows += _effect_rows(correct_of, cells, modes, controls, selection, notes)
    for place, bad in bad_of.items():
        rows += _nan_rows(bad, place, len(places[place]), selection, notes)
    return AblationResult(rows, _frame(correct_of, places, seeds))


def _regions(atlas: Atlas, regions: Sequence[str] | None) -> tuple[str, ...]:
    if regions:
        return tuple(dict.fromkeys(regions))
    groups = [g for g in ("LVC", "HVC") if any(r in atlas.present for r in atlas.groups.get(g, ()))]
    return (*groups, *atlas.present)


def _cells(
    atlas: Atlas,
    masks: Mapping[str, np.ndarray],
    modes: Sequence[str],
    controls: Sequence[str],
    seeds: Sequence[int],
    n_draws: int,
    ceiling: np.ndarray | None,
    seed: int,
) -> dict[tuple, np.ndarray]:
    """Return the vertices of each (mode, control, region, seed, draw)."""
    cells: dict[tuple, np.ndarray] = {}
    for mode in modes:
        for region, mask in masks.items():
            for s in seeds:
                cells[(mode, "", region, s, 0)] = mask
                for control in controls:
                    for draw in range(n_draws * (4 if mode in LESIONS else 1)):
                        random = rng(seed, "ablation", control, region, s, draw)
                        matched = ceiling if control == "ceiling_matched" else None
                        own, other = control_vertices(atlas, mask, random, ceiling=matched)
                        cells[(mode, control, region, s, draw)] = other
                        if not np.array_equal(own, mask):
                            cells[(mode, control + PART, region, s, draw)] = own
    return cells


def _train(
    train: Train, cells: Mapping[tuple, np.ndarray], seeds: Sequence[int], n_vertices: int
) -> dict[tuple, LesionableClassifier]:
    """Return the intact models and those of the modes that train, by the keys of `cells`."""
    wanted = {
        ("intact", "", "", s, 0): Wanted("intact", np.ones(n_vertices, bool), s) for s in seeds
    }
    for key, mask in cells.items():
        if key[0] not in LESIONS:
            name = f"{key[0]} {key[2]}" + (f", {key[1]} {key[4]}" if key[1] else "")
            wanted[key] = Wanted(name, mask if key[0] == "only" else ~mask, key[3])
    models = list(train(list(wanted.values())))
    require(
        len(models) == len(wanted),
        ConfigError,
        f"{len(wanted)} models",
        len(models),
        "let `train` return one model per description",
    )
    return dict(zip(wanted, models))


def _evaluate(
    models: Mapping[tuple, LesionableClassifier],
    cells: Mapping[tuple, np.ndarray],
    stimuli: StimulusSet,
    seeds: Sequence[int],
    lesion: str,
    seed: int,
) -> tuple[dict[tuple, np.ndarray], dict[tuple, int]]:
    """Evaluate all models and lesions on one image set.

    Returns
    -------
    correct : dict of (mode, control, region) to ndarray, shape (n_seeds, n_stimuli)
        Correctness, averaged over draws.
    n_nan : dict of (mode, control, region, seed) to int
        Number of images with NaN logits, summed over draws.
    """
    found, bad, labels = {}, {}, np.asarray(stimuli.labels)
    for (mode, control, region, s, draw), given in [*models.items(), *cells.items()]:
        if isinstance(given, np.ndarray):
            if mode not in LESIONS:
                continue
            cut = Lesion(given if mode == "lesioned" else ~given, lesion, seed=seed + draw)
            logits = np.asarray(models[("intact", "", "", s, 0)].logits(stimuli, lesion=cut))
        else:
            logits = np.asarray(given.logits(stimuli))
        found.setdefault((mode, control, region), [[] for _ in seeds])[list(seeds).index(s)].append(
            correct(logits, labels)
        )
        bad[(mode, control, region, s)] = bad.get((mode, control, region, s), 0) + n_nan(logits)
    return {
        key: np.stack([np.mean(d, axis=0) for d in by_seed]) for key, by_seed in found.items()
    }, bad


def _nan_rows(
    bad: Mapping[tuple, int], place: tuple, n: int, selection: str, notes: str
) -> list[MetricRow]:
    split, shift, severity = place
    return [
        row
        for (mode, control, region, s), count in bad.items()
        for row in nan_row(
            count,
            split=split,
            n=n,
            selection=selection,
            shift=shift,
            severity=severity,
            seed=s,
            model=mode + (f", {control}" if control else ""),
            roi=region,
            notes=notes,
        )
    ]


def _accuracy_rows(correct_of: Correct, selection: str, notes: str) -> list[MetricRow]:
    rows = []
    for (split, shift, severity), found in correct_of.items():
        for (mode, control, region), right in found.items():
            shown = accuracy_interval(right)
            rows.append(
                MetricRow(
                    "accuracy",
                    shown.value,
                    "fraction",
                    split,
                    shown.n,
                    selection,
                    shift=shift,
                    severity=severity,
                    model=mode + (f", {control}" if control else ""),
                    roi=region,
                    n_seeds=len(right),
                    ci_low=shown.low,
                    ci_high=shown.high,
                    interval=shown.method,
                    notes=notes,
                )
            )
    return rows


def _effect_rows(
    correct_of: Correct,
    cells: Mapping[tuple, np.ndarray],
    modes: Sequence[str],
    controls: Sequence[str],
    selection: str,
    notes: str,
) -> list[MetricRow]:
    """Return effects with their p values, adjusted over all modes, controls, regions and sets."""
    effects, rows = {}, []
    size = {key[:3]: int(mask.sum()) for key, mask in cells.items()}
    names = tuple(dict.fromkeys(region for _, _, region in size))
    for mode, control in itertools.product(modes, controls):
        for place, found in correct_of.items():
            for region in names:
                own = found.get((mode, control + PART, region), found[(mode, "", region)])
                difference = own - found[(mode, control, region)]
                effects[(mode, control, place, region)] = crossed_mean(
                    difference if mode in ("only", "kept") else -difference, kind="difference"
                )
    adjusted = map(float, holm([p for _, p in effects.values()]))
    for (mode, control, place, region), p in zip(effects, adjusted):
        (split, shift, severity), (interval, alone) = place, effects[(mode, control, place, region)]
        whole, compared = size[(mode, "", region)], size[(mode, control, region)]
        part = "" if whole == compared else f"{compared} of {whole} vertices of "
        where = split if not shift else shift + (f" {severity}" if severity else "")
        said = _verdict(mode, control, part + region, where, interval, p)
        common = {
            "split": split,
            "n": interval.n,
            "selection": selection,
            "shift": shift,
            "severity": severity,
            "model": mode,
            "reference": control,
            "p": alone,
            "p_adjusted": p,
            "family": "all modes, controls, regions and image sets",
            "n_compared": len(effects),
            "roi": region,
            "n_seeds": interval.n_seeds,
        }
        rows += [
            MetricRow(
                "region_effect",
                interval.value,
                unit="fraction",
                ci_low=interval.low,
                ci_high=interval.high,
                interval=interval.method,
                notes=f"{said} {notes}".strip(),
                **common,
            ),
            MetricRow("p_holm", p, unit="p", notes=notes, **common),
        ]
    return rows


def _verdict(mode: str, control: str, region: str, where: str, interval: Interval, p: float) -> str:
    other = control.replace("_", " ")
    pair = {
        "only": (f"{region} alone", f"{other} alone"),
        "left_out": (f"leaving out {other}", f"leaving out {region}"),
        "lesioned": (f"lesioning {other}", f"lesioning {region}"),
        "kept": (f"only {region} left", f"only {other} left"),
    }[mode]
    return verdict(interval, p, first=pair[0], second=pair[1], where=where)


def _frame(
    correct_of: Correct, places: Mapping[tuple, StimulusSet], seeds: Sequence[int]
) -> pd.DataFrame:
    parts = []
    for (split, shift, severity), found in correct_of.items():
        ids = np.asarray(places[(split, shift, severity)].ids, dtype=object)
        for (mode, control, region), right in found.items():
            parts.append(
                pd.DataFrame(
                    {
                        "mode": mode,
                        "control": control,
                        "region": region,
                        "seed": np.repeat(np.asarray(seeds), len(ids)),
                        "split": split,
                        "shift": shift,
                        "severity": severity,
                        "id": np.tile(ids, len(right)),
                        "correct": right.ravel().astype(np.float32),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)

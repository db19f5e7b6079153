"""Find which regions carry the effect: retrained or lesioned, each beside its control vertices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.study import Study
from bmfl_lab.data.vertices import ceiling_matched_vertices, random_vertices
from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.evaluation.ood import evaluation_sets, nan_row
from bmfl_lab.metrics.classification import correct, n_nan
from bmfl_lab.metrics.statistics import Interval, bootstrap_mean, crossed_mean, holm, verdict
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import progress, rng

MODES = {
    "only": "trained with this region's vertices alone",
    "left_out": "trained without this region's vertices",
    "lesioned": "trained with all vertices, this region's silenced at inference",
    "kept": "trained with all vertices, all but this region's silenced at inference",
}
LESIONS = ("lesioned", "kept")
"""Modes that need no training of their own."""
CONTROLS = {
    "random_vertices": "as many vertices at random outside the region, hemisphere by hemisphere",
    "ceiling_matched": "as many vertices outside the region with nearly the same noise ceiling",
}


@dataclass(frozen=True, eq=False)
class Wanted:
    """A model that an ablation asks for.

    Parameters
    ----------
    name : str
        What it is, for progress and tables.
    mask : ndarray of bool, shape (n_vertices,)
        Vertices that it may read.
    seed : int
        Training seed.
    """

    name: str
    mask: np.ndarray
    seed: int


Train = Callable[[Sequence[Wanted]], Sequence[Any]]


@dataclass(frozen=True)
class AblationResult:
    """What `ablate_regions` found.

    Parameters
    ----------
    rows : list of MetricRow
        ``accuracy`` of each mode, region and set, over seeds, and of the intact model.
        ``region_effect``: how much more the region matters than its control, in accuracy, with its
        interval; ``notes`` holds the verdict; and its ``p_holm``, adjusted over the regions and
        sets of one mode and control. ``nan_logits``, one row per model, set and seed with NaN
        logits, summed over draws: they count as wrong.
    per_image : pandas.DataFrame
        ``mode, control, region, seed, split, shift, severity, id, correct``; control is "" for the
        region itself and correct a mean over draws for a control.
    """

    rows: list[MetricRow]
    per_image: Any

    def table(self):
        """Return effect, interval, adjusted p and verdict per mode, control, region and set."""
        import pandas as pd

        found = []
        for r in self.rows:
            if r.name == "region_effect":
                found.append(
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
                )
        return pd.DataFrame(found)

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
    n_boot: int = 1000,
    seed: int = 0,
) -> AblationResult:
    """Ask of each region whether it carries the effect, and more than other vertices would.

    Parameters
    ----------
    study : Study
        Evaluated in and out of distribution.
    train : callable
        ``train([Wanted, ...]) -> models``, one a request, e.g.
        `bmfl_lab.training.ablation_trainer`. Each model has ``logits(stimuli, lesion=None)``.
    atlas : Atlas
        Of the responses.
    regions : sequence of str, optional
        ROIs and groups; by default every ROI that exists here, and "LVC" and "HVC" where they do.
    modes : sequence of str
        Among `MODES`; "retrained" stands for "only" and "left_out".
    controls : sequence of str
        Among `CONTROLS`.
    seeds : sequence of int
        Training seeds. Each has its own draws of control vertices, so that the interval over seeds
        covers them too.
    n_draws : int, default 1
        Control draws per seed, region and control; four times as many for `LESIONS`, which need
        no training.
    ceiling : ndarray, shape (n_vertices,), optional
        Noise ceiling, for "ceiling_matched".
    lesion : "mean", "zero" or "resample"
        Kind of lesion at inference.
    shifts, sets
        As `evaluation_sets`.
    n_boot, seed
        Bootstrap resamples of the accuracies; seed of draws, shifts and lesions.

    Returns
    -------
    AblationResult

    Raises
    ------
    ConfigError
        If a mode, control or region is unknown, or there is no seed.
    DataError
        If a region is the whole cortex, or the ceiling does not fit.

    Notes
    -----
    ``region_effect`` is accuracy(region) - accuracy(control) for "only" and "kept", which let the
    region alone speak, and accuracy(control) - accuracy(region) for the other two: positive where
    the region matters more. It is tested over seeds and images as crossed random factors
    (`crossed_mean`).
    """
    names, modes = _regions(atlas, regions), _modes(modes)
    _check(controls, CONTROLS, "controls")
    if not seeds or n_draws < 1 or ("ceiling_matched" in controls and ceiling is None):
        given = "missing" if ceiling is None else "given"
        got = f"{len(seeds)} seeds, {n_draws} draws, ceiling {given}"
        raise ConfigError(
            message(
                "at least one seed and draw, and a ceiling for 'ceiling_matched'", got, "add it"
            )
        )
    masks = {name: atlas.select(name) for name in names}
    cells = _cells(atlas, masks, modes, controls, seeds, n_draws, ceiling, seed)
    models = _train(train, cells, seeds, atlas.n_vertices)
    correct_of: dict[tuple, dict[tuple, np.ndarray]] = {}
    bad_of: dict[tuple, dict[tuple, int]] = {}
    places = {}
    for stimuli, split, shift, severity in progress(
        evaluation_sets(study, shifts=shifts, sets=sets, seed=seed), "image sets evaluated"
    ):
        place = (split, shift, severity)
        places[place] = stimuli
        correct_of[place], bad_of[place] = _evaluate(models, cells, stimuli, seeds, lesion, seed)
    selection = "; ".join(sorted({str(getattr(m, "selection", "none")) for m in models.values()}))
    notes = f"{study.kind} fMRI" if study.kind else ""
    rows = _accuracy_rows(correct_of, selection, notes, n_boot, seed)
    rows += _effect_rows(correct_of, names, modes, controls, selection, notes)
    for place, bad in bad_of.items():
        rows += _nan_rows(bad, place, len(places[place]), selection, notes)
    return AblationResult(rows, _frame(correct_of, places, seeds))


def _check(wanted: Sequence[str], known: Mapping[str, str], what: str) -> None:
    for name in wanted:
        if name not in known:
            raise ConfigError(
                message(f"{what} among {tuple(known)}", repr(name), nearest(name, list(known)))
            )


def _modes(modes: Sequence[str]) -> tuple[str, ...]:
    found = [
        m for mode in modes for m in (("only", "left_out") if mode == "retrained" else (mode,))
    ]
    _check(found, MODES, "modes")
    if not found:
        raise ConfigError(message("at least one mode", "none", f"choose among {tuple(MODES)}"))
    return tuple(dict.fromkeys(found))


def _regions(atlas: Atlas, regions: Sequence[str] | None) -> tuple[str, ...]:
    if regions:
        return tuple(dict.fromkeys(regions))
    groups = [g for g in ("LVC", "HVC") if any(r in atlas.present for r in atlas.groups.get(g, ()))]
    return (*groups, *atlas.present)


def _cells(atlas, masks, modes, controls, seeds, n_draws, ceiling, seed) -> dict[tuple, np.ndarray]:
    """Return the vertices of each (mode, control, region, seed, draw)."""
    cells: dict[tuple, np.ndarray] = {}
    for mode in modes:
        for region, mask in masks.items():
            for s in seeds:
                cells[(mode, "", region, s, 0)] = mask
                for control in controls:
                    for draw in range(n_draws * (4 if mode in LESIONS else 1)):
                        random = rng(seed, "ablation", control, region, s, draw)
                        chosen = (
                            random_vertices(atlas, mask, random)
                            if control == "random_vertices"
                            else ceiling_matched_vertices(atlas, mask, ceiling, random)
                        )
                        cells[(mode, control, region, s, draw)] = chosen
    return cells


def _train(
    train: Train, cells: Mapping[tuple, np.ndarray], seeds: Sequence[int], n_vertices: int
) -> dict[tuple, Any]:
    everything = np.ones(n_vertices, dtype=bool)
    wanted = {("intact", "", "", s, 0): Wanted("intact", everything, s) for s in seeds}
    for key, mask in cells.items():
        if key[0] not in LESIONS:
            name = f"{key[0]} {key[2]}" + (f", {key[1]} {key[4]}" if key[1] else "")
            wanted[key] = Wanted(name, mask if key[0] == "only" else ~mask, key[3])
    models = list(train(list(wanted.values())))
    if len(models) != len(wanted):
        raise ConfigError(
            message(f"{len(wanted)} models", f"{len(models)}", "let `train` return one a request")
        )
    return dict(zip(wanted, models))


def _evaluate(
    models, cells, stimuli, seeds, lesion, seed
) -> tuple[dict[tuple, np.ndarray], dict[tuple, int]]:
    """Return correctness (n_seeds, n_stimuli) by (mode, control, region), averaged over draws.

    Second come counts of NaN logits by (mode, control, region, seed), summed over draws.
    """
    found: dict[tuple, list[list[np.ndarray]]] = {}
    bad: dict[tuple, int] = {}
    labels = np.asarray(stimuli.labels)
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


def _accuracy_rows(correct_of, selection, notes, n_boot, seed) -> list[MetricRow]:
    rows = []
    for (split, shift, severity), found in correct_of.items():
        for (mode, control, region), right in found.items():
            shown = bootstrap_mean(right if len(right) > 1 else right[0], n_boot=n_boot, seed=seed)
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


def _effect_rows(correct_of, names, modes, controls, selection, notes) -> list[MetricRow]:
    rows: list[MetricRow] = []
    for mode in modes:
        for control in controls:
            effects: dict[tuple, tuple[Interval, float]] = {}
            for place, found in correct_of.items():
                for region in names:
                    difference = found[(mode, "", region)] - found[(mode, control, region)]
                    effects[(place, region)] = crossed_mean(
                        difference if mode in ("only", "kept") else -difference
                    )
            adjusted = dict(zip(effects, holm([p for _, p in effects.values()])))
            for ((split, shift, severity), region), (interval, alone) in effects.items():
                p = float(adjusted[((split, shift, severity), region)])
                said = _verdict(mode, control, region, interval, p)
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
                    "family": "regions and image sets",
                    "n_compared": len(effects),
                    "roi": region,
                    "n_seeds": interval.n_seeds,
                    "notes": f"{said} {notes}".strip(),
                }
                ends = {
                    "ci_low": interval.low,
                    "ci_high": interval.high,
                    "interval": interval.method,
                }
                rows.append(
                    MetricRow("region_effect", interval.value, unit="fraction", **ends, **common)
                )
                rows.append(MetricRow("p_holm", p, unit="p", **common))
    return rows


def _verdict(mode: str, control: str, region: str, interval: Interval, p: float) -> str:
    other = control.replace("_", " ")
    pair = {
        "only": (f"{region} alone", f"{other} alone"),
        "left_out": (f"leaving out {other}", f"leaving out {region}"),
        "lesioned": (f"lesioning {other}", f"lesioning {region}"),
        "kept": (f"only {region} left", f"only {other} left"),
    }[mode]
    return verdict(interval, p, first=pair[0], second=pair[1])


def _frame(correct_of, places, seeds):
    import pandas as pd

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

"""How well a brain encoder predicts: per vertex and region, against the noise ceiling."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.metrics.correlation import CHUNK, bootstrap_pearson, near_constant, pearson
from bmfl_lab.metrics.noise import aggregate, ceiling_from_repeats, noise_normalised
from bmfl_lab.records import MetricRow

COUNTS = ("n_undefined", "n_near_constant")
INTERVAL = "95 % bootstrap over stimuli, centred on the value"


class Encoder(Protocol):
    """What can be judged here: anything that predicts responses to images."""

    label: str
    selection: str

    def predict_stimuli(self, stimuli: StimulusSet, **options: Any) -> np.ndarray: ...


@dataclass
class EncodingResult:
    """Encoding accuracy of one encoder.

    Parameters
    ----------
    rows : list of MetricRow
        Per region: ``pearson_r`` and ``pearson_r_median`` (unit r), ``noise_normalised`` and
        ``noise_normalised_median`` (unit per cent), ``n_undefined`` and ``n_near_constant`` (unit
        vertices); ``roi`` is "all", an ROI or a group.
    per_vertex : pandas.DataFrame
        One row a vertex: hemisphere, r, near_constant (r is defined, but measured or predicted
        responses vary so little about their mean that it rests on the last digits), ceiling,
        noise_normalised, ROI memberships joined by "+"; for a simulated subject also r_truth,
        against the noiseless response.
    facts : mapping
        ``n_boot``, and under ``regions`` the mask of each region in `rows`.
    """

    rows: list[MetricRow]
    per_vertex: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)

    def table(self, value: str = "pearson_r") -> pd.DataFrame:
        """Return one metric, one row a region, with interval and counts."""
        found = [r for r in self.rows if r.name == value]
        counts = {n: {r.roi: int(r.value) for r in self.rows if r.name == n} for n in COUNTS}
        return pd.DataFrame(
            {
                "roi": [r.roi for r in found],
                value: [r.value for r in found],
                "ci_low": [r.ci_low for r in found],
                "ci_high": [r.ci_high for r in found],
                **{name: [by_roi[r.roi] for r in found] for name, by_roi in counts.items()},
            }
        )

    def ceilings(self) -> dict[str, float]:
        """Return, per region, the mean correlation that the noise allows: the mean of sqrt(noise ceiling).

        Empty where no ceiling is known.
        """
        best = np.sqrt(np.clip(self.per_vertex["ceiling"].to_numpy(float), 0, 1))
        means = {
            region: best[mask & np.isfinite(best)]
            for region, mask in self.facts.get("regions", {}).items()
        }
        return {region: float(values.mean()) for region, values in means.items() if len(values)}


def regions(atlas: Atlas) -> dict[str, np.ndarray]:
    """Return "all", every ROI and every group that has vertices here, each as a mask; absent ones are left out."""
    found = {"all": np.ones(atlas.n_vertices, bool)}
    found |= {name: np.asarray(atlas.rois[name], bool) for name in atlas.present}
    for group in atlas.groups:
        if any(roi in atlas.present for roi in atlas.groups[group]):
            found[group] = atlas.select(group)
    return found


def ceiling_of(subject: Subject, rows: np.ndarray) -> np.ndarray | None:
    """Return the subject's noise ceiling, or an estimate from its repeats, or None."""
    if subject.noise_ceiling is not None:
        return np.asarray(subject.noise_ceiling, np.float32)
    if subject.repeats is None:
        return None
    return ceiling_from_repeats(subject.repeats[rows])


def evaluate_encoder(
    encoder: Encoder,
    study: Study,
    subject: str | None = None,
    split: str = "test",
    *,
    store: FeatureStore | None = None,
    n_boot: int = 500,
    seed: int = 0,
    device: str = "auto",
    convention: str = "undefined",
) -> EncodingResult:
    """Compare predicted with measured responses.

    Parameters
    ----------
    encoder : object with ``predict_stimuli``, ``label`` and ``selection``
        A trained encoder.
    study : Study
        Source of the subject.
    subject : str, optional
        Default the first one.
    split : str, default "test"
        Whose stimuli.
    store : FeatureStore, optional
        Where tokens are kept; without one they are extracted into memory.
    n_boot, seed
        Resamples of stimuli, and their seed.
    device : {"auto", "cpu", "cuda"}
        Where predictions are computed.
    convention : {"undefined", "challenge"}
        As `bmfl_lab.metrics.noise_normalised`.

    Returns
    -------
    EncodingResult
        Undefined vertices (constant responses or predictions, no ceiling) are NaN, left out of
        means and counted.

    Raises
    ------
    DataError
        If there are fewer than three stimuli or predictions have another number of vertices.
    """
    who = study.subject(subject)
    rows = who.rows(split)
    predicted = encoder.predict_stimuli(who.stimuli.subset(rows), store=store, device=device)
    measured = np.asarray(who.responses[rows], np.float32)
    r = pearson(measured, predicted)
    near = (_near_constant(measured) | _near_constant(predicted)) & np.isfinite(r)
    boot = bootstrap_pearson(measured, predicted, n_boot, seed)
    ceiling = ceiling_of(who, rows)
    normalised = None if ceiling is None else noise_normalised(r, ceiling, convention)
    boot_normalised = (
        None
        if ceiling is None
        else noise_normalised(boot, np.tile(ceiling, (len(boot), 1)), convention)
    )
    shared = {
        "split": split,
        "n": len(rows),
        "selection": encoder.selection,
        "model": encoder.label,
        "subject": who.name,
    }
    found: list[MetricRow] = []
    for roi, mask in regions(who.atlas).items():
        found += region_rows("pearson_r", "r", r[mask], boot[:, mask], roi, who, shared)
        if normalised is not None:
            found += region_rows(
                "noise_normalised",
                "per cent",
                normalised[mask],
                boot_normalised[:, mask],
                roi,
                who,
                shared,
            )
        counts = (np.sum(~np.isfinite(r[mask])), np.sum(near[mask]))
        found += [
            MetricRow(name=n, value=float(c), unit="vertices", roi=roi, **shared)
            for n, c in zip(COUNTS, counts)
        ]
    return EncodingResult(
        found,
        _per_vertex(who, rows, predicted, r, ceiling, normalised).assign(near_constant=near),
        {"n_boot": n_boot, "regions": regions(who.atlas)},
    )


def _near_constant(values: np.ndarray) -> np.ndarray:
    parts = [
        near_constant(values[:, start : start + CHUNK])
        for start in range(0, values.shape[1], CHUNK)
    ]
    return np.concatenate(parts)


def region_rows(
    name: str,
    unit: str,
    values: np.ndarray,
    boot: np.ndarray,
    roi: str,
    who: Subject,
    shared: Mapping[str, Any],
) -> list[MetricRow]:
    """Return mean and median of a region's values (V,), with intervals from their resamples (n_boot, V)."""
    found = aggregate(values)
    notes = f"{found['n']} vertices, {found['n_undefined']} undefined"
    notes += ", simulated responses" if who.simulated else ""
    kept = boot[:, np.isfinite(values)]
    rows = []
    for suffix, key, reduce in (("", "mean", np.nanmean), ("_median", "median", np.nanmedian)):
        low = high = None
        if found["n"] and len(kept):
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", RuntimeWarning
                )  # a resample in which everything is undefined
                over = reduce(kept, 1)
            # resampling repeats stimuli, which moves r and more so its square: the spread counts,
            # not the place
            quantiles = np.nanquantile(over, [0.025, 0.5, 0.975])
            low, high = (float(found[key] + q - quantiles[1]) for q in quantiles[[0, 2]])
        value = found[key] if np.isfinite(found[key]) else None
        rows.append(
            MetricRow(
                name=name + suffix,
                value=value,
                unit=unit,
                roi=roi,
                ci_low=low,
                ci_high=high,
                interval=INTERVAL if low is not None else "",
                notes=notes,
                **shared,
            )
        )
    return rows


def _per_vertex(
    who: Subject,
    rows: np.ndarray,
    predicted: np.ndarray,
    r: np.ndarray,
    ceiling: np.ndarray | None,
    normalised: np.ndarray | None,
) -> pd.DataFrame:
    atlas = who.atlas
    names = np.full(atlas.n_vertices, "", dtype=object)
    for parcel, vertices in atlas.parcels().items():
        names[vertices] = parcel.split(":", 1)[1]
    nothing = np.full(len(r), np.nan, np.float32)
    found = pd.DataFrame(
        {
            "hemisphere": np.where(np.asarray(atlas.hemisphere) == 0, "left", "right"),
            "rois": names,
            "r": r,
            "ceiling": nothing if ceiling is None else ceiling,
            "noise_normalised": nothing if normalised is None else normalised,
        }
    )
    if "noiseless" in who.truth:
        found["r_truth"] = pearson(np.asarray(who.truth["noiseless"])[rows], predicted)
    return found

"""Brain-likeness scores as metric rows: with n, interval and selection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import DataError, message
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.records import MetricRow

if TYPE_CHECKING:
    from bmfl_lab.evaluation.decoding import Identification
    from bmfl_lab.evaluation.similarity import ScoreTest
    from bmfl_lab.evaluation.synthesis import Synthesis

INTERVAL = "95 % percentile bootstrap over stimuli"


def encoding_rows(
    predicted: Mapping[str, np.ndarray],
    measured: np.ndarray,
    atlas: Atlas,
    *,
    model: str,
    subject: str,
    split: str = "test",
    selection: str = "penalty by cross-validation within training stimuli",
    rois: Sequence[str] | None = None,
    n_boot: int = 500,
    seed: int = 0,
    notes: str = "",
) -> list[MetricRow]:
    """Encoding score of each layer and ROI.

    Parameters
    ----------
    predicted : mapping of str to ndarray, shape (n_test, n_vertices)
        From `encoding_predictions`.
    measured : ndarray, shape (n_test, n_vertices)
        Responses to the same stimuli.
    atlas : Atlas
        Of the vertices.
    model, subject, split, selection, notes : str
        For every row.
    rois : sequence of str, optional
        All that are present by default.
    n_boot, seed
        Of the interval.

    Returns
    -------
    list of MetricRow
        ``encoding_r``: mean r over the ROI's defined vertices; None where there is none.

    Raises
    ------
    DataError
        If predictions and responses differ in shape.
    """
    rows = []
    for layer, p in predicted.items():
        r = np.asarray(pearson(measured, p))
        resampled = bootstrap_pearson(measured, p, n_boot=n_boot, seed=seed)
        for roi in rois or atlas.present:
            kept = atlas.select(roi) & np.isfinite(r)
            value = float(r[kept].mean()) if kept.any() else None
            low, high = (
                np.nanquantile(resampled[:, kept].mean(axis=1), [0.025, 0.975])
                if kept.any()
                else (None, None)
            )
            rows.append(
                MetricRow(
                    "encoding_r",
                    value,
                    unit="r",
                    split=split,
                    n=len(measured),
                    selection=selection,
                    model=model,
                    subject=subject,
                    roi=roi,
                    layer=layer,
                    ci_low=_number(low),
                    ci_high=_number(high),
                    interval=INTERVAL if kept.any() else "",
                    notes=notes,
                )
            )
    return rows


def _number(value) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def rsa_rows(
    table: pd.DataFrame,
    *,
    model: str,
    split: str = "test",
    selection: str = "none",
    intervals: Mapping[tuple[str, str, str], tuple[float, float]] | None = None,
    unit: str = "spearman rho",
    notes: str = "",
) -> list[MetricRow]:
    """Rows of `rsa_scores`.

    Parameters
    ----------
    table : DataFrame
        From `rsa_scores`.
    model, split, selection, unit, notes : str
        For every row.
    intervals : mapping of (subject, layer, roi) to (low, high), optional
        From `bmfl_lab.evaluation.rsa_intervals`.

    Returns
    -------
    list of MetricRow
        ``rsa`` and ``p_family``, and ``rsa_ceiling_low`` / ``rsa_ceiling_high`` once an ROI and
        subject.

    Raises
    ------
    DataError
        If the table lacks a column.
    """
    wanted = (
        "subject",
        "layer",
        "roi",
        "value",
        "p_family",
        "ceiling_low",
        "ceiling_high",
        "n_stimuli",
    )
    missing = [c for c in wanted if c not in table.columns]
    if missing:
        raise DataError(
            message("a table of rsa_scores", f"without {missing}", "pass what rsa_scores returned")
        )
    rows = []
    for r in table.itertuples():
        shared = {
            "split": split,
            "n": int(r.n_stimuli),
            "selection": selection,
            "subject": r.subject,
            "roi": r.roi,
            "notes": notes,
        }
        low, high = (intervals or {}).get((r.subject, r.layer, r.roi), (None, None))
        ends = {"ci_low": low, "ci_high": high, "interval": INTERVAL if low is not None else ""}
        rows.append(
            MetricRow(
                "rsa", _number(r.value), unit=unit, model=model, layer=r.layer, **ends, **shared
            )
        )
        rows.append(
            MetricRow(
                "p_family", _number(r.p_family), unit="p", model=model, layer=r.layer, **shared
            )
        )
    for r in table.drop_duplicates(["subject", "roi"]).itertuples():
        shared = {
            "split": split,
            "n": int(r.n_stimuli),
            "selection": "none",
            "subject": r.subject,
            "roi": r.roi,
        }
        for name in ("ceiling_low", "ceiling_high"):
            rows.append(
                MetricRow(
                    f"rsa_{name}", _number(getattr(r, name)), unit=unit, notes=notes, **shared
                )
            )
    return rows


def score_rows(name: str, test: ScoreTest, *, unit_counted: str, **fields) -> list[MetricRow]:
    """Rows of a spatial or temporal score and its permutation test.

    Parameters
    ----------
    name : str
        "spatial_score" or "temporal_score".
    test : ScoreTest
        The score.
    unit_counted : str
        What `test.n` counts ("ROIs", "vertices", "layers").
    **fields
        Of `MetricRow`: ``split``, ``model``, ``subject``, ``selection``, ``notes``.
    """
    shared = {"selection": "none", **fields, "n": test.n}
    shared["notes"] = "; ".join(
        v for v in (f"n counts {unit_counted}", shared.get("notes", "")) if v
    )
    how = f"permutation test, {test.n_permutations} orders"
    return [
        MetricRow(name, test.value, unit="r", interval=how, **shared),
        MetricRow(f"{name}_p", test.p, unit="p", interval=how, **shared),
    ]


def identification_rows(found: Identification, **fields) -> list[MetricRow]:
    """Rows of `identify`: top-1 and two-way accuracy with intervals; chance stands in the notes.

    Parameters
    ----------
    found : Identification
    **fields
        Of `MetricRow`: ``split``, ``model``, ``subject``, ``roi``, ``selection``, ``notes``.
    """
    shared = {"selection": "none", **fields, "n": found.n, "unit": "fraction", "interval": INTERVAL}
    said = shared.pop("notes", "")
    parts = {
        "identification_top1": (found.top1, found.top1_low, found.top1_high, found.top1_chance),
        "identification_two_way": (found.two_way, found.two_way_low, found.two_way_high, 0.5),
    }
    return [
        MetricRow(
            name,
            value,
            ci_low=low,
            ci_high=high,
            **shared,
            notes="; ".join(
                v for v in (f"chance {chance:.4g} of {found.n_candidates} images", said) if v
            ),
        )
        for name, (value, low, high, chance) in parts.items()
    ]


def synthesis_rows(found: Synthesis, **fields) -> list[MetricRow]:
    """Rows of `synthesise_preferred`: mean activity at the start, at the end and by the held-out encoder.

    Parameters
    ----------
    found : Synthesis
    **fields
        Of `MetricRow`: ``model``, ``subject``, ``roi``, ``notes``.
    """
    shared = {
        "split": "synthesised",
        "selection": "none",
        **fields,
        "n": len(found.activity),
        "unit": "z",
    }
    shared["notes"] = "; ".join(v for v in (found.prior, shared.get("notes", "")) if v)
    parts = {
        "synthesis_start": found.start,
        "synthesis_activity": found.activity,
        "synthesis_judged": found.judged,
    }
    return [MetricRow(k, float(np.mean(v)), **shared) for k, v in parts.items() if v is not None]

"""What only a simulated subject can tell: the true response to new images, and the true receptive fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.shifts import shifted
from bmfl_lab.data.study import Study
from bmfl_lab.errors import DataError, message
from bmfl_lab.evaluation.encoding import Encoder, region_rows, regions
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.models.brain_encoder import RetinotopicEncoder
from bmfl_lab.records import MetricRow


def evaluate_encoder_shifts(
    encoder: Encoder,
    study: Study,
    shifts: Iterable[tuple[str, int]],
    subject: str | None = None,
    split: str = "test",
    *,
    sets: Iterable[str] = (),
    seed: int = 0,
    n_boot: int = 500,
    device: str = "auto",
    store: FeatureStore | None = None,
) -> list[MetricRow]:
    """Compare predictions for images out of distribution with what the simulated brain would have answered to them.

    Parameters
    ----------
    shifts : iterable of (str, int)
        Name and severity of made shifts of the subject's own images.
    sets : iterable of str
        Labelled image sets of the study, e.g. its OOD sets, that the subject never saw.
    subject, split, seed, n_boot, device, store
        As `evaluate_encoder`.

    Returns
    -------
    list of MetricRow
        ``truth_r``: Pearson r with the noiseless response, mean and median over vertices, per
        region; for the unshifted images (shift "") and each shift with `split`, for each set with
        its name as the split.

    Raises
    ------
    DataError
        If the study does not know the truth for new images: no measured subject does.
    """
    who = study.subject(subject)
    if "respond" not in who.truth:
        raise DataError(
            message(
                "a simulated subject that can respond to new images",
                f"{who.name!r}, which has no truth for them",
                "use the planted or the demo study; measured responses to shifted images do not exist",
            )
        )
    clean = who.stimuli.subset(who.rows(split))
    asked = [(clean, split, "", None)]
    asked += [
        (shifted(clean, name, severity, seed), split, name, severity) for name, severity in shifts
    ]
    asked += [(study.set(name), name, "", None) for name in sets]
    found: list[MetricRow] = []
    for stimuli, where, shift, severity in asked:
        images = [stimuli.image(i) for i in range(len(stimuli))]
        truth = who.truth["respond"](np.stack(images), np.asarray(stimuli.labels))
        predicted = encoder.predict_stimuli(stimuli, store=store, device=device)
        r, boot = pearson(truth, predicted), bootstrap_pearson(truth, predicted, n_boot, seed)
        shared = {
            "split": where,
            "n": len(stimuli),
            "selection": encoder.selection,
            "model": encoder.label,
            "subject": who.name,
            "shift": shift,
            "severity": severity,
        }
        for roi, mask in regions(who.atlas).items():
            found += region_rows("truth_r", "r", r[mask], boot[:, mask], roi, who, shared)
    return found


def receptive_field_error(
    encoder: Any, study: Study, subject: str | None = None, *, degrees: float | None = None
) -> pd.DataFrame:
    """Compare recovered receptive fields with those of a simulated subject.

    Parameters
    ----------
    encoder : TrainedEncoder
        Of kind "retinotopic", or an ensemble that holds one.
    degrees : float, optional
        Visual angle of the image's side; by default what the subject's truth says.

    Returns
    -------
    pandas.DataFrame
        One row a vertex: x, y, sigma (degrees, origin at the image's centre, y up), their truth,
        error_degrees between the centres; NaN for vertices without a true field.

    Raises
    ------
    DataError
        If the encoder has no receptive fields or the subject no truth.
    """
    who = study.subject(subject)
    module = next((m for m in encoder.module.modules() if isinstance(m, RetinotopicEncoder)), None)
    if module is None or "receptive_fields" not in who.truth:
        what = (
            "an encoder without receptive fields"
            if module is None
            else f"{who.name!r} without a truth"
        )
        raise DataError(
            message(
                "a retinotopic encoder and a simulated subject",
                what,
                "use kind='retinotopic' on the planted study",
            )
        )
    degrees = float(who.truth["degrees"]) if degrees is None else degrees
    field_ = module.receptive_fields()
    truth = np.asarray(who.truth["receptive_fields"])
    x, y, sigma = (
        (field_[:, 0] - 0.5) * degrees,
        (0.5 - field_[:, 1]) * degrees,
        field_[:, 2] * degrees,
    )
    return pd.DataFrame(
        {
            "x": x,
            "y": y,
            "sigma": sigma,
            "true_x": truth[:, 0],
            "true_y": truth[:, 1],
            "true_sigma": truth[:, 2],
            "error_degrees": np.hypot(x - truth[:, 0], y - truth[:, 1]),
        }
    )


def orientation_tuning_error(
    encoder: Encoder,
    study: Study,
    subject: str | None = None,
    split: str = "test",
    *,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Compare the orientation that each predicted vertex prefers with the one planted in it.

    The prediction is regressed on the energy of each orientation inside the vertex's true receptive
    field; the preferred orientation is the direction of the weights' vector sum over doubled
    angles.

    Parameters
    ----------
    encoder, subject, split, store, device
        As `evaluate_encoder`; any kind of encoder.

    Returns
    -------
    pandas.DataFrame
        One row a vertex: preferred and true_preferred (degrees from horizontal, 0 to 180) and
        error_degrees, 0 to 90, where 45 is chance; NaN where the prediction never changes.

    Raises
    ------
    DataError
        If the subject is not one with planted orientation tuning.
    """
    who = study.subject(subject)
    if "orientation_energy" not in who.truth:
        raise DataError(
            message(
                "a subject with planted orientation tuning", repr(who.name), "use the planted study"
            )
        )
    stimuli = who.stimuli.subset(who.rows(split))
    energy = who.truth["orientation_energy"](
        np.stack([stimuli.image(i) for i in range(len(stimuli))])
    )
    predicted = encoder.predict_stimuli(stimuli, store=store, device=device).astype(np.float64)
    tuning = np.asarray(who.truth["tuning"], np.float64)
    weights = np.full(tuning.shape, np.nan)
    for v in np.flatnonzero(np.ptp(predicted, axis=0) > 0):
        seen = np.column_stack([energy[:, :, v].astype(np.float64), np.ones(len(stimuli))])
        weights[v] = np.linalg.lstsq(seen, predicted[:, v], rcond=None)[0][:-1]
    doubled = np.exp(2j * np.pi * np.arange(tuning.shape[1]) / tuning.shape[1])
    found, true = (np.degrees(np.angle(w @ doubled)) / 2 % 180 for w in (weights, tuning))
    error = np.abs((found - true + 90) % 180 - 90)
    return pd.DataFrame({"preferred": found, "true_preferred": true, "error_degrees": error})

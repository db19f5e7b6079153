"""Score brain encoders per vertex and region: noise ceiling, blocks, controls, simulated truth."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.data import Atlas, StimulusSet, Study, Subject
from bmfl_lab.data.shifts import shifted
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.layers import flatten_tokens
from bmfl_lab.evaluation.ood import known_names
from bmfl_lab.metrics.correlation import CHUNK, bootstrap_pearson, near_constant, pearson
from bmfl_lab.metrics.noise import aggregate, ceiling_from_repeats, noise_normalised
from bmfl_lab.models.encoders import RetinotopicEncoder
from bmfl_lab.models.protocols import BrainEncoder
from bmfl_lab.models.ridge import DEFAULT_ALPHAS, fit_ridge
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import as_control, pick_device, rng
from bmfl_lab.training.context import load_spec
from bmfl_lab.training.trained_encoder import EncoderEnsemble, TrainedEncoder

COUNTS = ("n_undefined", "n_near_constant")
INTERVAL = "95 % bootstrap over stimuli, centred on the value"
RIDGE = "cross-validation within train, one penalty per vertex"
CONTROLS = ("as trained", "random weights", "shuffled pairing", "luminance layout", "position only")
N_SHUFFLES = 5
"""Number of random pairings over which the control "shuffled pairing" is averaged."""
_SHUFFLED_VALUES = 5e8  # limit of the responses held at once for that control: about 2 GB


@dataclass
class EncodingResult:
    """Encoding accuracy of one encoder.

    Parameters
    ----------
    rows : list of MetricRow
        Rows per region: ``pearson_r`` and ``pearson_r_median`` (unit r), ``noise_normalised`` and
        ``noise_normalised_median`` (unit per cent), ``n_undefined`` and ``n_near_constant`` (unit
        vertices). ``roi`` is "all", an ROI or a group.
    per_vertex : pandas.DataFrame
        One row per vertex with columns ``hemisphere``, ``rois`` (names joined by "+"), ``r``,
        ``near_constant`` (r is defined, but measured or predicted responses vary so little about
        their mean that r depends on their last digits), ``ceiling`` and ``noise_normalised``; for a
        simulated subject also ``r_truth``, the correlation with the noiseless response.
    facts : mapping
        ``n_boot``, and under ``regions`` the mask (n_vertices,) of each region in `rows`.
    """

    rows: list[MetricRow]
    per_vertex: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)

    def table(self, value: str = "pearson_r") -> pd.DataFrame:
        """Return one metric as a table.

        Parameters
        ----------
        value : str, default "pearson_r"
            Name of the metric.

        Returns
        -------
        pandas.DataFrame
            One row per region with columns ``roi``, the metric, ``ci_low``, ``ci_high``,
            ``n_undefined`` and ``n_near_constant``.
        """
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
        """Return the highest mean correlation per region that the noise allows.

        Returns
        -------
        dict of str to float
            Mean of the square root of the noise ceiling over the vertices of the region; regions
            without a known ceiling are left out.
        """
        best = np.sqrt(np.clip(self.per_vertex["ceiling"].to_numpy(float), 0, 1))
        known = np.isfinite(best)
        return {
            region: float(best[mask & known].mean())
            for region, mask in self.facts.get("regions", {}).items()
            if (mask & known).any()
        }


def regions(atlas: Atlas) -> dict[str, np.ndarray]:
    """Return the masks of all vertices ("all"), of every ROI and of every group.

    Parameters
    ----------
    atlas : Atlas
        Atlas of the vertices.

    Returns
    -------
    dict of str to ndarray of bool, shape (n_vertices,)
        ROIs and groups without vertices in this atlas are left out.
    """
    present = set(atlas.present)
    found = {"all": np.ones(atlas.n_vertices, bool)}
    found |= {name: np.asarray(atlas.rois[name], bool) for name in atlas.present}
    return found | {g: atlas.select(g) for g, rois in atlas.groups.items() if present & set(rois)}


def _ceiling(subject: Subject, rows: np.ndarray) -> np.ndarray | None:
    """Return the subject's noise ceiling (n_vertices,), an estimate from its repeats, or None."""
    if subject.noise_ceiling is not None:
        return np.asarray(subject.noise_ceiling, np.float32)
    if subject.repeats is None:
        return None
    return ceiling_from_repeats(subject.repeats[rows])


def evaluate_encoder(
    encoder: BrainEncoder,
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
    """Correlate predicted with measured responses, per vertex and region.

    Parameters
    ----------
    encoder : BrainEncoder
        Trained encoder, or any object with ``predict_stimuli``, ``label`` and ``selection``.
    study : Study
        Study of the subject.
    subject : str, optional
        Name of the subject; default: the first one.
    split : str, default "test"
        Split of the subject's stimuli.
    store : FeatureStore, optional
        Store of the tokens; without one they are extracted into memory.
    n_boot : int, default 500
        Number of bootstrap resamples of the stimuli.
    seed : int, default 0
        Seed of the resamples.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of the predictions.
    convention : {"undefined", "challenge"}, default "undefined"
        Treatment of vertices with a ceiling of zero, see `bmfl_lab.metrics.noise_normalised`.

    Returns
    -------
    EncodingResult
        Undefined vertices (constant responses or predictions, no ceiling) are NaN; they are left
        out of means and counted.

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
    ceiling, normalised = _ceiling(who, rows), None
    if ceiling is not None:
        normalised = noise_normalised(r, ceiling, convention)
        over_boot = noise_normalised(boot, np.tile(ceiling, (len(boot), 1)), convention)
    shared = {
        "split": split,
        "n": len(rows),
        "selection": encoder.selection,
        "model": encoder.label,
        "subject": who.name,
    }
    found = []
    for roi, mask in regions(who.atlas).items():
        found += _region_rows("pearson_r", "r", r[mask], boot[:, mask], roi, who, shared)
        if normalised is not None:
            found += _region_rows(
                "noise_normalised",
                "per cent",
                normalised[mask],
                over_boot[:, mask],
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
    """Apply `near_constant` to parts of the vertices, which limits the memory."""
    starts = range(CHUNK, values.shape[1], CHUNK)
    return np.concatenate([near_constant(part) for part in np.split(values, starts, axis=1)])


def _region_rows(
    name: str,
    unit: str,
    values: np.ndarray,
    boot: np.ndarray,
    roi: str,
    who: Subject,
    shared: Mapping[str, object],
) -> list[MetricRow]:
    """Return mean and median of a region's values (V,), with intervals from `boot` (n_boot, V)."""
    found = aggregate(values)
    notes = f"{found['n']} vertices, {found['n_undefined']} undefined, {who.kind} responses"
    kept = boot[:, np.isfinite(values)]
    rows = []
    for suffix, key, reduce in (("", "mean", np.nanmean), ("_median", "median", np.nanmedian)):
        low = high = None
        if found["n"] and len(kept):
            with warnings.catch_warnings():
                # in some resamples every vertex may be undefined
                warnings.simplefilter("ignore", RuntimeWarning)
                over = reduce(kept, 1)
            # resampling repeats stimuli, which biases r and even more its square; therefore only
            # the spread of the resamples is used
            quantiles = np.nanquantile(over, [0.025, 0.5, 0.975])
            low, high = (float(found[key] + q - quantiles[1]) for q in quantiles[[0, 2]])
        rows.append(
            MetricRow(
                name=name + suffix,
                value=found[key] if np.isfinite(found[key]) else None,
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


def _ridge_predictions(
    X: np.ndarray,
    who: Subject,
    split: str,
    alphas: Sequence[float],
    device: str,
    shuffle: int | None = None,
) -> list[np.ndarray]:
    """Fit a ridge on "train" and return its prediction of `split`, (n_stimuli, n_vertices).

    `shuffle` is the seed of random pairings within "train", each of which has a prediction. Their r
    is averaged, because the vertices of a region vary together: the mean r of a single pairing
    deviates from zero by about one over the square root of the number of stimuli.
    """
    train, held = who.rows("train"), who.rows(split)
    pairings = [train]
    if shuffle is not None:
        draws = int(np.clip(_SHUFFLED_VALUES / (len(train) * who.n_vertices), 1, N_SHUFFLES))
        pairings = [rng(shuffle, "controls", "pairing", k).permutation(train) for k in range(draws)]
    Y = np.concatenate([np.asarray(who.responses[rows], np.float32) for rows in pairings], axis=1)
    with warnings.catch_warnings():
        # no penalty is best for a control
        warnings.filterwarnings("ignore", message="expected at most 5%")
        fit = fit_ridge(X[train], Y, alphas, device=device)
    return np.split(fit.predict(X[held]), len(pairings), axis=1)


def _region_table(found: Mapping[object, np.ndarray], name: str, atlas: Atlas) -> pd.DataFrame:
    """Return mean r per region from r per vertex, one row per key."""
    masks = regions(atlas)
    rows = [{k: aggregate(r[m])["mean"] for k, m in masks.items()} for r in found.values()]
    return pd.DataFrame(rows, index=pd.Index(found, name=name))


def block_table(
    study: Study,
    subject: str | None = None,
    *,
    blocks: Sequence[int] | None = None,
    split: str = "val",
    tokens: str = "cls+mean",
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    backbone: Backbone | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> tuple[pd.DataFrame, np.ndarray]:
    """Score a ridge regression on every block of the backbone, per region.

    Parameters
    ----------
    study : Study
        Study of the subject; it also names the default backbone.
    subject : str, optional
        Name of the subject; default: the first one.
    blocks : sequence of int, optional
        Indices of the blocks; default: all.
    split : str, default "val"
        Split on which r is computed. Choosing a block on "test" would make later test results
        optimistic.
    tokens : str, default "cls+mean"
        "cls", "cls+mean" or "pooled:G".
    alphas : sequence of float
        Penalties to choose from by cross-validation within "train".
    backbone : Backbone, optional
        Loaded backbone; default: that of the study.
    store : FeatureStore, optional
        Store of the tokens; default: the store in the project's cache folder.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of the computation.

    Returns
    -------
    table : pandas.DataFrame
        Mean r, with one row per block and one column per region.
    r : ndarray of float32, shape (n_blocks, n_vertices)
        r per vertex, for a surface map of the best block.
    """
    who = study.subject(subject)
    backbone = backbone or load_spec(study.backbone, device)
    blocks = list(range(backbone.n_blocks)) if blocks is None else list(blocks)
    store = store if store is not None else FeatureStore()
    stored = store.get_many(backbone, who.stimuli, [(tokens, b) for b in blocks])
    where = pick_device(device)
    measured = np.asarray(who.responses[who.rows(split)], np.float32)
    r = []
    for tokens_of_block in map(flatten_tokens, stored):
        (predicted,) = _ridge_predictions(tokens_of_block, who, split, alphas, where)
        r.append(pearson(measured, predicted))
    r = np.stack(r)
    return _region_table(dict(zip(blocks, r)), "block", who.atlas), r


def encoding_controls(
    study: Study,
    subject: str | None = None,
    *,
    controls: Sequence[str] = CONTROLS,
    split: str = "test",
    tokens: str = "pooled:4",
    block: int = -1,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_boot: int = 200,
    seed: int = 0,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> tuple[pd.DataFrame, list[MetricRow]]:
    """Score a ridge regression on the backbone's tokens, and on controls that should do worse.

    Parameters
    ----------
    study, subject, split, alphas, store, device
        See `block_table`; `split` is "test" by default.
    controls : sequence of str, default `CONTROLS`
        "as trained": the tokens themselves. "random weights": the same architecture, untrained.
        "shuffled pairing": training on responses to other stimuli, averaged over `N_SHUFFLES`
        pairings (fewer if memory is short). "luminance layout": the mean colour of each cell of a 4
        x 4 grid instead of tokens. "position only": every token replaced by its mean over images;
        the prediction is then the same for every image, so that r is undefined (NaN) unless
        information about the image leaks in.
    tokens : str, default "pooled:4"
        Kind of tokens.
    block : int, default -1
        Index of the block.
    n_boot : int, default 200
        Number of resamples of the stimuli for the intervals.
    seed : int, default 0
        Seed of random weights, pairings and resamples.

    Returns
    -------
    table : pandas.DataFrame
        Mean r over defined vertices, with one row per control and one column per region, and a
        column ``n_undefined``.
    rows : list of MetricRow
        ``control_r``: the same numbers with their intervals over stimuli. The intervals of the
        shuffled pairings are those of their mean.

    Raises
    ------
    ConfigError
        If a control is unknown.
    """
    controls = known_names(controls, CONTROLS, "controls")
    who, where = study.subject(subject), pick_device(device)
    store = store if store is not None else FeatureStore()

    def features(control: str) -> np.ndarray:
        if control == "luminance layout":
            return _luminance(who.stimuli)
        spec = study.backbone
        if control == "random weights":
            spec = dataclasses.replace(spec, weights=f"random:{seed + 1000}")
        with as_control() if control == "random weights" else contextlib.nullcontext():
            backbone = load_spec(spec, device)
        stored = store.get(backbone, who.stimuli, tokens, block=block)
        X = flatten_tokens(stored)
        return np.broadcast_to(X.mean(0), X.shape).copy() if control == "position only" else X

    found, rows = {}, []
    shared = dict(split=split, n=len(who.rows(split)), subject=who.name, selection=RIDGE)
    measured = np.asarray(who.responses[who.rows(split)], np.float32)
    for control in controls:
        shuffle = seed if control == "shuffled pairing" else None
        parts = _ridge_predictions(features(control), who, split, alphas, where, shuffle)
        found[control] = np.mean([pearson(measured, part) for part in parts], axis=0)
        boot = np.mean([bootstrap_pearson(measured, p, n_boot, seed) for p in parts], axis=0)
        for roi, mask in regions(who.atlas).items():
            values = found[control][mask], boot[:, mask]
            rows += _region_rows("control_r", "r", *values, roi, who, {"model": control, **shared})[
                :1
            ]
    table = _region_table(found, "control", who.atlas)
    table["n_undefined"] = [int(np.sum(~np.isfinite(r))) for r in found.values()]
    return table, rows


def _luminance(stimuli: StimulusSet, side: int = 4) -> np.ndarray:
    """Return the mean colour of each cell of a grid, (n_stimuli, side * side * 3) in 0..1."""
    out = np.empty((len(stimuli), side * side * 3), np.float32)
    for i in range(len(stimuli)):
        rows = np.array_split(stimuli.image(i).astype(np.float32) / 255, side, axis=0)
        out[i] = np.concatenate(
            [c.mean((0, 1)) for row in rows for c in np.array_split(row, side, axis=1)]
        )
    return out


def evaluate_encoder_shifts(
    encoder: BrainEncoder,
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
    """Correlate predictions for shifted images with the responses of the simulation to them.

    Parameters
    ----------
    encoder, study, subject, split, seed, n_boot, device, store
        See `evaluate_encoder`; `seed` is also that of the shifts.
    shifts : iterable of (str, int)
        Name and severity of shifts that are applied to the subject's own images.
    sets : iterable of str, default ()
        Labelled image sets of the study that the subject never saw, e.g. its OOD sets.

    Returns
    -------
    list of MetricRow
        ``truth_r`` and ``truth_r_median`` per region: mean and median over vertices of Pearson r
        with the noiseless response. Rows of the unshifted images (shift "") and of each shift have
        `split` as their split; rows of a set have the name of the set.

    Raises
    ------
    DataError
        If the subject is measured: its responses to new images are unknown.
    """
    who = study.subject(subject)
    require(
        "respond" in who.truth,
        DataError,
        "a simulated subject that can respond to new images",
        f"{who.name!r}, which has no truth for them",
        "use the planted or the demo study, whose subjects are simulated",
    )
    clean = who.stimuli.subset(who.rows(split))
    conditions = [
        (clean, split, "", None),
        *((shifted(clean, name, level, seed), split, name, level) for name, level in shifts),
        *((study.set(name), name, "", None) for name in sets),
    ]
    found: list[MetricRow] = []
    for stimuli, where, shift, severity in conditions:
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
            found += _region_rows("truth_r", "r", r[mask], boot[:, mask], roi, who, shared)
    return found


def receptive_field_error(
    encoder: TrainedEncoder | EncoderEnsemble,
    study: Study,
    subject: str | None = None,
    *,
    degrees: float | None = None,
) -> pd.DataFrame:
    """Compare estimated receptive fields with those of a simulated subject.

    Parameters
    ----------
    encoder : TrainedEncoder or EncoderEnsemble
        Encoder of kind "retinotopic", or an ensemble that contains one.
    study : Study
        Study of the subject.
    subject : str, optional
        Name of the subject; default: the first one.
    degrees : float, optional
        Visual angle of the image's side in degrees; default: that of the simulation.

    Returns
    -------
    pandas.DataFrame
        One row per vertex with columns ``x``, ``y`` and ``sigma`` (degrees from the image's centre,
        y upwards), ``true_x``, ``true_y``, ``true_sigma``, and ``error_degrees``, the distance of
        the centres; NaN for vertices without a true field.

    Raises
    ------
    DataError
        If the encoder has no receptive fields, or the subject is measured.
    """
    who = study.subject(subject)
    module = next((m for m in encoder.module.modules() if isinstance(m, RetinotopicEncoder)), None)
    require(
        module is not None and "receptive_fields" in who.truth,
        DataError,
        "a retinotopic encoder and a simulated subject",
        f"{encoder.label!r} and {who.name!r}",
        "use kind='retinotopic' on the planted study",
    )
    degrees = float(who.truth["degrees"]) if degrees is None else degrees
    estimated, truth = module.receptive_fields(), np.asarray(who.truth["receptive_fields"])
    x, y = (estimated[:, 0] - 0.5) * degrees, (0.5 - estimated[:, 1]) * degrees
    return pd.DataFrame(
        {
            "x": x,
            "y": y,
            "sigma": estimated[:, 2] * degrees,
            "true_x": truth[:, 0],
            "true_y": truth[:, 1],
            "true_sigma": truth[:, 2],
            "error_degrees": np.hypot(x - truth[:, 0], y - truth[:, 1]),
        }
    )


def orientation_tuning_error(
    encoder: BrainEncoder,
    study: Study,
    subject: str | None = None,
    split: str = "test",
    *,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Compare the preferred orientation of each predicted vertex with the planted one.

    The prediction is regressed on the energy of each orientation inside the vertex's true receptive
    field. The preferred orientation is the direction of the vector sum of the weights over doubled
    angles.

    Parameters
    ----------
    encoder, study, subject, split, store, device
        See `evaluate_encoder`; any kind of encoder.

    Returns
    -------
    pandas.DataFrame
        One row per vertex with columns ``preferred`` and ``true_preferred`` (degrees from
        horizontal, 0 to 180) and ``error_degrees`` (0 to 90; 45 is chance). NaN if the prediction
        is the same for every image.

    Raises
    ------
    DataError
        If the subject has no planted orientation tuning.
    """
    who = study.subject(subject)
    require(
        "orientation_energy" in who.truth,
        DataError,
        "a subject with planted orientation tuning",
        repr(who.name),
        "use the planted study",
    )
    stimuli = who.stimuli.subset(who.rows(split))
    images = np.stack([stimuli.image(i) for i in range(len(stimuli))])
    energy = who.truth["orientation_energy"](images)
    predicted = encoder.predict_stimuli(stimuli, store=store, device=device).astype(np.float64)
    tuning = np.asarray(who.truth["tuning"], np.float64)
    weights = np.full(tuning.shape, np.nan)
    for v in np.flatnonzero(np.ptp(predicted, axis=0) > 0):
        design = np.column_stack([energy[:, :, v].astype(np.float64), np.ones(len(stimuli))])
        weights[v] = np.linalg.lstsq(design, predicted[:, v], rcond=None)[0][:-1]
    doubled = np.exp(2j * np.pi * np.arange(tuning.shape[1]) / tuning.shape[1])
    found, true = (np.degrees(np.angle(w @ doubled)) / 2 % 180 for w in (weights, tuning))
    error = np.abs((found - true + 90) % 180 - 90)
    return pd.DataFrame({"preferred": found, "true_preferred": true, "error_degrees": error})

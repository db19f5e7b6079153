"""Where ROIs and vertices look: receptive fields read off attention, and how well they match a known retinotopy.

Coordinates are degrees of visual angle from the image's centre, x to the right and y up; polar
angles are degrees clockwise from the upper vertical meridian, negative in the left half of the
field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message
from bmfl_lab.evaluation.attention import queries_of, query_vertices, stored_patches
from bmfl_lab.models.encoders import RetinotopicEncoder
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng

RETINOTOPIC = ("V1", "V1v", "V1d", "V2", "V2v", "V2d", "V3", "V3v", "V3d", "hV4")


def seen_degrees(backbone: Any, degrees: float) -> float:
    """Return the visual angle that is left of a square image of `degrees` after the backbone's crop."""
    return float(degrees) * backbone.image_size / backbone.preprocess.short_side


def roi_fields(maps: np.ndarray) -> np.ndarray:
    """Return the average attention of each ROI query, its receptive field, shape (n_queries, h, w).

    Parameters
    ----------
    maps : ndarray, shape (n_stimuli, n_queries, n_heads, h, w)
        From `roi_attention`.

    Raises
    ------
    DataError
        If the axes are others, or there is no image.
    """
    if np.ndim(maps) != 5 or not len(maps):
        raise DataError(
            message(
                "maps (n_stimuli, n_queries, n_heads, h, w)",
                f"shape {np.shape(maps)}",
                "use roi_attention",
            )
        )
    return np.asarray(maps).mean((0, 2))


def field_centres(fields: np.ndarray, degrees: float) -> pd.DataFrame:
    """Return centre and spread of receptive fields.

    Parameters
    ----------
    fields : ndarray, shape (n_fields, h, w)
        Non-negative weights over patches.
    degrees : float
        Visual angle of the side that the backbone sees, as from `seen_degrees`.

    Returns
    -------
    DataFrame, one row a field
        ``x``, ``y``, ``polar_angle``, ``eccentricity``, and ``size``: the standard deviation along
        one axis, which cannot fall below that of a patch. NaN for a uniform field.

    Raises
    ------
    DataError
        If the fields are not three-dimensional, negative, or not finite.

    Notes
    -----
    The centre of mass is taken over weights above the median weight: a uniform background would
    draw every centre to the middle of the image. Our choice.
    """
    fields = np.asarray(fields, np.float64)
    if fields.ndim != 3 or not np.isfinite(fields).all() or (fields < 0).any():
        raise DataError(
            message(
                "finite, non-negative fields (n_fields, h, w)",
                f"shape {fields.shape}",
                "average attention first",
            )
        )
    n, rows, columns = fields.shape
    flat = fields.reshape(n, -1)
    above = np.maximum(flat - np.median(flat, axis=1, keepdims=True), 0)
    total = above.sum(1, keepdims=True)
    weight = np.divide(above, total, out=np.full_like(above, np.nan), where=total > 1e-12)
    y = (0.5 - (np.arange(rows) + 0.5) / rows)[:, None].repeat(columns, 1).ravel() * degrees
    x = ((np.arange(columns) + 0.5) / columns - 0.5)[None].repeat(rows, 0).ravel() * degrees
    cx, cy = weight @ x, weight @ y
    spread = (weight * ((x - cx[:, None]) ** 2 + (y - cy[:, None]) ** 2)).sum(1) / 2
    patch = degrees / rows / np.sqrt(12)
    return _with_polar(cx, cy).assign(size=np.sqrt(spread + patch**2))


def _with_polar(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "x": x,
            "y": y,
            "polar_angle": np.degrees(np.arctan2(x, y)),
            "eccentricity": np.hypot(x, y),
        }
    )


def vertex_fields(
    encoder: Any,
    stimuli: StimulusSet,
    *,
    store: Any = None,
    backbone: Any = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Return how much each patch moves each vertex's prediction, float32 (n_vertices, h, w).

    A vertex is read out from its query's vector, which is a sum over heads and patches of attention
    weight times value. The field at a patch is the standard deviation over images of that patch's
    term in the vertex's linear readout. For a retinotopic encoder it is the fitted receptive field.

    Parameters
    ----------
    encoder : TrainedEncoder
        With an ROI-query transformer, or of kind "retinotopic".
    stimuli : StimulusSet
        At least two images, for ROI queries.
    store, backbone
        As `roi_attention`.
    batch_size : int
        Images at a time.

    Raises
    ------
    ConfigError
        If the encoder has neither.
    DataError
        With fewer than two images.

    Notes
    -----
    The feed-forward branch and the last normalisation are left out: to first order the residual
    path carries the place. Our choice.
    """
    fitted = next((m for m in encoder.module.modules() if isinstance(m, RetinotopicEncoder)), None)
    if fitted is not None and encoder.query_module() is None:
        from bmfl_lab.models.encoders import field_weights

        weights = field_weights(fitted.fields_C3.cpu(), fitted.grid)[fitted.choice_V.cpu()]
        return weights.unflatten(-1, fitted.grid).numpy().astype(np.float32)
    query = queries_of(encoder)
    if len(stimuli) < 2:
        raise DataError(
            message("at least two images", str(len(stimuli)), "fields are spreads over images")
        )
    patches = stored_patches(encoder.tokens(stimuli, store=store, backbone=backbone))
    device = next(query.parameters()).device
    masks = torch.from_numpy(query_vertices(encoder)).to(device)
    sums = torch.zeros(2, masks.shape[1], patches.shape[1], dtype=torch.float64, device=device)
    with torch.inference_mode():
        for start in range(0, len(stimuli), batch_size):
            part = torch.from_numpy(np.array(patches[start : start + batch_size], np.float32)).to(
                device
            )
            for vertices, term_BVP in _terms(query, part, masks):
                sums[0, vertices] += term_BVP.sum(0)
                sums[1, vertices] += term_BVP.double().square().sum(0)
    mean, square = sums / len(stimuli)
    spread = (square - mean**2).clamp_min(0).sqrt()
    return spread.unflatten(-1, query.grid).float().cpu().numpy()


def _terms(query: Any, patches_BPD: torch.Tensor, masks_RV: torch.Tensor):
    """Yield vertices and their readout's terms (B, V, P), one query at a time; vertices of several queries repeat."""
    tokens_BPE = query.project(patches_BPD)
    value_BPHK = query.v(tokens_BPE).unflatten(-1, (query.n_heads, -1))
    weights_BRHP = query.attention(patches_BPD)
    readout_VE = query.readout.weight()
    for r, mask in enumerate(masks_RV):
        vertices = torch.nonzero(mask)[:, 0]
        moved_BPE = (value_BPHK * weights_BRHP[:, r].transpose(1, 2)[..., None]).flatten(2)
        direction_VE = readout_VE[vertices] @ query.out.weight
        yield vertices, torch.einsum("bpe,ve->bvp", moved_BPE, direction_VE)


def true_centres(atlas: Atlas) -> pd.DataFrame:
    """Return the field centres that an atlas's retinotopic maps state, NaN where it has none.

    Raises
    ------
    DataError
        If the atlas has no polar angle or no eccentricity.
    """
    if not {"polar_angle", "eccentricity"} <= set(atlas.maps):
        raise DataError(
            message(
                "an atlas with 'polar_angle' and 'eccentricity'",
                ", ".join(atlas.maps) or "no maps",
                "use a subject with retinotopy, or leave this comparison out",
            )
        )
    angle, eccentricity = (
        np.radians(atlas.maps["polar_angle"]),
        np.asarray(atlas.maps["eccentricity"]),
    )
    return _with_polar(eccentricity * np.sin(angle), eccentricity * np.cos(angle))


def query_centres(encoder: Any) -> pd.DataFrame:
    """Return the mean of the atlas's field centres over each query's vertices (NaN where it states none).

    Raises
    ------
    DataError
        As `true_centres`.
    """
    truth = true_centres(encoder.atlas)
    means = []
    for mask in query_vertices(encoder):
        inside = truth[["x", "y"]][mask].dropna()
        means.append(inside.mean().to_numpy() if len(inside) else [np.nan, np.nan])
    return _with_polar(*np.asarray(means, float).T)


def retinotopy_agreement(
    estimated: pd.DataFrame,
    atlas: Atlas,
    rois: Sequence[str] = RETINOTOPIC,
    *,
    n_shuffles: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare estimated field centres with the atlas's retinotopy, ROI by ROI.

    Parameters
    ----------
    estimated : DataFrame, one row a vertex
        ``x`` and ``y`` as from `field_centres`.
    atlas : Atlas
        With polar angle and eccentricity. For a simulated subject it is the truth.
    rois : sequence of str
        ROIs compared where they exist, then all their vertices together.
    n_shuffles, seed : int
        Of the reference: centres dealt out anew among the vertices of an ROI and hemisphere, which
        keeps what the hemisphere alone tells.

    Returns
    -------
    DataFrame, one row an ROI
        ``n_vertices``; Pearson ``r_x``, ``r_y`` and ``r_eccentricity``; circular ``r_polar_angle``;
        ``error_degrees``, the median distance between centres, and ``error_shuffled``, its median
        over shuffles.

    Raises
    ------
    DataError
        If the estimates do not fit the atlas, or it has no retinotopy.

    References
    ----------
    Jammalamadaka & SenGupta (2001), Topics in circular statistics, ch. 8: circular correlation.
    """
    if len(estimated) != atlas.n_vertices:
        raise DataError(
            message(f"{atlas.n_vertices} centres", str(len(estimated)), "estimate one a vertex")
        )
    truth = true_centres(atlas)
    known = (truth["x"].notna() & estimated["x"].notna()).to_numpy()
    parts = {
        name: np.asarray(atlas.rois[name], bool) & known for name in rois if name in atlas.rois
    }
    parts = {name: mask for name, mask in parts.items() if mask.sum() >= 3}
    if len(parts) > 1:
        parts["all"] = np.any(list(parts.values()), axis=0)
    return pd.DataFrame(
        [_agreement(k, m, estimated, truth, atlas, n_shuffles, seed) for k, m in parts.items()]
    )


def _agreement(name, mask, estimated, truth, atlas, n_shuffles, seed) -> dict[str, Any]:
    a, b = estimated[mask].reset_index(drop=True), truth[mask].reset_index(drop=True)
    side, generator = np.asarray(atlas.hemisphere)[mask], rng(seed, "retinotopy", name)
    found: dict[str, Any] = {"roi": name, "n_vertices": int(mask.sum())}
    for key in ("x", "y", "eccentricity"):
        constant = a[key].std() == 0 or b[key].std() == 0
        found[f"r_{key}"] = np.nan if constant else float(np.corrcoef(a[key], b[key])[0, 1])
    found["r_polar_angle"] = circular_correlation(
        a["polar_angle"].to_numpy(), b["polar_angle"].to_numpy()
    )
    found["error_degrees"] = float(np.hypot(a["x"] - b["x"], a["y"] - b["y"]).median())
    shuffled = np.tile(np.arange(len(a)), (n_shuffles, 1))
    for s in (0, 1):
        rows = np.flatnonzero(side == s)
        shuffled[:, rows] = generator.permuted(np.tile(rows, (n_shuffles, 1)), axis=1)
    (ax, ay), (bx, by) = (v[["x", "y"]].to_numpy().T for v in (a, b))
    errors = np.median(np.hypot(ax[shuffled] - bx, ay[shuffled] - by), axis=1)
    found["error_shuffled"] = float(np.median(errors)) if n_shuffles else np.nan
    return found


def agreement_metrics(
    agreement: pd.DataFrame,
    *,
    split: str,
    model: str,
    subject: str,
    selection: str,
    notes: str = "",
) -> list[MetricRow]:
    """Return `retinotopy_agreement` as metric rows named ``field_<column>``; n counts vertices."""
    units = {"error_degrees": "degrees", "error_shuffled": "degrees"}
    columns = [c for c in agreement.columns if c not in ("roi", "n_vertices")]
    return [
        MetricRow(
            name=f"field_{column}",
            value=None if pd.isna(found[column]) else float(found[column]),
            unit=units.get(column, "r"),
            split=split,
            n=int(found["n_vertices"]),
            selection=selection,
            model=model,
            subject=subject,
            roi=found["roi"],
            notes="n vertices" + (f"; {notes}" if notes else ""),
        )
        for found in agreement.to_dict("records")
        for column in columns
    ]


def circular_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two sets of angles in degrees; NaN if one is constant.

    References
    ----------
    Jammalamadaka & SenGupta (2001), eq. 8.2.2.
    """
    x, y = (np.radians(np.asarray(v, np.float64)) for v in (a, b))
    x, y = (np.sin(v - np.arctan2(np.sin(v).mean(), np.cos(v).mean())) for v in (x, y))
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / norm) if norm > 1e-12 else float("nan")

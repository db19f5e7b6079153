"""Estimate receptive fields of ROIs and vertices from attention, and compare them with retinotopy.

Coordinates are degrees of visual angle from the image's centre, x to the right and y up; polar
angles are degrees clockwise from the upper vertical meridian, negative in the left half of the
field.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.backbones.tokens import stored_patches
from bmfl_lab.data import Atlas, StimulusSet
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.attention import queries_of, query_vertices
from bmfl_lab.models.encoders import RetinotopicEncoder, ROIQueryEncoder, field_weights
from bmfl_lab.records import MetricRow
from bmfl_lab.runtime import rng
from bmfl_lab.training.trained_encoder import TrainedEncoder

RETINOTOPIC = ("V1", "V1v", "V1d", "V2", "V2v", "V2d", "V3", "V3v", "V3d", "hV4")


def seen_degrees(backbone: Backbone, degrees: float) -> float:
    """Return the visual angle of the side of a square image after the crop of the backbone.

    Parameters
    ----------
    backbone : Backbone
        Backbone whose preprocessing is applied.
    degrees : float
        Visual angle of the side of the original image, in degrees.
    """
    return float(degrees) * backbone.image_size / backbone.preprocess.short_side


def roi_fields(maps: np.ndarray) -> np.ndarray:
    """Return the average attention of each ROI query, its receptive field, shape (n_queries, h, w).

    Parameters
    ----------
    maps : ndarray, shape (n_stimuli, n_queries, n_heads, h, w)
        Attention from `roi_attention`.

    Raises
    ------
    DataError
        If the maps do not have these axes, or there is no image.
    """
    require(
        np.ndim(maps) == 5 and len(maps),
        DataError,
        "maps (n_stimuli, n_queries, n_heads, h, w)",
        f"shape {np.shape(maps)}",
        "pass the maps that roi_attention returns for one or more images",
    )
    return np.asarray(maps).mean((0, 2))


def field_centres(fields: np.ndarray, degrees: float) -> pd.DataFrame:
    """Return centre and spread of receptive fields.

    Parameters
    ----------
    fields : ndarray, shape (n_fields, h, w)
        Non-negative weights over patches.
    degrees : float
        Visual angle of the side of the cropped image, as `seen_degrees` returns it.

    Returns
    -------
    DataFrame
        One row per field, in degrees: ``x``, ``y``, ``polar_angle``, ``eccentricity`` and ``size``,
        the standard deviation along one axis, which is at least that of a patch. NaN for a uniform
        field.

    Raises
    ------
    DataError
        If the fields are not three-dimensional, negative, or not finite.

    Notes
    -----
    The centre of mass is that of the weights above the median weight, because a uniform background
    would move every centre to the middle of the image. This is our choice.
    """
    fields = np.asarray(fields, np.float64)
    require(
        fields.ndim == 3 and np.isfinite(fields).all() and (not (fields < 0).any()),
        DataError,
        "finite, non-negative fields (n_fields, h, w)",
        f"shape {fields.shape}",
        "average attention over images and heads first, as roi_fields does",
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
    encoder: TrainedEncoder,
    stimuli: StimulusSet,
    *,
    store: FeatureStore | None = None,
    backbone: Backbone | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Return how much each patch changes the predicted response of each vertex.

    The response of a vertex is read out from the vector of its query, which is a sum over heads and
    patches of attention weight times value. The field at a patch is the standard deviation over
    images of the term of this patch in the linear readout. The fields of a retinotopic encoder are
    its fitted receptive fields.

    Parameters
    ----------
    encoder : TrainedEncoder
        Encoder with an ROI-query transformer, or of kind "retinotopic".
    stimuli : StimulusSet
        Images, at least two for ROI queries.
    store, backbone
        Same as in `roi_attention`.
    batch_size : int, default 16
        Number of images per forward pass.

    Returns
    -------
    ndarray of float32, shape (n_vertices, h, w)

    Raises
    ------
    ConfigError
        If the encoder is of another kind.
    DataError
        If there are fewer than two images.

    Notes
    -----
    The feed-forward branch and the last normalisation are left out, because the residual path
    carries the location to first order. This is our choice.
    """
    fitted = next((m for m in encoder.module.modules() if isinstance(m, RetinotopicEncoder)), None)
    if fitted is not None and encoder.query_module() is None:
        weights = field_weights(fitted.fields_C3.cpu(), fitted.grid)[fitted.choice_V.cpu()]
        return weights.unflatten(-1, fitted.grid).numpy().astype(np.float32)
    query = queries_of(encoder)
    require(
        len(stimuli) >= 2,
        DataError,
        "at least two images",
        len(stimuli),
        "pass more images: a field is a standard deviation over images",
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


def _terms(
    query: ROIQueryEncoder, patches_BPD: torch.Tensor, masks_RV: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the vertices of each query and the terms (B, V, P) of their readout.

    A vertex that is read out from several queries is yielded with each of them.
    """
    tokens_BPE = query.project(patches_BPD)
    value_BPHK = query.v(tokens_BPE).unflatten(-1, (query.n_heads, -1))
    weights_BRHP = query.attention(patches_BPD)
    readout_VE = query.readout.weight()
    for r, mask in enumerate(masks_RV):
        vertices = torch.nonzero(mask)[:, 0]
        term_BPE = (value_BPHK * weights_BRHP[:, r].transpose(1, 2)[..., None]).flatten(2)
        direction_VE = readout_VE[vertices] @ query.out.weight
        yield vertices, torch.einsum("bpe,ve->bvp", term_BPE, direction_VE)


def true_centres(atlas: Atlas) -> pd.DataFrame:
    """Return the receptive-field centres in the retinotopic maps of an atlas, one row per vertex.

    Centres are in degrees, with the columns ``x``, ``y``, ``polar_angle`` and ``eccentricity``.
    Values are NaN for a vertex without a centre in the atlas.

    Raises
    ------
    DataError
        If the atlas has no polar angle or no eccentricity.
    """
    require(
        {"polar_angle", "eccentricity"} <= set(atlas.maps),
        DataError,
        "an atlas with 'polar_angle' and 'eccentricity'",
        ", ".join(atlas.maps) or "no maps",
        "use a subject with retinotopy, or leave this comparison out",
    )
    angle, eccentricity = (
        np.radians(atlas.maps["polar_angle"]),
        np.asarray(atlas.maps["eccentricity"]),
    )
    return _with_polar(eccentricity * np.sin(angle), eccentricity * np.cos(angle))


def query_centres(encoder: TrainedEncoder) -> pd.DataFrame:
    """Return the mean receptive-field centre over the vertices of each query, one row per query.

    Centres are read from the atlas. Columns and units are those of `true_centres`; values are NaN
    for a query whose vertices have no centre in the atlas.

    Raises
    ------
    DataError
        If the atlas has no polar angle or no eccentricity.
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
    """Compare estimated field centres with the retinotopy of an atlas, ROI by ROI.

    Parameters
    ----------
    estimated : DataFrame
        One row per vertex, with ``x`` and ``y`` in degrees, as `field_centres` returns them.
    atlas : Atlas
        Atlas with polar angle and eccentricity; for a simulated subject these are the truth.
    rois : sequence of str
        ROIs to compare; absent ones are left out. The last row holds all their vertices together.
    n_shuffles : int, default 200
        Number of shuffles for the reference: centres are permuted among the vertices of an ROI and
        hemisphere, which keeps the information in the hemisphere alone.
    seed : int, default 0
        Seed of the shuffles.

    Returns
    -------
    DataFrame
        One row per ROI: ``n_vertices``; Pearson ``r_x``, ``r_y`` and ``r_eccentricity``; circular
        ``r_polar_angle``; ``error_degrees``, the median distance between centres, and
        ``error_shuffled``, its median over shuffles.

    Raises
    ------
    DataError
        If the estimates do not fit the atlas, or it has no retinotopy.

    References
    ----------
    Jammalamadaka & SenGupta (2001), Topics in circular statistics, ch. 8: circular correlation.
    """
    require(
        len(estimated) == atlas.n_vertices,
        DataError,
        f"{atlas.n_vertices} centres",
        len(estimated),
        "estimate one per vertex",
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


def _agreement(
    name: str,
    mask: np.ndarray,
    estimated: pd.DataFrame,
    truth: pd.DataFrame,
    atlas: Atlas,
    n_shuffles: int,
    seed: int,
) -> dict[str, str | int | float]:
    a, b = estimated[mask].reset_index(drop=True), truth[mask].reset_index(drop=True)
    side, generator = np.asarray(atlas.hemisphere)[mask], rng(seed, "retinotopy", name)
    row: dict[str, str | int | float] = {"roi": name, "n_vertices": int(mask.sum())}
    for key in ("x", "y", "eccentricity"):
        constant = a[key].std() == 0 or b[key].std() == 0
        row[f"r_{key}"] = np.nan if constant else float(np.corrcoef(a[key], b[key])[0, 1])
    row["r_polar_angle"] = circular_correlation(
        a["polar_angle"].to_numpy(), b["polar_angle"].to_numpy()
    )
    row["error_degrees"] = float(np.hypot(a["x"] - b["x"], a["y"] - b["y"]).median())
    shuffled = np.tile(np.arange(len(a)), (n_shuffles, 1))
    for s in (0, 1):
        rows = np.flatnonzero(side == s)
        shuffled[:, rows] = generator.permuted(np.tile(rows, (n_shuffles, 1)), axis=1)
    (ax, ay), (bx, by) = (v[["x", "y"]].to_numpy().T for v in (a, b))
    errors = np.median(np.hypot(ax[shuffled] - bx, ay[shuffled] - by), axis=1)
    row["error_shuffled"] = float(np.median(errors)) if n_shuffles else np.nan
    return row


def agreement_metrics(
    agreement: pd.DataFrame,
    *,
    split: str,
    model: str,
    subject: str,
    selection: str,
    notes: str = "",
) -> list[MetricRow]:
    """Return metric rows named ``field_<column>``, with the number of vertices as n.

    Parameters
    ----------
    agreement : DataFrame
        Table from `retinotopy_agreement`.
    split, model, subject, selection, notes : str
        Fields of each row, as in `MetricRow`.
    """
    columns = [c for c in agreement.columns if c not in ("roi", "n_vertices")]
    return [
        MetricRow(
            name=f"field_{column}",
            value=None if pd.isna(row[column]) else float(row[column]),
            unit="degrees" if column.startswith("error") else "r",
            split=split,
            n=int(row["n_vertices"]),
            selection=selection,
            model=model,
            subject=subject,
            roi=row["roi"],
            notes="n vertices" + (f"; {notes}" if notes else ""),
        )
        for row in agreement.to_dict("records")
        for column in columns
    ]


def circular_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the circular correlation of n pairs of angles in degrees; NaN if one side is constant.

    Parameters
    ----------
    a, b : ndarray, shape (n,)
        Angles in degrees.

    References
    ----------
    Jammalamadaka & SenGupta (2001), Topics in circular statistics, eq. 8.2.2.
    """
    x, y = (np.radians(np.asarray(v, np.float64)) for v in (a, b))
    x, y = (np.sin(v - np.arctan2(np.sin(v).mean(), np.cos(v).mean())) for v in (x, y))
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / norm) if norm > 1e-12 else float("nan")

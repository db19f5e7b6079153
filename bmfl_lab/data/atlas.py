"""Regions of interest (ROIs) on the cortical surface, their groups and their selection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, message, nearest

HEMISPHERES = ("left", "right")

ALGONAUTS_ROIS: dict[str, tuple[str, ...]] = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": (
        "early",
        "midventral",
        "midlateral",
        "midparietal",
        "ventral",
        "lateral",
        "parietal",
    ),
}
"""ROI classes and names of the Algonauts 2023 challenge; the label of a name is its position + 1 (0 = unknown)."""

LVC_ROIS = ("V1", "V2", "V3", "V1v", "V1d", "V2v", "V2d", "V3v", "V3d")
HVC_ROIS = (
    "LO",
    "FFC",
    "PHA",
    "VVC",
    "PIT",
    *ALGONAUTS_ROIS["floc-bodies"],
    *ALGONAUTS_ROIS["floc-faces"],
    *ALGONAUTS_ROIS["floc-places"],
    *ALGONAUTS_ROIS["floc-words"],
)
GROUP_DEFINITIONS: dict[str, tuple[str, ...]] = {
    "LVC": LVC_ROIS,
    "LVC+hV4": (*LVC_ROIS, "hV4"),
    "HVC": HVC_ROIS,
    "HVC-streams": ("ventral", "lateral", "parietal"),
}
"""Region groups by name. The union of whichever members the atlas at hand has.

NeuralOOD compares a lower (LVC) with a higher visual cortex (HVC) but its ROI lists could not be recovered;
these definitions are our choice: V1-V3 against the category-selective areas (or three streams)."""


@dataclass(frozen=True)
class Atlas:
    """Where each vertex lies and which ROIs it belongs to.

    Parameters
    ----------
    hemisphere : ndarray of int8, shape (n_vertices,)
        0 = left, 1 = right. All left vertices come before all right ones.
    rois : mapping of str to ndarray of bool, shape (n_vertices,)
        Membership; ROIs may overlap, an empty ROI is allowed and reported as absent.
    surface_index : ndarray of int64, shape (n_vertices,), optional
        Index of each vertex in the surface mesh of its own hemisphere.
    mesh : str, optional
        Name of that mesh ("fsaverage5", "fsaverage"); None when the vertices lie on no surface.
    groups : mapping of str to tuple of str, optional
        Named unions of ROIs; members that the atlas lacks are left out.
    maps : mapping of str to ndarray of float, shape (n_vertices,), optional
        Continuous maps, e.g. ``"polar_angle"`` (degrees), ``"eccentricity"`` (degrees),
        ``"rf_size"`` (degrees).

    Raises
    ------
    DataError
        If a mask's length differs from the number of vertices or hemispheres are not ordered.
    """

    hemisphere: np.ndarray
    rois: Mapping[str, np.ndarray]
    surface_index: np.ndarray | None = None
    mesh: str | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(GROUP_DEFINITIONS))
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.hemisphere)
        if np.any(np.diff(np.asarray(self.hemisphere, dtype=np.int8)) < 0):
            raise DataError(
                message(
                    "left vertices before right ones",
                    "a mixed order of hemispheres",
                    "concatenate the left hemisphere first",
                )
            )
        arrays = {**self.rois, **self.maps}
        if self.surface_index is not None:
            arrays["surface_index"] = self.surface_index
        for name, values in arrays.items():
            if np.shape(values) != (n,):
                raise DataError(
                    message(
                        f"{name} of shape ({n},), one value a vertex",
                        f"shape {np.shape(values)}",
                        "use masks of the same space as the responses",
                    )
                )

    def __repr__(self) -> str:
        absent = f", absent={list(self.absent)}" if self.absent else ""
        return f"Atlas(n_vertices={self.n_vertices}, n_left={self.n_left}, mesh={self.mesh!r}, rois={list(self.present)}{absent})"

    @property
    def n_vertices(self) -> int:
        """Number of vertices, both hemispheres."""
        return len(self.hemisphere)

    @property
    def n_left(self) -> int:
        """Number of left-hemisphere vertices."""
        return int(np.sum(np.asarray(self.hemisphere) == 0))

    @property
    def present(self) -> tuple[str, ...]:
        """Names of ROIs that have at least one vertex."""
        return tuple(name for name, mask in self.rois.items() if np.any(mask))

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of ROIs that are declared and have no vertex in this subject."""
        return tuple(name for name, mask in self.rois.items() if not np.any(mask))

    def members(self, name: str) -> tuple[str, ...]:
        """Return the ROIs behind a group or ROI name that have vertices here.

        Raises
        ------
        ConfigError
            If the name is neither an ROI nor a group, or nothing of it exists in this subject.
        """
        if name in self.rois:
            found = (name,) if np.any(self.rois[name]) else ()
        elif name in self.groups:
            found = tuple(r for r in self.groups[name] if r in self.rois and np.any(self.rois[r]))
        else:
            raise ConfigError(
                message(
                    "an ROI or region group of this subject",
                    repr(name),
                    nearest(name, [*self.rois, *self.groups]),
                )
            )
        if not found:
            raise ConfigError(
                message(
                    f"at least one vertex in {name!r}",
                    "none: the region is absent in this subject",
                    "choose one of " + ", ".join(self.present),
                )
            )
        return found

    def select(self, names: str | Iterable[str]) -> np.ndarray:
        """Return the union of ROIs and groups as a mask.

        Parameters
        ----------
        names : str or iterable of str
            ROI or group names; ``"all"`` stands for every vertex.

        Returns
        -------
        ndarray of bool, shape (n_vertices,)
            Each vertex counted once, however many of the ROIs hold it.

        Raises
        ------
        ConfigError
            If a name is unknown or absent in this subject, or none was given.
        """
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise ConfigError(
                message("at least one ROI or group name", "an empty list", "name one, or 'all'")
            )
        mask = np.zeros(self.n_vertices, dtype=bool)
        for name in names:
            if name == "all":
                mask[:] = True
                continue
            for roi in self.members(name):
                mask |= np.asarray(self.rois[roi], dtype=bool)
        return mask

    def subset(self, mask: np.ndarray) -> Atlas:
        """Return the atlas of the vertices where `mask` is true.

        Raises
        ------
        DataError
            If `mask` has another shape than (n_vertices,).
        """
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != (self.n_vertices,):
            raise DataError(
                message(
                    f"a mask of shape ({self.n_vertices},)",
                    f"shape {mask.shape}",
                    "mask the same vertices",
                )
            )
        return Atlas(
            hemisphere=np.asarray(self.hemisphere)[mask],
            rois={k: np.asarray(v)[mask] for k, v in self.rois.items()},
            surface_index=None
            if self.surface_index is None
            else np.asarray(self.surface_index)[mask],
            mesh=self.mesh,
            groups=dict(self.groups),
            maps={k: np.asarray(v)[mask] for k, v in self.maps.items()},
        )

    def parcels(self) -> dict[str, np.ndarray]:
        """Partition the vertices by (hemisphere, set of ROIs).

        Returns
        -------
        dict of str to ndarray of int64
            ``"left:V1"``, ``"right:FFA-1+EBA"``, ``"left:rest"`` to the vertex indices; every
            vertex stands in exactly one parcel. This is the grouping with which a masked ROI
            readout computes each vertex once.
        """
        names = [n for n in self.rois if np.any(self.rois[n])]
        membership = (
            np.stack([np.asarray(self.rois[n], bool) for n in names], 1)
            if names
            else np.zeros((self.n_vertices, 0), bool)
        )
        keys: dict[str, list[int]] = {}
        for vertex, (side, row) in enumerate(zip(np.asarray(self.hemisphere), membership)):
            label = "+".join(np.asarray(names, dtype=object)[row]) if row.any() else "rest"
            keys.setdefault(f"{HEMISPHERES[int(side)]}:{label}", []).append(vertex)
        return {k: np.asarray(v, dtype=np.int64) for k, v in keys.items()}


def describe_groups(atlas: Atlas) -> str:
    """Return the definition of each region group in this subject, one line a group, ready to print.

    Each line names the ROIs that make the group up here, the number of vertices of their union by
    hemisphere (a vertex in several ROIs counts once), and the defined ROIs that are absent in this
    subject.
    """
    lines = []
    for name, members in atlas.groups.items():
        here = [r for r in members if r in atlas.rois and np.any(atlas.rois[r])]
        absent = [r for r in members if r in atlas.rois and r not in here]
        union = np.zeros(atlas.n_vertices, dtype=bool)
        for roi in here:
            union |= np.asarray(atlas.rois[roi], dtype=bool)
        left = int(np.sum(union & (np.asarray(atlas.hemisphere) == 0)))
        text = f"{name} = {' + '.join(here) or 'nothing'}: {left} left and {int(union.sum()) - left} right vertices"
        lines.append(text + (f"; absent: {', '.join(absent)}" if absent else ""))
    return "\n".join(lines)

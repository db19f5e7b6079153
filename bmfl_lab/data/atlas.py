"""Regions of interest (ROIs) on the cortical surface, their groups and their selection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bmfl_lab.errors import ConfigError, DataError, message, nearest, require

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
"""ROI classes and names of the Algonauts 2023 challenge (Gifford et al. 2023, arXiv:2301.03198).

The label of an ROI in the challenge's mask files is its position here plus 1; 0 means no ROI."""

_LVC_ROIS = ("V1", "V2", "V3", "V1v", "V1d", "V2v", "V2d", "V3v", "V3d")
_HVC_ROIS = (
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
    "LVC": _LVC_ROIS,
    "LVC+hV4": (*_LVC_ROIS, "hV4"),
    "HVC": _HVC_ROIS,
    "HVC-streams": ("ventral", "lateral", "parietal"),
}
"""Name of a region group to its ROIs. A group is the union of those ROIs that the atlas has.

NeuralOOD (Zhao et al. 2024, arXiv:2408.14950) compares a lower visual cortex (LVC) with a higher
one (HVC), but its lists of ROIs are not known. These definitions are our choice: V1 to V3 against
the category-selective areas, or against three streams."""


@dataclass(frozen=True)
class Atlas:
    """Hold the position of each vertex and the ROIs that it belongs to.

    Parameters
    ----------
    hemisphere : ndarray of int8, shape (n_vertices,)
        0 for left, 1 for right. All left vertices come before all right ones.
    rois : mapping of str to ndarray of bool, shape (n_vertices,)
        Mask of each ROI. ROIs may overlap; an ROI without a vertex is reported as absent.
    surface_index : ndarray of int64, shape (n_vertices,), optional
        Index of each vertex in the surface mesh of its hemisphere.
    mesh : str, optional
        Name of that mesh ("fsaverage5", "fsaverage"); None if the vertices lie on no surface.
    groups : mapping of str to tuple of str, default `GROUP_DEFINITIONS`
        Name of a region group to its ROIs; ROIs that the atlas lacks are skipped.
    maps : mapping of str to ndarray of float, shape (n_vertices,), optional
        Continuous maps, for example "polar_angle", "eccentricity" and "rf_size", all in degrees.

    Raises
    ------
    DataError
        If the length of a mask or map differs from the number of vertices, or the hemispheres are
        not ordered.
    """

    hemisphere: np.ndarray
    rois: Mapping[str, np.ndarray]
    surface_index: np.ndarray | None = None
    mesh: str | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(GROUP_DEFINITIONS))
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.hemisphere)
        require(
            not np.any(np.diff(np.asarray(self.hemisphere, dtype=np.int8)) < 0),
            DataError,
            "left vertices before right ones",
            "a mixed order of hemispheres",
            "concatenate the left hemisphere first",
        )
        arrays = {**self.rois, **self.maps}
        if self.surface_index is not None:
            arrays["surface_index"] = self.surface_index
        for name, values in arrays.items():
            require(
                np.shape(values) == (n,),
                DataError,
                f"{name} of shape ({n},), one value per vertex",
                f"shape {np.shape(values)}",
                "use masks of the same space as the responses",
            )

    def __repr__(self) -> str:
        absent = f", absent={list(self.absent)}" if self.absent else ""
        return (
            f"Atlas(n_vertices={self.n_vertices}, n_left={self.n_left}, mesh={self.mesh!r}, "
            f"rois={list(self.present)}{absent})"
        )

    @property
    def n_vertices(self) -> int:
        """Number of vertices in both hemispheres."""
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
        """Names of ROIs that have no vertex in this subject."""
        return tuple(name for name, mask in self.rois.items() if not np.any(mask))

    def members(self, name: str) -> tuple[str, ...]:
        """Return the ROIs of a region group that have vertices in this subject.

        Parameters
        ----------
        name : str
            Name of a group, or of an ROI, which is then the only member.

        Returns
        -------
        tuple of str

        Raises
        ------
        ConfigError
            If the name is neither an ROI nor a group, or has no vertex in this subject.
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
                    "choose one of " + ", ".join(self.present)
                    if self.present
                    else "choose 'all', which is every vertex, or give an atlas with ROIs",
                )
            )
        return found

    def select(self, names: str | Iterable[str]) -> np.ndarray:
        """Return the union of ROIs and groups as a mask.

        Parameters
        ----------
        names : str or iterable of str
            Names of ROIs or groups; "all" stands for every vertex.

        Returns
        -------
        ndarray of bool, shape (n_vertices,)
            True for each vertex that is in at least one of them.

        Raises
        ------
        ConfigError
            If a name is unknown or absent in this subject, or no name is given.
        """
        names = [names] if isinstance(names, str) else list(names)
        require(
            names,
            ConfigError,
            "at least one ROI or group name",
            "an empty list",
            "name one, or 'all'",
        )
        mask = np.zeros(self.n_vertices, dtype=bool)
        for name in names:
            mask |= name == "all" or np.any([self.rois[r] for r in self.members(name)], axis=0)
        return mask

    def subset(self, mask: np.ndarray) -> Atlas:
        """Return the atlas of some of the vertices.

        Parameters
        ----------
        mask : ndarray of bool, shape (n_vertices,)
            Vertices to keep.

        Returns
        -------
        Atlas

        Raises
        ------
        DataError
            If `mask` has another shape than (n_vertices,).
        """
        mask = np.asarray(mask, dtype=bool)
        require(
            mask.shape == (self.n_vertices,),
            DataError,
            f"a mask of shape ({self.n_vertices},)",
            f"shape {mask.shape}",
            "give one value per vertex of this atlas",
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
        """Divide the vertices into parcels of the same hemisphere and the same ROIs.

        Returns
        -------
        dict of str to ndarray of int64, each of shape (n_vertices_of_parcel,)
            Name of each parcel to its vertices. "left:V1" holds the left vertices that are in V1
            and in no other ROI, "right:FFA-1+EBA" the right vertices that are in exactly these two,
            and "left:rest" the left vertices without an ROI. Every vertex is in exactly one parcel.
        """
        names = np.asarray(self.present, dtype=object)
        masks = np.array([self.rois[name] for name in names], dtype=bool)
        masks = masks.reshape(len(names), self.n_vertices)
        parcels: dict[str, list[int]] = {}
        for vertex, side in enumerate(np.asarray(self.hemisphere)):
            rois = "+".join(names[masks[:, vertex]]) or "rest"
            parcels.setdefault(f"{HEMISPHERES[int(side)]}:{rois}", []).append(vertex)
        return {k: np.asarray(v, dtype=np.int64) for k, v in parcels.items()}


def count_per_hemisphere(mask: np.ndarray, hemisphere: np.ndarray) -> dict[str, int]:
    """Count the vertices of a mask in each hemisphere.

    Parameters
    ----------
    mask : ndarray of bool, shape (n_vertices,)
        The vertices to count.
    hemisphere : ndarray of int, shape (n_vertices,)
        0 for left, 1 for right.

    Returns
    -------
    dict of str to int
        "left" and "right".
    """
    side = np.asarray(hemisphere)
    return {name: int(np.sum(mask & (side == k))) for k, name in enumerate(HEMISPHERES)}


def describe_groups(atlas: Atlas) -> str:
    """Return the definition of each region group in a subject, one line per group.

    Parameters
    ----------
    atlas : Atlas
        Atlas of the subject.

    Returns
    -------
    str
        Each line names the ROIs of the group that have vertices, the number of vertices of their
        union per hemisphere (a vertex in several ROIs counts once), and the ROIs of the group that
        are absent in this subject.
    """
    lines = []
    for name, members in atlas.groups.items():
        present = [r for r in members if r in atlas.present]
        absent = [r for r in members if r in atlas.absent]
        union = atlas.select(present) if present else np.zeros(atlas.n_vertices, dtype=bool)
        left, right = count_per_hemisphere(union, atlas.hemisphere).values()
        rois = " + ".join(present) or "nothing"
        line = f"{name} = {rois}: {left} left and {right} right vertices"
        lines.append(line + (f"; absent: {', '.join(absent)}" if absent else ""))
    return "\n".join(lines)

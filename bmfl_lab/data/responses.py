"""A subject: responses per stimulus and vertex, with atlas, splits and noise ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bmfl_lab.data.atlas import Atlas, count_per_hemisphere
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, require, require_known

SPLITS = ("train", "val", "test")


def check_nan_policy(policy: str) -> None:
    """Refuse to read without knowing what to do with vertices that hold a NaN or infinity.

    Parameters
    ----------
    policy : {"refuse", "drop"}
        Stop, or leave them out and record it.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    require(
        policy in ("refuse", "drop"),
        ConfigError,
        "nan_policy 'refuse' or 'drop'",
        repr(policy),
        "choose one of them",
    )


def check_finite(finite: np.ndarray, hemisphere: np.ndarray, policy: str, expected: str) -> None:
    """Refuse vertices that hold NaN or infinity, unless the policy is to leave them out.

    Parameters
    ----------
    finite : ndarray of bool, shape (n_vertices,)
        True for vertices all of whose values are finite.
    hemisphere : ndarray of int, shape (n_vertices,)
        0 for left, 1 for right.
    policy : {"refuse", "drop"}
        Stop, or leave them out.
    expected : str
        Requirement in the message.

    Raises
    ------
    DataError
        If the policy is to refuse and a vertex is not finite, or if no vertex is finite.
    """
    left, right = count_per_hemisphere(~finite, hemisphere).values()
    got = f"NaN or infinity in {left} left and {right} right vertices"
    remedy = "pass nan_policy='drop' to leave these vertices out"
    require(policy == "drop" or finite.all(), DataError, expected, got, remedy)
    wanted = f"{expected} in at least one vertex"
    require(finite.any(), DataError, wanted, "none", "download the responses again")


KINDS = ("measured", "simulated", "predicted")
"""Origins of responses, as figures, records and reports name them."""


@dataclass(frozen=True)
class Subject:
    """Hold the images that one subject saw, and the brain responses to them.

    Parameters
    ----------
    name : str
        Name in figures and records ("subj01"). The name of a simulated subject says that it is one.
    stimuli : StimulusSet
        The n_stimuli images that were shown.
    responses : ndarray of float32, shape (n_stimuli, n_vertices)
        Response to each stimulus, averaged over its repeats. Where sessions are known, each vertex
        is z-scored within each session before. It may be a memory map.
    atlas : Atlas
        Hemisphere and ROIs of each of the n_vertices vertices.
    splits : mapping of str to ndarray of int64
        Name of each split ("train", "val", "test") to its rows. No row is in two splits.
    noise_ceiling : ndarray of float32, shape (n_vertices,), optional
        Explainable share of the variance of `responses`, 0 to 1; NaN where undefined.
    repeats : ndarray of float32, shape (n_stimuli, n_repeats, n_vertices), optional
        Single presentations; NaN where a stimulus was shown fewer times.
    sessions : ndarray of int64, shape (n_stimuli,), optional
        Session in which each stimulus was first shown.
    kind : {"measured", "simulated", "predicted"}, default "measured"
        Origin of the responses: a scanner; a simulation with a known truth; or an external brain
        encoder, which predicted them for the images that a classifier sees.
    attributes : ndarray of float32, shape (n_stimuli, n_attributes), optional
        Attributes that the higher areas of a simulated subject respond to, such as "is an animal".
        A control model gets these values in place of the responses.
    attribute_names : tuple of str
        Names of those attributes.
    truth : mapping
        Ground truth of the simulation: receptive fields, tuning, noiseless responses.
    info : mapping
        Details of how the data were read: split record, dropped and constant vertices, source of
        the noise ceiling.

    Raises
    ------
    DataError
        If shapes do not agree, or splits overlap or hold rows that do not exist.
    """

    name: str
    stimuli: StimulusSet
    responses: np.ndarray
    atlas: Atlas
    splits: Mapping[str, np.ndarray]
    noise_ceiling: np.ndarray | None = None
    repeats: np.ndarray | None = None
    sessions: np.ndarray | None = None
    kind: str = "measured"
    attributes: np.ndarray | None = None
    attribute_names: tuple[str, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_known(self.kind, KINDS, ConfigError, "the origin of the responses")
        n, v = len(self.stimuli), self.atlas.n_vertices
        got = np.shape(self.responses)
        require(
            got == (n, v),
            DataError,
            f"responses of shape (n_stimuli={n}, n_vertices={v}) for {self.name!r}",
            f"shape {got}",
            "transpose the array"
            if got == (v, n)
            else "use the images and masks that belong to these responses",
        )
        for what, values, shape in (
            ("noise_ceiling", self.noise_ceiling, (v,)),
            ("sessions", self.sessions, (n,)),
        ):
            require(
                values is None or np.shape(values) == shape,
                DataError,
                f"{what} of shape {shape}",
                f"shape {np.shape(values)}",
                f"give one value per {'vertex' if shape == (v,) else 'stimulus'}",
            )
        rows = np.asarray([row for index in self.splits.values() for row in index], dtype=np.int64)
        outside = rows[(rows < 0) | (rows >= n)]
        require(
            not len(outside),
            DataError,
            f"row indices 0..{n - 1} in the splits {tuple(self.splits)}",
            f"{outside[:3].tolist()}",
            "make the splits from these stimuli",
        )
        repeated = len(rows) - len(np.unique(rows))
        require(
            not repeated,
            DataError,
            "disjoint splits",
            f"{repeated} stimuli in more than one",
            "assign each stimulus to one split",
        )

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(rows)}" for name, rows in self.splits.items())
        n = f"n_stimuli={len(self.stimuli)}, n_vertices={self.n_vertices}"
        return f"Subject({self.name!r}, {self.kind}, {n}, {splits or 'no split'})"

    @property
    def simulated(self) -> bool:
        """True if the responses come from a simulation."""
        return self.kind == "simulated"

    @property
    def n_vertices(self) -> int:
        """Number of vertices, both hemispheres."""
        return self.atlas.n_vertices

    def rows(self, split: str) -> np.ndarray:
        """Return the rows of a split.

        Parameters
        ----------
        split : str
            Name of a split, or "all" for every row.

        Returns
        -------
        ndarray of int64, shape (n_rows,)

        Raises
        ------
        DataError
            If the subject has no such split.
        """
        if split == "all":
            return np.arange(len(self.stimuli))
        require(
            split in self.splits,
            DataError,
            f"a split of {self.name!r} among {tuple(self.splits)}",
            repr(split),
            "choose one of them"
            if self.splits
            else "judge measured or simulated responses; predictions go straight into a fusion"
            if self.kind == "predicted"
            else "give the subject splits, see split_by_id",
        )
        return np.asarray(self.splits[split], dtype=np.int64)

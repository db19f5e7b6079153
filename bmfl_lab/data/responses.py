"""A subject: responses per stimulus and vertex, with atlas, splits and noise ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message

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
    if policy not in ("refuse", "drop"):
        raise ConfigError(
            message("nan_policy 'refuse' or 'drop'", repr(policy), "choose one of them")
        )


@dataclass(frozen=True)
class Subject:
    """Responses of one subject to a set of stimuli.

    Parameters
    ----------
    name : str
        "subj01"; for simulated data the name says so ("simulated-01").
    stimuli : StimulusSet
        The n_stimuli images that were shown.
    responses : ndarray of float32, shape (n_stimuli, n_vertices)
        Mean over repeats, z-scored per vertex within session where sessions are known. May be a
        memory map.
    atlas : Atlas
        Hemispheres and ROIs of the n_vertices.
    splits : mapping of str to ndarray of int64
        Row indices of "train", "val", "test"; disjoint.
    noise_ceiling : ndarray of float32, shape (n_vertices,), optional
        Explainable share of the variance of `responses`, 0 to 1; NaN where undefined.
    repeats : ndarray of float32, shape (n_stimuli, n_repeats, n_vertices), optional
        Single presentations; NaN where a stimulus was shown fewer times.
    sessions : ndarray of int64, shape (n_stimuli,), optional
        Session in which each stimulus was first shown.
    simulated : bool
        True if the responses were not measured in a brain.
    attributes : ndarray of float32, shape (n_stimuli, n_attributes), optional
        For a simulated subject: the very information its higher areas were built from, for the
        control that gets it as plain labels.
    attribute_names : tuple of str
        Names of those attributes.
    truth : mapping
        For a simulated subject: whatever the generator planted (receptive fields, tuning, noiseless
        responses).

    info : mapping
        How the data were read: split record, dropped and constant vertices, source of the noise
        ceiling.

    Raises
    ------
    DataError
        If shapes do not agree, splits overlap, or values are not finite.
    """

    name: str
    stimuli: StimulusSet
    responses: np.ndarray
    atlas: Atlas
    splits: Mapping[str, np.ndarray]
    noise_ceiling: np.ndarray | None = None
    repeats: np.ndarray | None = None
    sessions: np.ndarray | None = None
    simulated: bool = False
    attributes: np.ndarray | None = None
    attribute_names: tuple[str, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, v = len(self.stimuli), self.atlas.n_vertices
        if np.shape(self.responses) != (n, v):
            got = np.shape(self.responses)
            hint = (
                "transpose the array"
                if got == (v, n)
                else "use the images and masks that belong to these responses"
            )
            raise DataError(
                message(
                    f"responses of shape (n_stimuli={n}, n_vertices={v}) for {self.name!r}",
                    f"shape {got}",
                    hint,
                )
            )
        for what, values, shape in (
            ("noise_ceiling", self.noise_ceiling, (v,)),
            ("sessions", self.sessions, (n,)),
        ):
            if values is not None and np.shape(values) != shape:
                raise DataError(
                    message(
                        f"{what} of shape {shape}",
                        f"shape {np.shape(values)}",
                        f"give one value per {'vertex' if shape == (v,) else 'stimulus'}",
                    )
                )
        seen = np.zeros(n, dtype=np.int64)
        for split, index in self.splits.items():
            index = np.asarray(index)
            if len(index) and (index.min() < 0 or index.max() >= n):
                raise DataError(
                    message(
                        f"row indices 0..{n - 1} in split {split!r}",
                        f"{index.min()}..{index.max()}",
                        "make the split from these stimuli",
                    )
                )
            np.add.at(seen, index, 1)
        if np.any(seen > 1):
            raise DataError(
                message(
                    "disjoint splits",
                    f"{int(np.sum(seen > 1))} stimuli in more than one",
                    "assign each stimulus to one split",
                )
            )

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(rows)}" for name, rows in self.splits.items())
        n = f"n_stimuli={len(self.stimuli)}, n_vertices={self.n_vertices}"
        return f"Subject({self.name!r}, {self.kind}, {n}, {splits or 'no split'})"

    @property
    def kind(self) -> str:
        """Say "simulated" or "measured", for titles and notes."""
        return "simulated" if self.simulated else "measured"

    @property
    def n_vertices(self) -> int:
        """Number of vertices, both hemispheres."""
        return self.atlas.n_vertices

    def rows(self, split: str) -> np.ndarray:
        """Return the row indices of a split ("all" for every row).

        Raises
        ------
        DataError
            If the subject has no such split.
        """
        if split == "all":
            return np.arange(len(self.stimuli))
        if split not in self.splits:
            raise DataError(
                message(
                    f"a split of {self.name!r} among {tuple(self.splits)}",
                    repr(split),
                    "choose one of them",
                )
            )
        return np.asarray(self.splits[split], dtype=np.int64)

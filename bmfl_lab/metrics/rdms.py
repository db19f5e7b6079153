"""RDMs with the ids of their stimuli, by which they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmfl_lab.errors import DataError, message, normal, require
from bmfl_lab.metrics.rsa import compare_rdms, condense, expand


@dataclass(frozen=True)
class RDMs:
    """Condensed RDMs with the ids of their stimuli.

    Parameters
    ----------
    values : ndarray, shape (k, m)
        k condensed RDMs of the same n stimuli, m = n (n - 1) / 2.
    ids : ndarray of str, shape (n,)
        Stimulus ids; RDMs are compared by id, never by position.
    names : tuple of str
        Name of the source of each RDM ("IT", "left:V1", "subj01").

    Raises
    ------
    DataError
        If sizes disagree or an id repeats.
    """

    values: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.atleast_2d(np.asarray(self.values)))
        object.__setattr__(self, "ids", np.asarray(list(map(normal, self.ids)), dtype=object))
        object.__setattr__(
            self, "names", tuple(self.names) or tuple(str(i) for i in range(len(self.values)))
        )
        n = len(self.ids)
        require(
            self.values.shape[1] == n * (n - 1) // 2 and len(self.names) == len(self.values),
            DataError,
            f"RDMs of shape ({len(self.names)}, {n * (n - 1) // 2}) for {n} stimuli",
            f"shape {self.values.shape}",
            "give one id per stimulus and one name per RDM",
        )
        require(
            len(set(self.ids)) == n,
            DataError,
            "unique stimulus ids",
            f"{n - len(set(self.ids))} repeats",
            "average repeats first",
        )

    def __len__(self) -> int:
        return len(self.values)

    def of(self, ids: Sequence[str]) -> RDMs:
        """Return the RDMs of `ids`, in that order.

        Raises
        ------
        DataError
            If an id is missing.
        """
        where = {s: i for i, s in enumerate(self.ids)}
        ids = list(map(normal, ids))
        missing = [s for s in ids if s not in where]
        if missing:
            raise DataError(
                message(
                    "stimulus ids of these RDMs",
                    f"{len(missing)} unknown, e.g. {missing[0]!r}",
                    "choose among the attribute `ids` of these RDMs",
                )
            )
        index = np.asarray([where[s] for s in ids], dtype=np.int64)
        if np.array_equal(index, np.arange(len(self.ids))):
            return self
        return RDMs(
            np.stack([take(v, index) for v in self.values]),
            np.asarray(ids, dtype=object),
            self.names,
        )

    def defined(self) -> RDMs:
        """Return the RDMs without the stimuli whose dissimilarities are undefined in any RDM."""
        n = len(self.ids)
        bad = np.zeros((n, n), dtype=np.int64)
        for row in self.values:
            bad += expand((~np.isfinite(row)).astype(np.int64))
        keep = np.ones(n, dtype=bool)
        while bad[keep][:, keep].any():  # drop the stimulus with most undefined pairs first
            keep[np.argmax(np.where(keep, (bad * keep).sum(1), -1))] = False
        return self.of(list(self.ids[keep]))


def take(condensed: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the part of a condensed RDM that belongs to the stimuli `index` (n_new,), in order."""
    return condense(expand(condensed)[np.ix_(index, index)])


def shared(A: RDMs, B: RDMs) -> tuple[RDMs, RDMs]:
    """Return both restricted to their shared stimuli, in the order of `A`.

    Raises
    ------
    DataError
        If they share fewer than three stimuli.
    """
    common = set(B.ids)
    ids = [s for s in A.ids if s in common]
    require(
        len(ids) >= 3,
        DataError,
        "at least 3 shared stimulus ids",
        f"{len(ids)} (e.g. {A.ids[0]!r} and {B.ids[0]!r})",
        "use responses to the same images, with the same id scheme",
    )
    return A.of(ids), B.of(ids)


def compare(A: RDMs, B: RDMs, method: str = "spearman") -> np.ndarray:
    """Return the similarity of RDMs over their shared stimuli, paired by id; see `compare_rdms`.

    Raises
    ------
    DataError
        If fewer than three stimuli are shared.
    """
    A, B = shared(A, B)
    return compare_rdms(A.values, B.values, method)

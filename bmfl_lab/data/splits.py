"""Split by stimulus identity, and check splits for leakage by id and by image content."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data.stimuli import StimulusSet, digest_pixels
from bmfl_lab.errors import ConfigError, DataError, message, normal, require
from bmfl_lab.files import read_table, sha256_json

STIM_INFO = "nsd_stim_info_merged.csv"
"""NSD's table of all 73,000 images, which marks the 1,000 that every subject was to see."""


def nsd_id(number: int) -> str:
    """Return the stimulus id of an NSD image numbered from 0, e.g. ``"nsd-00013"``."""
    return f"nsd-{int(number):05d}"


def split_by_id(
    ids: Sequence[str],
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    held_out: Iterable[str] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Split rows into train, val and test so that all rows of one stimulus stay together.

    Parameters
    ----------
    ids : sequence of str, length n
        Stimulus id of each row; an id may repeat (repeated presentations).
    val, test : float, default 0.1
        Shares of the stimuli; `test` is ignored when `held_out` is given.
    seed : int, default 0
        Chooses the split.
    held_out : iterable of str, optional
        Ids that form the test split, e.g. the shared 1,000 of NSD; those not among `ids` are
        ignored.

    Returns
    -------
    splits : dict of str to ndarray of int64
        Row indices of "train", "val", "test", ascending and disjoint.
    record : dict
        Method, seed, sizes and a hash of the assignment, for the run's record.

    Raises
    ------
    ConfigError
        If the shares are not in [0, 1) or leave nothing to train on.
    DataError
        If none of the `held_out` ids is present.

    Notes
    -----
    A stimulus's place is a hash of (seed, id): it depends neither on the order of the rows nor on
    which other stimuli are present, so subjects that saw the same image agree about its split up to
    the rounding of the shares.
    """
    require(
        0 <= val < 1 and 0 <= test < 1 and val + test < 1,
        ConfigError,
        "shares val and test in [0, 1) with val + test < 1",
        f"{val} and {test}",
        "lower them",
    )
    names = np.asarray(list(map(normal, ids)), dtype=object)
    unique = sorted(set(names))
    ranked = sorted(unique, key=lambda i: hashlib.sha256(f"{seed}|{i}".encode()).digest())
    if held_out is None:
        tests = set(ranked[: round(test * len(ranked))])
    else:
        tests = set(map(normal, held_out)) & set(unique)
        require(
            tests,
            DataError,
            "held-out ids among the stimuli",
            f"none of them among {len(unique)}, e.g. {unique[:1]}",
            "use ids of the form 'nsd-00013' (0-based)",
        )
    rest = [i for i in ranked if i not in tests]
    vals = set(rest[: round(val * len(rest))])
    kind = np.asarray([2 if i in tests else 1 if i in vals else 0 for i in names], dtype=np.int64)
    splits = {name: np.flatnonzero(kind == k) for k, name in enumerate(("train", "val", "test"))}
    require(
        len(splits["train"]),
        ConfigError,
        "at least one stimulus to train on",
        f"none of {len(unique)}",
        "hold fewer out",
    )
    record = {
        "method": "seeded by id" if held_out is None else "held-out ids",
        "seed": int(seed),
        "val": float(val),
        "sizes": {k: len(v) for k, v in splits.items()},
        "hash": sha256_json({k: sorted(set(names[v])) for k, v in splits.items()})[:16],
    }
    return splits, record


def leave_one_session_out(
    sessions: Sequence[int] | np.ndarray, ids: Sequence[str] | None = None
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Return one fold per session: (session, training rows, test rows).

    Parameters
    ----------
    sessions : array of int, shape (n,)
        Session of each row.
    ids : sequence of str, length n, optional
        Stimulus of each row. Rows of a stimulus that the held-out session showed leave the training
        rows.

    Returns
    -------
    list of (int, ndarray of int64, ndarray of int64), length n_sessions
        The held-out session, the training rows of shape (n_train,), and the test rows of shape
        (n_test,).

    Raises
    ------
    DataError
        If there are fewer than two sessions, or lengths differ.
    """
    sessions = np.asarray(sessions)
    found = np.unique(sessions)
    require(
        len(found) >= 2 and (ids is None or len(ids) == len(sessions)),
        DataError,
        "at least two sessions and one id per row",
        f"{len(found)} session(s), {len(sessions)} rows, {None if ids is None else len(ids)} ids",
        "use k-fold cross-validation, or give the ids of the same rows",
    )
    folds = []
    for session in found:
        test = sessions == session
        train = ~test
        if ids is not None:
            shown = set(np.asarray(ids, dtype=object)[test])
            train &= ~np.asarray([i in shown for i in ids])
        folds.append((int(session), np.flatnonzero(train), np.flatnonzero(test)))
    return folds


MOST_DECODED = 5000
"""Images up to which `check_leakage` decodes all of them (our choice)."""


def _identities(sets: Mapping[str, StimulusSet]) -> dict[str, list[tuple[str, ...]]]:
    """Return the digests of each image: of its file, and of its pixels if there are few images."""
    few = sum(len(s) for s in sets.values()) <= MOST_DECODED
    return {
        k: list(zip(s.digests(), _pixels(s))) if few and s.paths else [(d,) for d in s.digests()]
        for k, s in sets.items()
    }


def _pixels(stimuli: StimulusSet) -> list[str]:
    found = []
    for i in range(len(stimuli)):
        try:
            found.append(digest_pixels(stimuli.image(i)))
        except DataError:  # a damaged file is for the check of the study to name
            found.append(stimuli.digest_of(i))
    return found


def check_leakage(sets: Mapping[str, StimulusSet], *, images: bool = True) -> dict[str, Any]:
    """Refuse sets that share a stimulus, by id or by image content.

    Parameters
    ----------
    sets : mapping of str to StimulusSet
        Sets that claim to be disjoint, e.g. "train", "val", "test".
    images : bool, default True
        Also compare the images: by their decoded pixels, so that an image that was saved again in
        another format is found, or by their files if there are more than 5,000 in all. `data check`
        compares the pixels of larger sets.

    Returns
    -------
    dict
        ``{"sizes": ..., "by_id": 0, "by_image": 0}`` (`by_image` is None when not checked), and
        ``"duplicates_within"``: images that occur more than once inside one set.

    Raises
    ------
    DataError
        Naming, for each pair of sets, how many stimuli they share and examples.
    """
    found: list[str] = []
    remedy = "leave only one copy of each of these images"
    identities = _identities(sets) if images else {}
    digests = {
        name: {d: str(i) for known, i in zip(every, sets[name].ids) for d in known}
        for name, every in identities.items()
    }
    for a, b in itertools.combinations(sets, 2):
        shared = sorted(set(map(str, sets[a].ids)) & set(map(str, sets[b].ids)))
        if shared:
            remedy = "split again by stimulus id"
            found.append(
                f"{len(shared)} ids shared by {a!r} and {b!r}, e.g. {', '.join(shared[:3])}"
            )
        both = sorted(set(digests.get(a, ())) & set(digests.get(b, ())))
        same = list(dict.fromkeys(f"{digests[a][h]} = {digests[b][h]}" for h in both))
        if same:
            pairs = ", ".join(same[:3])
            found.append(f"{len(same)} identical images in {a!r} and {b!r}, e.g. {pairs}")
    require(
        not found,
        DataError,
        "disjoint sets of stimuli",
        "; ".join(found),
        remedy,
    )
    within = {name: len(h) - len({d[-1] for d in h}) for name, h in identities.items()}
    return {
        "sizes": {name: len(s) for name, s in sets.items()},
        "by_id": 0,
        "by_image": 0 if images else None,
        "duplicates_within": within if images else None,
    }


def count_copies(stimuli: StimulusSet, splits: Mapping[str, np.ndarray]) -> int:
    """Count the images that one split shares with another under other ids.

    Parameters
    ----------
    stimuli : StimulusSet
        Images of a subject.
    splits : mapping of str to ndarray of int
        Rows of each split.

    Returns
    -------
    int
        Number of different images, compared by content, that lie in two or more splits.
    """
    digests = np.asarray(stimuli.digests(), dtype=object)
    holders = Counter(h for rows in splits.values() for h in set(digests[rows]))
    return sum(n > 1 for n in holders.values())


def find_stim_info(folder: str | Path) -> Path | None:
    """Return NSD's table in a subject's folder or beside it, or None."""
    folder = Path(folder)
    places = [folder / STIM_INFO, folder.resolve().parent / STIM_INFO]
    return next((p for p in places if p.is_file()), None)


def stim_info_rows(
    path: str | Path, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the lines of NSD's table, ``nsd_stim_info_merged.csv``, as `read_table` does."""
    require(Path(path).is_file(), DataError, STIM_INFO, f"nothing at {path}", "check the path")
    yield from read_table(path, columns, "use NSD's own file, downloaded again")


def stim_info_number(path: str | Path, line: int, row: Mapping[str, str], column: str) -> int:
    """Return a cell of NSD's table as a whole number from 0.

    Raises
    ------
    DataError
        If it is not a whole number; the error names file, line and column.
    """
    try:
        number = int(row[column])
    except ValueError:
        number = -1
    if number < 0:
        raise DataError(
            message(
                f"a whole number from 0 under {column} in {path}, line {line}",
                repr(row[column])[:80],
                "download the file again from NSD",
            )
        )
    return number


def read_shared_ids(path: str | Path) -> tuple[str, ...]:
    """Read the ids of the images that NSD showed to every subject.

    Parameters
    ----------
    path : str or Path
        NSD's table, ``nsd_stim_info_merged.csv``.

    Returns
    -------
    tuple of str, length n_shared
        1,000 ids ("nsd-02950") in the published table.

    Raises
    ------
    DataError
        If the file is damaged, lacks the columns ``nsdId`` and ``shared1000``, or marks no image.
    """
    ids = []
    for line, row in stim_info_rows(path, ("nsdId", "shared1000")):
        marked = row["shared1000"].strip().lower()
        if marked not in ("true", "false", "1", "0"):
            where = f"True or False under shared1000 in {path}, line {line}"
            raise DataError(
                message(where, repr(row["shared1000"])[:80], "download the file again from NSD")
            )
        number = stim_info_number(path, line, row, "nsdId")
        if marked in ("true", "1"):
            ids.append(nsd_id(number))
    require(ids, DataError, f"images marked shared1000 in {path}", "none", "use NSD's own file")
    return tuple(ids)

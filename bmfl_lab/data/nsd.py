"""The Natural Scenes Dataset (NSD) in its own layout, read one session at a time.

References
----------
.. [1] Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and AI,
Nature Neuroscience 25.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data import nsd_files as files
from bmfl_lab.data import nsd_spaces
from bmfl_lab.data.atlas import HEMISPHERES
from bmfl_lab.data.nsd_spaces import Guard
from bmfl_lab.data.responses import Subject, check_nan_policy
from bmfl_lab.data.splits import nsd_id, split_by_id
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.files import link_guard

BETAS = "betas_fithrf_GLMdenoise_RR"
SPACES = {"fsaverage": nsd_spaces.surface, "func1pt8mm": nsd_spaces.volume}
CLASSES = ("prf-visualrois", "floc-bodies", "floc-faces", "floc-places", "floc-words", "streams")
STIM_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"


def read_subject(
    root: str | Path,
    subject: int,
    *,
    space: str = "fsaverage",
    sessions: Sequence[int] | None = None,
    keep_repeats: bool = False,
    roi_classes: Sequence[str] = CLASSES,
    nan_policy: str = "refuse",
    val: float = 0.1,
    seed: int = 0,
    follow_links: bool = False,
) -> Subject:
    """Read one subject from NSD's own folders.

    Parameters
    ----------
    root : str or Path
        Folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    subject : int
        1 to 8.
    space : {"fsaverage", "func1pt8mm"}
        Surface betas (.mgh) or volume betas (.hdf5, else .nii.gz).
    sessions : sequence of int, optional
        Sessions to read (from 1); by default those that have files.
    keep_repeats : bool, default False
        Also return single presentations, float32 (n_stimuli, 3, n_vertices); three times the
        memory.
    roi_classes : sequence of str
        Label maps to look for; the missing ones are recorded. On fsaverage, labels of the subject's
        own surface are brought over by NSD's ``white-to-fsaverage`` transforms.
    nan_policy : {"refuse", "drop"}
        What to do with vertices that hold a NaN or infinity in any session read (subjects 6 and 8
        have some on fsaverage): stop, or leave them out of everything and record it.
    val : float
        Share of the stimuli that are not shared for validation.
    seed : int
        Seed of that choice.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the root.

    Returns
    -------
    Subject
        Betas z-scored per vertex within each session, then averaged over repeats; the shared images
        are the test split; vertices of the ``nsdgeneral`` mask. The noise ceiling counts the
        repeats of the test images, which are those that are scored.

    Raises
    ------
    DataError
        If files are missing, damaged or disagree, or are links out of the root.
    ConfigError
        If `space`, `subject` or `nan_policy` is unknown.

    Notes
    -----
    Only one session is in memory at a time, besides the averages. Vertices that are constant in a
    session get 0 there, and are counted in ``info["constant_vertices"]``.
    """
    _check_options(space, subject, nan_policy)
    root = Path(root).expanduser()
    guard = link_guard(root, follow_links)
    design = _design(root, subject, guard)
    betas = root / f"nsddata_betas/ppdata/subj{subject:02d}" / space / BETAS
    place = SPACES[space](root, betas, subject, roi_classes, guard)
    sessions = list(sessions) if sessions is not None else _sessions(betas)
    side = np.asarray(place.atlas.hemisphere)
    found = _average(place.read, sessions, design.trials(subject), side, keep_repeats, nan_policy)
    numbers, responses, counts, first, constant, keep, repeats = found
    ids = [nsd_id(i) for i in numbers]
    shared = sorted(set(design.shared_ids()) & set(ids))
    splits, record = split_by_id(ids, val=val, seed=seed, held_out=shared or None)
    ceiling, said = _ceiling(place.ncsnr, keep, counts, splits["test"])
    info: dict[str, Any] = {
        "source": f"NSD {space} {BETAS}",
        "split": record,
        "sessions": sessions,
        "repeats_used": _tally(counts),
        "nan_policy": nan_policy,
        "dropped_vertices": {
            name: int(np.sum(~keep & (side == k))) for k, name in enumerate(HEMISPHERES)
        },
        "constant_vertices": int(np.sum(constant)),
        "missing_classes": [*place.missing, *place.native_only],
        "native_only_classes": place.native_only,
        "noise_ceiling": said,
    }
    return Subject(
        name=f"subj{subject:02d}",
        stimuli=files.open_stimuli(
            guard(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"), numbers
        ),
        responses=responses,
        atlas=place.atlas if keep.all() else place.atlas.subset(keep),
        splits=splits,
        noise_ceiling=ceiling,
        repeats=repeats,
        sessions=first,
        info=info,
    )


def _check_options(space: str, subject: int, nan_policy: str) -> None:
    if space not in SPACES or subject not in range(1, 9):
        raise ConfigError(
            message(
                f"a space among {tuple(SPACES)}, subject 1..8",
                f"{space!r}, {subject!r}",
                "choose from these",
            )
        )
    check_nan_policy(nan_policy)


def _design(root: Path, subject: int, guard: Guard) -> files.Design:
    """Read the order of stimuli, checked against NSD's table where that is there."""
    design = files.read_design(guard(root / "nsddata/experiments/nsd/nsd_expdesign.mat"))
    table = root / STIM_INFO
    if table.is_file():
        files.check_trials(design, files.read_stim_info_trials(guard(table), subject), subject)
    return design


def _tally(counts: np.ndarray) -> dict[int, int]:
    return {int(k): int(v) for k, v in zip(*np.unique(counts, return_counts=True))}


def _ceiling(
    ncsnr: np.ndarray | None, keep: np.ndarray, counts: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the noise ceiling of the test images (of all where none are held out) and what to record about it."""
    if ncsnr is None:
        return None, {"source": None}
    scored = counts[test] if len(test) else counts
    of = "test images" if len(test) else "images"
    return files.noise_ceiling(ncsnr[keep], scored), {
        "source": f"ncsnr, for the repeats used of the {of}",
        "repeats": _tally(scored),
    }


def _sessions(betas: Path) -> list[int]:
    found = sorted(
        {int(p.name.split("session")[1][:2]) for p in betas.glob("*betas_session[0-9][0-9].*")}
    )
    if not found:
        raise DataError(
            message(f"beta files in {betas}", "none", "check the path and the download")
        )
    return found


def zscore_session(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Z-score each vertex over the trials of a session, in place.

    Parameters
    ----------
    betas : ndarray of float32, shape (n_vertices, n_trials)

    Returns
    -------
    betas : ndarray of float32, same array
    constant : ndarray of bool, shape (n_vertices,)
        Vertices without variance, set to 0.
    """
    constant = betas.max(1) == betas.min(1)
    for start in range(0, len(betas), 4096):
        block = betas[start : start + 4096]
        block -= block.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        scale = np.sqrt(np.mean(np.square(block), axis=1, dtype=np.float64)).astype(np.float32)
        block /= np.where(constant[start : start + 4096], 1, scale)[:, None]
    betas[constant] = 0
    return betas, constant


def _average(
    read: Callable[[int], np.ndarray],
    sessions: list[int],
    trials: np.ndarray,
    hemisphere: np.ndarray,
    keep_repeats: bool,
    nan_policy: str = "refuse",
) -> tuple:
    """Stream the sessions; return image numbers, averages, counts, first sessions, constant and kept vertices, repeats.

    What is kept is finite in every session; averages, constant vertices and repeats are those of
    kept vertices.
    """
    size, n_vertices = files.TRIALS_PER_SESSION, len(hemisphere)
    used = {s: trials[(s - 1) * size : s * size] for s in sessions}
    numbers = np.unique(np.concatenate(list(used.values())))
    sums = np.zeros((len(numbers), n_vertices), np.float32)
    counts, first = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    constant, keep = np.zeros(n_vertices, bool), np.ones(n_vertices, bool)
    repeats = np.full((len(numbers), 3, n_vertices), np.nan, np.float32) if keep_repeats else None
    for session in sessions:
        betas = read(session)
        if betas.shape != (n_vertices, len(used[session])):
            raise DataError(
                message(
                    f"({n_vertices}, {len(used[session])}) betas, vertices x trials, in session {session}",
                    f"shape {betas.shape}",
                    "download the session again",
                )
            )
        keep &= _finite(betas, session, hemisphere, nan_policy)
        betas, still = zscore_session(betas)
        constant |= still
        for trial, row in enumerate(np.searchsorted(numbers, used[session])):
            sums[row] += betas[:, trial]
            if repeats is not None and counts[row] < 3:
                repeats[row, counts[row]] = betas[:, trial]
            first[row] = first[row] or session
            counts[row] += 1
        del betas
    sums /= counts[:, None].astype(np.float32)
    if not keep.any():
        raise DataError(
            message(
                "at least one vertex that is finite in every session", "none", "read other sessions"
            )
        )
    if not keep.all():
        sums, constant = sums[:, keep], constant[keep]
        repeats = None if repeats is None else repeats[:, :, keep]
    return numbers, sums, counts, first, constant, keep, repeats


def _finite(betas: np.ndarray, session: int, hemisphere: np.ndarray, policy: str) -> np.ndarray:
    """Return the vertices without NaN or infinity, setting the others to 0; or refuse if there are any others."""
    # the sum of a row is not finite if any of its values is not, and needs no array of the betas'
    # size
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = ~np.isfinite(betas.sum(1, dtype=np.float64))
    finite = ~suspect
    finite[suspect] = np.isfinite(betas[suspect]).all(1)
    if not finite.all() and policy == "refuse":
        counts = [int(np.sum(~finite & (hemisphere == k))) for k in (0, 1)]
        raise DataError(
            message(
                f"finite betas in session {session}",
                f"NaN or infinity in {counts[0]} left and {counts[1]} right vertices",
                "pass nan_policy='drop' to leave these vertices out",
            )
        )
    betas[~finite] = 0
    return finite

"""The Natural Scenes Dataset (NSD) in its own layout, read one session at a time.

References
----------
.. [1] Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and AI, Nature Neuroscience 25.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bmfl_lab.data import nsd_files as files
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.splits import nsd_id, split_by_id
from bmfl_lab.errors import ConfigError, DataError, message

BETAS = "betas_fithrf_GLMdenoise_RR"
SPACES = ("fsaverage", "func1pt8mm")


def read_subject(
    root: str | Path,
    subject: int,
    *,
    space: str = "fsaverage",
    sessions: Sequence[int] | None = None,
    keep_repeats: bool = False,
    roi_classes: Sequence[str] = (
        "prf-visualrois",
        "floc-bodies",
        "floc-faces",
        "floc-places",
        "floc-words",
        "streams",
    ),
    val: float = 0.1,
    seed: int = 0,
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
        Also return single presentations, float32 (n_stimuli, 3, n_vertices); three times the memory.
    roi_classes : sequence of str
        Label maps to look for; the missing ones are recorded.
    val : float
        Share of the stimuli that are not shared for validation.
    seed : int
        Seed of that choice.

    Returns
    -------
    Subject
        Betas z-scored per vertex within each session, then averaged over repeats; the shared images are the test
        split; vertices of the ``nsdgeneral`` mask.

    Raises
    ------
    DataError
        If files are missing, damaged or disagree.
    ConfigError
        If `space` or `subject` is unknown.

    Notes
    -----
    Only one session is in memory at a time, besides the averages. Vertices that are constant in a session get 0
    there, and are counted in ``info["constant_vertices"]``.
    """
    if space not in SPACES or subject not in range(1, 9):
        raise ConfigError(
            message(f"a space among {SPACES}, subject 1..8", f"{space!r}, {subject!r}", "choose from these")
        )
    root = Path(root).expanduser()
    design = files.read_design(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    table = root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    if table.is_file():
        files.check_trials(design, files.read_stim_info_trials(table, subject), subject)
    betas = root / f"nsddata_betas/ppdata/subj{subject:02d}" / space / BETAS
    atlas, read, missing = (_surface if space == "fsaverage" else _volume)(root, betas, subject, roi_classes)
    sessions = list(sessions) if sessions is not None else _sessions(betas)
    trials = design.trials(subject)
    averages = _average(read, sessions, trials, atlas.n_vertices, keep_repeats)
    numbers, responses, counts, first, constant, repeats = averages
    ids = [nsd_id(i) for i in numbers]
    shared = sorted(set(design.shared_ids()) & set(ids))
    splits, record = split_by_id(ids, val=val, seed=seed, held_out=shared or None)
    ncsnr = _ncsnr(betas, space, atlas, root, subject)
    return Subject(
        name=f"subj{subject:02d}",
        stimuli=files.open_stimuli(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", numbers),
        responses=responses,
        atlas=atlas,
        splits=splits,
        noise_ceiling=None if ncsnr is None else files.noise_ceiling(ncsnr, counts),
        repeats=repeats,
        sessions=first,
        info={
            "source": f"NSD {space} {BETAS}",
            "split": record,
            "sessions": sessions,
            "repeats_used": {int(k): int(v) for k, v in zip(*np.unique(counts, return_counts=True))},
            "constant_vertices": int(np.sum(constant)),
            "missing_classes": missing,
            "noise_ceiling": {"source": None if ncsnr is None else "ncsnr, for the repeats used"},
        },
    )


def _sessions(betas: Path) -> list[int]:
    found = sorted({int(p.name.split("session")[1][:2]) for p in betas.glob("*betas_session[0-9][0-9].*")})
    if not found:
        raise DataError(message(f"beta files in {betas}", "none", "check the path and the download"))
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
    read: Callable[[int], np.ndarray], sessions: list[int], trials: np.ndarray, n_vertices: int, keep_repeats: bool
) -> tuple:
    """Stream the sessions; return image numbers, averages, counts, first sessions, constant vertices, repeats."""
    size = files.TRIALS_PER_SESSION
    used = {s: trials[(s - 1) * size : s * size] for s in sessions}
    numbers = np.unique(np.concatenate(list(used.values())))
    sums = np.zeros((len(numbers), n_vertices), np.float32)
    counts, first = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    constant = np.zeros(n_vertices, bool)
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
        if not np.isfinite(betas).all():
            raise DataError(
                message(
                    f"finite betas in session {session}",
                    f"{int(np.sum(~np.isfinite(betas).all(1)))} vertices with NaN or infinity",
                    "take these vertices out of the nsdgeneral mask",
                )
            )
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
    return numbers, sums, counts, first, constant, repeats


def _rois(
    folders: list[Path], pattern: str, table: str, kinds: Sequence[str], flat: Callable
) -> tuple[dict, list[str]]:
    """Read label maps by class; `flat` turns the maps of a class into one vector over the atlas's vertices."""
    rois: dict[str, np.ndarray] = {}
    missing = []
    for kind in kinds:
        sides = [pattern.format(side=side, kind=kind) for side in ("lh", "rh")]
        folder = next((f for f in folders if all((f / s).is_file() for s in sides)), None)
        if folder is None:
            missing.append(kind)
            continue
        colours = next((f / table.format(kind=kind) for f in folders if (f / table.format(kind=kind)).is_file()), None)
        read = [files.read_labels(folder / s, colours or folder / table.format(kind=kind)) for s in sides]
        labels = flat([r[0] for r in read], folder / sides[0])
        rois.update({name: labels == code for code, name in read[0][1].items()})
    return rois, missing


def _surface(root: Path, betas: Path, subject: int, kinds: Sequence[str]) -> tuple:
    """Return the atlas of nsdgeneral on fsaverage, the reader of a session, and the missing ROI classes."""
    folders = [root / f"nsddata/freesurfer/{who}/label" for who in (f"subj{subject:02d}", "fsaverage")]
    general = [files.load_image(folders[1] / f"{s}.nsdgeneral.mgz", "the nsdgeneral mask") for s in ("lh", "rh")]
    index = [np.flatnonzero(np.squeeze(g) > 0) for g in general]
    sizes = [g.size for g in general]

    def flat(maps: list[np.ndarray], where: Path) -> np.ndarray:
        if [m.size for m in maps] != sizes:
            raise DataError(
                message(
                    f"labels of {sizes} vertices, the mesh of the betas, in {where}",
                    f"{[m.size for m in maps]}: labels of the subject's own surface",
                    "resample them to fsaverage with nsdcode and put them into freesurfer/fsaverage/label",
                )
            )
        return np.concatenate([m.ravel()[i] for m, i in zip(maps, index)])

    rois, missing = _rois(folders[::-1], "{side}.{kind}.mgz", "{kind}.mgz.ctab", kinds, flat)

    def read(session: int) -> np.ndarray:
        parts = []
        for side, chosen, size in zip(("lh", "rh"), index, sizes):
            path = betas / f"{side}.betas_session{session:02d}.mgh"
            data = files.surface_betas(path)
            if len(data) != size:
                raise DataError(message(f"{size} vertices in {path}", f"{len(data)}", "use betas in fsaverage space"))
            parts.append(data[chosen])
            del data
        return np.concatenate(parts)

    hemisphere = np.repeat(np.arange(2, dtype=np.int8), [len(i) for i in index])
    return Atlas(hemisphere, rois, surface_index=np.concatenate(index), mesh="fsaverage"), read, missing


def _general_volume(root: Path, subject: int) -> list[np.ndarray]:
    folder = root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/roi"
    return [files.load_image(folder / f"{s}.nsdgeneral.nii.gz", "the nsdgeneral mask") > 0 for s in ("lh", "rh")]


def _volume(root: Path, betas: Path, subject: int, kinds: Sequence[str]) -> tuple:
    """Return the atlas of nsdgeneral voxels, the reader of a session, and the missing ROI classes."""
    masks = _general_volume(root, subject)
    folders = [
        root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/roi",
        root / f"nsddata/freesurfer/subj{subject:02d}/label",
    ]

    def flat(maps: list[np.ndarray], where: Path) -> np.ndarray:
        if any(m.shape != masks[0].shape for m in maps):
            raise DataError(
                message(
                    f"labels on the grid {masks[0].shape} in {where}", f"{[m.shape for m in maps]}", "use func1pt8mm"
                )
            )
        return np.concatenate([m[k] for m, k in zip(maps, masks)])

    rois, missing = _rois(folders, "{side}.{kind}.nii.gz", "{kind}.mgz.ctab", kinds, flat)

    def read(session: int) -> np.ndarray:
        path = betas / f"betas_session{session:02d}.hdf5"
        path = path if path.is_file() else path.with_name(f"betas_session{session:02d}.nii.gz")
        both = files.volume_betas(path, masks[0] | masks[1])
        right = masks[1][masks[0] | masks[1]]
        return np.concatenate([both[~right], both[right]])

    if np.any(masks[0] & masks[1]):
        raise DataError(message("disjoint left and right masks", "voxels in both", "download the masks again"))
    hemisphere = np.repeat(np.arange(2, dtype=np.int8), [int(m.sum()) for m in masks])
    return Atlas(hemisphere, rois), read, missing


def _ncsnr(betas: Path, space: str, atlas: Atlas, root: Path, subject: int) -> np.ndarray | None:
    if space == "fsaverage":
        paths = [betas / f"{side}.ncsnr.mgh" for side in ("lh", "rh")]
        if not all(p.is_file() for p in paths):
            return None
        maps = [np.ravel(files.load_image(p, "ncsnr")) for p in paths]
        index = [np.asarray(atlas.surface_index)[np.asarray(atlas.hemisphere) == k] for k in (0, 1)]
        return np.concatenate([m[i] for m, i in zip(maps, index)])
    path = betas / "ncsnr.nii.gz"
    if not path.is_file():
        return None
    data = files.load_image(path, "ncsnr")
    return np.concatenate([data[m] for m in _general_volume(root, subject)])

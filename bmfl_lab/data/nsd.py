"""Read the Natural Scenes Dataset (NSD) from its own folders, one session at a time.

`read_subject` reads one subject, and `load` reads one or all subjects below a root as a study. The
parts of the file are: the two spaces of the betas (fsaverage and the 1.8 mm volume), the subject,
and the study. `bmfl_lab.data.nsd_files` reads the single files.

References
----------
.. [1] Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and AI,
   Nature Neuroscience 25.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data import nsd_files
from bmfl_lab.data.atlas import Atlas, count_per_hemisphere
from bmfl_lab.data.containers import load_image
from bmfl_lab.data.responses import Subject, check_finite, check_nan_policy
from bmfl_lab.data.splits import nsd_id, split_by_id
from bmfl_lab.data.study import Study, chosen_subjects, register_reader
from bmfl_lab.errors import ConfigError, DataError, message, require
from bmfl_lab.files import Guard, link_guard, load_npy, save_npy


def noise_ceiling(ncsnr: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Return the explainable share of variance of responses averaged over their repeats.

    Parameters
    ----------
    ncsnr : ndarray of float, shape (n_vertices,)
        Noise-ceiling signal-to-noise ratio.
    repeats : ndarray of int, shape (n_stimuli,)
        How often each stimulus was averaged.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)
        Share of the variance from 0 to 1; NaN where `ncsnr` is zero, negative or not finite.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25; for mixed repeats Gifford et al. (2023),
    arXiv:2301.03198.
    """
    repeats = np.asarray(repeats, np.float64)
    require(
        repeats.size and repeats.min() >= 1,
        DataError,
        "at least one repeat of each stimulus",
        f"{repeats[:5].tolist()}",
        "leave out unseen images",
    )
    noise = float(np.mean(1.0 / repeats))
    s = np.asarray(ncsnr, np.float64)
    defined = np.isfinite(s) & (s > 0)
    s = np.where(defined, s, 1.0)
    return np.where(defined, s**2 / (s**2 + noise), np.nan).astype(np.float32)


SIDES = ("lh", "rh")


@dataclass(frozen=True)
class Space:
    """Describe the vertices or voxels in which the betas of a subject lie.

    Parameters
    ----------
    atlas : Atlas
        Vertices or voxels of the ``nsdgeneral`` mask with their ROIs.
    read : callable
        Session to its betas, float32 (n_vertices, n_trials).
    ncsnr : ndarray of float, shape (n_vertices,), optional
        Signal-to-noise ratio of a single presentation, where NSD's map is there.
    missing : list of str
        ROI classes without label maps.
    native_only : list of str
        ROI classes labelled on the subject's own surface only, without the transform that brings
        them here.
    """

    atlas: Atlas
    read: Callable[[int], np.ndarray]
    ncsnr: np.ndarray | None
    missing: list[str]
    native_only: list[str]


def _rois(
    folders: Sequence[Path],
    pattern: str,
    kinds: Sequence[str],
    flat: Callable[[list[np.ndarray], Path], np.ndarray | None],
    guard: Guard,
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Return ROI masks, missing classes, and classes that lie on another surface only.

    `flat` turns the label maps of a class into one vector, or returns None if it cannot.
    """
    rois: dict[str, np.ndarray] = {}
    missing, elsewhere = [], []
    for kind in kinds:
        sides = [pattern.format(side=side, kind=kind) for side in SIDES]
        folder = next((f for f in folders if all((f / s).is_file() for s in sides)), None)
        if folder is None:
            missing.append(kind)
            continue
        tables = [f / f"{kind}.mgz.ctab" for f in (folder, *folders)]
        table = next((t for t in tables if t.is_file()), tables[0])
        read = [nsd_files.read_labels(guard(folder / s), guard(table)) for s in sides]
        labels = flat([r[0] for r in read], folder / sides[0])
        if labels is None:
            elsewhere.append(kind)
            continue
        rois.update({name: labels == code for code, name in read[0][1].items()})
    return rois, missing, elsewhere


def _to_fsaverage(transforms: Path, sizes: list[int], guard: Guard) -> list[np.ndarray] | None:
    """Return the vertex (from 0) of the subject's own surface at each vertex of fsaverage."""
    paths = [transforms / f"{side}.white-to-fsaverage.mgz" for side in SIDES]
    if not all(p.is_file() for p in paths):
        return None
    found = []
    for path, size in zip(paths, sizes):
        values = np.ravel(load_image(guard(path), "the transform to fsaverage"))
        require(
            values.size == size and np.array_equal(values, np.rint(values)) and values.min() >= 1,
            DataError,
            f"{size} vertex numbers from 1 in {path}",
            f"{values.size} values, smallest {values.min()}",
            "download the file again from NSD",
        )
        found.append(values.astype(np.int64) - 1)  # NSD counts from 1
    return found


def _on_mesh(maps: list[np.ndarray], sources: list[np.ndarray], where: Path) -> list[np.ndarray]:
    """Bring labels of the subject's own surface to fsaverage by the nearest neighbour.

    The rule is that of NSD's own tool, nsdcode.
    """
    for own, source in zip(maps, sources):
        require(
            source.max() < own.size,
            DataError,
            f"labels of at least {source.max() + 1} vertices, "
            f"to which white-to-fsaverage refers, in {where}",
            f"{own.size}",
            "use labels and transforms of one subject",
        )
    return [own.ravel()[source] for own, source in zip(maps, sources)]


def _surface(root: Path, betas: Path, subject: int, kinds: Sequence[str], guard: Guard) -> Space:
    """Return ``nsdgeneral`` on fsaverage.

    Labels on fsaverage are taken as they are; those on the subject's own surface, as NSD ships most
    classes, are brought over by ``transforms/{lh,rh}.white-to-fsaverage.mgz``.

    Raises
    ------
    DataError
        If the mask is missing, or labels or transforms do not fit.

    Warns
    -----
    UserWarning
        If classes are labelled on the subject's own surface only and the transform is not there.
    """
    who = f"subj{subject:02d}"
    folders = [root / f"nsddata/freesurfer/{name}/label" for name in ("fsaverage", who)]
    transforms = root / f"nsddata/ppdata/{who}/transforms"
    general = [
        load_image(guard(folders[0] / f"{s}.nsdgeneral.mgz"), "the nsdgeneral mask") for s in SIDES
    ]
    index = [np.flatnonzero(np.squeeze(g) > 0) for g in general]
    sizes = [g.size for g in general]

    def flat(maps: list[np.ndarray], where: Path) -> np.ndarray | None:
        if where.parent != folders[0]:
            sources = _to_fsaverage(transforms, sizes, guard)
            if sources is None:
                return None
            maps = _on_mesh(maps, sources, where)
        require(
            [m.size for m in maps] == sizes,
            DataError,
            f"labels of {sizes} vertices, the mesh of the betas, in {where}",
            f"{[m.size for m in maps]}",
            "put labels on fsaverage there, "
            "and those of the subject's own surface into its own folder",
        )
        return np.concatenate([m.ravel()[i] for m, i in zip(maps, index)])

    rois, missing, elsewhere = _rois(folders, "{side}.{kind}.mgz", kinds, flat, guard)
    if elsewhere:
        wanted = (
            f"lh and rh.white-to-fsaverage.mgz in {transforms}, to bring ROI labels to fsaverage"
        )
        found = f"none: {', '.join(elsewhere)} of {who} are left out"
        warnings.warn(message(wanted, found, "download the two transforms from NSD"), stacklevel=3)
    hemisphere = np.repeat(np.arange(2, dtype=np.int8), [len(i) for i in index])
    return Space(
        atlas=Atlas(hemisphere, rois, surface_index=np.concatenate(index), mesh="fsaverage"),
        read=_surface_reader(betas, index, sizes, guard),
        ncsnr=_surface_ncsnr(betas, index, sizes, guard),
        missing=missing,
        native_only=elsewhere,
    )


def _surface_reader(
    betas: Path, index: list[np.ndarray], sizes: list[int], guard: Guard
) -> Callable:
    def read(session: int) -> np.ndarray:
        parts = []
        for side, chosen, size in zip(SIDES, index, sizes):
            path = betas / f"{side}.betas_session{session:02d}.mgh"
            data = nsd_files.surface_betas(guard(path))
            require(
                len(data) == size,
                DataError,
                f"{size} vertices in {path}",
                f"{len(data)}",
                "use betas in fsaverage space",
            )
            n_trials = parts[0].shape[1] if parts else data.shape[1]
            require(
                data.shape[1] == n_trials,
                DataError,
                f"{n_trials} trials in {path}, as in the other hemisphere",
                f"{data.shape[1]}",
                "download the session again",
            )
            parts.append(data[chosen])
            del data
        return np.concatenate(parts)

    return read


def _surface_ncsnr(
    betas: Path, index: list[np.ndarray], sizes: list[int], guard: Guard
) -> np.ndarray | None:
    paths = [betas / f"{side}.ncsnr.mgh" for side in SIDES]
    if not all(p.is_file() for p in paths):
        return None
    maps = [np.ravel(load_image(guard(p), "ncsnr")) for p in paths]
    require(
        [len(m) for m in maps] == sizes,
        DataError,
        f"ncsnr of {sizes} vertices in {betas}",
        f"{[len(m) for m in maps]}",
        "use the maps in fsaverage space",
    )
    return np.concatenate([m[i] for m, i in zip(maps, index)])


def _volume(root: Path, betas: Path, subject: int, kinds: Sequence[str], guard: Guard) -> Space:
    """Return ``nsdgeneral`` in the 1.8 mm volume.

    Raises
    ------
    DataError
        If the masks are missing or overlap, or labels lie on another grid.
    """
    folder = root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/roi"
    names = [folder / f"{s}.nsdgeneral.nii.gz" for s in SIDES]
    masks = [load_image(guard(p), "the nsdgeneral mask") > 0 for p in names]
    grids = [m.shape for m in masks]
    require(
        grids[0] == grids[1] and not np.any(masks[0] & masks[1]),
        DataError,
        "disjoint left and right masks of one grid",
        "voxels in both" if grids[0] == grids[1] else f"grids {grids[0]}, {grids[1]}",
        "download the masks again",
    )
    both = masks[0] | masks[1]

    def flat(maps: list[np.ndarray], where: Path) -> np.ndarray:
        require(
            all(m.shape == both.shape for m in maps),
            DataError,
            f"labels on the grid {both.shape} in {where}",
            f"{[m.shape for m in maps]}",
            "use the labels in func1pt8mm",
        )
        return np.concatenate([m[k] for m, k in zip(maps, masks)])

    tables = root / f"nsddata/freesurfer/subj{subject:02d}/label"
    rois, missing, _ = _rois([folder, tables], "{side}.{kind}.nii.gz", kinds, flat, guard)

    def read(session: int) -> np.ndarray:
        path = betas / f"betas_session{session:02d}.hdf5"
        path = path if path.is_file() else path.with_name(f"betas_session{session:02d}.nii.gz")
        values, right = nsd_files.volume_betas(guard(path), both), masks[1][both]
        return np.concatenate([values[~right], values[right]])

    noise, ncsnr = betas / "ncsnr.nii.gz", None
    if noise.is_file():
        grid = load_image(guard(noise), "ncsnr")
        expected = f"ncsnr on the grid {both.shape}"
        remedy = "use the map in func1pt8mm"
        require(grid.shape == both.shape, DataError, expected, grid.shape, remedy)
        ncsnr = np.concatenate([grid[m] for m in masks])
    hemisphere = np.repeat(np.arange(2, dtype=np.int8), [int(m.sum()) for m in masks])
    return Space(
        atlas=Atlas(hemisphere, rois),
        read=read,
        ncsnr=ncsnr,
        missing=missing,
        native_only=[],
    )


BETAS = "betas_fithrf_GLMdenoise_RR"
SPACES = {"fsaverage": _surface, "func1pt8mm": _volume}
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
    seed : int, default 0
        Seed of the validation split.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the root.

    Returns
    -------
    Subject
        Responses of shape (n_stimuli, n_vertices), float32, for the vertices or voxels of the
        ``nsdgeneral`` mask: betas z-scored per vertex within each session, then averaged over the
        repeats of an image. The shared images are the test split. The noise ceiling counts the
        repeats of the test images, which are those that are scored.

    Raises
    ------
    DataError
        If files are missing, damaged or disagree, or are links out of the root.
    ConfigError
        If `space`, `subject` or `nan_policy` is unknown, or `sessions` is empty, repeats a session
        or names one that has no files.

    Notes
    -----
    Only one session is in memory at a time, besides the averages. Vertices that are constant in a
    session get 0 there, and are counted in ``info["constant_vertices"]``.
    """
    require(
        space in SPACES and subject in range(1, 9),
        ConfigError,
        f"a space among {tuple(SPACES)}, subject 1..8",
        f"{space!r}, {subject!r}",
        "choose a space and a subject from these",
    )
    check_nan_policy(nan_policy)
    root = Path(root).expanduser()
    guard = link_guard(root, follow_links)
    betas = root / f"nsddata_betas/ppdata/subj{subject:02d}" / space / BETAS
    sessions = _sessions(betas, sessions)
    design = _design(root, subject, guard)
    place = SPACES[space](root, betas, subject, roi_classes, guard)
    side = np.asarray(place.atlas.hemisphere)
    found = _average(place.read, sessions, design.trials(subject), side, keep_repeats, nan_policy)
    numbers, responses, counts, first, constant, keep, repeats = found
    ids = [nsd_id(i) for i in numbers]
    shared = sorted(set(design.shared_ids()) & set(ids))
    splits, record = split_by_id(ids, val=val, seed=seed, held_out=shared or None)
    ceiling, noise = _ceiling(place.ncsnr, keep, counts, splits["test"])
    info: dict[str, Any] = {
        "source": f"NSD {space} {BETAS}",
        "split": record,
        "sessions": sessions,
        "repeats_used": _tally(counts),
        "nan_policy": nan_policy,
        "dropped_vertices": count_per_hemisphere(~keep, side),
        "constant_vertices": int(np.sum(constant)),
        "missing_classes": [*place.missing, *place.native_only],
        "native_only_classes": place.native_only,
        "noise_ceiling": noise,
    }
    return Subject(
        name=f"subj{subject:02d}",
        stimuli=nsd_files.open_stimuli(
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


def _design(root: Path, subject: int, guard: Guard) -> nsd_files.Design:
    """Read the order of stimuli, checked against NSD's table where that is there."""
    design = nsd_files.read_design(guard(root / "nsddata/experiments/nsd/nsd_expdesign.mat"))
    table = root / STIM_INFO
    if table.is_file():
        nsd_files.check_trials(
            design, nsd_files.read_stim_info_trials(guard(table), subject), subject
        )
    return design


def _tally(counts: np.ndarray) -> dict[int, int]:
    return {int(k): int(v) for k, v in zip(*np.unique(counts, return_counts=True))}


def _ceiling(
    ncsnr: np.ndarray | None, keep: np.ndarray, counts: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the noise ceiling and its record.

    It holds for the test images, or for all images if none are held out.
    """
    if ncsnr is None:
        return None, {"source": None}
    scored = counts[test] if len(test) else counts
    of = "test images" if len(test) else "images"
    return noise_ceiling(ncsnr[keep], scored), {
        "source": f"ncsnr, for the repeats used of the {of}",
        "repeats": _tally(scored),
    }


def _sessions(betas: Path, chosen: Sequence[int] | None) -> list[int]:
    """Return the sessions to read, each once."""
    names = [p.name for p in betas.glob("*betas_session[0-9][0-9].*")]
    there = sorted({int(name.split("session")[1][:2]) for name in names})
    if not there:
        others = [s for s in SPACES if any((betas.parents[1] / s / BETAS).glob("*betas_session*"))]
        remedy = (
            f"pass space={others[0]!r}"
            if others
            else "download betas_session01 and so on of this subject into this folder"
        )
        raise DataError(message(f"beta files in {betas}", "none", remedy))
    given = there if chosen is None else np.ravel(np.asarray(chosen, object)).tolist()
    known = {s for s in given if s in there and not isinstance(s, bool)}
    require(
        given and len(known) == len(given),
        ConfigError,
        f"different sessions among {there}, at least one",
        repr(chosen),
        "name each session once, for example sessions=[1, 2], or leave out the option for all",
    )
    return [int(session) for session in given]


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
    """Read session after session and average the responses to each image.

    Returns image numbers, averages, counts, first sessions, constant vertices, kept vertices and
    repeats. The kept vertices are finite in every session; averages, constant vertices and repeats
    hold only these.
    """
    size, n_vertices = nsd_files.TRIALS_PER_SESSION, len(hemisphere)
    used = {s: trials[(s - 1) * size : s * size] for s in sessions}
    numbers = np.unique(np.concatenate(list(used.values())))
    sums = np.zeros((len(numbers), n_vertices), np.float32)
    counts, first = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    constant, keep = np.zeros(n_vertices, bool), np.ones(n_vertices, bool)
    repeats = np.full((len(numbers), 3, n_vertices), np.nan, np.float32) if keep_repeats else None
    for session in sessions:
        betas = read(session)
        require(
            betas.shape == (n_vertices, len(used[session])),
            DataError,
            f"({n_vertices}, {len(used[session])}) betas, vertices x trials, in session {session}",
            f"shape {betas.shape}",
            "download the session again",
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
    require(
        keep.any(),
        DataError,
        "at least one vertex that is finite in every session",
        "none",
        "read other sessions",
    )
    if not keep.all():
        sums, constant = sums[:, keep], constant[keep]
        repeats = None if repeats is None else repeats[:, :, keep]
    return numbers, sums, counts, first, constant, keep, repeats


def _finite(betas: np.ndarray, session: int, hemisphere: np.ndarray, policy: str) -> np.ndarray:
    """Return which vertices are finite; set the others to 0, or refuse them."""
    # the sum of a row is not finite if any of its values is not, and needs no array of the betas'
    # size
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = ~np.isfinite(betas.sum(1, dtype=np.float64))
    finite = ~suspect
    finite[suspect] = np.isfinite(betas[suspect]).all(1)
    check_finite(finite, hemisphere, policy, f"finite betas in session {session}")
    betas[~finite] = 0
    return finite


def subject_numbers(root: str | Path, space: str = "fsaverage") -> dict[str, int]:
    """Find the subjects whose betas are there.

    Parameters
    ----------
    root : str or Path
        Folder that holds ``nsddata_betas``.
    space : {"fsaverage", "func1pt8mm"}, default "fsaverage"
        Space of the betas.

    Returns
    -------
    dict of str to int
        Name ("subj01") to number of each subject; empty if there is none.
    """
    base = Path(root).expanduser() / "nsddata_betas/ppdata"
    return {
        f"subj{n:02d}": n for n in range(1, 9) if (base / f"subj{n:02d}" / space / BETAS).is_dir()
    }


def detect(path: Path) -> bool:
    """Return whether a folder holds NSD's ``nsddata_betas``."""
    return (path / "nsddata_betas").is_dir()


def load(
    root: str | Path,
    *,
    subject: str | None = None,
    space: str = "fsaverage",
    seed: int = 0,
    val: float = 0.1,
    nan_policy: str = "refuse",
    cache: str | Path | None = None,
    follow_links: bool = False,
) -> Study:
    """Read one subject, or all whose betas are there, as a study.

    Parameters
    ----------
    root : str or Path
        Folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    subject : str, optional
        Name of the only subject to read ("subj01"). A subject takes up to 1.6 GB of memory.
    space, seed, val, nan_policy, follow_links
        Options of `read_subject`.
    cache : str or Path, optional
        Folder for the averaged responses, ``<subject>.npy``, which are then mapped instead of held
        in memory.

    Returns
    -------
    Study
        Study with subjects and without labelled image sets.

    Raises
    ------
    DataError
        If there is no subject, none of that name, or its files are damaged.
    """
    wanted = f"nsddata_betas/ppdata/subj01/{space}/{BETAS} or another subject's"
    chosen = chosen_subjects(subject_numbers(root, space), subject, root, wanted)
    options = {"val": val, "seed": seed, "follow_links": follow_links}
    subjects = {
        name: _mapped(
            read_subject(root, number, space=space, nan_policy=nan_policy, **options), cache
        )
        for name, number in chosen.items()
    }
    return Study(
        name=Path(root).expanduser().resolve().name,
        description=f"responses of the Natural Scenes Dataset, {space}: {', '.join(subjects)}",
        sets={},
        subjects=subjects,
        licences={"images and responses": "the terms of the Natural Scenes Dataset"},
        extra={"split": {name: s.info["split"] for name, s in subjects.items()}},
    )


def _mapped(subject: Subject, cache: str | Path | None) -> Subject:
    if cache is None:
        return subject
    path = Path(cache).expanduser() / f"{subject.name}.npy"
    save_npy(path, subject.responses)
    return replace(subject, responses=load_npy(path, mmap=True))


register_reader("nsd", load, detect, subjects_only=True, layout="nsddata and nsddata_betas")

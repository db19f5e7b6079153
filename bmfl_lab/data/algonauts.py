"""Algonauts 2023 folders: one subject's images, responses and ROI masks.

References
----------
.. [1] Gifford et al. (2023), The Algonauts Project 2023 Challenge, arXiv:2301.03198. .. [2] Allen
et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and AI, Nature
Neuroscience 25.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data import stimuli
from bmfl_lab.data.algonauts_masks import SIDES, read_atlas
from bmfl_lab.data.algonauts_note import read_note
from bmfl_lab.data.atlas import HEMISPHERES
from bmfl_lab.data.responses import Subject, check_nan_policy
from bmfl_lab.data.splits import STIM_INFO, find_stim_info, nsd_id, read_shared_ids, split_by_id
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import atomic_path, link_guard, load_npy

VERTEX_COUNTS: dict[str, tuple[int, int]] = {
    **{f"subj{i:02d}": (19004, 20544) for i in (1, 2, 3, 4, 5, 7)},
    "subj06": (18978, 20220),
    "subj08": (18981, 20530),
}
"""Left and right vertices of the challenge's eight subjects; vertices without data were left out in 6 and 8."""

IMAGE_COUNTS = dict(
    zip((f"subj{i:02d}" for i in range(1, 9)), (9841, 9841, 9082, 8779, 9841, 9082, 9841, 8779))
)
"""Training images of the eight subjects."""

_IMAGE = re.compile(r"(train|test)-(\d+)_nsd-(\d+)\.(png|jpg|jpeg)", re.IGNORECASE)
_ROWS = 256


def read_subject(
    folder: str | Path,
    *,
    nan_policy: str = "refuse",
    enforce_counts: bool = True,
    shared_ids: Iterable[str] | None = None,
    stim_info: str | Path | None = None,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    follow_links: bool = False,
    cache: str | Path | None = None,
    verify: bool = True,
) -> Subject:
    """Read the folder of one subject in the layout of the Algonauts 2023 challenge.

    Parameters
    ----------
    folder : str or Path
        ``subj01`` .. ``subj08``, or a folder of your own data in the same layout (see
        `write_subject`).
    nan_policy : {"refuse", "drop"}
        What to do with vertices that hold a NaN or infinity: stop, or leave them out and record it.
    enforce_counts : bool, default True
        For folders named as the eight subjects, require the published numbers of vertices and
        images.
    shared_ids : iterable of str, optional
        Stimulus ids (``"nsd-02950"``, 0-based) held out as the test split, e.g. NSD's shared 1,000.
    stim_info : str or Path, optional
        ``nsd_stim_info_merged.csv``, from which the shared ids are taken when `shared_ids` is not
        given; by default the one in the subject's folder or beside it, if there is one.
    val, test : float
        Shares of the stimuli; `test` counts only without shared ids.
    seed : int, default 0
        Seed of the split.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.
    cache : str or Path, optional
        Write the joined responses to this ``.npy`` file and map it, instead of holding them in
        memory.
    verify : bool, default True
        Compare a folder that `write_subject` made with its checksums.

    Returns
    -------
    Subject
        `responses` (n_stimuli, n_vertices), left vertices before right ones; `info` records the
        split, dropped and constant vertices, absent ROIs and the origin of the noise ceiling.

    Raises
    ------
    DataError
        If files are missing, damaged, of another subject, or disagree with each other.
    ConfigError
        If `nan_policy` is unknown.

    Notes
    -----
    Images and rows are paired by the number in the file name (1-based row). Where the organisers'
    test responses are present, those images form the test split together with the shared ones. The
    challenge's training images hold most of NSD's shared 1,000, and which ones only NSD's own table
    says.

    Warns
    -----
    UserWarning
        If one of the eight subjects is read without shared ids: its test images are then drawn by
        the seed.
    """
    check_nan_policy(nan_policy)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(
            message("the folder of a subject", f"nothing at {folder}", "check the path")
        )
    guard = link_guard(folder, follow_links)
    note = read_note(folder, guard, verify=verify)
    named = enforce_counts and folder.name in VERTEX_COUNTS
    parts = [_read_part(folder, "train", guard)]
    if (folder / "test_split" / "test_fmri").is_dir():
        parts.append(_read_part(folder, "test", guard))
    n_vertices = tuple(parts[0][2][k].shape[1] for k in (0, 1))
    if named:
        _check_counts(folder.name, n_vertices, len(parts[0][0]))
    atlas, missing = read_atlas(folder, n_vertices, guard, need_all=named)
    if not note.surface:  # the places on fsaverage only number the vertices
        atlas = dataclasses.replace(atlas, surface_index=None, mesh=None)
    low, high = _extremes(parts)
    keep = _finite(low, high, atlas.hemisphere, nan_policy, folder)
    paths = [p for part in parts for p in part[0]]
    ids = [i for part in parts for i in part[1]]
    constant = (low == high)[keep]
    ceiling, ceiling_info = _read_ceiling(folder, n_vertices, guard)
    shared_ids = _shared(folder, shared_ids, stim_info, named)
    splits, record = _split(ids, len(parts[0][1]), shared_ids, val, test, seed)
    kept = atlas if keep.all() else atlas.subset(keep)
    info: dict[str, Any] = {
        "source": "Algonauts 2023 layout",
        "split": record,
        "nan_policy": nan_policy,
        "dropped_vertices": _per_hemisphere(~keep, atlas.hemisphere),
        "constant_vertices": _per_hemisphere(constant, kept.hemisphere),
        "absent_rois": list(kept.absent),
        "missing_classes": missing,
        "noise_ceiling": ceiling_info,
    }
    return Subject(
        name=folder.name,
        stimuli=stimuli.from_files(folder.name, paths, ids, np.full(len(ids), -1)),
        responses=_join(parts, keep, cache),
        atlas=kept,
        splits=splits,
        noise_ceiling=None if ceiling is None else ceiling[keep],
        simulated=note.simulated,
        info=info,
    )


def write_subject(folder: str | Path, subject: Subject, **options: Any) -> Path:
    """Write a subject in this layout; see `bmfl_lab.data.algonauts_write.write_subject`."""
    from bmfl_lab.data import algonauts_write

    return algonauts_write.write_subject(folder, subject, **options)


def read_test_images(folder: str | Path, *, follow_links: bool = False) -> StimulusSet:
    """Return the challenge's test images, whose responses are not public.

    Raises
    ------
    DataError
        If the images are missing or numbered with gaps.
    """
    folder = Path(folder).expanduser()
    paths, ids = _images(
        folder / "test_split" / "test_images", "test", link_guard(folder, follow_links)
    )
    return stimuli.from_files(f"{folder.name}-test", paths, ids, np.full(len(ids), -1))


def _images(
    folder: Path, split: str, guard: Callable[[Path], Path]
) -> tuple[list[Path], list[str]]:
    """Return image paths and stimulus ids in the order of the number in the name, which must run 1..n."""
    if not folder.is_dir():
        raise DataError(
            message(
                f"a folder of {split} images", f"nothing at {folder}", "download the subject again"
            )
        )
    guard(folder)
    found: dict[int, tuple[Path, str]] = {}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        match = _IMAGE.fullmatch(path.name)
        if match is None or match[1].lower() != split:
            raise DataError(
                message(
                    f"names like {split}-0001_nsd-00013.png in {folder}",
                    repr(path.name),
                    "rename or remove it",
                )
            )
        number = int(match[2])
        if number in found:
            raise DataError(
                message(
                    f"one image with number {number}",
                    f"{found[number][0].name} and {path.name}",
                    "remove one",
                )
            )
        found[number] = (guard(path) if path.is_symlink() else path, nsd_id(int(match[3])))
    gaps = sorted(set(range(1, len(found) + 1)) - set(found))
    if gaps or not found:
        raise DataError(
            message(
                f"images numbered 1 to {len(found)} without gaps in {folder}",
                f"no number {gaps[:5]}" if gaps else "no image at all",
                "restore the missing files: rows of the responses are counted by these numbers",
            )
        )
    ordered = [found[i] for i in sorted(found)]
    return [p for p, _ in ordered], [i for _, i in ordered]


def _read_part(
    folder: Path, split: str, guard: Callable
) -> tuple[list[Path], list[str], tuple[np.ndarray, ...]]:
    """Return paths, ids and the (left, right) response maps of a split."""
    base = folder / ("training_split" if split == "train" else "test_split")
    long = "training" if split == "train" else "test"
    paths, ids = _images(base / f"{long}_images", split, guard)
    maps = tuple(
        _read_fmri(guard(base / f"{long}_fmri" / f"{side}_{long}_fmri.npy"), len(paths))
        for side in SIDES
    )
    return paths, ids, maps


def _read_fmri(path: Path, n_images: int) -> np.ndarray:
    values = load_npy(path, mmap=True)
    if values.dtype.kind != "f" or values.ndim != 2:
        raise DataError(
            message(
                f"float32 responses of shape ({n_images}, n_vertices) in {path}",
                f"{values.dtype} {values.shape}",
                "save images x vertices as float32",
            )
        )
    if values.shape[0] != n_images:
        transposed = values.shape[1] == n_images
        raise DataError(
            message(
                f"{n_images} rows in {path}, one for each image",
                f"shape {values.shape}"
                + (": vertices x images" if transposed else f", {values.shape[0]} rows"),
                "transpose the array"
                if transposed
                else "use images and responses of the same download",
            )
        )
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        order = "C" if values.flags.c_contiguous else "Fortran"
        warnings.warn(
            f"{path.name}: {values.dtype} in {order} order is converted to float32 in C order",
            stacklevel=4,
        )
    return values


def _check_counts(name: str, n_vertices: tuple[int, ...], n_images: int) -> None:
    expected = VERTEX_COUNTS[name]
    if tuple(n_vertices) == expected and n_images == IMAGE_COUNTS[name]:
        return
    swapped = tuple(n_vertices) == expected[::-1]
    raise DataError(
        message(
            f"{expected[0]} left and {expected[1]} right vertices and {IMAGE_COUNTS[name]} images for {name}",
            f"{n_vertices[0]}, {n_vertices[1]} and {n_images}"
            + (": left and right are swapped" if swapped else ""),
            "put lh and rh files back in their places"
            if swapped
            else "check which subject this is, or pass enforce_counts=False for own data",
        )
    )


def _extremes(parts: list) -> tuple[np.ndarray, np.ndarray]:
    """Return each vertex's smallest and largest response, NaN where any value is NaN; reads rows in chunks."""
    low, high = [], []
    for side in (0, 1):
        maps = [part[2][side] for part in parts]
        if len({m.shape[1] for m in maps}) != 1:
            raise DataError(
                message(
                    f"as many {HEMISPHERES[side]} vertices in the test as in the training responses",
                    f"{[m.shape[1] for m in maps]}",
                    "use files of one subject",
                )
            )
        chunks = [m[i : i + _ROWS] for m in maps for i in range(0, len(m), _ROWS)]
        low.append(np.min([c.min(0) for c in chunks], axis=0))
        high.append(np.max([c.max(0) for c in chunks], axis=0))
    return np.concatenate(low), np.concatenate(high)


def _finite(
    low: np.ndarray, high: np.ndarray, hemisphere: np.ndarray, policy: str, folder: Path
) -> np.ndarray:
    keep = np.isfinite(low) & np.isfinite(high)
    if not keep.all() and policy == "refuse":
        counts = _per_hemisphere(~keep, hemisphere)
        raise DataError(
            message(
                f"finite responses in {folder}",
                f"NaN or infinity in {counts['left']} left and {counts['right']} right vertices",
                "pass nan_policy='drop' to leave these vertices out",
            )
        )
    if not keep.any():
        raise DataError(
            message(
                f"at least one finite vertex in {folder}", "none", "download the responses again"
            )
        )
    return keep


def _per_hemisphere(mask: np.ndarray, hemisphere: np.ndarray) -> dict[str, int]:
    return {
        name: int(np.sum(mask & (np.asarray(hemisphere) == k)))
        for k, name in enumerate(HEMISPHERES)
    }


def _fill(out: np.ndarray, parts: list, keep: np.ndarray) -> None:
    row = 0
    n_left = parts[0][2][0].shape[1]
    sides = (keep[:n_left], keep[n_left:])
    n_kept = int(sides[0].sum())
    for _, _, maps in parts:
        for start in range(0, len(maps[0]), _ROWS):
            stop = min(start + _ROWS, len(maps[0]))
            for values, chosen, to in zip(maps, sides, (slice(None, n_kept), slice(n_kept, None))):
                block = values[start:stop]
                out[row + start : row + stop, to] = block if chosen.all() else block[:, chosen]
        row += len(maps[0])


def _join(parts: list, keep: np.ndarray, cache: str | Path | None) -> np.ndarray:
    """Return left and right responses side by side as float32, in memory or mapped from `cache`."""
    shape = (sum(len(part[0]) for part in parts), int(keep.sum()))
    if cache is None:
        out = np.empty(shape, np.float32)
        _fill(out, parts, keep)
        return out
    with atomic_path(cache) as temporary:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        _fill(mapped, parts, keep)
        mapped.flush()
        del mapped
    return load_npy(cache, mmap=True)


def _read_ceiling(
    folder: Path, n_vertices: tuple[int, ...], guard: Callable
) -> tuple[np.ndarray | None, dict]:
    """Return the noise ceiling (share of variance, NaN where undefined) and what to record about it."""
    files = [
        folder / "test_split" / "noise_ceiling" / f"{side}_noise_ceiling.npy" for side in SIDES
    ]
    if not any(f.exists() for f in files):
        return None, {"source": None}
    found = []
    for path, n in zip(files, n_vertices):
        values = np.asarray(load_npy(guard(path)))
        if (
            values.dtype.kind != "f"
            or values.shape != (n,)
            or np.nanmax(values, initial=0.0) > 1 + 1e-6
        ):
            raise DataError(
                message(
                    f"noise ceilings from 0 to 1 of shape ({n},) in {path}",
                    f"{values.dtype} {values.shape}, largest {np.nanmax(values, initial=0.0):.3g}",
                    "divide percentages by 100, or use the file of this subject",
                )
            )
        found.append(values.astype(np.float32))
    ceiling = np.concatenate(found)
    defined = np.isfinite(ceiling) & (ceiling > 0)
    return np.where(defined, ceiling, np.nan).astype(np.float32), {
        "source": "test_split/noise_ceiling, for the repeats of the test images",
        "undefined_vertices": int(np.sum(~defined)),
    }


def _shared(
    folder: Path, given: Iterable[str] | None, table: str | Path | None, warn: bool
) -> list[str] | None:
    """Return the ids to hold out: those given, else those that NSD's table marks, else None."""
    if given is not None:
        return [str(i) for i in given]
    table = table if table is not None else find_stim_info(folder)
    if table is not None:
        return list(read_shared_ids(table))
    if warn:
        found = "none: the test images are drawn by the seed"
        wanted = f"{STIM_INFO} in or beside {folder}, to hold out NSD's shared images"
        warnings.warn(
            message(wanted, found, "put it there, or pass stim_info or shared_ids"), stacklevel=3
        )
    return None


def _split(
    ids: list[str], n_train: int, shared: list[str] | None, val: float, test: float, seed: int
) -> tuple[dict, dict]:
    repeated = len(ids) - len(set(ids))
    if repeated:
        raise DataError(
            message(
                "each stimulus once: responses are averaged over repeats before they are split",
                f"{repeated} stimulus ids more than once in the file names",
                "average the repeats, or give images their own numbers",
            )
        )
    held = shared if len(ids) == n_train else [*(shared or ()), *ids[n_train:]]
    return split_by_id(ids, val=val, test=test, seed=seed, held_out=held)

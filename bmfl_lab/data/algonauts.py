"""Read and write subjects in the layout of the Algonauts 2023 challenge.

One folder per subject holds the images, the responses of both hemispheres and the ROI masks in two
spaces. `read_subject` reads it, `write_subject` writes any subject in the same layout, and `load`
reads one or all subjects of a folder as a study.

References
----------
.. [1] Gifford et al. (2023), The Algonauts Project 2023 Challenge, arXiv:2301.03198.
.. [2] Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and AI,
   Nature Neuroscience 25.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data import stimuli
from bmfl_lab.data.atlas import ALGONAUTS_ROIS, HEMISPHERES, Atlas, count_per_hemisphere
from bmfl_lab.data.pickles import read_mapping, write_mapping
from bmfl_lab.data.responses import Subject, check_finite, check_nan_policy
from bmfl_lab.data.splits import STIM_INFO, find_stim_info, nsd_id, read_shared_ids, split_by_id
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study, chosen_subjects, register_reader
from bmfl_lab.data.surfaces import MESHES
from bmfl_lab.errors import DataError, message, require
from bmfl_lab.files import (
    Guard,
    link_guard,
    load_npy,
    new_npy,
    read_json,
    save_npy,
    sha256_file,
    write_json,
)

VERTEX_COUNTS: dict[str, tuple[int, int]] = {
    **{f"subj{i:02d}": (19004, 20544) for i in (1, 2, 3, 4, 5, 7)},
    "subj06": (18978, 20220),
    "subj08": (18981, 20530),
}
"""Left and right vertices of the challenge's eight subjects.

Subjects 6 and 8 have fewer, because vertices without data were left out.
"""

IMAGE_COUNTS = dict(
    zip((f"subj{i:02d}" for i in range(1, 9)), (9841, 9841, 9082, 8779, 9841, 9082, 9841, 8779))
)
"""Training images of the eight subjects."""

_IMAGE = re.compile(r"(train|test)-(\d+)_nsd-(\d+)\.(png|jpg|jpeg)", re.IGNORECASE)
_ROWS = 256
SIDES = ("lh", "rh")
N_FSAVERAGE = MESHES["fsaverage"]
NOTE = "bmfl_lab.json"
"""File that `write_subject` adds to a folder; the layout itself has no place for its content."""
_Part = tuple[list[Path], list[str], tuple[np.ndarray, ...]]


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
        Compare the files of a folder that `write_subject` made with its checksums.

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
    Images and rows are paired by the number in the file name (1-based row). If the organisers' test
    responses are present, those images form the test split together with the shared ones. The
    challenge's training images include most of NSD's shared 1,000; only NSD's own table says which.

    Warns
    -----
    UserWarning
        If one of the eight subjects is read without shared ids: its test images are then drawn by
        the seed.
    """
    check_nan_policy(nan_policy)
    folder = Path(folder).expanduser()
    require(
        folder.is_dir(),
        DataError,
        "the folder of a subject",
        f"nothing at {folder}",
        "check the path",
    )
    guard = link_guard(folder, follow_links)
    note = read_note(folder, guard, verify=verify)
    named = enforce_counts and folder.name in VERTEX_COUNTS
    parts = _read_parts(folder, guard)
    n_vertices = tuple(parts[0][2][k].shape[1] for k in (0, 1))
    if named:
        _check_counts(folder.name, n_vertices, len(parts[0][0]))
    atlas, missing = read_atlas(folder, n_vertices, guard, need_all=named)
    atlas = atlas if note.surface else _off_surface(atlas)
    keep, constant = _usable(parts, atlas, nan_policy, folder)
    paths = [p for part in parts for p in part[0]]
    ids = [i for part in parts for i in part[1]]
    ceiling, ceiling_info = _read_ceiling(folder, n_vertices, guard)
    shared_ids = _shared(folder, shared_ids, stim_info, named)
    splits, record = _split(ids, len(parts[0][1]), shared_ids, val, test, seed)
    kept = atlas if keep.all() else atlas.subset(keep)
    info: dict[str, Any] = {
        "source": "Algonauts 2023 layout",
        "split": record,
        "nan_policy": nan_policy,
        "dropped_vertices": count_per_hemisphere(~keep, atlas.hemisphere),
        "constant_vertices": count_per_hemisphere(constant, kept.hemisphere),
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
        kind="simulated" if note.simulated else "measured",
        info=info,
    )


def _off_surface(atlas: Atlas) -> Atlas:
    """Return an atlas whose places on fsaverage only number the vertices."""
    return replace(atlas, surface_index=None, mesh=None)


def read_test_images(folder: str | Path, *, follow_links: bool = False) -> StimulusSet:
    """Read the images of ``test_split``, for which the challenge published no responses.

    Parameters
    ----------
    folder : str or Path
        Folder of one subject, as for `read_subject`.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    StimulusSet
        n_test unlabelled images of shape (425, 425, 3) in the published data, in the order in which
        predictions are submitted. The ids are numbers of NSD images ("nsd-00845").

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


def _images(folder: Path, split: str, guard: Guard) -> tuple[list[Path], list[str]]:
    """Return image paths and stimulus ids in the order of the number in the name (1 to n)."""
    require(
        folder.is_dir(),
        DataError,
        f"a folder of {split} images",
        f"nothing at {folder}",
        "download the subject again",
    )
    guard(folder)
    found: dict[int, tuple[Path, str]] = {}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        match = _IMAGE.fullmatch(path.name)
        require(
            match is not None and match[1].lower() == split,
            DataError,
            f"names like {split}-0001_nsd-00013.png in {folder}",
            repr(path.name),
            "rename or remove it",
        )
        number = int(match[2])
        if number in found:
            raise DataError(
                message(
                    f"one image with number {number}",
                    f"{found[number][0].name} and {path.name}",
                    f"remove the one that does not belong to row {number} of the responses",
                )
            )
        found[number] = (guard(path) if path.is_symlink() else path, nsd_id(int(match[3])))
    gaps = sorted(set(range(1, len(found) + 1)) - set(found))
    require(
        not gaps and found,
        DataError,
        f"images numbered 1 to {len(found)} without gaps in {folder}",
        f"no number {gaps[:5]}" if gaps else "no image at all",
        "restore the missing files: rows of the responses are counted by these numbers",
    )
    ordered = [found[i] for i in sorted(found)]
    return [p for p, _ in ordered], [i for _, i in ordered]


def _read_part(folder: Path, split: str, guard: Guard) -> _Part:
    """Return paths, ids and the (left, right) response maps of a split."""
    long = "training" if split == "train" else "test"
    base = folder / f"{long}_split"
    paths, ids = _images(base / f"{long}_images", split, guard)
    maps = tuple(
        _read_fmri(guard(base / f"{long}_fmri" / f"{side}_{long}_fmri.npy"), len(paths))
        for side in SIDES
    )
    return paths, ids, maps


def _read_parts(folder: Path, guard: Guard) -> list[_Part]:
    """Return the training part and, if its responses are there, the test part of one subject."""
    parts = [_read_part(folder, "train", guard)]
    if (folder / "test_split" / "test_fmri").is_dir():
        parts.append(_read_part(folder, "test", guard))
    sizes = [[m.shape[1] for m in maps] for _, _, maps in parts]
    require(
        sizes[0] == sizes[-1],
        DataError,
        "as many left and right vertices in test as in training responses",
        f"{sizes}",
        "use files of one subject",
    )
    return parts


def _read_fmri(path: Path, n_images: int) -> np.ndarray:
    values = load_npy(path, mmap=True)
    require(
        values.dtype.kind == "f" and values.ndim == 2,
        DataError,
        f"float32 responses of shape ({n_images}, n_vertices) in {path}",
        f"{values.dtype} {values.shape}",
        "save images x vertices as float32",
    )
    transposed = values.shape[1] == n_images
    require(
        values.shape[0] == n_images,
        DataError,
        f"{n_images} rows in {path}, one for each image",
        f"shape {values.shape}"
        + (": vertices x images" if transposed else f", {values.shape[0]} rows"),
        "transpose the array" if transposed else "use images and responses of the same download",
    )
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        order = "C" if values.flags.c_contiguous else "Fortran"
        warnings.warn(
            f"{path.name}: {values.dtype} in {order} order is converted to float32 in C order",
            stacklevel=4,
        )
    return values


def _check_counts(name: str, n_vertices: tuple[int, ...], n_images: int) -> None:
    """Require the published numbers of vertices and images of one of the eight subjects."""
    remedy = (
        "check which subject this is; if these are data of yours, rename the folder, "
        "or pass enforce_counts=False to read_subject"
    )
    expected = (*VERTEX_COUNTS[name], IMAGE_COUNTS[name])
    _check_sizes((*n_vertices, n_images), expected, f"for {name}", remedy)


def _check_sizes(found: Sequence[int], expected: Sequence[int], where: str, otherwise: str) -> None:
    """Refuse other numbers of left and right vertices, and of images if a third is given."""
    swapped = (found[1], found[0], *found[2:]) == tuple(expected)
    images = f" and {expected[2]} images" if len(expected) > 2 else ""
    require(
        tuple(found) == tuple(expected),
        DataError,
        f"{expected[0]} left and {expected[1]} right vertices{images} {where}",
        f"{', '.join(map(str, found[:-1]))} and {found[-1]}"
        + (": left and right are swapped" if swapped else ""),
        "put lh and rh files back in their places" if swapped else otherwise,
    )


def _extremes(parts: list[_Part]) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest response per vertex, NaN where any value is NaN.

    Rows are read in chunks, so that the responses never lie in memory as a whole.
    """
    low, high = [], []
    for side in (0, 1):
        maps = [part[2][side] for part in parts]
        chunks = [m[i : i + _ROWS] for m in maps for i in range(0, len(m), _ROWS)]
        low.append(np.min([c.min(0) for c in chunks], axis=0))
        high.append(np.max([c.max(0) for c in chunks], axis=0))
    return np.concatenate(low), np.concatenate(high)


def _usable(
    parts: list[_Part], atlas: Atlas, nan_policy: str, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return which vertices are kept, bool (V,), and which of them are constant, bool (n_kept,)."""
    low, high = _extremes(parts)
    keep = np.isfinite(low) & np.isfinite(high)
    check_finite(keep, atlas.hemisphere, nan_policy, f"finite responses in {folder}")
    return keep, (low == high)[keep]


def _fill(out: np.ndarray, parts: list[_Part], keep: np.ndarray) -> None:
    """Write the kept vertices of all parts, left before right, into the rows of an array."""
    row = 0
    for _, _, maps in parts:
        for start in range(0, len(maps[0]), _ROWS):
            block = np.concatenate([m[start : start + _ROWS] for m in maps], axis=1)
            out[row : row + len(block)] = block if keep.all() else block[:, keep]
            row += len(block)


def _join(parts: list[_Part], keep: np.ndarray, cache: str | Path | None) -> np.ndarray:
    """Return left and right responses side by side as float32, in memory or mapped from `cache`."""
    shape = (sum(len(part[0]) for part in parts), int(keep.sum()))
    if cache is None:
        out = np.empty(shape, np.float32)
        _fill(out, parts, keep)
        return out
    with new_npy(cache, shape) as mapped:
        _fill(mapped, parts, keep)
    return load_npy(cache, mmap=True)


def _read_ceiling(
    folder: Path, n_vertices: tuple[int, ...], guard: Guard
) -> tuple[np.ndarray | None, dict]:
    """Return the noise ceiling (share of variance, NaN where undefined) and its record."""
    files = [
        folder / "test_split" / "noise_ceiling" / f"{side}_noise_ceiling.npy" for side in SIDES
    ]
    if not any(f.exists() for f in files):
        return None, {"source": None}
    found = []
    for path, n in zip(files, n_vertices):
        values = np.asarray(load_npy(guard(path)))
        require(
            values.dtype.kind == "f"
            and values.shape == (n,)
            and np.nanmax(values, initial=0.0) <= 1 + 1e-6,
            DataError,
            f"noise ceilings from 0 to 1 of shape ({n},) in {path}",
            f"{values.dtype} {values.shape}, largest {np.nanmax(values, initial=0.0):.3g}",
            "divide percentages by 100, or use the file of this subject",
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
        text = message(
            f"{STIM_INFO} in or beside {folder}, to hold out NSD's shared images",
            "none: the test images are drawn by the seed",
            "put it there, or pass stim_info or shared_ids",
        )
        warnings.warn(text, stacklevel=3)
    return None


def _split(
    ids: list[str], n_train: int, shared: list[str] | None, val: float, test: float, seed: int
) -> tuple[dict, dict]:
    require(
        len(set(ids)) == len(ids),
        DataError,
        "each stimulus once: responses are averaged over repeats before they are split",
        f"{len(ids) - len(set(ids))} stimulus ids more than once in the file names",
        "average the repeats, or give images their own numbers",
    )
    held = shared if len(ids) == n_train else [*(shared or ()), *ids[n_train:]]
    return split_by_id(ids, val=val, test=test, seed=seed, held_out=held)


def read_atlas(
    folder: Path, n_vertices: tuple[int, int], guard: Guard, *, need_all: bool
) -> tuple[Atlas, list[str]]:
    """Read ``roi_masks`` as an atlas on fsaverage.

    The six ROI classes of the challenge are read, and any other class with files there.

    Parameters
    ----------
    folder : Path
        The subject's folder.
    n_vertices : (int, int)
        Vertices of the left and right responses.
    guard : callable
        ``guard(path) -> path``, refuses paths that may not be read.
    need_all : bool
        Refuse if one of the six ROI classes is missing.

    Returns
    -------
    atlas : Atlas
    missing : list of str
        ROI classes without files.

    Raises
    ------
    DataError
        If lengths, labels, names or spaces disagree.
    """
    masks = folder / "roi_masks"
    index = [
        _all_vertices(guard(masks / f"{side}.all-vertices_fsaverage_space.npy")) for side in SIDES
    ]
    remedy = "use masks and responses of the same subject"
    where = f"in {masks}, as in the responses"
    _check_sizes([len(i) for i in index], n_vertices, where, remedy)
    rois: dict[str, np.ndarray] = {}
    missing = []
    own = sorted(
        {p.stem.removeprefix("mapping_") for p in masks.glob("mapping_*.npy")} - set(ALGONAUTS_ROIS)
    )
    for kind in (*ALGONAUTS_ROIS, *own):
        files = [masks / f"mapping_{kind}.npy"]
        files += [
            masks / f"{s}.{kind}_{space}_space.npy"
            for s in SIDES
            for space in ("challenge", "fsaverage")
        ]
        absent = [f.name for f in files if not f.exists()]
        require(
            not absent or (not need_all and len(absent) >= len(files)),
            DataError,
            f"the files of ROI class {kind!r} in {masks}",
            f"no {absent}",
            "download the folder again",
        )
        if absent:
            missing.append(kind)
            continue
        codes = np.concatenate(
            [_codes(masks, side, kind, index[k], guard) for k, side in enumerate(SIDES)]
        )
        for name, mask in _by_name(codes, kind, read_mapping(guard(files[0])), masks).items():
            require(
                name not in rois,
                DataError,
                "ROI names used once",
                f"{name!r} again in {kind!r}",
                "rename one of them",
            )
            rois[name] = mask
    atlas = Atlas(
        hemisphere=np.repeat(np.arange(2, dtype=np.int8), [len(i) for i in index]),
        rois=rois,
        surface_index=np.concatenate(index).astype(np.int64),
        mesh="fsaverage",
    )
    return atlas, missing


def _mask(path: Path, n: int, what: str) -> np.ndarray:
    values = np.asarray(load_npy(path))
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)
    require(
        values.dtype.kind in "iub" and values.shape == (n,),
        DataError,
        f"whole-number labels of shape ({n},), {what}, in {path}",
        f"{values.dtype} {values.shape}",
        "use the masks that belong to these responses",
    )
    return values.astype(np.int64)


def _all_vertices(path: Path) -> np.ndarray:
    mask = _mask(path, N_FSAVERAGE, "one per vertex of fsaverage")
    require(
        mask.any(),
        DataError,
        f"at least one vertex that is not 0 in {path}",
        "none",
        "download it again",
    )
    return np.flatnonzero(mask)


def _codes(masks: Path, side: str, kind: str, index: np.ndarray, guard: Guard) -> np.ndarray:
    here = _mask(
        guard(masks / f"{side}.{kind}_challenge_space.npy"),
        len(index),
        "one per vertex of the responses",
    )
    full = _mask(
        guard(masks / f"{side}.{kind}_fsaverage_space.npy"),
        N_FSAVERAGE,
        "one per vertex of fsaverage",
    )
    differ = int(np.sum(full[index] != here))
    outside = int(np.count_nonzero(full)) - int(np.count_nonzero(full[index]))
    require(
        not differ and not outside,
        DataError,
        f"the same {kind} labels in challenge and fsaverage space, "
        f"{HEMISPHERES[SIDES.index(side)]} hemisphere",
        f"{differ} vertices that differ and {outside} labelled vertices outside the responses",
        "use mask files of one subject and one version",
    )
    return here


def _by_name(
    codes: np.ndarray, kind: str, mapping: dict[int, str], masks: Path
) -> dict[str, np.ndarray]:
    """Return a mask per ROI name after checking labels against the mapping in both directions."""
    used = set(np.unique(codes).tolist()) - {0}
    known = {i + 1: name for i, name in enumerate(ALGONAUTS_ROIS.get(kind, ()))}
    unnamed = sorted(used - set(mapping))
    # a standard ROI may be absent in a subject; a label of the user's own must occur
    unused = sorted(c for c in mapping if c != 0 and c not in used and mapping[c] != known.get(c))
    misnamed = sorted(
        c for c in mapping if mapping[c] in known.values() and known.get(c) != mapping[c]
    )
    require(
        not unnamed and not unused and not misnamed,
        DataError,
        f"labels of {kind} that agree with mapping_{kind}.npy in {masks}",
        f"labels without a name {unnamed}, names without a vertex {unused}, "
        f"standard names at other labels {misnamed}",
        "use mask and mapping files of one version",
    )
    return {name: codes == code for code, name in mapping.items() if code != 0}


@dataclass(frozen=True)
class Note:
    """Hold what the note beside a folder says; the defaults hold for a folder without one.

    Parameters
    ----------
    simulated : bool
        True if the responses were not measured in a brain.
    surface : bool
        False if the indices on fsaverage are only a numbering, because the vertices lie on no
        surface.
    """

    simulated: bool = False
    surface: bool = True


def write_note(folder: Path, note: Note, *, source: str) -> None:
    """Write a note beside a folder, with the SHA-256 of each of its arrays."""
    digests = {
        p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*.npy"))
    }
    write_json(folder / NOTE, {**asdict(note), "source": source, "sha256": digests})


def read_note(folder: Path, guard: Guard, *, verify: bool = True) -> Note:
    """Read the note beside a folder; return the defaults if there is none.

    Parameters
    ----------
    folder : Path
        The subject's folder.
    guard : callable
        ``guard(path) -> path``, refuses paths that may not be read.
    verify : bool, default True
        Compare the arrays with the noted checksums, which reads each file once more (about a second
        per gigabyte).

    Raises
    ------
    DataError
        If the note is damaged, or an array is missing or differs from what was written.
    """
    path = folder / NOTE
    if not path.is_file():
        return Note()
    note: Any = read_json(guard(path))
    fields = {"surface": True, **note} if isinstance(note, dict) else {}
    require(
        all(isinstance(fields.get(k), bool) for k in ("simulated", "surface")),
        DataError,
        f"true or false under 'simulated' and 'surface' in {path}",
        repr(note)[:200],
        "correct or delete the file",
    )
    digests = note.get("sha256", {})
    require(
        isinstance(digests, dict),
        DataError,
        f"file names and checksums in {path}",
        repr(digests)[:80],
        "correct or delete the file",
    )
    for name, digest in digests.items() if verify else ():
        if not (folder / name).is_file() or sha256_file(guard(folder / name)) != digest:
            raise DataError(
                message(
                    f"{name} in {folder} as it was written",
                    "another content" if (folder / name).is_file() else "no such file",
                    "write the folder again; or, if you changed it on purpose, delete "
                    f"{NOTE} (and note that it says whether responses are simulated)",
                )
            )
    return Note(simulated=fields["simulated"], surface=fields["surface"])


def write_subject(
    folder: str | Path,
    subject: Subject,
    *,
    nsd_numbers: Sequence[int] | None = None,
    test_rows: np.ndarray | None = None,
) -> Path:
    """Write a subject in the Algonauts 2023 layout.

    Parameters
    ----------
    folder : str or Path
        Made if missing; must be empty.
    subject : Subject
        Subject of any study. ROIs under names that the challenge lacks go into their own classes
        (``other-1``, ...), which `read_subject` reads too. Vertices need a place on fsaverage:
        `surface_index` is used where the mesh is "fsaverage" or nested in it ("fsaverage5"), and
        within a hemisphere they are written in its order, as the layout demands. Vertices on no
        surface, or on one of another kind, are numbered from 0, and ``bmfl_lab.json`` says so: read
        back, they have no surface.
    nsd_numbers : sequence of int, optional
        0-based number of each stimulus for the file name; by default taken from ids ``nsd-00013``,
        else 0, 1, 2, ...
    test_rows : ndarray of int, optional
        Rows written as the organisers' test split, with the noise ceiling.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        If the folder is not empty, numbers repeat, ROIs of one class overlap, or surface indices do
        not fit.

    Notes
    -----
    The documented format of own data: what `read_subject` reads is exactly what this writes.
    """
    folder = Path(folder).expanduser()
    require(
        not folder.exists() or not any(folder.iterdir()),
        DataError,
        "an empty folder to write to",
        f"files in {folder}",
        "choose another folder",
    )
    if subject.atlas.mesh not in (None, *MESHES):  # fsLR 32k: its numbers are not fsaverage's
        plain = _off_surface(subject.atlas)
        subject = replace(subject, atlas=plain)
    numbers = _numbers(subject, nsd_numbers)
    arrays, mappings = _masks(subject)  # before anything is written, as this may refuse
    test = np.asarray([] if test_rows is None else test_rows, dtype=np.int64)
    train = np.setdiff1d(np.arange(len(numbers)), test)
    _write_part(folder, subject, numbers, train, "train")
    if len(test):
        _write_part(folder, subject, numbers, test, "test")
    if subject.noise_ceiling is not None:
        for side, chosen in _sides(subject):
            ceiling = np.asarray(subject.noise_ceiling, np.float32)[chosen]
            save_npy(folder / "test_split" / "noise_ceiling" / f"{side}_noise_ceiling.npy", ceiling)
    for name, values in arrays.items():
        save_npy(folder / "roi_masks" / name, values)
    for name, mapping in mappings.items():
        write_mapping(folder / "roi_masks" / name, mapping)
    note = Note(simulated=bool(subject.simulated), surface=subject.atlas.surface_index is not None)
    write_note(folder, note, source=subject.name)
    return folder


def _sides(subject: Subject) -> list[tuple[str, np.ndarray]]:
    """Return each hemisphere's vertices in the order of their surface index."""
    atlas, found = subject.atlas, []
    for number, side in enumerate(("lh", "rh")):
        chosen = np.flatnonzero(np.asarray(atlas.hemisphere) == number)
        if atlas.surface_index is not None:
            chosen = chosen[np.argsort(np.asarray(atlas.surface_index)[chosen], kind="stable")]
        found.append((side, chosen))
    return found


def _numbers(subject: Subject, given: Sequence[int] | None) -> list[int]:
    ids = [str(i) for i in subject.stimuli.ids]
    if given is None and all(i.startswith("nsd-") and i[4:].isdigit() for i in ids):
        given = [int(i[4:]) for i in ids]
    numbers = list(range(len(ids))) if given is None else [int(g) for g in given]
    require(
        len(numbers) == len(ids) and len(set(numbers)) == len(ids),
        DataError,
        f"{len(ids)} different image numbers",
        f"{len(set(numbers))} of {len(numbers)}",
        "number each once",
    )
    return numbers


def _write_part(
    folder: Path, subject: Subject, numbers: list[int], rows: np.ndarray, split: str
) -> None:
    from PIL import Image

    long = "training" if split == "train" else "test"
    base = folder / f"{long}_split"
    images = base / f"{long}_images"
    images.mkdir(parents=True)
    for position, row in enumerate(rows, start=1):
        path = images / f"{split}-{position:04d}_nsd-{numbers[row]:05d}.png"
        Image.fromarray(subject.stimuli.image(int(row))).save(path, compress_level=1)
    for side, chosen in _sides(subject):
        path = base / f"{long}_fmri" / f"{side}_{long}_fmri.npy"
        with new_npy(path, (len(rows), len(chosen))) as out:
            for start in range(0, len(rows), _ROWS):
                block = np.asarray(subject.responses[rows[start : start + _ROWS]])
                out[start : start + _ROWS] = block[:, chosen]


def _masks(subject: Subject) -> tuple[dict[str, np.ndarray], dict[str, dict[int, str]]]:
    """Return the content of ``roi_masks``: arrays by file name, and mappings by file name."""
    atlas, classes = subject.atlas, _classes(subject)
    codes = {kind: _class_labels(subject, kind, names) for kind, names in classes.items()}
    arrays = {}
    for side, chosen in _sides(subject):
        index = (
            np.arange(len(chosen))
            if atlas.surface_index is None
            else np.asarray(atlas.surface_index)[chosen]
        )
        require(
            np.all(np.diff(index) != 0) and np.all((index >= 0) & (index < N_FSAVERAGE)),
            DataError,
            f"different surface indices from 0 to {N_FSAVERAGE - 1} in {side}",
            f"{int(np.sum(np.diff(index) == 0))} repeated, from {index[:1]} to {index[-1:]}",
            "give each vertex its own place on fsaverage",
        )
        inside = np.ones(len(index), np.int64)
        arrays[f"{side}.all-vertices_fsaverage_space.npy"] = _on_fsaverage(index, inside)
        for kind, values in codes.items():
            arrays[f"{side}.{kind}_challenge_space.npy"] = values[chosen]
            arrays[f"{side}.{kind}_fsaverage_space.npy"] = _on_fsaverage(index, values[chosen])
    mappings = {
        f"mapping_{kind}.npy": {0: "Unknown", **{i + 1: n for i, n in enumerate(names)}}
        for kind, names in classes.items()
    }
    return arrays, mappings


def _on_fsaverage(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    full = np.zeros(N_FSAVERAGE, np.int64)
    full[index] = values
    return full


def _classes(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Return the challenge's ROI classes, and further classes for the subject's other ROIs.

    No two ROIs of a class overlap.
    """
    known = {name for names in ALGONAUTS_ROIS.values() for name in names}
    others: list[tuple[list[str], np.ndarray]] = []
    for name in subject.atlas.present:
        mask = np.asarray(subject.atlas.rois[name], bool)
        if name in known:
            continue
        home = next((o for o in others if not np.any(o[1] & mask)), None)
        if home is None:
            others.append(([name], mask.copy()))
        else:
            home[0].append(name)
            home[1][mask] = True
    return {
        **ALGONAUTS_ROIS,
        **{f"other-{i + 1}": tuple(names) for i, (names, _) in enumerate(others)},
    }


def _class_labels(subject: Subject, kind: str, names: Sequence[str]) -> np.ndarray:
    codes = np.zeros(subject.n_vertices, np.int64)
    for code, name in enumerate(names, start=1):
        mask = np.asarray(subject.atlas.rois.get(name, np.zeros(subject.n_vertices, bool)), bool)
        require(
            not np.any(codes[mask]),
            DataError,
            f"ROIs of class {kind!r} that do not overlap",
            f"{name!r} over another",
            "give each vertex one",
        )
        codes[mask] = code
    return codes


def subject_folders(folder: str | Path) -> dict[str, Path]:
    """Find the folders of subjects.

    Parameters
    ----------
    folder : str or Path
        Folder of one subject, or the folder that holds the subjects' folders.

    Returns
    -------
    dict of str to Path
        Name of each subject to its folder, sorted by name; empty if there is none.
    """
    root = Path(folder).expanduser()
    if (root / "training_split").is_dir():
        return {root.resolve().name: root}
    found = (
        sorted(p for p in root.iterdir() if (p / "training_split").is_dir())
        if root.is_dir()
        else []
    )
    return {p.name: p for p in found}


def detect(path: Path) -> bool:
    """Return whether a folder is a subject in this layout or holds such folders."""
    return bool(subject_folders(path))


def load(
    root: str | Path,
    *,
    subject: str | None = None,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    nan_policy: str = "refuse",
    stim_info: str | Path | None = None,
    cache: str | Path | None = None,
    follow_links: bool = False,
) -> Study:
    """Read one subject, or all subjects of a folder, as a study.

    Parameters
    ----------
    root : str or Path
        Folder of one subject (``subj01``), or the folder that holds the subjects' folders.
    subject : str, optional
        Name of the only subject to read; by default all are read.
    seed, val, test, nan_policy, stim_info, follow_links
        Options of `read_subject`.
    cache : str or Path, optional
        Folder for the joined responses, ``<subject>.npy``, which are then mapped instead of held in
        memory.

    Returns
    -------
    Study
        Study with subjects and without labelled image sets: for notebooks 01 and 02 and for
        training brain encoders. Give ``subject=`` to a study of class folders for a fusion.

    Raises
    ------
    DataError
        If there is no subject, none of that name, or its files are damaged.
    """
    chosen = chosen_subjects(
        subject_folders(root), subject, root, "training_split/ in it or in its folders"
    )
    subjects = {
        name: read_subject(
            path,
            nan_policy=nan_policy,
            stim_info=stim_info,
            val=val,
            test=test,
            seed=seed,
            follow_links=follow_links,
            cache=None if cache is None else Path(cache).expanduser() / f"{name}.npy",
        )
        for name, path in chosen.items()
    }
    kind = "simulated" if any(s.simulated for s in subjects.values()) else "given"
    return Study(
        name=Path(root).expanduser().resolve().name,
        description=f"{kind} responses in the Algonauts 2023 layout: {', '.join(subjects)}",
        sets={},
        subjects=subjects,
        licences={
            "images and responses": "the user's own, or the terms of the Natural Scenes Dataset"
        },
        extra={"split": {name: s.info.get("split") for name, s in subjects.items()}},
    )


register_reader(
    "algonauts", load, detect, subjects_only=True, layout="training_split and roi_masks"
)

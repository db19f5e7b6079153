"""Write any subject as a folder in the layout of the Algonauts 2023 challenge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bmfl_lab.data.algonauts_masks import N_FSAVERAGE
from bmfl_lab.data.algonauts_note import write_note
from bmfl_lab.data.atlas import ALGONAUTS_ROIS
from bmfl_lab.data.mapping import write_mapping
from bmfl_lab.data.responses import Subject
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import atomic_path

_ROWS = 256


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
        ROIs under the challenge's names are written, others are left out: the layout has no place for them. Vertices
        need a place on fsaverage: `surface_index` is used where the mesh is "fsaverage" or nested in it
        ("fsaverage5"); without a surface, vertices get the first indices.
    nsd_numbers : sequence of int, optional
        0-based number of each stimulus for the file name; by default taken from ids ``nsd-00013``, else 0, 1, 2, ...
    test_rows : ndarray of int, optional
        Rows written as the organisers' test split, with the noise ceiling.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        If the folder is not empty, numbers repeat, ROIs of one class overlap, or surface indices do not fit.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise DataError(message("an empty folder to write to", f"files in {folder}", "choose another folder"))
    numbers = _numbers(subject, nsd_numbers)
    test = np.asarray([] if test_rows is None else test_rows, dtype=np.int64)
    train = np.setdiff1d(np.arange(len(numbers)), test)
    _write_part(folder, subject, numbers, train, "train")
    if len(test):
        _write_part(folder, subject, numbers, test, "test")
    if subject.noise_ceiling is not None:
        for side, chosen in _sides(subject):
            ceiling = np.asarray(subject.noise_ceiling, np.float32)[chosen]
            _save(folder / "test_split" / "noise_ceiling" / f"{side}_noise_ceiling.npy", ceiling)
    _write_masks(folder / "roi_masks", subject)
    write_note(folder, simulated=bool(subject.simulated), source=subject.name)
    return folder


def _sides(subject: Subject) -> list[tuple[str, slice]]:
    n_left = subject.atlas.n_left
    return [("lh", slice(0, n_left)), ("rh", slice(n_left, None))]


def _numbers(subject: Subject, given: Sequence[int] | None) -> list[int]:
    ids = [str(i) for i in subject.stimuli.ids]
    if given is None and all(i.startswith("nsd-") and i[4:].isdigit() for i in ids):
        given = [int(i[4:]) for i in ids]
    numbers = list(range(len(ids))) if given is None else [int(g) for g in given]
    if len(numbers) != len(ids) or len(set(numbers)) != len(ids):
        raise DataError(
            message(f"{len(ids)} different image numbers", f"{len(set(numbers))} of {len(numbers)}", "number each once")
        )
    return numbers


def _save(path: Path, values: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, values, allow_pickle=False)


def _write_part(folder: Path, subject: Subject, numbers: list[int], rows: np.ndarray, split: str) -> None:
    from PIL import Image

    long = "training" if split == "train" else "test"
    base = folder / f"{long}_split"
    images = base / f"{long}_images"
    images.mkdir(parents=True)
    for position, row in enumerate(rows, start=1):
        path = images / f"{split}-{position:04d}_nsd-{numbers[row]:05d}.png"
        Image.fromarray(subject.stimuli.image(int(row))).save(path, compress_level=1)
    for side, chosen in _sides(subject):
        width = len(range(*chosen.indices(subject.n_vertices)))
        with atomic_path(base / f"{long}_fmri" / f"{side}_{long}_fmri.npy") as temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(len(rows), width))
            for start in range(0, len(rows), _ROWS):
                out[start : start + _ROWS] = subject.responses[rows[start : start + _ROWS], chosen]
            out.flush()
            del out


def _write_masks(folder: Path, subject: Subject) -> None:
    atlas = subject.atlas
    for side, chosen in _sides(subject):
        n = len(range(*chosen.indices(atlas.n_vertices)))
        index = np.arange(n) if atlas.surface_index is None else np.asarray(atlas.surface_index)[chosen]
        if n and (np.any(np.diff(index) <= 0) or index[0] < 0 or index[-1] >= N_FSAVERAGE):
            raise DataError(
                message(
                    f"ascending, different surface indices below {N_FSAVERAGE} in {side}",
                    "others",
                    "sort the vertices of each hemisphere by their surface index",
                )
            )
        full = np.zeros(N_FSAVERAGE, np.int64)
        full[index] = 1
        _save(folder / f"{side}.all-vertices_fsaverage_space.npy", full)
        for kind in ALGONAUTS_ROIS:
            codes = _codes(subject, kind)[chosen]
            full = np.zeros(N_FSAVERAGE, np.int64)
            full[index] = codes
            _save(folder / f"{side}.{kind}_challenge_space.npy", codes)
            _save(folder / f"{side}.{kind}_fsaverage_space.npy", full)
    for kind, names in ALGONAUTS_ROIS.items():
        write_mapping(folder / f"mapping_{kind}.npy", {0: "Unknown", **{i + 1: n for i, n in enumerate(names)}})


def _codes(subject: Subject, kind: str) -> np.ndarray:
    codes = np.zeros(subject.n_vertices, np.int64)
    for code, name in enumerate(ALGONAUTS_ROIS[kind], start=1):
        mask = np.asarray(subject.atlas.rois.get(name, np.zeros(subject.n_vertices, bool)), bool)
        if np.any(codes[mask]):
            raise DataError(
                message(f"ROIs of class {kind!r} that do not overlap", f"{name!r} over another", "give each vertex one")
            )
        codes[mask] = code
    return codes

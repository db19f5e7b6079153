"""Write any subject as a folder in the layout of the Algonauts 2023 challenge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bmfl_lab.data.algonauts_masks import N_FSAVERAGE
from bmfl_lab.data.algonauts_note import Note, write_note
from bmfl_lab.data.atlas import ALGONAUTS_ROIS
from bmfl_lab.data.pickles import write_mapping
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
        From any study. ROIs under names the challenge does not have go into classes of their own
        (``other-1``, ...), which `read_subject` reads too. Vertices need a place on fsaverage:
        `surface_index` is used where the mesh is "fsaverage" or nested in it ("fsaverage5"), and
        within a hemisphere they are written in its order, as the layout demands. Vertices on no
        surface are numbered from 0, and ``bmfl_lab.json`` says so: read back, they have no surface
        again.
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
    if folder.exists() and any(folder.iterdir()):
        raise DataError(
            message("an empty folder to write to", f"files in {folder}", "choose another folder")
        )
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
    if len(numbers) != len(ids) or len(set(numbers)) != len(ids):
        raise DataError(
            message(
                f"{len(ids)} different image numbers",
                f"{len(set(numbers))} of {len(numbers)}",
                "number each once",
            )
        )
    return numbers


def _save(path: Path, values: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, values, allow_pickle=False)


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
        with atomic_path(base / f"{long}_fmri" / f"{side}_{long}_fmri.npy") as temporary:
            out = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float32, shape=(len(rows), len(chosen))
            )
            for start in range(0, len(rows), _ROWS):
                block = np.asarray(subject.responses[rows[start : start + _ROWS]])
                out[start : start + _ROWS] = block[:, chosen]
            out.flush()
            del out


def _write_masks(folder: Path, subject: Subject) -> None:
    atlas, classes = subject.atlas, _classes(subject)
    codes = {kind: _codes(subject, kind, names) for kind, names in classes.items()}
    for side, chosen in _sides(subject):
        index = (
            np.arange(len(chosen))
            if atlas.surface_index is None
            else np.asarray(atlas.surface_index)[chosen]
        )
        if len(index) and (np.any(np.diff(index) == 0) or index[0] < 0 or index[-1] >= N_FSAVERAGE):
            raise DataError(
                message(
                    f"different surface indices from 0 to {N_FSAVERAGE - 1} in {side}",
                    f"{int(np.sum(np.diff(index) == 0))} repeated, from {index[0]} to {index[-1]}",
                    "give each vertex its own place on fsaverage",
                )
            )
        _save(
            folder / f"{side}.all-vertices_fsaverage_space.npy",
            _on_fsaverage(index, np.ones(len(index), np.int64)),
        )
        for kind, values in codes.items():
            _save(folder / f"{side}.{kind}_challenge_space.npy", values[chosen])
            _save(
                folder / f"{side}.{kind}_fsaverage_space.npy", _on_fsaverage(index, values[chosen])
            )
    for kind, names in classes.items():
        write_mapping(
            folder / f"mapping_{kind}.npy",
            {0: "Unknown", **{i + 1: n for i, n in enumerate(names)}},
        )


def _on_fsaverage(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    full = np.zeros(N_FSAVERAGE, np.int64)
    full[index] = values
    return full


def _classes(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Return the challenge's ROI classes, and classes without overlap for the subject's other ROIs."""
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


def _codes(subject: Subject, kind: str, names: Sequence[str]) -> np.ndarray:
    codes = np.zeros(subject.n_vertices, np.int64)
    for code, name in enumerate(names, start=1):
        mask = np.asarray(subject.atlas.rois.get(name, np.zeros(subject.n_vertices, bool)), bool)
        if np.any(codes[mask]):
            raise DataError(
                message(
                    f"ROIs of class {kind!r} that do not overlap",
                    f"{name!r} over another",
                    "give each vertex one",
                )
            )
        codes[mask] = code
    return codes

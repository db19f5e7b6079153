"""What this package notes beside a folder in the Algonauts 2023 layout: where the responses are from, and checksums.

The layout itself has no place for either, nor for vertices that lie on no surface. Folders of the
challenge have no such note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bmfl_lab.errors import DataError, message
from bmfl_lab.files import read_json, sha256_file, write_json

NAME = "bmfl_lab.json"


@dataclass(frozen=True)
class Note:
    """What a note says; the defaults hold for a folder without one.

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
    write_json(folder / NAME, {**asdict(note), "source": source, "sha256": digests})


def read_note(folder: Path, guard: Callable[[Path], Path], *, verify: bool = True) -> Note:
    """Return what the note beside a folder says, or the defaults without one.

    Parameters
    ----------
    folder : Path
        The subject's folder.
    guard : callable
        ``guard(path) -> path``, refuses paths that may not be read.
    verify : bool, default True
        Compare the arrays with the noted checksums, which reads each file once more (about a second
        a gigabyte).

    Raises
    ------
    DataError
        If the note is damaged, or an array is missing or differs from what was written.
    """
    path = folder / NAME
    if not path.is_file():
        return Note()
    note: Any = read_json(guard(path))
    said = {"surface": True, **note} if isinstance(note, dict) else {}
    if not all(isinstance(said.get(k), bool) for k in ("simulated", "surface")):
        wanted = f"true or false under 'simulated' and 'surface' in {path}"
        raise DataError(message(wanted, repr(note)[:200], "correct or delete the file"))
    digests = note.get("sha256", {})
    if not isinstance(digests, dict):
        raise DataError(
            message(
                f"file names and checksums in {path}",
                repr(digests)[:80],
                "correct or delete the file",
            )
        )
    for name, digest in digests.items() if verify else ():
        if not (folder / name).is_file() or sha256_file(guard(folder / name)) != digest:
            raise DataError(
                message(
                    f"{name} in {folder} as it was written",
                    "another content" if (folder / name).is_file() else "no such file",
                    "write the folder again; or, if you changed it on purpose, delete "
                    f"{NAME} (and note that it says whether responses are simulated)",
                )
            )
    return Note(simulated=said["simulated"], surface=said["surface"])

"""Read image sets from class folders, and match their classes to the columns of a head by wnid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.errors import DataError, message, require
from bmfl_lab.files import link_guard

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
_WNID = re.compile(r"n\d{8}")


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of the subfolders of `folder`, sorted; hidden ones are left out.

    Raises
    ------
    DataError
        If the folder does not exist.
    """
    folder = Path(folder)
    require(
        folder.is_dir(),
        DataError,
        "a folder of class folders",
        f"nothing at {folder}",
        "check the path",
    )
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_wnids(source: str | Path | Iterable[str]) -> tuple[str, ...]:
    """Return wnids in sorted order, which is the class order of ImageNet-1k heads.

    Parameters
    ----------
    source : str, Path or iterable of str
        A folder whose subfolders are wnids, a text file with one wnid at the start of each line, or
        the wnids.

    Raises
    ------
    DataError
        If there is none, one repeats, or one is not the letter n and eight digits.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_file():
            found = [
                line.split()[0]
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        else:
            found = class_folders(path)
    else:
        found = list(source)
    bad = [w for w in found if not _WNID.fullmatch(str(w))]
    if bad or not found or len(set(found)) != len(found):
        got = f"{bad[0]!r}" if bad else f"{len(found)} of which {len(set(found))} differ"
        raise DataError(
            message(
                "different wnids like n01440764", got, "give the ImageNet folder or a list of wnids"
            )
        )
    return tuple(sorted(found))


def head_columns(wnids: Sequence[str], head_wnids: Sequence[str]) -> np.ndarray:
    """Return the column of the head for each wnid.

    Parameters
    ----------
    wnids : sequence of str, shape (n_classes,)
        Classes of an image set.
    head_wnids : sequence of str, shape (n_head,)
        Class of each column of the model's head, in the head's own order.

    Returns
    -------
    ndarray of int64, shape (n_classes,)

    Raises
    ------
    DataError
        If a class is not in the head.
    """
    where = {w: i for i, w in enumerate(head_wnids)}
    missing = [w for w in wnids if w not in where]
    require(
        not missing,
        DataError,
        f"classes of the head ({len(where)} wnids)",
        f"{len(missing)} others, e.g. {missing[:1]}",
        "give the wnids of the head in its own order",
    )
    return np.asarray([where[w] for w in wnids], dtype=np.int64)


def images_in(folder: Path, guard: Callable[[Path], Path]) -> list[Path]:
    """Return the image files of a folder in sorted order, each allowed by `guard`."""
    found = sorted(
        p
        for p in guard(folder).iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and p.name[:1] != "."
    )
    return [guard(p) if p.is_symlink() else p for p in found]


def read_class_folders(
    name: str,
    folder: str | Path,
    classes: Sequence[str],
    *,
    partial: bool = False,
    folder_of: dict[str, str] | None = None,
    follow_links: bool = False,
) -> StimulusSet:
    """Read a folder with one subfolder per class.

    Parameters
    ----------
    name : str
        Name of the set.
    folder : str or Path
        Holds the class folders.
    classes : sequence of str
        The classes that must be there; labels index this sequence.
    partial : bool, default False
        Accept a folder that holds only some of the classes; ``len(np.unique(labels))`` is their
        number.
    folder_of : dict, optional
        Folder name of each class where it is not the class itself.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    StimulusSet
        Ids are ``folder/file``.

    Raises
    ------
    DataError
        If class folders are missing (unless `partial`) or unknown; the message names them. If no
        image is found, or a link leads out of the folder.
    """
    folder, found, guard = Path(folder), class_folders(folder), link_guard(folder, follow_links)
    wanted = {(folder_of or {}).get(c, c): i for i, c in enumerate(classes)}
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    require(
        not extra and (not missing or partial),
        DataError,
        f"the {len(wanted)} class folders of {name!r} in {folder}",
        f"{len(found)} folders; {len(missing)} missing {missing[:5]}, "
        f"{len(extra)} unknown {extra[:5]}",
        "check that this folder is that set; "
        "pass partial=True for a declared subset of its classes",
    )
    paths, labels = [], []
    for entry in found:
        images = images_in(folder / entry, guard)
        paths += images
        labels += [wanted[entry]] * len(images)
    require(
        paths,
        DataError,
        f"images in {folder}",
        "none",
        f"expected files ending in {IMAGE_SUFFIXES}",
    )
    ids = [f"{p.parent.name}/{p.name}" for p in paths]
    return from_files(name, paths, ids, labels, tuple(classes))

"""Read image sets from folders: what counts as an image, as hidden, as a class and as a match.

Every reader takes the images of a folder through this module, so that the rules are the same
everywhere: `IMAGE_SUFFIXES` lists what counts as an image, `is_hidden` what is never read,
`list_images` counts what it leaves out, and `read_by_stem` finds the file that belongs to a name.
Names are compared in Unicode form NFC, because macOS and Linux store accents differently.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote

import numpy as np

from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.errors import DataError, normal, require, translated
from bmfl_lab.files import Guard, link_guard, system_errors

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".gif"),
        *(".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""Suffixes of the formats that `bmfl_lab.data.images` decodes, in lower case."""
_SYSTEM = frozenset(
    (
        *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),
        *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "~snapshot"),
        *("@tmp", "@sharebin", "lost+found", "__pycache__", "node_modules", "_gsdata_"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)
"""Files and folders that macOS, Windows, Linux and network storage put beside data."""
_WNID = re.compile(r"n\d{8}")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or was made by a system and not by a user.

    Parameters
    ----------
    name : str
        Name without its folder.
    """
    return name.startswith((".", "~$")) or name.casefold() in _SYSTEM


def scan(folder: str | Path, left_out: Counter[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without the hidden ones.

    Parameters
    ----------
    folder : str or Path
        The folder.
    left_out : Counter
        Counter of the hidden entries by name, which is changed in place.

    Returns
    -------
    list of os.DirEntry

    Raises
    ------
    DataError
        If the folder does not exist, or a name in it is not UTF-8.
    """
    there = f"{'a file' if Path(folder).exists() else 'nothing'} at {folder}"
    require(Path(folder).is_dir(), DataError, "a folder", there, "check the path")
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    foreign = [e.name for e in found if e.name != e.name.encode("utf-8", "ignore").decode()]
    require(
        not foreign,
        DataError,
        f"file names in UTF-8 in {folder}",
        f"{[os.fsencode(name) for name in foreign[:3]]}",
        f"rename them, for example with: convmv -r -f latin1 -t utf8 --notest {quote(str(folder))}",
    )
    hidden = [entry.name for entry in found if is_hidden(entry.name)]
    left_out.update(name if name.casefold() in _SYSTEM else "hidden" for name in hidden)
    return [entry for entry in found if not is_hidden(entry.name)]


def list_images(
    folder: str | Path, guard: Guard, left_out: Counter[str], *, deep: bool = False
) -> list[Path]:
    """Return the images of a folder, sorted by path.

    Parameters
    ----------
    folder : str or Path
        The folder.
    guard : callable
        Refuses links that lead out of the data, see `bmfl_lab.files.link_guard`.
    left_out : Counter
        Counts everything else by suffix, "folder", or name of a system file; changed in place.
    deep : bool, default False
        Also read the folders in it, at any depth. Linked folders are left out.

    Returns
    -------
    list of Path

    Raises
    ------
    DataError
        See `scan`; also if a link leads out.
    """
    found = []
    for entry in scan(guard(Path(folder)), left_out):
        path = Path(entry.path)
        if entry.is_symlink():
            guard(path)
        if deep and entry.is_dir(follow_symlinks=False):
            found += list_images(path, guard, left_out, deep=True)
        elif entry.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(path)
        else:
            left_out["folder" if entry.is_dir() else path.suffix.lower() or "no suffix"] += 1
    return found


def _say_left_out(name: str, left_out: Mapping[str, int]) -> None:
    if left_out:
        print(f"{name}: left out {_list_left_out(left_out)}, which are no images", flush=True)


def _list_left_out(left_out: Mapping[str, int]) -> str:
    """Return what was left out as text, such as "12 .xml, 1 __MACOSX"."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(left_out.items())) or "nothing"


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of the subfolders of a folder, sorted; hidden ones are left out.

    Parameters
    ----------
    folder : str or Path
        The folder.

    Returns
    -------
    list of str

    Raises
    ------
    DataError
        If the folder does not exist.
    """
    return [entry.name for entry in scan(folder, Counter()) if entry.is_dir()]


def read_by_stem(
    name: str,
    ids: Sequence[str],
    images: Mapping[str, str | Path] | str | Path,
    *,
    follow_links: bool = False,
) -> StimulusSet:
    """Read the images that belong to names, each from the one image file with that stem.

    Parameters
    ----------
    name : str
        Name of the set.
    ids : sequence of str, length n
        The stems, which become the stimulus ids.
    images : folder, or mapping of str to path
        A folder that holds one ``ID.*`` per id at any depth, or the file of each id.
    follow_links : bool, default False
        Allow images that are links to somewhere outside the folder.

    Returns
    -------
    StimulusSet
        n unlabelled images in the order of `ids`. Files that are not images (``ID.xml``) never
        count.

    Raises
    ------
    DataError
        If an id has no image or several, or an image is a link out of the folder.
    """
    found: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    if isinstance(images, Mapping):
        found = {normal(i): Path(path) for i, path in images.items()}
    else:
        wanted = set(map(normal, ids))
        for path in list_images(images, link_guard(images, follow_links), left_out, deep=True):
            stem = normal(path.stem)
            require(
                found.setdefault(stem, path) == path or stem not in wanted,
                DataError,
                f"one image named {path.stem!r} in {images}",
                f"{found[stem]} and {path}",
                "remove all but one",
            )
    missing = [i for i in ids if normal(i) not in found]
    require(
        not missing,
        DataError,
        "an image for every stimulus",
        f"{len(missing)} missing, e.g. {missing[:1]}",
        f"add images ({', '.join(sorted(IMAGE_SUFFIXES))}) of these names to the folder, "
        "or give the right folder",
    )
    _say_left_out(name, left_out)
    paths = [found[normal(i)] for i in ids]
    return from_files(name, paths, ids, np.full(len(ids), -1), left_out=left_out)


def is_wnid(name: object) -> bool:
    """Return whether a name is the letter n and eight digits, such as "n01440764"."""
    return _WNID.fullmatch(str(name)) is not None


def read_wnids(source: str | Path | Iterable[str]) -> tuple[str, ...]:
    """Return wnids in sorted order, which is the class order of ImageNet-1k heads.

    Parameters
    ----------
    source : str, Path or iterable of str
        A folder whose subfolders are wnids, a text file with one wnid at the start of each line, or
        the wnids.

    Returns
    -------
    tuple of str, length n_classes
        Different wnids ("n01440764").

    Raises
    ------
    DataError
        If there is none, one repeats, or one is not the letter n and eight digits.
    """
    found: Iterable[str] = source
    if isinstance(source, (str, Path)) and Path(source).is_file():
        with (
            translated(UnicodeDecodeError, expected=f"text in {source}", remedy="save it as UTF-8"),
            system_errors(source),
        ):
            lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
        found = [line.split()[0] for line in lines if line.strip()]
    elif isinstance(source, (str, Path)):
        found = class_folders(source)
    found = list(found or ())
    bad = [w for w in found if not is_wnid(w)]
    require(
        found and not bad and len(set(found)) == len(found),
        DataError,
        "different wnids like n01440764",
        f"{bad[:1]}" if bad else f"{len(found)} of which {len(set(found))} differ",
        "give the ImageNet folder or a list of wnids",
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


_COMPLETE = (
    "check that this folder is that set, complete it, and remove folders that are no classes"
)
OR_PARTIAL = _COMPLETE + "; pass partial=True for a declared subset of its classes"
"""Remedy for wrong class folders, for readers that have the option ``partial``."""


def read_class_folders(
    name: str,
    folder: str | Path,
    classes: Sequence[str] | None = None,
    *,
    partial: bool = False,
    folder_of: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    remedy: str = _COMPLETE,
    follow_links: bool = False,
) -> StimulusSet:
    """Read one set of images from class folders.

    Parameters
    ----------
    name : str
        Name of the set.
    folder : str or Path
        Folder that holds one folder per class.
    classes : sequence of str, optional
        Class names in label order; by default the names of the folders, sorted.
    partial : bool, default False
        Accept a set with images of some of the classes only; labels keep their place in `classes`.
    folder_of : mapping of str to str, optional
        Name of the folder of a class, if it differs from the name of the class.
    root : str or Path, optional
        Folder below which images must lie, and to which the ids are relative; `folder` by default.
    remedy : str, optional
        Remedy in the message if the class folders are wrong.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the root.

    Returns
    -------
    StimulusSet
        One stimulus per image, with labels of shape (n_images,); its ids are paths below the root.
        Files that are not images are counted in its ``left_out`` and printed.

    Raises
    ------
    DataError
        If a class has no images, a folder belongs to no class, there is no image at all, or a link
        leads outside the root.
    """
    root = Path(folder) if root is None else Path(root)
    guard, left_out = link_guard(root, follow_links), Counter()
    images: dict[str, list[Path]] = {}
    for entry in scan(folder, left_out):
        if entry.is_dir():
            images.setdefault(normal(entry.name), []).extend(
                list_images(entry.path, guard, left_out)
            )
        else:
            left_out[Path(entry.name).suffix.lower() or "no suffix"] += 1
    classes = tuple(sorted(images)) if classes is None else tuple(classes)
    wanted = {normal((folder_of or {}).get(c, c)): i for i, c in enumerate(classes)}
    missing = sorted(c for c in wanted if not images.get(c))
    extra = sorted(set(images) - set(wanted))
    require(
        classes and not extra and (not missing or partial) and any(images.values()),
        DataError,
        f"images in each of the {len(wanted)} class folders of {name!r} in {folder}",
        f"{len(missing)} missing {missing[:5]}, {len(extra)} unknown {extra[:5]}, "
        f"left out: {_list_left_out(left_out)}",
        remedy,
    )
    _say_left_out(name, left_out)
    paths = [path for found in images.values() for path in found]
    labels = [wanted[c] for c, found in images.items() for _ in found]
    ids = [path.relative_to(root).as_posix() for path in paths]
    return from_files(name, paths, ids, labels, classes, left_out=left_out)

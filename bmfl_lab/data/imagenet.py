"""ImageNet-1k folders: labels by wnid, validation as folders or flat, and smaller copies for streaming.

``python -m bmfl_lab.data.imagenet prepare SOURCE TARGET`` writes the smaller copies.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.errors import BmflError, DataError, message
from bmfl_lab.files import atomic_path, link_guard, read_json, write_json
from bmfl_lab.runtime import progress

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
_WNID = re.compile(r"n\d{8}")
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})$")


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of the subfolders of `folder`, sorted; hidden ones are left out.

    Raises
    ------
    DataError
        If the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            message("a folder of class folders", f"nothing at {folder}", "check the path")
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
    if missing:
        raise DataError(
            message(
                f"classes of the head ({len(where)} wnids)",
                f"{len(missing)} others, e.g. {missing[0]!r}",
                "give the wnids of the head in its own order",
            )
        )
    return np.asarray([where[w] for w in wnids], dtype=np.int64)


def _images_in(folder: Path, guard: Callable[[Path], Path]) -> list[Path]:
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
    """Read a folder with one subfolder a class.

    Parameters
    ----------
    name : str
        Name of the set.
    folder : str or Path
        Holds the class folders.
    classes : sequence of str
        The classes that must be there; labels index this sequence.
    partial : bool, default False
        Accept a folder that holds only some of the classes; ``len(np.unique(labels))`` tells how
        many.
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
    if extra or (missing and not partial):
        raise DataError(
            message(
                f"the {len(wanted)} class folders of {name!r} in {folder}",
                f"{len(found)} folders; {len(missing)} missing {missing[:5]}, {len(extra)} unknown {extra[:5]}",
                "check that this folder is that set; pass partial=True for a declared subset of its classes",
            )
        )
    paths, labels = [], []
    for entry in found:
        images = _images_in(folder / entry, guard)
        paths += images
        labels += [wanted[entry]] * len(images)
    if not paths:
        raise DataError(
            message(f"images in {folder}", "none", f"expected files ending in {IMAGE_SUFFIXES}")
        )
    ids = [f"{p.parent.name}/{p.name}" for p in paths]
    return from_files(name, paths, ids, labels, tuple(classes))


def read_devkit(folder: str | Path) -> tuple[str, ...]:
    """Return the wnid of each validation image from the ILSVRC2012 development kit.

    Parameters
    ----------
    folder : str or Path
        ``ILSVRC2012_devkit_t12``, its ``data`` folder, or a folder that holds either.

    Returns
    -------
    tuple of str, shape (n_images,)
        Entry i belongs to ``ILSVRC2012_val_{i + 1:08d}``.

    Raises
    ------
    DataError
        If the two files are missing or do not fit.

    Notes
    -----
    The ground truth holds the kit's own ids (1 to 1000), which are not the sorted order of wnids;
    ``meta.mat`` maps them.
    """
    from scipy.io import loadmat

    root = Path(folder)
    for data in (root, root / "data", root / "ILSVRC2012_devkit_t12" / "data"):
        truth, meta = data / "ILSVRC2012_validation_ground_truth.txt", data / "meta.mat"
        if truth.is_file() and meta.is_file():
            break
    else:
        raise DataError(
            message(
                "ILSVRC2012_validation_ground_truth.txt and meta.mat",
                f"not both in {root}",
                "unpack the devkit there",
            )
        )
    synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
    wnid_of = {int(i): str(w) for i, w in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
    ids = [int(v) for v in truth.read_text(encoding="ascii").split()]
    unknown = [i for i in ids if i not in wnid_of]
    if unknown:
        raise DataError(
            message("ids listed in meta.mat", f"id {unknown[0]}", "take both files from one devkit")
        )
    return tuple(wnid_of[i] for i in ids)


def read_imagenet_train(
    folder: str | Path,
    wnids: Sequence[str] | None = None,
    *,
    partial: bool = False,
    follow_links: bool = False,
) -> StimulusSet:
    """Read ImageNet-1k training images from class folders; labels index the sorted wnids.

    Raises
    ------
    DataError
        See `read_class_folders`.
    """
    classes = read_wnids(folder if wnids is None else wnids)
    return read_class_folders(
        "imagenet-train", folder, classes, partial=partial, follow_links=follow_links
    )


def read_imagenet_val(
    folder: str | Path,
    wnids: Sequence[str] | str | Path,
    *,
    devkit: str | Path | None = None,
    partial: bool = False,
    follow_links: bool = False,
) -> StimulusSet:
    """Read ImageNet-1k validation images, in class folders or flat as distributed.

    Parameters
    ----------
    folder : str or Path
        Class folders, or files ``ILSVRC2012_val_00000001.JPEG`` and so on.
    wnids : sequence of str, or as `read_wnids`
        The classes; labels index them in sorted order.
    devkit : str or Path, optional
        Needed for flat files (see `read_devkit`).
    partial : bool, default False
        Accept some of the classes or files only.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Raises
    ------
    DataError
        If files are neither, the development kit is missing, or files are missing.
    """
    classes, folder = read_wnids(wnids), Path(folder)
    if class_folders(folder):
        return read_class_folders(
            "imagenet-val", folder, classes, partial=partial, follow_links=follow_links
        )
    if devkit is None:
        raise DataError(
            message(
                "class folders, or devkit=...",
                f"flat files in {folder}",
                "pass the folder of the ILSVRC2012 devkit",
            )
        )
    truth, paths = read_devkit(devkit), _images_in(folder, link_guard(folder, follow_links))
    numbers = [_VAL.match(p.stem) for p in paths]
    strange = [
        p.name for p, m in zip(paths, numbers) if m is None or not 1 <= int(m[1]) <= len(truth)
    ]
    if strange or not paths or (len(paths) != len(truth) and not partial):
        got = f"{strange[0]!r}" if strange else f"{len(paths)} files"
        raise DataError(
            message(
                f"{len(truth)} files ILSVRC2012_val_########.JPEG in {folder}",
                got,
                "pass partial=True for some of them",
            )
        )
    labels = head_columns([truth[int(m[1]) - 1] for m in numbers if m], classes)
    return from_files("imagenet-val", paths, [p.name for p in paths], labels, classes)


def _shrink(source: Path, target: Path, size: int, quality: int) -> str | None:
    from PIL import Image

    from bmfl_lab.data.images import decode_image

    try:
        image = Image.fromarray(decode_image(source))
    except BmflError as error:
        return f"{source}: {error}"
    scale = size / min(image.size)
    if scale < 1:
        wanted = tuple(max(size, round(side * scale)) for side in image.size)
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    with atomic_path(target) as temporary:
        image.save(temporary, format="JPEG", quality=quality)
    return None


def prepare(
    source: str | Path, target: str | Path, *, size: int = 256, quality: int = 95, workers: int = 4
) -> dict[str, int]:
    """Write smaller JPEG copies of an image tree; call again to go on after an interruption.

    Folder and file names stay (the suffix becomes ``.JPEG``), so every reader works on the copies.

    Parameters
    ----------
    source, target : str or Path
        Tree to read and tree to write.
    size : int, default 256
        Shorter side in pixels, bicubic; smaller images keep their size.
    quality : int, default 95
        JPEG quality.
    workers : int, default 4
        Threads.

    Returns
    -------
    dict
        ``written``, ``kept`` (there already), ``failed``; failures are listed in ``failed.txt`` of
        the target.

    Raises
    ------
    DataError
        If the source is missing, is the target, or the target was made with other settings.

    Notes
    -----
    JPEG of quality 95 changes pixels by a few levels: report results on copies as such.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    if not source.is_dir() or source == target or source in target.parents:
        raise DataError(
            message(
                "a source folder outside the target",
                f"{source} -> {target}",
                "choose another target",
            )
        )
    settings = {"size": size, "quality": quality, "resample": "bicubic", "source": source.name}
    stamp = target / "prepared.json"
    if stamp.is_file() and read_json(stamp) != settings:
        raise DataError(
            message(
                f"copies made with {settings}",
                f"{read_json(stamp)}",
                "choose an empty target folder",
            )
        )
    write_json(stamp, settings)
    jobs = [
        (p, (target / p.relative_to(source)).with_suffix(".JPEG"))
        for p in sorted(source.rglob("*"))
    ]
    jobs = [(a, b) for a, b in jobs if a.suffix.lower() in IMAGE_SUFFIXES and a.is_file()]
    todo = [(a, b) for a, b in jobs if not b.is_file()]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        outcomes = pool.map(lambda job: _shrink(*job, size, quality), todo)
        failed = [o for o in progress(outcomes, "images resized", total=len(todo)) if o]
    if failed:
        with atomic_path(target / "failed.txt") as temporary:
            temporary.write_text("\n".join(failed) + "\n", encoding="utf-8")
    return {
        "written": len(todo) - len(failed),
        "kept": len(jobs) - len(todo),
        "failed": len(failed),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if an image failed."""
    parser = argparse.ArgumentParser(prog="python -m bmfl_lab.data.imagenet", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "prepare", help="write smaller JPEG copies"
    )
    command.add_argument("source")
    command.add_argument("target")
    command.add_argument("--size", type=int, default=256, help="shorter side, pixels")
    command.add_argument("--quality", type=int, default=95, help="JPEG quality")
    command.add_argument("--workers", type=int, default=4, help="threads")
    options = vars(parser.parse_args(arguments))
    options.pop("command")
    try:
        counts = prepare(options.pop("source"), options.pop("target"), **options)
    except BmflError as error:
        parser.error(str(error))
    print(", ".join(f"{k} {v}" for k, v in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Read studies from images in class folders, the layout of ImageNet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bmfl_lab.data.class_folders import IMAGE_SUFFIXES, class_folders
from bmfl_lab.data.images import count_frames, decode_image
from bmfl_lab.data.responses import SPLITS
from bmfl_lab.data.splits import check_leakage, split_by_id
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.data.study import Study, register_reader
from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.files import link_guard, printable
from bmfl_lab.runtime import progress


def load(
    root: str | Path,
    ood: Iterable[str] = (),
    *,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    partial: bool = False,
    tolerant: bool = False,
    verify: bool = True,
    follow_links: bool = False,
) -> Study:
    """Read labelled images from class folders.

    Parameters
    ----------
    root : str or Path
        Holds ``train/``, ``val/``, ``test/`` and one folder per out-of-distribution set, each with
        one subfolder per class; or holds the class folders themselves. Missing parts ("val",
        "test") are split off from the training images, chosen by `seed` and the content of the
        images, and recorded in ``study.extra["split"]``.
    ood : iterable of str
        Names of folders beside ``train/`` that are natural out-of-distribution sets.
    seed : int, default 0
        Chooses the split.
    val, test : float, default 0.1
        Shares of the images that are split off where those folders are missing.
    partial : bool, default False
        Accept out-of-distribution sets that hold only some of the classes.
    tolerant : bool, default False
        Leave out images that cannot be decoded and list them in ``study.extra["skipped"]``, instead
        of refusing.
    verify : bool, default True
        Decode every image and compare all of them by content now. For very large sets pass False:
        an unreadable image is then found when it is used.
    follow_links : bool, default False
        Accept symbolic links that lead out of `root`.

    Returns
    -------
    Study
        The ids of the images are their paths below `root`. The first frame of a moving or
        multi-page image is used; ``study.extra["first_frame_of"]`` lists these images with their
        number of frames.

    Raises
    ------
    DataError
        If a class is missing or unknown in a set, an image cannot be read, two sets share an image,
        or a link leads out of the folder.
    ConfigError
        If an out-of-distribution folder does not exist or has the name of a split.
    """
    root, ood = Path(root).expanduser(), (ood,) if isinstance(ood, str) else tuple(ood)
    split_layout = (root / "train").is_dir()
    _check_ood(root, ood, split_layout)
    top = root / "train" if split_layout else root
    classes = tuple(class_folders(top))
    if not classes:
        raise DataError(
            message(
                f"class folders in {top}",
                "none",
                "put the images of each class into a folder of its name",
            )
        )
    report: dict[str, dict] = {"skipped": {}, "ignored": {}, "first_frame_of": {}}
    options = {
        "follow_links": follow_links,
        "tolerant": tolerant,
        "verify": verify,
        "report": report,
    }
    sets = {"train": _read(root, top, "train", classes, **options)}
    if split_layout:
        for name in ("val", "test", *ood):
            if (root / name).is_dir():
                sets[name] = _read(
                    root, root / name, name, classes, partial=partial and name in ood, **options
                )
    _split_off(sets, seed, val, test, report)
    if verify:
        report["leakage"] = check_leakage(sets)
    return Study(
        name=root.resolve().name,
        description=f"images of {len(classes)} classes in {root.resolve().name}",
        sets={name: sets[name] for name in (*SPLITS, *ood)},
        ood=ood,
        licences={"images": "the user's own"},
        extra=report,
    )


def _check_ood(root: Path, ood: tuple[str, ...], split_layout: bool) -> None:
    if ood and not split_layout:
        raise ConfigError(
            message(
                f"a folder train/ in {root} beside the out-of-distribution sets {ood}",
                "class folders only",
                "move the class folders into train/",
            )
        )
    there = class_folders(root)
    for name in ood:
        if name in SPLITS:
            raise ConfigError(
                message(
                    "an out-of-distribution set", f"{name!r}, a split", f"name none of {SPLITS}"
                )
            )
        if name not in there:
            raise ConfigError(
                message(
                    f"a folder {name!r} in {root}",
                    "none",
                    nearest(name, [t for t in there if t not in SPLITS]),
                )
            )


def _read(
    root: Path,
    folder: Path,
    name: str,
    classes: tuple[str, ...],
    *,
    follow_links: bool,
    tolerant: bool,
    verify: bool,
    report: dict[str, dict],
    partial: bool = False,
) -> StimulusSet:
    found = class_folders(folder)
    missing, unknown = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if unknown or (missing and not partial):
        raise DataError(
            message(
                f"the {len(classes)} classes of the training set in {folder}",
                f"{len(missing)} missing {missing[:5]}, {len(unknown)} unknown {unknown[:5]}",
                "make the class folders agree, "
                "or pass partial=True for out-of-distribution sets with fewer classes",
            )
        )
    paths, labels, ignored = [], [], []
    for entry in found:
        for path in sorted((folder / entry).iterdir()):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                ignored.append(printable(path.relative_to(root)))
                continue
            paths.append(path)
            labels.append(classes.index(entry))
    guard = link_guard(root, follow_links)
    paths = [guard(path) for path in paths]
    skipped, moving = _unreadable(paths, name, tolerant) if verify else ({}, {})
    kept = [i for i, path in enumerate(paths) if str(path) not in skipped]
    if not kept:
        raise DataError(
            message(f"images in {folder}", "none", f"use files ending in {IMAGE_SUFFIXES}")
        )
    if ignored:
        report["ignored"][name] = ignored
    if skipped:
        report["skipped"][name] = {
            printable(Path(path).relative_to(root)): why for path, why in skipped.items()
        }
    if moving:
        report["first_frame_of"][name] = {
            printable(path.relative_to(root)): n for path, n in moving.items()
        }
    chosen = [paths[i] for i in kept]
    ids = [path.relative_to(root).as_posix() for path in chosen]
    return from_files(name, chosen, ids, np.asarray(labels, dtype=np.int64)[kept], classes)


def _unreadable(
    paths: list[Path], name: str, tolerant: bool
) -> tuple[dict[str, str], dict[Path, int]]:
    """Return the reason per unreadable file, and the number of frames per file with several."""
    skipped, moving = {}, {}
    for path in progress(paths, f"checking images of {name}"):
        try:
            decode_image(path)
            if (n := count_frames(path)) > 1:
                moving[path] = n
        except DataError as error:
            if not tolerant:
                raise
            skipped[str(path)] = str(error)
    if skipped:
        print(
            f"{name}: {len(skipped)} of {len(paths)} images cannot be read and are left out",
            flush=True,
        )
    if moving:
        print(
            f"{name}: {len(moving)} of {len(paths)} files have several frames; the first is used",
            flush=True,
        )
    return skipped, moving


def _split_off(
    sets: dict[str, StimulusSet], seed: int, val: float, test: float, report: dict[str, dict]
) -> None:
    """Take the missing splits, val and test, from the training images, class by class."""
    shares = {"val": 0.0 if "val" in sets else val, "test": 0.0 if "test" in sets else test}
    if not any(name not in sets for name in shares):
        return
    train = sets["train"]
    # The same image under two names has to land in the same part.
    digests = np.asarray(train.digests(), dtype=object)
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        parts, _ = split_by_id(digests[members], val=shares["val"], test=shares["test"], seed=seed)
        for name, index in parts.items():
            rows[name] += members[index].tolist()
    for name in ("train", *(n for n in shares if n not in sets)):
        if not rows[name]:
            raise DataError(
                message(
                    f"enough images to split off {name!r}",
                    f"{len(train)} in all",
                    f"add images, or a folder {name}/",
                )
            )
        sets[name] = train.subset(np.sort(rows[name]), name=name)
    report["split"] = {
        "seed": seed,
        **{n: s for n, s in shares.items() if s},
        "sizes": {n: len(s) for n, s in sets.items()},
    }


register_reader("folder", load, Path.is_dir, general=True)

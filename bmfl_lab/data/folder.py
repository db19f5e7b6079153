"""Read studies from images in class folders, the layout of ImageNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bmfl_lab.data.class_folders import class_folders, read_class_folders, scan
from bmfl_lab.data.images import count_frames, decode_image
from bmfl_lab.data.ood_sets import read_domains
from bmfl_lab.data.responses import SPLITS
from bmfl_lab.data.splits import split_by_id
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study, register_reader
from bmfl_lab.errors import ConfigError, DataError, require, require_known
from bmfl_lab.runtime import progress

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folder of each split, in any case."""
_REMEDY = (
    "put the images of each class into a folder of its name in every set; remove other folders. Of "
    "a data set of brain responses give the folder of a subject, not one inside it"
)


def load(
    root: str | Path,
    ood: Iterable[str] | None = None,
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
        Folder that holds ``train/``, ``val/``, ``test/`` and one folder per out-of-distribution
        set, each with one subfolder per class; or holds the class folders themselves. ``Train/``,
        ``valid/`` and ``validation/`` are understood, too. Missing parts ("val", "test") are split
        off from the training images, chosen by `seed` and the content of the images, and recorded
        in ``study.extra["split"]``.
    ood : iterable of str, optional
        Names of folders beside ``train/`` that are natural out-of-distribution sets; by default
        all that hold folders.
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
        Decode every image now; `load_study` also compares all of them by content. For very large
        sets pass False: an unreadable image is then found when it is used.
    follow_links : bool, default False
        Accept symbolic links that lead out of `root`.

    Returns
    -------
    Study
        The ids of the images are their paths below `root`. The first frame of a moving or
        multi-page image is used; ``study.extra["first_frame_of"]`` lists these images with their
        number of frames. Files that are not images are
        printed, and counted in ``left_out`` of each set.

    Raises
    ------
    DataError
        If a class has no images in a set, a folder belongs to no class, an image cannot be read,
        or a link leads out of the folder.
    ConfigError
        If an out-of-distribution folder does not exist or has the name of a split.
    """
    root = Path(root).expanduser()
    places = _split_folders(root)
    if ood is None:
        ood = _other_sets(root, places)
    ood = (ood,) if isinstance(ood, str) else tuple(ood)
    _check_ood(root, ood, places)
    report: dict[str, dict] = {"skipped": {}, "first_frame_of": {}}

    def read(name: str, folder: Path, classes: tuple[str, ...] | None = None) -> StimulusSet:
        few = "; pass partial=True for out-of-distribution sets with fewer classes"
        found = read_class_folders(
            name,
            folder,
            classes,
            partial=partial and name in ood,
            root=root,
            remedy=_REMEDY + (few if name in ood else ""),
            follow_links=follow_links,
        )
        return _check_images(found, tolerant, report) if verify else found

    sets = {"train": read("train", places.pop("train", root))}
    classes = sets["train"].class_names
    require(
        len(classes) > 1,
        DataError,
        f"two or more classes in {root}",
        f"only {classes[0]!r}",
        "add the folder of another class, or give the folder that holds those of the classes, or, "
        "for brain responses, that of a subject",
    )
    for name, folder in {**places, **{name: root / name for name in ood}}.items():
        sets[name] = read(name, folder, classes)
    _split_off(sets, seed, val, test, report)
    return Study(
        name=root.resolve().name,
        description=f"images of {len(classes)} classes in {root.resolve().name}",
        sets={name: sets[name] for name in (*SPLITS, *ood)},
        ood=ood,
        licences={"images": "the user's own"},
        extra=report,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split, or nothing if `root` holds class folders itself.

    A folder "train" that holds images and no folders is a class of trains.
    """
    found: dict[str, Path] = {}
    for entry in scan(root, Counter()):
        for split, names in _NAMES.items():
            if entry.is_dir() and entry.name.casefold() in names:
                require(
                    found.setdefault(split, Path(entry.path)) == Path(entry.path),
                    DataError,
                    f"one folder of {split} images in {root}",
                    f"{found[split].name} and {entry.name}",
                    "remove or rename one of them",
                )
    return found if "train" in found and class_folders(found["train"]) else {}


def _other_sets(root: Path, places: dict[str, Path]) -> list[str]:
    """Return the names of the folders beside the splits that hold folders themselves."""
    splits = {path.name for path in places.values()}
    others = [name for name in class_folders(root) if name not in splits] if places else []
    found = [name for name in others if class_folders(root / name)]
    if left := sorted(set(others) - set(found)):
        print(f"{root.name}: left out {', '.join(left)}, which hold no class folders", flush=True)
    return found


def _check_ood(root: Path, ood: tuple[str, ...], places: dict[str, Path]) -> None:
    require(
        not ood or places,
        ConfigError,
        f"a folder train/ in {root} beside the out-of-distribution sets {ood}",
        "class folders only",
        "move the class folders into train/",
    )
    splits = {*SPLITS, *(path.name for path in places.values())}
    there = [name for name in class_folders(root) if name not in splits]
    for name in ood:
        expected = "an out-of-distribution set"
        require(
            name not in splits, ConfigError, expected, f"{name!r}, a split", "leave it out of ood"
        )
        require_known(name, there, ConfigError, f"a folder {name!r} in {root}")


def _check_images(stimuli: StimulusSet, tolerant: bool, report: dict[str, dict]) -> StimulusSet:
    """Decode every image; return the readable ones and report the others by id."""
    skipped, moving = {}, {}
    ids = list(stimuli.ids)
    for identifier, path in zip(progress(ids, f"checking images of {stimuli.name}"), stimuli.paths):
        try:
            decode_image(path)
            if (n := count_frames(path)) > 1:
                moving[identifier] = n
        except DataError as error:
            if not tolerant:
                raise
            skipped[identifier] = str(error)
    for what, found, text in (
        ("skipped", skipped, "images cannot be read and are left out"),
        ("first_frame_of", moving, "files have several frames; the first is used"),
    ):
        if found:
            report[what][stimuli.name] = found
            print(f"{stimuli.name}: {len(found)} of {len(ids)} {text}", flush=True)
    kept = np.flatnonzero([identifier not in skipped for identifier in ids])
    lost = sorted(set(stimuli.labels) - set(stimuli.labels[kept]))
    require(
        not lost,
        DataError,
        f"a readable image of each class in {stimuli.name!r}",
        f"none of {[stimuli.class_names[label] for label in lost]}",
        "replace the images that cannot be read",
    )
    return stimuli.subset(kept)


def _split_off(
    sets: dict[str, StimulusSet], seed: int, val: float, test: float, report: dict[str, dict]
) -> None:
    """Take the missing splits, val and test, from the training images, class by class."""
    shares = {"val": 0.0 if "val" in sets else val, "test": 0.0 if "test" in sets else test}
    if set(shares) <= set(sets):
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
        require(
            rows[name],
            DataError,
            f"enough images to split off {name!r}",
            f"{len(train)} in all",
            f"add images or a folder {name}/, or pass a larger {name}=...",
        )
        sets[name] = train.subset(np.sort(rows[name]), name=name)
    report["split"] = {
        "seed": seed,
        **{n: s for n, s in shares.items() if s},
        "sizes": {n: len(s) for n, s in sets.items()},
    }


def load_domains(
    root: str | Path,
    train: str = "",
    *,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    tolerant: bool = False,
    verify: bool = True,
) -> Study:
    """Read the layout ``domain/class/image`` of PACS, Office-Home and DomainNet.

    Parameters
    ----------
    root : str or Path
        Folder that holds one folder per domain, each with the same class folders.
    train : str
        Domain whose images are split into "train", "val" and "test"; every other domain is a
        natural out-of-distribution set.
    seed, val, test, tolerant, verify
        See `load`.

    Returns
    -------
    Study
        The ids of the images are their paths below `root`.

    Raises
    ------
    ConfigError
        If `train` is no domain.
    DataError
        If there are fewer than two domains, their classes differ, or an image cannot be read.
    """
    root = Path(root).expanduser()
    domains = read_domains(root)
    require_known(train, domains, ConfigError, f"a domain of {root.name} as train")
    report: dict[str, dict] = {"skipped": {}, "first_frame_of": {}}
    if verify:
        domains = {n: _check_images(found, tolerant, report) for n, found in domains.items()}
    sets = {"train": domains.pop(train)}
    classes = sets["train"].class_names
    _split_off(sets, seed, val, test, report)
    return Study(
        name=root.resolve().name,
        description=f"images of {len(classes)} classes in the domain {train} of "
        f"{root.resolve().name}; out of distribution: {', '.join(domains)}",
        sets={**{name: sets[name] for name in SPLITS}, **domains},
        ood=tuple(domains),
        licences={"images": "the user's own"},
        extra=report,
    )


register_reader("domains", load_domains)
register_reader("folder", load, Path.is_dir, general=True, layout="one folder per class")

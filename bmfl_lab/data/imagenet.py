"""Read ImageNet-1k and the sets made after it from the user's folders, with labels by wnid.

``python -m bmfl_lab.data.prepare SOURCE TARGET`` writes smaller copies for streaming.

References
----------
.. [1] Russakovsky et al. (2015), ImageNet Large Scale Visual Recognition Challenge, International
   Journal of Computer Vision 115.
.. [2] Zhao et al. (2024), NeuralOOD, arXiv:2408.14950.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data.class_folders import (
    OR_PARTIAL,
    class_folders,
    head_columns,
    is_wnid,
    list_images,
    read_class_folders,
    read_wnids,
)
from bmfl_lab.data.containers import load_mat
from bmfl_lab.data.ood_sets import SETS, read_imagenet_c, read_ood_set
from bmfl_lab.data.shifts import IMAGENET_C
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.data.study import BackboneSpec, Study, register_reader
from bmfl_lab.errors import ConfigError, DataError, message, require, require_known, translated
from bmfl_lab.files import link_guard, read_table, sha256_bytes
from bmfl_lab.runtime import rng

KAGGLE_LABELS = "LOC_val_solution.csv"
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})$")

PLACES = {
    "imagenet-sketch": ("imagenet-sketch", "sketch", "ImageNet-Sketch"),
    "imagenet-r": ("imagenet-r", "ImageNet-R"),
    "imagenet-a": ("imagenet-a", "ImageNet-A"),
    "imagenet-v2": ("imagenet-v2", "imagenetv2-matched-frequency-format-val", "ImageNet-V2"),
    "stylized-imagenet": (
        "stylized-imagenet/val",
        "stylized-imagenet",
        "Stylized-ImageNet/val",
        "Stylized-ImageNet",
    ),
}
"""Folders below the root in which each set is looked for."""


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
    remedy = "unpack both files of one devkit again"
    with translated(
        *(KeyError, ValueError, TypeError, IndexError),
        expected=f"numbers in {truth.name} and a table of synsets in {meta}",
        remedy=remedy,
    ):
        synsets = load_mat(meta, ("synsets",), squeeze=True)["synsets"]
        wnid_of = {int(i): str(w) for i, w in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
        ids = [int(v) for v in truth.read_text(encoding="utf-8-sig").split()]
    unknown = [i for i in ids if i not in wnid_of]
    require(not unknown, DataError, "ids listed in meta.mat", f"ids {unknown[:1]}", remedy)
    return tuple(wnid_of[i] for i in ids)


def read_imagenet_train(
    folder: str | Path,
    wnids: Sequence[str] | None = None,
    *,
    partial: bool = False,
    follow_links: bool = False,
) -> StimulusSet:
    """Read the training images of ImageNet-1k from class folders.

    Parameters
    ----------
    folder : str or Path
        Folder that holds one folder per class, named by its wnid.
    wnids : sequence of str, optional
        The classes; by default the folders that are there.
    partial : bool, default False
        Accept images of some of the classes only.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    StimulusSet
        One stimulus per image; labels of shape (n_images,) index the sorted wnids.

    Raises
    ------
    DataError
        See `read_class_folders`.
    """
    classes = read_wnids(folder if wnids is None else wnids)
    return read_class_folders(
        "imagenet-train",
        folder,
        classes,
        partial=partial,
        remedy=OR_PARTIAL,
        follow_links=follow_links,
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
    wnids : sequence of str, or a source for `read_wnids`
        The classes; labels index them in sorted order.
    devkit : str or Path, optional
        Labels of flat files: the folder of the development kit (see `read_devkit`), or Kaggle's
        ``LOC_val_solution.csv``. The latter is found automatically in the folder, or in one of the
        four folders above it.
    partial : bool, default False
        Accept some of the classes or files only.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    StimulusSet
        One stimulus per image, 50,000 in the published set; labels of shape (n_images,) index the
        sorted wnids.

    Raises
    ------
    DataError
        If there are neither class folders nor labels, or files are missing.
    """
    classes, folder = read_wnids(wnids), Path(folder)
    if class_folders(folder):
        return read_class_folders(
            "imagenet-val",
            folder,
            classes,
            partial=partial,
            remedy=OR_PARTIAL,
            follow_links=follow_links,
        )
    truth, left_out = _val_labels(folder, devkit), Counter()
    paths = list_images(folder, link_guard(folder, follow_links), left_out)
    numbers = [int(match[1]) if (match := _VAL.match(p.stem)) else 0 for p in paths]
    strange = [p.name for p, number in zip(paths, numbers) if number not in truth]
    require(
        paths and not strange and (len(paths) == len(truth) or partial),
        DataError,
        f"{len(truth)} files ILSVRC2012_val_########.JPEG in {folder}",
        f"{strange[:1]}" if strange else f"{len(paths)} files",
        "remove the files of other names, or give the labels of these images as devkit=..."
        if strange
        else "pass partial=True for some of them"
        if paths
        else "unpack the validation images there",
    )
    labels = head_columns([truth[number] for number in numbers], classes)
    ids = [p.name for p in paths]
    return from_files("imagenet-val", paths, ids, labels, classes, left_out=left_out)


def _val_labels(folder: Path, devkit: str | Path | None) -> dict[int, str]:
    """Return the wnid of each validation image by its number, from Kaggle's table or the devkit."""
    if devkit is not None and Path(devkit).is_dir():
        return dict(enumerate(read_devkit(devkit), start=1))
    places = [p / KAGGLE_LABELS for p in (folder, *folder.resolve().parents[:4])]
    tables = [p for p in (places if devkit is None else [Path(devkit)]) if p.is_file()]
    require(
        tables,
        DataError,
        f"class folders, {KAGGLE_LABELS} in or above {folder}, or the devkit",
        "flat files without labels" if devkit is None else f"nothing at {devkit}",
        f"put Kaggle's {KAGGLE_LABELS} beside the folder, or pass its path or the folder of the "
        "ILSVRC2012 devkit as devkit=..., or sort the images into class folders",
    )
    return read_kaggle_labels(tables[0])


def read_kaggle_labels(path: str | Path) -> dict[int, str]:
    """Read the labels of the validation images as Kaggle distributes them.

    Parameters
    ----------
    path : str or Path
        ``LOC_val_solution.csv``, with the name of an image, and its wnid before each bounding box.

    Returns
    -------
    dict of int to str, length n_images
        Number of each image ("ILSVRC2012_val_00000001" is 1) to its wnid.

    Raises
    ------
    DataError
        If the file is not such a table.
    """
    remedy = f"download {KAGGLE_LABELS} of Kaggle's ImageNet again"
    found: dict[int, str] = {}
    for _, row in read_table(path, ["ImageId", "PredictionString"], remedy):
        image = _VAL.match(row["ImageId"].strip())
        wnid = row["PredictionString"].split(" ")[0].strip()
        require(
            image and is_wnid(wnid),
            DataError,
            f"lines like 'ILSVRC2012_val_00000001,n01440764 1 1 9 9' in {path}",
            repr(list(row.values()))[:80],
            remedy,
        )
        found[int(image[1])] = wnid
    require(found, DataError, f"labels in {path}", "none", remedy)
    return found


def load(
    root: str | Path = "",
    ood: Mapping[str, str] | None = None,
    *,
    corruptions: str | Path | None = None,
    corruption_names: Sequence[str] = IMAGENET_C,
    corruption_severities: Sequence[int] = (),
    devkit: str | Path | None = None,
    train_per_class: int = 0,
    val_per_class: int = 10,
    seed: int = 0,
    partial: bool = False,
    content: bool = True,
    verify: bool = False,
    follow_links: bool = False,
) -> Study:
    """Read a study from the folders of ImageNet-1k and of the sets made after it.

    Parameters
    ----------
    root : str or Path
        Folder that holds ``train/wnid/*`` and ``val/`` (class folders, or flat with `devkit`), and
        may hold folders named as in `PLACES`, which are found by themselves.
    ood : mapping of str to str, optional
        Name of a set ("imagenet-sketch", "imagenet-r", "imagenet-a", "imagenet-v2",
        "stylized-imagenet") to its folder, relative to the root or absolute; given, only these are
        read.
    corruptions : str or Path, optional
        Folder of ImageNet-C; its sets are named "fog-3" and are natural sets of the study.
    corruption_names, corruption_severities : sequence
        Names and severities to read; without a severity none is read.
    devkit : str or Path, optional
        Labels of flat validation images, see `read_imagenet_val`.
    train_per_class : int, default 0
        Training images per class, chosen by `seed`; 0 takes all. Tokens of all of them have to fit
        into memory.
    val_per_class : int, default 10
        Training images per class that are held out for choosing epochs; never trained on.
    seed : int, default 0
        Chooses the training images and the validation images.
    partial : bool, default False
        Accept sets with some of the classes only, without the self-checks of ImageNet-R and -A.
    content : bool, default True
        Identify images by a hash of their file. False takes path, size and time of change instead:
        the million files are then not read before the first epoch, and a file that was replaced by
        another of the same size and time is not noticed.
    verify : bool, default False
        Let `load_study` compare all images of all sets by content.
    follow_links : bool, default False
        Allow folders and files that are links to somewhere outside the root, or outside a set's own
        folder.

    Returns
    -------
    Study
        "train" and "val" are parts of ImageNet's training images, "test" is its validation set.
        Sets with fewer classes keep only theirs: models are scored on those logits, matched by
        wnid. Made shifts of "test": masked and low light, the two of the six sets of NeuralOOD that
        are not downloads.

    Raises
    ------
    ConfigError
        If no root is given, or a set is unknown.
    DataError
        If a folder is missing, holds other classes, or is a link out of the root; see the readers.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024): ImageNet-1k; Sketch, R, A, Stylized, Masked,
    Low light.
    """
    require(
        str(root),
        ConfigError,
        "the folder of ImageNet-1k",
        "none",
        "pass root=..., or write a study file (see load_study)",
    )
    home = Path(root).expanduser()
    guard, links = link_guard(home, follow_links), {"follow_links": follow_links}
    wnids = read_wnids(guard(home / "train"))
    everything = read_imagenet_train(home / "train", wnids, partial=partial, **links)
    sets = _split(everything, train_per_class, val_per_class, seed)
    sets["test"] = read_imagenet_val(
        guard(home / "val"), wnids, devkit=devkit, partial=partial, **links
    )
    natural = {
        name: read_ood_set(
            name, guard(place) if ood is None else place, wnids, partial=partial, **links
        ).stimuli
        for name, place in _places(home, ood).items()
    }
    for name in corruption_names if corruptions is not None else ():
        for severity in corruption_severities:
            found = read_imagenet_c(
                home / str(corruptions), name, severity, wnids, partial=partial, **links
            )
            natural[found.name] = found
    sets = {name: s if content else _by_file(s) for name, s in (sets | natural).items()}
    report: dict[str, Any] = {
        "split": {"seed": seed, "sizes": {n: len(s) for n, s in sets.items()}}
    }
    return Study(
        name="imagenet",
        description=f"ImageNet-1k ({len(wnids)} classes) "
        f"and {len(natural)} out-of-distribution sets",
        sets=sets,
        ood=tuple(natural),
        shifts=(("masked", 3), ("low_light", 3)),
        backbone=BackboneSpec("dinov2_vitb14"),
        licences={n: SETS[n].licence for n in ("imagenet", *(n for n in natural if n in SETS))},
        extra=report,
    )


def _split(everything: StimulusSet, train: int, val: int, seed: int) -> dict[str, StimulusSet]:
    require(
        val >= 1 and train >= 0,
        ConfigError,
        "val_per_class >= 1 and train_per_class >= 0",
        f"{val} and {train}",
        "use e.g. val_per_class=10, and train_per_class=0 for all images",
    )
    rows: dict[str, list[int]] = {"train": [], "val": []}
    for label in np.unique(everything.labels):
        members = np.flatnonzero(everything.labels == label)
        order = rng(seed, "imagenet", everything.class_names[label]).permutation(len(members))
        last = val + train if train else len(members)
        require(
            len(members) > val,
            DataError,
            f"more than {val} training images of {everything.class_names[label]}",
            len(members),
            "lower val_per_class or complete the folder",
        )
        rows["val"] += members[order[:val]].tolist()
        rows["train"] += members[order[val:last]].tolist()
    return {name: everything.subset(np.sort(index), name=name) for name, index in rows.items()}


def _places(home: Path, ood: Mapping[str, str] | None) -> dict[str, Path]:
    if ood is not None:
        for name in ood:
            require_known(name, PLACES, ConfigError, f"sets among {tuple(PLACES)}")
        return {name: home / Path(folder).expanduser() for name, folder in ood.items()}
    found = {
        name: [home / p for p in places if (home / p).is_dir()] for name, places in PLACES.items()
    }
    return {name: places[0] for name, places in found.items() if places}


def _by_file(stimuli: StimulusSet) -> StimulusSet:
    paths = stimuli.paths or ()

    def digest(index: int) -> str:
        stat = Path(paths[index]).stat()
        return sha256_bytes(f"{paths[index]}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())

    return replace(stimuli, digest_of=digest)


register_reader("imagenet", load)

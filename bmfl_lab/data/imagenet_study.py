"""ImageNet-1k and its out-of-distribution sets as a study: the user's own folders, labels by wnid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data.imagenet import read_imagenet_train, read_imagenet_val, read_wnids
from bmfl_lab.data.ood_sets import SETS, read_imagenet_c, read_ood_set
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.shifts import IMAGENET_C
from bmfl_lab.data.splits import check_leakage
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import BackboneSpec, Study
from bmfl_lab.errors import ConfigError, DataError, message, nearest
from bmfl_lab.files import link_guard, sha256_bytes
from bmfl_lab.runtime import rng

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


def load(
    root: str | Path = "",
    ood: Mapping[str, str] | None = None,
    *,
    corruptions: str | Path | None = None,
    corruption_names: Sequence[str] = IMAGENET_C,
    corruption_severities: Sequence[int] = (),
    devkit: str | Path | None = None,
    subject: str | Path | None = None,
    train_per_class: int = 0,
    val_per_class: int = 10,
    seed: int = 0,
    partial: bool = False,
    content: bool = True,
    verify: bool = False,
    follow_links: bool = False,
    backbone: str = "dinov2_vitb14",
    weights: str | None = None,
    image_size: int = 224,
) -> Study:
    """Read a study from the folders of ImageNet-1k and of the sets made after it.

    Parameters
    ----------
    root : str or Path
        Holds ``train/wnid/*`` and ``val/`` (class folders, or flat with `devkit`), and may hold
        folders named as in `PLACES`, which are found by themselves.
    ood : mapping of str to str, optional
        Name of a set ("imagenet-sketch", "imagenet-r", "imagenet-a", "imagenet-v2",
        "stylized-imagenet") to its folder, relative to the root or absolute; given, only these are
        read.
    corruptions : str or Path, optional
        Folder of ImageNet-C; its sets are named "fog-3" and are natural sets of the study.
    corruption_names, corruption_severities : sequence
        Which of them; no severity reads none.
    devkit : str or Path, optional
        For flat validation images, see `imagenet.read_devkit`.
    subject : str or Path, optional
        Folder of one subject in the layout of the Algonauts 2023 challenge.
    train_per_class : int, default 0
        Training images a class, chosen by `seed`; 0 takes all. Tokens of all of them have to fit
        into memory.
    val_per_class : int, default 10
        Training images a class that are held out for choosing epochs; never trained on.
    seed : int, default 0
        Chooses both.
    partial : bool, default False
        Accept sets with some of the classes only, without the self-checks of ImageNet-R and -A.
    content : bool, default True
        Identify images by a hash of their file. False takes path, size and time of change instead:
        the million files are then not read before the first epoch, and a file that was swapped with
        care is not noticed.
    verify : bool, default False
        Compare all images of all sets by content now.
    follow_links : bool, default False
        Allow folders and files that are links to somewhere outside the root, or outside a set's own
        folder.
    backbone, weights, image_size
        Default backbone, as in `BackboneSpec`.

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
    if not str(root):
        raise ConfigError(
            message(
                "the folder of ImageNet-1k",
                "none",
                "pass root=..., or write a study file (see load_study)",
            )
        )
    home = Path(root).expanduser()
    guard, links = link_guard(home, follow_links), {"follow_links": follow_links}
    wnids = read_wnids(guard(home / "train"))
    everything = read_imagenet_train(home / "train", wnids, **links)
    sets = _split(everything, train_per_class, val_per_class, seed)
    sets["test"] = read_imagenet_val(
        guard(home / "val"), wnids, devkit=devkit, partial=partial, **links
    )
    natural = {}
    for name, folder in _places(home, ood).items():
        folder = (
            guard(folder) if ood is None else folder
        )  # a folder the user names may lie anywhere
        natural[name] = read_ood_set(name, folder, wnids, partial=partial, **links).stimuli
    for name in corruption_names if corruptions is not None else ():
        for severity in corruption_severities:
            found = read_imagenet_c(
                home / str(corruptions), name, severity, wnids, partial=partial, **links
            )
            natural[found.name] = found
    sets = {name: s if content else _by_file(s) for name, s in (sets | natural).items()}
    subjects = {} if subject is None else _subject(home, subject, follow_links)
    report: dict[str, Any] = {
        "split": {"seed": seed, "sizes": {n: len(s) for n, s in sets.items()}}
    }
    if verify:
        report["leakage"] = check_leakage(
            {**sets, **{f"stimuli of {n}": s.stimuli for n, s in subjects.items()}}
        )
    return Study(
        name="imagenet",
        description=f"ImageNet-1k ({len(wnids)} classes) and {len(natural)} out-of-distribution sets",
        sets=sets,
        subjects=subjects,
        ood=tuple(natural),
        shifts=(("masked", 3), ("low_light", 3)),
        backbone=BackboneSpec(backbone, weights, image_size),
        licences={n: SETS[n].licence for n in ("imagenet", *(n for n in natural if n in SETS))},
        extra=report,
    )


def _split(everything: StimulusSet, train: int, val: int, seed: int) -> dict[str, StimulusSet]:
    if val < 1 or train < 0:
        raise ConfigError(
            message(
                "val_per_class >= 1 and train_per_class >= 0", f"{val}, {train}", "correct them"
            )
        )
    rows: dict[str, list[int]] = {"train": [], "val": []}
    for label in np.unique(everything.labels):
        members = np.flatnonzero(everything.labels == label)
        order = rng(seed, "imagenet", everything.class_names[label]).permutation(len(members))
        last = val + train if train else len(members)
        if len(members) <= val:
            raise DataError(
                message(
                    f"more than {val} training images of {everything.class_names[label]}",
                    str(len(members)),
                    "lower val_per_class or complete the folder",
                )
            )
        rows["val"] += members[order[:val]].tolist()
        rows["train"] += members[order[val:last]].tolist()
    return {name: everything.subset(np.sort(index), name=name) for name, index in rows.items()}


def _places(home: Path, ood: Mapping[str, str] | None) -> dict[str, Path]:
    if ood is not None:
        for name in ood:
            if name not in PLACES:
                raise ConfigError(
                    message(f"sets among {tuple(PLACES)}", repr(name), nearest(name, PLACES))
                )
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

    return dataclasses.replace(stimuli, digest_of=digest)


def _subject(home: Path, folder: str | Path, follow_links: bool) -> dict[str, Subject]:
    from bmfl_lab.data.algonauts import read_subject

    found = read_subject(home / Path(folder).expanduser(), follow_links=follow_links)
    return {found.name: found}

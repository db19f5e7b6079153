"""Describe a study before anything is computed, and refuse what a training would refuse."""

from __future__ import annotations

import time

import numpy as np

from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import DataError, require
from bmfl_lab.runtime import progress, rng

N_DECODED = 2000
"""Images of each set that are decoded (our choice)."""


def check_study(study: Study, n_decoded: int = N_DECODED) -> list[str]:
    """Decode the images of a study and describe all that it holds.

    Parameters
    ----------
    study : Study
        Loaded by `load_study`, which has refused shared images and other faults of its layout.
    n_decoded : int, default 2000
        Images of each set that are decoded, drawn at random if the set has more.

    Returns
    -------
    list of str
        Lines for a person: each set with its classes and image sizes, each subject with its splits,
        and how long it takes to decode all images once. `load_study` has printed what was left out
        and which sets hold copies.

    Raises
    ------
    DataError
        If images cannot be decoded (up to five are named), or a class of the training set has no
        image in "val" or "test".
    """
    sets = _all_sets(study)
    lines, broken, seconds = [f"{study.name}: {study.description}"], [], 0.0
    for name, stimuli in sets.items():
        sizes, failed, spent = _decode(stimuli, n_decoded)
        broken += failed
        seconds += spent * len(stimuli)
        kind = " (out of distribution)" if name in study.ood else ""
        lines.append(f"{name}{kind}: {_classes(stimuli)}; {_sizes(sizes, len(stimuli))}")
    require(
        not broken,
        DataError,
        "images that can be decoded",
        f"{len(broken)} that cannot, such as: {'; '.join(broken[:5])}",
        "mend or remove these files",
    )
    _require_classes(study)
    lines += [_subject(name, subject) for name, subject in study.subjects.items()]
    n = sum(map(len, sets.values()))
    pixels = study.backbone.image_size**2 * 3
    lines.append(
        f"decoding all {n} images once takes about {seconds:.1f} s in one process; resized to "
        f"{study.backbone.image_size} px they fill {n * pixels / 1e9:.2f} GB"
    )
    return lines


def _all_sets(study: Study) -> dict[str, StimulusSet]:
    return {**study.sets, **{f"stimuli of {k}": s.stimuli for k, s in study.subjects.items()}}


def _decode(stimuli: StimulusSet, n: int) -> tuple[np.ndarray, list[str], float]:
    """Decode up to `n` images; return sizes (m, 2), what failed, and the seconds per image."""
    chosen = rng(0, "check", stimuli.name).permutation(len(stimuli))[:n]
    sizes, failed, start = [], [], time.perf_counter()
    for i in progress(np.sort(chosen), f"images of {stimuli.name}"):
        try:
            sizes.append(stimuli.image(i).shape[1::-1])
        except DataError as error:
            failed.append(str(error))
    spent = (time.perf_counter() - start) / max(1, len(chosen))
    return np.array(sizes, dtype=int).reshape(-1, 2), failed, spent


def _classes(stimuli: StimulusSet) -> str:
    labels = np.asarray(stimuli.labels)
    if not (labels >= 0).any():
        return f"{len(stimuli)} images without labels"
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    spread = (
        f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    )
    return f"{len(stimuli)} images, {len(found)} classes with {spread} each"


def _sizes(sizes: np.ndarray, n: int) -> str:
    if not len(sizes):
        return "none decoded"
    low, high = sizes.min(0), sizes.max(0)
    shown = f"{low[0]} x {low[1]}" + ("" if (low == high).all() else f" to {high[0]} x {high[1]}")
    part = "" if len(sizes) == n else f" ({len(sizes)} of {n} decoded)"
    return f"{shown} px{part}"


def _require_classes(study: Study) -> None:
    if "train" not in study.sets:
        return
    names, wanted = study.class_names, set(np.unique(study.set("train").labels)) - {-1}
    for part in ("val", "test"):
        if part in study.sets:
            missing = sorted(wanted - set(np.unique(study.set(part).labels)))
            require(
                not missing,
                DataError,
                f"images of every class in {part!r}",
                f"none of {', '.join(names[i] for i in missing[:5])}",
                "add images of these classes, or take them out of 'train'",
            )


def _subject(name: str, subject: Subject) -> str:
    splits = ", ".join(f"{k} {len(rows)}" for k, rows in subject.splits.items())
    return (
        f"subject {name}: {subject.kind} responses of {subject.n_vertices} vertices to "
        f"{len(subject.stimuli)} images ({splits})"
    )


def examples(study: Study, n: int = 8) -> dict[str, list[np.ndarray]]:
    """Return images of each set, of as many classes as possible, for a contact sheet.

    Parameters
    ----------
    study : Study
        The study.
    n : int, default 8
        Images of a set (our choice).

    Returns
    -------
    dict of str to list of ndarray of uint8, shape (H, W, 3)
        Name of the set, or "stimuli of" a subject, to its images; empty sets are left out.
    """
    found = {}
    for name, stimuli in _all_sets(study).items():
        order = rng(0, "examples", stimuli.name).permutation(len(stimuli))
        _, first = np.unique(np.asarray(stimuli.labels)[order], return_index=True)
        chosen = [*first, *np.setdiff1d(np.arange(len(order)), first)][:n]
        if chosen:
            found[name] = [stimuli.image(i) for i in order[chosen]]
    return found

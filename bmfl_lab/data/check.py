"""Describe a study before anything is computed, and refuse what a training would refuse."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet, digest_pixels
from bmfl_lab.data.study import Study
from bmfl_lab.errors import DataError, require
from bmfl_lab.runtime import progress, rng

N_DECODED = 2000
"""Images of each set that are decoded (our choice)."""
MOST_CLASSES = 60
"""Classes whose counts are listed one by one; of more, those with the fewest (our choice)."""
NEAR, FLAT = 16, 32
"""Most bits of 256 in which the gists of near-duplicates differ, and fewest bits that a gist must
have set to be compared (our choice)."""


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
        Lines for a person: each set with its classes and image sizes, the number of images per
        class and set, each subject with its splits, how long it takes to decode all images once,
        and a warning for images of two sets that look alike: resized, flipped or compressed again.
        `load_study` has printed what was left out and which sets hold copies.

    Raises
    ------
    DataError
        If images cannot be decoded (up to five are named), two sets share an image (by its pixels),
        or a class of the training set has no image in "val" or "test".
    """
    sets = _all_sets(study)
    lines, broken, seconds = [f"{study.name}: {study.description}"], [], 0.0
    gists: dict[str, dict[str, np.ndarray]] = {}
    pixels: dict[str, dict[str, str]] = {}
    for name, stimuli in sets.items():
        gists[name], pixels[name] = {}, {}
        sizes, failed, spent = _decode(stimuli, n_decoded, gists[name], pixels[name])
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
    for a, b in itertools.combinations(sets, 2):
        shared = sorted(set(pixels[a]) & set(pixels[b]))
        pairs = ", ".join(f"{pixels[a][h]} = {pixels[b][h]}" for h in shared[:3])
        require(
            not shared,
            DataError,
            f"different images in {a!r} and {b!r}",
            f"{len(shared)} with the same pixels, e.g. {pairs}",
            "remove them from one of the two",
        )
    _require_classes(study)
    lines += list(_class_counts(study))
    lines += list(_alike(gists))
    lines += [_subject(name, subject) for name, subject in study.subjects.items()]
    n = sum(map(len, sets.values()))
    values = study.backbone.image_size**2 * 3
    lines.append(
        f"decoding all {n} images once takes about {seconds:.1f} s in one process; resized to "
        f"{study.backbone.image_size} px they fill {n * values / 1e9:.2f} GB"
    )
    return lines


def _all_sets(study: Study) -> dict[str, StimulusSet]:
    return {**study.sets, **{f"stimuli of {k}": s.stimuli for k, s in study.subjects.items()}}


def _decode(
    stimuli: StimulusSet, n: int, gists: dict[str, np.ndarray], pixels: dict[str, str]
) -> tuple[np.ndarray, list[str], float]:
    """Decode up to `n` images; return sizes (m, 2), what failed, and the seconds per image.

    Gists by id and ids by digest of the pixels are put into `gists` and `pixels`.
    """
    chosen = rng(0, "check", stimuli.name).permutation(len(stimuli))[:n]
    sizes, failed, start = [], [], time.perf_counter()
    for i in progress(np.sort(chosen), f"images of {stimuli.name}"):
        try:
            image = stimuli.image(i)
            sizes.append(image.shape[1::-1])
            gists[str(stimuli.ids[i])] = np.stack([_gist(image), _gist(image[:, ::-1])])
            pixels[digest_pixels(image)] = str(stimuli.ids[i])
        except DataError as error:
            failed.append(str(error))
    spent = (time.perf_counter() - start) / max(1, len(chosen))
    return np.array(sizes, dtype=int).reshape(-1, 2), failed, spent


def _gist(image: np.ndarray) -> np.ndarray:
    """Return for 16 x 16 places whether an image gets brighter from left to right, bool (256,)."""
    small = Image.fromarray(image).convert("L").resize((17, 16), Image.Resampling.BOX)
    return (np.diff(np.asarray(small, dtype=np.int16), axis=1) > 0).ravel()


def _alike(gists: dict[str, dict[str, np.ndarray]]) -> Iterator[str]:
    """Yield a warning for each pair of sets with images that look alike, also if flipped."""
    for a, b in itertools.combinations([name for name in gists if gists[name]], 2):
        first = np.stack(list(gists[a].values()))[:, 0].astype(np.float32)
        second = np.stack(list(gists[b].values())).astype(np.float32)
        near = np.zeros((len(first), len(second)), dtype=bool)
        for other in (second[:, 0], second[:, 1]):
            apart = first.sum(1)[:, None] + other.sum(1) - 2 * first @ other.T
            near |= (apart <= NEAR) & (first.sum(1)[:, None] >= FLAT)
        if near.any():
            i, j = np.argwhere(near)[0]
            yield (
                f"warning: {int(near.any(1).sum())} images of {a!r} look like images of {b!r} "
                f"(resized, flipped or saved again), such as {list(gists[a])[i]!r} and "
                f"{list(gists[b])[j]!r}: look at them"
            )


def _classes(stimuli: StimulusSet) -> str:
    labels = np.asarray(stimuli.labels)
    if not (labels >= 0).any():
        return f"{len(stimuli)} images without labels"
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    spread = (
        f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    )
    return f"{len(stimuli)} images, {len(found)} classes with {spread} each"


def _class_counts(study: Study) -> Iterator[str]:
    """Yield a table of the number of images per class and set, a class without images included."""
    if "train" not in study.sets:
        return
    names = study.class_names
    columns = {
        part: np.bincount(labels[labels >= 0], minlength=len(names))
        for part, labels in ((k, np.asarray(v.labels)) for k, v in study.sets.items())
    }
    shown = np.argsort(columns["train"], kind="stable")[:MOST_CLASSES]
    shown = np.sort(shown) if len(names) <= MOST_CLASSES else shown
    width = max(len("images per class"), *(len(names[i]) for i in shown))
    yield f"{'images per class':<{width}}  " + "  ".join(columns)
    for i in shown:
        cells = (f"{counts[i]:>{len(part)}}" for part, counts in columns.items())
        yield f"{names[i]:<{width}}  " + "  ".join(cells)
    if len(names) > len(shown):
        yield f"... and {len(names) - len(shown)} classes with at least as many training images"


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

"""Read out-of-distribution image sets that users download; list their sizes and licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmfl_lab.data.class_folders import (
    OR_PARTIAL,
    class_folders,
    head_columns,
    read_class_folders,
    read_wnids,
)
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message, require, require_known
from bmfl_lab.files import link_guard


@dataclass(frozen=True)
class SetInfo:
    """Describe a public image set.

    Parameters
    ----------
    title : str
        Its name.
    n_classes : int
        Classes.
    n_images : int or None
        Images, where the source states it.
    layout : str
        Folder layout that the reader expects.
    licence : str
        Licence as stated by its source; read it there before use.
    where : str
        Address from which the user gets it.
    reference : str
        Paper.
    index_sum : int or None
        Sum of the ImageNet-1k indices of its classes (self-check).
    first_indices : tuple of int
        The first of these indices (self-check).
    """

    title: str
    n_classes: int
    n_images: int | None
    layout: str
    licence: str
    where: str
    reference: str
    index_sum: int | None = None
    first_indices: tuple[int, ...] = ()


SETS: dict[str, SetInfo] = {
    "imagenet": SetInfo(
        "ImageNet-1k (ILSVRC2012)",
        1000,
        50000,
        "train/wnid/*.JPEG; val/wnid/*.JPEG or val/ILSVRC2012_val_*.JPEG",
        "non-commercial research and teaching, after registration",
        "image-net.org",
        "Russakovsky et al. 2015",
    ),
    "imagenet-v2": SetInfo(
        "ImageNet-V2",
        1000,
        10000,
        "0 ... 999/*.jpeg (folder = index of the sorted wnids)",
        "code MIT; photographs of their Flickr authors",
        "github.com/modestyachts/ImageNetV2",
        "Recht et al. 2019",
    ),
    "imagenet-sketch": SetInfo(
        "ImageNet-Sketch",
        1000,
        50889,
        "wnid/*.JPEG",
        "code MIT; images found on the web",
        "github.com/HaohanWang/ImageNet-Sketch",
        "Wang et al. 2019",
    ),
    "imagenet-r": SetInfo(
        "ImageNet-R",
        200,
        30000,
        "wnid/*.jpg",
        "code MIT; images found on the web",
        "github.com/hendrycks/imagenet-r",
        "Hendrycks et al. 2021",
        86135,
        (1, 2, 4, 6, 8),
    ),
    "imagenet-a": SetInfo(
        "ImageNet-A",
        200,
        7500,
        "wnid/*.jpg",
        "code MIT; images found on the web",
        "github.com/hendrycks/natural-adv-examples",
        "Hendrycks et al. 2021",
        102178,
        (6, 11, 13, 15, 17),
    ),
    "imagenet-c": SetInfo(
        "ImageNet-C",
        1000,
        50000,
        "corruption/severity/wnid/*.JPEG (also below noise, blur, weather, digital)",
        "CC BY 4.0",
        "zenodo.org/record/2235448",
        "Hendrycks & Dietterich 2019",
    ),
    "stylized-imagenet": SetInfo(
        "Stylized-ImageNet",
        1000,
        50000,
        "train|val/wnid/*",
        "code MIT; made by the user from ImageNet and Painter-by-Numbers",
        "github.com/rgeirhos/Stylized-ImageNet",
        "Geirhos et al. 2019",
    ),
    "model-vs-human": SetInfo(
        "model-vs-human (17 sets)",
        16,
        None,
        "set/dnn/session-1/*.png, or set/category/*.png",
        "see the repository; part of the images are from ImageNet",
        "github.com/bethgelab/model-vs-human",
        "Geirhos et al. 2021",
    ),
    "pacs": SetInfo(
        "PACS",
        7,
        9991,
        "domain/class/*",
        "none stated; research use",
        "domaingeneralization.github.io",
        "Li et al. 2017",
    ),
}


def sources():
    """Return the table of sets (layout, licence, where to get it) as a DataFrame."""
    import pandas as pd

    columns = ("title", "n_classes", "n_images", "layout", "licence", "where", "reference")
    return pd.DataFrame(
        [{c: getattr(s, c) for c in columns} for s in SETS.values()], index=list(SETS)
    )


@dataclass(frozen=True)
class OODSet:
    """Hold an image set and the columns of an ImageNet head that belong to its classes.

    Parameters
    ----------
    stimuli : StimulusSet
        Labels index `wnids`.
    wnids : tuple of str, shape (n_classes,)
        Classes, sorted.
    columns : ndarray of int64, shape (n_classes,)
        Column of the head for each class: ``metrics.classification.mask_classes(logits, columns)``.
    """

    stimuli: StimulusSet
    wnids: tuple[str, ...]
    columns: np.ndarray


def check_indices(name: str, wnids: Sequence[str], imagenet_wnids: Sequence[str]) -> None:
    """Check the classes of ImageNet-R or -A by the published sum and beginning of their indices.

    Parameters
    ----------
    name : str
        "imagenet-r" or "imagenet-a"; other sets pass.
    wnids : sequence of str
        Classes found.
    imagenet_wnids : sequence of str, shape (1000,)
        All classes of ImageNet-1k.

    Raises
    ------
    DataError
        If count, sum or beginning differ; the message says which set it looks like. If the classes
        of ImageNet are not 1000: the indices mean nothing then.
    """
    info = SETS[name]
    if info.index_sum is None:
        return
    require(
        len(imagenet_wnids) == 1000,
        DataError,
        f"the 1000 wnids of ImageNet to check the classes of {info.title} by",
        len(imagenet_wnids),
        "give all of them, or pass partial=True for a declared part of the classes",
    )
    index = np.sort(head_columns(wnids, sorted(imagenet_wnids)))
    found = len(index), int(index.sum()), tuple(index[:5].tolist())
    alike = [s.title for s in SETS.values() if s.index_sum == found[1]]
    require(
        found == (info.n_classes, info.index_sum, info.first_indices),
        DataError,
        f"the {info.n_classes} classes of {info.title}: index sum {info.index_sum}, "
        f"first {info.first_indices}",
        f"{found[0]} classes, sum {found[1]}, first {found[2]}"
        + (f", which is {alike[0]}" if alike else ""),
        "give the folder of that set and the 1000 wnids of ImageNet",
    )


def read_ood_set(
    name: str,
    folder: str | Path,
    imagenet_wnids: Sequence[str] | str | Path,
    *,
    head_wnids: Sequence[str] | None = None,
    partial: bool = False,
    follow_links: bool = False,
) -> OODSet:
    """Read ImageNet-V2, -Sketch, -R, -A or Stylized-ImageNet.

    Parameters
    ----------
    name : str
        "imagenet-v2", "imagenet-sketch", "imagenet-r", "imagenet-a", "stylized-imagenet".
    folder : str or Path
        Folder that holds the class folders (see `SETS`).
    imagenet_wnids : sequence of str, or as `bmfl_lab.data.class_folders.read_wnids`
        The classes of ImageNet-1k.
    head_wnids : sequence of str, optional
        Class of each column of the head, where that is not the sorted order.
    partial : bool, default False
        Accept some of the classes only; the self-check of -R and -A is skipped then, and results
        say how many of the classes there are (see `partial_note`).
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    OODSet
        One stimulus per image, with labels of shape (n_images,), and the column of the head for
        each of the n_classes classes.

    Raises
    ------
    DataError
        If the set is unknown, class folders are missing, unknown or those of another set, or a link
        leads out.
    """
    readable = ("imagenet-v2", "imagenet-sketch", "imagenet-r", "imagenet-a", "stylized-imagenet")
    require_known(name, readable, DataError, f"one of {readable}")
    everything = read_wnids(imagenet_wnids)
    some = SETS[name].n_classes < 1000
    classes = read_wnids(folder) if some else everything
    if some and not partial:
        check_indices(name, classes, everything)
    by_index = {wnid: str(i) for i, wnid in enumerate(everything)}
    stimuli = read_class_folders(
        name,
        folder,
        classes,
        partial=partial,
        folder_of=by_index if name == "imagenet-v2" else None,
        remedy=OR_PARTIAL,
        follow_links=follow_links,
    )
    return OODSet(
        stimuli, classes, head_columns(classes, everything if head_wnids is None else head_wnids)
    )


def partial_note(stimuli: StimulusSet) -> str:
    """Return "k of C classes" for a set that lacks images of some of its classes, else "".

    C is the published number for a public set, whose classes may have been read from an incomplete
    folder.
    """
    known = SETS.get("imagenet" if stimuli.name == "imagenet-val" else stimuli.name)
    n_classes = max(len(stimuli.class_names), known.n_classes if known else 0)
    present = len(np.unique(np.asarray(stimuli.labels)[np.asarray(stimuli.labels) >= 0]))
    return f"{present} of {n_classes} classes" if len(stimuli) and present < n_classes else ""


def read_imagenet_c(
    folder: str | Path,
    corruption: str,
    severity: int,
    wnids: Sequence[str] | str | Path,
    *,
    partial: bool = False,
    follow_links: bool = False,
) -> StimulusSet:
    """Read one corruption of ImageNet-C at one severity.

    Parameters
    ----------
    folder : str or Path
        Folder of ImageNet-C.
    corruption : str
        Name of the corruption ("fog").
    severity : int
        1 to 5.
    wnids : sequence of str, or a source for `read_wnids`
        The classes; labels index them in sorted order.
    partial : bool, default False
        Accept images of some of the classes only.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    StimulusSet
        One stimulus per image, 50,000 in the published set, with labels of shape (n_images,).

    Raises
    ------
    DataError
        If the folder is not there; the message lists what is. See also
        `bmfl_lab.data.class_folders.read_class_folders`.
    """
    root = Path(folder)
    places = [p for p in (root / corruption, *sorted(root.glob(f"*/{corruption}"))) if p.is_dir()]
    if not places or not (places[0] / str(severity)).is_dir():
        got = f"severities {class_folders(places[0])}" if places else f"{class_folders(root)[:20]}"
        raise DataError(
            message(
                f"{corruption}/{severity} in {root}",
                got,
                "unpack that archive of ImageNet-C, or leave it out of mCE",
            )
        )
    where = link_guard(root, follow_links)(places[0] / str(severity))
    options = {"partial": partial, "remedy": OR_PARTIAL, "follow_links": follow_links}
    return read_class_folders(f"{corruption}-{severity}", where, read_wnids(wnids), **options)


def read_domains(folder: str | Path, *, follow_links: bool = False) -> dict[str, StimulusSet]:
    """Read a domain-generalisation folder of the layout ``domain/class/image``.

    PACS, Office-Home and DomainNet have this layout.

    Parameters
    ----------
    folder : str or Path
        Folder that holds one folder per domain.
    follow_links : bool, default False
        Allow folders and files that are links to somewhere outside the folder.

    Returns
    -------
    dict domain -> StimulusSet
        All with the same classes in the same order.

    Raises
    ------
    DataError
        If there are fewer than two domains, their class folders differ, or a link leads out of the
        folder.
    """
    domains = class_folders(folder)
    require(
        len(domains) >= 2,
        DataError,
        f"at least two domain folders in {folder}",
        f"{domains}",
        "give the folder above them",
    )
    root, guard = Path(folder), link_guard(folder, follow_links)
    places = {d: guard(root / d) for d in domains}
    classes = class_folders(places[domains[0]])
    options = {"root": root, "follow_links": follow_links}
    return {d: read_class_folders(d, place, classes, **options) for d, place in places.items()}


def read_far(folder: str | Path, *, follow_links: bool = False) -> dict[str, StimulusSet]:
    """Read any folder of labelled images, with classes of its own: one domain or several.

    Parameters
    ----------
    folder : str or Path
        Folder of the layout ``class/image``, or ``domain/class/image``, where domains may be times
        or places; see `read_domains`.
    follow_links : bool, default False
        Allow folders and files that are links to somewhere outside the folder.

    Returns
    -------
    dict of str to StimulusSet
        Name of the folder, or "folder, domain", to its images; labels index their ``class_names``.

    Raises
    ------
    DataError
        See `bmfl_lab.data.class_folders.read_class_folders` and `read_domains`.
    """
    folder = Path(folder).expanduser()
    first = class_folders(folder)[:1]
    if not first or not class_folders(folder / first[0]):
        found = read_class_folders(folder.name, folder, follow_links=follow_links)
        return {folder.name: found}
    domains = read_domains(folder, follow_links=follow_links)
    return {f"{folder.name}, {name}": images for name, images in domains.items()}


def group_columns(
    table: Mapping[str, Sequence[str]], head_wnids: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Map classes, each of which comprises several wnids, to columns of a classification head.

    Parameters
    ----------
    table : mapping class name -> wnids
        The authors' table.
    head_wnids : sequence of str
        Class of each column of the head.

    Returns
    -------
    columns : dict class name -> ndarray of int64
        Only classes with at least one column; wnids outside the head are dropped.
    unmapped : tuple of str
        Classes without a column; name them when reporting the result.

    Raises
    ------
    DataError
        If a wnid is listed under two classes.
    """
    owner: dict[str, str] = {}
    for name, wnids in table.items():
        for w in wnids:
            require(
                owner.setdefault(w, name) == name,
                DataError,
                "each wnid under one class",
                f"{w} under {owner[w]!r} and {name!r}",
                "correct the table",
            )
    where = {w: i for i, w in enumerate(head_wnids)}
    columns = {
        n: np.asarray([where[w] for w in ws if w in where], dtype=np.int64)
        for n, ws in table.items()
    }
    return {n: c for n, c in columns.items() if len(c)}, tuple(
        n for n, c in columns.items() if not len(c)
    )

"""Read the 16-class image sets and human trials of model-vs-human.

References
----------
.. [1] Geirhos et al. (2021), Partial success in closing the gap between human and machine vision,
   NeurIPS 34; data and file layout: github.com/bethgelab/model-vs-human.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmfl_lab.data.class_folders import list_images
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.errors import DataError, require
from bmfl_lab.files import link_guard, read_table

if TYPE_CHECKING:
    import pandas as pd

CATEGORIES = (
    *("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat"),
    *("chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck"),
)
COLUMNS = (
    "subj",
    "session",
    "trial",
    "rt",
    "object_response",
    "category",
    "condition",
    "imagename",
)

# Classes of each category as places in the sorted wnids of ImageNet-1k; "a-b" includes both ends.
_PLACES = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898 899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385 386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}
_FILE = re.compile(r"(?P<set>.+)_(?P<observer>[^_]+)_session[_-](?P<session>\d+)\.csv")
_CUE = re.compile(r"(?:.*_)?([a-z]+)\d+-([a-z]+)\d+(?:\.\w+)?")


def _expand(places: str) -> list[int]:
    out: list[int] = []
    for part in places.split():
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def category_wnids(imagenet_wnids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the ImageNet classes of each of the 16 categories, as wnids.

    Parameters
    ----------
    imagenet_wnids : sequence of str, shape (1000,)
        All wnids of ImageNet-1k, in any order.

    Returns
    -------
    dict category -> wnids
        Give it with the head's wnids to `ood_sets.group_columns`, and the result to
        `metrics.behaviour.coarse_decision`.

    Raises
    ------
    DataError
        If there are not 1000 different wnids: the places are meaningless in a part of them.
    """
    ordered = sorted(set(imagenet_wnids))
    require(
        len(ordered) == 1000 and len(imagenet_wnids) == 1000,
        DataError,
        "the 1000 wnids of ImageNet-1k",
        f"{len(ordered)} different",
        "pass the whole list (read_wnids)",
    )
    return {c: tuple(ordered[i] for i in _expand(_PLACES[c])) for c in CATEGORIES}


def image_key(name: str) -> str:
    """Return the part of an image name that all observers share.

    Names of trials are ``trial_experiment_observer_condition_category_xx_image``, such as
    ``0001_s5n_s01_0_bird_00_bird3-bird2.png``; the order of trials and the observer differ between
    sessions, condition and image name the image (``0_bird3-bird2.png``). Names without these fields
    stay as they are.
    """
    parts = str(name).split("_", 6)
    return f"{parts[3]}_{parts[6]}" if len(parts) == 7 else str(name)


def read_images(folder: str | Path, name: str, *, follow_links: bool = False) -> StimulusSet:
    """Read the images of one set.

    Parameters
    ----------
    folder : str or Path
        Folder that holds ``category/image`` or (possibly below ``dnn/session-1``) images whose
        fifth field is the category.
    name : str
        "sketch", "stylized", "cue-conflict", ...
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    StimulusSet
        Labels index `CATEGORIES`; for cue conflict the label is the shape.

    Raises
    ------
    DataError
        If there is no image, the category of an image is not clear, or a link leads out of the
        folder.
    """
    root = Path(folder)
    left_out: Counter[str] = Counter()
    paths = list_images(root, link_guard(root, follow_links), left_out, deep=True)
    labels, ids = [], []
    for path in paths:
        parts = path.name.split("_")
        options = [
            path.parent.name,
            parts[4] if len(parts) > 4 else "",
            (_CUE.fullmatch(path.name) or [""] * 2)[1],
        ]
        found = [c for c in options if c in CATEGORIES]
        require(
            found,
            DataError,
            f"a category in the path of {path}",
            f"{options}",
            "keep the folders and names of the download",
        )
        labels.append(CATEGORIES.index(found[0]))
        ids.append(str(path.relative_to(root)))
    require(paths, DataError, f"images below {root}", "none", "unpack the set there")
    return from_files(name, paths, ids, labels, CATEGORIES, left_out=left_out)


def cue_conflict(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the shape and the texture of cue-conflict images, from their names.

    Parameters
    ----------
    names : sequence of str, length n
        File names like ``cat3-elephant1.png``, ``0_cat3-elephant1.png`` or
        ``0001_s5n_s01_0_cat_00_cat3-elephant1.png``: the shape of a cat with the texture of an
        elephant.

    Returns
    -------
    shapes : list of str, length n
    textures : list of str, length n
        Categories.

    Raises
    ------
    DataError
        If a name is of another form.
    """
    found = [_CUE.fullmatch(Path(str(n)).name) for n in names]
    bad = [n for n, m in zip(names, found) if m is None or not {m[1], m[2]} <= set(CATEGORIES)]
    require(
        not bad,
        DataError,
        "names like cat3-elephant1.png",
        f"{bad[:1]}",
        "pass cue-conflict images",
    )
    return [m[1] for m in found if m], [m[2] for m in found if m]


def read_trials(source: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """Read trial tables of observers (people or models).

    Parameters
    ----------
    source : str, Path or sequence of them
        A folder of files ``set_observer_session_1.csv`` (people) or ``set_observer_session-1.csv``
        (models), or files.

    Returns
    -------
    DataFrame
        One row per trial with the published columns, and ``set``, ``observer``, ``human`` (bool),
        ``key`` (see `image_key`), ``correct`` (bool; no response counts as wrong).

    Raises
    ------
    DataError
        If there is no file, a name or the columns are different, or a category is unknown.
    """
    import pandas as pd

    files = (
        sorted(Path(source).glob("*.csv"))
        if isinstance(source, (str, Path))
        else [Path(p) for p in source]
    )
    require(
        files,
        DataError,
        f"trial tables *.csv in {source}",
        "none",
        "give the folder of one set's raw data",
    )
    tables = []
    for path in files:
        match = _FILE.fullmatch(path.name)
        require(
            match is not None,
            DataError,
            "a name like sketch_subject-01_session_1.csv",
            path.name,
            "name the file SET_OBSERVER_session_NUMBER.csv",
        )
        table = pd.DataFrame(
            [row for _, row in read_table(path, COLUMNS, "keep the columns of the download")]
        )
        require(len(table), DataError, f"trials in {path}", "no line", "take the file out")
        strange = sorted(set(table["category"]) - set(CATEGORIES))
        require(
            not strange,
            DataError,
            f"the 16 categories in {path}",
            f"{strange[:3]}",
            "correct the column category, or take the file out",
        )
        tables.append(table.assign(set=match["set"], observer=match["observer"]))
    trials = pd.concat(tables, ignore_index=True)
    trials["human"] = trials["observer"].str.startswith("subject-")
    trials["key"] = [image_key(n) for n in trials["imagename"]]
    trials["correct"] = trials["object_response"] == trials["category"]
    return trials

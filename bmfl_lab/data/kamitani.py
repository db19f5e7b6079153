"""Read responses of the Kamitani lab: Generic Object Decoding and Deep Image Reconstruction.

`read_subject` reads one preprocessed HDF5 file ("bdata"), `read_plain` reads plain arrays, and
`load` reads a folder of HDF5 files as a study.

References
----------
.. [1] Horikawa & Kamitani (2017), Generic decoding of seen and imagined objects using hierarchical
   visual features, Nature Communications 8:15037.
.. [2] Shen et al. (2019), Deep image reconstruction from human brain activity, PLoS Computational
   Biology 15:e1006633.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.class_folders import read_by_stem, scan
from bmfl_lab.data.containers import REDO, read_hdf5
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import from_files
from bmfl_lab.data.study import Study, chosen_subjects, register_reader
from bmfl_lab.errors import DataError, require, require_known
from bmfl_lab.files import link_guard, load_npy
from bmfl_lab.runtime import rng

_PART = re.compile(
    r"(?P<who>.+?)[_-](?:perception)?(?:NaturalImage)?"
    r"(?P<part>train|test)(?:ing)?(?P<rest>[_-].*)?",
    re.IGNORECASE,
)
"""Files of one subject by part: ``sub-01_perceptionNaturalImageTraining_original_VC.h5``."""
_OTHER_TASK = re.compile(r".+[_-](perception(Artificial|Letter)|imagery).*", re.IGNORECASE)
"""Files of Deep Image Reconstruction with shapes, letters or imagery, which are not read."""
TYPES = {"train": 1, "test": 2}
"""Values of the column "DataType": 1 training images, 2 test images, 3 imagery."""


@dataclass(frozen=True)
class BData:
    """Hold a table of samples whose columns are voxels and labels, described by metadata.

    Parameters
    ----------
    dataset : ndarray, shape (n_samples, n_columns)
        Voxels and labels side by side.
    keys : tuple of str
        Names of metadata ("VoxelData", "ROI_V1", "stimulus_id", ...).
    values : ndarray, shape (n_keys, n_columns)
        1 where a column belongs to the key; a coordinate for keys such as "voxel_x"; NaN elsewhere.
    source : str, default "this file"
        Name of the file in messages.
    """

    dataset: np.ndarray
    keys: tuple[str, ...]
    values: np.ndarray
    source: str = "this file"

    def metadata(self, key: str) -> np.ndarray:
        """Return the value of one property for every column.

        Parameters
        ----------
        key : str
            Name of the property ("VoxelData").

        Returns
        -------
        ndarray of float64, shape (n_columns,)

        Raises
        ------
        DataError
            If there is no such property.
        """
        require_known(key, self.keys, DataError, f"a key in {self.source}:/metadata/key")
        return self.values[self.keys.index(key)]

    def select(self, key: str) -> np.ndarray:
        """Return the columns for which a property is 1.

        Parameters
        ----------
        key : str
            Name of the property ("ROI_V1").

        Returns
        -------
        ndarray, shape (n_samples, n_selected)

        Raises
        ------
        DataError
            If there is no such property.
        """
        return self.dataset[:, self.metadata(key) == 1]

    @property
    def rois(self) -> tuple[str, ...]:
        """ROI names, without the prefix "ROI_"."""
        return tuple(k.removeprefix("ROI_") for k in self.keys if k.startswith("ROI_"))


def read_bdata(path: str | Path) -> BData:
    """Read a preprocessed HDF5 file ("bdata") of the Kamitani lab.

    Such a file holds one table, ``dataset``, with one row per sample (volume or trial) and one
    column per voxel or label. ``metadata/key`` names properties of the columns, and
    ``metadata/value`` holds the value of each property for each column.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    BData
        The table of shape (n_samples, n_columns) with its properties of shape (n_keys, n_columns).

    Raises
    ------
    DataError
        If the file is missing, is no HDF5 file, or lacks one of the three arrays.
    """
    path = Path(path)
    names = ("dataset", "metadata/key", "metadata/value")
    dataset, words, values = read_hdf5(path, names).values()
    require(
        values.dtype.kind in "fiu",
        DataError,
        f"numbers in {path.name}:/metadata/value",
        values.dtype,
        REDO,
    )
    values = values.astype(np.float64)
    keys = tuple(k.decode() if isinstance(k, bytes) else str(k) for k in np.ravel(words))
    require(
        dataset.dtype.kind in "fiu",
        DataError,
        f"numbers in {path.name}:/dataset",
        dataset.dtype,
        REDO,
    )
    require(
        dataset.ndim == 2 and values.shape == (len(keys), dataset.shape[1]),
        DataError,
        f"shape {(len(keys), *dataset.shape[1:])} in {path.name}:/metadata/value",
        f"{values.shape} for a dataset of {dataset.shape}",
        REDO,
    )
    return BData(dataset, keys, values, path.name)


def stimulus_name(number: float) -> str:
    """Return the ImageNet name behind a numeric stimulus id: 1518878.005958 is "n01518878_5958"."""
    synset = int(number)
    return f"n{synset:08d}_{round((number - synset) * 1e6)}"


def _split(
    ids: Sequence[str], kind: Mapping[str, str], val_share: float, seed: int
) -> dict[str, np.ndarray]:
    require(
        0 <= val_share < 1, DataError, "a share of at least 0 and below 1", val_share, "use 0.1"
    )
    train = np.flatnonzero([kind[i] == "train" for i in ids])
    shuffled = rng(seed, "kamitani", "val").permutation(train)
    n_val = round(val_share * len(train))
    return {
        "train": np.sort(shuffled[n_val:]),
        "val": np.sort(shuffled[:n_val]),
        "test": np.flatnonzero([kind[i] == "test" for i in ids]),
    }


def read_subject(
    path: str | Path | Sequence[str | Path],
    images: Mapping[str, str | Path] | str | Path,
    *,
    name: str | None = None,
    label: str = "stimulus_id",
    val_share: float = 0.1,
    seed: int = 0,
    follow_links: bool = False,
) -> Subject:
    """Read one subject of Generic Object Decoding or Deep Image Reconstruction.

    Parameters
    ----------
    path : str, Path or sequence of them
        The preprocessed HDF5 file of the subject, or its files. Deep Image Reconstruction has one
        file of training images and one of test images per subject, and their names say which.
    images : mapping of str to path, or folder
        Image of each stimulus name ("n01518878_5958"); a folder holds ``NAME.*`` at any depth.
    name : str, optional
        Name of the subject; the stem of the (first) file by default.
    label : str, default "stimulus_id"
        Column that names the stimulus.
    val_share : float, default 0.1
        Share of the training images that becomes "val"; test images stay untouched.
    seed : int, default 0
        Seed of that split.
    follow_links : bool, default False
        Allow images that are links to somewhere outside a given folder of images.

    Returns
    -------
    Subject
        Responses of shape (n_stimuli, n_voxels), float32, averaged over the trials of each
        stimulus. Voxels of the left hemisphere (x < 0) come before those of the right one. The
        stimuli are sorted by name.

    Raises
    ------
    DataError
        If columns are missing, files hold other voxels, an image is shown in both training and
        test, or an image file is not found or is a link out of its folder.
    """
    paths = [Path(p) for p in ([path] if isinstance(path, (str, Path)) else path)]
    kind: dict[str, str] = {}
    names, responses, places = [], [], []
    for file in paths:
        data = read_bdata(file)
        order, atlas = _voxels(data, file.name)
        part = _PART.fullmatch(file.stem) if len(paths) > 1 else None
        stimuli, splits = _presentations(data, label, part["part"].lower() if part else None)
        names.append(stimuli)
        responses.append(np.ascontiguousarray(data.dataset[:, order]))
        places.append((data.metadata("voxel_x")[order].tolist(), list(atlas.rois)))
        for stimulus, split in splits.items():
            require(
                kind.setdefault(stimulus, split) == split,
                DataError,
                "disjoint training and test images",
                f"{stimulus!r} in both",
                "give it one DataType (1 for training, 2 for test) in the files of the subject, or "
                "use a training file and a test file that belong together",
            )
    require(
        all(place == places[0] for place in places),
        DataError,
        f"the same voxels and ROIs in {[file.name for file in paths]}",
        f"{[len(x) for x, _ in places]} voxels at other places or in other ROIs",
        "use files of one subject and one brain area",
    )
    table, shown, ids = np.concatenate(responses), np.concatenate(names), sorted(kind)
    return Subject(
        name=name or paths[0].stem,
        stimuli=read_by_stem("presented", ids, images, follow_links=follow_links),
        responses=np.stack([table[shown == i].mean(axis=0) for i in ids]).astype(np.float32),
        atlas=atlas,
        splits=_split(ids, kind, val_share, seed),
    )


def _voxels(data: BData, where: str) -> tuple[np.ndarray, Atlas]:
    """Return the columns of the voxels, left before right, and their atlas."""
    voxels = np.flatnonzero(data.metadata("VoxelData") == 1)
    right = data.metadata("voxel_x")[voxels] >= 0
    order = voxels[np.argsort(right, kind="stable")]
    require(
        len(voxels) and np.isfinite(data.dataset[:, voxels]).all(),
        DataError,
        f"finite responses of at least one voxel in {where}:/dataset",
        f"{len(voxels)} voxels" + (", some undefined" if len(voxels) else ""),
        "set VoxelData to 0 for the others",
    )
    rois = {r: data.metadata(f"ROI_{r}")[order] == 1 for r in data.rois}
    return order, Atlas(hemisphere=np.sort(right).astype(np.int8), rois=rois)


def _single_columns(data: BData) -> list[str]:
    """Return the keys that mark one column and neither voxels nor the type of a sample."""
    places = [key for key in data.keys if not key.startswith(("ROI_", "voxel_"))]
    single = [key for key in places if np.sum(data.metadata(key) == 1) == 1]
    return [key for key in single if key not in ("VoxelData", "DataType")]


def _presentations(data: BData, label: str, part: str | None) -> tuple[np.ndarray, dict[str, str]]:
    """Return the stimulus of each sample, "" for imagery, and the split of each stimulus.

    `part` is the split of all samples if the name of the file states it; the column DataType is
    not needed then.
    """
    columns = {key: data.select(key) for key in (label, "DataType") if not part or key in data.keys}
    sizes = {key: values.shape[1] for key, values in columns.items()}
    require(
        sizes.get(label) == 1,
        DataError,
        f"one column for {label!r} in {data.source}",
        sizes.get(label, 0),
        f"pass label= the column that numbers the stimuli, one of {_single_columns(data)}",
    )
    n_types = sizes.get("DataType", 1)
    require(n_types == 1, DataError, f"one column for 'DataType' in {data.source}", n_types, REDO)
    numbers = columns[label][:, 0]
    types = (
        columns["DataType"][:, 0] if "DataType" in columns else np.full(len(numbers), TYPES[part])
    )
    shown = np.isin(types, list(TYPES.values()))
    lost = int(np.sum(~(numbers[shown] > 0)))
    require(
        not lost,
        DataError,
        f"a number above 0 under {label!r} for every presentation",
        f"{lost} without",
        f"leave out these rows, or pass label= another column of {_single_columns(data)}",
    )
    names = np.full(len(shown), "", dtype=object)
    names[shown] = [stimulus_name(float(n)) for n in numbers[shown]]
    if part:
        return names, dict.fromkeys(names[shown], part)
    splits = {name: set(names[types == value]) for name, value in TYPES.items()}
    both = sorted(splits["train"] & splits["test"])
    require(
        not both,
        DataError,
        "disjoint training and test images",
        f"{both[:3]} in both",
        "give each image one DataType, 1 for training or 2 for test",
    )
    return names, {i: split for split, found in splits.items() for i in found}


def read_plain(
    responses: str | Path,
    images: Sequence[str | Path] | str | Path,
    *,
    test_responses: str | Path | None = None,
    test_images: Sequence[str | Path] | str | Path = (),
    name: str | None = None,
    val_share: float = 0.1,
    seed: int = 0,
) -> Subject:
    """Read trial-averaged responses kept as plain ``.npy`` arrays beside a list of images.

    Parameters
    ----------
    responses, test_responses : str or Path
        Arrays (n_images, n_features): voxels or components, without a place on a surface.
    images, test_images : sequence of paths, or a ``.npy`` of strings
        One image per row; the file stem is the stimulus id.
    name, val_share, seed
        See `read_subject`.

    Returns
    -------
    Subject
        Responses of shape (n_images, n_features), float32, training images before test images. All
        features form one ROI, "VC", of the left hemisphere.

    Raises
    ------
    DataError
        If rows and images differ in number, or an array is not numeric.
    """
    arrays, paths, kind = [], [], {}
    for split, array, listed in (
        ("train", responses, images),
        ("test", test_responses, test_images),
    ):
        if array is not None:
            values, files = _plain_part(array, listed)
            arrays.append(values)
            paths += files
            kind |= {path.stem: split for path in files}
    ids = [path.stem for path in paths]
    twice = len(ids) - len(set(ids))
    require(
        not twice, DataError, "one name per image", f"{twice} repeated", "average the trials first"
    )
    require(
        len({a.shape[1] for a in arrays}) == 1,
        DataError,
        "as many features in test as in training responses",
        f"{arrays[-1].shape[1]} and {arrays[0].shape[1]}",
        "use one set of voxels",
    )
    together = np.concatenate(arrays)
    v = together.shape[1]
    return Subject(
        name=name or Path(responses).stem,
        stimuli=from_files("presented", paths, ids, np.full(len(ids), -1)),
        responses=together,
        atlas=Atlas(hemisphere=np.zeros(v, np.int8), rois={"VC": np.ones(v, bool)}),
        splits=_split(ids, kind, val_share, seed),
    )


def _plain_part(
    array: str | Path, listed: Sequence[str | Path] | str | Path
) -> tuple[np.ndarray, list[Path]]:
    """Return the responses of one split as float32 and the image of each row."""
    values = load_npy(array)
    names = load_npy(listed) if isinstance(listed, (str, Path)) else listed
    files = [Path(str(name)) for name in names]
    require(
        values.ndim == 2 and values.dtype.kind in "fiu" and len(values) == len(files),
        DataError,
        f"numeric responses of shape ({len(files)}, n_features) in {Path(array).name}",
        f"{values.dtype} {values.shape}",
        "list one image per row",
    )
    expected = f"finite responses in {Path(array).name}"
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    got = f"NaN or infinity in {len(rows)} of {len(values)} rows, first in row {rows[:1].tolist()}"
    remedy = "leave out these rows and their images, or the features with such values"
    require(not len(rows), DataError, expected, got, remedy)
    return values.astype(np.float32), files


IMAGES = "images"


def subject_files(folder: str | Path) -> dict[str, tuple[Path, ...]]:
    """Find the HDF5 files of subjects.

    Parameters
    ----------
    folder : str or Path
        Folder that holds the files.

    Returns
    -------
    dict of str to tuple of Path
        Name of each subject to its file, or to its file of training images and its file of test
        images, sorted by name; empty if there is none. Files with shapes, letters or imagery of
        Deep Image Reconstruction are left out.
    """
    root = Path(folder).expanduser()
    entries = scan(root, Counter()) if root.is_dir() else []
    files = [Path(e.path) for e in entries if e.name.lower().endswith(".h5")]
    parts = {f: match for f in files if (match := _PART.fullmatch(f.stem))}
    rests = {match["rest"] for match in parts.values()}
    found: dict[str, tuple[Path, ...]] = {}
    for file in files:
        if file in parts:
            name = parts[file]["who"] + ((parts[file]["rest"] or "") if len(rests) > 1 else "")
            found[name] = (*found.get(name, ()), file)
        elif not (parts and _OTHER_TASK.fullmatch(file.stem)):
            found[file.stem] = (file,)
    return found


def _check_parts(name: str, files: tuple[Path, ...]) -> None:
    """Require a training file and a test file if the names of the files name a part."""
    parts = [match["part"].lower() for f in files if (match := _PART.fullmatch(f.stem))]
    require(
        not parts or sorted(parts) == ["test", "train"],
        DataError,
        f"one Training and one Test file of {name}",
        f"{[f.name for f in files]}",
        "put both files of the subject there, and no other file of it",
    )


def detect(path: Path) -> bool:
    """Return whether a folder holds HDF5 files."""
    return bool(subject_files(path))


def load(
    root: str | Path,
    *,
    subject: str | None = None,
    seed: int = 0,
    val: float = 0.1,
    label: str = "stimulus_id",
    follow_links: bool = False,
) -> Study:
    """Read the subjects of Generic Object Decoding or Deep Image Reconstruction as a study.

    Parameters
    ----------
    root : str or Path
        Folder that holds one preprocessed HDF5 file per subject (``Subject1.h5``), or two as Deep
        Image Reconstruction is distributed
        (``sub-01_perceptionNaturalImageTraining_original_VC.h5`` and ``...Test...``), and a folder
        ``images`` with the images shown (``n01518878_5958.JPEG``, at any depth).
    subject : str, optional
        Name of the only subject to read; by default all are read.
    seed, val, label
        Options of `read_subject`; `val` is its `val_share`.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    Study
        Study with subjects and without labelled image sets; to classify, give ``subject=FOLDER`` to
        a study of class folders to classify.

    Raises
    ------
    DataError
        If there is no subject, none of that name, no folder of images, or a file is damaged or a
        link out of the folder.
    """
    root = Path(root).expanduser()
    found = chosen_subjects(subject_files(root), subject, root.name, "a subject's .h5 file")
    require(
        (root / IMAGES).is_dir(),
        DataError,
        f"a folder {IMAGES!r} beside {next(iter(found.values()))[0].name}",
        "none",
        f"put the images that were shown into {root / IMAGES}",
    )
    for name, files in found.items():
        _check_parts(name, files)
    guard, links = link_guard(root, follow_links), {"follow_links": follow_links}
    images = guard(root / IMAGES)
    subjects = {
        name: read_subject(
            list(map(guard, files)),
            images,
            name=name,
            label=label,
            val_share=val,
            seed=seed,
            **links,
        )
        for name, files in found.items()
    }
    return Study(
        name=root.resolve().name,
        description=f"measured responses in the Kamitani-lab layout: {', '.join(subjects)}",
        sets={},
        subjects=subjects,
        licences={"images and responses": "the user's own, or the terms of their authors"},
    )


register_reader("kamitani", load, detect, subjects_only=True, layout="*.h5 and images")

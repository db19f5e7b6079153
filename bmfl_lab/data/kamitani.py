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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.data.study import Study, chosen_subjects, register_reader
from bmfl_lab.errors import DataError, FileError, message, nearest
from bmfl_lab.files import link_guard, load_npy, system_errors
from bmfl_lab.runtime import rng

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
    """

    dataset: np.ndarray
    keys: tuple[str, ...]
    values: np.ndarray

    def metadata(self, key: str) -> np.ndarray:
        """Return a key's value for every column, float (n_columns,).

        Raises
        ------
        DataError
            If there is no such key.
        """
        if key not in self.keys:
            raise DataError(
                message("a metadata key of this file", repr(key), nearest(key, self.keys))
            )
        return self.values[self.keys.index(key)]

    def select(self, key: str) -> np.ndarray:
        """Return the columns where a key is 1, (n_samples, n_selected).

        Raises
        ------
        DataError
            As `metadata`.
        """
        return self.dataset[:, self.metadata(key) == 1]

    @property
    def rois(self) -> tuple[str, ...]:
        """ROI names, without the prefix "ROI_"."""
        return tuple(k.removeprefix("ROI_") for k in self.keys if k.startswith("ROI_"))


def read_bdata(path: str | Path) -> BData:
    """Read an HDF5 file of the groups ``dataset``, ``metadata/key`` and ``metadata/value``.

    Raises
    ------
    DataError
        If the file is missing, no HDF5, or of another layout.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise DataError(
            message(f"an HDF5 file {path.name}", f"nothing at {path}", "check the path")
        )
    try:
        with system_errors(path), h5py.File(path, "r") as f:
            for name in ("dataset", "metadata/key", "metadata/value"):
                if not isinstance(f.get(name), h5py.Dataset):
                    raise DataError(
                        message(
                            f"{name!r} in {path.name}",
                            f"{sorted(f)}",
                            "use the preprocessed files of the authors",
                        )
                    )
            dataset = f["dataset"][()]
            keys = tuple(
                k.decode() if isinstance(k, bytes) else str(k)
                for k in np.ravel(f["metadata/key"][()])
            )
            values = np.asarray(f["metadata/value"][()], dtype=np.float64)
    except FileError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            message(f"an HDF5 file in {path.name}", str(error)[:200], "download it again")
        ) from error
    if dataset.dtype.kind not in "fiu":
        raise DataError(
            message(
                f"a numeric dataset in {path.name}", str(dataset.dtype), "download the file again"
            )
        )
    if dataset.ndim != 2 or values.shape != (len(keys), dataset.shape[1]):
        raise DataError(
            message(
                f"metadata of shape ({len(keys)}, {dataset.shape[-1]}) in {path.name}",
                f"{values.shape} for a dataset of {dataset.shape}",
                "download the file again",
            )
        )
    return BData(dataset, keys, values)


def stimulus_name(number: float) -> str:
    """Return the ImageNet name behind a numeric stimulus id: 1518878.005958 is "n01518878_5958"."""
    synset = int(number)
    return f"n{synset:08d}_{round((number - synset) * 1e6)}"


def _split(
    ids: Sequence[str], kind: Mapping[str, str], val_share: float, seed: int
) -> dict[str, np.ndarray]:
    if not 0 <= val_share < 1:
        raise DataError(message("a share of at least 0 and below 1", str(val_share), "use 0.1"))
    train = np.flatnonzero([kind[i] == "train" for i in ids])
    shuffled = rng(seed, "kamitani", "val").permutation(train)
    n_val = round(val_share * len(train))
    return {
        "train": np.sort(shuffled[n_val:]),
        "val": np.sort(shuffled[:n_val]),
        "test": np.flatnonzero([kind[i] == "test" for i in ids]),
    }


def read_subject(
    path: str | Path,
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
    path : str or Path
        The preprocessed HDF5 file of the subject.
    images : mapping of str to path, or folder
        Image of each stimulus name ("n01518878_5958"); a folder holds ``NAME.*`` at any depth.
    name : str, optional
        Name of the subject; the file's stem by default.
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
        Responses averaged over the trials of each stimulus; voxels in the order left (x < 0),
        right.

    Raises
    ------
    DataError
        If columns are missing, an image is shown in both training and test, or an image file is not
        found or is a link out of its folder.
    """
    data = read_bdata(path)
    voxels = np.flatnonzero(data.metadata("VoxelData") == 1)
    right = data.metadata("voxel_x")[voxels] >= 0
    order = voxels[np.argsort(right, kind="stable")]
    if not len(voxels) or not np.isfinite(data.dataset[:, voxels]).all():
        what = "at least one voxel" if not len(voxels) else "finite responses"
        got = f"{len(voxels)} voxels" + (", some undefined" if len(voxels) else "")
        raise DataError(
            message(f"{what} in {Path(path).name}", got, "set VoxelData to 0 for the others")
        )
    numbers, types = data.select(label), data.select("DataType")
    if numbers.shape[1] != 1 or types.shape[1] != 1:
        raise DataError(
            message(
                f"one column each for {label!r} and 'DataType'",
                f"{numbers.shape[1]}, {types.shape[1]}",
                "check `label`",
            )
        )
    names = np.asarray(
        [stimulus_name(float(n)) if n > 0 else "" for n in numbers[:, 0]], dtype=object
    )
    shown = np.isin(types[:, 0], list(TYPES.values()))
    if (names[shown] == "").any():
        lost = int((names[shown] == "").sum())
        raise DataError(
            message("a stimulus for every presentation", f"{lost} without", "check `label`")
        )
    kind: dict[str, str] = {}
    for split, value in TYPES.items():
        for stimulus in sorted(set(names[types[:, 0] == value])):
            if kind.setdefault(stimulus, split) != split:
                raise DataError(
                    message(
                        "disjoint training and test images",
                        f"{stimulus!r} in both",
                        "check the column DataType",
                    )
                )
    ids = sorted(kind)
    responses = np.stack(
        [data.dataset[np.ix_(shown & (names == i), order)].mean(axis=0) for i in ids]
    )
    atlas = Atlas(
        hemisphere=np.sort(right).astype(np.int8),
        rois={r: data.metadata(f"ROI_{r}")[order] == 1 for r in data.rois},
    )
    return Subject(
        name=name or Path(path).stem,
        stimuli=_stimuli(ids, images, follow_links),
        responses=responses.astype(np.float32),
        atlas=atlas,
        splits=_split(ids, kind, val_share, seed),
    )


def _stimuli(
    ids: Sequence[str], images: Mapping[str, str | Path] | str | Path, follow_links: bool
) -> StimulusSet:
    guard = (lambda path: path) if isinstance(images, Mapping) else link_guard(images, follow_links)
    if not isinstance(images, Mapping):
        images = {p.stem: p for p in sorted(Path(images).rglob("*")) if p.is_file()}
    missing = [i for i in ids if i not in images]
    if missing:
        raise DataError(
            message(
                "an image file for every stimulus",
                f"{len(missing)} missing, e.g. {missing[0]!r}",
                "add the images",
            )
        )
    return from_files(
        "presented", [guard(images[i]) for i in ids], list(ids), np.full(len(ids), -1)
    )


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
        One ROI, "VC", with everything.

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
        if array is None:
            continue
        values = load_npy(array)
        listed = [
            Path(str(p)) for p in (load_npy(listed) if isinstance(listed, (str, Path)) else listed)
        ]
        if values.ndim != 2 or values.dtype.kind not in "fiu" or len(values) != len(listed):
            raise DataError(
                message(
                    f"numeric responses of shape ({len(listed)}, n_features) in {Path(array).name}",
                    f"{values.dtype} {values.shape}",
                    "list one image per row",
                )
            )
        if not np.isfinite(values).all():
            raise DataError(
                message(
                    f"finite responses in {Path(array).name}", "NaN or infinite values", "drop them"
                )
            )
        arrays.append(values.astype(np.float32))
        paths += listed
        kind |= {p.stem: split for p in listed}
    ids = [p.stem for p in paths]
    if len(set(ids)) != len(ids):
        twice = len(ids) - len(set(ids))
        raise DataError(
            message("one name per image", f"{twice} repeated", "average the trials first")
        )
    if len({a.shape[1] for a in arrays}) != 1:
        got = f"{arrays[1].shape[1]} and {arrays[0].shape[1]}"
        raise DataError(
            message(
                "as many features in test as in training responses", got, "use one set of voxels"
            )
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


IMAGES = "images"


def subject_files(folder: str | Path) -> dict[str, Path]:
    """Return the HDF5 files of the subjects in `folder` by name, possibly none."""
    root = Path(folder).expanduser()
    return {p.stem: p for p in sorted(root.glob("*.h5"))} if root.is_dir() else {}


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
        Holds one preprocessed HDF5 file per subject (``Subject1.h5``) and a folder
        ``images`` with the images shown (``n01518878_5958.JPEG``, at any depth).
    subject : str, optional
        Only this one.
    seed, val, label
        Options of `read_subject`; `val` is its `val_share`.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.

    Returns
    -------
    Study
        With subjects and no labelled image sets; give ``subject=FOLDER`` to a study of class
        folders to classify.

    Raises
    ------
    DataError
        If there is no subject, none of that name, no folder of images, or a file is damaged or a
        link out of the folder.
    """
    root = Path(root).expanduser()
    found = subject_files(root)
    if not found:
        raise DataError(
            message(
                f"a subject's .h5 file in {root.name}", "none", "put the preprocessed files there"
            )
        )
    if not (root / IMAGES).is_dir():
        raise DataError(
            message(
                f"a folder {IMAGES!r} beside {next(iter(found.values())).name}",
                "none",
                "add the images shown",
            )
        )
    guard, links = link_guard(root, follow_links), {"follow_links": follow_links}
    images = guard(root / IMAGES)
    subjects = {
        name: read_subject(
            guard(path), images, name=name, label=label, val_share=val, seed=seed, **links
        )
        for name, path in chosen_subjects(found, subject, root.name).items()
    }
    return Study(
        name=root.resolve().name,
        description=f"measured responses in the Kamitani-lab layout: {', '.join(subjects)}",
        sets={},
        subjects=subjects,
        licences={"images and responses": "the user's own, or the terms of their authors"},
    )


register_reader("kamitani", load, detect, subjects_only=True)

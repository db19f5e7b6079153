"""Read the preprocessed EEG of THINGS-EEG2 without executing pickles.

References
----------
.. [1] Gifford et al. (2022), A large and rich EEG dataset for modeling human visual object
   recognition, NeuroImage 264:119754.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmfl_lab.data.class_folders import read_by_stem
from bmfl_lab.data.pickles import read_pickled_arrays
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message, normal, require, translated
from bmfl_lab.files import link_guard, read_table

FILES = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
IMAGES = {"train": "training_images", "test": "test_images"}
POSITIONS = "electrodes.tsv"
"""File of sensor positions as BIDS names it, with the columns name, x, y and z (or x and y)."""
KEYS = ("preprocessed_eeg_data", "ch_names", "times")


@dataclass(frozen=True)
class EEG:
    """Hold the evoked responses of one subject.

    Parameters
    ----------
    data : ndarray, shape (n_stimuli, n_repeats, n_channels, n_times)
        Baseline-corrected, whitened where the dataset's authors did so; their units.
    channels : tuple of str
        Names of the n_channels sensors.
    times : ndarray, shape (n_times,)
        Times in seconds after image onset.
    ids : ndarray of str, shape (n_stimuli,)
        Stimulus ids.
    simulated : bool
        True if nothing was measured on a head.
    positions : ndarray of float, shape (n_channels, 3) or (n_channels, 2), optional
        Place of each sensor around the middle of the head, x to the right, y to the front and z up,
        in any unit; or its place on a flat map of the head.
    """

    data: np.ndarray
    channels: tuple[str, ...]
    times: np.ndarray
    ids: np.ndarray
    simulated: bool = False
    positions: np.ndarray | None = None

    def __post_init__(self) -> None:
        wanted = (
            len(self.ids),
            self.data.shape[1] if self.data.ndim == 4 else 1,
            len(self.channels),
            len(self.times),
        )
        require(
            self.data.shape == wanted,
            DataError,
            f"EEG of shape (n_stimuli={wanted[0]}, n_repeats, n_channels={wanted[2]}, "
            f"n_times={wanted[3]})",
            f"shape {self.data.shape}",
            "use the image list, channels and times of this file",
        )
        require(
            np.isfinite(self.data).all(),
            DataError,
            "finite EEG",
            "NaN or infinite values",
            "drop those trials or channels first",
        )
        places = self.positions
        require(
            places is None
            or (
                np.shape(places) in ((len(self.channels), 2), (len(self.channels), 3))
                and np.isfinite(places).all()
            ),
            DataError,
            f"finite positions of the {len(self.channels)} sensors, in two or three dimensions",
            f"shape {np.shape(places)}",
            "give one row per sensor, in the order of the channels",
        )

    def layout(self) -> np.ndarray:
        """Return the place of each sensor on a flat map of the head.

        Returns
        -------
        ndarray of float, shape (n_channels, 2)
            To the right and to the front; positions in three dimensions are projected so that the
            distance from the top of the head is kept (azimuthal equidistant).

        Raises
        ------
        DataError
            If the recording has no positions.
        """
        require(
            self.positions is not None,
            DataError,
            "positions of the sensors for a map of the head",
            "sensors without positions",
            f"put {POSITIONS} with the columns name, x, y and z beside the recording",
        )
        places = np.asarray(self.positions, float)
        if places.shape[1] == 2:
            return places
        across = np.linalg.norm(places[:, :2], axis=1)
        angle = np.arctan2(across, places[:, 2])
        return places[:, :2] * (angle / np.where(across > 0, across, 1))[:, None]

    def mean(self) -> np.ndarray:
        """Return the average over repeats.

        Returns
        -------
        ndarray of float32, shape (n_stimuli, n_channels, n_times)
        """
        return self.data.mean(axis=1).astype(np.float32)


def read_things_eeg(
    path: str | Path,
    split: str = "test",
    *,
    ids: Sequence[str] | None = None,
    metadata: str | Path | None = None,
    follow_links: bool = False,
) -> EEG:
    """Read the preprocessed EEG of one subject.

    Parameters
    ----------
    path : str or Path
        The subject's folder (``sub-01``), or one of its two files.
    split : {"train", "test"}
        Which file of the folder.
    ids : sequence of str, optional
        Stimulus ids in the order of the file.
    metadata : str or Path, optional
        The dataset's ``image_metadata.npy``, whose file names become the ids when `ids` is not
        given. Without both, ids are "train-00000", ... and can be compared with nothing else.
    follow_links : bool, default False
        Allow files of the folder that are links to somewhere outside it.

    Returns
    -------
    EEG
        Data of shape (n_stimuli, n_repeats, n_channels, n_times), with positions if
        ``electrodes.tsv`` lies beside the file.

    Raises
    ------
    DataError
        If a file is missing, holds something else than the three expected entries, sizes disagree,
        or a sensor has no position in ``electrodes.tsv``. Nothing in the files is ever run. Or if a
        file of the folder is a link out of it.

    References
    ----------
    Gifford et al. 2022, NeuroImage 264:119754.
    """
    path = Path(path)
    require(split in FILES, DataError, "split 'train' or 'test'", repr(split), "choose one of them")
    found = read_pickled_arrays(
        link_guard(path, follow_links)(path / FILES[split]) if path.is_dir() else path
    )
    missing = [k for k in KEYS if k not in found]
    require(
        not missing and isinstance(found["preprocessed_eeg_data"], np.ndarray),
        DataError,
        f"the entries {KEYS} in {path.name}",
        f"{tuple(found)}",
        "use the *preprocessed* EEG of the dataset",
    )
    if ids is None and metadata is not None:
        entry = f"{split}_img_files"
        table = read_pickled_arrays(metadata)
        require(
            entry in table,
            DataError,
            f"{entry!r} in {Path(metadata).name}",
            f"{tuple(table)}",
            "use image_metadata.npy",
        )
        ids = [Path(str(name)).stem for name in table[entry]]
    data = found["preprocessed_eeg_data"]
    if ids is None:
        ids = [f"{split}-{i:05d}" for i in range(len(data))]
    channels = tuple(str(c) for c in found["ch_names"])
    channels = channels[: data.shape[2] if data.ndim == 4 else None]
    folder = path if path.is_dir() else path.parent
    places = folder / POSITIONS
    return EEG(
        data=data,
        channels=channels,
        times=np.asarray(found["times"], dtype=np.float64),
        ids=np.asarray(list(map(normal, ids)), dtype=object),
        positions=_read_positions(link_guard(folder, follow_links)(places), channels)
        if places.is_file()
        else None,
    )


def _read_positions(path: Path, channels: Sequence[str]) -> np.ndarray:
    """Return positions (n_channels, 2) or (n_channels, 3) from a BIDS table."""
    remedy = "write a row per sensor with the columns name, x, y and z"
    rows = {row["name"]: row for _, row in read_table(path, ["name", "x", "y"], remedy, "\t")}
    missing = [name for name in channels if name not in rows]
    require(
        not missing,
        DataError,
        f"a position in {path.name} for each of the {len(channels)} sensors",
        f"none for {missing[:3]}",
        remedy,
    )
    axes = [axis for axis in ("x", "y", "z") if axis in rows[channels[0]]]
    with translated(ValueError, expected=f"numbers in {path.name}", remedy=remedy):
        return np.asarray([[float(rows[name][axis]) for axis in axes] for name in channels])


def eeg_stimuli(eeg: EEG, folder: str | Path, *, follow_links: bool = False) -> StimulusSet:
    """Return the images behind an EEG, found by name in a folder.

    Parameters
    ----------
    eeg : EEG
        Its ids are file stems, as `read_things_eeg` makes them from the dataset's
        ``image_metadata.npy``.
    folder : str or Path
        Folder that holds ``ID.*`` at any depth.
    follow_links : bool, default False
        Allow images that are links to somewhere outside it.

    Returns
    -------
    StimulusSet
        Unlabelled, in the order of `eeg`.

    Raises
    ------
    DataError
        If an image is missing or a link out of the folder.
    """
    return read_by_stem("eeg", eeg.ids, folder, follow_links=follow_links)


def read_with_images(
    folder: str | Path, split: str = "test", *, follow_links: bool = False
) -> tuple[EEG, StimulusSet]:
    """Read the preprocessed EEG of one subject and the images that were shown.

    Parameters
    ----------
    folder : str or Path
        The subject's folder (``.../sub-01``). A folder ``image_set`` with ``image_metadata.npy``,
        ``training_images`` and ``test_images`` lies beside it or beside one of the folders above
        it.
    split : {"train", "test"}
        Part of the data set.
    follow_links : bool, default False
        Allow files that are links out of the subject's folder or the image set.

    Returns
    -------
    eeg : EEG
        Data of shape (n_stimuli, n_repeats, n_channels, n_times).
    images : StimulusSet
        The n_stimuli images in the same order, unlabelled.

    Raises
    ------
    DataError
        See `read_things_eeg` and `eeg_stimuli`; also if there is no image set.
    """
    folder = Path(folder).expanduser().resolve()
    for above in (folder, *list(folder.parents)[:4]):
        metadata = above / "image_set" / "image_metadata.npy"
        if metadata.is_file():
            guard = link_guard(metadata.parent, follow_links)
            eeg = read_things_eeg(
                folder, split, metadata=guard(metadata), follow_links=follow_links
            )
            return eeg, eeg_stimuli(
                eeg, guard(metadata.parent / IMAGES[split]), follow_links=follow_links
            )
    raise DataError(
        message(
            f"image_set/image_metadata.npy above {folder.name}",
            f"none in {folder} or four folders above it",
            "unpack the dataset's image set there, "
            "or use read_things_eeg and eeg_stimuli with your own paths",
        )
    )

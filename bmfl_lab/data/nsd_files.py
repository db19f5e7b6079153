"""Read the single files of the Natural Scenes Dataset: design, stimuli, betas and ROI labels.

`bmfl_lab.data.nsd` puts them together to subjects and studies.

References
----------
.. [1] Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and AI,
   Nature Neuroscience 25.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmfl_lab.data.containers import load_image, load_mat, open_hdf5
from bmfl_lab.data.splits import nsd_id, stim_info_number, stim_info_rows
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message, require
from bmfl_lab.files import existing_file, sha256_bytes

TRIALS_PER_SESSION = 750
"""Trials of one session; all sessions of all subjects have as many."""
BETA_SCALE = 300.0
"""Betas stored as int16 are percent signal change times 300."""
_REDO = "download the file again from NSD"


@dataclass(frozen=True)
class Design:
    """The order of stimuli of all subjects.

    Parameters
    ----------
    ordering : ndarray of int64, shape (n_trials,)
        For each trial, the 1-based place in a subject's list of images.
    images : ndarray of int64, shape (n_subjects, n_images)
        Each subject's list, 1-based numbers among the 73,000 images.
    shared : ndarray of int64
        1-based numbers of the shared images.
    """

    ordering: np.ndarray
    images: np.ndarray
    shared: np.ndarray

    def trials(self, subject: int) -> np.ndarray:
        """Return the image that a subject saw in each trial.

        Parameters
        ----------
        subject : int
            1 to 8.

        Returns
        -------
        ndarray of int64, shape (n_trials,)
            Number of the image among all of NSD's, counted from 0; 30,000 trials in the published
            design.
        """
        return self.images[subject - 1, self.ordering - 1] - 1

    def shared_ids(self) -> tuple[str, ...]:
        """Return the stimulus ids of the images that every subject was to see.

        Returns
        -------
        tuple of str, length n_shared
            1,000 ids ("nsd-02950") in the published design.
        """
        return tuple(nsd_id(i - 1) for i in self.shared)


def read_design(path: str | Path) -> Design:
    """Read which image NSD showed in which trial, from ``nsd_expdesign.mat``.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Design

    Raises
    ------
    DataError
        If a variable is missing or its numbers lie outside their range; the message names it.
    """
    found = load_mat(path, ("masterordering", "subjectim", "sharedix"))
    arrays = {}
    for name in ("masterordering", "subjectim", "sharedix"):
        values = np.asarray(found.get(name, np.empty((0, 0))))
        whole = (
            values.dtype.kind in "iuf"
            and values.ndim == 2
            and values.size
            and np.array_equal(values, np.rint(values))
        )
        require(
            whole and values.min() >= 1,
            DataError,
            f"{path}:{name}, numbers from 1",
            f"{values.dtype} {values.shape}",
            _REDO,
        )
        arrays[name] = values.astype(np.int64)
    ordering, images = arrays["masterordering"].ravel(), arrays["subjectim"]
    require(
        ordering.max() <= images.shape[1],
        DataError,
        f"{path}:masterordering up to {images.shape[1]}",
        f"{ordering.max()}",
        _REDO,
    )
    return Design(ordering, images, arrays["sharedix"].ravel())


def read_stim_info_trials(path: str | Path, subject: int) -> dict[int, int]:
    """Read which image NSD's table lists for each trial of a subject.

    Parameters
    ----------
    path : str or Path
        ``nsd_stim_info_merged.csv``.
    subject : int
        1 to 8.

    Returns
    -------
    dict of int to int
        Number of the trial, counted from 1, to number of the image, counted from 0.

    Raises
    ------
    DataError
        If the file is damaged, a column is missing, or the table lists two images for a trial.
    """
    columns = [f"subject{subject}_rep{r}" for r in range(3)]
    trials: dict[int, int] = {}
    for line, row in stim_info_rows(path, ("nsdId", *columns)):
        image = stim_info_number(path, line, row, "nsdId")
        for trial in (stim_info_number(path, line, row, c) for c in columns):
            if trial in trials:
                raise DataError(
                    message(
                        f"one image per trial in {path}",
                        f"two in trial {trial}, line {line}",
                        _REDO,
                    )
                )
            if trial > 0:  # 0: not shown so often
                trials[trial] = image
    return trials


def check_trials(design: Design, trials: dict[int, int], subject: int) -> None:
    """Refuse a design (1-based) and a stimulus table (0-based) that disagree on any trial.

    Raises
    ------
    DataError
        With the number of differing trials and the first of them.
    """
    listed = design.trials(subject)
    wrong = [t for t, image in sorted(trials.items()) if t > len(listed) or listed[t - 1] != image]
    require(
        not wrong,
        DataError,
        f"the same image in nsd_expdesign.mat and nsd_stim_info_merged.csv for subject {subject}",
        f"{len(wrong)} trials that differ, first trial {wrong[:1]}",
        "use both files of one NSD release",
    )


def open_stimuli(path: str | Path, numbers: Sequence[int] | np.ndarray) -> StimulusSet:
    """Return images of ``nsd_stimuli.hdf5``, each of which is read when it is needed.

    Parameters
    ----------
    path : str or Path
        The file.
    numbers : sequence of int, length n
        Numbers of the images, counted from 0.

    Returns
    -------
    StimulusSet
        n unlabelled images of shape (425, 425, 3) in the published data, with the ids "nsd-00013".

    Raises
    ------
    DataError
        If ``/imgBrick`` is missing or is not uint8 (n_all, height, width, 3), or a number is out of
        range.
    """
    path = Path(path)
    numbers = np.asarray(numbers, np.int64)
    with open_hdf5(path) as stream:
        brick = stream.get("imgBrick")
        shape, dtype = getattr(brick, "shape", None), getattr(brick, "dtype", None)
    require(
        dtype == np.uint8 and len(shape) == 4 and shape[3] == 3,
        DataError,
        f"{path}:/imgBrick, uint8 (73000, 425, 425, 3)",
        f"{dtype} {shape}",
        _REDO,
    )
    outside = numbers[(numbers < 0) | (numbers >= shape[0])]
    require(
        not len(outside),
        DataError,
        f"0-based numbers 0..{shape[0] - 1}",
        f"{outside[:3].tolist()}",
        "subtract 1 from 73k ids",
    )

    def read(i: int) -> np.ndarray:
        with open_hdf5(path) as opened:
            return np.asarray(opened["imgBrick"][int(numbers[i])])

    return StimulusSet(
        name="nsd",
        ids=np.asarray([nsd_id(i) for i in numbers], dtype=object),
        read=read,
        digest_of=functools.cache(
            lambda i: sha256_bytes(str(shape[1:]).encode() + read(i).tobytes())
        ),
        labels=np.full(len(numbers), -1),
    )


def surface_betas(path: str | Path) -> np.ndarray:
    """Return the betas of one hemisphere in a session, in percent signal change.

    Parameters
    ----------
    path : str or Path
        ``{lh,rh}.betas_sessionNN.mgh``.

    Returns
    -------
    ndarray of float32, shape (n_vertices, n_trials)

    Raises
    ------
    DataError
        If the file does not hold (n_vertices, 1, 1, n_trials).
    """
    data = load_image(path, "surface betas (.mgh)")
    require(
        data.ndim == 4 and data.shape[1:3] == (1, 1),
        DataError,
        f"(n_vertices, 1, 1, n_trials) in {path}",
        f"shape {data.shape}",
        _REDO,
    )
    return np.asarray(data[:, 0, 0, :], np.float32)


def volume_betas(path: str | Path, mask: np.ndarray) -> np.ndarray:
    """Return the betas of a session inside a mask, in percent signal change.

    Parameters
    ----------
    path : str or Path
        ``betas_sessionNN.hdf5`` (dataset ``/betas``, axes trials, Z, Y, X) or ``.nii.gz`` (X, Y, Z,
        trials), int16.
    mask : ndarray of bool, shape (X, Y, Z)
        Voxels to read; order of the result is that of ``np.argwhere(mask)``.

    Returns
    -------
    ndarray of float32, shape (n_voxels, n_trials)

    Raises
    ------
    DataError
        If the dataset is missing, is not int16, or has another grid than the mask.
    """
    path = existing_file(path, "volume betas")
    if path.suffix == ".hdf5":
        with open_hdf5(path) as stream:
            betas = stream.get("betas")
            require(
                betas is not None and getattr(betas, "ndim", 0) == 4,
                DataError,
                f"{path}:/betas with four axes",
                f"{list(stream)}",
                _REDO,
            )
            _check_grid(betas.dtype, betas.shape[:0:-1], mask, f"{path}:/betas")
            place = np.nonzero(mask)[2]
            inside = np.empty((len(place), len(betas)), np.float32)
            for z in range(mask.shape[2]):
                inside[place == z] = betas[:, z].T[mask[:, :, z]]
            return inside / np.float32(BETA_SCALE)
    data = load_image(path, "volume betas")
    require(data.ndim == 4, DataError, f"four axes in {path}", f"shape {data.shape}", _REDO)
    _check_grid(data.dtype, data.shape[:3], mask, str(path))
    return data[mask].astype(np.float32) / np.float32(BETA_SCALE)


def _check_grid(dtype: np.dtype, grid: tuple[int, ...], mask: np.ndarray, where: str) -> None:
    require(
        np.dtype(dtype) == np.int16 and tuple(grid) == mask.shape,
        DataError,
        f"int16 betas on the grid {mask.shape} of the mask in {where}",
        f"{dtype} on {tuple(grid)}",
        _REDO,
    )


def read_labels(path: str | Path, table: str | Path) -> tuple[np.ndarray, dict[int, str]]:
    """Read an ROI label map (``.mgz``, ``.nii.gz``) and its colour table (``NAME.mgz.ctab``).

    Returns
    -------
    labels : ndarray of int64
        In the shape of the file, (n_vertices,) for a surface.
    names : dict of int to str
        Name of each label above 0.

    Raises
    ------
    DataError
        If labels are no whole numbers or lack a name; lists them.
    """
    labels = np.squeeze(load_image(path, "ROI labels"))
    require(
        np.array_equal(labels, np.rint(labels)),
        DataError,
        f"whole-number labels in {path}",
        f"{labels.dtype} fractions",
        _REDO,
    )
    labels = labels.astype(np.int64)
    names: dict[int, str] = {}
    table = existing_file(table, "a colour table (.ctab)")
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit() and int(fields[0]) > 0:
            names[int(fields[0])] = fields[1]
    unnamed = sorted(set(np.unique(labels[labels > 0]).tolist()) - set(names))
    require(
        not unnamed,
        DataError,
        f"a name in {table} for each label of {path}",
        f"none for {unnamed}",
        _REDO,
    )
    return labels, names

"""The single files of the Natural Scenes Dataset (NSD): design, stimuli, betas, noise maps and ROI labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmfl_lab.data.splits import nsd_id, stim_info_number, stim_info_rows
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import sha256_bytes

TRIALS_PER_SESSION = 750
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
        """Return the 0-based image number of each trial of a subject (1..8)."""
        return self.images[subject - 1, self.ordering - 1] - 1

    def shared_ids(self) -> tuple[str, ...]:
        """Return the ids of the shared images."""
        return tuple(nsd_id(i - 1) for i in self.shared)


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise DataError(message(what, f"nothing at {path}", "check the path and the download"))
    return path


def read_design(path: str | Path) -> Design:
    """Read ``nsd_expdesign.mat``.

    Raises
    ------
    DataError
        If a variable is missing or its numbers lie outside their range; names the variable.
    """
    import scipy.io

    path = _existing(path, "nsd_expdesign.mat")
    try:
        found = scipy.io.loadmat(
            str(path), variable_names=["masterordering", "subjectim", "sharedix"]
        )
    except Exception as error:  # scipy raises many kinds on damaged files
        raise DataError(
            message(f"a MATLAB file {path}", f"{type(error).__name__}: {error}", _REDO)
        ) from error
    arrays = {}
    for name in ("masterordering", "subjectim", "sharedix"):
        values = np.asarray(found.get(name, np.empty((0, 0))))
        whole = (
            values.dtype.kind in "iuf"
            and values.ndim == 2
            and values.size
            and np.array_equal(values, np.rint(values))
        )
        if not whole or values.min() < 1:
            raise DataError(
                message(f"{path}:{name}, numbers from 1", f"{values.dtype} {values.shape}", _REDO)
            )
        arrays[name] = values.astype(np.int64)
    ordering, images = arrays["masterordering"].ravel(), arrays["subjectim"]
    if ordering.max() > images.shape[1]:
        raise DataError(
            message(f"{path}:masterordering up to {images.shape[1]}", f"{ordering.max()}", _REDO)
        )
    return Design(ordering, images, arrays["sharedix"].ravel())


def read_stim_info_trials(path: str | Path, subject: int) -> dict[int, int]:
    """Return {1-based trial: 0-based image number} of a subject from ``nsd_stim_info_merged.csv``.

    Raises
    ------
    DataError
        If the file is damaged, a column is missing or a trial shows two images.
    """
    columns = [f"subject{subject}_rep{r}" for r in range(3)]
    trials: dict[int, int] = {}
    for line, row in stim_info_rows(path, ("nsdId", *columns)):
        image = stim_info_number(path, line, row, "nsdId")
        for trial in (stim_info_number(path, line, row, c) for c in columns):
            if trial in trials:
                raise DataError(
                    message(
                        f"one image a trial in {path}", f"two in trial {trial}, line {line}", _REDO
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
    if wrong:
        raise DataError(
            message(
                f"the same image in nsd_expdesign.mat and nsd_stim_info_merged.csv for subject {subject}",
                f"{len(wrong)} trials that differ, first trial {wrong[0]}",
                "use both files of one NSD release",
            )
        )


def open_stimuli(path: str | Path, numbers: Sequence[int] | np.ndarray) -> StimulusSet:
    """Return images of ``nsd_stimuli.hdf5``, read one at a time.

    Parameters
    ----------
    numbers : sequence of int
        0-based image numbers.

    Raises
    ------
    DataError
        If ``/imgBrick`` is missing or is not uint8 (n, height, width, 3), or a number is out of
        range.
    """
    path = _existing(path, "nsd_stimuli.hdf5")
    numbers = np.asarray(numbers, np.int64)
    with open_hdf5(path) as stream:
        brick = stream.get("imgBrick")
        shape, dtype = getattr(brick, "shape", None), getattr(brick, "dtype", None)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise DataError(
            message(f"{path}:/imgBrick, uint8 (73000, 425, 425, 3)", f"{dtype} {shape}", _REDO)
        )
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= shape[0]):
        raise DataError(
            message(
                f"0-based numbers 0..{shape[0] - 1}",
                f"{numbers.min()}..{numbers.max()}",
                "subtract 1 from 73k ids",
            )
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


def open_hdf5(path: Path):
    """Open an HDF5 file for reading; damage becomes a `DataError`."""
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(message(f"an HDF5 file {path}", str(error), _REDO)) from error


def load_image(path: str | Path, what: str) -> np.ndarray:
    """Return the data of a NIfTI or MGH file as stored, without scaling by us.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    import nibabel

    path = _existing(path, what)
    try:
        return np.asanyarray(nibabel.load(str(path)).dataobj)
    except Exception as error:  # nibabel, zlib and NumPy raise many kinds on damaged files
        raise DataError(
            message(f"{what} in {path}", f"{type(error).__name__}: {error}", _REDO)
        ) from error


def surface_betas(path: str | Path) -> np.ndarray:
    """Return one hemisphere's betas of a session, float32 (n_vertices, n_trials), percent signal change.

    Raises
    ------
    DataError
        If the file does not hold (n_vertices, 1, 1, n_trials).
    """
    data = load_image(path, "surface betas (.mgh)")
    if data.ndim != 4 or data.shape[1:3] != (1, 1):
        raise DataError(
            message(f"(n_vertices, 1, 1, n_trials) in {path}", f"shape {data.shape}", _REDO)
        )
    return np.asarray(data[:, 0, 0, :], np.float32)


def volume_betas(path: str | Path, mask: np.ndarray) -> np.ndarray:
    """Return a session's betas inside a mask, float32 (n_voxels, n_trials), percent signal change.

    Parameters
    ----------
    path : str or Path
        ``betas_sessionNN.hdf5`` (dataset ``/betas``, axes trials, Z, Y, X) or ``.nii.gz`` (X, Y, Z,
        trials), int16.
    mask : ndarray of bool, shape (X, Y, Z)
        Voxels to read; order of the result is that of ``np.argwhere(mask)``.

    Raises
    ------
    DataError
        If the dataset is missing, is not int16, or has another grid than the mask.
    """
    path = _existing(path, "volume betas")
    if path.suffix == ".hdf5":
        with open_hdf5(path) as stream:
            betas = stream.get("betas")
            if betas is None or getattr(betas, "ndim", 0) != 4:
                raise DataError(message(f"{path}:/betas with four axes", f"{list(stream)}", _REDO))
            _check_grid(betas.dtype, betas.shape[:0:-1], mask, f"{path}:/betas")
            planes = [betas[:, z][:, mask[:, :, z].T] for z in range(mask.shape[2])]
            # planes are ordered z, y, x; the mask's order is x, y, z
            x, y, z = np.nonzero(mask)
            order = np.empty(len(x), np.int64)
            order[np.lexsort((x, y, z))] = np.arange(len(x))
            return np.concatenate(planes, 1).T[order].astype(np.float32) / np.float32(BETA_SCALE)
    data = load_image(path, "volume betas")
    if data.ndim != 4:
        raise DataError(message(f"four axes in {path}", f"shape {data.shape}", _REDO))
    _check_grid(data.dtype, data.shape[:3], mask, str(path))
    return data[mask].astype(np.float32) / np.float32(BETA_SCALE)


def _check_grid(dtype: np.dtype, grid: tuple[int, ...], mask: np.ndarray, where: str) -> None:
    if np.dtype(dtype) != np.int16 or tuple(grid) != mask.shape:
        raise DataError(
            message(
                f"int16 betas on the grid {mask.shape} of the mask in {where}",
                f"{dtype} on {tuple(grid)}",
                _REDO,
            )
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
    if not np.array_equal(labels, np.rint(labels)):
        raise DataError(
            message(f"whole-number labels in {path}", f"{labels.dtype} fractions", _REDO)
        )
    labels = labels.astype(np.int64)
    names: dict[int, str] = {}
    for line in (
        _existing(table, "a colour table (.ctab)")
        .read_text(encoding="utf-8", errors="replace")
        .splitlines()
    ):
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit() and int(fields[0]) > 0:
            names[int(fields[0])] = fields[1]
    unnamed = sorted(set(np.unique(labels[labels > 0]).tolist()) - set(names))
    if unnamed:
        raise DataError(
            message(f"a name in {table} for each label of {path}", f"none for {unnamed}", _REDO)
        )
    return labels, names


def noise_ceiling(ncsnr: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Return the explainable share of variance of responses averaged over the repeats actually used.

    Parameters
    ----------
    ncsnr : ndarray of float, shape (n_vertices,)
        Noise-ceiling signal-to-noise ratio.
    repeats : ndarray of int, shape (n_stimuli,)
        How often each stimulus was averaged.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)
        From 0 to 1; NaN where `ncsnr` is zero, negative or not finite.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25; for mixed repeats Gifford et al. (2023),
    arXiv:2301.03198.
    """
    repeats = np.asarray(repeats, np.float64)
    if not repeats.size or repeats.min() < 1:
        raise DataError(
            message(
                "at least one repeat of each stimulus",
                f"{repeats.tolist()[:5]}",
                "leave out unseen images",
            )
        )
    noise = float(np.mean(1.0 / repeats))
    s = np.asarray(ncsnr, np.float64)
    defined = np.isfinite(s) & (s > 0)
    s = np.where(defined, s, 1.0)
    return np.where(defined, s**2 / (s**2 + noise), np.nan).astype(np.float32)

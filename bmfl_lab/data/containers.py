"""Open HDF5, MATLAB, NIfTI and MGH files of users: one guarded way per format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.errors import translated
from bmfl_lab.files import existing_file

if TYPE_CHECKING:
    import h5py

REDO = "download the file again"


def open_hdf5(path: str | Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    h5py.File

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    import h5py

    path = existing_file(path, "an HDF5 file")
    with translated(OSError, expected=f"an HDF5 file {path}", remedy=REDO):
        return h5py.File(path, "r")


def load_mat(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read variables of a MATLAB file.

    Parameters
    ----------
    path : str or Path
        The file.
    names : sequence of str
        Variables to read.

    Returns
    -------
    dict of str to ndarray
        The variables that are there, with two or more axes each.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    import scipy.io

    path = existing_file(path, "a MATLAB file")
    # scipy raises many kinds on damaged files
    with translated(Exception, expected=f"a MATLAB file {path}", remedy=REDO):
        return scipy.io.loadmat(str(path), variable_names=list(names))


def load_image(path: str | Path, what: str) -> np.ndarray:
    """Read the data of a NIfTI or MGH file.

    Parameters
    ----------
    path : str or Path
        The file.
    what : str
        Name of its content in messages.

    Returns
    -------
    ndarray
        Shape and type as stored, scaled as the file's own header says.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    import nibabel

    path = existing_file(path, what)
    # nibabel, zlib and NumPy raise many kinds on damaged files
    with translated(Exception, expected=f"{what} in {path}", remedy=REDO):
        return np.asanyarray(nibabel.load(str(path)).dataobj)

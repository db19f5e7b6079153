"""Folders of arrays made once and read many times: written whole, checked by checksum, rebuilt when damaged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.errors import DataError
from bmfl_lab.files import load_npy, lock, read_sealed_json, sha256_file, write_sealed_json

SCHEMA = 1


def store_arrays(
    folder: str | Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Write arrays and a manifest with their checksums; the folder appears whole or not at all.

    Parameters
    ----------
    folder : str or Path
        Where; replaced if it exists.
    arrays : mapping of str to ndarray
        Numbers only.
    about : mapping
        What else the manifest says, as JSON.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock"), what=str(folder)):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            sums = {}
            for name, values in arrays.items():
                np.save(temporary / f"{name}.npy", np.ascontiguousarray(values), allow_pickle=False)
                sums[name] = sha256_file(temporary / f"{name}.npy")
            write_sealed_json(
                temporary / "manifest.json", {"schema": SCHEMA, "sha256": sums, **about}
            )
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)


def load_arrays(folder: str | Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of a folder as read-only memory maps.

    Returns
    -------
    dict of str to ndarray, or None
        None when there is no such folder, or it is damaged, so that it is made again; a damaged one
        is announced.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        return None
    try:
        manifest = read_sealed_json(folder / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            return None
        found = {}
        for name, expected in manifest["sha256"].items():
            if sha256_file(folder / f"{name}.npy") != expected:
                raise DataError(f"{name}.npy does not have its recorded checksum")
            found[name] = load_npy(folder / f"{name}.npy", mmap=True)
        return found
    except (DataError, OSError, KeyError, AttributeError) as error:
        print(f"the cached {folder.name} is damaged ({error}): making it again", flush=True)
        return None

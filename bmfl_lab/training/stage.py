"""Train each model once: what a folder holds complete is read, all else is made and kept there."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bmfl_lab.files import evict, folder_bytes, lock, sole_user
from bmfl_lab.training.loop import accelerator_on

T = TypeVar("T")


@functools.cache
def recipe_code(package: Path = Path(__file__).parent.parent) -> str:
    """Return a hash of the code that trains, which comments and docstrings do not change."""
    digest = hashlib.sha256()
    for room in ("backbones", "losses", "models", "training"):
        for path in sorted((package / room).glob("*.py")):
            tree = ast.parse(path.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = ""  # a docstring, or the text below a constant
            digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def once(
    file: Path,
    read: Callable[[], T],
    make: Callable[[], T],
    write: Callable[[T], object],
    *,
    what: str,
    device: str,
    fresh: bool = False,
    limit_gb: float = math.inf,
) -> T:
    """Return what a file holds, or make it and keep it.

    Parameters
    ----------
    file : Path
        File that exists once `write` has ended.
    read, make, write : callable
        ``read() -> value`` if the file exists, else ``make() -> value`` and ``write(value)``.
    what : str
        Name of the value in messages, e.g. "the encoder".
    device : "cpu" or "cuda"
        Device of the training; it decides how several processes talk to each other.
    fresh : bool, default False
        Make the value even if the file exists.
    limit_gb : float, default infinity
        Largest total size in GB (10^9 bytes) of what is kept in the folder above. A new value
        evicts those that were used longest ago and that no process trains or reads now.

    Returns
    -------
    object
        The value; under ``torchrun`` in every process.

    Notes
    -----
    Only the main process waits for the lock of the folder, and only it writes. The others wait for
    its decision, so that all of them train or all of them read. If each process waited for the
    lock, the first would wait for the others in the training and the others for the lock.
    """
    main = os.environ.get("RANK", "0") == "0"
    held = lock(file.parent / ".lock", what=f"{what} in {file.parent}")
    with held if main else contextlib.nullcontext():
        if _agreed(file.exists() and not fresh, device):
            return read()
        value = make()
        if main:
            write(value)
            _evict(file, limit_gb)
        return value


def _evict(file: Path, limit_gb: float) -> None:
    """Delete what was used longest ago of the kept values beside that of `file`."""
    others = file.parent.parent.glob(f"*/{file.name}")
    marks = [other.parent / ".lock" for other in others if other != file]
    kept = [mark.parent for mark in marks] + [file.parent]
    lacking = sum(map(folder_bytes, kept)) - limit_gb * 1e9 if math.isfinite(limit_gb) else 0

    def claim(folder: Path) -> contextlib.AbstractContextManager[None]:
        return sole_user(folder / ".lock")

    if gone := evict(marks, lacking, claim, lambda folder: f"{file.stem} {folder.name}"):
        print(
            f"kept models: deleted {', '.join(gone)} to make room within {limit_gb:g} GB; raise "
            "BMFL_STORE_GB to keep more",
            flush=True,
        )


def _agreed(value: bool, device: str) -> bool:
    """Return the main process's value in every process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return value
    from accelerate.utils import broadcast_object_list

    accelerator_on(device)  # starts the group of processes, if it is not there yet
    return broadcast_object_list([value])[0]

"""Train each model once: what a folder holds complete is read, all else is made and kept there."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bmfl_lab.files import lock
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
        return value


def _agreed(value: bool, device: str) -> bool:
    """Return the main process's value in every process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return value
    from accelerate.utils import broadcast_object_list

    accelerator_on(device)  # starts the group of processes, if it is not there yet
    return broadcast_object_list([value])[0]

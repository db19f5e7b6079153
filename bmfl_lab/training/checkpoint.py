"""Checkpoints that are whole, checked to the bit, and belong to what they say they belong to.

A checkpoint is two files: ``NAME.safetensors`` (tensors) and ``NAME.json`` (a manifest with the
SHA-256 of the tensors and of itself). The tensors are on disk before the manifest gets its name, so
a manifest never promises what is not there; a checkpoint without a manifest does not exist.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bmfl_lab.backbones.weights import check_safetensors
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import CheckpointError, message
from bmfl_lab.files import atomic_path, sha256_bytes

SCHEMA = 1
_STEP = re.compile(r"step-(\d{8})\.json")


def write_bundle(
    folder: str | Path, name: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]
) -> Path:
    """Write tensors and their manifest; the manifest last.

    Parameters
    ----------
    folder : str or Path
        Where; made if missing.
    name : str
        Stem of both files.
    tensors : mapping of str to Tensor
        Any device; written contiguous.
    manifest : mapping
        JSON values (no NaN) to keep with them.

    Returns
    -------
    Path
        Of the manifest.

    Raises
    ------
    CheckpointError
        If the disk is full or the folder cannot be written; what was there before stays as it was.
    """
    folder = Path(folder)
    data = safetensors.torch.save(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    )
    body = {
        **manifest,
        "schema": SCHEMA,
        "data_file": f"{name}.safetensors",
        "data_bytes": len(data),
        "data_sha256": sha256_bytes(data),
    }
    text = _canonical({**body, "manifest_sha256": sha256_bytes(_canonical(body).encode())})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_when_full(folder, len(data) + len(text))
        for path, content in (
            (folder / f"{name}.safetensors", data),
            (folder / f"{name}.json", text.encode()),
        ):
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            _sync_folder(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            message(
                f"room for {len(data) + len(text)} bytes in {folder}",
                "a full disk" if full else str(error),
                "free some space or choose another folder; earlier checkpoints are intact"
                if full
                else "choose a folder that can be written",
            )
        ) from error
    return folder / f"{name}.json"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _refuse_when_full(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bundle(
    folder: str | Path, name: str, check: Callable[[dict[str, Any]], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_bundle` wrote, refusing any change of a single bit.

    Parameters
    ----------
    folder, name
        Where, and under which name, it was written.
    check : callable, optional
        Given the manifest before any tensor is read; raises where this is not what was asked for.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU.
    manifest : dict
        As written, with ``schema``, ``data_file``, ``data_bytes`` and ``data_sha256``.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, of another schema, or the two do not belong together.
    """
    folder = Path(folder)
    manifest = read_manifest(folder / f"{name}.json")
    if check is not None:
        check(manifest)
    path = folder / f"{name}.safetensors"
    if manifest["data_file"] != path.name:
        raise CheckpointError(
            message(
                f"a manifest of {path.name}",
                f"one of {manifest['data_file']!r}",
                "do not rename checkpoint files",
            )
        )
    return read_tensors(path, manifest["data_sha256"]), manifest


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest and check it against its own hash.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, or of another schema version.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            message(
                f"a checkpoint manifest {path.name}",
                f"nothing readable at {path}",
                "check the folder",
            )
        ) from error
    try:
        found = json.loads(raw.decode())
        body = {k: v for k, v in found.items() if k != "manifest_sha256"}
        # equal text leaves no byte unchecked, blanks and repeated keys included
        whole = _canonical(found).encode() == raw and found["manifest_sha256"] == sha256_bytes(
            _canonical(body).encode()
        )
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(
            message(
                f"the manifest {path.name} as it was written",
                "a changed or damaged file",
                "delete this checkpoint",
            )
        )
    if found.get("schema") != SCHEMA:
        raise CheckpointError(
            message(
                f"schema {SCHEMA} in {path.name}",
                repr(found.get("schema")),
                "use the version that wrote it, or train again",
            )
        )
    return found


def read_tensors(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file after checking its header and, if given, its hash.

    Raises
    ------
    CheckpointError
        If the file is missing, its content has another hash, or its header is unsound, see
        `check_safetensors`.
    """
    path = Path(path)
    try:
        check_safetensors(path)
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            message(
                f"the tensors {path.name}",
                f"nothing readable at {path}",
                "copy both files of the checkpoint",
            )
        ) from error
    if sha256 is not None and sha256_bytes(raw) != sha256:
        raise CheckpointError(
            message(
                f"{path.name} with SHA-256 {sha256[:12]}...",
                f"{sha256_bytes(raw)[:12]}...: a damaged or exchanged file",
                "delete this checkpoint and resume from an earlier one",
            )
        )
    try:
        return safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            message(f"a sound safetensors file {path.name}", got, "delete or fetch it again")
        ) from error


def newest_step(folder: str | Path) -> int | None:
    """Return the highest step that has a manifest, or None; the clock plays no part."""
    found = [
        int(m.group(1)) for p in Path(folder).glob("step-*.json") if (m := _STEP.fullmatch(p.name))
    ]
    return max(found, default=None)


def step_name(step: int) -> str:
    """Return the stem of the checkpoint of a step."""
    return f"step-{step:08d}"


def prune(folder: str | Path, keep: Iterable[int]) -> None:
    """Delete every step checkpoint but those in `keep`, manifests first, and leftovers of killed writers."""
    names = {step_name(s) for s in keep}
    folder = Path(folder)
    for suffix in (".json", ".safetensors"):
        for path in folder.glob(f"step-*{suffix}"):
            if path.stem not in names:
                path.unlink(missing_ok=True)
    for path in folder.glob(".step-*.tmp"):
        path.unlink(missing_ok=True)


def refuse_changes(
    stored: Mapping[str, Any],
    current: Mapping[str, Any],
    allow: Iterable[str] = (),
    what: str = "run",
) -> None:
    """Refuse to continue when an identity field differs from the stored one.

    Parameters
    ----------
    stored, current : mapping
        Flat names to JSON values.
    allow : iterable of str
        Names that may differ.

    Raises
    ------
    CheckpointError
        Naming every changed field with both values.
    """
    allowed = set(allow)
    changed = [
        k
        for k in sorted({*stored, *current})
        if stored.get(k) != current.get(k) and k not in allowed
    ]
    if changed:
        shown = "; ".join(f"{k}: stored {stored.get(k)!r}, now {current.get(k)!r}" for k in changed)
        raise CheckpointError(
            message(
                f"the {what} that this checkpoint belongs to",
                f"a change in {shown}",
                f"use another folder, start afresh with resume=False, or pass allow_change={tuple(changed)!r}",
            )
        )


def mismatch(folder: str | Path, wanted: Iterable[str], found: Iterable[str]) -> CheckpointError:
    """Return the error for a checkpoint whose tensors are not those its manifest lists."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    return CheckpointError(
        message(
            f"the tensors that the manifest in {folder} lists",
            f"missing {missing[:5]}, extra {extra[:5]}",
            "resume from another checkpoint",
        )
    )


def rng_tensors() -> dict[str, Tensor]:
    """Return the state of torch's, NumPy's and Python's global generators as tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  the global generator itself
    version, internal, python_gauss = random.getstate()
    found = {
        "rng.torch": torch.get_rng_state(),
        "rng.numpy": torch.tensor(
            [*map(int, keys), int(position), int(has_gauss)], dtype=torch.int64
        ),
        "rng.numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "rng.python": torch.tensor([version, *internal], dtype=torch.int64),
        "rng.python_gauss": torch.tensor(
            [] if python_gauss is None else [python_gauss], dtype=torch.float64
        ),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["rng.cuda"] = torch.cuda.get_rng_state()
    return found


def set_rng(tensors: Mapping[str, Tensor]) -> None:
    """Restore what `rng_tensors` returned.

    Raises
    ------
    CheckpointError
        If a generator's state is missing or of the wrong size.
    """
    own = torch.get_rng_state().numel()
    sizes = {
        "rng.torch": own,
        "rng.numpy": 626,
        "rng.numpy_gauss": 1,
        "rng.python": 626,
        "rng.python_gauss": None,
    }
    for name, size in sizes.items():
        got = tensors.get(name)
        if got is None or (size is not None and got.numel() != size):
            raise CheckpointError(
                message(
                    f"the random state {name!r} in the checkpoint",
                    "nothing" if got is None else f"{got.numel()} values",
                    "resume from another checkpoint: without it the run would not be the same",
                )
            )
    torch.set_rng_state(tensors["rng.torch"])
    *keys, position, has_gauss = tensors["rng.numpy"].tolist()
    gauss = tensors["rng.numpy_gauss"].item()
    np.random.set_state(("MT19937", np.asarray(keys, np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, *internal = tensors["rng.python"].tolist()
    python_gauss = tensors["rng.python_gauss"].tolist()
    random.setstate((version, tuple(internal), python_gauss[0] if python_gauss else None))
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def atlas_to_tensors(atlas: Atlas) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the whole atlas as named tensors and JSON values, for `atlas_from_tensors`."""
    tensors = {"atlas.hemisphere": torch.from_numpy(np.asarray(atlas.hemisphere, np.int8))}
    if atlas.surface_index is not None:
        tensors["atlas.surface_index"] = torch.from_numpy(np.asarray(atlas.surface_index, np.int64))
    for i, mask in enumerate(atlas.rois.values()):
        tensors[f"atlas.roi.{i}"] = torch.from_numpy(np.asarray(mask, bool))
    for i, values in enumerate(atlas.maps.values()):
        tensors[f"atlas.map.{i}"] = torch.from_numpy(np.asarray(values, np.float32))
    described = {
        "rois": list(atlas.rois),
        "maps": list(atlas.maps),
        "mesh": atlas.mesh,
        "n_vertices": atlas.n_vertices,
        "groups": {k: list(v) for k, v in atlas.groups.items()},
    }
    return tensors, described


def atlas_from_tensors(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Atlas:
    """Return the atlas that `atlas_to_tensors` turned into tensors."""
    index = tensors.get("atlas.surface_index")
    return Atlas(
        hemisphere=tensors["atlas.hemisphere"].numpy(),
        rois={name: tensors[f"atlas.roi.{i}"].numpy() for i, name in enumerate(described["rois"])},
        surface_index=None if index is None else index.numpy(),
        mesh=described["mesh"],
        groups={k: tuple(v) for k, v in described["groups"].items()},
        maps={name: tensors[f"atlas.map.{i}"].numpy() for i, name in enumerate(described["maps"])},
    )

"""Read and write bundles: checkpoints of a training run, and trained models.

A bundle is two files: ``NAME.safetensors`` (tensors) and ``NAME.json`` (a manifest). The manifest
says what the bundle is (``what``), in which layout (``schema``), and holds the SHA-256 of the
tensors and of itself. The tensors are on disk before the manifest gets its name, so that a manifest
never promises tensors that are missing; a bundle without a manifest counts as absent.

Brain encoders, fusion models, aligned models and training checkpoints use this one layout.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bmfl_lab.backbones.weights import load_safetensors
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import BmflError, CheckpointError, message, require
from bmfl_lab.files import parse_json, sha256_bytes, system_errors, write_bytes

SCHEMA = 2
CHECKPOINT = "training checkpoint"
_KIND_TO_WHAT = {"fusion": "fusion model", "aligned": "aligned model"}
_STEP = re.compile(r"step-(\d{8})\.json")
_AGAIN = (
    "copy both files again from where they were saved; if this is a training checkpoint, "
    "delete both, and the training continues from an earlier one or starts afresh"
)


def write_bundle(
    folder: str | Path,
    name: str,
    tensors: Mapping[str, Tensor],
    manifest: Mapping[str, object],
    *,
    what: str = CHECKPOINT,
) -> Path:
    """Write tensors and then their manifest.

    Parameters
    ----------
    folder : str or Path
        Folder of both files; created if missing.
    name : str
        Stem of both files.
    tensors : mapping of str to Tensor
        Tensors of any shape, type and device.
    manifest : mapping
        JSON values (no NaN) to keep beside the tensors.
    what : str, default "training checkpoint"
        Kind of the bundle, such as "brain encoder"; `read_bundle` refuses any other.

    Returns
    -------
    Path
        Path of the manifest.

    Raises
    ------
    CheckpointError
        If the disk is full or the folder cannot be written; earlier files stay as they were.
    """
    folder = Path(folder)
    data = safetensors.torch.save(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    )
    body = {
        **manifest,
        "what": what,
        "schema": SCHEMA,
        "data_file": f"{name}.safetensors",
        "data_bytes": len(data),
        "data_sha256": sha256_bytes(data),
    }
    body.pop("manifest_sha256", None)  # of a manifest that was read from another bundle
    text = _canonical({**body, "manifest_sha256": sha256_bytes(_canonical(body).encode())}).encode()
    files = {folder / f"{name}.safetensors": data, folder / f"{name}.json": text}
    needed = len(data) + len(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for path, content in files.items():
            write_bytes(path, content)
            _sync_folder(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            message(
                f"room for {needed} bytes in {folder}",
                "a full disk" if full else str(error.__cause__ or error),
                "free some space or choose another folder; earlier checkpoints are intact"
                if full
                else "choose a folder that can be written",
            )
        ) from error
    return folder / f"{name}.json"


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bundle(
    folder: str | Path,
    name: str,
    check: Callable[[dict], None] | None = None,
    *,
    what: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a bundle that `write_bundle` wrote and refuse it if a single bit has changed.

    Parameters
    ----------
    folder : str or Path
        Folder of both files.
    name : str
        Stem of both files.
    check : callable, optional
        Called with the manifest before any tensor is read; raises `CheckpointError` if this is not
        the wanted model, e.g. one of another subject.
    what : str, optional
        Required kind of bundle, such as "brain encoder"; any kind by default.

    Returns
    -------
    tensors : dict of str to Tensor
        Tensors on the CPU.
    manifest : dict
        The manifest, see `read_manifest`.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, if the two do not belong together, or if the bundle is
        something else or has another schema.
    """
    folder = Path(folder)
    manifest = read_manifest(folder / f"{name}.json", what=what)
    if check is not None:
        check(manifest)
    path = folder / f"{name}.safetensors"
    require(
        manifest["data_file"] == path.name,
        CheckpointError,
        f"a manifest of {path.name}",
        f"one of {manifest['data_file']!r}",
        "give both files their old names back",
    )
    return read_tensors(path, manifest["data_sha256"]), manifest


@system_errors()
def read_manifest(path: str | Path, *, what: str | None = None) -> dict[str, Any]:
    """Read a manifest and check it against its own hash.

    Parameters
    ----------
    path : str or Path
        The file ``NAME.json``.
    what : str, optional
        Required kind of bundle, such as "brain encoder"; any kind by default.

    Returns
    -------
    dict
        The manifest as written, with ``what``, ``schema``, ``data_file``, ``data_bytes`` and
        ``data_sha256``. Manifests of schema 1, which named trained models by ``kind``, gain
        ``what``.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or describes something else or another schema.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            message(
                f"a checkpoint manifest {path.name}",
                f"nothing readable at {path}",
                f"give the folder that holds {path.name}",
            )
        ) from error
    try:
        found = parse_json(raw.decode())
        body = {k: v for k, v in found.items() if k != "manifest_sha256"}
        # comparing the canonical text checks every byte, including blanks and repeated keys
        whole = _canonical(found).encode() == raw and found["manifest_sha256"] == sha256_bytes(
            _canonical(body).encode()
        )
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        whole = False
    require(
        whole,
        CheckpointError,
        f"the manifest {path.name} as it was written",
        "a changed or damaged file",
        _AGAIN,
    )
    require(
        found.get("schema") in range(1, SCHEMA + 1),
        CheckpointError,
        f"schema 1 to {SCHEMA} in {path.name}",
        repr(found.get("schema")),
        "read it with the version of bmfl_lab that wrote it, or train again",
    )
    if found["schema"] == 1:
        found.setdefault("what", _KIND_TO_WHAT.get(found.get("kind"), CHECKPOINT))
    require(
        what is None or found["what"] == what,
        CheckpointError,
        f"the files of: {what}, in {path.parent}",
        f"files of: {found['what']}",
        "give the folder in which it was saved",
    )
    return found


@system_errors()
def read_tensors(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file after checking its header and, if given, its hash.

    Parameters
    ----------
    path : str or Path
        The file.
    sha256 : str, optional
        SHA-256 of the whole file, 64 hexadecimal digits; default: not checked.

    Returns
    -------
    dict of str to Tensor
        Tensors on the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, its content has another hash, or its header is unsound (see
        `bmfl_lab.backbones.weights.load_safetensors`).
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            message(
                f"the tensors {path.name}",
                f"nothing readable at {path}",
                _AGAIN,
            )
        ) from error
    found = load_safetensors(path, raw)
    if sha256 is not None and sha256_bytes(raw) != sha256:
        raise CheckpointError(
            message(
                f"{path.name} with SHA-256 {sha256[:12]}...",
                f"{sha256_bytes(raw)[:12]}...: a damaged or exchanged file",
                _AGAIN,
            )
        )
    return found


@contextlib.contextmanager
def matching_tensors(folder: str | Path) -> Iterator[None]:
    """Refuse a bundle whose tensors do not fit the model that its manifest describes.

    Parameters
    ----------
    folder : str or Path
        Folder of the bundle, for the message.

    Raises
    ------
    CheckpointError
        If a name or a shape inside the block is wrong.
    """
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except (BmflError, RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise CheckpointError(
            message(
                f"tensors in {folder} that fit the model in its manifest",
                got,
                "copy both files of the bundle again, or train again",
            )
        ) from error


def newest_step(folder: str | Path) -> int | None:
    """Return the highest step with a manifest in the folder, or None; file times are ignored."""
    steps = [
        int(m.group(1)) for p in Path(folder).glob("step-*.json") if (m := _STEP.fullmatch(p.name))
    ]
    return max(steps, default=None)


def step_name(step: int) -> str:
    """Return the stem of the files of a step's checkpoint."""
    return f"step-{step:08d}"


def prune(folder: str | Path, keep: Iterable[int]) -> None:
    """Delete all step checkpoints of a folder except some, manifests first.

    Temporary files that a killed process left behind are deleted, too.

    Parameters
    ----------
    folder : str or Path
        Folder of the checkpoints.
    keep : iterable of int
        Steps whose checkpoints stay.
    """
    names = {step_name(s) for s in keep}
    folder = Path(folder)
    for suffix in (".json", ".safetensors"):
        for path in folder.glob(f"step-*{suffix}"):
            if path.stem not in names:
                path.unlink(missing_ok=True)
    for path in folder.glob(".step-*.tmp"):
        path.unlink(missing_ok=True)


def refuse_changes(
    stored: Mapping[str, object],
    current: Mapping[str, object],
    allow: Iterable[str] = (),
    what: str = "run",
) -> None:
    """Refuse to resume a run if a field of its identity differs from the stored one.

    Parameters
    ----------
    stored, current : mapping of str to JSON value
        Identity in the checkpoint and identity of the run that is to be resumed.
    allow : iterable of str, default ()
        Names that may differ.
    what : str, default "run"
        Name of the run in the error.

    Raises
    ------
    CheckpointError
        If a field differs; the error names every such field with both values.
    """
    changed = [
        k for k in sorted({*stored, *current} - set(allow)) if stored.get(k) != current.get(k)
    ]
    shown = "; ".join(f"{k}: stored {stored.get(k)!r}, now {current.get(k)!r}" for k in changed)
    require(
        not changed,
        CheckpointError,
        f"the {what} that this checkpoint belongs to",
        f"a change in {shown}",
        f"use another folder, start afresh with resume=False, or pass "
        f"allow_change={tuple(changed)!r}",
    )


def atlas_to_tensors(atlas: Atlas) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an atlas as tensors and JSON values, so that a bundle can hold it whole.

    Parameters
    ----------
    atlas : Atlas
        Atlas of V vertices.

    Returns
    -------
    tensors : dict of str to Tensor, each of shape (V,)
        ``atlas.hemisphere`` (int8), ``atlas.roi.0``, ... (bool), ``atlas.map.0``, ... (floating
        point) and, if the atlas has one, ``atlas.surface_index`` (int64).
    described : dict
        Names of the ROIs and maps in the order of the tensors, ``mesh``, ``n_vertices`` and
        ``groups``.

    See Also
    --------
    atlas_from_tensors : the inverse.
    """
    arrays = {"atlas.hemisphere": np.array(atlas.hemisphere, np.int8)}
    if atlas.surface_index is not None:
        arrays["atlas.surface_index"] = np.array(atlas.surface_index, np.int64)
    for i, mask in enumerate(atlas.rois.values()):
        arrays[f"atlas.roi.{i}"] = np.array(mask, bool)
    for i, values in enumerate(atlas.maps.values()):
        arrays[f"atlas.map.{i}"] = np.array(values)
    described = {
        "rois": list(atlas.rois),
        "maps": list(atlas.maps),
        "mesh": atlas.mesh,
        "n_vertices": atlas.n_vertices,
        "groups": {name: list(members) for name, members in atlas.groups.items()},
    }
    return {name: torch.from_numpy(values) for name, values in arrays.items()}, described


def atlas_from_tensors(tensors: Mapping[str, Tensor], described: dict | None = None) -> Atlas:
    """Return the atlas that `atlas_to_tensors` took apart.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Tensors of the bundle; only those with the prefix ``atlas.`` are read.
    described : dict, optional
        JSON values of the atlas. None for fusion models of schema 1, which kept the hemispheres and
        the ROIs (``atlas.roi.NAME``) but no maps, mesh or groups of their own.

    Returns
    -------
    Atlas
        Equal to the atlas that was saved.
    """
    arrays = {
        name.removeprefix("atlas."): values.numpy()
        for name, values in tensors.items()
        if name.startswith("atlas.")
    }
    if described is None:
        rois = {k.removeprefix("roi."): v for k, v in arrays.items() if k.startswith("roi.")}
        return Atlas(arrays["hemisphere"], rois)
    return Atlas(
        hemisphere=arrays["hemisphere"],
        rois={name: arrays[f"roi.{i}"] for i, name in enumerate(described["rois"])},
        surface_index=arrays.get("surface_index"),
        mesh=described["mesh"],
        groups={name: tuple(members) for name, members in described["groups"].items()},
        maps={name: arrays[f"map.{i}"] for i, name in enumerate(described["maps"])},
    )

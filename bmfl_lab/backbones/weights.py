"""Weights of any backbone: search, guarded reading, strict loading, hashing, random weights."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import nn

from bmfl_lab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FetchError,
    message,
    require,
    translated,
)
from bmfl_lab.files import parse_json, read_json, system_errors
from bmfl_lab.runtime import home, refuse_offline, seed_for

State = dict[str, torch.Tensor]

_DAMAGED = "the file is damaged: download or make it again"
MAX_HEADER = 1 << 20
MAX_TENSORS = 10_000
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?$")
"""Form of a repository on the Hugging Face hub, ``owner/name`` or ``owner/name@revision``."""

_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
"""Where torch's message names the object that it refuses."""


def search_folders() -> tuple[Path, Path, Path]:
    """Return the folders that are searched for weights.

    Returns
    -------
    tuple of Path
        ``$BMFL_HOME/weights``, torch's hub cache, the Hugging Face cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torch_home = Path(os.environ.get("TORCH_HOME") or cache / "torch")
    hf_home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    hf_cache = Path(os.environ.get("HF_HUB_CACHE") or hf_home / "hub")
    return home() / "weights", torch_home / "hub" / "checkpoints", hf_cache


def find_snapshot(text: str, *, cached: bool, remedy: str) -> Path:
    """Return the local folder of a repository of the Hugging Face hub.

    Parameters
    ----------
    text : str
        Id, optionally with ``@revision``.
    cached : bool
        Only look into the local cache; otherwise download what is missing.
    remedy : str
        Remedy in the message if the repository is not found.

    Raises
    ------
    FetchError
        If the repository is not in the cache, or cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    if not cached:
        refuse_offline(f"the hub repository {text}", remedy)
    repository, _, revision = text.partition("@")
    patterns = ["*config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                cache_dir=search_folders()[2],
                local_files_only=cached,
                endpoint=os.environ.get("HF_ENDPOINT"),
                allow_patterns=patterns,
            )
        )
    except Exception as error:
        # the client raises its own errors, those of the HTTP library and those of the system
        raise FetchError(
            message(
                f"the hub repository {repository}",
                f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}",
                remedy,
            )
        ) from error


def random_seed(weights: str | Path | None) -> int | None:
    """Return the seed of ``"random"`` (0) or ``"random:SEED"``, None for any other weights.

    Raises
    ------
    ConfigError
        If the seed is not a whole number.
    """
    kind, _, seed = str(weights).partition(":")
    if kind != "random":
        return None
    require(
        (seed or "0").isdecimal(),
        ConfigError,
        "weights 'random' or 'random:SEED'",
        repr(weights),
        "give a whole number as seed",
    )
    return int(seed or 0)


class _Sizes(Protocol):
    """Sizes of a network whose weights are drawn at random."""

    name: str
    width: int

    def shapes(self) -> Mapping[str, torch.Size]:
        """Return the shape of each tensor by its name in the state dict."""


def random_state(architecture: _Sizes, seed: int) -> State:
    """Return untrained weights; each depends on the seed and on its parameter's name only.

    Parameters
    ----------
    architecture : Architecture
        Sizes of a vision transformer.
    seed : int
        Seed of the draw.

    Returns
    -------
    dict of str to Tensor
        float32 values in the shapes of the architecture.

    Notes
    -----
    Linear layers and positions are drawn, as in the original code, from a truncated normal
    distribution with standard deviation 0.02, and the patch projection from a uniform distribution
    with bound ``fan_in ** -0.5``. Models narrower than 384 use the standard deviation
    ``fan_in ** -0.5`` for linear layers, because 0.02 would leave so narrow a network almost
    linear; this is our own choice.
    """
    state: State = {}
    for name, shape in architecture.shapes().items():
        generator = torch.Generator().manual_seed(
            seed_for(seed, "backbone", architecture.name, name)
        )
        value = torch.empty(shape)
        fan_in = math.prod(shape[1:])
        if name.startswith("patch_embed"):
            value.uniform_(-((3 * 14 * 14) ** -0.5), (3 * 14 * 14) ** -0.5, generator=generator)
        elif name in ("cls_token", "register_tokens"):
            value.normal_(0, 1e-6 if architecture.width >= 384 else 0.5, generator=generator)
        elif name == "pos_embed" or len(shape) == 2:
            std = fan_in**-0.5 if architecture.width < 384 and len(shape) == 2 else 0.02
            nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=generator)
        else:
            value.fill_(0.0 if name.endswith("bias") else 1.0)
        state[name] = value
    return state


_ITEM_BITS = (
    dict.fromkeys(("F64", "I64", "U64"), 64)
    | dict.fromkeys(("F32", "I32", "U32"), 32)
    | dict.fromkeys(("F16", "BF16", "I16", "U16"), 16)
    | dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 8)
)
"""Bits per element of each number type of the safetensors format."""


@system_errors()
def load_safetensors(path: str | Path, content: bytes | None = None) -> State:
    """Read a safetensors file after checking its header with `check_safetensors`.

    Parameters
    ----------
    path : str or Path
        The file.
    content : bytes, optional
        Content of the file if it is in memory; `path` is then its name in messages.

    Returns
    -------
    dict of str to Tensor
        Tensors on the CPU.

    Raises
    ------
    CheckpointError
        If the header is unsound or the tensors cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    check_safetensors(path, content)
    try:
        return load_file(path) if content is None else load(content)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise _damaged(Path(path), "readable tensors", got) from error


def check_safetensors(
    path: str | Path, content: bytes | None = None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check the header of a safetensors file before any tensor is read.

    Parameters
    ----------
    path : str or Path
        The file.
    content : bytes, optional
        Content of the file if it is in memory; `path` is then its name in messages.

    Returns
    -------
    dict of str to (str, tuple of int)
        Name of a tensor to its number type and shape.

    Raises
    ------
    CheckpointError
        If the header is larger than 1 MB, is not JSON, repeats a name or holds more than 10,000
        tensors; or if its offsets overlap, leave holes, or disagree with the shapes or with the
        length of the file.
    """
    path = Path(path)
    size = path.stat().st_size if content is None else len(content)
    with open(path, "rb") if content is None else io.BytesIO(content) as stream:
        entries, stored = _read_header(stream, size, path)
    position = 0
    for name, (dtype, shape, start, stop) in sorted(
        entries.items(), key=lambda e: (e[1][2], e[1][3])
    ):
        needed = _ITEM_BITS.get(dtype, 0) * math.prod(shape) // 8
        if (
            start != position
            or stop - start != needed
            or dtype not in _ITEM_BITS
            or min(shape, default=1) < 0
        ):
            raise _damaged(
                path,
                f"{needed} bytes at {position} for {name!r} {dtype} {shape}",
                f"offsets {start} to {stop}",
            )
        position = stop
    require(
        position == stored,
        CheckpointError,
        f"{position} bytes of tensors in {path}",
        stored,
        _DAMAGED,
    )
    return {name: (entry[0], entry[1]) for name, entry in entries.items()}


def _read_header(
    stream: BinaryIO, size: int, path: Path
) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], int]:
    """Return number type, shape, start and stop of each tensor, and the number of bytes stored."""
    prefix = stream.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    require(
        2 <= length <= min(MAX_HEADER, size - 8),
        CheckpointError,
        f"a header of 2 to {MAX_HEADER} bytes in {path}",
        f"{length} in a file of {size} bytes",
        _DAMAGED,
    )
    raw = stream.read(length)
    try:
        header = parse_json(raw.decode("utf-8"))
        header.pop("__metadata__", None)
        entries = {}
        for name, entry in header.items():
            start, stop = map(int, entry["data_offsets"])
            entries[str(name)] = (str(entry["dtype"]), tuple(map(int, entry["shape"])), start, stop)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise _damaged(path, "a valid safetensors header", str(error)) from error
    require(
        len(entries) <= MAX_TENSORS,
        CheckpointError,
        f"at most {MAX_TENSORS} tensors in {path}",
        len(entries),
        _DAMAGED,
    )
    return entries, size - 8 - length


def _damaged(path: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(message(f"{expected} in {path}", got, _DAMAGED))


def _check_zip(path: Path) -> None:
    """Check the checksums inside a torch file, which torch itself does not verify.

    Raises
    ------
    CheckpointError
        If a part of the file differs from its checksum. Files of torch before 1.6 carry none.
    """
    # zipfile and zlib raise many kinds on damaged files
    with translated(
        Exception,
        expected=f"a whole torch file in {path}",
        remedy=_DAMAGED,
        error=CheckpointError,
    ):
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as opened:
            part = opened.testzip()
    require(
        part is None,
        CheckpointError,
        f"every part with its own checksum in {path}",
        f"another {part!r}",
        _DAMAGED,
    )


@system_errors()
def read_tensors(path: str | Path, nested: str = "") -> State:
    """Read a file of tensors without running any code in it.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file, or a torch file that holds a plain mapping of names to tensors.
    nested : str, optional
        Key of a torch file under which the mapping may lie, beside other plain values.

    Returns
    -------
    dict of str to Tensor
        Name to weights.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    require(
        path.is_file(),
        CheckpointError,
        f"a weight file {path.name}",
        f"nothing at {path}",
        "check the path",
    )
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    open(path, "rb").close()  # torch calls a file damaged that the system refuses
    _check_zip(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _OBJECT.search(str(error))
        raise CheckpointError(
            message(
                f"only tensors in {path}",
                f"the Python object {named[1]}" if named else "other objects, or damage",
                "on a machine where the file is trusted, save its state dict again as safetensors",
            )
        ) from error
    except Exception as error:  # torch raises many kinds on damaged files
        raise _damaged(
            path, "a readable torch file", str(error).splitlines()[0][:200] if str(error) else ""
        ) from error
    if isinstance(found, Mapping):
        found = found.get(nested, found)
    if not isinstance(found, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in found.values()
    ):
        inside = list(found)[:4] if isinstance(found, Mapping) else type(found).__name__
        raise CheckpointError(
            message(
                f"a mapping of names to tensors in {path}",
                str(inside),
                "save the backbone's state dict by itself",
            )
        )
    return dict(found)


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, shapes and float32 values.

    It depends neither on the order of the tensors nor on the format of their file.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def refuse_not_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Check that no weight is NaN or infinite.

    Raises
    ------
    CheckpointError
        If one is.
    """
    bad = [k for k, v in state.items() if not torch.isfinite(v).all()]
    require(
        not bad,
        CheckpointError,
        f"finite weights in {source}",
        f"NaN or infinity in {', '.join(bad[:4])}",
        "get the file again",
    )


def load_strictly(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, name: str, source: str, remedy: str
) -> None:
    """Load `state` into `module` if its names and shapes are exactly those of the module.

    Parameters
    ----------
    module : nn.Module
        Module that is filled; it may lie on the meta device.
    state : mapping of str to Tensor
        Weights; floating-point ones are converted to float32.
    name, source, remedy : str
        Public name of the model, origin of the weights and advice, for the error message.

    Raises
    ------
    CheckpointError
        If keys are missing, unknown or mis-shaped, or a weight is not finite.
    """
    ours = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    theirs = {k: tuple(v.shape) for k, v in state.items()}
    problems = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "extra": sorted(theirs.keys() - ours.keys()),
        "mis-shaped": sorted(
            f"{k} {theirs[k]} for {ours[k]}"
            for k in ours.keys() & theirs.keys()
            if theirs[k] != ours[k]
        ),
    }
    require(
        not any(problems.values()),
        CheckpointError,
        f"exactly the {len(ours)} tensors of {name} in {source}",
        "; ".join(
            f"{len(v)} {k}: {', '.join(v[:8])}{', ...' if len(v) > 8 else ''}"
            for k, v in problems.items()
            if v
        ),
        remedy,
    )
    plain = {k: state[k].detach().clone().contiguous() for k in ours}
    plain = {k: v.float() if v.is_floating_point() else v for k, v in plain.items()}
    refuse_not_finite(plain, source)
    module.load_state_dict(plain, strict=True, assign=True)
    module.requires_grad_(False)


def read_shards(folder: Path) -> State:
    """Read the tensors of a folder made by ``save_pretrained``, in one file or in several.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or lies outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        shards = read_mapping(index).get("weight_map")
        require(
            isinstance(shards, Mapping) and all(isinstance(v, str) for v in shards.values()),
            CheckpointError,
            f"a weight_map of file names in {index}",
            repr(shards)[:80],
            "download the folder again",
        )
        names = sorted(set(shards.values()))
    state: State = {}
    for name in names:
        require(
            Path(name).name == name and (folder / name).is_file(),
            CheckpointError,
            f"the file {name} in {folder}",
            "nothing there",
            "save the model as safetensors; pickled weights are not read",
        )
        state |= read_tensors(folder / name)
    return state


def read_mapping(path: Path) -> Mapping[str, object]:
    """Read a JSON file of names and values.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds something else.
    """
    remedy = "download the folder again"
    try:
        found = read_json(path, remedy=remedy)
    except DataError as error:
        raise CheckpointError(
            message(f"a readable {path.name} in {path.parent}", str(error), remedy)
        ) from error
    require(
        isinstance(found, Mapping),
        CheckpointError,
        f"names and values in {path}",
        f"a {type(found).__name__}",
        remedy,
    )
    return found

"""Weight files: search, guarded reading, key names, strict loading, hashing, random weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from bmfl_lab.backbones.vit import Architecture, ViT
from bmfl_lab.errors import CheckpointError, ConfigError, DataError, FetchError, message
from bmfl_lab.files import read_json
from bmfl_lab.runtime import home, seed_for

State = dict[str, torch.Tensor]

MAX_HEADER = 1 << 20
MAX_TENSORS = 10_000
UNUSED = ("mask_token",)
"""Keys of the original checkpoints that inference never reads."""

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?$")
"""Form of a repository on the Hugging Face hub, ``owner/name`` or ``owner/name@revision``."""


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
        What the user can do if the repository is not found.

    Raises
    ------
    FetchError
        If the repository is not in the cache, or cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = text.partition("@")
    patterns = ["*config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                cache_dir=search_folders()[2],
                local_files_only=cached,
                allow_patterns=patterns,
            )
        )
    except Exception as error:
        # the client raises its own errors, those of the HTTP library and those of the system
        got = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        raise FetchError(message(f"the hub repository {repository}", got, remedy)) from error


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
    if not (seed or "0").isdecimal():
        expected = "weights 'random' or 'random:SEED'"
        raise ConfigError(message(expected, repr(weights), "give a whole number as seed"))
    return int(seed or 0)


_ITEM_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
}
_ITEM_BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}


def check_safetensors(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check the header of a safetensors file before any tensor is read.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    dict
        Tensor name to (dtype, shape).

    Raises
    ------
    CheckpointError
        If the header is larger than 1 MB, not JSON, repeats a name, holds more than 10,000 tensors,
        or its offsets overlap, leave holes, disagree with the shapes or with the length of the
        file.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise _damaged(
                path, f"a header of 2 to {MAX_HEADER} bytes", f"{length} in a file of {size} bytes"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_repeats)
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
    if len(entries) > MAX_TENSORS:
        raise _damaged(path, f"at most {MAX_TENSORS} tensors", str(len(entries)))
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
    if position != size - 8 - length:
        raise _damaged(path, f"{position} bytes of tensors", f"{size - 8 - length}")
    return {name: (entry[0], entry[1]) for name, entry in entries.items()}


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _damaged(path: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        message(f"{expected} in {path}", got, "the file is damaged: download or make it again")
    )


def refuse_flipped(path: str | Path) -> None:
    """Check the checksums inside a torch file, which torch itself does not look at.

    Raises
    ------
    CheckpointError
        If a part of the file differs from its checksum. Files of torch before 1.6 carry none.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as opened:
            part = opened.testzip()
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        zlib.error,
    ) as error:
        raise _damaged(path, "a whole torch file", f"{type(error).__name__}: {error}") from error
    if part is not None:
        raise _damaged(path, "every part as its checksum says", f"another {part!r}")


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

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            message(f"a weight file {path.name}", f"nothing at {path}", "check the path")
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        check_safetensors(path)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, "readable tensors", str(error)) from error
    refuse_flipped(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            message(
                f"only tensors in {path}",
                f"Python objects or damage ({str(error).splitlines()[0][:200]})",
                "on a machine that trusts the file, save its state dict again as safetensors and load that",
            )
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise _damaged(
            path, "a readable torch file", str(error).splitlines()[0][:200] if str(error) else ""
        ) from error
    if isinstance(found, Mapping):
        found = found.get(nested, found)
    if not isinstance(found, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in found.values()
    ):
        inside = list(found)[:4] if isinstance(found, Mapping) else type(found).__name__
        expected = f"a mapping of names to tensors in {path}"
        remedy = "save the backbone's state dict by itself"
        raise CheckpointError(message(expected, str(inside), remedy))
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
    if bad:
        got = f"NaN or infinity in {', '.join(bad[:4])}"
        raise CheckpointError(message(f"finite weights in {source}", got, "get the file again"))


def load_strictly(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, name: str, source: str, remedy: str
) -> None:
    """Load `state` into `module` if its names and shapes are exactly those of the module.

    Parameters
    ----------
    module : nn.Module
        May lie on the meta device.
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
    theirs = {k: tuple(v.shape) for k, v in state.items() if k not in UNUSED}
    problems = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "extra": sorted(theirs.keys() - ours.keys()),
        "mis-shaped": sorted(
            f"{k} {theirs[k]} for {ours[k]}"
            for k in ours.keys() & theirs.keys()
            if theirs[k] != ours[k]
        ),
    }
    if any(problems.values()):
        got = "; ".join(
            f"{len(v)} {k}: {', '.join(v[:8])}{', ...' if len(v) > 8 else ''}"
            for k, v in problems.items()
            if v
        )
        expected = f"exactly the {len(ours)} tensors of {name} in {source}"
        raise CheckpointError(message(expected, got, remedy))
    plain = {k: state[k].detach().clone().contiguous() for k in ours}
    plain = {k: v.float() if v.is_floating_point() else v for k, v in plain.items()}
    refuse_not_finite(plain, source)
    module.load_state_dict(plain, strict=True, assign=True)
    module.requires_grad_(False)


def looks_like(state: Mapping[str, torch.Tensor], name: str) -> str:
    """Return advice on which DINOv2 architecture these weights belong to."""
    if "cls_token" not in state:
        return "give a DINOv2 backbone's state dict in the original or the Hugging Face key names"
    width = state["cls_token"].shape[-1]
    blocks = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    return (
        f"the file has width {width}, {blocks} blocks and {registers} registers: load it under "
        f"that name, not {name}"
    )


def random_state(architecture: Architecture, seed: int) -> State:
    """Return untrained weights, a pure function of the seed and of each parameter's name.

    Notes
    -----
    Truncated normal of standard deviation 0.02 for linear layers and positions, as in the original
    code; uniform with bound ``fan_in ** -0.5`` for the patch projection. Models narrower than 384
    use ``fan_in ** -0.5`` for linear layers, because 0.02 would leave so narrow a network almost
    linear (our choice).
    """
    with torch.device("meta"):
        template = ViT(architecture)
    state: State = {}
    for name, parameter in template.state_dict().items():
        generator = torch.Generator().manual_seed(
            seed_for(seed, "backbone", architecture.name, name)
        )
        value = torch.empty(parameter.shape)
        fan_in = math.prod(parameter.shape[1:])
        if name.startswith("patch_embed"):
            value.uniform_(-((3 * 14 * 14) ** -0.5), (3 * 14 * 14) ** -0.5, generator=generator)
        elif name in ("cls_token", "register_tokens"):
            value.normal_(0, 1e-6 if architecture.width >= 384 else 0.5, generator=generator)
        elif name == "pos_embed" or parameter.ndim == 2:
            std = fan_in**-0.5 if architecture.width < 384 and parameter.ndim == 2 else 0.02
            torch.nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=generator)
        else:
            value.fill_(0.0 if name.endswith("bias") else 1.0)
        state[name] = value
    return state


_HF_NAMES = [
    (r"^(dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.(attention\.)?(query|key|value)\.", r".attn.\2."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attn\.(query|key|value)\.", lambda m: f".attn.{m.group(1)[0]}."),
    (r"\.layer_scale(1|2)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.w3."),
]


def from_huggingface(state: Mapping[str, torch.Tensor]) -> State:
    """Translate the key names of ``Dinov2Model`` and ``Dinov2WithRegistersModel`` to the original ones.

    Separate query, key and value (and gate and up) projections are stacked. Heads on top of the
    backbone (``classifier.*``) are left out; every other unknown key stays, so that strict loading
    names it.
    """
    renamed: State = {}
    for key, tensor in state.items():
        if key.startswith("classifier."):
            continue
        for pattern, new in _HF_NAMES:
            key = re.sub(pattern, new, key)
        renamed[key] = tensor
    for stack, into in (
        (("attn.q", "attn.k", "attn.v"), "attn.qkv"),
        (("mlp.gate_proj", "mlp.up_proj"), "mlp.w12"),
    ):
        for key in [k for k in renamed if f".{stack[0]}." in k]:
            parts = [key.replace(f".{stack[0]}.", f".{name}.") for name in stack]
            if all(p in renamed for p in parts):
                renamed[key.replace(f".{stack[0]}.", f".{into}.")] = torch.cat(
                    [renamed.pop(p) for p in parts]
                )
    return renamed


def read_huggingface_folder(folder: str | Path, architecture: Architecture) -> State:
    """Read a folder made by ``save_pretrained`` and return its tensors in the original key names.

    Parameters
    ----------
    folder : str or Path
        With ``config.json`` and ``model.safetensors`` or a sharded index.
    architecture : Architecture
        What the configuration must describe.

    Raises
    ------
    CheckpointError
        If the configuration describes another architecture (checked before tensors are read), or a
        file is missing or damaged.
    """
    folder = Path(folder)
    config = read_mapping(folder / "config.json")
    expected = {
        "model_type": "dinov2_with_registers" if architecture.n_registers else "dinov2",
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.n_blocks,
        "num_attention_heads": architecture.n_heads,
        "patch_size": architecture.patch_size,
    }
    differing = [
        f"{k} {config.get(k)!r} for {v!r}" for k, v in expected.items() if config.get(k) != v
    ]
    if differing:
        raise CheckpointError(
            message(
                f"the configuration of {architecture.name} in {folder}",
                "; ".join(differing),
                "choose its own name",
            )
        )
    return from_huggingface(read_shards(folder))


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
        if not isinstance(shards, Mapping) or not all(isinstance(v, str) for v in shards.values()):
            expected = f"a weight_map of file names in {index}"
            raise CheckpointError(message(expected, repr(shards)[:80], "download the folder again"))
        names = sorted(set(shards.values()))
    state: State = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            remedy = "save the model as safetensors; pickled weights are not read"
            raise CheckpointError(message(f"the file {name} in {folder}", "nothing there", remedy))
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
        found = read_json(path)
    except DataError as error:
        expected = f"a readable {path.name} in {path.parent}"
        raise CheckpointError(message(expected, str(error), remedy)) from error
    if not isinstance(found, Mapping):
        got = f"a {type(found).__name__}"
        raise CheckpointError(message(f"names and values in {path}", got, remedy))
    return found

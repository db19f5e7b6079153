"""Loading a backbone by name."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from pathlib import Path

import torch

from bmfl_lab import backbones
from bmfl_lab.backbones.protocol import BACKBONES, Backbone
from bmfl_lab.errors import ConfigError, require
from bmfl_lab.runtime import bf16_pays, note_backbone, pick_device

DTYPES = ("float32", "bfloat16", "auto")

# Each file of this package enters its backbones into the registry when it is imported, so that a
# new backbone is one new file.
for _file in pkgutil.iter_modules(backbones.__path__):
    importlib.import_module(f"bmfl_lab.backbones.{_file.name}")


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    *,
    image_size: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    resize: str = "short",
) -> Backbone:
    """Load a frozen backbone.

    Parameters
    ----------
    name : str
        One of ``BACKBONES.names()``: ``dinov2_vit{s,b,l,g}14``, the same with ``_reg`` (four
        registers); ``vit_tiny14`` or ``vit_tiny14_reg`` (width 48, 3 blocks, untrained);
        ``cornet_s``; ``hub`` (a vision model of transformers). The weights may follow after a
        colon: ``"hub:facebook/dinov2-small"``.
    weights : str or Path, optional
        For DINOv2: an original checkpoint (``.pth`` or ``.safetensors``), a Hugging Face folder, a
        hub id (``"facebook/dinov2-small"``, optionally ``@revision``), ``"random"`` or
        ``"random:SEED"``. For CORnet-S: a checkpoint, ``"random"`` or ``"random:SEED"``. For
        ``hub``: a Hugging Face folder, or the id of a repository that is in the local cache. None
        searches ``$BMFL_HOME/weights``, torch's hub cache and the Hugging Face cache;
        ``dinov2_vits14_reg`` then falls back on a labelled stand-in. ``"auto"`` for DINOv2 searches
        the same places, then downloads the original weights once from the Hugging Face hub, and
        takes the stand-in where that fails or ``BMFL_OFFLINE=1`` forbids it. ``"stand-in"`` is the
        stand-in itself. Nothing else is downloaded, except the hub id that is given for a DINOv2
        backbone.
    image_size : int, optional
        Side in pixels of the images that ``backbone.preprocess`` makes; a multiple of the patch
        size. Default 224; for ``hub`` the size in the folder's own configuration.
    dtype : {"float32", "bfloat16", "auto"}, default "float32"
        Number type of weights and computation. "auto" is bfloat16 on devices that compute it
        faster, otherwise float32. Tokens are float32 in each case.
    device : {"cpu", "cuda", "auto"}, default "cpu"
        Device of the weights.
    resize : {"short", "direct"}, default "short"
        Resize rule, see `Preprocess`.

    Returns
    -------
    Backbone
        In evaluation mode; no parameter requires a gradient.

    Raises
    ------
    ConfigError
        If a choice is not valid, or a package is missing.
    CheckpointError
        If weights are missing, damaged, unsafe to read or belong to another architecture.
    FetchError
        If the stand-in or a hub id cannot be fetched.

    Notes
    -----
    DINOv2 files in the original key names follow the original code for positions: offset 0.1
    without antialiasing for models without registers, no offset with antialiasing for models with
    registers. Hugging Face folders follow the Hugging Face code, which never adds an offset. All
    conventions agree at the native 518 pixels.

    References
    ----------
    Oquab et al. (2024). DINOv2: learning robust visual features without supervision. TMLR,
    arXiv:2304.07193. Darcet et al. (2024). Vision transformers need registers. ICLR,
    arXiv:2309.16588. Kubilius et al. (2019). Brain-like object recognition with high-performing
    shallow recurrent ANNs. NeurIPS, arXiv:1909.06161.
    """
    family, colon, source = name.partition(":")
    require(
        not colon or weights is None,
        ConfigError,
        "the weights once",
        f"{name!r} and weights={str(weights)!r}",
        "give them in one place",
    )
    require(
        dtype in DTYPES, ConfigError, f"a dtype among {DTYPES}", repr(dtype), "choose one of them"
    )
    loader, device = BACKBONES[family], pick_device(device)
    backbone = loader(
        family,
        source if colon else weights,
        image_size=None if image_size is None else int(image_size),
        dtype=_number_type(dtype, device),
        device=device,
        resize=resize,
    )
    note_backbone(backbone.name, backbone.weights_label, backbone.weights_hash)
    return backbone


def _number_type(dtype: str, device: str) -> torch.dtype:
    pays = bf16_pays(device)
    if dtype == "bfloat16" and not pays:
        warnings.warn(
            f"bfloat16 is emulated on this {device} and slower than float32; dtype='auto' falls "
            "back to float32",
            stacklevel=3,
        )
    return torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and pays) else torch.float32

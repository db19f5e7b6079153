"""Vision models of transformers as backbones, from a local folder or the local hub cache.

Shape suffixes: B batch, T tokens (class token, registers, patches), D width.

References
----------
Oquab et al. (2024). DINOv2. TMLR, arXiv:2304.07193. Siméoni et al. (2025). DINOv3,
arXiv:2508.10104. Zhai et al. (2023). Sigmoid loss for language image pre-training (SigLIP). ICCV,
arXiv:2303.15343. Radford et al. (2021). Learning transferable visual models from natural language
supervision (CLIP). ICML, arXiv:2103.00020. Dosovitskiy et al. (2021). An image is worth 16x16 words
(ViT). ICLR, arXiv:2010.11929. He et al. (2016). Deep residual learning for image recognition
(ResNet). CVPR, arXiv:1512.03385.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bmfl_lab.backbones.protocol import (
    BACKBONES,
    Backbone,
    BackboneTokens,
    Preprocess,
    map_tokens,
    wrap,
)
from bmfl_lab.backbones.weights import HUB_ID, find_snapshot, read_mapping, read_shards
from bmfl_lab.errors import CheckpointError, ConfigError, message, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@BACKBONES.register("hub")
def load_hub(
    name: str,
    weights: str | Path | None = None,
    *,
    image_size: int | None,
    dtype: torch.dtype,
    device: str,
    resize: str,
) -> Backbone:
    """Load a vision model of transformers; parameters as in `bmfl_lab.backbones.load_backbone`.

    Nothing is downloaded, and no code and no pickled weights of the folder are read. The last block
    returns the last hidden state of transformers, the others the hidden state after the block.
    `resize` decides how images are resized, whatever the folder says; mean, standard deviation and
    the default size are the folder's own.

    Raises
    ------
    ConfigError
        If no folder is named, the package transformers is missing, or the folder does not hold a
        vision model that returns a class token, registers and a square grid of patches.
    CheckpointError
        If a file is missing, damaged or unsafe to read.
    FetchError
        If a hub id is not in the local cache.
    """
    require(
        weights,
        ConfigError,
        "a folder or hub id after 'hub:'",
        "none",
        "write for example load_backbone('hub:facebook/dinov2-small')",
    )
    folder, source, label = _find(str(weights))
    model = _read_model(folder)
    own_size, mean, std = _read_processor(folder, getattr(model.config, "image_size", 224))
    size = own_size if image_size is None else image_size
    patch_size = getattr(model.config, "patch_size", 1)
    backbone = wrap(
        _Tower(model),
        preprocess=Preprocess(size, resize, patch_size, mean, std),
        tokens=functools.partial(_split, getattr(model.config, "num_register_tokens", 0)),
        name=f"{name}:{source}",
    )
    backbone.weights_label = label
    return backbone.to(device=device, dtype=dtype)


def _find(text: str) -> tuple[Path, str, str]:
    """Return the folder, its name in records and the label of its weights."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder, folder.name, f"Hugging Face folder {folder.name}"
    require(
        HUB_ID.match(text),
        CheckpointError,
        "a folder or hub id",
        f"nothing at {folder}",
        "give a folder made by save_pretrained, or a hub id such as facebook/dinov2-small",
    )
    repository, _, revision = text.partition("@")
    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    remedy = f"fetch it once with `{command}`, or give a local folder"
    return find_snapshot(text, cached=True, remedy=remedy), text, f"Hugging Face hub {text}"


def _read_model(folder: Path) -> PreTrainedModel:
    """Return the vision model of a folder, with weights that our own guarded reader has read."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            message(
                "the package transformers for a hub model",
                "none",
                "install it with pip install 'bmfl-lab[hub]'",
            )
        ) from error
    described, state = read_mapping(folder / "config.json"), read_shards(folder)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        # the auto classes would also look for code in the folder
        config = transformers.CONFIG_MAPPING[described["model_type"]].from_dict(dict(described))
        config = getattr(config, "vision_config", config)
        kind = transformers.MODEL_MAPPING[type(config)]
        model, report = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            message(
                f"a model in {folder}",
                f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}",
                "give the folder of a vision model that transformers knows, or use wrap",
            )
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    require(
        model.main_input_name == "pixel_values",
        ConfigError,
        f"a vision model in {folder}",
        kind.__name__,
        "choose a model whose input is images",
    )
    # no token depends on the pooling layer, which checkpoints with a classifier leave out
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    require(
        not missing,
        CheckpointError,
        f"all weights of {kind.__name__} in {folder}",
        f"{len(missing)} missing: {', '.join(missing[:8])}",
        "get the folder again",
    )
    for key in report["missing_keys"]:
        nn.init.zeros_(model.get_parameter(key))
    return model


def _read_processor(folder: Path, size: int) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return image size (pixels), mean and standard deviation of a folder's image processor.

    `size` is the image size if the processor has none.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"
    found = read_mapping(path)
    found = found.get("image_processor", found)
    crop = found.get("crop_size") if found.get("do_center_crop", True) else None
    sides = crop or found.get("size") or size
    if isinstance(sides, Mapping):
        sides = sides.get("height") or sides.get("shortest_edge")
    mean, std = found.get("image_mean"), found.get("image_std")
    if found.get("do_normalize") is False:
        mean, std = [0, 0, 0], [1, 1, 1]
    try:
        size, mean, std = int(sides), tuple(map(float, mean)), tuple(map(float, std))
        if size < 1 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("sizes and standard deviations must be positive")
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            message(
                f"three colours in {path}",
                f"size {sides!r}, mean {mean!r}, std {std!r}"[:200],
                "save the model's own image processor into the folder",
            )
        ) from error
    return size, mean, std


class _Tower(nn.Module):
    """A vision model of transformers: images (B, 3, H, H) to the hidden states of its blocks."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        # models with learned positions need a flag when the image has another size
        self._options = {k: True for k in ("interpolate_pos_encoding",) if k in accepted}

    def forward(self, images: Tensor) -> list[Tensor]:
        require(
            images.shape[2] == images.shape[3],
            ConfigError,
            "square images",
            f"{images.shape[2]} x {images.shape[3]}",
            "use backbone.preprocess",
        )
        output = self.model(images, output_hidden_states=True, **self._options)
        inner = list(output.hidden_states or ())[1:-1]
        return [*inner, output.last_hidden_state]


def _split(n_registers: int, states: list[Tensor]) -> list[BackboneTokens]:
    """Split hidden states (B, T, D) into class token, registers and a square grid of patches."""
    found = []
    for state in states:
        if state.ndim == 4:
            found.append(map_tokens(state))
            continue
        side = math.isqrt(max(state.shape[1] - n_registers, 0))
        n_cls = state.shape[1] - n_registers - side**2
        require(
            n_cls in (0, 1),
            ConfigError,
            "a class token and a square grid of patches",
            f"{state.shape[1]} tokens, {n_registers} of them registers",
            "use wrap with a function that splits them",
        )
        cls = state[:, 0] if n_cls else None
        first = n_cls + n_registers
        found.append(BackboneTokens(cls, state[:, n_cls:first], state[:, first:], (side, side)))
    return found

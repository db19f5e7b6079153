"""An aligned network: its choices, its outputs and its files."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bmfl_lab import config as configs
from bmfl_lab.backbones.cornet import CORnetS
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.models.alignment import AlignmentHead, TokenNetwork
from bmfl_lab.runtime import progress
from bmfl_lab.training import checkpoint
from bmfl_lab.training.loop import LoopConfig
from bmfl_lab.training.response_features import ResponseFeatures

WHAT = "aligned model"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AlignConfig:
    """Choices of an alignment run.

    Parameters
    ----------
    backbone : str
        "cornet_s", or a name that `bmfl_lab.backbones.load_backbone` knows.
    weights : str or None
        Checkpoint of the original network; None trains CORnet-S on the study's labelled images
        first.
    width : int
        Channels of CORnet-S's V1; 64 is the published network.
    blocks : tuple of int
        Blocks to read of a token backbone; CORnet-S is read at V1, V2, V4 and IT.
    image_size : int
        Side of the input in pixels.
    pool : int or None
        Side to which maps are averaged before the head; None reads every value.
    n_components : int
        Response features (principal components).
    rois : tuple of str
        ROIs or groups whose vertices are used; "all" for every vertex.
    beta : float
        Weight of alignment.
    contrast : "matrix", "detached" or "none"
        See `bmfl_lab.losses.alignment_loss`.
    targets : "original", "soft" or "labels"
        What classification is held to: argmax or softmax of the frozen original, or the stimuli's
        labels.
    control : "none", "no_fmri", "shuffled" or "noise"
        "no_fmri" sets beta to 0; "shuffled" pairs images with responses to other images of the same
        split; "noise" replaces features by Gaussian ones.
    selection : "val_loss" or "last"
        Which epoch is kept. Test images never take part.
    pretrain, loop : LoopConfig
        Training of the original (when there are no weights) and of the alignment.
    seed : int
        Of initial weights and controls.
    """

    backbone: str = "cornet_s"
    weights: str | None = None
    width: int = 64
    blocks: tuple[int, ...] = (2, 5, 8, 11)
    image_size: int = 224
    pool: int | None = None
    n_components: int = 1024
    rois: tuple[str, ...] = ("all",)
    beta: float = 100.0
    contrast: Literal["matrix", "detached", "none"] = "matrix"
    targets: Literal["original", "soft", "labels"] = "original"
    control: Literal["none", "no_fmri", "shuffled", "noise"] = "none"
    selection: Literal["val_loss", "last"] = "val_loss"
    pretrain: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=10, batch_size=16))
    loop: LoopConfig = field(default_factory=lambda: _published_loop())
    seed: int = 0


def _published_loop() -> LoopConfig:
    return LoopConfig(
        epochs=30,
        batch_size=16,
        lr=2e-5,
        weight_decay=0.0,
        warmup=0.0,
        clip_norm=0.0,
        optimiser="adam",
        schedule="constant",
    )


def published(weights: str | None = None, **changes: Any) -> AlignConfig:
    """Return the released choices: CORnet-S at 224 px, 1,024 components, beta 100, Adam 2e-5, batch 16, 30 epochs.

    Selection stays on a validation split (the released notebook selects on test images), and the
    contrast has its gradient; ``contrast="detached"`` trains as the released code does.

    References
    ----------
    Lu & Wang 2025, Cognitive Neurodynamics 19:61 (arXiv:2407.10414).
    """
    return configs.replace(AlignConfig(weights=weights), **changes)


def tiny(**changes: Any) -> AlignConfig:
    """Return choices for tests and the planted study: CORnet-S of width 4 at 56 px, seconds on a laptop."""
    base = AlignConfig(
        width=4,
        image_size=56,
        n_components=32,
        beta=10.0,
        pretrain=LoopConfig(epochs=10, batch_size=16, lr=3e-3),
        loop=LoopConfig(epochs=6, batch_size=32, lr=3e-3, weight_decay=0.0, optimiser="adam"),
    )
    return configs.replace(base, **changes)


def small(**changes: Any) -> AlignConfig:
    """Return choices for the demo on a laptop: CORnet-S of width 8 at 48 px, minutes."""
    base = AlignConfig(
        width=8,
        image_size=48,
        n_components=128,
        beta=10.0,
        pretrain=LoopConfig(epochs=10, batch_size=64, lr=2e-3),
        loop=LoopConfig(epochs=3, batch_size=32, lr=1e-3, weight_decay=0.0, optimiser="adam"),
    )
    return configs.replace(base, **changes)


# the last set that was read: several networks are evaluated on one set after another, and made
# shifts cost time
_recent: list[Any] = []


def read_pixels(stimuli: StimulusSet, image_size: int, preprocess: Any = None) -> np.ndarray:
    """Return images (n, 3, image_size, image_size), uint8.

    The image is resized to the square, its aspect ratio not kept, as for CORnet-S in ReAlnet; or
    cropped by the backbone's own `preprocess`.
    """
    if _recent and _recent[0]() is stimuli and _recent[1:3] == [image_size, preprocess]:
        return _recent[3]
    out = np.empty((len(stimuli), 3, image_size, image_size), dtype=np.uint8)
    for i in progress(range(len(stimuli)), f"{stimuli.name} images"):
        image = stimuli.image(i)
        if preprocess is not None:
            image = preprocess.crop(image)
        elif image.shape[:2] != (image_size, image_size):
            image = np.asarray(
                Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BILINEAR)
            )
        out[i] = image.transpose(2, 0, 1)
    _recent[:] = [weakref.ref(stimuli), image_size, preprocess, out]
    return out


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as float32 with ImageNet's mean and standard deviation removed."""
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


@dataclass
class TrainedAligned:
    """A network before or after alignment.

    Parameters
    ----------
    network : nn.Module
        ``network(images, blocks=True) -> (logits, {name: map})``.
    head : AlignmentHead or None
        Reads responses; None for the original.
    config : AlignConfig
    n_classes : int
        Number of logits.
    name : str
        "original", "aligned", or the control's name.
    label : str
        One line for figures; says *simulated* where responses are.
    features : ResponseFeatures or None
        What `responses` predicts.
    history : list of dict
        One row an epoch.
    selection : str
        How the epoch was chosen.
    """

    network: nn.Module
    head: AlignmentHead | None
    config: AlignConfig
    n_classes: int
    name: str = "original"
    label: str = ""
    features: ResponseFeatures | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    selection: str = "none"
    preprocess: Any = None

    def _run(self, stimuli: StimulusSet, read: Any, batch_size: int = 64) -> list[Any]:
        pixels = read_pixels(stimuli, self.config.image_size, self.preprocess)
        self.network.eval()
        device = next(self.network.parameters()).device
        with torch.no_grad():
            return [
                read(
                    *self.network(
                        normalise(torch.from_numpy(pixels[i : i + batch_size]).to(device)),
                        blocks=True,
                    )
                )
                for i in range(0, len(pixels), batch_size)
            ]

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes)."""
        return torch.cat(self._run(stimuli, lambda logits, _: logits)).float().cpu().numpy()

    def responses(self, stimuli: StimulusSet) -> np.ndarray:
        """Return predicted response features, float32 (n_stimuli, n_components).

        Raises
        ------
        ConfigError
            For the original, which predicts none.
        """
        if self.head is None:
            raise ConfigError(
                message("an aligned network", "the original, without a head", "train one first")
            )
        self.head.eval()
        return (
            torch.cat(self._run(stimuli, lambda _, blocks: self.head(blocks))).float().cpu().numpy()
        )

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seed

    def pooled(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the last block averaged over space, float32 (n_stimuli, channels)."""
        found = self._run(
            stimuli, lambda _, blocks: list(blocks.values())[-1].float().mean((2, 3)).cpu()
        )
        return torch.cat(found).numpy()

    def activations(self, stimuli: StimulusSet) -> dict[str, np.ndarray]:
        """Return every block's output, float32 (n_stimuli, channels * height * width), by block name."""
        found = self._run(
            stimuli, lambda _, blocks: {k: v.flatten(1).float().cpu() for k, v in blocks.items()}
        )
        return {k: torch.cat([f[k] for f in found]).numpy() for k in found[0]}

    def save(self, folder: str | Path) -> Path:
        """Write the network, its head and its choices into `folder`."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.head is not None:
            tensors |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        extra: dict[str, Any] = {}
        if self.features is not None:
            for f in fields(self.features):
                value = getattr(self.features, f.name)
                if isinstance(value, np.ndarray):
                    tensors[f"features.{f.name}"] = torch.from_numpy(value)
                else:
                    extra[f.name] = value
        manifest = {
            "config": configs.to_dict(self.config),
            "n_classes": self.n_classes,
            "name": self.name,
            "label": self.label,
            "history": self.history,
            "selection": self.selection,
            "features": extra,
        }
        return checkpoint.write_bundle(folder, "aligned", tensors, manifest, what=WHAT)


def load_aligned(folder: str | Path) -> TrainedAligned:
    """Read what `TrainedAligned.save` wrote.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or its manifest, read before any tensor, tells of something
        else.
    """
    tensors, manifest = checkpoint.read_bundle(folder, "aligned", what=WHAT)
    config = configs.from_dict(AlignConfig, manifest["config"])

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    network, sizes, preprocess = empty_network(config, manifest["n_classes"])
    network.load_state_dict(part("network."))
    head, features = None, None
    if part("head."):
        head = make_head(config, sizes)
        head.load_state_dict(part("head."))
        values = {k: v.numpy() for k, v in part("features.").items()}
        features = ResponseFeatures(**values, **manifest["features"])
    return TrainedAligned(
        network.eval(),
        head,
        config,
        manifest["n_classes"],
        manifest["name"],
        manifest["label"],
        features,
        manifest["history"],
        manifest["selection"],
        preprocess,
    )


def make_head(config: AlignConfig, sizes: Mapping[str, tuple[int, int, int]]) -> AlignmentHead:
    """Return a fresh head for blocks of these sizes."""
    return AlignmentHead(sizes, n_responses=config.n_components, pool=config.pool)


def empty_network(
    config: AlignConfig, n_classes: int
) -> tuple[nn.Module, dict[str, tuple[int, int, int]], Any]:
    """Return a fresh network, its blocks' sizes and its preprocessing (None: resize to the square)."""
    if config.backbone == "cornet_s":
        network = CORnetS(n_classes=n_classes, width=config.width)
        return network, network.sizes(config.image_size), None
    from bmfl_lab.backbones import load_backbone

    backbone = load_backbone(config.backbone, weights=config.weights, image_size=config.image_size)
    backbone.requires_grad_(True)
    side = config.image_size // backbone.patch_size
    sizes = {f"block{i}": (backbone.width, side, side) for i in config.blocks}
    network = TokenNetwork(
        backbone, blocks=config.blocks, width=backbone.width, n_classes=n_classes
    )
    return network, sizes, backbone.preprocess

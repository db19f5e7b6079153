"""CORnet-S: a shallow recurrent network with blocks named after visual areas.

Shape suffixes: B batch, C channels, H height, W width.

References
----------
Kubilius et al. (2019). Brain-like object recognition with high-performing shallow recurrent ANNs.
NeurIPS, arXiv:1909.06161.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmfl_lab.backbones.protocol import (
    BACKBONES,
    Backbone,
    BackboneTokens,
    Preprocess,
    map_tokens,
    wrap,
)
from bmfl_lab.backbones.weights import load_strictly, random_seed, read_tensors, search_folders
from bmfl_lab.errors import CheckpointError, ConfigError, require

BLOCKS = ("V1", "V2", "V4", "IT")
TIMES = {"V2": 2, "V4": 4, "IT": 2}
"""Recurrent steps of each block."""

WIDEN = 4


class _V1(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = functional.relu(self.norm1(self.conv1(x_BCHW)))
        x_BCHW = functional.max_pool2d(x_BCHW, 3, stride=2, padding=1)
        return functional.relu(self.norm2(self.conv2(x_BCHW)))


class _Recurrent(nn.Module):
    """A bottleneck that is applied `times` times.

    The convolutions are shared between the steps; each step has its own BatchNorm.
    """

    def __init__(self, n_in: int, n_out: int, times: int):
        super().__init__()
        self.times = times
        self.conv_input = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.skip = nn.Conv2d(n_out, n_out, 1, stride=2, bias=False)
        self.norm_skip = nn.BatchNorm2d(n_out)
        self.conv1 = nn.Conv2d(n_out, n_out * WIDEN, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out * WIDEN, n_out * WIDEN, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(n_out * WIDEN, n_out, 1, bias=False)
        for step in range(times):
            self.add_module(f"norm1_{step}", nn.BatchNorm2d(n_out * WIDEN))
            self.add_module(f"norm2_{step}", nn.BatchNorm2d(n_out * WIDEN))
            self.add_module(f"norm3_{step}", nn.BatchNorm2d(n_out))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_input(x_BCHW)
        for step in range(self.times):
            # only the first step halves the map and therefore needs a projected shortcut
            first = step == 0
            shortcut_BCHW = self.norm_skip(self.skip(x_BCHW)) if first else x_BCHW
            x_BCHW = functional.relu(self._modules[f"norm1_{step}"](self.conv1(x_BCHW)))
            x_BCHW = functional.conv2d(
                x_BCHW, self.conv2.weight, stride=2 if first else 1, padding=1
            )
            x_BCHW = functional.relu(self._modules[f"norm2_{step}"](x_BCHW))
            x_BCHW = self._modules[f"norm3_{step}"](self.conv3(x_BCHW))
            x_BCHW = functional.relu(x_BCHW + shortcut_BCHW)
        return x_BCHW


class _Decoder(nn.Module):
    def __init__(self, width: int, n_classes: int):
        super().__init__()
        self.linear = nn.Linear(width, n_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.linear(x_BCHW.mean((2, 3)))


class CORnetS(nn.Module):
    """CORnet-S: V1, V2, V4, IT and a linear decoder.

    Parameters
    ----------
    n_classes : int, default 1000
        Number of logits.
    width : int, default 64
        Channels of V1; each later block doubles them. 64 is the published network with 53,416,616
        parameters. Smaller networks keep its structure and fit on a laptop.

    Raises
    ------
    ConfigError
        If a size is not positive.

    Notes
    -----
    Parameter names are those of the published checkpoint. A fresh network is initialised like the
    published one: normal, with the variance of He et al. over the fan-out, for convolutions.

    References
    ----------
    Kubilius et al. (2019). Brain-like object recognition with high-performing shallow recurrent
    ANNs. NeurIPS, arXiv:1909.06161. He et al. (2015). Delving deep into rectifiers. ICCV,
    arXiv:1502.01852.
    """

    def __init__(self, n_classes: int = 1000, width: int = 64):
        super().__init__()
        require(
            n_classes >= 1 and width >= 1,
            ConfigError,
            "n_classes and width of at least 1",
            f"{n_classes} and {width}",
            "choose sizes of 1 or more, for example n_classes=1000 and width=64",
        )
        self.n_classes, self.width = n_classes, width
        self.V1 = _V1(width)
        self.V2 = _Recurrent(width, 2 * width, TIMES["V2"])
        self.V4 = _Recurrent(2 * width, 4 * width, TIMES["V4"])
        self.IT = _Recurrent(4 * width, 8 * width, TIMES["IT"])
        self.decoder = _Decoder(8 * width, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, images_BCHW: Tensor, blocks: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return logits and, if requested, the output of every block of the same pass.

        Parameters
        ----------
        images_BCHW : Tensor, shape (B, 3, H, W)
            Normalised with the ImageNet mean and standard deviation.
        blocks : bool, default False
            Also return the block outputs.

        Returns
        -------
        logits : Tensor, shape (B, n_classes)
        outputs : dict of str to Tensor, only if `blocks`
            "V1" (B, width, H/4, W/4), "V2" (B, 2 width, H/8, W/8), "V4" (B, 4 width, H/16, W/16),
            "IT" (B, 8 width, H/32, W/32).
        """
        outputs = {}
        x_BCHW = images_BCHW
        for name in BLOCKS:
            x_BCHW = outputs[name] = getattr(self, name)(x_BCHW)
        logits_BC = self.decoder(x_BCHW)
        return (logits_BC, outputs) if blocks else logits_BC

    def sizes(self, image_size: int) -> dict[str, tuple[int, int, int]]:
        """Return (channels, height, width) of every block's output for square images."""
        sides = [math.ceil(image_size / (4 * 2**i)) for i in range(len(BLOCKS))]
        return {name: (self.width * 2**i, s, s) for i, (name, s) in enumerate(zip(BLOCKS, sides))}


def load_cornet(path: str | Path, *, n_classes: int = 1000, width: int = 64) -> CORnetS:
    """Load CORnet-S from a local checkpoint, strictly.

    Parameters
    ----------
    path : str or Path
        A file with the parameters, or with a mapping that holds them under "state_dict". Keys may
        carry the ``module.`` prefix of a parallel wrapper.
    n_classes, width : int
        Sizes of the network in the file, see `CORnetS`.

    Returns
    -------
    CORnetS
        In evaluation mode.

    Raises
    ------
    CheckpointError
        If the file is missing, holds more than tensors and plain values, or its keys or shapes
        differ.
    """
    model, path = CORnetS(n_classes=n_classes, width=width), Path(path)
    state = read_tensors(path, nested="state_dict")
    state = {k.removeprefix("module."): v for k, v in state.items()}
    # old torch releases did not count batches; the count is not used by this network
    counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    remedy = "give the checkpoint of a CORnet-S, with the keys of the published one"
    with contextlib.suppress(KeyError, IndexError):
        sizes = state["decoder.linear.weight"].shape[0], state["V1.conv1.weight"].shape[0]
        if sizes != (n_classes, width):
            remedy = f"pass the sizes in the file, n_classes={sizes[0]} and width={sizes[1]}"
    load_strictly(model, counts | state, name="CORnet-S", source=path.name, remedy=remedy)
    return model.requires_grad_(True).eval()


class _Areas(nn.Module):
    """CORnet-S without its logits: images to the outputs of all blocks."""

    def __init__(self, network: CORnetS):
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return self.network(images_BCHW, blocks=True)[1]


def _tokens(outputs: dict[str, Tensor]) -> list[BackboneTokens]:
    return [map_tokens(outputs[name]) for name in BLOCKS]


@BACKBONES.register("cornet_s")
def load_cornet_backbone(
    name: str,
    weights: str | Path | None = None,
    *,
    image_size: int | None,
    dtype: torch.dtype,
    device: str,
    resize: str,
) -> Backbone:
    """Load CORnet-S as a backbone; parameters and errors as in `bmfl_lab.backbones.load_backbone`.

    Its blocks are V1, V2, V4 and IT. The tokens are the positions of a block's output, so that IT
    has 7 x 7 patches of width 512 at 224 pixels.
    """
    preprocess = Preprocess(224 if image_size is None else image_size, resize, patch_size=32)
    if (seed := random_seed(weights)) is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, label = CORnetS(), f"random weights (seed {seed}), untrained"
    else:
        path = _search() if weights is None else Path(weights).expanduser()
        network, label = load_cornet(path), f"file {path.name}"
    backbone = wrap(_Areas(network), preprocess=preprocess, tokens=_tokens, name=name)
    backbone.weights_label = label
    return backbone.to(device=device, dtype=dtype)


def _search() -> Path:
    own, torch_hub, _ = search_folders()
    found = [p for folder in (own, torch_hub) for p in sorted(folder.glob("cornet_s*.pth"))]
    require(
        found,
        CheckpointError,
        "weights of cornet_s",
        f"none in {own}, {torch_hub}",
        f"put cornet_s-1d3f7974.pth into {own}, give a checkpoint as weights, or "
        "weights='random' for an untrained control",
    )
    return found[0]

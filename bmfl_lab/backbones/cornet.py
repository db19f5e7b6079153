"""CORnet-S: a shallow recurrent network with blocks named after visual areas.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmfl_lab.backbones.weights import refuse_flipped
from bmfl_lab.errors import CheckpointError, ConfigError, message

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
    """A bottleneck applied `times` times with shared convolutions and a BatchNorm of its own for each step."""

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
            first = (
                step == 0
            )  # only the first step halves the map, and with it needs a projected shortcut
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
        Channels of V1; each later block doubles them. 64 is the published network (53,416,616
        parameters); smaller ones keep its structure for laptops.

    Raises
    ------
    ConfigError
        If a size is not positive.

    Notes
    -----
    Parameter names are those of the published checkpoint. A fresh network is initialised as the
    published one (He normal over the fan-out for convolutions).

    References
    ----------
    Kubilius et al. 2019, NeurIPS (CORnet-S).
    """

    def __init__(self, n_classes: int = 1000, width: int = 64):
        super().__init__()
        if n_classes < 1 or width < 1:
            raise ConfigError(
                message(
                    "n_classes and width of at least 1",
                    f"{n_classes} and {width}",
                    "choose positive sizes",
                )
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
        """Return logits and, if asked, the output of every block of the same pass.

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
            "V1" (B, width, H/4, W/4), "V2" (B, 2 width, H/8, W/8), "V4" (.. H/16 ..), "IT" (B, 8
            width, H/32, W/32).
        """
        outputs = {}
        x_BCHW = images_BCHW
        for name in BLOCKS:
            x_BCHW = outputs[name] = getattr(self, name)(x_BCHW)
        logits_BC = self.decoder(x_BCHW)
        return (logits_BC, outputs) if blocks else logits_BC

    def sizes(self, image_size: int) -> dict[str, tuple[int, int, int]]:
        """Return (channels, height, width) of every block's output for square images."""
        found = {}
        side = math.ceil(image_size / 4)
        for i, name in enumerate(BLOCKS):
            found[name] = (self.width * 2**i, side, side)
            side = math.ceil(side / 2)
        return found


def load_cornet(path: str | Path, *, n_classes: int = 1000, width: int = 64) -> CORnetS:
    """Load CORnet-S from a local checkpoint, strictly.

    Parameters
    ----------
    path : str or Path
        A ``.pth`` file: the parameters, or a mapping that holds them under "state_dict". Keys may
        carry the ``module.`` prefix of a parallel wrapper.
    n_classes, width : int
        As in `CORnetS`.

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
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            message(f"a checkpoint {path.name}", f"nothing at {path}", "download it, give its path")
        )
    refuse_flipped(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(
            message(
                f"a file of tensors and plain values in {path.name}",
                str(error).split("\n")[0][:200],
                "save `state_dict()` alone in the environment that made the file",
            )
        ) from error
    if isinstance(found, Mapping) and "state_dict" in found:
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(
            message(
                f"a mapping of names to tensors in {path.name}",
                type(found).__name__,
                "save `state_dict()` alone",
            )
        )
    model = CORnetS(n_classes=n_classes, width=width)
    model.load_state_dict(
        _fitting(model, {k.removeprefix("module."): v for k, v in found.items()}, path.name)
    )
    return model.eval()


def _fitting(model: CORnetS, state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    wanted = model.state_dict()
    # old torch releases did not count batches; the count is not used by this network
    state = {**{k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")}, **state}
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        raise CheckpointError(
            message(
                f"the parameters of CORnet-S in {name}",
                f"{len(missing)} missing {missing[:5]}, {len(extra)} unknown {extra[:5]}",
                "check which network this file belongs to",
            )
        )
    wrong = [k for k in wanted if wanted[k].shape != state[k].shape]
    if wrong:
        raise CheckpointError(
            message(
                f"{wrong[0]} of shape {tuple(wanted[wrong[0]].shape)} in {name}",
                f"{tuple(state[wrong[0]].shape)} ({len(wrong)} shapes differ)",
                "give the checkpoint's own n_classes and width",
            )
        )
    return state

"""The protocol of backbones and their tokens, the registry of backbones, and `wrap`.

Shape suffixes: B batch, P patches, D width, H and W height and width of an image in pixels, C
channels, h and w rows and columns of patches.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bmfl_lab.backbones.weights import hash_state, refuse_not_finite
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.registry import Registry

BACKBONES = Registry("backbone")
"""Name of a backbone to its loader.

A loader is a function ``(name, weights=None, *, image_size, dtype, device, resize) -> Backbone``.
`load_backbone` has checked and resolved the options: `image_size` is an int, or None for the
backbone's own size; `dtype` is a torch dtype; `device` is "cpu" or "cuda".
"""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet, per colour channel (R, G, B), of pixels in 0..1."""

SCALE, RATIO, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5
"""Area, aspect ratio and share of mirrored images of `Preprocess.random_crop`."""

MAX_ASPECT = 20
RESIZE = ("short", "direct")


@dataclass(frozen=True)
class Preprocess:
    """Resize an image (bicubic), crop its centre and normalise its colours.

    Parameters
    ----------
    image_size : int, default 224
        Side of the square that the backbone receives, in pixels; a multiple of `patch_size`.
    resize : {"short", "direct"}, default "short"
        "short": the short side becomes ``round(image_size * 256 / 224)``, then the centre is
        cropped, as is usual for photographs of ImageNet. "direct": the short side becomes
        `image_size`, so that nothing is cut off a square image; meant for images that are much
        smaller than the crop, such as photographs of 32 pixels.
    patch_size : int, default 14
        Side of a patch of the backbone, in pixels.
    mean, std : tuple of three floats
        Mean and standard deviation per colour channel (R, G, B) of pixels in 0..1. The default is
        that of ImageNet.

    Raises
    ------
    ConfigError
        If the size is not an int, or not a positive multiple of the patch size, or the rule is
        unknown.

    Notes
    -----
    Images smaller than the crop are enlarged by the same rule. An image with an aspect ratio above
    20 is first cut to its central part of that ratio, so that a strip of one pixel cannot ask for
    gigabytes. The limit is our own choice; the pixels that are cut lie far outside the crop.
    """

    image_size: int = 224
    resize: str = "short"
    patch_size: int = 14
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        size, patch = self.image_size, self.patch_size
        require(
            isinstance(size, numbers.Integral),
            ConfigError,
            "image_size as a whole number of pixels",
            repr(size),
            "a loader replaces image_size=None by the size that its network was trained with",
        )
        require(
            size >= patch and size % patch == 0,
            ConfigError,
            f"an image_size that is a positive multiple of {patch}",
            repr(size),
            f"use {max(1, round(size / patch)) * patch}",
        )
        require(
            self.resize in RESIZE,
            ConfigError,
            f"a resize rule among {RESIZE}",
            repr(self.resize),
            "choose one of them",
        )

    @property
    def short_side(self) -> int:
        """Length of the short side after the resize, in pixels."""
        return self.image_size if self.resize == "direct" else round(self.image_size * 256 / 224)

    def describe(self) -> dict[str, object]:
        """Return everything that determines the pixels, as plain JSON values."""
        return {
            "resize": self.resize,
            "short_side": self.short_side,
            "filter": "bicubic (Pillow, antialiased)",
            "crop": "centre",
            "image_size": self.image_size,
            "max_aspect": MAX_ASPECT,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Return the pixels that the backbone receives, before normalisation.

        Parameters
        ----------
        image : ndarray of uint8, shape (H, W, 3)
            RGB image.

        Returns
        -------
        ndarray of uint8, shape (image_size, image_size, 3)

        Raises
        ------
        DataError
            If the array is not a non-empty uint8 RGB image.
        """
        _check_pixels(image)
        image = _cut_strip(image)
        height, width = image.shape[:2]
        short = min(height, width)
        size = tuple(
            self.short_side if s == short else int(self.short_side * s / short)
            for s in (width, height)
        )
        picture = Image.fromarray(np.ascontiguousarray(image))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((s - self.image_size) / 2.0) for s in size)
        return np.asarray(picture.crop((left, top, left + self.image_size, top + self.image_size)))

    def random_crop(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return a random part of an image, resized (bicubic) and mirrored in half of the cases.

        Parameters
        ----------
        image : ndarray of uint8, shape (H, W, 3)
            RGB image.
        generator : numpy.random.Generator
            Decides area (8 to 100 % of the image), aspect ratio (3/4 to 4/3, uniform in its
            logarithm), place and mirroring.

        Returns
        -------
        ndarray of uint8, shape (image_size, image_size, 3)

        Raises
        ------
        DataError
            If the array is not a non-empty uint8 RGB image.

        References
        ----------
        Oquab et al., DINOv2, arXiv:2304.07193 (2023): ``make_classification_train_transform`` in
        ``dinov2/data/transforms.py``, the training images of its linear protocol. As there, the
        largest central part of a permitted ratio is taken if ten random parts do not fit.
        """
        _check_pixels(image)
        left, top, width, height = _random_box(image.shape[1], image.shape[0], generator)
        picture = Image.fromarray(np.ascontiguousarray(image))
        picture = picture.crop((left, top, left + width, top + height))
        picture = picture.resize((self.image_size,) * 2, Image.Resampling.BICUBIC)
        if generator.random() < FLIP:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(picture)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Return the input of the backbone.

        Parameters
        ----------
        image : ndarray of uint8, shape (H, W, 3)
            RGB image.

        Returns
        -------
        Tensor of float32, shape (3, image_size, image_size)

        Raises
        ------
        DataError
            If the array is not a non-empty uint8 RGB image.
        """
        return self.normalise(torch.from_numpy(self.crop(image).copy())[None])[0]

    def normalise(self, pixels_BHWC: Tensor) -> Tensor:
        """Return the input of the backbone for a batch of pixels, on the same device.

        Parameters
        ----------
        pixels_BHWC : Tensor of uint8, shape (B, H, W, 3)
            Pixels as `crop` or `random_crop` returns them.

        Returns
        -------
        Tensor of float32, shape (B, 3, H, W)
        """
        mean, std = (torch.tensor(v, device=pixels_BHWC.device) for v in (self.mean, self.std))
        scaled_BHWC = (pixels_BHWC.float() / 255 - mean) / std
        return scaled_BHWC.permute(0, 3, 1, 2).contiguous()


def _check_pixels(image: np.ndarray) -> None:
    require(
        image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and 0 not in image.shape,
        DataError,
        "a uint8 image of shape (H, W, 3)",
        f"{image.dtype} {image.shape}",
        "decode it with bmfl_lab.data.images.decode_image",
    )


def _random_box(
    width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a random part of an image, in pixels."""
    for _ in range(10):
        area = width * height * generator.uniform(*SCALE)
        ratio = math.exp(generator.uniform(*map(math.log, RATIO)))
        part = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part[0] <= width and 0 < part[1] <= height:
            left, top = (
                int(generator.integers(whole - side + 1))
                for whole, side in zip((width, height), part)
            )
            return left, top, *part
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    part = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (width - part[0]) // 2, (height - part[1]) // 2, *part


def _cut_strip(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    if max(height, width) <= longest:
        return image
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return image[top : top + longest, left : left + longest]


@dataclass(frozen=True)
class BackboneTokens:
    """Tokens of one block.

    Parameters
    ----------
    cls : Tensor, shape (B, D)
        Class token. A backbone without one returns the mean patch token here. The `tokens` function
        that is given to `wrap` may leave it None.
    registers : Tensor, shape (B, n_registers, D)
        Register tokens [1]_. They have no position in the image and are never patches; there may be
        none. The `tokens` function that is given to `wrap` may leave them None.
    patches : Tensor, shape (B, P, D)
        Patch tokens, row by row.
    grid : tuple of int
        Rows and columns of patches, ``P = h * w``.
    attention : Tensor, shape (B, n_heads, T, T), optional
        Attention weights of this block between all T tokens, in the order class token, registers,
        patches. Each row sums to 1.

    References
    ----------
    .. [1] Darcet et al. (2024). Vision transformers need registers. ICLR, arXiv:2309.16588.
    """

    cls: Tensor | None
    registers: Tensor | None
    patches: Tensor
    grid: tuple[int, int]
    attention: Tensor | None = None


@runtime_checkable
class Backbone(Protocol):
    """A frozen vision model that turns images into tokens.

    A backbone is also a `torch.nn.Module` in evaluation mode, none of whose parameters requires a
    gradient. `load_backbone` returns one by name, `wrap` makes one from any module.

    Attributes
    ----------
    name : str
        Public name.
    width, n_blocks, n_registers : int
        Token width of the last block, number of blocks, number of register tokens.
    has_cls : bool
        True if there is a class token. If not, the mean patch token replaces it.
    patch_size : int
        Side of a patch of the last block, in pixels.
    image_size : int
        Side of the square that `preprocess` makes, in pixels.
    weights_hash : str
        SHA-256 over the names, shapes and float32 values of all weights.
    weights_label : str
        Source of the weights for figures and records; says "random" or "stand-in" if they are.
    preprocess : Preprocess
        The only function from a uint8 image to the input of this backbone.
    """

    name: str
    width: int
    n_blocks: int
    n_registers: int
    has_cls: bool
    patch_size: int
    image_size: int
    weights_hash: str
    weights_label: str
    preprocess: Preprocess

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights and of the computation."""

    def describe(self) -> dict[str, object]:
        """Return everything that determines the tokens of an image, as plain JSON values."""

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the last block's patches for an image size in pixels."""

    def block_shape(self, block: int = -1) -> tuple[tuple[int, int], int]:
        """Return the patch grid (rows, columns) and token width of a block at `image_size`."""

    def indices(self, blocks: Sequence[int]) -> list[int]:
        """Return block indices counted from 0; negative ones count from the end."""

    def __call__(
        self,
        images: Tensor,
        blocks: Sequence[int] | None = None,
        *,
        features: str = "tokens",
        grad: bool = False,
    ) -> BackboneTokens | tuple[BackboneTokens, ...]:
        """Return the float32 tokens of the last block, or one BackboneTokens per entry of `blocks`.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            Preprocessed images on the backbone's device.
        blocks : sequence of int, optional
            Block indices; None means the last block.
        features : str, default "tokens"
            Part of the block that is returned; a DINOv2 backbone also has "q", "k" and "v".
        grad : bool, default False
            Let gradients reach `images`.
        """


def map_tokens(x_BCHW: Tensor) -> BackboneTokens:
    """Return the channels at each position of a feature map as patch tokens, without class token.

    Parameters
    ----------
    x_BCHW : Tensor, shape (B, C, h, w)
        Output of a convolutional layer.

    Returns
    -------
    BackboneTokens
        `patches` has shape (B, h * w, C); `cls` and `registers` are None, for `wrap` to fill in.

    Raises
    ------
    ConfigError
        If the output is not a tensor of four dimensions.
    """
    require(
        isinstance(x_BCHW, Tensor) and x_BCHW.ndim == 4,
        ConfigError,
        "a feature map of shape (B, C, h, w) for map_tokens",
        f"shape {tuple(x_BCHW.shape)}" if isinstance(x_BCHW, Tensor) else type(x_BCHW).__name__,
        "let the module return one, or pass wrap your own function that returns BackboneTokens",
    )
    return BackboneTokens(None, None, x_BCHW.flatten(2).transpose(1, 2), tuple(x_BCHW.shape[2:]))


def block_indices(blocks: Sequence[int], n_blocks: int, name: str) -> list[int]:
    """Return block indices counted from 0.

    Raises
    ------
    ConfigError
        If an index is out of range, or there is none.
    """
    require(
        blocks and all(-n_blocks <= b < n_blocks for b in blocks),
        ConfigError,
        f"block indices from {-n_blocks} to {n_blocks - 1}",
        tuple(blocks),
        f"choose among the {n_blocks} blocks of {name}",
    )
    return [int(b) % n_blocks for b in blocks]


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Return the number of rows and columns of patches of an image whose sides are in pixels.

    Raises
    ------
    ConfigError
        If a side is not a positive multiple of the patch size.
    """
    require(
        min(height, width) >= patch_size and not height % patch_size and not width % patch_size,
        ConfigError,
        f"image sides that are multiples of {patch_size} pixels",
        f"{height} x {width}",
        f"use backbone.preprocess, with an image_size that is a multiple of {patch_size}",
    )
    return height // patch_size, width // patch_size


def check_images(images: Tensor) -> None:
    """Check that a batch of images has the shape (B, 3, H, W).

    Raises
    ------
    ConfigError
        If it has not.
    """
    require(
        images.ndim == 4 and images.shape[1] == 3,
        ConfigError,
        "images of shape (B, 3, H, W)",
        tuple(images.shape),
        "use backbone.preprocess",
    )


def wrap(
    module: nn.Module,
    *,
    preprocess: Preprocess,
    tokens: Callable[[object], BackboneTokens | Sequence[BackboneTokens]],
    name: str,
    patch_size: int | None = None,
) -> Backbone:
    """Return a frozen backbone that computes its tokens with `module`.

    Parameters
    ----------
    module : nn.Module
        Called with images (B, 3, H, W). It is frozen and set to evaluation mode in place.
    preprocess : Preprocess
        Image size, resize rule and normalisation that `module` expects.
    tokens : callable
        Takes the output of `module` and returns the `BackboneTokens` of its last block, or a
        sequence with one `BackboneTokens` per block. ``cls=None`` states that there is no class
        token, ``registers=None`` that there are no registers. For a feature map (B, C, h, w),
        `map_tokens` is such a function.
    name : str
        Name in figures, records and the feature store. Choose another name for another `tokens`
        function on the same weights.
    patch_size : int, optional
        Side of a patch of the last block, in pixels. By default the image size divided by the
        number of rows of its patches, rounded down.

    Returns
    -------
    Backbone
        Its tokens are float32, and its weights hash is computed from the state dict of `module`.

    Raises
    ------
    ConfigError
        If `tokens` returns something else, or the patches do not fill their grid.
    CheckpointError
        If a weight is not finite.

    Notes
    -----
    Tokens on a GPU differ from those on a CPU by the rounding of torch's default settings, which
    compute float32 convolutions in TF32 on recent GPUs.

    Examples
    --------
    >>> from torch import nn
    >>> from bmfl_lab.backbones import Preprocess, map_tokens, wrap
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.GELU())
    >>> preprocess = Preprocess(image_size=64, patch_size=16)
    >>> backbone = wrap(net, preprocess=preprocess, tokens=map_tokens, name="toy")
    >>> backbone.width, backbone.grid_of(64, 64), backbone.has_cls
    (8, (4, 4), False)
    """
    refuse_not_finite(module.state_dict(), name)
    return _Wrapped(module, preprocess, tokens, name, patch_size)


class _Wrapped(nn.Module):
    """The backbone that `wrap` returns; its members are described in `Backbone`."""

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        tokens: Callable[[object], BackboneTokens | Sequence[BackboneTokens]],
        name: str,
        patch_size: int | None,
    ):
        super().__init__()
        self.module = module.requires_grad_(False).eval()
        self.preprocess, self.image_size = preprocess, preprocess.image_size
        self.name, self._tokens = name, tokens
        self.weights_hash = hash_state(module.state_dict())
        self.weights_label = f"weights of a {type(module).__name__}"
        # sizes are read from the tokens of one blank image
        with torch.no_grad():
            blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
            blocks = self._blocks(blank)
        self.has_cls = blocks[-1].cls is not None
        blocks = [_complete(b) for b in blocks]
        self._shapes = [(b.grid, b.patches.shape[2]) for b in blocks]
        self.n_blocks, self.n_registers = len(blocks), blocks[-1].registers.shape[1]
        (rows, _), self.width = self._shapes[-1]
        self.patch_size = patch_size or self.image_size // rows

    def _blocks(self, images: Tensor) -> Sequence[BackboneTokens]:
        found = self._tokens(self.module(images.to(self.dtype)))
        blocks = (found,) if isinstance(found, BackboneTokens) else tuple(found)
        require(
            blocks and all(isinstance(b, BackboneTokens) for b in blocks),
            ConfigError,
            f"BackboneTokens of {self.name}",
            ", ".join(type(b).__name__ for b in blocks) or "nothing",
            "let `tokens` return one, or one per block",
        )
        return blocks

    @property
    def _first(self) -> Tensor:
        weights = itertools.chain(self.module.parameters(), self.module.buffers())
        return next((t for t in weights if t.is_floating_point()), torch.zeros(0))

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    def train(self, mode: bool = True) -> _Wrapped:
        return super().train(False)

    def describe(self) -> dict[str, object]:
        return {
            "name": self.name,
            "weights_hash": self.weights_hash,
            "weights_label": self.weights_label,
            "dtype": str(self.dtype).removeprefix("torch."),
            "module": type(self.module).__qualname__,
            "preprocess": self.preprocess.describe(),
        }

    def indices(self, blocks: Sequence[int]) -> list[int]:
        return block_indices(blocks, self.n_blocks, self.name)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        if height == width == self.image_size:
            return self._shapes[-1][0]
        return patch_grid(height, width, self.patch_size)

    def block_shape(self, block: int = -1) -> tuple[tuple[int, int], int]:
        return self._shapes[self.indices((block,))[0]]

    def forward(
        self,
        images: Tensor,
        blocks: Sequence[int] | None = None,
        attention: bool = False,
        *,
        features: str = "tokens",
        grad: bool = False,
    ) -> BackboneTokens | tuple[BackboneTokens, ...]:
        require(
            not attention and features == "tokens",
            ConfigError,
            f"features='tokens' of {self.name}",
            "attention weights" if attention else repr(features),
            "use the tokens, or a DINOv2 backbone",
        )
        wanted = self.indices((-1,) if blocks is None else blocks)
        check_images(images)
        self.grid_of(*images.shape[2:])
        with contextlib.nullcontext() if grad else torch.no_grad():
            found = self._blocks(images)
            chosen = tuple(_complete(found[i]) for i in wanted)
        return chosen[0] if blocks is None else chosen


def _complete(tokens: BackboneTokens) -> BackboneTokens:
    """Return float32 tokens; the mean patch token replaces a missing class token."""
    patches, grid = tokens.patches.float(), tuple(map(int, tokens.grid))
    require(
        patches.ndim == 3 and patches.shape[1] == grid[0] * grid[1],
        ConfigError,
        f"patches of shape (B, P, D) with P = {grid[0]} x {grid[1]}",
        tuple(patches.shape),
        "let `tokens` return all patches, row by row, and their grid",
    )
    cls = patches.mean(1) if tokens.cls is None else tokens.cls.float()
    registers = patches[:, :0] if tokens.registers is None else tokens.registers.float()
    return BackboneTokens(cls, registers, patches, grid)

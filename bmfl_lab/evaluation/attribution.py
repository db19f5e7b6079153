"""Integrated gradients from pixels through the whole path: backbone, brain encoder and fusion.

Shape suffixes: B batch, P patches, D width, V vertices, C classes, n stimuli.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.backbones.tokens import read_tokens
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.evaluation.attention import image_batches

BASELINES = ("grey", "black", "blur")
_ROWS = 16


@dataclass(frozen=True)
class Attribution:
    """How much each pixel contributed to one number per image.

    Parameters
    ----------
    pixels : ndarray of float32, shape (n_stimuli, H, W)
        Signed contribution, summed over colour channels.
    patches : ndarray of float32, shape (n_stimuli, h, w)
        The same, summed over each patch.
    score, reference : ndarray of float32, shape (n_stimuli,)
        The number for the image and for the baseline.
    gap : ndarray of float32, shape (n_stimuli,)
        Sum of the contributions minus (score - reference): zero if the integral were exact.
    target : str
        What was explained.
    """

    pixels: np.ndarray
    patches: np.ndarray
    score: np.ndarray
    reference: np.ndarray
    gap: np.ndarray
    target: str

    @property
    def relative_gap(self) -> np.ndarray:
        """Gap over the change of the score, shape (n_stimuli,).

        An image whose score hardly differs from the baseline's is held against the median change of
        all images.
        """
        change = np.abs(self.score - self.reference)
        return np.abs(self.gap) / np.maximum(
            np.maximum(change, np.median(change) if len(change) else 0), 1e-6
        )


def integrated_gradients(
    function: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    baseline: Tensor,
    *,
    steps: int = 32,
    rows: int = _ROWS,
) -> tuple[Tensor, Tensor]:
    """Integrate the gradient of a function along the straight line from a baseline to the input.

    Parameters
    ----------
    function : callable
        ``function(x (B, ...), index (B,)) -> (B,)``; `index` says which input each row belongs to.
    inputs, baseline : Tensor, shape (n, ...)
        End and start of each line.
    steps : int, default 32
        Points of the Gauss-Legendre quadrature.
    rows : int
        Rows in one call of `function`.

    Returns
    -------
    attribution : Tensor, shape (n, ...)
        ``(input - baseline) * mean gradient``.
    gap : Tensor, shape (n,)
        Sum of the attribution minus ``function(input) - function(baseline)``.

    Raises
    ------
    ConfigError
        If `steps` is below 1 or shapes differ.

    References
    ----------
    Sundararajan, Taly & Yan (2017), Axiomatic attribution for deep networks, ICML,
    arXiv:1703.01365.
    """
    if steps < 1 or inputs.shape != baseline.shape:
        got = f"{steps} steps, shapes {tuple(inputs.shape)} and {tuple(baseline.shape)}"
        raise ConfigError(
            message("at least 1 step and a baseline of the inputs' shape", got, "correct them")
        )
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    index = torch.arange(len(inputs), device=inputs.device)
    points = [((x + 1) / 2, w / 2) for x, w in zip(nodes.tolist(), weights.tolist())]
    shape, per = (-1, *[1] * (inputs.ndim - 1)), max(1, rows // max(1, len(inputs)))
    total = torch.zeros_like(inputs)
    for start in range(0, steps, per):
        part = points[start : start + per]
        at = inputs.new_tensor([p for p, _ in part]).repeat_interleave(len(inputs)).view(shape)
        x = (
            baseline.repeat(len(part), *shape[1:])
            + at * (inputs - baseline).repeat(len(part), *shape[1:])
        ).detach()
        with torch.enable_grad():
            x.requires_grad_(True)
            (slope,) = torch.autograd.grad(function(x, index.repeat(len(part))).sum(), x)
        share = inputs.new_tensor([w for _, w in part]).view(-1, *[1] * inputs.ndim)
        total += (slope.view(len(part), *inputs.shape) * share).sum(0)
    found = (inputs - baseline) * total
    with torch.no_grad():
        change = function(inputs, index) - function(baseline, index)
    return found.detach(), found.detach().flatten(1).sum(1) - change


def baseline_images(images: Tensor, kind: str, backbone: Any) -> Tensor:
    """Return what "no image" looks like, shape of `images`.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W)
        Normalised images.
    kind : {"grey", "black", "blur"}
        The mean colour of ImageNet, black, or the image itself blurred over half its side.
    backbone : Backbone
        Whose normalisation defines black.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    if kind not in BASELINES:
        raise ConfigError(
            message(f"a baseline among {BASELINES}", repr(kind), "choose one of them")
        )
    if kind == "grey":
        return torch.zeros_like(images)
    if kind == "blur":
        size = images.shape[-1] // 2 // 2 * 2 + 1
        return functional.avg_pool2d(images, size, 1, size // 2, count_include_pad=False)
    told = backbone.preprocess.describe()
    black = -torch.as_tensor(told["mean"]) / torch.as_tensor(told["std"])
    return black.to(images)[None, :, None, None].expand_as(images).clone()


def class_attribution(
    fusion: Any,
    stimuli: StimulusSet,
    *,
    target: str | np.ndarray = "predicted",
    baseline: str = "grey",
    steps: int = 32,
    path: Any = None,
) -> Attribution:
    """Attribute a class score to pixels, through backbone, brain encoder, cross-attention and classifier.

    Parameters
    ----------
    fusion : TrainedFusion
        Model or baseline whose path can be assembled.
    stimuli : StimulusSet
        Images.
    target : "predicted", "label" or ndarray of int, shape (n_stimuli,)
        Class whose logit is explained.
    baseline : {"grey", "black", "blur"}
        As `baseline_images`.
    steps : int, default 32
        Points of the quadrature.
    path : BMFL, optional
        An assembled path in place of ``fusion.path``, for example one with other weights.

    Returns
    -------
    Attribution

    Raises
    ------
    ConfigError
        If the path cannot be assembled or a choice is unknown.
    DataError
        If labels are asked for and an image has none.
    """
    path = (fusion.path if path is None else path).eval()
    classes = _classes(fusion, stimuli, target)

    def score(images: Tensor, index: Tensor) -> Tensor:
        logits = path(images, grad=torch.is_grad_enabled()).logits
        return logits.gather(1, torch.as_tensor(classes, device=logits.device)[index, None])[:, 0]

    said = target if isinstance(target, str) else "given"
    return _attribute(score, path.backbone, stimuli, baseline, steps, f"logit of the {said} class")


def response_attribution(
    encoder: Any,
    stimuli: StimulusSet,
    roi: str | np.ndarray,
    *,
    backbone: Any = None,
    module: Any = None,
    baseline: str = "grey",
    steps: int = 32,
) -> Attribution:
    """Attribute the predicted mean response of an ROI to pixels.

    Parameters
    ----------
    encoder : TrainedEncoder
        Any kind.
    stimuli : StimulusSet
        Images.
    roi : str or ndarray of bool, shape (n_vertices,)
        An ROI or group; ``"left:V1"`` for one hemisphere; or the vertices themselves.
    backbone : Backbone, optional
        The encoder's, if it is loaded already.
    module : nn.Module, optional
        Network in place of the encoder's own, for example one with other weights.
    baseline, steps
        As `class_attribution`.

    Returns
    -------
    Attribution

    Raises
    ------
    ConfigError
        If the ROI is unknown or absent, or a choice is unknown.
    """
    mask = roi_vertices(encoder.atlas, roi) if isinstance(roi, str) else np.asarray(roi, bool)
    backbone = encoder.load_backbone() if backbone is None else backbone
    module = (encoder.module if module is None else module).to(backbone.device).eval()
    chosen = torch.as_tensor(np.flatnonzero(mask), device=backbone.device)

    def score(images: Tensor, index: Tensor) -> Tensor:
        patches = differentiable_patches(backbone, images, encoder.sources)
        return module(patches).index_select(1, chosen).mean(1)

    name = roi if isinstance(roi, str) else f"{int(mask.sum())} vertices"
    return _attribute(score, backbone, stimuli, baseline, steps, f"predicted response of {name}")


def roi_vertices(atlas: Any, name: str) -> np.ndarray:
    """Return the vertices of an ROI or group, of one hemisphere for ``"left:V1"``, bool (n_vertices,).

    Raises
    ------
    ConfigError
        If the name is unknown, or nothing of it exists in this subject or hemisphere.
    """
    side, _, roi = name.rpartition(":")
    mask = atlas.select(roi)
    if side:
        mask = mask & (np.asarray(atlas.hemisphere) == int(side == "right"))
    if not mask.any() or side not in ("", "left", "right"):
        raise ConfigError(
            message("an ROI such as 'V1' or 'left:V1' with vertices", repr(name), "choose another")
        )
    return mask


def differentiable_patches(backbone: Any, images: Tensor, sources: Any) -> Tensor:
    """Return the tokens an encoder reads, with gradients, shape (B, P, D * n_blocks).

    Parameters
    ----------
    backbone : Backbone
    images : Tensor, shape (B, 3, H, W)
        Normalised.
    sources : sequence of mapping
        Kind, block and features of the tokens, as in `TrainedEncoder.sources`; features are alike
        in all.
    """
    blocks = tuple(dict.fromkeys(s["block"] for s in sources))
    features = sources[0]["features"]
    tokens = backbone(images, blocks=blocks, features=features, grad=torch.is_grad_enabled())
    found = dict(zip(blocks, tokens))
    return torch.cat([read_tokens(found[s["block"]], s["kind"]) for s in sources], 2)


def _classes(fusion: Any, stimuli: StimulusSet, target: str | np.ndarray) -> np.ndarray:
    if isinstance(target, str) and target == "predicted":
        return fusion.logits(stimuli).argmax(1)
    if isinstance(target, str) and target != "label":
        raise ConfigError(
            message("target 'predicted', 'label' or one class an image", repr(target), "choose one")
        )
    found = np.asarray(stimuli.labels if isinstance(target, str) else target, np.int64)
    n = len(fusion.class_names)
    if found.shape != (len(stimuli),) or (len(found) and (found.min() < 0 or found.max() >= n)):
        raise DataError(
            message(
                f"{len(stimuli)} classes from 0 to {n - 1}",
                f"shape {found.shape}",
                "use target='predicted'",
            )
        )
    return found


def _attribute(function, backbone, stimuli, baseline, steps, target) -> Attribution:
    pixels, gaps, scores, references, start = [], [], [], [], 0
    for images in image_batches(backbone, stimuli):
        empty = baseline_images(images, baseline, backbone)

        def shifted(x: Tensor, index: Tensor, start: int = start) -> Tensor:
            return function(x, index + start)

        found, gap = integrated_gradients(shifted, images, empty, steps=steps)
        index = torch.arange(len(images), device=images.device)
        with torch.no_grad():
            scores.append(shifted(images, index).cpu().numpy())
            references.append(shifted(empty, index).cpu().numpy())
        pixels.append(found.sum(1).cpu().numpy())
        gaps.append(gap.cpu().numpy())
        start += len(images)
    maps = np.concatenate(pixels).astype(np.float32)
    size = backbone.patch_size
    n, height, width = maps.shape
    patches = maps.reshape(n, height // size, size, width // size, size).sum((2, 4))
    score, reference, gap = (
        np.concatenate(v).astype(np.float32) for v in (scores, references, gaps)
    )
    return Attribution(maps, patches, score, reference, gap, target)

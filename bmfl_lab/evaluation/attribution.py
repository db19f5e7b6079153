"""Integrated gradients of pixels through the whole path: backbone, brain encoder and fusion.

Shape suffixes: B batch, P patches, D width, V vertices, C classes, n stimuli.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.backbones import Backbone
from bmfl_lab.backbones.tokens import read_tokens
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message, require
from bmfl_lab.evaluation.attention import image_batches
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.models.protocols import BrainEncoder
from bmfl_lab.training.trained import TrainedFusion

BASELINES = ("grey", "black", "blur")
_ROWS = 16


@dataclass(frozen=True)
class Attribution:
    """Hold how much each pixel contributed to one score per image.

    Parameters
    ----------
    pixels : ndarray of float32, shape (n_stimuli, H, W)
        Signed contributions, summed over colour channels.
    patches : ndarray of float32, shape (n_stimuli, h, w)
        The same, summed over the pixels of each patch.
    score, reference : ndarray of float32, shape (n_stimuli,)
        Score of the image and of the baseline.
    gap : ndarray of float32, shape (n_stimuli,)
        Sum of the contributions minus (score - reference); zero for an exact integral.
    target : str
        The score in words.
    """

    pixels: np.ndarray
    patches: np.ndarray
    score: np.ndarray
    reference: np.ndarray
    gap: np.ndarray
    target: str

    @property
    def relative_gap(self) -> np.ndarray:
        """Absolute gap divided by the absolute change of the score, shape (n_stimuli,).

        The divisor is at least the median change over all images, so that an image whose score
        hardly differs from that of the baseline does not get a large gap.
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
        ``function(x (B, ...), index (B,)) -> (B,)``; `index` is the position of the input to which
        each row belongs.
    inputs, baseline : Tensor, shape (n, ...)
        End and start of each line.
    steps : int, default 32
        Number of points of the Gauss-Legendre quadrature.
    rows : int, default 16
        Largest number of rows B per call of `function`, unless there are more inputs.

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
    nodes, weights = (nodes + 1) / 2, weights / 2  # from [-1, 1] to [0, 1]
    index = torch.arange(len(inputs), device=inputs.device)
    ones, per_call = [1] * (inputs.ndim - 1), max(1, rows // max(1, len(inputs)))
    total = torch.zeros_like(inputs)
    for start in range(0, steps, per_call):
        points = nodes[start : start + per_call].tolist()
        n = len(points)
        at = inputs.new_tensor(points).repeat_interleave(len(inputs)).view(-1, *ones)
        x = baseline.repeat(n, *ones) + at * (inputs - baseline).repeat(n, *ones)
        x = x.detach()
        with torch.enable_grad():
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(function(x, index.repeat(n)).sum(), x)
        weight = inputs.new_tensor(weights[start : start + per_call].tolist()).view(-1, 1, *ones)
        total += (gradient.view(n, *inputs.shape) * weight).sum(0)
    attribution = ((inputs - baseline) * total).detach()
    with torch.no_grad():
        change = function(inputs, index) - function(baseline, index)
    return attribution, attribution.flatten(1).sum(1) - change


def baseline_images(images: Tensor, kind: str, backbone: Backbone) -> Tensor:
    """Return images without content, from which integrated gradients start.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W)
        Normalised images.
    kind : {"grey", "black", "blur"}
        The mean colour of ImageNet, black, or the image itself, blurred by a square window of half
        its side.
    backbone : Backbone
        Backbone whose normalisation defines black.

    Returns
    -------
    Tensor, shape (B, 3, H, W)

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    require(
        kind in BASELINES,
        ConfigError,
        f"a baseline among {BASELINES}",
        repr(kind),
        "choose one of them",
    )
    if kind == "grey":
        return torch.zeros_like(images)
    if kind == "blur":
        size = images.shape[-1] // 2 // 2 * 2 + 1
        return functional.avg_pool2d(images, size, 1, size // 2, count_include_pad=False)
    normalisation = backbone.preprocess.describe()
    black = -torch.as_tensor(normalisation["mean"]) / torch.as_tensor(normalisation["std"])
    return black.to(images)[None, :, None, None].expand_as(images).clone()


def class_attribution(
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    *,
    target: str | np.ndarray = "predicted",
    baseline: str = "grey",
    steps: int = 32,
    path: BMFL | None = None,
) -> Attribution:
    """Attribute a class score to pixels by integrated gradients through the whole path.

    Parameters
    ----------
    fusion : TrainedFusion
        Fusion model or baseline whose path can start from images.
    stimuli : StimulusSet
        Images.
    target : "predicted", "label" or ndarray of int, shape (n_stimuli,), default "predicted"
        Class whose logit is attributed.
    baseline : {"grey", "black", "blur"}, default "grey"
        Start of the integral, as in `baseline_images`.
    steps : int, default 32
        Number of quadrature points.
    path : BMFL, optional
        Path in place of ``fusion.path``, e.g. one with random weights.

    Returns
    -------
    Attribution

    Raises
    ------
    ConfigError
        If the path cannot start from images, or `target` or `baseline` is unknown.
    DataError
        If `target` is "label" and an image has none, or a class does not exist.

    References
    ----------
    Sundararajan, Taly & Yan (2017), Axiomatic attribution for deep networks, ICML,
    arXiv:1703.01365.
    """
    path = fusion.path if path is None else path
    classes = _classes(fusion, stimuli, target)

    def score(images: Tensor, index: Tensor) -> Tensor:
        logits = path(images, grad=torch.is_grad_enabled()).logits
        return logits.gather(1, torch.as_tensor(classes, device=logits.device)[index, None])[:, 0]

    which = target if isinstance(target, str) else "given"
    return _attribute(score, path.backbone, stimuli, baseline, steps, f"logit of the {which} class")


def response_attribution(
    encoder: BrainEncoder,
    stimuli: StimulusSet,
    roi: str | np.ndarray,
    *,
    backbone: Backbone | None = None,
    baseline: str = "grey",
    steps: int = 32,
) -> Attribution:
    """Attribute the predicted mean response of an ROI to pixels.

    Parameters
    ----------
    encoder : TrainedEncoder or EncoderEnsemble
        Brain encoder of any kind.
    stimuli : StimulusSet
        Images.
    roi : str or ndarray of bool, shape (n_vertices,)
        ROI or group, e.g. ``"V1"``, or ``"left:V1"`` for one hemisphere; or a mask of vertices.
    backbone : Backbone, optional
        The backbone of the encoder, if it is loaded already; it is loaded by default.
    baseline, steps
        Same as in `class_attribution`.

    Returns
    -------
    Attribution

    Raises
    ------
    ConfigError
        If the ROI is unknown or absent, or `baseline` is unknown.
    """
    mask = roi_vertices(encoder.atlas, roi) if isinstance(roi, str) else np.asarray(roi, bool)
    backbone = encoder.load_backbone() if backbone is None else backbone
    encoder = encoder.to(backbone.device)
    chosen = torch.as_tensor(np.flatnonzero(mask), device=backbone.device)

    def score(images: Tensor, index: Tensor) -> Tensor:
        return response_to_images(encoder, backbone, images).index_select(1, chosen).mean(1)

    name = roi if isinstance(roi, str) else f"{int(mask.sum())} vertices"
    return _attribute(score, backbone, stimuli, baseline, steps, f"predicted response of {name}")


def roi_vertices(atlas: Atlas, name: str) -> np.ndarray:
    """Return the vertices of an ROI or group, e.g. "V1" or "left:V1", bool (n_vertices,).

    Raises
    ------
    ConfigError
        If the name is unknown, or the ROI has no vertices in this subject or hemisphere.
    """
    side, _, roi = name.rpartition(":")
    mask = atlas.select(roi)
    if side:
        mask = mask & (np.asarray(atlas.hemisphere) == int(side == "right"))
    require(
        mask.any() and side in ("", "left", "right"),
        ConfigError,
        "an ROI such as 'V1' or 'left:V1' with vertices",
        repr(name),
        "choose another",
    )
    return mask


def response_to_images(encoder: BrainEncoder, backbone: Backbone, images: Tensor) -> Tensor:
    """Return predicted responses to images; gradients reach the images if they are enabled.

    Parameters
    ----------
    encoder : TrainedEncoder or EncoderEnsemble
        Brain encoder, on the device of the backbone.
    backbone : Backbone
        Backbone of the encoder.
    images : Tensor, shape (B, 3, H, W)
        Normalised images.

    Returns
    -------
    Tensor, shape (B, n_vertices)
    """
    blocks = tuple(dict.fromkeys(s["block"] for s in encoder.sources))
    features, grad = encoder.sources[0]["features"], torch.is_grad_enabled()
    tokens = dict(zip(blocks, backbone(images, blocks=blocks, features=features, grad=grad)))
    return encoder.respond([read_tokens(tokens[s["block"]], s["kind"]) for s in encoder.sources])


def _classes(fusion: TrainedFusion, stimuli: StimulusSet, target: str | np.ndarray) -> np.ndarray:
    if isinstance(target, str) and target == "predicted":
        return fusion.logits(stimuli).argmax(1)
    require(
        not isinstance(target, str) or target == "label",
        ConfigError,
        "target 'predicted', 'label' or one class per image",
        repr(target),
        "choose one",
    )
    classes = np.asarray(stimuli.labels if isinstance(target, str) else target, np.int64)
    n = len(fusion.class_names)
    known = not len(classes) or 0 <= classes.min() <= classes.max() < n
    require(
        classes.shape == (len(stimuli),) and known,
        DataError,
        f"{len(stimuli)} classes from 0 to {n - 1}",
        f"shape {classes.shape}",
        "use target='predicted'",
    )
    return classes


def _attribute(
    function: Callable[[Tensor, Tensor], Tensor],
    backbone: Backbone,
    stimuli: StimulusSet,
    baseline: str,
    steps: int,
    target: str,
) -> Attribution:
    pixels, gaps, scores, references, start = [], [], [], [], 0
    for images in image_batches(backbone, stimuli):
        empty = baseline_images(images, baseline, backbone)

        def shifted(x: Tensor, index: Tensor, start: int = start) -> Tensor:
            return function(x, index + start)

        attribution, gap = integrated_gradients(shifted, images, empty, steps=steps)
        index = torch.arange(len(images), device=images.device)
        with torch.no_grad():
            scores.append(shifted(images, index).cpu().numpy())
            references.append(shifted(empty, index).cpu().numpy())
        pixels.append(attribution.sum(1).cpu().numpy())
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

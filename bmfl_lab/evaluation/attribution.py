"""Attribution of scores to pixels through the whole path: backbone, brain encoder and fusion.

Shape suffixes: B batch, P patches, D width, V vertices, C classes, n stimuli.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bmfl_lab.backbones import Backbone
from bmfl_lab.backbones.tokens import read_tokens
from bmfl_lab.data import Atlas, StimulusSet
from bmfl_lab.errors import ConfigError, DataError, require, require_known
from bmfl_lab.evaluation.attention import image_batches
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.models.protocols import BrainEncoder
from bmfl_lab.training.fusion import TrainedFusion

_ROWS = 16


@dataclass(frozen=True)
class Attribution:
    """Hold how much each pixel contributed to one score per image.

    Parameters
    ----------
    pixels : ndarray of float32, shape (n_stimuli, H, W)
        Signed contributions, summed over colour channels.
    patches : ndarray of float32, shape (n_stimuli, h, w)
        Attribution summed over the pixels of each patch.
    score, reference : ndarray of float32, shape (n_stimuli,)
        Score of the image and of the grey baseline.
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
    require(
        steps >= 1 and inputs.shape == baseline.shape,
        ConfigError,
        "at least 1 step and a baseline of the inputs' shape",
        f"{steps} steps, shapes {tuple(inputs.shape)} and {tuple(baseline.shape)}",
        "pass steps=32, and a baseline made by torch.zeros_like(inputs)",
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
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(function(x, index.repeat(n)).sum(), x)
        weight = inputs.new_tensor(weights[start : start + per_call].tolist()).view(-1, 1, *ones)
        total += (gradient.view(n, *inputs.shape) * weight).sum(0)
    attribution = ((inputs - baseline) * total).detach()
    with torch.no_grad():
        change = function(inputs, index) - function(baseline, index)
    return attribution, attribution.flatten(1).sum(1) - change


def input_gradients(
    function: Callable[[Tensor, Tensor], Tensor], inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the magnitude of the gradient of a function at its input.

    Parameters
    ----------
    function : callable
        ``function(x (B, ...), index (B,)) -> (B,)``, see `integrated_gradients`.
    inputs : Tensor, shape (n, ...)
        Inputs at which the gradient is computed.

    Returns
    -------
    magnitude : Tensor, shape (n, ...)
    gap : Tensor, shape (n,)
        NaN: gradients do not add up to the change of the score.

    Notes
    -----
    Gradients vanish where a score is saturated and stay where it is not used much, so that they may
    mark pixels that decide nothing.

    References
    ----------
    Simonyan et al. (2014), Deep inside convolutional networks, ICLR workshop; Shah, Jain &
    Netrapalli (2021), Do input gradients highlight discriminative features?, NeurIPS (BlockMNIST).
    """
    index = torch.arange(len(inputs), device=inputs.device)
    with torch.enable_grad():
        x = inputs.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(function(x, index).sum(), x)
    return gradient.abs().detach(), inputs.new_full((len(inputs),), float("nan"))


def class_attribution(
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    *,
    target: np.ndarray | None = None,
    steps: int = 32,
    path: BMFL | None = None,
    gradients: str = "integrated",
) -> Attribution:
    """Attribute a class score to pixels by integrated gradients through the whole path.

    The integral starts from a grey image, the mean colour of ImageNet.

    Parameters
    ----------
    fusion : TrainedFusion
        Fusion model or baseline whose path can start from images.
    stimuli : StimulusSet
        Images.
    target : ndarray of int, shape (n_stimuli,), optional
        Class whose logit is attributed; by default the class that the model predicts.
    steps : int, default 32
        Number of quadrature points.
    path : BMFL, optional
        Path in place of ``fusion.path``, e.g. one with random weights.
    gradients : {"integrated", "input"}, default "integrated"
        "input" takes the magnitude of the gradient at the image, see `input_gradients`.

    Returns
    -------
    Attribution

    Raises
    ------
    ConfigError
        If the path cannot start from images, or the kind of gradients is unknown.
    DataError
        If there is not one class per image, or a class does not exist.

    References
    ----------
    Sundararajan, Taly & Yan (2017), Axiomatic attribution for deep networks, ICML,
    arXiv:1703.01365.
    """
    require_known(gradients, ("integrated", "input"), ConfigError, "a kind of gradients")
    path = fusion.path if path is None else path
    classes = _classes(fusion, stimuli, target)

    def score(images: Tensor, index: Tensor) -> Tensor:
        logits = path(images, grad=torch.is_grad_enabled()).logits
        return logits.gather(1, torch.as_tensor(classes, device=logits.device)[index, None])[:, 0]

    which = "predicted" if target is None else "given"
    kind = steps if gradients == "integrated" else None
    return _attribute(score, path.backbone, stimuli, kind, f"logit of the {which} class")


def response_attribution(
    encoder: BrainEncoder,
    stimuli: StimulusSet,
    roi: str,
    *,
    backbone: Backbone | None = None,
    steps: int = 32,
) -> Attribution:
    """Compute how much each pixel contributes to the predicted mean response of an ROI.

    The contributions are integrated gradients that start from a grey image.

    Parameters
    ----------
    encoder : TrainedEncoder or EncoderEnsemble
        Brain encoder of any kind.
    stimuli : StimulusSet
        Images.
    roi : str
        ROI or group, e.g. ``"V1"``, or ``"left:V1"`` for one hemisphere.
    backbone : Backbone, optional
        The backbone of the encoder; by default it is loaded.
    steps : int, default 32
        Number of quadrature points.

    Returns
    -------
    Attribution

    Raises
    ------
    ConfigError
        If the ROI is unknown or has no vertices in this subject.
    """
    backbone = encoder.load_backbone() if backbone is None else backbone
    encoder = encoder.to(backbone.device)
    vertices = np.flatnonzero(roi_vertices(encoder.atlas, roi))
    chosen = torch.as_tensor(vertices, device=backbone.device)

    def score(images: Tensor, index: Tensor) -> Tensor:
        return response_to_images(encoder, backbone, images).index_select(1, chosen).mean(1)

    return _attribute(score, backbone, stimuli, steps, f"predicted response of {roi}")


def class_activation(
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    *,
    target: np.ndarray | None = None,
    path: BMFL | None = None,
) -> np.ndarray:
    """Return the Grad-CAM map of a class score on the patch tokens.

    Parameters
    ----------
    fusion, stimuli, target, path
        See `class_attribution`.

    Returns
    -------
    ndarray of float32, shape (n_stimuli, h, w)
        The sum over the width of the tokens of their value times their gradient averaged over the
        patches, where it is positive. The tokens that the fusion reads and those that the brain
        encoder reads count alike, if both have one token per patch.

    Raises
    ------
    ConfigError, DataError
        See `class_attribution`.

    References
    ----------
    Selvaraju et al. (2017), Grad-CAM, ICCV, arXiv:1610.02391, with patch tokens in place of the
    channels of a convolution.
    """
    path = fusion.path if path is None else path
    classes, found, start = torch.as_tensor(_classes(fusion, stimuli, target)), [], 0
    pool, backbone = path.pool, path.backbone
    grid = (pool, pool) if pool else backbone.grid_of(backbone.image_size, backbone.image_size)
    for images in image_batches(backbone, stimuli):
        chosen = classes[start : start + len(images)]
        start += len(images)
        with torch.no_grad():
            batch = {name: value.clone() for name, value in path.tokens(images).items()}
        n_patches = batch["patches"].shape[1]
        leaves = [n for n in ("patches", "encoder") if n in batch and batch[n].ndim == 3]
        leaves = [name for name in leaves if batch[name].shape[1] == n_patches]
        with torch.enable_grad():
            batch |= {name: batch[name].float().requires_grad_(True) for name in leaves}
            response = path.respond(batch)
            read = batch if response is None else {**batch, "response": response}
            logits = path.classify(read).logits
            score = logits.gather(1, chosen.to(logits.device)[:, None]).sum()
            gradients = torch.autograd.grad(score, [batch[n] for n in leaves], allow_unused=True)
        cam = sum(
            (batch[name].detach() * gradient.mean(1, keepdim=True)).sum(2)
            for name, gradient in zip(leaves, gradients)
            if gradient is not None
        )
        found.append(cam.clamp(min=0).unflatten(1, grid).cpu().numpy())
    return np.concatenate(found).astype(np.float32)


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
        f"choose one of {', '.join(atlas.present)}, or put 'left:' or 'right:' before it",
    )
    return mask


def response_to_images(encoder: BrainEncoder, backbone: Backbone, images: Tensor) -> Tensor:
    """Run images through a backbone and a brain encoder, and return the predicted responses.

    Gradients flow from the responses back to the images if they are enabled in PyTorch.

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


def _classes(fusion: TrainedFusion, stimuli: StimulusSet, target: np.ndarray | None) -> np.ndarray:
    """Return the class of each image whose logit is attributed, int64 (n_stimuli,)."""
    classes = fusion.logits(stimuli).argmax(1) if target is None else np.asarray(target, np.int64)
    n = len(fusion.class_names)
    require(
        classes.shape == (len(stimuli),) and ((classes >= 0) & (classes < n)).all(),
        DataError,
        f"{len(stimuli)} classes from 0 to {n - 1}",
        f"shape {classes.shape}",
        "leave `target` out for the predicted classes",
    )
    return classes


def _attribute(
    function: Callable[[Tensor, Tensor], Tensor],
    backbone: Backbone,
    stimuli: StimulusSet,
    steps: int | None,
    target: str,
) -> Attribution:
    """Attribute by integrated gradients of so many steps, or by input gradients without any."""
    pixels, gaps, scores, references, start = [], [], [], [], 0
    for images in image_batches(backbone, stimuli):
        empty = torch.zeros_like(images)  # grey: normalised images have a mean of zero

        def shifted(x: Tensor, index: Tensor, start: int = start) -> Tensor:
            return function(x, index + start)

        if steps is None:
            attribution, gap = input_gradients(shifted, images)
        else:
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
    _, height, width = maps.shape
    patches = maps.reshape(-1, height // size, size, width // size, size).sum((2, 4))
    score, reference, gap = (
        np.concatenate(v).astype(np.float32) for v in (scores, references, gaps)
    )
    return Attribution(maps, patches, score, reference, gap, target)

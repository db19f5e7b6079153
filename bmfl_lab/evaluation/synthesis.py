"""Images made to drive an ROI: gradient ascent on an encoder under a stated image prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bmfl_lab.errors import ConfigError, NumericsError, require
from bmfl_lab.runtime import seed_for


@dataclass(frozen=True)
class Synthesis:
    """Hold images that were made to drive an ROI.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, H, W, 3)
        Images.
    activity : ndarray, shape (n,)
        Mean predicted activity of the ROI for these images, by the encoder that guided them.
    start : ndarray, shape (n,)
        Mean predicted activity for the images before the first step.
    judged : ndarray, shape (n,), or None
        Mean activity for the final images, predicted by a held-out encoder; None without one.
    prior : str
        The prior of the images in words.
    """

    images: np.ndarray
    activity: np.ndarray
    start: np.ndarray
    judged: np.ndarray | None
    prior: str


def total_variation(images_BCHW: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, (B,), of images (B, 3, H, W)."""
    vertical = (images_BCHW[:, :, 1:] - images_BCHW[:, :, :-1]).abs().mean((1, 2, 3))
    return vertical + (images_BCHW[:, :, :, 1:] - images_BCHW[:, :, :, :-1]).abs().mean((1, 2, 3))


def synthesise_preferred(
    encoder: Callable[[Tensor], Tensor],
    mask: np.ndarray,
    *,
    image_size: int,
    n: int = 4,
    steps: int = 100,
    lr: float = 0.05,
    smoothness: float = 1.0,
    jitter: int = 4,
    judge: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Synthesis:
    """Make images that drive an ROI of a brain encoder.

    Parameters
    ----------
    encoder : callable
        ``encoder(images (B, 3, H, W) in 0..1) -> (B, n_vertices)``, differentiable; does its own
        normalisation.
    mask : ndarray of bool, shape (n_vertices,)
        The ROI whose mean activity is raised.
    image_size : int
        Side in pixels.
    n, steps, lr
        Images, steps of Adam, and its step size in logits of pixel values.
    smoothness : float, default 1
        Weight of total variation.
    jitter : int, default 4
        Largest circular shift in pixels drawn anew at each step, so that no single pixel grid is
        exploited.
    judge : callable, optional
        A held-out encoder of the same vertices.
    seed : int
        Seed of the start (grey with little noise) and of the jitter.
    device : str

    Returns
    -------
    Synthesis

    Raises
    ------
    ConfigError
        If the ROI is empty or a size is not positive.
    NumericsError
        If activity stops being finite.

    Notes
    -----
    The objective is that of BrainDiVE (mean activity of the ROI's voxels); its diffusion model is
    replaced by this plain prior, so images show features, not scenes.

    References
    ----------
    Luo et al. 2023, NeurIPS, arXiv:2306.03089.
    """
    mask = np.asarray(mask, dtype=bool)
    require(
        mask.any() and min(image_size, n, steps) >= 1,
        ConfigError,
        "a non-empty ROI and positive sizes",
        f"{int(mask.sum())} vertices, image_size={image_size}, n={n}, steps={steps}",
        "choose an ROI that this subject has, and sizes of 1 or more",
    )
    generator = torch.Generator().manual_seed(seed_for(seed, "synthesis"))
    chosen = torch.from_numpy(mask).to(device)
    raw = (
        (0.1 * torch.randn(n, 3, image_size, image_size, generator=generator))
        .to(device)
        .requires_grad_()
    )
    optimiser = torch.optim.Adam([raw], lr=lr)

    def activity(images: Tensor, by: Callable[[Tensor], Tensor] = encoder) -> Tensor:
        return by(images)[:, chosen].mean(1)

    with torch.no_grad():
        start = activity(raw.sigmoid()).cpu().numpy()
    for step in range(steps):
        moves = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        images = raw.sigmoid()
        value = activity(images.roll(moves, (2, 3)))
        require(
            torch.isfinite(value).all(),
            NumericsError,
            "finite predicted activity",
            f"NaN at step {step}",
            "lower lr",
        )
        (raw.grad,) = torch.autograd.grad((smoothness * total_variation(images) - value).sum(), raw)
        optimiser.step()
    with torch.no_grad():
        stored = (raw.sigmoid() * 255).round()
        final = activity(stored / 255).cpu().numpy()
        judged = None if judge is None else activity(stored / 255, judge).cpu().numpy()
    prior = (
        f"total variation x {smoothness:g}, circular jitter up to {jitter} px, pixel values in 0..1"
    )
    return Synthesis(stored.byte().permute(0, 2, 3, 1).cpu().numpy(), final, start, judged, prior)

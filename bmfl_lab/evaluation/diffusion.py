"""BrainDiVE: images that drive an ROI, from a diffusion model that the user supplies."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.errors import ConfigError, NumericsError, message, require
from bmfl_lab.evaluation.synthesis import Synthesis
from bmfl_lab.runtime import seed_for

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_diffusion(folder: str | Path, device: str = "cpu") -> DiffusionPipeline:
    """Load a diffusion pipeline from a local folder.

    Parameters
    ----------
    folder : str or Path
        Folder that ``save_pretrained`` of diffusers wrote, with safetensors weights. Nothing is
        downloaded.
    device : str, default "cpu"
        Device of the pipeline.

    Returns
    -------
    diffusers pipeline
        Pipeline with ``unet`` and ``scheduler``, and with ``vae`` for latent diffusion.

    Raises
    ------
    ConfigError
        If diffusers is not installed, or the folder does not contain a complete pipeline with a
        U-Net and a scheduler.
    """
    require(
        importlib.util.find_spec("diffusers") is not None,
        ConfigError,
        "the package diffusers",
        "it is not installed",
        "install the extra: pip install 'bmfl-lab[diffusion]'",
    )
    folder = Path(folder)
    require(
        (folder / "model_index.json").is_file(),
        ConfigError,
        "a diffusers folder with model_index.json",
        f"none in {folder}",
        "give the folder into which save_pretrained wrote the pipeline",
    )
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            message(
                f"a complete pipeline in {folder.name}",
                str(error).split("\n")[0][:200],
                "save it with safetensors",
            )
        ) from error
    require(
        hasattr(pipeline, "unet") and hasattr(pipeline, "scheduler"),
        ConfigError,
        "a pipeline with a unet and a scheduler",
        type(pipeline).__name__,
        "use a DDIM or a latent diffusion pipeline",
    )
    return pipeline.to(device)


def _decode(pipeline: DiffusionPipeline, x_BCHW: Tensor) -> Tensor:
    """Return pixels in 0..1 of clean samples: decoded latents, or the samples themselves."""
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    if vae is not None:
        x_BCHW = vae.decode(x_BCHW / getattr(vae.config, "scaling_factor", 1.0)).sample
    return ((x_BCHW + 1) / 2).clamp(0, 1)


def _predict(
    pipeline: DiffusionPipeline, x_BCHW: Tensor, t: Tensor, condition: Tensor | None
) -> Tensor:
    """Return the predicted noise of noisy samples at the time step `t`."""
    x_BCHW = pipeline.scheduler.scale_model_input(x_BCHW, t)
    options = {} if condition is None else {"encoder_hidden_states": condition}
    return pipeline.unet(x_BCHW, t, **options).sample


def _no_words(pipeline: DiffusionPipeline, n: int, device: str) -> Tensor | None:
    """Return the embedding of the empty text, for pipelines that are conditioned on text."""
    if getattr(pipeline, "text_encoder", None) is None:
        return None
    words = pipeline.tokenizer(
        [""] * n,
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        return_tensors="pt",
    )
    with torch.no_grad():
        return pipeline.text_encoder(words.input_ids.to(device))[0]


def synthesise_with_diffusion(
    pipeline: DiffusionPipeline,
    encoder: Callable[[Tensor], Tensor],
    mask: np.ndarray,
    *,
    image_size: int,
    n: int = 4,
    steps: int = 50,
    guidance: float = 100.0,
    judge: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Synthesis:
    """Sample images that drive an ROI from a diffusion model, guided by a brain encoder.

    At each step the gradient of the mean predicted activity is subtracted from the predicted noise.
    The gradient is taken at a mixture of two images: the current estimate of the clean image with
    weight sqrt(1 - a), and the current sample with weight 1 - sqrt(1 - a). Here a is the cumulative
    product of the noise schedule.

    Parameters
    ----------
    pipeline : diffusers pipeline
        Pipeline from `load_diffusion`. Its scheduler must predict noise ("epsilon") and have
        ``alphas_cumprod``.
    encoder : callable
        ``encoder(images (B, 3, image_size, image_size) in 0..1) -> (B, n_vertices)``,
        differentiable.
    mask : ndarray of bool, shape (n_vertices,)
        Vertices of the ROI.
    image_size : int
        Side of the encoder's images in pixels; samples are resized to it.
    n : int, default 4
        Number of images.
    steps : int, default 50
        Number of denoising steps.
    guidance : float, default 100
        Weight of the gradient; 0 samples without guidance.
    judge : callable, optional
        Held-out encoder of the same vertices, which takes no part in the sampling.
    seed : int, default 0
        Seed of the initial noise.
    device : str, default "cpu"
        Device of the pipeline and the encoder.

    Returns
    -------
    Synthesis
        ``start`` is the activity for images from the same noise without guidance.

    Raises
    ------
    ConfigError
        If the ROI is empty, or the scheduler does not predict noise.
    NumericsError
        If the activity or its gradient is not finite.

    Notes
    -----
    The default guidance is our choice; the best value depends on the scale of the encoder.

    References
    ----------
    Luo et al. (2023), Brain diffusion for visual exploration (BrainDiVE), NeurIPS,
    arXiv:2306.03089.
    """
    mask = np.asarray(mask, dtype=bool)
    kind = getattr(pipeline.scheduler.config, "prediction_type", "epsilon")
    remedy = "choose an ROI that this subject has"
    require(mask.any(), ConfigError, "a non-empty ROI", "no vertex", remedy)
    require(
        kind == "epsilon" and hasattr(pipeline.scheduler, "alphas_cumprod"),
        ConfigError,
        "a scheduler that predicts noise",
        f"prediction_type={kind!r} of {type(pipeline.scheduler).__name__}",
        "use a DDIM scheduler with prediction_type='epsilon'",
    )
    for name in ("unet", "vae", "vqvae", "text_encoder"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).requires_grad_(False)
    chosen = torch.from_numpy(mask).to(device)

    def activity(pixels: Tensor, by: Callable[[Tensor], Tensor] = encoder) -> Tensor:
        sized = functional.interpolate(
            pixels, (image_size, image_size), mode="bilinear", antialias=True
        )
        return by(sized)[:, chosen].mean(1)

    def stored(weight: float) -> Tensor:
        return (_sample(pipeline, activity, n, steps, weight, seed, device) * 255).round()

    with torch.no_grad():
        start = activity(stored(0.0) / 255).cpu().numpy()
        images = stored(guidance)
        final = activity(images / 255).cpu().numpy()
        judged = None if judge is None else activity(images / 255, judge).cpu().numpy()
    require(
        np.isfinite(final).all(),
        NumericsError,
        "finite predicted activity",
        "NaN",
        "lower guidance",
    )
    prior = f"{type(pipeline).__name__}, {steps} steps, guidance {guidance:g}"
    return Synthesis(images.byte().permute(0, 2, 3, 1).cpu().numpy(), final, start, judged, prior)


def _sample(
    pipeline: DiffusionPipeline,
    activity: Callable[[Tensor], Tensor],
    n: int,
    steps: int,
    guidance: float,
    seed: int,
    device: str,
) -> Tensor:
    """Return n samples as pixels (n, 3, H, W) in 0..1, guided by the gradient of `activity`."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    scheduler.set_timesteps(steps, device=device)
    generator = torch.Generator().manual_seed(seed_for(seed, "diffusion"))
    size = unet.config.sample_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    x = torch.randn(n, unet.config.in_channels, *sides, generator=generator).to(device, unet.dtype)
    x = x * scheduler.init_noise_sigma
    condition = _no_words(pipeline, n, device)
    for t in scheduler.timesteps:
        kept = scheduler.alphas_cumprod[int(t)].to(device)
        noisy = (1 - kept).sqrt()
        with torch.set_grad_enabled(guidance != 0):
            at = x.detach().requires_grad_(guidance != 0)
            predicted = _predict(pipeline, at, t, condition)
            noise = predicted.detach()
            if guidance:
                clean = (at - noisy * predicted) / kept.sqrt()
                # as published: mostly the clean estimate while there is much noise, and mostly the
                # sample at the end
                value = activity(_decode(pipeline, noisy * clean + (1 - noisy) * at).float()).sum()
                (gradient,) = torch.autograd.grad(value, at)
                require(
                    torch.isfinite(gradient).all(),
                    NumericsError,
                    "a finite gradient of activity",
                    f"NaN at step {int(t)}",
                    "lower guidance",
                )
                noise = noise - noisy * guidance * gradient
        x = scheduler.step(noise, t, x).prev_sample
    with torch.no_grad():
        return _decode(pipeline, x).float()

"""BrainDiVE: images that drive an ROI, from a diffusion model that the user supplies."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.errors import ConfigError, NumericsError, message, require
from bmfl_lab.evaluation.synthesis import Synthesis
from bmfl_lab.runtime import seed_for

EXTRA = "diffusion"


def load_diffusion(folder: str | Path, device: str = "cpu") -> Any:
    """Load a diffusion pipeline from a local folder.

    Parameters
    ----------
    folder : str or Path
        As ``save_pretrained`` of diffusers writes it, with safetensors weights. Nothing is fetched.
    device : str

    Returns
    -------
    diffusers pipeline
        With ``unet`` and ``scheduler``, and for latent diffusion ``vae``.

    Raises
    ------
    ConfigError
        If diffusers is not installed, or the folder holds no pipeline that can be used.
    """
    require(
        importlib.util.find_spec("diffusers") is not None,
        ConfigError,
        "the package diffusers",
        "it is not installed",
        f"install the extra: pip install 'bmfl-lab[{EXTRA}]'",
    )
    folder = Path(folder)
    require(
        (folder / "model_index.json").is_file(),
        ConfigError,
        "a diffusers folder with model_index.json",
        f"none in {folder}",
        "check the path",
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
        "use a DDIM or latent one",
    )
    return pipeline.to(device)


def _decode(pipeline: Any, x_BCHW: Tensor) -> Tensor:
    """Return pixels in 0..1 of clean samples: decoded latents, or the samples themselves."""
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    if vae is not None:
        x_BCHW = vae.decode(x_BCHW / getattr(vae.config, "scaling_factor", 1.0)).sample
    return ((x_BCHW + 1) / 2).clamp(0, 1)


def _predict(pipeline: Any, x_BCHW: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    x_BCHW = pipeline.scheduler.scale_model_input(x_BCHW, t)
    if condition is None:
        return pipeline.unet(x_BCHW, t).sample
    return pipeline.unet(x_BCHW, t, encoder_hidden_states=condition).sample


def _no_words(pipeline: Any, n: int, device: str) -> Tensor | None:
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
    pipeline: Any,
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
    """Sample images from a diffusion model, steered by the predicted activity of an ROI.

    At each step the gradient of mean predicted activity is subtracted from the predicted noise. It
    is taken at a mixture of the model's current estimate of the clean image and the current sample,
    weighted by sqrt(1 - a) and 1 - sqrt(1 - a), a being the cumulative product of the noise
    schedule.

    Parameters
    ----------
    pipeline : diffusers pipeline
        From `load_diffusion`, with a scheduler that predicts noise ("epsilon") and has
        ``alphas_cumprod``.
    encoder : callable
        As in `synthesise_preferred`: pixels (B, 3, image_size, image_size) in 0..1 to (B,
        n_vertices).
    mask : ndarray of bool, shape (n_vertices,)
        The ROI.
    image_size : int
        Side that the encoder takes; samples are resized to it.
    n, steps : int
        Images and denoising steps.
    guidance : float, default 100
        Weight of the gradient; 0 samples without a brain. Our choice: it depends on the encoder's
        scale.
    judge : callable, optional
        A held-out encoder.
    seed : int
    device : str

    Returns
    -------
    Synthesis
        ``start`` is the activity of the same noise sampled without guidance.

    Raises
    ------
    ConfigError
        If the ROI is empty, or the scheduler predicts something else than noise.
    NumericsError
        If activity stops being finite.

    References
    ----------
    Luo et al. 2023, NeurIPS, arXiv:2306.03089 (BrainDiVE).
    """
    mask = np.asarray(mask, dtype=bool)
    kind = getattr(pipeline.scheduler.config, "prediction_type", "epsilon")
    require(
        mask.any() and kind == "epsilon" and hasattr(pipeline.scheduler, "alphas_cumprod"),
        ConfigError,
        "a non-empty ROI and a scheduler that predicts noise",
        f"{int(mask.sum())} vertices, prediction_type={kind!r}, "
        f"{type(pipeline.scheduler).__name__}",
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
    pipeline: Any, activity: Callable, n: int, steps: int, guidance: float, seed: int, device: str
) -> Tensor:
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
                # as published: the clean estimate while there is noise, the sample itself towards
                # the end
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

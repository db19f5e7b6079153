"""Images that fit decoded embeddings, made by a generator of the user or by gradient ascent.

Shapes: n images, D width of the embedding, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bmfl_lab.backbones import Backbone
from bmfl_lab.backbones.tokens import read_tokens
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.attention_checks import structural_similarity
from bmfl_lab.evaluation.decoding import identify
from bmfl_lab.evaluation.diffusion import synthesise_with_diffusion
from bmfl_lab.evaluation.synthesis import synthesise_preferred
from bmfl_lab.metrics.statistics import bootstrap_mean

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Embed = Callable[[Tensor], Tensor]
"""Differentiable function of images (B, 3, S, S) in 0..1 that returns embeddings (B, D)."""


def embed_with(backbone: Backbone, tokens: str = "cls", block: int = -1) -> Embed:
    """Return a differentiable function from images to the features of a backbone.

    Parameters
    ----------
    backbone : Backbone
        Frozen backbone.
    tokens : str, default "cls"
        "cls", "cls+mean" or "pooled:G".
    block : int, default -1
        Block of the backbone; -1 is the last one.

    Returns
    -------
    callable
        Function of images (B, 3, S, S) in 0..1, S being the image size of the backbone.
    """
    prepare = backbone.preprocess
    mean, std = (
        torch.tensor(v, device=backbone.device).view(1, 3, 1, 1)
        for v in (prepare.mean, prepare.std)
    )

    def embed(images: Tensor) -> Tensor:
        pixels = (images.to(backbone.device) - mean) / std
        (found,) = backbone(pixels, blocks=(block % backbone.n_blocks,), grad=True)
        return read_tokens(found, tokens).flatten(1)

    return embed


def reconstruct(
    decoded: np.ndarray,
    embed: Embed,
    centre: np.ndarray,
    *,
    image_size: int,
    pipeline: DiffusionPipeline | None = None,
    seed: int = 0,
    device: str = "cpu",
    **options: object,
) -> np.ndarray:
    """Make one image per decoded embedding, whose own embedding is as similar to it as possible.

    Parameters
    ----------
    decoded : ndarray, shape (n, D)
        Decoded embeddings, from `Decoder.predict`.
    embed : callable
        Embeds images, for example the image tower from which the embeddings came.
    centre : ndarray, shape (D,)
        Mean embedding of the training images, which is subtracted before the cosine is taken.
    image_size : int
        Side of the images that `embed` reads, in pixels.
    pipeline : diffusers pipeline, optional
        Generator from `load_diffusion`; by default the plain prior of `synthesise_preferred`.
    seed : int, default 0
        Seed of the first image; each further one has the next seed.
    device : str, default "cpu"
        Device of the generator.
    **options
        Further arguments of `synthesise_with_diffusion` or `synthesise_preferred`.

    Returns
    -------
    ndarray of uint8, shape (n, S, S, 3)

    Raises
    ------
    DataError
        If decoded embeddings and `centre` differ in width.

    Notes
    -----
    No generator is trained or shipped here. Takagi & Nishimoto (2023) and Brain-Diffuser condition
    a generator on decoded embeddings; guidance by the gradient of the cosine, as BrainDiVE guides
    by an ROI, is our choice, because it needs no particular generator.
    """
    decoded, centre = np.asarray(decoded, np.float32), np.asarray(centre, np.float32)
    require(
        decoded.ndim == 2 and centre.shape == decoded.shape[1:],
        DataError,
        f"decoded embeddings (n, D) and their mean of width {decoded.shape[-1]}",
        f"shapes {decoded.shape} and {centre.shape}",
        "pass decoder.centre of the decoder that decoded them",
    )
    middle, found = torch.from_numpy(centre).to(device), []
    for k, row in enumerate(torch.from_numpy(decoded).to(device)):

        def objective(images: Tensor, wanted: Tensor = row - middle) -> Tensor:
            return torch.cosine_similarity(embed(images) - middle, wanted[None])[:, None]

        setting = {"image_size": image_size, "n": 1, "seed": seed + k, "device": device, **options}
        mask = np.array([True])
        made = (
            synthesise_preferred(objective, mask, **setting)
            if pipeline is None
            else synthesise_with_diffusion(pipeline, objective, mask, **setting)
        )
        found.append(made.images[0])
    return np.stack(found)


def reconstruction_scores(
    images: np.ndarray,
    seen: np.ndarray,
    *,
    embeddings: tuple[np.ndarray, np.ndarray] | None = None,
    responses: tuple[np.ndarray, np.ndarray] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare reconstructions with the images that were seen, and with the others as a control.

    Parameters
    ----------
    images, seen : ndarray of uint8, shape (n, S, S, 3)
        Reconstructions and the images that were seen, in the same order.
    embeddings : (ndarray, ndarray), each of shape (n, D), optional
        Embeddings of both by a model that took no part in the reconstruction, for retrieval.
    responses : (ndarray, ndarray), each of shape (n, V), optional
        Responses to the reconstructions, predicted by an encoder that took no part in it, and
        measured responses to the images that were seen, both minus the training mean.
    n_boot : int, default 1000
        Bootstrap resamples of the images.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    DataFrame
        Rows "pixel correlation", "structural similarity", with `embeddings` "two-way
        identification", and with `responses` "held-out encoder, two-way"; columns score, value,
        ci_low, ci_high, and control: the mean over wrong pairs, or 0.5 for the identification.

    Raises
    ------
    DataError
        If shapes differ or there are fewer than two images.
    """
    images, seen = np.asarray(images), np.asarray(seen)
    require(
        images.shape == seen.shape and images.ndim == 4 and len(images) >= 2,
        DataError,
        "two or more reconstructions of the same shape (n, S, S, 3) as the images that were seen",
        f"{images.shape} and {seen.shape}",
        "resize both to one size",
    )
    n, wrong = len(images), ~np.eye(len(images), dtype=bool)
    grey = [x.astype(np.float64).mean(3) for x in (images, seen)]
    tables = {
        "pixel correlation": np.corrcoef(*(x.reshape(n, -1) for x in grey))[:n, n:],
        "structural similarity": np.array(
            [[structural_similarity(a, b) for b in grey[1]] for a in grey[0]]
        ),
    }
    rows = []
    for score, table in tables.items():
        found = bootstrap_mean(np.diag(table), n_boot=n_boot, seed=seed)
        rows.append((score, found.value, found.low, found.high, float(table[wrong].mean())))
    judges = {"two-way identification": embeddings, "held-out encoder, two-way": responses}
    for named, pair in judges.items():
        if pair is not None:
            found = identify(*pair, n_boot=n_boot, seed=seed)
            rows.append((named, found.two_way, found.two_way_low, found.two_way_high, 0.5))
    return pd.DataFrame(rows, columns=["score", "value", "ci_low", "ci_high", "control"])

"""Reconstruction by a generator of the user, driven by embeddings that were decoded.

Shapes: n images, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.backbones import Backbone
from bmfl_lab.errors import DataError, require
from bmfl_lab.evaluation.attention_checks import structural_similarity
from bmfl_lab.evaluation.decoding import Identification, identify
from bmfl_lab.metrics.statistics import Interval, bootstrap_mean
from bmfl_lab.records import MetricRow


def embedding_match(
    backbone: Backbone, targets: np.ndarray, centre: np.ndarray | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function that tells how close images come to embeddings decoded from responses.

    It takes the place of the brain encoder in `synthesise_with_diffusion` and
    `synthesise_preferred`, with ``mask=[True]`` and one image per target, so that a generator makes
    an image for each decoded embedding.

    Parameters
    ----------
    backbone : Backbone
        Backbone whose class tokens were decoded; gradients flow through it to the pixels.
    targets : ndarray, shape (n, D)
        Decoded embeddings, see `Decoder.predict`.
    centre : ndarray, shape (D,), optional
        Mean embedding of the training images, subtracted from both; zero by default.

    Returns
    -------
    callable
        ``function(images (n, 3, H, W) in 0..1) -> (n, 1)``: cosine of the class token of each image
        with its target.

    Raises
    ------
    DataError
        If the width is not that of the backbone, or a target is not finite. When called: if there
        is not one image per target.

    References
    ----------
    Takagi & Nishimoto (2023), CVPR, and Luo et al. (2023), arXiv:2306.03089 (BrainDiVE), drive a
    diffusion model by responses.
    """
    targets = np.asarray(targets, np.float32)
    require(
        targets.ndim == 2 and targets.shape[1] == backbone.width and np.isfinite(targets).all(),
        DataError,
        f"finite embeddings of shape (n, {backbone.width}), the width of {backbone.name}",
        targets.shape,
        "decode class tokens of this backbone",
    )
    middle = np.zeros(backbone.width, np.float32) if centre is None else np.asarray(centre)
    where = backbone.device
    wanted = torch.from_numpy(targets - middle).to(where)
    offset = torch.from_numpy(middle.astype(np.float32)).to(where)
    mean, std = (
        torch.tensor(v, device=where).view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )

    def function(images: Tensor) -> Tensor:
        require(
            len(images) == len(wanted),
            DataError,
            f"one image for each of the {len(wanted)} targets",
            len(images),
            "pass n, the number of targets, to the generator",
        )
        tokens = backbone((images.to(where) - mean) / std, grad=torch.is_grad_enabled()).cls
        return functional.cosine_similarity(tokens - offset, wanted)[:, None]

    return function


@dataclass(frozen=True)
class ReconstructionScore:
    """Hold how well made images match those that were seen.

    Parameters
    ----------
    identification : Identification
        Retrieval of the seen image by a held-out embedding of the made one; chance 0.5 two-way.
    pixel_r : Interval
        Pearson correlation of the pixels.
    ssim : Interval
        Structural similarity of the grey images.
    """

    identification: Identification
    pixel_r: Interval
    ssim: Interval


def score_reconstructions(
    made: np.ndarray,
    seen: np.ndarray,
    made_embeddings: np.ndarray,
    seen_embeddings: np.ndarray,
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> ReconstructionScore:
    """Judge made images by retrieval with a held-out network and by low-level similarity.

    Parameters
    ----------
    made, seen : ndarray of uint8, shape (n, H, W, 3)
        Made images, and the images that were seen, in the same order and size.
    made_embeddings, seen_embeddings : ndarray, shape (n, d)
        Their embeddings by a network that took no part in making them.
    n_boot : int, default 1000
        Bootstrap resamples of the images.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    ReconstructionScore

    Raises
    ------
    DataError
        If shapes differ.

    Notes
    -----
    The pixel correlation and the structural similarity are those of Ozcelik & VanRullen (2023),
    with the window of `structural_similarity`; both reward blurred images, so that they are read
    beside the retrieval and never alone.
    """
    made, seen = np.asarray(made), np.asarray(seen)
    require(
        made.ndim == 4 and made.shape == seen.shape and made.shape[3] == 3,
        DataError,
        "made and seen images of one shape (n, H, W, 3)",
        f"{made.shape} and {seen.shape}",
        "resize the made images to those that were seen",
    )
    flat = [x.reshape(len(x), -1).astype(np.float64) for x in (made, seen)]
    centred = [x - x.mean(1, keepdims=True) for x in flat]
    sizes = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
    pixel_r = (centred[0] * centred[1]).sum(1) / np.maximum(sizes, 1e-12)
    grey = [x.astype(np.float64).mean(3) for x in (made, seen)]
    ssim = np.array([structural_similarity(a, b) for a, b in zip(*grey)])
    options = {"n_boot": n_boot, "seed": seed}
    return ReconstructionScore(
        identify(made_embeddings, seen_embeddings, **options),
        bootstrap_mean(pixel_r, **options),
        bootstrap_mean(ssim, **options),
    )


def reconstruction_rows(score: ReconstructionScore, **fields) -> list[MetricRow]:
    """Return rows ``reconstruction_two_way``, ``reconstruction_pixel_r``, ``reconstruction_ssim``.

    Parameters
    ----------
    score : ReconstructionScore
        The scores.
    **fields
        Other fields of `MetricRow`.
    """
    found = score.identification
    two_way = Interval(
        found.two_way, found.two_way_low, found.two_way_high, found.n, 1, 0.95, score.ssim.method
    )
    said = fields.pop("notes", "")
    parts = [
        ("two_way", two_way, "fraction", "chance 0.5"),
        ("pixel_r", score.pixel_r, "r", "chance 0 for unrelated images"),
        ("ssim", score.ssim, "fraction", "no chance level"),
    ]
    return [
        MetricRow(
            f"reconstruction_{name}",
            x.value,
            unit=unit,
            n=x.n,
            ci_low=x.low,
            ci_high=x.high,
            interval=x.method,
            notes="; ".join(filter(None, (chance, said))),
            **{"selection": "none", **fields},
        )
        for name, x, unit, chance in parts
    ]

"""Deletion and insertion curves: are the patches that a map marks those that the model uses?

Maps are float arrays (n_stimuli, h, w), one value a patch; signed maps are ordered by magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message
from bmfl_lab.evaluation.attention import image_batches
from bmfl_lab.evaluation.attention_checks import as_maps
from bmfl_lab.evaluation.attribution import baseline_images, differentiable_patches, roi_vertices
from bmfl_lab.runtime import rng


@dataclass(frozen=True)
class DeletionInsertion:
    """Score of the model while patches are taken away, or brought back, in the order of a map.

    Parameters
    ----------
    fraction : ndarray, shape (k,)
        Share of the patches changed, 0 to 1.
    deletion, insertion : ndarray, shape (n_stimuli, k)
        Score after that share of the patches, strongest first, was replaced by the baseline, or by
        the image.
    random_deletion, random_insertion : ndarray, shape (n_stimuli, k)
        The same for random orders, mean over orders. An order inserts in the reverse of the order
        in which it deletes, so that both curves come from the same masked images.
    """

    fraction: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    def areas(self) -> pd.DataFrame:
        """Return the area under each curve (trapezoid), one row a stimulus, one column a curve."""
        names = ("deletion", "insertion", "random_deletion", "random_insertion")
        return pd.DataFrame(
            {k: np.trapezoid(getattr(self, k), self.fraction, axis=1) for k in names}
        )

    def table(self, name: str) -> pd.DataFrame:
        """Return the mean curves with 1.96 standard errors over stimuli: map, kind, order, fraction, mean, low, high."""
        parts = []
        for kind in ("deletion", "insertion"):
            for order, field in (("map", kind), ("random", f"random_{kind}")):
                values = getattr(self, field)
                mean = values.mean(0)
                reach = (
                    1.96 * values.std(0, ddof=1) / np.sqrt(len(values))
                    if len(values) > 1
                    else np.nan
                )
                found = {
                    "fraction": self.fraction,
                    "mean": mean,
                    "low": mean - reach,
                    "high": mean + reach,
                }
                parts.append(pd.DataFrame({"map": name, "kind": kind, "order": order, **found}))
        return pd.concat(parts, ignore_index=True)


def deletion_insertion(
    score: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    baseline: Tensor,
    maps: np.ndarray,
    *,
    steps: int = 16,
    n_random: int = 4,
    seed: int = 0,
    batch_size: int = 32,
    reference: DeletionInsertion | None = None,
) -> DeletionInsertion:
    """Measure whether the patches that a map marks are those the model uses.

    Parameters
    ----------
    score : callable
        ``score(images (B, 3, H, W), index (B,)) -> (B,)``, for example the probability of the
        predicted class; `index` says which of the n images each row comes from.
    images, baseline : Tensor, shape (n, 3, H, W)
        Normalised images, and what replaces a patch.
    maps : ndarray, shape (n, h, w)
        By magnitude; ties keep the order of the patches.
    steps : int, default 16
        Points after the first; the number of patches if that is smaller.
    n_random : int, default 4
        Random orders an image.
    seed, batch_size : int
        Of the random orders; images in one call.
    reference : DeletionInsertion, optional
        Curves of another map of the same images and score, whose random orders serve again: they do
        not depend on the map, and cost most of the time.

    Returns
    -------
    DeletionInsertion

    Raises
    ------
    DataError
        If images, baseline and maps do not fit each other, or the reference has other points or
        images.

    References
    ----------
    Petsiuk, Das & Saenko (2018), RISE, BMVC, arXiv:1806.07421. The random orders are our choice of
    a reference: a patched image is itself out of distribution, so an area means little on its own.
    """
    strength = as_maps(maps)
    n, rows, columns = strength.shape
    if (
        images.shape != baseline.shape
        or len(images) != n
        or images.shape[2] % rows
        or images.shape[3] % columns
    ):
        got = f"{tuple(images.shape)}, {tuple(baseline.shape)} and maps {strength.shape}"
        raise DataError(
            message("images, a baseline of their shape and one map an image", got, "align them")
        )
    cells = rows * columns
    counts = np.unique(np.linspace(0, cells, min(steps, cells) + 1).round().astype(int))
    counts = np.unique(
        np.concatenate([counts, cells - counts])
    )  # the same whether patches go or come
    if reference is not None and reference.random_deletion.shape != (n, len(counts)):
        got = f"{reference.random_deletion.shape}"
        raise DataError(
            message(
                f"reference curves of shape {(n, len(counts))}",
                got,
                "use the same images and steps",
            )
        )
    whole = np.stack(
        [np.zeros((n, rows, columns), bool), np.ones((n, rows, columns), bool)], axis=1
    )
    ends = _score_masked(score, images, baseline, whole, batch_size)

    def curve(rank: np.ndarray) -> np.ndarray:
        """Return the scores while patches of rank 0, 1, ... are taken away; its ends are the same for all orders."""
        gone = (rank[:, None] < counts[None, 1:-1, None]).reshape(n, len(counts) - 2, rows, columns)
        inner = _score_masked(score, images, baseline, gone, batch_size)
        return np.concatenate([ends[:, :1], inner, ends[:, 1:]], axis=1)

    # rank of each patch: 0 is taken away first
    by_map = np.argsort(np.argsort(-strength.reshape(n, cells), axis=1, kind="stable"), axis=1)
    if reference is None:
        random = np.stack(
            [
                [rng(seed, "order", r, i).permutation(cells) for i in range(n)]
                for r in range(n_random)
            ]
        )
        deleted = np.mean([curve(r) for r in random], axis=0)
        at_random = deleted, deleted[:, ::-1]
    else:
        at_random = reference.random_deletion, reference.random_insertion
    # what is brought back first is taken away last
    return DeletionInsertion(
        counts / cells, curve(by_map), curve(cells - 1 - by_map)[:, ::-1], *at_random
    )


def _score_masked(
    score, images: Tensor, baseline: Tensor, gone: np.ndarray, batch_size: int
) -> np.ndarray:
    n, k = gone.shape[:2]
    block = (images.shape[2] // gone.shape[2], images.shape[3] // gone.shape[3])
    flat, found = torch.from_numpy(gone.reshape(n * k, *gone.shape[2:])).to(images.device), []
    owner = torch.arange(n, device=images.device).repeat_interleave(k)
    for start in range(0, n * k, batch_size):
        index = owner[start : start + batch_size]
        mask = (
            flat[start : start + batch_size]
            .repeat_interleave(block[0], 1)
            .repeat_interleave(block[1], 2)
        )
        with torch.inference_mode():
            found.append(
                score(torch.where(mask[:, None], baseline[index], images[index]), index)
                .float()
                .cpu()
            )
    return torch.cat(found).numpy().reshape(n, k)


def class_curves(
    fusion: Any, stimuli: StimulusSet, maps: np.ndarray, *, baseline: str = "grey", **options: Any
) -> DeletionInsertion:
    """Return the curves of the probability of the class that the model predicts for the whole image.

    Parameters
    ----------
    fusion : TrainedFusion
        Whose path can be assembled.
    stimuli : StimulusSet
        Images.
    maps : ndarray, shape (n_stimuli, h, w)
        One map an image.
    baseline : {"grey", "black", "blur"}
        What replaces a patch.
    **options
        As `deletion_insertion`.

    Raises
    ------
    ConfigError, DataError
        As `deletion_insertion` and `TrainedFusion.assemble`.
    """
    path = fusion.path.eval()
    images = torch.cat(list(image_batches(path.backbone, stimuli)))
    classes = torch.as_tensor(fusion.logits(stimuli).argmax(1), device=images.device)

    def score(part: Tensor, index: Tensor) -> Tensor:
        return path(part).logits.softmax(1).gather(1, classes[index, None])[:, 0]

    return deletion_insertion(
        score, images, baseline_images(images, baseline, path.backbone), maps, **options
    )


def response_curves(
    encoder: Any,
    stimuli: StimulusSet,
    maps: np.ndarray,
    roi: str,
    *,
    backbone: Any = None,
    baseline: str = "grey",
    **options: Any,
) -> DeletionInsertion:
    """Return the curves of how much of an ROI's predicted response is there.

    The score is ``1 - |y - y_image|^2 / |y_baseline - y_image|^2`` over the ROI's vertices: 1 for
    the whole image, 0 for the empty one; below 0 where a patched image moves the prediction further
    away than an empty one does.

    Parameters
    ----------
    encoder : TrainedEncoder
    stimuli, maps, baseline, options
        As `class_curves`.
    roi : str
        An ROI or group, or ``"left:V1"``.
    backbone : Backbone, optional
        The encoder's, if it is loaded already.

    Raises
    ------
    ConfigError, DataError
        As `roi_vertices` and `deletion_insertion`.
    """
    backbone = encoder.load_backbone() if backbone is None else backbone
    module = encoder.module.to(backbone.device).eval()
    images = torch.cat(list(image_batches(backbone, stimuli)))
    empty = baseline_images(images, baseline, backbone)
    chosen = torch.as_tensor(np.flatnonzero(roi_vertices(encoder.atlas, roi)), device=images.device)

    def predict(part: Tensor) -> Tensor:
        with torch.no_grad():
            return module(differentiable_patches(backbone, part, encoder.sources)).index_select(
                1, chosen
            )

    whole, nothing = (torch.cat([predict(p) for p in v.split(32)]) for v in (images, empty))
    distance = (nothing - whole).square().sum(1).clamp_min(1e-12)

    def score(part: Tensor, index: Tensor) -> Tensor:
        return 1 - (predict(part) - whole[index]).square().sum(1) / distance[index]

    return deletion_insertion(score, images, empty, maps, **options)

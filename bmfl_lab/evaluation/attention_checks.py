"""Sanity checks of attention maps and attributions: are these maps trustworthy?

A map is compared with that of a model with random weights and of a model trained on shuffled
labels or responses; deletion and insertion curves test whether the model uses the marked patches.
One ``check_...`` function per kind of map returns the map with all its checks.

Maps are float arrays of shape (n_stimuli, h, w), one value per patch. The magnitudes of signed maps
(gradients) are used.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import ndimage, stats
from torch import Tensor, nn

from bmfl_lab.backbones import Backbone
from bmfl_lab.data import StimulusSet, Study
from bmfl_lab.errors import ConfigError, DataError, require, require_known
from bmfl_lab.evaluation.attention import (
    backbone_attention,
    brain_attention,
    image_batches,
    queries_of,
    query_names,
    roi_attention,
    rollout,
)
from bmfl_lab.evaluation.attention_outcomes import CheckRow, check_row
from bmfl_lab.evaluation.attribution import (
    Attribution,
    class_activation,
    class_attribution,
    response_to_images,
    roi_vertices,
)
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.models.protocols import BrainEncoder
from bmfl_lab.runtime import rng, seed_for
from bmfl_lab.training.fusion import TrainedFusion
from bmfl_lab.training.trained_encoder import TrainedEncoder

SSIM_WINDOW = 7
"""Side of the window of the structural similarity in patches; our choice for small maps."""

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(images (B, 3, H, W), index (B,)) -> (B,)``; `index` is the position of each image."""


# --- comparing maps


def _magnitudes(maps: np.ndarray) -> np.ndarray:
    """Return the magnitude of maps as float64, shape (n_stimuli, h, w).

    Raises
    ------
    DataError
        If the maps do not have three axes, or are not finite.
    """
    magnitude = np.abs(np.asarray(maps, np.float64))
    expected = "finite maps of shape (n_stimuli, h, w)"
    got = f"shape {np.shape(maps)}"
    require(magnitude.ndim == 3, DataError, expected, got, "average over heads and queries first")
    bad = np.flatnonzero(~np.isfinite(magnitude).all((1, 2)))
    got = f"NaN or infinity in the maps of images {bad[:5].tolist()}"
    require(not bad.size, DataError, expected, got, "leave these images out")
    return magnitude


def map_similarity(a: np.ndarray, b: np.ndarray) -> pd.DataFrame:
    """Compare two maps of each image by their magnitude.

    Parameters
    ----------
    a, b : ndarray, shape (n_stimuli, h, w)
        Maps of the same images.

    Returns
    -------
    DataFrame
        One row per stimulus. ``spearman`` is the rank correlation over patches (NaN where a map is
        constant); ``ssim`` is the structural similarity after each map is scaled to 0..1.

    Raises
    ------
    DataError
        If shapes differ or values are not finite.

    References
    ----------
    Adebayo et al. (2018), Sanity checks for saliency maps, NeurIPS, arXiv:1810.03292: both
    measures. Wang et al. (2004), Image quality assessment, IEEE TIP 13:600-612.
    """
    a, b = _magnitudes(a), _magnitudes(b)
    require(
        a.shape == b.shape,
        DataError,
        "two sets of maps of one shape",
        f"{a.shape} and {b.shape}",
        "compute both for the same images and the same grid of patches",
    )
    ranks = [stats.rankdata(m.reshape(len(m), -1), axis=1) for m in (a, b)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    norm = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    spearman = np.divide((x * y).sum(1), norm, out=np.full(len(a), np.nan), where=norm > 0)
    return pd.DataFrame(
        {"spearman": spearman, "ssim": [structural_similarity(p, q) for p, q in zip(a, b)]}
    )


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean structural similarity of two maps (h, w), each scaled to 0..1.

    The square window is `SSIM_WINDOW` patches wide, or the largest odd number of patches that fits
    a smaller map.

    References
    ----------
    Wang et al. (2004), Image quality assessment, IEEE TIP 13:600-612, with the uniform window and
    the constants 0.01 and 0.03 of common implementations.
    """
    a, b = (_scaled(m) for m in (a, b))
    size = min(SSIM_WINDOW, (min(a.shape) - 1) // 2 * 2 + 1)
    count = size * size / max(1, size * size - 1)
    mean_a, mean_b = (ndimage.uniform_filter(m, size) for m in (a, b))
    var_a = count * (ndimage.uniform_filter(a * a, size) - mean_a**2)
    var_b = count * (ndimage.uniform_filter(b * b, size) - mean_b**2)
    covariance = count * (ndimage.uniform_filter(a * b, size) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    edge = size // 2
    rows, columns = similarity.shape
    return float(similarity[edge : rows - edge, edge : columns - edge].mean())


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)


def on_patches(region: np.ndarray, backbone: Backbone) -> np.ndarray:
    """Return the share of each patch that a region of the original image covers.

    The region is resized and cropped like the image.

    Parameters
    ----------
    region : ndarray of bool, shape (H, W)
        Pixels of the original image.
    backbone : Backbone
        Backbone whose preprocessing and patches are used.

    Returns
    -------
    ndarray of float64, shape (h, w)
        Values from 0 to 1.
    """
    picture = np.repeat(np.asarray(region, np.uint8)[..., None] * 255, 3, axis=2)
    cropped = backbone.preprocess.crop(picture)[..., 0] / 255
    (height, width), size = cropped.shape, backbone.patch_size
    return cropped.reshape(height // size, size, width // size, size).mean((1, 3))


def region_share(maps: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the share of the mass of each map inside a region, and the region's share of the area.

    Parameters
    ----------
    maps : ndarray, shape (n_stimuli, h, w)
        Maps, used by magnitude.
    region : ndarray, shape (h, w)
        Share of each patch that belongs to the region, as `on_patches` returns it.

    Returns
    -------
    share : ndarray of float64, shape (n_stimuli,)
        NaN for a map of zeros.
    area : float
        Share of the mass that a uniform map has inside the region.

    Raises
    ------
    DataError
        If the region has another grid than the maps.

    Notes
    -----
    The pointing game (Zhang et al. 2018, Top-down neural attention by excitation backprop, IJCV,
    arXiv:1608.00507) asks only whether the maximum of a map falls into the region. We use the share
    of the mass, which also counts the rest of the map.
    """
    maps, region = _magnitudes(maps), np.asarray(region, np.float64)
    require(
        region.shape == maps.shape[1:],
        DataError,
        f"a region of shape {maps.shape[1:]}",
        region.shape,
        "pass on_patches(region, backbone), with the backbone of the maps",
    )
    total = maps.sum((1, 2))
    inside = (maps * region).sum((1, 2))
    share = np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0)
    return share, float(region.mean())


# --- randomised data and weights


def shuffled_study(study: Study, what: str = "responses", *, seed: int = 0) -> Study:
    """Return the study with responses or labels assigned to the wrong images.

    A model that is trained on it cannot learn the relation between images and targets, so that its
    maps show what does not depend on that relation.

    Parameters
    ----------
    study : Study
        Study that is copied; it is not changed.
    what : {"responses", "labels"}, default "responses"
        Permute the responses of every subject within each split, or the labels of "train" and
        "val".
    seed : int, default 0
        Seed of the permutation.

    Returns
    -------
    Study
        Test images keep their labels. Subjects have no repeats, attributes and truth, which would
        no longer fit the responses.

    Raises
    ------
    ConfigError
        If `what` is unknown.

    References
    ----------
    Adebayo et al. (2018), arXiv:1810.03292: the data randomisation test.
    """
    if what == "labels":
        sets = {**study.sets}
        for name in ("train", "val"):
            stimuli = study.set(name)
            mixed = rng(seed, "shuffled", name).permutation(np.asarray(stimuli.labels))
            sets[name] = dataclasses.replace(stimuli, labels=mixed)
        return dataclasses.replace(study, sets=sets, name=f"{study.name}, shuffled labels")
    require_known(what, ("responses", "labels"), ConfigError, "'responses' or 'labels'")
    subjects = {}
    for name, person in study.subjects.items():
        order = np.arange(len(person.responses))
        for split, rows in person.splits.items():
            order[rows] = rng(seed, "shuffled", name, split).permutation(rows)
        subjects[name] = dataclasses.replace(
            person,
            responses=np.asarray(person.responses)[order],
            repeats=None,
            sessions=None,
            attributes=None,
            attribute_names=(),
            truth={},
        )
    return dataclasses.replace(study, subjects=subjects, name=f"{study.name}, shuffled responses")


@dataclass(frozen=True)
class Randomisation:
    """Hold the maps of a model whose weights are randomised stage by stage, from the output down.

    A map that stays the same shows the image and the architecture, not what the model learned.

    Parameters
    ----------
    maps : dict of str to ndarray, shape (n_stimuli, h, w)
        Maps per stage, "trained" first; the weights of a stage and of all stages before it are
        random.
    similarity : dict of str to DataFrame
        `map_similarity` to the maps of the trained model, per stage.
    """

    maps: dict[str, np.ndarray]
    similarity: dict[str, pd.DataFrame]

    @property
    def final(self) -> pd.DataFrame:
        """Similarity after all stages were randomised."""
        return list(self.similarity.values())[-1]

    def table(self) -> pd.DataFrame:
        """Return the mean of both measures over images, one row per stage."""
        means = {k: t.mean() for k, t in self.similarity.items()}
        return pd.DataFrame(means).T.rename_axis("randomised down to")


def weight_randomisation(
    module: nn.Module,
    stages: Mapping[str, tuple[str, ...]],
    maps: Callable[[nn.Module], np.ndarray],
    *,
    seed: int = 0,
    trained: np.ndarray | None = None,
) -> Randomisation:
    """Randomise weights stage by stage, each on top of the ones before, and compare the maps.

    Parameters
    ----------
    module : nn.Module
        Module that is copied and randomised; the original is not changed.
    stages : mapping of str to tuple of str
        Prefixes of the names of the parameters of each stage, from the output down.
    maps : callable
        ``maps(module) -> (n_stimuli, h, w)``.
    seed : int, default 0
        Seed of the new weights.
    trained : ndarray, shape (n_stimuli, h, w), optional
        Maps of the trained `module`. If they are given, maps are computed only once, after all
        stages, which is enough for a check; by default they are computed after every stage.

    Returns
    -------
    Randomisation

    Raises
    ------
    ConfigError
        If a stage has no parameter.

    Notes
    -----
    New weights are drawn from a normal distribution with the mean and standard deviation of each
    tensor, which keeps the scale of the activations (our choice); constant tensors are not changed.

    References
    ----------
    Adebayo et al. (2018), Sanity checks for saliency maps, NeurIPS, arXiv:1810.03292: cascading
    randomisation.
    """
    by_stage, similarity = {"trained": np.array(maps(module) if trained is None else trained)}, {}
    changed = copy.deepcopy(module).eval()
    for label, prefixes in stages.items():
        names = [n for n, _ in changed.named_parameters() if n.startswith(prefixes)]
        require(
            names,
            ConfigError,
            f"parameters of the stage {label!r}",
            f"none named {prefixes}",
            "give names from named_parameters() of the module, or their beginnings",
        )
        for name in names:
            redraw(changed.get_parameter(name), seed_for(seed, "weights", name))
        if trained is None or label == list(stages)[-1]:
            by_stage[label] = np.array(maps(changed))
            similarity[label] = map_similarity(by_stage["trained"], by_stage[label])
    return Randomisation(by_stage, similarity)


def redraw(parameter: Tensor, seed: int) -> None:
    """Replace a tensor by normal values with the same mean and standard deviation, in place."""
    values = parameter.detach().float()
    spread = float(values.std(correction=0))
    if spread > 0:
        generator = torch.Generator().manual_seed(seed % 2**63)
        new = torch.randn(values.shape, generator=generator) * spread + float(values.mean())
        with torch.no_grad():
            parameter.copy_(new.to(parameter))


def _backbone_stages(
    backbone: Backbone, prefix: str = "", groups: int = 3
) -> dict[str, tuple[str, ...]]:
    """Return the stages of a backbone: its blocks from the last down in `groups`, the embedding."""
    stages = {}
    for part in np.array_split(np.arange(backbone.n_blocks)[::-1], min(groups, backbone.n_blocks)):
        label = f"block {part[0] + 1}" if len(part) == 1 else f"blocks {part[-1] + 1}-{part[0] + 1}"
        stages[label] = tuple(f"{prefix}blocks.{i}." for i in part)
    names = ("patch_embed", "pos_embed", "cls_token", "register_tokens")
    return {**stages, "embedding": tuple(prefix + name for name in names)}


def _path_stages(path: BMFL) -> dict[str, tuple[str, ...]]:
    """Return the stages of a path from the classifier down to the embedding of the backbone."""
    stages = {"classifier": ("fusion.classifier",)}
    if path.fusion.brain is not None:
        stages["fusion"] = ("fusion.fusion", "fusion.project")
        stages["brain transformer"] = ("fusion.brain",)
        stages["brain encoder"] = ("encoder.",)
    names = [n for n, _ in path.named_parameters()]
    kept = {k: v for k, v in stages.items() if any(n.startswith(v) for n in names)}
    return {**kept, **_backbone_stages(path.backbone, "backbone.", groups=1)}


def randomise_roi_attention(
    encoder: TrainedEncoder,
    stimuli: StimulusSet,
    query: str,
    *,
    backbone: Backbone | None = None,
    seed: int = 0,
) -> Randomisation:
    """Randomise a brain encoder, then its backbone, and compare the attention of one ROI query.

    The first stage is the readout, the feed-forward block and the values. The attention weights are
    computed before them and cannot change there: no attention map depends on what the model does
    with the attended tokens.

    Parameters
    ----------
    encoder : TrainedEncoder
        Encoder with an ROI-query transformer inside.
    stimuli : StimulusSet
        Images.
    query : str
        One of `query_names`; its map is averaged over heads.
    backbone : Backbone, optional
        The backbone of the encoder, if it is loaded already.
    seed : int, default 0
        Seed of the new weights.

    Returns
    -------
    Randomisation

    Raises
    ------
    ConfigError
        If the encoder has no such query.
    """
    names, inner = query_names(encoder), queries_of(encoder)
    require_known(query, names, ConfigError, f"a query among {names}")
    backbone = encoder.load_backbone() if backbone is None else backbone
    both = nn.ModuleDict({"encoder": encoder.module, "backbone": backbone})
    at = next(name for name, m in both.named_modules() if m is inner) + "."
    after = tuple(at + name for name in ("readout", "norm_out", "ffn", "norm_ffn", "out.", "v."))
    keys = tuple(at + name for name in ("queries_RE", "q.", "k.", "project"))
    stages = {"readout and values": after, "queries and keys": keys}
    stages |= _backbone_stages(backbone, "backbone.")

    def maps(module: nn.Module) -> np.ndarray:
        changed = dataclasses.replace(encoder, module=module["encoder"])
        weights = roi_attention(changed, stimuli, backbone=module["backbone"])
        return weights[:, names.index(query)].mean(1)

    return weight_randomisation(both, stages, maps, seed=seed)


def randomise_brain_attention(
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    *,
    seed: int = 0,
    trained: np.ndarray | None = None,
) -> Randomisation:
    """Randomise the whole path and compare the attention of the brain's CLS token to patches.

    Parameters
    ----------
    fusion : TrainedFusion
        Model with cross-attention; a copy of its path is randomised.
    stimuli : StimulusSet
        Images.
    seed : int, default 0
        Seed of the new weights.
    trained : ndarray, shape (n_stimuli, h, w), optional
        Maps of the trained model, averaged over heads, as in `weight_randomisation`.

    Returns
    -------
    Randomisation

    Raises
    ------
    ConfigError
        If the model has no cross-attention, or its path cannot start from images.
    """
    require(
        fusion.config.head == "fusion",
        ConfigError,
        "a model with cross-attention",
        repr(fusion.config.head),
        "train it with head='fusion'",
    )
    backbone, pool = fusion.path.backbone, fusion.path.pool
    grid = (pool, pool) if pool else backbone.grid_of(backbone.image_size, backbone.image_size)

    def maps(path: nn.Module) -> np.ndarray:
        parts = []
        for images in image_batches(path.backbone, stimuli):
            with torch.no_grad():
                weights = path(images, weights=True).attention["bv"][:, :, 0].mean(1)
            parts.append(weights.unflatten(-1, grid).cpu().numpy())
        return np.concatenate(parts)

    return weight_randomisation(
        fusion.path, _path_stages(fusion.path), maps, seed=seed, trained=trained
    )


# --- deletion and insertion


@dataclass(frozen=True)
class DeletionInsertion:
    """Hold the score of a model while patches are removed or added in the order of a map.

    Parameters
    ----------
    fraction : ndarray, shape (k,)
        Share of the patches changed, 0 to 1.
    deletion, insertion : ndarray, shape (n_stimuli, k)
        Score after that share of the patches, strongest first, was replaced by the baseline, or by
        the image.
    random_deletion, random_insertion : ndarray, shape (n_stimuli, k)
        Curves of random orders, averaged over orders. Each order inserts in the reverse of the
        order in which it deletes, so that both curves use the same masked images.
    """

    fraction: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    def areas(self) -> pd.DataFrame:
        """Return the area under each curve by the trapezoid rule, one row per stimulus."""
        names = ("deletion", "insertion", "random_deletion", "random_insertion")
        return pd.DataFrame(
            {k: np.trapezoid(getattr(self, k), self.fraction, axis=1) for k in names}
        )

    def table(self, name: str) -> pd.DataFrame:
        """Return the mean curves with an interval of 1.96 standard errors over stimuli.

        Parameters
        ----------
        name : str
            Name of the map.

        Returns
        -------
        DataFrame
            One row per point, with the columns map, kind, order, fraction, mean, low and high.
        """
        parts = []
        for kind in ("deletion", "insertion"):
            for order, field in (("map", kind), ("random", f"random_{kind}")):
                values, reach = getattr(self, field), np.nan
                mean = values.mean(0)
                if len(values) > 1:
                    reach = 1.96 * values.std(0, ddof=1) / np.sqrt(len(values))
                columns = {"map": name, "kind": kind, "order": order, "fraction": self.fraction}
                columns |= {"mean": mean, "low": mean - reach, "high": mean + reach}
                parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)


def deletion_insertion(
    score: Score,
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
    """Measure whether the patches that a map marks are those that the model uses.

    Parameters
    ----------
    score : callable
        ``score(images (B, 3, H, W), index (B,)) -> (B,)``, e.g. the probability of the predicted
        class; `index` gives the position of each image among the n images.
    images, baseline : Tensor, shape (n, 3, H, W)
        Normalised images, and the values that replace a patch.
    maps : ndarray, shape (n, h, w)
        One map per image, used by magnitude; ties keep the order of the patches.
    steps : int, default 16
        Number of points after the first, at most the number of patches.
    n_random : int, default 4
        Number of random orders per image.
    seed : int, default 0
        Seed of the random orders.
    batch_size : int, default 32
        Number of images per call of `score`.
    reference : DeletionInsertion, optional
        Curves of another map of the same images and score. Its random curves are used again: they
        do not depend on the map and take most of the time.

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
    Petsiuk, Das & Saenko (2018), RISE, BMVC, arXiv:1806.07421.

    Notes
    -----
    The comparison with random orders is our choice: a masked image is itself out of distribution,
    so that an area has no meaning on its own.
    """
    strength = _magnitudes(maps)
    n, rows, columns = strength.shape
    fits = images.shape == baseline.shape and len(images) == n
    require(
        fits and images.shape[2] % rows == 0 and images.shape[3] % columns == 0,
        DataError,
        "images, a baseline of their shape and one map per image",
        f"{tuple(images.shape)}, {tuple(baseline.shape)} and maps {strength.shape}",
        "compute the maps for these images; sides of images must be multiples of those of maps",
    )
    cells = rows * columns
    counts = np.unique(np.linspace(0, cells, min(steps, cells) + 1).round().astype(int))
    counts = np.unique(np.concatenate([counts, cells - counts]))  # same counts in both directions
    whole = np.tile(np.array([False, True])[:, None, None], (n, 1, rows, columns))
    ends = _score_masked(score, images, baseline, whole, batch_size)

    def curve(rank: np.ndarray) -> np.ndarray:
        """Return the scores while patches are removed by rank; all orders have the same ends."""
        gone = (rank[:, None] < counts[None, 1:-1, None]).reshape(n, len(counts) - 2, rows, columns)
        inner = _score_masked(score, images, baseline, gone, batch_size)
        return np.concatenate([ends[:, :1], inner, ends[:, 1:]], axis=1)

    if reference is None:
        orders = (
            np.stack([rng(seed, "order", r, i).permutation(cells) for i in range(n)])
            for r in range(n_random)
        )
        deleted = np.mean([curve(rank) for rank in orders], axis=0)
        at_random = deleted, deleted[:, ::-1]
    else:
        at_random = reference.random_deletion, reference.random_insertion
        require(
            at_random[0].shape == (n, len(counts)),
            DataError,
            f"reference curves of shape {(n, len(counts))}",
            at_random[0].shape,
            "pass curves of the same images, steps and grid of patches, or leave `reference` out",
        )
    # the patch of rank 0 is removed first
    by_map = np.argsort(np.argsort(-strength.reshape(n, cells), axis=1, kind="stable"), axis=1)
    # the patch that is added first is removed last
    inserted = curve(cells - 1 - by_map)[:, ::-1]
    return DeletionInsertion(counts / cells, curve(by_map), inserted, *at_random)


def _score_masked(
    score: Score, images: Tensor, baseline: Tensor, gone: np.ndarray, batch_size: int
) -> np.ndarray:
    """Return the scores (n, k) of images whose patches `gone` (n, k, h, w) show the baseline."""
    n, k = gone.shape[:2]
    block = (images.shape[2] // gone.shape[2], images.shape[3] // gone.shape[3])
    flat = torch.from_numpy(gone.reshape(n * k, *gone.shape[2:])).to(images.device)
    owner, scores = torch.arange(n, device=images.device).repeat_interleave(k), []
    for start in range(0, n * k, batch_size):
        rows = slice(start, start + batch_size)
        index = owner[rows]
        mask = flat[rows].repeat_interleave(block[0], 1).repeat_interleave(block[1], 2)
        with torch.inference_mode():
            masked = torch.where(mask[:, None], baseline[index], images[index])
            scores.append(score(masked, index).float().cpu())
    return torch.cat(scores).numpy().reshape(n, k)


def class_curves(
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    maps: np.ndarray,
    *,
    seed: int = 0,
    reference: DeletionInsertion | None = None,
) -> DeletionInsertion:
    """Return the curves of the probability of the class that the model predicts for the full image.

    Grey replaces the patches.

    Parameters
    ----------
    fusion : TrainedFusion
        Fusion model or baseline.
    stimuli : StimulusSet
        Images.
    maps : ndarray, shape (n_stimuli, h, w)
        One map per image.
    seed, reference
        Same as in `deletion_insertion`.

    Returns
    -------
    DeletionInsertion

    Raises
    ------
    ConfigError
        If the path of the model cannot start from images.
    DataError
        If the maps do not fit the images, or the reference has other points or images.
    """
    path = fusion.path
    images = torch.cat(list(image_batches(path.backbone, stimuli)))
    classes = torch.as_tensor(fusion.logits(stimuli).argmax(1), device=images.device)

    def score(part: Tensor, index: Tensor) -> Tensor:
        return path(part).logits.softmax(1).gather(1, classes[index, None])[:, 0]

    grey = torch.zeros_like(images)
    return deletion_insertion(score, images, grey, maps, seed=seed, reference=reference)


def response_curves(
    encoder: BrainEncoder,
    stimuli: StimulusSet,
    maps: np.ndarray,
    roi: str,
    *,
    backbone: Backbone | None = None,
    seed: int = 0,
) -> DeletionInsertion:
    """Return the curves of how close the predicted response of an ROI is to that of the full image.

    The score is ``1 - |y - y_image|^2 / |y_baseline - y_image|^2`` over the vertices of the ROI: 1
    for the full image and 0 for the baseline. It is negative where the prediction for a masked
    image is further away than the one for the baseline.

    Parameters
    ----------
    encoder : TrainedEncoder or EncoderEnsemble
        Brain encoder of any kind.
    stimuli, maps, seed
        Same as in `class_curves`.
    roi : str
        ROI or group, or e.g. ``"left:V1"`` for one hemisphere.
    backbone : Backbone, optional
        The backbone of the encoder, if it is loaded already.

    Returns
    -------
    DeletionInsertion

    Raises
    ------
    ConfigError
        If the ROI has no vertices.
    DataError
        If the maps do not fit the images.
    """
    backbone = encoder.load_backbone() if backbone is None else backbone
    encoder = encoder.to(backbone.device)
    images = torch.cat(list(image_batches(backbone, stimuli)))
    grey = torch.zeros_like(images)
    chosen = torch.as_tensor(np.flatnonzero(roi_vertices(encoder.atlas, roi)), device=images.device)

    def predict(part: Tensor) -> Tensor:
        with torch.no_grad():
            return response_to_images(encoder, backbone, part).index_select(1, chosen)

    whole, nothing = (torch.cat([predict(p) for p in v.split(32)]) for v in (images, grey))
    distance = (nothing - whole).square().sum(1).clamp_min(1e-12)

    def score(part: Tensor, index: Tensor) -> Tensor:
        return 1 - (predict(part) - whole[index]).square().sum(1) / distance[index]

    return deletion_insertion(score, images, grey, maps, seed=seed)


# --- all checks of one map


@dataclass(frozen=True)
class CheckedMap:
    """Hold a map with all its checks.

    Parameters
    ----------
    name : str
        Name of the map in tables and figures.
    maps : ndarray, shape (n_stimuli, h, w)
        Magnitudes.
    randomised : Randomisation
        Maps of the model with randomised weights.
    curves : DeletionInsertion
        Deletion and insertion curves of the map and of random orders.
    rows : list of CheckRow
        Outcomes.
    """

    name: str
    maps: np.ndarray
    randomised: Randomisation
    curves: DeletionInsertion
    rows: list[CheckRow]

    @property
    def random_weights(self) -> np.ndarray:
        """Maps after all weights were randomised, shape (n_stimuli, h, w)."""
        return list(self.randomised.maps.values())[-1]


def _checked_map(
    name: str,
    maps: np.ndarray,
    randomised: Randomisation,
    curves: DeletionInsertion,
    *,
    shuffled: np.ndarray | None = None,
    region: np.ndarray | None = None,
    gap: np.ndarray | None = None,
) -> CheckedMap:
    """Decide for every check that can be measured whether the map passes."""
    areas = curves.areas()
    measured = {"weights": (randomised.final["spearman"],)}
    if shuffled is not None:
        measured["labels"] = (map_similarity(maps, shuffled)["spearman"],)
    measured["deletion"] = (areas["random_deletion"] - areas["deletion"],)
    measured["insertion"] = (areas["insertion"] - areas["random_insertion"],)
    if region is not None and region.shape == maps.shape[1:]:
        measured["planted region"] = region_share(maps, region)
    if gap is not None:
        measured["completeness"] = (gap,)
    rows = [check_row(name, check, *values) for check, values in measured.items()]
    return CheckedMap(name, np.abs(maps), randomised, curves, rows)


def check_backbone(
    backbone: Backbone,
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    *,
    kind: str = "last block",
    region: np.ndarray | None = None,
    seed: int = 0,
    reference: DeletionInsertion | None = None,
) -> CheckedMap:
    """Check the attention of the backbone, averaged over heads, or its rollout.

    Parameters
    ----------
    backbone : Backbone
        Frozen backbone; it has no training targets that could be shuffled.
    fusion : TrainedFusion
        Model whose class probability is the score of the deletion curves.
    stimuli : StimulusSet
        Images.
    kind : {"last block", "rollout"}, default "last block"
        Attention of the CLS token to patches in the last block, averaged over heads; or attention
        rollout.
    region : ndarray, shape (h, w), optional
        Planted region as `on_patches` returns it; ignored if the map has another grid.
    seed : int, default 0
        Seed of random weights and random orders.
    reference : DeletionInsertion, optional
        Curves of another map of the same model, images and seed, whose random orders are used
        again.

    Returns
    -------
    CheckedMap

    Raises
    ------
    ConfigError
        If `kind` is unknown.
    """
    expected = "kind 'last block' or 'rollout'"
    require_known(kind, ("last block", "rollout"), ConfigError, expected)

    def maps_of(module: nn.Module) -> np.ndarray:
        if kind == "rollout":
            return rollout(module, stimuli)
        return backbone_attention(module, stimuli, blocks=(-1,), heads="mean")[:, 0, 0]

    if kind == "rollout":
        name, maps = "backbone rollout", maps_of(backbone)
    else:
        name = "backbone CLS"
        maps = backbone_attention(backbone, stimuli, blocks=(-1,)).mean(2)[:, 0]
    return _checked_map(
        name,
        maps,
        weight_randomisation(
            backbone, _backbone_stages(backbone), maps_of, seed=seed, trained=maps
        ),
        class_curves(fusion, stimuli, maps, seed=seed, reference=reference),
        region=region,
    )


def check_roi_attention(
    encoder: TrainedEncoder,
    stimuli: StimulusSet,
    query: str,
    *,
    backbone: Backbone | None = None,
    shuffled: TrainedEncoder | None = None,
    region: np.ndarray | None = None,
    seed: int = 0,
) -> CheckedMap:
    """Check the attention of one ROI query, averaged over heads.

    Parameters
    ----------
    encoder : TrainedEncoder
        Encoder with an ROI-query transformer inside.
    stimuli : StimulusSet
        Images.
    query : str
        One of `query_names`; the predicted response of its vertices is the score of the deletion
        curves.
    backbone : Backbone, optional
        The backbone of the encoder, if it is loaded already.
    shuffled : TrainedEncoder, optional
        Encoder trained in the same way on shuffled responses, as in `shuffled_study`.
    region, seed
        Same as in `check_backbone`.

    Returns
    -------
    CheckedMap

    Raises
    ------
    ConfigError
        If the encoder has no such query.
    """
    backbone = encoder.load_backbone() if backbone is None else backbone
    randomised = randomise_roi_attention(encoder, stimuli, query, backbone=backbone, seed=seed)
    maps, other = randomised.maps["trained"], None
    if shuffled is not None:
        row = query_names(encoder).index(query)
        other = roi_attention(shuffled, stimuli, backbone=backbone)[:, row].mean(1)
    return _checked_map(
        f"{query} query",
        maps,
        randomised,
        response_curves(encoder, stimuli, maps, query, backbone=backbone, seed=seed),
        shuffled=other,
        region=region,
    )


def check_brain_attention(
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    *,
    shuffled: TrainedFusion | None = None,
    region: np.ndarray | None = None,
    seed: int = 0,
    reference: DeletionInsertion | None = None,
) -> CheckedMap:
    """Check the attention of the brain's CLS token to image patches, averaged over heads.

    Parameters
    ----------
    fusion : TrainedFusion
        Model with cross-attention.
    stimuli, region, seed, reference
        Same as in `check_backbone`.
    shuffled : TrainedFusion, optional
        Model trained in the same way on shuffled labels, as in `shuffled_study`.

    Returns
    -------
    CheckedMap
    """
    maps = brain_attention(fusion, stimuli).mean(1)
    return _checked_map(
        "brain CLS",
        maps,
        randomise_brain_attention(fusion, stimuli, seed=seed, trained=maps),
        class_curves(fusion, stimuli, maps, seed=seed, reference=reference),
        shuffled=None if shuffled is None else brain_attention(shuffled, stimuli).mean(1),
        region=region,
    )


def check_class_attribution(
    fusion: TrainedFusion,
    stimuli: StimulusSet,
    *,
    shuffled: TrainedFusion | None = None,
    region: np.ndarray | None = None,
    steps: int = 32,
    seed: int = 0,
    reference: DeletionInsertion | None = None,
    attribution: Attribution | None = None,
    gradients: str = "integrated",
) -> CheckedMap:
    """Check a map of gradients of the predicted class.

    Parameters
    ----------
    fusion, stimuli, shuffled, region, seed, reference
        Same as in `check_brain_attention`; the model needs no cross-attention.
    steps : int, default 32
        Number of quadrature points. The models that are compared with take a quarter of them,
        because only the ranks of their patches are used.
    attribution : Attribution, optional
        Result of `class_attribution` for these images and gradients; computed by default.
    gradients : {"integrated", "input", "Grad-CAM"}, default "integrated"
        Kind of gradients, see `class_attribution` and `class_activation`. Only integrated gradients
        add up to the score and are checked for it.

    Returns
    -------
    CheckedMap

    Raises
    ------
    ConfigError
        If the kind of gradients is unknown, or the path cannot start from images.
    """
    classes, is_cam = fusion.logits(stimuli).argmax(1), gradients == "Grad-CAM"

    def maps_of(path: nn.Module, model: TrainedFusion = fusion) -> np.ndarray:
        if is_cam:
            return class_activation(model, stimuli, target=classes, path=path)
        setting = {"steps": max(1, steps // 4), "gradients": gradients, "path": path}
        return np.abs(class_attribution(model, stimuli, target=classes, **setting).patches)

    if attribution is None and not is_cam:
        attribution = class_attribution(fusion, stimuli, steps=steps, gradients=gradients)
    maps = maps_of(fusion.path) if is_cam else np.abs(attribution.patches)
    return _checked_map(
        gradients if is_cam else f"{gradients} gradients",
        maps,
        weight_randomisation(
            fusion.path, _path_stages(fusion.path), maps_of, seed=seed, trained=maps
        ),
        class_curves(fusion, stimuli, maps, seed=seed, reference=reference),
        shuffled=None if shuffled is None else maps_of(shuffled.path, shuffled),
        region=region,
        gap=attribution.relative_gap if gradients == "integrated" else None,
    )

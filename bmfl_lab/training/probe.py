"""A linear probe of the frozen backbone by the protocol of DINOv2: a grid of heads, one selected.

Shape suffixes: L heads (learning rates), B batch, D features, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmfl_lab.backbones import Backbone, FeatureStore
from bmfl_lab.data import StimulusSet, Study
from bmfl_lab.errors import ConfigError, NumericsError, require
from bmfl_lab.runtime import rng, seed_for
from bmfl_lab.training.context import Context
from bmfl_lab.training.fusion import check_labels

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


@dataclass
class TrainedProbe:
    """Classify images linearly by backbone features, for `evaluate_ood`.

    Parameters
    ----------
    name : str
        Name in tables.
    seed : int
        Training seed.
    backbone : Backbone
        Backbone whose features are read.
    store : FeatureStore
        Store of its tokens.
    blocks : tuple of int
        Blocks whose CLS tokens are joined.
    mean_patch : bool
        Whether the mean patch token of the last block is joined, too.
    weight : ndarray of float32, shape (D, C)
        Weights of the selected head.
    bias : ndarray of float32, shape (C,)
        Bias of the selected head.
    learning_rate : float
        Learning rate of the selected head, scaled by the batch size.
    selection : str
        Sentence that says how the head was selected.
    table : list of dict
        Validation accuracy of every head of the grid.
    """

    name: str
    seed: int
    backbone: Backbone
    store: FeatureStore
    blocks: tuple[int, ...]
    mean_patch: bool
    weight: np.ndarray
    bias: np.ndarray
    learning_rate: float
    selection: str = "best validation accuracy of the grid"
    table: list[dict[str, Any]] = field(default_factory=list)

    def reads(self) -> list[tuple[str, int]]:
        """Return kind and block of the tokens that this model reads from its backbone."""
        return [("cls+mean", b) for b in self.blocks]

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes)."""
        if not len(stimuli):
            return np.zeros((0, len(self.bias)), dtype=np.float32)
        features = probe_features(self.store, self.backbone, stimuli, self.blocks, self.mean_patch)
        return features @ self.weight + self.bias


def probe_features(
    store: FeatureStore,
    backbone: Backbone,
    stimuli: StimulusSet,
    blocks: Sequence[int],
    mean_patch: bool,
) -> np.ndarray:
    """Return CLS tokens of some blocks and the last mean patch token, float32 (n_stimuli, D).

    The mean patch token is left out unless `mean_patch`.
    """
    stored = store.get_many(backbone, stimuli, [("cls+mean", b) for b in blocks])
    parts = [s.cls for s in stored] + ([stored[-1].mean] if mean_patch else [])
    return np.concatenate([np.asarray(p, dtype=np.float32) for p in parts], axis=1)


def train_probe(
    study: Study,
    *,
    n_blocks: Sequence[int] = (1, 4),
    mean_patch: Sequence[bool] = (False, True),
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    store: FeatureStore | None = None,
    device: str = "auto",
    backbone: Backbone | None = None,
    name: str = "linear probe",
) -> TrainedProbe:
    """Train linear heads for every input and learning rate, and select one by ID validation images.

    Parameters
    ----------
    study : Study
        Its set "train" trains, its set "val" selects the head.
    n_blocks : sequence of int, default (1, 4)
        Numbers of last blocks whose CLS tokens are joined.
    mean_patch : sequence of bool, default (False, True)
        Inputs of the grid: CLS alone, and CLS with the mean patch token of the last block.
    learning_rates : sequence of float
        Learning rates of the grid, scaled by ``batch_size / 256``; 13 rates from 1e-5 to 0.1 by
        default.
    epochs : int, default 10
        Number of passes over the training images.
    batch_size : int, default 128
        Images per step.
    seed : int, default 0
        Seed of initial weights and order.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains the heads.
    backbone : Backbone, optional
        A backbone that is loaded already; the study's by default.
    name : str, default "linear probe"
        Name in tables.

    Returns
    -------
    TrainedProbe

    Raises
    ------
    ConfigError
        If the grid is empty, or the backbone has fewer blocks.
    DataError
        If a label is missing.
    NumericsError
        If no head stays finite.

    Notes
    -----
    SGD with momentum 0.9, no weight decay, and a cosine schedule down to 0. All heads see the same
    batches, and their weights are drawn with a standard deviation of 0.01. Unlike the original, the
    images are not augmented, and an epoch is a pass over the study's own images instead of 12,500
    iterations.

    References
    ----------
    Oquab et al., DINOv2, TMLR 2024, and its published evaluation code: grid of learning rates, last
    1 or 4 blocks, with or without the mean patch token.
    """
    context = Context.make(store, device)
    backbone = context.backbone(study.backbone) if backbone is None else backbone
    require(
        n_blocks and mean_patch and learning_rates and 1 <= max(n_blocks) <= backbone.n_blocks,
        ConfigError,
        f"a grid with 1 to {backbone.n_blocks} blocks, inputs and learning rates",
        f"n_blocks={tuple(n_blocks)}, {len(mean_patch)} inputs, {len(learning_rates)} rates",
        "pass at least one of each, and no more blocks than the backbone has",
    )
    store = context.store
    train, val, n_classes = study.set("train"), study.set("val"), len(study.class_names)
    for stimuli in (train, val):
        check_labels(stimuli, n_classes)
        # the longest list first, so that one pass of the backbone serves all
        probe_features(store, backbone, stimuli, range(-max(n_blocks), 0), False)
    table, best = [], None
    rates = [rate * batch_size / 256 for rate in learning_rates]
    settings = (n_classes, rates, epochs, batch_size, seed, context.device)
    for n, mean in itertools.product(n_blocks, mean_patch):
        blocks = tuple(range(-n, 0))
        x, x_val = (probe_features(store, backbone, s, blocks, mean) for s in (train, val))
        weight, bias = _fit(x, train.labels, *settings)
        accuracies = _accuracies(x_val, val.labels, weight, bias)
        for head, (rate, accuracy) in enumerate(zip(rates, accuracies)):
            table.append({"n_blocks": n, "mean_patch": mean, "lr": rate, "val_accuracy": accuracy})
            if accuracy is not None and (best is None or accuracy > best[0]):
                best = (accuracy, blocks, mean, weight[head], bias[head], rate)
    require(
        best is not None,
        NumericsError,
        "a finite head",
        "none in the grid",
        f"use rates of the published grid, {LEARNING_RATES[0]:g} to {LEARNING_RATES[-1]:g}",
    )
    return TrainedProbe(name, seed, backbone, store, *best[1:], table=table)


def _accuracies(
    x: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> list[float | None]:
    """Return the accuracy of each of L heads, (L, D, C) and (L, C); None if it is not finite."""
    scores = np.einsum("nd,ldc->lnc", x, weight) + bias[:, None]
    right = (scores.argmax(2) == np.asarray(labels)).mean(1)
    return [float(r) if np.isfinite(s).all() else None for r, s in zip(right, scores)]


def _fit(
    x: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
    device: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (L, D, C) and biases (L, C) of one head per learning rate."""
    x_ND = torch.from_numpy(x).to(device)
    y_N = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)
    generator = torch.Generator().manual_seed(seed_for(seed, "probe"))
    first_DC = 0.01 * torch.randn(x.shape[1], n_classes, generator=generator)
    weight_LDC = first_DC.expand(len(rates), -1, -1).clone().to(device)
    bias_LC = torch.zeros(len(rates), n_classes, device=device)
    rate_L = torch.tensor(rates, device=device)
    speed = [torch.zeros_like(weight_LDC), torch.zeros_like(bias_LC)]
    per_epoch = math.ceil(len(x) / batch_size)
    for step in range(epochs * per_epoch):
        epoch, within = divmod(step, per_epoch)
        if not within:
            order = torch.from_numpy(rng(seed, "probe order", epoch).permutation(len(x))).to(device)
        index = order[within * batch_size : (within + 1) * batch_size]
        now_L = rate_L * 0.5 * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
        _step(x_ND[index], y_N[index], weight_LDC, bias_LC, speed, now_L)
    return weight_LDC.cpu().numpy(), bias_LC.cpu().numpy()


def _step(
    x_BD: Tensor,
    y_B: Tensor,
    weight_LDC: Tensor,
    bias_LC: Tensor,
    speed: list[Tensor],
    rate_L: Tensor,
) -> None:
    """Take one step of SGD with momentum 0.9 on the cross-entropy; gradients are in closed form."""
    error_LBC = (x_BD @ weight_LDC + bias_LC[:, None]).softmax(2)
    error_LBC[:, torch.arange(len(y_B)), y_B] -= 1
    error_LBC /= len(y_B)
    speed[0].mul_(0.9).add_(x_BD.T @ error_LBC)
    speed[1].mul_(0.9).add_(error_LBC.sum(1))
    weight_LDC -= rate_L[:, None, None] * speed[0]
    bias_LC -= rate_L[:, None] * speed[1]

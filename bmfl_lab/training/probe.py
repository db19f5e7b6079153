"""A linear probe of the frozen backbone, by the protocol of DINOv2: a grid of heads at once, one kept by validation.

Shape suffixes: L heads (learning rates), B batch, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, NumericsError, message
from bmfl_lab.runtime import pick_device, rng, seed_for
from bmfl_lab.training.fusion_parts import check_labels, study_backbone

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


@dataclass
class TrainedProbe:
    """A linear classifier on backbone features, as `evaluate_ood` takes it.

    Parameters
    ----------
    name, seed, selection
        For tables and records.
    backbone, store : Any
        Where features come from.
    blocks : tuple of int
        Whose CLS tokens are joined.
    mean_patch : bool
        Whether the last block's mean patch token is joined too.
    weight, bias : ndarray, shapes (D, C) and (C,)
        Of the chosen head.
    learning_rate : float
        Of the chosen head, scaled by the batch.
    table : list of dict
        Validation accuracy of every head.
    """

    name: str
    seed: int
    backbone: Any
    store: Any
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
    backbone: Any,
    stimuli: StimulusSet,
    blocks: Sequence[int],
    mean_patch: bool,
) -> np.ndarray:
    """Return CLS tokens of some blocks, and on request the last one's mean patch, float32 (n_stimuli, D)."""
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
    backbone: Any = None,
    name: str = "linear probe",
) -> TrainedProbe:
    """Train linear heads for every input and learning rate, and keep the best on ID validation images.

    Parameters
    ----------
    study : Study
        Trains on "train", selects on "val".
    n_blocks : sequence of int, default (1, 4)
        Numbers of last blocks whose CLS tokens are joined.
    mean_patch : sequence of bool, default (False, True)
        CLS alone, and CLS with the mean patch of the last block.
    learning_rates : sequence of float
        Grid, scaled by ``batch_size / 256``.
    epochs, batch_size, seed, store, device, backbone, name
        As their names say; `device` trains the heads.

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
    SGD with momentum 0.9, no weight decay, cosine to 0, all heads on the same batches, weights
    drawn with a standard deviation of 0.01. Features are those of the cached images: no
    augmentation, unlike the original, and epochs are passes over the study's own images instead of
    12,500 iterations.

    References
    ----------
    Oquab et al., DINOv2, TMLR 2024, and its published evaluation code: grid of learning rates, last
    1 or 4 blocks, with or without the mean patch token.
    """
    where = pick_device(device)
    backbone = backbone if backbone is not None else study_backbone(study.backbone, where)
    if (
        not n_blocks
        or not mean_patch
        or not learning_rates
        or not 1 <= max(n_blocks) <= backbone.n_blocks
    ):
        raise ConfigError(
            message(
                f"a grid with 1 to {backbone.n_blocks} blocks, inputs and learning rates",
                f"n_blocks={tuple(n_blocks)}, {len(mean_patch)} inputs, {len(learning_rates)} rates",
                "correct it",
            )
        )
    store = store if store is not None else FeatureStore()
    train, val = study.set("train"), study.set("val")
    for stimuli in (train, val):
        check_labels(stimuli, len(study.class_names))
        # the longest list first, so that one pass of the backbone serves all
        probe_features(store, backbone, stimuli, range(-max(n_blocks), 0), False)
    table, best = [], None
    for n in n_blocks:
        blocks = tuple(range(-n, 0))
        for mean in mean_patch:
            x, x_val = (probe_features(store, backbone, s, blocks, mean) for s in (train, val))
            rates = [rate * batch_size / 256 for rate in learning_rates]
            weight, bias = _fit(
                x, train.labels, len(study.class_names), rates, epochs, batch_size, seed, where
            )
            scores = np.einsum("nd,ldc->lnc", x_val, weight) + bias[:, None]
            for k, rate in enumerate(rates):
                fine = bool(np.isfinite(scores[k]).all())
                right = (
                    float((scores[k].argmax(1) == np.asarray(val.labels)).mean()) if fine else None
                )
                table.append({"n_blocks": n, "mean_patch": mean, "lr": rate, "val_accuracy": right})
                if fine and (best is None or right > best[0]):
                    best = (right, blocks, mean, weight[k], bias[k], rate)
    if best is None:
        raise NumericsError(
            message("a finite head", "none in the grid", "use smaller learning rates")
        )
    return TrainedProbe(name, seed, backbone, store, *best[1:], table=table)


def _fit(
    x, labels, n_classes, rates, epochs, batch_size, seed, device
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (L, D, C) and biases (L, C), one head a learning rate, trained side by side."""
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
    """One step of SGD with momentum 0.9 on the cross-entropy, its gradient in closed form."""
    error_LBC = (x_BD @ weight_LDC + bias_LC[:, None]).softmax(2)
    error_LBC[:, torch.arange(len(y_B)), y_B] -= 1
    error_LBC /= len(y_B)
    speed[0].mul_(0.9).add_(x_BD.T @ error_LBC)
    speed[1].mul_(0.9).add_(error_LBC.sum(1))
    weight_LDC -= rate_L[:, None, None] * speed[0]
    bias_LC -= rate_L[:, None] * speed[1]

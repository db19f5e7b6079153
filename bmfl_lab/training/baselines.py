"""Baselines of different accuracy: the points through which the line of effective robustness goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.training.recipes import FusionConfig, train_fusion
from bmfl_lab.training.trained_fusion import TrainedFusion


def train_baselines(
    config: FusionConfig,
    study: Study,
    *,
    encoder: Any = None,
    epochs: Sequence[int] = (1, 2, 4, 8),
    seeds: Sequence[int] = (0,),
    store: FeatureStore | None = None,
    device: str = "auto",
) -> dict[str, list[TrainedFusion]]:
    """Train the backbone-only model for fewer and fewer epochs, so that its accuracy covers a range.

    Parameters
    ----------
    config : FusionConfig
        Of the comparison; its head is replaced by "backbone", and its learning-rate schedule ends
        with each length.
    study : Study
        As `train_fusion`.
    encoder : TrainedEncoder, optional
        Fixes the capacity, as in `train_comparison`.
    epochs : sequence of int, default (1, 2, 4, 8)
        Lengths of training; those not below the config's are left out.
    seeds : sequence of int, default (0,)
        Training seeds of each length.
    store, device
        As `train_fusion`.

    Returns
    -------
    dict of str to list of TrainedFusion
        "backbone, 1 epoch", "backbone, 2 epochs", ... to one model a seed.

    Raises
    ------
    ConfigError
        If a length is below 1, or none is below the config's.

    Notes
    -----
    The line of Taori et al. (2020) goes through models of many kinds. Models on one frozen backbone
    that differ in their training only share its representation, so that a residual from their line
    is one beyond this backbone.
    """
    kept = [int(e) for e in dict.fromkeys(epochs) if e < config.loop.epochs]
    if not kept or min(kept) < 1:
        raise ConfigError(
            message(
                f"lengths from 1 to {config.loop.epochs - 1} epochs",
                f"{tuple(epochs)}",
                "give shorter trainings",
            )
        )
    found: dict[str, list[TrainedFusion]] = {}
    for length in kept:
        name = f"backbone, {length} epoch" + ("s" if length > 1 else "")
        shorter = configs.replace(
            config, head="backbone", loop=configs.replace(config.loop, epochs=length)
        )
        found[name] = [
            train_fusion(
                shorter, study, encoder=encoder, store=store, device=device, seed=s, name=name
            )
            for s in seeds
        ]
    return found

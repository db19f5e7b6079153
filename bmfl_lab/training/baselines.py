"""Baselines of different accuracy, through which the line of effective robustness is fitted."""

from __future__ import annotations

from collections.abc import Sequence

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.models.build import FusionConfig
from bmfl_lab.training.context import Context
from bmfl_lab.training.encoder_io import TrainedEncoder
from bmfl_lab.training.fusion import train_fusion
from bmfl_lab.training.trained import TrainedFusion


def train_baselines(
    config: FusionConfig,
    study: Study,
    *,
    encoder: TrainedEncoder | None = None,
    epochs: Sequence[int] = (1, 2, 4, 8),
    seeds: Sequence[int] = (0,),
    store: FeatureStore | None = None,
    device: str = "auto",
) -> dict[str, list[TrainedFusion]]:
    """Train the backbone-only model for fewer epochs, so that its accuracy covers a range.

    Parameters
    ----------
    config : FusionConfig
        Configuration of the comparison. Its head is replaced by "backbone", and its learning-rate
        schedule ends with each length.
    study : Study
        Its set "train" trains, its set "val" selects the epoch.
    encoder : TrainedEncoder, optional
        Fixes the number of parameters, as in `train_comparison`.
    epochs : sequence of int, default (1, 2, 4, 8)
        Lengths of training in epochs; those that are not shorter than the config's are left out.
    seeds : sequence of int, default (0,)
        Training seeds of each length.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Where to train and predict.

    Returns
    -------
    dict of str to list of TrainedFusion
        "backbone, 1 epoch", "backbone, 2 epochs", ...: one model per seed.

    Raises
    ------
    ConfigError
        If a length is below 1, or none is below the config's.

    Notes
    -----
    The line of Taori et al. (2020) is fitted to models of many kinds. Models on one frozen backbone
    that differ only in their training share its representation; a residual from their line is
    therefore robustness beyond that of this backbone.
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
    context, found = Context.make(store, device), {}
    for length in kept:
        name = f"backbone, {length} epoch" + ("s" if length > 1 else "")
        shorter = configs.replace(
            config, head="backbone", loop=configs.replace(config.loop, epochs=length)
        )
        found[name] = [
            train_fusion(shorter, study, encoder=encoder, context=context, seed=s, name=name)
            for s in seeds
        ]
    return found

"""Presets of the fusion model, from tests on one core to ImageNet-sized studies on a GPU.

Each function returns a `FusionConfig`; its keywords are fields of `FusionConfig` to change.
"""

from __future__ import annotations

from bmfl_lab import config as configs
from bmfl_lab.config import LoopConfig
from bmfl_lab.models.build import FusionConfig

PRESETS = ("tiny", "quick", "small", "base")
"""Names of the presets, each a function of this module."""


def tiny(**changes: object) -> FusionConfig:
    """Return a config for the planted study and tests, which trains in seconds on one core."""
    chosen = FusionConfig(
        width=32,
        brain_width=32,
        depth=1,
        loop=LoopConfig(epochs=40, batch_size=32, lr=3e-3, weight_decay=0.05),
    )
    return configs.replace(chosen, **changes)


def quick(**changes: object) -> FusionConfig:
    """Return a config for many models of the demo study, with pooled patches for speed."""
    chosen = FusionConfig(
        width=32,
        brain_width=32,
        depth=1,
        kind="pooled:4",
        loop=LoopConfig(epochs=8, batch_size=64, lr=5e-3, weight_decay=0.05),
    )
    return configs.replace(chosen, **changes)


def small(**changes: object) -> FusionConfig:
    """Return a config for the demo study: minutes per model on two cores."""
    chosen = FusionConfig(
        width=64,
        brain_width=64,
        depth=2,
        loop=LoopConfig(epochs=20, batch_size=128, lr=1e-3, weight_decay=0.05),
    )
    return configs.replace(chosen, **changes)


def base(**changes: object) -> FusionConfig:
    """Return a config for ImageNet-sized studies on a GPU."""
    chosen = FusionConfig(
        width=384,
        brain_width=384,
        depth=4,
        n_heads=6,
        kind="patches",
        loop=LoopConfig(epochs=20, batch_size=1024, lr=1e-3, weight_decay=0.05),
    )
    return configs.replace(chosen, **changes)

"""Baselines of different accuracy."""

from __future__ import annotations

import pytest

import bmfl_lab
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.errors import ConfigError
from bmfl_lab.training import FusionConfig, LoopConfig
from bmfl_lab.training.compare import train_baselines


@pytest.fixture(scope="module")
def study():
    return bmfl_lab.load_study(
        "planted",
        n_encoder=8,
        n_encoder_val=4,
        n_encoder_test=4,
        n_train=64,
        n_val=32,
        n_test=8,
        n_ood=8,
    )


def test_longer_training_fits_better_and_every_seed_is_there(study, tmp_path):
    config = FusionConfig(
        head="fusion", width=16, loop=LoopConfig(epochs=20, batch_size=16, lr=3e-3)
    )
    found = train_baselines(
        config,
        study,
        epochs=(1, 12, 20, 40),
        seeds=(0, 1),
        store=FeatureStore(tmp_path),
        device="cpu",
    )
    assert list(found) == ["backbone, 1 epoch", "backbone, 12 epochs"]
    assert [m.seed for m in found["backbone, 1 epoch"]] == [0, 1]
    assert all(
        m.config.head == "backbone" and m.source is None for group in found.values() for m in group
    )
    last = {name: group[0].history[-1] for name, group in found.items()}
    assert last["backbone, 12 epochs"]["loss"] < last["backbone, 1 epoch"]["loss"]
    assert last["backbone, 12 epochs"]["epoch"] - last["backbone, 1 epoch"]["epoch"] == 11


def test_lengths_that_make_no_baseline_are_refused(study):
    for epochs, expected in (
        ((), "different epochs"),
        ((1, 1), "different epochs"),
        ("[1, 2]", "a list of int for epochs"),
        ((40,), "lengths from 1"),
        ((0, 1), "lengths from 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            train_baselines(FusionConfig(loop=LoopConfig(epochs=20)), study, epochs=epochs)

"""Trainings whose batches are decoded images: the choice, augmentation, and going on after SIGTERM."""

import os
import signal

import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError
from bmfl_lab.training import LoopConfig, train_fusion
from bmfl_lab.training import fusion as recipe
from bmfl_lab.training.recipes import tiny

LOOP = LoopConfig(epochs=3, batch_size=32, lr=5e-3)


@pytest.fixture(scope="module")
def study():
    return load_study("planted", n_encoder=8, n_encoder_val=4, n_encoder_test=4, n_test=10)


def train(study, store, **changes):
    folder, batches = changes.pop("folder", None), changes.pop("batches", "auto")
    config = tiny(kind="pooled:4", head="backbone", loop=LOOP, **changes)
    atlas = study.subject().atlas
    return train_fusion(
        config, study, atlas=atlas, store=store, folder=folder, device="cpu", batches=batches
    )


def test_a_training_from_augmented_images_that_is_stopped_goes_on_to_the_same_bits(
    study, tmp_path, monkeypatch, capsys
):
    store = FeatureStore(tmp_path / "store")
    whole = train(study, store, augment="crop_flip")
    assert "batches from images, because they are augmented" in capsys.readouterr().out
    assert store.used_bytes() == 0
    steps, original = [0], recipe._loss

    def stopped(*arguments, **options):
        steps[0] += 1
        if steps[0] == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "_loss", stopped)
        with pytest.raises(SystemExit) as ended:
            train(study, store, augment="crop_flip", folder=tmp_path / "run")
    assert ended.value.code == 143 and steps[0] == 7
    again = train(study, store, augment="crop_flip", folder=tmp_path / "run")
    assert again.history == whole.history
    for name, value in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name
    plain = train(study, store, batches="images")
    assert configs.config_hash(plain.config) != configs.config_hash(whole.config)
    assert plain.history != whole.history


def test_images_are_taken_if_their_tokens_do_not_fit_the_store(study, tmp_path, capsys):
    small = FeatureStore(tmp_path / "small", limit_gb=1e-5)
    from_images = train(study, small)
    said = capsys.readouterr().out
    assert "batches from images, because their tokens do not fit the store of 1e-05 GB" in said
    assert small.used_bytes() == 0
    stored = train(study, FeatureStore(tmp_path / "store"))
    assert "batches from memory" in capsys.readouterr().out
    for name, value in stored.module.state_dict().items():
        torch.testing.assert_close(
            from_images.module.state_dict()[name], value, atol=0.05, rtol=0.05
        )
    with pytest.raises(ConfigError, match=r"batches='images' or 'auto' with augment='crop_flip'"):
        train(study, small, augment="crop_flip", batches="store")


def test_the_limit_of_the_store_comes_from_the_environment(tmp_path, monkeypatch):
    assert FeatureStore(tmp_path).limit_gb == 20
    monkeypatch.setenv("BMFL_STORE_GB", "0.5")
    assert FeatureStore(tmp_path).limit_gb == 0.5
    assert FeatureStore(tmp_path, limit_gb=3).limit_gb == 3
    monkeypatch.setenv("BMFL_STORE_GB", "much")
    with pytest.raises(ConfigError, match="number of GB in the environment variable BMFL_STORE_GB"):
        FeatureStore(tmp_path)

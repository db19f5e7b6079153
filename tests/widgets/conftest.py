"""Trained models of the planted study, made once for all tests of the widgets."""

import dataclasses

import pytest

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.evaluation import Explorer, evaluate_ood
from bmfl_lab.training import presets, train_brain_encoder, train_fusion


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widgets")
    study, store = load_study("planted"), FeatureStore(folder / "features")
    config, encoder_config = presets("tiny", epochs=12)
    encoder = train_brain_encoder(encoder_config, study, store=store, folder=folder / "encoder")
    models = {
        h: train_fusion(dataclasses.replace(config, head=h), study, encoder=encoder, store=store)
        for h in ("fusion", "backbone")
    }
    return study, models, encoder, store


@pytest.fixture(scope="session")
def explorer(parts):
    study, models, encoder, store = parts
    return Explorer(study, models, encoder, store=store, n_batch=60)


@pytest.fixture(scope="session")
def result(parts):
    return evaluate_ood(parts[1], parts[0], shifts=[("masked", 5)], n_boot=10)

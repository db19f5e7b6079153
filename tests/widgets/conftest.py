"""Trained models of the planted study, trained once for all tests of the widgets."""

import dataclasses

import pytest

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.evaluation import Explorer, evaluate_ood
from bmfl_lab.training import presets, train_brain_encoder, train_fusion
from bmfl_lab.training.context import Context


@pytest.fixture(scope="session")
def parts(shared):
    folder = shared / "widgets"
    study, store = load_study("planted"), FeatureStore(folder / "features")
    config, encoder_config = presets("tiny", epochs=12)
    encoder = train_brain_encoder(encoder_config, study, store=store, folder=folder / "encoder")
    context = Context.make(store).keeping(folder / "models", fresh=False)
    models = {
        h: train_fusion(
            dataclasses.replace(config, head=h), study, encoder=encoder, context=context
        )
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

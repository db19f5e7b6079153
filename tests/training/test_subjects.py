"""A fusion that reads the predicted responses of several subjects."""

import dataclasses

import numpy as np
import pytest

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import replace
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.training import combine_subjects, train_brain_encoder, train_fusion
from bmfl_lab.training.encoder import tiny
from bmfl_lab.training.recipes import tiny as tiny_fusion

pytestmark = pytest.mark.filterwarnings("ignore:expected at most 5%")


def build(folder, **sizes):
    study = load_study("planted", complementary=True, n_ood=4, **sizes)
    store = FeatureStore(folder)
    encoders = {
        name: train_brain_encoder(tiny("ridge"), study, subject=name, store=store, device="cpu")
        for name in study.subjects
    }
    return study, store, encoders


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    sizes = dict(n_encoder=60, n_encoder_val=12, n_encoder_test=4, n_train=4, n_val=4, n_test=8)
    return build(tmp_path_factory.mktemp("features"), **sizes)


def test_joined_responses_are_those_of_the_subjects_by_hemisphere(made):
    study, store, encoders = made
    stimuli = study.set("test").subset(range(5))
    joined = combine_subjects(encoders)
    parts = [e.predict_stimuli(stimuli, store=store, device="cpu") for e in encoders.values()]
    found = joined.predict_stimuli(stimuli, store=store, device="cpu")
    first = next(iter(encoders.values())).atlas
    left = [p[:, : first.n_left] for p in parts]
    right = [p[:, first.n_left :] for p in parts]
    np.testing.assert_allclose(found, np.hstack([*left, *right]), atol=1e-5)
    assert joined.atlas.n_vertices == 2 * first.n_vertices
    assert joined.atlas.select("FFC").sum() == 2 * first.select("FFC").sum()
    assert joined.scores.shape == (2 * first.n_vertices,)
    average = combine_subjects(encoders, "average")
    mean = average.predict_stimuli(stimuli, store=store, device="cpu")
    np.testing.assert_allclose(mean, np.mean(parts, 0), atol=1e-5)


def test_one_subject_and_other_vertices_are_refused(made):
    _, _, encoders = made
    one = dict(list(encoders.items())[:1])
    with pytest.raises(DataError, match="two or more subjects"):
        combine_subjects(one)
    with pytest.raises(ConfigError, match="how to combine subjects"):
        combine_subjects(encoders, "averag")
    (name, first), (other, second) = encoders.items()
    flipped = dataclasses.replace(second, atlas=second.atlas.subset(np.arange(168) > 0))
    with pytest.raises(DataError, match="other vertices"):
        combine_subjects({name: first, other: flipped}, "average")


@pytest.mark.slow
def test_only_both_subjects_together_tell_all_planted_classes(tmp_path):
    study, store, encoders = build(tmp_path, n_encoder=600, n_test=200)
    config = tiny_fusion(kind="pooled:4", loop=replace(tiny_fusion().loop, epochs=14))
    names = list(encoders)
    choices = {
        "first": encoders[names[0]],
        "second": encoders[names[1]],
        # the control has as many vertices as the join and no further signal
        "first twice": combine_subjects({"a": encoders[names[0]], "b": encoders[names[0]]}),
        "join": combine_subjects(encoders),
    }
    test = study.set("test")
    accuracy = {}
    for name, encoder in choices.items():
        model = train_fusion(config, study, encoder=encoder, store=store, device="cpu")
        accuracy[name] = np.mean(model.logits(test).argmax(1) == test.labels)
    alone = max(accuracy[k] for k in ("first", "second", "first twice"))
    assert accuracy["join"] > 0.8 and accuracy["join"] > alone + 0.08, accuracy

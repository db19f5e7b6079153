"""Encoders of one subject averaged on tokens of their own."""

import dataclasses

import numpy as np
import pytest
import torch

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.backbones.tokens import stored_patches
from bmfl_lab.config import replace
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation import evaluate_encoder, receptive_field_error
from bmfl_lab.models.encoders import ensemble_weights
from bmfl_lab.training import combine_encoders, train_brain_encoder, train_fusion
from bmfl_lab.training.encoder import tiny
from bmfl_lab.training.recipes import tiny as tiny_fusion

pytestmark = pytest.mark.filterwarnings("ignore:expected at most 5%")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    study = load_study(
        "planted", n_encoder=200, n_encoder_val=40, n_encoder_test=60, n_train=16, n_val=8, n_test=8
    )
    store, base = (
        FeatureStore(tmp_path_factory.mktemp("features")),
        tmp_path_factory.mktemp("encoders"),
    )
    configs = {
        "early ridge": replace(tiny("ridge"), blocks=(0,), tokens="pooled:2"),
        "late ridge": replace(tiny("ridge"), blocks=(2,), tokens="cls+mean"),
        "fields": replace(tiny("retinotopic"), n_features=8, per_side=3),
    }
    options = {"store": store, "device": "cpu"}
    members = {
        k: train_brain_encoder(c, study, folder=base / k, **options) for k, c in configs.items()
    }
    return study, store, members


def test_prediction_is_the_weighted_mean_of_the_members(made):
    study, store, members = made
    stimuli = study.subject().stimuli.subset(range(7))
    both = combine_encoders(members)
    parts = np.stack(
        [m.predict_stimuli(stimuli, store=store, device="cpu") for m in members.values()]
    )
    weights = ensemble_weights(np.stack([m.scores for m in members.values()]))
    expected = np.einsum("mnv,mv->nv", parts.astype(np.float64), weights)
    np.testing.assert_allclose(
        both.predict_stimuli(stimuli, store=store, device="cpu"), expected, atol=1e-5
    )
    np.testing.assert_allclose(
        both.predict_stimuli(stimuli, device="cpu"), expected, atol=3e-3
    )  # not rounded to half
    best = combine_encoders(members, temperature=1e6)
    winner = np.take_along_axis(parts, np.nanargmax(weights, 0)[None, None], 0)[0]
    np.testing.assert_allclose(
        best.predict_stimuli(stimuli, store=store, device="cpu"), winner, atol=1e-5
    )
    with pytest.raises(DataError, match=r"tokens of 3 block\(s\); got 1"):
        both.predict(both.tokens(stimuli, store=store, device="cpu")[:1])


def test_tensors_images_and_stored_tokens_give_the_same_responses(made):
    study, store, members = made
    stimuli = study.subject().stimuli.subset(range(7))
    for encoder in (*members.values(), combine_encoders(members)):
        stored = encoder.tokens(stimuli, store=store, device="cpu")
        batch = [torch.from_numpy(stored_patches([s]).astype(np.float32)) for s in stored]
        batch = [b.requires_grad_() for b in batch]
        found = encoder.respond(batch)
        assert found.shape == (7, encoder.atlas.n_vertices)
        np.testing.assert_array_equal(found.detach().numpy(), encoder.predict(stored, device="cpu"))
        found.square().sum().backward()
        assert all(b.grad.abs().sum() > 0 for b in batch)


def test_it_is_judged_and_used_as_any_encoder(made):
    study, store, members = made
    both = combine_encoders(members)
    result = evaluate_encoder(both, study, store=store, n_boot=10, device="cpu")
    assert {r.model for r in result.rows} == {both.label} and "simulated responses" in both.label
    single = [
        evaluate_encoder(m, study, store=store, n_boot=10, device="cpu").table()
        for m in members.values()
    ]
    alone = [t.set_index("roi").loc["all", "pearson_r"] for t in single]
    assert result.table().set_index("roi").loc["all", "pearson_r"] > max(alone) - 0.01
    assert np.isfinite(receptive_field_error(both, study)["error_degrees"]).any()
    config = tiny_fusion()
    config = replace(config, loop=replace(config.loop, epochs=1))
    fused = train_fusion(config, study, encoder=both, store=store, device="cpu")
    assert np.isfinite(fused.history[-1]["val_nll"])


def test_a_vertex_without_a_score_stays_undefined(made):
    _, _, members = made
    first, second, _ = members.values()
    hidden = [
        dataclasses.replace(m, scores=np.where(np.arange(len(m.scores)) == 3, np.nan, m.scores))
        for m in (first, second)
    ]
    both = combine_encoders(dict(zip("ab", hidden)))
    assert np.flatnonzero(np.isnan(both.scores)).tolist() == [3] and np.allclose(
        both.weights.sum(0), 1
    )
    assert both.hash != combine_encoders(dict(zip("ab", (first, second)))).hash


def test_encoders_that_do_not_belong_together_are_refused(made):
    _, _, members = made
    first, second, _ = members.values()
    with pytest.raises(DataError, match="two or more encoders; got 1"):
        combine_encoders({"a": first})
    other = dataclasses.replace(
        second, atlas=second.atlas.subset(np.arange(second.atlas.n_vertices) > 0)
    )
    with pytest.raises(DataError, match="'b' of other vertices"):
        combine_encoders({"a": first, "b": other})
    moved = dataclasses.replace(
        second, backbone=dataclasses.replace(second.backbone, image_size=14)
    )
    with pytest.raises(DataError, match="'b' of another backbone"):
        combine_encoders({"a": first, "b": moved})


def test_the_score_of_an_ensemble_is_the_weighted_mean_of_the_members_that_have_one(made):
    _, _, members = made
    first, second, _ = members.values()
    hidden = dataclasses.replace(
        first, scores=np.where(np.arange(len(first.scores)) == 3, np.nan, first.scores)
    )
    both = combine_encoders({"a": hidden, "b": second})
    want = both.weights[0] * np.asarray(first.scores) + both.weights[1] * np.asarray(second.scores)
    want[3] = second.scores[3]
    np.testing.assert_allclose(both.scores, want, rtol=1e-5)

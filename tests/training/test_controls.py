"""Controls train by one recipe, and differ in what they read."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError
from bmfl_lab.metrics import pearson
from bmfl_lab.training import LoopConfig, compare, train_fusion
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.encoder import train_brain_encoder
from bmfl_lab.training.recipes import tiny

LOOP = LoopConfig(epochs=3, batch_size=32, lr=3e-3, weight_decay=0.05)
CONFIG = tiny(kind="pooled:4", dropout=0.0, loop=LOOP)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def study():
    return load_study(
        "planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_test=40, n_ood=8
    )


def _source(tokens, ids):
    return np.asarray(tokens.patches, np.float32).reshape(len(ids), -1)[:, :168]


def test_silent_vertices_change_nothing(study, store):
    atlas = study.subject().atlas
    silent = atlas.select("V1")
    model = train_fusion(
        CONFIG, study, brain=_source, atlas=atlas, store=store, device="cpu", silent=silent
    )
    test = study.set("test")
    tokens, response = model.inputs.tokens(test), model.predict_responses(test)
    changed = np.where(silent, 99.0, response).astype(np.float32)
    other = model.classify(tokens.cls, tokens.patches, changed)["logits"]
    np.testing.assert_array_equal(other, model.logits(test))
    heard = np.where(silent, response, 99.0).astype(np.float32)
    assert not np.allclose(model.classify(tokens.cls, tokens.patches, heard)["logits"], other)
    with pytest.raises(ConfigError, match=r"silent of shape \(168,\)"):
        train_fusion(
            CONFIG, study, brain=_source, atlas=atlas, store=store, device="cpu", silent=silent[:5]
        )
    with pytest.raises(ConfigError, match="a model with a brain"):
        alone = configs.replace(CONFIG, head="backbone")
        train_fusion(alone, study, atlas=atlas, store=store, device="cpu", silent=silent)


def test_a_frozen_brain_transformer_keeps_its_initial_weights(study, store):
    options = {"brain": _source, "atlas": study.subject().atlas, "store": store, "device": "cpu"}
    frozen = configs.replace(CONFIG, freeze_brain=True)
    states = []
    for config in (
        frozen,
        configs.replace(frozen, loop=configs.replace(LOOP, epochs=1)),
        CONFIG,
    ):
        model = train_fusion(config, study, seed=3, **options)
        states.append({k: v.clone() for k, v in model.module.brain.state_dict().items()})
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
    assert not all(torch.equal(states[0][k], v) for k, v in states[2].items())


def test_every_control_trains_by_the_same_recipe(study, store, tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    config, subject = encoders.tiny("ridge"), study.subject()
    # a subject that comes first and is not that of the encoder: no control may read it
    first = dataclasses.replace(subject, name="first", attributes=None)
    study = dataclasses.replace(study, subjects={"first": first, subject.name: subject})
    encoder = train_brain_encoder(config, study, subject=subject.name, store=store, device="cpu")
    short = configs.replace(CONFIG, loop=configs.replace(LOOP, epochs=1))
    found = compare.train_controls(
        short, study, encoder=encoder, encoder_config=config, seeds=(0,), store=store, device="cpu"
    )
    assert tuple(found) == tuple(compare.CONTROL_MODELS)
    responses = {}
    for name, (model,) in found.items():
        assert model.name == name and model.logits(study.set("test")).shape == (40, 4)
        if name != "backbone":
            responses[name] = model.predict_responses(study.set("test"))
    assert responses["attributes"].shape == (40, 4) and responses["fusion"].shape == (40, 168)
    np.testing.assert_array_equal(responses["untrained brain transformer"], responses["fusion"])
    others = [
        n for n in responses if n not in ("fusion", "attributes", "untrained brain transformer")
    ]
    assert all(not np.allclose(responses[n], responses["fusion"], atol=0.05) for n in others)
    with pytest.raises(ConfigError, match="an encoder_config for"):
        compare.train_controls(short, study, encoder=encoder, controls=("attributes",), store=store)
    with pytest.raises(ConfigError, match="did you mean 'noise'"):
        compare.train_controls(short, study, encoder=encoder, controls=("nois",), store=store)
    monkeypatch.setitem(compare.CONTROL_MODELS, "my control", "a control without a source")
    with pytest.raises(ConfigError, match=r"return it in _ControlSources\.get"):
        compare.train_controls(short, study, encoder=encoder, controls=("my control",), store=store)


def test_alpha_raises_the_measured_agreement_and_quality_names_its_accuracy(
    study, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    encoder = train_brain_encoder(encoders.tiny("ridge"), study, store=store, device="cpu")
    options = {"encoder": encoder, "seeds": (0,), "store": store, "device": "cpu"}
    found = compare.train_alphas(CONFIG, study, alphas=(0.0, 10.0), **options)
    none, strong = (compare.agreement(m[0], study.set("test")) for m in found.values())
    assert tuple(found) == ("alpha 0", "alpha 10") and strong > none + 0.2
    vb, bv = compare.fused_features(found["alpha 10"][0], study.set("test"))
    assert pearson(vb.T, bv.T).mean() == pytest.approx(strong, abs=1e-4)
    short = configs.replace(CONFIG, loop=configs.replace(LOOP, epochs=1))
    graded = compare.train_quality(short, study, shares=(0.0, 1.0), **options)
    assert tuple(graded) == ("r = 0.00", f"r = {np.nanmean(encoder.scores):.2f}")
    with pytest.raises(ConfigError, match="two fused features"):
        alone = configs.replace(short, head="backbone")
        model = train_fusion(alone, study, encoder=encoder, store=store, device="cpu")
        compare.agreement(model, study.set("test"))


def test_every_form_is_trained_and_differs_from_the_others(study, store, tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    encoder = train_brain_encoder(encoders.tiny("ridge"), study, store=store, device="cpu")
    short = configs.replace(CONFIG, alpha=1.0, loop=configs.replace(LOOP, epochs=2))
    found = compare.train_forms(
        short, study, encoder=encoder, seeds=(0, 1), store=store, device="cpu"
    )
    assert [(n, m[0].config.query, m[0].config.pcc_axis) for n, m in found.items()] == [
        (f"{q} query, {a} axis", q, a) for q in ("cls", "patch") for a in ("feature", "batch")
    ]
    logits = [m[0].logits(study.set("test")) for m in found.values()]
    assert all(not np.allclose(a, b) for a, b in itertools.combinations(logits, 2))
    assert [m.seed for m in found["cls query, batch axis"]] == [0, 1]


def test_the_encoding_accuracy_of_what_is_read_falls_with_the_share_of_noise(
    study, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    encoder = train_brain_encoder(encoders.tiny("ridge"), study, store=store, device="cpu")
    short = configs.replace(CONFIG, loop=configs.replace(LOOP, epochs=1))
    graded = compare.train_quality(
        short,
        study,
        encoder=encoder,
        shares=(0.0, 0.5, 1.0),
        seeds=(0, 1),
        store=store,
        device="cpu",
    )
    subject = study.subject()
    rows = compare.measured_rows(
        "encoding_r", graded, lambda m: compare.encoding_accuracy(m, subject), n=20
    )
    none, half, full = (r for r in rows if r.seed is None)
    test = subject.rows("test")
    predicted = encoder.predict_stimuli(subject.stimuli.subset(test), store=store, device="cpu")
    each = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, np.asarray(subject.responses)[test].T)
    ]
    assert full.value == pytest.approx(np.mean(each), abs=1e-4) and abs(none.value) < 0.1
    assert half.value == pytest.approx(0.5 * full.value, abs=0.1)
    assert (
        none.ci_low <= none.value <= none.ci_high
        and none.n_seeds == 2
        and "over seeds" in none.interval
    )
    assert [r.seed for r in rows] == [0, 1, None] * 3

"""Brain encoders of several subjects, trained on after a stop, and in bfloat16."""

import dataclasses

import numpy as np
import pytest
import torch

from bmfl_lab import load_study, runtime
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import replace
from bmfl_lab.training import encoder as recipes
from bmfl_lab.training import load_encoder, train_brain_encoder
from bmfl_lab.training.encoder import tiny

pytestmark = pytest.mark.filterwarnings("ignore:expected at most 5%")


@pytest.fixture(scope="module")
def study():
    found = load_study(
        "planted", n_encoder=120, n_encoder_val=40, n_encoder_test=40, n_train=8, n_val=8, n_test=8
    )
    first = found.subject()
    noisier = first.responses + np.random.default_rng(0).standard_normal(
        first.responses.shape
    ).astype(np.float32)
    second = dataclasses.replace(first, name="second", responses=noisier)
    return dataclasses.replace(found, subjects={first.name: first, "second": second})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


def config(epochs=5, **changes):
    made = tiny("roi_query")
    return replace(made, loop=replace(made.loop, epochs=epochs, **changes))


def test_each_subject_is_predicted_from_its_own_responses(study, store, tmp_path):
    for folder in ("a", "b"):
        made = {
            name: train_brain_encoder(
                config(2),
                study,
                subject=name,
                store=store,
                folder=tmp_path / folder / name,
                device="cpu",
            )
            for name in study.subjects
        }
        assert [found.facts["subject"] for found in made.values()] == list(study.subjects)
        assert len({found.hash for found in made.values()}) == 2
    loaded = load_encoder(tmp_path / "a" / "second")
    for a, b in zip(
        made["second"].module.state_dict().values(),
        loaded.module.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_stopped_training_goes_on_and_ends_the_same(study, store, tmp_path, monkeypatch):
    stepwise = config(checkpoint_every=1)
    whole = train_brain_encoder(
        stepwise, study, store=store, folder=tmp_path / "whole", device="cpu"
    )
    scores, calls = recipes._validation_r, []

    def stops_at(limit):
        def counted(module, job, *rest):
            calls.append(1)
            if len(calls) == limit:
                raise KeyboardInterrupt
            return scores(module, job, *rest)

        return counted

    monkeypatch.setattr(recipes, "_validation_r", stops_at(4))
    with pytest.raises(KeyboardInterrupt):
        train_brain_encoder(stepwise, study, store=store, folder=tmp_path / "stopped", device="cpu")
    assert len(calls) == 4 and not (tmp_path / "stopped" / "encoder.json").exists()
    calls.clear()
    monkeypatch.setattr(recipes, "_validation_r", stops_at(0))
    resumed = train_brain_encoder(
        stepwise, study, store=store, folder=tmp_path / "stopped", device="cpu"
    )
    assert len(calls) == 3  # epochs 4 and 5, and the epoch that was selected
    for a, b in zip(
        whole.module.state_dict().values(), resumed.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert [r["val_r"] for r in resumed.history] == [r["val_r"] for r in whole.history]


def test_bfloat16_is_used_where_it_pays_and_said_where_it_does_not(
    study, store, tmp_path, monkeypatch, capsys
):
    asked = config(8, precision="bfloat16")
    monkeypatch.setattr(runtime, "bf16_pays", lambda kind: False)
    plain = train_brain_encoder(
        asked, study, store=store, folder=tmp_path / "float32", device="cpu"
    )
    assert "float32 instead of bfloat16, which this cpu only emulates" in capsys.readouterr().out
    monkeypatch.setattr(runtime, "bf16_pays", lambda kind: True)
    used, forward = [], torch.nn.functional.scaled_dot_product_attention

    def seen(q, *rest, **options):
        used.append(q.dtype)
        return forward(q, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    mixed = train_brain_encoder(
        asked, study, store=store, folder=tmp_path / "bfloat16", device="cpu"
    )
    assert torch.bfloat16 in used
    assert all(p.dtype == torch.float32 for p in mixed.module.parameters())
    assert abs(np.nanmean(mixed.scores) - np.nanmean(plain.scores)) < 0.02

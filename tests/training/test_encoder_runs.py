"""Brain encoders of several subjects in one call, gone on with after a stop, and in bfloat16."""

import dataclasses

import numpy as np
import pytest
import torch

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import replace
from bmfl_lab.training import encoder as recipes
from bmfl_lab.training import loop, train_brain_encoder
from bmfl_lab.training.encoder import tiny, train_brain_encoders

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


def test_all_subjects_in_one_call_each_from_its_own_responses(study, store, tmp_path):
    made = train_brain_encoders(config(2), study, store=store, folder=tmp_path, device="cpu")
    assert (
        list(made) == list(study.subjects)
        and made["second"].hash != made[study.subject().name].hash
    )
    for name, found in made.items():
        assert found.facts["subject"] == name and (tmp_path / name / "encoder.json").is_file()
        alone = train_brain_encoder(
            config(2),
            study,
            subject=name,
            store=store,
            folder=tmp_path / "alone" / name,
            device="cpu",
        )
        for a, b in zip(
            found.module.state_dict().values(), alone.module.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b)
    again = train_brain_encoders(config(2), study, store=store, folder=tmp_path, device="cpu")
    assert {k: v.hash for k, v in again.items()} == {k: v.hash for k, v in made.items()}


def test_a_stopped_training_goes_on_and_ends_the_same(study, store, tmp_path, monkeypatch):
    whole = train_brain_encoder(
        config(), study, store=store, folder=tmp_path / "whole", device="cpu"
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
        train_brain_encoder(config(), study, store=store, folder=tmp_path / "stopped", device="cpu")
    assert len(calls) == 4 and not (tmp_path / "stopped" / "encoder.json").exists()
    calls.clear()
    monkeypatch.setattr(recipes, "_validation_r", stops_at(0))
    resumed = train_brain_encoder(
        config(), study, store=store, folder=tmp_path / "stopped", device="cpu"
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
    monkeypatch.setattr(loop, "bf16_pays", lambda kind: False)
    plain = train_brain_encoder(
        asked, study, store=store, folder=tmp_path / "float32", device="cpu"
    )
    assert "float32 instead of bfloat16, which this cpu only emulates" in capsys.readouterr().out
    monkeypatch.setattr(loop, "bf16_pays", lambda kind: True)
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

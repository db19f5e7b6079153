"""No model is trained twice: what is kept is read to the bit, what was stopped goes on to the bit."""

import dataclasses
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab import runtime
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.errors import CheckpointError
from bmfl_lab.training import (
    compare,
    context,
    fusion,
    loop,
    stage,
    train_brain_encoder,
    train_fusion,
)
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.recipes import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:expected at most 5%"),
    pytest.mark.usefixtures("one_thread"),  # trainings of other processes are not counted
]
LOOP = configs.replace(tiny().loop, epochs=3)
CONFIG = tiny(kind="pooled:4", loop=LOOP)


@pytest.fixture(scope="module")
def study(small_study):
    return small_study


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def encoder(study, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return train_brain_encoder(
        encoders.tiny("ridge"), study, store=store, folder=folder, device="cpu"
    )


@pytest.fixture
def trainings(monkeypatch):
    """Return the list of the trainings that take place from now on, by their names."""
    found, original = [], fusion.fit

    def counted(*arguments, what, **options):
        found.append(what)
        return original(*arguments, what=what, **options)

    monkeypatch.setattr(fusion, "fit", counted)
    return found


def test_kept_values_that_were_used_longest_ago_are_evicted_and_named(tmp_path, capsys):
    def kept(name, limit_gb=1.0, read=None):
        file = tmp_path / name / "model.json"
        return stage.once(
            file,
            read or file.read_text,
            lambda: name,
            lambda value: file.write_text(value * 1000),
            what="the model",
            device="cpu",
            limit_gb=limit_gb,
        )

    for day, name in enumerate("abcd"):
        kept(name)
        os.utime(tmp_path / name / ".lock", (day * 86400, day * 86400))
    assert kept("a") == "a" * 1000  # a use

    def read():
        os.utime(tmp_path / "b" / ".lock", (0, 0))  # it was used longest ago, and is read now
        return kept("e", 4.5e-6)

    assert kept("b", read=read) == "e"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "d", "e"]
    said = capsys.readouterr().out
    assert "deleted model c (0.0 MB, last used 1970-01-03" in said and "BMFL_STORE_GB" in said


def assert_same(a, b, images):
    ours, theirs = a.path.state_dict(), b.path.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
    for name in ("name", "config", "seed", "class_names", "history", "selection", "epoch", "notes"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.logits(images), b.logits(images))


def compared(study, store, encoder, folder, **changes):
    options = {"models": ("backbone", "fusion"), "seeds": (0, 1), "device": "cpu", **changes}
    return compare.train_comparison(
        CONFIG, study, encoder=encoder, store=store, folder=folder, **options
    )


def test_a_second_comparison_reads_every_model_to_the_bit(
    study, store, encoder, tmp_path, trainings
):
    first = compared(study, store, encoder, tmp_path)
    assert len(trainings) == 4
    again = compared(study, store, encoder, tmp_path, seeds=(0, 1, 2))
    assert trainings[4:] == ["backbone (seed 2)", "fusion (seed 2)"]
    for name, group in first.items():
        for a, b in zip(group, again[name]):
            assert_same(a, b, study.set("test"))
    alone = train_fusion(
        CONFIG, study, encoder=encoder, store=store, device="cpu", seed=1, name="fusion"
    )
    assert_same(alone, again["fusion"][1], study.set("test"))
    compared(study, store, encoder, tmp_path, models=("fusion",), seeds=(0,), fresh=True)
    assert trainings[-1] == "fusion (seed 0)" and len(trainings) == 8
    assert not list(tmp_path.glob("*/training")) and not list(tmp_path.glob("*/encoder"))


def test_other_choices_data_encoders_and_code_are_trained_anew(
    study, store, encoder, tmp_path, trainings, monkeypatch
):
    def train(study=study, config=CONFIG, encoder=encoder):
        compare.train_alphas(
            config,
            study,
            encoder=encoder,
            alphas=(0.1,),
            seeds=(0,),
            store=store,
            device="cpu",
            folder=tmp_path,
        )
        return len(trainings)

    assert (train(), train()) == (1, 1)
    assert train(config=configs.replace(CONFIG, dropout=0.2)) == 2
    fewer = study.set("train").subset(np.arange(len(study.set("train")) - 1), name="train")
    assert train(study=dataclasses.replace(study, sets={**study.sets, "train": fewer})) == 3
    shuffled = compare.sources.random_weight_encoder(encoder, 3)
    assert train(encoder=dataclasses.replace(shuffled, hash=encoder.hash)) == 4
    monkeypatch.setattr(fusion, "recipe_code", lambda: "another recipe")
    assert (train(), train()) == (5, 5)


class Killed(Exception):
    """Stands for a kill: nothing is saved any more."""


@pytest.mark.parametrize("after", [3, 7, 13])
def test_a_killed_comparison_goes_on_to_the_same_bits(
    study, store, encoder, tmp_path, monkeypatch, trainings, after
):
    monkeypatch.setattr(loop, "SAVE_SHARE", 1e9)  # a checkpoint at the end of every epoch
    whole = compared(study, store, encoder, tmp_path / "whole")
    original, calls = fusion._loss, []

    def killing(*arguments, **options):
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(fusion, "_loss", killing)
    with pytest.raises(Killed):
        compared(study, store, encoder, tmp_path / "killed")
    steps = 3 * -(-len(study.set("train")) // LOOP.batch_size)
    n_whole, n_begun = divmod(after, steps)
    monkeypatch.setattr(fusion, "_loss", lambda *a, **o: calls.append(1) or original(*a, **o))
    calls.clear(), trainings.clear()
    resumed = compared(study, store, encoder, tmp_path / "killed")
    assert len(trainings) == 4 - n_whole
    per_epoch = steps // 3
    assert len(calls) == (4 - n_whole) * steps - n_begun // per_epoch * per_epoch
    for name, group in whole.items():
        for a, b in zip(group, resumed[name], strict=True):
            assert_same(a, b, study.set("test"))


def test_every_control_is_read_to_the_bit(study, store, encoder, tmp_path, trainings):
    def train():
        return compare.train_controls(
            CONFIG,
            study,
            encoder=encoder,
            encoder_config=encoders.tiny("ridge"),
            seeds=(0,),
            store=store,
            device="cpu",
            folder=tmp_path,
        )

    first, count = train(), len(trainings)
    assert count == len(compare.CONTROL_MODELS)  # "backbone" also chooses the class of a partner
    again = train()
    assert len(trainings) == count
    for name, (model,) in first.items():
        assert_same(model, again[name][0], study.set("test"))
    options = {"encoder": encoder, "store": store, "device": "cpu", "folder": tmp_path}
    graded = [
        compare.train_quality(CONFIG, study, shares=(0.5,), seeds=(0,), **options) for _ in "ab"
    ]
    assert len(trainings) == count + 1
    for (a,), (b,) in zip(graded[0].values(), graded[1].values()):
        assert_same(a, b, study.set("test"))


def test_ablations_and_baselines_are_read_to_the_bit(study, store, encoder, tmp_path, trainings):
    options = {"encoder": encoder, "store": store, "device": "cpu", "folder": tmp_path}
    n_vertices = encoder.atlas.n_vertices
    masks = [np.arange(n_vertices) % step != 0 for step in (2, 3)] + [np.ones(n_vertices, bool)]
    asked = [SimpleNamespace(name=f"model {i}", mask=m, seed=0) for i, m in enumerate(masks)]
    first, again = (compare.ablation_trainer(CONFIG, study, **options)(asked) for _ in "ab")
    assert trainings == ["model 0 (seed 0)", "model 1 (seed 0)", "model 2 (seed 0)"]
    for a, b in zip(first, again, strict=True):
        assert_same(a, b, study.set("test"))
    shorter = [compare.train_baselines(CONFIG, study, epochs=(1, 2), **options) for _ in "ab"]
    assert trainings[3:] == ["backbone, 1 epoch (seed 0)", "backbone, 2 epochs (seed 0)"]
    for name, (model,) in shorter[0].items():
        assert_same(model, shorter[1][name][0], study.set("test"))


def test_models_on_a_source_of_unknown_content_are_not_kept(
    study, store, encoder, tmp_path, trainings
):
    noise = compare.sources.noise_source(np.random.default_rng(0).normal(size=(20, 168)))
    keeping = fusion.Context.make(store, "cpu").keeping(tmp_path, fresh=False)
    options = {"encoder": encoder, "context": keeping}
    for _ in range(2):
        train_fusion(CONFIG, study, brain=lambda tokens, ids: noise(tokens, ids), **options)
    assert len(trainings) == 2 and not list(tmp_path.iterdir())
    for _ in range(2):
        train_fusion(CONFIG, study, brain=noise, **options)
    assert len(trainings) == 3


def test_a_damaged_model_is_named_and_replaced_by_fresh(study, store, encoder, tmp_path):
    options = {"models": ("fusion",), "seeds": (0,)}
    compared(study, store, encoder, tmp_path, **options)
    (file,) = tmp_path.glob("*/fusion.safetensors")
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged or exchanged file"):
        compared(study, store, encoder, tmp_path, **options)
    compared(study, store, encoder, tmp_path, fresh=True, **options)
    assert file.read_bytes() == raw


def test_models_are_kept_in_the_cache_folder(study, store, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(context, "home", runtime.home)
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    compared(study, store, encoder, None, models=("backbone",), seeds=(0,))
    assert len(list((tmp_path / "models").glob("*/fusion.json"))) == 1


def test_the_code_of_the_recipe_ignores_words_alone(tmp_path):
    package = tmp_path / "package"
    for room in ("backbones", "losses", "models", "training"):
        (package / room).mkdir(parents=True)
    file = package / "training" / "x.py"

    def code(text):
        file.write_text(text)
        stage.recipe_code.cache_clear()
        return stage.recipe_code(package)

    plain = code('"""Words."""\n\n\ndef f(x):\n    """Double x."""\n    return 2 * x\n')
    assert plain == code(
        '"""Others."""\n\ndef f(x):\n    """Return 2 x."""\n    return 2*x  # twice\n'
    )
    assert plain != code('"""Words."""\n\n\ndef f(x):\n    """Double x."""\n    return 3 * x\n')
    shutil.rmtree(package)

"""Trainings whose batches are decoded images: the choice, augmentation, and going on after SIGTERM."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.ood import evaluate_ood, read_once
from bmfl_lab.training import LoopConfig, load_fusion, train_fusion
from bmfl_lab.training import fusion as recipe
from bmfl_lab.training.recipes import tiny

STEPS = """
import itertools, sys
import numpy as np
import torch
from torch import nn
from bmfl_lab.backbones import Preprocess, map_tokens, wrap
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.runtime import peak_memory_mb
from bmfl_lab.training.batches import ImageBatches, Order

n = int(sys.argv[1])
net = nn.Sequential(nn.Conv2d(3, 4, 14, stride=14), nn.GELU())
backbone = wrap(net, preprocess=Preprocess(image_size=28), tokens=map_tokens, name="toy")
stimuli = StimulusSet(
    name="generated",
    ids=np.array([f"n{i:08d}" for i in range(n)], dtype=object),
    read=lambda i: np.full((40, 40, 3), i % 256, np.uint8),
    digest_of=str,
    labels=np.arange(n) % 1000,
)
before = peak_memory_mb()  # names and labels are there
batches = ImageBatches(stimuli, BMFL(backbone=backbone), augment="crop_flip", workers=1)
order = Order(n, 128, 0)
steps = [(0, order.indices(0, k)) for k in range(min(15, order.per_epoch))]
batches.expect((e, order.indices(e, k)) for e in range(2) for k in range(order.per_epoch))
for _, rows in steps:
    batches.take(rows)
batches.expect(())
print(peak_memory_mb() - before)
"""

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


def test_broken_training_images_are_skipped_and_counted_if_this_is_allowed(tmp_path, capsys):
    store = FeatureStore(tmp_path / "store")
    for i in range(60):
        place = tmp_path / "images" / ("train", "val", "test")[i // 20 % 3] / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{i}.jpg")
    broken = tmp_path / "images" / "train" / "class1" / "7.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    options = {"backbone": "vit_tiny14", "image_size": 28, "verify": False}
    with pytest.raises(ConfigError, match="skip_broken=True or False; got 'yes'"):
        load_study(tmp_path / "images", skip_broken="yes")
    strict = load_study(tmp_path / "images", **options)
    loop = LoopConfig(epochs=2, batch_size=8)
    config = tiny(kind="pooled:2", head="backbone", loop=loop)
    with pytest.raises(DataError, match=r"7\.jpg.*To fix it"):
        train_fusion(config, strict, store=store, device="cpu", batches="images")
    study = load_study(tmp_path / "images", skip_broken=True, **options)
    assert study.fingerprint() == strict.fingerprint()
    model = train_fusion(config, study, store=store, device="cpu")
    said = capsys.readouterr().out
    assert "because broken ones are skipped" in said and said.count("7.jpg) is broken") == 2
    assert [epoch["skipped"] for epoch in model.history] == [1, 1] and model.n_skipped == 1
    model.save(tmp_path / "model")
    again = load_fusion(tmp_path / "model", model.backbone, store=store, device="cpu")
    rows = evaluate_ood({"net": again}, study, n_boot=10).rows
    counted = next(r for r in rows if r.name == "skipped_images")
    assert (counted.value, counted.n, counted.split, counted.model) == (1, 20, "train", "net")
    assert {r.selection for r in rows} == {
        "best validation accuracy; 1 broken training image skipped"
    }


def test_images_that_do_not_fit_the_store_are_classified_without_it(study, tmp_path):
    small = FeatureStore(tmp_path / "small", limit_gb=1e-5)
    model, test = train(study, small), study.set("test")
    assert model.streams(test)
    read_once([model], test)
    streamed = model.logits(test)
    assert small.used_bytes() == 0
    small.limit_gb = 1
    assert not model.streams(test)
    np.testing.assert_allclose(streamed, model.logits(test), atol=0.05)
    assert small.used_bytes() > 0


def test_memory_does_not_grow_with_the_number_of_images(study, tmp_path):
    """Compare the peaks of the first steps with few and with many generated images."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS)

    def grown(n):
        command = [sys.executable, str(script), str(n)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return float(done.stdout.split()[-1])

    few, many = grown(2_000), grown(200_000)
    # two permutations of 8 bytes; the pixels of all images would be 940 MB
    assert many < few + 30


def test_the_limit_of_the_store_comes_from_the_environment(tmp_path, monkeypatch):
    assert FeatureStore(tmp_path).limit_gb == 20
    monkeypatch.setenv("BMFL_STORE_GB", "0.5")
    assert FeatureStore(tmp_path).limit_gb == 0.5
    assert FeatureStore(tmp_path, limit_gb=3).limit_gb == 3
    monkeypatch.setenv("BMFL_STORE_GB", "much")
    with pytest.raises(ConfigError, match="number of GB in the environment variable BMFL_STORE_GB"):
        FeatureStore(tmp_path)

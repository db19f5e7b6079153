"""The readout and the differentiable encoder against the long way round."""

import numpy as np
import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import load_backbone
from bmfl_lab.data import load_study
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.layers import FrozenModel
from bmfl_lab.training import aligned, encoder, image_function, train_brain_encoder
from bmfl_lab.training.aligned import read_pixels
from bmfl_lab.training.loop import LoopConfig
from bmfl_lab.training.readout import RECIPE, fit_readout, with_classes


@pytest.fixture(scope="module")
def study():
    return load_study(
        "planted", n_encoder=80, n_encoder_val=20, n_encoder_test=20, n_test=60, n_ood=4
    )


@pytest.fixture(scope="module")
def network(study):
    return aligned.prepare_original(
        aligned.tiny(pretrain=LoopConfig(epochs=2, batch_size=16, lr=3e-3)), study
    )


def test_readout_reads_the_last_block_and_only_training_labels(study, network):
    read = fit_readout(network, study)
    images = study.set("test").subset(np.arange(8))
    pooled = network.activations(images)["IT"].reshape(8, 32, 2, 2).mean((2, 3))
    np.testing.assert_allclose(network.pooled(images), pooled, atol=1e-5)
    want = (pooled - read.mean) / read.scale @ read.fit.coef + read.fit.intercept
    np.testing.assert_allclose(read.logits(images), want, atol=1e-4)
    train = study.set("train")
    assert (read.logits(train).argmax(1) == train.labels).mean() > 0.4
    assert RECIPE in read.selection and read.seed == network.config.seed


def test_classes_are_kept_or_mapped(study, network):
    assert (
        with_classes(network, study) is network and with_classes(network, study, "own") is network
    )
    assert with_classes(network, study, "ridge").logits(study.set("val").subset([0])).shape == (
        1,
        4,
    )
    other = configs.replace(network, n_classes=1000)
    assert with_classes(other, study).model is other
    with pytest.raises(DataError, match="1000 of the decoder"):
        with_classes(other, study, "own")


def test_a_frozen_backbone_gets_its_classes_by_the_same_recipe(study):
    backbone = load_backbone("vit_tiny14", "random:0", image_size=56)
    frozen = FrozenModel(backbone, n_layers=2)
    images = study.set("test").subset(np.arange(4))
    assert list(frozen.activations(images)) == ["block 1", "block 2"]
    np.testing.assert_array_equal(frozen.pooled(images), frozen.activations(images)["block 2"])
    assert "vit_tiny14" in frozen.label and "random" in frozen.label
    read = with_classes(frozen, study)
    want = (frozen.pooled(images) - read.mean) / read.scale @ read.fit.coef + read.fit.intercept
    np.testing.assert_allclose(read.logits(images), want, atol=1e-4)
    assert RECIPE in read.selection and read.seed == 0


def test_pixels_of_the_last_set_are_kept_and_never_of_another(study):
    a, b = study.set("test").subset(np.arange(3)), study.set("test").subset(np.arange(3, 6))
    first = read_pixels(a, 56)
    assert read_pixels(a, 56) is first and read_pixels(a, 28).shape[-1] == 28
    assert not np.array_equal(read_pixels(b, 56), first)
    np.testing.assert_array_equal(read_pixels(a, 56), first)


def test_the_encoder_as_a_function_of_pixels(study):
    loop = LoopConfig(epochs=1, batch_size=40, lr=5e-3)
    brain = train_brain_encoder(configs.replace(encoder.tiny(), loop=loop), study, device="cpu")
    function = image_function(brain, device="cpu")
    images = study.set("test").subset(np.arange(3))
    crop = brain.load_backbone("cpu").preprocess.crop
    pixels = torch.stack(
        [torch.from_numpy(crop(images.image(i)).copy()).permute(2, 0, 1) / 255 for i in range(3)]
    )
    pixels.requires_grad_()
    found = function(pixels)
    np.testing.assert_allclose(
        found.detach().numpy(), brain.predict_stimuli(images, device="cpu"), atol=2e-2
    )
    found.sum().backward()
    assert torch.isfinite(pixels.grad).all() and (pixels.grad.abs().sum((1, 2, 3)) > 0).all()
    cls = train_brain_encoder(
        configs.replace(encoder.tiny("ridge"), tokens="cls+mean"), study, device="cpu"
    )
    np.testing.assert_allclose(
        image_function(cls, device="cpu")(pixels.detach()).numpy(),
        cls.predict_stimuli(images, device="cpu"),
        atol=2e-2,
    )

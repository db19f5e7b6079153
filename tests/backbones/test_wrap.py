"""Any module as a backbone: its tokens, its refusals, its use in the store and in training."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from extraction_process import stimuli as noise
from torch import nn

from bmfl_lab import load_study
from bmfl_lab.backbones import (
    BACKBONES,
    Backbone,
    BackboneTokens,
    FeatureStore,
    Preprocess,
    load_backbone,
    map_tokens,
    protocol,
    wrap,
)
from bmfl_lab.errors import CheckpointError, ConfigError
from bmfl_lab.evaluation import evaluate_ood
from bmfl_lab.training import (
    image_function,
    load_encoder,
    recipes,
    train_brain_encoder,
    train_fusion,
)
from bmfl_lab.training.encoder import tiny


def toy(seed=0, name="toy", **options):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 12, 14, stride=14), nn.BatchNorm2d(12), nn.GELU())
    preprocess = Preprocess(image_size=56, resize="direct")
    return wrap(net, preprocess=preprocess, tokens=map_tokens, name=name, **options)


def test_the_example_in_its_docstring_runs():
    assert doctest.testmod(protocol).attempted > 0 and not doctest.testmod(protocol).failed


def test_the_members_of_the_protocol_are_the_modules_own():
    backbone, x = toy(), torch.randn(2, 3, 56, 56)
    assert isinstance(backbone, Backbone) and isinstance(load_backbone("vit_tiny14"), Backbone)
    tokens = backbone(x)
    expected = backbone.module(x).flatten(2).transpose(1, 2)
    assert torch.equal(tokens.patches, expected) and torch.equal(tokens.cls, expected.mean(1))
    assert tokens.registers.shape == (2, 0, 12) and tokens.grid == (4, 4)
    assert (backbone.width, backbone.n_blocks, backbone.n_registers) == (12, 1, 0)
    assert (backbone.patch_size, backbone.image_size, backbone.has_cls) == (14, 56, False)
    assert backbone.grid_of(28, 42) == (2, 3) and backbone.block_shape() == ((4, 4), 12)
    assert backbone(x[..., :28, :]).grid == (2, 4)
    assert toy(patch_size=7).patch_size == 7


def test_it_is_frozen_and_gradients_reach_images_only_on_request():
    backbone = toy()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.train()
    x = torch.randn(4, 3, 56, 56, requires_grad=True)
    assert not backbone(x).patches.requires_grad
    backbone(x, grad=True).patches.sum().backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_the_identity_follows_weights_name_and_number_type():
    first = toy().describe()
    assert toy().describe() == first
    assert len({str(d) for d in (first, toy(1).describe(), toy(name="b").describe())}) == 3
    narrow = toy().to(torch.bfloat16)
    assert narrow.describe()["dtype"] == "bfloat16"
    assert narrow(torch.randn(1, 3, 56, 56)).cls.dtype == torch.float32


def test_class_token_registers_and_blocks_of_its_own(tmp_path):
    def split(x):
        flat = x.flatten(2).transpose(1, 2)
        last = BackboneTokens(flat[:, 0], flat[:, 1:3], flat[:, :4], (2, 2))
        return [map_tokens(x[:, :5]), last]

    net = nn.Conv2d(3, 12, 14, stride=14)
    backbone = wrap(net, preprocess=Preprocess(56), tokens=split, name="two")
    assert (backbone.has_cls, backbone.n_registers, backbone.n_blocks) == (True, 2, 2)
    assert backbone.block_shape(0) == ((4, 4), 5) and backbone.block_shape(1) == ((2, 2), 12)
    store = FeatureStore(tmp_path)
    early, late = store.get_many(backbone, noise(5), [("pooled:2", 0), ("patches", -1)])
    assert early.patches.shape == (5, 4, 5) and early.cls.shape == (5, 5)
    assert late.patches.shape == (5, 4, 12) and late.grid == (2, 2)
    assert not np.allclose(late.cls, late.mean)
    with pytest.raises(ConfigError, match="a pooled grid of at most 2"):
        store.get(backbone, noise(5), "pooled:3")
    with pytest.raises(ConfigError, match="block indices from -2 to 1"):
        store.get(backbone, noise(5), block=2)


def test_a_registered_loader_is_asked_for_its_name(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    @BACKBONES.register("toy")
    def load(name, weights=None, *, image_size, dtype, device, resize):
        assert (image_size, resize) == (None, "short")
        return toy(int(weights or 0), name).to(device=device, dtype=dtype)

    assert "toy" in BACKBONES.names() and "cornet_s" in BACKBONES.names()
    assert load_backbone("toy").describe() == toy().describe()
    assert load_backbone("toy:1").weights_hash == load_backbone("toy", 1).weights_hash
    assert load_backbone("toy:1").weights_hash != load_backbone("toy").weights_hash
    with pytest.raises(ConfigError, match=r"a known backbone; got 'toi'.*did you mean 'toy'"):
        load_backbone("toi")


def test_the_store_keeps_the_tokens_that_the_module_computes(tmp_path):
    backbone = toy()
    stored = FeatureStore(tmp_path).get(backbone, noise(7), dtype="float32", batch_size=3)
    expected = backbone(torch.stack([backbone.preprocess(noise(7).image(i)) for i in range(7)]))
    assert np.allclose(stored.patches, expected.patches, atol=1e-6)
    assert np.allclose(stored.cls, expected.cls, atol=1e-6)


def test_what_cannot_be_a_backbone_is_refused():
    net, preprocess = nn.Conv2d(3, 12, 14, stride=14), Preprocess(56)

    def made(tokens):
        return wrap(net, preprocess=preprocess, tokens=tokens, name="toy")

    with pytest.raises(ConfigError, match="BackboneTokens of toy; got Tensor"):
        made(lambda x: [x])
    with pytest.raises(ConfigError, match=r"P = 3 x 3; got \(1, 16, 12\)"):
        made(lambda x: BackboneTokens(None, None, x.flatten(2).transpose(1, 2), (3, 3)))
    with pytest.raises(ConfigError, match=r"got shape \(1, 16, 12\).*your own function"):
        map_tokens(torch.zeros(1, 16, 12))
    with pytest.raises(ConfigError, match="map_tokens; got tuple"):
        map_tokens((torch.zeros(1, 12, 4, 4),))
    backbone = made(map_tokens)
    with pytest.raises(ConfigError, match="sides that are multiples of 14 pixels; got 50 x 56"):
        backbone(torch.zeros(1, 3, 50, 56))
    with pytest.raises(ConfigError, match=r"shape \(B, 3, H, W\)"):
        backbone(torch.zeros(3, 56, 56))
    with pytest.raises(ConfigError, match="features='tokens' of toy; got 'q'"):
        backbone(torch.zeros(1, 3, 56, 56), features="q")
    with pytest.raises(ConfigError, match="got attention weights"):
        backbone(torch.zeros(1, 3, 56, 56), attention=True)
    net.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="NaN or infinity in weight"):
        made(map_tokens)


def test_encoder_and_fusion_train_on_a_wrapped_network(tmp_path):
    study = load_study("planted")
    backbone, store = toy(), FeatureStore(tmp_path / "store")
    encoder = train_brain_encoder(
        tiny(), study, backbone=backbone, store=store, folder=tmp_path / "encoder"
    )
    assert np.nanmean(encoder.scores) > 0.05
    config = recipes.tiny(loop=replace(recipes.tiny().loop, epochs=3))
    fusion = train_fusion(config, study, backbone=backbone, encoder=encoder, store=store)
    assert fusion.backbone is backbone and fusion.module.visual_width == 12
    rows = evaluate_ood({"fusion": fusion}, study, sets=("test",), shifts=(), n_boot=10).rows
    assert rows[0].value > 1.5 / len(study.class_names)
    images = study.set("test").subset(range(4))
    pixels = torch.stack([backbone.preprocess(images.image(i)) for i in range(4)])
    with torch.no_grad():
        whole = fusion.path(pixels).logits
    np.testing.assert_allclose(whole, fusion.logits(images), atol=0.05)


def test_an_encoder_of_a_wrapped_network_refuses_to_load_another_backbone(tmp_path):
    study = load_study("planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20)
    backbone, options = toy(), {"store": FeatureStore(tmp_path / "store"), "device": "cpu"}
    folder = tmp_path / "encoder"
    made = train_brain_encoder(tiny("ridge"), study, backbone=backbone, folder=folder, **options)
    images = study.subject().stimuli.subset(range(3))
    refused = f"toy with weights {backbone.weights_hash[:12]}.*pass the backbone of the training"
    for encoder in (made, load_encoder(folder)):
        with pytest.raises(CheckpointError, match=refused):
            encoder.load_backbone("cpu")
        with pytest.raises(CheckpointError, match=refused):
            encoder.predict_stimuli(images, **options)
        with pytest.raises(CheckpointError, match=refused):
            image_function(encoder, device="cpu")
        with pytest.raises(CheckpointError, match=refused):
            image_function(encoder, backbone=toy(seed=1), device="cpu")
        # the remedy of the message works
        predicted = encoder.predict_stimuli(images, backbone=backbone, device="cpu")
        function = image_function(encoder, backbone=backbone, device="cpu")
        crops = [backbone.preprocess.crop(images.image(i)).copy() for i in range(3)]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
        assert function.image_size == 56
        np.testing.assert_allclose(function(pixels).numpy(), predicted, atol=2e-2)

"""Grad-CAM on a model whose answer is known, and under the checks of all maps."""

import numpy as np
import pytest
import torch
from torch import nn

from bmfl_lab import training
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.evaluation import attention_checks, attribution
from bmfl_lab.models.fusion import FusionOutput


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A fusion that is trained for two epochs, and eight images."""
    sizes = {"n_encoder": 120, "n_encoder_val": 20, "n_encoder_test": 20}
    study = load_study("planted", n_test=8, n_ood=4, n_train=32, n_val=16, **sizes)
    store = FeatureStore(tmp_path_factory.mktemp("features"))
    fusion, config = training.presets("tiny", epochs=2)
    encoder = training.train_brain_encoder(config, study, store=store, device="cpu")
    model = training.train_fusion(fusion, study, encoder=encoder, store=store, device="cpu", seed=0)
    return study, model


def test_grad_cam_of_a_linear_head_is_its_weights_on_the_tokens(made):
    study, model = made
    few = study.set("test").subset(range(3))
    width, n_classes = model.backbone.width, 4

    class Linear(nn.Module):
        """Score the mean patch token by fixed weights."""

        head = "backbone"

        def forward(self, cls, patches, response=None, weights=False):
            return FusionOutput(patches.mean(1) @ self.weights, None, None)

    head = Linear()
    head.weights = torch.randn(width, n_classes, generator=torch.Generator().manual_seed(0))
    path = type(model.path)(backbone=model.backbone, fusion=head)
    found = attribution.class_activation(model, few, target=[0, 1, 2], path=path)
    (images,) = attribution.image_batches(model.backbone, few)
    tokens = path.tokens(images)["patches"]
    n_patches = tokens.shape[1]
    expected = [(tokens[i] @ head.weights[:, i]).clamp(min=0) / n_patches for i in range(3)]
    np.testing.assert_allclose(found.reshape(3, -1), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_the_map_gets_the_checks_of_all_maps(made):
    study, model = made
    region = attention_checks.on_patches(study.extra["planted_region"], model.backbone)
    few = study.set("test").subset(range(4))
    found = attention_checks.check_class_attribution(
        model, few, gradients="Grad-CAM", region=region, shuffled=model
    )
    assert found.name == "Grad-CAM"
    outcomes = {row.check: row for row in found.rows}
    assert set(outcomes) == {"weights", "labels", "deletion", "insertion", "planted region"}
    assert found.maps.shape == (4, 4, 4) and (found.maps >= 0).all()
    assert outcomes["labels"].value == pytest.approx(1)  # the same model is no shuffled one

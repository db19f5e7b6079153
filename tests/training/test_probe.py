"""The linear probe against torch's own optimiser, and its selection."""

import numpy as np
import pytest
import torch

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError
from bmfl_lab.runtime import rng, seed_for
from bmfl_lab.training import train_probe
from bmfl_lab.training.probe import _fit


def test_all_heads_at_once_are_torchs_sgd_one_by_one():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((50, 6)).astype(np.float32), random.integers(0, 3, 50)
    rates = [0.01, 0.3]
    weight, bias = _fit(x, y, 3, rates, 3, 16, 5, "cpu")
    for k, rate in enumerate(rates):
        layer = torch.nn.Linear(6, 3)
        with torch.no_grad():
            layer.weight.copy_(
                0.01
                * torch.randn(6, 3, generator=torch.Generator().manual_seed(seed_for(5, "probe"))).T
            )
            layer.bias.zero_()
        optimiser = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12)
        for epoch in range(3):
            order = rng(5, "probe order", epoch).permutation(50)
            for start in range(0, 50, 16):
                rows = order[start : start + 16]
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(
                    layer(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])
                ).backward()
                optimiser.step()
                plan.step()
        np.testing.assert_allclose(weight[k], layer.weight.detach().numpy().T, atol=1e-5)
        np.testing.assert_allclose(bias[k], layer.bias.detach().numpy(), atol=1e-5)


def test_the_grid_is_chosen_by_validation_images_alone(tmp_path):
    study = load_study(
        "planted", n_encoder=8, n_encoder_val=4, n_encoder_test=4, n_test=40, n_ood=8
    )
    store = FeatureStore(tmp_path)
    probe = train_probe(study, n_blocks=(1, 2), epochs=3, store=store, device="cpu")
    assert len(probe.table) == 2 * 2 * 13
    right = (probe.logits(study.set("val")).argmax(1) == study.set("val").labels).mean()
    assert right == pytest.approx(
        max(r["val_accuracy"] for r in probe.table if r["val_accuracy"] is not None)
    )
    assert probe.logits(study.set("test")).shape == (40, 4) and "validation" in probe.selection
    assert probe.logits(study.set("test").subset([])).shape == (0, 4)
    with pytest.raises(ConfigError, match="a grid with 1 to 3 blocks"):
        train_probe(study, n_blocks=(4,), store=store, device="cpu")

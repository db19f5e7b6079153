"""Purity against hand counts and chance; the classifier against separable classes."""

import numpy as np
import pytest

from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.preferences import category_purity, nearest_category

NAMES = ("a", "b", "c", "d")
POOL = np.arange(400) % 4


def test_a_pure_choice_is_told_from_a_random_one():
    pure = category_purity(np.array([2, 2, 2, 2, 2, 1]), POOL, NAMES)
    assert (
        pure.value == pytest.approx(5 / 6)
        and pure.category == "c"
        and pure.n == 6
        and pure.p < 0.05
    )
    even = category_purity(np.arange(8) % 4, POOL, NAMES)
    assert even.value == 0.25 and even.p == pytest.approx(1) and even.chance > even.value


def test_chance_is_the_mean_of_the_multinomial_maximum():
    found = category_purity(np.array([0, 1]), POOL, NAMES, n_draws=4000)
    assert found.chance == pytest.approx(0.5 + 0.5 * 0.25, abs=0.02)


def test_categories_of_new_images():
    draw = np.random.default_rng(0)
    centres = 4 * draw.normal(size=(4, 10))
    labels = np.arange(80) % 4
    features = centres[labels] + draw.normal(size=(80, 10))
    named, scores = nearest_category(features, labels, centres, 4)
    assert list(named) == [0, 1, 2, 3] and scores.shape == (4, 4)


def test_refusals():
    for chosen, pool in (
        (np.array([], int), POOL),
        (np.zeros(401, int), POOL),
        (np.array([-1]), POOL),
    ):
        with pytest.raises(DataError, match="labelled images"):
            category_purity(chosen, pool, NAMES)


def test_layers_of_a_backbone_keep_every_cell_of_a_grid(tmp_path):
    from bmfl_lab.backbones import FeatureStore, load_backbone
    from bmfl_lab.data.stimuli import from_arrays
    from bmfl_lab.evaluation.layers import layer_features

    backbone = load_backbone("vit_tiny14", "random:0", image_size=56)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 56, 56, 3), dtype=np.uint8)
    shown = from_arrays("x", pixels, ["a", "b", "c"], np.full(3, -1))
    grid = layer_features(backbone, shown, "pooled:2")
    assert list(grid) == ["block 0", "block 1", "block 2"] and grid["block 0"].shape == (3, 4 * 48)
    passes = []
    handle = backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    layer_features(backbone, shown, "cls+mean", store=FeatureStore(tmp_path))
    handle.remove()
    assert len(passes) == 1  # all blocks of one pass
    both = layer_features(backbone, shown, "cls+mean", blocks=[1])
    assert list(both) == ["block 1"] and both["block 1"].shape == (3, 96)
    np.testing.assert_allclose(
        grid["block 1"].reshape(3, 4, 48).mean(1), both["block 1"][:, 48:], atol=2e-2
    )

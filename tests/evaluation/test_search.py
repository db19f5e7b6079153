"""Search guided by maps, and gradients that mark what is not used."""

import numpy as np
import pytest
import torch

from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.attention_checks import region_share
from bmfl_lab.evaluation.attribution import input_gradients, integrated_gradients
from bmfl_lab.evaluation.search import search_asymmetry, search_displays, visits_to_target

PLAIN = np.full((8, 8, 3), 120, np.uint8)
BAR = PLAIN.copy()
BAR[:, 3:5] = 250
"""An item with an additional feature."""


def feature_map(displays):
    """Return how bright each pixel is: the planted model sees the bar and nothing else."""
    images = np.stack([displays.image(i) for i in range(len(displays))]).astype(float)
    return np.maximum(images.mean(3) - 120, 0)


def blind_map(displays):
    return np.ones((len(displays), 32, 32))


def test_a_model_that_sees_the_added_feature_has_the_known_asymmetry():
    asymmetry, p = search_asymmetry(feature_map, BAR, PLAIN)
    # the bar is visited first; the plain item among bars comes last of 16
    assert asymmetry.value == pytest.approx(15) and asymmetry.low > 0 and p < 0.05
    reverse, _ = search_asymmetry(feature_map, PLAIN, BAR)
    assert reverse.value == pytest.approx(-15)
    none, p = search_asymmetry(blind_map, BAR, PLAIN)
    assert none.value == 0 and p == 1


def test_visits_by_chance_and_bad_input():
    displays, places = search_displays(BAR, PLAIN, n=200)
    assert visits_to_target(blind_map(displays), places) == pytest.approx(8.5)
    draw = np.random.default_rng(0).normal(size=(200, 4, 4))
    assert visits_to_target(draw, places).mean() == pytest.approx(8.5, abs=1.2)
    with pytest.raises(DataError, match="divisible by 4"):
        visits_to_target(draw[:, :3], places)
    with pytest.raises(DataError, match="items of one shape"):
        search_displays(BAR, PLAIN[:4])


def test_input_gradients_mark_the_null_block_and_integrated_gradients_the_signal():
    # as in BlockMNIST one block decides and the other does not: the score is saturated in the
    # signal block, and leaks a little from the null block
    signal = np.zeros((2, 2))
    signal[0] = 1
    images = torch.rand(6, 1, 2, 2) + 1.0

    def score(x, index):
        return torch.tanh(5 * x[:, 0, 0].sum(1)) + 0.02 * x[:, 0, 1].sum(1)

    gradients, gap = input_gradients(score, images)
    share, area = region_share(gradients.sum(1).numpy(), signal)
    assert share.max() < area and torch.isnan(gap).all()
    integrated, gap = integrated_gradients(score, images, torch.zeros_like(images))
    share, area = region_share(integrated.sum(1).numpy(), signal)
    assert share.min() > area + 0.2 and gap.abs().max() < 0.02

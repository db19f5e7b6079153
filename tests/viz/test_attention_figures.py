"""Attention overlays put weight where the map has it."""

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.errors import DataError
from bmfl_lab.viz.attention import attention_figure, consulted_rois_figure, overlay, upsample_map


def corner_map():
    weights = np.zeros((4, 4))
    weights[0, 3] = 1.0
    return weights


def test_upsampling_keeps_place_and_range():
    large = upsample_map(corner_map(), (56, 56))
    assert np.unravel_index(large.argmax(), large.shape)[0] < 14 and large.argmax() % 56 >= 42
    assert large.max() <= 1.0 and large[42:, :14].max() == 0.0


def test_overlay_is_the_image_at_zero_opacity_and_the_map_at_one():
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, corner_map(), 0.0), image)
    full = overlay(image, corner_map(), 1.0).sum(-1)
    assert full[5, 50] > 3 * full[50, 5]


def test_constant_map_does_not_divide_by_zero():
    image = np.full((28, 28, 3), 100, np.uint8)
    assert overlay(image, np.ones((2, 2))).std() == pytest.approx(
        overlay(image, np.ones((2, 2)) * 5).std()
    )


def test_figure_has_one_row_an_image_and_one_column_a_map():
    image = np.zeros((28, 28, 3), np.uint8)
    fig = attention_figure(
        [image, image],
        {"V1": [np.eye(2)] * 2, "FFC": [np.eye(2)] * 2},
        titles=["a", "b"],
        title="t",
    )
    assert len(fig.axes) == 6 and fig.axes[1].get_title(loc="center") == "V1"


def test_consulted_rois_are_sorted_by_mean():
    weights = pd.DataFrame({"V1": [0.2, 0.3], "FFC": [0.7, 0.6], "PHA": [0.1, 0.1]})
    ax = consulted_rois_figure(weights, title="t", group="images").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["PHA", "V1", "FFC"]


def test_refusals():
    image = np.zeros((28, 28, 3), np.uint8)
    with pytest.raises(DataError, match="2 maps in 'V1'"):
        attention_figure([image, image], {"V1": [np.eye(2)]})
    with pytest.raises(DataError, match="a finite map of shape"):
        overlay(image, np.asarray([np.nan]))
    with pytest.raises(DataError, match="an opacity from 0 to 1"):
        overlay(image, np.eye(2), 2.0)
    with pytest.raises(DataError, match="at least one image's attention"):
        consulted_rois_figure(pd.DataFrame())

"""Attention overlays put weight where the map has it, and checks are drawn beside their maps."""

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.viz.attention import (
    attention_figure,
    centres_figure,
    checks_figure,
    consulted_rois_figure,
    deletion_figure,
    fields_figure,
    overlay,
    upsample_map,
)

CHECKS = pd.DataFrame(
    {
        "map": ["a", "a", "b"],
        "check": ["weights", "deletion", "weights"],
        "value": [0.1, -0.2, None],
        "low": [0.0, -0.3, None],
        "high": [0.2, -0.1, None],
        "reference": [0.5, 0.0, 0.5],
        "above": [False, True, False],
        "passes": pd.Series([True, False, None], dtype=object),
    }
)


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
    assert len(fig.axes) == 7 and fig.axes[1].get_title(loc="center") == "V1"
    bar = fig.axes[6]
    assert [t.get_text() for t in bar.get_yticklabels()] == ["lowest", "highest"]
    assert bar.get_ylabel() == "attention (each map scaled to its own range)"


def test_consulted_rois_are_sorted_by_mean():
    weights = pd.DataFrame({"V1": [0.2, 0.3], "FFC": [0.7, 0.6], "PHA": [0.1, 0.1]})
    ax = consulted_rois_figure(weights, title="t", group="images").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["PHA", "V1", "FFC"]


def words(ax):
    return " ".join(t.get_text() for t in ax.texts)


def test_checks_stand_beside_their_map():
    image, maps = np.zeros((28, 28, 3), np.uint8), {"a": np.eye(2), "b": np.eye(2)}
    fig = checks_figure(image, maps, {"a": np.eye(2)}, CHECKS, title="t")
    cells = np.reshape(fig.axes, (2, 4))
    assert [a.get_title(loc="center") for a in cells[0]] == [
        "this model",
        "random weights",
        "weights",
        "deletion",
    ]
    assert (
        "pass" in words(cells[0, 2])
        and "0.10" in words(cells[0, 2])
        and "FAIL" in words(cells[0, 3])
    )
    assert "passes below 0.50" in words(cells[0, 2])
    assert "passes above 0.00" in words(cells[0, 3])
    assert "side of the reference" in fig.get_supxlabel()
    assert "undefined" in words(cells[1, 2]) and "not measured" in words(cells[1, 3])
    assert not cells[1, 1].images and cells[0, 1].images


def band_heights(figure):
    """Return the lowest and highest point of all bands."""
    paths = [p.vertices for c in figure.axes[0].collections for p in c.get_paths()]
    heights = np.concatenate([v[:, 1] for v in paths if len(v)])
    return round(float(heights.min()), 6), round(float(heights.max()), 6)


def test_curves_are_drawn_against_random_orders():
    rows = [
        (name, kind, order, f, 1 - f, 0.9 - f, 1.1 - f)
        for name in ("a", "b")
        for kind in ("deletion", "insertion")
        for order in ("map", "random")
        for f in (0.0, 0.5, 1.0)
    ]
    table = pd.DataFrame(rows, columns=["map", "kind", "order", "fraction", "mean", "low", "high"])
    fig = deletion_figure(table, score="p", title="t")
    assert [len(ax.lines) for ax in fig.axes] == [3, 3] and fig.axes[0].get_ylabel() == "p"
    assert band_heights(fig) == (-0.1, 1.1)
    levels = {"whole image": 1, "grey image": 0}
    ax = deletion_figure(table, score="p", levels=levels).axes[0]
    dotted = {x.get_label(): set(x.get_ydata()) for x in ax.lines if x.get_linestyle() == ":"}
    assert dotted == {"whole image, 1": {1}, "grey image, 0": {0}}
    fig = deletion_figure(table, score="probability of the predicted class")
    assert band_heights(fig) == (0, 1)
    named = [text.get_text() for text in fig.axes[1].get_legend().get_texts()]
    assert named == ["a", "b", "random order", "bands: 95 % interval"]


def test_fields_carry_both_centres():
    centres = pd.DataFrame({"x": [1.0, -1.0], "y": [0.5, 0.0]})
    truth = pd.DataFrame({"x": [1.2, np.nan], "y": [0.4, np.nan]})
    fig = fields_figure({"left:V1": np.eye(4), "right:V1": np.eye(4)}, centres, truth, degrees=8)
    left, right = fig.axes
    marked = [line for line in left.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in marked] == [1.0, 1.2]
    assert len([line for line in right.lines if len(line.get_xdata()) == 1]) == 1
    assert left.get_xlim() == (-4, 4)


def test_centres_leave_out_what_has_no_truth():
    estimated = pd.DataFrame({"x": [1.0, 2, 3], "y": [1.0, 2, 3]})
    truth = pd.DataFrame({"x": [1.0, np.nan, 3], "y": [1.0, np.nan, 3]})
    fig = centres_figure(estimated, truth, ["V1", "V1", "V2"])
    assert [len(c.get_offsets()) for c in fig.axes[0].collections] == [1, 1]

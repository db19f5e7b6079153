"""Figures of brain similarity show the numbers they were given."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bmfl_lab.viz import similarity as figures
from bmfl_lab.viz.charts import DIVERGING, SEQUENTIAL


def table(seed=0, rows=("V1", "IT"), columns=("A", "B", "C")):
    return pd.DataFrame(
        np.random.default_rng(seed).uniform(-0.5, 0.5, (len(rows), len(columns))), rows, columns
    )


def drawn(figure):
    FigureCanvasAgg(figure).print_png(io.BytesIO())
    return figure


def test_heat_maps_write_every_value_and_mark_the_marked():
    tables = {"before": table(), "after": table(1), "change": table(2)}
    tables["before"].iloc[0, 0] = np.nan
    marks = {"change": tables["change"] > 0}
    fig = drawn(
        figures.heat_map_figure(tables, marked=marks, signed=["change"], title="T (simulated)")
    )
    panels = [a for a in fig.axes if a.images]
    assert [a.get_title(loc="left") for a in panels] == list(tables)
    texts = [[t.get_text() for t in a.texts] for a in panels]
    assert len(texts[0]) == 5 and f"{tables['after'].iloc[1, 2]:.2f}" in texts[1]
    assert sum(t.endswith("*") for t in texts[2]) == int(marks["change"].to_numpy().sum())
    assert fig.get_supxlabel() == "*: adjusted p below 0.05"
    unmarked = figures.heat_map_figure(tables, marked={"change": tables["change"] > 9})
    assert not unmarked.get_supxlabel()
    low, high = panels[2].images[0].get_clim()
    assert low == -high and panels[0].images[0].get_clim() == panels[1].images[0].get_clim()
    assert len(drawn(figures.heat_map_figure({"only": table()}, signed=["only"])).axes) == 2
    apart = [a for a in drawn(figures.heat_map_figure(tables, shared=False)).axes if a.images]
    assert [a.images[0].get_clim()[1] for a in apart[:3]] == [
        np.nanmax(np.abs(t.to_numpy())) for t in tables.values()
    ]
    # negative values have colours about zero, others begin at zero
    assert {a.images[0].get_cmap().name for a in apart[:3]} == {DIVERGING}
    small = figures.heat_map_figure({"only": table() / 100})
    assert small.axes[0].texts[0].get_text() == f"{table().iloc[0, 0] / 100:z.3f}"
    positive = figures.heat_map_figure({"only": table().abs()})
    assert positive.axes[0].images[0].get_cmap().name == SEQUENTIAL


def test_rdms_are_ordered_by_category_and_shown_as_percentiles():
    x = np.arange(6.0)
    square = np.abs(x[:, None] - x)
    fig = drawn(figures.rdm_figure({"R": square}, ["b", "a", "b", "a", "b", "a"]))
    shown = np.asarray(fig.axes[0].images[0].get_array(), float)
    order = [1, 3, 5, 0, 2, 4]
    want = pd.Series(square[np.ix_(order, order)][np.triu_indices(6, 1)]).rank() / 15 * 100
    np.testing.assert_allclose(shown[np.triu_indices(6, 1)], want)
    np.testing.assert_array_equal(shown, shown.T)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["a", "b"]


def test_layer_profiles_have_a_line_a_model_and_the_ceiling():
    fig = drawn(
        figures.layer_profile_figure({"a": table(), "b": table(1)}, ceiling={"A": 0.9}, n_columns=2)
    )
    assert [a.get_title(loc="left") for a in fig.axes[:3]] == ["A", "B", "C"]
    drawn_lines = [container.lines[0] for container in fig.axes[1].containers]
    np.testing.assert_allclose(drawn_lines[1].get_ydata(), table(1)["B"])
    levels = [[x for x in a.lines if x.get_linestyle() == "--"] for a in fig.axes[:2]]
    assert len(levels[0]) == 1 and not levels[1]
    ends = {(layer, "A"): (table().loc[layer, "A"] - 0.1, 0.9) for layer in ("V1", "IT")}
    fig = drawn(figures.layer_profile_figure({"a": table()}, intervals={"a": ends}))
    bars = np.array(fig.axes[0].containers[0].lines[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose(bars, [ends["V1", "A"], ends["IT", "A"]])
    assert "bars: 95 % interval" in [t.get_text() for t in fig.legends[0].get_texts()]


def test_time_courses_show_peaks_and_truth():
    times = np.linspace(-0.1, 0.5, 7)
    fig = drawn(
        figures.time_course_figure(
            np.eye(2, 7), times, ["L0", "L1"], peaks=np.array([0.1, np.nan]), truth=[0.1, 0.2]
        )
    )
    assert fig.axes[0].lines[0].get_xdata()[0] == pytest.approx(-100)
    lines = [line for line in fig.axes[0].lines if len(line.get_xdata())]
    assert sum(line.get_linestyle() == ":" for line in lines) == 2
    (peak,) = [line for line in lines if line.get_marker() == "v"]
    np.testing.assert_allclose([peak.get_xdata()[0], peak.get_ydata()[0]], [100, 0])
    named = [t.get_text() for t in fig.legends[0].get_texts()]
    best = "mean of the times with at\nleast 95 % of the layer's\nhighest score"
    assert named == ["L0", "L1", best, "planted latency"]
    ends = np.eye(2, 7) - 0.2, np.eye(2, 7) + 0.1
    ax = drawn(figures.time_course_figure(np.eye(2, 7), times, ["L0", "L1"], interval=ends)).axes[0]
    for band, low, high in zip(ax.collections[:2], *ends):
        corners = {
            (round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices
        }
        want = {
            (round(1000 * t, 6), round(v, 6)) for end in (low, high) for t, v in zip(times, end)
        }
        assert want <= corners
    assert "bands: 95 % interval" in [t.get_text() for t in ax.figure.legends[0].get_texts()]


def test_a_curve_that_equals_another_is_dashed_and_named_so():
    scores = np.array([[0.1, np.nan, 0.3], [0.2, 0.2, 0.2], [0.1, np.nan, 0.3]])
    ax = drawn(figures.time_course_figure(scores, np.arange(3) / 10, ["a", "b", "c"])).axes[0]
    assert [line.get_linestyle() for line in ax.lines[:3]] == ["-", "-", "--"]
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == ["a", "b", "c (same as a)"]


def test_preferred_images_and_the_made_one():
    def image(v):
        return np.full((8, 8, 3), v, np.uint8)

    fig = drawn(
        figures.preferred_figure({"V1": [image(1), image(2)]}, {"V1": [image(3)]}, {"V1": image(9)})
    )
    assert [a.get_title() for a in fig.axes] == ["top 1", "top 2", "lowest 1", "made"]
    assert np.array_equal(fig.axes[3].images[0].get_array(), image(9))
    assert len(figures.preferred_figure({"V1": [image(1)]}, {"V1": [image(3)]}).axes) == 2


def test_brain_beside_robust_and_effects():
    frame = pd.DataFrame(
        {
            "model": ["a", "b"],
            "brain": [0.1, 0.2],
            "robust": [0.4, 0.5],
            "brain_low": [0.05, np.nan],
            "brain_high": [0.15, np.nan],
            "robust_low": [0.35, np.nan],
            "robust_high": [0.45, np.nan],
        }
    )
    figure = drawn(figures.brain_robust_figure(frame))
    ax = figure.axes[0]
    assert "bars: 95 % interval" in [t.get_text() for t in figure.legends[0].get_texts()]
    np.testing.assert_allclose([c.lines[0].get_ydata()[0] for c in ax.containers], [40, 50])
    assert len(ax.containers[0].lines[2]) == 2 and not ax.containers[1].lines[2]
    whole = pd.DataFrame(
        {"model": ["a"], "value": [0.2], "low": [0.1], "high": [0.3], "per_seed": [[0.1, 0.3]]}
    )
    ax = drawn(figures.effect_figure(whole, ceiling=(0.4, 0.5))).axes[0]
    dots = [list(line.get_ydata()) for line in ax.lines if line.get_marker() == "."]
    assert [d for d in dots if d] == [[0.1, 0.3]]
    assert len(figures.effect_figure(whole, ceiling=(np.nan, np.nan)).axes[0].patches) == 0


def test_identification_shows_values_intervals_and_chance():
    frame = pd.DataFrame(
        {"roi": ["all", "V1"], "value": [0.9, 0.7], "ci_low": [0.8, 0.6], "ci_high": [1.0, 0.8]}
    )
    ax = drawn(figures.identification_figure(frame)).axes[0]
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), [0.9, 0.7])
    assert [list(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "--"] == [
        [0.5, 0.5]
    ]
    both = pd.concat([frame.assign(model="a"), frame.assign(model="b", value=0.85)])
    axes = drawn(figures.identification_figure(both)).axes[0]
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert len(axes.containers) == 2 and {"a", "b"} <= set(names)
    assert len({container.lines[0].get_marker() for container in axes.containers}) == 2

"""Static figures of widgets: what is drawn is explained, and legends lie beside the curves."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bmfl_lab.viz.explore import runs_figure, shift_grid_figure

NOTE = "* differs"


def grid(missing=False, **options):
    values = np.array([[0.9, 0.6, 0.5], [0.8, 0.1, 0.05]])
    curve = np.stack([values[0], values[0] - 0.1, values[0] + 0.1], 1)
    curves = {"fusion": curve, "backbone": curve}
    if missing:
        values[1, 1:] = np.nan
    return shift_grid_figure(
        values,
        ["masked", "fog"],
        [0, 1, 5],
        curves,
        title="t",
        unit="accuracy, %",
        signed=False,
        shift="masked",
        note=NOTE,
        **options,
    )


def test_the_legend_covers_no_curve_and_chance_is_drawn():
    figure = grid(chance=0.25)
    right = figure.axes[1]
    assert right.get_legend() is None
    (legend,) = figure.legends
    assert {t.get_text() for t in legend.get_texts()} == {"fusion", "backbone", "chance"}
    places = [container.lines[0].get_xdata() for container in right.containers]
    assert (places[0] < places[1]).all(), "the intervals of two models hide each other"
    (chance,) = [line for line in right.lines if line.get_linestyle() == "--"]
    assert set(chance.get_ydata()) == {25}
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    assert not legend.get_window_extent(renderer).overlaps(right.get_tightbbox(renderer))


def test_the_star_is_explained_where_one_is_drawn():
    marks = np.full((2, 3), "", dtype=object)
    assert grid(marks=marks).axes[0].get_xlabel() == "severity"
    assert grid(missing=True).axes[0].get_xlabel() == "severity\nwhite: not evaluated"
    marks[1, 2] = "*"
    figure = grid(marks=marks)
    assert NOTE in figure.axes[0].get_xlabel()
    assert "5*" in [text.get_text() for text in figure.axes[0].texts]


def test_two_runs_say_what_bars_are_and_where_a_run_has_no_row():
    values = {
        "a/1": np.array([[0.5, 0.4, 0.6], [0.7, 0.6, 0.8]]),
        "a/2": np.array([[0.6, 0.5, 0.7], [np.nan] * 3]),
    }
    kinds = "95 % generalised confidence interval, seeds and stimuli crossed, " * 2
    figure = runs_figure(["x", "y"], values, title="t", unit=f"accuracy, fraction ({kinds})")
    assert figure.axes[0].get_xlabel() == "accuracy, fraction"
    said = [t.get_text() for t in figure.legends[0].get_texts()]
    assert said[:2] == ["a/1", "a/2"] and said[-1] == "no mark: the run has no such row"
    assert said[2].startswith("bars: 95 % generalised")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert 0 <= box.x0 and box.x1 <= figure.bbox.x1, "a long note leaves the figure"
    bare = np.array([[0.5, np.nan, np.nan], [0.4, np.nan, np.nan]])
    plain = runs_figure(["x", "y"], {"a/1": bare}, title="t", unit="ece")
    assert [t.get_text() for t in plain.legends[0].get_texts()] == ["a/1"]

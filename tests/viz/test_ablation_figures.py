"""Figures of ablations show the numbers they are given."""

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.viz.ablation import agreement_figure, controls_figure, effect_figure, roi_map
from bmfl_lab.viz.charts import colours


def _table():
    return pd.DataFrame(
        [
            {
                "mode": m,
                "control": "random_vertices",
                "region": r,
                "split": "test",
                "shift": s,
                "effect": e,
                "low": e - 0.05,
                "high": e + 0.05,
                "p_holm": p,
            }
            for m in ("only", "lesioned")
            for r, e, p in (("V1", 0.01, 0.7), ("FFC", 0.4, 0.001))
            for s in ("", "masked")
        ]
    )


def test_effects_stand_at_their_place_and_only_sure_ones_are_filled():
    figure = effect_figure(_table(), control="random_vertices", title="simulated")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "region alone",
        "lesioned at inference",
    ]
    filled = [
        line
        for line in figure.axes[0].lines
        if line.get_marker() in "os" and line.get_markerfacecolor() != "white"
    ]
    shown = np.concatenate([line.get_xdata() for line in filled])
    np.testing.assert_allclose(shown, 40)
    below, above = figure.axes[0].get_ylim()  # the outer rows stand clear of the frame
    assert below > max(figure.axes[0].get_yticks()) + 0.5 and above < -0.5


def test_a_map_paints_each_roi_with_its_value():
    rois = {"A": np.array([1, 1, 0, 0], bool), "B": np.array([0, 1, 1, 0], bool)}
    painted = roi_map(
        {"A": 1.0, "B": 3.0, "LVC": 9.0}, Atlas(hemisphere=np.zeros(4, np.int8), rois=rois)
    )
    np.testing.assert_array_equal(painted, [1, 2, 3, np.nan])


def test_the_sweep_draws_one_line_a_set():
    frame = pd.DataFrame(
        {
            "model": ["alpha 0", "alpha 1"] * 2,
            "set": ["test"] * 2 + ["masked 3"] * 2,
            "accuracy": [0.9, 0.8, 0.6, 0.7],
            "low": 0.5,
            "high": 0.95,
            "r": [0.1, 0.9] * 2,
        }
    )
    figure = agreement_figure(frame, x="r", x_label="r", level=0.25, title="t", joined="alphas")
    assert {t.get_text() for t in figure.axes[0].texts} == {"alpha 0", "alpha 1"}
    (legend,) = figure.legends
    assert {t.get_text() for t in legend.get_texts()} == {
        "test",
        "masked 3",
        "chance",
        "bars: 95 % interval",
        "lines join alphas",
    }
    lines = [c.lines[0] for c in figure.axes[0].containers]
    np.testing.assert_allclose(lines[0].get_ydata(), [90, 80])
    # a sweep is joined in its own order, also where x falls
    falling = agreement_figure(frame.assign(r=[0.9, 0.1] * 2), x="r", x_label="r")
    places = [c.lines[0].get_xdata() for c in falling.axes[0].containers]
    np.testing.assert_allclose(np.mean(places, 0), [0.9, 0.1])
    assert (places[0] < places[1]).all(), "the intervals of two sets hide each other"


def test_many_controls_have_a_row_each_beside_the_model_in_question():
    models = ["fusion", *(f"control {i}" for i in range(11))]
    place = {"name": "accuracy", "split": "test", "severity": None}
    rows = [
        {
            **place,
            "model": m,
            "shift": shift,
            "seed": seed,
            "value": 0.5 + 0.01 * i,
            "ci_low": 0.4,
            "ci_high": 0.7,
        }
        for shift in ("", "masked")
        for i, m in enumerate(models)
        for seed in (None, 0, 1)
    ]
    figure = controls_figure(pd.DataFrame(rows), first="fusion", chance=0.1, title="t")
    test, masked = figure.axes[:2]
    assert [t.get_text() for t in test.get_yticklabels()] == models and masked.get_title(
        loc="left"
    ) == "masked"
    np.testing.assert_allclose(test.collections[1].get_offsets()[:, 0], 50 + np.arange(12))
    assert test.lines[1].get_xdata()[0] == 50 and len(test.lines[0].get_xdata()) == 24
    assert to_hex(test.collections[1].get_facecolor()[0]).upper() == colours(["fusion"])["fusion"]
    assert len({tuple(c) for c in test.collections[1].get_facecolor()[1:]}) == 1
    assert to_hex(test.lines[1].get_color()).upper() == colours(["fusion"])["fusion"]


def test_names_of_close_models_do_not_overprint():
    frame = pd.DataFrame({"model": [f"alpha {i}" for i in range(4)], "set": "test"})
    frame = frame.assign(accuracy=0.5, low=0.4, high=0.6, r=[0.1, 0.1, 0.101, 0.9])
    figure = agreement_figure(frame, x="r", x_label="r", title="t")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])

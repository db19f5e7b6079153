"""Figures and tables of metric rows show what the rows say, once, in order."""

import numpy as np
import pandas as pd

from bmfl_lab.viz.results import (
    accuracy_figure,
    accuracy_table,
    curves_figure,
    grouped_figure,
    summary_rows,
    topography_figure,
    trend_figure,
)


def rows(seeds=(0, 1), models=("backbone", "fusion")):
    found = []
    for model in models:
        for split, shift, severity in (
            ("test", "", None),
            ("clipart", "", None),
            ("test", "masked", 3),
        ):
            common = dict(name="accuracy", model=model, split=split, shift=shift, severity=severity)
            found += [
                dict(common, value=0.5 + 0.1 * s, seed=s, ci_low=None, ci_high=None) for s in seeds
            ]
            found.append(dict(common, value=0.55, seed=None, ci_low=0.5, ci_high=0.6))
    return pd.DataFrame(found)


def test_summary_prefers_the_row_over_seeds_even_without_a_severity():
    summary = summary_rows(rows(), "accuracy")
    assert len(summary) == 6 and summary["seed"].isna().all()


def test_summary_falls_back_on_a_single_seed():
    frame = rows()
    summary = summary_rows(frame[frame["seed"].notna()], "accuracy")
    assert len(summary) == 6


def test_table_has_models_as_rows_and_sets_as_columns_in_order():
    table = accuracy_table(rows())
    assert list(table.columns) == ["test", "clipart", "masked 3"] and list(table.index) == [
        "backbone",
        "fusion",
    ]
    assert table.loc["fusion", "clipart"] == "55.0 [50.0, 60.0]"


def test_table_prints_undefined():
    frame = rows()
    frame["value"] = np.nan
    assert (accuracy_table(frame) == "undefined").all().all()


def test_accuracy_figure_draws_every_model_and_set():
    ax = accuracy_figure(rows(), chance=0.1, title="simulated").axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["test", "clipart", "masked 3"]
    assert len(ax.containers) == 2 and ax.get_ylabel() == "accuracy, %"
    at = np.array([container.lines[0].get_xdata() for container in ax.containers])
    apart = at[1] - at[0]
    assert (apart > 0.1).all() and (apart < 0.25).all(), "two models are closer than two sets"


def test_curves_leave_out_models_without_the_quantity():
    histories = {
        "a": [[{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}]],
        "b": [[{"epoch": 0, "x": 1.0}]],
    }
    assert len(curves_figure(histories, ["loss"]).axes[0].lines) == 1


def test_training_curves_name_both_axes():
    run = [{"epoch": k, "loss": 0.5, "val_accuracy": 0.5, "other_loss": 1.0} for k in range(3)]
    axes = curves_figure({"a": [run]}, ["loss", "val_accuracy", "other_loss"]).axes
    assert [ax.get_ylabel() for ax in axes] == [
        "training loss",
        "validation accuracy, fraction",
        "other loss",
    ]
    assert [ax.get_xlabel() for ax in axes] == ["epoch"] * 3
    (ax,) = curves_figure({"a": [run[1:2]]}, ["loss"]).axes
    assert list(ax.get_xticks()) == [1], "ticks between epochs"


def test_a_single_epoch_is_seen():
    short, long = ([[{"epoch": k, "loss": 0.5} for k in range(n)]] for n in (1, 9))
    lines = curves_figure({"short": short, "long": long}, ["loss"]).axes[0].lines
    assert [line.get_marker() for line in lines] == ["o", ""]


def test_bars_per_roi_stand_beside_the_ceiling():
    frame = pd.DataFrame(
        {"roi": ["V1", "LO"], "value": [0.3, 0.2], "ci_low": [0.2, 0.1], "ci_high": [0.4, 0.3]}
    )
    frame = frame.assign(model="ridge")
    figure = grouped_figure(frame, ceiling={"V1": 0.5}, title="t", unit="r")
    (ax,) = figure.axes
    explained = [t.get_text() for t in figure.legends[0].get_texts()]
    assert set(explained) == {"ridge", "bars: 95 % interval", "noise ceiling"}
    two = grouped_figure(pd.concat([frame, frame.assign(model="linear")]), title="t", unit="r")
    named = [t.get_text() for t in two.legends[0].get_texts()]
    assert named == ["ridge", "linear", "bars: 95 % interval"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["V1", "LO"]
    assert [bar.get_height() for bar in ax.patches] == [0.3, 0.2]
    levels = [
        c.get_segments()[0][:, 1].tolist()
        for c in ax.collections
        if c.get_label() == "noise ceiling"
    ]
    assert levels == [[0.5, 0.5]]


def test_each_quantity_of_a_sweep_has_a_panel_with_its_own_unit_and_level():
    parts = [
        pd.DataFrame({"quantity": q, "model": m, "alpha": [0, 10, 0.1], "value": [0.1, 0.2, 0.4]})
        for q in ("accuracy", "r")
        for m in ("fusion", "concat")
    ]
    table = pd.concat(parts, ignore_index=True).assign(ci_low=0.0, ci_high=0.5)
    units = {"accuracy": "accuracy (fraction)", "r": "correlation"}
    drawn = trend_figure(
        table, "alpha", title="t", unit=units, level={"accuracy": 0.25}, spread=True
    )
    assert [ax.get_ylabel() for ax in drawn.axes] == list(units.values())
    assert [t.get_text() for t in drawn.axes[1].get_xticklabels()] == ["0", "0.1", "10"]
    np.testing.assert_allclose(drawn.axes[0].containers[0].lines[0].get_ydata(), [0.1, 0.4, 0.2])
    assert "bars: 95 % interval" in [t.get_text() for t in drawn.legends[0].get_texts()]
    at = [container.lines[0].get_xdata() for container in drawn.axes[0].containers]
    assert (at[0] < at[1]).all(), "the intervals of two models hide each other"
    alone = trend_figure(table.query("model == 'fusion'"), "alpha", title="t", unit=units)
    assert list(alone.axes[0].containers[0].lines[0].get_xdata()) == [0, 0.1, 10]
    counted = trend_figure(table.assign(n=60), "alpha", title="t", unit=units)
    assert "bars: 95 % interval, n = 60" in [t.get_text() for t in counted.legends[0].get_texts()]
    assert len(drawn.axes[0].lines) == len(
        drawn.axes[1].lines
    )  # a level here, a legend entry there


def test_the_map_of_the_head_shows_each_sensor_at_its_place():
    values = pd.Series({"Oz": 0.8, "Fz": 0.5, "T8": 0.4})
    drawn = topography_figure(values, [[0, -2], [0, 1], [2, 0]], title="t", unit="two-way")
    dots = drawn.axes[0].collections[0]
    np.testing.assert_allclose(dots.get_offsets(), [[0, -1], [0, 0.5], [1, 0]])
    np.testing.assert_allclose(dots.get_clim(), [0.2, 0.8])
    assert {"Oz", "Fz", "T8", "front"} <= {t.get_text() for t in drawn.axes[0].texts}
    assert "white: 0.5" in drawn.axes[1].get_ylabel()

"""Figures of robustness: what is drawn is what the rows say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.records import MetricRow
from bmfl_lab.viz import results


def row(name, value, model, split="test", shift="", severity=None, seed=None, half=0.05):
    return dataclasses.asdict(
        MetricRow(
            name,
            value,
            "fraction",
            split,
            100,
            "none",
            model=model,
            shift=shift,
            severity=severity,
            seed=seed,
            ci_low=value - half,
            ci_high=value + half,
        )
    )


@pytest.fixture
def frame():
    rows = []
    for m, start in (("fusion", 0.9), ("backbone", 0.8), ("base", 0.7)):
        for seed in (None, 0, 1):
            rows.append(row("accuracy", start, m, seed=seed))
            rows.append(row("accuracy", start - 0.3, m, split="clipart", seed=seed))
            rows += [
                row("accuracy", start - 0.1 * k, m, shift=s, severity=k, seed=seed)
                for s in ("fog", "masked")
                for k in (1, 3, 5)
            ]
    rows += [
        row("accuracy_difference", 0.1 * k - 0.2, "fusion - backbone", shift="fog", severity=k)
        for k in (1, 3, 5)
    ]
    rows += [
        row("robustness_slope", 0.9, "baselines", "clipart"),
        row("robustness_intercept", -1.0, "baselines", "clipart"),
    ]
    return pd.DataFrame(rows)


def test_severity_curves_start_at_the_unshifted_set(frame):
    figure = results.severity_figure(frame, models=["fusion", "backbone"], chance=0.1, title="t")
    axes = [a for a in figure.axes if a.get_visible()]
    assert [a.get_title(loc="left") for a in axes] == ["fog", "masked"]
    line = axes[0].containers[0].lines[0]
    assert np.allclose(line.get_ydata(), [90, 80, 60, 40]) and np.allclose(
        np.round(line.get_xdata()), [0, 1, 3, 5]
    )
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["none", "1", "3", "5"]
    said = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "bars: 95 % interval, n = 100" in said
    half = frame.assign(n=np.where(frame["shift"] == "fog", 50, 100))
    said = [t.get_text() for t in results.severity_figure(half).legends[0].get_texts()]
    assert "bars: 95 % interval, n = 50 to 100" in said


def test_robustness_scatter_puts_seeds_and_line_on_logit_axes(frame):
    figure = results.robustness_figure(frame, ["base"])
    ax = figure.axes[0]
    points = {line.get_label(): line for line in ax.get_lines()}
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    assert np.allclose(points["fusion"].get_xdata(), logit(0.9)) and np.allclose(
        points["fusion"].get_ydata(), logit(0.6)
    )
    line = points["line of the baselines (dashed: extrapolated)"]
    assert np.allclose(line.get_ydata(), 0.9 * line.get_xdata() - 1.0)
    assert len(points["baselines"].get_xdata()) == 2


def test_reliability_leaves_out_thin_bins():
    table = pd.DataFrame(
        {
            "model": "m",
            "split": "test",
            "shift": "",
            "severity": None,
            "count": [20, 2, 30],
            "confidence": [0.3, 0.5, 0.9],
            "accuracy": [0.2, 0.5, 0.8],
            "ci_low": [0.1, 0.2, 0.6],
            "ci_high": [0.4, 0.8, 0.9],
        }
    )
    figure = results.reliability_figure(table)
    ax = figure.axes[0]
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(np.array(bars)[:, :, 1], [[10, 40], [60, 90]])
    thin, thick = ax.collections[1].get_sizes()
    assert thick > 1.3 * thin
    said = [t.get_text() for t in figure.legends[0].get_texts()]
    assert {"20 predictions in a bin", "30 predictions in a bin", "bars: 95 % interval"} <= {*said}
    assert np.allclose(ax.get_lines()[1].get_xdata(), [30, 90]) and np.allclose(
        ax.get_lines()[1].get_ydata(), [20, 80]
    )


def framed(figure):
    return {tuple(np.add(p.get_xy(), 0.46).round(2)) for p in figure.axes[0].patches}


def test_heatmap_frames_what_survives_the_adjustment_and_says_so(frame):
    figure = results.severity_heatmap(frame)
    assert [t.get_text() for t in figure.axes[0].texts] == ["-10.0", "+10.0", "+30.0"]
    # every interval excludes zero, and no p value is known
    assert not framed(figure) and "framed" not in figure.get_supxlabel()
    p = frame["severity"].map({1: 0.05, 3: 0.06, 5: 1e-9})
    figure = results.severity_heatmap(frame.assign(p_adjusted=p, p=1e-12))
    assert framed(figure) == {(0, 0), (2, 0)}
    assert "framed: adjusted p at most 0.05" in figure.get_supxlabel()


def test_heatmap_of_accuracies_has_a_number_per_cell(frame):
    assert len(results.severity_heatmap(frame, "accuracy", models=["fusion"]).axes[0].texts) == 8


def test_predictions_name_true_and_predicted_class():
    item = {
        "image": np.zeros((8, 8, 3), np.uint8),
        "true": "cat",
        "predicted": "dog",
        "confidence": 0.93,
        "where": "fog 3",
    }
    figure = results.prediction_figure(
        {"worst": [item, item], "best": [{**item, "predicted": "cat"}]}
    )
    assert (
        figure.axes[0].get_title(loc="center") == "fog 3\ncat"
        and figure.axes[0].get_xlabel() == "✗ dog 93 %"
    )
    assert figure.axes[0].xaxis.label.get_color() != figure.axes[2].xaxis.label.get_color()
    assert "✓ right, ✗ wrong" in figure.get_supxlabel()

"""The order of planted models is found by the scores and their trends, and by nothing else."""

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.simulate import simulate_eeg
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.convergence import brain_scores, convergence_rows, score_trend
from bmfl_lab.viz.similarity import convergence_figure

N, D = 240, 6
ROIS = {"V1": 0.0, "V2": 10.0, "hV4": 30.0}
TRAIN, TEST = np.arange(160), np.arange(160, N)


@pytest.fixture(scope="module")
def planted():
    """Three layers; each drives one ROI, the deeper the farther, and one time, the deeper the later."""
    draw = np.random.default_rng(0)
    layers = {f"block {k}": draw.standard_normal((N, D)) for k in range(3)}
    weights = draw.standard_normal((3, D, 8)) / np.sqrt(D)
    clean = np.concatenate([x @ w for x, w in zip(layers.values(), weights)], axis=1)
    masks = {roi: np.arange(24) // 8 == k for k, roi in enumerate(ROIS)}
    atlas = Atlas(np.zeros(24, np.int8), masks)
    responses = clean + 0.5 * draw.standard_normal(clean.shape)
    times = dict(zip(layers, (0.1, 0.2, 0.3)))
    eeg = simulate_eeg(layers, times, [str(i) for i in range(N)], noise=0.5)
    return layers, responses, atlas, eeg


def scores(planted, noise, **options):
    layers, responses, atlas, _ = planted
    draw = np.random.default_rng(7)
    noisy = {k: v + noise * draw.standard_normal(v.shape) for k, v in layers.items()}
    return brain_scores(noisy, responses, atlas, train=TRAIN, test=TEST, **options)


def test_the_three_scores_find_what_was_planted(planted):
    found = scores(planted, 0.0, distance=ROIS, recording=planted[3])
    assert found["encoding"] > 0.8 and found["temporal"] > 0.99
    depth = np.array([0, 0.5, 1])
    assert found["spatial"] == pytest.approx(np.corrcoef(depth, [*ROIS.values()])[0, 1])
    backwards = dict(zip(ROIS, [30.0, 10.0, 0.0]))
    assert scores(planted, 0.0, distance=backwards)["spatial"] < -0.9
    assert scores(planted, 0.0)["temporal"] is None


def test_the_order_of_planted_models_is_found_and_a_shuffled_property_is_not(planted):
    noise = [0.0, 0.5, 1.0, 2.0, 4.0]
    values = [scores(planted, level)["encoding"] for level in noise]
    assert values == sorted(values, reverse=True)
    trend = score_trend(values, [1 / (1 + level) for level in noise])
    assert trend.value == pytest.approx(1) and trend.p == pytest.approx(1 / 60) and trend.n == 5
    other = score_trend(values, [3, 1, 5, 2, 4])
    assert abs(other.value) < 0.5 and other.p > 0.3


def test_responses_without_any_relation_score_zero(planted):
    layers, responses, atlas, _ = planted
    mixed = np.random.default_rng(3).permutation(responses)
    found = brain_scores(layers, mixed, atlas, train=TRAIN, test=TEST)
    assert abs(found["encoding"]) < 0.1  # the best layer is chosen on other stimuli


def test_rows_and_figure_hold_each_model_and_trend():
    table = pd.DataFrame({"encoding": [0.1, 0.2, 0.3], "weights": [1, 50, 900]}, index=list("abc"))
    trend = score_trend(table["encoding"], table["weights"])
    rows = convergence_rows(table, "weights", {"encoding": trend}, split="test", n=9)
    assert [r.model for r in rows] == ["a", "b", "c", "encoding"]
    assert rows[-1].value == pytest.approx(1) and rows[-1].n == 3 and "weights 900" in rows[2].notes
    figure = convergence_figure(table, "weights", trends={"encoding": "rho 1"}, title="made")
    assert figure.axes[0].get_xscale() == "log"
    with pytest.raises(DataError, match="columns"):
        convergence_figure(table, "images", trends={"encoding": ""})


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda p: score_trend([0.1, 0.2], [1, 2]), "compare more models"),
        (lambda p: score_trend([0.1, None, 0.2], [1, 2, 3]), "compare more models"),
        (lambda p: score_trend([0.1, 0.2, 0.3], [1, 2]), "look the property up"),
        (
            lambda p: brain_scores(*p[:3], train=TRAIN, test=TEST[:5]),
            "hold out more stimuli",
        ),
        (
            lambda p: brain_scores(
                {k: v[:200] for k, v in p[0].items()},
                p[1][:200],
                p[2],
                train=TRAIN,
                test=np.arange(160, 200),
                recording=p[3],
            ),
            "select the same stimuli",
        ),
    ],
)
def test_bad_input_is_refused(planted, call, remedy):
    with pytest.raises(DataError, match=remedy):
        call(planted)

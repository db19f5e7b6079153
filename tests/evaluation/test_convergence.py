"""Scores of models against their attributes, with a planted order of models."""

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.simulate import simulate_eeg
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.convergence import brain_scores, convergence_trends

N, V, D, MODELS = 160, 24, 8, 6


@pytest.fixture(scope="module")
def world():
    """Return a subject, and models of which each further one knows more of what it responds to."""
    draw = np.random.default_rng(0)
    stages = [draw.normal(size=(N, D)) for _ in range(3)]
    rois = {f"R{k}": np.arange(V) // 8 == k for k in range(3)}
    signal = np.hstack([x @ draw.normal(size=(D, 8)) for x in stages])
    responses = (signal + 2 * draw.normal(size=signal.shape)).astype(np.float32)
    images = np.zeros((N, 2, 2, 3), np.uint8)
    stimuli = from_arrays("s", images, [f"s{i}" for i in range(N)], np.full(N, -1))
    splits = {"train": np.arange(110), "test": np.arange(110, N)}
    atlas = Atlas(np.zeros(V, np.int8), rois, groups={})
    subject = Subject("simulated", stimuli, responses, atlas, splits, kind="simulated")
    noise = [draw.normal(size=x.shape) for x in stages]
    models = {
        f"m{k}": {f"layer {j}": stages[j] + (5 - k) * 0.7 * noise[j] for j in range(3)}
        for k in range(MODELS)
    }
    return subject, models, stages


def test_the_planted_order_of_models_is_returned(world):
    subject, models, stages = world
    latencies = dict(zip(("a", "b", "c"), (0.1, 0.2, 0.3)))
    sources = dict(zip(latencies, stages))
    eeg = simulate_eeg(sources, latencies, subject.stimuli.ids, n_channels=5, step=0.05)
    rows = subject.splits["train"], subject.splits["test"]
    distance = pd.Series({"R0": 0.0, "R1": 20.0, "R2": 45.0})
    options = dict(distance=distance, n_boot=20)
    scores = pd.DataFrame(
        {
            name: brain_scores(layers, subject, recording=(eeg, layers, *rows), **options)
            for name, layers in models.items()
        }
    ).T
    assert list(scores["encoding"].sort_values().index) == list(models)
    assert scores.loc["m5", "spatial"] > 0.9 and scores.loc["m5", "temporal"] > 0.9
    assert (scores["encoding_low"] < scores["encoding"]).all()
    attributes = pd.DataFrame(
        {"size": [5, 22, 86, 300, 600, 1100], "colour": [3, 1, 4, 1, 5, 2]}, index=list(models)
    )
    trends = convergence_trends(scores[["encoding"]], attributes).set_index("attribute")
    assert trends.loc["size", "rho"] == pytest.approx(1) and trends.loc["size", "p_holm"] < 0.05
    assert trends.loc["colour", "p"] > 0.05 and trends.loc["size", "n"] == MODELS


def test_models_without_attributes_and_too_few_are_refused():
    scores = pd.DataFrame({"encoding": [0.1, 0.2, 0.3]}, index=["a", "b", "c"])
    attributes = pd.DataFrame({"size": [1, 2, 3]}, index=["a", "b", "c"])
    with pytest.raises(DataError, match="four or more models"):
        convergence_trends(scores, attributes)
    with pytest.raises(DataError, match=r"none for .'c'"):
        convergence_trends(scores, attributes.drop(index="c"))

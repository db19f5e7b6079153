"""Scores of models against their attributes, with a planted order of models."""

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.backbones import load_backbone
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.simulate import simulate_eeg, simulate_hierarchy
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.convergence import (
    ATTRIBUTES,
    brain_scores,
    convergence_trends,
    planted_models,
    read_models_table,
    sweep_models,
)
from bmfl_lab.evaluation.layers import layer_features
from bmfl_lab.viz.results import convergence_figure

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
    for score in ("spatial", "temporal"):
        low, high = scores[f"{score}_low"], scores[f"{score}_high"]
        assert (low <= high).all() and low["m5"] > 0.8 and (high <= 1).all()
        assert (high - low)["m0"] > (high - low)["m5"]  # noise makes the order of layers unsure
    attributes = pd.DataFrame(
        {"size": [5, 22, 86, 300, 600, 1100], "colour": [3, 1, 4, 1, 5, 2]}, index=list(models)
    )
    trends = convergence_trends(scores[["encoding"]], attributes).set_index("attribute")
    assert trends.loc["size", "rho"] == pytest.approx(1) and trends.loc["size", "p_holm"] < 0.05
    assert trends.loc["colour", "p"] > 0.05 and trends.loc["size", "n"] == MODELS


@pytest.fixture(scope="module")
def photographs():
    draw = np.random.default_rng(3)
    coarse = draw.integers(0, 256, (150, 7, 7, 3)).astype(np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return from_arrays("s", images, [f"s{i}" for i in range(150)], np.full(150, -1))


def test_real_backbones_and_planted_models_go_through_the_same_call(photographs, tmp_path):
    options = dict(weights="random:0", image_size=28, resize="direct", device="cpu")
    network = load_backbone("vit_tiny14", **options)

    layers = layer_features(network, photographs)
    splits = {"train": np.arange(110), "test": np.arange(110, 150)}
    subject, distance = simulate_hierarchy(layers, photographs, splits, share=0.8)
    path = tmp_path / "models.csv"
    lines = ["model,backbone,weights,image_size,resize,millions of images seen,depth"]
    lines += [f"seed {k},vit_tiny14,random:{k},28,direct,,{k}" for k in range(2)]
    lines += ["registers,vit_tiny14_reg,random:0,28,direct,7,"]
    path.write_text("\n".join(lines) + "\n")
    models, given = read_models_table(path)
    eeg = simulate_eeg(
        layers,
        {f"block {k}": 0.1 * (k + 1) for k in range(3)},
        photographs.ids,
        n_channels=4,
        step=0.05,
    )
    several = {**models, **planted_models(network, 3)}
    scores, attributes = sweep_models(
        several,
        subject,
        distance=pd.Series(distance),
        recording=(eeg, photographs, *splits.values()),
        given=given,
        device="cpu",
        n_boot=20,
    )
    assert list(scores.index) == list(attributes.index) == list(several)
    # the network itself explains most, and the planted ones more and more
    assert scores["encoding"].astype(float).idxmax() == "seed 0"
    assert scores.loc["planted 2", "encoding"] > scores.loc["planted 0", "encoding"]
    assert scores.loc["seed 0", "spatial"] > 0.9 and scores.loc["seed 0", "temporal"] > 0.8
    # counted, known to be untrained, and given by the user; the rest is unknown
    assert set(attributes) == {*ATTRIBUTES, "depth"}
    assert 0.05 < attributes.loc["seed 1", "millions of parameters"] < 1
    assert attributes.loc["seed 1", "millions of images seen"] == 0
    assert attributes.loc["registers", "millions of images seen"] == 7
    assert np.isnan(attributes.loc["registers", "depth"])
    assert attributes.loc["planted 0"].isna().all()
    some = pd.DataFrame({"size": range(6), "seen": [1, 90, 3, 4, 5, np.nan]}, index=scores.index)
    trends = convergence_trends(scores, some)
    figure = convergence_figure(scores, some, trends, title="t")
    assert sum(ax.get_visible() for ax in figure.axes) == 6
    assert [ax.get_xlabel() for ax in figure.axes[:2]] == ["size", "seen"]


def test_a_bad_table_of_models_is_refused(tmp_path):
    path = tmp_path / "models.csv"
    path.write_text("model,size\na,1\na,2\n")
    with pytest.raises(DataError, match="each model once"):
        read_models_table(path)
    path.write_text("model,size\na,large\n")
    with pytest.raises(DataError, match="numbers in line 2"):
        read_models_table(path)
    path.write_text("name,size\na,1\n")
    with pytest.raises(DataError, match="model"):
        read_models_table(path)

"""What an error advises can be done where the user stands, and helps."""

import numpy as np
import pytest
import torch

from bmfl_lab.data import Atlas, load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import evaluate_ood
from bmfl_lab.evaluation.attribution import integrated_gradients, roi_vertices
from bmfl_lab.evaluation.similarity import encoding_predictions
from bmfl_lab.metrics.rsa import rdm
from bmfl_lab.models.fusion import FusionModel


def test_an_unknown_hemisphere_is_refused_with_the_rois():
    atlas = Atlas(np.array([0, 1]), {"V1": np.array([True, False]), "V2": np.array([False, True])})
    with pytest.raises(ConfigError, match="one of V1, V2, or put 'left:' or 'right:' before it"):
        roi_vertices(atlas, "right:V1")
    assert roi_vertices(atlas, "left:V1").tolist() == [True, False]


def test_patterns_are_flattened_as_advised():
    patterns = np.random.default_rng(0).normal(size=(4, 3, 5))
    with pytest.raises(DataError, match=r"e\.g\. with X\.reshape\(len\(X\), -1\)"):
        rdm(patterns)
    assert rdm(patterns.reshape(len(patterns), -1)).shape == (6,)


def test_shared_rows_are_left_out_as_advised():
    draw = np.random.default_rng(0)
    features, responses = {"layer": draw.normal(size=(40, 3))}, draw.normal(size=(40, 2))
    train, test = np.arange(30), np.arange(20, 40)
    with pytest.raises(DataError, match="leave the rows of `test` out of `train`"):
        encoding_predictions(features, responses, train=train, test=test)
    train = np.setdiff1d(train, test)
    found = encoding_predictions(features, responses, train=train, test=test)
    assert found["layer"].shape == (20, 2)


def test_a_baseline_is_made_as_advised():
    inputs = torch.ones(2, 3)
    with pytest.raises(ConfigError, match=r"steps=32, and a baseline made by torch\.zeros_like"):
        integrated_gradients(lambda x, rows: x.sum(1), inputs, inputs[:1])
    parts, _ = integrated_gradients(
        lambda x, rows: x.sum(1), inputs, torch.zeros_like(inputs), steps=32
    )
    torch.testing.assert_close(parts, inputs)


def test_models_and_seeds_are_named():
    study = load_study(
        "planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_test=20, n_ood=20
    )
    with pytest.raises(ConfigError, match=r"got no model\. .*pass models=\{name: model\}"):
        evaluate_ood({}, study)
    with pytest.raises(ConfigError, match=r"pass brain=.* unless it is 'backbone'"):
        FusionModel(head="fusion", visual_width=4, n_classes=2)
    assert FusionModel(head="backbone", visual_width=4, n_classes=2)

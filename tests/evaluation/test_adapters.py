"""Any callable as a model."""

from __future__ import annotations

import numpy as np
import pytest

from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.adapters import as_model


def stimuli(n=5):
    images = np.stack([np.full((8, 8, 3), 40 * i, dtype=np.uint8) for i in range(n)])
    return from_arrays("test", images, [str(i) for i in range(n)], [0] * n, ["dark", "bright"])


def scores(images):
    return [[100 - im.mean(), im.mean() - 100] for im in images]


def test_two_lines():
    model = as_model(scores, "brightness", batch_size=2)
    out = model.logits(stimuli())
    assert (
        out.dtype == np.float32
        and out.argmax(1).tolist() == [0, 0, 0, 1, 1]
        and model.name == "brightness"
    )


def test_tensors_and_columns():
    import torch

    def wide(images):
        return torch.tensor([[9.0, *row] for row in scores(images)], requires_grad=True)

    assert as_model(wide, "wide", columns=[1, 2]).logits(stimuli()).argmax(1).tolist() == [
        0,
        0,
        0,
        1,
        1,
    ]
    with pytest.raises(DataError, match="2 logits, one per class"):
        as_model(wide, "wide").logits(stimuli())


def test_named_columns_are_those_of_the_head_and_not_of_the_set():
    wide = as_model(
        lambda images: [[9.0, *row] for row in scores(images)],
        "wide",
        class_names=["odd", "dark", "bright"],
    )
    assert wide.logits(stimuli()).shape == (5, 3) and wide.class_names == ("odd", "dark", "bright")
    assert wide.logits(stimuli().subset([])).shape == (0, 3)
    with pytest.raises(DataError, match="2 logits, one per name in class_names; got 3"):
        as_model(
            lambda images: np.zeros((len(images), 3)), "wide", class_names=["dark", "bright"]
        ).logits(stimuli())
    kept = as_model(
        lambda images: [[9.0, *row] for row in scores(images)],
        "kept",
        columns=[2, 1],
        class_names=["bright", "dark"],
    )
    np.testing.assert_array_equal(
        kept.logits(stimuli())[:, ::-1], as_model(scores, "both").logits(stimuli())
    )


def test_wrong_shapes_and_empty_sets():
    with pytest.raises(DataError, match="one row per image"):
        as_model(lambda images: np.zeros(3), "bad").logits(stimuli())
    assert as_model(scores, "x").logits(stimuli().subset([])).shape == (0, 2)


def test_scores_that_see_the_other_test_images_are_refused():
    images = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), dtype=np.uint8)
    stimuli = from_arrays("x", images, [str(i) for i in range(10)], [0, 1] * 5, ("a", "b"))

    def plain(batch):
        return np.array([[im.mean(), im[0].mean()] for im in batch])

    def standardised(batch):
        return plain(batch) - plain(batch).mean(0)

    assert as_model(plain, "plain").logits(stimuli).shape == (10, 2)
    with pytest.raises(DataError, match="depend on each image alone"):
        as_model(standardised, "standardised").logits(stimuli)


def test_nan_logits_do_not_make_rounding_a_dependence_on_other_images():
    def rounded(batch):
        found = np.array(scores(batch)) * (1 + 1e-7 * len(batch))
        found[[im.mean() > 150 for im in batch], 0] = np.nan
        return found

    assert np.isnan(as_model(rounded, "rounded").logits(stimuli())).sum() == 1

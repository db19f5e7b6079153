"""The remedies of `bmfl_lab.losses`, each followed."""

import re

import torch
from following import follows

from bmfl_lab.losses import fusion_loss, pearson_regulariser

LABELS = torch.tensor([0, 1, 2, 0])


@follows(("losses/pcc.py", "choose one of the two"))
def test_an_axis_that_does_not_exist(folder, env):
    axis = ["stimulus"]
    yield lambda: pearson_regulariser(torch.randn(4, 5), torch.randn(4, 5), axis[-1])
    axis.append("batch")


@follows(("losses/pcc.py", "give both representations of the same stimuli with the same width"))
def test_representations_of_other_widths(folder, env):
    x, y = torch.randn(4, 5), [torch.randn(4, 6)]
    yield lambda: pearson_regulariser(x, y[-1])
    y.append(torch.randn(4, 5))


@follows(
    ("losses/pcc.py", "choose the other axis, or use wider features"),
    ("losses/pcc.py", "choose the other axis, or use a larger batch"),
)
def test_too_few_values_for_a_correlation(folder, env):
    yield lambda: pearson_regulariser(torch.randn(9, 2), torch.randn(9, 2), "feature")
    pearson_regulariser(torch.randn(9, 2), torch.randn(9, 2), "batch")
    pearson_regulariser(torch.randn(9, 3), torch.randn(9, 3), "feature")
    size = [2]
    yield lambda: pearson_regulariser(torch.randn(size[-1], 9), torch.randn(size[-1], 9), "batch")
    pearson_regulariser(torch.randn(2, 9), torch.randn(2, 9), "feature")
    size.append(3)


@follows(("losses/pcc.py", "choose for example 0.1"))
def test_a_smoothing_of_everything(folder, env):
    smoothing = [1.0]
    remedy = yield lambda: fusion_loss(torch.randn(4, 3), LABELS, label_smoothing=smoothing[-1])
    smoothing.append(float(re.search(r"example (0\.\d)", remedy)[1]))

"""The remedies of `bmfl_lab.losses`, each followed."""

import re

import torch
from following import follows

from bmfl_lab.losses import alignment_loss, fusion_loss, pearson_regulariser

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


@follows(("losses/pcc.py", "give one label per stimulus"))
def test_fewer_labels_than_stimuli(folder, env):
    labels = [LABELS[:3]]
    yield lambda: fusion_loss(torch.randn(4, 3), labels[-1])
    labels.append(LABELS)


@follows(
    ("losses/pcc.py", "set alpha=0, or give x_vb and x_bv"),
    ("losses/pcc.py", "set alpha=0, or give x_vb and x_bv"),
)
def test_a_regulariser_without_fused_features(folder, env):
    given = {"alpha": 0.1}
    remedy = yield lambda: fusion_loss(torch.randn(4, 3), LABELS, **given)
    given["alpha"] = float(re.search(r"alpha=(\d)", remedy)[1])
    fusion_loss(torch.randn(4, 3), LABELS, **given)
    given["alpha"] = 0.1
    remedy = yield lambda: fusion_loss(torch.randn(4, 3), LABELS, **given)
    given |= dict.fromkeys(re.findall(r"x_\w\w", remedy), torch.randn(4, 5))


def align(n=4, n_predicted=5, n_measured=5, targets=LABELS, **changes):
    return alignment_loss(
        torch.randn(n, 3),
        targets[:n],
        torch.randn(n, n_predicted),
        torch.randn(n, n_measured),
        **{"beta": 0.1, **changes},
    )


@follows(("losses/alignment.py", "use beta=0 for no alignment"))
def test_a_negative_weight_of_the_alignment(folder, env):
    beta = [-1.0]
    remedy = yield lambda: align(beta=beta[-1])
    beta.append(float(re.search(r"beta=(\d)", remedy)[1]))


@follows(("losses/alignment.py", "give one target per stimulus"))
def test_fewer_targets_than_stimuli(folder, env):
    targets = [LABELS[:2]]
    yield lambda: align(targets=targets[-1])
    targets.append(LABELS)


@follows(
    ("losses/alignment.py", "give the head as many outputs as there are response features"),
)
def test_a_head_with_too_few_outputs(folder, env):
    width = [4]
    yield lambda: align(n_predicted=width[-1])
    width.append(5)


@follows(
    (
        "losses/alignment.py",
        "use a larger batch (drop a last batch of one), or contrast='none'",
    ),
    ("losses/alignment.py", "use 3 or more response features, or contrast='none'"),
)
def test_too_little_for_a_contrast(folder, env):
    size = [1]
    remedy = yield lambda: align(size[-1])
    align(1, contrast=re.search("contrast='(.*)'", remedy)[1])
    size.append(2)
    align(size[-1])
    width = [2]
    remedy = yield lambda: align(n_predicted=width[-1], n_measured=width[-1])
    align(n_predicted=2, n_measured=2, contrast=re.search("contrast='(.*)'", remedy)[1])
    width.append(int(re.search(r"use (\d)", remedy)[1]))

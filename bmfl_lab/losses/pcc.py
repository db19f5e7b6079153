"""The Pearson regulariser of the two fused representations, and the loss of a fusion model.

Shapes: B stimuli in the batch, d features, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.errors import ConfigError, DataError, message, require

MINIMUM_VARIANCE = 1e-6
"""Lower limit of a variance (our choice). Above it the correlation is exact; below it the gradient
stays below 1e3."""


def pearson_regulariser(
    x: Tensor,
    y: Tensor,
    axis: Literal["feature", "batch"] = "feature",
    eps: float = MINIMUM_VARIANCE,
) -> Tensor:
    """Return one minus the mean Pearson correlation of two sets of features.

    Parameters
    ----------
    x, y : Tensor of float, shape (B, d)
        The two representations of the same B stimuli.
    axis : {"feature", "batch"}, default "feature"
        "feature" computes one correlation per stimulus, over its d features. "batch" computes one
        correlation per feature, over the B stimuli of the batch.
    eps : float, default 1e-6
        Lower limit of the variances.

    Returns
    -------
    Tensor, shape ()
        ``1 - mean r``, in [0, 2]. It is float64 for float64 input and else float32, also inside
        autocast. A constant row (or column, for "batch") counts as r = 0.

    Raises
    ------
    DataError
        If the shapes differ or are not (B, d), or if a correlation would be computed from fewer
        than 3 values.
    ConfigError
        If `axis` is unknown.

    Notes
    -----
    NeuralOOD does not say over which axis it correlates; the features of each stimulus are our
    choice.

    References
    ----------
    Zhao et al. (2024), NeuralOOD, arXiv:2408.14950: correlation of the two cross-attended features
    as part of the loss.
    """
    _check(x, y, axis)
    dim = 1 if axis == "feature" else 0
    exact = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        x_centred, y_centred = _centre(x.to(exact), dim), _centre(y.to(exact), dim)
        covariance = (x_centred * y_centred).mean(dim)
        x_variance = x_centred.square().mean(dim).clamp_min(eps)
        y_variance = y_centred.square().mean(dim).clamp_min(eps)
        return 1 - (covariance * x_variance.rsqrt() * y_variance.rsqrt()).mean()


def _centre(x: Tensor, dim: int) -> Tensor:
    # the second pass removes the rounding error of a large mean
    x = x - x.mean(dim, keepdim=True)
    return x - x.mean(dim, keepdim=True)


def _check(x: Tensor, y: Tensor, axis: str) -> None:
    require(
        axis in ("feature", "batch"),
        ConfigError,
        "axis 'feature' or 'batch'",
        repr(axis),
        "choose one of the two",
    )
    require(
        x.ndim == 2 and x.shape == y.shape,
        DataError,
        "two tensors of one shape (B, d)",
        f"{tuple(x.shape)} and {tuple(y.shape)}",
        "give both representations of the same stimuli with the same width",
    )
    dim = 1 if axis == "feature" else 0
    count = x.shape[dim]
    if count < 3:
        values = "features" if dim else "stimuli in the batch"
        raise DataError(
            message(
                f"at least 3 {values} for a correlation over the {axis} axis",
                f"{count}",
                "choose the other axis, or use " + ("wider features" if dim else "a larger batch"),
            )
        )


def fusion_loss(
    logits: Tensor,
    labels: Tensor,
    x_vb: Tensor | None = None,
    x_bv: Tensor | None = None,
    alpha: float = 0.0,
    *,
    axis: Literal["feature", "batch"] = "feature",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return cross-entropy plus `alpha` times the Pearson regulariser.

    Parameters
    ----------
    logits : Tensor of float, shape (B, C)
        Class scores.
    labels : Tensor of int64, shape (B,)
        Class indices, 0 to C - 1.
    x_vb, x_bv : Tensor of float, shape (B, d), optional
        The two fused representations. Without them, as for baselines, the loss is the
        cross-entropy.
    alpha : float, default 0.0
        Weight of the regulariser. The value used by NeuralOOD is not known.
    axis : {"feature", "batch"}, default "feature"
        Axis of the correlation, see `pearson_regulariser`.
    label_smoothing : float, default 0.0
        Share of each target that is spread evenly over the classes, in [0, 1).

    Returns
    -------
    loss : Tensor, shape ()
        The sum; float64 for float64 logits, else float32.
    parts : dict of str to Tensor, shape ()
        "cross_entropy" and, with fused representations, "pearson" (the mean r), both detached.

    Raises
    ------
    DataError
        If the number of labels differs from the number of rows of `logits`, or the representations
        do not fit `pearson_regulariser`.
    ConfigError
        If `label_smoothing` lies outside [0, 1), or `alpha` is not 0 without representations.

    References
    ----------
    Zhao et al. (2024), NeuralOOD, arXiv:2408.14950: L = L_cls + alpha L_fusion.
    """
    require(
        0 <= label_smoothing < 1,
        ConfigError,
        "label_smoothing in [0, 1)",
        repr(label_smoothing),
        "choose for example 0.1",
    )
    require(
        logits.ndim == 2 and labels.shape == logits.shape[:1],
        DataError,
        "logits (B, C) and labels (B,)",
        f"{tuple(logits.shape)} and {tuple(labels.shape)}",
        "give one label per stimulus",
    )
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        loss = functional.cross_entropy(logits.to(exact), labels, label_smoothing=label_smoothing)
    parts = {"cross_entropy": loss.detach()}
    if x_vb is None or x_bv is None:
        require(
            not alpha,
            ConfigError,
            "alpha 0 for a model without fused features",
            repr(alpha),
            "set alpha=0, or give x_vb and x_bv",
        )
        return loss, parts
    regulariser = pearson_regulariser(x_vb, x_bv, axis)
    parts["pearson"] = 1 - regulariser.detach()
    return loss + alpha * regulariser, parts

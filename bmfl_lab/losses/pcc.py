"""The Pearson regulariser that ties the two fused representations, and the loss of a fusion model.

Shape suffixes: B batch, D width, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.errors import ConfigError, DataError, message

MINIMUM_VARIANCE = 1e-6
"""Floor of a variance. Above it the correlation is exact; below it the gradient stays below 1e3 (our choice)."""


def pearson_regulariser(
    x: Tensor,
    y: Tensor,
    axis: Literal["feature", "batch"] = "feature",
    eps: float = MINIMUM_VARIANCE,
) -> Tensor:
    """Return one minus the mean Pearson correlation of two sets of features.

    Parameters
    ----------
    x, y : Tensor, shape (B, d)
        The two representations of the same B stimuli.
    axis : "feature" or "batch", default "feature"
        "feature": one correlation a stimulus, over its d features. "batch": one correlation a
        feature, over the B stimuli of the batch.
    eps : float, default 1e-6
        Floor of the variances.

    Returns
    -------
    Tensor, shape ()
        ``1 - mean r``, in [0, 2]; float64 for float64 input, else float32, also inside autocast. A
        constant row counts as r = 0.

    Raises
    ------
    DataError
        If the shapes differ or are not (B, d), or a correlation would rest on fewer than 3 values.
    ConfigError
        If `axis` is unknown.

    Notes
    -----
    NeuralOOD names the axis neither "feature" nor "batch"; over the features of each stimulus is
    our choice.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024): correlation of the two cross-attended features
    in the loss.
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
    # the second pass removes what rounding of a large mean left behind
    x = x - x.mean(dim, keepdim=True)
    return x - x.mean(dim, keepdim=True)


def _check(x: Tensor, y: Tensor, axis: str) -> None:
    if axis not in ("feature", "batch"):
        raise ConfigError(message("axis 'feature' or 'batch'", repr(axis), "choose one of the two"))
    if x.ndim != 2 or x.shape != y.shape:
        raise DataError(
            message(
                "two tensors of one shape (B, d)",
                f"{tuple(x.shape)} and {tuple(y.shape)}",
                "give both features of the same stimuli at the same width; nothing is broadcast",
            )
        )
    count = x.shape[1 if axis == "feature" else 0]
    if count < 3:
        what = "features" if axis == "feature" else "stimuli in the batch"
        raise DataError(
            message(
                f"at least 3 {what} for a correlation over the {axis} axis",
                f"{count}",
                "use the other axis, or more of them",
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
    logits : Tensor, shape (B, C)
        Class scores.
    labels : Tensor of int64, shape (B,)
        Class indices 0..C-1.
    x_vb, x_bv : Tensor, shape (B, d), optional
        The two fused representations; without them (baselines) only the cross-entropy remains.
    alpha : float, default 0
        Weight of the regulariser. NeuralOOD's value is not known.
    axis : "feature" or "batch"
        Axis of the correlation.
    label_smoothing : float, default 0
        Share of each target spread evenly over the classes, in [0, 1).

    Returns
    -------
    loss : Tensor, shape ()
        The sum, float32 or float64.
    parts : dict of str to Tensor
        ``"cross_entropy"`` and, with features, ``"pearson"`` (mean r), detached.

    Raises
    ------
    DataError
        As `pearson_regulariser`, or if there is not one label a row of logits.
    ConfigError
        If `label_smoothing` lies outside [0, 1), or a positive `alpha` comes without features.

    References
    ----------
    Zhao et al., NeuralOOD, arXiv:2408.14950 (2024): L = L_cls + alpha L_fusion.
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(
            message("label_smoothing in [0, 1)", repr(label_smoothing), "choose for example 0.1")
        )
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            message(
                "logits (B, C) and labels (B,)",
                f"{tuple(logits.shape)} and {tuple(labels.shape)}",
                "give one label a stimulus",
            )
        )
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        loss = functional.cross_entropy(logits.to(exact), labels, label_smoothing=label_smoothing)
    parts = {"cross_entropy": loss.detach()}
    if x_vb is None or x_bv is None:
        if alpha:
            raise ConfigError(
                message(
                    "alpha 0 for a model without fused features",
                    repr(alpha),
                    "set alpha=0, or fuse the brain",
                )
            )
        return loss, parts
    regulariser = pearson_regulariser(x_vb, x_bv, axis)
    parts["pearson"] = 1 - regulariser.detach()
    return loss + alpha * regulariser, parts

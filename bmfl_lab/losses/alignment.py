"""Losses that align the responses predicted by a network with measured ones.

Shape suffixes: B stimuli in the batch, E features of the response pattern, C classes.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.errors import ConfigError, DataError, require, require_known

Contrast = Literal["matrix", "detached", "none"]
_MINIMUM_VARIANCE = 1e-6


def _standardise(x_BE: Tensor) -> Tensor:
    """Standardise each row over its features."""
    x_BE = x_BE - x_BE.mean(1, keepdim=True)
    # with this lower limit a constant row has r = 0 and a finite gradient
    return x_BE * x_BE.square().mean(1, keepdim=True).clamp_min(_MINIMUM_VARIANCE).rsqrt()


def _check_shapes(p_BE: Tensor, y_BE: Tensor) -> None:
    require(
        p_BE.ndim == 2 and p_BE.shape == y_BE.shape,
        DataError,
        "predicted and measured responses of one shape (B, E)",
        f"{tuple(p_BE.shape)} and {tuple(y_BE.shape)}",
        "give the head as many outputs as there are response features",
    )


def _check_contrast(p_BE: Tensor, y_BE: Tensor) -> None:
    _check_shapes(p_BE, y_BE)
    require(
        p_BE.shape[0] >= 2 and p_BE.shape[1] >= 3,
        DataError,
        "at least 2 stimuli and 3 response features for a contrast between stimuli",
        f"{p_BE.shape[0]} and {p_BE.shape[1]}",
        "use a larger batch (drop a last batch of one), or contrast='none'"
        if p_BE.shape[0] < 2
        else "use 3 or more response features, or contrast='none'",
    )


def contrastive(p_BE: Tensor, y_BE: Tensor) -> Tensor:
    """Return the contrastive loss, low if matched pairs correlate more than mismatched pairs.

    Parameters
    ----------
    p_BE, y_BE : Tensor of float, shape (B, E)
        Predicted and measured responses to the same B stimuli.

    Returns
    -------
    Tensor, shape ()
        ``1 - mean_i r(p_i, y_i) + mean_{i != j} r(p_i, y_j)``, where r is the Pearson correlation
        over the E features. A constant row counts as r = 0.

    Raises
    ------
    DataError
        If the shapes differ, or there are fewer than 2 stimuli or 3 features.

    References
    ----------
    Lu & Wang (2025), ReAlnet-fMRI, Cognitive Neurodynamics 19:61, arXiv:2407.10414.
    """
    _check_contrast(p_BE, y_BE)
    r_BB = _standardise(p_BE) @ _standardise(y_BE).T / p_BE.shape[1]
    n = len(r_BB)
    matched = r_BB.diagonal().sum()
    return 1 - matched / n + (r_BB.sum() - matched) / (n * (n - 1))


def alignment_loss(
    logits_BC: Tensor,
    targets: Tensor,
    p_BE: Tensor,
    y_BE: Tensor,
    *,
    beta: float,
    contrast: Contrast = "matrix",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return cross-entropy plus `beta` times the sum of mean squared error and contrastive loss.

    Parameters
    ----------
    logits_BC : Tensor of float, shape (B, C)
        Class scores of the network that is aligned.
    targets : Tensor, shape (B,) of int64 or (B, C) of float
        Target classes or class probabilities: the argmax or the softmax of the frozen original
        network, or true labels.
    p_BE, y_BE : Tensor of float, shape (B, E)
        Predicted and measured responses to the same stimuli.
    beta : float
        Weight of the alignment, at least 0; with 0 the network is trained without fMRI.
    contrast : {"matrix", "detached", "none"}, default "matrix"
        "matrix" adds the contrastive loss with its gradient. "detached" adds its value without its
        gradient, so that the network learns from the squared error alone. "none" leaves it out.

    Returns
    -------
    loss : Tensor, shape ()
        The sum.
    parts : dict of str to Tensor, shape ()
        "cross_entropy", "mse" and, unless `contrast` is "none", "contrast", all detached.

    Raises
    ------
    ConfigError
        If `contrast` is unknown or `beta` is negative.
    DataError
        If shapes do not agree, or the batch is too small for the contrast.

    Notes
    -----
    "detached" is what the code released with ReAlnet-fMRI does: it collects the correlations in a
    list and builds a new tensor from it, which cuts the graph. The reported losses then include a
    term that trains nothing, and the gradient equals that of "none" exactly. Results published from
    that code are results of alignment by squared error.

    References
    ----------
    Lu & Wang (2025), ReAlnet-fMRI, Cognitive Neurodynamics 19:61, arXiv:2407.10414.
    """
    contrasts = get_args(Contrast)
    require_known(contrast, contrasts, ConfigError, f"a contrast among {contrasts}")
    require(beta >= 0, ConfigError, "beta of at least 0", repr(beta), "use beta=0 for no alignment")
    require(
        logits_BC.ndim == 2 and targets.shape in (logits_BC.shape[:1], logits_BC.shape),
        DataError,
        "logits (B, C) with targets (B,) or (B, C)",
        f"{tuple(logits_BC.shape)} and {tuple(targets.shape)}",
        "give one target per stimulus",
    )
    _check_shapes(p_BE, y_BE)
    parts = {
        "cross_entropy": functional.cross_entropy(logits_BC, targets),
        "mse": functional.mse_loss(p_BE, y_BE),
    }
    alignment = parts["mse"]
    if contrast != "none":
        with torch.set_grad_enabled(contrast == "matrix" and torch.is_grad_enabled()):
            parts["contrast"] = contrastive(p_BE, y_BE)
        alignment = alignment + parts["contrast"]
    return parts["cross_entropy"] + beta * alignment, {k: v.detach() for k, v in parts.items()}

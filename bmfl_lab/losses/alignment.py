"""Losses that align a network's predicted responses with measured ones.

Shape suffixes: B batch, E responses (features of the fMRI pattern), C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bmfl_lab.errors import ConfigError, DataError, message

CONTRASTS = ("matrix", "detached", "none")
Contrast = Literal["matrix", "detached", "none"]
_LEAST_VARIANCE = 1e-6


def _standardised(x_BE: Tensor) -> Tensor:
    x_BE = x_BE - x_BE.mean(1, keepdim=True)
    # the floor gives a constant response r = 0 and a finite gradient
    return x_BE * x_BE.square().mean(1, keepdim=True).clamp_min(_LEAST_VARIANCE).rsqrt()


def _check(p_BE: Tensor, y_BE: Tensor) -> None:
    if p_BE.ndim != 2 or p_BE.shape != y_BE.shape:
        raise DataError(
            message(
                "predicted and measured responses of one shape (B, E)",
                f"{tuple(p_BE.shape)} and {tuple(y_BE.shape)}",
                "give the head as many outputs as there are response features; nothing is broadcast",
            )
        )
    if p_BE.shape[0] < 2 or p_BE.shape[1] < 3:
        raise DataError(
            message(
                "at least 2 stimuli and 3 response features for a contrast between stimuli",
                f"{p_BE.shape[0]} and {p_BE.shape[1]}",
                "use a larger batch (drop a last batch of one), or contrast='none'",
            )
        )


def contrastive(p_BE: Tensor, y_BE: Tensor) -> Tensor:
    """Contrast of correlations: matched pairs high, mismatched pairs low.

    Parameters
    ----------
    p_BE, y_BE : Tensor, shape (B, E)
        Predicted and measured responses to the same B stimuli.

    Returns
    -------
    Tensor, shape ()
        ``1 - mean_i r(p_i, y_i) + mean_{i != j} r(p_i, y_j)``, r being Pearson's over the E
        features. A constant row counts as r = 0.

    Raises
    ------
    DataError
        If shapes differ, or there is one stimulus: it has no mismatched partner.

    References
    ----------
    Lu & Wang 2025, Cognitive Neurodynamics 19:61 (ReAlnet-fMRI, arXiv:2407.10414).
    """
    _check(p_BE, y_BE)
    r_BB = _standardised(p_BE) @ _standardised(y_BE).T / p_BE.shape[1]
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
    """Cross-entropy plus `beta` times (mean squared error plus contrast).

    Parameters
    ----------
    logits_BC : Tensor, shape (B, C)
        Class scores of the network being aligned.
    targets : Tensor, shape (B,) of int64 or (B, C) of probabilities
        What the classification is held to: the argmax or the softmax of the frozen original, or
        true labels.
    p_BE, y_BE : Tensor, shape (B, E)
        Predicted and measured responses.
    beta : float
        Weight of alignment; 0 trains the same network without fMRI.
    contrast : {"matrix", "detached", "none"}
        "matrix": the contrast as described, with its gradient. "detached": its value is counted and
        its gradient is not, so that the network learns from the squared error alone. "none":
        squared error only.

    Returns
    -------
    loss : Tensor, shape ()
    parts : dict of str to Tensor
        "cross_entropy", "mse" and "contrast", detached.

    Raises
    ------
    ConfigError
        If `contrast` is unknown or `beta` negative.
    DataError
        If shapes do not agree, or the batch holds one stimulus and a contrast is asked for.

    Notes
    -----
    "detached" is what the code released with ReAlnet-fMRI does: it collects the correlations in a
    list and builds a new tensor from it, which cuts the graph. Reported losses then include a term
    that trains nothing, and the gradient equals that of "none" to the bit. Results published from
    that code are results of squared-error alignment.

    References
    ----------
    Lu & Wang 2025, Cognitive Neurodynamics 19:61 (arXiv:2407.10414).
    """
    if contrast not in CONTRASTS:
        raise ConfigError(
            message(f"a contrast among {CONTRASTS}", repr(contrast), "choose one of them")
        )
    if beta < 0:
        raise ConfigError(message("beta of at least 0", repr(beta), "use beta=0 for no alignment"))
    if logits_BC.ndim != 2 or targets.shape not in (logits_BC.shape[:1], logits_BC.shape):
        raise DataError(
            message(
                "logits (B, C) with targets (B,) or (B, C)",
                f"{tuple(logits_BC.shape)} and {tuple(targets.shape)}",
                "give one target a stimulus",
            )
        )
    if contrast != "none":
        _check(p_BE, y_BE)
    if p_BE.shape != y_BE.shape:
        raise DataError(
            message(
                "responses of one shape",
                f"{tuple(p_BE.shape)} and {tuple(y_BE.shape)}",
                "nothing is broadcast",
            )
        )
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

"""Metrics as pure functions."""

from bmfl_lab.metrics.behaviour import (
    coarse_decision,
    error_consistency,
    mean_consistency,
    observer_accuracy,
    shape_bias,
)
from bmfl_lab.metrics.cka import cka
from bmfl_lab.metrics.classification import (
    accuracy,
    balanced_accuracy,
    calibration,
    corruption_error,
    ece,
    mask_classes,
    n_nan,
    nll,
)
from bmfl_lab.metrics.correlation import StreamingPearson, bootstrap_pearson, near_constant, pearson
from bmfl_lab.metrics.noise import (
    aggregate,
    ceiling_from_repeats,
    noise_normalised,
    split_half_ceiling,
)
from bmfl_lab.metrics.rdms import RDMs, compare
from bmfl_lab.metrics.rsa import compare_rdms, rdm
from bmfl_lab.metrics.rsa_inference import noise_ceiling, permutation_rsa
from bmfl_lab.metrics.statistics import (
    bootstrap_mean,
    effective_robustness,
    fit_robustness_line,
    holm,
    verdict,
)

__all__ = [
    "RDMs",
    "StreamingPearson",
    "accuracy",
    "aggregate",
    "balanced_accuracy",
    "bootstrap_mean",
    "bootstrap_pearson",
    "calibration",
    "ceiling_from_repeats",
    "cka",
    "coarse_decision",
    "compare",
    "compare_rdms",
    "corruption_error",
    "ece",
    "effective_robustness",
    "error_consistency",
    "fit_robustness_line",
    "holm",
    "mask_classes",
    "mean_consistency",
    "n_nan",
    "near_constant",
    "nll",
    "noise_ceiling",
    "noise_normalised",
    "observer_accuracy",
    "pearson",
    "permutation_rsa",
    "rdm",
    "shape_bias",
    "split_half_ceiling",
    "verdict",
]

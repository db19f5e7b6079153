"""Metrics as pure functions."""

from bmfl_lab.metrics.cka import cka, minibatch_cka
from bmfl_lab.metrics.correlation import StreamingPearson, bootstrap_pearson, near_constant, pearson
from bmfl_lab.metrics.noise import (
    aggregate,
    ceiling_from_ncsnr,
    ceiling_from_repeats,
    ncsnr_from_repeats,
    noise_normalised,
    split_half_ceiling,
)
from bmfl_lab.metrics.rsa import RDMs, compare, compare_rdms, rdm
from bmfl_lab.metrics.rsa_inference import bootstrap_rsa, noise_ceiling, permutation_rsa

__all__ = [
    "RDMs",
    "StreamingPearson",
    "aggregate",
    "bootstrap_pearson",
    "bootstrap_rsa",
    "ceiling_from_ncsnr",
    "ceiling_from_repeats",
    "cka",
    "compare",
    "compare_rdms",
    "minibatch_cka",
    "ncsnr_from_repeats",
    "near_constant",
    "noise_ceiling",
    "noise_normalised",
    "pearson",
    "permutation_rsa",
    "rdm",
    "split_half_ceiling",
]

"""Metrics as pure functions."""

from bmfl_lab.metrics.cka import cka, minibatch_cka
from bmfl_lab.metrics.rsa import RDMs, compare, compare_rdms, rdm
from bmfl_lab.metrics.rsa_inference import bootstrap_rsa, noise_ceiling, permutation_rsa

__all__ = [
    "RDMs",
    "bootstrap_rsa",
    "cka",
    "compare",
    "compare_rdms",
    "minibatch_cka",
    "noise_ceiling",
    "permutation_rsa",
    "rdm",
]

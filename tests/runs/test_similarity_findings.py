"""Sentences on layers and regions name the best layer, the scores with their p, and identification with its chance."""

from dataclasses import asdict

import numpy as np
import pandas as pd

from bmfl_lab.evaluation.findings import findings, similarity_findings
from bmfl_lab.records import MetricRow


def frame(*rows):
    return pd.DataFrame([asdict(r) for r in rows]).assign(study="demo (simulated)", run="08-1")


def at(name, value, **more):
    return MetricRow(
        name, value, "r", more.pop("split", "test"), more.pop("n", 150), "none", **more
    )


ROWS = (
    at("encoding_r", 0.4, layer="block 0", roi="V1"),
    at("encoding_r", 0.3, layer="block 11", roi="V1"),
    at("encoding_r", 0.2, layer="block 0", roi="FFC"),
    at("encoding_r", 0.5, layer="block 11", roi="FFC"),
    at("encoding_r", None, layer="block 5", roi="FFC"),
    at("spatial_score", 0.2, n=9, interval="permutation test, 100 orders", notes="n counts ROIs"),
    at("spatial_score_p", 0.59, n=9),
    at("temporal_score", None, n=3, split="eeg", notes="n counts layers"),
    at(
        "identification_top1",
        0.9,
        roi="all",
        ci_low=0.85,
        ci_high=0.94,
        notes="chance 0.0067 of 150 images",
    ),
    at(
        "identification_top1",
        0.6,
        roi="V1",
        ci_low=0.5,
        ci_high=0.7,
        notes="chance 0.0067 of 150 images",
    ),
)


def test_layers_scores_and_identification_are_told():
    layers, spatial, temporal, named = similarity_findings(frame(*ROWS))
    assert layers.endswith(
        "chosen on the images that are scored: V1 block 0 (0.400), FFC block 11 (0.500)."
    )
    assert (
        "spatial score (test): r = +0.20, p = 0.59, permutation test, 100 orders; n = 9, n counts ROIs."
        in spatial
    )
    assert "temporal score (eeg): undefined" in temporal and "p =" not in temporal
    assert named.endswith(
        "of 150 images evoked a response: top-1 0.900 [0.850, 0.940]; chance 0.0067 of 150 images."
    )
    assert set(similarity_findings(frame(*ROWS))) <= set(findings(frame(*ROWS)))


def test_other_records_say_nothing_here():
    assert similarity_findings(frame(at("accuracy", 0.5))) == []
    assert similarity_findings(frame(at("encoding_r", np.nan, layer="block 0", roi="V1"))) == []

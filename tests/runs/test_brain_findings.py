"""Sentences on alignment say every comparison, found or not, with interval, p, n and seeds."""

from dataclasses import asdict

import pandas as pd

from bmfl_lab.evaluation.findings import brain_findings, findings
from bmfl_lab.evaluation.report import render
from bmfl_lab.records import MetricRow


def frame(*rows):
    table = pd.DataFrame([asdict(r) for r in rows])
    return table.assign(study="demo (simulated)", run="07-1")


def gain(name, model, value, half, p, **more):
    return MetricRow(
        name,
        value,
        "rho",
        "test",
        150,
        "best val_loss",
        model=model,
        ci_low=value - half,
        ci_high=value + half,
        interval="95 % t interval",
        n_seeds=3,
        p_adjusted=p,
        **more,
    )


def test_gains_and_the_relation_are_told():
    rows = frame(
        gain("rsa_mean_gain", "aligned", 0.03, 0.01, 0.0021, reference="no_fmri"),
        gain("rsa_mean_gain", "aligned", 0.01, 0.02, 0.4, reference="noise"),
        gain("rsa_transfer_gain", "aligned with A", 0.05, 0.02, 0.01, subject="B"),
        MetricRow(
            "brain_robust_correlation",
            -0.77,
            "rho",
            "test",
            6,
            "none",
            ci_low=-1.0,
            ci_high=0.09,
            notes="n counts models; no relation shown",
        ),
        MetricRow(
            "rsa_mean", 0.2, "rho", "test", 150, "none", model="aligned", ci_low=0.1, ci_high=0.3
        ),
    )
    one, two, three = brain_findings(rows)
    assert one.startswith(
        "demo (simulated), 07-1: gain of mean RSA on held-out images: `aligned - no_fmri` +0.030"
    )
    assert (
        "[+0.020, +0.040], p = 0.0021; `aligned - noise` +0.010 [-0.010, +0.030], p = 0.4." in one
    )
    assert "n = 150 images, 3 seeds; 95 % t interval" in one
    assert "`aligned with A` on B +0.050 [+0.030, +0.070], p = 0.01" in two
    assert three.endswith("over 6 models: rho = -0.77 [-1.00, +0.09]: no relation shown.")
    assert brain_findings(frame(MetricRow("accuracy", 0.5, "fraction", "test", 9, "none"))) == []
    assert findings(rows)[-3:] == [one, two, three]


def test_a_report_keeps_layers_apart():
    rows = frame(
        *(
            MetricRow(
                "rsa",
                v,
                "rho",
                "test",
                150,
                "none",
                model="m",
                roi="V1",
                layer=k,
                ci_low=v - 0.1,
                ci_high=v + 0.1,
            )
            for k, v in (("block 0", 0.2), ("block 5", 0.4))
        )
    ).assign(run_id="07-1")
    text = render(rows.drop(columns="run"), "R", ["ok"])
    assert (
        "| V1 | block 0 | 0.200 [0.100, 0.300] | 150 |" in text and "| V1 | block 5 | 0.400" in text
    )

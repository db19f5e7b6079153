"""The brain-like against robust table over any number of records: the claim can hold and can fail."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.brain_robust import brain_and_robust
from bmfl_lab.records import MetricRow


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rows(brain, robust):
    for i, (b, r) in enumerate(zip(brain, robust)):
        for seed in (0, 1):
            yield MetricRow("rsa", b, "rho", "test", 50, "none", model=f"m{i}", roi="V1", seed=seed)
            yield MetricRow(
                "accuracy",
                r,
                "fraction",
                "test",
                50,
                "none",
                model=f"m{i}",
                shift="masked",
                severity=3,
            )
        yield MetricRow("accuracy", 0.99, "fraction", "test", 50, "none", model=f"m{i}")
    yield MetricRow("rsa", 0.3, "rho", "test", 50, "none", model="only brain")


def test_the_claim_can_hold_and_can_fail():
    brain = np.linspace(0.1, 0.5, 12)
    found = brain_and_robust(rows(brain, brain + 0.01 * draw(12)), brain="rsa", robust="accuracy")
    assert found.n == 12 and found.low > 0 and "are more robust" in found.verdict
    assert found.table.iloc[0]["model"] == "m11" and found.table["n_brain"].iloc[0] == 2
    last = found.table.iloc[
        -1
    ]  # a model of which the records tell one side is listed and not counted
    assert last["model"] == "only brain" and np.isnan(last["robust"])
    assert found.table["robust"].max() < 0.9  # in-distribution accuracy is left out
    against = brain_and_robust(rows(brain, -brain), brain="rsa", robust="accuracy")
    assert "less robust" in against.verdict
    values = (
        brain - brain.mean()
    ) ** 2  # symmetric about the middle: no monotone relation by construction
    none = brain_and_robust(rows(brain, values), brain="rsa", robust="accuracy")
    assert none.verdict == "no relation shown"
    assert none.r == pytest.approx(spearmanr(brain, values).statistic)
    few = brain_and_robust(rows([0.1, 0.2], [0.3, 0.4]), brain="rsa", robust="accuracy")
    assert few.r is None and "too few" in few.verdict
    with pytest.raises(DataError, match="a model with both 'rsa' and 'nll'"):
        brain_and_robust(rows([0.1], [0.2]), brain="rsa", robust="nll")


def test_models_of_several_records_keep_their_intervals_and_their_runs():
    def row(name, value, model, **more):
        return asdict(MetricRow(name, value, "unit", "test", 50, "none", model=model, **more))

    ends = {"ci_low": 0.1, "ci_high": 0.3, "n_seeds": 2}
    one = [row("rsa_mean", 0.2, "aligned", **ends)]
    one += [row("rsa_mean", v, "aligned", seed=i) for i, v in enumerate((0.9, 0.9))]
    one += [
        row(
            "accuracy_over_shifts",
            0.4,
            "aligned",
            shift="mean of 2 shifts",
            ci_low=0.3,
            ci_high=0.5,
        )
    ]
    one += [row("accuracy", 0.99, "aligned", shift="masked", severity=3)]
    two = [row("rsa_mean", 0.5, "aligned"), row("accuracy", 0.99, "aligned")]
    two += [
        row("accuracy", v, "aligned", shift=s, severity=3)
        for s, v in (("masked", 0.6), ("sketch", 0.8))
    ]
    two += [row("accuracy", 0.5, "fusion", shift="masked", severity=3)]
    frame = pd.concat(
        [pd.DataFrame(one).assign(run="a"), pd.DataFrame(two).assign(run="b")], ignore_index=True
    )
    found = brain_and_robust(frame, brain="rsa_mean", robust=("accuracy_over_shifts", "accuracy"))
    assert list(zip(found.table["model"], found.table["run"])) == [
        ("aligned", "b"),
        ("aligned", "a"),
        ("fusion", "b"),
    ]
    b, a, fusion = (r for _, r in found.table.iterrows())
    assert (a["brain"], a["brain_low"], a["brain_high"], a["n_brain"]) == (0.2, 0.1, 0.3, 1)
    assert (a["robust"], a["robust_low"], a["robust_high"]) == (0.4, 0.3, 0.5)
    assert b["robust"] == pytest.approx(0.7) and np.isnan(b["robust_low"]) and b["n_robust"] == 2
    assert np.isnan(fusion["brain"]) and found.n == 2 and "too few" in found.verdict
    kept = frame[frame["shift"].isin(["", "sketch"])]
    only = brain_and_robust(kept, brain="rsa_mean", robust="accuracy")
    assert only.n == 1 and only.table.iloc[0]["robust"] == 0.8

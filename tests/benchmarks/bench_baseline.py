"""Does the backbone-only baseline get out of its features what scikit-learn's logistic regression gets out of them?

    python tests/benchmarks/bench_baseline.py [--study demo] [--preset small] [--seeds 0 1 2]

Both read CLS + mean patch token of the study's training images, both are selected on its validation
images (the epoch; the penalty), both are tested once on its test images. Ends with exit code 1 if
the mean accuracy of the baseline over the seeds is more than one point (of 100) below that of the
logistic regression.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from bench_backbone import logistic_regression

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.training import presets, study_backbone, train_fusion

TOLERANCE = 0.01


def compare(study_name: str, preset: str, seeds: list[int], device: str = "cpu") -> float:
    """Print both accuracies with the paired interval of their difference, and return the difference."""
    study, store = load_study(study_name), FeatureStore()
    fusion, _ = presets(preset, head="backbone")
    backbone = study_backbone(study.backbone, device)
    test, truth = study.set("test"), np.asarray(study.set("test").labels)
    baseline = []
    for seed in seeds:
        # the atlas gives the baseline as many weights as the fusion has that it stands beside
        model = train_fusion(
            fusion,
            study,
            atlas=study.subject().atlas,
            store=store,
            device=device,
            seed=seed,
            backbone=backbone,
        )
        baseline.append(model.logits(test).argmax(1) == truth)
        print(
            f"backbone only, seed {seed}: {baseline[-1].mean():.1%} (epoch {model.epoch} by validation)",
            flush=True,
        )
    parts = []
    for name in ("train", "val", "test"):
        tokens = store.get(backbone, study.set(name), fusion.kind, fusion.block)
        parts.append((tokens.features(), np.asarray(study.set(name).labels)))
    right, chosen, penalty = logistic_regression(*parts)
    difference = bootstrap_mean(np.asarray(baseline, float) - right.astype(float))
    print(
        f"logistic regression: {right.mean():.1%} (C {penalty:.2g} by validation, {chosen:.1%} there)"
    )
    print(
        f"backbone only - logistic regression: {difference.value:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}], "
        f"n = {len(truth)}, {len(seeds)} seeds"
    )
    return float(difference.value)


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="demo")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    return int(compare(arguments.study, arguments.preset, arguments.seeds) < -TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

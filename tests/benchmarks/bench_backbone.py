"""Print the image-size table: speed of the backbone and accuracy of a classifier on its tokens.

    python tests/benchmarks/bench_backbone.py [--sizes 56 98 ...] [--probe 56 98 ...] [-n 5]

The rate is the number of images per second of the forward pass alone, in batches of 8: median,
lowest and highest of n measurements. The share is the number of operations per second of the
network, divided by that of a 2056 x 768 x 3072 matrix product of the same number type (best of 3).
Both are measured in turns with the threads of this process; the median of the pairs is printed.

The accuracy is that of scikit-learn's logistic regression on the standardised class and mean patch
tokens of the demo study's photographs. It is trained on 1,000 images, its penalty is the one with
the best accuracy on 300 images (the strongest among equals), and it is tested once on 400 images.
The interval is a 95 % bootstrap interval over images. The demo study is fetched if it is not in the
cache.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from bench_stages import forward_flops, forward_rate

from bmfl_lab import load_study
from bmfl_lab.backbones import extract, load_backbone
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.runtime import bf16_pays, describe_machine, peak_memory_mb, versions

PENALTIES = np.logspace(-5, 1, 13)
"""Inverse strengths (C of scikit-learn), from strong to weak."""


def logistic_regression(train, val, test) -> tuple[np.ndarray, float, float]:
    """Fit a logistic regression and test it.

    Parameters
    ----------
    train, val, test : pair of ndarray
        Features, shape (n, D), and labels, shape (n,).

    Returns
    -------
    right : ndarray of bool, shape (n_test,)
        Which test images are classified correctly.
    accuracy : float
        Validation accuracy.
    penalty : float
        Chosen inverse strength C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    tried = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(
            *train
        )
        tried.append((model.score(*val), -penalty, model))
    best = max(tried, key=lambda t: t[:2])
    return best[2].predict(test[0]) == test[1], best[0], -best[1]


def accuracy(size: int, study_name: str, name: str, weights: str | None) -> dict[str, float]:
    """Return test accuracy, its interval, the chosen penalty and images/s from uint8 to tokens."""
    options = {"n_train": 1000, "n_val": 300, "n_test": 400}
    if study_name == "demo":
        options |= {"clipart": False, "subject": False, "image_size": size}
    study = load_study(study_name, **options)
    backbone = load_backbone(name, weights, image_size=size, resize=study.backbone.resize)
    start, sets = time.perf_counter(), [study.set(n) for n in ("train", "val", "test")]
    features = [extract(backbone, s, "cls+mean", batch_size=16).features() for s in sets]
    rate = sum(map(len, sets)) / (time.perf_counter() - start)
    right, chosen, penalty = logistic_regression(
        *((x, np.asarray(s.labels)) for x, s in zip(features, sets))
    )
    found = bootstrap_mean(right)
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "val": chosen,
        "C": penalty,
        "rate": rate,
    }


def row(
    size: int, dtype: str, name: str, weights: str | None, n: int, probed: dict[str, float] | None
) -> str:
    """Measure one size and return its line of the table."""
    backbone = load_backbone(name, weights, image_size=size, dtype=dtype)
    rates, ceilings = forward_rate(backbone, size, n)
    share = float(np.median(rates * forward_flops(backbone, size) / ceilings))
    said = "| | |"
    if probed:
        said = (
            f"| {probed['value']:.1%} [{probed['low']:.1%}, {probed['high']:.1%}] "
            f"| {probed['val']:.1%}, C {probed['C']:.2g} |"
        )
    return (
        f"| {size} | {dtype} | {np.median(rates):.1f} ({rates.min():.1f} to {rates.max():.1f}) "
        f"| {np.median(ceilings) / 1e9:.0f} | {share:.2f} {said}"
    )


def main() -> None:
    """Print the table, line by line as it is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="dinov2_vits14_reg")
    parser.add_argument("--weights")
    parser.add_argument(
        "--study", default="demo", help="study whose photographs are classified (demo)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[56, 98, 126, 140, 154, 168, 224])
    parser.add_argument(
        "--probe", type=int, nargs="*", help="sizes at which accuracy is measured (all)"
    )
    parser.add_argument("-n", type=int, default=5)
    arguments = parser.parse_args()
    probe = arguments.sizes if arguments.probe is None else arguments.probe
    print(f"{describe_machine()}, torch {versions()['torch']}")
    dtypes = ["float32"] + (["bfloat16"] if bf16_pays("cpu") else [])
    if len(dtypes) == 1:
        print("bfloat16 does not pay on this machine and is left out")
    print(
        "| image side | number type | images/s | product, GFLOP/s | share of it "
        "| accuracy (n = 400) | validation |"
    )
    print("|--:|---|---|--:|--:|---|---|", flush=True)
    for size in arguments.sizes:
        probed = (
            accuracy(size, arguments.study, arguments.name, arguments.weights)
            if size in probe
            else None
        )
        for dtype in dtypes:
            print(
                row(size, dtype, arguments.name, arguments.weights, arguments.n, probed), flush=True
            )
    print(f"peak memory {peak_memory_mb():.0f} MB")


if __name__ == "__main__":
    main()

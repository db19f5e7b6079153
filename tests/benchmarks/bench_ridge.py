"""Ridge with one penalty per vertex against himalaya's RidgeCV, in one process and in turns.

Ends with 1 if the ratio is below FLOOR, if fewer than SAME of the targets get the same penalty, or
if coefficients of those differ by more than TOLERANCE.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_ridge.py [--targets 2000] [--repeats 3]
"""

import argparse
import resource
import sys
import time
import warnings

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.ridge import RidgeCV

from bmfl_lab.models.ridge import fit_ridge

FLOOR, SAME, TOLERANCE = 10.0, 0.999, 1e-4


def made(
    n_stimuli: int, n_features: int, n_targets: int, chunk: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Return features of decreasing variance and responses of various noise, made in chunks to keep memory low."""
    g = np.random.default_rng(0)
    X = (g.normal(size=(n_stimuli, n_features)) * np.logspace(0.5, -1, n_features)).astype(
        np.float32
    )
    Y = np.empty((n_stimuli, n_targets), np.float32)
    for start in range(0, n_targets, chunk):
        part = Y[:, start : start + chunk]
        n = part.shape[1]
        W = g.normal(size=(n_features, n)).astype(np.float32)
        part[:] = X @ W * g.uniform(0.02, 0.3, n).astype(np.float32)
        part += 2 * g.standard_normal(part.shape, dtype=np.float32)
    return X, Y


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stimuli", type=int, default=8000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument(
        "--targets", type=int, default=2000, help="39548: both hemispheres of an Algonauts subject"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--targets-batch", type=int, default=2000, help="himalaya's batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_backend("torch")
    warnings.simplefilter("ignore")
    X, Y = made(options.stimuli, options.features, options.targets)
    before = peak()
    alphas = np.logspace(0, 6, 20).astype(np.float32)
    solver = {"n_targets_batch": options.targets_batch, "n_alphas_batch": 5, "warn": False}
    times, memory = {"himalaya": [], "bmfl_lab": []}, 0.0
    for _ in range(options.repeats):
        start = time.process_time()
        ours = fit_ridge(X, Y, alphas)
        times["bmfl_lab"].append(time.process_time() - start)
        memory = memory or peak()  # before the peer has taken any
        start = time.process_time()
        peer = RidgeCV(alphas=alphas, fit_intercept=True, cv=5, solver_params=solver).fit(X, Y)
        times["himalaya"].append(time.process_time() - start)
    same = np.isclose(ours.alpha, np.asarray(peer.best_alphas_), rtol=1e-3)
    gap = np.abs(ours.coef - np.asarray(peer.coef_))[:, same].max()
    a, b = (float(np.median(times[k])) for k in ("himalaya", "bmfl_lab"))
    print(
        f"{options.stimuli} x {options.features} -> {options.targets}, 20 alphas, 5 folds, CPU-seconds, one thread"
    )
    print(f"himalaya {a:.2f}   bmfl_lab {b:.2f}   ratio {a / b:.1f}   n {options.repeats}")
    print(f"same alpha {same.mean():.4%}   largest coefficient gap {gap:.1e}")
    print(f"peak memory: data {before:.2f}, bmfl_lab {memory:.2f}, with himalaya {peak():.2f} GiB")
    held = a / b >= FLOOR and same.mean() >= SAME and gap <= TOLERANCE
    print(
        f"{'holds' if held else 'FAILS'}: at least {FLOOR:g} times as fast, {SAME:.1%} the same, gap {TOLERANCE:.0e}"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

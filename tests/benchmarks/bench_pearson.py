"""Pearson r per vertex against himalaya's score and a loop over scipy's, in one process and in turns.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_pearson.py [--stimuli 984] [--vertices 39548]
    [--repeats 5]

The loop is timed on 1,000 vertices and scaled up. CPU seconds of one thread; memory is what the
call adds at its highest, in a process of its own. Ends with 1 if a ratio is below its floor or
results differ by more than TOLERANCE.
"""

import argparse
import os
import resource
import sys
import time

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.scoring import correlation_score
from scipy import stats

from bmfl_lab.metrics import pearson
from bmfl_lab.metrics.correlation import StreamingPearson

LOOP = 1000
FLOORS = {"scipy loop": 50.0, "himalaya": 3.0}
TOLERANCE = 1e-6


def made(n: int, v: int) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    Y = g.standard_normal((n, v), dtype=np.float32)
    return Y, 0.4 * Y + g.standard_normal((n, v), dtype=np.float32)


def streamed(Y: np.ndarray, P: np.ndarray) -> np.ndarray:
    stream = StreamingPearson(Y.shape[1])
    for start in range(0, len(Y), 64):
        stream.update(Y[start : start + 64], P[start : start + 64])
    return stream.result()


def loop(Y: np.ndarray, P: np.ndarray) -> np.ndarray:
    return np.asarray([stats.pearsonr(Y[:, v], P[:, v])[0] for v in range(min(LOOP, Y.shape[1]))])


def added_memory(job, Y: np.ndarray, P: np.ndarray) -> float:
    """Return the megabytes by which the peak of a forked process rises over the arrays it was given."""
    read, write = os.pipe()
    if not os.fork():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        job(Y, P)
        os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.wait()
    return int(os.read(read, 64)) / 1024


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stimuli", type=int, default=984)
    parser.add_argument("--vertices", type=int, default=39548)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_backend("torch")
    Y, P = made(options.stimuli, options.vertices)
    Yt, Pt = torch.from_numpy(Y), torch.from_numpy(P)
    jobs = {
        "scipy loop": loop,
        "himalaya": lambda y, p: np.asarray(correlation_score(Yt, Pt)),
        "bmfl_lab pearson": pearson,
        "bmfl_lab streaming": streamed,
    }
    times, found = {k: [] for k in jobs}, {}
    for _ in range(options.repeats):
        for name, job in jobs.items():
            start = time.process_time()
            found[name] = job(Y, P)
            spent = time.process_time() - start
            times[name].append(spent * options.vertices / len(found[name]))
    ours = times["bmfl_lab pearson"]
    print(
        f"{options.stimuli} x {options.vertices}, CPU-seconds, one thread, medians of {options.repeats}"
    )
    held = True
    for name in jobs:
        ratios = np.asarray(times[name]) / ours
        part = found["bmfl_lab pearson"][: len(found[name])]
        gap = np.abs(found[name] - part).max()
        held &= gap <= TOLERANCE and np.median(ratios) >= FLOORS.get(name, 0)
        memory = added_memory(jobs[name], Y, P)
        print(
            f"{name:20s} {np.median(times[name]):7.3f}   ratio {np.median(ratios):5.1f} "
            f"({ratios.min():.1f} to {ratios.max():.1f})   largest gap {gap:.1e}   memory {memory:.0f} MB"
        )
    floors = ", ".join(f"{k} {v:g}" for k, v in FLOORS.items())
    print(f"{'holds' if held else 'FAILS'}: ratios at least {floors}; gaps at most {TOLERANCE:.0e}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

"""RSA of 12 layers x 48 ROIs x 1,000 images: ranks once and one product, against rsatoolbox and pair by pair.

Run with ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_rsa.py [rounds]``. The pair-by-pair time
is measured on a subset of the 576 pairs and scaled.
"""

import sys
import time

import numpy as np
import rsatoolbox
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from bmfl_lab.metrics.rsa import compare_rdms

N_LAYERS, N_ROIS, N_IMAGES, N_PAIRS = 12, 48, 1000, 12


def cpu(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main(rounds=5):
    m = N_IMAGES * (N_IMAGES - 1) // 2
    draw = np.random.default_rng(0)
    A, B = draw.random((N_LAYERS, m)), draw.random((N_ROIS, m))
    peer_a, peer_b = rsatoolbox.rdm.RDMs(A), rsatoolbox.rdm.RDMs(B)
    times = {"ours": [], "rsatoolbox": [], "scipy pairs": []}
    with threadpool_limits(1):
        compare_rdms(A[:1], B[:1])
        for round_ in range(rounds):
            ours, found = cpu(lambda: compare_rdms(A, B))
            toolbox, want = cpu(lambda: rsatoolbox.rdm.compare(peer_a, peer_b, method="spearman"))
            times["ours"].append(ours)
            times["rsatoolbox"].append(toolbox)
            if round_ < 2:
                pairs, values = cpu(
                    lambda: [spearmanr(A[0], B[j]).statistic for j in range(N_PAIRS)]
                )
                times["scipy pairs"].append(pairs / N_PAIRS * N_LAYERS * N_ROIS)
                assert np.abs(np.asarray(values) - found[0, :N_PAIRS]).max() < 1e-10
            assert np.abs(want - found).max() < 1e-10
    ours = np.median(times["ours"])
    for name, values in times.items():
        print(
            f"{name:12s} {np.median(values):8.3f} CPU-s (n={len(values)})  {np.median(values) / ours:6.2f} x ours"
            f"  range {min(values) / max(times['ours']):.2f}-{max(values) / min(times['ours']):.2f}"
        )
    print(
        f"scipy pairs: {N_PAIRS} of {N_LAYERS * N_ROIS} pairs timed, scaled; all results within 1e-10"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""A training step of CORnet-S with its alignment head, against a literal re-enactment of the released step.

The released step runs the backbone twice (once for logits, once block by block), keeps a graph
through the frozen original, and collects correlations one pair at a time in a list. Ours runs the
backbone once; the original's targets are computed once per run, since nothing is augmented, and for
the stricter row once a step without a graph.

Run with ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_alignment.py [image_size] [rounds]
[batch]``; rounds 0 counts the one first step of each.
"""

import copy
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

from bmfl_lab.backbones.cornet import BLOCKS, CORnetS
from bmfl_lab.losses.alignment import alignment_loss
from bmfl_lab.models.alignment import AlignedNetwork, AlignmentHead

BETA = 100.0


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / torch.sqrt((a * a).sum() * (b * b).sum())


def released_loss(network, frozen, images, y):
    target = torch.max(frozen(images), 1)[1]
    logits = network.backbone(images)
    x, blocks = images, {}
    for name in BLOCKS:
        x = blocks[name] = getattr(network.backbone, name)(x)
    p = network.head(blocks)
    n = len(p)
    matched = torch.tensor([pearson(p[i], y[i]) for i in range(n)])
    others = torch.tensor([pearson(p[i], y[j]) for i in range(n) for j in range(n) if i != j])
    return F.cross_entropy(logits, target) + BETA * (
        F.mse_loss(p, y) + 1 - matched.mean() + others.mean()
    )


def our_loss(network, frozen, images, y, target):
    if target is None:
        with torch.no_grad():
            target = frozen(images).argmax(1)
    logits, p = network(images)
    return alignment_loss(logits, target, p, y, beta=BETA, contrast="matrix")[0]


def step(network, optimiser, loss_of):
    start = time.process_time()
    optimiser.zero_grad()
    loss = loss_of(network)
    loss.backward()
    optimiser.step()
    return time.process_time() - start, float(loss.detach())


def main(size=112, rounds=3, batch=16):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = CORnetS()
    network = AlignedNetwork(backbone, AlignmentHead(backbone.sizes(size)))
    frozen = copy.deepcopy(backbone).eval()
    images, y = torch.randn(batch, 3, size, size), torch.randn(batch, 1024)
    with torch.no_grad():
        target = frozen(images).argmax(1)
    forms = {
        "released": lambda n: released_loss(n, frozen, images, y),
        "ours": lambda n: our_loss(n, frozen, images, y, target),
        "ours, targets each step": lambda n: our_loss(n, frozen, images, y, None),
    }
    networks = {name: copy.deepcopy(network).train() for name in forms}
    optimisers = {
        name: torch.optim.Adam(n.parameters(), lr=2e-5, fused=name != "released")
        for name, n in networks.items()
    }
    times = {name: [] for name in forms}
    for round_ in range(
        rounds + 1
    ):  # the first allocates, and compares the losses of equal weights
        found = {name: step(networks[name], optimisers[name], forms[name]) for name in forms}
        if round_ == 0:
            losses = [f[1] for f in found.values()]
            assert np.ptp(losses) < 1e-5 * abs(losses[0]), losses
            print(
                f"CORnet-S, batch {batch}, {size} px: same loss {losses[0]:.6f}, within {np.ptp(losses):.1e}"
            )
            if rounds:
                continue
        for name, (seconds, _) in found.items():
            times[name].append(seconds)
    ratios = {name: np.asarray(times["released"]) / np.asarray(t) for name, t in times.items()}
    for name, values in times.items():
        r = ratios[name]
        print(
            f"{name:24s} {np.median(values):7.2f} CPU-s a step   {np.median(r):5.2f}x ({r.min():.2f}-{r.max():.2f})"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

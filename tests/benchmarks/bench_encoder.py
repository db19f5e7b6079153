"""Training step of the ROI-query encoder against a cost model of the released implementation, in turns.

The peer computes what the public implementation of Adeli et al. computes per step: attention with
its weights returned, queries projected for every image, a dense readout of every vertex from every
query times a mask, and AdamW as it comes. Both have the same sizes and start from the same weights;
without dropout their outputs agree, which is checked first. Ends with 1 if they differ by more than
TOLERANCE of the outputs' spread, or if a step of ours is not at least FLOOR times as fast.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_encoder.py [--steps 5]

bfloat16 is measured where the processor multiplies it (AMX); elsewhere it is only emulated and the
script says so.
"""

import argparse
import sys
import time

import numpy as np
import torch
from torch import nn

from bmfl_lab.models.encoders import ROIQueryEncoder, query_masks, sine_positions
from bmfl_lab.runtime import bf16_pays

SIZES = (19004, 20544)
GRID = (16, 16)
FLOOR = 2.2
TOLERANCE = 1e-5


def regions(generator):
    """24 regions a hemisphere: seven adjacent ones and seventeen that may overlap."""
    n = sum(SIZES)
    at = np.concatenate([np.arange(v) / v for v in SIZES])
    rois = {f"a{i}": (at >= 0.06 * i) & (at < 0.06 * (i + 1)) for i in range(7)}
    for i in range(17):
        start = generator.uniform(0.4, 0.9)
        rois[f"b{i}"] = (at >= start) & (at < start + 0.04)
    return (*query_masks(np.repeat([0, 1], SIZES), rois), n)


class Peer(nn.Module):
    """A decoder layer with dense readouts, one a hemisphere."""

    def __init__(self, masks, width=768, heads=16, ffn=1024, dropout=0.1):
        super().__init__()
        self.queries = nn.Embedding(len(masks), width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.one, self.two = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.drop = nn.Dropout(dropout)
        self.left, self.right = (nn.Linear(width, v) for v in SIZES)
        m = torch.from_numpy(masks).float()
        sides = m[:, : SIZES[0]].any(1)
        self.register_buffer("mask_left", m[sides, : SIZES[0]])
        self.register_buffer("mask_right", m[~sides, SIZES[0] :])
        self.register_buffer("positions", sine_positions(GRID, width)[:, None])

    def forward(self, patches):
        memory = patches.transpose(0, 1)
        queries = self.queries.weight[:, None].repeat(1, len(patches), 1)
        x = torch.zeros_like(queries)
        seen, _ = self.attention(self.norm1(x) + queries, memory + self.positions, memory)
        x = x + self.drop(seen)
        x = x + self.drop(self.two(self.drop(torch.relu(self.one(self.norm2(x))))))
        x = self.norm3(x).transpose(0, 1)
        n = len(self.mask_left)
        left = (self.left(x[:, :n]) * self.mask_left).sum(1)
        right = (self.right(x[:, n:]) * self.mask_right).sum(1)
        return torch.cat([left, right], 1)


@torch.no_grad()
def copy_weights(ours: ROIQueryEncoder, peer: Peer) -> None:
    """Give the peer the weights of our encoder."""
    peer.queries.weight.copy_(ours.queries_RE)
    parts = (ours.q, ours.k, ours.v)
    peer.attention.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
    peer.attention.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
    weight, bias = ours.readout.weight().split(SIZES), ours.readout.bias_V.split(SIZES)
    pairs = [
        (peer.attention.out_proj, ours.out),
        (peer.norm2, ours.norm_ffn),
        (peer.norm3, ours.norm_out),
    ]
    pairs += [(peer.one, ours.ffn[0]), (peer.two, ours.ffn[3])]
    for to, layer in pairs:
        to.weight.copy_(layer.weight)
        to.bias.copy_(layer.bias)
    for to, w, b in zip((peer.left, peer.right), weight, bias):
        to.weight.copy_(w)
        to.bias.copy_(b)


@torch.no_grad()
def gap(ours: ROIQueryEncoder, peer: Peer, patches: torch.Tensor) -> float:
    """Return the largest difference of the two outputs, dropout off, over their standard deviation."""
    ours.eval(), peer.eval()
    a, b = ours(patches), peer(patches)
    ours.train(), peer.train()
    return float((a - b).abs().max() / b.std())


def step(model, optimiser, x, y, dtype):
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        out = model(x)
    parts = (out.float() - y).square().tensor_split([SIZES[0]], 1)
    sum(p.mean() for p in parts).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimiser.step()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--emulated", action="store_true", help="measure bfloat16 even where it does not pay"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names, masks, n = regions(np.random.default_rng(0))
    x, y = torch.randn(16, 256, 768), torch.randn(16, n)
    ours, peer = ROIQueryEncoder(masks=masks, token_width=768, grid=GRID), Peer(masks)
    torch.nn.init.normal_(ours.readout.bias_V)  # so that biases, too, are compared
    copy_weights(ours, peer)
    apart = gap(ours, peer, x[:4])
    print(
        f"outputs without dropout: largest difference {apart:.1e} of their standard deviation (at most {TOLERANCE:.0e})"
    )
    runs = {"peer fp32": (peer, {}, "fp32")}
    runs["bmfl_lab fp32"] = (ours, {"fused": True}, "fp32")
    if bf16_pays("cpu") or options.emulated:
        runs["bmfl_lab bf16"] = (
            ROIQueryEncoder(masks=masks, token_width=768, grid=GRID),
            {"fused": True},
            "bf16",
        )
    ready = {
        k: (m, torch.optim.AdamW(m.parameters(), lr=5e-4, weight_decay=1e-4, **o), d)
        for k, (m, o, d) in runs.items()
    }
    times = {k: [] for k in runs}
    for _ in range(options.steps + 1):
        for name, (model, optimiser, dtype) in ready.items():
            start = time.process_time()
            step(model, optimiser, x, y, dtype)
            times[name].append(time.process_time() - start)
    base = times["peer fp32"][1:]
    print(
        f"training step, batch 16, 256 tokens, {len(names)} queries, {n} vertices, "
        f"{len(ours.readout.weights)} groups, CPU-seconds, one thread, medians of {options.steps}"
    )
    for name, found in times.items():
        ratios = np.asarray(base) / found[1:]
        print(
            f"{name:15s} {np.median(found[1:]):.3f}   ratio {np.median(ratios):.2f} "
            f"({ratios.min():.2f} to {ratios.max():.2f})"
        )
    if len(runs) == 2:
        print("bfloat16: not measured, this processor has no AMX and only emulates it")
    ratio = float(np.median(np.asarray(base) / times["bmfl_lab fp32"][1:]))
    held = apart <= TOLERANCE and ratio >= FLOOR
    print(
        f"{'holds' if held else 'FAILS'}: equal to {apart:.1e}, {ratio:.2f} times as fast, at least {FLOOR}"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

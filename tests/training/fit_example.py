"""A small training run, used in this process and in others: ``python fit_example.py FOLDER [STEP:SIGNAL[:SIGNAL]]``."""

import atexit
import hashlib
import json
import os
import signal
import sys
import time

import torch
from torch import nn
from torch.nn import functional

from bmfl_lab.training import LoopConfig, fit


def module():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 16), nn.Dropout(0.2), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)
    )


def data(n=50):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    return {"x": x, "label": (x[:, 0] > 0).long() + (x[:, 1] > 0).long()}


def loss_fn(model, batch):
    logits = model(batch["x"])
    loss = functional.cross_entropy(logits, batch["label"])
    return loss, {"accuracy": (logits.argmax(1) == batch["label"]).float().mean()}


def validate(model):
    held_out = {"x": data(200)["x"][100:], "label": data(200)["label"][100:]}
    return {
        "val_accuracy": float((model(held_out["x"]).argmax(1) == held_out["label"]).float().mean())
    }


def config(**changes):
    return LoopConfig(
        **{"epochs": 6, "batch_size": 5, "lr": 1e-2, "checkpoint_every": 1, **changes}
    )


def train(folder=None, loss=loss_fn, model=None, **kwargs):
    changes = {k: kwargs.pop(k) for k in list(kwargs) if k in LoopConfig.__dataclass_fields__}
    return fit(
        module() if model is None else model,
        loss,
        data(),
        config(**changes),
        validate=validate,
        select=("val_accuracy", "max"),
        folder=folder,
        device="cpu",
        **kwargs,
    )


def digest(result):
    found = hashlib.sha256(
        json.dumps([result.history, result.epoch, result.selection], sort_keys=True).encode()
    )
    for name, value in sorted(result.state.items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    calls = 0
    stop_after = sys.argv[2] if len(sys.argv) > 2 else "-"

    def counted(model, batch):
        global calls
        calls += 1
        if stop_after != "-" and calls == int(stop_after.split(":")[0]):
            signalled = time.monotonic()
            atexit.register(
                lambda: print(f"ended {time.monotonic() - signalled:.1f} s after", file=sys.stderr)
            )
            for name in stop_after.split(":")[1:]:
                os.kill(os.getpid(), getattr(signal, name))
        return loss_fn(model, batch)

    print(digest(train(sys.argv[1], counted)))

"""Parts of the training loop: batches, optimiser, learning rate, and the explanation of a NaN."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.errors import CheckpointError, ConfigError, NumericsError, message
from bmfl_lab.files import sha256_json
from bmfl_lab.runtime import rng

_CHUNK = 64 << 20


class Batches:
    """The data of a run and which of them each step sees.

    Parameters
    ----------
    data : mapping of str to Tensor or ndarray, n_stimuli on dim 0
        Moved to a GPU at once if they fill less than half of its free memory; else gathered on the
        host.
    batch_size : int
        Largest number of stimuli a step.
    seed : int
        Of the order.
    device : torch.device
        Where batches are needed.
    n_processes : int
        Each step must have a stimulus for every process.

    Raises
    ------
    ConfigError
        If there are no data, lengths differ, or a name is "index".
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        batch_size: int,
        seed: int,
        device: torch.device,
        n_processes: int = 1,
    ):
        lengths = {k: len(v) for k, v in data.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values() or "index" in lengths:
            raise ConfigError(
                message(
                    "named tensors with the same number (> 0) of stimuli on dim 0, none called 'index'",
                    str(lengths),
                    "give every tensor one row a stimulus",
                )
            )
        self.n, self.seed, self.device = next(iter(lengths.values())), seed, device
        self.per_epoch = math.ceil(self.n / batch_size)
        if self.n // self.per_epoch < n_processes:
            raise ConfigError(
                message(
                    f"at least {n_processes} stimuli a batch",
                    f"{self.n // self.per_epoch}",
                    "raise batch_size",
                )
            )
        self.data = {k: v if isinstance(v, Tensor) else np.asanyarray(v) for k, v in data.items()}
        if device.type == "cuda":
            size = sum(v.nbytes for v in self.data.values())
            if size < torch.cuda.mem_get_info(device)[0] // 2:
                self.data = {
                    k: torch.as_tensor(
                        np.array(v) if isinstance(v, np.ndarray) else v, device=device
                    )
                    for k, v in self.data.items()
                }
        self._order: tuple[int, np.ndarray] | None = None

    def indices(self, epoch: int, within: int) -> np.ndarray:
        """Return the int64 row indices of batch `within` of an epoch, a function of (seed, epoch) alone."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, rng(self.seed, "order", epoch).permutation(self.n))
        order, count = self._order[1], self.per_epoch
        return order[within * self.n // count : (within + 1) * self.n // count]

    def take(self, index: np.ndarray) -> dict[str, Tensor]:
        """Return the rows at `index` on the device, with the indices themselves under ``"index"``."""
        wanted = torch.from_numpy(np.asarray(index))
        batch = {}
        for name, values in self.data.items():
            if isinstance(values, Tensor):
                rows = values.index_select(0, wanted.to(values.device))
            else:
                rows = torch.from_numpy(values[index])
            if self.device.type == "cuda" and rows.device.type == "cpu":
                rows = rows.pin_memory()
            batch[name] = rows.to(self.device, non_blocking=True)
        batch["index"] = wanted.to(self.device)
        return batch

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with any value, shape or type."""
        digest = hashlib.sha256()
        for name in sorted(self.data):
            values = self.data[name]
            digest.update(
                f"{name} {tuple(values.shape)} {str(values.dtype).removeprefix('torch.')}\n".encode()
            )
            step = max(1, _CHUNK // max(1, values.nbytes // len(values)))
            for start in range(0, len(values), step):
                rows = values[start : start + step]
                if isinstance(rows, Tensor):
                    rows = rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                digest.update(np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()[:16]


def make_accelerator(device: str) -> Any:
    """Return an `accelerate.Accelerator` on `device` ("cpu" or "cuda"), one or several processes.

    Autocast is the loop's own, so that runs of different precision can follow each other in one
    process.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if "WORLD_SIZE" not in os.environ:
        # accelerate keeps the first device of a process for good; a notebook may train on both
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def make_optimiser(module: nn.Module, config: Any) -> torch.optim.Optimizer:
    """Return the optimiser; biases, norms and other one-dimensional parameters are not decayed (our choice).

    Raises
    ------
    ConfigError
        If the module has nothing to train.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError(
            message(
                "a module with parameters to train",
                "none that requires a gradient",
                "unfreeze some",
            )
        )
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, fused=all(p.is_floating_point() for p in trained))


def learning_rate(config: Any, step: int, total: int) -> float:
    """Return the learning rate of a step (from 0) of `total`: linear warm-up, then cosine to 0 or constant."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def architecture(module: nn.Module) -> str:
    """Return a hash of the module's class and of the name, shape and type of each tensor in its state."""
    layout = [[k, list(v.shape), str(v.dtype)] for k, v in module.state_dict().items()]
    return sha256_json([type(module).__name__, layout])[:16]


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments and counters as named tensors."""
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser.{i}.{k}": torch.as_tensor(v)
        for i, values in state.items()
        for k, v in values.items()
        if v is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimiser_tensors` returned.

    Raises
    ------
    CheckpointError
        If they belong to another set of parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    own = optimiser.state_dict()
    count = sum(len(g["params"]) for g in own["param_groups"])
    if state and set(state) - set(range(count)):
        raise CheckpointError(
            message(
                f"moments of {count} parameters",
                f"{len(state)}",
                "use a checkpoint of this architecture",
            )
        )
    optimiser.load_state_dict({"state": state, "param_groups": own["param_groups"]})


@contextlib.contextmanager
def keep_rng() -> Iterator[None]:
    """Leave the global random generators as they were found."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  restored, not drawn from
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def explain_nonfinite(
    module: nn.Module,
    batch: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    step: int,
    index: np.ndarray,
    what: str,
) -> NumericsError:
    """Return the error for a loss or gradient that is not finite, naming the first tensor that is not.

    Searched in the order of the computation: batch, parameters, parts of the loss, gradients.
    """
    gradients = {
        f"gradient of {k}": p.grad for k, p in module.named_parameters() if p.grad is not None
    }
    candidates = {f"batch[{k!r}]": v for k, v in batch.items()}
    candidates |= {f"parameter {k}": p for k, p in module.named_parameters()}
    candidates |= {f"{k}": torch.as_tensor(v) for k, v in values.items()} | gradients
    bad = [
        k for k, v in candidates.items() if v.is_floating_point() and not torch.isfinite(v).all()
    ]
    shown = ", ".join(map(str, index[:16])) + (", ..." if len(index) > 16 else "")
    return NumericsError(
        message(
            f"a finite {what} at step {step}",
            f"NaN or infinity; first in {bad[0] if bad else what} (stimuli at rows {shown})",
            "check those rows of the data, or lower lr; the last good checkpoint is kept",
        )
    )

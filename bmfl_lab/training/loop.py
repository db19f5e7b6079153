"""The one training loop: deterministic order, selection by validation, bit-exact resume.

Everything that happens in a step is a function of (seed, epoch, step): the order of the stimuli,
the learning rate and the random numbers. To resume, the loop therefore needs the weights, the
moments of the optimiser and the position, and gives the same bits as a run that was never
interrupted (one process, same machine, CPU).
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab import config as configs
from bmfl_lab.config import LoopConfig
from bmfl_lab.errors import CheckpointError, ConfigError, NumericsError, message, nearest, require
from bmfl_lab.files import lock, sha256_json
from bmfl_lab.runtime import progress, seed_everything, seed_for, use_bfloat16
from bmfl_lab.training import checkpoint
from bmfl_lab.training.batches import Batches, MemoryBatches, Order
from bmfl_lab.training.context import local_device

if TYPE_CHECKING:
    from accelerate import Accelerator

SAVE_SHARE = 0.05
"""Largest share of the time that checkpoints at the ends of epochs may take (our choice)."""

T = TypeVar("T")
LossFunction = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Mapping[str, Tensor]]]
Validation = Callable[[nn.Module], Mapping[str, float]]


class Stopped(KeyboardInterrupt):
    """Raised in a notebook when a training was interrupted; shown as one sentence."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True)
class FitResult:
    """Hold what a training run produced.

    Parameters
    ----------
    state : dict of str to Tensor
        The selected weights on the CPU; the module has them, too.
    epoch : int
        Epoch, counted from 1, after which the weights were taken.
    history : list of dict
        One dict per epoch: ``epoch``, ``lr``, mean training ``loss`` and its parts, the number of
        images that were ``skipped`` if any was, and the validation metrics; None where a metric is
        undefined.
    selection : str
        ``"best val_accuracy"`` or ``"last epoch"``.
    notes : tuple of str
        Remarks for the reader: precision, smaller micro-batches, a resume that was not bit-exact.
    """

    state: dict[str, Tensor]
    epoch: int
    history: list[dict[str, Any]]
    selection: str
    notes: tuple[str, ...] = ()


def fit(
    module: nn.Module,
    loss_fn: LossFunction,
    data: Batches | Mapping[str, Tensor | np.ndarray],
    config: LoopConfig,
    *,
    validate: Validation | None = None,
    select: tuple[str, str] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    device: str = "auto",
    manifest: Mapping[str, object] | None = None,
    allow_change: Sequence[str] = (),
    what: str = "training",
) -> FitResult:
    """Train a module, select the epoch by validation, and return the selected weights.

    Parameters
    ----------
    module : nn.Module
        Its parameters with ``requires_grad`` are trained. It ends in eval mode with the selected
        weights.
    loss_fn : callable
        ``loss_fn(module, batch) -> (loss, parts)``: a mean over the stimuli of the batch, and named
        floats to log.
    data : Batches, or mapping of str to Tensor or ndarray with n_stimuli on dimension 0
        Source of the batches. A mapping is wrapped in `MemoryBatches`. A batch holds the rows of
        a step, and their positions as ``"index"``, int64 (B,).
    config : LoopConfig
        Options of the training loop.
    validate : callable, optional
        ``validate(module) -> {name: float}`` at the end of each epoch, in eval mode without
        gradients.
    select : (str, "max" or "min"), optional
        Validation metric that picks the epoch; its name starts with "val". By default the last
        epoch is taken.
    folder : str or Path, optional
        Folder of the checkpoints, one at the end of an epoch unless ``config.checkpoint_every``
        says otherwise. One process at a time works in it. SIGTERM and SIGINT then finish the step,
        save and exit with 143 or 130; in a notebook an interrupt ends with `Stopped`. A second
        signal ends the process at once, unless it is a fork, whose parent passes signals on.
    resume : bool, default True
        Continue from the newest checkpoint of `folder`; False deletes what is there.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains.
    manifest : mapping, optional
        JSON values (data fingerprint, config hash) that must be the same on resume.
    allow_change : sequence of str
        Identity fields that may differ on resume.
    what : str
        Name of the run in progress lines.

    Returns
    -------
    FitResult

    Raises
    ------
    ConfigError
        If `select` is no validation metric, or `data` is empty or uneven.
    NumericsError
        If a loss or gradient is not finite; the last good checkpoint stays.
    CheckpointError
        If a checkpoint is damaged or belongs to another run.
    DataError
        If another process works in `folder`.

    Notes
    -----
    Under ``torchrun`` each batch is split over the processes, and gradients are weighted so that
    their sum is that of the whole batch. A loss that correlates over the batch axis would see only
    the part of its process. When a GPU runs out of memory, the batch is computed in halves with the
    same gradient.
    """
    _check_select(validate, select)
    accelerator = accelerator_on(local_device(device))
    folder = None if folder is None else Path(folder)
    batches = MemoryBatches(data, accelerator.device) if isinstance(data, Mapping) else data
    sole_use = contextlib.nullcontext()
    if folder and accelerator.is_main_process:
        sole_use = lock(folder / ".lock", wait=False, what=f"the run folder {folder}")
    with _keep_rng(), sole_use, _stop_signals(folder) as signals:
        seed_everything(seed_for(config.seed, "fit"))
        run = _start(module, accelerator, batches, config)
        identity = _identity(run, manifest) if folder else {}
        if folder and resume:
            _resume(run, folder, identity, allow_change)
        elif folder and accelerator.is_main_process:
            checkpoint.prune(folder, keep=())
        try:
            _train(run, loss_fn, validate, select, folder, identity, signals, what)
        finally:
            batches.expect(())
    return _finish(run, select)


def _check_select(validate: Validation | None, select: tuple[str, str] | None) -> None:
    if select is None:
        return
    name, mode = select
    require(
        validate is not None and mode in ("max", "min") and name.startswith("val"),
        ConfigError,
        "select=(a validation metric named 'val...', 'max' or 'min') together with `validate`",
        f"{select!r}" + (" and no `validate`" if validate is None else ""),
        "pass validate=..., and as select one of its metrics with 'max' or 'min', never a metric "
        "of test or out-of-distribution images",
    )


def _start(
    module: nn.Module, accelerator: Accelerator, batches: Batches, config: LoopConfig
) -> Run:
    kind = accelerator.device.type
    bfloat16 = use_bfloat16(config.precision, kind)
    module.train()
    if accelerator.num_processes == 1:
        # there is nothing to wrap, and prepare_model imports torch.distributed.tensor for 2.5 s
        module = module.to(accelerator.device)
    else:
        module = accelerator.prepare_model(module)
    order = Order(batches.n, config.batch_size, config.seed, accelerator.num_processes)
    run = Run(module, _optimiser(module, config), accelerator, batches, order, config, bfloat16)
    if config.precision == "bfloat16" and not bfloat16:
        run.notes.append(f"float32 instead of bfloat16, which this {kind} only emulates")
        print(f"fit: {run.notes[-1]}", flush=True)
    return run


@contextlib.contextmanager
def _stop_signals(folder: Path | None) -> Iterator[list[int]]:
    signals: list[int] = []
    if folder is None or threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def stop(number: int, _frame: object) -> None:
        signals.append(number)
        if multiprocessing.parent_process() is not None:
            return  # the parent passes on a signal that the system may have sent to all processes
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # the second signal ends the process at once

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(
    run: Run,
    loss_fn: LossFunction,
    validate: Validation | None,
    select: tuple[str, str] | None,
    folder: Path | None,
    identity: Mapping[str, object],
    signals: list[int],
    what: str,
) -> None:
    config, per_epoch = run.config, run.order.per_epoch
    total, every = config.epochs * per_epoch, config.checkpoint_every
    first, start = run.step, time.monotonic()
    next_save = start
    positions = (divmod(step, per_epoch) for step in range(run.step, total))
    run.batches.expect((epoch, _share(run, epoch, within)[0]) for epoch, within in positions)

    def standing() -> str:
        done = (run.step - first) * run.order.n / per_epoch
        rate = done / (time.monotonic() - start)
        return ", ".join([f"{rate:,.0f} images/s", *_losses(run, select)])

    for step in progress(range(first, total), f"{what} steps", total=total - first, note=standing):
        epoch, within = divmod(step, per_epoch)
        _step(run, loss_fn, epoch, within, learning_rate(config, step, total))
        run.step = step + 1
        ended = within + 1 == per_epoch
        if ended:
            _end_epoch(run, epoch, validate, select)
        stop = _agreed_stop(run, signals)
        due = ended and time.monotonic() >= next_save
        if folder and (stop or run.step == total or (run.step % every == 0 if every else due)):
            began = time.monotonic()
            _save(run, folder, identity)
            next_save = time.monotonic() + (time.monotonic() - began) / SAVE_SHARE
        if stop:
            where = f"stopped at step {run.step:,} of {total:,}"
            if stop == signal.SIGINT and "ipykernel" in sys.modules:
                raise Stopped(f"{where}; run the cell again to go on")
            print(f"{what}: {where}; start it again to go on", flush=True)
            raise SystemExit(128 + stop)


def _losses(run: Run, select: tuple[str, str] | None) -> Iterator[str]:
    """Yield the mean loss of the current epoch so far, and the last value of what is selected by.

    More would not fit beside the bar in a notebook.
    """
    within = run.step % run.order.per_epoch
    if within and "loss" in run.sums:
        so_far = float(run.sums["loss"]) / (within * run.order.n / run.order.per_epoch)
        yield f"loss {so_far:.3g}"
    value = run.history[-1].get(select[0]) if run.history and select else None
    if value is not None:
        yield f"{select[0]} {value:.3g}"


def _agreed_stop(run: Run, signals: list[int]) -> int:
    if run.accelerator.num_processes == 1:
        return signals[0] if signals else 0
    flag = torch.tensor([signals[0] if signals else 0], device=run.accelerator.device)
    return int(run.accelerator.gather(flag).max())


def _share(run: Run, epoch: int, within: int) -> tuple[np.ndarray, int]:
    """Return the rows of a batch that this process computes, and the size of the whole batch."""
    index = run.order.indices(epoch, within)
    return index[run.accelerator.process_index :: run.accelerator.num_processes], len(index)


def _step(run: Run, loss_fn: LossFunction, epoch: int, within: int, lr: float) -> None:
    mine, n_batch = _share(run, epoch, within)
    while True:
        _seed_step(run, seed_for(run.config.seed, "step", run.step, run.accelerator.process_index))
        run.optimiser.zero_grad(set_to_none=True)
        try:
            logged = _backward(run, loss_fn, mine, n_batch)
            break
        except torch.OutOfMemoryError:
            if run.micro >= len(mine):
                raise
        # only here, after the error and its frames, are the tensors of the failed attempt free
        run.micro *= 2
        torch.cuda.empty_cache()
        run.notes.append(
            f"out of memory at step {run.step}: {run.micro} micro-batches, same global batch"
        )
    try:
        nn.utils.clip_grad_norm_(
            run.trained, run.config.clip_norm or math.inf, error_if_nonfinite=True
        )
    except RuntimeError as error:
        raise _explain_nonfinite(
            run.plain, run.batches.take(mine), {}, run.step, mine, "gradient"
        ) from error
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    run.optimiser.step()
    for name, value in logged.items():
        run.sums[name] = run.sums.get(name, torch.zeros_like(value)) + value


def _seed_step(run: Run, seed: int) -> None:
    """Seed all global generators, so that no checkpoint has to hold their state."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  for losses that draw from the global generator
    # torch.manual_seed records a stack trace for each kind of accelerator it knows, every time
    torch.default_generator.manual_seed(seed)
    if run.accelerator.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _backward(run: Run, loss_fn: LossFunction, mine: np.ndarray, n_batch: int) -> dict[str, Tensor]:
    processes = run.accelerator.num_processes
    logged: dict[str, Tensor] = {}
    for part_index in np.array_split(mine, run.micro):
        if not len(part_index):
            continue
        batch = run.batches.take(part_index)
        with torch.autocast(
            run.accelerator.device.type, dtype=torch.bfloat16, enabled=run.bfloat16
        ):
            loss, parts = loss_fn(run.module, batch)
        if not torch.isfinite(loss):
            raise _explain_nonfinite(
                run.plain, batch, {**parts, "loss": loss}, run.step, part_index, "loss"
            )
        # gradients are averaged over processes; this weight makes the average that of the whole
        # batch
        run.accelerator.backward(loss * (len(part_index) * processes / n_batch))
        skipped = 1 - len(batch["index"]) / len(part_index)
        for name, value in {"loss": loss, **parts, "skipped": skipped}.items():
            value = torch.as_tensor(value, device=loss.device).detach().double() * len(part_index)
            logged[name] = logged.get(name, torch.zeros_like(value)) + value
    if processes > 1:
        logged = {k: run.accelerator.reduce(v, "sum") for k, v in logged.items()}
    return logged


def _end_epoch(
    run: Run, epoch: int, validate: Validation | None, select: tuple[str, str] | None
) -> None:
    row: dict[str, Any] = {"epoch": epoch + 1, "lr": float(run.optimiser.param_groups[0]["lr"])}
    row |= {k: float(v) / run.batches.n for k, v in run.sums.items()}
    run.sums = {}
    row["skipped"] = round(row["skipped"] * run.batches.n)
    if not row["skipped"]:
        del row["skipped"]
    if validate is not None:
        run.plain.eval()
        with torch.no_grad():
            row |= {k: float(v) for k, v in validate(run.plain).items()}
        run.plain.train()
    run.history.append(
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    )
    if select is None:
        return
    name, mode = select
    require(
        name in row, ConfigError, "a metric that `validate` returns", repr(name), nearest(name, row)
    )
    value = run.history[-1][name]
    if value is None or (
        run.best and (value <= run.best["value"] if mode == "max" else value >= run.best["value"])
    ):
        return
    run.best = {"epoch": epoch + 1, "step": run.step, "value": value}
    run.best_state = run.state()


def _finish(run: Run, select: tuple[str, str] | None) -> FitResult:
    if select is not None and run.best is None:
        raise ConfigError(
            message(
                f"{select[0]} to be a number in some epoch",
                "none",
                "let validate return a finite number for it, or select another metric",
            )
        )
    state = run.best_state if run.best else run.state()
    run.plain.load_state_dict(state)
    run.plain.eval()
    epoch = run.best["epoch"] if run.best else run.config.epochs
    selection = f"best {select[0]}" if select else "last epoch"
    return FitResult(state, epoch, run.history, selection, tuple(run.notes))


@dataclass
class Run:
    """Hold a training run between two steps."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    accelerator: Accelerator
    batches: Batches
    order: Order
    config: LoopConfig
    bfloat16: bool
    micro: int = 1
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @functools.cached_property
    def plain(self) -> nn.Module:
        """The module itself, without the wrapper for several processes."""
        return self.accelerator.unwrap_model(self.module)

    @functools.cached_property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the module's weights on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.plain.state_dict().items()}


def _identity(run: Run, manifest: Mapping[str, object] | None) -> dict[str, Any]:
    """Return what must be the same when the run is resumed; "data" of the manifest saves a pass."""
    manifest = dict(manifest or {})
    return {
        **configs.to_dict(run.config),
        "architecture": _architecture(run.plain),
        **({} if "data" in manifest else run.batches.state()),
        **manifest,
    }


def environment(run: Run) -> dict[str, Any]:
    """Return what may differ on resume, although the result is then not the same to the bit."""
    return {
        "processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": run.accelerator.device.type,
    }


def _save(run: Run, folder: Path, identity: Mapping[str, object]) -> None:
    """Write the checkpoint of this step, then delete what it replaces."""
    if not run.accelerator.is_main_process:
        return
    tensors = {f"model.{k}": v for k, v in run.plain.state_dict().items()}
    tensors |= _optimiser_tensors(run.optimiser)
    tensors |= {f"sums.{k}": v for k, v in run.sums.items()}
    if run.best and run.best["step"] != run.step:
        tensors |= {f"best.{k}": v for k, v in run.best_state.items()}
    manifest = {
        "identity": dict(identity),
        "environment": environment(run),
        "step": run.step,
        "history": run.history,
        "best": run.best,
        "micro": run.micro,
        "notes": run.notes,
        "tensors": sorted(tensors),
    }
    checkpoint.write_bundle(folder, checkpoint.step_name(run.step), tensors, manifest)
    checkpoint.prune(folder, {run.step})


def _resume(
    run: Run, folder: Path, identity: Mapping[str, object], allow_change: Sequence[str]
) -> None:
    """Continue from the newest checkpoint of `folder`, if there is one.

    Raises
    ------
    CheckpointError
        If it is damaged or belongs to another run.
    """
    step = checkpoint.newest_step(folder)
    if step is None:
        return
    name = checkpoint.step_name(step)
    checkpoint.refuse_changes(
        checkpoint.read_manifest(folder / f"{name}.json")["identity"], identity, allow_change
    )
    tensors, found = checkpoint.read_bundle(folder, name)
    require(
        sorted(tensors) == found["tensors"],
        CheckpointError,
        f"the tensors that the manifest in {folder} lists",
        f"a difference in {sorted(set(tensors) ^ set(found['tensors']))[:5]}",
        "start afresh with resume=False, or use another folder",
    )
    with checkpoint.matching_tensors(folder):
        run.plain.load_state_dict(_part(tensors, "model."))
        _restore_optimiser(run.optimiser, tensors)
    run.sums = {k: v.to(run.accelerator.device) for k, v in _part(tensors, "sums.").items()}
    run.step, run.history, run.best = found["step"], found["history"], found["best"]
    run.micro, run.notes = found["micro"], found["notes"]
    run.best_state = _part(tensors, "best.")
    if run.best and not run.best_state:  # the best step is this one, or has files of its own
        kept, _ = checkpoint.read_bundle(folder, checkpoint.step_name(run.best["step"]))
        run.best_state = _part(kept, "model.")
    before = found["environment"]
    changed = [
        f"{k} {before.get(k)} -> {v}" for k, v in environment(run).items() if before.get(k) != v
    ]
    if changed:
        run.notes.append("resumed, not bitwise: " + ", ".join(changed))
        print(f"fit: {run.notes[-1]}", flush=True)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def accelerator_on(device: str) -> Accelerator:
    """Return an `accelerate.Accelerator` on "cpu" or "cuda", for one or several processes.

    Autocast is the loop's own, so that runs of different precision can follow each other in one
    process.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if "WORLD_SIZE" not in os.environ:
        # accelerate keeps the first device of a process for good; a notebook may train on both
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def gathered(values: list[T], device: str) -> list[T]:
    """Return the values of all processes in the order of their ranks, in each of them.

    Parameters
    ----------
    values : list
        Values of this process that can be pickled.
    device : "cpu" or "cuda"
        Device of the training; it decides how the processes talk to each other.
    """
    from accelerate.utils import gather_object

    accelerator_on(device)  # starts the group of processes, if it is not there yet
    return gather_object(values)


def _optimiser(module: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """Return the optimiser; one-dimensional parameters (biases, norms) do not decay (our choice).

    Raises
    ------
    ConfigError
        If the module has nothing to train.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    require(
        trained,
        ConfigError,
        "a module with parameters to train",
        "none that requires a gradient",
        "call requires_grad_(True) on the part that is to be trained",
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


def learning_rate(config: LoopConfig, step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0, of `total` steps."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _architecture(module: nn.Module) -> str:
    """Return a hash of the module's class and of its tensors' names, shapes and types."""
    layout = [[k, list(v.shape), str(v.dtype)] for k, v in module.state_dict().items()]
    return sha256_json([type(module).__name__, layout])[:16]


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments and counters as named tensors."""
    return {
        f"optimiser.{i}.{k}": torch.as_tensor(v)
        for i, values in optimiser.state_dict()["state"].items()
        for k, v in values.items()
        if v is not None
    }


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `_optimiser_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    shapes = [p.shape for group in optimiser.param_groups for p in group["params"]]
    names = {frozenset(moments) for moments in state.values()}
    # torch itself compares neither
    wrong = [
        i
        for i, moments in state.items()
        for v in moments.values()
        if i >= len(shapes) or (v.ndim and v.shape != shapes[i])
    ]
    require(
        not wrong and len(names) <= 1,
        CheckpointError,
        f"moments of {len(shapes)} parameters in the checkpoint",
        f"others for parameters {sorted(set(wrong))[:5]}, or of different kinds",
        "train the same parameters by the same optimiser, or start afresh with resume=False",
    )
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


@contextlib.contextmanager
def _keep_rng() -> Iterator[None]:
    """Leave the global random generators as they were found."""
    # NPY002: the state is restored later; nothing is drawn from it
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def _explain_nonfinite(
    module: nn.Module,
    batch: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    step: int,
    index: np.ndarray,
    what: str,
) -> NumericsError:
    """Return the error for a loss or gradient that is not finite, with the first such tensor.

    Tensors are searched in the order of the computation: batch, parameters, parts of the loss,
    gradients.
    """
    named = dict(module.named_parameters())
    candidates = {
        **{f"batch[{k!r}]": v for k, v in batch.items()},
        **{f"parameter {k}": p for k, p in named.items()},
        **{k: torch.as_tensor(v) for k, v in values.items()},
        **{f"gradient of {k}": p.grad for k, p in named.items() if p.grad is not None},
    }
    bad = [
        k for k, v in candidates.items() if v.is_floating_point() and not torch.isfinite(v).all()
    ]
    shown = ", ".join(map(str, index[:16])) + (", ..." if len(index) > 16 else "")
    in_data = bool(bad) and bad[0].startswith("batch[")
    return NumericsError(
        message(
            f"a finite {what} at step {step}",
            f"NaN or infinity; first in {bad[0] if bad else what} (stimuli at rows {shown})",
            ("replace or drop these rows of the data" if in_data else "lower lr")
            + "; the last good checkpoint is kept",
        )
    )

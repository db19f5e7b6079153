"""The one training loop: deterministic order, named selection, bit-exact resume.

Everything that happens at a step is a function of (seed, epoch, step): the order of the stimuli,
the learning rate and the random numbers. Resuming therefore needs the weights, the optimiser's
moments and the position, and gives the same bits as a run that was never interrupted (one process,
same machine, CPU).
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.files import lock
from bmfl_lab.runtime import bf16_pays, headless, pick_device, progress, seed_everything, seed_for
from bmfl_lab.training import checkpoint
from bmfl_lab.training.loop_parts import (
    Batches,
    explain_nonfinite,
    keep_rng,
    learning_rate,
    make_accelerator,
    make_optimiser,
)
from bmfl_lab.training.loop_state import Run, identity_of, resume_run, save

LossFunction = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    Parameters
    ----------
    epochs : int, default 20
        Passes over the data.
    batch_size : int, default 128
        Stimuli a step over all processes, at most; an epoch is cut into batches of nearly equal
        size.
    lr, weight_decay : float
        Peak learning rate, and decay of weights with two or more dimensions.
    warmup : float, default 0.05
        Share of all steps over which the learning rate rises linearly.
    clip_norm : float, default 1
        Largest gradient norm; 0 never clips. A norm that is not finite stops the run in any case.
    seed : int, default 0
        Of the order and of dropout; the module is initialised before.
    precision : "auto", "float32" or "bfloat16"
        "auto": bfloat16 autocast on a GPU where it is fast, else float32.
    checkpoint_every : int, default 0
        Steps between checkpoints; 0 saves at the end of each epoch. Only with a folder.
    optimiser : "adamw", "adam" or "sgd"
        "sgd" has momentum 0.9.
    schedule : "cosine" or "constant"
        What the learning rate does after the warm-up.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every: int = 0
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        bounds = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup": 0 <= self.warmup <= 1,
            "clip_norm": 0 <= self.clip_norm < math.inf,
            "checkpoint_every": self.checkpoint_every >= 0,
        }
        wrong = [name for name, fine in bounds.items() if not fine]
        if wrong:
            got = ", ".join(f"{name}={getattr(self, name)!r}" for name in wrong)
            raise ConfigError(
                message(
                    "epochs, batch_size >= 1, lr > 0, warmup in 0..1, the others >= 0",
                    got,
                    "correct them",
                )
            )


@dataclass(frozen=True)
class FitResult:
    """What a training run produced.

    Parameters
    ----------
    state : dict of str to Tensor
        The selected weights, on the CPU; the module holds them too.
    epoch : int
        Epoch (from 1) at whose end they were taken.
    history : list of dict
        One dict an epoch: ``epoch``, ``lr``, mean training ``loss`` and its parts, and the
        validation metrics; None where a metric is undefined.
    selection : str
        ``"best val_accuracy"`` or ``"last epoch"``.
    notes : tuple of str
        What a reader must know: precision, smaller micro-batches, a resume that was not bitwise.
    """

    state: dict[str, Tensor]
    epoch: int
    history: list[dict[str, Any]]
    selection: str
    notes: tuple[str, ...] = ()


def fit(
    module: nn.Module,
    loss_fn: LossFunction,
    data: Mapping[str, Tensor | np.ndarray],
    config: LoopConfig,
    *,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    select: tuple[str, str] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    device: str = "auto",
    manifest: Mapping[str, Any] | None = None,
    allow_change: Sequence[str] = (),
    what: str = "training",
) -> FitResult:
    """Train a module.

    Parameters
    ----------
    module : nn.Module
        Parameters with ``requires_grad`` are trained. Ends in eval mode with the selected weights.
    loss_fn : callable
        ``loss_fn(module, batch) -> (loss, parts)``: a mean over the stimuli of the batch, and named
        floats to log.
    data : mapping of str to Tensor or ndarray, n_stimuli on dim 0
        Held in memory, on the device or mapped. A batch is the same mapping at the indices of a
        step, plus ``"index"``, an int64 tensor of those indices.
    config : LoopConfig
        How to train.
    validate : callable, optional
        ``validate(module) -> {name: float}`` at the end of each epoch, in eval mode without
        gradients.
    select : (str, "max" or "min"), optional
        The validation metric that picks the epoch; its name starts with "val". None takes the last
        epoch.
    folder : str or Path, optional
        Where checkpoints go. One process at a time works in it. SIGTERM and SIGINT then finish the
        step, save and exit with 143 or 130; a second one ends at once.
    resume : bool, default True
        Continue from the newest checkpoint of `folder`; False deletes what is there.
    device : "auto", "cpu" or "cuda"
        Where to train.
    manifest : mapping, optional
        More identity (data fingerprint, config hash): JSON values that must be the same on resume.
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
    Under ``torchrun`` each batch is split over the processes and gradients are weighted so that
    their sum is that of the whole batch; a loss that correlates over the batch axis sees its own
    part only. When a GPU runs out of memory the batch is worked off in halves with the same
    gradient.
    """
    _check_select(validate, select)
    accelerator = make_accelerator(pick_device(device))
    folder = None if folder is None else Path(folder)
    batches = Batches(
        data, config.batch_size, config.seed, accelerator.device, accelerator.num_processes
    )
    with keep_rng(), _sole_use(folder, accelerator), _stop_signals(folder) as asked:
        seed_everything(seed_for(config.seed, "fit"))
        run = _start(module, accelerator, batches, config)
        identity = identity_of(run, manifest) if folder else {}
        if folder and resume:
            resume_run(run, folder, identity, allow_change)
        elif folder and accelerator.is_main_process:
            checkpoint.prune(folder, keep=())
        _train(run, loss_fn, validate, select, folder, identity, asked, what)
    return _finish(run, select)


def _check_select(validate: Any, select: tuple[str, str] | None) -> None:
    if select is None:
        return
    name, mode = select
    if validate is None or mode not in ("max", "min") or not name.startswith("val"):
        raise ConfigError(
            message(
                "select=(a validation metric named 'val...', 'max' or 'min') together with `validate`",
                f"{select!r}" + (" and no `validate`" if validate is None else ""),
                "select by validation data only, never by test or out-of-distribution images",
            )
        )


def _start(module: nn.Module, accelerator: Any, batches: Batches, config: LoopConfig) -> Run:
    kind = accelerator.device.type
    pays = bf16_pays(kind)
    # on a CPU the casts of small matrices cost more than bfloat16 saves, so there it must be asked
    # for
    bfloat16 = pays and (
        config.precision == "bfloat16" or (config.precision == "auto" and kind == "cuda")
    )
    module.train()
    module = accelerator.prepare_model(module)
    run = Run(module, make_optimiser(module, config), accelerator, batches, config, bfloat16)
    if config.precision == "bfloat16" and not pays:
        run.notes.append(f"float32 instead of bfloat16, which this {kind} only emulates")
        print(f"fit: {run.notes[-1]}", flush=True)
    return run


@contextlib.contextmanager
def _sole_use(folder: Path | None, accelerator: Any) -> Iterator[None]:
    if folder is None or not accelerator.is_main_process:
        yield
        return
    with lock(folder / ".lock", wait=False, what=f"the run folder {folder}"):
        yield


@contextlib.contextmanager
def _stop_signals(folder: Path | None) -> Iterator[list[int]]:
    import threading

    asked: list[int] = []
    if folder is None or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number: int, _frame: Any) -> None:
        asked.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # the second signal ends the process at once

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(run, loss_fn, validate, select, folder, identity, asked, what) -> None:
    config, per_epoch = run.config, run.batches.per_epoch
    total, every = config.epochs * per_epoch, config.checkpoint_every
    last_line = time.monotonic()
    for step in progress(range(run.step, total), f"{what} steps", total=total - run.step):
        epoch, within = divmod(step, per_epoch)
        _step(run, loss_fn, epoch, within, learning_rate(config, step, total))
        run.step = step + 1
        ended = within + 1 == per_epoch
        improved = _end_epoch(run, epoch, validate, select) if ended else False
        if ended and headless() and time.monotonic() - last_line > 10:
            last_line = time.monotonic()
            shown = " ".join(
                f"{k} {v:.4g}" for k, v in run.history[-1].items() if isinstance(v, float)
            )
            print(f"{what}: epoch {epoch + 1}/{config.epochs} {shown}", flush=True)
        stop = _agreed_stop(run, asked)
        if folder and (
            improved or stop or run.step == total or (run.step % every == 0 if every else ended)
        ):
            save(run, folder, identity)
        if stop:
            if stop == signal.SIGINT and "ipykernel" in sys.modules:
                raise KeyboardInterrupt
            raise SystemExit(128 + stop)


def _agreed_stop(run: Run, asked: list[int]) -> int:
    if run.accelerator.num_processes == 1:
        return asked[0] if asked else 0
    flag = torch.tensor([asked[0] if asked else 0], device=run.accelerator.device)
    return int(run.accelerator.gather(flag).max())


def _step(run: Run, loss_fn: LossFunction, epoch: int, within: int, lr: float) -> None:
    index = run.batches.indices(epoch, within)
    mine = index[run.accelerator.process_index :: run.accelerator.num_processes]
    while True:
        _seed_step(run, seed_for(run.config.seed, "step", run.step, run.accelerator.process_index))
        run.optimiser.zero_grad(set_to_none=True)
        try:
            logged = _backward(run, loss_fn, mine, len(index))
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
        raise explain_nonfinite(
            run.plain, run.batches.take(mine), {}, run.step, mine, "gradient"
        ) from error
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    run.optimiser.step()
    for name, value in logged.items():
        run.sums[name] = run.sums.get(name, torch.zeros_like(value)) + value


def _seed_step(run: Run, seed: int) -> None:
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
            raise explain_nonfinite(
                run.plain, batch, {**parts, "loss": loss}, run.step, part_index, "loss"
            )
        # gradients are averaged over processes; this weight makes the average that of the whole
        # batch
        run.accelerator.backward(loss * (len(part_index) * processes / n_batch))
        for name, value in {"loss": loss, **parts}.items():
            value = torch.as_tensor(value).detach().double() * len(part_index)
            logged[name] = logged.get(name, torch.zeros_like(value)) + value
    if processes > 1:
        logged = {k: run.accelerator.reduce(v, "sum") for k, v in logged.items()}
    return logged


def _end_epoch(run: Run, epoch: int, validate: Any, select: tuple[str, str] | None) -> bool:
    row: dict[str, Any] = {"epoch": epoch + 1, "lr": float(run.optimiser.param_groups[0]["lr"])}
    row |= {k: float(v) / run.batches.n for k, v in run.sums.items()}
    run.sums = {}
    if validate is not None:
        run.plain.eval()
        with torch.no_grad():
            row |= {k: float(v) for k, v in validate(run.plain).items()}
        run.plain.train()
    run.history.append(
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    )
    if select is None:
        return False
    name, mode = select
    if name not in row:
        raise ConfigError(
            message("a metric that `validate` returns", repr(name), nearest(name, row))
        )
    value = run.history[-1][name]
    if value is None or (
        run.best and (value <= run.best["value"] if mode == "max" else value >= run.best["value"])
    ):
        return False
    run.best = {"epoch": epoch + 1, "step": run.step, "value": value}
    run.best_state = run.state()
    return True


def _finish(run: Run, select: tuple[str, str] | None) -> FitResult:
    if select is not None and run.best is None:
        raise ConfigError(
            message(
                f"{select[0]} to be a number in some epoch",
                "none",
                "check the validation data and the metric",
            )
        )
    state = run.best_state if run.best else run.state()
    run.plain.load_state_dict(state)
    run.plain.eval()
    epoch = run.best["epoch"] if run.best else run.config.epochs
    selection = f"best {select[0]}" if select else "last epoch"
    return FitResult(state, epoch, run.history, selection, tuple(run.notes))

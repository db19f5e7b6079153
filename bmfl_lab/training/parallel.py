"""Train several models in parallel, in one process per core."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch

from bmfl_lab.runtime import end_with_parent
from bmfl_lab.training.context import Context
from bmfl_lab.training.loop import Stopped

T = TypeVar("T")
_BYTES = 4
_MOST = 1024
"""More trainings than this run in sequence (our choice): their numbers might not fit a pipe."""


def train_each(
    trainings: Sequence[Callable[[Context], T]], context: Context, max_parallel: Callable[[], int]
) -> list[T]:
    """Run trainings in parallel where possible, one per core, and return their results in order.

    They run in parallel only on a CPU, if the context keeps models, and if there are at least half
    as many trainings as torch has threads. Each process, this one included, then uses one thread,
    so that a model has the same bits whichever process trained it.

    Parameters
    ----------
    trainings : sequence of callable
        ``training(context) -> model``. It keeps its model in the folder of the context, so that it
        reads it if it is called again.
    context : Context
        Device, and folder of the kept models.
    max_parallel : callable
        ``max_parallel()`` prepares what the trainings share, and returns how many of them fit into
        memory together; it is not called if there is only one training, or one thread.

    Raises
    ------
    Stopped
        If the kernel is interrupted while other processes train. A training that has begun its
        steps saves the last one.

    Notes
    -----
    Two threads that share one training of this size wait for each other at every operation: on two
    cores, a step of the fusion on the demo study took 95 to 113 ms with two threads and 112 to 142
    ms with one (two runs each).

    The other processes are forks, which share what this one has read. Every process takes the next
    training from a queue, and this one reads the models of the others at the end. What another
    process did not finish is trained here, so that its error is raised here.
    """
    n = _processes(len(trainings), context)
    n = min(n, max_parallel()) if n > 1 else 1
    if n == 1:
        return [training(context) for training in trainings]
    found: dict[int, T] = {}
    with _one_thread(), contextlib.ExitStack() as pipes:
        todo, finished = (pipes.enter_context(_Numbers()) for _ in range(2))
        todo.put(*range(len(trainings)))
        todo.end()
        others: list[BaseProcess] = []
        try:
            with contextlib.suppress(OSError):  # the system may refuse another process
                while len(others) < n - 1:
                    others.append(_fork(trainings, context, todo, finished))
            finished.end()
            for k in todo:
                found[k] = trainings[k](context)
            with _exit_on_sigterm():
                for other in others:
                    other.join()
        except KeyboardInterrupt as stopped:
            where = str(stopped) or "stopped while other processes trained; run the cell again"
            raise Stopped(where) from None
        finally:
            list(todo)  # nobody begins another training
            for other in others:
                other.terminate()  # ends none that has finished; the others save their step
            for other in others:
                other.join()
        kept = dataclasses.replace(context, fresh=False)
        found |= {k: trainings[k](kept) for k in finished}
        return [
            found[k] if k in found else training(context) for k, training in enumerate(trainings)
        ]


def _processes(n_trainings: int, context: Context) -> int:
    """Return how many trainings may run in parallel on this processor."""
    threads = torch.get_num_threads()
    possible = (
        context.device == "cpu"
        and context.models is not None
        and threads <= 2 * n_trainings
        and n_trainings <= _MOST
        and sys.platform == "linux"
        and not {"WORLD_SIZE", "LOCAL_RANK"} & os.environ.keys()
        and threading.current_thread() is threading.main_thread()
        and not multiprocessing.current_process().daemon
        and not torch.cuda.is_available()  # then torch computes no gradients after a fork
    )
    return min(threads, n_trainings) if possible else 1


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the threads of torch do not survive a fork
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exit, so that what is open here is closed."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Numbers:
    """Hand out numbers to several processes, each number to one of them."""

    def __init__(self):
        out, into = os.pipe()
        # so few bytes are written and read in one piece
        self._out, self._in = open(out, "rb", buffering=0), open(into, "wb", buffering=0)

    def __enter__(self) -> _Numbers:
        return self

    def __exit__(self, *_: object) -> None:
        self._in.close()
        self._out.close()

    def put(self, *numbers: int) -> None:
        """Put numbers in."""
        for number in numbers:
            self._in.write(number.to_bytes(_BYTES, "little"))

    def end(self) -> None:
        """Put in no more from this process."""
        self._in.close()

    def __iter__(self) -> Iterator[int]:
        """Take numbers out until there are none, and no process can put in another."""
        while taken := self._out.read(_BYTES):
            yield int.from_bytes(taken, "little")


def _fork(
    trainings: Sequence[Callable[[Context], object]],
    context: Context,
    todo: _Numbers,
    finished: _Numbers,
) -> BaseProcess:
    """Start a process that takes trainings from the queue."""
    process = multiprocessing.get_context("fork").Process(
        target=_train, args=(trainings, context, todo, finished)
    )
    with warnings.catch_warnings():
        # Python warns of locks that other threads hold; like the workers of a DataLoader, the
        # process uses nothing that belongs to another thread
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _train(
    trainings: Sequence[Callable[[Context], object]],
    context: Context,
    todo: _Numbers,
    finished: _Numbers,
) -> None:
    """Take trainings from the queue until it is empty; runs in a fork."""
    end_with_parent()
    # a server or a runner that was forked may have a handler of its own, which would run here
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # plain lines, because the bars of a notebook belong to the process that was forked
    os.environ["BMFL_HEADLESS"] = "1"
    sys.stdout = sys.stderr = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.suppress(Exception):  # the process that was forked trains it again and raises
        for k in todo:
            trainings[k](context)
            finished.put(k)

"""The process that executes one notebook through papermill: ``python -m bmfl_lab.runs.worker FOLDER``.

It owns the kernel. When it is told to stop, when its parent disappears or when the notebook ends,
no kernel is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, TextIO

import papermill as pm
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from bmfl_lab.errors import DataError
from bmfl_lab.files import (
    atomic_path,
    lock,
    read_json,
    read_sealed_json,
    write_json,
    write_sealed_json,
)
from bmfl_lab.runs.kernels import PID, kill_kernel
from bmfl_lab.runs.scrub import scrub, scrub_text
from bmfl_lab.runs.spec import KERNEL

CELL_BYTES = 2_000_000
LOG_BYTES = 20_000_000
DRAFT = ".executing.ipynb"
DRAIN_S = 120
"""Seconds for what a finished cell printed to arrive; the client's own 4 s fail a run that prints much on a busy machine."""


class IPCKernelManager(AsyncKernelManager):
    """A kernel on its own IPC sockets, so that kernels started together never compete for a port."""

    def __init__(self, **options: Any):
        os.makedirs(jupyter_runtime_dir(), exist_ok=True)
        name = str(uuid.uuid4())
        file = os.path.join(jupyter_runtime_dir(), f"kernel-{name}.json")
        super().__init__(
            **{**options, "transport": "ipc", "kernel_id": name, "connection_file": file}
        )

    async def _async_post_start_kernel(self, **options: Any) -> None:
        await super()._async_post_start_kernel(**options)
        STATE.started(self.provisioner.pid)

    post_start_kernel = _async_post_start_kernel


class CappedClient(PapermillNotebookClient):
    """papermill's client, with a limit on what one cell may store and a log of what it printed."""

    def execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
        """Execute a cell and note that it was begun and that it ended."""
        STATE.current = cell_index
        found = super().execute_cell(cell, cell_index, **options)
        STATE.finished.add(cell_index)
        return found

    def output(self, outs: list, msg: dict, display_id: str | None, cell_index: int) -> Any:
        """Store an output unless its cell is over the limit; print text to the log either way."""
        content = msg["content"]
        printed = content.get("text") or "\n".join(content.get("traceback", []))
        STATE.write(printed)
        size = len(printed) + sum(len(str(v)) for v in content.get("data", {}).values())
        before = STATE.stored.get(cell_index, 0)
        STATE.stored[cell_index] = before + size
        if msg["msg_type"] == "error" or before + size <= CELL_BYTES:
            return super().output(outs, msg, display_id, cell_index)
        if before <= CELL_BYTES:
            note = f"\n[output of this cell beyond {CELL_BYTES} bytes is left out; see log.txt beside this notebook]\n"
            msg = {**msg, "msg_type": "stream", "content": {"name": "stderr", "text": note}}
            msg["header"] = {**msg["header"], "msg_type": "stream"}
            return super().output(outs, msg, None, cell_index)
        return None


class CappedEngine(NBClientEngine):
    """papermill's default engine with `CappedClient`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        """Execute the notebook that papermill manages."""
        STATE.manager = nb_man
        timeout = options["execution_timeout"]
        client = CappedClient(
            nb_man,
            timeout=timeout,
            iopub_timeout=DRAIN_S,
            startup_timeout=options["start_timeout"],
            kernel_name=kernel_name,
            kernel_manager_class=IPCKernelManager,
            shutdown_kernel="immediate",
        )
        return client.execute()


class State:
    """What the worker knows about its kernel, its log and its notebook."""

    def __init__(self) -> None:
        self.folder = Path()
        self.log: TextIO | None = None
        self.logged = 0
        self.stored: dict[int, int] = {}
        self.kernel: int | None = None
        self.peak_kb = 0
        self.current = -1
        self.finished: set[int] = set()
        self.manager: Any = None

    def started(self, pid: int) -> None:
        """Note the kernel's process, for whoever must end it."""
        self.kernel = pid
        (self.folder / PID).write_text(str(pid), encoding="ascii")

    def write(self, printed: str) -> None:
        """Append to the log, up to its limit."""
        if printed and self.log and self.logged < LOG_BYTES:
            self.logged += len(printed)
            self.log.write(scrub_text(printed[:LOG_BYTES]))
            self.log.flush()

    def watch(self, parent: int) -> None:
        """Sample the kernel's peak memory; stop everything when the parent process is gone."""
        while True:
            time.sleep(0.3)
            if self.kernel:
                self.peak_kb = max(self.peak_kb, _peak_kb(self.kernel))
            if os.getppid() != parent:
                kill_kernel(self.folder)
                os._exit(1)


STATE = State()


def _peak_kb(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/", "proc", str(pid), "status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0])
    return 0


def _terminate(number: int, frame: Any) -> None:
    kill_kernel(STATE.folder)
    with contextlib.suppress(
        Exception
    ):  # what was executed is kept if it can be; the end must not wait for it
        _keep_executed(STATE.folder)
    write_json(
        STATE.folder / "state.json",
        {"state": "incomplete", "reason": f"stopped by signal {number}"},
    )
    os._exit(128 + number)


def main(folder: Path) -> int:
    """Execute the notebook described by ``spec.json`` in `folder`; write ``executed.ipynb`` and ``state.json``."""
    STATE.folder = folder
    plan = read_json(folder / "spec.json")
    assert isinstance(plan, dict)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)
    threading.Thread(target=STATE.watch, args=(os.getppid(),), daemon=True).start()
    papermill_engines.register("capped", CappedEngine)
    start, problem = time.monotonic(), ""
    with (
        lock(folder / ".lock", wait=False, what="this run's folder"),
        open(folder / "log.txt", "w") as log,
    ):
        STATE.log = log
        try:
            problem = _execute(plan, folder)
        finally:
            kill_kernel(folder)
        cells = _keep_executed(folder)
        state = {
            "problem": scrub_text(problem),
            "cells": cells,
            "seconds": round(time.monotonic() - start, 2),
            "kernel_peak_memory_mb": round(STATE.peak_kb * 1024 / 1e6, 1),
        }
        _scrub_record(folder / "record.json")
        _scrub_file(folder / "log.txt")
        write_json(folder / "state.json", {"state": "ended", **state})
    return 0


def _execute(plan: dict[str, Any], folder: Path) -> str:
    try:
        pm.execute_notebook(
            plan["notebook_file"],
            str(folder / DRAFT),
            parameters=plan["injected"],
            engine_name="capped",
            progress_bar=False,
            kernel_name=KERNEL,
            start_timeout=120,
            execution_timeout=max(1, int(plan["cell_timeout_min"] * 60 + 0.999)),
            cwd=plan["cwd"],
        )
    except Exception as error:
        number, source = _current_cell()
        peak = (
            f"; the kernel's peak memory was {STATE.peak_kb * 1024 / 1e6:.0f} MB"
            if "Dead" in type(error).__name__
            else ""
        )
        said = str(error).strip().splitlines() or [""]
        last = said[0] if "Timeout" in type(error).__name__ else said[-1]
        STATE.write(f"\n{error}\n")
        return f"{type(error).__name__} in cell {number} ({source}): {last}{peak}"
    return ""


def _current_cell() -> tuple[int, str]:
    if STATE.current < 0 or not STATE.manager:
        return -1, "before the first cell"
    source = STATE.manager.nb.cells[STATE.current].source.strip()
    return STATE.current, (source.splitlines() or [""])[0][:80]


def _keep_executed(folder: Path) -> list[dict[str, Any]]:
    """Move the executed notebook to its final name, scrubbed; return number, status and first line of unfinished cells."""
    import nbformat

    draft = folder / DRAFT
    notebook = STATE.manager.nb if STATE.manager else None
    draft.unlink(missing_ok=True)
    if notebook is None:
        return []
    unfinished = []
    for number, cell in enumerate(notebook.cells):
        status = cell.metadata.get("papermill", {}).get("status", "pending")
        if (
            cell.cell_type == "code"
            and cell.source.strip()
            and "skip-execution" not in cell.metadata.get("tags", [])
        ):
            failed = (
                cell.metadata.get("papermill", {}).get("exception")
                or status != "completed"
                or number not in STATE.finished
            )
            if failed or any(o.output_type == "error" for o in cell.get("outputs", [])):
                line = cell.source.strip().splitlines()[0][:80]
                unfinished.append({"cell": number, "status": status, "source": scrub_text(line)})
    notebook.metadata.pop("widgets", None)
    clean = nbformat.from_dict(scrub(notebook))
    with atomic_path(folder / "executed.ipynb") as temporary:
        temporary.write_text(nbformat.writes(clean), encoding="utf-8")
    return unfinished


def _scrub_record(path: Path) -> None:
    with contextlib.suppress(
        DataError
    ):  # one that is missing or damaged is for `state_of` to judge
        before = read_sealed_json(path)
        after = scrub(before)
        if after != before:
            write_sealed_json(path, after)


def _scrub_file(path: Path) -> None:
    if path.is_file():
        before = path.read_text(encoding="utf-8", errors="replace")
        after = scrub_text(before)
        if after != before:
            with atomic_path(path) as temporary:
                temporary.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

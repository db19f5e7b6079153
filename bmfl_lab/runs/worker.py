"""The process that executes one notebook through papermill.

Started by the runner as ``python -m bmfl_lab.runs.worker FOLDER SOCKETS``.

It owns the kernel. When it receives a stop signal, when its parent disappears or when the
notebook ends, no kernel is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TextIO

from bmfl_lab.errors import DataError
from bmfl_lab.files import (
    read_json,
    read_sealed_json,
    write_bytes,
    write_json,
    write_sealed_json,
)
from bmfl_lab.runs import execute
from bmfl_lab.runs.notebook import without_addresses
from bmfl_lab.runs.scrub import scrub, scrub_text
from bmfl_lab.runs.spec import KERNEL

with without_addresses():
    import nbformat
    import papermill as pm
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

CELL_BYTES = 2_000_000
"""Bytes of output of one cell that are stored in the executed notebook."""
LOG_BYTES = 20_000_000
"""Bytes of printed text that go to ``log.txt``."""
DRAFT = ".executing.ipynb"
DRAIN_S = 120
"""Seconds in which the output of a finished cell must arrive. The client's own 4 s fail a run that
prints much on a busy machine."""
INSERTED = {"injected-parameters", "papermill-error-cell-tag"}
"""Tags of the cells that papermill inserts, which the author's numbering does not count."""


class OwnKernelManager(AsyncKernelManager):
    """A kernel of this Python interpreter, with its own IPC sockets in a folder with a short path.

    Kernels started together never compete for a port, an installed kernel called "python3" of
    another environment is never taken, and a long home folder cannot exceed the limit of about 100
    characters for the path of a socket.
    """

    def __init__(self, **options: object):
        file = str(RUN.sockets / "k.json")
        super().__init__(**{**options, "transport": "ipc", "connection_file": file})
        self._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )

    async def _async_post_start_kernel(self, **options: object) -> None:
        await super()._async_post_start_kernel(**options)
        RUN.kernel = self.provisioner.pid
        execute.note_process(RUN.folder / execute.KERNEL_FILE, RUN.kernel)

    post_start_kernel = _async_post_start_kernel


class CappedClient(PapermillNotebookClient):
    """papermill's client with a limit on what one cell may store and a log of what it printed."""

    def execute_cell(self, cell: nbformat.NotebookNode, cell_index: int, **options: object):
        """Execute a cell and note that it was begun and that it ended."""
        RUN.notebook, RUN.cell = self.nb, cell
        found = super().execute_cell(cell, cell_index, **options)
        RUN.finished.add(id(cell))
        return found

    def output(self, outs: list, msg: dict, display_id: str | None, cell_index: int):
        """Store an output unless its cell is over the limit; print text to the log either way."""
        content = msg["content"]
        printed = content.get("text") or "\n".join(content.get("traceback", []))
        RUN.write(printed)
        before = RUN.stored.get(cell_index, 0)
        size = before + len(printed) + sum(len(str(v)) for v in content.get("data", {}).values())
        RUN.stored[cell_index] = size
        if msg["msg_type"] == "error" or size <= CELL_BYTES:
            return super().output(outs, msg, display_id, cell_index)
        if before > CELL_BYTES:
            return None
        note = f"\n[output of this cell beyond {CELL_BYTES} bytes is left out; see log.txt beside \
this notebook]\n"
        stream = {
            "msg_type": "stream",
            "content": {"name": "stderr", "text": note},
            "header": {**msg["header"], "msg_type": "stream"},
        }
        return super().output(outs, {**msg, **stream}, None, cell_index)


class CappedEngine(NBClientEngine):
    """papermill's default engine with `CappedClient` and `OwnKernelManager`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name: str, **options):
        """Execute the notebook that papermill manages."""
        return CappedClient(
            nb_man,
            timeout=options["execution_timeout"],
            startup_timeout=options["start_timeout"],
            iopub_timeout=DRAIN_S,
            kernel_name=kernel_name,
            kernel_manager_class=OwnKernelManager,
            shutdown_kernel="immediate",
        ).execute()


@dataclass
class State:
    """Hold the state of a run: its folder, log, kernel and notebook."""

    folder: Path = Path()
    sockets: Path = Path()
    log: TextIO | None = None
    logged: int = 0
    stored: dict[int, int] = field(default_factory=dict)
    kernel: int | None = None
    peak_kb: int = 0
    notebook: nbformat.NotebookNode | None = None
    cell: nbformat.NotebookNode | None = None
    finished: set[int] = field(default_factory=set)

    def write(self, printed: str) -> None:
        """Append to the log, up to its limit."""
        if printed and self.log and self.logged < LOG_BYTES:
            self.logged += len(printed)
            self.log.write(scrub_text(printed[:LOG_BYTES]))
            self.log.flush()

    def watch(self, parent: int) -> None:
        """Sample the kernel's peak memory; stop everything when the parent process is gone."""
        while os.getppid() == parent:
            time.sleep(0.3)
            with contextlib.suppress(OSError, ValueError, IndexError):
                status = Path("/", "proc", str(self.kernel), "status").read_text("ascii", "replace")
                self.peak_kb = max(self.peak_kb, int(status.split("VmHWM:")[1].split()[0]))
        self.kill_kernel()
        os._exit(1)

    def kill_kernel(self) -> None:
        """End the kernel with every process of its group."""
        if self.kernel is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.kernel, signal.SIGKILL)

    def place(self) -> str:
        """Return the number, in the author's notebook, and the first line of the current cell."""
        if self.cell is None:
            return "before the first cell"
        return f"in cell {self.number(self.cell)} ({_first_line(self.cell)})"

    def number(self, cell: nbformat.NotebookNode) -> int:
        """Return the number of a cell, from 0, without the cells that papermill inserted."""
        own = [c for c in self.notebook.cells if not INSERTED & set(c.metadata.get("tags", []))]
        return next((i for i, c in enumerate(own) if c is cell), -1)

    def unfinished(self) -> list[dict[str, object]]:
        """Return number, status and first line of each code cell that did not complete."""
        found = []
        for cell in self.notebook.cells if self.notebook else []:
            skipped = "skip-execution" in cell.metadata.get("tags", [])
            if cell.cell_type != "code" or not cell.source.strip() or skipped:
                continue
            noted = cell.metadata.get("papermill", {})
            status = noted.get("status", "pending")
            failed = any(o.output_type == "error" for o in cell.outputs) or noted.get("exception")
            if failed or status != "completed" or id(cell) not in self.finished:
                number, line = self.number(cell), _first_line(cell)
                found.append({"cell": number, "status": status, "source": scrub_text(line)})
        return found


RUN = State()


def _first_line(cell: nbformat.NotebookNode) -> str:
    return (cell.source.strip().splitlines() or [""])[0][:80]


def main(folder: Path, sockets: Path) -> int:
    """Execute the notebook that ``spec.json`` in `folder` describes.

    The files ``executed.ipynb``, ``log.txt`` and ``state.json`` are written beside it. The kernel's
    sockets go to the folder `sockets`, which has a short path.
    """
    RUN.folder, RUN.sockets = folder, sockets
    plan = read_json(folder / "spec.json")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminate)
    threading.Thread(target=RUN.watch, args=(os.getppid(),), daemon=True).start()
    papermill_engines.register("capped", CappedEngine)
    start = time.monotonic()
    with open(folder / "log.txt", "w", encoding="utf-8") as RUN.log:
        try:
            problem = _execute(plan)
        finally:
            RUN.kill_kernel()
    cells = RUN.unfinished()
    _save_executed()
    with contextlib.suppress(DataError):  # a missing or damaged record is for `state_of` to judge
        record = read_sealed_json(folder / "record.json")
        if scrub(record) != record:
            write_sealed_json(folder / "record.json", scrub(record))
    state = {
        "state": "ended",
        "problem": scrub_text(problem),
        "cells": cells,
        "seconds": round(time.monotonic() - start, 2),
        "kernel_peak_memory_mb": round(RUN.peak_kb * 1024 / 1e6, 1),
    }
    write_json(folder / "state.json", state)
    return 0


def _execute(plan: dict) -> str:
    """Execute through papermill and return what went wrong, an empty text if nothing did."""
    try:
        pm.execute_notebook(
            plan["notebook_file"],
            str(RUN.folder / DRAFT),
            parameters=plan["injected"],
            engine_name="capped",
            progress_bar=False,
            kernel_name=KERNEL,
            language="python",  # a notebook need not name it
            start_timeout=120,
            execution_timeout=max(1, int(plan["cell_timeout_min"] * 60 + 0.999)),
            cwd=plan["cwd"],
        )
    except Exception as error:
        RUN.write(f"\n{error}\n")
        name, lines = type(error).__name__, str(error).strip().splitlines() or [""]
        text = f"{name} {RUN.place()}: {lines[0] if 'Timeout' in name else lines[-1]}"
        if "Dead" in name:
            text += f"; the kernel's peak memory was {RUN.peak_kb * 1024 / 1e6:.0f} MB"
        return text
    return ""


def _save_executed() -> None:
    """Write the notebook as far as it was executed, scrubbed, under its final name."""
    (RUN.folder / DRAFT).unlink(missing_ok=True)
    if RUN.notebook is not None:
        RUN.notebook.metadata.pop("widgets", None)
        text = nbformat.writes(nbformat.from_dict(scrub(RUN.notebook)))
        write_bytes(RUN.folder / "executed.ipynb", text.encode())


def _terminate(number: int, frame: FrameType | None) -> None:
    RUN.kill_kernel()
    with contextlib.suppress(Exception):  # keep what was executed if possible, but end in any case
        _save_executed()
    state = {"state": "incomplete", "reason": f"stopped by signal {number}"}
    write_json(RUN.folder / "state.json", state)
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))

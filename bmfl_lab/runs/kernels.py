"""The kernel process of a run folder, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

PID = ".kernel.pid"


def kill_kernel(folder: Path) -> None:
    """End the kernel of a run folder with every process of its group, if it is still there."""
    file = folder / PID
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int(file.read_text(encoding="ascii")), signal.SIGKILL)
    file.unlink(missing_ok=True)

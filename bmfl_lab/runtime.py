"""What this machine offers and how a run behaves on it: device, precision, seeds, cache, progress, memory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bmfl_lab.errors import ConfigError, message

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")


def home() -> Path:
    """Return the cache folder: ``$BMFL_HOME``, or ``bmfl_lab`` in the user's cache folder."""
    if os.environ.get("BMFL_HOME"):
        return Path(os.environ["BMFL_HOME"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bmfl_lab"


def pick_device(device: str = "auto") -> str:
    """Return ``"cuda"`` or ``"cpu"``.

    Raises
    ------
    ConfigError
        If the name is unknown, or a GPU was asked for and there is none.
    """
    import torch

    if device not in DEVICES:
        raise ConfigError(message(f"a device among {DEVICES}", repr(device), "choose one of them"))
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError(
            message("a CUDA device", "none on this machine", "use device='auto' or 'cpu'")
        )
    return "cuda" if device != "cpu" and available else "cpu"


def bf16_pays(device: str) -> bool:
    """Tell whether bfloat16 matrix products are faster than float32 on `device`.

    On a GPU of compute capability 8.0 or more, and on CPUs with AMX; elsewhere bf16 is emulated and
    slower.
    """
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def seed_for(seed: int, *names: object) -> int:
    """Derive an independent seed (63 bits) from a seed and a name.

    Adding a new named stream never changes the others.
    """
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: object) -> np.random.Generator:
    """Return the NumPy generator of the named stream of `seed`."""
    return np.random.default_rng(seed_for(seed, *names))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  third-party code draws from the global generator
    torch.manual_seed(seed)


def headless() -> bool:
    """Tell whether nobody is watching: papermill, CI or a pipe rather than a person's notebook or terminal."""
    if os.environ.get("BMFL_HEADLESS") or os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
        return True  # the bars of an app are gone by the time its page is shown
    if "ipykernel" in sys.modules:
        return _executed()
    return not sys.stderr.isatty()


def _executed() -> bool:
    """Tell whether a program executes this notebook: papermill or nbconvert by themselves, which set no variable."""
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return False
    return b"papermill" in parent or b"nbconvert" in parent


def progress(
    items: Iterable[T], what: str, total: int | None = None, every: float = 10.0
) -> Iterator[T]:
    """Iterate with a bar when a person watches, else with one plain line every `every` seconds.

    Parameters
    ----------
    items : iterable
        What to walk through.
    what : str
        Name of the work, with its unit.
    total : int, optional
        Number of items, if `items` has no length.
    every : float, default 10
        Seconds between plain lines.
    """
    total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
    if not headless() and importlib.util.find_spec("tqdm"):
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=what, total=total, leave=False)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every:
            print(f"{what}: {count}/{total or '?'} after {now - start:.0f} s", flush=True)
            last = now


_sharing: list[bool] = []


@contextlib.contextmanager
def half_the_threads() -> Iterator[None]:
    """Leave half of the processor to the browser that waits for the answer; blocks inside this one halve no further.

    Where a browser works on the same few cores, threads of torch that wait for each other take
    twice the processor time, and longer on the clock: on two cores beside Chromium a lesion took
    0.18 s on one thread, 0.25 s on two.
    """
    import torch

    threads = torch.get_num_threads()
    if not _sharing:
        torch.set_num_threads(max(1, threads // 2))
    _sharing.append(True)
    try:
        yield
    finally:
        _sharing.pop()
        torch.set_num_threads(threads)


@contextlib.contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Add the block's wall-clock seconds to ``times[name]``."""
    start = time.perf_counter()
    try:
        yield
    finally:
        times[name] = times.get(name, 0.0) + time.perf_counter() - start


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def versions() -> dict[str, str]:
    """Return the versions that a record states: Python, platform and the packages results depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in (
        "torch",
        "numpy",
        "scipy",
        "scikit-learn",
        "accelerate",
        "nilearn",
        "papermill",
        "plotly",
        "bmfl-lab",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def code_revision() -> str:
    """Return the git commit of the source tree, ``+dirty`` if modified, or ``"unknown"`` outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        revision = git("rev-parse", "--short=12", "HEAD")
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "bmfl_lab",
            "widgets",
            "notebooks",
        )
        return revision + ("+dirty" if changed else "") if revision else "unknown"
    return "unknown"


def describe_machine() -> dict[str, Any]:
    """Return cores, memory and device names, for records and benchmarks."""
    import torch

    found: dict[str, Any] = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    found["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return found

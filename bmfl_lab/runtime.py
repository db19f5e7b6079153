"""Properties of this machine and of a run on it: device, cache folder, seeds, progress, memory."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from bmfl_lab.errors import ConfigError, FetchError, require, translated

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")


def home() -> Path:
    """Return the cache folder: ``$BMFL_HOME``, or the folder ``bmfl_lab`` in the user's cache.

    Raises
    ------
    ConfigError
        If neither ``$BMFL_HOME`` nor the user's home folder is known.
    """
    if os.environ.get("BMFL_HOME"):
        return Path(os.environ["BMFL_HOME"]).expanduser()
    with translated(
        RuntimeError,
        expected="a home folder",
        remedy="set the environment variable BMFL_HOME to a folder for downloads and caches",
        error=ConfigError,
    ):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bmfl_lab"


def project_root(start: str | Path | None = None) -> Path:
    """Return the nearest folder at or above `start` that holds a ``pyproject.toml``.

    Parameters
    ----------
    start : str or Path, optional
        Folder that is searched first; the current folder by default.

    Returns
    -------
    Path
        The project's root, or `start` itself when no parent is a project.
    """
    start = (Path(start) if start is not None else Path.cwd()).resolve()
    roots = (f for f in (start, *start.parents) if (f / "pyproject.toml").is_file())
    return next(roots, start)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Forbid every download inside the block, as ``BMFL_OFFLINE=1`` does."""
    before = os.environ.get("BMFL_OFFLINE")
    os.environ["BMFL_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["BMFL_OFFLINE"]
        else:
            os.environ["BMFL_OFFLINE"] = before


def refuse_offline(what: str, remedy: str) -> None:
    """Raise an error if the environment variable ``BMFL_OFFLINE`` is 1; it forbids every download.

    Parameters
    ----------
    what : str
        Name of the download.
    remedy : str
        Other ways to the same data, as an imperative.

    Raises
    ------
    FetchError
    """
    require(
        os.environ.get("BMFL_OFFLINE") != "1",
        FetchError,
        f"a download of {what}",
        "BMFL_OFFLINE=1, which forbids every download",
        f"unset it, or {remedy}",
    )


_LOADED_BACKBONES: dict[str, dict[str, str]] = {}
_CONTROLS: list[bool] = []


def note_backbone(name: str, weights: str, digest: str) -> None:
    """Note a backbone that this process has loaded, for its records and figures.

    Parameters
    ----------
    name, weights, digest : str
        Name, source of the weights and their SHA-256.
    """
    note = {"name": name, "weights": weights, "sha256": digest}
    # whatever is loaded as the model first is the model, also where a control reads it
    if _CONTROLS:
        note["role"] = "control"
    _LOADED_BACKBONES.setdefault(name + (digest or weights), note)


def loaded_backbones() -> list[dict[str, str]]:
    """Return ``name``, ``weights`` and ``sha256`` of each backbone this process has loaded.

    Backbones of controls also have the ``role`` "control".
    """
    return list(_LOADED_BACKBONES.values())


@contextlib.contextmanager
def as_control() -> Iterator[None]:
    """Note the backbones that a block loads as those of a control, such as untrained ones."""
    _CONTROLS.append(True)
    try:
        yield
    finally:
        _CONTROLS.pop()


def weights_text(backbones: Iterable[Mapping[str, str]]) -> str:
    """Return which backbones served, and the source of their weights, controls last.

    Parameters
    ----------
    backbones : iterable of mapping
        Backbones as `loaded_backbones` returns them and records keep them.
    """
    served: dict[bool, list[str]] = {False: [], True: []}
    for found in backbones:
        text = f"{found['name']}, {found['weights']}"
        if text not in served[found.get("role") == "control"]:
            served[found.get("role") == "control"].append(text)
    return "; ".join([*served[False], *(f"as a control: {text}" for text in served[True])])


_DIVIDED: list[bool] = []


@contextlib.contextmanager
def divided() -> Iterator[None]:
    """Divide the work of a block over the processes of ``torchrun``, all of which must enter it."""
    _DIVIDED.append(True)
    try:
        yield
    finally:
        _DIVIDED.pop()


def process_share() -> tuple[int, int]:
    """Return the number of this process and of all processes; (0, 1) outside of `divided`."""
    return processes() if _DIVIDED else (0, 1)


def processes() -> tuple[int, int]:
    """Return the number of this process, from 0, and of all processes of ``torchrun``."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def pick_device(device: str = "auto") -> str:
    """Return the device on which to compute.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" chooses a GPU if there is one.

    Returns
    -------
    str
        "cpu" or "cuda".

    Raises
    ------
    ConfigError
        If the name is unknown, or it is "cuda" and there is no GPU.
    """
    import torch

    require(
        device in DEVICES,
        ConfigError,
        f"a device among {DEVICES}",
        repr(device),
        "choose one of them",
    )
    available = torch.cuda.is_available()
    require(
        device != "cuda" or available,
        ConfigError,
        "a CUDA device",
        "none on this machine",
        "use device='auto' or 'cpu'",
    )
    return "cuda" if device != "cpu" and available else "cpu"


def bf16_pays(device: str) -> bool:
    """Return whether matrix products in bfloat16 are faster than in float32 on a device.

    They are on a GPU of compute capability 8.0 or more, and on a CPU with AMX. Elsewhere bfloat16
    is emulated and slower.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        The device.
    """
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def use_bfloat16(precision: str, device: str) -> bool:
    """Tell whether a computation runs under bfloat16 autocast.

    On a CPU "auto" is float32 even where bfloat16 pays, because the casts of small matrices cost
    more than it saves.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        The wanted number type, as in `bmfl_lab.config.LoopConfig`.
    device : {"cpu", "cuda"}
        The device.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and device == "cuda")
    return wanted and bf16_pays(device)


def seed_for(seed: int, *names: object) -> int:
    """Derive the seed of a named stream, so that a new stream does not change the others.

    Parameters
    ----------
    seed : int
        Seed of the run.
    *names : object
        Name of the stream, as one or more parts.

    Returns
    -------
    int
        63 bits.
    """
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: object) -> np.random.Generator:
    """Return the NumPy generator of a named stream.

    Parameters
    ----------
    seed : int
        Seed of the run.
    *names : object
        Name of the stream, as one or more parts; see `seed_for`.

    Returns
    -------
    numpy.random.Generator
    """
    return np.random.default_rng(seed_for(seed, *names))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch.

    Parameters
    ----------
    seed : int
        The seed.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  third-party code draws from the global generator
    torch.manual_seed(seed)


def headless() -> bool:
    """Return whether nobody reads the output live, e.g. under papermill, in CI or in a pipe."""
    if os.environ.get("BMFL_HEADLESS") or os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
        return True  # an app runs the notebook before it shows the page
    if "ipykernel" not in sys.modules:
        return not sys.stderr.isatty()
    # papermill and nbconvert set no variable, but they are the parent process of the kernel
    with contextlib.suppress(OSError):
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
        return b"papermill" in parent or b"nbconvert" in parent
    return False


def progress(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    every: float = 10.0,
    note: Callable[[], str] | None = None,
) -> Iterator[T]:
    """Iterate over items with a progress bar, or with plain lines if `headless` is true.

    Parameters
    ----------
    items : iterable
        The items.
    what : str
        Name of the work with its unit ("images decoded").
    total : int, optional
        Number of items, if `items` has no length.
    every : float, default 10.0
        Seconds between two plain lines.
    note : callable, optional
        ``note()`` returns a text that is shown behind the bar, renewed every second, or at the end
        of each plain line.

    Yields
    ------
    object
        The items.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if not headless() and importlib.util.find_spec("tqdm"):
        from tqdm.auto import tqdm

        # with a note, the usual text would leave no room for the bar in a notebook
        look = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]" if note else None
        bar = tqdm(items, desc=what, total=total, leave=False, bar_format=look)
        last = time.monotonic()
        for item in bar:
            yield item
            if note is not None and time.monotonic() - last >= 1:
                bar.set_postfix_str(note(), refresh=False)
                last = time.monotonic()
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every:
            took = now - start
            left = f", about {took / count * (total - count):.0f} s left" if total else ""
            said = f"; {note()}" if note is not None else ""
            print(f"{what}: {count}/{total or '?'} after {took:.0f} s{left}{said}", flush=True)
            last = now


_halved: list[bool] = []


@contextlib.contextmanager
def half_the_threads() -> Iterator[None]:
    """Let torch use half of its threads in this block, and leave the other cores to the browser.

    If a browser works on the same few cores, threads of torch that wait for each other take more
    time: on two cores beside Chromium a lesion took 0.18 s with one thread and 0.25 s with two. A
    block inside such a block does not halve the number again.
    """
    import torch

    threads = torch.get_num_threads()
    if not _halved:
        torch.set_num_threads(max(1, threads // 2))
    _halved.append(True)
    try:
        yield
    finally:
        _halved.pop()
        torch.set_num_threads(threads)


def end_with_parent() -> None:
    """Let this forked process end with its parent, and receive none of the signals to its group.

    A signal to all processes is for the parent, which tells its forks what to do: a training that
    is stopped still takes its step, and needs the workers that decode its images. A fork that waits
    for its parent would outlive a parent that was killed, so it looks whether the parent is there.
    """
    os.setsid()
    threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to an entry of a dict.

    Parameters
    ----------
    times : dict of str to float
        Name of a stage to its seconds; changed in place.
    name : str
        The entry.
    """
    start = time.perf_counter()
    try:
        yield
    finally:
        times[name] = times.get(name, 0.0) + time.perf_counter() - start


def free_memory() -> int:
    """Return the bytes of memory that this process may still take.

    Returns
    -------
    int
        What is free on the machine (all of it where the system does not tell), or what is left of a
        smaller limit of this process ("ulimit -v") or of its control group, as SLURM and containers
        set it.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 1024
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    with contextlib.suppress(OSError):
        if limit != resource.RLIM_INFINITY:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * page
            free = min(free, limit - taken)
    return max(0, min(free, _left_to_group()))


def _left_to_group(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """Return the bytes left to the control groups that this process is in, infinity without one."""
    left = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in Path(groups).read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            names = ("memory.max", "memory.current")  # of version 2
            if controllers:
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            top = Path(root, controllers)
            group = Path(top, name.lstrip("/"))
            for folder in (group, *group.parents):  # each group above sets a limit, too
                if not folder.is_relative_to(top):
                    break
                with contextlib.suppress(OSError, ValueError):
                    limit, used = (int((folder / file).read_text()) for file in names)
                    cached = re.search(
                        r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M
                    )
                    left = min(left, limit - used + int(cached[1] if cached else 0))
    return left


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, and the packages on which results depend."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    packages = "torch numpy scipy scikit-learn accelerate nilearn papermill plotly bmfl-lab"
    for name in packages.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def code_revision() -> str:
    """Return the git commit of the source tree, with "+dirty" if files are modified.

    Outside a git checkout it is "unknown".
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        revision = git("rev-parse", "--short=12", "HEAD")
        folders = ("bmfl_lab", "widgets", "notebooks")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *folders)
        if revision:
            return revision + ("+dirty" if changed else "")
    return "unknown"


def describe_machine() -> dict[str, int | float | str | None]:
    """Return the number of cores and threads, the memory in GB (10^9 bytes) and the GPU's name."""
    import torch

    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }

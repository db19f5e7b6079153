"""Start runs, check their results and report their state."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from bmfl_lab import evaluation
from bmfl_lab.data.study import check_study
from bmfl_lab.errors import BmflError, DataError, FileError, LockedError, RunError, message, require
from bmfl_lab.files import lock, read_json, write_json
from bmfl_lab.records import REGISTERED, read_record
from bmfl_lab.runs.paths import out_root, run_folder
from bmfl_lab.runs.spec import Run, load_spec
from bmfl_lab.runtime import code_revision, pick_device

_LOOK_S = 1.0
"""Seconds that a lock may be held by somebody who only looks at the state of a run."""
WORKER_FILE, KERNEL_FILE = ".worker.json", ".kernel.json"
"""Files in a run's folder that name the processes which execute it."""
KERNEL_DEFAULTS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
"""Let threads that wait for each other sleep, and glibc keep the memory of large tensors.

Beside as many other busy threads a training step took 30 % less time with threads that sleep, on
idle cores as long as before (two cores). With the memory kept, training took 12 % less time. The
bits are the same.
"""
INHERITED = re.compile(
    r"""
    # programs, files and the user
    PATH | HOME | USER | LOGNAME | SHELL | HOSTNAME | TZ | TMPDIR | TEMP | TMP | LANG | LANGUAGE
    | LC_.* | XDG_CACHE_HOME | LD_LIBRARY_PATH | LD_PRELOAD
    # the Python environment that the runner itself was started in
    | PYTHONPATH | PYTHONHOME | PYTHONUSERBASE | PYTHONNOUSERSITE
    | VIRTUAL_ENV | CONDA_PREFIX | CONDA_DEFAULT_ENV
    # this package, threads, memory, devices and processes
    | (BMFL | OMP | KMP | GOMP | MKL | OPENBLAS | NUMEXPR | MALLOC | TORCH | PYTORCH | TRITON
      | ATEN | DNNL | ONEDNN | CUDA | CUBLAS | CUDNN | NVIDIA | HIP | ROCR | ROCM | NCCL | GLOO
      | ACCELERATE | SLURM | SBATCH)_.*
    | TORCHINDUCTOR_.* | TORCHDYNAMO_.*
    # caches of weights and surfaces, clients of package indexes, proxies and certificates
    | (HF | HUGGINGFACE | TRANSFORMERS | NILEARN | PIP | NPM_CONFIG)_.*
    | (HTTP | HTTPS | FTP | ALL | NO)_PROXY
    | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE | NODE_EXTRA_CA_CERTS | SSL_CERT_.*
    """,
    re.IGNORECASE | re.VERBOSE,  # proxies and npm's options are written in small letters, too
)
"""Names of the environment variables that a run inherits, which are those that it needs.

All others stay behind: they could change what a notebook computes or prints (PYTHONOPTIMIZE,
PYTHONWARNINGS, MATPLOTLIBRC, JUPYTER_CONFIG_PATH), and secrets have no place in a kernel. A
notebook that needs one more finds it under a name that begins with BMFL_.
"""
_children: set[subprocess.Popen] = set()
_stopping = threading.Event()


def code_digest() -> str:
    """Return 16 hexadecimal digits that change with any source file of bmfl_lab and widgets."""
    package = Path(__file__).resolve().parent.parent
    h = hashlib.sha256()
    for top in (package, package.parent / "widgets"):
        for path in sorted(top.rglob("*.py")):
            h.update(str(path.relative_to(package.parent)).encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def folder_of(run: Run, out: str | Path | None = None) -> Path:
    """Return the folder of a run."""
    return out_root(out, run.root) / run.spec / run.run_id


def _lock_of(folder: Path) -> Path:
    # beside the run's folder, because that is removed before a run starts
    return folder.parent.parent / ".locks" / f"{folder.parent.name}-{folder.name}"


def state_of(run: Run, out: str | Path | None = None) -> tuple[str, str]:
    """Return a run's state and the reason for it.

    Returns
    -------
    tuple of str
        "absent", "running", "error", "incomplete", "stale" or "ok", and one sentence (empty for
        "absent" and "ok").
    """
    folder = folder_of(run, out)
    # a runner that is about to begin holds the lock while there is no folder
    if not (folder / "spec.json").is_file() and not _lock_of(folder).is_file():
        return "absent", ""
    try:
        with lock(_lock_of(folder), wait=_LOOK_S):
            there = (folder / "spec.json").is_file()
            return _finished_state(run, folder) if there else ("absent", "")
    except LockedError:
        return "running", "another process is executing it"


def _finished_state(run: Run, folder: Path) -> tuple[str, str]:
    try:
        ended, plan = read_json(folder / "state.json"), read_json(folder / "spec.json")
    except FileError:
        raise  # what cannot be read now may be whole, and must not be executed again
    except BmflError:
        return "incomplete", "its process ended without a message: killed, or the machine stopped"
    if ended["state"] != "ended":
        return ended["state"], ended["reason"]
    if ended["problem"]:
        return "error", ended["problem"]
    if ended["cells"]:
        cell = ended["cells"][0]
        return (
            "incomplete",
            f"cell {cell['cell']} is {cell['status']}, not completed: {cell['source']}",
        )
    for name in ("executed.ipynb", "record.json"):
        if not (folder / name).is_file():
            return "incomplete", f"every cell completed but {name} is missing"
    try:
        record = read_record(folder / "record.json")
    except FileError:
        raise
    except BmflError as error:
        return "error", f"record.json: {error}"
    if problems := unmet(run, [vars(r) for r in record.rows]):
        return "error", "bounds not met: " + "; ".join(problems)
    if (plan["code_revision"], plan["code_digest"]) != (code_revision(), code_digest()):
        return "stale", f"made by code {plan['code_revision']}, the code is now {code_revision()}"
    return "ok", ""


def unmet(run: Run, rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return one sentence for each expectation of a run that its rows do not meet."""
    found = []
    for bound in run.expect:
        low, high = bound.get("low", float("-inf")), bound.get("high", float("inf"))
        fields = {k: v for k, v in bound.items() if k not in ("metric", "low", "high")}
        fields["name"] = bound["metric"]
        label = ", ".join(f"{k}={v}" for k, v in fields.items())
        values = [r["value"] for r in rows if all(r.get(k) == v for k, v in fields.items())]
        if not values:
            found.append(f"no row with {label}{_nearest_row(fields, rows)}")
        for value in values:
            if value is None or not low <= value <= high:
                found.append(f"{label} is {value}, expected from {low} to {high}")
    return found


def _nearest_row(fields: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> str:
    """Tell which value of one field would have found a row, for the message about a bound."""
    for name, value in fields.items():
        others = {k: v for k, v in fields.items() if k != name}
        there = {str(r.get(name)) for r in rows if all(r.get(k) == v for k, v in others.items())}
        if there:
            return f"; {name} is one of {', '.join(sorted(there)[:8])}, not {value}"
    return ""


def check_needs(runs: Sequence[Run], out: str | Path | None = None) -> None:
    """Check needed runs, devices and studies before anything starts.

    Raises
    ------
    RunError
        If a run of a needed spec is not ok.
    ConfigError
        If a GPU is needed and there is none, or a study is neither known nor there.
    DataError
        If a study file is damaged, or no reader detects the folder of a study.
    """
    for root, name in sorted({(r.root, n) for r in runs for n in r.needs}):
        needed = load_spec(root / "papermill_runs" / "specs" / f"{name}.yaml")
        states = [state_of(r, out)[0] for r in needed]
        require(
            all(s == "ok" for s in states),
            RunError,
            f"every run of spec {name!r} ok",
            f"states {', '.join(states)}",
            f"run it first: python -m bmfl_lab.runs run {name}",
        )
    if any(r.device == "cuda" for r in runs):
        pick_device("cuda")
    for root, study in sorted({(r.root, str(r.parameters.get("study", ""))) for r in runs}):
        if study:
            check_study(study, root)


def execute(
    runs: Sequence[Run], *, out: str | Path | None = None, jobs: int = 1, force: bool = False
) -> list[str]:
    """Execute the runs that are not ok and return each run's final state.

    Parameters
    ----------
    runs : sequence of Run
        Runs of a spec, see `load_spec`.
    out : str or Path, optional
        Folder of all runs; ``papermill_runs/out`` of the spec's project by default.
    jobs : int, default 1
        Number of notebooks that run at a time, each in its own process. They share the machine's
        cores, unless ``OMP_NUM_THREADS`` says otherwise.
    force : bool, default False
        Execute runs that are ok, too.

    Returns
    -------
    list of str
        The state of each run, as `state_of` gives it. A run that another process is executing is
        left to it and counts as "running".

    Raises
    ------
    RunError
        If a run cannot start: something needed is missing, or its folder cannot be made.
    """
    check_needs(runs, out)
    _stopping.clear()
    with stop_on_signals(), concurrent.futures.ThreadPoolExecutor(max(1, jobs)) as pool:
        return list(pool.map(lambda run: execute_one(run, out, force, jobs), runs))


def execute_one(run: Run, out: str | Path | None, force: bool, jobs: int = 1) -> str:
    """Execute a run unless it is ok and return its state; `jobs` notebooks share the cores."""
    folder = folder_of(run, out)
    state, reason = state_of(run, out)
    if _stopping.is_set() or (state == "ok" and not force):
        if any((folder / name).exists() for name in (WORKER_FILE, KERNEL_FILE)):
            # the runner was killed after the record was there
            with contextlib.suppress(LockedError, OSError), lock(_lock_of(folder), wait=_LOOK_S):
                _end_left(folder)
        print(f"{run.run_id}: {state}", flush=True)
        return state
    took = ""
    try:
        with lock(_lock_of(folder), wait=_LOOK_S):
            if not force and folder.is_dir() and _finished_state(run, folder)[0] == "ok":
                raise LockedError("another runner ended it in the meantime")
            print(f"{run.run_id}: started, log in {folder / 'log.txt'}", flush=True)
            _prepare(run, folder)
            _run_worker(run, folder, jobs)
            seconds = read_json(folder / "state.json").get("seconds")
            took = "" if seconds is None else f" in {seconds} s"
    except LockedError:
        pass  # another runner was earlier: its state is printed below
    except DataError as error:
        raise _unwritable(folder, error) from error
    state, reason = state_of(run, out)
    print(f"{run.run_id}: {state}{took}{': ' + reason if reason else ''}", flush=True)
    return state


def _end_left(folder: Path) -> None:
    """End what a killed runner left; the caller holds the lock of the folder."""
    end_process(folder / WORKER_FILE)
    end_process(folder / KERNEL_FILE)


def _unwritable(folder: Path, error: Exception) -> RunError:
    return RunError(message(f"a writable folder {folder}", str(error), "choose another with --out"))


def _prepare(run: Run, folder: Path) -> None:
    plan = {
        "spec": run.spec,
        "run_id": run.run_id,
        "notebook": run.notebook.path.name,
        "notebook_file": str(run.notebook.path.resolve()),
        "source_hash": run.notebook.source_hash(),
        "parameters": dict(run.parameters),
        "injected": dict(run.parameters),
        "cwd": str(run.root),
        "device": run.device,
        "cell_timeout_min": run.cell_timeout_min,
        "code_revision": code_revision(),
        "code_digest": code_digest(),
    }
    if "out" in run.notebook.parameters():
        plan["injected"]["out"] = str(folder.resolve())
    try:
        if folder.exists():
            _end_left(folder)
            shutil.rmtree(folder)
        run_folder(folder)
        if run.preregistered:
            log = folder.parent / REGISTERED
            found = evaluation.register(run.preregistered, run.parameters, run.root, log)
            write_json(folder / REGISTERED, found)
        write_json(folder / "spec.json", plan)
    except (OSError, RunError) as error:
        raise _unwritable(folder, error) from error


def _run_worker(run: Run, folder: Path, jobs: int) -> None:
    """Run the worker to its end, and write a ``state.json`` even if it dies."""
    environment = {
        **KERNEL_DEFAULTS,
        **{name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)},
        "BMFL_HEADLESS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONUTF8": "1",  # the runner's own files are UTF-8, whatever the locale
    }
    if jobs > 1:  # threads that wait for cores of another notebook make both several times slower
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    if run.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    log, reason = folder / "worker.log", ""
    with tempfile.TemporaryDirectory(prefix="bmfl-", dir=short) as sockets, open(log, "wb") as sink:
        # no startup file, profile or configuration of the user belongs to a run
        environment |= {"IPYTHONDIR": sockets, "JUPYTER_CONFIG_DIR": sockets}
        # -P: a file inspect.py in the working folder is not the standard library's
        module = ["-P", "-m", "bmfl_lab.runs.worker"]
        command = [sys.executable, *module, str(folder.resolve()), sockets]
        child = subprocess.Popen(
            command, stdout=sink, stderr=sink, env=environment, start_new_session=True
        )
        _children.add(child)
        try:
            note_process(folder / WORKER_FILE, child.pid)
            child.wait(timeout=run.timeout_min * 60)
        except subprocess.TimeoutExpired:
            reason = f"it took longer than timeout_min={run.timeout_min:g}"
            _end(child)
        except BaseException:  # a job that its cluster stops, for instance
            _end(child)
            raise
        _children.discard(child)
        end_process(folder / KERNEL_FILE)
        (folder / WORKER_FILE).unlink(missing_ok=True)
    printed = log.read_text(encoding="utf-8", errors="replace").strip()
    if not printed:
        log.unlink()
    if reason or not (folder / "state.json").is_file():
        state = "error" if reason or child.returncode >= 0 else "incomplete"
        last = printed.splitlines()[-1] if printed else "no message"
        reason = reason or f"its worker ended with code {child.returncode}: {last}"
        write_json(folder / "state.json", {"state": state, "reason": reason})


def _end(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(timeout=30)  # it still writes what was executed
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def note_process(file: Path, pid: int) -> None:
    """Write which process executes a run, so that it can be ended if its runner is killed."""
    with contextlib.suppress(psutil.Error):  # it ended at once, and there is nothing to end
        started = psutil.Process(pid).create_time()
        write_json(file, {"host": platform.node(), "pid": pid, "started": started})


def end_process(file: Path) -> None:
    """End the process that a file names, with every process of its group, and wait for its end.

    A number alone is not trusted, because the system gives the numbers of ended processes to
    others.
    """
    wrong = (TypeError, KeyError, ValueError, OverflowError)  # of a damaged file
    with contextlib.suppress(BmflError, psutil.Error, OSError, *wrong):
        found = read_json(file)
        process = psutil.Process(found["pid"])
        if (found["host"], found["started"]) == (platform.node(), process.create_time()):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
    file.unlink(missing_ok=True)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """End every worker, and so every kernel, when this process receives a stop signal."""

    def stop(number: int, frame: FrameType | None) -> None:
        _stopping.set()
        for child in list(_children):
            child.terminate()
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Starts runs, judges them and tells their state."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmfl_lab.errors import BmflError, RunError, message
from bmfl_lab.files import read_json, write_json
from bmfl_lab.records import read_record
from bmfl_lab.runs.kernels import kill_kernel
from bmfl_lab.runs.paths import project_root, run_folder
from bmfl_lab.runs.spec import Run
from bmfl_lab.runtime import code_revision

STATES = ("absent", "running", "error", "incomplete", "stale", "ok")
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
"""Lets glibc keep the memory of large tensors: given back and fetched anew at every step, it costs a tenth of the time."""
_children: set[subprocess.Popen] = set()
_stopping = threading.Event()


def code_digest() -> str:
    """Return 16 hexadecimal digits that change with any source file of the package and the widgets."""
    package = Path(__file__).resolve().parent.parent
    h = hashlib.sha256()
    for top in (package, package.parent / "widgets"):
        for path in sorted(top.rglob("*.py")):
            h.update(str(path.relative_to(package.parent)).encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def out_root(out: str | Path | None = None) -> Path:
    """Return the folder that holds all runs: `out`, or ``papermill_runs/out`` of the project."""
    return Path(out) if out else project_root() / "papermill_runs" / "out"


def folder_of(run: Run, out: str | Path | None = None) -> Path:
    """Return the folder of a run."""
    return out_root(out) / run.spec / run.run_id


def state_of(run: Run, out: str | Path | None = None) -> tuple[str, str]:
    """Return a run's state and the reason for it.

    Returns
    -------
    tuple of str
        One of `STATES`, and one sentence (empty for "absent" and "ok").
    """
    folder = folder_of(run, out)
    if not (folder / "spec.json").is_file():
        return "absent", ""
    if _locked(folder / ".lock"):
        return "running", "its folder is locked by a worker"
    try:
        ended = read_json(folder / "state.json")
        plan = read_json(folder / "spec.json")
    except BmflError:
        return "incomplete", "it ended without a word: killed, or the machine stopped"
    assert isinstance(ended, dict) and isinstance(plan, dict)
    if ended.get("state") != "ended":
        return str(ended.get("state", "error")), str(ended.get("reason", ""))
    if ended["problem"]:
        return "error", ended["problem"]
    if ended["cells"]:
        first = ended["cells"][0]
        return (
            "incomplete",
            f"cell {first['cell']} is {first['status']}, not completed: {first['source']}",
        )
    if not (folder / "executed.ipynb").is_file():
        return "incomplete", "there is no executed notebook"
    return _judge_record(run, folder, plan)


def _judge_record(run: Run, folder: Path, plan: Mapping[str, Any]) -> tuple[str, str]:
    if not (folder / "record.json").is_file():
        return "incomplete", "every cell completed but record.json is missing"
    try:
        record = read_record(folder / "record.json")
    except (BmflError, KeyError, TypeError) as error:
        return "error", f"record.json: {error}"
    if problems := unmet(run, [vars(r) for r in record.rows]):
        return "error", "bounds not met: " + "; ".join(problems)
    revisions = (plan.get("code_revision"), code_revision())
    if revisions[0] != revisions[1] or plan.get("code_digest") != code_digest():
        return "stale", f"made by code {revisions[0]}, the code is now {revisions[1]}"
    return "ok", ""


def unmet(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each expectation of a run that its rows do not meet."""
    found = []
    for bound in run.expect:
        fields = {k: v for k, v in bound.items() if k not in ("metric", "low", "high")} | {
            "name": bound["metric"]
        }
        label = ", ".join(f"{k}={v}" for k, v in fields.items())
        matching = [r for r in rows if all(r.get(k) == v for k, v in fields.items())]
        if not matching:
            found.append(f"no row with {label}")
        for row in matching:
            value, low, high = row["value"], bound.get("low"), bound.get("high")
            if (
                value is None
                or (low is not None and value < low)
                or (high is not None and value > high)
            ):
                found.append(f"{label} is {value}, expected from {low} to {high}")
    return found


def _locked(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(stream, fcntl.LOCK_UN)
    return False


def check_needs(runs: Sequence[Run], out: str | Path | None = None) -> None:
    """Check devices and needed runs before anything starts.

    Raises
    ------
    RunError
        If a needed spec is not all ok, or a GPU is needed and there is none.
    """
    from bmfl_lab.runs.spec import load_spec

    for name in sorted({n for r in runs for n in r.needs}):
        needed = load_spec(project_root() / "papermill_runs" / "specs" / f"{name}.yaml")
        states = [state_of(r, out)[0] for r in needed]
        if any(s != "ok" for s in states):
            got = f"states {', '.join(states)}"
            raise RunError(
                message(f"every run of spec {name!r} ok", got, f"run it first: run {name}.yaml")
            )
    if any(r.device == "cuda" for r in runs):
        from bmfl_lab.runtime import pick_device

        pick_device("cuda")


def execute(
    runs: Sequence[Run], *, out: str | Path | None = None, jobs: int = 1, force: bool = False
) -> list[str]:
    """Execute the runs that are not ok and return each run's final state.

    Parameters
    ----------
    runs : sequence of Run
        As `load_spec` returns them.
    out : str or Path, optional
        Folder of all runs.
    jobs : int, default 1
        How many notebooks at a time, each in a process of its own. They share the machine's cores,
        unless ``OMP_NUM_THREADS`` says otherwise.
    force : bool, default False
        Execute also what is ok.

    Raises
    ------
    RunError
        If a run cannot start: something needed is missing, or its folder cannot be made.
    """
    check_needs(runs, out)
    _stopping.clear()
    with _signals(), concurrent.futures.ThreadPoolExecutor(max(1, jobs)) as pool:
        return list(pool.map(lambda run: _one(run, out, force, jobs), runs))


def _one(run: Run, out: str | Path | None, force: bool, jobs: int) -> str:
    state, _ = state_of(run, out)
    folder = folder_of(run, out)
    if _stopping.is_set() or state == "running" or (state == "ok" and not force):
        print(f"{run.run_id}: {state}", flush=True)
        return state
    print(f"{run.run_id}: started, log in {folder / 'log.txt'}", flush=True)
    _prepare(run, folder)
    _wait(run, folder, jobs)
    state, reason = state_of(run, out)
    took = ""
    with contextlib.suppress(BmflError, TypeError, KeyError):
        took = f" in {read_json(folder / 'state.json')['seconds']} s"  # type: ignore[index]
    print(f"{run.run_id}: {state}{took}{': ' + reason if reason else ''}", flush=True)
    return state


def _prepare(run: Run, folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
        run_folder(folder)
        injected = {k: v for k, v in run.parameters.items()}
        if "out" in run.notebook.parameters():
            injected["out"] = str(folder.resolve())
        plan = {
            "spec": run.spec,
            "run_id": run.run_id,
            "notebook": run.notebook.path.name,
            "notebook_file": str(run.notebook.path.resolve()),
            "source_hash": run.notebook.source_hash(),
            "parameters": dict(run.parameters),
            "injected": injected,
            "cwd": str(project_root(run.notebook.path.parent)),
            "device": run.device,
            "cell_timeout_min": run.cell_timeout_min,
            "code_revision": code_revision(),
            "code_digest": code_digest(),
        }
        write_json(folder / "spec.json", plan)
    except OSError as error:
        raise RunError(
            message(f"a writable folder {folder}", str(error), "choose another with --out")
        ) from error


def _wait(run: Run, folder: Path, jobs: int) -> None:
    environment = {
        **KEEP_MEMORY,
        **os.environ,
        "BMFL_HEADLESS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    if jobs > 1:  # threads that wait for cores of another notebook make both several times slower
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    if run.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "bmfl_lab.runs.worker", str(folder.resolve())]
    with open(folder / "worker.log", "w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    _children.add(child)
    reason = ""
    try:
        child.wait(timeout=run.timeout_min * 60)
    except subprocess.TimeoutExpired:
        reason = f"it took longer than timeout_min={run.timeout_min:g}"
        _end(child)
    _children.discard(child)
    kill_kernel(folder)
    late = bool(reason)
    if late or not (folder / "state.json").is_file():
        last = (
            (folder / "worker.log")
            .read_text(encoding="utf-8", errors="replace")
            .strip()
            .splitlines()
        )
        reason = (
            reason
            or f"its worker ended with code {child.returncode}: {last[-1] if last else 'no message'}"
        )
        state = "error" if late or child.returncode >= 0 else "incomplete"
        write_json(folder / "state.json", {"state": state, "reason": reason})
    if not (folder / "worker.log").stat().st_size:
        (folder / "worker.log").unlink()


def _end(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(timeout=30)  # it still writes what was executed
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _signals():
    """End every worker, and so every kernel, when this process is told to stop."""

    def stop(number: int, frame: Any) -> None:
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

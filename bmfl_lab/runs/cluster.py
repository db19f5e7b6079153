"""Runs as jobs of SLURM, or of this machine in the same way, through submitit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bmfl_lab.errors import DataError, RunError, message
from bmfl_lab.files import read_json, write_json
from bmfl_lab.runs.execute import check_needs, execute_one, state_of, stop_on_signals
from bmfl_lab.runs.launch import Node, train_in_processes
from bmfl_lab.runs.paths import out_root
from bmfl_lab.runs.spec import Run

if TYPE_CHECKING:
    import submitit

CLUSTERS = ("slurm", "local")
"""Kinds of jobs: of SLURM, and processes of this machine, to try the same way without SLURM."""
_POLL_S = {"slurm": 3.0, "local": 0.3}
_DEFAULTS = {"gpus": 0, "cpus": 2, "memory_gb": 16}
"""Resources of a job whose spec requests none (our choice)."""
_PORTS = (20_000, 32_000)
"""Ports for the processes of several nodes: below those that Linux gives to connections."""
_EXTRA_MIN = 5
"""Minutes that a job may take beyond its run, which ends itself in time (our choice)."""
_PARAMETERS = {
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "memory_gb": "mem_gb",
    "minutes": "timeout_min",
    "partition": "slurm_partition",
}
"""Resources of a spec that have another name among the parameters of submitit."""


@dataclass(frozen=True)
class ExecuteRun:
    """What a job does: execute one run; after preemption or a time-out the job does it again.

    Trained models and the newest checkpoint of a training are kept in the cache folder, so that the
    second time goes on where the first stopped. A job of several nodes trains the models on all of
    them, and its first node then executes the notebook, which reads the models.
    """

    run: Run
    out: str | None
    force: bool

    def __call__(self) -> str:
        """Execute the run and return its state."""
        if (count := self.run.resources.get("nodes", 1)) > 1:
            node = _this_node(count)
            self._train(node)
            if node.rank:
                return "trained"
        return execute_one(self.run, self.out, self.force)

    def _train(self, node: Node) -> None:
        """Train the models of the run, together with its other nodes."""
        given, folder = self.run.parameters, _jobs_folder(self.run, self.out) / self.run.run_id
        with contextlib.chdir(self.run.root):  # a relative study is found from there
            stem, n_processes = self.run.notebook.stem, given.get("n_processes", 1)
            train_in_processes(n_processes, stem, given, folder, node)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job that SLURM queues again when it stops this one."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _this_node(count: int) -> Node:
    """Return which node of its job this process runs on, and where all of them meet.

    Each start of a job has a port of its own, so that a requeued job cannot join the rendezvous of
    the processes that it left behind.
    """
    import submitit

    job = submitit.JobEnvironment()
    address = job.hostnames[0] if job.cluster == "slurm" else "127.0.0.1"
    start = f"{job.job_id} {os.environ.get('SLURM_RESTART_COUNT', 0)}"
    port = _PORTS[0] + zlib.crc32(start.encode()) % (_PORTS[1] - _PORTS[0])
    return Node(count, job.global_rank, address, port)


def execute_as_jobs(
    runs: Sequence[Run],
    cluster: str,
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    force: bool = False,
) -> list[str]:
    """Submit the runs that are not ok as jobs, wait for them, and return each run's final state.

    Interrupting stops the waiting and cancels jobs of this machine; jobs of SLURM go on, and
    `job_of` finds them.

    Parameters
    ----------
    runs : sequence of Run
        Runs of a spec. Those that need the same resources form one job array.
    cluster : "slurm" or "local"
        See `CLUSTERS`.
    out : str or Path, optional
        Folder of all runs. Every node must see it under the same path.
    jobs : int, default 1
        Number of jobs at a time.
    force : bool, default False
        Execute runs that are ok, too.

    Returns
    -------
    list of str
        The state of each run, see `bmfl_lab.runs.execute.state_of`.

    Raises
    ------
    RunError
        If submitit is not installed, or SLURM's commands are missing.
    """
    check_needs(runs, out)
    place = str(out_root(out, runs[0].root).resolve())
    waiting = [ExecuteRun(r, place, force) for r in runs if force or state_of(r, out)[0] != "ok"]
    running: list[submitit.Job] = []
    try:
        with stop_on_signals():
            while waiting or running:
                if cluster == "slurm":
                    running, waiting = running + _submit_arrays(waiting, jobs), []
                while waiting and len(running) < jobs:
                    running += _submit([waiting.pop(0)], cluster, 1)
                for job in [job for job in running if _ended(job, cluster)]:
                    end = f"failed ({problem})" if (problem := _problem(job)) else "ended"
                    print(f"job {job.job_id}: {end}, log in {job.paths.stdout}", flush=True)
                    running.remove(job)
                time.sleep(_POLL_S[cluster] if running else 0)
    finally:
        for job in running if cluster == "local" else ():
            job.cancel()
    states = [state_of(run, out) for run in runs]
    for run, (state, reason) in zip(runs, states):
        print(f"{run.run_id}: {state}{': ' + reason if reason else ''}", flush=True)
    return [state for state, _ in states]


def _ended(job: submitit.Job, cluster: str) -> bool:
    # submitit asks sacct, which knows nothing where SLURM keeps no accounts
    if cluster == "slurm":
        return job.paths.result_pickle.exists() or not _queued(job.job_id)
    return job.done()


def _problem(job: submitit.Job) -> str:
    """Return the last line of the error that ended a job, or an empty text."""
    if not job.paths.result_pickle.exists():
        return ""
    error = job.exception()
    return str(error).strip().splitlines()[-1] if error is not None else ""


def _queued(job_id: str) -> str:
    """Return SLURM's word for the state of a job, empty if it is no longer in the queue."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return "UNKNOWN"  # the controller does not answer now
    return asked.stdout.strip()


def _submit_arrays(tasks: Sequence[ExecuteRun], jobs: int) -> list[submitit.Job]:
    alike: dict[str, list[ExecuteRun]] = {}
    for task in tasks:
        key = str((sorted(task.run.resources.items()), task.run.timeout_min))
        alike.setdefault(key, []).append(task)
    return [job for group in alike.values() for job in _submit(group, "slurm", jobs)]


def _submit(tasks: Sequence[ExecuteRun], cluster: str, jobs: int) -> list[submitit.Job]:
    """Submit tasks of the same resources as one array, and note the job of each run."""
    try:
        import submitit

        first = tasks[0].run
        executor = submitit.AutoExecutor(_jobs_folder(first, tasks[0].out) / "%j", cluster)
        minutes = {"minutes": int(first.timeout_min) + _EXTRA_MIN}
        chosen = _DEFAULTS | minutes | dict(first.resources)
        if cluster == "local":  # where each node is a process of this machine
            chosen["tasks_per_node"] = chosen.pop("nodes", 1)
        executor.update_parameters(
            name=f"bmfl-{first.spec}",
            **{_PARAMETERS.get(k, k): v for k, v in chosen.items()},
            **({"slurm_array_parallelism": jobs} if cluster == "slurm" else {}),
        )
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        raise RunError(
            message(
                f"jobs of {cluster}",
                str(error),
                "install the extra 'cluster' (submitit), and start this where SLURM's sbatch is "
                "found; or leave --executor out to run on this machine",
            )
        ) from error
    for task, job in zip(tasks, submitted):
        note = {"job": job.job_id, "cluster": cluster, "log": str(job.paths.stdout)}
        write_json(_jobs_folder(task.run, task.out) / f"{task.run.run_id}.json", note)
        print(f"{task.run.run_id}: job {job.job_id}, log in {job.paths.stdout}", flush=True)
    return submitted


def _jobs_folder(run: Run, out: str | Path | None) -> Path:
    return out_root(out, run.root) / ".jobs" / run.spec


def job_of(run: Run, out: str | Path | None = None) -> str:
    """Return the last job of a run, SLURM's state of it and its log, or an empty text."""
    note = _jobs_folder(run, out) / f"{run.run_id}.json"
    if not note.is_file():
        return ""
    try:
        found = read_json(note)
        state = f" {_queued(found['job']) or 'ended'}" if found["cluster"] == "slurm" else ""
        return f"job {found['job']} of {found['cluster']}{state}, log {found['log']}"
    except (DataError, KeyError, TypeError, OSError) as error:
        return f"a job that cannot be looked up: {error}"

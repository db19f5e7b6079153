"""Train the models of a notebook in several processes, each with a device of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bmfl_lab.errors import RunError, require
from bmfl_lab.files import write_json
from bmfl_lab.runtime import project_root


@dataclass(frozen=True)
class Node:
    """One of several nodes whose processes train together.

    Parameters
    ----------
    count, rank : int
        Number of nodes, and which of them this is; node 0 holds the first process.
    address : str
        Name or address of node 0, as the other nodes reach it.
    port : int
        Port of the rendezvous on node 0.
    """

    count: int
    rank: int
    address: str
    port: int


def train_in_processes(
    n_processes: int,
    stem: str,
    parameters: Mapping[str, object],
    folder: str | Path,
    node: Node | None = None,
) -> None:
    """Train a notebook's models under ``torchrun``, and print what the processes print.

    The notebook then reads the models from the cache folder, as `bmfl_lab.training` keeps them.

    Parameters
    ----------
    n_processes : int
        Number of processes on this machine, one per GPU.
    stem : str
        Stem of the notebook, "03_fusion_training".
    parameters : mapping
        Its parameters without ``out``.
    folder : str or Path
        Folder of the run; ``training.yaml`` in it is the spec that the processes train.
    node : Node, optional
        This node, if the processes of several nodes train together; each of them calls this
        function.

    Raises
    ------
    RunError
        If a process fails. What the other processes trained is kept, and running again continues.

    Notes
    -----
    `accelerate.notebook_launcher` forks the kernel. PyTorch's threads do not survive a fork, and a
    kernel that has used CUDA cannot be forked at all; processes that start anew have neither limit.
    """
    spec = Path(folder) / ("training.yaml" if node is None else f"training-{node.rank}.yaml")
    notebook = project_root() / "notebooks" / f"{stem}.ipynb"
    write_json(spec, {"notebook": str(notebook), "params": dict(parameters)})
    command = [sys.executable, "-m", "torch.distributed.run", *_rendezvous(node)]
    command += ["--nproc_per_node", str(n_processes), "-m", "bmfl_lab.training", str(spec)]
    command += ["--train-only"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_processes)))
    child = subprocess.Popen(
        [*command, "--cwd", os.getcwd()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    lines: list[str] = []
    try:
        for line in child.stdout:
            lines = [*lines[-50:], line.strip()]
            print(line, end="", flush=True)
    finally:  # an interrupted cell stops its processes, which save their step
        if child.poll() is None:
            child.terminate()
        code = child.wait()
    problem = next((x for x in lines if x.startswith("error: ")), lines[-1] if lines else "")
    require(
        code == 0,
        RunError,
        f"{n_processes} processes that train to the end",
        f"exit code {code}: {problem}",
        "mend what the lines above say and run the cell again; it goes on where they stopped",
    )


def _rendezvous(node: Node | None) -> list[str]:
    """Return the options of torchrun that say where the processes find each other."""
    if node is None:
        return ["--standalone"]
    where = {
        "nnodes": node.count,
        "node_rank": node.rank,
        "master_addr": node.address,
        "master_port": node.port,
    }
    return [f"--{name}={value}" for name, value in where.items()]

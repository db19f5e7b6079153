"""Trainings that are killed and resumed: ``python kill_trials.py random|inside|world FOLDER N PROCESSES`` prints JSON.

This process imports everything once and forks every training, so that a trial costs the training
and not its imports. It never trains itself and has one thread, so that its children start as fresh
as a new interpreter would.
"""

import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import accelerate  # noqa: F401  imported once for all children, as is what an optimiser imports when made
import fit_example as example
import numpy as np
import torch
import torch._dynamo
from torch import nn

from bmfl_lab.training import checkpoint

PATIENCE = 60.0
"""Seconds after which a survivor of a killed process counts as hanging."""
SHORT = 2
"""Epochs of the trainings that die inside a save."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(folder, epochs=6, loss=example.loss_fn, model=None):
    """Train in a child and leave ``rank-<r>.txt`` with the digest, the losses and the notes."""
    result = example.train(folder, loss, model, epochs=epochs)
    found = {
        "digest": example.digest(result),
        "loss": [r["loss"] for r in result.history],
        "notes": result.notes,
    }
    (folder / f"rank-{os.environ.get('RANK', 0)}.txt").write_text(json.dumps(found))


def train_in_part(folder, stop=0):
    """Train without dropout, and leave at a step; note which rows each step saw, in ``rows-<rank>.txt``."""
    calls, rank = 0, os.environ.get("RANK", "0")
    model = nn.Sequential(
        *[layer for layer in example.module() if not isinstance(layer, nn.Dropout)]
    )

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if stop and calls > stop:
            os._exit(0)
        with open(folder / f"rows-{rank}.txt", "a") as log:
            log.write(json.dumps(batch["index"].tolist()) + "\n")
        return example.loss_fn(model, batch)

    folder.mkdir(exist_ok=True)
    train(folder, loss=loss, model=model)


def start(processes, function, *arguments):
    """Fork one child a process, joined by gloo where there are several; return their ids."""
    port, children = free_port(), []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            log = os.open(
                arguments[0].parent / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND
            )
            os.dup2(log, 1), os.dup2(log, 2)
            if processes > 1:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
                os.environ.update(
                    LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
                )
            function(*arguments)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return children


def wait(children):
    """Return the exit codes of children and the seconds until the last of them ended; kill what hangs."""
    began, codes = time.monotonic(), {}
    while len(codes) < len(children) and time.monotonic() - began < PATIENCE:
        for child in set(children) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    took = time.monotonic() - began
    for child in set(children) - set(codes):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [codes.get(child) for child in children], took


def finish(folder, processes, epochs=6):
    """Resume to the end and return the digest of every process."""
    codes, _ = wait(start(processes, train, folder, epochs))
    if codes != [0] * processes:
        return [f"exit codes {codes}"]
    return [json.loads((folder / f"rank-{r}.txt").read_text())["digest"] for r in range(processes)]


def until(true):
    """Wait for a condition, for as long as patience lasts."""
    began = time.monotonic()
    while not true() and time.monotonic() - began < PATIENCE:
        time.sleep(0.002)


def state_of(folder):
    """Return the newest step on disk and whether the folder holds a save that was not completed."""
    if not folder.is_dir():
        return None, False
    manifests = {p.stem for p in folder.glob("step-*.json")}
    half = [p for p in folder.glob("step-*.safetensors") if p.stem not in manifests] + list(
        folder.glob(".step-*.tmp")
    )
    return checkpoint.newest_step(folder), bool(half)


def dying_in_save(folder, at):
    """Train, and be killed at call number `at` among those that a save makes to the disk."""
    calls = 0

    def counted(name, owner, half=None):
        original = getattr(owner, name)

        def wrapped(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == at:
                if half:
                    half(original, *arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, wrapped)

    counted("fsync", os)
    counted("replace", os)
    counted("unlink", Path)
    counted(
        "write_bytes",
        Path,
        half=lambda original, path, data: original(path, data[: len(data) // 2]),
    )
    train(folder, SHORT)


def rows_seen(folder):
    """Return the rows of each step, those of all processes together."""
    logs = [
        [json.loads(line) for line in p.read_text().splitlines()]
        for p in sorted(folder.glob("rows-*.txt"))
    ]
    for log in folder.glob("rows-*.txt"):
        log.unlink()
    return [sorted(row for part in parts for row in part) for parts in zip(*logs)]


def other_worlds(root, n, processes, seed):
    """Stop at step `n` with 1 and with 2 processes, go on with the other number; return losses, notes and rows.

    ``"never"`` is the training that was not stopped.
    """
    wait(start(1, train_in_part, root / "never"))
    found = {"never": json.loads((root / "never" / "rank-0.txt").read_text())}
    for first, then in ((1, 1), (1, 2), (2, 1), (2, 2)):
        folder = root / f"{first}-{then}"
        codes, _ = wait(start(first, train_in_part, folder, n))
        rows, step = rows_seen(folder), checkpoint.newest_step(folder)
        codes += wait(start(then, train_in_part, folder))[0]
        ended = json.loads((folder / "rank-0.txt").read_text())
        found[f"{first}-{then}"] = {
            **ended,
            "codes": codes,
            "step": step,
            "rows": rows + rows_seen(folder),
        }
    return found


def trials_at_random(root, n, processes, seed):
    """Kill one or all processes at random instants until `n` kills hit a training that was under way."""
    generator, reference, spans = np.random.default_rng(seed), [], []
    for i in range(3):
        began = time.monotonic()
        reference += finish(root / f"reference-{i}", processes)
        spans.append(time.monotonic() - began)
    found = {
        "reference": sorted(set(reference)),
        "kills": 0,
        "same": 0,
        "half": 0,
        "steps": [],
        "survivor_s": 0.0,
    }
    for trial in range(3 * n):
        if found["kills"] == n:
            break
        folder = root / str(trial)
        children = start(processes, train, folder)
        whom = generator.integers(0, processes + 1)  # one of them, or all
        if processes > 1 and whom < processes:
            # before the first step a process waits for one that never comes, which is the
            # launcher's to see
            until(lambda folder=folder: state_of(folder)[0] is not None)
            time.sleep(generator.uniform(0, 0.5 * min(spans)))
        else:
            time.sleep(generator.uniform(0, min(spans)))
        for child in children if whom == processes else [children[whom]]:
            os.kill(child, signal.SIGKILL)
        codes, took = wait(children)
        step, half = state_of(folder)
        if any(codes):
            found["kills"] += 1
            found["survivor_s"] = max(found["survivor_s"], took)
            found["steps"].append(step or 0)
            found["half"] += half
            found["same"] += sorted(set(finish(folder, processes))) == found["reference"]
        shutil.rmtree(folder, ignore_errors=True)
    return found


def trials_in_save(root, n, processes, seed):
    """Kill the training at each of the first `n` calls that its saves make to the disk."""
    reference = finish(root / "reference", processes, SHORT)
    found = {"reference": sorted(set(reference)), "same": 0, "half": 0, "steps": []}
    for at in range(1, n + 1):
        folder = root / str(at)
        wait(start(processes, dying_in_save, folder, at))
        step, half = state_of(folder)
        found["steps"].append(step or 0)
        found["half"] += half
        found["same"] += sorted(set(finish(folder, processes, SHORT))) == found["reference"]
        shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, where, count, world, *rest = sys.argv[1:]
    Path(where).mkdir(parents=True, exist_ok=True)
    run = {"random": trials_at_random, "inside": trials_in_save, "world": other_worlds}[kind]
    print(json.dumps(run(Path(where), int(count), int(world), int(rest[0]) if rest else 0)))

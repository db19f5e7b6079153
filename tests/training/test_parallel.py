"""Trainings in parallel: the same bits as in sequence, and nothing lost when one process ends."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import fit_example as example
import numpy as np
import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.errors import DataError
from bmfl_lab.training import checkpoint, compare, fusion, train_brain_encoder
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.context import Context
from bmfl_lab.training.loop import Stopped
from bmfl_lab.training.parallel import train_each
from bmfl_lab.training.recipes import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:expected at most 5%"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no gradients after a fork beside CUDA"),
]
CONFIG = tiny(kind="pooled:4", loop=configs.replace(tiny().loop, epochs=3))


@pytest.fixture
def kept(tmp_path):
    """Return a context on the CPU that keeps models."""
    return Context("cpu", FeatureStore(tmp_path / "features"), models=tmp_path)


def trainings(folder, count, body):
    """Return trainings that note their process in a file, and then do what `body` says."""

    def make(k):
        def train(context):
            file = folder / f"{k}.kept"
            if not file.exists() or context.fresh:
                with open(folder / "log", "a") as log:
                    log.write(f"{k} {os.getpid()}\n")
                body(k)
                file.write_text(str(k * k))
            return int(file.read_text())

        return train

    return [make(k) for k in range(count)]


def noted(folder):
    """Return which process worked at which training, in the order in which they began."""
    lines = (folder / "log").read_text().split("\n")[:-1]
    return [tuple(map(int, line.split())) for line in lines]


def runs(process):
    """Tell whether a process runs; one that ended may wait for process 1 to notice."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_models_trained_in_parallel_are_those_of_one_thread_to_the_bit(
    tmp_path, two_threads, monkeypatch, small_study
):
    study, store = small_study, FeatureStore(tmp_path / "features")
    encoder = train_brain_encoder(
        encoders.tiny("ridge"), study, store=store, folder=tmp_path / "encoder", device="cpu"
    )

    original = fusion.fit

    def noted_fit(*arguments, **options):
        with open(tmp_path / "log", "a") as log:
            log.write(f"{torch.get_num_threads()} {os.getpid()}\n")
        return original(*arguments, **options)

    monkeypatch.setattr(fusion, "fit", noted_fit)

    def train(threads):
        torch.set_num_threads(threads)
        options = {"models": ["backbone", "fusion"], "seeds": [0, 1], "device": "cpu"}
        options |= {"encoder": encoder, "store": store, "folder": tmp_path / str(threads)}
        found = compare.train_comparison(CONFIG, study, **options)
        assert torch.get_num_threads() == threads
        return found

    together = train(2)
    threads, workers = zip(*noted(tmp_path))
    assert threads == (1, 1, 1, 1) and len(set(workers)) == 2 and os.getpid() in workers
    alone = train(1)
    assert noted(tmp_path)[4:] == [(1, os.getpid())] * 4
    for name, group in alone.items():
        assert [model.seed for model in together[name]] == [0, 1]
        for one, other in zip(group, together[name]):
            assert one.history == other.history and other.notes == ()
            np.testing.assert_array_equal(
                *(model.logits(study.set("test")) for model in (one, other))
            )


def test_every_training_takes_place_once_in_one_of_two_processes(tmp_path, kept, two_threads):
    found = train_each(trainings(tmp_path, 6, lambda k: time.sleep(0.2)), kept, lambda: 2)
    assert found == [0, 1, 4, 9, 16, 25]
    began, workers = zip(*noted(tmp_path))
    assert sorted(began) == list(range(6))
    assert os.getpid() in workers and len(set(workers)) == 2


def test_every_model_is_trained_once_more_if_fresh_ones_are_asked_for(tmp_path, kept, two_threads):
    fresh = dataclasses.replace(kept, fresh=True)
    for times in (1, 2):
        found = train_each(trainings(tmp_path, 4, lambda k: time.sleep(0.1)), fresh, lambda: 2)
        assert found == [0, 1, 4, 9]
        assert sorted(k for k, _ in noted(tmp_path)) == sorted(times * [0, 1, 2, 3])
    assert len({worker for _, worker in noted(tmp_path)}) == 3  # this one, and one each time


def test_one_process_works_where_memory_or_trainings_are_for_one(tmp_path, kept, two_threads):
    train_each(trainings(tmp_path, 3, lambda k: None), kept, lambda: 1)
    (tmp_path / "0.kept").unlink()
    train_each(trainings(tmp_path, 1, lambda k: None), kept, lambda: 2)
    assert {worker for _, worker in noted(tmp_path)} == {os.getpid()}


def test_what_a_killed_process_did_not_finish_is_trained_here(tmp_path, kept, two_threads):
    mine = os.getpid()

    def die(k):
        time.sleep(0.2)
        if os.getpid() != mine:
            os.kill(os.getpid(), signal.SIGKILL)

    assert train_each(trainings(tmp_path, 4, die), kept, lambda: 2) == [0, 1, 4, 9]
    tried = [k for k, worker in noted(tmp_path) if worker != mine]
    assert len(tried) == 1
    assert sorted(k for k, worker in noted(tmp_path) if worker == mine) == [0, 1, 2, 3]


def test_an_error_of_another_process_is_raised_here(tmp_path, kept, two_threads, capfd):
    mine, failed = os.getpid(), tmp_path / "failed"

    def fail(k):
        time.sleep(0.2)
        if os.getpid() != mine:
            failed.write_text(str(k))
        if failed.exists() and failed.read_text() == str(k):
            raise DataError(f"image {k} is broken; remove it")

    with pytest.raises(DataError, match=r"image \d is broken; remove it") as caught:
        train_each(trainings(tmp_path, 3, fail), kept, lambda: 2)
    assert failed.read_text() in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_stopped_training_of_another_process_has_saved_its_step(tmp_path, kept, two_threads):
    mine, whole = os.getpid(), example.train()

    def loss(model, batch):
        if os.getpid() != mine:
            (tmp_path / "begun").touch()
            time.sleep(0.1)
        return example.loss_fn(model, batch)

    def train(context):
        if os.getpid() != mine:
            # checkpoints at the end of the whole training alone, or when it is stopped
            return example.train(tmp_path / "run", loss, checkpoint_every=1000)
        while not (tmp_path / "begun").exists():
            time.sleep(0.1)
        time.sleep(0.5)
        raise KeyboardInterrupt

    with pytest.raises(Stopped):
        train_each([train, train], kept, lambda: 2)
    assert 0 < checkpoint.newest_step(tmp_path / "run") < 60
    resumed = example.train(tmp_path / "run", checkpoint_every=1000)
    assert [epoch["epoch"] for epoch in resumed.history] == [
        epoch["epoch"] for epoch in whole.history
    ]


@pytest.fixture(params=["default", "own"])
def handled(request):
    """Handle SIGTERM as a process does by default, or as a server does, which only notes it."""
    own = (lambda *_: None) if request.param == "own" else signal.SIG_DFL
    before = signal.signal(signal.SIGTERM, own)
    yield own
    signal.signal(signal.SIGTERM, before)


def test_sigterm_while_others_train_stops_them(tmp_path, kept, two_threads, handled):
    mine, other = os.getpid(), tmp_path / "other"

    def wait(k):
        while os.getpid() == mine:
            if other.exists():
                return
            time.sleep(0.1)
        other.write_text(str(os.getpid()))
        time.sleep(1)
        os.kill(mine, signal.SIGTERM)
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        train_each(trainings(tmp_path, 2, wait), kept, lambda: 2)
    assert caught.value.code == 143 and time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(other.read_text()), 0)
    assert signal.getsignal(signal.SIGTERM) == handled


def test_an_interrupt_stops_the_other_processes(tmp_path, kept, two_threads, handled):
    mine = os.getpid()

    def interrupted(k):
        time.sleep(0.3)
        if os.getpid() == mine:
            raise KeyboardInterrupt
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(Stopped, match="run the cell again"):
        train_each(trainings(tmp_path, 2, interrupted), kept, lambda: 2)
    other = next(worker for _, worker in noted(tmp_path) if worker != mine)
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)
    assert time.monotonic() - began < 30


def test_other_processes_end_after_their_parent_was_killed(tmp_path):
    script = f"""
import os, pathlib, time, torch
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.training.parallel import train_each
from bmfl_lab.training.context import Context
torch.set_num_threads(2)
folder = pathlib.Path({str(tmp_path)!r})
def train(context):
    (folder / str(os.getpid())).write_text("")
    time.sleep(600)
train_each([train, train], Context("cpu", FeatureStore(folder / "features"), models=folder), lambda: 2)
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    workers = []
    while len(workers) < 2:
        assert parent.poll() is None
        time.sleep(0.1)
        workers = [int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()]
    parent.kill()
    parent.wait()
    (other,) = set(workers) - {parent.pid}
    deadline = time.monotonic() + 60
    while runs(other) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(other)


def test_a_cell_shows_what_other_processes_say_and_can_be_stopped_and_run_again(
    tmp_path, monkeypatch, run_cells
):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a kernel that sees it shows no output of others
    first = f"""
import os, pathlib, signal, time, torch
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.training.parallel import train_each
from bmfl_lab.training.context import Context
torch.set_num_threads(2)
folder, mine = pathlib.Path({str(tmp_path)!r}), os.getpid()
context = Context("cpu", FeatureStore(folder / "features"), models=folder)
def training(k):
    def train(context):
        if not (folder / str(k)).exists():
            time.sleep(0.5)
            if os.getpid() == mine and interrupts:
                os.kill(mine, signal.SIGINT)
            x = torch.ones(64, 64, requires_grad=True)
            (x @ x).sum().backward()
            print("trained", k, "here" if os.getpid() == mine else "elsewhere", flush=True)
            (folder / str(k)).write_text(str(float(x.grad.sum())))
        return float((folder / str(k)).read_text())
    return train
"""
    train = "print(train_each([training(k) for k in range(4)], context, lambda: 2))"
    _, stopped, again = run_cells(
        first, f"interrupts = True; {train}", f"interrupts = False; {train}"
    )
    (error,) = [o for o in stopped.outputs if o.output_type == "error"]
    assert error.traceback == ["stopped while other processes trained; run the cell again"]
    said = "".join(o.text for o in again.outputs)
    assert "here" in said and "elsewhere" in said
    assert said.rstrip().endswith(str([2.0 * 64**3] * 4))

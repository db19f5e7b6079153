"""The training loop: same bits after an interruption, named selection, and refusals."""

import errno
import functools
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fit_example as example
import numpy as np
import pytest
import torch
from torch import nn

from bmfl_lab import runtime
from bmfl_lab.errors import CheckpointError, ConfigError, DataError, NumericsError
from bmfl_lab.files import lock
from bmfl_lab.training import LoopConfig, checkpoint, fit, loop
from bmfl_lab.training.batches import Order
from bmfl_lab.training.loop import learning_rate

SCRIPT = Path(__file__).with_name("fit_example.py")
RELEASED = Path(__file__).with_name("released")
"""One folder per schema of checkpoints: the example's run, stopped at step 23. Add one whenever the
schema changes."""


def _elsewhere(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.fixture(scope="module")
def whole():
    """Return the run that nothing interrupts."""
    return example.train()


def test_it_learns_and_selects_by_validation(whole):
    best = max(row["val_accuracy"] for row in whole.history)
    first = next(row["epoch"] for row in whole.history if row["val_accuracy"] == best)
    assert best > 0.6 and whole.epoch == first and whole.selection == "best val_accuracy"
    model = example.module()
    model.load_state_dict(whole.state)
    model.eval()
    assert example.validate(model)["val_accuracy"] == best


def test_a_run_is_a_function_of_its_seed_and_leaves_the_global_generators_alone(whole):
    model = example.module()  # building it draws from the global generator
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = example.train(model=model)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert example.digest(again) == example.digest(whole)
    assert example.digest(example.train(seed=1)) != example.digest(whole)


def test_lines_of_a_training_give_speed_time_left_loss_and_validation(monkeypatch, capsys):
    monkeypatch.setenv("BMFL_HEADLESS", "1")
    monkeypatch.setattr(loop, "progress", functools.partial(runtime.progress, every=0.0))
    losses = []

    def loss(model, batch):
        value, parts = example.loss_fn(model, batch)
        losses.append(value.item())
        return value, parts

    history = example.train(loss=loss).history
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 60  # ten steps in each of six epochs
    line = re.fullmatch(
        r"training steps: 14/60 after \d+ s, about \d+ s left; [\d,]+ images/s, "
        r"loss (\S+), val_accuracy (\S+)",
        lines[13],
    )
    assert float(line[1]) == pytest.approx(np.mean(losses[10:14]), rel=0.01)
    assert float(line[2]) == pytest.approx(history[0]["val_accuracy"], rel=0.01)


def _interrupt(folder, after):
    calls = 0

    class Stop(Exception):
        pass

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if calls > after:
            raise Stop
        return example.loss_fn(model, batch)

    with pytest.raises(Stop):
        example.train(folder, loss)


def test_a_loss_that_draws_from_the_global_generators_resumes_to_the_bit(tmp_path):
    def noisy(model, batch):
        noise = random.gauss(0, 1) + np.random.standard_normal() + torch.rand(())  # noqa: NPY002
        loss, parts = example.loss_fn(model, batch)
        return loss + 0.1 * noise * model[0].weight.mean(), parts

    class Stop(Exception):
        pass

    def stopping(model, batch):
        if checkpoint.newest_step(tmp_path) == 13:
            raise Stop
        return noisy(model, batch)

    whole = example.train(loss=noisy)
    with pytest.raises(Stop):
        example.train(tmp_path, stopping)
    assert example.digest(example.train(tmp_path, noisy)) == example.digest(whole)


@pytest.mark.parametrize("after", [1, 10, 37])
def test_resume_gives_the_same_bits(tmp_path, whole, after):
    _interrupt(tmp_path, after)
    assert checkpoint.newest_step(tmp_path) == after
    assert example.digest(example.train(tmp_path)) == example.digest(whole)
    assert example.digest(example.train(tmp_path)) == example.digest(
        whole
    )  # a finished run just loads


@pytest.mark.parametrize(
    "name, code", [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_step_saves_and_a_fresh_process_resumes_to_the_bit(
    tmp_path, whole, name, code
):
    stopped = _elsewhere(tmp_path, f"13:{name}")
    assert stopped.returncode == code, stopped.stderr
    assert float(re.search(r"ended ([0-9.]+) s after", stopped.stderr)[1]) < 10
    assert "stopped at step 13 of 60; start it again to go on" in stopped.stdout
    assert checkpoint.newest_step(tmp_path) == 13
    if name == "SIGTERM":
        assert _elsewhere(tmp_path).stdout.split()[-1] == example.digest(whole)


def test_an_interrupted_cell_ends_with_one_sentence_and_goes_on_to_the_bit(
    tmp_path, whole, run_cells
):
    lines = [
        "import os, signal, sys",
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})",
        "import fit_example as example",
        "calls = []",
        "def loss(model, batch):",
        "    calls.append(1)",
        "    if len(calls) == 13: os.kill(os.getpid(), signal.SIGINT)",
        "    return example.loss_fn(model, batch)",
    ]
    cell = f"print(example.digest(example.train({str(tmp_path / 'run')!r}, loss)))"
    _, stopped, again = run_cells("\n".join(lines), cell, cell)
    (error,) = [o for o in stopped.outputs if o.output_type == "error"]
    assert error.traceback == ["stopped at step 13 of 60; run the cell again to go on"]
    assert again.outputs[-1].text.split()[-1] == example.digest(whole)


@pytest.mark.slow
def test_every_step_resumes_to_the_bit(tmp_path, whole):
    for after in range(1, 60):
        _interrupt(tmp_path / str(after), after)
        assert example.digest(example.train(tmp_path / str(after))) == example.digest(whole), after


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    stopped = _elsewhere(tmp_path, "13:SIGTERM:SIGTERM")
    assert (
        stopped.returncode == -15 and checkpoint.newest_step(tmp_path) == 12
    )  # the step was not finished


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"to write in the run folder .*make it writable, or choose another folder"
    ):
        example.train(tmp_path / "file" / "run")
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom no mode keeps from writing
        monkeypatch.setattr("builtins.open", _refusing(open, folder))
    with pytest.raises(DataError, match=r"to write in the run folder .*Permission denied"):
        example.train(folder)
    assert not list(folder.iterdir())


def _refusing(original, folder):
    def refused(path, *arguments, **options):
        if Path(str(path)).parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    return refused


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_to_resume_from(
    tmp_path, whole, monkeypatch
):
    write, calls = Path.write_bytes, 0

    def filling(self, data):
        nonlocal calls
        calls += 1
        if calls > 2 * 7:
            write(self, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(CheckpointError, match=r"room for \d+ bytes in .*; got a full disk"):
        example.train(tmp_path)
    monkeypatch.undo()
    assert checkpoint.newest_step(tmp_path) == 7 and not list(tmp_path.glob(".step*"))
    assert example.digest(example.train(tmp_path)) == example.digest(whole)


def test_a_moved_folder_resumes_to_the_same_bits(tmp_path, whole):
    _interrupt(tmp_path / "here", 23)
    (tmp_path / "here").rename(tmp_path / "there")
    assert example.digest(example.train(tmp_path / "there")) == example.digest(whole)


def test_old_checkpoints_go_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    seen = []
    prune = checkpoint.prune

    def watched(folder, keep):
        keep = set(keep)
        seen.append(all((Path(folder) / f"{checkpoint.step_name(s)}.json").is_file() for s in keep))
        prune(folder, keep)

    monkeypatch.setattr(checkpoint, "prune", watched)
    result = example.train(tmp_path)
    assert all(seen) and len(seen) == 60
    assert [p.stem for p in tmp_path.glob("step-*.json")] == [checkpoint.step_name(60)]
    tensors, _ = checkpoint.read_bundle(tmp_path, checkpoint.step_name(60))
    assert result.epoch < 6  # so that the selected weights are not the last ones
    for name, value in result.state.items():
        assert torch.equal(tensors[f"best.{name}"], value)
    assert [p.stem for p in tmp_path.glob("*.safetensors")] == [checkpoint.step_name(60)]


def test_another_choice_is_refused_unless_allowed(tmp_path):
    _interrupt(tmp_path, 12)
    with pytest.raises(CheckpointError, match=r"lr: stored 0\.01, now 0\.02"):
        example.train(tmp_path, lr=0.02)
    with pytest.raises(CheckpointError, match="study: stored None, now 'b'"):
        example.train(tmp_path, manifest={"study": "b"})
    assert len(example.train(tmp_path, lr=0.02, allow_change=("lr",)).history) == 6


def test_another_architecture_or_other_data_are_refused(tmp_path, monkeypatch):
    _interrupt(tmp_path, 3)
    with pytest.raises(CheckpointError, match="architecture: stored"):
        example.train(tmp_path, model=nn.Linear(6, 3))
    original = example.data
    monkeypatch.setattr(
        example, "data", lambda n=50: {k: v + (k == "x") for k, v in original(n).items()}
    )
    with pytest.raises(CheckpointError, match="data: stored"):
        example.train(tmp_path)


@pytest.mark.parametrize("schema", sorted(p.name for p in RELEASED.iterdir()))
def test_a_checkpoint_of_every_released_schema_is_resumed(tmp_path, whole, schema):
    shutil.copytree(RELEASED / schema, tmp_path / "run")
    # written on another processor, where the bits of the random data may differ already
    resumed = example.train(tmp_path / "run", allow_change=("data",))
    assert checkpoint.newest_step(tmp_path / "run") == 60
    for row, expected in zip(resumed.history, whole.history, strict=True):
        assert (
            row["loss"] == pytest.approx(expected["loss"], abs=1e-3)
            and row["epoch"] == expected["epoch"]
        )


def test_starting_afresh_forgets_the_old_run(tmp_path, whole):
    example.train(tmp_path, lr=0.02)
    assert example.digest(example.train(tmp_path, resume=False)) == example.digest(whole)


def test_a_second_process_is_refused_and_told_who_works(tmp_path):
    with (
        lock(tmp_path / ".lock"),
        pytest.raises(DataError, match=r"sole use of the run folder .* process \d+ at work"),
    ):
        example.train(tmp_path)


def test_a_foreign_run_is_refused_before_its_tensors_are_read(tmp_path):
    _interrupt(tmp_path, 3)
    (tmp_path / "step-00000003.safetensors").write_bytes(b"not read")
    with pytest.raises(CheckpointError, match="architecture: stored"):
        example.train(tmp_path, model=nn.Linear(6, 3))


@pytest.mark.parametrize("name", ["torch", "capability", "device"])
def test_another_build_or_processor_is_noted(tmp_path, name, monkeypatch):
    _interrupt(tmp_path, 3)
    original = loop.environment
    monkeypatch.setattr(loop, "environment", lambda run: {**original(run), name: "other"})
    assert any(f"resumed, not bitwise: {name} " in note for note in example.train(tmp_path).notes)


def test_a_training_goes_on_after_a_damaged_checkpoint_is_deleted(tmp_path, whole):
    _interrupt(tmp_path, 13)
    newest = tmp_path / f"{checkpoint.step_name(13)}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="delete both, and the training"):
        example.train(tmp_path)
    newest.unlink()
    with pytest.raises(CheckpointError, match=r"nothing readable at .* delete both"):
        example.train(tmp_path)
    newest.with_suffix(".json").unlink()
    assert example.digest(example.train(tmp_path)) == example.digest(whole)


def test_another_thread_count_is_noted(tmp_path):
    _interrupt(tmp_path, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        result = example.train(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert any("not bitwise: threads" in note for note in result.notes)


def _stopped_by_nan(match, loss, data, folder):
    """Train until a NaN stops it and return the step; the checkpoint before this step is whole."""
    with pytest.raises(NumericsError, match=match) as error:
        fit(example.module(), loss, data, example.config(), folder=folder, device="cpu")
    step = int(re.search(r"at step (\d+)", str(error.value))[1])
    assert step > 0 and checkpoint.newest_step(folder) == step  # so many steps were done and saved
    tensors, _ = checkpoint.read_bundle(folder, checkpoint.step_name(step))
    assert tensors and all(torch.isfinite(v.float()).all() for v in tensors.values())
    return step


def test_a_nan_loss_names_the_tensor_the_step_and_the_rows(tmp_path):
    bad = {**example.data(), "x": example.data()["x"].clone()}
    bad["x"][17, 2] = float("nan")
    match = r"finite loss at step \d+; got .*batch\['x'\] .*17"
    _stopped_by_nan(match, example.loss_fn, bad, tmp_path)


def test_a_nan_gradient_names_the_parameter_and_keeps_the_last_good_checkpoint(tmp_path):
    steps = iter(range(100))

    def loss(model, batch):
        if next(steps) < 7:
            return example.loss_fn(model, batch)
        value = (model(batch["x"]) * 0).sum()
        return torch.sqrt(value.abs()), {}  # 0, with a gradient of 0 times infinity

    match = r"finite gradient at step 7; got .*gradient of "
    assert _stopped_by_nan(match, loss, example.data(), tmp_path) == 7


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient():
    model = [layer for layer in example.module() if not isinstance(layer, nn.Dropout)]

    def small(model, batch):
        if len(batch["index"]) > 3:
            raise torch.OutOfMemoryError("no room for more than 3 stimuli")
        return example.loss_fn(model, batch)

    free = example.train(model=nn.Sequential(*model), batch_size=10)
    model = [layer for layer in example.module() if not isinstance(layer, nn.Dropout)]
    tight = example.train(model=nn.Sequential(*model), loss=small, batch_size=10)
    assert any("4 micro-batches" in note for note in tight.notes)
    np.testing.assert_allclose(
        [r["loss"] for r in tight.history], [r["loss"] for r in free.history], atol=1e-5
    )


def test_an_undefined_metric_is_none_and_never_the_best():
    values = iter([float("nan"), 0.5, 0.5, float("nan")])
    result = fit(
        example.module(),
        example.loss_fn,
        example.data(),
        example.config(epochs=4),
        validate=lambda m: {"val_r": next(values)},
        select=("val_r", "max"),
        device="cpu",
    )
    assert result.epoch == 2 and result.history[0]["val_r"] is None


@pytest.mark.parametrize(
    "select, match",
    [
        (("test_accuracy", "max"), "never a metric of test"),
        (("val_accuracy", "best"), "'max' or 'min'"),
        (("val_acuracy", "max"), "did you mean 'val_accuracy'"),
    ],
)
def test_selection_takes_a_validation_metric(select, match):
    with pytest.raises(ConfigError, match=match):
        fit(
            example.module(),
            example.loss_fn,
            example.data(),
            example.config(epochs=1),
            validate=example.validate,
            select=select,
            device="cpu",
        )


@pytest.mark.parametrize(
    "wrong", [{"a": torch.zeros(3), "b": torch.zeros(4)}, {"a": torch.zeros(0)}]
)
def test_uneven_or_empty_data_are_refused(wrong):
    with pytest.raises(ConfigError, match="same number"):
        fit(example.module(), example.loss_fn, wrong, example.config(), device="cpu")


def test_a_frozen_module_is_refused():
    with pytest.raises(ConfigError, match="parameters to train"):
        fit(
            example.module().requires_grad_(False),
            example.loss_fn,
            example.data(),
            example.config(),
            device="cpu",
        )


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"lr": -1.0}, {"warmup": 2.0}, {"lr": float("nan")}]
)
def test_choices_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        LoopConfig(**change)


def test_an_epoch_visits_every_row_once_in_batches_of_nearly_equal_size():
    order = Order(53, 8, 0)
    sizes = [len(order.indices(2, k)) for k in range(order.per_epoch)]
    rows = np.concatenate([order.indices(2, k) for k in range(order.per_epoch)])
    assert sorted(rows) == list(range(53)) and max(sizes) - min(sizes) <= 1 and max(sizes) <= 8
    assert not np.array_equal(rows, np.concatenate([order.indices(3, k) for k in range(7)]))


def test_the_learning_rate_rises_and_falls_to_zero():
    config = LoopConfig(lr=2.0, warmup=0.1)
    rates = [learning_rate(config, s, 100) for s in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == 2.0 and rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate(LoopConfig(lr=2.0, schedule="constant"), 80, 100) == 2.0


def test_arrays_and_tensors_are_the_same_data(whole):
    arrays = {k: v.numpy() for k, v in example.data().items()}
    result = fit(
        example.module(),
        example.loss_fn,
        arrays,
        example.config(),
        validate=example.validate,
        select=("val_accuracy", "max"),
        device="cpu",
    )
    assert example.digest(result) == example.digest(whole)

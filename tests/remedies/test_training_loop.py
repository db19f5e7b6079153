"""The remedies of the training loop, of its batches and of its checkpoints, each followed."""

import dataclasses
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import torch
from fit_example import config, data, loss_fn, module
from following import follows
from PIL import Image
from torch import nn
from trained import backbone

from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.files import sha256_bytes
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.training import LoopConfig, checkpoint, fit, load_encoder
from bmfl_lab.training.batches import ImageBatches, Order, StoreBatches, sweep
from bmfl_lab.training.trained_encoder import STEM, WHAT

RELEASED = Path(__file__).parents[1] / "training" / "released_models" / "schema-1" / "encoder"
DATA, ONE_EPOCH = data(20), {"epochs": 1, "batch_size": 10}


def train(model=None, rows=DATA, loss=loss_fn, **given):
    """Train for one epoch, with the fields of a LoopConfig among `given`."""
    changes = {k: given.pop(k) for k in list(given) if k in LoopConfig.__dataclass_fields__}
    model = module() if model is None else model
    return fit(model, loss, rows, config(**{**ONE_EPOCH, **changes}), device="cpu", **given)


def number(pattern, remedy):
    """Return the number that a remedy gives."""
    return int(re.search(pattern, remedy)[1])


@follows(
    ("training/batches.py", "set batch_size={} or more"),
    ("training/batches.py", "start {} processes or fewer"),
)
def test_more_processes_than_stimuli_in_a_batch(folder, env):
    size, processes = [5], [12]
    remedy = yield lambda: Order(50, size[-1], 0, n_processes=6)
    size.append(number(r"batch_size=(\d+)", remedy))
    remedy = yield lambda: Order(10, 10, 0, n_processes=processes[-1])
    processes.append(number(r"start (\d+)", remedy))


@follows(
    ("training/batches.py", "give every tensor one row per stimulus"),
    ("training/batches.py", "give the tensor 'index' another name"),
)
def test_data_that_make_no_batches(folder, env):
    rows = {"x": torch.zeros(4, 2), "label": torch.zeros(3)}
    yield lambda: StoreBatches(rows, "cpu")
    rows["label"] = torch.zeros(4)
    StoreBatches(rows, "cpu")
    rows["index"] = torch.arange(4)
    remedy = yield lambda: StoreBatches(rows, "cpu")
    rows["of another name"] = rows.pop(re.search("'(.*)'", remedy)[1])


@follows(
    (
        "training/batches.py",
        "close other programs if memory ran out, and start again: a training goes on",
    ),
)
def test_a_process_that_the_system_ends(folder, env):
    others, main = folder / "other programs", os.getpid()
    others.touch()

    def read(index):
        if others.exists() and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((28, 28, 3), np.uint8)

    stimuli = StimulusSet(
        name="photos",
        ids=np.array([f"n{i}" for i in range(8)], dtype=object),
        read=read,
        digest_of=lambda i: sha256_bytes(str(i).encode()),
        labels=np.zeros(8, int),
        class_names=("a",),
    )
    path = BMFL(backbone=backbone())
    yield lambda: list(sweep(ImageBatches(stimuli, path, workers=1), 8))
    others.unlink()


@follows(("training/batches.py", "repair the files"))
def test_a_batch_of_broken_images(folder, env):
    files = [folder / f"{i}.png" for i in range(2)]
    for file in files:
        file.write_bytes(b"\x89PNG\r\n")
    stimuli = from_files("photos", files, ["a", "b"], np.zeros(2, int))
    stimuli = dataclasses.replace(stimuli, skip_broken=True)
    yield lambda: list(sweep(ImageBatches(stimuli, BMFL(backbone=backbone()), workers=0), 2))
    for file in files:
        Image.fromarray(np.zeros((56, 56, 3), np.uint8)).save(file)


@follows(("training/loop.py", "call requires_grad_(True) on the part that is to be trained"))
def test_a_frozen_module(folder, env):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).requires_grad_(False)
    remedy = yield lambda: train(model)
    getattr(model[1], re.search(r"call (\w+)\(True\)", remedy)[1])(True)


@follows(
    (
        "training/loop.py",
        "pass validate=..., and as select one of its metrics with 'max' or 'min', never a metric "
        "of test or out-of-distribution images",
    ),
    (
        "training/loop.py",
        "pass validate=..., and as select one of its metrics with 'max' or 'min', never a metric "
        "of test or out-of-distribution images",
    ),
    ("training/loop.py", "let validate return a finite number for it, or select another metric"),
    ("training/loop.py", "let validate return a finite number for it, or select another metric"),
)
def test_a_selection_that_selects_nothing(folder, env):
    metrics = {"val_accuracy": 0.5, "val_r": float("nan")}
    given = {"select": ("val_accuracy", "max")}
    remedy = yield lambda: train(**given)
    given[re.search(r"pass (\w+)=", remedy)[1]] = lambda model: metrics
    train(**given)
    given["select"] = ("test_accuracy", "best")
    remedy = yield lambda: train(**given)
    for mode in re.findall("'(.*?)'", remedy):
        given["select"] = ("val_accuracy", mode)
        train(**given)
    given["select"] = ("val_r", "max")
    yield lambda: train(**given)
    given["select"] = ("val_accuracy", "max")
    train(**given)
    given["select"] = ("val_r", "max")
    yield lambda: train(**given)
    metrics["val_r"] = 0.1


@follows(
    (
        "training/loop.py",
        "replace or drop these rows of the data; the last good checkpoint is kept",
    ),
    ("training/loop.py", "lower lr; the last good checkpoint is kept"),
)
def test_a_loss_that_is_not_finite(folder, env):
    rows = {k: v.clone() for k, v in DATA.items()}
    rows["x"][7, 2] = float("nan")
    yield lambda: train(rows=rows, folder=folder / "data")
    kept = torch.arange(20) != 7
    train(rows={k: v[kept] for k, v in rows.items()}, folder=folder / "fewer")
    rows["x"][7, 2] = 0
    train(rows=rows, folder=folder / "data")
    lr = [1e38]
    yield lambda: train(
        lr=lr[-1], warmup=0, clip_norm=0, optimiser="sgd", epochs=3, folder=folder / str(lr[-1])
    )
    lr.append(1e-3)


@follows(
    (
        "training/checkpoint.py",
        "use another folder, start afresh with resume=False, or pass allow_change={}",
    ),
    (
        "training/checkpoint.py",
        "use another folder, start afresh with resume=False, or pass allow_change={}",
    ),
)
def test_a_checkpoint_of_another_run(folder, env):
    train(folder=folder)
    given = {"folder": folder, "lr": 1e-4}
    remedy = yield lambda: train(**given)
    train(**{**given, "folder": folder / "another"})
    given["resume"] = eval(re.search(r"resume=(\w+)", remedy)[1])
    train(**given)
    given |= {"resume": True, "lr": 1e-5, "weight_decay": 0.5}
    remedy = yield lambda: train(**given)
    given["allow_change"] = eval(re.search(r"allow_change=(.*)", remedy)[1])


@follows(
    ("training/loop.py", "start afresh with resume=False, or use another folder"),
    (
        "training/loop.py",
        "train the same parameters by the same optimiser, or start afresh with resume=False",
    ),
)
def test_a_checkpoint_that_does_not_fit(folder, env):
    train(folder=folder)
    name = checkpoint.step_name(checkpoint.newest_step(folder))
    tensors, manifest = checkpoint.read_bundle(folder, name)
    fewer = {k: v for k, v in tensors.items() if not k.startswith("optimiser.0")}
    checkpoint.write_bundle(folder, name, fewer, manifest)
    given = {"folder": folder}
    remedy = yield lambda: train(**given)
    train(folder=folder / "another")
    given["resume"] = eval(re.search(r"resume=(\w+)", remedy)[1])
    train(**given)
    del given["resume"]

    def partly():
        model = module()
        model[0].requires_grad_(False)
        return model

    remedy = yield lambda: train(partly(), **given)
    train(module(), **given)
    given["resume"] = eval(re.search(r"resume=(\w+)", remedy)[1])


def flip(file):
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@follows(
    (
        "training/checkpoint.py",
        "copy both files again from where they were saved; if this is a training checkpoint, "
        "delete both, and the training continues from an earlier one or starts afresh",
    ),
    (
        "training/checkpoint.py",
        "copy both files again from where they were saved; if this is a training checkpoint, "
        "delete both, and the training continues from an earlier one or starts afresh",
    ),
    (
        "training/checkpoint.py",
        "copy both files again from where they were saved; if this is a training checkpoint, "
        "delete both, and the training continues from an earlier one or starts afresh",
    ),
)
def test_a_damaged_checkpoint(folder, env):
    train(folder=folder / "run")
    shutil.copytree(folder / "run", folder / "copy")
    flip(next((folder / "run").glob("*.json")))
    yield lambda: train(folder=folder / "run")
    shutil.copytree(folder / "copy", folder / "run", dirs_exist_ok=True)
    train(folder=folder / "run")
    next((folder / "run").glob("*.safetensors")).unlink()
    yield lambda: train(folder=folder / "run")
    shutil.copytree(folder / "copy", folder / "run", dirs_exist_ok=True)
    flip(next((folder / "run").glob("*.safetensors")))
    yield lambda: train(folder=folder / "run")
    for file in (folder / "run").glob("step-*"):
        file.unlink()


TENSORS = {"a": torch.arange(6.0)}


@follows(
    ("training/checkpoint.py", "choose a folder that can be written"),
    (
        "training/checkpoint.py",
        "free some space or choose another folder; earlier checkpoints are intact",
    ),
)
def test_a_bundle_that_cannot_be_written(folder, env):
    (folder / "file").touch()
    place = [folder / "file" / "models"]
    yield lambda: checkpoint.write_bundle(place[-1], "model", TENSORS, {})
    place.append(folder / "models")
    checkpoint.write_bundle(place[-1], "earlier", TENSORS, {})
    full = shutil.disk_usage(folder)._replace(free=100)
    env.setattr(shutil, "disk_usage", lambda path: full)
    yield lambda: checkpoint.write_bundle(place[-1], "model", TENSORS, {})
    assert torch.equal(checkpoint.read_bundle(place[-1], "earlier")[0]["a"], TENSORS["a"])
    env.undo()


@follows(
    ("training/checkpoint.py", "give the folder that holds {}"),
    ("training/checkpoint.py", "give both files their old names back"),
    ("training/checkpoint.py", "give the folder in which it was saved"),
)
def test_a_bundle_that_lies_elsewhere(folder, env):
    places = [folder]
    checkpoint.write_bundle(folder / "models", "model", TENSORS, {}, what="toy")
    remedy = yield lambda: checkpoint.read_bundle(places[-1], "model")
    places += [p.parent for p in folder.rglob(re.search(r"holds (\S+)", remedy)[1])]
    checkpoint.read_bundle(places[-1], "model")
    renamed = "best"
    for file in (folder / "models").iterdir():
        file.rename(file.with_stem(renamed))
    yield lambda: checkpoint.read_bundle(
        places[-1], "best" if (places[-1] / "best.json").exists() else "model"
    )
    for file in (folder / "models").iterdir():
        file.rename(file.with_stem("model"))
    places.append(folder / "others")
    checkpoint.write_bundle(places[-1], "model", TENSORS, {}, what="another kind")
    yield lambda: checkpoint.read_bundle(places[-1], "model", what="toy")
    places.append(folder / "models")


@follows(
    (
        "training/checkpoint.py",
        "read it with the version of bmfl_lab that wrote it, or train again",
    ),
)
def test_a_bundle_of_a_later_version(folder, env):
    env.setattr(checkpoint, "SCHEMA", checkpoint.SCHEMA + 1)
    checkpoint.write_bundle(folder, "model", TENSORS, {})
    checkpoint.read_bundle(folder, "model")
    env.undo()
    yield lambda: checkpoint.read_bundle(folder, "model")
    checkpoint.write_bundle(folder, "model", TENSORS, {})


@follows(("training/checkpoint.py", "copy both files of the bundle again, or train again"))
def test_a_manifest_of_another_model(folder, env):
    shutil.copytree(RELEASED, folder / "encoder")
    tensors, manifest = checkpoint.read_bundle(RELEASED, STEM)
    manifest["build"]["encoder"]["ffn_width"] *= 2
    checkpoint.write_bundle(folder / "encoder", STEM, tensors, manifest, what=WHAT)
    yield lambda: load_encoder(folder / "encoder")
    shutil.copytree(RELEASED, folder / "encoder", dirs_exist_ok=True)

"""A spec's models are trained by a command, in one process or several, and notebooks read them afterwards."""

import json
import subprocess
import sys

import pytest

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.errors import RunError
from bmfl_lab.records import read_record
from bmfl_lab.runs.launch import train_in_processes
from bmfl_lab.runs.spec import load_spec
from bmfl_lab.training import __main__ as command
from bmfl_lab.training import presets, train_brain_encoder, train_comparison

NOTEBOOK = "03_fusion_training"
PARAMETERS = {"models": ["backbone", "fusion"], "seeds": [0], "epochs": 1, "device": "cpu"}


def small_study(name):
    return load_study(
        name, n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_train=16, n_val=8, n_test=8
    )


def as_the_notebook(capsys, study):
    """Train as notebook 03 does; return the models and what was printed."""
    fusion, encoders = presets("tiny", epochs=1, alpha=0.1, query="cls", regions=("all",))
    options = {"store": FeatureStore(), "device": "cpu"}
    encoder = train_brain_encoder(encoders, study, **options)
    models = ["backbone", "fusion"]
    found = train_comparison(fusion, study, encoder=encoder, models=models, seeds=[0], **options)
    return found, capsys.readouterr().out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(".")  # what the command changes to is left again
    return tmp_path


def test_a_notebook_reads_what_the_command_trained(cache, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_study", small_study)
    spec = cache / "mine.yaml"
    notebook = load_spec("papermill_runs/specs/main.yaml")[0].notebook.path.resolve()
    spec.write_text(json.dumps({"notebook": str(notebook), "params": PARAMETERS}))
    assert command.main([str(spec), "--train-only", "--out", str(cache / "out")]) == 0
    printed = capsys.readouterr().out
    assert "trained and kept: backbone, fusion" in printed and "batches from" in printed
    assert not (cache / "out").exists()
    found, printed = as_the_notebook(capsys, small_study("planted"))
    assert set(found) == {"backbone", "fusion"}
    assert "batches from" not in printed  # what a training says before it begins
    assert command.main([str(spec), "--out", str(cache / "out")]) == 0
    assert "batches from" not in capsys.readouterr().out
    record = read_record(next((cache / "out").glob(f"{NOTEBOOK}-*/record.json")))
    assert {"accuracy", "accuracy_difference", "pearson_r"} <= {row.name for row in record.rows}
    recorded = accuracies(record)
    test = small_study("planted").set("test")
    for name, (model,) in found.items():
        assert recorded[name] == (model.logits(test).argmax(1) == test.labels).mean()


def accuracies(record):
    """Accuracy on the test images by model, of seed 0."""
    frame = record.to_frame().query("name == 'accuracy' and split == 'test' and shift == ''")
    return frame.query("seed == 0").set_index("model")["value"].to_dict()


def test_a_spec_of_another_notebook_is_refused(cache, capsys):
    assert command.main(["demo_alignment"]) == 2
    assert "expected a run of 03_fusion_training or 04" in capsys.readouterr().err


def test_a_process_that_fails_is_one_sentence(cache):
    wrong = PARAMETERS | {"study": "no such study"}
    with pytest.raises(RunError, match=r"exit code 1: error: .*no such study") as caught:
        train_in_processes(1, NOTEBOOK, wrong, cache)
    assert "run the cell again; it goes on" in str(caught.value)


@pytest.mark.slow
def test_two_processes_train_what_the_notebook_reads(cache, capsys):
    train_in_processes(2, NOTEBOOK, PARAMETERS, cache)
    assert "trained and kept: backbone, fusion" in capsys.readouterr().out
    study = load_study("planted")
    found, printed = as_the_notebook(capsys, study)
    assert set(found) == {"backbone", "fusion"} and "batches from" not in printed
    out = cache / "out"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    spec = [str(cache / "training.yaml"), "--out", str(out)]
    subprocess.run([*start, "-m", "bmfl_lab.training", *spec], check=True)
    recorded = accuracies(read_record(next(out.glob(f"{NOTEBOOK}-*/record.json"))))
    test = study.set("test")
    for name, (model,) in found.items():
        assert recorded[name] == (model.logits(test).argmax(1) == test.labels).mean()

"""Images of one's own, in four domains as in PACS: one study file of six lines, and notebooks 03 and 04."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bmfl_lab.records import read_record, study_label
from bmfl_lab.runs.spec import load_spec
from bmfl_lab.training import __main__ as command
from bmfl_lab.training import open_models

ROOT = Path(__file__).resolve().parents[2]
CLASSES, OTHERS = ("dog", "house", "tree"), ("art", "cartoon", "sketch")
FILE = (
    "study: domains\nroot: pacs\ntrain: photo\nsubject: {}\nbackbone: vit_tiny14\nimage_size: 28\n"
)


@pytest.fixture
def study(tmp_path):
    """Write four domains of three classes, each class of a colour of its own, and return the file."""
    for d, domain in enumerate(("photo", *OTHERS)):
        for c, label in enumerate(CLASSES):
            (tmp_path / "pacs" / domain / label).mkdir(parents=True)
            for i in range(40):
                pixels = np.random.default_rng([d, c, i]).integers(0, 120, (32, 32, 3), np.uint8)
                pixels[:, :, c] += 100
                Image.fromarray(pixels).save(tmp_path / "pacs" / domain / label / f"{i}.png")
    return tmp_path / "my_study.yaml"


def checked(record, models):
    """Check that every model has its accuracy on every set, above chance, and the origin is said."""
    frame = record.to_frame().query("name == 'accuracy' and shift == ''")
    assert set(frame["model"]) >= set(models) and set(frame["split"]) == {"test", *OTHERS}
    over_seeds = frame[frame["seed"].isna() & frame["model"].isin(models)]
    assert len(over_seeds) == 4 * len(models) and (over_seeds["value"] > 0.5).all()
    assert record.study["responses"] == "simulated" and study_label(record) == "pacs (simulated)"
    return frame


@pytest.mark.parametrize("subject", ["planted", ""])
def test_six_lines_train_and_test_the_models(study, subject, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    # as in a process of its own: other tests of this one have loaded backbones, too
    monkeypatch.setattr("bmfl_lab.runtime._LOADED_BACKBONES", {})
    monkeypatch.chdir(".")
    few = "n_encoder: 60\nn_encoder_val: 20\nn_encoder_test: 20\n" if subject else ""
    lines = (FILE.format(subject) + few).splitlines()
    study.write_text("\n".join(line for line in lines if line != "subject: "))
    spec = tmp_path / "mine.yaml"
    notebook = ROOT / "notebooks" / "04_ood_evaluation.ipynb"
    spec.write_text(
        f"notebook: {notebook}\nparams: {{study: {study}, models: [backbone, concat, linear probe], "
        "seeds: [0, 1], epochs: 10, shorter: [1], shifts: [masked], severities: [3], n_boot: 20}\n"
    )
    assert command.main([str(spec), "--out", str(tmp_path / "out")]) == 0
    (run,) = load_spec(spec)
    record = read_record(tmp_path / "out" / run.run_id / "record.json")
    if subject:
        checked(record, ["backbone", "concat", "linear probe"])
        return
    said = capsys.readouterr().out
    assert "has no subject: concat are left out" in said and "the line 'subject: demo'" in said
    assert "the lines 'study: folder' and 'root: '" in said
    models = set(record.to_frame().query("name == 'accuracy'")["model"])
    assert models == {"backbone", "linear probe", "backbone, 1 epoch"}
    assert record.study["responses"] == "" and study_label(record) == "pacs"


def run_notebook(stem, study, out, *more):
    """Run a notebook as a user does from the shell; return what papermill has to say."""
    start = [sys.executable, "-m", "papermill", f"notebooks/{stem}.ipynb", f"{out}.ipynb"]
    options = ["-p", "study", str(study), "-p", "out", str(out), "--no-progress-bar"]
    return subprocess.run([*start, *options, *more], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_without_a_subject_the_backbone_and_the_probe_are_tested(study, tmp_path):
    study.write_text(FILE.format("").replace("subject: \n", ""))
    few = ["-p", "seeds", "[0, 1]", "-p", "epochs", "2"]
    shifts = ["-p", "n_corrupted", "0", "-p", "shifts", '["masked"]']
    wanted = {
        "03_fusion_training": ({"backbone"}, few),
        "04_ood_evaluation": ({"backbone", "linear probe"}, [*few, *shifts]),
    }
    for stem, (models, more) in wanted.items():
        done = run_notebook(stem, study, tmp_path / stem, *more)
        assert done.returncode == 0, done.stderr[-3000:]
        record = read_record(tmp_path / stem / "record.json")
        frame = record.to_frame().query("name == 'accuracy' and split == 'sketch'")
        assert set(frame["model"]) >= models and not {"fusion", "concat"} & set(frame["model"])
        printed = Path(f"{tmp_path / stem}.ipynb").read_text(encoding="utf-8")
        assert "accuracy, pacs study, no fMRI" in printed
    for stem in ("05_region_ablation", "06_attention_maps"):
        done = run_notebook(stem, study, tmp_path / stem)
        assert done.returncode == 1 and "add the line 'subject: demo' to the study" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("subject", ["planted", pytest.param("demo", marks=pytest.mark.network)])
def test_two_commands_give_a_correct_table(study, subject, tmp_path):
    study.write_text(FILE.format(subject))
    assert len(study.read_text().splitlines()) == 6
    records = {}
    for stem, more in (
        ("03_fusion_training", []),
        ("04_ood_evaluation", ["-p", "n_corrupted", "0", "-p", "shifts", '["masked"]']),
    ):
        out = tmp_path / stem
        done = run_notebook(stem, study, out, "-p", "seeds", "[0, 1]", *more)
        assert done.returncode == 0, done.stderr[-3000:]
        records[stem] = read_record(out / "record.json")
        models = ["backbone", "concat", "fusion", "attributes"]
        frame = checked(records[stem], models + ["linear probe"] * stem.startswith("04"))
        printed = Path(f"{out}.ipynb").read_text(encoding="utf-8")
        assert "accuracy, pacs study, simulated fMRI" in printed
        opened, saved = open_models(tmp_path / "03_fusion_training", study)
        for name, one in ((n, m) for n in models for m in saved[n]):
            for split in ("test", *OTHERS):
                stimuli = opened.set(split)
                found = (one.logits(stimuli).argmax(1) == stimuli.labels).mean()
                rows = frame.query(f"model == {name!r} and split == {split!r}")
                assert rows[rows["seed"] == one.seed]["value"].tolist() == [found]

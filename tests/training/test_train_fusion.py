"""The fusion recipe on the planted study, whose truth says who must win."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import CheckpointError, ConfigError, DataError
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.models.fusion import count_parameters
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.training import (
    LoopConfig,
    fusion_parts,
    load_fusion,
    presets,
    train_brain_encoder,
    train_comparison,
    train_fusion,
)
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.recipes import (
    FusionConfig,
    base,
    build_fusion,
    prepare_fusion,
    refuse_without_memory,
    small,
    tiny,
)
from bmfl_lab.training.trained_encoder import load_encoder

LOOP = LoopConfig(epochs=15, batch_size=32, lr=5e-3, weight_decay=0.05)

RELEASED = Path(__file__).with_name("released_models")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def study():
    return load_study("planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_test=200)


def _source(study):
    """Return the planted truth itself as response source: an encoder without error."""
    respond = study.subject().truth["respond"]
    return lambda stimuli, tokens: respond(
        np.stack([stimuli.image(i) for i in range(len(stimuli))])
    )


def _train(study, store, seed=0, **changes):
    folder = changes.pop("folder", None)
    source = changes.pop("brain", None) or _source(study)
    config = tiny(**{"kind": "pooled:4", "loop": LOOP, **changes})
    atlas = study.subject().atlas
    return train_fusion(
        config,
        study,
        brain=source,
        atlas=atlas,
        store=store,
        folder=folder,
        device="cpu",
        seed=seed,
    )


def _accuracy(model, study, lesion=None):
    stimuli = study.set("test")
    return float((model.logits(stimuli, lesion).argmax(1) == stimuli.labels).mean())


@pytest.fixture(scope="module")
def fusion(study, store):
    return _train(study, store)


def test_the_fusion_finds_the_planted_signal_and_the_backbone_does_not(study, store, fusion):
    backbone = _train(study, store, head="backbone")
    assert _accuracy(fusion, study) > 0.9
    assert _accuracy(fusion, study) > _accuracy(backbone, study) + 0.3
    assert abs(count_parameters(backbone.module) / count_parameters(fusion.module) - 1) <= 0.02
    assert fusion.selection == "best validation accuracy"
    assert (
        max(row["val_accuracy"] for row in fusion.history)
        == fusion.history[fusion.epoch - 1]["val_accuracy"]
    )


def test_the_concat_baseline_gets_the_signal_too(study, store):
    assert _accuracy(_train(study, store, head="concat"), study) > 0.8


def test_no_gain_where_no_region_carries_the_class(store):
    empty = load_study(
        "planted", carries=False, n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_test=200
    )
    assert _accuracy(_train(empty, store), empty) < 0.45


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("carries", [True, False])
def test_with_a_trained_encoder_the_fusion_wins_exactly_where_the_truth_says_it_can(
    carries, store, tmp_path
):
    study = load_study("planted", carries=carries, n_test=400)
    config, recipe = presets("tiny")
    encoder = train_brain_encoder(recipe, study, store=store, folder=tmp_path, device="cpu")
    models = train_comparison(
        config,
        study,
        encoder=encoder,
        models=["backbone", "fusion"],
        seeds=[0, 1, 2],
        store=store,
        device="cpu",
    )
    test = study.set("test")
    right = {
        k: np.stack([m.logits(test).argmax(1) == test.labels for m in group])
        for k, group in models.items()
    }
    gain = bootstrap_mean(right["fusion"].astype(float) - right["backbone"])
    print(
        f"carries={carries}: fusion {right['fusion'].mean():.3f}, backbone {right['backbone'].mean():.3f}, {gain}"
    )
    if carries:
        assert gain.low > 0.2 and right["fusion"].mean() > 0.8
    else:
        assert gain.low < 0 and right["fusion"].mean() < 0.5


def test_the_gain_comes_from_the_region_that_carries_it(study, store, fusion):
    atlas = study.subject().atlas
    for kind in ("mean", "resample"):
        assert _accuracy(fusion, study, Lesion(atlas.select("FFC"), kind)) < 0.5
        assert _accuracy(fusion, study, Lesion(atlas.select("V1"), kind)) > 0.85
    np.testing.assert_array_equal(
        fusion.logits(study.set("test"), Lesion(atlas.select("FFC"), "mean", 0.0)),
        fusion.logits(study.set("test")),
    )
    other = _train(study, store, regions=("LVC",))
    assert len(other.selected) == 72 and _accuracy(other, study) < 0.5


def test_only_the_brain_tokens_of_the_selected_regions_exist(study, store):
    model = _train(study, store, regions=("FFC",), loop=configs.replace(LOOP, epochs=1))
    found = model.attention(study.set("test").subset([0, 1]))
    assert found["brain_tokens"] == ("left:FFC", "right:FFC")
    assert (
        found["vb"].shape == (2, 4, 1, 2)
        and found["bv"].shape == (2, 4, 1, 16)
        and found["grid"] == (4, 4)
    )


def test_patch_tokens_and_patch_queries_train(study, store):
    model = _train(
        study, store, tokeniser="patch", query="patch", loop=configs.replace(LOOP, epochs=1)
    )
    assert model.module.brain.tokeniser.n_tokens == 11  # 168 vertices, 16 a token
    assert model.logits(study.set("test")).shape == (200, 4)


def test_a_model_is_saved_and_read_to_the_bit(study, store, fusion, tmp_path):
    fusion.save(tmp_path)
    spec = study.backbone
    own = load_backbone(spec.name, weights=spec.weights, image_size=spec.image_size)
    with pytest.raises(CheckpointError, match="response source of this model"):
        load_fusion(tmp_path, own, store=store)
    again = load_fusion(tmp_path, own, brain=_source(study), store=store, device="cpu")
    np.testing.assert_array_equal(again.logits(study.set("test")), fusion.logits(study.set("test")))
    assert again.config == fusion.config and again.history == fusion.history
    other = load_backbone(spec.name, weights="random:7", image_size=spec.image_size)
    with pytest.raises(CheckpointError, match="load the backbone that the model was trained on"):
        load_fusion(tmp_path, other, brain=_source(study), store=store)
    (
        tmp_path / "fusion.safetensors"
    ).unlink()  # what follows is refused without a look at the tensors
    larger = load_backbone(spec.name, weights=spec.weights, image_size=spec.image_size + 14)
    with pytest.raises(
        CheckpointError, match=f"images of {spec.image_size} px.*; got {spec.image_size + 14} px"
    ):
        load_fusion(tmp_path, larger, brain=_source(study), store=store)
    squeezed = load_backbone(
        spec.name, weights=spec.weights, image_size=spec.image_size, resize="direct"
    )
    with pytest.raises(CheckpointError, match="resized by the rule 'short'; got 56 px, direct"):
        load_fusion(tmp_path, squeezed, brain=_source(study), store=store)


def test_training_changes_no_bit_of_the_backbone_and_repeats_itself(study, store, tmp_path):
    spec = study.backbone
    own = load_backbone(spec.name, weights=spec.weights, image_size=spec.image_size)
    before = {k: v.clone() for k, v in own.state_dict().items()}
    short = configs.replace(LOOP, epochs=2)
    config = tiny(kind="pooled:4", loop=short)
    arguments = {
        "brain": _source(study),
        "atlas": study.subject().atlas,
        "store": store,
        "device": "cpu",
    }
    models = [
        train_fusion(config, study, backbone=own, folder=f, **arguments)
        for f in (None, tmp_path, tmp_path)
    ]
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in own.parameters())
    states = [m.module.state_dict() for m in models]
    assert all(torch.equal(states[0][k], s[k]) for s in states[1:] for k in states[0])


def test_a_changed_run_is_refused_unless_allowed_or_started_afresh(study, store, tmp_path):
    first = _train(study, store, loop=configs.replace(LOOP, epochs=1), folder=tmp_path)
    longer = configs.replace(LOOP, epochs=2)
    arguments = {
        "brain": _source(study),
        "atlas": study.subject().atlas,
        "store": store,
        "device": "cpu",
    }
    config = tiny(kind="pooled:4", loop=longer)
    with pytest.raises(
        CheckpointError,
        match=r"epochs: stored 1, now 2.*fusion: .*allow_change=\('epochs', 'fusion'\)",
    ):
        train_fusion(config, study, folder=tmp_path, **arguments)
    again = train_fusion(
        config, study, folder=tmp_path, allow_change=("epochs", "fusion"), **arguments
    )
    assert again.history[0] == first.history[0] and len(again.history) == 2
    fresh = train_fusion(config, study, folder=tmp_path, resume=False, **arguments)
    assert (
        len(fresh.history) == 2 and fresh.history[0] != first.history[0]
    )  # its warm-up is another one


def test_correlations_over_a_batch_that_is_shared_out_are_refused(study, store, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"pcc_axis='feature' where .*got pcc_axis='batch' and 2 processes"
    ):
        _train(study, store, pcc_axis="batch", loop=configs.replace(LOOP, epochs=1))


def test_an_empty_set_has_no_logits_and_a_backbone_no_lesion(study, store, fusion):
    assert fusion.logits(study.set("test").subset([])).shape == (0, 4)
    model = _train(study, store, head="backbone", loop=configs.replace(LOOP, epochs=1))
    with pytest.raises(ConfigError, match="a model with a brain to lesion"):
        model.logits(study.set("test"), Lesion(np.ones(168, bool)))
    with pytest.raises(ConfigError, match="a model with cross-attention"):
        model.attention(study.set("test"))
    with pytest.raises(ConfigError, match="a model with a brain"):
        model.predict_responses(study.set("test"))


def test_responses_that_are_not_finite_name_the_stimulus(study, store):
    def broken(stimuli, tokens):
        values = np.zeros((len(stimuli), 168), dtype=np.float32)
        values[3, 5] = np.nan
        return values

    with pytest.raises(DataError, match="finite responses; got NaN or infinity for 'train-00003'"):
        _train(study, store, brain=broken)
    with pytest.raises(DataError, match="one row a stimulus"):
        _train(study, store, brain=lambda stimuli, tokens: np.zeros((3, 168)))


def test_a_missing_label_is_refused(study, store):
    images = np.stack([study.set("train").image(i) for i in range(8)])
    unlabelled = from_arrays(
        "train", images, range(8), [0, 1, 2, 3, 0, 1, 2, -1], study.class_names
    )
    broken = type(study)(**{**vars(study), "sets": {**study.sets, "train": unlabelled}})
    with pytest.raises(DataError, match=r"labels 0\.\.3 for every image of 'train'"):
        _train(broken, store)


def test_wrong_choices_are_refused_before_anything_starts():
    for change, match in (
        ({"alpha": -1.0}, "alpha >= 0"),
        ({"regions": ()}, "at least one region"),
        ({"kind": "cls"}, "kind 'patches'"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ConfigError, match=match):
            FusionConfig(**change)
    with pytest.raises(ConfigError, match="did you mean 'alpha'"):
        tiny(alhpa=1.0)
    with pytest.raises(ConfigError, match="responses on an atlas"):
        build_fusion(tiny(), visual_width=8, n_classes=2, n_vertices=20)
    assert small().loop.epochs == 20 and base().width == 384


def test_a_stage_that_does_not_fit_into_memory_is_refused_with_the_numbers():
    with pytest.raises(
        ConfigError, match=r"1000000\.00 GB of memory for tokens; got .* GB free.*pool them"
    ):
        refuse_without_memory(10**15, "tokens", "pool them")


def test_tokens_and_responses_are_both_counted_before_they_are_held(study, store, monkeypatch):
    asked, n_vertices = [], study.subject().atlas.n_vertices
    monkeypatch.setattr(
        fusion_parts,
        "refuse_without_memory",
        lambda needed, what, instead: asked.append((needed, what)),
    )

    def brain(stimuli, tokens):
        assert asked, "predicted before the memory was looked at"
        return np.zeros((len(stimuli), n_vertices), np.float32)

    options = {"atlas": study.subject().atlas, "store": store, "device": "cpu"}
    _, data, _ = prepare_fusion(tiny(kind="pooled:4"), study, brain=brain, **options)
    response, tokens = asked[:2]
    n = len(study.set("train"))
    assert response == (2 * n * n_vertices * 4, f"responses to {n} images in memory")
    assert tokens[0] == n * n_vertices * 4 + data["cls"].nbytes + data["patches"].nbytes
    asked.clear()
    _, data, _ = prepare_fusion(tiny(kind="pooled:4", head="backbone"), study, **options)
    assert [needed for needed, _ in asked[:2]] == [0, data["cls"].nbytes + data["patches"].nbytes]


def test_a_real_encoder_stays_as_it_is_to_the_bit_and_the_assembled_path_agrees(
    study, store, tmp_path
):
    ridge = configs.replace(encoders.tiny("ridge"), tokens="patches", pooling="grid")
    encoder = train_brain_encoder(ridge, study, store=store, folder=tmp_path / "e", device="cpu")
    before = {k: v.clone() for k, v in encoder.module.state_dict().items()}
    config = tiny(kind="pooled:4", loop=configs.replace(LOOP, epochs=2))
    model = train_fusion(config, study, encoder=encoder, store=store, device="cpu")
    assert all(torch.equal(v, before[k]) for k, v in encoder.module.state_dict().items())
    few = study.set("test").subset(range(8))
    np.testing.assert_allclose(
        model.predict_responses(few),
        encoder.predict_stimuli(few, device="cpu"),
        rtol=1e-2,
        atol=1e-2,
    )
    images = torch.stack([model.backbone.preprocess(few.image(i)) for i in range(8)])
    whole = model.assemble().eval()
    lesion = Lesion(encoder.atlas.select("FFC"), "mean")
    with torch.no_grad():
        for cut in (None, lesion):
            found = whole(images, lesion=cut).logits.numpy()
            np.testing.assert_allclose(
                found, model.logits(few, cut), atol=0.1
            )  # the store keeps half precision
    model.save(tmp_path / "f")
    again = load_fusion(tmp_path / "f", model.backbone, store=store, device="cpu")
    np.testing.assert_array_equal(again.logits(few), model.logits(few))
    smaller = SimpleNamespace(atlas=SimpleNamespace(n_vertices=3))
    (tmp_path / "f" / "fusion.safetensors").unlink()  # refused without a look at the tensors
    with pytest.raises(
        CheckpointError, match=rf"an encoder of {encoder.atlas.n_vertices} vertices; got one of 3"
    ):
        load_fusion(tmp_path / "f", model.backbone, encoder=smaller, store=store)


@pytest.mark.parametrize("schema", sorted(p.name for p in RELEASED.iterdir() if p.is_dir()))
def test_models_of_every_released_schema_are_read_and_answer_as_they_did(schema, tmp_path):
    folder = RELEASED / schema
    study = load_study("planted", n_encoder=120, n_encoder_val=40, n_encoder_test=40)
    few, spec = study.set("test").subset(range(8)), study.backbone
    backbone = load_backbone(
        spec.name, spec.weights, image_size=spec.image_size, resize=spec.resize
    )
    model = load_fusion(folder, backbone, store=FeatureStore(tmp_path), device="cpu")
    np.testing.assert_allclose(model.logits(few), np.load(folder / "logits.npy"), atol=1e-2)
    responses = load_encoder(folder / "encoder", study.subject()).predict_stimuli(few, device="cpu")
    np.testing.assert_allclose(responses, np.load(folder / "responses.npy"), atol=1e-2)


def test_the_assembled_path_reads_several_blocks_in_one_pass(study, store, tmp_path):
    two = configs.replace(
        encoders.tiny("roi_query"), blocks=(0, 2), loop=configs.replace(LOOP, epochs=1)
    )
    encoder = train_brain_encoder(two, study, store=store, folder=tmp_path / "e", device="cpu")
    model = train_fusion(
        tiny(block=1, loop=configs.replace(LOOP, epochs=1)),
        study,
        encoder=encoder,
        store=store,
        device="cpu",
    )
    few, passes = study.set("test").subset(range(6)), []
    images = torch.stack([model.backbone.preprocess(few.image(i)) for i in range(6)])
    handle = model.backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        found = model.assemble().eval()(images).logits.numpy()
    handle.remove()
    assert len(passes) == 1
    np.testing.assert_allclose(
        found, model.logits(few), atol=0.05
    )  # the store keeps half precision


def test_a_path_without_the_encoders_network_is_refused(fusion):
    with pytest.raises(ConfigError, match="an encoder that reads tokens of the same backbone"):
        fusion.assemble()


def test_models_share_one_prediction_of_their_encoder_and_users_get_their_own(
    study, store, tmp_path, monkeypatch
):
    from bmfl_lab.training.trained_encoder import TrainedEncoder

    encoder = train_brain_encoder(
        encoders.tiny("ridge"), study, store=store, folder=tmp_path, device="cpu"
    )
    asked = []
    original = TrainedEncoder.predict
    monkeypatch.setattr(
        TrainedEncoder,
        "predict",
        lambda s, tokens, **o: (asked.append(len(tokens[0])), original(s, tokens, **o))[1],
    )
    config = tiny(loop=LoopConfig(epochs=1))
    models = [
        train_fusion(config, study, encoder=encoder, store=store, device="cpu", seed=s)
        for s in range(2)
    ]
    assert asked == [len(study.set("train")), len(study.set("val"))]
    test = study.set("test")
    before = models[0].logits(test)
    mine = models[0].predict_responses(test)
    assert np.array_equal(mine, encoder.predict_stimuli(test, store=store, device="cpu"))
    mine[:] = 0
    assert (
        np.array_equal(models[0].logits(test), before) and models[1].predict_responses(test).any()
    )

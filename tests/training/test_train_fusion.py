"""The fusion recipe on the planted study, whose truth says who must win."""

import dataclasses
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
from bmfl_lab.models.build import FusionConfig, build_fusion
from bmfl_lab.models.fusion import count_parameters
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.training import (
    LoopConfig,
    load_fusion,
    presets,
    sources,
    train_brain_encoder,
    train_comparison,
    train_fusion,
)
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training import fusion as recipe
from bmfl_lab.training.batches import ImageBatches, MemoryBatches, StoreBatches
from bmfl_lab.training.fusion import predict
from bmfl_lab.training.recipes import base, small, tiny
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
    images = {s.ids[i]: s.image(i) for s in study.sets.values() for i in range(len(s))}
    return lambda tokens, ids: respond(np.stack([images[i] for i in ids]))


@pytest.fixture(scope="module")
def encoder(study, store, tmp_path_factory):
    ridge = configs.replace(encoders.tiny("ridge"), tokens="patches", pooling="grid")
    folder = tmp_path_factory.mktemp("encoder")
    return train_brain_encoder(ridge, study, store=store, folder=folder, device="cpu")


def _train(study, store, seed=0, **changes):
    folder, batches = changes.pop("folder", None), changes.pop("batches", "auto")
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
        batches=batches,
    )


def load_study_backbone(study):
    spec = study.backbone
    return load_backbone(spec.name, weights=spec.weights, image_size=spec.image_size)


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
    assert len(other.path.selected) == 72 and _accuracy(other, study) < 0.5


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


@pytest.mark.parametrize("source", ["encoder", "truth"])
def test_everything_is_restored_with_a_custom_region_and_the_whole_atlas(
    study, store, encoder, source, tmp_path
):
    atlas = encoder.atlas
    n = atlas.n_vertices
    changed = dataclasses.replace(
        atlas,
        groups={**atlas.groups, "mine": ("FFC", "LO")},
        maps={**atlas.maps, "depth": np.linspace(0, 1, n, dtype=np.float32)},
        mesh="fsaverage5",
        surface_index=np.arange(n) * 3,
    )
    model = train_fusion(
        tiny(kind="pooled:4", regions=("mine",), loop=configs.replace(LOOP, epochs=1)),
        study,
        encoder=encoder if source == "encoder" else None,
        brain=None if source == "encoder" else _source(study),
        atlas=changed,
        store=store,
        device="cpu",
    )
    model.save(tmp_path)
    brain = None if source == "encoder" else _source(study)
    again = load_fusion(tmp_path, model.backbone, brain=brain, store=store, device="cpu")
    test = study.set("test")
    for lesion in (
        None,
        Lesion(changed.select("mine"), "mean"),
        Lesion(changed.select("FFC"), "resample", 0.7, seed=2),
    ):
        np.testing.assert_array_equal(again.logits(test, lesion), model.logits(test, lesion))
        mine, theirs = model.attention(test, lesion), again.attention(test, lesion)
        assert mine.keys() == theirs.keys() and mine["grid"] == theirs["grid"]
        assert mine["brain_tokens"] == theirs["brain_tokens"]
        for name in ("vb", "bv"):
            np.testing.assert_array_equal(theirs[name], mine[name])
    np.testing.assert_array_equal(again.predict_responses(test), model.predict_responses(test))
    found = again.atlas
    assert found.mesh == "fsaverage5" and found.groups == changed.groups
    np.testing.assert_array_equal(found.hemisphere, changed.hemisphere)
    np.testing.assert_array_equal(found.surface_index, changed.surface_index)
    for mine, theirs in ((changed.rois, found.rois), (changed.maps, found.maps)):
        assert list(mine) == list(theirs)
        for name, values in mine.items():
            np.testing.assert_array_equal(theirs[name], values)
    for name in ("config", "history", "selection", "epoch", "notes", "name", "seed"):
        assert getattr(again, name) == getattr(model, name), name


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
    def broken(tokens, ids):
        values = np.zeros((len(ids), 168), dtype=np.float32)
        values[3, 5] = np.nan
        return values

    with pytest.raises(DataError, match="finite responses; got NaN or infinity for 'train-00003'"):
        _train(study, store, brain=broken)
    with pytest.raises(DataError, match="one row per stimulus"):
        _train(study, store, brain=lambda tokens, ids: np.zeros((3, 168)))


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


def test_data_that_do_not_fit_into_memory_are_refused_or_mapped(study, store, monkeypatch):
    n, n_vertices = len(study.set("train")), study.subject().atlas.n_vertices
    tokens = store.get(load_study_backbone(study), study.set("train"), kind="pooled:4")
    needed = tokens.cls.nbytes + tokens.patches.nbytes + 4 * n * n_vertices
    monkeypatch.setattr(recipe, "free_memory", lambda: needed - 1)
    one = configs.replace(LOOP, epochs=1)
    with (
        pytest.raises(
            ConfigError,
            match=rf"{needed / 1e9:.2f} GB of memory for tokens and responses of {n} images; "
            rf"got {needed / 1e9:.2f} GB free.*batches='store'",
        ),
        monkeypatch.context() as patch,
    ):
        patch.setattr(recipe, "fit", None)  # nothing is trained
        _train(study, store, loop=one, batches="memory", brain=lambda tokens, ids: 1 / 0)
    stored = []
    original = recipe.StoreBatches
    monkeypatch.setattr(
        recipe, "StoreBatches", lambda *a: (stored.append(original(*a)), stored[-1])[1]
    )
    mapped = _train(study, store, loop=one)
    assert isinstance(stored[0].data["response"], np.memmap)
    monkeypatch.setattr(recipe, "free_memory", lambda: needed)
    stored.clear()
    held = _train(study, store, loop=one)
    assert not stored
    test = study.set("test")
    np.testing.assert_array_equal(held.logits(test), mapped.logits(test))
    with pytest.raises(ConfigError, match="batches among"):
        _train(study, store, loop=one, batches="disk")


@pytest.mark.parametrize("head", ["fusion", "concat", "backbone"])
def test_memory_and_store_agree_to_the_bit_and_images_within_rounding(
    study, store, encoder, head, monkeypatch
):
    config = tiny(kind="pooled:4", head=head, dropout=0.0, loop=configs.replace(LOOP, epochs=2))
    taken, models = {}, {}
    for kind, batch_class in (
        ("memory", recipe.MemoryBatches),
        ("store", recipe.StoreBatches),
        ("images", recipe.ImageBatches),
    ):
        original = batch_class.take

        def take(self, index, kind=kind, original=original):
            taken.setdefault(kind, []).append(index)
            return original(self, index)

        with monkeypatch.context() as patch:
            patch.setattr(batch_class, "take", take)
            models[kind] = train_fusion(
                config, study, encoder=encoder, store=store, device="cpu", batches=kind
            )
    for kind in ("store", "images"):
        assert len(taken[kind]) == len(taken["memory"])
        for mine, other in zip(taken[kind], taken["memory"]):
            np.testing.assert_array_equal(mine, other)
    states = {kind: m.module.state_dict() for kind, m in models.items()}
    for name, value in states["memory"].items():
        assert torch.equal(states["store"][name], value), name
        torch.testing.assert_close(states["images"][name], value, atol=0.02, rtol=0.02)
    assert models["store"].history == models["memory"].history
    memory, images = models["memory"].path, models["images"].path
    if head == "backbone":
        assert images.mean is None
        return
    for name in ("mean", "scale", "donors"):
        assert torch.equal(getattr(models["store"].path, name), getattr(memory, name))
        torch.testing.assert_close(
            getattr(images, name), getattr(memory, name), atol=2e-3, rtol=2e-3
        )


@pytest.mark.parametrize("query", ["cls", "patch"])
def test_one_model_gives_the_same_from_images_the_store_and_memory(study, store, encoder, query):
    model = train_fusion(
        tiny(query=query, loop=configs.replace(LOOP, epochs=2)),
        study,
        encoder=encoder,
        store=store,
        device="cpu",
    )
    few = study.set("test").subset(range(40))
    tokens, response = model.inputs.tokens(few), model.predict_responses(few)
    data = {"cls": tokens.cls, "patches": tokens.patches, "response": response}
    held = {name: torch.from_numpy(np.array(values)) for name, values in data.items()}
    images = torch.stack([model.backbone.preprocess(few.image(i)) for i in range(40)])
    for lesion in (
        None,
        Lesion(encoder.atlas.select("FFC"), "mean"),
        Lesion(encoder.atlas.select("LVC"), "zero", 0.5),
        Lesion(encoder.atlas.select("HVC"), "resample", seed=3),
    ):
        found = []
        for batches in (
            MemoryBatches(held, "cpu"),
            StoreBatches(data, "cpu"),
            ImageBatches(few, model.path),
        ):
            found.append(predict(model.path, batches, lesion=lesion, weights=True))
        memory, stored, decoded = found
        assert memory.keys() == stored.keys() == decoded.keys() == {"logits", "vb", "bv"}
        np.testing.assert_allclose(stored["logits"], model.logits(few, lesion), atol=1e-5)
        attention = model.attention(few, lesion)
        whole = model.path(images, lesion=lesion, weights=True)
        for name, value in memory.items():
            np.testing.assert_array_equal(stored[name], value)
            atol = 0.1 if name == "logits" else 0.01  # the store keeps half precision
            np.testing.assert_allclose(decoded[name], value, atol=atol)
            direct = whole.logits if name == "logits" else whole.attention[name]
            np.testing.assert_allclose(direct.detach().numpy(), decoded[name], atol=1e-4)
            if name != "logits":
                np.testing.assert_array_equal(attention[name], value)


def test_a_lesion_is_the_same_for_a_set_whole_and_in_parts(study, store, fusion):
    test = study.set("test")  # 200 images; batches of 30 in place of one
    lesion = Lesion(study.subject().atlas.select("HVC"), "resample", seed=5)
    batches = fusion.batches(test)
    with torch.inference_mode():
        parts = [
            fusion.path.classify(batches.take(np.arange(k, min(k + 30, 200))), lesion=lesion)
            for k in range(0, 200, 30)
        ]
    found = torch.cat([part.logits for part in parts]).numpy()
    np.testing.assert_allclose(found, fusion.logits(test, lesion), atol=1e-5)
    assert not np.allclose(found, fusion.logits(test), atol=0.1)


def test_a_control_trains_from_images_and_an_encoder_elsewhere_is_refused(
    study, store, encoder, tmp_path
):
    options = {"store": store, "device": "cpu", "batches": "images", "encoder": encoder}
    config = tiny(kind="pooled:4", dropout=0.0, loop=configs.replace(LOOP, epochs=1))
    noise = sources.noise_source(np.random.default_rng(0).normal(size=(20, 168)))
    model = train_fusion(config, study, brain=noise, **options)
    stored = train_fusion(config, study, brain=noise, **{**options, "batches": "store"})
    np.testing.assert_allclose(
        model.logits(study.set("test")), stored.logits(study.set("test")), atol=0.05
    )
    stored.save(tmp_path)  # the encoder of its atlas is saved, but its responses are noise
    with pytest.raises(CheckpointError, match="response source of this model"):
        load_fusion(tmp_path, stored.backbone, store=store)
    again = load_fusion(tmp_path, stored.backbone, brain=noise, store=store, device="cpu")
    np.testing.assert_array_equal(again.logits(study.set("test")), stored.logits(study.set("test")))
    mixed = sources.mixed_source(
        sources.EncoderSource(encoder), noise(None, list("abc")), accuracy=0.3
    )
    with pytest.raises(ConfigError, match=r"reads tokens of the same backbone.*batches='store'"):
        train_fusion(config, study, brain=mixed, **options)


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
    whole = model.path
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
        found = model.path(images).logits.numpy()
    handle.remove()
    assert len(passes) == 1
    np.testing.assert_allclose(
        found, model.logits(few), atol=0.05
    )  # the store keeps half precision


def test_the_path_of_a_control_needs_the_ids_of_its_images(fusion):
    with pytest.raises(ConfigError, match=r"the stimulus ids.*a model whose responses an encoder"):
        fusion.path(torch.zeros(1, 3, 56, 56))


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
    models = train_comparison(
        config,
        study,
        encoder=encoder,
        models=["fusion"],
        seeds=[0, 1],
        store=store,
        device="cpu",
    )["fusion"]
    assert asked == [len(study.set("train")), len(study.set("val"))]
    test = study.set("test")
    before = models[0].logits(test)
    mine = models[0].predict_responses(test)
    assert np.array_equal(mine, encoder.predict_stimuli(test, store=store, device="cpu"))
    mine[:] = 0
    assert (
        np.array_equal(models[0].logits(test), before) and models[1].predict_responses(test).any()
    )

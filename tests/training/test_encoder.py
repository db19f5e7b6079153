"""Brain encoders trained on the planted study, cached, saved and refused."""

import dataclasses

import numpy as np
import pytest
import torch

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.config import from_dict, replace
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import CheckpointError, ConfigError, DataError
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.models.encoders import query_masks
from bmfl_lab.training import checkpoint
from bmfl_lab.training.encoder import (
    EncoderConfig,
    encoder_loss,
    scheme_rois,
    split_rows,
    subject_fingerprint,
    tiny,
    train_brain_encoder,
    winners,
)
from bmfl_lab.training.trained_encoder import load_encoder

pytestmark = pytest.mark.filterwarnings("ignore:expected at most 5%")


@pytest.fixture(scope="module")
def study():
    return load_study("planted", n_encoder=300, n_encoder_val=60, n_encoder_test=60)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


def quick(kind, **changes):
    config = replace(
        tiny(kind), **{"tokens": "patches", "n_features": 16, "per_side": 4, **changes}
    )
    return replace(config, loop=replace(config.loop, epochs=2))


def with_subject(study, **changes):
    return dataclasses.replace(
        study, subjects={"x": dataclasses.replace(study.subject(), **changes)}
    )


def test_winners_by_region_and_none_where_nothing_is_defined():
    rois = {"A": [1, 1, 0, 0, 0], "B": [0, 0, 1, 1, 0], "C": [0, 0, 0, 0, 1], "absent": [0] * 5}
    atlas = Atlas(np.zeros(5, np.int8), {k: np.asarray(v, bool) for k, v in rois.items()})
    nan = np.nan
    found = winners(
        atlas,
        {"one": np.array([0.5, 0.7, 0.1, nan, nan]), "two": np.array([0.2, 0.2, 0.3, 0.5, nan])},
    )
    assert found == {
        "A": {"winner": "one", "one": pytest.approx(0.6), "two": pytest.approx(0.2)},
        "B": {"winner": "two", "one": pytest.approx(0.1), "two": pytest.approx(0.4)},
        "C": {"winner": None, "one": None, "two": None},
    }


@pytest.mark.parametrize("kind", ["ridge", "linear", "roi_query", "retinotopic", "ensemble"])
def test_train_save_load_predict(kind, study, store, tmp_path):
    made = train_brain_encoder(quick(kind), study, store=store, folder=tmp_path, device="cpu")
    subject = study.subject()
    test = subject.stimuli.subset(subject.rows("test"))
    predicted = made.predict_stimuli(test, device="cpu")
    assert predicted.shape == (60, subject.n_vertices) and predicted.dtype == np.float32
    assert not any(p.requires_grad for p in made.module.parameters())
    loaded = load_encoder(tmp_path)
    np.testing.assert_array_equal(loaded.predict_stimuli(test, device="cpu"), predicted)
    np.testing.assert_array_equal(loaded.scores, made.scores)
    assert loaded.atlas.present == subject.atlas.present and loaded.facts == made.facts
    val = subject.rows("val")
    stored = store.get(made.load_backbone("cpu"), subject.stimuli, "patches")
    whole = made.predict(stored, device="cpu")
    np.testing.assert_allclose(pearson(subject.responses[val], whole[val]), made.scores, atol=1e-4)
    assert "simulated" in made.label and "random" in made.label


def test_second_call_loads_and_other_settings_are_refused(study, store, tmp_path):
    first = train_brain_encoder(
        quick("roi_query"), study, store=store, folder=tmp_path, device="cpu"
    )
    before = (tmp_path / "encoder.json").stat().st_mtime_ns
    again = train_brain_encoder(
        quick("roi_query"), study, store=store, folder=tmp_path, device="cpu"
    )
    assert again.hash == first.hash and (tmp_path / "encoder.json").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="other settings, responses or backbone weights"):
        train_brain_encoder(quick("ridge"), study, store=store, folder=tmp_path, device="cpu")
    data = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    data[-9] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or exchanged file"):
        train_brain_encoder(quick("roi_query"), study, store=store, folder=tmp_path, device="cpu")


def _rewritten(folder, name, **changes):
    """Write a manifest anew and take its tensors away, so that what is refused is refused without them."""
    tensors, manifest = checkpoint.read_bundle(folder, name)
    own = {
        k: v
        for k, v in manifest.items()
        if k not in ("schema", "data_file", "data_bytes", "data_sha256", "manifest_sha256")
    } | changes
    checkpoint.write_bundle(folder, name, tensors, own, what=own["what"])
    (folder / f"{name}.safetensors").unlink()


def test_an_encoder_of_something_else_is_refused_before_its_tensors_are_read(
    study, store, tmp_path
):
    made = train_brain_encoder(quick("ridge"), study, store=store, folder=tmp_path, device="cpu")
    who = study.subject()
    assert load_encoder(tmp_path, who).hash == made.hash
    _, manifest = checkpoint.read_bundle(tmp_path, "encoder")
    (tmp_path / "encoder.safetensors").unlink()
    other = dataclasses.replace(who, name="someone else")
    with pytest.raises(
        CheckpointError,
        match=rf"an encoder of subject 'someone else' with {who.n_vertices} vertices; got one of",
    ):
        load_encoder(tmp_path, other)
    for changes, said in (
        ({"what": "fusion model"}, "brain encoder, in .* got files of: fusion model"),
        ({"build": {"type": "oracle"}}, "a known kind of encoder; got 'oracle'"),
        (
            {"atlas": {**manifest["atlas"], "n_vertices": 7}},
            f"with {who.n_vertices} vertices; got .* with 7",
        ),
    ):
        made.save(tmp_path)
        _rewritten(tmp_path, "encoder", **changes)
        with pytest.raises(CheckpointError, match=said):
            load_encoder(tmp_path, who)
    made.save(tmp_path)
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match="other settings, responses or backbone weights"):
        train_brain_encoder(quick("linear"), study, store=store, folder=tmp_path, device="cpu")


def test_training_is_reproducible_and_selected_by_validation(study, store, tmp_path):
    config = quick("roi_query")
    a, b = (
        train_brain_encoder(config, study, store=store, folder=tmp_path / n, device="cpu")
        for n in "ab"
    )
    for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values()):
        assert torch.equal(x, y)
    assert a.selection == "best val_r"
    assert a.history[a.facts["epoch"] - 1]["val_r"] == pytest.approx(np.nanmean(a.scores), abs=1e-6)


def test_default_folder_is_the_cache(study, store, tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    made = train_brain_encoder(quick("ridge"), study, store=store, device="cpu")
    assert (tmp_path / "encoders" / made.hash / "encoder.json").is_file()


def test_missing_responses_are_masked_counted_or_refused(study, store, tmp_path):
    responses = study.subject().responses.copy()
    responses[5:9, 3] = np.nan
    broken = with_subject(study, responses=responses)
    made = train_brain_encoder(
        quick("linear"), broken, store=store, folder=tmp_path / "a", device="cpu"
    )
    assert made.facts["n_missing_responses"] == 4
    assert all(torch.isfinite(p).all() for p in made.module.state_dict().values())
    with pytest.raises(
        DataError, match="finite responses; got 4 NaN or infinite values in 1 columns"
    ):
        train_brain_encoder(
            quick("ridge"), broken, store=store, folder=tmp_path / "b", device="cpu"
        )
    assert not (tmp_path / "b" / "encoder.json").exists()


def test_loss_leaves_missing_out_and_never_broadcasts():
    g = torch.Generator().manual_seed(0)
    p, y = torch.randn(6, 5, generator=g, requires_grad=True), torch.randn(6, 5, generator=g)
    scale = torch.rand(5, generator=g) + 0.5
    z = ((p - y) / scale) ** 2
    assert torch.allclose(encoder_loss(p, y, scale, 2), z[:, :2].mean() + z[:, 2:].mean())
    y[0] = torch.nan
    assert torch.allclose(encoder_loss(p, y, scale, 2), z[1:, :2].mean() + z[1:, 2:].mean())
    encoder_loss(p, y, scale, 2).backward()
    assert torch.isfinite(p.grad).all() and (p.grad[0] == 0).all()
    with pytest.raises(DataError, match=r"predictions of shape \(6, 5\); got \(6, 1\)"):
        encoder_loss(p[:, :1], y, scale, 2)


def test_constant_vertex_is_undefined_not_zero(study, store, tmp_path):
    responses = study.subject().responses.copy()
    responses[:, 7] = 2.5
    made = train_brain_encoder(
        quick("linear"),
        with_subject(study, responses=responses),
        store=store,
        folder=tmp_path,
        device="cpu",
    )
    assert np.array_equal(np.flatnonzero(np.isnan(made.scores)), [7])
    assert np.isfinite(made.history[0]["val_r"])


def test_split_is_seeded_and_never_touches_test(study):
    subject = study.subject()
    own, how = split_rows(EncoderConfig(), subject)
    assert np.array_equal(own["val"], subject.rows("val")) and "own" in how
    bare = dataclasses.replace(subject, splits={k: subject.splits[k] for k in ("train", "test")})
    rows, how = split_rows(EncoderConfig(), bare)
    assert np.array_equal(rows["val"], split_rows(EncoderConfig(), bare)[0]["val"])
    assert not np.array_equal(rows["val"], split_rows(EncoderConfig(split_seed=1), bare)[0]["val"])
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), bare.rows("train"))
    assert how == "10% of train, drawn with seed 0"
    with pytest.raises(DataError, match="at least 3 stimuli for validation"):
        split_rows(EncoderConfig(val_fraction=0.001), bare)


def test_other_tokens_are_refused(study, store, tmp_path):
    made = train_brain_encoder(quick("ridge"), study, store=store, folder=tmp_path, device="cpu")
    stimuli = study.subject().stimuli.subset(range(4))
    other = load_backbone("vit_tiny14", "random:1", image_size=56)
    with pytest.raises(DataError, match="the tokens this encoder was trained on; got backbone"):
        made.predict(store.get(other, stimuli, "patches"))
    with pytest.raises(DataError, match="got block 0 instead of 2"):
        made.predict(store.get(made.load_backbone("cpu"), stimuli, "patches", block=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": (0, 2), "features": "q"},
        {"tokens": "pooled:2"},
        {"tokens": "cls+mean"},
        {"tokens": "cls", "blocks": (0, 1, 2)},
        {"leave_session_out": True},
        {"scheme": "hemispheres", "kind": "roi_query"},
    ],
)
def test_choices(changes, study, store, tmp_path):
    config = replace(quick("ridge"), **changes)
    made = train_brain_encoder(config, study, store=store, folder=tmp_path, device="cpu")
    assert made.predict_stimuli(study.subject().stimuli.subset(range(5)), device="cpu").shape == (
        5,
        168,
    )


def test_schemes_give_queries_to_rois_streams_or_hemispheres():
    side = np.repeat([0, 1], 6).astype(np.int8)
    names = {"V1v": [0, 6], "EBA": [1, 7], "early": [0, 1, 6], "ventral": [2, 7, 8], "RSC": []}
    atlas = Atlas(side, {k: np.isin(np.arange(12), v) for k, v in names.items()})
    found = {
        s: query_masks(side, scheme_rois(atlas, s)) for s in ("rois", "streams", "hemispheres")
    }
    assert found["rois"][0] == (
        "left:V1v",
        "left:EBA",
        "left:rest",
        "right:V1v",
        "right:EBA",
        "right:rest",
    )
    assert found["streams"][0] == (
        "left:early",
        "left:ventral",
        "left:rest",
        "right:early",
        "right:ventral",
        "right:rest",
    )
    assert found["hemispheres"][0] == ("left:all", "right:all")
    for _, masks in found.values():
        assert masks.any(0).all() and masks.shape[1] == 12
    assert np.flatnonzero(found["streams"][1][1]).tolist() == [2]


def test_bad_choices(study):
    with pytest.raises(ConfigError, match="tokens with places for kind 'retinotopic'"):
        EncoderConfig(kind="retinotopic", tokens="cls")
    with pytest.raises(ConfigError, match="at least one block"):
        EncoderConfig(blocks=())
    with pytest.raises(ConfigError, match="did you mean 'scheme'"):
        from_dict(EncoderConfig, {"schema": "rois"})
    with pytest.raises(ConfigError, match="an atlas with streams"):
        scheme_rois(study.subject().atlas, "streams")


def test_fingerprint_follows_content(study):
    subject = study.subject()
    changed = subject.responses.copy()
    changed[3, 3] += 1
    assert subject_fingerprint(subject) != subject_fingerprint(
        dataclasses.replace(subject, responses=changed)
    )
    assert subject_fingerprint(subject) == subject_fingerprint(dataclasses.replace(subject))

"""weights="auto": the original where it can be had, downloaded once, else the labelled stand-in."""

import hashlib
import json

import pytest
import torch
from hub_example import CONFIG, NAME, REVISION, SMALL, serving
from safetensors.torch import save_file

from bmfl_lab.backbones import dinov2, load_backbone
from bmfl_lab.backbones.dinov2 import ARCHITECTURES, STAND_IN_LABEL, connection_problem
from bmfl_lab.backbones.weights import hash_state
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.errors import CheckpointError, FetchError
from bmfl_lab.runtime import loaded_backbones
from bmfl_lab.training.context import pinned


@pytest.fixture
def state():
    return dinov2.random_state(SMALL, seed=1)


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    """A small network under the name of the demo's backbone, and empty caches."""
    monkeypatch.setitem(ARCHITECTURES, NAME, SMALL)
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("BMFL_OFFLINE", raising=False)
    connection_problem.cache_clear()
    yield
    connection_problem.cache_clear()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A file in the place of the archive's member, which other tests fetch."""
    found = dinov2.random_state(SMALL, seed=2)
    torch.save(found, tmp_path / "dinov2s.pt")
    monkeypatch.setattr(dinov2, "fetch_member", lambda **_: tmp_path / "dinov2s.pt")
    kept = {k: v for k, v in found.items() if k != "mask_token"}
    monkeypatch.setattr(dinov2, "STAND_IN_HASH", hash_state(kept))
    return hash_state(kept)


@pytest.fixture
def hub(tmp_path, state, monkeypatch):
    save_file(state, tmp_path / "model.safetensors")
    with serving((tmp_path / "model.safetensors").read_bytes()) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server


def load(weights="auto"):
    return load_backbone(NAME, weights=weights, image_size=56)


def test_a_local_original_serves_without_a_connection(tmp_path, state):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "dinov2_vits14_reg4_pretrain.pth")
    digest = hashlib.sha256((folder / "dinov2_vits14_reg4_pretrain.pth").read_bytes()).hexdigest()
    backbone = load()
    assert backbone.weights_hash == hash_state(state)
    assert backbone.weights_label == (
        f"original weights, file dinov2_vits14_reg4_pretrain.pth, SHA-256 {digest[:16]}"
    )
    assert loaded_backbones()[-1]["weights"] == backbone.weights_label


def test_the_original_is_downloaded_once_and_said(state, hub, capsys):
    for _ in range(2):
        backbone = load()
        assert backbone.weights_hash == hash_state(state)
        digest = hashlib.sha256(hub.files["model.safetensors"]).hexdigest()
        assert digest[:16] in backbone.weights_label
        assert backbone.weights_label.startswith("original weights, Hugging Face folder")
    said = capsys.readouterr().out
    assert said.count("downloading the original weights of dinov2_vits14_reg") == 1
    assert hub.asked["GET model.safetensors"] == 1


def test_nothing_is_downloaded_unasked_or_if_it_is_forbidden(hub, stand_in, monkeypatch, capsys):
    assert load(None).weights_hash == stand_in and not hub.asked
    monkeypatch.setenv("BMFL_OFFLINE", "1")
    assert load().weights_label == STAND_IN_LABEL and not hub.asked
    assert "BMFL_OFFLINE=1, which forbids every download" in capsys.readouterr().out
    with pytest.raises(FetchError, match="BMFL_OFFLINE=1"):
        load("facebook/dinov2-with-registers-small")
    with pytest.raises(FetchError, match=r"BMFL_OFFLINE=1.*local file or folder"):
        load_backbone("dinov2_vitb14", weights="auto")


def test_without_a_connection_the_stand_in_serves_after_one_test(stand_in, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for _ in range(2):
        assert load().weights_label == STAND_IN_LABEL
    assert connection_problem.cache_info().misses == 1
    assert "an answer of http://127.0.0.1:9 within 5 s" in capsys.readouterr().out


def test_other_bytes_than_the_hub_states_are_not_used(hub, state, stand_in, capsys):
    hub.spoilt = True
    assert load().weights_label == STAND_IN_LABEL
    assert "other bytes" in capsys.readouterr().out
    hub.spoilt = False
    assert load().weights_hash == hash_state(state)


def test_an_interrupted_download_goes_on(tmp_path, hub, state):
    folder = tmp_path / "hf" / "hub" / "models--facebook--dinov2-with-registers-small"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    assert load().weights_hash == hash_state(state)


def test_a_model_of_the_stand_in_keeps_to_it_when_the_original_is_there(hub, stand_in, monkeypatch):
    monkeypatch.setattr("bmfl_lab.training.context.STAND_IN_HASH", stand_in)
    spec = BackboneSpec(NAME, "auto")
    assert load(pinned(spec, stand_in).weights).weights_hash == stand_in
    assert pinned(spec, "0" * 64) == spec
    with pytest.raises(CheckpointError, match="check the path"):
        load_backbone("dinov2_vitb14", weights="stand-in.pth")

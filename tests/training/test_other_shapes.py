"""Bundles with a valid seal whose tensors are not those of the model that their manifest describes."""

import shutil
from pathlib import Path

import fit_example as example
import pytest
import torch

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.errors import CheckpointError
from bmfl_lab.training import aligned, checkpoint, load_fusion
from bmfl_lab.training.trained_encoder import load_encoder

RELEASED = Path(__file__).with_name("released_models") / "schema-1"


def narrower(tensor):
    return tensor[..., :-1].contiguous()


def wider(tensor):
    return torch.cat([tensor, tensor[..., :1]], -1)


CHANGES = {
    "one column less": lambda t, name: {**t, name: narrower(t[name])},
    "one column more": lambda t, name: {**t, name: wider(t[name])},
    "flattened": lambda t, name: {**t, name: t[name].flatten()},
    "missing": lambda t, name: {k: v for k, v in t.items() if k != name},
    "renamed": lambda t, name: {(k + "x" if k == name else k): v for k, v in t.items()},
    "one too many": lambda t, name: {**t, f"{name}.more": t[name]},
    "empty": lambda t, name: {**t, name: t[name][..., :0].contiguous()},
}


def reseal(folder, name, change, tensor):
    """Change a tensor of a bundle and write it again with a seal that fits."""
    tensors, manifest = checkpoint.read_bundle(folder, name)
    manifest.pop("manifest_sha256")
    tensors = change(tensors, tensor)
    if "tensors" in manifest:
        manifest["tensors"] = sorted(tensors)
    checkpoint.write_bundle(folder, name, tensors, manifest, what=manifest["what"])


SAID = r"expected .*(tensors|moments).*To fix it: "


@pytest.mark.parametrize("change", CHANGES)
def test_an_encoder(change, tmp_path):
    folder = shutil.copytree(RELEASED / "encoder", tmp_path / "encoder")
    tensors, _ = checkpoint.read_bundle(folder, "encoder")
    names = sorted(k for k, v in tensors.items() if k.startswith("module.") and v.ndim == 2)
    load_encoder(folder)
    assert len(names) > 5
    for name in names:
        place = shutil.copytree(folder, tmp_path / name)
        reseal(place, "encoder", CHANGES[change], name)
        with pytest.raises(CheckpointError, match=SAID):
            load_encoder(place)


@pytest.fixture(scope="module")
def backbone():
    spec: BackboneSpec = load_study("planted").backbone
    return load_backbone(
        spec.name, spec.weights, image_size=spec.image_size, resize=spec.resize, device="cpu"
    )


@pytest.mark.parametrize("change", CHANGES)
def test_a_fusion(change, backbone, tmp_path):
    folder = shutil.copytree(RELEASED, tmp_path / "fusion")
    tensors, _ = checkpoint.read_bundle(folder, "fusion")
    name = next(k for k, v in tensors.items() if k.startswith("module.") and v.ndim == 2)
    store = FeatureStore(tmp_path / "store")
    reseal(folder, "fusion", lambda tensors, _: tensors, name)
    load_fusion(folder, backbone, store=store, device="cpu")
    reseal(folder, "fusion", CHANGES[change], name)
    with pytest.raises(CheckpointError, match=SAID):
        load_fusion(folder, backbone, store=store, device="cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    from bmfl_lab.training.loop import LoopConfig

    study = load_study("planted", n_encoder=24, n_encoder_val=8, n_encoder_test=8)
    loop = LoopConfig(epochs=1, batch_size=24, lr=3e-3)
    config = aligned.tiny(loop=loop)
    config = type(config)(**{**vars(config), "pretrain": loop})
    folder = tmp_path_factory.mktemp("aligned")
    aligned.prepare_original(config, study).save(folder)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_an_aligned_model(change, original, tmp_path):
    folder = shutil.copytree(original, tmp_path / "aligned")
    tensors, _ = checkpoint.read_bundle(folder, "aligned")
    name = next(k for k, v in tensors.items() if k.startswith("network.") and v.ndim == 2)
    reseal(folder, "aligned", CHANGES[change], name)
    with pytest.raises(CheckpointError, match=SAID):
        aligned.load_aligned(folder)


@pytest.mark.parametrize("tensor", ["model.", "optimiser.0.exp_avg", "optimiser.1.exp_avg_sq"])
@pytest.mark.parametrize("change", ["one column less", "one column more", "missing"])
def test_a_training_checkpoint(change, tensor, tmp_path):
    calls = []

    class Stop(Exception):
        pass

    def loss(model, batch):
        calls.append(1)
        if len(calls) > 3:
            raise Stop
        return example.loss_fn(model, batch)

    with pytest.raises(Stop):
        example.train(tmp_path, loss)
    tensors, _ = checkpoint.read_bundle(tmp_path, "step-00000003")
    name = next(k for k, v in tensors.items() if k.startswith(tensor) and v.ndim)
    reseal(tmp_path, "step-00000003", CHANGES[change], name)
    with pytest.raises(CheckpointError, match=SAID):
        example.train(tmp_path)

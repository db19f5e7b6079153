"""Training on a GPU: bfloat16, pinned batches, resume, and a full memory."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bmfl_lab.backbones import FeatureStore, extract, load_backbone
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import load_study
from bmfl_lab.evaluation import evaluate_ood
from bmfl_lab.training import LoopConfig, fit, load_fusion, train_brain_encoder, train_fusion
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training.batches import MemoryBatches, Order
from bmfl_lab.training.recipes import tiny

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def module(dropout=0.1):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 16), nn.Dropout(dropout), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)
    )


def data(n=60):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    return {"x": x, "label": (x[:, 0] > 0).long() + (x[:, 1] > 0).long()}


def loss_fn(model, batch):
    logits = model(batch["x"])
    return functional.cross_entropy(logits, batch["label"]), {
        "wide": torch.tensor(float(logits.dtype == torch.float32))
    }


def train(loss=loss_fn, model=None, folder=None, **changes):
    config = LoopConfig(
        **{"epochs": 6, "batch_size": 10, "lr": 1e-2, "checkpoint_every": 1, **changes}
    )
    return fit(
        module() if model is None else model, loss, data(), config, folder=folder, device="cuda"
    )


def test_bfloat16_is_used_by_itself_and_learns():
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no fast bfloat16")
    narrow, full = train(epochs=30), train(epochs=30, precision="float32")
    assert narrow.history[0]["wide"] == 0 and full.history[0]["wide"] == 1
    assert narrow.history[-1]["loss"] < 0.5 * narrow.history[0]["loss"]
    assert narrow.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], abs=0.1)


def test_cpu_and_gpu_train_to_the_same_weights_without_dropout():
    config = LoopConfig(epochs=4, batch_size=10, lr=1e-2, precision="float32")
    cpu, gpu = (fit(module(0.0), loss_fn, data(), config, device=d) for d in ("cpu", "cuda"))
    for name, value in cpu.state.items():
        assert torch.allclose(gpu.state[name], value, atol=1e-3), name


def test_data_beyond_the_memory_stay_on_the_host_and_arrive_whole(monkeypatch):
    inside = MemoryBatches(data(), CUDA)
    assert all(v.device.type == "cuda" for v in inside.data.values())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    pinned = []
    original = torch.Tensor.pin_memory
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda t, *a: (pinned.append(1), original(t, *a))[1]
    )
    outside = MemoryBatches(data(), CUDA)
    assert all(v.device.type == "cpu" for v in outside.data.values())
    index = Order(inside.n, 10, 0).indices(0, 2)
    ours, theirs = outside.take(index), inside.take(index)
    assert len(pinned) == 2 and outside.state() == inside.state()
    assert all(v.device.type == "cuda" and torch.equal(v, theirs[k]) for k, v in ours.items())


def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path):
    calls = 0

    class Stop(Exception):
        pass

    def stopping(model, batch):
        nonlocal calls
        calls += 1
        if calls == 17:
            raise Stop
        return loss_fn(model, batch)

    whole = train()
    with pytest.raises(Stop):
        train(stopping, folder=tmp_path)
    resumed = train(folder=tmp_path)
    assert not any("not bitwise" in note for note in resumed.notes)
    for name, value in whole.state.items():
        assert torch.allclose(resumed.state[name], value, atol=1e-6), name
    np.testing.assert_allclose(
        [r["loss"] for r in resumed.history], [r["loss"] for r in whole.history], atol=1e-6
    )


def test_a_full_memory_halves_the_batch_and_keeps_the_gradient():
    def greedy(model, batch):
        if len(batch["index"]) > 3:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")  # a petabyte
        return loss_fn(model, batch)

    free = train(model=module(0.0), precision="float32")
    tight = train(greedy, model=module(0.0), precision="float32")
    assert any("4 micro-batches" in note for note in tight.notes)
    np.testing.assert_allclose(
        [r["loss"] for r in tight.history], [r["loss"] for r in free.history], atol=1e-5
    )


def test_a_full_memory_halves_the_batch_of_the_extraction(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (12, 56, 56, 3), dtype=np.uint8)
    stimuli = from_arrays("noise", images, [str(i) for i in range(12)], np.zeros(12, int))
    backbone = load_backbone("vit_tiny14", image_size=56, device="cuda")
    expected = extract(backbone, stimuli)
    original = type(backbone).forward

    def greedy(self, images, *args, **options):
        if len(images) > 4:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return original(self, images, *args, **options)

    monkeypatch.setattr(type(backbone), "forward", greedy)
    assert np.allclose(extract(backbone, stimuli).patches, expected.patches, atol=1e-5)


def test_the_main_job_on_a_gpu_answers_as_on_the_cpu(tmp_path):
    study = load_study(
        "planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_test=40, n_ood=20
    )
    store = FeatureStore(tmp_path / "features")
    encoder = train_brain_encoder(
        encoders.tiny("ridge"), study, store=store, folder=tmp_path / "e", device="cuda"
    )
    config = tiny(loop=LoopConfig(epochs=3, batch_size=32, lr=3e-3))
    trained = train_fusion(config, study, encoder=encoder, store=store, device="cuda")
    result = evaluate_ood({"fusion": trained}, study, shifts=[("masked", 2)], n_boot=50)
    assert {r.n for r in result.rows if r.split == "test"} == {40}
    trained.save(tmp_path / "model")
    spec = study.backbone
    backbone = load_backbone(
        spec.name, spec.weights, image_size=spec.image_size, resize=spec.resize
    )
    again = load_fusion(tmp_path / "model", backbone, store=store, device="cpu")
    assert np.allclose(
        trained.logits(study.set("test")), again.logits(study.set("test")), atol=1e-2
    )

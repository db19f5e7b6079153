"""Results of a GPU equal those of the CPU under torch's default settings for TF32."""

import numpy as np
import pytest
import torch

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.losses import fusion_loss, pearson_regulariser
from bmfl_lab.models import LinearEncoder, ROIQueryEncoder, fit_ridge
from bmfl_lab.models.brain_transformer import BrainTransformer, PatchTokeniser
from bmfl_lab.models.fusion import FusionModel

pytestmark = pytest.mark.gpu
COSINE = torch.nn.functional.cosine_similarity


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["vit_tiny14_reg", "dinov2_vits14_reg"])
def test_float32_tokens_agree_under_the_default_settings(name):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    images = draw(4, 3, 98, 98)
    expected = load_backbone(name, weights="random", image_size=98)(images, blocks=(0, -1))
    found = load_backbone(name, weights="random", image_size=98, device="cuda")(
        images.cuda(), blocks=(0, -1)
    )
    for ours, theirs in zip(found, expected, strict=True):
        for part in ("cls", "registers", "patches"):
            assert torch.allclose(getattr(ours, part).cpu(), getattr(theirs, part), atol=1e-4), part
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_the_patch_projection_is_not_tf32():
    # TF32 keeps 10 bits of the mantissa: on these pixels it is off by 1e-3 and more
    images = 100 * draw(4, 3, 56, 56)
    cpu = load_backbone("vit_tiny14", image_size=56)
    gpu = load_backbone("vit_tiny14", image_size=56, device="cuda")
    exact = torch.nn.functional.conv2d(
        images.double(),
        cpu.patch_embed.proj.weight.double(),
        cpu.patch_embed.proj.bias.double(),
        stride=14,
    )
    exact = exact.flatten(2).transpose(1, 2)
    error = (gpu.patch_embed(images.cuda()).cpu() - exact).abs().max() / exact.abs().max()
    assert error < 2e-6


def test_bfloat16_tokens_point_the_same_way():
    images = draw(4, 3, 98, 98)
    expected = load_backbone("dinov2_vits14_reg", weights="random", image_size=98)(images)
    narrow = load_backbone(
        "dinov2_vits14_reg", weights="random", image_size=98, device="cuda", dtype="bfloat16"
    )
    found = narrow(images.cuda())
    assert found.cls.dtype == torch.float32
    assert COSINE(found.cls.cpu(), expected.cls).min() >= 0.999
    assert COSINE(found.patches.cpu(), expected.patches, dim=-1).min() >= 0.995


def test_wrapped_networks_agree_within_tf32():
    images = draw(2, 3, 64, 64)
    cpu, gpu = (
        load_backbone("cornet_s", weights="random", image_size=64, device=d)
        for d in ("cpu", "cuda")
    )
    found, expected = gpu(images.cuda(), blocks=(0, -1)), cpu(images, blocks=(0, -1))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.patches.is_cuda and ours.grid == theirs.grid
        assert COSINE(ours.patches.cpu(), theirs.patches, dim=-1).min() >= 0.999
    assert gpu.device.type == "cuda" and gpu.describe() == cpu.describe()


def test_attention_weights_agree():
    images = draw(2, 3, 56, 56)
    cpu, gpu = (load_backbone("vit_tiny14_reg", image_size=56, device=d) for d in ("cpu", "cuda"))
    expected, found = (
        cpu(images, attention=True).attention,
        gpu(images.cuda(), attention=True).attention,
    )
    assert torch.allclose(found.cpu(), expected, atol=1e-5)


def encoders():
    masks = np.random.default_rng(0).random((6, 300)) < 0.3
    masks[0] |= ~masks.any(0)
    torch.manual_seed(0)
    yield LinearEncoder(token_width=48, n_vertices=300, pooling="grid", n_patches=16)
    yield ROIQueryEncoder(
        masks=masks, token_width=48, grid=(4, 4), n_heads=4, ffn_width=64, dropout=0.0
    )


@pytest.mark.parametrize("kind", [0, 1], ids=["linear", "roi_query"])
def test_encoders_agree_in_outputs_and_gradients(kind):
    encoder = list(encoders())[kind]
    patches = draw(5, 16, 48)
    found = {}
    for device in ("cpu", "cuda"):
        encoder.to(device).zero_grad()
        out = encoder(patches.to(device))
        out.square().mean().backward()
        found[device] = [
            out.detach().cpu(),
            *(p.grad.cpu().clone() for p in encoder.parameters() if p.grad is not None),
        ]
    assert len(found["cpu"]) == len(found["cuda"]) > 1
    for ours, theirs in zip(found["cuda"], found["cpu"]):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("query", ["cls", "patch"])
def test_fusion_logits_agree(query):
    torch.manual_seed(0)
    brain = BrainTransformer(
        tokeniser=PatchTokeniser(n_vertices=100, width=32, patch=16), width=32, depth=2
    )
    model = FusionModel(
        head="fusion",
        visual_width=48,
        n_classes=4,
        brain=brain,
        brain_width=32,
        width=32,
        query=query,
    ).eval()
    inputs = draw(6, 48), draw(6, 16, 48, seed=1), draw(6, 100, seed=2)
    with torch.no_grad():
        expected = model(*inputs, weights=True)
        found = model.cuda()(*(x.cuda() for x in inputs), weights=True)
    assert torch.allclose(found.logits.cpu(), expected.logits, atol=1e-4)
    for name, weights in expected.attention.items():
        assert torch.allclose(found.attention[name].cpu(), weights, atol=1e-5)


@pytest.mark.parametrize("width", [30, 200])  # fewer and more features than stimuli
def test_ridge_agrees(width):
    X, W = draw(120, width).numpy(), draw(width, 50, seed=1).numpy()
    Y = X @ W + 3 * draw(120, 50, seed=2).numpy()
    alphas = np.logspace(-1, 4, 12)
    cpu, gpu = (fit_ridge(X, Y, alphas, device=d) for d in ("cpu", "cuda"))
    assert np.mean(cpu.alpha == gpu.alpha) >= 0.98
    same = cpu.alpha == gpu.alpha
    assert np.allclose(cpu.coef[:, same], gpu.coef[:, same], atol=1e-4)
    assert np.allclose(cpu.intercept[same], gpu.intercept[same], atol=1e-4)


@pytest.mark.parametrize("axis", ["feature", "batch"])
def test_losses_and_their_gradients_agree(axis):
    found = {}
    for device in ("cpu", "cuda"):
        logits, x, y = (draw(8, n, seed=n).to(device).requires_grad_() for n in (4, 32, 33))
        loss, _ = fusion_loss(
            logits, torch.arange(8, device=device) % 4, x, y[:, :32], 0.5, axis=axis
        )
        loss.backward()
        found[device] = [loss.detach().cpu(), logits.grad.cpu(), x.grad.cpu(), y.grad.cpu()]
    for ours, theirs in zip(found["cuda"], found["cpu"]):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_regulariser_is_float32_inside_autocast_and_finite_on_constants():
    x = (1000 + draw(8, 64)).cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        inside = pearson_regulariser(x, draw(8, 64, seed=1).cuda())
    outside = pearson_regulariser(x.detach().cpu(), draw(8, 64, seed=1))
    assert inside.dtype == torch.float32 and abs(inside.item() - outside.item()) < 1e-4
    constant = torch.ones(8, 64, device="cuda", requires_grad=True)
    pearson_regulariser(constant, draw(8, 64).cuda()).backward()
    assert torch.isfinite(constant.grad).all() and constant.grad.abs().max() <= 1e3


def test_the_store_is_filled_on_a_gpu_and_read_by_anybody(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 56, 56, 3), dtype=np.uint8)
    stimuli = from_arrays("noise", images, [str(i) for i in range(40)], np.zeros(40, int))
    gpu = load_backbone("vit_tiny14", image_size=56, device="cuda")
    cpu = load_backbone("vit_tiny14", image_size=56)
    made = FeatureStore(tmp_path / "a").get(gpu, stimuli, dtype="float32", batch_size=16)
    plain = FeatureStore(tmp_path / "b").get(cpu, stimuli, dtype="float32")
    assert made.manifest["device"] == "cuda" and made.key == plain.key
    assert np.allclose(made.patches, plain.patches, atol=1e-4) and np.allclose(
        made.cls, plain.cls, atol=1e-4
    )
    assert (
        FeatureStore(tmp_path / "a").get(cpu, stimuli, dtype="float32").manifest["device"] == "cuda"
    )

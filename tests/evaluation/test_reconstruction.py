"""Images made for embeddings, with a planted linear image tower."""

import numpy as np
import pytest
import torch

from bmfl_lab.backbones import load_backbone
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.evaluation.diffusion import load_diffusion
from bmfl_lab.evaluation.layers import layer_features
from bmfl_lab.evaluation.reconstruction import embed_with, reconstruct, reconstruction_scores

SIDE, D, N = 8, 30, 4
WEIGHTS = torch.randn(3 * SIDE * SIDE, D, generator=torch.Generator().manual_seed(0))


def embed(images):
    return images.flatten(1) @ WEIGHTS


def judge(images):
    """Embed by other pixels' sums, which took no part in the reconstruction."""
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.avg_pool2d(x, 2).flatten(1).numpy()


@pytest.fixture(scope="module")
def planted():
    draw = np.random.default_rng(1)
    coarse = draw.integers(0, 256, (N, 2, 2, 3))
    seen = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    pixels = torch.from_numpy(seen).permute(0, 3, 1, 2) / 255
    return seen, embed(pixels).numpy(), embed(torch.full((1, 3, SIDE, SIDE), 0.5))[0].numpy()


def test_reconstructions_resemble_what_was_seen_and_shuffled_ones_do_not(planted):
    seen, embeddings, centre = planted
    options = dict(image_size=SIDE, steps=60, lr=0.1, smoothness=0.01, jitter=0)
    made = reconstruct(embeddings, embed, centre, **options)
    # an encoder that took no part, on responses to what was seen
    draw = np.random.default_rng(2)
    tuning = draw.normal(size=(judge(seen).shape[1], 20))
    measured = (judge(seen) - 0.5) @ tuning + 0.1 * draw.normal(size=(N, 20))
    judged = dict(
        embeddings=(judge(made), judge(seen)), responses=((judge(made) - 0.5) @ tuning, measured)
    )
    scores = reconstruction_scores(made, seen, **judged, n_boot=100)
    scores = scores.set_index("score")
    for name in ("two-way identification", "held-out encoder, two-way"):
        assert scores.loc[name, "value"] == 1 and scores.loc[name, "control"] == 0.5
    for name in ("pixel correlation", "structural similarity"):
        assert scores.loc[name, "value"] > scores.loc[name, "control"] + 0.1
    wrong = reconstruction_scores(made[[1, 2, 3, 0]], seen, n_boot=100).set_index("score")
    assert (wrong["value"] < scores["value"][wrong.index]).all()


@pytest.mark.parametrize("tokens", ["cls", "cls+mean"])
def test_the_embedding_of_a_backbone_has_gradients_and_the_values_of_its_features(tokens):
    options = dict(weights="random:0", image_size=28, resize="direct", device="cpu")
    backbone = load_backbone("vit_tiny14", **options)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3)).astype(np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).requires_grad_()
    found = embed_with(backbone, tokens, 1)(pixels)
    stimuli = from_arrays("s", images, list("abc"), np.full(3, -1))
    (want,) = layer_features(backbone, stimuli, tokens, blocks=[1]).values()
    np.testing.assert_allclose(found.detach().numpy(), want, atol=0.02)
    assert torch.autograd.grad(found.sum(), pixels)[0].abs().sum() > 0


def test_a_tiny_seeded_pipeline_runs_end_to_end(planted, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    sizes = dict(sample_size=SIDE, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4)
    unet = diffusers.UNet2DModel(in_channels=3, out_channels=3, **blocks, **sizes)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50, clip_sample=False)
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(tmp_path, safe_serialization=True)
    seen, embeddings, centre = planted
    options = dict(image_size=SIDE, pipeline=load_diffusion(tmp_path), steps=5, guidance=200.0)
    made = reconstruct(embeddings[:2], embed, centre, **options)
    assert made.shape == (2, SIDE, SIDE, 3)
    np.testing.assert_array_equal(made, reconstruct(embeddings[:2], embed, centre, **options))
    assert np.isfinite(reconstruction_scores(made, seen[:2])["value"]).all()

"""Brain-guided diffusion with a real, tiny, untrained pipeline; a clear refusal without diffusers."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from bmfl_lab.errors import ConfigError
from bmfl_lab.evaluation.diffusion import load_diffusion, synthesise_with_diffusion

present = importlib.util.find_spec("diffusers") is not None


def red_minus_blue(images):
    return torch.stack([(images[:, 0] - images[:, 2]).mean((1, 2)), -images.mean((1, 2, 3))], 1)


@pytest.mark.skipif(present, reason="diffusers is installed")
def test_without_diffusers_the_extra_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"pip install 'bmfl-lab\[diffusion\]'"):
        load_diffusion(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100, clip_sample=False)
    path = tmp_path_factory.mktemp("pipeline")
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(path, safe_serialization=True)
    return path


def test_guidance_raises_activity_over_the_same_noise(folder):
    pipeline = load_diffusion(folder)
    options = dict(image_size=12, n=3, steps=10, judge=red_minus_blue)
    mask = np.array([True, False])
    free = synthesise_with_diffusion(pipeline, red_minus_blue, mask, guidance=0.0, **options)
    np.testing.assert_allclose(free.activity, free.start)
    found = synthesise_with_diffusion(pipeline, red_minus_blue, mask, guidance=300.0, **options)
    np.testing.assert_allclose(found.start, free.start)
    assert (found.activity > found.start + 0.05).all() and found.images.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(found.judged, found.activity)
    again = synthesise_with_diffusion(pipeline, red_minus_blue, mask, guidance=300.0, **options)
    np.testing.assert_array_equal(again.images, found.images)
    assert "DDIMPipeline, 10 steps, guidance 300" in found.prior


def test_refusals(folder, tmp_path):
    pipeline = load_diffusion(folder)
    with pytest.raises(ConfigError, match="a non-empty ROI"):
        synthesise_with_diffusion(pipeline, red_minus_blue, np.zeros(2, bool), image_size=12)
    with pytest.raises(ConfigError, match=r"model_index\.json"):
        load_diffusion(tmp_path)
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "DDIMPipeline", "unet": ["x", "y"]})
    )
    with pytest.raises(ConfigError, match="a complete pipeline"):
        load_diffusion(tmp_path)

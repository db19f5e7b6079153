"""The remedies of diffusion pipelines, each followed with a tiny one that is not trained."""

import functools
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from following import follows

from bmfl_lab.evaluation.diffusion import load_diffusion, synthesise_with_diffusion

diffusers = pytest.importorskip("diffusers")


@functools.cache
def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    sizes = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 4}
    return diffusers.UNet2DModel(layers_per_block=1, **blocks, **sizes)


def pipeline(**options):
    return diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(clip_sample=False, **options))


def red_and_blue(images):
    return images[:, [0, 2]].mean((2, 3))


@follows(
    (
        "evaluation/diffusion.py",
        "give the folder into which save_pretrained wrote the pipeline",
    ),
    ("evaluation/diffusion.py", "save it with safetensors"),
    ("evaluation/diffusion.py", "use a DDIM or a latent diffusion pipeline"),
)
def test_folders_without_a_pipeline(folder, env):
    place = [folder]

    def call():
        return load_diffusion(place[-1])

    yield call
    pipeline().save_pretrained(folder / "ddim", safe_serialization=True)
    place.append(folder / "ddim")
    call()
    place.append(folder / "old")
    pipeline().save_pretrained(place[-1], safe_serialization=False)
    yield call
    shutil.rmtree(place[-1])
    pipeline().save_pretrained(place[-1], safe_serialization=True)
    call()
    place.append(folder / "other")
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=8, in_channels=4
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    scheduler = diffusers.DDIMScheduler()
    diffusers.DiTPipeline(transformer, vae, scheduler).save_pretrained(place[-1])
    yield call
    place.append(folder / "ddim")


@follows(("evaluation/diffusion.py", "install the extra: pip install 'bmfl-lab[diffusion]'"))
def test_without_the_package(folder, env):
    pipeline().save_pretrained(folder)
    env.setitem(sys.modules, "diffusers", None)
    yield lambda: load_diffusion(folder)
    env.undo()


@follows(
    ("evaluation/diffusion.py", "choose an ROI that this subject has"),
    ("evaluation/diffusion.py", "use a DDIM scheduler with prediction_type='epsilon'"),
    ("evaluation/diffusion.py", "lower guidance"),
)
def test_guidance_of_no_vertex_by_another_scheduler_and_too_strong(folder, env):
    mask, scheduler, guidance = [np.zeros(2, bool)], [{}], [1.0]

    def call():
        options = {"image_size": 8, "n": 1, "steps": 2, "guidance": guidance[-1]}
        made = pipeline(**scheduler[-1])
        return synthesise_with_diffusion(made, red_and_blue, mask[-1], **options)

    yield call
    mask.append(np.array([True, False]))
    call()
    scheduler.append({"prediction_type": "v_prediction"})
    remedy = yield call
    scheduler.append(dict(re.findall(r"(\w+)='(\w+)'", remedy)))
    call()
    guidance.append(float("inf"))
    yield call
    guidance.append(1.0)

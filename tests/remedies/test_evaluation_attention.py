"""The remedies of attention maps, of their checks and of attributions, each followed."""

import re

import evaluation_example as example
import numpy as np
import torch
from following import follows
from torch import nn

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.evaluation import attention, attention_checks, attribution
from bmfl_lab.evaluation.attention_outcomes import check_row

MAPS = np.random.default_rng(0).random((3, 4, 4))


@follows(("evaluation/attention.py", "use 0.5, as in the paper"))
def test_a_rollout_of_skip_connections_alone(folder, env):
    share = [1.0]
    remedy = yield lambda: attention.rollout(
        example.backbone(), example.images(n=1), residual=share[-1]
    )
    share.append(float(re.search(r"use (0\.\d)", remedy)[1]))


@follows(("evaluation/attention.py", "train one of kind 'roi_query' or 'ensemble'"))
def test_attention_of_an_encoder_without_queries(folder, env):
    encoder = [example.encoder("ridge")]
    remedy = yield lambda: attention.roi_attention(encoder[-1], example.images(n=1))
    encoder.append(example.encoder(re.search(r"kind '(\w+)'", remedy)[1]))


@follows(("evaluation/attention.py", "train it with query='patch'"))
def test_patches_of_a_model_with_cls_queries(folder, env):
    model = [example.fusion(query="cls")]
    remedy = yield lambda: attention.consulted_rois(model[-1], example.images(n=1), query="patch")
    model.append(example.fusion(query=re.search(r"query='(\w+)'", remedy)[1]))


@follows(
    ("evaluation/attention_checks.py", "average over heads and queries first"),
    ("evaluation/attention_checks.py", "leave these images out"),
    (
        "evaluation/attention_checks.py",
        "compute both for the same images and the same grid of patches",
    ),
)
def test_maps_that_cannot_be_compared(folder, env):
    maps = [np.random.default_rng(1).random((3, 2, 4, 4))]

    def call():
        return attention_checks.map_similarity(maps[-1], MAPS)

    yield call
    maps.append(maps[-1].mean(1))
    call()
    bad, kept = MAPS.copy(), list(range(3))
    bad[1, 0, 0] = np.nan
    yield lambda: attention_checks.map_similarity(bad[kept], MAPS[kept])
    kept.remove(1)
    attention_checks.map_similarity(bad[kept], MAPS[kept])
    maps.append(np.ones((2, 8, 8)))
    yield call
    maps.append(np.ones(MAPS.shape))


@follows(
    (
        "evaluation/attention_checks.py",
        "pass on_patches(region, backbone), with the backbone of the maps",
    )
)
def test_a_region_in_pixels(folder, env):
    backbone, region = example.backbone(), [np.zeros((28, 28), bool)]
    region[0][:14] = True
    maps = attention.rollout(backbone, example.images(n=1))
    yield lambda: attention_checks.region_share(maps, region[-1])
    region.append(attention_checks.on_patches(region[0], backbone))


@follows(
    (
        "evaluation/attention_checks.py",
        "give names from named_parameters() of the module, or their beginnings",
    )
)
def test_a_stage_without_parameters(folder, env):
    module, stage = nn.Linear(4, 4), ["layer."]

    def maps(changed):
        return changed.weight.detach().numpy()[None]

    yield lambda: attention_checks.weight_randomisation(module, {"output": (stage[-1],)}, maps)
    stage.append(next(name for name, _ in module.named_parameters()))


@follows(("evaluation/attention_checks.py", "train it with head='fusion'"))
def test_brain_attention_of_a_model_without_a_brain(folder, env):
    model = [example.fusion(head="backbone")]
    remedy = yield lambda: attention_checks.randomise_brain_attention(
        model[-1], example.images(n=2)
    )
    model.append(example.fusion(head=re.search(r"head='(\w+)'", remedy)[1], query="cls"))


@follows(
    (
        "evaluation/attention_checks.py",
        "compute the maps for these images; sides of images must be multiples of those of maps",
    ),
    (
        "evaluation/attention_checks.py",
        "pass curves of the same images, steps and grid of patches, or leave `reference` out",
    ),
)
def test_deletion_with_maps_or_curves_of_other_images(folder, env):
    images, reference = torch.rand(3, 3, 8, 8), [None]
    maps = [np.ones((3, 3, 3))]

    def score(part, index):
        return part.mean((1, 2, 3))

    def call():
        return attention_checks.deletion_insertion(
            score, images, torch.zeros_like(images), maps[-1], reference=reference[-1]
        )

    yield call
    maps.append(np.random.default_rng(0).random((3, 4, 2)))
    found = call()
    reference.append(
        attention_checks.deletion_insertion(score, images[:2], images[:2] * 0, maps[-1][:2])
    )
    yield call
    reference.append(found)
    call()
    reference.append(None)


@follows(
    (
        "evaluation/attention_outcomes.py",
        "pass reference=area, the share of the area that region_share returns",
    )
)
def test_a_planted_region_without_its_area(folder, env):
    region, given = np.eye(4), {}
    share, area = attention_checks.region_share(MAPS, region)
    remedy = yield lambda: check_row("map", "planted region", share, **given)
    given[re.search(r"(\w+)=area", remedy)[1]] = area


@follows(
    (
        "evaluation/attribution.py",
        "pass steps=32, and a baseline made by torch.zeros_like(inputs)",
    )
)
def test_gradients_without_steps_and_baseline(folder, env):
    inputs = torch.rand(2, 3, 4, 4)
    steps, baseline = [0], [torch.zeros(3, 4, 4)]
    remedy = yield lambda: attribution.integrated_gradients(
        lambda x, index: x.sum((1, 2, 3)), inputs, baseline[-1], steps=steps[-1]
    )
    steps.append(int(re.search(r"steps=(\d+)", remedy)[1]))
    baseline.append(torch.zeros_like(inputs))


@follows(
    (
        "evaluation/attribution.py",
        "choose one of {}, or put 'left:' or 'right:' before it",
    )
)
def test_a_region_in_the_other_hemisphere(folder, env):
    rois = {"V1": np.array([True, True, False]), "V2": np.zeros(3, bool)}
    atlas, name = Atlas(np.array([0, 0, 1], np.int8), rois), ["right:V1"]
    remedy = yield lambda: attribution.roi_vertices(atlas, name[-1])
    name.append(re.search(r"choose one of (\w+)", remedy)[1])
    assert attribution.roi_vertices(atlas, "left:" + name[-1]).sum() == 2


@follows(("evaluation/attribution.py", "leave `target` out for the predicted classes"))
def test_targets_of_other_images(folder, env):
    given = {"target": [0]}
    model, few = example.fusion(head="backbone"), example.images(n=2)
    yield lambda: attribution.class_attribution(model, few, steps=1, **given)
    given.clear()

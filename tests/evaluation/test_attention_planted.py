"""Maps of models trained on the planted study, whose truth says where they must look."""

import dataclasses

import numpy as np
import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.backbones.tokens import stored_patches
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import attention, attention_checks, attribution, pointing
from bmfl_lab.evaluation.attention_checks import (
    randomise_brain_attention,
    randomise_roi_attention,
)
from bmfl_lab.training import LoopConfig, presets, train_brain_encoder, train_fusion


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Study, encoder, fusion and backbone, trained for seconds."""
    study = load_study("planted", n_test=64, n_ood=8)
    root = tmp_path_factory.mktemp("attention")
    store = FeatureStore(root / "features")
    fusion_config, config = presets("tiny", query="patch")
    encoder = train_brain_encoder(config, study, store=store, folder=root / "encoder", device="cpu")
    loop = LoopConfig(epochs=15, batch_size=32, lr=5e-3, weight_decay=0.05)
    fusion = train_fusion(
        configs.replace(fusion_config, loop=loop),
        study,
        encoder=encoder,
        store=store,
        device="cpu",
        seed=0,
    )
    return study, encoder, fusion, fusion.backbone, store


@pytest.fixture(scope="module")
def few(made):
    return made[0].set("test").subset(range(8))


def test_every_map_is_a_share_of_attention(made, few):
    _, encoder, fusion, backbone, store = made
    looks = attention.roi_attention(encoder, few, store=store, backbone=backbone)
    assert looks.shape == (8, 14, 8, 4, 4)
    np.testing.assert_allclose(looks.sum((3, 4)), 1, rtol=1e-4)
    brain = attention.brain_attention(fusion, few)
    np.testing.assert_allclose(brain.sum((2, 3)), 1, rtol=1e-4)
    by_patch = attention.patch_consultation(fusion, few)
    assert by_patch.shape == (8, 4, 14, 4, 4)
    np.testing.assert_allclose(by_patch.sum(2), 1, rtol=1e-4)
    for query in ("cls", "patch"):
        consulted = attention.consulted_rois(fusion, few, query=query)
        assert consulted.shape == (8, 14) and list(consulted.index) == list(few.ids)
        np.testing.assert_allclose(consulted.sum(axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(consulted.to_numpy(), by_patch.mean((1, 3, 4)), rtol=1e-4)


def test_queries_are_named_after_what_they_read_out(made):
    _, encoder, _, _, _ = made
    names, masks = attention.query_names(encoder), attention.query_vertices(encoder)
    assert "left:FFC" in names and len(set(names)) == 14
    for name, mask in zip(names, masks):
        np.testing.assert_array_equal(mask, attribution.roi_vertices(encoder.atlas, name))


def test_the_signal_query_looks_at_the_planted_region_and_others_do_not(made):
    study, encoder, _, backbone, store = made
    region = attention_checks.on_patches(study.extra["planted_region"], backbone)
    looks = attention.roi_attention(
        encoder, study.set("test"), store=store, backbone=backbone
    ).mean(2)
    for i, name in enumerate(attention.query_names(encoder)):
        share, area = attention_checks.region_share(looks[:, i], region)
        assert share.mean() > 2 * area if name.endswith("FFC") else share.mean() < area, name


def test_response_gradients_fall_into_the_fields_of_the_region(made, few):
    study, encoder, _, backbone, _ = made
    region = attention_checks.on_patches(study.extra["planted_region"], backbone)
    signal = attribution.response_attribution(encoder, few, "FFC", backbone=backbone, steps=16)
    early = attribution.response_attribution(encoder, few, "hV4", backbone=backbone, steps=16)
    assert signal.pixels.shape == (8, 56, 56) and signal.patches.shape == (8, 4, 4)
    inside, area = attention_checks.region_share(signal.patches, region)
    outside, _ = attention_checks.region_share(early.patches, region)
    assert inside.mean() > 2 * area > 2 * outside.mean()
    np.testing.assert_allclose(
        signal.pixels.sum((1, 2)), signal.score - signal.reference + signal.gap, atol=1e-4
    )
    assert np.median(signal.relative_gap) < 0.05


def test_class_gradients_explain_the_models_own_logits(made, few):
    _, _, fusion, _, _ = made
    found = attribution.class_attribution(fusion, few, target=few.labels, steps=24)
    expected = fusion.logits(few)[np.arange(8), few.labels]
    np.testing.assert_allclose(
        found.score, expected, atol=0.05
    )  # the store keeps tokens at half precision
    assert np.median(found.relative_gap) < 0.1
    with pytest.raises(DataError, match="8 classes from 0 to 3"):
        attribution.class_attribution(fusion, few, target=np.full(8, 4))


def test_gradients_through_the_whole_path_equal_captums(made, few):
    captum = pytest.importorskip("captum.attr")
    _, _, fusion, backbone, _ = made
    two = few.subset([0, 1])
    (images,) = attention.image_batches(backbone, two)
    path, classes = fusion.path, torch.from_numpy(fusion.logits(two).argmax(1))
    expected = captum.IntegratedGradients(lambda x: path(x, grad=True).logits).attribute(
        images, torch.zeros_like(images), target=classes, n_steps=12, method="gausslegendre"
    )
    found = attribution.class_attribution(fusion, two, steps=12)
    np.testing.assert_allclose(
        found.pixels, expected.sum(1).detach().numpy(), atol=2e-3 * float(expected.abs().max())
    )
    assert found.target == "logit of the predicted class"


def test_random_weights_lower_the_similarity(made, few):
    _, encoder, fusion, backbone, _ = made
    before = {k: v.clone() for k, v in encoder.module.state_dict().items()}
    found = randomise_roi_attention(encoder, few, "right:FFC", backbone=backbone)
    table = found.table()
    assert table.loc["readout and values", "spearman"] == pytest.approx(
        1
    )  # attention is computed before them
    assert (table["spearman"].iloc[1:] < 0.5).all() and table["ssim"].iloc[-1] < 0.5
    assert all(torch.equal(v, before[k]) for k, v in encoder.module.state_dict().items())
    brain = randomise_brain_attention(fusion, few)
    np.testing.assert_allclose(
        brain.maps["trained"], attention.brain_attention(fusion, few).mean(1), atol=2e-3
    )
    assert brain.final["spearman"].mean() < 0.7


def test_all_checks_of_the_signal_query_pass_and_its_table_says_so(made, few):
    study, encoder, fusion, backbone, _ = made
    region = attention_checks.on_patches(study.extra["planted_region"], backbone)
    checked = attention_checks.check_roi_attention(
        encoder, few, "left:FFC", backbone=backbone, region=region
    )
    assert [r.check for r in checked.rows] == ["weights", "deletion", "insertion", "planted region"]
    assert all(r.passes for r in checked.rows), checked.rows
    assert checked.maps.shape == checked.random_weights.shape == (8, 4, 4)
    other = attention_checks.check_backbone(backbone, fusion, few, kind="rollout", region=region)
    assert next(r for r in other.rows if r.check == "planted region").passes is False


def test_fields_recover_the_truth_better_than_shuffled_ones(made):
    study, encoder, _, backbone, store = made
    degrees = pointing.seen_degrees(backbone, study.subject().truth["degrees"])
    assert degrees == pytest.approx(7.0)  # the crop keeps 224 of 256
    stimuli, atlas = study.set("test"), encoder.atlas
    fields = pointing.roi_fields(
        attention.roi_attention(encoder, stimuli, store=store, backbone=backbone)
    )
    centres, truth = pointing.field_centres(fields, degrees), pointing.query_centres(encoder)
    assert np.corrcoef(centres["x"], truth["x"])[0, 1] > 0.8
    by_vertex = pointing.vertex_fields(encoder, stimuli, store=store, backbone=backbone)
    assert by_vertex.shape == (atlas.n_vertices, 4, 4) and np.isfinite(by_vertex).all()
    found = pointing.retinotopy_agreement(
        pointing.field_centres(by_vertex, degrees), atlas
    ).set_index("roi")
    assert list(found.index) == ["V1", "V2", "V3", "hV4", "all"]
    assert found.loc["all", "r_x"] > 0.8
    assert found.loc["all", "error_degrees"] < found.loc["all", "error_shuffled"]


def test_vertex_fields_are_the_spread_of_the_readouts_terms(made, few):
    """By hand for one vertex: attention times value, through the output projection and the readout."""
    _, encoder, _, backbone, store = made
    query = encoder.query_module()
    patches = torch.from_numpy(
        stored_patches(encoder.tokens(few, store=store, backbone=backbone)).astype("f4")
    )
    vertex = 30
    r = int(np.flatnonzero(attention.query_vertices(encoder)[:, vertex])[0])
    with torch.no_grad():
        tokens, weights = query.project(patches), query.attention(patches)[:, r]
        direction = query.readout.weight()[vertex]
        terms = np.zeros((8, 16))
        for p in range(16):
            head = query.v(tokens[:, p]).unflatten(-1, (8, -1)) * weights[:, :, p, None]
            terms[:, p] = (query.out(head.flatten(1)) - query.out.bias) @ direction
    found = pointing.vertex_fields(encoder, few, store=store, backbone=backbone, batch_size=3)[
        vertex
    ]
    np.testing.assert_allclose(found.ravel(), terms.std(0), rtol=1e-3)


def test_field_centres_of_a_known_blob_and_circular_correlation():
    y, x = np.mgrid[0:20, 0:20]
    blob = (
        np.exp(-((x - 15) ** 2 + (y - 4) ** 2) / 8)[None] + 0.3
    )  # a background must not draw it to the middle
    found = pointing.field_centres(blob, 8.0).iloc[0]
    assert found["x"] == pytest.approx(8 * (15.5 / 20 - 0.5), abs=0.05)
    assert found["y"] == pytest.approx(8 * (0.5 - 4.5 / 20), abs=0.05)
    assert found["size"] == pytest.approx(2 * 8 / 20, rel=0.1)
    assert found["polar_angle"] == pytest.approx(np.degrees(np.arctan2(found["x"], found["y"])))
    assert pointing.field_centres(np.ones((1, 4, 4)), 8.0)["x"].isna().all()
    angles = np.random.default_rng(0).uniform(-180, 180, 50)
    assert pointing.circular_correlation(angles, angles + 360 - 20) == pytest.approx(1)
    assert pointing.circular_correlation(angles, -angles) == pytest.approx(-1)


def test_models_without_the_part_that_is_asked_for_are_refused(made, few):
    _, encoder, fusion, backbone, store = made
    linear = dataclasses.replace(encoder, module=torch.nn.Identity(), label="ridge of someone")
    with pytest.raises(ConfigError, match="an encoder with ROI queries; got 'ridge of someone'"):
        attention.roi_attention(linear, few)
    cls_only = dataclasses.replace(fusion, config=configs.replace(fusion.config, head="backbone"))
    with pytest.raises(ConfigError, match="a model with cross-attention"):
        attention.consulted_rois(cls_only, few)
    with pytest.raises(ConfigError, match="query 'cls' or 'patch'"):
        attention.consulted_rois(fusion, few, query="all")
    with pytest.raises(ConfigError, match="an ROI such as 'V1' or 'left:V1'"):
        attribution.response_attribution(encoder, few, "middle:V1", backbone=backbone)
    with pytest.raises(ConfigError, match="a query among"):
        randomise_roi_attention(encoder, few, "left:V9", backbone=backbone)
    with pytest.raises(DataError, match="at least two images"):
        pointing.vertex_fields(encoder, few.subset([0]), store=store, backbone=backbone)
    with pytest.raises(DataError, match="168 centres; got 2"):
        pointing.retinotopy_agreement(
            pointing.field_centres(np.eye(4)[None].repeat(2, 0), 8.0), encoder.atlas
        )
    with pytest.raises(DataError, match="an atlas with 'polar_angle' and 'eccentricity'"):
        pointing.true_centres(dataclasses.replace(encoder.atlas, maps={}))
    with pytest.raises(DataError, match=r"maps \(n_stimuli, n_queries, n_heads, h, w\)"):
        pointing.roi_fields(np.ones((2, 4, 4)))
    with pytest.raises(DataError, match="finite, non-negative fields"):
        pointing.field_centres(-np.ones((1, 4, 4)), 8.0)

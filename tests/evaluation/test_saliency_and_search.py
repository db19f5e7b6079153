"""Input gradients, Grad-CAM and visual search on models whose answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

from bmfl_lab import training
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import attention_checks, attribution, search

STEPS = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A fusion that is trained for two epochs, and eight images."""
    study = load_study("planted", n_test=8, n_ood=4, n_train=32, n_val=16)
    store = FeatureStore(tmp_path_factory.mktemp("features"))
    fusion, config = training.presets("tiny", epochs=2)
    encoder = training.train_brain_encoder(config, study, store=store, device="cpu")
    model = training.train_fusion(fusion, study, encoder=encoder, store=store, device="cpu", seed=0)
    return study, model


def test_gradients_are_the_slope_of_the_score_and_the_patches_hold_them_all(made):
    study, model = made
    few = study.set("test").subset(range(3))
    maps = attribution.class_gradients(model, few, target=[0, 1, 2])
    (images,) = attribution.image_batches(model.backbone, few)
    direction = torch.zeros_like(images).double()
    x = images.clone().requires_grad_(True)
    score = model.path(x, grad=True).logits[range(3), [0, 1, 2]]
    (direction,) = torch.autograd.grad(score.sum(), x)
    assert maps.shape == (3, 4, 4)
    np.testing.assert_allclose(maps.sum((1, 2)), direction.abs().sum((1, 2, 3)), rtol=1e-4)
    step = 1e-3 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        change = [model.path(images + k * step).logits[range(3), [0, 1, 2]] for k in (1, -1)]
    slope = (change[0] - change[1]) / 2e-3
    np.testing.assert_allclose(slope, direction.flatten(1).norm(dim=1), rtol=2e-2)


def test_grad_cam_of_a_linear_head_is_its_weights_on_the_tokens(made):
    study, model = made
    few = study.set("test").subset(range(3))
    width, n_classes = model.backbone.width, 4

    class Linear(nn.Module):
        """Score the mean patch token by fixed weights."""

        head = "backbone"

        def forward(self, cls, patches, response=None, weights=False):
            from bmfl_lab.models.fusion import FusionOutput

            return FusionOutput(patches.mean(1) @ self.weights, None, None)

    head = Linear()
    head.weights = torch.randn(width, n_classes, generator=torch.Generator().manual_seed(0))
    path = type(model.path)(backbone=model.backbone, fusion=head)
    found = attribution.class_activation(model, few, target=[0, 1, 2], path=path)
    (images,) = attribution.image_batches(model.backbone, few)
    tokens = path.tokens(images)["patches"]
    n_patches = tokens.shape[1]
    expected = [(tokens[i] @ head.weights[:, i]).clamp(min=0) / n_patches for i in range(3)]
    np.testing.assert_allclose(found.reshape(3, -1), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_input_gradients_mark_the_empty_block_too_and_integrated_gradients_do_not():
    """Class blocks at a random place beside a block that says nothing (Shah et al. 2021)."""
    generator = torch.Generator().manual_seed(0)
    side, n = 6, 400
    pattern = torch.randn(side * side, generator=generator)
    null = torch.randn(side * side, generator=generator)
    null -= pattern * (null @ pattern) / (pattern @ pattern)
    label = torch.randint(0, 2, (n,), generator=generator)
    at_top = torch.randint(0, 2, (n,), generator=generator).bool()
    signal = (2.0 * label[:, None] - 1) * pattern
    first, second = (
        torch.where(at_top[:, None], signal, null),
        torch.where(at_top[:, None], null, signal),
    )
    images = torch.stack([first, second], 1)
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(2 * side * side, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[:300]), label[:300]).backward()
        optimiser.step()
    test, truth = images[300:], label[300:]
    assert (network(test).argmax(1) == truth).all()

    def score(x, index):
        return network(x).gather(1, truth[index, None])[:, 0]

    x = test.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(x, torch.arange(len(x))).sum(), x)
    integrated, _ = attribution.integrated_gradients(score, test, torch.zeros_like(test), steps=32)
    shares = {}
    # contributions are added over a block, magnitudes of gradients too, as in the library's maps
    for name, mass in {"gradient": gradient.abs().sum(2), "all": integrated.sum(2).abs()}.items():
        inside = torch.where(at_top[300:], mass[:, 0], mass[:, 1])
        shares[name] = float((inside / mass.sum(1)).mean())
    assert 0.4 < shares["gradient"] < 0.6 and shares["all"] > shares["gradient"] + 0.1, shares


@pytest.mark.parametrize("kind", list(attention_checks.GRADIENT_MAPS))
def test_both_maps_pass_through_the_same_checks_as_all_others(made, kind):
    study, model = made
    region = attention_checks.on_patches(study.extra["planted_region"], model.backbone)
    few = study.set("test").subset(range(4))
    found = attention_checks.check_gradient_map(
        model, few, kind=kind, region=region, shuffled=model
    )
    outcomes = {row.check: row for row in found.rows}
    assert set(outcomes) == {"weights", "labels", "deletion", "insertion", "planted region"}
    assert found.maps.shape == (4, 4, 4) and (found.maps >= 0).all()
    assert outcomes["labels"].value == pytest.approx(1)  # the same model is no shuffled one
    with pytest.raises(ConfigError, match="did you mean 'Grad-CAM'"):
        attention_checks.check_gradient_map(model, few, kind="GradCAM")


def pair(**options):
    ring, barred = search.ring_and_barred_ring(20)
    options = {"n": 30, "n_items": 6, "image_size": 112, **options}
    return (
        search.search_displays(barred, ring, name="feature present", **options),
        search.search_displays(ring, barred, name="feature absent", **options),
    )


def ink(displays, cell=7):
    """Return how dark each cell is: a map that sees the presence of a bar and not its absence."""
    images = np.stack([displays.stimuli.image(i) for i in range(len(displays.stimuli))])
    dark = np.abs(images.astype(float) - 128).mean(3)
    return dark.reshape(len(dark), 112 // cell, cell, 112 // cell, cell).mean((2, 4))


def test_the_asymmetry_of_a_map_of_ink_is_found_with_its_sign():
    displays = pair()
    present, absent = (search.target_ranks(ink(d), d) for d in displays)
    assert (present == 1).all() and (absent == 6).all()
    asymmetry = search.search_asymmetry(present, absent)
    assert asymmetry.value == 5 and asymmetry.low == 5
    light, dark = (search.target_ranks(ink(d).max() - ink(d), d) for d in displays)
    assert search.search_asymmetry(light, dark).value == -5
    rows = search.search_rows({"present": present, "absent": absent}, asymmetry, 6, model="ink")
    assert [r.value for r in rows] == [1, 6, 5] and "chance 3.5" in rows[0].notes


def test_a_map_that_sees_no_item_has_no_asymmetry():
    displays = pair(n=200)
    noise = np.random.default_rng(0).random((2, 200, 16, 16))
    ranks = [search.target_ranks(m, d) for m, d in zip(noise, displays)]
    asymmetry = search.search_asymmetry(*ranks)
    assert asymmetry.low < 0 < asymmetry.high
    assert all(abs(r.mean() - 3.5) < 0.4 for r in ranks)
    even = search.target_ranks(np.ones((200, 16, 16)), displays[0])
    np.testing.assert_array_equal(even, 3.5)


def test_displays_share_their_places_and_boxes_hold_the_items():
    present, absent = pair(n=3)
    np.testing.assert_array_equal(present.boxes, absent.boxes)
    left, top, right, bottom = present.boxes[1, 0]
    _, barred = search.ring_and_barred_ring(20)
    np.testing.assert_array_equal(present.stimuli.image(1)[top:bottom, left:right], barred)
    outside = present.stimuli.image(1).copy()
    for left, top, right, bottom in present.boxes[1]:
        outside[top:bottom, left:right] = 128
    assert (outside == 128).all()


@pytest.mark.parametrize(
    ("call", "error", "remedy"),
    [
        (lambda: pair(n_items=99), ConfigError, "fewer or smaller items"),
        (lambda: pair(n_items=1), ConfigError, "2 to 25 items"),
        (lambda: search.target_ranks(np.ones((2, 4, 4)), pair()[0]), DataError, "these displays"),
        (lambda: search.target_ranks(np.full((30, 4, 4), np.nan), pair()[0]), DataError, "finite"),
        (lambda: search.search_asymmetry(np.ones(3), np.ones(4)), DataError, "the same n and seed"),
        (
            lambda: search.search_displays(np.zeros((9, 9, 3)), np.zeros((8, 8, 3))),
            ConfigError,
            "resize one",
        ),
    ],
)
def test_bad_input_is_refused(call, error, remedy):
    with pytest.raises(error, match=remedy):
        call()

"""Images made for embeddings come closer to their own targets, and the judges know right from wrong."""

import numpy as np
import pytest
import torch

from bmfl_lab.backbones import load_backbone
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation.decoding import identify
from bmfl_lab.evaluation.reconstruction import (
    embedding_match,
    reconstruction_rows,
    score_reconstructions,
)
from bmfl_lab.evaluation.synthesis import synthesise_preferred

SIDE, N = 28, 6


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("vit_tiny14", "random:0", image_size=SIDE)


@pytest.fixture(scope="module")
def seen():
    """Images of large coloured stripes."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 255, (N, 4, 4, 3)).astype(np.uint8)
    return small.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)


def embed(backbone, images):
    with torch.no_grad():
        pixels = torch.stack([backbone.preprocess(image) for image in images])
        return backbone(pixels).cls.float().numpy()


def test_the_match_is_the_cosine_with_the_class_token(backbone, seen):
    targets = embed(backbone, seen)
    centre = targets.mean(0)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    # what the backbone sees after its crop, from 0 to 1
    pixels = torch.stack([backbone.preprocess(image) * std + mean for image in seen])
    own = embedding_match(backbone, targets, centre)(pixels)
    np.testing.assert_allclose(own, 1, atol=1e-3)
    rolled = embedding_match(backbone, np.roll(targets, 1, axis=0), centre)(pixels)[:, 0]
    other = targets - centre
    sizes = np.linalg.norm(other, axis=1)
    expected = (other * np.roll(other, 1, axis=0)).sum(1) / (sizes * np.roll(sizes, 1))
    np.testing.assert_allclose(rolled, expected, atol=2e-3)
    with pytest.raises(DataError, match="one image for each of the 6 targets"):
        embedding_match(backbone, targets)(pixels[:2])
    with pytest.raises(DataError, match="decode class tokens of this backbone"):
        embedding_match(backbone, targets[:, :5])


def test_a_generator_driven_by_embeddings_makes_images_that_name_their_targets(backbone, seen):
    targets = embed(backbone, seen)
    centre = targets.mean(0)
    made = synthesise_preferred(
        embedding_match(backbone, targets, centre),
        [True],
        image_size=SIDE,
        n=N,
        steps=40,
        lr=0.2,
        smoothness=0.1,
        jitter=0,
    )
    assert (made.activity > made.start + 0.2).all()
    found = identify(embed(backbone, made.images), targets, n_boot=50)
    assert found.two_way > 0.9
    wrong = identify(embed(backbone, made.images), np.roll(targets, 1, axis=0), n_boot=50)
    assert wrong.two_way < 0.5


def test_judges_are_one_for_the_same_images_and_chance_for_others(backbone, seen):
    embeddings = embed(backbone, seen)
    same = score_reconstructions(seen, seen, embeddings, embeddings, n_boot=50)
    assert same.identification.two_way == 1
    assert same.pixel_r.value == pytest.approx(1) and same.ssim.value == pytest.approx(1)
    draw = np.random.default_rng(5)
    noise = draw.integers(0, 255, seen.shape).astype(np.uint8)
    other = score_reconstructions(noise, seen, embed(backbone, noise), embeddings, n_boot=50)
    assert abs(other.pixel_r.value) < 0.1 and other.ssim.value < 0.3
    rows = reconstruction_rows(other, split="test", model="noise")
    assert [r.name for r in rows] == [
        "reconstruction_two_way",
        "reconstruction_pixel_r",
        "reconstruction_ssim",
    ]
    assert "chance 0.5" in rows[0].notes
    with pytest.raises(DataError, match="resize the made images"):
        score_reconstructions(seen[:, :9], seen, embeddings, embeddings)

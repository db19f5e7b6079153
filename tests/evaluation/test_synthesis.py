"""Synthesis finds what a planted encoder prefers, and a held-out encoder agrees."""

import numpy as np
import torch

from bmfl_lab.evaluation.synthesis import synthesise_preferred, total_variation


def red_minus_blue(gain):
    return lambda images: torch.stack(
        [gain * (images[:, 0] - images[:, 2]).mean((1, 2)), -images.mean((1, 2, 3))], 1
    )


def test_a_colour_preference_shows_in_the_images():
    found = synthesise_preferred(
        red_minus_blue(5.0),
        np.array([True, False]),
        image_size=12,
        n=2,
        steps=60,
        judge=red_minus_blue(1.0),
    )
    assert found.images.shape == (2, 12, 12, 3) and found.images.dtype == np.uint8
    assert (found.activity > found.start + 2).all() and (found.judged > 0.5).all()
    assert found.images[..., 0].mean() > 180 > 70 > found.images[..., 2].mean()
    again = synthesise_preferred(
        red_minus_blue(5.0), np.array([True, False]), image_size=12, n=2, steps=60
    )
    np.testing.assert_array_equal(again.images, found.images)
    assert again.judged is None and "total variation" in found.prior


def test_the_prior_smooths():
    checks = torch.from_numpy(np.indices((12, 12)).sum(0) % 2 * 2.0 - 1).float()

    def encoder(images):
        return (images * checks).mean((1, 2, 3))[:, None]

    rough, smooth = (
        synthesise_preferred(
            encoder, np.array([True]), image_size=12, n=1, steps=40, jitter=0, smoothness=s
        )
        for s in (0.0, 5.0)
    )
    variation = [
        total_variation(torch.from_numpy(f.images).permute(0, 3, 1, 2) / 255.0).item()
        for f in (rough, smooth)
    ]
    assert variation[0] > 2 * variation[1] and rough.activity > smooth.activity


def test_total_variation_by_hand():
    image = torch.zeros(1, 1, 2, 2)
    image[0, 0, 0, 0] = 1
    assert total_variation(image).item() == 1.0

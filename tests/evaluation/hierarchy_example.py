"""A planted hierarchy of three layers and three ROIs, and a subject of it, shared by the tests of similarity."""

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import from_arrays


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def chain(n=90, d=12, seed=0):
    """Three layers, each a nonlinear step from the one before; ROI k is a noisy mixture of layer k."""
    x, layers = draw(n, d, seed=seed), {}
    for k in range(3):
        x = np.tanh(x @ draw(d, d, seed=10 + k)).astype(np.float32)
        layers[f"L{k}"] = x
    brain = [
        v @ draw(d, 8, seed=20 + k) + 0.4 * draw(n, 8, seed=30 + seed * 7 + k)
        for k, v in enumerate(layers.values())
    ]
    return layers, np.concatenate(brain, 1)


def subject(responses, name="s", ids=None, repeats=None):
    n = len(responses)
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    rois = {r: np.arange(24) // 8 == k for k, r in enumerate(("V1", "V2", "V3"))}
    return Subject(
        name=name,
        stimuli=from_arrays("i", images, ids or [f"i{i}" for i in range(n)], np.zeros(n, int)),
        responses=responses.astype(np.float32),
        atlas=Atlas(np.repeat([0, 1], 12).astype(np.int8), rois),
        splits={},
        repeats=repeats,
    )

"""A picture for tests of shifts."""

import numpy as np
from scipy import ndimage

from bmfl_lab.data.shifts import table


def scene(side: int, seed: int = 0) -> np.ndarray:
    """A picture with edges, shading, texture and colours."""
    random = np.random.default_rng(seed)
    yy, xx = np.mgrid[:side, :side] / side
    x = np.stack([0.2 + 0.6 * xx, 0.3 + 0.4 * yy, 0.7 - 0.5 * xx * yy], -1)
    for _ in range(4):
        cy, cx, r = random.uniform(0.2, 0.8, 3) * [1, 1, 0.35]
        x[(yy - cy) ** 2 + (xx - cx) ** 2 < r**2] = random.random(3)
    x += (
        0.08
        * ndimage.gaussian_filter(random.normal(size=x.shape), (side / 100, side / 100, 0))
        * side
        / 40
    )
    return table.to_uint8(x)

"""The noise corruptions of ImageNet-C.

References
----------
Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations"; levels as published with the benchmark, for 224 px (ImageNet-C) and 32 px
(CIFAR-10-C) images.
"""

from __future__ import annotations

import numpy as np

from bmfl_lab.data.shifts.table import SHIFTS, reference, to_uint8, unit

GAUSSIAN_SD = {False: (0.08, 0.12, 0.18, 0.26, 0.38), True: (0.04, 0.06, 0.08, 0.09, 0.10)}
PHOTONS = {False: (60, 25, 12, 5, 3), True: (500, 250, 100, 75, 50)}
IMPULSE_SHARE = {False: (0.03, 0.06, 0.09, 0.17, 0.27), True: (0.01, 0.02, 0.03, 0.05, 0.07)}


@SHIFTS.register("gaussian_noise")
def gaussian_noise(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Add independent normal noise of sd 0.08 to 0.38 of full scale (0.04 to 0.10 below 85 px) to every value."""
    small, _ = reference(image)
    sd = GAUSSIAN_SD[small][severity - 1]
    return to_uint8(unit(image) + sd * random.standard_normal(image.shape, dtype=np.float32))


@SHIFTS.register("shot_noise")
def shot_noise(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Count photons: Poisson with 60 to 3 expected at full scale (500 to 50 below 85 px), divided by that number."""
    small, _ = reference(image)
    photons = PHOTONS[small][severity - 1]
    return to_uint8(random.poisson(unit(image) * photons) / photons)


@SHIFTS.register("impulse_noise")
def impulse_noise(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Set a share of the values (0.03 to 0.27; 0.01 to 0.07 below 85 px) to 0 or 255 with equal chance."""
    small, _ = reference(image)
    share = IMPULSE_SHARE[small][severity - 1]
    draw = random.random(image.shape, dtype=np.float32)
    return np.where(draw < share / 2, 0, np.where(draw < share, 255, image)).astype(np.uint8)

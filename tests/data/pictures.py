"""Pictures of noise that tests write."""

import numpy as np
from PIL import Image


def write(path, value):
    """Write the picture that belongs to a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)

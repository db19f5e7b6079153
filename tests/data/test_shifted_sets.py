"""Sets of shifted images: stable under order, named by their digests."""

import numpy as np
import pytest
from scenes import scene

from bmfl_lab.data import stimuli as st
from bmfl_lab.data.shifts import apply_shift, shifted
from bmfl_lab.errors import ConfigError


def test_shifted_set_is_stable_under_order_and_changes_digests():
    images = np.stack([scene(32, s) for s in range(4)])
    clean = st.from_arrays("test", images, ["a", "b", "c", "d"], [0, 1, 0, 1], ["x", "y"])
    noisy = shifted(clean, "gaussian_noise", 3, seed=1)
    other = shifted(clean.subset([2, 0]), "gaussian_noise", 3, seed=1)
    assert np.array_equal(noisy.image(2), other.image(0))
    assert np.array_equal(
        noisy.image(0), apply_shift(images[0], "gaussian_noise", 3, 1, stimulus_id="a")
    )
    assert list(noisy.labels) == list(clean.labels) and noisy.name == "test/gaussian_noise-3"
    prints = {shifted(clean, "masked", s, seed=d).fingerprint() for s in (1, 2) for d in (0, 1)}
    prints |= {shifted(clean, "masked", 1, fill="black").fingerprint(), clean.fingerprint()}
    assert len(prints) == 6
    with pytest.raises(ConfigError, match="encoder_name"):
        shifted(clean, "stylised", 1, encoder=abs)

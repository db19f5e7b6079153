"""Sets of shifted images: stable under order, named by their digests, written once."""

import numpy as np
import pytest
from PIL import Image
from scenes import scene

from bmfl_lab.data import stimuli as st
from bmfl_lab.data.shifts import apply_shift, materialise, shifted
from bmfl_lab.errors import ConfigError


def test_shifted_set_is_stable_under_order_and_changes_digests(tmp_path):
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
    written = materialise(noisy, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert np.array_equal(np.asarray(Image.open(written.paths[3])), noisy.image(3))
    stamp = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    materialise(noisy, tmp_path)
    assert stamp == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


def test_materialising_goes_on_where_it_was_cut_off(tmp_path):
    clean = st.from_arrays(
        "test", np.stack([scene(32, s) for s in range(5)]), "abcde", [0] * 5, ["x"]
    )
    calls = []

    def cut(image, identifier):
        calls.append(identifier)
        if identifier == "d" and len(calls) == 4:
            raise KeyboardInterrupt
        return apply_shift(image, "fog", 2, stimulus_id=identifier)

    slow = clean.mapped(cut, "fog-2")
    with pytest.raises(KeyboardInterrupt):
        materialise(slow, tmp_path)
    assert len([p for p in tmp_path.iterdir() if p.suffix == ".png"]) == 3
    written = materialise(slow, tmp_path)
    assert calls == [*"abcd", *"de"]  # the first three were kept
    fly = shifted(clean, "fog", 2)
    for i in range(5):
        assert np.array_equal(written.image(i), fly.image(i))

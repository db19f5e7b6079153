"""The eight subjects of the Algonauts 2023 challenge at their published sizes."""

import dataclasses

import numpy as np
import pytest
from algonauts_example import LEFT, RIGHT, N, make_subject

from bmfl_lab.data import algonauts
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError

PUBLISHED = {
    "subj01": (19004, 20544, 9841),
    "subj02": (19004, 20544, 9841),
    "subj03": (19004, 20544, 9082),
    "subj04": (19004, 20544, 8779),
    "subj05": (19004, 20544, 9841),
    "subj06": (18978, 20220, 9082),
    "subj07": (19004, 20544, 9841),
    "subj08": (18981, 20530, 8779),
}
"""Left and right vertices and training images of Gifford et al. (2023)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_are_enforced(tmp_path, name):
    left, right, images = PUBLISHED[name]
    assert algonauts._check_counts(name, (left, right), images) is None
    others = [
        (left, right, images - 1),
        (left + 1, right, images),
        (left, right - 1, images),
        (LEFT, RIGHT, images),
    ]
    for *vertices, n in others:
        with pytest.raises(
            DataError,
            match=f"{left} left and {right} right vertices and {images} images for {name}",
        ):
            algonauts._check_counts(name, tuple(vertices), n)
    with pytest.raises(DataError, match="left and right are swapped"):
        algonauts._check_counts(name, (right, left), images)
    named = algonauts.write_subject(tmp_path / name, make_subject())
    with pytest.raises(DataError, match=f"images for {name}; got {LEFT}, {RIGHT} and {N}"):
        algonauts.read_subject(named)
    assert algonauts.read_subject(named, enforce_counts=False).name == name


@pytest.mark.parametrize("name", ["subj01", "subj06", "subj08"])
def test_true_vertices_with_too_few_images_are_refused_and_fit_their_masks(tmp_path, name):
    left, right, images = PUBLISHED[name]
    made = make_subject(left=left, right=right)
    folder = algonauts.write_subject(tmp_path / name, made)
    with pytest.raises(
        DataError, match=f"and {images} images for {name}; got {left}, {right} and {N}"
    ):
        algonauts.read_subject(folder)
    back = algonauts.read_subject(folder, enforce_counts=False)
    assert (back.atlas.n_left, back.n_vertices - back.atlas.n_left) == (left, right)
    np.testing.assert_array_equal(back.atlas.surface_index, made.atlas.surface_index)
    np.testing.assert_array_equal(back.atlas.rois["V1v"], made.atlas.rois["V1v"])


@pytest.mark.slow
def test_a_subject_of_true_size_is_written_and_read(tmp_path):
    """All 9,841 images of subj01, small ones, with all 39,548 vertices: 1.6 GB of responses, mapped throughout."""
    left, right, n = PUBLISHED["subj01"]
    numbers = np.random.default_rng(7).permutation(73_000)[:n]
    small = make_subject(n=2, left=left, right=right, numbers=numbers[:2])
    rng = np.random.default_rng(8)
    responses = np.lib.format.open_memmap(
        tmp_path / "made.npy", mode="w+", dtype=np.float32, shape=(n, left + right)
    )
    for start in range(0, n, 512):
        responses[start : start + 512] = rng.standard_normal(
            (min(512, n - start), left + right), dtype=np.float32
        )
    images = rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    ids = [f"nsd-{i:05d}" for i in numbers]
    made = dataclasses.replace(
        small,
        stimuli=from_arrays("own", images, ids, np.full(n, -1)),
        responses=responses,
        splits={"train": np.arange(n)},
    )
    folder = algonauts.write_subject(tmp_path / "subj01", made)
    back = algonauts.read_subject(folder, shared_ids=ids[:984], cache=tmp_path / "joined.npy")
    assert back.responses.shape == (9841, 39548) and isinstance(back.responses, np.memmap)
    for start in range(0, n, 1024):
        np.testing.assert_array_equal(
            back.responses[start : start + 1024], responses[start : start + 1024]
        )
    assert list(back.stimuli.ids) == ids and len(back.splits["test"]) == 984
    np.testing.assert_array_equal(back.stimuli.image(9840), images[9840])
    assert back.atlas.n_left == 19004 and set(back.atlas.present) == set(made.atlas.present)
    np.testing.assert_array_equal(back.noise_ceiling, made.noise_ceiling)

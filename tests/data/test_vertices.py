"""Stand-ins for a region: size, hemisphere, ceiling."""

import numpy as np
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.vertices import ceiling_matched_vertices, random_vertices
from bmfl_lab.errors import DataError

SIDE = np.repeat([0, 1], 60).astype(np.int8)
REGION = np.zeros(120, bool)
REGION[[0, 1, 2, 3, 70, 71]] = True
ATLAS = Atlas(hemisphere=SIDE, rois={"A": REGION})
CEILING = np.random.default_rng(0).uniform(0, 1, 120)


def test_draws_have_the_regions_size_and_lie_outside_hemisphere_by_hemisphere():
    for draw in range(5):
        found = random_vertices(ATLAS, REGION, np.random.default_rng(draw))
        assert not (found & REGION).any() and found[:60].sum() == 4 and found[60:].sum() == 2
    counts = sum(
        random_vertices(ATLAS, REGION, np.random.default_rng(d)).astype(int) for d in range(2000)
    )
    assert (
        counts[REGION].sum() == 0 and counts[:60][~REGION[:60]].min() > 90
    )  # 2000 * 4 / 56 = 143 each


def test_matched_vertices_have_the_ceiling_that_random_ones_have_not():
    high = np.where(REGION, 0.9, CEILING * 0.85)
    wanted = high[REGION].mean()
    matched = [
        ceiling_matched_vertices(ATLAS, REGION, high, np.random.default_rng(d)) for d in range(20)
    ]
    random = [random_vertices(ATLAS, REGION, np.random.default_rng(d)) for d in range(20)]
    assert all(m.sum() == 6 and not (m & REGION).any() and m[:60].sum() == 4 for m in matched)
    assert wanted - np.mean([high[m].mean() for m in matched]) < 0.15
    assert wanted - np.mean([high[r].mean() for r in random]) > 0.35
    assert len({m.tobytes() for m in matched}) > 5


def test_a_region_larger_than_its_surroundings_is_drawn_from_everywhere():
    large = np.ones(120, bool)
    large[:5] = large[60:65] = False
    assert random_vertices(ATLAS, large, np.random.default_rng(0)).sum() == 110
    assert ceiling_matched_vertices(ATLAS, large, CEILING, np.random.default_rng(0)).sum() == 110


def test_what_cannot_be_matched_is_refused():
    for mask in (np.ones(120, bool), np.zeros(120, bool), np.ones(4, bool)):
        with pytest.raises(DataError, match=r"a region mask of shape \(120,\)"):
            random_vertices(ATLAS, mask, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"a ceiling of shape \(120,\)"):
        ceiling_matched_vertices(ATLAS, REGION, CEILING[:3], np.random.default_rng(0))

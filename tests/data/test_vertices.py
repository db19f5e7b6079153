"""Stand-ins for a region: size, hemisphere, ceiling."""

import numpy as np
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.vertices import control_vertices
from bmfl_lab.errors import DataError

SIDE = np.repeat([0, 1], 60).astype(np.int8)
REGION = np.zeros(120, bool)
REGION[[0, 1, 2, 3, 70, 71]] = True
ATLAS = Atlas(hemisphere=SIDE, rois={"A": REGION})
CEILING = np.random.default_rng(0).uniform(0, 1, 120)


def random_vertices(mask, seed):
    region, control = control_vertices(ATLAS, mask, np.random.default_rng(seed))
    assert (region <= mask).all() and not (control & mask).any()
    return control


def matched_vertices(mask, ceiling, seed):
    region, control = control_vertices(ATLAS, mask, np.random.default_rng(seed), ceiling=ceiling)
    assert (region <= mask).all() and not (control & mask).any()
    return control


def test_draws_have_the_regions_size_and_lie_outside_hemisphere_by_hemisphere():
    for draw in range(5):
        found = random_vertices(REGION, draw)
        assert not (found & REGION).any() and found[:60].sum() == 4 and found[60:].sum() == 2
    counts = sum(random_vertices(REGION, d).astype(int) for d in range(2000))
    assert (
        counts[REGION].sum() == 0 and counts[:60][~REGION[:60]].min() > 90
    )  # 2000 * 4 / 56 = 143 each


def test_matched_vertices_have_the_ceiling_that_random_ones_have_not():
    high = np.where(REGION, 0.9, CEILING * 0.85)
    wanted = high[REGION].mean()
    matched = [matched_vertices(REGION, high, d) for d in range(20)]
    random = [random_vertices(REGION, d) for d in range(20)]
    assert all(m.sum() == 6 and not (m & REGION).any() and m[:60].sum() == 4 for m in matched)
    assert wanted - np.mean([high[m].mean() for m in matched]) < 0.15
    assert wanted - np.mean([high[r].mean() for r in random]) > 0.35
    assert len({m.tobytes() for m in matched}) > 5


def test_of_a_region_larger_than_its_surroundings_equal_parts_are_compared():
    large = np.ones(120, bool)
    large[:5] = large[60:95] = False  # 5 of 60 lie outside on the left, 35 of 60 on the right
    for ceiling in (None, CEILING):
        for draw in range(5):
            region, control = control_vertices(
                ATLAS, large, np.random.default_rng(draw), ceiling=ceiling
            )
            assert (region <= large).all() and not (control & large).any()
            assert (control[:60] == ~large[:60]).all() and region[:60].sum() == 5
            assert region[60:].sum() == control[60:].sum() == 25
            assert (region[60:] == large[60:]).all()


def test_parts_of_a_large_region_match_the_ceilings_of_what_lies_outside():
    large = np.ones(120, bool)
    large[:12] = large[60:72] = False
    low = np.where(large, CEILING, 0.1 * CEILING)
    for ceiling, most in ((low, 0.2), (None, 1.0)):
        parts = [
            control_vertices(ATLAS, large, np.random.default_rng(d), ceiling=ceiling)[0]
            for d in range(20)
        ]
        mean = np.mean([low[part].mean() for part in parts])
        assert 0.05 < mean < most
    assert mean > 0.4


def test_what_cannot_be_matched_is_refused():
    for mask in (np.ones(120, bool), np.zeros(120, bool)):
        with pytest.raises(DataError, match="a region with vertices inside and outside"):
            random_vertices(mask, 0)
    with pytest.raises(DataError, match=r"a region mask of shape \(120,\)"):
        random_vertices(np.ones(4, bool), 0)
    with pytest.raises(DataError, match=r"a ceiling of shape \(120,\)"):
        matched_vertices(REGION, CEILING[:3], 0)
    with pytest.raises(DataError, match="choose a smaller region"):
        random_vertices(SIDE == 0, 0)


def test_an_unknown_ceiling_counts_as_the_smallest():
    ceiling = np.where(REGION, 0.9, 0.2)
    ceiling[30:60] = ceiling[100:] = 0.85
    ceiling[10:20] = np.nan
    for draw in range(5):
        found = matched_vertices(REGION, ceiling, draw)
        assert (ceiling[found] == 0.85).all()
    low = np.where(REGION, np.nan, 0.8)
    low[5:15] = low[105:115] = 0.1
    assert (low[matched_vertices(REGION, low, 0)] < 0.8).all()

"""Power of a study against simulated studies, and its limits."""

import numpy as np
import pytest

from bmfl_lab.errors import DataError
from bmfl_lab.metrics.power import detectable_difference, power_sentence, study_size
from bmfl_lab.metrics.statistics import _crossed_p, _summarise


def power_by_simulation(difference, n_seeds, n, accuracy, seed_sd, tables=800):
    """Return the share of studies with p <= .05; both models' correctness agrees with r = .5."""
    random = np.random.default_rng([n_seeds, n])
    spread = accuracy * (1 - accuracy)
    # the disagreement of two models per image, .5 * 2 p (1 - p), half of it the same in every seed
    d = difference + np.zeros((tables, n_seeds, n))
    d += random.normal(0, np.sqrt(0.5 * spread), (tables, 1, n))
    d += random.normal(0, np.sqrt(0.5 * spread), (tables, n_seeds, n))
    if n_seeds > 1:
        d += random.normal(0, np.sqrt(2) * seed_sd, (tables, n_seeds, 1))
    return (_crossed_p(_summarise(d), np.zeros(tables), "real") <= 0.05).mean()


@pytest.mark.parametrize("n_seeds,n,seed_sd", [(1, 400, 0.0), (3, 400, 0.01), (5, 1000, 0.03)])
def test_the_detectable_difference_is_found_in_four_of_five_studies(n_seeds, n, seed_sd):
    found = detectable_difference(n, n_seeds, 0.7, seed_sd)
    assert 0.74 < power_by_simulation(found, n_seeds, n, 0.7, seed_sd) < 0.86
    assert power_by_simulation(0.5 * found, n_seeds, n, 0.7, seed_sd) < 0.5


def test_what_makes_a_study_see_more():
    base = detectable_difference(400, 5, 0.7, 0.01)
    assert detectable_difference(1600, 5, 0.7, 0.01) < base
    assert detectable_difference(400, 10, 0.7, 0.01) < base
    assert detectable_difference(400, 5, 0.95, 0.01) < base
    for harder in (
        {"n_compared": 13},
        {"agreement": 0.0},
        {"consistency": 1.0},
        {"power": 0.95},
        {"level": 0.01},
    ):
        assert detectable_difference(400, 5, 0.7, 0.01, **harder) > base
    assert detectable_difference(400, 5, 0.7, 0.05) > base
    assert detectable_difference(20, 2, 0.7, 0.01, n_compared=13) is None


def test_the_size_of_a_study_is_the_least_that_is_enough():
    images, seeds = study_size(0.05, 400, 3, 0.7, 0.01)
    assert detectable_difference(images, 3, 0.7, 0.01) <= 0.05
    assert detectable_difference(images - 20, 3, 0.7, 0.01) > 0.05
    assert detectable_difference(400, seeds, 0.7, 0.01) <= 0.05
    assert detectable_difference(400, seeds - 1, 0.7, 0.01) > 0.05
    few, many = (study_size(0.08, 600, 10, 0.7, 0.01, n_compared=k) for k in (1, 13))
    assert few[0] < many[0] and few[1] < many[1]
    assert study_size(0.001, 400, 2, 0.7, 0.05) == (None, None)


def test_impossible_studies_are_refused():
    for wrong in ((1, 3, 0.7), (400, 0, 0.7)):
        with pytest.raises(DataError, match="at least 2 images"):
            detectable_difference(*wrong)
    for wrong in ((400, 3, 70.0), (400, 3, 0.7, -0.1)):
        with pytest.raises(DataError, match="give fractions, not percentages"):
            detectable_difference(*wrong)


def test_the_sentence_says_what_each_set_can_detect_and_what_five_points_take():
    said = power_sentence({"test": 400, "clipart": 102, "masked 3": 400}, 1)
    found = [
        100 * detectable_difference(n, 1, 0.5, 0.01, n_compared=3, level=0.04) for n in (400, 102)
    ]
    assert f"{found[0]:.1f} points on 400 images (test, masked 3)" in said
    assert f"{found[1]:.1f} points on 102 images (clipart)" in said
    assert "with 1 seed, for these trained models only" in said and "Holm over 3 sets" in said
    assert "400 images cannot decide 5 points: that takes about" in said
    images = int(said.split("takes about ")[1].split(" images with 1 seed")[0])
    at = [
        detectable_difference(n, 1, 0.5, n_compared=3, level=0.04) for n in (images, images - 200)
    ]
    assert at[0] <= 0.05 < at[1]
    assert "20000 images are enough for 5 points" in power_sentence({"test": 20000}, 1)
    assert "no difference on 1 images" in power_sentence({"test": 400, "few": 1}, 1)


def test_where_two_seeds_differ_much_the_study_is_blind_as_often_as_in_simulation():
    found = detectable_difference(400, 2, 0.7, 0.05, power=0.4)
    assert 0.3 < found < 0.9
    assert power_by_simulation(found, 2, 400, 0.7, 0.05) == pytest.approx(0.4, abs=0.06)
    assert detectable_difference(400, 2, 0.7, 0.3, power=0.8) is None
    everything = power_by_simulation(1.0, 2, 400, 0.7, 0.2, tables=3000)  # 0.30
    assert detectable_difference(400, 2, 0.7, 0.2, power=everything - 0.04) < 1
    assert detectable_difference(400, 2, 0.7, 0.2, power=everything + 0.04) is None


def test_the_smallest_studies():
    assert study_size(0.9, 5000, 2, 0.7) == (20, 2)
    assert detectable_difference(2, 1, 0.999, power=0.5) < 0.5
    for wrong in ((400, 3, 0.0), (400, 3, 1.0)):
        with pytest.raises(DataError, match="give fractions"):
            detectable_difference(*wrong)
    for level in (0.0, 1.0):
        with pytest.raises(DataError, match="give fractions"):
            detectable_difference(400, 3, 0.7, level=level)

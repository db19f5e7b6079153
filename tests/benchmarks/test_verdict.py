"""The level of the crossed test and the coverage of its intervals, on cells of the benchmark's grid."""

import bench_verdict as bench
import numpy as np
import pytest

from bmfl_lab.metrics.statistics import _crossed_p, _summarise, crossed_mean

PLACES = [
    # seeds, images, sd of seeds, accuracy, sd of model x image, difference
    (1, 100, 0.0, 0.99, 1.0, 0.0),
    (1, 400, 0.3, 0.5, 0.0, 0.5),
    (2, 400, 0.5, 0.9, 1.0, 0.0),
    (3, 20, 0.5, 0.5, 1.0, 0.0),
    (3, 400, 0.3, 0.5, 0.0, 0.0),
    (5, 100, 0.3, 0.9, 1.0, 0.5),
    (5, 400, 0.5, 0.1, 0.0, 0.0),
]


def held(row):
    """Return whether neither error at either level, nor that of the accuracy, is above it."""
    tables = np.array(row["tables"])
    keys = [("crossed error 0", 0), ("crossed error 1", 1), ("accuracy error 0", 0)]
    return all(bench.lower(np.array(row[k]), tables) <= bench.LEVELS[level] for k, level in keys)


@pytest.mark.parametrize("place", PLACES)
def test_level_and_coverage_hold(place):
    assert held(bench.cell(400, *place))


def test_the_check_finds_a_test_that_does_not_hold_its_level():
    row = bench.cell(400, 3, 400, 0.5, 0.5, 0.0, 0.0)
    tables = np.array(400)
    images_alone = bench.cell(400, 3, 400, 0.5, 0.5, 0.0, 0.0) | {"crossed error 0": 120}
    assert held(row) and not held(images_alone)
    assert bench.lower(np.array(0), tables) == 0 and bench.lower(np.array(400), tables) > 0.98


def test_the_benchmark_tests_what_the_library_computes():
    random = np.random.default_rng(0)
    a, b, _, _ = next(bench.simulate(random, 20, 3, 50, 0.3, 0.7, 1.0, 0.5))
    d = a.astype(float) - b
    p = _crossed_p(_summarise(d), np.zeros(20), "difference")
    np.testing.assert_allclose(p, [crossed_mean(one, kind="difference")[1] for one in d])
    quick = bench.crossed(_summarise(d), np.zeros(20), "difference")
    np.testing.assert_allclose(quick[p <= 0.05], p[p <= 0.05])
    assert (quick[p > 0.05] > 0.05).all()


def test_the_page_counts_failures(tmp_path):
    rows = [bench.cell(200, *place) for place in PLACES[:3]]
    for row in rows:
        bench.append(tmp_path / "grid.csv", row)
    assert bench.read(tmp_path / "grid.csv") == rows
    assert bench.page(rows, tmp_path / "page.md") == 0
    assert "**0**" in (tmp_path / "page.md").read_text(encoding="utf-8")
    rows[0]["crossed error 0"] = 60
    assert bench.page(rows, tmp_path / "page.md") == 1


@pytest.mark.parametrize("shared", [1, 0])
@pytest.mark.parametrize("place", [(2, 1, 100, 0.6), (3, 3, 100, 0.6), (5, 2, 100, 0.0)])
def test_subjects_seeds_and_images_keep_the_level(place, shared):
    row = bench.subject_cell(150, *place, shared)
    for k, level in enumerate(bench.LEVELS):
        assert bench.lower(np.array(row[f"error {k}"]), np.array(150)) <= level
    if shared and place[1] == 1:  # subjects that count as fixed make claims of their differences
        random = np.random.default_rng(0)
        tables = bench.subject_tables(random, 150, *place, True).mean(1)
        fixed = _crossed_p(_summarise(tables), np.zeros(150), "difference") <= 0.05
        assert bench.lower(np.array(fixed.sum()), np.array(150)) > 0.05


def alike(n_seeds, n_studies):
    """Return the rates at which null studies claim something, and whether any is too high."""
    row = bench.null_studies(n_studies, n_seeds)
    shown = {k: v / n_studies for k, v in row.items() if k.startswith("any")}
    tables = np.array(n_studies)
    high = [k for k in shown if bench.lower(np.array(row[k]), tables) > bench.LEVELS[0]]
    return shown, high


def test_reports_of_models_that_are_alike_claim_nothing():
    for n_seeds in (1, 3):
        shown, high = alike(n_seeds, 3)
        assert len(shown) == 2 and not high, (n_seeds, shown)


def test_a_report_of_models_that_differ_claims_it():
    study = bench.null_study(np.random.default_rng(0), 3, n=100)
    images = study.per_image
    images.loc[images["model"] == "fusion", "correct"] = True
    found = bench.claims(study)
    assert len(found) == 4 and all(found.values())


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("n_seeds", bench.SEEDS[:4])
def test_a_thousand_reports_of_models_that_are_alike(n_seeds):
    shown, high = alike(n_seeds, 1000)
    assert not high, shown


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("setting", bench.SETTINGS)
@pytest.mark.parametrize("n_seeds", bench.SEEDS)
def test_level_and_coverage_hold_over_the_grid(n_seeds, setting):
    lost = [
        (n, sd, accuracy)
        for n in (20, 100, 400, 1000)
        for sd in bench.SPREADS
        for accuracy in bench.ACCURACIES
        if not held(bench.cell(1000, n_seeds, n, sd, accuracy, *setting))
    ]
    assert not lost

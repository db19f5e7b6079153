"""The crossed test against its definition, written out plainly.

Nothing here is shared with the library: mean squares come from fitted linear models, chi-squared
variables from their quantiles, restricted estimates from a numerical maximum of the likelihood, and
exact tails from the beta distribution.
"""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta, chi2, norm

from bmfl_lab.metrics.statistics import crossed_mean, equivalence_p

POINTS = (np.arange(600) + 0.5) / 600
"""Middles of equally probable parts: the mean over them is an expectation."""


def mean_squares(values):
    """Return the mean squares of rows, columns and their interaction, over the number of values."""
    n_rows, n_columns = values.shape
    rows = np.kron(np.eye(n_rows), np.ones((n_columns, 1)))
    columns = np.tile(np.eye(n_columns), (n_rows, 1))

    def left(*factors):  # what a linear model of these factors leaves
        design = np.hstack(factors)
        fitted = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
        return ((values.ravel() - fitted) ** 2).sum()

    both, n = left(rows, columns), values.size
    of_rows = (left(columns) - both) / (n_rows - 1) / n
    of_columns = (left(rows) - both) / (n_columns - 1) / n
    return of_rows, of_columns, both / ((n_rows - 1) * (n_columns - 1)) / n


def tails(successes, trials, chance):
    """Return the two-sided binomial p value by Clopper and Pearson's relation to the beta."""
    at_least = beta.cdf(chance, successes, trials - successes + 1) if successes > 0 else 1
    at_most = beta.sf(chance, successes + 1, trials - successes) if successes < trials else 1
    return min(1, 2 * min(at_least, at_most))


def tango_variance(up, down, at):
    """Return the variance of a difference under the hypothesis, by maximum likelihood."""

    def loss(q):  # the probabilities of -1, 0, 1 are q, 1 - 2 q - at, q + at
        shares = zip((down, 1 - up - down, up), (q, 1 - 2 * q - at, q + at))
        return -sum(share * np.log(max(p, 1e-300)) for share, p in shares if share > 0)

    found = minimize_scalar(
        loss, bounds=(max(0, -at), (1 - at) / 2), method="bounded", options={"xatol": 1e-12}
    )
    return 2 * found.x + at - at**2


def expected_p(values, at, kind, shared=True):
    """Return the p value of a mean `at`, for (seeds, stimuli) or (subjects, seeds, stimuli)."""
    n_subjects, n_seeds, n = values.shape if values.ndim == 3 else (1, *values.shape)
    by_stimulus = values.mean(axis=tuple(range(values.ndim - 1)))
    table = values.mean(axis=0) if values.ndim == 3 else values
    factors, stimulus = [], by_stimulus.var(ddof=1) / n
    if n_seeds > 1:
        seed, _, rest = mean_squares(table)
        factors.append([n_seeds, seed, rest])
    if n_subjects > 1:
        subject, _, rest = mean_squares(values.mean(axis=1))
        factors.append([n_subjects, subject, rest])
        if not shared:
            stimulus = values.mean(axis=1).var(axis=1, ddof=1).mean() / (n * n_subjects)
            factors[-1][2] = stimulus
            if n_seeds > 1:
                factors[0][2] = min(factors[0][2], stimulus)
    mean, scale, exact = values.mean(), 1.0, 0.0
    if kind != "real":
        up, down = np.maximum(values, 0).mean(), np.maximum(-values, 0).mean()
        single = up * (1 - up) if kind == "correct" else (values**2).mean() - mean**2
        squares = stimulus * n * (n - 1)
        effect = np.clip((squares + 1) / (single * n + 1), 1 / (n_seeds * n_subjects), 1)
        if kind == "correct":
            variance = at * (1 - at)
            scale = max(1, variance / (up * (1 - up))) ** 2 if 0 < up < 1 else 1.0
            exact = tails(up * n / effect, n / effect, at)
        else:
            variance, both = tango_variance(up, down, at), up + down
            if both > 0 and abs(at) < both:
                exact = tails(up * n / effect, both * n / effect, (1 + at / both) / 2)
        stimulus = variance * effect / n
    parts = [stimulus * (n - 1) / chi2.ppf(POINTS, n - 1)]
    for count, square, rest in factors:
        found = square * (count - 1) / chi2.ppf(POINTS, count - 1) - rest
        parts.append(scale * np.maximum(0, found))
    if len(parts) == 3:
        parts = [part[1::3] for part in parts]
    total = sum(np.ix_(*parts))
    gap = abs(mean - at)
    general = float(2 * norm.sf(gap / np.sqrt(total)).mean()) if gap > 0 else 1.0
    return max(general, exact)


def drawn(kind, n_seeds, n, seed, accuracy=0.7, n_subjects=0):
    """Return a table of one kind in which seeds, stimuli and subjects differ."""
    random = np.random.default_rng(seed)
    shape = (n_subjects, n_seeds, n) if n_subjects else (n_seeds, n)

    def one(shift):
        logit = np.log(accuracy / (1 - accuracy)) + shift + random.normal(0, 1.5, n)
        logit = logit + random.normal(0, 0.4, (*shape[:-1], 1))
        if n_subjects:
            logit = logit + random.normal(0, 0.4, (n_subjects, 1, 1))
        return (random.random(shape) < 1 / (1 + np.exp(-logit))) * 1.0

    if kind == "real":
        return one(0) - 0.5 + random.normal(0, 0.2, shape)
    return one(0) if kind == "correct" else one(0.5) - one(0)


CASES = [
    ("real", 3, 25, 0.7),
    ("real", 2, 8, 0.7),
    ("correct", 1, 30, 0.9),
    ("correct", 3, 60, 0.9),
    ("correct", 2, 9, 0.6),
    ("correct", 5, 200, 0.97),
    ("difference", 1, 40, 0.7),
    ("difference", 3, 60, 0.7),
    ("difference", 4, 150, 0.95),
]


@pytest.mark.parametrize("kind,n_seeds,n,accuracy", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_ends_of_the_interval_have_the_p_value_of_the_definition(
    kind, n_seeds, n, accuracy, seed
):
    values = drawn(kind, n_seeds, n, seed, accuracy)
    found, p = crossed_mean(values, kind=kind)
    assert p == pytest.approx(expected_p(values, 0, kind), abs=2e-3)
    low, high = {"real": (-9, 9), "correct": (0, 1), "difference": (-1, 1)}[kind]
    for end in (found.low, found.high):
        if low < end < high:
            assert expected_p(values, end, kind) == pytest.approx(0.05, abs=2e-3)
    wide, _ = crossed_mean(values, kind=kind, level=0.99)
    assert wide.low <= found.low and wide.high >= found.high
    if kind == "difference":
        both = [expected_p(values, e, kind) for e in (-0.2, 0.2)]
        alike = 1.0 if abs(values.mean()) >= 0.2 else max(both)
        assert equivalence_p(values, 0.2) == pytest.approx(alike, abs=2e-3)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "n_seeds,kind", [(1, "real"), (1, "difference"), (3, "difference"), (3, "real")]
)
def test_subjects_are_a_factor_of_the_definition(shared, n_seeds, kind):
    values, near = drawn(kind, n_seeds, 12, 3, n_subjects=2), 2e-3 if n_seeds == 1 else 4e-3
    found, p = crossed_mean(values, kind=kind, shared_stimuli=shared)
    assert p == pytest.approx(expected_p(values, 0, kind, shared), abs=near)
    for end in (found.low, found.high):
        if -1 < end < 1:
            assert expected_p(values, end, kind, shared) == pytest.approx(0.05, abs=near)
    assert "2 subjects" in found.method and found.n == 12 and found.n_seeds == n_seeds


def test_where_all_are_right_or_only_one_side_wins_the_exact_tail_decides():
    right, _ = crossed_mean(np.ones((1, 30)), kind="correct")
    assert right.low <= 0.025 ** (1 / 30) and right.high == 1
    wrong, _ = crossed_mean(np.zeros((3, 30)), kind="correct")
    assert wrong.low == 0 and wrong.high == pytest.approx(1 - right.low)
    one = np.zeros((1, 40))
    one[0, :6] = 1
    found, p = crossed_mean(one, kind="difference")
    assert p == pytest.approx(max(2 * 0.5**6, expected_p(one, 0, "difference")), abs=2e-3)
    assert p < 0.05 and 0 < found.low < 0.15 < found.high < 1
    three, q = crossed_mean(one.repeat(3, 0), kind="difference")
    assert q == pytest.approx(p, rel=0.05) and three.low == pytest.approx(found.low, abs=0.005)

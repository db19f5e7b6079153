"""Power of paired comparisons over seeds and images: what a study can detect, and how large it
must be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from bmfl_lab.errors import DataError, require
from bmfl_lab.metrics.statistics import PRIMARY_SHARE, _Crossed, _crossed_p, _mean_square

MOST_IMAGES, MOST_SEEDS = 1_000_000, 100
AGREEMENT = 0.5
"""Correlation of two models' correctness on the same images (our choice; 0 is the worst case)."""
CONSISTENCY = 0.5
"""Share of the disagreement that is the same under every seed (our choice; 1 is the worst case)."""
ACCURACY, SEED_SD = 0.5, 0.01
"""Accuracy and its standard deviation over seeds that `power_sentence` assumes (our choice; 0.5 is
the worst case)."""


def _half_widths(table: _Crossed, level: float) -> np.ndarray:
    """Return how far each table's mean must lie from zero for p = level, shape (n_tables,)."""
    inside, outside = np.zeros(len(table.mean)), np.ones(len(table.mean))
    while (short := _crossed_p(table, table.mean + outside, "real") > level).any():
        outside = np.where(short, 2 * outside, outside)
    for _ in range(25):
        middle = (inside + outside) / 2
        short = _crossed_p(table, table.mean + middle, "real") > level
        inside, outside = np.where(short, middle, inside), np.where(short, outside, middle)
    return outside


def _power(
    n_images: int,
    n_seeds: int,
    accuracy: float,
    seed_sd: float,
    level: float,
    agreement: float,
    consistency: float,
) -> Callable[[float], float]:
    """Return the power as a function of the true difference."""
    from scipy.special import ndtr

    require(
        n_images >= 2 and n_seeds >= 1,
        DataError,
        "at least 2 images and 1 seed",
        f"{n_images} and {n_seeds}",
        "plan for that many or more",
    )
    require(
        0 < accuracy < 1 and seed_sd >= 0 and 0 < level < 1,
        DataError,
        "an accuracy and a level inside (0, 1), and seed_sd >= 0",
        f"{accuracy}, {level} and {seed_sd}",
        "give fractions, not percentages",
    )
    disagreement = 2 * accuracy * (1 - accuracy) * (1 - agreement)
    rest = disagreement * (1 - consistency) / (n_seeds * n_images)
    images = disagreement * consistency / n_images + rest
    seeds = 2 * seed_sd**2 / n_seeds if n_seeds > 1 else 0.0
    nodes, weights = _mean_square(n_seeds - 1, 60) if n_seeds > 1 else (np.ones(1), np.ones(1))
    nodes, weights = nodes[weights > 1e-5], weights[weights > 1e-5]
    same, none = np.ones(len(nodes)), np.zeros(len(nodes))
    table = _Crossed(
        none, (seeds + rest) * nodes, images * same, rest * same, none, none, n_seeds, n_images
    )
    widths, sd = _half_widths(table, level), np.sqrt(seeds + images)
    return lambda true: float((ndtr((true - widths) / sd) + ndtr((-true - widths) / sd)) @ weights)


def detectable_difference(
    n_images: int,
    n_seeds: int,
    accuracy: float,
    seed_sd: float = 0.0,
    *,
    n_compared: int = 1,
    power: float = 0.8,
    level: float = 0.05,
    agreement: float = AGREEMENT,
    consistency: float = CONSISTENCY,
) -> float | None:
    """Return the smallest difference of two accuracies that a study detects with a given power.

    Parameters
    ----------
    n_images, n_seeds : int
        Size of the study; both models on the same images.
    accuracy : float
        Accuracy expected of both models (fraction).
    seed_sd : float, default 0.0
        Standard deviation over seeds of the accuracy of one model (fraction). It is ignored for one
        seed, where the comparison is about these trained models.
    n_compared : int, default 1
        Comparisons in the family; the level is divided by it.
    power : float, default 0.8
        Probability of finding the difference.
    level : float, default 0.05
        Level of the family.
    agreement : float, default 0.5
        Correlation of the two models' correctness on the same image, -1 to 1.
    consistency : float, default 0.5
        Share of the variance of their difference on single images that is the same under every
        seed, 0 to 1.

    Returns
    -------
    float or None
        Fraction; None where not even the largest possible difference would be found.

    Raises
    ------
    DataError
        If a size or fraction is out of range.

    Notes
    -----
    Power of the test of `crossed_mean` with normal means, averaged over what the variance between
    seeds may be estimated as. The defaults of `agreement` and `consistency` are our choice.
    """
    from scipy.optimize import brentq

    of = _power(n_images, n_seeds, accuracy, seed_sd, level / n_compared, agreement, consistency)
    return brentq(lambda d: of(d) - power, 0, 1, xtol=1e-5) if of(1.0) >= power else None


def _least(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the least number from low to high that is enough; None if not even high is."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def study_size(
    difference: float,
    n_images: int,
    n_seeds: int,
    accuracy: float,
    seed_sd: float = 0.0,
    *,
    n_compared: int = 1,
    power: float = 0.8,
    level: float = 0.05,
    agreement: float = AGREEMENT,
    consistency: float = CONSISTENCY,
) -> tuple[int | None, int | None]:
    """Return how many images, or how many seeds, a study needs to find a difference.

    Parameters
    ----------
    difference : float
        True difference of two accuracies (fraction).
    n_images, n_seeds, accuracy, agreement, consistency
        Same as in `detectable_difference`.
    seed_sd : float, default 0.0
        Same as in `detectable_difference`.
    n_compared : int, default 1
        Comparisons in the family; the level is divided by it.
    power : float, default 0.8
        Probability of finding the difference.
    level : float, default 0.05
        Level of the family.

    Returns
    -------
    n_images : int or None
        Images needed with `n_seeds` seeds; None where a million is not enough.
    n_seeds : int or None
        Seeds (at least two) needed with `n_images` images; None where a hundred is not enough.

    Raises
    ------
    DataError
        If a value is one that `detectable_difference` refuses.
    """
    rest = (accuracy, seed_sd, level / n_compared, agreement, consistency)
    images = _least(lambda n: _power(n, n_seeds, *rest)(difference) >= power, 20, MOST_IMAGES)
    seeds = _least(lambda s: _power(n_images, s, *rest)(difference) >= power, 2, MOST_SEEDS)
    return images, seeds


def power_sentence(
    n_images: Mapping[str, int], n_seeds: int, *, difference: float = 0.05, seed_sd: float = SEED_SD
) -> str:
    """Return what the primary comparison of a study can detect, before anything is trained.

    Parameters
    ----------
    n_images : mapping of str to int
        Number of images of each image set.
    n_seeds : int
        Number of training seeds.
    difference : float, default 0.05
        True difference (fraction) for which the sentence says how large the study must be.
    seed_sd : float, default 0.01
        Same as in `detectable_difference`.

    Returns
    -------
    str
        Differences found with a power of 80 % per size of image set, what a difference of 5 points
        takes on the largest set, and what this assumes. The p values are taken to be adjusted for
        all image sets and for exploratory comparisons, see `holm_with_primary`.
    """
    sets: dict[int, list[str]] = {}
    for name, n in sorted(n_images.items(), key=lambda item: -item[1]):
        sets.setdefault(n, []).append(name)
    found, fine = [], {}
    for n, names in sets.items():
        fine[n] = n >= 2 and _detectable(n, n_seeds, seed_sd, len(n_images))
        points = f"{100 * fine[n]:.1f} points" if fine[n] else "no difference"
        shown = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
        found.append(f"{points} on {n} images ({shown})")
    seeds = f"{n_seeds} seeds" if n_seeds > 1 else "1 seed, for these trained models only"
    wanted, most = f"{100 * difference:g} points", max(sets, default=0)
    needs = f"{most} images are enough for {wanted}"
    if not fine.get(most) or fine[most] > difference:
        enough = _enough(difference, n_seeds, seed_sd, len(n_images))
        needs = f"{most} images cannot decide {wanted}: that takes {enough}"
    return (
        f"Power of 80 % for the primary comparison with {seeds}: {'; '.join(found)}. {needs}. "
        f"Holm over {len(n_images)} set{'s' * (len(n_images) != 1)}; assumed are accuracies near "
        f"{100 * ACCURACY:g} % and a standard deviation of {100 * seed_sd:g} points over seeds."
    )


@functools.lru_cache(maxsize=256)
def _detectable(n: int, n_seeds: int, seed_sd: float, n_compared: int) -> float | None:
    level = 0.05 * PRIMARY_SHARE
    return detectable_difference(n, n_seeds, ACCURACY, seed_sd, n_compared=n_compared, level=level)


@functools.lru_cache(maxsize=256)
def _enough(difference: float, n_seeds: int, seed_sd: float, n_compared: int) -> str:
    """Return about how many images are needed, with the given number of seeds or else with more."""
    from scipy.optimize import brentq

    rest = (ACCURACY, seed_sd, 0.05 * PRIMARY_SHARE / n_compared, AGREEMENT, CONSISTENCY)
    most = MOST_IMAGES // 10
    for s in (n_seeds, *(more for more in (5, 10, 20) if more > n_seeds)):

        def lack(log_n: float, s: int = s) -> float:
            return _power(round(10**log_n), s, *rest)(difference) - 0.8

        if lack(np.log10(most)) >= 0:
            n = 10 ** brentq(lack, 1, np.log10(most), xtol=0.002)
            step = 10 ** (len(str(int(n))) - 2)
            return f"about {step * -int(-n // step)} images with {s} seed{'s' * (s > 1)}"
    return f"more than {most} images and 20 seeds"

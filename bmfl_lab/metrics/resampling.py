"""Bootstrap resamples of images that several sets, models and metrics share, so that what belongs together stays paired."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from bmfl_lab.files import sha256_json
from bmfl_lab.runtime import rng


def image_weights(ids: Sequence[str] | np.ndarray, n_boot: int, seed: int = 0) -> np.ndarray:
    """Return how much each image weighs in each resample, float32 (n_boot, n_stimuli), rows summing to 1.

    Parameters
    ----------
    ids : sequence of str, shape (n_stimuli,)
        The same ids in the same order give the same resamples: sets of the same images are
        resampled jointly, other sets independently.
    n_boot : int
        Resamples.
    seed : int, default 0
        Of the draws.
    """
    return _weights(sha256_json([str(i) for i in ids]), len(ids), n_boot, seed)


@functools.lru_cache(maxsize=4)
def _weights(key: str, n: int, n_boot: int, seed: int) -> np.ndarray:
    if not n:
        return np.zeros((n_boot, 0), np.float32)
    counts = rng(seed, "bootstrap", "images", key).multinomial(n, np.full(n, 1 / n), size=n_boot)
    found = (counts / n).astype(np.float32)
    found.flags.writeable = False
    return found


def seed_weights(n_seeds: int, n_boot: int, seed: int = 0) -> np.ndarray:
    """Return how much each training seed weighs in each resample, float64 (n_boot, n_seeds)."""
    return (
        rng(seed, "bootstrap", "seeds").multinomial(
            n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_boot
        )
        / n_seeds
    )


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float | None, float | None]:
    """Return the ends of the percentile interval of resampled values; (None, None) where fewer than half are defined."""
    values = np.asarray(values, dtype=np.float64)
    known = values[np.isfinite(values)]
    if len(known) < 2 or 2 * len(known) < len(values):
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Correlation per vertex against scipy and double precision."""

import numpy as np
import pytest
import torch
from scipy import stats

from bmfl_lab.metrics.correlation import (
    StreamingPearson,
    bootstrap_pearson,
    mean_pearson,
    near_constant,
    pearson,
)


def pair(n=300, v=70, mean=0.0, dtype=np.float32, seed=0):
    g = np.random.default_rng(seed)
    Y = g.normal(size=(n, v))
    P = 0.5 * Y + g.normal(size=(n, v))
    return (Y + mean).astype(dtype), (P + mean).astype(dtype)


def reference(Y, P):
    return np.array(
        [stats.pearsonr(y, p)[0] for y, p in zip(Y.T.astype(np.float64), P.T.astype(np.float64))]
    )


@pytest.mark.parametrize("mean", [0.0, 100.0, 1e4, -1e4])
def test_equals_double_precision_at_large_means(mean):
    Y, P = pair(mean=mean)
    expected = reference(Y, P)
    np.testing.assert_allclose(pearson(Y, P, chunk=32), expected, atol=1e-5)
    stream = StreamingPearson(Y.shape[1])
    for start in range(0, 300, 37):
        stream.update(Y[start : start + 37], P[start : start + 37])
    np.testing.assert_allclose(stream.result(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_accumulates_in_single(dtype):
    Y, P = pair(n=5000, v=5)
    Y, P = torch.tensor(Y * 100).to(dtype), torch.tensor(P * 100).to(dtype)
    np.testing.assert_allclose(
        pearson(Y, P), reference(Y.double().numpy(), P.double().numpy()), atol=1e-5
    )


def test_undefined_is_nan_never_zero():
    Y, P = pair()
    Y[:, 0], P[:, 1], Y[4, 2], Y[:, 3] = 3.1, 1e4 + 0.1, np.nan, 0
    r = pearson(Y, P)
    assert np.array_equal(np.flatnonzero(np.isnan(r)), [0, 1, 2, 3])
    assert np.array_equal(
        np.isnan(StreamingPearson(70).update(Y[:100], P[:100]).update(Y[100:], P[100:]).result()),
        np.isnan(r),
    )


def test_near_constant_is_flagged_and_computed():
    Y, P = pair(mean=1e5)
    assert near_constant(Y).all() and not near_constant(pair()[0]).any()
    assert np.isfinite(pearson(Y, P)).all() and near_constant(np.zeros((4, 2))).all()


def test_bootstrap_resamples_are_correlations_of_resampled_rows():
    Y, P = pair(n=40, v=6, mean=50)
    boot = bootstrap_pearson(Y, P, n_boot=400, seed=3)
    assert np.array_equal(boot, bootstrap_pearson(Y, P, n_boot=400, seed=3, chunk=4))
    from bmfl_lab.runtime import rng

    counts = rng(3, "bootstrap", "pearson").multinomial(40, np.full(40, 1 / 40), size=400)
    rows = np.repeat(np.arange(40), counts[7])
    np.testing.assert_allclose(boot[7], reference(Y[rows], P[rows]), atol=1e-4)
    spread = (1 - pearson(Y, P) ** 2) / np.sqrt(39)
    np.testing.assert_allclose(boot.std(0), spread, rtol=0.8)


def test_rounding_never_leaves_the_range():
    Y = np.random.default_rng(0).normal(3, 1, (5, 20000)).astype(np.float32)
    for sign in (-1, 1):
        found = pearson(Y, sign * Y + np.float32(2))  # up to 1.0000002 before it is clipped
        assert np.abs(found).max() <= 1 and np.allclose(found, sign, atol=1e-5)


def test_values_that_differ_by_rounding_only_are_constant():
    Y = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    for value in np.float32([0.01, 1, 100]):
        rounded = np.full((6, 2), value)
        rounded[::2] = np.nextafter(value, 2 * value)
        assert np.isnan(pearson(Y, rounded)).all() and np.isnan(pearson(rounded, Y)).all()
    assert np.isfinite(pearson(Y, 1 + 1e-5 * Y)).all()


def test_streams_that_are_merged_are_one_stream():
    draw = np.random.default_rng(1)
    Y = draw.normal(size=(60, 4)) + np.arange(60)[:, None] / 10  # the parts have other means
    P = Y + draw.normal(size=Y.shape) - np.arange(60)[:, None] ** 2 / 500
    parts = [
        StreamingPearson(4).update(Y[part], P[part])
        for part in (slice(0, 0), slice(0, 10), slice(10, 35), slice(35, 60))
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    whole.merge(StreamingPearson(4))
    np.testing.assert_allclose(whole.result(), reference(Y, P), atol=1e-6)
    assert whole.n == 60


def test_the_mean_counts_undefined_vertices_as_zero_and_has_the_interval_of_resampled_means():
    Y, P = pair()
    Y, P = Y[:80, :6].copy(), P[:80, :6]
    Y[:, 5] = 1.0
    value, low, high = mean_pearson(Y, P, n_boot=300, seed=3)
    r = reference(np.asarray(Y[:, :5], float), np.asarray(P[:, :5], float))
    assert value == pytest.approx(r.sum() / 6, abs=1e-5) and low < value < high
    means = np.nan_to_num(bootstrap_pearson(Y, P, 300, 3)).sum(axis=1) / 6
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-6)

"""CKA against the plain centring-matrix formulas."""

import numpy as np
import pytest

from bmfl_lab.errors import DataError
from bmfl_lab.metrics.cka import cka, minibatch_cka


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def plain(X, Y, debiased):
    """HSIC by its definition, with explicit centring matrix or explicit sums."""
    n = len(X)

    def hsic(K, L):
        if not debiased:
            H = np.eye(n) - 1 / n
            return np.trace(K @ H @ L @ H) / (n - 1) ** 2
        K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(n)
        return (
            np.trace(K @ L)
            + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ K @ L @ one)
        ) / (n * (n - 3))

    K, L = X @ X.T, Y @ Y.T
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("d", [5, 60])
def test_cka_is_its_definition(debiased, d):
    X = draw(20, d) + 3
    Y = X[:, :4] @ draw(4, 7, seed=1) + draw(20, 7, seed=2)
    assert cka(X, Y, debiased=debiased) == pytest.approx(plain(X, Y, debiased), abs=1e-10)


def test_cka_ignores_rotation_and_scale_and_debiasing_removes_the_width_effect():
    X = draw(30, 6)
    Q = np.linalg.qr(draw(6, 6, seed=1))[0]
    assert cka(X, 3 * X @ Q) == pytest.approx(1)
    A, B = draw(30, 2000), draw(30, 2000, seed=1)
    assert cka(A, B, debiased=False) > 0.9 and abs(cka(A, B)) < 0.3


def test_minibatches_of_everything_are_the_debiased_form_and_small_ones_come_near():
    X = draw(120, 8)
    Y = X @ draw(8, 8, seed=1) + draw(120, 8, seed=2)
    assert minibatch_cka([(X, Y)]) == pytest.approx(cka(X, Y))
    batches = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 120, 20)]
    assert minibatch_cka(batches) == pytest.approx(cka(X, Y), abs=0.1)


def test_constant_is_undefined_and_bad_input_refused():
    with np.errstate(all="raise"):
        assert np.isnan(cka(np.ones((6, 2)), draw(6, 2)))
        assert np.isnan(cka(draw(6, 2), np.ones((6, 2)), debiased=False))


def test_four_stimuli_are_enough_debiased_and_two_plain():
    X, Y = draw(4, 6), draw(4, 5, seed=1)
    assert cka(X, Y) == pytest.approx(plain(X, Y, True), abs=1e-10)
    assert cka(X[:2], Y[:2], debiased=False) == pytest.approx(1)
    for few, debiased in ((3, True), (1, False)):
        with pytest.raises(DataError, match="pair the representations by stimulus id"):
            cka(X[:few], Y[:few], debiased=debiased)


def test_minibatches_add_their_sums_before_they_are_divided():
    pairs = [(draw(n, 3, seed=n), draw(n, 3, seed=n + 9)) for n in (5, 7, 12)]

    def sums(X, Y):
        n, K, L = len(X), X @ X.T, Y @ Y.T
        np.fill_diagonal(K, 0), np.fill_diagonal(L, 0)
        pairwise = np.sum(K * L) - 2 * K.sum(0) @ L.sum(0) / (n - 2)
        return (pairwise + K.sum() * L.sum() / ((n - 1) * (n - 2))) / (n * (n - 3))

    # one origin per batch, as a centred network would have it
    pairs = [(X - X.mean(0), Y - Y.mean(0)) for X, Y in pairs]
    xy, xx, yy = (sum(sums(p[i], p[j]) for p in pairs) for i, j in ((0, 1), (0, 0), (1, 1)))
    assert minibatch_cka(pairs) == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-12)

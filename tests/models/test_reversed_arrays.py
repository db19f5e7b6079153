"""Arrays whose rows run backwards, or that are views in any other way, give the numbers of a plain copy."""

import numpy as np
import pytest
import torch

from bmfl_lab.errors import DataError
from bmfl_lab.metrics.cka import cka
from bmfl_lab.metrics.classification import accuracy, calibration
from bmfl_lab.metrics.correlation import bootstrap_pearson, pearson
from bmfl_lab.metrics.noise import ceiling_from_repeats, ncsnr_from_repeats
from bmfl_lab.metrics.rsa import compare_rdms, rdm
from bmfl_lab.models.ridge import fit_ridge


def data(dtype=np.float32):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(40, 6)).astype(dtype)
    return X, (X @ generator.normal(size=(6, 5)) + generator.normal(size=(40, 5))).astype(dtype)


VIEWS = {
    "rows reversed": lambda a: a[::-1],
    "columns reversed": lambda a: a[:, ::-1],
    "both reversed": lambda a: a[::-1, ::-1],
    "every other row": lambda a: np.repeat(a, 2, 0)[::2],
    "every other row, reversed": lambda a: np.repeat(a, 2, 0)[::-2],
    "columns of a wider array": lambda a: np.hstack([a, a])[:, : a.shape[1]],
    "Fortran order": np.asfortranarray,
    "transposed twice": lambda a: np.ascontiguousarray(a.T).T,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "float16": lambda a: a.astype(np.float16),
    "integers": lambda a: np.rint(a * 10).astype(np.int64),
}


def ridge(X, Y):
    fit = fit_ridge(X, Y, [1.0, 10.0])
    return np.concatenate([fit.coef.ravel(), fit.intercept, fit.predict(X).ravel()])


FUNCTIONS = {
    "ridge": ridge,
    "pearson": lambda X, Y: pearson(X[:, :5], Y),
    "bootstrap": lambda X, Y: bootstrap_pearson(X[:, :5], Y, n_boot=20),
    "rdm": lambda X, Y: rdm(X),
    "comparison": lambda X, Y: compare_rdms(rdm(X)[None], rdm(Y)[None]),
    "cka": lambda X, Y: cka(X, Y),
}


@pytest.mark.filterwarnings("ignore:expected at most 5%")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_view_gives_what_its_copy_gives(function, view):
    X, Y = (VIEWS[view](a) for a in data())
    copies = (np.ascontiguousarray(a).astype(a.dtype.newbyteorder("=")) for a in (X, Y))
    np.testing.assert_allclose(
        FUNCTIONS[function](X, Y), FUNCTIONS[function](*copies), rtol=1e-4, atol=1e-5
    )


def test_reversed_repeats_and_logits():
    repeats = np.random.default_rng(0).normal(size=(30, 3, 4)) + np.arange(30)[:, None, None]
    for function in (ncsnr_from_repeats, ceiling_from_repeats):
        np.testing.assert_allclose(function(repeats[::-1, ::-1]), function(repeats), rtol=1e-5)
    logits, labels = np.random.default_rng(1).normal(size=(20, 3)), np.arange(20) % 3
    assert accuracy(logits[::-1], labels[::-1]) == accuracy(logits, labels)
    assert calibration(logits[::-1], labels[::-1]).ece == pytest.approx(
        calibration(logits, labels).ece
    )


def test_tensors_and_empty_columns():
    X, Y = data()
    plain = fit_ridge(X, Y, [1.0]).coef
    np.testing.assert_array_equal(fit_ridge(torch.tensor(X), torch.tensor(Y), [1.0]).coef, plain)
    with pytest.raises(DataError, match="of the same number of stimuli"):
        fit_ridge(X[::-1], Y[:-1], [1.0])

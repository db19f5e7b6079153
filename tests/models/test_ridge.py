"""Ridge against himalaya, scikit-learn and a float64 solution."""

import warnings

import numpy as np
import pytest
from himalaya.backend import set_backend
from himalaya.ridge import RidgeCV
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, LeaveOneGroupOut

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.models.ridge import fit_ridge, fold_rows

ALPHAS = np.logspace(-1, 5, 13)


def planted(n=203, p=30, v=400, seed=0, noise=3.0):
    g = np.random.default_rng(seed)
    X = (g.normal(size=(n, p)) * np.logspace(0.5, -1, p) + 2).astype(np.float32)
    Y = X @ g.normal(size=(p, v)) + noise * g.normal(size=(n, v)) * g.gamma(1, 2, v) + 7
    return X, Y.astype(np.float32)


def peer(X, Y, alphas=ALPHAS, cv=5):
    set_backend("numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RidgeCV(
            alphas=np.asarray(alphas, X.dtype),
            fit_intercept=True,
            cv=cv,
            solver_params={"warn": False},
        ).fit(X, Y)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(203, 30), (60, 90)])
@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_same_alphas_and_coefficients_as_himalaya(precision, shape):
    X, Y = planted(*shape)
    ours, ref = (
        fit_ridge(X, Y, ALPHAS, precision=precision, chunk=150),
        peer(X.astype(float), Y.astype(float)),
    )
    same = np.isclose(ours.alpha, ref.best_alphas_, rtol=1e-4)
    assert same.mean() >= 0.999
    np.testing.assert_allclose(ours.coef[:, same], ref.coef_[:, same], atol=1e-4)
    np.testing.assert_allclose(ours.cv_score[same], ref.cv_scores_[same], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        ours.predict(X)[:, same], ref.predict(X.astype(float))[:, same], atol=2e-3
    )


@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_leave_one_session_out_as_scikit_learn():
    X, Y = planted(n=90, p=8, v=5)
    sessions = np.random.default_rng(1).integers(0, 4, 90)
    ours = fit_ridge(X, Y, ALPHAS, folds=sessions)
    for v in range(5):
        search = GridSearchCV(
            Ridge(), {"alpha": ALPHAS}, scoring="neg_mean_squared_error", cv=LeaveOneGroupOut()
        )
        search.fit(X.astype(float), Y[:, v].astype(float), groups=sessions)
        assert ours.alpha[v] == pytest.approx(search.best_params_["alpha"], rel=1e-5)
        np.testing.assert_allclose(ours.coef[:, v], search.best_estimator_.coef_, atol=1e-4)
        assert ours.intercept[v] == pytest.approx(search.best_estimator_.intercept_, abs=1e-3)
        assert ours.cv_score[v] == pytest.approx(search.best_score_, rel=1e-4)


def test_folds_are_those_of_kfold():
    for n, k in ((17, 5), (20, 4), (5, 5)):
        assert all(
            np.array_equal(a, b[1])
            for a, b in zip(fold_rows(n, k), KFold(k).split(np.zeros(n)), strict=True)
        )


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_collinear_and_constant_features(precision):
    X, Y = planted(p=12, v=40)
    X = np.concatenate([X, X[:, :4], np.ones((len(X), 2), np.float32), X[:, :1] + X[:, 1:2]], 1)
    ours = fit_ridge(X, Y, ALPHAS, precision=precision)
    C = X.astype(float) - X.astype(float).mean(0)
    for v in range(0, 40, 7):
        exact = np.linalg.solve(
            C.T @ C + ours.alpha[v] * np.eye(X.shape[1]), C.T @ (Y[:, v] - Y[:, v].mean())
        )
        np.testing.assert_allclose(ours.coef[:, v], exact, atol=1e-4)
    assert np.all(ours.coef[16:18] == 0) or np.abs(ours.coef[16:18]).max() < 1e-6


@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_more_features_than_stimuli_that_are_collinear_or_never_change():
    g = np.random.default_rng(0)
    X = np.repeat(g.normal(size=(40, 30)), 3, axis=1).astype(np.float32)  # rank 30 in 90 columns
    Y = (X @ g.normal(size=(90, 20)) + g.normal(size=(40, 20))).astype(np.float32)
    ours, C = fit_ridge(X, Y, ALPHAS), X.astype(float) - X.astype(float).mean(0)
    for v in range(0, 20, 3):
        exact = np.linalg.solve(
            C.T @ C + ours.alpha[v] * np.eye(90), C.T @ (Y[:, v] - Y[:, v].mean())
        )
        np.testing.assert_allclose(ours.coef[:, v], exact, atol=1e-4)
    still = fit_ridge(np.ones((40, 90), np.float32), Y, ALPHAS)
    np.testing.assert_allclose(still.coef, 0, atol=1e-6)
    np.testing.assert_allclose(
        still.predict(np.ones((2, 90))), np.tile(Y.mean(0), (2, 1)), atol=1e-5
    )


@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_large_means_and_constant_responses():
    X, Y = planted(v=20)
    Y[:, 3] = 5
    plain, moved = (
        fit_ridge(X, Y, ALPHAS, precision="float32"),
        fit_ridge(X + 100, Y + 1e4, ALPHAS, precision="float32"),
    )
    np.testing.assert_allclose(plain.coef[:, 3], 0, atol=1e-6)
    assert plain.intercept[3] == pytest.approx(5)
    same = plain.alpha == moved.alpha
    assert same.mean() >= 0.9
    np.testing.assert_allclose(plain.coef[:, same], moved.coef[:, same], atol=2e-2)


def test_edge_of_the_grid_is_reported():
    X, Y = planted()
    with pytest.warns(
        UserWarning, match=r"at most 5% of vertices at an end of the penalty grid; got 100.0%"
    ):
        assert fit_ridge(X, Y, [1e-9, 1e-8]).edge_share == 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda X, Y: (X[:-1], Y, {}), DataError, "same number of stimuli"),
        (
            lambda X, Y: (X, np.where(Y > 20, np.nan, Y), {}),
            DataError,
            "finite responses; got .* NaN",
        ),
        (lambda X, Y: (X, Y, {"alphas": [0.0, 1]}), ConfigError, "positive penalties"),
        (lambda X, Y: (X, Y, {"n_folds": 1}), ConfigError, "2 to 203 folds"),
        (
            lambda X, Y: (X, Y, {"folds": [np.arange(9), np.arange(9)]}),
            ConfigError,
            "each of 203 stimuli once",
        ),
        (lambda X, Y: (X, Y, {"precision": "half"}), ConfigError, "'float32', 'float64'"),
    ],
)
def test_refusals(change, error, text):
    X, Y, options = change(*planted())
    with pytest.raises(error, match=text):
        fit_ridge(X, Y, **{"alphas": ALPHAS, **options})


def test_predict_refuses_other_features():
    X, Y = planted(v=5)
    with pytest.raises(DataError, match=r"features of shape \(n, 30\)"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit_ridge(X, Y, ALPHAS).predict(X[:, :4])

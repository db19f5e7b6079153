"""Response features against scikit-learn's PCA."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from bmfl_lab.errors import DataError
from bmfl_lab.training.aligned import fit_response_features


def draw(n, v, seed=0):
    g = np.random.default_rng(seed)
    return g.normal(size=(n, v)) * g.uniform(0.5, 3, v) + g.normal(size=v)


def test_features_are_scikit_learns_up_to_sign_and_gain():
    train, test = draw(40, 12), draw(9, 12, seed=1)
    found = fit_response_features(train, 5)
    z = (train - train.mean(0)) / train.std(0)
    pca = PCA(5).fit(z)
    want = pca.transform((test - train.mean(0)) / train.std(0)) * found.gain
    got = found.transform(test)
    np.testing.assert_allclose(np.abs(got), np.abs(want), rtol=1e-4, atol=1e-4)
    assert found.explained == pytest.approx(pca.explained_variance_ratio_.sum())
    assert np.square(found.transform(train)).mean() == pytest.approx(1, abs=1e-5)


def test_nothing_of_the_test_images_enters_the_fit():
    train = draw(30, 8)
    found = fit_response_features(train, 4)
    assert (
        found.transform(np.concatenate([train, 100 + draw(5, 8)]))[:30].tolist()
        == found.transform(train).tolist()
    )


def test_constant_vertex_contributes_nothing():
    train = draw(30, 6)
    train[:, 2] = 7.0
    found = fit_response_features(train, 5)
    assert found.n_constant == 1 and np.abs(found.components[:, 2]).max() < 1e-6
    moved = train.copy()
    moved[:, 2] += 5
    np.testing.assert_allclose(found.transform(moved), found.transform(train), atol=1e-4)


@pytest.mark.parametrize(
    ("responses", "n", "match"),
    [
        (draw(10, 30), 10, "1 to 9 components"),
        (np.repeat(draw(30, 3), 2, axis=1), 4, "1 to 3 components"),
        (draw(10, 4), 0, "set n_components=4"),
        (np.full((4, 4), np.nan), 1, "finite responses"),
    ],
)
def test_rank_is_checked(responses, n, match):
    with pytest.raises(DataError, match=match):
        fit_response_features(responses, n)


def test_other_vertices_are_refused():
    with pytest.raises(DataError, match=r"responses of shape \(n, 4\)"):
        fit_response_features(draw(10, 4), 2).transform(draw(3, 5))

"""The weighted bootstrap against copies of the data, and against the plain bootstrap."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.metrics.rdms import RDMs
from bmfl_lab.metrics.rsa import compare_rdms, rdm
from bmfl_lab.metrics.rsa_inference import bootstrap_rsa, similarity_samples, weighted_similarity


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_a_weight_is_a_number_of_copies():
    x, y = draw(2, 15), draw(3, 15, seed=1)
    w = np.random.default_rng(2).integers(0, 4, 15)
    want = [[pearsonr(np.repeat(a, w), np.repeat(b, w)).statistic for b in y] for a in x]
    np.testing.assert_allclose(weighted_similarity(x, y, w), want, atol=1e-12)
    a, b = np.repeat(x[0], w), np.repeat(y[0], w)
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    assert weighted_similarity(x, y, w, centred=False)[0, 0] == pytest.approx(cosine)
    assert np.isnan(weighted_similarity(np.ones((1, 15)), y, w)).all()


@pytest.mark.parametrize("method", ["pearson", "cosine", "spearman"])
def test_spread_equals_that_of_the_plain_bootstrap(method):
    x = draw(30, 6)
    models = np.stack([rdm(x + 0.5 * draw(30, 6, seed=s)) for s in (1, 2)])
    brain = rdm(x + 0.5 * draw(30, 6, seed=3))[None]
    value, samples = similarity_samples(models, brain, method=method, n_boot=600)
    np.testing.assert_array_equal(value, compare_rdms(models, brain, method))
    ids = [str(i) for i in range(30)]
    plain = bootstrap_rsa(
        RDMs(models, ids), RDMs(brain, ids), method=method, over="stimuli", n_boot=400
    )
    spread = plain.samples.std(0)
    np.testing.assert_allclose(samples[:, :, 0].std(0), spread, rtol=0.2)
    np.testing.assert_allclose(
        samples[:, :, 0].mean(0), plain.samples.mean(0), atol=0.5 * spread.max()
    )


def test_the_same_stimuli_are_drawn_for_every_pair():
    x = rdm(draw(12, 5))[None]
    samples = similarity_samples(np.concatenate([x, x]), np.concatenate([x, x]), n_boot=20)[1]
    np.testing.assert_allclose(samples, 1, atol=1e-9)


def test_refusals():
    x = rdm(draw(6, 5))[None]
    with pytest.raises(ConfigError, match="a method among"):
        similarity_samples(x, x, method="kendall")
    with pytest.raises(DataError, match="at least 4 stimuli"):
        similarity_samples(x[:, :3], x[:, :3])


def test_four_stimuli_are_the_least():
    random = np.random.default_rng(0)
    value, samples = similarity_samples(random.random((1, 6)), random.random((1, 6)), n_boot=5)
    assert value.shape == (1, 1) and samples.shape == (5, 1, 1)
    with pytest.raises(DataError, match="at least 4 stimuli"):
        similarity_samples(random.random((1, 3)), random.random((1, 3)))

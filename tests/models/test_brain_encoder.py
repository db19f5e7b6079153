"""Linear and receptive-field encoders against planted truths."""

import warnings

import numpy as np
import pytest
import torch

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.models.encoders import (
    EnsembleEncoder,
    LinearEncoder,
    ScaledEncoder,
    candidate_fields,
    ensemble_weights,
    field_weights,
    fit_retinotopic,
    flatten_patches,
)
from bmfl_lab.models.ridge import fit_ridge


@pytest.mark.filterwarnings("ignore:expected at most 5%")
@pytest.mark.parametrize("pooling", ["mean", "grid"])
def test_linear_encoder_computes_the_ridge(pooling):
    g = np.random.default_rng(0)
    patches = g.normal(size=(80, 4, 6)).astype(np.float32)
    X = flatten_patches(torch.from_numpy(patches), pooling).numpy()
    fit = fit_ridge(X, g.normal(size=(80, 9)).astype(np.float32))
    made = LinearEncoder.from_ridge(fit, token_width=6, pooling=pooling, n_patches=4)
    np.testing.assert_allclose(made(torch.from_numpy(patches)).detach(), fit.predict(X), atol=1e-5)
    with pytest.raises(ConfigError, match="pooling among"):
        flatten_patches(torch.zeros(1, 1, 1), "max")


@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_planted_receptive_fields_are_found():
    g = np.random.default_rng(0)
    patches = g.normal(size=(500, 64, 5)).astype(np.float32) @ g.normal(size=(5, 5)).astype(
        np.float32
    )
    truth = candidate_fields(4, (0.08, 0.2))[[0, 3, 5, 21, 26, 32]]
    pooled = np.einsum("vp,npd->nvd", field_weights(truth, (8, 8)).numpy(), patches)
    Y = np.einsum("nvd,vd->nv", pooled, g.normal(size=(6, 5))) + 3
    Y = (Y + 0.3 * Y.std(0) * g.normal(size=Y.shape)).astype(np.float32)
    model = fit_retinotopic(
        patches[:400], Y[:400], grid=(8, 8), n_features=5, per_side=4, sizes=(0.08, 0.2)
    )
    np.testing.assert_array_equal(model.receptive_fields(), truth.numpy())
    out = model(torch.from_numpy(patches[400:])).numpy()
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(out.T, Y[400:].T)]
    assert min(r) > 0.93
    with pytest.raises(DataError, match="patches for grid"):
        fit_retinotopic(patches, Y, grid=(4, 4))


def test_penalties_at_the_end_of_the_grid_are_told_once_and_only_for_the_chosen_fields():
    g = np.random.default_rng(0)
    patches = g.normal(size=(200, 16, 12)).astype(np.float32)
    where = field_weights(candidate_fields(2, (0.1,)), (4, 4)).numpy()[0]
    Y = (np.einsum("p,npd->nd", where, patches) @ g.normal(size=(12, 20))).astype(np.float32)
    Y += Y.std() * g.normal(size=Y.shape).astype(np.float32)
    options = {"grid": (4, 4), "n_features": 12, "per_side": 2, "sizes": (0.1,)}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        good = fit_retinotopic(patches, Y, alphas=np.logspace(-4, 5, 19), **options)
        assert not [w for w in told if "end of the penalty grid" in str(w.message)]
        assert (
            good.fit_facts["alpha_edge_share"] == 0 and 1e-4 < good.fit_facts["alpha_median"] < 1e5
        )
        poor = fit_retinotopic(patches, Y, alphas=(1e7, 1e8), **options)
    assert len([w for w in told if "100.0% at 1e+07 or 1e+08" in str(w.message)]) == 1
    assert poor.fit_facts == {"alpha_edge_share": 1.0, "alpha_median": 1e7}


def test_field_weights_are_placed_as_the_image_is():
    w = field_weights(torch.tensor([[0.9, 0.1, 0.05], [0.5, 0.5, torch.inf]]), (5, 5))
    assert w[0].argmax() == 4 and torch.allclose(w[1], torch.full((25,), 0.04))
    assert torch.allclose(w.sum(1), torch.ones(2))


def test_scaled_and_ensemble_compute_what_they_say():
    a, b = (LinearEncoder(token_width=3, n_vertices=4) for _ in range(2))
    x = torch.randn(5, 2, 3)
    mean, scale = torch.randn(4), torch.rand(4)
    assert torch.allclose(ScaledEncoder(encoder=a, mean=mean, scale=scale)(x), a(x) * scale + mean)
    weights = ensemble_weights(np.array([[0.5, 0.1, np.nan, 0.2], [0.1, 0.5, 0.3, 0.2]]))
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-6)
    assert (
        weights[0, 0] > 0.99
        and weights[1, 1] > 0.99
        and weights[1, 2] > 0.99
        and weights[0, 3] == 0.5
    )
    out = EnsembleEncoder(members=[a, b], weights=torch.from_numpy(weights))(x)
    w = torch.from_numpy(weights)
    assert torch.allclose(out, w[0] * a(x) + w[1] * b(x))

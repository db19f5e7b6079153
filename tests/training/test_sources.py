"""Response sources: each has the statistics, and lacks the information, that it is said to have."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.backbones.tokens import StoredTokens
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.models.bmfl import TokenBatch
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training import sources, train_brain_encoder
from bmfl_lab.training.external import lookup_source

REFERENCE = (
    np.random.default_rng(0).normal(2, 1, (300, 4)) @ np.random.default_rng(1).normal(0, 1, (4, 6))
    + 3
)


def _stimuli(n, name="s", labels=None, start=0):
    pixels = np.random.default_rng(start).integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)
    labels = np.zeros(n, dtype=np.int64) if labels is None else labels
    return from_arrays(
        name, pixels, [f"{name}-{start + i}" for i in range(n)], labels, ("a", "b", "c")
    )


@pytest.mark.parametrize("covariance", [False, True])
def test_noise_has_the_mean_and_covariance_of_the_responses(covariance):
    found = sources.noise_source(REFERENCE, covariance=covariance)(None, _stimuli(6000).ids)
    wanted = np.cov(REFERENCE.T)
    error = 4 * wanted.diagonal().max() / np.sqrt(6000)
    np.testing.assert_allclose(
        found.mean(0), REFERENCE.mean(0), atol=4 * np.sqrt(wanted.max() / 6000)
    )
    np.testing.assert_allclose(
        np.cov(found.T), wanted if covariance else np.diag(wanted.diagonal()), atol=error
    )


def test_noise_belongs_to_the_image_and_not_to_its_place():
    noise, ids = sources.noise_source(REFERENCE), _stimuli(5).ids
    np.testing.assert_array_equal(noise(None, ids[[3, 1]]), noise(None, ids)[[3, 1]])
    assert not np.allclose(noise(None, ids)[0], noise(None, ids)[1])
    assert not np.allclose(sources.noise_source(REFERENCE, seed=1)(None, ids), noise(None, ids))
    assert noise(None, ids[:0]).shape == (0, 6)


def test_a_mixture_has_the_accuracy_asked_for_and_the_same_covariance():
    own = np.random.default_rng(2).multivariate_normal(REFERENCE.mean(0), np.cov(REFERENCE.T), 6000)
    ids = _stimuli(6000).ids
    mixed = sources.mixed_source(lambda t, i: own, REFERENCE, accuracy=0.3, reached=0.5)(None, ids)
    r = [np.corrcoef(own[:, v], mixed[:, v])[0, 1] for v in range(6)]
    np.testing.assert_allclose(r, 0.6, atol=0.05)
    np.testing.assert_allclose(np.cov(mixed.T), np.cov(own.T), atol=0.1 * np.cov(own.T).max())
    np.testing.assert_allclose(
        sources.mixed_source(lambda t, i: own, REFERENCE, accuracy=0.5, reached=0.5)(None, ids),
        own,
        rtol=1e-5,
    )
    with pytest.raises(ConfigError, match=r"an accuracy from 0 to 0\.500"):
        sources.mixed_source(lambda t, i: own, REFERENCE, accuracy=0.6, reached=0.5)


def test_a_partner_is_never_the_image_itself_and_tells_no_label_outside_training():
    labels = np.arange(30) % 3
    donors = _stimuli(30, "train", labels)
    code = np.stack([np.arange(30), labels], 1).astype(np.float32)
    anyone = sources.other_image_source(donors, code)(None, donors.ids)
    assert (anyone[:, 0] != np.arange(30)).all() and (anyone[:, 1] != labels).any()
    test = _stimuli(40, "test", np.full(40, 2))
    guesses = np.arange(40) % 2
    alike = sources.other_image_source(donors, code, classes=lambda tokens: tokens)
    own = alike(None, donors.ids)
    assert (own[:, 1] == labels).all() and (own[:, 0] != np.arange(30)).all()
    np.testing.assert_array_equal(
        alike(guesses, test.ids)[:, 1], guesses
    )  # the prediction, not the label 2
    np.testing.assert_array_equal(
        alike(guesses[5:9], test.ids[5:9]), alike(guesses, test.ids)[5:9]
    )  # in any batch
    lonely = _stimuli(3, "train", np.arange(3))
    with pytest.raises(DataError, match="another training image for 'train-0'"):
        sources.other_image_source(lonely, code[:3], classes=lambda t: guesses)(None, lonely.ids)
    with pytest.raises(DataError, match="3 donor responses"):
        sources.other_image_source(lonely, code)


@pytest.mark.parametrize("n", [20, 90])
def test_components_are_those_of_sklearn(n):
    patches = np.random.default_rng(3).normal(0, 1, (n, 4, 10)) * np.linspace(1, 3, 10)
    found = sources.pca_source(patches, 50)(SimpleNamespace(patches=patches), _stimuli(n).ids)
    rank = min(n - 1, 40)
    wanted = PCA(rank).fit_transform(patches.reshape(n, -1))
    np.testing.assert_allclose(np.abs(found[:, :10]), np.abs(wanted[:, :10]), atol=1e-3)
    assert (
        found.shape == (n, 50) and (found[:, rank:] == 0).all() and (found[:, rank - 1] != 0).any()
    )


def test_permuted_features_are_those_of_a_linear_encoder_with_permuted_weights():
    r, order = np.random.default_rng(0), sources.rng(3, "permuted features").permutation(6)
    weights = r.normal(size=(6, 9))
    cls, patches = r.normal(size=(5, 6)), r.normal(size=(5, 4, 6))
    given = StoredTokens(cls, None, patches, (2, 2), "", {})

    def linear(tokens, ids):
        (found,) = tokens.encoder
        return found.cls @ weights + found.patches.mean(1) @ weights

    permuted = sources.PermutedSource(linear, seed=3)
    found = permuted(TokenBatch(cls, patches, (given,)), list("abcde"))
    moved = np.empty_like(weights)
    moved[order] = weights
    np.testing.assert_allclose(found, cls @ moved + patches.mean(1) @ moved)
    other = sources.PermutedSource(linear, seed=4)(
        TokenBatch(cls, patches, (given,)), list("abcde")
    )
    assert not np.allclose(other, found)


def test_a_projection_is_linear_and_fixed_by_its_seed():
    a, b = (
        SimpleNamespace(patches=np.random.default_rng(s).normal(0, 1, (3, 4, 5))) for s in (0, 1)
    )
    both = SimpleNamespace(patches=a.patches + b.patches)
    project = sources.projection_source(7, seed=2)
    np.testing.assert_allclose(project(both, None), project(a, None) + project(b, None), atol=1e-5)
    np.testing.assert_array_equal(sources.projection_source(7, seed=2)(a, None), project(a, None))
    wide = SimpleNamespace(patches=np.random.default_rng(4).normal(0, 1, (200, 30, 30)))
    assert sources.projection_source(50)(wide, None).std() == pytest.approx(1, abs=0.1)


def test_responses_at_hand_are_looked_up_by_id():
    ids = _stimuli(4).ids
    source = lookup_source(ids, np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(source(None, ids[[2, 0]]), [[4, 5], [0, 1]])
    with pytest.raises(DataError, match=r"none for 's-9'.*add its response"):
        source(None, ["s-9"])
    with pytest.raises(DataError, match="4 responses; got 3"):
        lookup_source(ids, np.zeros((3, 2)))


def test_a_linear_encoder_says_what_it_cannot_hold_and_shuffled_weights_keep_their_distribution(
    tmp_path,
):
    study = load_study(
        "planted", n_encoder=60, n_encoder_val=20, n_encoder_test=20, n_test=8, n_ood=8
    )
    store = FeatureStore(tmp_path / "s")
    config = configs.replace(encoders.tiny("ridge"), tokens="cls+mean", pooling="mean")
    encoder = train_brain_encoder(config, study, store=store, folder=tmp_path / "e", device="cpu")
    width = encoder.module.linear.weight.shape[1]
    assert encoder.atlas.n_vertices > width
    said = sources.rank_statement(encoder)
    rank = int(said.split("have rank ")[1].split(",")[0])
    predicted = encoder.predict_stimuli(study.subject().stimuli, store=store, device="cpu")
    assert rank <= width == int(said.split("at most the ")[1].split()[0])
    singular = np.linalg.svd(predicted - predicted.mean(0), compute_uv=False)
    assert np.sum(singular > singular[0] * 1e-5) <= rank
    random = sources.random_weight_encoder(encoder, seed=1)
    before, after = encoder.module.linear.weight.numpy(), random.module.linear.weight.numpy()
    np.testing.assert_array_equal(np.sort(before.ravel()), np.sort(after.ravel()))
    other = random.predict_stimuli(study.set("test"), store=store, device="cpu")
    assert not np.allclose(
        other, encoder.predict_stimuli(study.set("test"), store=store, device="cpu"), atol=0.1
    )

"""Embeddings decoded from responses."""

import numpy as np
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.embeddings import (
    decoding_ceiling,
    decoding_rows,
    fit_decoder,
    retrieve_names,
    score_embeddings,
)

N, N_TEST, V, D, PLANTED = 400, 80, 40, 12, 6
REPEATS = 3


@pytest.fixture(scope="module")
def planted():
    """Return embeddings of whose dimensions the first six drive responses, and three repeats."""
    draw = np.random.default_rng(0)
    embeddings = 5 + draw.normal(size=(N, D))
    signal = (embeddings[:, :PLANTED] - 5) @ draw.normal(size=(PLANTED, V))
    repeats = signal[:, None] + 3 * draw.normal(size=(N, REPEATS, V))
    return embeddings, repeats, signal


def halves(planted):
    embeddings, repeats, _ = planted
    responses = repeats.mean(1)
    train, test = slice(N_TEST, None), slice(N_TEST)
    return responses[train], embeddings[train], responses[test], embeddings[test]


def test_planted_dimensions_are_recovered_and_no_others(planted):
    x, y, x_test, y_test = halves(planted)
    decoder = fit_decoder(x, y)
    found = score_embeddings(decoder.predict(x_test), y_test, decoder.centre, ways=(2, 10, N_TEST))
    assert found.dimension_r[:PLANTED].min() > 0.9
    assert np.abs(found.dimension_r[PLANTED:]).max() < 0.35
    assert found.cosine.low > 0.5 and found.identification.two_way_low > 0.9
    # among n images: two of them is two-way identification, all of them is the top-1 score
    assert found.retrieval[2].value == pytest.approx(found.identification.two_way)
    assert found.retrieval[N_TEST].value == pytest.approx(found.identification.top1)
    rows = {row.name: row for row in decoding_rows(found, np.ones(D), split="test")}
    assert rows["decoding_retrieval_10"].notes == "chance 0.1"
    r = rows["decoding_r"]
    assert r.ci_low < r.value < r.ci_high and r.notes == "chance 0"
    assert rows["decoding_r_ceiling"].value == 1 and rows["decoding_cosine"].ci_low > 0.5
    assert 0.3 < found.retrieval[10].value < found.retrieval[2].value


def test_shuffled_pairs_are_at_chance(planted):
    x, y, x_test, y_test = halves(planted)
    decoder = fit_decoder(x, y, shuffled=True)
    found = score_embeddings(decoder.predict(x_test), y_test, decoder.centre, ways=(10,))
    assert found.cosine.low < 0.02 and found.cosine.value < 0.1
    assert found.identification.two_way == pytest.approx(0.5, abs=0.1)
    assert found.retrieval[10].value == pytest.approx(0.1, abs=0.07)


def test_roi_tokens_recover_the_planted_dimensions_and_shuffled_pairs_are_at_chance(planted):
    x, y, x_test, y_test = halves(planted)
    rois = {f"R{k}": np.arange(V) % 4 == k for k in range(3)}
    atlas = Atlas((np.arange(V) >= V // 2).astype(np.int8), rois, groups={})
    found = {}
    for shuffled in (False, True):
        decoder = fit_decoder(x, y, decoder="roi_tokens", atlas=atlas, shuffled=shuffled)
        assert decoder.fit.module.brain.tokeniser.n_tokens == 8  # three ROIs and the rest, twice
        found[shuffled] = score_embeddings(
            decoder.predict(x_test), y_test, decoder.centre, ways=(10,)
        )
    assert found[False].dimension_r[:PLANTED].min() > 0.7
    assert np.abs(found[False].dimension_r[PLANTED:]).max() < 0.35
    assert found[False].identification.two_way_low > 0.85
    assert found[True].identification.two_way == pytest.approx(0.5, abs=0.1)
    assert found[True].retrieval[10].value == pytest.approx(0.1, abs=0.07)


def test_roi_tokens_need_an_atlas_of_the_same_vertices(planted):
    x, y, *_ = halves(planted)
    with pytest.raises(ConfigError, match="an atlas for the tokens of the ROIs"):
        fit_decoder(x, y, decoder="roi_tokens")
    small = Atlas(np.zeros(V - 1, np.int8), {}, groups={})
    with pytest.raises(DataError, match="an atlas of the 40 vertices"):
        fit_decoder(x, y, decoder="roi_tokens", atlas=small)
    with pytest.raises(ConfigError, match="a decoder"):
        fit_decoder(x, y, decoder="forest")


def test_no_decoded_dimension_exceeds_its_ceiling(planted):
    embeddings, repeats, signal = planted
    decoder = fit_decoder(repeats[N_TEST:].mean(1), embeddings[N_TEST:])
    decoded = decoder.predict(repeats[:N_TEST].mean(1))
    clean = decoder.predict(signal[:N_TEST])
    ceiling = decoding_ceiling(decoder, repeats[:N_TEST])
    # the ceiling is how well the decoded dimension correlates with its own noiseless value
    true = [np.corrcoef(decoded[:, k], clean[:, k])[0, 1] for k in range(PLANTED)]
    assert ceiling[:PLANTED] == pytest.approx(true, abs=0.03)


def test_statistics_of_the_test_pool_are_refused(planted):
    x, y, x_test, y_test = halves(planted)
    decoder = fit_decoder(x, y)
    decoded = decoder.predict(x_test)
    with pytest.raises(DataError, match="z-scored over the test images"):
        score_embeddings(decoded, y_test, decoder.centre, ways=(2,), transductive=True)
    pooled = (decoded - decoded.mean(0)) / decoded.std(0)
    # also where the pool is given the mean and spread of the training embeddings afterwards
    for scaled in (pooled, pooled * y.std(0) + decoder.centre):
        with pytest.raises(DataError, match="z-scored over the test images"):
            score_embeddings(scaled, y_test, decoder.centre, ways=(2,))
    # a decoded response does not depend on the others
    assert np.allclose(decoder.predict(x_test[:1]), decoded[:1], atol=1e-5)


def test_planted_words_are_found_and_shuffled_pairs_find_none():
    draw = np.random.default_rng(2)
    names = ("cat", "car", "cup", "cow", "can")
    words = draw.normal(size=(len(names), D))
    labels = draw.integers(len(names), size=N)
    embeddings = 3 + words[labels] + draw.normal(size=(N, D))
    responses = embeddings @ draw.normal(size=(D, V)) + 4 * draw.normal(size=(N, V))
    train, test = slice(N_TEST, None), slice(N_TEST)

    def tower(texts):
        # the text side of such a model lies elsewhere than its image side
        return words[[names.index(t) for t in texts]] - 7

    def find(**options):
        decoder = fit_decoder(responses[train], embeddings[train], **options)
        decoded = decoder.predict(responses[test])
        return retrieve_names(decoded, labels[test], names, tower, decoder.centre)

    found, chance = find()
    assert chance == 0.2 and found.low > 0.7
    shuffled, _ = find(shuffled=True)
    assert shuffled.low < 0.2 < shuffled.high
    # an array in place of the tower, and the true embeddings as the ceiling
    centre = embeddings[train].mean(0)
    ceiling, _ = retrieve_names(embeddings[test], labels[test], names, words, centre)
    assert ceiling.value >= found.value
    with pytest.raises(DataError, match=r"shape \(5, 12\), one per name and as wide"):
        retrieve_names(embeddings[test], labels[test], names, words[:, :8], centre)
    with pytest.raises(DataError, match="label from 0 to 4"):
        retrieve_names(embeddings[test], labels[test] + 1, names, words, centre)
    with pytest.raises(DataError, match="two or more names"):
        retrieve_names(embeddings[test], labels[test], names[:1], words[:1], centre)

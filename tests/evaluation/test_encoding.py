"""Encoding accuracy on the planted study, where the ceiling and the truth are known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.config import replace
from bmfl_lab.data.planted import DEGREES
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.encoding import (
    block_table,
    encoding_controls,
    evaluate_encoder,
    evaluate_encoder_shifts,
    orientation_tuning_error,
    receptive_field_error,
    regions,
)
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.models.ridge import fit_ridge
from bmfl_lab.runtime import loaded_backbones
from bmfl_lab.training.encoder import tiny, train_brain_encoder

pytestmark = pytest.mark.filterwarnings("ignore:expected at most 5%")


@pytest.fixture(scope="module")
def study():
    return load_study("planted", n_encoder=450, n_encoder_val=60, n_encoder_test=150)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def encoder(study, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return train_brain_encoder(
        replace(tiny("retinotopic"), per_side=6, n_features=16),
        study,
        store=store,
        folder=folder,
        device="cpu",
    )


class Oracle:
    """Predicts what the simulation answers before noise."""

    label, selection = "oracle", "none"

    def __init__(self, subject):
        self.respond = subject.truth["respond"]

    def predict_stimuli(self, stimuli, **options):
        return self.respond(np.stack([stimuli.image(i) for i in range(len(stimuli))]))


def value(rows, name, roi="all"):
    (found,) = [r for r in rows if r.name == name and r.roi == roi]
    return found


def test_oracle_scores_at_the_planted_ceiling(study):
    result = evaluate_encoder(Oracle(study.subject()), study, n_boot=50, device="cpu")
    assert value(result.rows, "noise_normalised").value == pytest.approx(100, abs=6)
    np.testing.assert_allclose(result.per_vertex.r_truth, 1, atol=1e-4)
    bare = dataclasses.replace(study.subject(), noise_ceiling=None)
    estimated = evaluate_encoder(
        Oracle(bare), dataclasses.replace(study, subjects={"x": bare}), n_boot=5, device="cpu"
    ).per_vertex.ceiling
    assert np.abs(estimated - study.subject().noise_ceiling).mean() < 0.06


def test_rows_agree_with_scipy_and_regions(study, encoder):
    result = evaluate_encoder(encoder, study, n_boot=100, device="cpu")
    subject = study.subject()
    rows = subject.rows("test")
    predicted = encoder.predict_stimuli(subject.stimuli.subset(rows), device="cpu")
    r = np.array([stats.pearsonr(a, b)[0] for a, b in zip(subject.responses[rows].T, predicted.T)])
    np.testing.assert_allclose(result.per_vertex.r, r, atol=1e-5)
    mask = subject.atlas.rois["FFC"]
    row = value(result.rows, "pearson_r", "FFC")
    assert row.value == pytest.approx(r[mask].mean(), abs=1e-5)
    assert row.ci_low < row.value < row.ci_high and row.n == 150 and "simulated" in row.notes
    assert value(result.rows, "pearson_r_median", "FFC").value == pytest.approx(
        np.median(r[mask]), abs=1e-5
    )
    capped = np.minimum(100 * np.maximum(r, 0) ** 2 / subject.noise_ceiling, 100)
    assert value(result.rows, "noise_normalised").value == pytest.approx(capped.mean(), abs=1e-3)
    assert set(result.table().roi) == set(regions(subject.atlas)) >= {"all", "V1", "LVC", "HVC"}


def test_undefined_vertices_are_counted_and_left_out(study):
    subject = study.subject()
    responses, ceiling = subject.responses.copy(), subject.noise_ceiling.copy()
    responses[:, 3], ceiling[5] = 1.0, 0.0
    changed = dataclasses.replace(subject, responses=responses, noise_ceiling=ceiling)
    other = dataclasses.replace(study, subjects={"x": changed})
    result = evaluate_encoder(Oracle(subject), other, n_boot=20, device="cpu")
    assert value(result.rows, "n_undefined").value == 1
    assert np.array_equal(np.flatnonzero(result.per_vertex.noise_normalised.isna()), [3, 5])
    assert "166 vertices, 2 undefined" in value(result.rows, "noise_normalised").notes
    assert value(result.rows, "pearson_r").value == pytest.approx(
        np.nanmean(result.per_vertex.r), abs=1e-6
    )


def test_vertices_that_hardly_vary_are_flagged_and_still_scored(study):
    subject = study.subject()
    responses = subject.responses.copy()
    responses[:, 3] = 1.0
    responses[:, 7] = 1000.0 + np.where(responses[:, 7] > 0, np.float32(0.1), 0)  # 1e-4 of the mean
    responses[:, 9] += 100.0  # a large mean alone does not hide what varies
    changed = dataclasses.replace(subject, responses=responses)
    result = evaluate_encoder(
        Oracle(subject), dataclasses.replace(study, subjects={"x": changed}), n_boot=5, device="cpu"
    )
    assert np.flatnonzero(result.per_vertex.near_constant).tolist() == [7]
    assert np.isfinite(result.per_vertex.r[7]) and np.isnan(result.per_vertex.r[3])
    assert (
        value(result.rows, "n_near_constant").value == 1
        and value(result.rows, "n_undefined").value == 1
    )
    for roi, mask in regions(subject.atlas).items():
        assert value(result.rows, "n_near_constant", roi).value == mask[7]
    table = result.table().set_index("roi")
    assert table.loc["all", ["n_undefined", "n_near_constant"]].tolist() == [1, 1]


def test_overlapping_regions_count_a_vertex_in_each_and_once_in_all_and_absent_ones_have_no_row(
    study,
):
    subject = study.subject()
    atlas = subject.atlas
    rois = {
        **atlas.rois,
        "V1+": atlas.rois["V1"] | atlas.rois["FFC"],
        "nowhere": np.zeros(atlas.n_vertices, bool),
    }
    changed = dataclasses.replace(subject, atlas=dataclasses.replace(atlas, rois=rois))
    rng = np.random.default_rng(0)
    noisy = SimpleNamespace(
        label="noisy",
        selection="none",
        predict_stimuli=lambda stimuli, **o: (
            rng.standard_normal((len(stimuli), 168))
            + subject.truth["respond"](np.stack([stimuli.image(i) for i in range(len(stimuli))]))
        ),
    )
    result = evaluate_encoder(
        noisy, dataclasses.replace(study, subjects={"x": changed}), n_boot=5, device="cpu"
    )
    r = result.per_vertex.r.to_numpy()
    assert value(result.rows, "pearson_r", "V1+").value == pytest.approx(
        r[rois["V1+"]].mean(), abs=1e-6
    )
    assert value(result.rows, "pearson_r", "V1").value == pytest.approx(
        r[rois["V1"]].mean(), abs=1e-6
    )
    assert value(result.rows, "pearson_r").value == pytest.approx(r.mean(), abs=1e-6)
    assert "nowhere" not in {row.roi for row in result.rows} and "nowhere" in changed.atlas.absent


def test_receptive_fields_are_recovered(study, encoder, store, tmp_path):
    found = receptive_field_error(encoder, study, degrees=DEGREES)
    chance = np.hypot(
        found.x - found.true_x.sample(frac=1, random_state=0).to_numpy(),
        found.y - found.true_y.sample(frac=1, random_state=1).to_numpy(),
    ).median()
    assert found.error_degrees.median() < 1.2 < 2 < chance
    ridge = train_brain_encoder(tiny("ridge"), study, store=store, folder=tmp_path, device="cpu")
    with pytest.raises(DataError, match="a retinotopic encoder and a simulated subject; got"):
        receptive_field_error(ridge, study, degrees=DEGREES)


def test_planted_orientation_tuning_is_recovered_and_only_from_its_own_vertex(
    study, encoder, store
):
    oracle = orientation_tuning_error(Oracle(study.subject()), study, device="cpu")
    assert oracle.error_degrees.max() < 12 and oracle.error_degrees.median() < 3
    found = orientation_tuning_error(encoder, study, store=store, device="cpu")
    shuffled = found.preferred.to_numpy()[np.random.default_rng(0).permutation(len(found))]
    chance = np.abs((shuffled - found.true_preferred + 90) % 180 - 90)
    assert found.error_degrees.median() < 15 and 35 < chance.mean() < 55
    silent = SimpleNamespace(predict_stimuli=lambda s, **o: np.ones((len(s), 168), np.float32))
    assert orientation_tuning_error(silent, study).error_degrees.isna().all()
    bare = dataclasses.replace(
        study, subjects={"x": dataclasses.replace(study.subject(), truth={})}
    )
    with pytest.raises(DataError, match="a subject with planted orientation tuning"):
        orientation_tuning_error(encoder, bare)


def test_controls_do_worse_than_the_tokens(study, store):
    table, rows = encoding_controls(study, store=store, device="cpu")
    r = table["all"]
    roles = {found["weights"]: found.get("role", "") for found in loaded_backbones()}
    assert roles["random weights (seed 1000), untrained"] == "control"
    assert roles["random weights (seed 0), untrained"] == ""
    whole = {row.model: row for row in rows if row.roi == "all"}
    assert whole["as trained"].value == r["as trained"] and len(whole) == 5
    ends = [(whole[k].ci_low, whole[k].ci_high) for k in ("as trained", "luminance layout")]
    assert ends[1][0] < ends[1][1] < ends[0][0] < r["as trained"] < ends[0][1]
    assert whole["position only"].value is None and whole["position only"].ci_low is None
    assert r["as trained"] > 0.3 and abs(r["shuffled pairing"]) < 0.1 < r["as trained"]
    assert r["luminance layout"] < r["as trained"]
    assert np.isnan(r["position only"]) and table.n_undefined["position only"] == 168
    assert table.n_undefined["as trained"] == 0
    with pytest.raises(ConfigError, match="controls among"):
        encoding_controls(study, controls=["none"])


def test_the_control_with_random_weights_is_a_ridge_on_the_untrained_backbone(study, store):
    table, _ = encoding_controls(
        study, controls=["as trained", "random weights"], seed=3, store=store, device="cpu"
    )
    who, spec = study.subject(), study.backbone
    untrained = load_backbone(
        spec.name, "random:1003", image_size=spec.image_size, device="cpu", resize=spec.resize
    )
    X = np.asarray(store.get(untrained, who.stimuli, "pooled:4", block=-1).patches, np.float32)
    X = X.reshape(len(who.stimuli), -1)
    train, test = who.rows("train"), who.rows("test")
    r = pearson(who.responses[test], fit_ridge(X[train], who.responses[train]).predict(X[test]))
    assert table.loc["random weights", "all"] == pytest.approx(r.mean(), abs=1e-4)
    assert table.loc["random weights", "V1"] == pytest.approx(
        r[who.atlas.rois["V1"]].mean(), abs=1e-4
    )
    assert abs(table.loc["random weights", "all"] - table.loc["as trained", "all"]) > 1e-3


def test_block_table(study, store):
    table, r = block_table(study, blocks=(0, 2), tokens="pooled:2", store=store, device="cpu")
    assert list(table.index) == [0, 2] and r.shape == (2, 168)
    assert table.loc[0, "V1"] == pytest.approx(
        r[0][study.subject().atlas.rois["V1"]].mean(), abs=1e-6
    )


def test_shifts_are_judged_against_the_simulated_truth(study, encoder):
    rows = evaluate_encoder_shifts(encoder, study, [("low_light", 3)], n_boot=20, device="cpu")
    everywhere = {r.shift: r.value for r in rows if r.roi == "all" and r.name == "truth_r"}
    assert set(everywhere) == {"", "low_light"} and everywhere["low_light"] < everywhere[""]
    oracle = evaluate_encoder_shifts(
        Oracle(study.subject()), study, [("masked", 3)], sets=study.ood, n_boot=5, device="cpu"
    )
    assert all(r.value == pytest.approx(1, abs=1e-4) for r in oracle)
    assert {r.split for r in oracle} == {"test", *study.ood} and study.ood
    assert {r.n for r in oracle if r.split == study.ood[0]} == {len(study.set(study.ood[0]))}
    measured = dataclasses.replace(study.subject(), truth={})
    with pytest.raises(DataError, match="a simulated subject that can respond to new images"):
        evaluate_encoder_shifts(
            encoder, dataclasses.replace(study, subjects={"x": measured}), [("masked", 3)]
        )


def test_too_few_stimuli_are_refused(study):
    subject = study.subject()
    short = dataclasses.replace(
        subject, splits={**subject.splits, "test": subject.splits["test"][:2]}
    )
    with pytest.raises(DataError, match="at least 3 stimuli"):
        evaluate_encoder(
            Oracle(subject), dataclasses.replace(study, subjects={"x": short}), device="cpu"
        )
    constant = SimpleNamespace(
        label="c", selection="none", predict_stimuli=lambda s, **o: np.ones((len(s), 168))
    )
    result = evaluate_encoder(constant, study, n_boot=5, device="cpu")
    assert (
        value(result.rows, "pearson_r").value is None
        and value(result.rows, "n_undefined").value == 168
    )


def test_ceilings_are_the_root_of_the_explainable_share(study, encoder):
    result = evaluate_encoder(encoder, study, n_boot=10)
    subject = study.subject()
    mask = subject.atlas.rois["V1"]
    assert result.ceilings()["V1"] == pytest.approx(
        np.sqrt(subject.noise_ceiling[mask]).mean(), rel=1e-5
    )
    assert set(result.ceilings()) == {r.roi for r in result.rows}

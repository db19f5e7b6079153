"""Effects of alignment that were planted are found, and absent ones are not claimed."""

from dataclasses import dataclass
from dataclasses import replace as swap

import numpy as np
import pandas as pd
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.simulate import simulate_eeg
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import rsa_scores as rsa
from bmfl_lab.evaluation import similarity as rows_of
from bmfl_lab.evaluation import similarity as sim
from bmfl_lab.evaluation import transfer
from bmfl_lab.evaluation.decoding import identify
from bmfl_lab.evaluation.effect import alignment_effect, effect_rows, shift_mean_rows
from bmfl_lab.evaluation.ood import OODResult
from bmfl_lab.evaluation.synthesis import Synthesis
from bmfl_lab.metrics.rsa import compare_rdms, rdm
from bmfl_lab.metrics.statistics import holm

N = 60


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TRUTH = draw(N, 16)


def subject(name="s", seed=0, prefix="i"):
    images = np.arange(N, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    rois = {"V1": np.arange(16) < 8, "V2": np.arange(16) >= 8}
    return Subject(
        name=name,
        stimuli=from_arrays("i", images, [f"{prefix}{i}" for i in range(N)], np.zeros(N, int)),
        responses=TRUTH + 0.5 * draw(N, 16, seed=50 + seed),
        atlas=Atlas(np.repeat([0, 1], 8).astype(np.int8), rois),
        splits={"train": np.arange(20), "test": np.arange(20, N)},
    )


@dataclass
class Model:
    """Activations that mix the truth with noise; images carry their own number."""

    share: float
    seed: int = 0

    def activations(self, stimuli):
        at = np.asarray([stimuli.image(i)[0, 0, 0] for i in range(len(stimuli))])
        x = self.share * TRUTH + draw(N, 16, seed=100 + self.seed)
        return {"L0": x[at, :8], "L1": x[at, 8:]}


def test_a_planted_gain_is_found_and_a_control_shows_none():
    models = {
        k: [Model(s, i) for i in range(4)]
        for k, s in (("original", 0.5), ("aligned", 3.0), ("same", 0.5))
    }
    table = alignment_effect(models, subject(), n_boot=200)
    assert (
        len(table) == 3 * (1 + 2 * 2)
        and (table["n_stimuli"] == 40).all()
        and (table["n_seeds"] == 4).all()
    )
    whole = table[table["roi"] == "all"].set_index("model")
    assert whole.loc["aligned", "difference_low"] > 0.05 and whole.loc["aligned", "p"] < 1e-3
    assert whole.loc["same", "difference"] == 0 and np.isnan(whole.loc["same", "p"])
    cell = table[
        (table["model"] == "aligned") & (table["layer"] == "L1") & (table["roi"] == "V1")
    ].iloc[0]
    held = subject().stimuli.subset(np.arange(20, N))
    want = [
        compare_rdms(rdm(m.activations(held)["L1"]), rdm(subject().responses[20:, :8]))[0, 0]
        for m in models["aligned"]
    ]
    np.testing.assert_allclose(cell["per_seed"], want)
    assert (
        cell["value"] == pytest.approx(np.mean(want)) and cell["low"] < cell["value"] < cell["high"]
    )
    single = table[(table["model"] == "aligned") & (table["roi"] != "all")]
    np.testing.assert_allclose(single["p_holm"], holm(single["p"].to_numpy()))
    rows = effect_rows(
        table, subject="s", selection={"aligned": "best val_loss"}, notes="simulated fMRI"
    )
    mean = [r for r in rows if r.name == "rsa_mean" and r.model == "aligned"]
    assert (
        [r.seed for r in mean] == [None, 0, 1, 2, 3]
        and mean[0].selection == "best val_loss"
        and mean[0].n_seeds == 4
    )
    gain = next(r for r in rows if r.name == "rsa_difference" and r.roi == "V2" and r.layer == "L0")
    assert (
        gain.n == 40 and gain.ci_low < gain.value < gain.ci_high and gain.notes == "simulated fMRI"
    )
    assert not [r for r in rows if r.name == "rsa_mean_difference" and r.model == "same"]


def test_effect_refusals():
    with pytest.raises(ConfigError, match="a baseline among"):
        alignment_effect({"aligned": Model(1.0)}, subject())
    with pytest.raises(DataError, match="the same number of seeds for every model"):
        alignment_effect({"original": [Model(1.0)] * 2, "aligned": Model(1.0)}, subject())


def ood(correct):
    frames = []
    for model, share in correct.items():
        for seed in range(5):
            for shift in ("", "blur", "noise"):
                right = np.random.default_rng(seed + 7 * len(shift)).random(80) < (
                    share if shift else 1.0
                )
                frames.append(
                    pd.DataFrame(
                        {
                            "model": model,
                            "seed": seed,
                            "split": "test",
                            "shift": shift,
                            "severity": 3 if shift else None,
                            "id": [f"i{k:02d}" for k in range(80)],
                            "label": 0,
                            "predicted": 0,
                            "correct": right,
                        }
                    )
                )
    return OODResult([], pd.concat(frames, ignore_index=True))


def test_mean_over_shifts_leaves_the_clean_images_out():
    result = ood({"original": 0.3, "aligned": 0.8})
    rows = {(r.name, r.model): r for r in shift_mean_rows(result, baseline="original")}
    shifted = result.per_image[result.per_image["shift"] != ""]
    for model in ("original", "aligned"):
        want = shifted[shifted["model"] == model]["correct"].mean()
        assert rows["accuracy_over_shifts", model].value == pytest.approx(want)
    gain = rows["accuracy_over_shifts_difference", "aligned"]
    assert gain.reference == "original"
    assert (
        gain.ci_low > 0.3
        and gain.n == 80
        and gain.n_seeds == 5
        and gain.shift == "mean of 2 shifts"
    )
    with pytest.raises(DataError, match="results under shifts"):
        shift_mean_rows(
            OODResult([], result.per_image[result.per_image["shift"] == ""]), baseline="original"
        )
    with pytest.raises(ConfigError, match="a baseline among"):
        shift_mean_rows(result, baseline="x")


def test_transfer_to_other_subjects():
    one, two = subject("s"), subject("t", 1)
    models = {
        "": [Model(0.2, i) for i in range(4)],
        "s": [Model(4.0, i) for i in range(4)],
        "noise": [Model(0.2, 4)] * 4,
    }
    table = transfer.across_subjects(models, [one, two], n_boot=200)
    whole = table[table["roi"] == "all"].set_index(["trained_on", "subject"])
    assert whole.loc[("s", "t"), "difference_low"] > 0.1 and whole.loc[("s", "t"), "p_holm"] < 0.01
    assert whole.loc[("noise", "t"), "p_holm"] > 0.05
    permuted = whole["p_permutation"]
    assert permuted["s", "t"] < 0.05 < permuted["noise", "t"] and permuted.loc[""].isna().all()
    assert set(table[table["own"]]["subject"]) == {"s"} and (table["n_stimuli"] == 40).all()
    tested = whole["p"].notna()
    np.testing.assert_allclose(whole.loc[tested, "p_holm"], holm(whole.loc[tested, "p"].to_numpy()))
    rows = transfer.transfer_rows(table, selection="best val_loss", notes="simulated fMRI")
    gain = next(
        r
        for r in rows
        if r.name == "rsa_transfer_gain" and r.model == "aligned with s" and r.subject == "t"
    )
    assert (
        gain.ci_low > 0.1 and gain.n == 40 and gain.n_seeds == 4 and "simulated fMRI" in gain.notes
    )
    assert [r.selection for r in rows if r.model == "original"] == ["none"] * 2
    assert {r.model for r in rows} == {"original", "aligned with s", "noise"}
    with pytest.raises(ConfigError, match="a model before alignment"):
        transfer.across_subjects({"s": Model(1.0)}, [one])


def test_stimuli_that_trained_any_subject_are_not_tested_on():
    one, two = subject("s"), subject("t", 1)
    crossed = swap(two, splits={"train": np.arange(20, 50), "test": np.arange(20)})
    assert list(transfer.shared_test([one, two])["t"]) == list(range(20, N))
    with pytest.raises(
        DataError,
        match="at least 4 test stimuli of 't' that trained no subject's model; got 0",
    ):
        transfer.across_subjects({"": Model(0.2), "s": Model(4.0)}, [one, crossed])


def test_an_aligned_model_on_eeg_arrays():
    who, splits = subject("s"), transfer.folds(N)
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(N))
    eeg = simulate_eeg(
        {"truth": TRUTH[::-1]}, {"truth": 0.2}, list(who.stimuli.ids[::-1]), noise=0.5
    )
    models = {
        k: [Model(v, i) for i in range(3)]
        for k, v in (("original", 0.2), ("aligned", 4.0), ("no_fmri", 0.25))
    }
    found = transfer.on_eeg(models, eeg, who.stimuli, splits=splits, n_boot=200)
    p = found.effect.set_index("model")["p_permutation"]
    assert p["aligned"] < 0.05 and np.isnan(p["original"])
    unchanged = {"original": models["original"], "same": models["original"]}
    again = transfer.on_eeg(unchanged, eeg, who.stimuli, splits=splits, n_boot=20)
    assert again.effect["p_permutation"].iloc[1] == 1
    whole = found.course[found.course["layer"] == "all"].set_index(["model", "time"])
    layers = found.course[found.course["layer"] != "all"]
    best = layers.groupby(["model", "time"])["value"].mean()
    pd.testing.assert_series_equal(whole["value"].sort_index(), best.sort_index())
    assert (whole["low"] < whole["value"]).all() and (whole["value"] < whole["high"]).all()
    assert whole.loc[("aligned", best["aligned"].idxmax()), "low"] > 0.1
    assert best["aligned"].max() > best["original"].max() + 0.1
    assert best["aligned"].idxmax() == pytest.approx(0.2, abs=0.05)
    # nothing can be predicted before onset, and folds put together must not make it seem worse than
    # nothing
    assert (
        abs(found.course[found.course["time"] < -0.05].groupby("model")["value"].mean()).max()
        < 0.05
    )
    effect = found.effect.set_index("model")
    after = found.course[(found.course["model"] == "aligned") & (found.course["time"] >= 0)][
        "value"
    ].mean()
    assert effect.loc["aligned", "value"] == pytest.approx(after, abs=1e-5)
    assert effect.loc["aligned", "difference_low"] > 0.05 and effect.loc["aligned", "p_holm"] < 0.01
    assert effect.loc["no_fmri", "p_holm"] > 0.01 and np.isnan(effect.loc["original", "p"])
    rows = transfer.eeg_rows(
        found, subject="s", selection=dict.fromkeys(models, "none"), notes="simulated sensors"
    )
    assert (
        [r.name for r in rows].count("eeg_encoding_gain") == 2
        and rows[0].n == N
        and rows[0].n_seeds == 3
    )
    with pytest.raises(DataError, match="every row tested at most once"):
        transfer.on_eeg(models, eeg, who.stimuli, splits=[splits[0], splits[0]])
    with pytest.raises(DataError, match="0 times of"):
        transfer.on_eeg(models, eeg, who.stimuli, splits=splits, window=(2, 3))
    with pytest.raises(ConfigError, match="the selection of 'original'"):
        transfer.eeg_rows(found, subject="s", selection={})


def test_simulated_eeg_shows_each_source_at_its_moment_and_says_so():
    sources = {f"L{k}": draw(80, 5, seed=k) for k in range(3)}
    latencies = {"L0": 0.1, "L1": 0.2, "L2": 0.3}
    eeg = simulate_eeg(sources, latencies, [str(i) for i in range(80)], noise=1.0)
    assert eeg.simulated and eeg.channels[0] == "sim01" and eeg.data.shape == (80, 4, 12, 31)
    scores = sim.encoding_over_time(
        sources, eeg.mean(), train=np.arange(60), test=np.arange(60, 80)
    )
    np.testing.assert_allclose(sim.peak_times(scores.values, eeg.times), [0.1, 0.2, 0.3], atol=0.03)
    assert sim.temporal_score(scores.values, eeg.times).value > 0.95
    other = simulate_eeg(sources, {"L0": 0.3, "L1": 0.2, "L2": 0.1}, eeg.ids)
    turned = sim.encoding_over_time(
        sources, other.mean(), train=np.arange(60), test=np.arange(60, 80)
    )
    assert sim.temporal_score(turned.values, eeg.times).value < -0.95
    with pytest.raises(DataError, match="a latency for each"):
        simulate_eeg(sources, {"L0": 0.1}, eeg.ids)
    with pytest.raises(DataError, match="79 stimuli in 'L0'"):
        simulate_eeg(sources, latencies, eeg.ids[:79])


def test_scores_become_rows_with_n_and_interval():
    who, held = subject(), np.arange(20, N)
    features = Model(2.0).activations(who.stimuli)
    ids = [str(i) for i in who.stimuli.ids[held]]
    held_features = {k: v[held] for k, v in features.items()}
    table = rsa.rsa_scores(held_features, ids, who, n_permutations=19)
    ends = rsa.rsa_intervals(held_features, ids, who, n_boot=100)
    rows = rows_of.rsa_rows(table, model="m", intervals=ends, notes="simulated fMRI")
    first = rows[0]
    assert (first.name, first.n, first.model, first.layer, first.roi) == (
        "rsa",
        40,
        "m",
        "L0",
        "V1",
    )
    assert first.ci_low < first.value < first.ci_high and "bootstrap" in first.interval
    assert len([r for r in rows if r.name == "rsa_ceiling_low"]) == 2 and rows[-1].value is None
    with pytest.raises(DataError, match="a table of rsa_scores"):
        rows_of.rsa_rows(table.drop(columns="p_family"), model="m")
    assert rsa.rsa_intervals(held_features, ids, who, method="rho-a") == {}

    split = {"train": np.arange(20), "test": held}
    predicted = sim.encoding_predictions(features, who.responses, **split)
    scores = sim.encoding_scores(features, who.responses, **split)
    found = rows_of.encoding_rows(
        predicted, who.responses[held], who.atlas, model="m", subject="s", n_boot=100
    )
    means = sim.encoding_table(scores, who.atlas)
    for row in found:
        assert (
            row.value == pytest.approx(means.loc[row.layer, row.roi])
            and row.ci_low < row.value < row.ci_high
        )

    test = sim.spatial_score(np.abs(draw(4, 9)), np.arange(9.0), n_permutations=50)
    pair = rows_of.score_rows("spatial_score", test, unit_counted="ROIs", split="test", model="m")
    assert (
        pair[0].value == test.value and pair[1].value == test.p and "n counts ROIs" in pair[0].notes
    )
    seen = rows_of.identification_rows(
        identify(who.responses, TRUTH, n_boot=50), split="test", subject="s"
    )
    assert seen[0].n == N and "chance 0.01667" in seen[0].notes and seen[1].ci_low <= seen[1].value
    made = Synthesis(np.zeros((2, 4, 4, 3), np.uint8), np.ones(2), np.zeros(2), None, "prior")
    assert [r.name for r in rows_of.synthesis_rows(made, roi="V1")] == [
        "synthesis_start",
        "synthesis_activity",
    ]


def test_relabelling_keeps_its_level_and_finds_a_match():
    draw = np.random.default_rng(0)
    orders = np.stack([draw.permutation(30) for _ in range(200)])
    p = [transfer._relabelled(draw.normal(size=(30, 30)), orders) for _ in range(200)]
    assert np.mean(np.asarray(p) <= 0.1) < 0.2
    assert transfer._relabelled(np.eye(30), orders) == 1 / 201

"""RSA of layers and ROIs: paired by id, with ceilings, for several subjects, also by crossnobis."""

from dataclasses import replace

import numpy as np
import pytest
from hierarchy_example import chain, draw, subject
from scipy.stats import spearmanr

from bmfl_lab.errors import DataError
from bmfl_lab.evaluation import rsa_scores as rsa
from bmfl_lab.metrics.rsa import compare_rdms, rdm


def test_rsa_scores_pair_by_id_across_subjects_with_ceilings():
    layers, brain = chain()
    order = np.random.default_rng(1).permutation(90)
    one = subject(brain)
    two = subject((brain + 0.3 * draw(90, 24, seed=5))[order], "t", [f"i{i}" for i in order])
    table = rsa.rsa_scores(layers, [f"i{i}" for i in range(90)], [one, two], n_permutations=99)
    assert len(table) == 2 * 3 * 3
    got = table.query("subject == 's' and layer == 'L1' and roi == 'V2'").iloc[0]
    want = compare_rdms(rdm(layers["L1"]), rdm(brain[:, 8:16].astype(np.float32)))[0, 0]
    assert (
        got["value"] == pytest.approx(want)
        and got["p"] == pytest.approx(0.01)
        and got["p_family"] <= 0.05
    )
    best = table.groupby(["subject", "roi"]).apply(lambda g: g.loc[g["value"].idxmax(), "layer"])
    assert list(best) == ["L0", "L1", "L2"] * 2
    assert (table["ceiling_low"] <= table["ceiling_high"]).all() and (
        table["value"] < table["ceiling_high"]
    ).all()
    part = rsa.rsa_scores(
        {k: v[:20] for k, v in layers.items()},
        [f"i{i}" for i in range(20)],
        two,
        rois=["V1"],
        n_permutations=9,
    )
    assert part["n_stimuli"].unique() == [20] and part["ceiling_low"].isna().all()
    repeats = np.stack([brain + draw(90, 24, seed=s) for s in (1, 2, 3)], 1).astype(np.float32)
    own = rsa.rsa_scores(layers, one.stimuli.ids, replace(one, repeats=repeats), n_permutations=9)
    assert (own["ceiling_low"] > 0).all() and (own["ceiling_low"] < own["ceiling_high"]).all()
    with pytest.raises(DataError, match="at least 4 of these stimuli shown to 's'"):
        rsa.rsa_scores(layers, [f"x{i}" for i in range(90)], one)


def test_spearman_agrees_with_scipy_here_too():
    layers, brain = chain(30)
    table = rsa.rsa_scores(
        layers, [f"i{i}" for i in range(30)], subject(brain), rois=["V1"], n_permutations=9
    )
    want = spearmanr(rdm(layers["L0"]), rdm(brain[:, :8].astype(np.float32))).statistic
    assert table.iloc[0]["value"] == pytest.approx(want)


def test_crossnobis_takes_presentations_of_the_roi_and_distances_of_the_layer():
    layers, brain = chain(40)
    repeats = np.stack([brain + 0.8 * draw(40, 24, seed=s) for s in (1, 2, 3)], 1).astype(
        np.float32
    )
    who = replace(subject(repeats.mean(1)), repeats=repeats)
    order = np.random.default_rng(0).permutation(40)
    ids = [f"i{i}" for i in order]
    table = rsa.rsa_scores(
        {k: v[order] for k, v in layers.items()}, ids, who, metric="crossnobis", n_permutations=19
    )
    got = table.query("layer == 'L1' and roi == 'V2'").iloc[0]
    want = compare_rdms(
        rdm(layers["L1"], "euclidean"), rdm(None, "crossnobis", repeats=repeats[:, :, 8:16])
    )[0, 0]
    assert got["value"] == pytest.approx(want) and want > 0.3 and table["ceiling_low"].isna().all()
    ends = rsa.rsa_intervals(
        {k: v[order] for k, v in layers.items()}, ids, who, metric="crossnobis", n_boot=50
    )
    assert ends["s", "L1", "V2"][0] < got["value"] < ends["s", "L1", "V2"][1]
    lost = repeats.copy()
    lost[3, 2] = np.nan  # one stimulus lacks its third presentation: the third is left out
    part = rsa.brain_rdm(
        replace(who, repeats=lost), "V2", [f"i{i}" for i in range(40)], "crossnobis"
    )
    np.testing.assert_allclose(part, rdm(None, "crossnobis", repeats=repeats[:, :2, 8:16]))
    with pytest.raises(DataError, match="for crossnobis"):
        rsa.rsa_scores(layers, [f"i{i}" for i in range(40)], subject(brain), metric="crossnobis")

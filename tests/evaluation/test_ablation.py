"""The ablation on planted studies, where the truth names the region; the slow form repeats it over 20 studies."""

import json

import numpy as np
import pytest
from ablation_truth import ablate, exact, summary, sweep

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import ConfigError
from bmfl_lab.evaluation.ablation import MODES, ablate_regions


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return ablate(
        tmp_path_factory.mktemp("f"),
        signal_roi="LO",
        regions=("V1", "LO"),
        seeds=(0, 1, 2),
    )


@pytest.mark.parametrize("mode", ["only", "left_out", "lesioned"])
def test_the_planted_region_and_only_it_is_named(planted, mode):
    assert planted.named(mode) == ("LO",)


@pytest.mark.slow
def test_the_planted_region_is_named_beside_vertices_of_the_same_ceiling(tmp_path):
    options = {"regions": ("V1", "LO"), "seeds": (0, 1, 2), "controls": ("ceiling_matched",)}
    found = ablate(tmp_path, signal_roi="LO", **options)
    for mode in ("only", "left_out", "lesioned"):
        assert found.named(mode, "ceiling_matched") == ("LO",)


def test_the_planted_region_is_named_where_it_alone_is_left_at_inference(tmp_path):
    options = {
        "modes": ("kept",),
        "controls": ("random_vertices", "ceiling_matched"),
        "regions": ("V1", "LO"),
    }
    found = ablate(tmp_path, signal_roi="LO", seeds=(0, 1, 2, 3, 4), **options)
    assert found.named("kept") == found.named("kept", "ceiling_matched") == ("LO",)
    # what LO says is nearly all that these models use
    kept, intact = (
        next(
            r.value
            for r in found.rows
            if r.name == "accuracy" and r.split == "test" and (r.model, r.roi) == key
        )
        for key in (("kept", "LO"), ("intact", ""))
    )
    assert kept > intact - 0.2


@pytest.mark.slow
def test_a_lesion_counts_beyond_vertices_of_the_same_ceiling_too(tmp_path):
    options = {
        "modes": ("lesioned",),
        "controls": ("ceiling_matched",),
        "regions": ("FFC", "PHA"),
        "seeds": (0, 1, 2),
    }
    assert ablate(tmp_path, lesion="resample", **options).named("lesioned", "ceiling_matched") == (
        "FFC",
    )


def test_rows_hold_what_a_reader_needs(planted):
    effects = [r for r in planted.rows if r.name == "region_effect"]
    assert len(effects) == 4 * 2 * 2  # modes, regions, sets
    for row in effects:
        assert row.n == 120 and row.n_seeds == 3 and row.ci_low <= row.value <= row.ci_high
        assert (
            row.selection == "best validation accuracy" and "n = 120 images, 3 seeds" in row.notes
        )
        assert "simulated fMRI" in row.notes
    table = planted.table().set_index(["mode", "control", "region", "split"])
    only = table.loc[("only", "random_vertices", "LO", "test")]
    frame = planted.per_image
    mine = frame[(frame["mode"] == "only") & (frame["region"] == "LO") & (frame["split"] == "test")]
    means = mine.groupby("control")["correct"].mean()
    assert only["effect"] == pytest.approx(means[""] - means["random_vertices"], abs=1e-6)
    assert (
        only["effect"] > 0.3
        and "LO alone is better than random vertices alone on test by" in only["verdict"]
    )
    sentences = list(table.reset_index()["verdict"])
    assert len(set(sentences)) == len(sentences) == 16  # each names its set, too
    assert not any("vertices" in r.notes for r in planted.rows if r.name == "p_holm")


def test_nothing_is_named_where_no_region_carries_the_class(tmp_path):
    found = ablate(
        tmp_path,
        carries=False,
        regions=("V1", "FFC"),
        seeds=(0, 1, 2),
        modes=("only", "lesioned", "kept"),
        epochs=8,
    )
    assert found.named("only") == found.named("lesioned") == found.named("kept") == ()


class Channels:
    """Reads the class off vertex 0 and no other; where a lesion silences vertex 3, the first logit is NaN."""

    selection = "none"

    def __init__(self, mask):
        self.mask = mask

    def logits(self, stimuli, lesion=None):
        heard = self.mask & (True if lesion is None else ~lesion.mask)
        out = np.full((len(stimuli), 2), 0.5)
        out[:, 1] = np.asarray(stimuli.labels) if heard[0] else 0.5
        if lesion is not None and not heard[3]:
            out[0, 0] = np.nan
        return out


@pytest.fixture
def channels():
    """Ablate 8 vertices, of which the ROI "two" holds the first two and "four" the next two."""
    images = np.zeros((6, 4, 4, 3), np.uint8)
    test = from_arrays("test", images, list("abcdef"), [0, 1] * 3, ("no", "yes"))
    rois = {"two": np.arange(8) < 2, "four": (np.arange(8) >= 2) & (np.arange(8) < 4)}
    atlas = Atlas(hemisphere=np.zeros(8, np.int8), rois=rois)
    return ablate_regions(
        Study("known", "x", {"train": test, "test": test}),
        lambda all_: [Channels(w.mask) for w in all_],
        atlas,
        regions=("two", "four"),
        seeds=(0, 1),
        n_draws=3,
        shifts=(),
    )


def test_keeping_a_region_lesions_all_but_it(channels):
    value = {(r.model, r.roi): r.value for r in channels.rows if r.name == "accuracy"}
    assert value[("only", "two")] == value[("intact", "")] == 1.0
    assert value[("kept", "two")] == 5 / 6  # vertex 3 is silent, so the first image has a NaN logit
    assert value[("kept", "four")] == value[("lesioned", "two")] == 0.5


def test_nan_logits_of_lesioned_models_are_wrong_and_reported(channels):
    found = {(r.model, r.roi, r.seed): r.value for r in channels.rows if r.name == "nan_logits"}
    # vertex 3 is silent where "four" is lesioned and where only "two" is kept, by none of the
    # retrained models
    assert all(
        found[(mode, roi, s)] == 1
        for mode, roi in (("lesioned", "four"), ("kept", "two"))
        for s in (0, 1)
    )
    assert not {m for m, *_ in found} & {
        "intact",
        "only",
        "left_out",
        "only, random_vertices",
        "left_out, random_vertices",
    }
    # of 4 * 3 draws of two among the six vertices outside "four", none holds vertex 3; all else is
    # silent
    assert found[("kept, random_vertices", "four", 0)] == 12


def test_equal_parts_of_a_large_region_are_compared_with_what_lies_outside():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    test = from_arrays("test", images, list("abcdef"), [0, 1] * 3, ("no", "yes"))
    atlas = Atlas(hemisphere=np.zeros(8, np.int8), rois={"most": np.arange(8) < 5})
    seen = []

    def train(wanted):
        seen.extend(wanted)
        return [Channels(w.mask) for w in wanted]

    study = Study("known", "x", {"train": test, "test": test})
    result = ablate_regions(
        study, train, atlas, modes=("only",), regions=("most",), seeds=range(8), shifts=()
    )
    masks = {w.seed: w.mask for w in seen if w.name.endswith("part of the region 0")}
    controls = {w.seed: w.mask for w in seen if w.name.endswith("random_vertices 0")}
    assert len(controls) == 8 and not any((masks[s] & controls[s]).any() for s in controls)
    assert all(mask.sum() == 3 and not mask[5:].any() for mask in masks.values())
    heard = np.array([masks[seed][0] for seed in range(8)])  # who has vertex 0 is always right
    (effect,) = [r for r in result.rows if r.name == "region_effect"]
    assert 0 < heard.sum() < 8 and effect.value == pytest.approx(0.5 * heard.mean())
    assert "3 of 5 vertices of most alone" in effect.notes


def test_wrong_questions_are_refused():
    study = load_study(
        "planted",
        n_encoder=8,
        n_encoder_val=4,
        n_encoder_test=4,
        n_train=4,
        n_val=4,
        n_test=4,
        n_ood=4,
    )
    atlas = study.subject().atlas

    def ask(**options):
        return ablate_regions(study, lambda wanted: [], atlas, **options)

    with pytest.raises(ConfigError, match="modes among"):
        ask(modes=("lesion",))
    with pytest.raises(ConfigError, match="controls among"):
        ask(controls=("random",))
    with pytest.raises(ConfigError, match="a ceiling for 'ceiling_matched'"):
        ask(controls=("ceiling_matched",))
    with pytest.raises(ConfigError, match="an ROI or region group of this subject; got 'V9'"):
        ask(regions=("V9",))
    with pytest.raises(ConfigError, match="one model per description"):
        ask(regions=("V1",), seeds=(0,))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_planted_studies(tmp_path):
    studies = sweep(tmp_path, 20, 1500)  # seeds that were chosen before any result
    for mode, found in summary(studies).items():
        shown = {k: exact(*v) for k, v in found.items()}
        # what a region does when all others are silenced varies most over seeds, and five seeds name
        # it in 7 of the first 11 studies only: too seldom to demand it
        assert mode == "kept" or found["missed"][0] <= 2, (mode, shown)
        # a family-wise level of 5 % lets 1 of 20 studies name something else; 4 or more have p <
        # 0.02
        assert found["wrong"][0] <= 3 and found["named_in_null"][0] <= 3, (mode, shown)
        assert found["outside"][0] / found["outside"][1] <= 0.1, (mode, shown)


def test_a_sweep_goes_on_where_it_stopped_and_counts_what_it_read(tmp_path):
    effect = {
        "mode": "only",
        "region": "V1",
        "split": "test",
        "effect": 0.1,
        "low": 0.05,
        "high": 0.2,
        "p_holm": 0.2,
    }
    nothing, named = ({m: list(r) for m in MODES} for r in ((), ("LO",)))
    studies = [
        {
            "seed": 0,
            "signal": "LO",
            "carried": named,
            "null": nothing,
            "null_effects": [effect, {**effect, "low": -0.1}],
        },
        {"seed": 1, "signal": "V1", "carried": named, "null": named, "null_effects": []},
    ]
    (tmp_path / "studies.jsonl").write_text("".join(json.dumps(s) + "\n" for s in studies))
    found = summary(sweep(tmp_path, 2))["only"]
    assert found == {"missed": (1, 2), "wrong": (1, 2), "named_in_null": (1, 2), "outside": (1, 2)}
    older, newer = ({k: v for k, v in named.items() if k != "kept"}, named)
    mixed = [{**studies[0], "carried": older}, {**studies[1], "carried": newer}]
    assert "kept" in summary(studies) and "kept" not in summary(
        mixed
    )  # older studies were not asked
    assert exact(0, 20) == "0 of 20 [0.000, 0.168]"  # 1 - 0.025 ** (1 / 20)

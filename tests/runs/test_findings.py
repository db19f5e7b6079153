"""Records gathered from folders, and the sentences made of their paired comparisons."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from bmfl_lab.evaluation.findings import (
    CORTEX_FREE,
    READ_FMRI,
    comparisons,
    findings,
    grouped,
    overview,
)
from bmfl_lab.evaluation.report import headline, report
from bmfl_lab.files import write_sealed_json
from bmfl_lab.records import MetricRow, Record
from bmfl_lab.runs.collect import collect_records
from bmfl_lab.training.compare import CONTROL_MODELS


def difference(pair, value, p, shift="fog", severity=3, split="test", half=0.02):
    first, second = pair.split(" - ") if isinstance(pair, str) else pair
    place = {
        "split": split,
        "shift": shift,
        "severity": severity,
        "n": 400,
        "selection": "none",
        "model": first,
        "reference": second,
        "p_adjusted": p,
        "n_seeds": 5,
    }
    return [
        MetricRow(
            "accuracy_difference",
            value,
            unit="fraction",
            ci_low=value - half,
            ci_high=value + half,
            **place,
        ),
        MetricRow("p_holm", p, unit="p", **place),
    ]


def write(folder, rows, notebook="04_ood_evaluation", study="demo", simulated=True, **parameters):
    record = Record(
        notebook, parameters, {"name": study, "fingerprint": "0", "simulated": simulated}
    )
    record.extend(rows)
    record.finish(folder)
    return folder


def said(tmp_path, rows):
    write(tmp_path / "demo_ood" / "04_ood_evaluation-1", rows)
    return findings(collect_records(tmp_path)[0])


def test_no_gain_is_said_plainly(tmp_path):
    lines = said(
        tmp_path,
        difference("fusion - backbone", 0.01, 0.4)
        + difference("fusion - backbone", 0.3, 0.001, "", None),
    )
    assert (
        "no help of the brain was found" in lines[0] and "none of 1 out-of-distribution" in lines[0]
    )
    assert "demo (simulated)" in lines[0]
    assert "better on 1 of 2 sets (test +30.0 [+28.0, +32.0])" in lines[1]
    assert (
        "undecided on 1 of 2 sets (intervals up to 3.0 points)" in lines[1]
        and "n = 400 images, 5 seeds" in lines[1]
    )


def test_a_gain_that_a_control_shares_needs_no_cortex(tmp_path):
    rows = difference("fusion - backbone", 0.05, 0.001) + difference(
        "fusion - attributes", -0.01, 0.5
    )
    assert (
        "than the control `attributes`: nothing shows that the gain takes a cortex"
        in said(tmp_path, rows)[0]
    )
    rows += difference("fusion - noise", 0.0, 0.9)
    assert "than the controls `attributes`, `noise`: nothing shows" in said(tmp_path, rows)[0]


def test_controls_that_read_predicted_fmri_are_told_apart_from_those_without_a_cortex(tmp_path):
    rows = difference("fusion - backbone", 0.05, 0.001)
    for name in ("attributes", "untrained brain transformer", "same class", "mean colour"):
        rows += difference(f"fusion - {name}", 0.0, 0.9)
    line = said(tmp_path, rows)[0]
    free, reading, other = line.split(" On none of these was it better than ")[1:]
    assert free == "the control `attributes`: nothing shows that the gain takes a cortex."
    assert reading.startswith(
        "the controls `untrained brain transformer`, `same class`, which also read predicted fMRI: "
    )
    assert reading.endswith(
        "the gain takes a trained brain transformer or more than the response to its class."
    )
    assert other == "`mean colour`."


def test_a_control_that_reads_predicted_fmri_does_not_show_that_no_cortex_is_needed(tmp_path):
    rows = difference("fusion - backbone", 0.05, 0.001) + difference(
        "fusion - other image", 0.0, 0.9
    )
    line = said(tmp_path, rows)[0]
    assert (
        "which also reads predicted fMRI: nothing shows that the gain takes the response to the image itself"
        in line
    )
    assert "takes a cortex" not in line


def test_every_control_of_the_recipes_is_of_one_kind():
    assert sorted([*CORTEX_FREE, *READ_FMRI]) == sorted(
        set(CONTROL_MODELS) - {"fusion", "backbone"}
    )


def test_a_gain_of_a_model_that_no_control_was_run_for_says_so(tmp_path):
    rows = difference("concat - backbone", 0.05, 0.001) + difference(
        "fusion - backbone", 0.05, 0.001
    )
    rows += difference("fusion - attributes", 0.05, 0.001) + difference(
        "attributes - backbone", 0.05, 0.001
    )
    lines = {line.split(": ")[1].split(" against")[0]: line for line in said(tmp_path, rows)[1:]}
    warned = {name for name, line in lines.items() if "No control was run for" in line}
    assert warned == {"`concat`"} and lines["`concat`"].endswith(
        "for `concat`: its gain may come from any added information."
    )
    for more in (
        difference("concat - attributes", 0.0, 0.9),
        difference("noise - concat", 0.0, 0.9),
    ):
        assert not any("No control was run" in line for line in said(tmp_path, rows + more))
    assert not any(
        "No control" in line for line in said(tmp_path, difference("concat - backbone", 0.01, 0.5))
    )


def test_a_gain_beyond_the_control_is_granted_where_it_was_found(tmp_path):
    rows = difference("fusion - backbone", 0.05, 0.001) + difference(
        "fusion - backbone", 0.06, 0.001, "snow"
    )
    rows += difference("fusion - attributes", 0.04, 0.01) + difference(
        "fusion - attributes", 0.0, 1.0, "snow"
    )
    line = said(tmp_path, rows)[0]
    assert (
        "on 2 of 2" in line and "better than the control `attributes` on 1 of these (fog 3)" in line
    )


def test_subjects_are_pooled_in_one_sentence(tmp_path):
    values = {"sub-1": 0.2, "sub-2": 0.22, "sub-3": 0.18, "pooled": 0.5}
    for subject, value in values.items():
        rows = difference(("fusion", "backbone"), value, 0.001)
        rows += difference(("fusion", "backbone"), value * (subject != "sub-1"), 0.1, shift="snow")
        write(tmp_path / subject, rows, subject=subject)
    rows, _ = collect_records(tmp_path)
    (line,) = [s for s in findings(rows) if "over 3 subjects" in s]
    assert "(sub-1, sub-2, sub-3): better on fog 3 +20.0 [" in line
    assert "undecided on snow 3 +13.3 [" in line and "Holm over 2 sets" in line
    one = rows[rows["subject"] == "sub-2"]
    assert not any("subjects (" in s for s in findings(one))


def test_a_gain_without_a_control_is_not_credited_to_the_brain(tmp_path):
    rows = difference("fusion - backbone", 0.05, 0.001) + difference(
        "attributes - backbone", 0.05, 0.001
    )
    line = said(tmp_path, rows)[0]
    assert (
        "not compared directly with a control" in line
        and "`attributes` was better than the backbone on 1" in line
    )


@pytest.mark.parametrize(
    ("value", "p", "verdict"),
    [(0.05, 0.001, "better"), (-0.05, 0.001, "worse"), (0.05, 0.06, "open"), (0.01, 0.001, "open")],
)
def test_a_verdict_needs_interval_and_adjusted_p(tmp_path, value, p, verdict):
    write(tmp_path / "s" / "r", difference("a - b", value, p))
    assert list(comparisons(collect_records(tmp_path)[0])["verdict"]) == [verdict]


def test_records_are_gathered_filtered_and_damage_is_told(tmp_path):
    rows = [
        MetricRow("accuracy", 0.5, "fraction", "test", 10, "none", model="m", seed=s)
        for s in (0, 1)
    ]
    write(tmp_path / "a" / "r1", rows, seeds=[0])
    late = write(tmp_path / "a" / "r2", rows, seeds=[0])
    data = json.loads((late / "record.json").read_text()) | {
        "finished": "2999-01-01T00:00:00+00:00"
    }
    served = {"name": "net", "weights": "stand-in", "sha256": "0"}
    data["extra"]["backbones"] = [served, {**served, "weights": "random", "role": "control"}]
    write_sealed_json(late / "record.json", data)
    write(tmp_path / "a" / "r3", rows, study="planted", seeds=[0])
    write(tmp_path / "a" / "r4", rows, notebook="09_report")
    (tmp_path / "a" / "r5").mkdir()
    (tmp_path / "a" / "r5" / "record.json").write_text('{"schema": 1}')
    found, problems = collect_records(tmp_path)
    assert (
        sorted(found["run"].unique()) == ["r2", "r3"]
        and len(problems) == 1
        and problems[0].startswith("r5")
    )
    told = found[found["run"] == "r2"]["weights"]
    assert set(told) == {"net, stand-in; as a control: net, random"}
    assert set(collect_records(tmp_path, study="planted")[0]["run"]) == {"r3"}
    assert len(collect_records(tmp_path, latest=False)[0]["run"].unique()) == 3
    assert list(overview(found)["n_seeds"]) == [2, 2] and list(overview(found)["n_rows"]) == [2, 2]


def test_no_record_gives_empty_tables(tmp_path):
    rows, problems = collect_records(tmp_path / "nothing")
    assert rows.empty and problems == [] and findings(rows) == [] and overview(rows).empty
    assert grouped(rows, "accuracy").empty


def test_groups_take_the_value_over_seeds_where_there_is_one(tmp_path):
    rows = [
        MetricRow("accuracy", v, "fraction", "test", 10, "none", model="m", seed=s)
        for s, v in ((0, 0.1), (1, 0.3))
    ]
    rows += [MetricRow("accuracy", 0.2001, "fraction", "test", 10, "none", model="m", n_seeds=2)]
    rows += [
        MetricRow(
            "accuracy",
            v,
            "fraction",
            "test",
            10,
            "none",
            model="k",
            shift="fog",
            severity=3,
            seed=s,
        )
        for s, v in ((0, 0.1), (1, 0.3))
    ]
    write(tmp_path / "s" / "r", rows)
    table = grouped(collect_records(tmp_path)[0], "accuracy", by=["model"])
    assert table.loc["m", "test"] == 0.2001 and table.loc["k", "fog 3"] == pytest.approx(0.2)


def test_comparisons_with_the_fusion_are_turned_round(tmp_path):
    rows = difference("backbone - fusion", -0.05, 0.001) + difference("noise - fusion", -0.06, 0.01)
    rows += difference("patch PCA - fusion", 0.01, 0.5) + difference(
        "other image - fusion", -0.06, 0.01
    )
    line = said(tmp_path, rows)[0]
    assert "Fusion was better than the backbone alone on 1 of 1" in line
    assert (
        "better than the controls `noise`, `other image` on 1 of these (fog 3)" in line
        and "than the control `patch PCA`: nothing" in line
    )


def test_the_probe_is_a_baseline_and_no_control(tmp_path):
    rows = difference("fusion - backbone", 0.05, 0.001) + difference(
        "fusion - linear probe", 0.05, 0.001
    )
    assert "not compared directly with a control" in said(tmp_path, rows)[0]


def effect(mode, roi, value, p, split="test"):
    place = {
        "split": split,
        "n": 400,
        "selection": "none",
        "model": mode,
        "reference": "random_vertices",
        "p_adjusted": p,
        "roi": roi,
        "n_seeds": 5,
    }
    return [
        MetricRow(
            "region_effect",
            value,
            unit="fraction",
            ci_low=value - 0.02,
            ci_high=value + 0.02,
            **place,
        ),
        MetricRow("p_holm", p, unit="p", **place),
    ]


def test_regions_are_named_by_interval_and_adjusted_p_or_not_at_all(tmp_path):
    rows = (
        effect("only", "LO", 0.2, 0.001)
        + effect("only", "LO", 0.1, 0.3, "clipart")
        + effect("only", "V1", -0.3, 0.001)
    )
    rows += (
        effect("only", "V1", 0.0, 1.0, "clipart")
        + effect("lesioned", "LO", 0.03, 0.2)
        + effect("lesioned", "V1", 0.01, 0.9)
    )
    rows += effect("kept", "LO", 0.2, 0.001)
    first, second, third = said(tmp_path, rows)
    assert "with all else lesioned at inference: LO on 1 of 1 sets" in third
    assert (
        "more than random vertices, trained with it alone: LO on 1 of 2 sets (at most +20.0 points). n = 400"
        in first
    )
    assert (
        "V1" not in first
        and "lesioned at inference: none of 2 regions; intervals up to 5.0 points" in second
    )


def test_a_model_whose_name_holds_a_minus_keeps_its_name(tmp_path):
    lines = said(tmp_path, difference(("ViT - B", "backbone"), 0.01, 0.4))
    assert lines[0].split(": ", 1)[1].startswith("`ViT - B` against `backbone`: undecided")


def test_a_record_of_schema_1_tells_what_it_told(tmp_path):
    new = difference("fusion - backbone", 0.05, 0.001) + effect("only", "LO", 0.2, 0.001)
    gain = {"ci_low": 0.01, "ci_high": 0.03, "interval": "t", "n_seeds": 3}
    new += [
        MetricRow(
            "rsa_mean_gain",
            0.02,
            "rho",
            "test",
            9,
            "none",
            model="aligned",
            reference="noise",
            p_adjusted=0.0021,
            **gain,
        )
    ]
    lines = said(tmp_path / "new", new)
    write(tmp_path / "old" / "s" / "r", new)
    path = tmp_path / "old" / "s" / "r" / "record.json"
    data = json.loads(path.read_text()) | {"schema": 1}
    for row in data["rows"]:
        joint = " beyond " if row["roi"] else " - "
        row["model"] += joint + row["reference"]
        if row["name"] == "rsa_mean_gain":
            row["notes"] = f"said, p = {row['p_adjusted']} (Holm)"
        for key in ("reference", "p", "p_adjusted", "family", "n_compared"):
            del row[key]
    write_sealed_json(path, data)
    old = findings(collect_records(tmp_path / "old")[0])
    run = "04_ood_evaluation-1"
    assert [line.replace(", r.**", f", {run}.**").replace(", r:", f", {run}:") for line in old] == (
        lines
    )
    assert "`aligned - noise` +0.020 [+0.010, +0.030], p = 0.0021" in old[2]
    assert "LO on 1 of 1 sets" in old[1] and "`fusion` against" in old[3]


def test_a_row_over_seeds_stands_for_its_seeds_in_tables():
    import pandas as pd

    from bmfl_lab.evaluation.findings import prefer_over_seeds

    rows = pd.DataFrame(
        {
            "model": ["a", "a", "a", "b"],
            "seed": [0, 1, None, 0],
            "value": [0.1, 0.3, 0.2, 0.5],
            "severity": [None] * 4,
        }
    )
    kept = prefer_over_seeds(rows, ["model", "severity"])
    assert list(kept["value"]) == [0.2, 0.5]


def test_a_model_that_two_sections_evaluated_stands_once_in_the_report():
    one = MetricRow(
        "accuracy",
        0.7,
        unit="fraction",
        split="test",
        n=400,
        selection="none",
        model="backbone",
        n_seeds=5,
    )

    def page(rows):
        return report(rows, "Report", ["ok"], headline([], rows))

    rows = pd.DataFrame([vars(one), vars(one)]).assign(run_id="05-1", study="demo")
    named = report(rows, "R", ["ok"], headline([], rows), weights="net, stand-in")
    assert "Backbones: net, stand-in." in named and "Backbones" not in page(rows)
    assert "| test images | 0.700 |" in page(rows)
    again = pd.concat([rows[:1], rows[:1].assign(run_id="05-2")])
    assert "| test images | 0.700 |" in page(again)
    other = pd.concat([rows[:1], rows[:1].assign(run_id="05-2", value=0.8)])
    assert "| test images | 0.750 (0.700 to 0.800, 2 values) |" in page(other)

"""Tables of a report: every number with its seeds, its interval, its selection, and the verdict of a difference."""

from __future__ import annotations

import pandas as pd
import pytest

from bmfl_lab.evaluation.report import render
from bmfl_lab.records import MetricRow

PLACE = {"split": "test", "n": 400, "unit": "fraction"}


def report(*rows):
    frame = pd.DataFrame([vars(r) for r in rows]).assign(run_id="04-1", study="demo (simulated)")
    return render(frame, "Report", ["ok"])


def accuracies(
    model, values, selection="best validation accuracy", interval="over stimuli", **place
):
    place = PLACE | {"model": model, "selection": selection, "interval": interval} | place
    rows = [MetricRow("accuracy", v, seed=s, **place) for s, v in enumerate(values)]
    over = MetricRow("accuracy", sum(values) / len(values), n_seeds=len(values), **place)
    return [*rows, *([over] if len(values) > 1 else [])]


def table(text, title, level="##"):
    """Return the cells of a table below a heading as a DataFrame of text."""
    lines = text.split(f"{level} {title}\n\n")[1].splitlines()
    lines = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return pd.DataFrame(cells[2:], columns=cells[0])


def test_seeds_interval_and_selection_are_told_by_model():
    text = report(
        *accuracies("fusion", [0.7, 0.8, 0.9]), *accuracies("colour", [0.2], "none", "over pixels")
    )
    assert list(table(text, "accuracy (fraction)")["seeds"]) == ["1 to 3"]
    assert "Interval: over pixels (`colour`); over stimuli (`fusion`)." in text
    assert "Selection: best validation accuracy (`fusion`); none (`colour`)." in text
    text = report(*accuracies("fusion", [0.7, 0.8]), *accuracies("backbone", [0.6, 0.6]))
    assert "Interval: over stimuli.\n" in text and list(
        table(text, "accuracy (fraction)")["seeds"]
    ) == ["2"]


def test_accuracy_has_a_table_by_seed():
    rows = [
        *accuracies("fusion", [0.7, 0.8]),
        *accuracies("fusion", [0.5, 0.4], shift="fog", severity=3),
    ]
    found = table(report(*rows, *accuracies("colour", [0.2])), "by seed", "###")
    assert [list(r) for r in found[["shift", "model", "seed 0", "seed 1"]].to_numpy()] == [
        ["", "fusion", "0.700", "0.800"],
        ["", "colour", "0.200", ""],
        ["fog", "fusion", "0.500", "0.400"],
    ]
    assert "by seed" not in report(*accuracies("colour", [0.2]))


def differences(name, model, reference, value, p, half=0.02, **place):
    place = (
        PLACE
        | {
            "model": model,
            "reference": reference,
            "p_adjusted": p,
            "selection": "none",
            "n_seeds": 5,
        }
        | place
    )
    ends = {"ci_low": value - half, "ci_high": value + half, "notes": "in words"}
    return [
        MetricRow(name, value, **ends, **place),
        MetricRow("p_holm", p, **(place | {"unit": "p"})),
    ]


@pytest.mark.parametrize(
    ("value", "p", "words"),
    [
        (0.05, 0.001, ("better", "more")),
        (-0.05, 0.001, ("worse", "less")),
        (0.05, 0.06, ("open", "open")),
        (0.01, 0.001, ("open", "open")),
    ],
)
def test_a_difference_has_its_verdict_in_its_cell(value, p, words):
    text = report(
        *differences("accuracy_difference", "a", "b", value, p),
        *differences("accuracy_difference", "a", "b", 0.3, 0.001, shift="fog", severity=3),
        *differences("region_effect", "only", "random_vertices", value, p, roi="V1"),
        *differences("region_effect", "only", "random_vertices", 0.3, 0.001, roi="LO"),
    )
    found = table(text, "accuracy_difference (fraction)")
    shown = f"{value:.3f} [{value - 0.02:.3f}, {value + 0.02:.3f}]"
    assert list(found["value"]) == [f"{shown} {words[0]}", "0.300 [0.280, 0.320] better"]
    regions = table(text, "region_effect (fraction)").set_index("roi")["value"]
    assert regions["V1"] == f"{shown} {words[1]}" and regions["LO"].endswith(" more")
    assert "in words" not in text and "adjusted by Holm, is at most 0.05; alike only" in text


def test_a_lone_model_is_named_below_its_table_and_notes_beside_their_rows():
    place = {
        "unit": "r",
        "split": "test",
        "n": 150,
        "selection": "best r",
        "model": "an encoder with a very long name",
    }
    rows = [
        MetricRow("pearson_r", 0.5, roi=r, notes=f"{n} vertices.", **place)
        for r, n in (("V1", 10), ("LO", 20))
    ]
    text = report(*rows)
    assert list(table(text, "pearson_r (r)").columns) == ["study", "split", "roi", "value", "n"]
    assert "Model: an encoder with a very long name." in text
    assert "Note: V1: 10 vertices." in text and "Note: LO: 20 vertices." in text


def test_a_note_stands_beside_the_image_sets_or_models_that_it_is_said_of():
    place = {"unit": "fraction", "split": "test", "n": 40, "selection": "none", "n_seeds": 2}
    rows = [
        MetricRow(
            "effective_robustness",
            0.1,
            model=m,
            shift=s,
            severity=v,
            notes="; ".join([fit, *more, "simulated fMRI"]),
            **place,
        )
        for s, v, fit in (("fog", 3, "R2 = 0.9"), ("snow", 1, "R2 = 0.2"))
        for m, more in (("fusion", ["extrapolated"]), ("concat", ["extrapolated"]), ("probe", []))
    ]
    rows.append(
        MetricRow(
            "effective_robustness",
            None,
            model="colour",
            shift="fog",
            severity=3,
            notes="R2 = 0.9; undefined; simulated fMRI",
            **place,
        )
    )
    notes = [line for line in report(*rows).splitlines() if line.startswith("- Note: ")]
    assert notes == [
        "- Note: fog 3: R2 = 0.9.",
        "- Note: fusion; concat: extrapolated.",
        "- Note: simulated fMRI.",
        "- Note: snow 1: R2 = 0.2.",
        "- Note: colour: undefined.",
    ]
    some = [
        MetricRow("ece", 0.1, model=m, shift=s, notes=n, **place)
        for s in ("fog", "snow")
        for m, n in (("a", "few images" if s == "fog" else ""), ("b", ""))
    ]
    assert "- Note: fog, a: few images." in report(*some)

"""The page of a report: its verdict, its one table in words, what its numbers are, its figures and its CSV file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bmfl_lab.evaluation.report import HEADLINES, headline, report
from bmfl_lab.metrics.statistics import EXPLORATORY, PRIMARY
from bmfl_lab.records import MetricRow

PLACE = {"split": "test", "n": 400, "unit": "fraction"}


def page(*rows, notebook="04_ood_evaluation", **options):
    frame = pd.DataFrame([vars(r) for r in rows]).assign(run_id="04-1", study="demo (simulated)")
    return report(frame, "Report", ["ok"], headline([notebook], frame), **options)


def accuracies(
    model, values, selection="best validation accuracy", interval="over stimuli", **place
):
    place = PLACE | {"model": model, "selection": selection, "interval": interval} | place
    rows = [MetricRow("accuracy", v, seed=s, **place) for s, v in enumerate(values)]
    over = MetricRow("accuracy", sum(values) / len(values), n_seeds=len(values), **place)
    return [*rows, *([over] if len(values) > 1 else [])]


def table(text):
    """Return the cells of the page's table as a DataFrame of text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return pd.DataFrame(cells[2:], columns=cells[0]).set_index("")


def test_seeds_interval_and_selection_are_told_by_model():
    text = page(
        *accuracies("fusion", [0.7, 0.8, 0.9]), *accuracies("colour", [0.2], "none", "over pixels")
    )
    assert "- n = 400, 3 seeds." in text
    assert "Selection: best validation accuracy; none (`colour`)." in text
    ends = {"ci_low": 0.1, "ci_high": 0.9}
    text = page(
        *accuracies("fusion", [0.7], **ends), *accuracies("b", [0.6], interval="over b", **ends)
    )
    assert "Interval: over b; over stimuli (`fusion`)." in text
    assert table(text).loc["test images", "fusion"] == "0.700 [0.100, 0.900]"


def test_sets_stand_in_words_and_a_row_over_seeds_stands_for_its_seeds():
    found = table(
        page(
            *accuracies("fusion", [0.7, 0.8]),
            *accuracies("fusion", [0.5, 0.4], shift="low_light", severity=3),
            *accuracies("colour", [0.2]),
        )
    )
    assert found.to_dict() == {
        "fusion": {"test images": "0.750", "low light, severity 3": "0.450"},
        "colour": {"test images": "0.200", "low light, severity 3": ""},
    }


def test_models_that_are_compared_with_none_stand_in_the_csv_only():
    text = page(
        *accuracies("a", [0.5]),
        *accuracies("b", [0.4]),
        *accuracies("b, 1 epoch", [0.3]),
        *differences("accuracy_difference", "a", "b", 0.1, 0.01, family=PRIMARY),
    )
    assert list(table(text).columns) == ["a", "b", "a - b"]


def test_many_models_stand_in_rows():
    rows = [r for k in range(12) for r in accuracies(f"m{k}", [k / 20])]
    found = table(page(*rows, *accuracies("m0", [0.4], shift="fog", severity=1)))
    assert list(found.index) == [f"m{k}" for k in range(12)]
    assert list(found.columns) == ["test images", "fog, severity 1"]
    assert found.loc["m3", "test images"] == "0.150"


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
        (0.05, 0.06, ("undecided", "undecided")),
        (0.01, 0.001, ("undecided", "undecided")),
    ],
)
def test_a_difference_has_its_verdict_in_its_cell(value, p, words):
    text = page(
        *accuracies("a", [0.5]),
        *differences("accuracy_difference", "a", "b", value, p, family=PRIMARY),
        *differences("accuracy_difference", "a", "c", 0.3, 0.001, family=EXPLORATORY),
    )
    found = table(text).loc["test images"]
    shown = f"{value:.3f} [{value - 0.02:.3f}, {value + 0.02:.3f}]"
    assert found["a - b"] == f"{shown} {words[0]}" and "a - c" not in found
    assert "in words" not in text and "adjusted by Holm, is at most 0.05; alike only" in text
    regions = page(
        *differences("region_effect", "only", "random_vertices", value, p, roi="V1"),
        *differences("region_effect", "only", "random_vertices", 0.3, 0.001, roi="LO"),
        notebook="05_region_ablation",
    )
    column = table(regions)["trained with it alone, against random vertices"]
    points = f"{100 * value:+.1f}"
    expected = f"{words[1]} on 1 of 1 sets ({points} points)"
    assert column["V1"] == (expected if words[1] != "undecided" else f"undecided ({points})")
    assert column["LO"] == "more on 1 of 1 sets (+30.0 points)"


def test_notes_of_all_rows_stand_below_the_table_and_others_in_the_csv_only():
    place = {"unit": "r", "split": "test", "n": 150, "selection": "best r"}
    rows = [
        MetricRow("pearson_r", 0.5, roi=r, model="m", notes=f"{n} vertices; simulated.", **place)
        for r, n in (("V1", 10), ("LO", 20))
    ]
    text = page(*rows, notebook="02_brain_encoder", numbers="R.csv")
    assert "- Note: simulated." in text and "10 vertices" not in text
    assert "All 2 numbers of all 1 metrics" in text and "[R.csv](R.csv)" in text


def test_pairs_are_folded_below_the_conclusion_and_the_only_run_is_named_once():
    text = page(
        *accuracies("fusion", [0.5], shift="fog", severity=3),
        *differences("accuracy_difference", "fusion", "backbone", 0.01, 0.4, shift="fog"),
    )
    said, folded = text.split("<details><summary>Each of 1 comparisons</summary>")
    assert "- Fusion was better than the backbone alone on none of 1" in said
    assert "- `fusion` against `backbone`: undecided on 1 of 1 sets" in folded
    assert text.count("04-1") == 1 and folded.count("</details>") == 1
    alone = page(*differences("accuracy_difference", "a", "b", 0.1, 0.01))
    assert "- `a` against `b`: better on 1 of 1 sets" in alone and "<details>" not in alone
    assert "These runs compare no models." in page(*accuracies("a", [0.5]))


def test_a_page_of_an_unknown_notebook_shows_its_first_metric():
    row = MetricRow("my_score", 0.25, unit="r", split="val", n=3, selection="none", model="m")
    text = page(row, notebook="mine")
    assert "## My score" in text and table(text).loc["val images", "m"] == "0.250"


def test_figures_stand_in_lines_of_their_own():
    text = page(*accuracies("a", [0.5]), figures=["R_two_words.png"])
    assert "\n![R two words](R_two_words.png)\n" in text


def test_every_headline_is_of_a_notebook_and_of_a_figure_that_it_saves():
    folder = Path(__file__).resolve().parents[2] / "notebooks"
    for stem, shown in HEADLINES.items():
        source = (folder / f"{stem}.ipynb").read_text(encoding="utf-8")
        for name in shown.figures:
            assert f'"{name}' in source.replace("\\", "") or name.startswith("effects_"), name

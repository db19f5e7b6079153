"""The report of a spec on one page: verdict, figures, and one table in words.

Every metric row stands in a CSV file beside the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from bmfl_lab.evaluation.attention_outcomes import CHECKS
from bmfl_lab.evaluation.findings import (
    MODES,
    conclusions,
    pair_findings,
    prefer_over_seeds,
    verdicts,
)
from bmfl_lab.markup import markdown, markdown_rows
from bmfl_lab.metrics.statistics import PRIMARY
from bmfl_lab.records import comparison_label

CONDITION = ("study", "split", "shift", "severity", "subject", "roi", "layer")
MOST_INTERVALS = 8
"""A table of more columns shows values only; their intervals are in the CSV file."""


@dataclass(frozen=True)
class Headline:
    """What the report of a notebook shows.

    Parameters
    ----------
    title : str
        Heading of the table.
    metrics : tuple of str
        Names of the metric rows in the table.
    rows, columns : str
        What a row and a column of the table stand for: "set" (of images), "model", "roi", "layer",
        "subject", "metric", or "question" (of a region ablation).
    figures : tuple of str
        Stems of the run's figures, in the order of the page.
    """

    title: str
    metrics: tuple[str, ...]
    rows: str
    columns: str
    figures: tuple[str, ...]


_ACCURACY = ("Accuracy by image set", ("accuracy", "accuracy_difference"), "set", "model")
HEADLINES = {
    "03_fusion_training": Headline(*_ACCURACY, ("accuracy",)),
    "04_ood_evaluation": Headline(*_ACCURACY, ("differences", "severity")),
    "05_region_ablation": Headline(
        *_ACCURACY, ("effects_random_vertices", "effects_ceiling_matched", "controls", "quality")
    ),
    "02_brain_encoder": Headline(
        "Mean r over vertices by region", ("pearson_r",), "roi", "model", ("encoders_by_roi",)
    ),
    "07_brain_alignment": Headline(
        "What alignment changes",
        ("rsa_mean_gain", "accuracy_over_shifts_difference"),
        "model",
        "metric",
        ("rsa_change", "beta_sweep", "brain_and_robust"),
    ),
    "08_brain_similarity": Headline(
        "Representational similarity by region and layer",
        ("rsa",),
        "roi",
        "layer",
        ("layers_by_rois",),
    ),
    "06_attention_maps": Headline(
        "Checks of attention maps",
        tuple(f"attention_{check.replace(' ', '_')}" for check in CHECKS),
        "model",
        "metric",
        ("centres",),
    ),
    "10_decoding": Headline(
        "Which of two images was seen, by region",
        ("decoding_two_way",),
        "roi",
        "model",
        ("two_way_by_roi",),
    ),
    "11_open_questions": Headline(
        "Gain of the fusion by encoder",
        ("gain_of_encoder",),
        "model",
        "set",
        ("gain_by_accuracy",),
    ),
    "12_preferred_images": Headline(
        "Which of all images was seen, by region",
        ("identification_two_way", "identification_top1"),
        "roi",
        "metric",
        ("identification", "preferred"),
    ),
    "01_data_and_regions": Headline(
        "Noise ceiling by region", ("noise_ceiling",), "roi", "subject", ("ceiling_by_region",)
    ),
}
"""Tables and figures by notebook. A report of several notebooks follows the first of this order."""
_REGIONS = ("Where a region matters more than its control", ("region_effect",), "roi", "question")
WORDS = {
    "accuracy_difference": {},
    "region_effect": {"better": "more", "worse": "less"},
}
"""Metrics with a verdict, and their words for the verdicts of `verdicts`."""
_CLEAR = (
    "only where the interval does not contain zero and the p value, adjusted by Holm, is at most "
    "0.05; alike only where the interval lies within the smallest effect of interest and the p "
    "value of that is at most 0.05; else undecided"
)
_DEFINITIONS = {
    "accuracy_difference": f"the first model is better or worse {_CLEAR}",
    "region_effect": f"the region matters more or less than its control {_CLEAR}",
}


def headline(notebooks: Iterable[str], rows: pd.DataFrame) -> Headline:
    """Return what a report of these notebooks shows.

    Parameters
    ----------
    notebooks : iterable of str
        Stems of the executed notebooks.
    rows : DataFrame
        Their metric rows. An ablation of regions is shown by region. Of an unknown notebook, the
        first metric is shown, by image set and model.
    """
    chosen = next((HEADLINES[stem] for stem in HEADLINES if stem in set(notebooks)), None)
    figures = chosen.figures if chosen else ()
    if (rows["name"] == "region_effect").any():
        return Headline(*_REGIONS, figures)
    if chosen is not None and rows["name"].isin(chosen.metrics).any():
        return chosen
    name = rows["name"].iloc[0]
    return Headline(_words(name).capitalize(), (name,), "set", "model", figures)


def report(
    rows: pd.DataFrame,
    title: str,
    states: Sequence[str],
    shown: Headline,
    *,
    figures: Sequence[str] = (),
    numbers: str = "",
    registered: Sequence[str] = (),
    weights: str = "",
) -> str:
    """Return the page in markdown.

    Parameters
    ----------
    rows : DataFrame
        Metric rows of ok runs with ``run_id`` and ``study``.
    title : str
        First heading.
    states : sequence of str
        State of every run of the spec.
    shown : Headline
        See `headline`.
    figures : sequence of str
        Names of PNG files in the folder of the page.
    numbers : str, optional
        Name of the CSV file in the folder of the page.
    registered : sequence of str
        Sentences on what was registered before the runs; they come first.
    weights : str, optional
        Backbones of the runs and the source of their weights, see `bmfl_lab.runtime.weights_text`.
    """
    studies = ", ".join(map(markdown, rows["study"].unique()))
    lines = [
        f"# {markdown(title)}",
        "",
        f"Study: {studies}. {sum(s == 'ok' for s in states)} of {len(states)} runs ok; only those "
        "count here.",
        *([f"Backbones: {markdown(weights)}."] if weights else []),
        "",
        "## Verdict",
        "",
        *(f"- {line}" for line in registered),
        *_verdict_lines(rows),
        "",
    ]
    lines += [text for name in figures for text in (f"![{_words(name)}]({name})", "")]
    lines += [f"## {shown.title}", "", *_table(markdown_rows(rows), shown), ""]
    runs = ", ".join(f"`{markdown(r)}`" for r in sorted(rows["run_id"].unique()))
    if numbers:
        lines += [
            f"All {len(rows)} numbers of all {rows['name'].nunique()} metrics, each with n, seed, "
            f"interval, selection and notes: [{numbers}]({numbers}).",
            "",
        ]
    return "\n".join([*lines, f"Runs: {runs}.", ""])


def _verdict_lines(rows: pd.DataFrame) -> list[str]:
    """Return the conclusions as a list, and the sentences on single pairs folded below them.

    Study and run are left out of the sentences where there is only one of each.
    """
    said, pairs = conclusions(rows), pair_findings(rows)
    if len(rows[["study", "run_id"]].drop_duplicates()) == 1:
        place = f"{markdown(rows['study'].iloc[0])}, {markdown(rows['run_id'].iloc[0])}"
        ways = (f"**{place}.** ", f"{place}: ")
        said, pairs = (
            [line.removeprefix(ways[0]).removeprefix(ways[1]) for line in lines]
            for lines in (said, pairs)
        )
    said, pairs = ([f"- {f[:1].upper()}{f[1:]}" for f in lines] for lines in (said, pairs))
    if said and pairs:
        fold = f"<details><summary>Each of {len(pairs)} comparisons</summary>"
        return [*said, "", fold, "", *pairs, "", "</details>"]
    return said or pairs or ["These runs compare no models."]


def _words(name: str) -> str:
    """Return the name of a metric or file in words."""
    return name.removesuffix(".png").replace("_", " ")


def _sets(part: pd.DataFrame) -> pd.Series:
    """Return the image set of each row in words, such as "sketch, severity 3"."""
    severity = pd.to_numeric(part["severity"]).map(lambda s: f", severity {s:g}" if s > 0 else "")
    shifted = part["shift"].str.replace("_", " ") + severity.astype(str)
    return (part["split"] + " images").where(part["shift"] == "", shifted)


def _table(rows: pd.DataFrame, shown: Headline) -> list[str]:
    """Return the table, with what its numbers are below it."""
    part = _shown_rows(rows, shown)
    cells = _effects(part) if shown.columns == "question" else _values(part)
    header = list(cells.columns)
    lines = [_line(["", *header]), "|" + " --- |" * (len(header) + 1)]
    lines += [_line([index, *row]) for index, row in zip(cells.index, cells.to_numpy())]
    lines += ["", f"- n = {_range(part['n'])}{_seeds(part)}."]
    if len(header) <= MOST_INTERVALS and part["ci_low"].notna().any():
        lines += [f"- Interval: {_by_model(part, 'interval')}."]
    lines += [f"- Selection: {_by_model(part, 'selection')}."]
    lines += [f"- Verdict: {_DEFINITIONS[k]}." for k in WORDS if (part["name"] == k).any()]
    notes = part.loc[~part["name"].isin(WORDS), "notes"].map(lambda n: n.rstrip(".").split("; "))
    common = [c for c in (notes.iloc[0] if len(notes) else ()) if c and all(c in n for n in notes)]
    return [*lines, *(f"- Note: {clause}." for clause in common)]


def _shown_rows(rows: pd.DataFrame, shown: Headline) -> pd.DataFrame:
    """Return the metric rows of the table with their place in it, `down` and `across`.

    Differences other than those of the primary comparison are left out, and so are models that are
    compared with no other where models are compared. Regions and layers are shown for the test
    images, and a row over seeds stands for the rows of its seeds.
    """
    difference = rows["name"].isin(WORDS)
    primary = ~difference | rows["family"].isin([PRIMARY, ""]) | (shown.columns == "question")
    part = rows[rows["name"].isin(shown.metrics) & rows["value"].notna() & primary]
    if shown.rows == "roi" and part["split"].eq("test").any():
        part = part[part["split"].eq("test") & part["shift"].eq("")]
    compared = {*rows.loc[difference, "model"], *rows.loc[difference, "reference"]}
    if (
        shown.columns == "model" and compared
    ):  # the trainings of other length, for instance, are not
        part = part[part["model"].isin(compared)]
    part = pd.concat(
        prefer_over_seeds(one, [*CONDITION, "model", "reference", "run_id"])
        for _, one in part.groupby("name", sort=False)
    )
    fields = zip(*(part[k] for k in ("name", "model", "reference", "roi")))
    labels = pd.Series([comparison_label(*f) for f in fields], part.index, dtype=object)
    part = part.assign(
        verdict=_said(part),
        label=labels.str.split(" encoder of ").str[0],
        set=_sets(part),
        metric=part["name"].map(_words),
        question=_questions(part),
    )
    names = {"model": "label"}
    down, across = (names.get(k, k) for k in (shown.rows, shown.columns))
    return part.assign(down=part[down], across=part[across])


def _questions(part: pd.DataFrame) -> pd.Series:
    control = part["reference"].str.replace("\\", "").str.replace("_", " ")
    return part["model"].map(MODES).fillna("") + ", against " + control


def _values(part: pd.DataFrame) -> pd.DataFrame:
    """Return one cell per row and column; the longer axis goes down where there are many."""
    names, kinds = list(dict.fromkeys(part["down"])), list(dict.fromkeys(part["across"]))
    by = {place: one for place, one in part.groupby(["down", "across"], sort=False)}
    none, intervals = part[:0], min(len(names), len(kinds)) <= MOST_INTERVALS
    cells = pd.DataFrame(
        [[_cell(by.get((a, b), none), intervals) for b in kinds] for a in names], names, kinds
    )
    return cells.T if len(kinds) > max(len(names), MOST_INTERVALS) else cells


def _effects(part: pd.DataFrame) -> pd.DataFrame:
    """Return in words where each region matters more than its control, one column per question."""
    by = part.groupby(["down", "across"], sort=False)
    return (
        by.apply(_effect, include_groups=False)
        .unstack()
        .reindex(dict.fromkeys(part["down"]), columns=dict.fromkeys(part["across"]))
        .fillna("")
    )


def _effect(part: pd.DataFrame) -> str:
    found = [
        f"{word} on {len(mine)} of {len(part)} sets ({100 * mine['value'].mean():+.1f} points)"
        for word, mine in part.groupby("verdict", sort=False)
        if word != "undecided"
    ]
    return "; ".join(found) or f"undecided ({100 * part['value'].mean():+.1f})"


def _said(part: pd.DataFrame) -> pd.Series:
    """Return a word per difference, from its interval and its adjusted p values; else ""."""
    compared = part[part["name"].isin(WORDS) & part["ci_low"].notna()]
    words = {"open": "undecided"}
    found = [
        (words | WORDS[name]).get(said, said)
        for name, said in zip(compared["name"], verdicts(compared))
    ]
    return pd.Series(found, index=compared.index, dtype=object).reindex(part.index).fillna("")


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _seeds(part: pd.DataFrame) -> str:
    over = part["n_seeds"].dropna()
    if len(over):
        return f", {_range(over)} seeds"
    single = part["seed"].nunique()
    return f", {single} seed{'s' * (single > 1)}" if single else ""


def _by_model(part: pd.DataFrame, column: str) -> str:
    """Return the usual value of a column, and others with the models that they belong to."""
    models = part[part[column] != ""].groupby(column, sort=True)["label"].unique()
    usual, *others = sorted(models.items(), key=lambda one: -len(one[1])) or [("none", [])]
    named = (f"; {value} ({', '.join(f'`{m}`' for m in sorted(names))})" for value, names in others)
    return f"{usual[0]}{''.join(named)}"


def _cell(group: pd.DataFrame, intervals: bool) -> str:
    if group.empty:
        return ""
    words = sorted(set(group["verdict"]) - {""})
    verdict = f" {' or '.join(words)}" if words else ""
    # two sections or runs that evaluate the same model give the same number twice
    if len(group[["value", "ci_low", "ci_high"]].drop_duplicates()) == 1:
        low, high = group["ci_low"].iloc[0], group["ci_high"].iloc[0]
        shown = intervals or group["name"].isin(WORDS).all()
        known = shown and pd.notna(low) and pd.notna(high)
        interval = f" [{low:.3f}, {high:.3f}]" if known else ""
        return f"{group['value'].iloc[0]:.3f}{interval}{verdict}"
    low, high = group["value"].min(), group["value"].max()
    return f"{group['value'].mean():.3f} ({low:.3f} to {high:.3f}, {len(group)} values){verdict}"

"""Sentences on what metric rows show: comparisons, regions, encoders, alignment, similarity."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bmfl_lab.evaluation.attention_outcomes import attention_verdict, rows_of_checks
from bmfl_lab.markup import markdown_rows
from bmfl_lab.metrics.statistics import EXPLORATORY, LEAST_IMAGES, holm, mean_over_subjects
from bmfl_lab.records import comparison_label

PLACE = ["split", "shift", "severity"]
COMPARISON = (
    "study run first second set in_distribution value ci_low ci_high p_holm n n_seeds smallest "
    "family verdict"
).split()
PLAIN = ("backbone", "concat", "linear probe")
"""Models that are no controls: a difference to any other model is one to a control."""
CORTEX_FREE = (
    "noise",
    "noise, covariance",
    "permuted features",
    "random encoder",
    "patch PCA",
    "random projection",
    "attributes",
)
"""Controls without a cortex: a gain that they share does not need one."""
READ_FMRI = {
    "other image": "the response to the image itself",
    "same class": "more than the response to its class",
    "random backbone": "an encoder on a trained backbone",
    "untrained brain transformer": "a trained brain transformer",
}
"""Controls that read predicted fMRI too, and what a gain that they share does not take."""
LEVEL = 0.05


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the paired differences of models, one row per pair and image set.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study`` and a column that names the run, ``run`` or ``run_id``.

    Returns
    -------
    DataFrame
        ``study, run, first, second, set, in_distribution, value, ci_low, ci_high, p_holm, n,
        n_seeds, smallest, family, verdict``; the verdict on `first` is "better" or "worse" where
        the interval does not contain zero and the adjusted p value is at most 0.05; "alike" where
        the whole interval is closer to zero than the smallest effect of interest, and the adjusted
        p value of that test is at most 0.05; and "open" elsewhere, and below 20 images.
    """
    frame = rows.rename(columns={"run_id": "run"})
    kept = frame["name"].eq("accuracy_difference") & frame["value"].notna()
    table = frame[kept & frame["ci_low"].notna()]
    severity = pd.to_numeric(table["severity"]).map(lambda s: f" {s:.0f}" if s > 0 else "")
    plain = table["shift"].eq("")
    table = table.assign(
        first=table["model"],
        second=table["reference"],
        set=table["split"].where(plain, table["shift"] + severity.astype(str)),
        in_distribution=table["split"].eq("test") & plain,
        p_holm=pd.to_numeric(table["p_adjusted"]),
        n=table["n"].astype(int),
        n_seeds=pd.to_numeric(table["n_seeds"]).fillna(1).astype(int),
    )
    return table.assign(verdict=verdicts(table))[COMPARISON].reset_index(drop=True)


def verdicts(differences: pd.DataFrame) -> pd.Series:
    """Return "better", "worse", "alike" or "open" per difference, as `comparisons` explains.

    Parameters
    ----------
    differences : DataFrame
        Metric rows that compare a model with a reference.
    """
    low, high = differences["ci_low"], differences["ci_high"]
    p, alike, smallest = (
        pd.to_numeric(differences[k]) for k in ("p_adjusted", "p_equivalence", "smallest")
    )
    side = differences["value"].gt(0).map({True: "better", False: "worse"})
    enough = differences["n"] >= LEAST_IMAGES
    clear = enough & ((low > 0) | (high < 0)) & ~(p > LEVEL)
    close = enough & (low > -smallest) & (high < smallest) & (alike <= LEVEL)
    return side.where(clear, "open").mask(close & ~clear, "alike").astype(object)


def findings(rows: pd.DataFrame) -> list[str]:
    """Return sentences on what was found, and one per pair of models and run.

    Parameters
    ----------
    rows : DataFrame
        Metric rows, see `comparisons`.

    Returns
    -------
    list of str
        Sentences, in which names are escaped for markdown; empty if no record holds anything that
        can be concluded from.
    """
    return [*conclusions(rows), *pair_findings(rows)]


def conclusions(rows: pd.DataFrame) -> list[str]:
    """Return the sentences of `findings` except those on single pairs of models."""
    rows = markdown_rows(rows)
    lines: list[str] = []
    for (study, run), part in comparisons(rows).groupby(["study", "run"], sort=False):
        of_fusion = _from_fusion(part)
        if ((of_fusion["first"] == "fusion") & (of_fusion["second"] == "backbone")).any():
            lines.append(f"**{study}, {run}.** {_brain(of_fusion)}")
    return (
        lines
        + subject_findings(rows)
        + region_findings(rows)
        + brain_findings(rows)
        + encoder_findings(rows)
        + similarity_findings(rows)
        + attention_findings(rows)
    )


def pair_findings(rows: pd.DataFrame) -> list[str]:
    """Return one sentence per pair of models and run, with every image set."""
    table = comparisons(markdown_rows(rows))
    return [
        f"{study}, {run}: {_pair(first, second, pair)}{_uncontrolled(first, second, part)}"
        for (study, run), part in table.groupby(["study", "run"], sort=False)
        for (first, second), pair in part.groupby(["first", "second"], sort=False)
    ]


def _from_fusion(part: pd.DataFrame) -> pd.DataFrame:
    """Turn comparisons *with* the fusion into comparisons of the fusion."""
    turned = (part["second"] == "fusion") & (part["first"] != "fusion")
    if not turned.any():
        return part
    back = part[turned].assign(
        first=part["second"],
        second=part["first"],
        value=-part["value"],
        ci_low=-part["ci_high"],
        ci_high=-part["ci_low"],
        verdict=part["verdict"].replace({"better": "worse", "worse": "better"}),
    )
    return pd.concat([part[~turned], back]).astype({"in_distribution": bool})


POOL = "pooled"
"""Name of the subject that pools others, which is none of them."""


def subject_findings(rows: pd.DataFrame) -> list[str]:
    """Return what comparisons of several subjects show together, one sentence per pair of models.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study``; those of a subject name it.

    Returns
    -------
    list of str
        Subjects, seeds and images are random. Only sets that all subjects have count. Empty with
        fewer than two subjects.
    """
    kept = rows["name"].eq("accuracy_difference") & rows["ci_low"].notna()
    named = ~rows["subject"].fillna("").isin(["", POOL])
    table = rows[kept & named].assign(severity=lambda f: pd.to_numeric(f["severity"]).fillna(0))
    lines = []
    for (study, first, second), pair in table.groupby(["study", "model", "reference"], sort=False):
        people = list(dict.fromkeys(pair["subject"]))
        places = [p for _, p in pair.groupby(PLACE, sort=False) if set(p["subject"]) == set(people)]
        if len(people) > 1 and places:
            lines.append(f"{study}: {_over_subjects(first, second, people, places)}")
    return lines


def _over_subjects(
    first: str, second: str, people: Sequence[str], places: Sequence[pd.DataFrame]
) -> str:
    found = []
    for place in places:
        one = place.drop_duplicates("subject")
        errors = (one["ci_high"] - one["ci_low"]).to_numpy(float) / (2 * 1.96)
        found.append(mean_over_subjects(one["value"].to_numpy(), errors, int(one["n"].min())))
    adjusted, words = holm([p for _, p in found]), []
    for place, (interval, _), p in zip(places, found, adjusted):
        row = place.iloc[0]
        where = row["shift"] or row["split"]
        where += f" {row['severity']:.0f}" * bool(row["severity"])
        clear = p <= LEVEL and interval.n >= LEAST_IMAGES
        said = ("better" if interval.value > 0 else "worse") if clear else "undecided"
        ends = f"[{100 * max(-1, interval.low):+.1f}, {100 * min(1, interval.high):+.1f}]"
        words.append(f"{said} on {where} {100 * interval.value:+.1f} {ends}")
    return (
        f"`{first}` against `{second}` over {len(people)} subjects ({', '.join(people)}): "
        f"{'; '.join(words)}. Points, 95 % intervals over subjects, seeds and images, Holm over "
        f"{len(places)} sets."
    )


MODES = {
    "only": "trained with it alone",
    "left_out": "trained without it",
    "lesioned": "lesioned at inference",
    "kept": "with all else lesioned at inference",
}


def region_findings(rows: pd.DataFrame) -> list[str]:
    """Return which regions an ablation names, one sentence per run, question and control.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study`` and a column that names the run.

    Returns
    -------
    list of str
        A region is named where it matters more than its control on at least one image set, by the
        interval and by the p value adjusted over regions and sets. Empty where there is no
        ablation.
    """
    frame = rows.rename(columns={"run_id": "run"})
    effects = frame[(frame["name"] == "region_effect") & frame["ci_low"].notna()]
    effects = effects.assign(severity=pd.to_numeric(effects["severity"]).fillna(0))
    lines, by = [], ["study", "run", "model", "reference"]
    for (study, run, mode, control), part in effects.groupby(by, sort=False):
        n_sets = len(part.drop_duplicates(PLACE))
        sure = part[verdicts(part) == "better"]
        words = [
            f"{roi} on {len(one)} of {n_sets} sets (at most {100 * one['value'].max():+.1f} points)"
            for roi, one in sure.groupby("roi", sort=False)
        ]
        bound = 100 * part[["ci_low", "ci_high"]].abs().max().max()
        sentence = (
            "; ".join(words)
            or f"none of {part['roi'].nunique()} regions; intervals up to {bound:.1f} points"
        )
        family = part["family"].iloc[0] or "regions and sets"
        lines.append(
            f"{study}, {run}: regions that matter more than {control.replace('_', ' ')}, "
            f"{MODES[mode]}: {sentence}. n = {int(part['n'].min())} to {int(part['n'].max())} "
            f"images, {int(part['n_seeds'].max())} seeds, Holm over {family}."
        )
    return lines


def _listed(pair: pd.DataFrame, limit: int = 6) -> str:
    shown = [
        f"{r.set} {100 * r.value:+.1f} [{100 * r.ci_low:+.1f}, {100 * r.ci_high:+.1f}]"
        for r in pair.itertuples()
    ]
    return ", ".join(shown[:limit]) + (
        f" and {len(shown) - limit} more" if len(shown) > limit else ""
    )


def _pair(first: str, second: str, pair: pd.DataFrame) -> str:
    groups = {v: pair[pair["verdict"] == v] for v in ("better", "worse")}
    words = [
        f"{verdict} on {len(found)} of {len(pair)} sets ({_listed(found)})"
        for verdict, found in groups.items()
        if len(found)
    ]
    alike, rest = (pair[pair["verdict"] == v] for v in ("alike", "open"))
    if len(alike):
        points = f"{100 * alike['smallest'].max():g} points"
        words.append(f"no difference of {points} or more on {len(alike)} of {len(pair)} sets")
    if len(rest):
        bound = 100 * rest[["ci_low", "ci_high"]].abs().max().max()
        share = f"{len(rest)} of {len(pair)} sets"
        words.append(f"undecided on {share} (intervals up to {bound:.1f} points)")
    n, seeds = sorted(set(pair["n"])), int(pair["n_seeds"].max())
    size = f"n = {n[0]}" + f" to {n[-1]}" * (len(n) > 1)
    size += f" images, {seeds} seeds" if seeds > 1 else " images, these trained models only"
    family = pair["family"].iloc[0] or "sets"
    label = "exploratory, " if family == EXPLORATORY else ""
    return (
        f"`{first}` against `{second}`: {label}{'; '.join(words)}. {size}; points, "
        f"95 % paired intervals, Holm over {family}."
    )


def _brain(part: pd.DataFrame) -> str:
    """Return whether predicted responses helped out of distribution, and if so, why."""
    away = part[~part["in_distribution"] & (part["first"] == "fusion")]
    gain = away[away["second"] == "backbone"]
    if gain.empty:
        return "No out-of-distribution set was compared."
    better = list(gain[gain["verdict"] == "better"]["set"])
    worse = list(gain[gain["verdict"] == "worse"]["set"])
    harm = f" It was worse on {len(worse)} ({', '.join(worse)})." if worse else ""
    if not better:
        return (
            f"Fusion was better than the backbone alone on none of {len(gain)} "
            f"out-of-distribution sets: no help of the brain was found.{harm}"
        )
    text = (
        f"Fusion was better than the backbone alone on {len(better)} of {len(gain)} "
        f"out-of-distribution sets.{harm}"
    )
    controls = away[~away["second"].isin(PLAIN) & away["set"].isin(better)]
    if controls.empty:
        text += (
            " It was not compared directly with a control without a cortex, "
            "so the gain may come from any added information."
        )
        other = part[
            ~part["first"].isin(["fusion", *PLAIN])
            & (part["second"] == "backbone")
            & part["set"].isin(better)
        ]
        better_too = other[other["verdict"] == "better"].groupby("first", sort=False)
        return text + "".join(
            f" The control `{name}` was better than the backbone on {len(one)} of these too."
            for name, one in better_too
        )
    lost, won = [], {}
    for name, one in controls.groupby("second", sort=False):
        sets = tuple(one[one["verdict"] == "better"]["set"])
        (won.setdefault(sets, []) if sets else lost).append(name)
    for sets, names in won.items():
        where = f"{len(sets)} of these ({', '.join(sets)})"
        text += f" It was better than the {_controls(names)} on {where}."
    return text + _shared(lost)


def _controls(names: Sequence[str]) -> str:
    return f"control{'s' * (len(names) > 1)} " + ", ".join(f"`{n}`" for n in names)


def _shared(lost: Sequence[str]) -> str:
    """Return the conclusion from controls that the fusion never beat, by what they read."""
    free, reading = [n for n in lost if n in CORTEX_FREE], [n for n in lost if n in READ_FMRI]
    other = [n for n in lost if n not in (*free, *reading)]
    said = []
    if free:
        said.append(f"the {_controls(free)}: nothing shows that the gain takes a cortex")
    if reading:
        said.append(
            f"the {_controls(reading)}, which also read{'s' * (len(reading) == 1)} predicted fMRI: "
            f"nothing shows that the gain takes {' or '.join(READ_FMRI[n] for n in reading)}"
        )
    if other:
        said.append(", ".join(f"`{n}`" for n in other))
    return "".join(f" On none of these was it better than {text}." for text in said)


def _uncontrolled(first: str, second: str, part: pd.DataFrame) -> str:
    """Return the warning beside a gain over the backbone of a model that no control was run for."""
    known = ("fusion", "backbone", "linear probe", *CORTEX_FREE, *READ_FMRI)
    # of responses mixed with noise, "r = 0.53", those with more noise are the control
    if first in known or first.startswith("r = ") or second != "backbone":
        return ""
    mine = part[(part["first"] == first) | (part["second"] == first)]
    compared = set(mine["first"]) | set(mine["second"])
    gains = mine[(mine["first"] == first) & (mine["second"] == second)]["verdict"].eq("better")
    if not gains.any() or compared - {first, "fusion", *PLAIN}:
        return ""
    return f" No control was run for `{first}`: its gain may come from any added information."


def prefer_over_seeds(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return rows over seeds, and rows of single seeds only for `keys` without one.

    Parameters
    ----------
    rows : DataFrame
        Rows of one metric.
    keys : sequence of str
        Columns that identify a condition.
    """
    over = rows["seed"].isna()
    known = set(map(tuple, rows[over][list(keys)].astype(str).to_numpy()))
    keep = [tuple(k) not in known for k in rows[~over][list(keys)].astype(str).to_numpy()]
    return pd.concat([rows[over], rows[~over][keep]])


GAINS = {
    "rsa_mean_gain": "gain of mean RSA on held-out images",
    "rsa_transfer_gain": "gain of mean RSA over the network before alignment, by tested subject",
    "eeg_encoding_gain": "gain of M/EEG encoding over the network before alignment",
}


def brain_findings(rows: pd.DataFrame) -> list[str]:
    """Return one sentence per run and kind of gain, and one on brain-likeness and robustness.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study`` and a column that names the run, ``run`` or ``run_id``.

    Returns
    -------
    list of str
        Every comparison with its interval and adjusted p, whether it was found or not; empty where
        no record holds an alignment.
    """
    frame = rows.rename(columns={"run_id": "run"})
    lines = []
    found = frame[frame["name"].isin(GAINS) & frame["ci_low"].notna()]
    for (study, run, name), part in found.groupby(["study", "run", "name"], sort=False):
        listed = "; ".join(_gain(row, name == "rsa_transfer_gain") for row in part.itertuples())
        lines.append(
            f"{study}, {run}: {GAINS[name]}: {listed}. n = {int(part['n'].min())} images, "
            f"{int(part['n_seeds'].max())} seeds; {part['interval'].iloc[0]}, p by Holm."
        )
    return lines + [
        f"{row.study}, {row.run}: brain-like against robust over {int(row.n)} models: "
        f"rho = {row.value:+.2f} [{row.ci_low:+.2f}, {row.ci_high:+.2f}]: "
        f"{row.notes.partition('; ')[2]}."
        for row in frame[frame["name"] == "brain_robust_correlation"].itertuples()
    ]


def _gain(row, by_subject: bool) -> str:
    where = f" on {row.subject}" if by_subject else ""
    known = "" if pd.isna(row.p_adjusted) else f", p = {row.p_adjusted:.2g}"
    model = comparison_label(row.name, row.model, row.reference)
    return f"`{model}`{where} {row.value:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]{known}"


def encoder_findings(rows: pd.DataFrame) -> list[str]:
    """Return sentences on the encoders of each study and subject; empty where no record holds any.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study``.

    Returns
    -------
    list of str
        One sentence per study and subject, which names each value with its interval, if it has one.
        The sentences do not compare values.
    """
    lines = []
    kept = rows.assign(kind=rows["model"].str.split(" encoder").str[0])
    for (study, subject), part in kept.groupby(["study", "subject"], sort=False):
        if not (part["name"] == "val_r").any():
            continue
        found = (
            _encoder_accuracy(part),
            _encoder_winners(part),
            _encoder_fields(part),
            _encoder_shifts(part),
            _encoder_blocks(part),
            _encoder_controls(part),
        )
        lines += [f"{study}, {subject}: {sentence}" for sentence in found if sentence]
    return lines


def _encoder_value(row) -> str:
    known = pd.notna(row.ci_low) and pd.notna(row.ci_high)
    return f"{row.value:.3f}" + (f" [{row.ci_low:.3f}, {row.ci_high:.3f}]" if known else "")


def _encoder_all(part: pd.DataFrame, name: str) -> pd.DataFrame:
    return part[(part["name"] == name) & (part["roi"] == "all") & part["value"].notna()]


def _encoder_accuracy(part: pd.DataFrame) -> str:
    found = _encoder_all(part, "pearson_r")
    found = found[found["split"] == "test"]
    if found.empty:
        return ""
    listed = ", ".join(f"`{row.kind}` {_encoder_value(row)}" for row in found.itertuples())
    best = _encoder_all(part, "ceiling_r")["value"]
    ceiling = f"; the noise allows {best.iloc[0]:.3f}" if len(best) else ""
    return f"test r, mean over vertices, n = {int(found['n'].max())} images: {listed}{ceiling}."


def _encoder_winners(part: pd.DataFrame) -> str:
    table = part[part["name"] == "val_r"].pivot_table(
        index="roi", columns="kind", values="value", sort=False
    )
    if table.empty:
        return ""
    single = table.drop(columns="ensemble", errors="ignore")
    by_kind = single.idxmax(axis=1).groupby(single.idxmax(axis=1), sort=False).groups
    listed = "; ".join(f"`{kind}` in {', '.join(regions)}" for kind, regions in by_kind.items())
    line = f"best single encoder by validation r: {listed}"
    if "ensemble" in table:
        ahead = int((table["ensemble"] > single.max(axis=1)).sum())
        line += (
            f"; the ensemble is ahead of all in {ahead} of {len(table)} regions "
            "(its weights come from the same images)"
        )
    return line + "."


def _encoder_fields(part: pd.DataFrame) -> str:
    said = {"field_error": "receptive fields", "tuning_error": "preferred orientations"}
    listed = [
        f"{what} lie {row.value:.2f} degrees from the truth (median, `{row.kind}`)"
        for name, what in said.items()
        for row in part[part["name"] == name].itertuples()
    ]
    return "; ".join(listed) + "." if listed else ""


def _encoder_shifts(part: pd.DataFrame) -> str:
    found = _encoder_all(part, "truth_r")
    if found.empty:
        return ""
    found = found.assign(
        where=found["shift"].where(found["shift"] != "", found["split"]).str.replace("_", " ")
    )
    kind = found.groupby("kind", sort=False)["value"].mean().idxmax()
    mine = found[found["kind"] == kind]
    listed = ", ".join(f"{row.where} {_encoder_value(row)}" for row in mine.itertuples())
    return f"r with the simulated truth without noise, `{kind}`: {listed}."


def _encoder_blocks(part: pd.DataFrame) -> str:
    found = part[part["name"] == "block_r"].dropna(subset="value")
    if found.empty:
        return ""
    block = found["layer"].where(found["layer"] != "", found["model"]).str.rpartition("block ")[2]
    best = found.assign(block=block).loc[found.groupby("roi", sort=False)["value"].idxmax()]
    return (
        "best block of a ridge by validation r: "
        + ", ".join(f"{r.roi} {r.block}" for r in best.itertuples())
        + "."
    )


def _encoder_controls(part: pd.DataFrame) -> str:
    found = part[(part["name"] == "control_r") & (part["roi"] == "all")]
    listed = [
        f"{r.model} {'undefined' if pd.isna(r.value) else format(r.value, '.3f')}"
        for r in found.itertuples()
    ]
    return f"ridge and its controls, test r: {', '.join(listed)}." if listed else ""


def attention_findings(rows: pd.DataFrame) -> list[str]:
    """Return one sentence per attention map on the checks that it passes and fails.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study`` and a column that names the run, ``run`` or ``run_id``.
    """
    frame = rows.rename(columns={"run_id": "run"})
    lines = []
    for (study, run), part in frame.groupby(["study", "run"], sort=False):
        sentences = attention_verdict(rows_of_checks(part)).splitlines()
        lines += [f"{study}, {run}: {sentence}" for sentence in sentences]
    return lines


SCORE_WORDS = {"spatial_score": "spatial score", "temporal_score": "temporal score"}


def similarity_findings(rows: pd.DataFrame) -> list[str]:
    """Return sentences on best layers, spatial and temporal scores, and identification.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study`` and a column that names the run, ``run`` or ``run_id``.

    Returns
    -------
    list of str
        One sentence per run and kind; empty where no record compares layers with regions. The best
        layer of a region is named from the same held-out stimuli as its score, which makes that
        score slightly optimistic: the sentence says so.
    """
    frame = rows.rename(columns={"run_id": "run"})
    lines = []
    for (study, run), part in frame.groupby(["study", "run"], sort=False):
        found = [_best_layers(part, "encoding_r", "encoding r"), _best_layers(part, "rsa", "RSA")]
        for name in SCORE_WORDS:
            found += [_score(row, part) for row in part[part["name"] == name].itertuples()]
        identified = part[(part["name"] == "identification_top1") & part["roi"].eq("all")]
        found += [
            f"which of {int(row.n)} images evoked a response: top-1 {row.value:.3f} "
            f"[{row.ci_low:.3f}, {row.ci_high:.3f}]; {row.notes}."
            for row in identified.itertuples()
        ]
        lines += [f"{study}, {run}: {sentence}" for sentence in found if sentence]
    return lines


def _best_layers(part: pd.DataFrame, name: str, what: str) -> str:
    kept = (part["name"] == name) & part["layer"].ne("") & part["roi"].ne("")
    found = part[kept].dropna(subset=["value"])
    if found.empty:
        return ""
    best = found.loc[found.groupby("roi", sort=False)["value"].idxmax()]
    listed = ", ".join(f"{row.roi} {row.layer} ({row.value:.3f})" for row in best.itertuples())
    return f"layer with the highest {what}, chosen on the images that are scored: {listed}."


def _score(row, part: pd.DataFrame) -> str:
    same = (part["split"] == row.split) & (part["model"] == row.model)
    p = part[same & (part["name"] == f"{row.name}_p")]["value"]
    value = "undefined" if pd.isna(row.value) else f"r = {row.value:+.2f}"
    chance = f", p = {p.iloc[0]:.3g}" if len(p) and pd.notna(p.iloc[0]) else ""
    return (
        f"{SCORE_WORDS[row.name]} ({row.split}): {value}{chance}, {row.interval}; "
        f"n = {int(row.n)}, {row.notes}."
    )


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: number of metric rows and seeds, time and revision."""
    return rows.groupby(["study", "notebook", "run"], sort=True, as_index=False).agg(
        n_rows=("name", "size"),
        n_seeds=("seed", "nunique"),
        finished=("finished", "first"),
        revision=("revision", "first"),
    )


def grouped(
    rows: pd.DataFrame, metric: str, *, by: Sequence[str] = ("study", "notebook", "model")
) -> pd.DataFrame:
    """Return a metric as a table: one row per group and one column per image set.

    Parameters
    ----------
    rows : DataFrame
        From `collect_records`.
    metric : str
        Name of the metric.
    by : sequence of str
        Columns that identify a row.
    """
    part = rows[(rows["name"] == metric) & rows["value"].notna()].copy()
    if part.empty:
        return pd.DataFrame()
    part = prefer_over_seeds(part, [*by, *PLACE, "roi", "run"])
    part["set"] = [
        (s if not h else h + ("" if pd.isna(v) else f" {int(v)}")) + (f", {r}" if r else "")
        for s, h, v, r in zip(part["split"], part["shift"], part["severity"], part["roi"])
    ]
    return part.pivot_table(
        index=list(by), columns="set", values="value", aggfunc="mean", sort=False
    )

"""What records say, in plain words: one table of all rows, and the verdicts of paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bmfl_lab.errors import BmflError
from bmfl_lab.records import MetricRow, Record, read_record
from bmfl_lab.runs.brain_findings import brain_findings
from bmfl_lab.runs.encoder_findings import encoder_findings
from bmfl_lab.runs.similarity_findings import similarity_findings

PLACE = ["split", "shift", "severity"]
COLUMNS = [
    "spec",
    "run",
    "notebook",
    "study",
    "finished",
    "revision",
    *MetricRow.__dataclass_fields__,
]
PLAIN = ("backbone", "concat", "linear probe")
"""Models that are no controls: a difference to any other model is one to a control."""
CORTEX_FREE = (
    "noise",
    "noise, covariance",
    "random encoder",
    "patch PCA",
    "random projection",
    "attributes",
)
"""Controls whose input is told nothing of the image by a cortex: a gain that they share takes none."""
READ_FMRI = {
    "other image": "the response to the image itself",
    "same class": "more than the response to its class",
    "random backbone": "an encoder on a trained backbone",
    "untrained brain transformer": "a trained brain transformer",
}
"""Controls that read predicted fMRI too, and what a gain that they share does not take."""
LEVEL = 0.05


def study_label(record: Record) -> str:
    """Return the study's name, saying where its responses are simulated."""
    return str(record.study.get("name", "")) + (
        " (simulated)" if record.study.get("simulated") else ""
    )


def collect_records(
    folder: str | Path,
    *,
    study: str = "",
    without: Sequence[str] = ("09_report",),
    latest: bool = True,
) -> tuple[pd.DataFrame, list[str]]:
    """Read every ``record.json`` below a folder.

    Parameters
    ----------
    folder : str or Path
        For instance ``papermill_runs/out``.
    study : str, optional
        Keep only records of the study of this name.
    without : sequence of str
        Notebooks that are left out.
    latest : bool, default True
        Of records of one notebook with the same parameters and study, keep only the one finished
        last.

    Returns
    -------
    rows : DataFrame
        Metric rows with ``spec, run, notebook, study, finished, revision``; no row where there is
        no record.
    problems : list of str
        Records that cannot be read, one sentence each.
    """
    problems: list[str] = []
    found: dict[str, tuple[Path, Record]] = {}
    for path in sorted(Path(folder).rglob("record.json")):
        try:
            record = read_record(path)
        except (BmflError, KeyError, TypeError) as error:
            problems.append(f"{path.parent.name}: {error}")
            continue
        if record.notebook in without or (study and record.study.get("name") != study):
            continue
        chosen = {k: v for k, v in record.parameters.items() if k != "out"}
        key = (
            str((record.notebook, sorted(chosen.items()), study_label(record)))
            if latest
            else str(path)
        )
        if key not in found or str(record.extra["finished"]) > str(found[key][1].extra["finished"]):
            found[key] = (path, record)
    frames = [
        record.to_frame().assign(
            spec=path.parent.parent.name,
            run=path.parent.name,
            notebook=record.notebook,
            study=study_label(record),
            finished=record.extra["finished"],
            revision=record.extra["code_revision"],
        )
        for path, record in found.values()
    ]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return rows[COLUMNS], problems


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a run: how many numbers it holds, over how many seeds, of which revision."""
    if rows.empty:
        return pd.DataFrame(
            columns=["study", "notebook", "run", "n_rows", "n_seeds", "finished", "revision"]
        )
    grouped = rows.groupby(["study", "notebook", "run"], sort=True)
    table = grouped.agg(
        n_rows=("name", "size"),
        n_seeds=("seed", "nunique"),
        finished=("finished", "first"),
        revision=("revision", "first"),
    )
    return table.reset_index()


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the paired differences of models, one row a pair and image set.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study`` and a column that names the run, ``run`` or ``run_id``.

    Returns
    -------
    DataFrame
        ``study, run, first, second, set, in_distribution, value, ci_low, ci_high, p_holm, n,
        n_seeds, verdict``; verdict is "better", "worse" (of `first`) or "open", better and worse
        only where the interval leaves out zero and the adjusted p value is at most 0.05.
    """
    frame = rows.rename(columns={"run_id": "run"})
    frame = frame.assign(severity=pd.to_numeric(frame["severity"]).fillna(0))
    frame = frame.assign(p_adjusted=pd.to_numeric(frame["p_adjusted"]))
    differences = frame[
        (frame["name"] == "accuracy_difference") & frame["value"].notna() & frame["ci_low"].notna()
    ]
    out = []
    for row in differences.itertuples():
        clear = (row.ci_low > 0 or row.ci_high < 0) and not row.p_adjusted > LEVEL
        label = (
            row.split
            if not row.shift
            else row.shift + (f" {int(row.severity)}" if row.severity else "")
        )
        out.append(
            {
                "study": row.study,
                "run": row.run,
                "first": row.model,
                "second": row.reference,
                "set": label,
                "in_distribution": row.split == "test" and not row.shift,
                "value": row.value,
                "ci_low": row.ci_low,
                "ci_high": row.ci_high,
                "p_holm": row.p_adjusted,
                "n": int(row.n),
                "n_seeds": int(row.n_seeds) if pd.notna(row.n_seeds) else 1,
                "verdict": "open" if not clear else "better" if row.value > 0 else "worse",
            }
        )
    columns = [
        "study",
        "run",
        "first",
        "second",
        "set",
        "in_distribution",
        "value",
        "ci_low",
        "ci_high",
        "p_holm",
        "n",
        "n_seeds",
        "verdict",
    ]
    return pd.DataFrame(out, columns=columns)


def findings(rows: pd.DataFrame) -> list[str]:
    """Return what was found, in plain sentences: one a pair of models and run, and one on the question itself.

    Parameters
    ----------
    rows : DataFrame
        As `comparisons` takes them.

    Returns
    -------
    list of str
        Empty where no record holds a paired comparison.
    """
    table = comparisons(rows)
    lines: list[str] = []
    for (study, run), part in table.groupby(["study", "run"], sort=False):
        asked = _from_fusion(part)
        if ((asked["first"] == "fusion") & (asked["second"] == "backbone")).any():
            lines.append(f"**{study}, {run}.** {_brain(asked)}")
        for (first, second), pair in part.groupby(["first", "second"], sort=False):
            lines.append(
                f"{study}, {run}: {_pair(first, second, pair)}{_uncontrolled(first, second, part)}"
            )
    return (
        lines
        + region_findings(rows)
        + brain_findings(rows)
        + encoder_findings(rows)
        + similarity_findings(rows)
    )


def _from_fusion(part: pd.DataFrame) -> pd.DataFrame:
    """Turn comparisons *with* the fusion into comparisons of the fusion."""
    turned = (part["second"] == "fusion") & (part["first"] != "fusion")
    if not turned.any():
        return part
    back = part[turned].assign(
        value=-part["value"], ci_low=-part["ci_high"], ci_high=-part["ci_low"]
    )
    back = back.rename(columns={"first": "second", "second": "first"})[list(part.columns)]
    back = back.assign(
        verdict=back["verdict"].map({"better": "worse", "worse": "better", "open": "open"})
    )
    return pd.concat([part[~turned], back]).astype({"in_distribution": bool})


ASKED = {
    "only": "trained with it alone",
    "left_out": "trained without it",
    "lesioned": "lesioned at inference",
    "kept": "with all else lesioned at inference",
}


def region_findings(rows: pd.DataFrame) -> list[str]:
    """Return which regions an ablation names, one sentence a run, question and control.

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
    if not (frame["name"] == "region_effect").any():
        return []
    frame = frame.assign(severity=pd.to_numeric(frame["severity"]).fillna(0))
    effects = frame[(frame["name"] == "region_effect") & frame["ci_low"].notna()]
    lines = []
    by = ["study", "run", "model", "reference"]
    for (study, run, mode, control), part in effects.groupby(by, sort=False):
        n_sets = len(part.drop_duplicates(PLACE))
        sure = part[(part["p_adjusted"] <= LEVEL) & (part["ci_low"] > 0)]
        words = [
            f"{roi} on {len(one)} of {n_sets} sets (at most {100 * one['value'].max():+.1f} points)"
            for roi, one in sure.groupby("roi", sort=False)
        ]
        bound = 100 * part[["ci_low", "ci_high"]].abs().max().max()
        said = (
            "; ".join(words)
            or f"none of {part['roi'].nunique()} regions; no effect larger than {bound:.1f} points"
        )
        lines.append(
            f"{study}, {run}: regions that matter more than {control.replace('_', ' ')}, {ASKED[mode]}: {said}. "
            f"n = {int(part['n'].min())} to {int(part['n'].max())} images, {int(part['n_seeds'].max())} seeds, Holm over regions and sets."
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
    groups = {v: pair[pair["verdict"] == v] for v in ("better", "worse", "open")}
    words = []
    for verdict in ("better", "worse"):
        if len(groups[verdict]):
            words.append(
                f"{verdict} on {len(groups[verdict])} of {len(pair)} sets ({_listed(groups[verdict])})"
            )
    if len(groups["open"]):
        bound = 100 * groups["open"][["ci_low", "ci_high"]].abs().max().max()
        words.append(
            f"no difference larger than {bound:.1f} points on {len(groups['open'])} of {len(pair)} sets"
        )
    n, seeds = sorted(set(pair["n"])), sorted(set(pair["n_seeds"]))
    size = (
        f"n = {n[0]}"
        + (f" to {n[-1]}" if len(n) > 1 else "")
        + f" images, {seeds[-1]} seed"
        + "s" * (seeds[-1] > 1)
    )
    return f"`{first}` against `{second}`: {'; '.join(words)}. {size}; points, 95 % paired intervals, Holm over sets."


def _brain(part: pd.DataFrame) -> str:
    """Return whether the predicted responses helped out of distribution, and whether that took a brain."""
    away = part[~part["in_distribution"] & (part["first"] == "fusion")]
    gain = away[away["second"] == "backbone"]
    if gain.empty:
        return "No out-of-distribution set was compared."
    better = list(gain[gain["verdict"] == "better"]["set"])
    worse = list(gain[gain["verdict"] == "worse"]["set"])
    harm = f" It was worse on {len(worse)} ({', '.join(worse)})." if worse else ""
    if not better:
        return f"Fusion was better than the backbone alone on none of {len(gain)} out-of-distribution sets: no help of the brain was found.{harm}"
    text = f"Fusion was better than the backbone alone on {len(better)} of {len(gain)} out-of-distribution sets.{harm}"
    controls = away[~away["second"].isin(PLAIN) & away["set"].isin(better)]
    if controls.empty:
        text += " It was not compared directly with a control without a cortex, so the gain may come from any added information."
        other = part[
            ~part["first"].isin(["fusion", *PLAIN])
            & (part["second"] == "backbone")
            & part["set"].isin(better)
        ]
        for name, one in other[other["verdict"] == "better"].groupby("first", sort=False):
            text += (
                f" The control `{name}` was better than the backbone on {len(one)} of these too."
            )
        return text
    lost, won = [], {}
    for name, one in controls.groupby("second", sort=False):
        sets = tuple(one[one["verdict"] == "better"]["set"])
        (won.setdefault(sets, []) if sets else lost).append(name)
    for sets, names in won.items():
        text += f" It was better than the {_controls(names)} on {len(sets)} of these ({', '.join(sets)})."
    return text + _shared(lost)


def _controls(names: Sequence[str]) -> str:
    return f"control{'s' * (len(names) > 1)} " + ", ".join(f"`{n}`" for n in names)


def _shared(lost: Sequence[str]) -> str:
    """Return what follows from controls that the fusion was better than on no set, by what they read."""
    free, reading = [n for n in lost if n in CORTEX_FREE], [n for n in lost if n in READ_FMRI]
    other = [n for n in lost if n not in (*free, *reading)]
    text = ""
    if free:
        text += f" On none of these was it better than the {_controls(free)}: nothing shows that the gain takes a cortex."
    if reading:
        what = " or ".join(READ_FMRI[n] for n in reading)
        text += (
            f" On none of these was it better than the {_controls(reading)}, which also "
            f"read{'s' * (len(reading) == 1)} predicted fMRI: nothing shows that the gain takes {what}."
        )
    return text + (
        f" On none of these was it better than {', '.join(f'`{n}`' for n in other)}."
        if other
        else ""
    )


def _uncontrolled(first: str, second: str, part: pd.DataFrame) -> str:
    """Return the warning beside a gain over the backbone of a model that no control was run for."""
    plain = (*PLAIN, "fusion")
    known = ("fusion", "backbone", "linear probe", *CORTEX_FREE, *READ_FMRI)
    # of responses mixed with noise, "r = 0.53", those with more noise are the control
    if first in known or first.startswith("r = ") or second != "backbone":
        return ""
    mine = part[(part["first"] == first) | (part["second"] == first)]
    compared = set(mine["first"]) | set(mine["second"])
    gained = (
        mine[(mine["first"] == first) & (mine["second"] == second)]["verdict"].eq("better").any()
    )
    if not gained or compared - {first, *plain}:
        return ""
    return f" No control was run for `{first}`: its gain may come from any added information."


def prefer_over_seeds(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the rows over seeds, and those of single seeds only where `keys` have no row over seeds.

    Parameters
    ----------
    rows : DataFrame
        Rows of one metric.
    keys : sequence of str
        What identifies a condition.
    """
    over = rows["seed"].isna()
    known = set(map(tuple, rows[over][list(keys)].astype(str).to_numpy()))
    keep = [tuple(k) not in known for k in rows[~over][list(keys)].astype(str).to_numpy()]
    return pd.concat([rows[over], rows[~over][keep]])


def grouped(
    rows: pd.DataFrame, metric: str, *, by: Sequence[str] = ("study", "notebook", "model")
) -> pd.DataFrame:
    """Return a metric over all records: one row a group, one column an image set, means of values over seeds.

    Parameters
    ----------
    rows : DataFrame
        From `collect_records`.
    metric : str
        Name of the metric.
    by : sequence of str
        What makes a row.
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

"""What records say about brain encoders, in plain words: accuracy, winners by region, shifts, blocks and controls."""

from __future__ import annotations

import pandas as pd


def encoder_findings(rows: pd.DataFrame) -> list[str]:
    """Return sentences on the encoders of each study and subject; empty where no record holds any.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study``.

    Returns
    -------
    list of str
        Every value with its interval where it has one; a difference is not claimed, only values are
        named.
    """
    lines = []
    kept = rows.assign(kind=rows["model"].str.split(" encoder").str[0])
    for (study, subject), part in kept.groupby(["study", "subject"], sort=False):
        if not (part["name"] == "val_r").any():
            continue
        where = f"{study}, {subject}"
        lines += [
            f"{where}: {said}" for said in (_accuracy(part), _winners(part), _fields(part)) if said
        ]
        lines += [
            f"{where}: {said}" for said in (_shifts(part), _blocks(part), _controls(part)) if said
        ]
    return lines


def _value(row) -> str:
    known = pd.notna(row.ci_low) and pd.notna(row.ci_high)
    return f"{row.value:.3f}" + (f" [{row.ci_low:.3f}, {row.ci_high:.3f}]" if known else "")


def _all(part: pd.DataFrame, name: str) -> pd.DataFrame:
    return part[(part["name"] == name) & (part["roi"] == "all") & part["value"].notna()]


def _accuracy(part: pd.DataFrame) -> str:
    found = _all(part, "pearson_r")
    found = found[found["split"] == "test"]
    if found.empty:
        return ""
    told = ", ".join(f"`{row.kind}` {_value(row)}" for row in found.itertuples())
    best = _all(part, "ceiling_r")["value"]
    ceiling = f"; the noise allows {best.iloc[0]:.3f}" if len(best) else ""
    return f"test r, mean over vertices, n = {int(found['n'].max())} images: {told}{ceiling}."


def _winners(part: pd.DataFrame) -> str:
    table = part[part["name"] == "val_r"].pivot_table(
        index="roi", columns="kind", values="value", sort=False
    )
    if table.empty:
        return ""
    single = table.drop(columns="ensemble", errors="ignore")
    by_kind = single.idxmax(axis=1).groupby(single.idxmax(axis=1), sort=False).groups
    told = "; ".join(f"`{kind}` in {', '.join(regions)}" for kind, regions in by_kind.items())
    line = f"best single encoder by validation r: {told}"
    if "ensemble" in table:
        ahead = int((table["ensemble"] > single.max(axis=1)).sum())
        line += f"; the ensemble is ahead of all in {ahead} of {len(table)} regions (its weights come from the same images)"
    return line + "."


def _fields(part: pd.DataFrame) -> str:
    told = []
    for name, what in (
        ("field_error", "receptive fields lie"),
        ("tuning_error", "preferred orientations lie"),
    ):
        for row in part[part["name"] == name].itertuples():
            told.append(f"{what} {row.value:.2f} degrees from the truth (median, `{row.kind}`)")
    return "; ".join(told) + "." if told else ""


def _shifts(part: pd.DataFrame) -> str:
    found = _all(part, "truth_r")
    if found.empty:
        return ""
    found = found.assign(
        where=found["shift"].where(found["shift"] != "", found["split"]).str.replace("_", " ")
    )
    kind = found.groupby("kind", sort=False)["value"].mean().idxmax()
    mine = found[found["kind"] == kind]
    told = ", ".join(f"{row.where} {_value(row)}" for row in mine.itertuples())
    return f"r with the simulated truth without noise, `{kind}`: {told}."


def _blocks(part: pd.DataFrame) -> str:
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


def _controls(part: pd.DataFrame) -> str:
    found = part[(part["name"] == "control_r") & (part["roi"] == "all")]
    told = [
        f"{r.model} {'undefined' if pd.isna(r.value) else format(r.value, '.3f')}"
        for r in found.itertuples()
    ]
    return f"ridge and its controls, test r: {', '.join(told)}." if told else ""

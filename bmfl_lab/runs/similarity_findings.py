"""What records say about the likeness of layers and regions, in plain words."""

from __future__ import annotations

import pandas as pd

SCORES = {"spatial_score": "spatial score", "temporal_score": "temporal score"}


def similarity_findings(rows: pd.DataFrame) -> list[str]:
    """Return sentences on the best layer of each region, the spatial and temporal scores, and identification.

    Parameters
    ----------
    rows : DataFrame
        Metric rows with ``study`` and a column that names the run, ``run`` or ``run_id``.

    Returns
    -------
    list of str
        One sentence a run and kind; empty where no record compares layers with regions. The best
        layer of a region is named from the same held-out stimuli as its score, which makes that
        score slightly optimistic: the sentence says so.
    """
    frame = rows.rename(columns={"run_id": "run"})
    lines = []
    for (study, run), part in frame.groupby(["study", "run"], sort=False):
        start = f"{study}, {run}: "
        for name, what in (("encoding_r", "encoding r"), ("rsa", "RSA")):
            best = _best_layers(
                part[(part["name"] == name) & part["layer"].ne("") & part["roi"].ne("")]
            )
            if best:
                lines.append(
                    f"{start}layer with the highest {what}, chosen on the images that are scored: {best}."
                )
        lines += [start + told for told in _scores(part)]
        for row in part[
            (part["name"] == "identification_top1") & part["roi"].eq("all")
        ].itertuples():
            lines.append(
                f"{start}which of {int(row.n)} images evoked a response: top-1 {row.value:.3f} "
                f"[{row.ci_low:.3f}, {row.ci_high:.3f}]; {row.notes}."
            )
    return lines


def _best_layers(part: pd.DataFrame) -> str:
    found = part.dropna(subset=["value"])
    if found.empty:
        return ""
    best = found.loc[found.groupby("roi", sort=False)["value"].idxmax()]
    return ", ".join(f"{row.roi} {row.layer} ({row.value:.3f})" for row in best.itertuples())


def _scores(part: pd.DataFrame) -> list[str]:
    lines = []
    for name, what in SCORES.items():
        for row in part[part["name"] == name].itertuples():
            p = part[
                (part["name"] == f"{name}_p")
                & (part["split"] == row.split)
                & (part["model"] == row.model)
            ]["value"]
            value = "undefined" if pd.isna(row.value) else f"r = {row.value:+.2f}"
            chance = f", p = {p.iloc[0]:.3g}" if len(p) and pd.notna(p.iloc[0]) else ""
            lines.append(
                f"{what} ({row.split}): {value}{chance}, {row.interval}; n = {int(row.n)}, {row.notes}."
            )
    return lines

"""What records say about alignment, in plain words: brain-likeness, transfer, and the relation to robustness."""

from __future__ import annotations

import pandas as pd

from bmfl_lab.records import comparison_label

GAINS = {
    "rsa_mean_gain": "gain of mean RSA on held-out images",
    "rsa_transfer_gain": "gain of mean RSA over the network before alignment, by tested subject",
    "eeg_encoding_gain": "gain of M/EEG encoding over the network before alignment",
}


def brain_findings(rows: pd.DataFrame) -> list[str]:
    """Return one sentence a run and kind of gain, and one on the relation of brain-likeness to robustness.

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
        told = "; ".join(_gain(row, name == "rsa_transfer_gain") for row in part.itertuples())
        size = f"n = {int(part['n'].min())} images, {int(part['n_seeds'].max())} seeds"
        lines.append(
            f"{study}, {run}: {GAINS[name]}: {told}. {size}; {part['interval'].iloc[0]}, p by Holm."
        )
    for row in frame[frame["name"] == "brain_robust_correlation"].itertuples():
        said = row.notes.partition("; ")[2]
        lines.append(
            f"{row.study}, {row.run}: brain-like against robust over {int(row.n)} models: rho = {row.value:+.2f} "
            f"[{row.ci_low:+.2f}, {row.ci_high:+.2f}]: {said}."
        )
    return lines


def _gain(row, by_subject: bool) -> str:
    where = f" on {row.subject}" if by_subject else ""
    known = "" if pd.isna(row.p_adjusted) else f", p = {row.p_adjusted:.2g}"
    model = comparison_label(row.name, row.model, row.reference)
    return f"`{model}`{where} {row.value:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]{known}"

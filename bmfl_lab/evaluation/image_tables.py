"""Tables of single images: reliability of the confidence, and where a model does best and worst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bmfl_lab.data.shifts import shifted
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, message, nearest

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("split", "shift", "severity")


def reliability_table(per_image: pd.DataFrame, n_bins: int = 15) -> pd.DataFrame:
    """Return confidence and accuracy by bin, seeds pooled, for reliability diagrams.

    Parameters
    ----------
    per_image : DataFrame
        Of an `OODResult`.
    n_bins : int, default 15
        Bins of equal width of the top-1 probability.

    Returns
    -------
    DataFrame
        ``model, split, shift, severity, bin, low, high, count, confidence, accuracy``; only bins
        with images.
    """
    frame = per_image[per_image["confidence"].notna()]
    bins = np.clip(np.ceil(frame["confidence"] * n_bins).astype(int) - 1, 0, n_bins - 1)
    frame = frame.assign(bin=bins, severity=frame["severity"].astype("Float64"))
    grouped = frame.groupby(["model", *KEYS, "bin"], sort=False, dropna=False)
    table = grouped.agg(
        count=("correct", "size"), confidence=("confidence", "mean"), accuracy=("correct", "mean")
    )
    order = {m: i for i, m in enumerate(dict.fromkeys(frame["model"]))}
    table = table.reset_index().sort_values("bin", kind="stable")
    table = table.sort_values(
        "model", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )
    return table.assign(low=table["bin"] / n_bins, high=(table["bin"] + 1) / n_bins)


def extreme_images(
    per_image: pd.DataFrame, model: str, *, against: str | None = None, n: int = 6
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images on which a model does best and worst by the likelihood of the true class, mean over seeds.

    Parameters
    ----------
    per_image : DataFrame
        Of an `OODResult`.
    model : str
        Which model.
    against : str, optional
        Another model: the images are then those where `model` gains most over it, and loses most.
    n : int, default 6
        Images each.

    Returns
    -------
    best, worst : DataFrame
        ``split, shift, severity, id, label, predicted`` (of the first seed), ``confidence,
        accuracy`` (means over seeds), ``score`` (log likelihood in nats, or its gain), most extreme
        first.

    Raises
    ------
    ConfigError
        If a model is unknown.
    """
    known = list(dict.fromkeys(per_image["model"]))
    for name in (model, *([against] if against else [])):
        if name not in known:
            raise ConfigError(
                message(f"a model among {tuple(known)}", repr(name), nearest(name, known))
            )
    frame = per_image.assign(
        severity=per_image["severity"].astype("Float64").fillna(0), score=-per_image["nll"]
    )
    keys = [*KEYS, "id"]
    mine = (
        frame[frame["model"] == model]
        .groupby(keys, sort=False)
        .agg(
            label=("label", "first"),
            predicted=("predicted", "first"),
            confidence=("confidence", "mean"),
            accuracy=("correct", "mean"),
            score=("score", "mean"),
        )
    )
    if against:
        mine["score"] -= frame[frame["model"] == against].groupby(keys, sort=False)["score"].mean()
    mine = mine[mine["score"].notna()].reset_index()
    mine["severity"] = [int(s) or None for s in mine["severity"]]
    ordered = mine.sort_values("score", kind="stable")
    return ordered[::-1].head(n).reset_index(drop=True), ordered.head(n).reset_index(drop=True)


def image_of(study: Study, row: Any, *, seed: int = 0) -> dict[str, Any]:
    """Return an image named by a row of `extreme_images`, as figures of single predictions take it.

    Parameters
    ----------
    study : Study
        That was evaluated.
    row : Any
        With ``split, shift, severity, id, label, predicted, confidence``.
    seed : int, default 0
        Of the made shifts.

    Returns
    -------
    dict
        ``stimulus`` (a StimulusSet of one image), ``image`` uint8 (H, W, 3), ``true``,
        ``predicted`` (class names), ``confidence`` (fraction), ``where`` (name of the set).

    Raises
    ------
    DataError
        If the study has no such image.
    """
    stimuli = study.set(row.split)
    one = stimuli.subset(stimuli.index_of([row.id]))
    where = row.split
    if row.shift:
        one = shifted(one, row.shift, int(row.severity), seed)
        where = f"{row.shift} {int(row.severity)}"
    names = stimuli.class_names
    predicted = names[row.predicted] if row.predicted >= 0 else "none"
    return {
        "stimulus": one,
        "image": one.image(0),
        "true": names[row.label],
        "predicted": predicted,
        "confidence": float(row.confidence),
        "where": where,
    }

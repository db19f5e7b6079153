"""Accuracy on image sets under a lesion, against random lesions of the same size, from cached tokens.

Shape suffixes: N stimuli of a batch, V vertices, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bmfl_lab.evaluation import explore_tokens as tokens
from bmfl_lab.metrics.classification import predictions
from bmfl_lab.metrics.statistics import bootstrap_mean
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.runtime import rng


def rows_of(explorer: Any, name: str) -> np.ndarray:
    """Return the image numbers of a set's batch: at most ``explorer.n_batch``, spread evenly over the set."""
    n = explorer.size(name)
    return np.unique(np.linspace(0, n - 1, min(explorer.n_batch, n)).astype(int))


def _inputs(explorer: Any, model: Any, name: str) -> tuple:
    """Return tokens, responses and labels of a set's batch, and what the fusion makes of the tokens alone."""

    def make() -> tuple:
        stimuli, rows = explorer.stimuli(name), rows_of(explorer, name)
        stored = tokens.of_set(explorer, model.config.kind, model.config.block, name)
        own = model.encoder is not None and model.encoder is explorer.encoder
        response = None
        if model.source is not None:
            response = (
                tokens.predicted_rows(explorer, name, rows)
                if own
                else model.predict_responses(stimuli)[rows]
            )
        parts = (
            torch.from_numpy(np.asarray(a[rows], dtype=np.float32))
            for a in (stored.cls, stored.patches)
        )
        cls, patches = parts
        return (
            cls,
            patches,
            response,
            np.asarray(stimuli.labels)[rows],
            model.image_side(cls, patches),
        )

    return explorer._remember(("batch", id(model), name), make)


def correct(
    explorer: Any, model: str, name: str, lesion: Lesion | None = None, rows: slice = slice(None)
) -> np.ndarray:
    """Return which images of a set's batch are classified correctly, bool (N,); NaN logits are wrong.

    With a lesion, `rows` chooses images of the batch.

    Raises
    ------
    ConfigError
        If a lesion is asked of a model without a brain.
    """
    found = explorer._model(model)
    if not hasattr(found, "classify"):
        stimuli = explorer.stimuli(name).subset(rows_of(explorer, name))
        logits = explorer._remember(("logits", model, name), lambda: found.logits(stimuli))
        return predictions(logits) == np.asarray(stimuli.labels)

    def ask() -> np.ndarray:
        cls, patches, response, labels, seen = _inputs(explorer, found, name)
        response, seen = (
            response if response is None else response[rows],
            seen if seen is None else seen.rows(rows),
        )
        logits = found.classify(cls[rows], patches[rows], response, lesion, image_side=seen)[
            "logits"
        ]
        return predictions(logits) == labels[rows]

    return ask() if lesion is not None else explorer._remember(("correct", model, name), ask)


def key_of(lesion: Lesion | None) -> tuple | None:
    """Return what tells lesions apart."""
    return (
        None
        if lesion is None
        else (lesion.mask.tobytes(), lesion.kind, lesion.strength, lesion.seed)
    )


def random_lesions(explorer: Any, lesion: Lesion) -> list[Lesion]:
    """Return lesions of as many random vertices of each hemisphere as `lesion` has, drawn among all vertices."""
    side = np.asarray(explorer.atlas.hemisphere)
    found = []
    for draw in range(explorer.n_controls):
        mask, random = np.zeros(len(side), dtype=bool), rng(explorer.seed, "random lesion", draw)
        for number in (0, 1):
            n = int((lesion.mask & (side == number)).sum())
            mask[random.choice(np.flatnonzero(side == number), n, replace=False)] = True
        found.append(Lesion(mask, lesion.kind, lesion.strength, seed=explorer.seed))
    return found


def batch(
    explorer: Any, model: str, sets: Sequence[str], lesion: Lesion | None = None
) -> dict[str, np.ndarray]:
    """Return accuracy on image sets: intact, lesioned, and under random lesions of the same size.

    Parameters
    ----------
    explorer : Explorer
        Of the study and its models.
    model : str
        Name of the model.
    sets : sequence of str
        Image sets, e.g. "test" and "masked 3".
    lesion : Lesion, optional
        None for the intact model alone.

    Returns
    -------
    dict of str to ndarray, shape (n_sets, 3)
        ``accuracy``, ``low``, ``high`` (95 % bootstrap over images; for the control each image
        stands under one of the random lesions, in turn); columns intact, lesioned, control (NaN
        without a lesion). ``n`` (n_sets,); ``changed`` (n_sets, 2): images that the lesion turns
        wrong, and right.
    """
    sets = tuple(sets)
    return explorer._remember(
        ("table", model, sets, key_of(lesion)), lambda: _table(explorer, model, sets, lesion)
    )


def _table(
    explorer: Any, model: str, sets: Sequence[str], lesion: Lesion | None
) -> dict[str, np.ndarray]:
    out = {k: np.full((len(sets), 3), np.nan) for k in ("accuracy", "low", "high")}
    out["n"], out["changed"] = np.zeros(len(sets), dtype=int), np.zeros((len(sets), 2), dtype=int)
    controls = [] if lesion is None else random_lesions(explorer, lesion)
    for row, name in enumerate(sets):
        intact = correct(explorer, model, name)
        columns = [intact]
        if lesion is not None:
            columns.append(correct(explorer, model, name, lesion))
            control = np.zeros(len(intact), dtype=bool)
            for draw, random in enumerate(controls):
                rows = slice(draw, None, len(controls))
                control[rows] = correct(explorer, model, name, random, rows)
            columns.append(control)
            out["changed"][row] = (intact & ~columns[1]).sum(), (~intact & columns[1]).sum()
        out["n"][row] = len(intact)
        for column, values in enumerate(columns):
            interval = bootstrap_mean(
                np.asarray(values, dtype=float), n_boot=explorer.n_boot, seed=explorer.seed
            )
            for key, value in (
                ("accuracy", interval.value),
                ("low", interval.low),
                ("high", interval.high),
            ):
                out[key][row, column] = np.nan if value is None else value
    return out


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Return class probabilities, float64 (N, C)."""
    powers_NC = np.asarray(logits_NC, dtype=np.float64)
    powers_NC = np.exp(powers_NC - powers_NC.max(1, keepdims=True))
    return powers_NC / powers_NC.sum(1, keepdims=True)

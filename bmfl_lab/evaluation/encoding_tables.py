"""Which block serves which region, and controls that an encoder must beat."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bmfl_lab.backbones import Backbone, FeatureStore, StoredTokens, load_backbone
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.evaluation.encoding import regions
from bmfl_lab.metrics.correlation import pearson
from bmfl_lab.metrics.noise import aggregate
from bmfl_lab.models.ridge import DEFAULT_ALPHAS, fit_ridge
from bmfl_lab.runtime import pick_device, rng

N_SHUFFLES = 5
"""Random pairings over which the control "shuffled pairing" is averaged."""
_SHUFFLED_VALUES = 5e8  # responses held at once for that: about 2 GB


def _features(stored: StoredTokens) -> np.ndarray:
    if stored.manifest["identity"]["kind"].startswith("pooled"):
        return np.asarray(stored.patches, np.float32).reshape(len(stored), -1)
    return stored.features()


def _ridge_r(
    X: np.ndarray,
    who: Subject,
    split: str,
    alphas: Sequence[float],
    device: str,
    shuffle: int | None = None,
) -> np.ndarray:
    """Fit on "train" and return r per vertex on `split`.

    `shuffle` seeds random pairings within "train", over which r is averaged: the vertices of a
    region vary together, so that a single pairing's mean r strays from zero by about one over the
    root of the number of stimuli.
    """
    train, held = who.rows("train"), who.rows(split)
    pairings = [train]
    if shuffle is not None:
        draws = int(np.clip(_SHUFFLED_VALUES / (len(train) * who.n_vertices), 1, N_SHUFFLES))
        pairings = [rng(shuffle, "controls", "pairing", k).permutation(train) for k in range(draws)]
    Y = np.concatenate([np.asarray(who.responses[rows], np.float32) for rows in pairings], axis=1)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="expected at most 5%"
        )  # a control has no best penalty
        fit = fit_ridge(X[train], Y, alphas, device=device)
    measured = np.asarray(who.responses[held], np.float32)
    parts = np.split(fit.predict(X[held]), len(pairings), axis=1)
    return np.mean([pearson(measured, part) for part in parts], axis=0)


def _by_region(r: np.ndarray, atlas: Atlas) -> dict[str, float]:
    return {name: aggregate(r[mask])["mean"] for name, mask in regions(atlas).items()}


def block_table(
    study: Study,
    subject: str | None = None,
    *,
    blocks: Sequence[int] | None = None,
    split: str = "val",
    tokens: str = "cls+mean",
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    backbone: Backbone | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> tuple[pd.DataFrame, np.ndarray]:
    """Score a ridge on every backbone block, to see which block serves which region.

    Parameters
    ----------
    blocks : sequence of int, optional
        Default all.
    split : str, default "val"
        Where r is taken: choosing a block on "test" would spend the test.
    tokens : str, default "cls+mean"
        "cls", "cls+mean" or "pooled:G".

    Returns
    -------
    table : pandas.DataFrame
        One row a block, one column a region: mean r.
    r : ndarray of float32, shape (n_blocks, n_vertices)
        Per vertex, for a surface map of the best block.
    """
    who = study.subject(subject)
    backbone = backbone or _default_backbone(study, device)
    blocks = list(range(backbone.n_blocks)) if blocks is None else list(blocks)
    store = store if store is not None else FeatureStore()
    stored = store.get_many(backbone, who.stimuli, [(tokens, b) for b in blocks])
    r = np.stack([_ridge_r(_features(s), who, split, alphas, pick_device(device)) for s in stored])
    table = pd.DataFrame(
        [_by_region(row, who.atlas) for row in r], index=pd.Index(blocks, name="block")
    )
    return table, r


def _default_backbone(study: Study, device: str, weights: str | None = None) -> Backbone:
    spec = study.backbone
    chosen = spec.weights if weights is None else weights
    return load_backbone(
        spec.name,
        chosen,
        image_size=spec.image_size,
        device=pick_device(device),
        resize=spec.resize,
    )


CONTROLS = ("as trained", "random weights", "shuffled pairing", "luminance layout", "position only")


def encoding_controls(
    study: Study,
    subject: str | None = None,
    *,
    controls: Sequence[str] = CONTROLS,
    split: str = "test",
    tokens: str = "pooled:4",
    block: int = -1,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    seed: int = 0,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Score a ridge on the backbone's tokens beside controls that should do worse.

    Parameters
    ----------
    controls : sequence of str
        "as trained"; "random weights": the same architecture, untrained; "shuffled pairing":
        responses of other stimuli in training, mean over `N_SHUFFLES` pairings (fewer where memory
        forbids); "luminance layout": mean colour of each cell of the grid instead of tokens;
        "position only": every token replaced by its mean over images, so that only its place is
        left. The last predicts the same response to every image: r is undefined (NaN) unless an
        image leaks in.
    tokens, block, alphas, split
        As `block_table`; the default keeps a 4 x 4 grid.

    Returns
    -------
    pandas.DataFrame
        One row a control, one column a region: mean r over defined vertices; plus ``n_undefined``.

    Raises
    ------
    ConfigError
        If a control is unknown.
    """
    unknown = [c for c in controls if c not in CONTROLS]
    if unknown:
        raise ConfigError(
            message(f"controls among {CONTROLS}", repr(unknown[0]), "choose some of them")
        )
    who, where = study.subject(subject), pick_device(device)
    store = store if store is not None else FeatureStore()

    def features(weights: str | None = None) -> np.ndarray:
        backbone = _default_backbone(study, device, weights)
        return _features(store.get(backbone, who.stimuli, tokens, block=block))

    def score(control: str) -> np.ndarray:
        if control == "random weights":
            return _ridge_r(features(f"random:{seed + 1000}"), who, split, alphas, where)
        if control == "luminance layout":
            return _ridge_r(_luminance(who.stimuli), who, split, alphas, where)
        X = features()
        if control == "position only":
            X = np.broadcast_to(X.mean(0), X.shape).copy()
        return _ridge_r(
            X, who, split, alphas, where, seed if control == "shuffled pairing" else None
        )

    found = {c: score(c) for c in controls}
    table = pd.DataFrame(
        [_by_region(r, who.atlas) for r in found.values()], index=pd.Index(found, name="control")
    )
    table["n_undefined"] = [int(np.sum(~np.isfinite(r))) for r in found.values()]
    return table


def _luminance(stimuli: StimulusSet, side: int = 4) -> np.ndarray:
    """Return the mean colour of each cell of a grid, float32 (n_stimuli, side * side * 3), 0 to 1."""
    out = np.empty((len(stimuli), side * side * 3), np.float32)
    for i in range(len(stimuli)):
        rows = np.array_split(stimuli.image(i).astype(np.float32) / 255, side, axis=0)
        out[i] = np.concatenate(
            [c.mean((0, 1)) for row in rows for c in np.array_split(row, side, axis=1)]
        )
    return out

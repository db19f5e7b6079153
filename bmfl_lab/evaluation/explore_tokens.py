"""Tokens and predicted responses of single images and whole sets for the widgets, each made once.

Shape suffixes: N stimuli, P patches, D width, V vertices.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bmfl_lab.backbones.tokens import extract_many


def of_set(explorer: Any, kind: str, block: int, name: str) -> Any:
    """Return the stored tokens of a whole set."""
    return explorer._remember(
        ("set tokens", kind, block, name),
        lambda: explorer.store.get(
            explorer.backbone, explorer.stimuli(name), kind=kind, block=block
        ),
    )


def of_image(
    explorer: Any, kind: str, block: int, name: str, index: int, shift: str, severity: int
) -> tuple:
    """Return CLS (1, D), patches (1, P, D) and the grid of one image."""
    if shift or name not in explorer.study.sets:
        stored = _single(explorer, kind, block, name, index, shift, severity)
        # as the store keeps them, so that an image gives the same answer alone and in its set
        return stored.cls.astype(np.float16), stored.patches.astype(np.float16), stored.grid
    stored = of_set(explorer, kind, block, name)
    rows = slice(explorer._index(explorer.stimuli(name), index), index + 1)
    return stored.cls[rows], stored.patches[rows], stored.grid


def _single(
    explorer: Any, kind: str, block: int, name: str, index: int, shift: str, severity: int
) -> Any:
    """Return the tokens of an image that no stored set holds; one pass makes them for all models and the encoder."""
    wanted = _reads(explorer)
    if (kind, block % explorer.backbone.n_blocks) not in wanted:
        wanted = ((kind, block % explorer.backbone.n_blocks),)
    found = explorer._remember(
        ("tokens", wanted, name, index, shift, shift and severity),
        lambda: extract_many(
            explorer.backbone, explorer._one(name, index, shift, severity), wanted
        ),
    )
    return found[wanted.index((kind, block % explorer.backbone.n_blocks))]


def _reads(explorer: Any) -> tuple[tuple[str, int], ...]:
    """Return kind and block of all tokens that the models and the encoder read from the explorer's backbone."""

    def collect() -> tuple[tuple[str, int], ...]:
        found = [
            (m.config.kind, m.config.block)
            for m in explorer._models.values()
            if hasattr(m, "answer")
        ]
        if explorer.encoder is not None and _same_backbone(explorer) is not None:
            found += [
                (s["kind"], s["block"])
                for s in explorer.encoder.sources
                if s["features"] == "tokens"
            ]
        return tuple(
            dict.fromkeys((kind, block % explorer.backbone.n_blocks) for kind, block in found)
        )

    return explorer._remember(("reads",), collect)


def for_encoder(
    explorer: Any, name: str, index: int, shift: str = "", severity: int = 3
) -> tuple[Any, ...]:
    """Return the tokens of one image that the encoder reads, one a block.

    Raises
    ------
    ConfigError
        If there is no brain encoder.
    """
    encoder, same = explorer._need_encoder(), _same_backbone(explorer)
    if not shift and name in explorer.study.sets:
        row = explorer._index(explorer.stimuli(name), index)
        return tuple(_rows(stored, slice(row, row + 1)) for stored in _encoder_set(explorer, name))
    if same is not None and all(s["features"] == "tokens" for s in encoder.sources):
        return tuple(
            _single(explorer, s["kind"], s["block"], name, index, shift, severity)
            for s in encoder.sources
        )
    return explorer._remember(
        ("encoder tokens", name, index, shift, shift and severity),
        lambda: encoder.tokens(
            explorer._one(name, index, shift, severity), backbone=same, device=explorer.device
        ),
    )


def predicted(explorer: Any, name: str, index: int, shift: str, severity: int) -> np.ndarray:
    """Return the predicted response to an image, float32 (V,)."""
    encoder = explorer._need_encoder()
    if not shift and ("responses", name) in explorer._known:
        return all_predicted(explorer, name)[explorer._index(explorer.stimuli(name), index)]
    return explorer._remember(
        ("predicted", name, index, shift, shift and severity),
        lambda: encoder.predict(
            for_encoder(explorer, name, index, shift, severity), device=explorer.device
        )[0],
    )


def predicted_rows(explorer: Any, name: str, rows: np.ndarray) -> np.ndarray:
    """Return the predicted responses to some images of a set, float32 (len(rows), V)."""
    if ("responses", name) in explorer._known or name not in explorer.study.sets:
        return all_predicted(explorer, name)[rows]
    stored = tuple(_rows(s, rows) for s in _encoder_set(explorer, name))
    return explorer._need_encoder().predict(stored, device=explorer.device)


def all_predicted(explorer: Any, name: str) -> np.ndarray:
    """Return the predicted responses to a whole set, float32 (N, V)."""
    encoder = explorer._need_encoder()
    options = {
        "store": explorer.store,
        "backbone": _same_backbone(explorer),
        "device": explorer.device,
    }
    return explorer._remember(
        ("responses", name), lambda: encoder.predict_stimuli(explorer.stimuli(name), **options)
    )


def _encoder_set(explorer: Any, name: str) -> tuple[Any, ...]:
    options = {
        "store": explorer.store,
        "backbone": _same_backbone(explorer),
        "device": explorer.device,
    }
    return explorer._remember(
        ("encoder tokens", name),
        lambda: explorer._need_encoder().tokens(explorer.stimuli(name), **options),
    )


def _same_backbone(explorer: Any) -> Any:
    """Return the explorer's backbone if it is the encoder's, else None: the encoder then loads its own."""

    def compare() -> Any:
        mine = explorer.backbone.describe() | {"weights_label": ""}
        same = mine == dict(explorer.encoder.sources[0]["backbone"]) | {"weights_label": ""}
        return explorer.backbone if same else None

    return explorer._remember(("same backbone",), compare)


def _rows(stored: Any, rows: Any) -> Any:
    """Return the tokens of some stimuli of a set."""
    arrays = {k: getattr(stored, k) for k in ("cls", "mean", "patches")}
    return dataclasses.replace(stored, **{k: v[rows] for k, v in arrays.items() if v is not None})

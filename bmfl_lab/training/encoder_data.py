"""What a brain encoder learns from: the subject's identity, rows and regions."""

from __future__ import annotations

import hashlib

import numpy as np

from bmfl_lab.data.atlas import ALGONAUTS_ROIS, Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.runtime import rng
from bmfl_lab.training.encoder_config import EncoderConfig


def subject_fingerprint(subject: Subject) -> str:
    """Return 16 hexadecimal digits that change with any image, response, ROI or split of the subject."""
    h = hashlib.sha256(f"{subject.name}\n{subject.stimuli.fingerprint()}\n".encode())
    step = max(1, (64 << 20) // max(1, subject.n_vertices * 4))
    for start in range(0, len(subject.stimuli), step):
        h.update(np.ascontiguousarray(subject.responses[start : start + step]).tobytes())
    h.update(np.asarray(subject.atlas.hemisphere, np.int8).tobytes())
    for name, mask in subject.atlas.rois.items():
        h.update(name.encode() + np.packbits(np.asarray(mask, bool)).tobytes())
    for name in sorted(subject.splits):
        h.update(name.encode() + np.asarray(subject.splits[name], np.int64).tobytes())
    return h.hexdigest()[:16]


def split_rows(config: EncoderConfig, subject: Subject) -> tuple[dict[str, np.ndarray], str]:
    """Return the rows for training and validation, and how they were chosen; "test" is never among them.

    Raises
    ------
    DataError
        If fewer than three stimuli would be left for validation.
    """
    train = subject.rows("train")
    if len(subject.splits.get("val", ())):
        rows, how = (
            {"train": train, "val": subject.rows("val")},
            "the subject's own validation split",
        )
    else:
        order = rng(config.split_seed, "encoder", "val").permutation(len(train))
        n = round(config.val_fraction * len(train))
        rows = {"train": np.sort(train[order[n:]]), "val": np.sort(train[order[:n]])}
        how = f"{config.val_fraction:.0%} of train, drawn with seed {config.split_seed}"
    if len(rows["val"]) < 3 or not len(rows["train"]):
        raise DataError(
            message(
                "at least 3 stimuli for validation and some for training",
                f"{len(rows['val'])} and {len(rows['train'])}",
                "raise val_fraction or give more stimuli",
            )
        )
    return rows, how


def scheme_rois(atlas: Atlas, scheme: str) -> dict[str, np.ndarray]:
    """Return the ROIs that get a query under a scheme ("rois", "streams", "hemispheres").

    "rois" leaves the streams out where other ROIs exist, since those cover them.
    """
    streams = ALGONAUTS_ROIS["streams"]
    present = {n: np.asarray(atlas.rois[n], bool) for n in atlas.present}
    if scheme == "hemispheres":
        return {}
    if scheme == "streams":
        found = {n: m for n, m in present.items() if n in streams}
        if not found:
            raise ConfigError(
                message("an atlas with streams", ", ".join(atlas.present), "use scheme='rois'")
            )
        return found
    return {n: m for n, m in present.items() if n not in streams} or present

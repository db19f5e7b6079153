"""A second *simulated* subject beside a simulated one, to see whether a measure finds what two brains share."""

from __future__ import annotations

import numpy as np

from bmfl_lab.data.planted import add_repeats
from bmfl_lab.data.responses import Subject
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.runtime import rng

BLOCK = 256
"""Largest number of vertices whose responses are mixed with one another; keeps the mixing matrices small."""


def simulate_other(subject: Subject, *, share: float = 0.7, seed: int = 1) -> Subject:
    """Simulate another subject who saw the same images.

    Parameters
    ----------
    subject : Subject
        A simulated subject whose noiseless responses are known.
    share : float, default 0.7
        Share of the variance of the new subject's noiseless responses that is the first subject's
        coding of the image; the rest is as reliable but has nothing to do with it.
    seed : int
        Of the mixing, of what is not shared, and of the noise.

    Returns
    -------
    Subject
        Same stimuli, splits, atlas and noise ceilings; ``truth`` holds "noiseless" and "share".
        Named "NAME-otherSEED".

    Raises
    ------
    ConfigError
        If `share` is not in 0..1.
    DataError
        If the subject was measured, or its noiseless responses or noise ceilings are not known.

    Notes
    -----
    Within each ROI the first subject's responses are turned by a random rotation, which keeps the
    geometry of an ROI's patterns and moves it to other vertices. What is not shared are patterns of
    the same kind that belong to other stimuli. Our choice; nothing here resembles how brains
    differ.
    """
    if not 0 <= share <= 1:
        raise ConfigError(
            message(
                "a share from 0 to 1", repr(share), "choose how much both subjects have in common"
            )
        )
    truth = subject.truth
    if not subject.simulated or "noiseless" not in truth or subject.noise_ceiling is None:
        raise DataError(
            message(
                "a simulated subject with noiseless responses and noise ceilings",
                f"{subject.name!r}",
                "use the study's other measured subjects",
            )
        )
    draw = rng(seed, "simulated people")
    known = np.asarray(truth["noiseless"], dtype=np.float32)
    turned = np.empty_like(known)
    for group in _groups(subject, draw):
        rotation = np.linalg.qr(draw.standard_normal((len(group), len(group))))[0].astype(
            np.float32
        )
        turned[:, group] = known[:, group] @ rotation
    mixed = np.sqrt(share) * turned + np.sqrt(1 - share) * turned[draw.permutation(len(turned))]
    spread = mixed.std(axis=0)
    noiseless = (mixed - mixed.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
    sessions = (
        np.zeros(len(known), np.int64) if subject.sessions is None else np.asarray(subject.sessions)
    )
    n_repeats = 1 if subject.repeats is None else subject.repeats.shape[1]
    ceiling = np.asarray(subject.noise_ceiling, dtype=np.float32)
    usable = np.where(np.isfinite(ceiling), np.clip(ceiling, 0.01, 0.99), 0.5).astype(np.float32)
    responses, repeats = add_repeats(noiseless, usable, sessions, n_repeats, draw)
    return Subject(
        name=f"{subject.name}-other{seed}",
        stimuli=subject.stimuli,
        responses=responses,
        atlas=subject.atlas,
        splits=subject.splits,
        noise_ceiling=usable,
        repeats=repeats if n_repeats > 1 else None,
        sessions=sessions,
        simulated=True,
        truth={"noiseless": noiseless, "share": share},
    )


def _groups(subject: Subject, draw: np.random.Generator) -> list[np.ndarray]:
    """Return vertices that belong to the same ROIs, in random order, at most `BLOCK` together."""
    signature = np.zeros(subject.n_vertices, dtype=np.int64)
    for k, roi in enumerate(subject.atlas.present):
        signature[subject.atlas.select(roi)] = k + 1
    found = []
    for value in np.unique(signature):
        members = draw.permutation(np.flatnonzero(signature == value))
        found += np.array_split(members, -(-len(members) // BLOCK))
    return found

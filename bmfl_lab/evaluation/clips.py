"""Moving images: features of the frames of clips, and motion energy as a baseline.

Shapes: n clips, T frames, H and W pixels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmfl_lab.backbones import Backbone
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError, require, require_known
from bmfl_lab.evaluation.layers import layer_features


def _checked(clips: Sequence[np.ndarray], least: int, same: bool) -> list[int]:
    """Return the number of frames of each clip."""
    wrong = [k for k, c in enumerate(clips) if np.ndim(c) != 4 or np.shape(c)[-1] != 3]
    require(
        len(clips) and not wrong,
        DataError,
        "clips of shape (frames, height, width, 3)",
        f"shape {np.shape(clips[wrong[0]])} of clip {wrong[0]}" if wrong else "no clip",
        "read each clip as an array of RGB frames",
    )
    lengths = [len(c) for c in clips]
    require(
        min(lengths) >= least,
        DataError,
        f"{least} or more frames per clip",
        f"{min(lengths)} in clip {int(np.argmin(lengths))}",
        "leave that clip out, or read more of its frames",
    )
    require(
        not same or len(set(lengths)) == 1,
        DataError,
        "clips of one length",
        f"{min(lengths)} to {max(lengths)} frames",
        "cut them to one length, or pool over frames",
    )
    return lengths


def clip_features(
    clips: Sequence[np.ndarray],
    backbone: Backbone,
    *,
    pool: str = "mean",
    tokens: str = "cls",
    block: int = -1,
) -> np.ndarray:
    """Return the features of clips, each of whose frames runs through a backbone by itself.

    Parameters
    ----------
    clips : sequence of ndarray of uint8, each of shape (T, H, W, 3)
        Clips; T may differ with ``pool="mean"``.
    backbone : Backbone
        Frozen backbone.
    pool : {"mean", "frames"}, default "mean"
        "mean" averages over frames; "frames" puts the frames side by side.
    tokens : str, default "cls"
        Tokens that represent a frame, see `layer_features`.
    block : int, default -1
        Block of the backbone; -1 is the last one.

    Returns
    -------
    ndarray of float32, shape (n, D) or (n, T * D)

    Raises
    ------
    ConfigError
        If `pool` is unknown.
    DataError
        If there is no clip, a clip has no frame, or lengths differ with ``pool="frames"``.
    """
    require_known(pool, ("mean", "frames"), ConfigError, "how to pool over frames")
    lengths = _checked(clips, 1, pool == "frames")
    frames = np.concatenate([np.asarray(c, np.uint8) for c in clips])
    ids = [f"clip{k}-frame{t}" for k, n in enumerate(lengths) for t in range(n)]
    images = from_arrays("frames", frames, ids, np.full(len(ids), -1))
    chosen = block % backbone.n_blocks
    (x,) = layer_features(backbone, images, tokens, blocks=[chosen]).values()
    parts = np.split(x, np.cumsum(lengths)[:-1])
    found = [p.mean(0) if pool == "mean" else p.ravel() for p in parts]
    return np.stack(found).astype(np.float32)


def motion_energy(clips: Sequence[np.ndarray], *, cells: int = 2) -> np.ndarray:
    """Return the motion energy of clips in four directions, as a baseline without learning.

    Parameters
    ----------
    clips : sequence of ndarray of uint8, each of shape (T, H, W, 3)
        Clips of one length and size, with four frames or more.
    cells : int, default 2
        The image is divided into cells x cells parts.

    Returns
    -------
    ndarray of float32, shape (n, cells * cells * 4)
        Logarithm of the power that moves right, left, down and up in each part.

    Raises
    ------
    DataError
        If a clip has fewer than four frames, or lengths or sizes differ.

    Notes
    -----
    Power is summed over the quadrants of the spectrum over time and one axis of space; what moves
    to the right has frequencies of opposite signs. Summing over whole quadrants, in place of single
    spatiotemporal Gabor filters, is our choice.

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A 2;
    Nishimoto et al. (2011), Reconstructing visual experiences from brain activity evoked by natural
    movies, Current Biology 21.
    """
    _checked(clips, 4, True)
    sizes = {np.shape(c)[1:3] for c in clips}
    require(
        len(sizes) == 1 and min(min(sizes)) >= 4 * cells,
        DataError,
        f"clips of one size, of at least {4 * cells} pixels",
        sorted(sizes),
        "resize the frames of all clips to one size",
    )
    grey = np.stack([np.asarray(c, np.float64).mean(3) for c in clips])
    parts = []
    for rows in np.array_split(grey, cells, axis=2):
        for part in np.array_split(rows, cells, axis=3):
            part = part - part.mean(axis=(1, 2, 3), keepdims=True)
            for axis in (3, 2):
                power = np.abs(np.fft.fft2(part, axes=(1, axis))) ** 2
                time = np.sign(np.fft.fftfreq(part.shape[1]))
                space = np.sign(np.fft.fftfreq(part.shape[axis]))
                power = power.mean(5 - axis)
                product = time[:, None] * space
                parts += [(power * (product < 0)).sum((1, 2)), (power * (product > 0)).sum((1, 2))]
    return np.log1p(np.stack(parts, 1)).astype(np.float32)

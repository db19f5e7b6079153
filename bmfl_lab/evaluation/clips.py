"""Moving images: features of the frames of clips or of other models, and motion energy.

Shapes: n clips, T frames, H and W pixels, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bmfl_lab.backbones import Backbone
from bmfl_lab.data.class_folders import list_images
from bmfl_lab.data.images import decode_image
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError, require, require_known
from bmfl_lab.evaluation.layers import layer_features
from bmfl_lab.evaluation.similarity import encoding_predictions
from bmfl_lab.files import link_guard, system_errors
from bmfl_lab.metrics.correlation import mean_pearson, pearson
from bmfl_lab.metrics.statistics import percentiles
from bmfl_lab.runtime import rng

POOLS = ("mean", "frames")


POOL_OR_CUT = "cut them to the length of the shortest, or pool over frames with pool='mean'"


def _checked(clips: Sequence[np.ndarray], least: int, *, remedy: str = "") -> list[int]:
    """Return the number of frames of each clip, which must be the same if there is a remedy."""
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
    if remedy:
        _require_one_length(lengths, remedy)
    return lengths


def _require_one_length(lengths: Sequence[int], remedy: str) -> None:
    require(
        len(set(lengths)) == 1,
        DataError,
        "clips of one length",
        f"{min(lengths)} to {max(lengths)} frames",
        remedy,
    )


def read_clips(folder: str | Path) -> dict[str, np.ndarray]:
    """Read clips that are kept as one folder of frames each.

    Parameters
    ----------
    folder : str or Path
        Folder with one folder per clip, whose image files are its frames in the order of their
        names, such as those that ``ffmpeg -i clip.mp4 clip/%04d.png`` writes.

    Returns
    -------
    dict of str to ndarray of uint8, shape (T, H, W, 3)
        Frames of each clip by the name of its folder, in the order of the names.

    Raises
    ------
    DataError
        If there is no clip, a clip has no frame, or its frames differ in size.
    """
    folder = Path(folder).expanduser()
    with system_errors(folder):
        places = sorted(p for p in folder.iterdir() if p.is_dir())
    remedy = "save the frames of each clip as images in a folder of its own"
    require(places, DataError, f"a folder per clip in {folder}", "none", remedy)
    clips = {}
    for place in places:
        paths = list_images(place, link_guard(folder), Counter())
        frames = [decode_image(path) for path in paths]
        sizes = {frame.shape for frame in frames}
        require(
            len(sizes) == 1,
            DataError,
            f"one or more frames of one size in clip {place.name!r}",
            f"{len(frames)} frames of {len(sizes)} sizes",
            f"move its folder out of {folder.name!r}, or save its frames again, all of one size",
        )
        clips[place.name] = np.stack(frames)
    return clips


def imported_features(
    path: str | Path,
    clips: Sequence[str],
    ids: str | Path | Sequence[str] | None = None,
    *,
    pool: str = "mean",
    key: str = "features",
) -> np.ndarray:
    """Read features of clips that another model computed, such as a model of video or of sound.

    Parameters
    ----------
    path : str or Path
        ``.npy``, ``.npz`` or HDF5 file with an array (n_rows, D). A row belongs to a clip, or to
        frame 12 of the clip "waves" if its id is "waves-frame12".
    clips : sequence of str
        Ids of the clips.
    ids : str, Path or sequence of str, optional
        Id of each row; by default the array "ids" of the file. See
        `bmfl_lab.data.imported.read_responses`.
    pool : {"mean", "frames"}, default "mean"
        "mean" averages the rows of a clip; "frames" puts them side by side.
    key : str, default "features"
        Name of the array in an ``.npz`` or HDF5 file.

    Returns
    -------
    ndarray of float32, shape (n, D) or (n, T * D)

    Raises
    ------
    ConfigError
        If `pool` is unknown, or the rows have no ids.
    DataError
        If a clip has no row, or clips have different numbers of rows with ``pool="frames"``.
    """
    require_known(pool, POOLS, ConfigError, "how to pool over frames")
    read = read_responses(path, ids, space="voxels", key=key)
    rows: dict[str, list[tuple[int, int]]] = {}
    for row, name in enumerate(read.ids):
        clip, _, frame = name.rpartition("-frame")
        of_frame = bool(clip) and frame.isdigit()
        rows.setdefault(clip if of_frame else name, []).append((int(frame) if of_frame else 0, row))
    missing = [clip for clip in clips if clip not in rows]
    require(
        len(clips) and not missing,
        DataError,
        f"features of each of the {len(clips)} clips in {read.source}",
        f"none of {missing[0]!r} and {len(missing) - 1} others" if missing else "no clip",
        "name each row by its clip, or by its clip and frame, such as 'waves-frame12'",
    )
    chosen = [[row for _, row in sorted(rows[clip])] for clip in clips]
    if pool == "frames":
        _require_one_length([len(c) for c in chosen], POOL_OR_CUT)
    values = np.asarray(read.values)
    return np.stack([values[c].mean(0) if pool == "mean" else values[c].ravel() for c in chosen])


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
    require_known(pool, POOLS, ConfigError, "how to pool over frames")
    lengths = _checked(clips, 1, remedy=POOL_OR_CUT if pool == "frames" else "")
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
    _checked(clips, 4, remedy="cut them to the length of the shortest")
    sizes = {np.shape(c)[1:3] for c in clips}
    require(
        len(sizes) == 1 and min(min(sizes)) >= 4 * cells,
        DataError,
        f"clips of one size, of at least {4 * cells} pixels",
        sorted(sizes),
        f"resize the frames of all clips to one size, {4 * cells} pixels or more",
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


def clip_encoding(
    features: Mapping[str, np.ndarray],
    responses: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    n_shuffles: int = 200,
    n_boot: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare how well several sets of features predict the responses to clips.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n, D)
        Features of the clips by name, such as those of `motion_energy` and `imported_features`.
    responses : ndarray, shape (n, V)
        Responses to the clips.
    train, test : ndarray of int64
        Clips to fit on and to score.
    n_shuffles : int, default 200
        Number of shuffles of the test clips.
    n_boot : int, default 500
        Bootstrap resamples of the test clips.
    seed : int, default 0
        Seed of the resamples and of the shuffled pairs.

    Returns
    -------
    DataFrame
        Columns features, model ("encoding", or the control "shuffled pairs": the predictions beside
        the responses to other test clips), value (Pearson r over test clips, mean over vertices; 0
        by chance; for the control the mean over shuffles), ci_low and ci_high (95 % interval over
        test clips; for the control the range of 95 % of the shuffles).

    Raises
    ------
    DataError
        See `encoding_predictions`.
    """
    measured = np.asarray(responses, np.float32)[test]
    own = encoding_predictions(features, responses, train=train, test=test)
    orders = [rng(seed, "shuffled clips", k).permutation(len(test)) for k in range(n_shuffles)]
    rows = []
    for name, predicted in own.items():
        rows.append((name, "encoding", *mean_pearson(measured, predicted, n_boot, seed)))
        null = [float(np.nan_to_num(pearson(measured[k], predicted)).mean()) for k in orders]
        rows.append((name, "shuffled pairs", float(np.mean(null)), *percentiles(null)))
    return pd.DataFrame(rows, columns=["features", "model", "value", "ci_low", "ci_high"])

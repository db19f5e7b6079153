"""Moving images as stimuli: frames through a backbone, and motion energy as the baseline.

Shapes: n clips, T frames, H and W pixels, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bmfl_lab.data import StimulusSet
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.runtime import rng

POOLS = ("mean", "frames")
_SIDE, _LEAST_FRAMES = 32, 4
"""Side in pixels to which frames are reduced for motion energy, and frames that it needs (ours)."""
_CYCLES_PER_IMAGE = (1, 2, 4, 8, 16)
_CYCLES_PER_FRAME = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Limits of the octaves of spatial and temporal frequency (our choice)."""


@dataclass(frozen=True)
class Clips:
    """Hold clips as one set of frames.

    Parameters
    ----------
    frames : StimulusSet
        All frames, clip after clip.
    lengths : ndarray of int64, shape (n,)
        Number of frames of each clip.
    """

    frames: StimulusSet
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def spans(self) -> list[slice]:
        """Return the rows of `frames` that belong to each clip."""
        ends = np.cumsum([0, *self.lengths])
        return [slice(start, stop) for start, stop in pairwise(ends)]


def from_clips(name: str, clips: Sequence[np.ndarray]) -> Clips:
    """Make a set of clips from arrays.

    Parameters
    ----------
    name : str
        Name of the set.
    clips : sequence of ndarray of uint8, each of shape (T, H, W, 3)
        Clips of any lengths and of one size.

    Returns
    -------
    Clips
        Frame t of clip i has the id "<name>-i-t".

    Raises
    ------
    DataError
        If there is no clip, a clip has no frame, or a frame is no RGB image of that size.
    """
    shapes = [np.shape(clip) for clip in clips]
    wrong = [i for i, s in enumerate(shapes) if len(s) != 4 or not s[0] or s[1:] != shapes[0][1:]]
    require(
        shapes and not wrong,
        DataError,
        "clips of shape (T, H, W, 3), each with a frame and all of one size",
        f"shape {shapes[wrong[0]]} of clip {wrong[0]}" if wrong else "no clip",
        "leave out empty clips and resize the others",
    )
    ids = [f"{name}-{i}-{t}" for i, shape in enumerate(shapes) for t in range(shape[0])]
    frames = from_arrays(name, np.concatenate(clips), ids, np.full(len(ids), -1))
    return Clips(frames, np.array([shape[0] for shape in shapes], np.int64))


def drifting_gratings(
    angles: Sequence[float],
    image_size: int,
    *,
    n_frames: int = 8,
    cycles: float = 3.0,
    speed: float = 0.2,
    seed: int = 0,
) -> list[np.ndarray]:
    """Return clips of drifting gratings, whose single frames do not tell which way they move.

    Parameters
    ----------
    angles : sequence of float
        Direction of motion of each clip in radians, counterclockwise from rightwards.
    image_size, n_frames : int
        Side in pixels and number of frames, default 8.
    cycles, speed : float, default 3 and 0.2
        Cycles per image, and cycles per frame.
    seed : int, default 0
        Seed of the phases.

    Returns
    -------
    list of ndarray of uint8, each of shape (n_frames, image_size, image_size, 3)
    """
    y, x = np.mgrid[:image_size, :image_size] / image_size
    phases = rng(seed, "gratings").random(len(angles))
    clips = []
    for angle, start in zip(angles, phases):
        along = x * np.cos(angle) - y * np.sin(angle)  # rows run downwards
        phase = cycles * along - speed * np.arange(n_frames)[:, None, None] + start
        grey = (127 + 90 * np.cos(2 * np.pi * phase)).astype(np.uint8)
        clips.append(np.repeat(grey[..., None], 3, axis=3))
    return clips


def clip_features(
    features: Mapping[str, np.ndarray], clips: Clips, *, pool: str = "mean"
) -> dict[str, np.ndarray]:
    """Turn features of frames into features of clips.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n_frames, d)
        Features of all frames by layer: `layer_features` of ``clips.frames``, or those of another
        model that were computed elsewhere.
    clips : Clips
        The clips.
    pool : {"mean", "frames"}, default "mean"
        Average over the frames of a clip, or join its frames in their order.

    Returns
    -------
    dict of str to ndarray of float32, shape (n, d) or (n, T d)

    Raises
    ------
    ConfigError
        If `pool` is unknown.
    DataError
        If a layer has another number of frames, or frames of clips of different lengths are to be
        joined.
    """
    require(
        pool in POOLS, ConfigError, f"pool among {POOLS}", repr(pool), "average, or join the frames"
    )
    lengths = sorted(set(clips.lengths.tolist()))
    require(
        pool == "mean" or len(lengths) == 1,
        DataError,
        "clips of one length where their frames are joined",
        f"clips of {lengths[0]} to {lengths[-1]} frames",
        "cut them to the shortest one, or take pool='mean'",
    )
    found = {}
    for layer, values in features.items():
        require(
            np.ndim(values) == 2 and len(values) == len(clips.frames),
            DataError,
            f"features of {len(clips.frames)} frames in {layer!r}",
            f"shape {np.shape(values)}",
            "compute them for clips.frames, in its order",
        )
        parts = [np.asarray(values[span], np.float32) for span in clips.spans()]
        found[layer] = np.stack([p.mean(0) if pool == "mean" else p.ravel() for p in parts])
    return found


def motion_energy(clips: Clips, *, n_directions: int = 8) -> tuple[np.ndarray, list[str]]:
    """Return the energy of motion in each direction, by spatial and temporal frequency.

    Parameters
    ----------
    clips : Clips
        Clips of at least 4 frames.
    n_directions : int, default 8
        Number of directions, from rightwards on, counterclockwise.

    Returns
    -------
    energy : ndarray of float32, shape (n, n_features)
        Logarithm of one plus the power of the grey clip in each band.
    names : list of str, length n_features
        "direction 45, 2-4 cycles/image, 0.125-0.25 cycles/frame".

    Raises
    ------
    DataError
        If a clip has fewer than 4 frames.

    Notes
    -----
    Power is taken from the Fourier transform of the whole clip under a Hann window. It has no place
    in the image, which filters at many places (Nishimoto et al. 2011) would have: as a baseline it
    tells which motion there was, and a backbone that beats it has to do more.

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, J Opt Soc Am
    A 2:284-299.
    """
    require(
        clips.lengths.min() >= _LEAST_FRAMES,
        DataError,
        f"at least {_LEAST_FRAMES} frames per clip for motion energy",
        f"{clips.lengths.min()} in the shortest clip",
        "take longer clips, or more frames per second",
    )
    bands = [
        (direction, space, time)
        for direction in range(n_directions)
        for space in pairwise(_CYCLES_PER_IMAGE)
        for time in pairwise(_CYCLES_PER_FRAME)
    ]
    names = [
        f"direction {360 * d / n_directions:g}, {a}-{b} cycles/image, {s:g}-{t:g} cycles/frame"
        for d, (a, b), (s, t) in bands
    ]
    energy = np.zeros((len(clips), len(bands)), np.float32)
    for row, span in zip(energy, clips.spans()):
        grey = np.stack([_small(clips.frames.image(i)) for i in range(span.start, span.stop)])
        row[:] = _energy(grey, bands, n_directions)
    return np.log1p(energy), names


def _small(image: np.ndarray) -> np.ndarray:
    """Return a grey image of `_SIDE` pixels, from 0 to 1."""
    from PIL import Image

    grey = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float64) / 255


def _energy(
    grey: np.ndarray,
    bands: Sequence[tuple[int, tuple[float, float], tuple[float, float]]],
    n_directions: int,
) -> list[float]:
    """Return the mean power of a clip (T, side, side) in each band."""
    windows = [np.hanning(n + 2)[1:-1] for n in grey.shape]
    windowed = (grey - grey.mean()) * np.einsum("t,y,x->tyx", *windows)
    power = np.abs(np.fft.fftn(windowed)) ** 2 / grey.size
    t, y, x = np.meshgrid(*(np.fft.fftfreq(n) for n in grey.shape), indexing="ij")
    forward, radius = t > 0, np.hypot(x, y) * _SIDE
    # cos(2 pi (x fx + y fy + t ft)) moves against (fx, fy) where ft > 0; image rows run downwards
    angle = np.arctan2(y, -x) % (2 * np.pi)
    bins = np.round(angle * n_directions / (2 * np.pi)).astype(int) % n_directions
    found = []
    for direction, space, time in bands:
        inside = forward & (bins == direction) & (radius >= space[0]) & (radius < space[1])
        inside &= (t >= time[0]) & (t < time[1])
        found.append(float(power[inside].mean()) if inside.any() else 0.0)
    return found

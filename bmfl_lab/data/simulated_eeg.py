"""*Simulated* sensors x times with planted latencies, to see whether a measure finds what was planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import DataError, message
from bmfl_lab.runtime import rng


def simulate_eeg(
    sources: Mapping[str, np.ndarray],
    latencies: Mapping[str, float],
    ids: Sequence[str],
    *,
    n_channels: int = 12,
    n_repeats: int = 4,
    window: tuple[float, float] = (-0.1, 0.5),
    step: float = 0.02,
    width: float = 0.04,
    noise: float = 1.0,
    seed: int = 0,
) -> EEG:
    """Make M/EEG in which each source is seen at its own moment.

    Parameters
    ----------
    sources : mapping of str to ndarray, shape (n_stimuli, d)
        What is encoded: the layers of a network, or the noiseless responses of ROIs.
    latencies : mapping of str to float
        Seconds after onset at which each source is strongest.
    ids : sequence of str
        Stimulus ids, one a row.
    n_channels, n_repeats : int
        Simulated sensors and presentations.
    window, step : float
        First and last time and the sampling interval, seconds.
    width : float
        Standard deviation of a source's Gaussian time course, seconds.
    noise : float
        Standard deviation of the white noise of one presentation; each source has unit variance at
        its peak.
    seed : int
        Of the topographies and the noise.

    Returns
    -------
    EEG
        ``simulated`` is True and the channels are named "sim01", ...

    Raises
    ------
    DataError
        If sources and latencies have different names, or rows and ids differ in number.

    Notes
    -----
    Random linear topographies and Gaussian time courses are our choice; nothing here resembles a
    head.
    """
    if set(sources) != set(latencies) or not sources:
        raise DataError(
            message(
                f"a latency for each of {tuple(sources)}",
                f"{tuple(latencies)}",
                "name the same sources in both",
            )
        )
    times = np.arange(window[0], window[1] + step / 2, step)
    draw, signal = rng(seed, "simulated eeg"), 0.0
    for name, values in sources.items():
        x = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        if len(x) != len(ids):
            raise DataError(
                message(f"{len(ids)} stimuli in {name!r}", str(len(x)), "give one row an id")
            )
        spread = x.std(axis=0)
        x = (x - x.mean(axis=0)) / np.where(spread > 1e-12, spread, np.inf)
        seen = x @ draw.standard_normal((x.shape[1], n_channels))
        seen /= np.maximum(seen.std(axis=0), 1e-12)
        signal = signal + seen[:, :, None] * np.exp(
            -((times - latencies[name]) ** 2) / (2 * width**2)
        )
    shape = (len(ids), n_repeats, n_channels, len(times))
    data = signal[:, None] + noise * draw.standard_normal(shape)
    channels = tuple(f"sim{i + 1:02d}" for i in range(n_channels))
    return EEG(
        data.astype(np.float32),
        channels,
        times,
        np.asarray([str(i) for i in ids], dtype=object),
        True,
    )

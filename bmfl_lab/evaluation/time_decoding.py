"""Decoding of M/EEG over time and by sensor, M/EEG as a subject, and blur of the images.

Shapes: n stimuli, C channels, T times, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet, from_arrays
from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.evaluation.decoding import identify
from bmfl_lab.evaluation.embeddings import fit_decoder
from bmfl_lab.evaluation.similarity import encoding_predictions
from bmfl_lab.metrics.correlation import mean_pearson, pearson


def windows(times: np.ndarray, width: float, step: float) -> dict[float, np.ndarray]:
    """Return the samples of sliding windows.

    Parameters
    ----------
    times : ndarray, shape (T,)
        Seconds after image onset.
    width, step : float
        Length of a window and distance between windows, in seconds.

    Returns
    -------
    dict of float to ndarray of bool, shape (T,)
        Middle of each window in seconds to its samples.

    Raises
    ------
    ConfigError
        If a window holds no sample, or a length is not positive.
    """
    times = np.asarray(times, float)
    least = float(np.diff(times).max()) if len(times) > 1 else 0.0
    require(
        width >= least - 1e-9 and step > 0 and width <= times[-1] - times[0],
        ConfigError,
        f"windows between {least:g} s and {times[-1] - times[0]:g} s, in positive steps",
        f"width {width:g} s, step {step:g} s",
        "use for example width=0.05, step=0.02",
    )
    starts = np.arange(times[0], times[-1] - width + 1e-9, step)
    inside = {s + width / 2: (times >= s - 1e-9) & (times <= s + width + 1e-9) for s in starts}
    return {round(float(middle), 6): kept for middle, kept in inside.items()}


def decode_over_time(
    eeg: EEG,
    embeddings: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    width: float = 0.06,
    step: float = 0.04,
    n_boot: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Decode embeddings from sliding windows of M/EEG, and from shuffled pairs as a control.

    Parameters
    ----------
    eeg : EEG
        Evoked responses; repeats are averaged.
    embeddings : ndarray, shape (n, D)
        Embeddings of its stimuli.
    train, test : ndarray of int
        Rows to fit on and to score.
    width, step : float, default 0.06, 0.04
        Window in seconds, in which each channel is averaged, and its step (our choice).
    n_boot : int, default 500
        Bootstrap resamples of the test stimuli.
    seed : int, default 0
        Seed of the resamples and of the shuffled pairs.

    Returns
    -------
    DataFrame
        Columns time (s), model ("decoder" or "shuffled pairs"), value (two-way identification,
        chance 0.5), ci_low and ci_high.

    Raises
    ------
    ConfigError, DataError
        See `windows` and `fit_decoder`.
    """
    data, rows = eeg.mean(), []
    for time, kept in windows(eeg.times, width, step).items():
        x = data[:, :, kept].mean(2)
        for model, shuffled in (("decoder", False), ("shuffled pairs", True)):
            decoder = fit_decoder(x[train], embeddings[train], shuffled=shuffled, seed=seed)
            decoded = decoder.predict(x[test]) - decoder.centre
            found = identify(decoded, embeddings[test] - decoder.centre, n_boot=n_boot, seed=seed)
            ends = {"ci_low": found.two_way_low, "ci_high": found.two_way_high}
            rows.append({"time": time, "model": model, "value": found.two_way, **ends})
    return pd.DataFrame(rows)


def decode_by_sensor(
    eeg: EEG,
    embeddings: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    window: tuple[float, float],
    n_boot: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Decode embeddings from each sensor alone.

    Parameters
    ----------
    eeg, embeddings, train, test
        Recording, embeddings and rows, see `decode_over_time`.
    window : tuple of float
        First and last second; the samples between them are the features of a sensor.
    n_boot : int, default 500
        Bootstrap resamples of the test stimuli.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    DataFrame
        One row per sensor, by name, with columns value (two-way identification, chance 0.5), ci_low
        and ci_high.

    Raises
    ------
    ConfigError
        If the window holds no sample.
    """
    kept = (eeg.times >= window[0] - 1e-9) & (eeg.times <= window[1] + 1e-9)
    require(
        kept.any(),
        ConfigError,
        f"a window from {eeg.times[0]:g} to {eeg.times[-1]:g} s",
        window,
        "choose one in which there are samples",
    )
    data, rows = eeg.mean()[:, :, kept], {}
    for k, name in enumerate(eeg.channels):
        decoder = fit_decoder(data[train, k], embeddings[train])
        decoded = decoder.predict(data[test, k]) - decoder.centre
        found = identify(decoded, embeddings[test] - decoder.centre, n_boot=n_boot, seed=seed)
        rows[name] = (found.two_way, found.two_way_low, found.two_way_high)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "ci_low", "ci_high"])


def eeg_subject(
    name: str,
    eeg: EEG,
    stimuli: StimulusSet,
    splits: Mapping[str, np.ndarray],
    *,
    width: float = 0.1,
) -> Subject:
    """Return M/EEG as a subject, so that encoders and alignment are trained on it.

    Parameters
    ----------
    name : str
        Name of the subject.
    eeg : EEG
        Evoked responses.
    stimuli : StimulusSet
        Their n images, in the same order.
    splits : mapping of str to ndarray of int
        Rows of "train", "val" and "test".
    width : float, default 0.1
        Length in seconds of the windows in which each sensor is averaged; each window is an ROI.

    Returns
    -------
    Subject
        A "vertex" is one sensor in one window. They lie on no surface, and all count as left.

    Raises
    ------
    DataError
        If the images are not those of the recording.

    Notes
    -----
    ReAlnet-fMRI leaves training on EEG open. Windows and their length are our choice.
    """
    require(
        list(map(str, stimuli.ids)) == list(map(str, eeg.ids)),
        DataError,
        "the images of the recording, in its order",
        f"{len(stimuli)} images and {len(eeg.ids)} recorded stimuli",
        "use eeg_stimuli, or order the images by the ids of the recording",
    )
    found = windows(eeg.times, width, width)
    repeats = [eeg.data[..., kept].mean(-1) for kept in found.values()]
    repeats = np.concatenate(repeats, axis=2).astype(np.float32)
    place = np.repeat(np.arange(len(found)), len(eeg.channels))
    rois = {f"{1000 * time:.0f} ms": place == k for k, time in enumerate(found)}
    atlas = Atlas(np.zeros(len(place), np.int8), rois, groups={})
    kind = "simulated" if eeg.simulated else "measured"
    several = repeats if repeats.shape[1] > 1 else None
    return Subject(name, stimuli, repeats.mean(1), atlas, splits, repeats=several, kind=kind)


def blur_sweep(
    stimuli: StimulusSet,
    responses: np.ndarray,
    features_of: Callable[[StimulusSet], np.ndarray],
    train: np.ndarray,
    test: np.ndarray,
    sigmas: Sequence[float] = (0, 1, 2, 4, 8),
    *,
    spread: float = 0.0,
    n_boot: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Encode responses from images of increasing blur: how sharp is what the recording tells?

    Parameters
    ----------
    stimuli : StimulusSet
        Images.
    responses : ndarray, shape (n, V)
        Responses, e.g. of sensors or vertices.
    features_of : callable
        ``features_of(stimuli) -> (n, d)``, such as the last block of a backbone.
    train, test : ndarray of int
        Rows to fit on and to score.
    sigmas : sequence of float, default (0, 1, 2, 4, 8)
        Standard deviations of the Gaussian blur in pixels.
    spread : float from 0 to 1, default 0
        Above 0 the blur is also an **uncertainty-aware augmentation**: each training image is
        blurred by a strength of its own between (1 - spread) and (1 + spread) times sigma, the more
        the worse its response is predicted within the training images. Test images keep sigma.
    n_boot : int, default 500
        Bootstrap resamples of the test stimuli.
    seed : int, default 0
        Seed of the resamples.

    Returns
    -------
    DataFrame
        Columns sigma, model ("same blur", and with a spread also "uncertainty-aware"), value (r
        over test stimuli, mean over vertices), ci_low and ci_high (over test stimuli).

    Raises
    ------
    ConfigError
        If a blur is negative, there are fewer than two, or the spread lies outside 0 to 1.

    Notes
    -----
    A blur prior for M/EEG and fMRI blurs images by the uncertainty of their pair. How the
    uncertainty is measured (two-fold prediction within the training images) and the range of the
    strengths are our choice.
    """
    require(
        len(sigmas) >= 2 and min(sigmas) >= 0 and 0 <= spread <= 1,
        ConfigError,
        "two or more blurs of at least 0 pixels, and a spread from 0 to 1",
        f"{tuple(sigmas)} and {spread:g}",
        "use for example (0, 2, 4) and spread=0.5",
    )
    measured = np.asarray(responses)
    doubt = np.zeros(len(stimuli))
    if spread:
        doubt[train] = _uncertainty(np.asarray(features_of(stimuli)), measured, np.asarray(train))
    rows = []
    for sigma in sigmas:
        for model in ("same blur", "uncertainty-aware")[: 2 if spread else 1]:
            own = sigma * (1 + spread * doubt * (model != "same blur"))
            blurred = np.stack(
                [_blur(stimuli.image(i), float(own[i])) for i in range(len(stimuli))]
            )
            images = from_arrays(f"{model} {sigma}", blurred, stimuli.ids, stimuli.labels)
            x = {"x": np.asarray(features_of(images))}
            predicted = encoding_predictions(x, responses, train=train, test=test)["x"]
            found = mean_pearson(measured[test], predicted, n_boot, seed)
            rows.append((float(sigma), model, *found))
    return pd.DataFrame(rows, columns=["sigma", "model", "value", "ci_low", "ci_high"])


def _uncertainty(features: np.ndarray, responses: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return the rank of how badly each training response is predicted, from -1 to 1 (worst)."""
    match = np.zeros(len(train))
    halves = np.arange(len(train)) % 2
    for half in (0, 1):
        held = np.flatnonzero(halves == half)
        parts = {"train": train[halves != half], "test": train[held]}
        predicted = encoding_predictions({"x": features}, responses, **parts)["x"]
        centre = responses[parts["train"]].mean(axis=0)
        actual = responses[parts["test"]] - centre
        match[held] = np.nan_to_num(pearson(actual.T, (predicted - centre).T))
    return 1 - 2 * np.argsort(np.argsort(match)) / max(len(train) - 1, 1)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))

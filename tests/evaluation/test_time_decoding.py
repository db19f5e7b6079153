"""M/EEG over time with a planted latency and sensor, and a planted blur."""

from dataclasses import replace

import numpy as np
import pytest

from bmfl_lab.data.simulate import simulate_eeg
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.time_decoding import (
    _blur,
    blur_sweep,
    decode_by_sensor,
    decode_over_time,
    eeg_subject,
)

N, LATENCY, SENSOR = 160, 0.2, 3
TRAIN, TEST = np.arange(110), np.arange(110, N)


@pytest.fixture(scope="module")
def recording():
    embeddings = np.random.default_rng(0).normal(size=(N, 6))
    ids = [f"i{k}" for k in range(N)]
    return simulate_eeg({"x": embeddings}, {"x": LATENCY}, ids, n_channels=8), embeddings


def test_the_planted_latency_is_found_and_shuffled_pairs_stay_at_chance(recording):
    found = decode_over_time(*recording, TRAIN, TEST, n_boot=100)
    own = found[found["model"] == "decoder"].set_index("time")
    assert abs(own["value"].idxmax() - LATENCY) <= 0.04
    assert own["ci_low"].max() > 0.8 and own.loc[:0.0, "value"].max() < 0.62
    control = found[found["model"] == "shuffled pairs"]["value"]
    assert abs(control - 0.5).max() < 0.15


def test_the_planted_sensor_is_found(recording):
    eeg, embeddings = recording
    data = eeg.data.copy()
    silent = np.arange(len(eeg.channels)) != SENSOR
    data[:, :, silent] = np.random.default_rng(1).normal(size=data[:, :, silent].shape)
    found = decode_by_sensor(replace(eeg, data=data), embeddings, TRAIN, TEST, window=(0.15, 0.25))
    assert found.idxmax() == eeg.channels[SENSOR] and found.max() > 0.65
    assert found.drop(eeg.channels[SENSOR]).max() < found.max() - 0.05
    with pytest.raises(ConfigError, match="a window from"):
        decode_by_sensor(eeg, embeddings, TRAIN, TEST, window=(3.0, 4.0))


def pictures(n=N):
    images = np.random.default_rng(2).integers(0, 256, (n, 24, 24, 3)).astype(np.uint8)
    return from_arrays("pictures", images, [f"i{k}" for k in range(n)], np.full(n, -1))


def test_the_sweep_returns_the_planted_blur():
    stimuli = pictures()

    def features(images):
        x = np.stack([images.image(i) for i in range(len(images))]).astype(np.float32)
        return x[:, ::6, ::6].reshape(len(x), -1) / 255

    planted = np.stack([_blur(stimuli.image(i), 2) for i in range(N)]).astype(np.float32)
    x = planted[:, ::6, ::6].reshape(N, -1) / 255
    x = (x - x.mean(0)) / x.std(0)
    draw = np.random.default_rng(3)
    y = x @ draw.normal(size=(x.shape[1], 20))
    y += y.std() * 0.5 * draw.normal(size=y.shape)
    found = blur_sweep(stimuli, y, features, TRAIN, TEST, (0, 1, 2, 4), n_boot=50)
    assert found.set_index("sigma")["value"].idxmax() == 2
    with pytest.raises(ConfigError, match="two or more blurs"):
        blur_sweep(stimuli, y, features, TRAIN, TEST, (1,))


def test_a_recording_becomes_a_subject(recording):
    eeg, _ = recording
    splits = {"train": TRAIN[:90], "val": TRAIN[90:], "test": TEST}
    person = eeg_subject("sub", eeg, pictures(), splits)
    assert person.kind == "simulated" and person.responses.shape == (N, 8 * len(person.atlas.rois))
    roi = next(name for name in person.atlas.rois if name.startswith("150"))
    inside = (eeg.times >= 0.1 - 1e-9) & (eeg.times <= 0.2 + 1e-9)
    wanted = eeg.mean()[:, :, inside].mean(2)
    assert np.allclose(person.responses[:, person.atlas.rois[roi]], wanted, atol=1e-5)
    with pytest.raises(DataError, match="the images of the recording"):
        eeg_subject("sub", eeg, pictures(9), splits)
    with pytest.raises(ConfigError, match="windows between"):
        decode_over_time(eeg, recording[1], TRAIN, TEST, width=9.0)

"""M/EEG over time with a planted latency and sensor, and a planted blur."""

from dataclasses import replace

import numpy as np
import pytest

from bmfl_lab.data.simulate import simulate_eeg
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.time_decoding import (
    _blur,
    _uncertainty,
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
    best, value = eeg.channels[SENSOR], found["value"]
    assert value.idxmax() == best and value.max() > 0.65 and found.loc[best, "ci_low"] > 0.5
    assert value.drop(best).max() < value.max() - 0.05
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
    found = blur_sweep(stimuli, y, features, TRAIN, TEST, (0, 1, 2, 4), spread=0.5, n_boot=50)
    by = found.set_index(["model", "sigma"])
    for model in ("same blur", "uncertainty-aware"):
        assert by.loc[model, "value"].idxmax() == 2
    assert by.loc[("same blur", 2), "ci_low"] > by.loc[("same blur", 0), "ci_high"]
    # the interval is over images: fewer of them make it wider, more vertices do not make it narrow
    twice = blur_sweep(stimuli, np.tile(y, 4), features, TRAIN, TEST, (1, 2), n_boot=50)
    few = blur_sweep(stimuli, y, features, TRAIN, TEST[:15], (1, 2), n_boot=50)
    width = [(t["ci_high"] - t["ci_low"]).iloc[-1] for t in (twice, few)]
    all_of_them = by.loc[("same blur", 2)]
    assert width[0] == pytest.approx(all_of_them["ci_high"] - all_of_them["ci_low"], rel=0.01)
    assert width[1] > 1.3 * width[0]
    with pytest.raises(ConfigError, match="two or more blurs"):
        blur_sweep(stimuli, y, features, TRAIN, TEST, (1,))


def test_an_uncertain_pair_is_the_one_that_is_badly_predicted():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(N, 8))
    y = x @ draw.normal(size=(8, 30))
    bad = TRAIN[::5]
    y[bad] = draw.normal(size=(len(bad), 30)) * y.std()
    found = _uncertainty(x, y, TRAIN)
    assert found.min() == -1 and found.max() == 1
    assert found[::5].mean() > 0.5 and found[1::5].mean() < 0


def test_the_map_of_the_head_needs_positions(recording):
    eeg, embeddings = recording
    places = eeg.layout()
    assert places.shape == (8, 2) and np.linalg.norm(places, axis=1).max() <= 1
    ids = [f"i{k}" for k in range(N)]
    behind = simulate_eeg({"x": embeddings}, {"x": LATENCY}, ids, focus=(0, -0.8), noise=2.0)
    found = decode_by_sensor(behind, embeddings, TRAIN, TEST, window=(0.15, 0.25), n_boot=20)
    back = behind.layout()[:, 1] < -0.4
    assert found["value"][back].mean() > found["value"][~back].mean() + 0.1
    assert found["value"].idxmax() in np.asarray(behind.channels)[back]
    # from the vertex of the head to the ears is a quarter turn
    round_head = replace(eeg, positions=np.eye(3)[[2, 0, 1, 0, 1, 0, 1, 0]])
    np.testing.assert_allclose(round_head.layout()[:3], [[0, 0], [np.pi / 2, 0], [0, np.pi / 2]])
    with pytest.raises(DataError, match=r"sensors without positions.*electrodes\.tsv"):
        replace(eeg, positions=None).layout()
    with pytest.raises(DataError, match="positions of the 8 sensors"):
        replace(eeg, positions=np.zeros((7, 3)))


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

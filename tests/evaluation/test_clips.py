"""Moving images: planted motion tuning is found by motion energy, and single frames fail."""

import numpy as np
import pytest

from bmfl_lab import metrics
from bmfl_lab.backbones import load_backbone
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import encoding_predictions, layer_features
from bmfl_lab.evaluation.clips import (
    clip_features,
    drifting_gratings,
    from_clips,
    motion_energy,
)

N, SIDE = 160, 28


def test_energy_is_largest_in_the_direction_of_motion():
    angles = np.arange(8) * np.pi / 4
    energy, names = motion_energy(from_clips("moving", drifting_gratings(angles, SIDE)))
    assert energy.shape == (8, len(names)) and np.isfinite(energy).all()
    for row, angle in zip(energy, np.rad2deg(angles)):
        best = names[row.argmax()]
        assert best == f"direction {angle:g}, 2-4 cycles/image, 0.125-0.25 cycles/frame"


def test_a_clip_that_runs_backwards_moves_the_other_way():
    forward, backward = *drifting_gratings([0.0], SIDE), drifting_gratings([0.0], SIDE)[0][::-1]
    energy, names = motion_energy(from_clips("both", [forward, backward]))
    right = [i for i, name in enumerate(names) if name.startswith("direction 0,")]
    left = [i for i, name in enumerate(names) if name.startswith("direction 180,")]
    np.testing.assert_allclose(energy[0, right], energy[1, left], rtol=1e-3, atol=1e-5)
    assert energy[0, right].max() > 10 * energy[0, left].max()


def test_planted_motion_tuning_is_found_and_single_frames_fail():
    """Half of the directions are opposite to the other half, so that their frames are the same."""
    draw = np.random.default_rng(1)
    angles = draw.integers(0, 8, N) * np.pi / 4
    clips = from_clips("tuned", drifting_gratings(angles, SIDE, seed=2))
    preferred = np.arange(4) * np.pi / 2
    responses = np.cos(angles[:, None] - preferred) + 0.3 * draw.standard_normal((N, 4))
    backbone = load_backbone("vit_tiny14", "random:0", image_size=SIDE)
    frames = layer_features(backbone, clips.frames, blocks=[-1 % backbone.n_blocks])
    features = {f"static, {k}": v for k, v in clip_features(frames, clips).items()}
    features["motion"] = motion_energy(clips)[0]
    train, test = np.arange(120), np.arange(120, N)
    predicted = encoding_predictions(features, responses, train=train, test=test, n_components=20)
    r = {k: float(np.mean(metrics.pearson(responses[test], v))) for k, v in predicted.items()}
    assert r["motion"] > 0.8 and max(v for k, v in r.items() if k != "motion") < 0.4, r


def test_features_of_frames_are_averaged_or_joined_in_their_order():
    clips = from_clips("made", [np.zeros((n, 4, 4, 3), np.uint8) for n in (2, 2, 2)])
    values = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(
        clip_features({"a": values}, clips)["a"], values.reshape(3, 2, 2).mean(1)
    )
    joined = clip_features({"a": values}, clips, pool="frames")["a"]
    np.testing.assert_array_equal(joined, values.reshape(3, 4))
    uneven = from_clips("uneven", [np.zeros((n, 4, 4, 3), np.uint8) for n in (1, 3, 2)])
    means = clip_features({"a": values}, uneven)["a"]
    np.testing.assert_array_equal(means, [values[0], values[1:4].mean(0), values[4:].mean(0)])
    with pytest.raises(DataError, match=r"1 to 3 frames.*cut them to the shortest"):
        clip_features({"a": values}, uneven, pool="frames")
    with pytest.raises(DataError, match=r"features of 6 frames in 'a'.*in its order"):
        clip_features({"a": values[:5]}, uneven)
    with pytest.raises(ConfigError, match="average, or join"):
        clip_features({"a": values}, uneven, pool="max")


@pytest.mark.parametrize(
    "clips",
    [
        [],
        [np.zeros((0, 4, 4, 3), np.uint8)],
        [np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 5, 4, 3), np.uint8)],
        [np.zeros((4, 4, 3), np.uint8)],
    ],
)
def test_clips_without_frames_or_of_other_sizes_are_refused(clips):
    with pytest.raises(DataError, match="leave out empty clips and resize the others"):
        from_clips("bad", clips)


def test_short_clips_have_no_motion_energy():
    with pytest.raises(DataError, match=r"at least 4 frames.*longer clips"):
        motion_energy(from_clips("short", [np.zeros((3, 4, 4, 3), np.uint8)]))

"""Clips: frames through a backbone, and motion energy on a planted motion tuning."""

import numpy as np
import pytest
from PIL import Image

from bmfl_lab.backbones import load_backbone
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation.clips import (
    clip_encoding,
    clip_features,
    imported_features,
    motion_energy,
    read_clips,
)

T, SIDE, N = 4, 28, 120


def grating(direction, axis, phase, contrast):
    """Return a grating that moves a quarter of its wavelength per frame, whatever the direction."""
    x = np.arange(SIDE)
    frames = [
        128 + contrast * np.cos(2 * np.pi * x / 7 - direction * np.pi / 2 * t + phase)
        for t in range(T)
    ]
    lines = np.tile(np.asarray(frames)[:, None, :], (1, SIDE, 1))
    lines = lines if axis == 1 else lines.transpose(0, 2, 1)
    return np.repeat(lines[..., None], 3, axis=3).astype(np.uint8)


@pytest.fixture(scope="module")
def moving():
    draw = np.random.default_rng(0)
    direction = draw.choice([-1, 1], N)
    clips = [grating(d, 1, draw.uniform(0, 6.3), draw.uniform(40, 90)) for d in direction]
    responses = np.outer(direction, [1.0, -1.0, 0.5]) + 0.5 * draw.normal(size=(N, 3))
    return clips, responses, np.arange(80), np.arange(80, N)


def score(features, moving):
    _, responses, train, test = moving
    table = clip_encoding({"x": features}, responses, train, test, n_boot=50)
    found, control = (table[table["model"] == m].iloc[0] for m in ("encoding", "shuffled pairs"))
    assert found["ci_low"] < found["value"] < found["ci_high"]
    assert control["ci_low"] < 0 < control["ci_high"] and abs(control["value"]) < 0.1
    return found["value"]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(
        "vit_tiny14", weights="random:0", image_size=28, resize="direct", device="cpu"
    )


def test_motion_energy_finds_the_planted_tuning_and_static_features_do_not(moving, backbone):
    clips = moving[0]
    assert score(motion_energy(clips, cells=1), moving) > 0.6
    # each frame by itself has no direction: neither pooled over frames nor the first frame alone
    assert score(clip_features(clips, backbone), moving) < 0.35
    assert score(clip_features([c[:1] for c in clips], backbone), moving) < 0.35


def test_directions_are_told_apart():
    right, left = (motion_energy([grating(d, 1, 0, 80)], cells=1)[0] for d in (1, -1))
    down, up = (motion_energy([grating(d, 0, 0, 80)], cells=1)[0] for d in (1, -1))
    found = [int(np.argmax(x)) for x in (right, left, down, up)]
    assert found == [0, 1, 2, 3]


def test_frames_are_pooled_or_side_by_side(backbone):
    clips = [grating(1, 1, p, 80) for p in (0, 1)]
    frames = clip_features(clips, backbone, pool="frames").reshape(2, T, -1)
    np.testing.assert_allclose(frames.mean(1), clip_features(clips, backbone), atol=1e-5)


def test_clips_without_frames_or_of_different_lengths_are_refused(backbone):
    clips = [grating(1, 1, 0, 80), grating(1, 1, 0, 80)[:2]]
    assert clip_features(clips, backbone).shape[0] == 2
    with pytest.raises(DataError, match="clips of one length; got 2 to 4 frames"):
        clip_features(clips, backbone, pool="frames")
    with pytest.raises(DataError, match="1 or more frames per clip; got 0 in clip 1"):
        clip_features([clips[0], clips[0][:0]], backbone)
    with pytest.raises(DataError, match="4 or more frames per clip; got 2 in clip 1"):
        motion_energy(clips)
    with pytest.raises(DataError, match="no clip"):
        motion_energy([])
    with pytest.raises(DataError, match=r"shape \(28, 28, 3\) of clip 0"):
        clip_features([clips[0][0]], backbone)
    with pytest.raises(ConfigError, match="how to pool"):
        clip_features(clips, backbone, pool="max")


def test_features_of_another_model_are_paired_by_clip(moving, tmp_path):
    responses = moving[1]
    names = [f"clip{k}" for k in range(N)]
    draw = np.random.default_rng(1)
    tuned = responses + 0.2 * draw.normal(size=responses.shape)
    order = draw.permutation(N)
    np.savez(tmp_path / "video.npz", features=tuned[order], ids=np.asarray(names)[order])
    found = imported_features(tmp_path / "video.npz", names)
    np.testing.assert_allclose(found, tuned, atol=1e-5)
    assert score(found, moving) > 0.6
    with pytest.raises(DataError, match="none of 'waves' and 0 others"):
        imported_features(tmp_path / "video.npz", [*names, "waves"])


def test_features_per_frame_are_pooled_or_side_by_side(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    ids = ["b-frame1", "b-frame0", "a-frame0", "a-frame1", "a-frame10", "c"]
    np.savez(tmp_path / "x.npz", features=values, ids=ids)
    both = imported_features(tmp_path / "x.npz", ["a", "b"])
    assert both.tolist() == [[6, 7], [1, 2]]
    assert imported_features(tmp_path / "x.npz", ["b"], pool="frames").tolist() == [[2, 3, 0, 1]]
    with pytest.raises(DataError, match="clips of one length; got 2 to 3 frames"):
        imported_features(tmp_path / "x.npz", ["a", "b"], pool="frames")
    with pytest.raises(ConfigError, match="how to pool"):
        imported_features(tmp_path / "x.npz", ["a"], pool="max")
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ConfigError, match="the images of the rows"):
        imported_features(tmp_path / "x.npy", ["a"])


def test_clips_are_read_from_folders_of_frames(tmp_path):
    clips = {name: grating(1, 1, k, 80)[: 2 + k] for k, name in enumerate(("rain", "waves"))}
    for name, clip in clips.items():
        (tmp_path / name).mkdir()
        for t, frame in enumerate(clip):
            Image.fromarray(frame).save(tmp_path / name / f"{t:04d}.png")
    found = read_clips(tmp_path)
    assert list(found) == ["rain", "waves"]
    assert all(np.array_equal(found[name], clips[name]) for name in clips)
    (tmp_path / "still").mkdir()
    with pytest.raises(DataError, match="frames of one size in clip 'still'; got 0 frames"):
        read_clips(tmp_path)
    with pytest.raises(DataError, match="a folder per clip"):
        read_clips(tmp_path / "rain")

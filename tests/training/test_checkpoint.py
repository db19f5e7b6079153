"""Checkpoints: whole or absent, checked to the bit, and theirs alone."""

import errno
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import CheckpointError
from bmfl_lab.training import checkpoint


def _bundle(folder, name="step-00000001"):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([1, 2]),
        "c": torch.zeros(2).bfloat16(),
    }
    checkpoint.write_bundle(folder, name, tensors, {"step": 1, "history": [{"loss": 0.1}]})
    return tensors


def test_what_is_written_is_read_and_safetensors_agrees(tmp_path):
    tensors = _bundle(tmp_path)
    found, manifest = checkpoint.read_bundle(tmp_path, "step-00000001")
    assert manifest["step"] == 1 and manifest["history"] == [{"loss": 0.1}]
    for source in (found, load_file(tmp_path / "step-00000001.safetensors")):
        assert set(source) == set(tensors) and all(
            torch.equal(source[k], v) for k, v in tensors.items()
        )


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_every_single_flipped_bit_is_refused(tmp_path, suffix):
    _bundle(tmp_path)
    path = tmp_path / f"step-00000001{suffix}"
    raw = path.read_bytes()
    for bit in range(0, len(raw) * 8, 3):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(broken))
        with pytest.raises(CheckpointError):
            checkpoint.read_bundle(tmp_path, "step-00000001")


@pytest.mark.parametrize(
    "suffix, match", [(".json", "nothing readable"), (".safetensors", "both files")]
)
def test_a_missing_file_is_named(tmp_path, suffix, match):
    _bundle(tmp_path)
    (tmp_path / f"step-00000001{suffix}").unlink()
    with pytest.raises(CheckpointError, match=match):
        checkpoint.read_bundle(tmp_path, "step-00000001")


def test_a_cut_file_and_a_renamed_pair_are_refused(tmp_path):
    _bundle(tmp_path)
    (tmp_path / "step-00000002.json").write_bytes((tmp_path / "step-00000001.json").read_bytes())
    with pytest.raises(CheckpointError, match="give both files their old names back"):
        checkpoint.read_bundle(tmp_path, "step-00000002")
    path = tmp_path / "step-00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        CheckpointError, match=r"step-00000001\.safetensors; got .* the file is damaged"
    ):
        checkpoint.read_bundle(tmp_path, "step-00000001")


def test_tensors_exchanged_between_manifest_and_read_are_refused(tmp_path):
    _bundle(tmp_path)
    checkpoint.write_bundle(tmp_path, "other", {"a": torch.ones(2, 3)}, {})
    (tmp_path / "other.safetensors").rename(tmp_path / "step-00000001.safetensors")
    with pytest.raises(CheckpointError, match="damaged or exchanged"):
        checkpoint.read_bundle(tmp_path, "step-00000001")


def test_another_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA", 99)
    _bundle(tmp_path)
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    with pytest.raises(CheckpointError, match=r"schema 1 to 2 .* got 99.* or train again"):
        checkpoint.read_bundle(tmp_path, "step-00000001")


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _with_header(header: bytes, data=b"\0" * 8):
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "raw, match",
    [
        (struct.pack("<Q", 1 << 40) + b"{}", "a header of"),
        (b"\1\2", "a header of"),
        (
            _with_header(
                b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
            ),
            "is written twice",
        ),
        (
            _with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'),
            "got offsets 4 to 8",
        ),
        (_with_header(b"[]"), "a valid safetensors header"),
        (_with_header(b"\xff\xfe"), "a valid safetensors header"),
        (
            _with_header(json.dumps({f"t{i}": _EMPTY for i in range(10_001)}).encode(), b""),
            "at most 10000 tensors in .*; got 10001",
        ),
    ],
)
def test_unsound_headers_are_refused(tmp_path, raw, match):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=match):
        checkpoint.read_tensors(path)


def test_a_header_above_one_megabyte_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.zeros(2)}, {"long": "x" * (1 << 20)}))
    with pytest.raises(CheckpointError, match="a header of"):
        checkpoint.read_tensors(path)


def test_random_headers_never_raise_anything_else(tmp_path):
    path = tmp_path / "x.safetensors"
    raw = save({"a": torch.zeros(3), "b": torch.ones(2, 2)})
    generator = np.random.default_rng(0)
    for _ in range(500):
        broken = bytearray(raw)
        for _ in range(generator.integers(1, 4)):
            broken[generator.integers(0, len(broken) - 28)] = generator.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            checkpoint.read_tensors(path)
        except CheckpointError:
            pass


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path, monkeypatch):
    tensors = _bundle(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(CheckpointError, match=r"room for \d+ bytes .* a full disk"):
        checkpoint.write_bundle(tmp_path, "step-00000002", tensors, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert checkpoint.newest_step(tmp_path) == 1


def test_a_disk_that_is_too_full_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    tensors = _bundle(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 100})())
    with pytest.raises(
        CheckpointError, match=r"room for \d+ bytes .* a full disk.*earlier checkpoints are intact"
    ):
        checkpoint.write_bundle(tmp_path, "step-00000002", tensors, {})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_tensors_are_on_disk_before_the_manifest_has_its_name(tmp_path, monkeypatch):
    order = []
    replace, fsync = checkpoint.os.replace, checkpoint.os.fsync
    monkeypatch.setattr(
        checkpoint.os, "replace", lambda a, b: (order.append(str(b)), replace(a, b))[1]
    )
    monkeypatch.setattr(checkpoint.os, "fsync", lambda d: (order.append("fsync"), fsync(d))[1])
    _bundle(tmp_path)
    names = [o if o == "fsync" else o.rsplit(".", 1)[1] for o in order]
    assert names == ["fsync", "safetensors", "fsync", "fsync", "json", "fsync"]


def test_a_checkpoint_without_manifest_does_not_exist_and_steps_not_clocks_decide(tmp_path):
    _bundle(tmp_path, "step-00000012")
    _bundle(tmp_path, "step-00000003")  # written later
    (tmp_path / "step-00000040.safetensors").write_bytes(b"half")
    (tmp_path / ".step-00000041.json.ab.tmp").write_bytes(b"half")
    assert checkpoint.newest_step(tmp_path) == 12
    checkpoint.prune(tmp_path, {12})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000012.json",
        "step-00000012.safetensors",
    ]


def test_a_bundle_of_something_else_is_refused_before_its_tensors_are_read(tmp_path):
    checkpoint.write_bundle(tmp_path, "x", {"a": torch.zeros(1)}, {}, what="brain encoder")
    assert checkpoint.read_bundle(tmp_path, "x", what="brain encoder")[1]["what"] == "brain encoder"
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"the files of: fusion model, .*; got files of: brain encoder"
    ):
        checkpoint.read_bundle(tmp_path, "x", what="fusion model")


@pytest.mark.parametrize(
    "name, what",
    [("fusion.json", "fusion model"), ("encoder/encoder.json", "brain encoder")],
)
def test_manifests_of_schema_1_say_what_they_are(name, what):
    folder = Path(__file__).parent / "released_models" / "schema-1"
    assert checkpoint.read_manifest(folder / name, what=what)["schema"] == 1


@pytest.mark.parametrize("mesh", [None, "fsaverage"])
def test_an_atlas_is_restored_whole(mesh, tmp_path):
    generator = np.random.default_rng(0)
    atlas = Atlas(
        hemisphere=np.repeat([0, 1], 4).astype(np.int8),
        rois={n: generator.random(8) < p for n, p in (("my own/ROI", 0.5), ("V1", 0.4), ("x", 0))},
        surface_index=None if mesh is None else generator.permutation(100)[:8],
        mesh=mesh,
        groups={"mine": ("my own/ROI", "V1")},
        maps={"eccentricity": generator.random(8), "size": generator.random(8).astype(np.float32)},
    )
    tensors, described = checkpoint.atlas_to_tensors(atlas)
    checkpoint.write_bundle(tmp_path, "x", tensors, {"atlas": described})
    tensors, manifest = checkpoint.read_bundle(tmp_path, "x")
    again = checkpoint.atlas_from_tensors(tensors, manifest["atlas"])
    assert again.mesh == atlas.mesh and again.groups == atlas.groups
    assert list(again.rois) == list(atlas.rois) and list(again.maps) == list(atlas.maps)
    pairs = [
        (atlas.hemisphere, again.hemisphere),
        *zip(
            [*atlas.rois.values(), *atlas.maps.values()],
            [*again.rois.values(), *again.maps.values()],
        ),
    ]
    if mesh is not None:
        pairs.append((atlas.surface_index, again.surface_index))
    assert (again.surface_index is None) == (mesh is None)
    for before, after in pairs:
        assert before.dtype == after.dtype and np.array_equal(before, after)


def test_the_atlas_of_a_fusion_model_of_schema_1_is_read():
    folder = Path(__file__).parent / "released_models" / "schema-1"
    tensors, _ = checkpoint.read_bundle(folder, "fusion")
    old = checkpoint.atlas_from_tensors(tensors)
    tensors, manifest = checkpoint.read_bundle(folder / "encoder", "encoder")
    whole = checkpoint.atlas_from_tensors(tensors, manifest["atlas"])
    assert old.rois.keys() == whole.rois.keys()
    for name, mask in whole.rois.items():
        np.testing.assert_array_equal(old.rois[name], mask)


def test_numbers_that_are_not_finite_do_not_reach_a_manifest(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        checkpoint.write_bundle(tmp_path, "x", {"a": torch.zeros(1)}, {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_hundred_thousand_mutations_of_a_manifest_are_refused_or_read_never_anything_else(
    tmp_path,
):
    _bundle(tmp_path)
    path = tmp_path / "step-00000001.json"
    raw, generator, read = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(100_000):
        broken = bytearray(raw)
        for _ in range(generator.integers(1, 4)):
            broken[generator.integers(len(broken))] = generator.integers(256)
        if trial % 7 == 0:
            cut = int(generator.integers(len(broken)))
            broken = broken[:cut] + broken[cut + int(generator.integers(1, 40)) :]
        path.write_bytes(bytes(broken))
        try:
            checkpoint.read_manifest(path)
            read += bytes(broken) != raw
        except CheckpointError:
            pass
    assert read == 0


def test_changes_are_listed_and_can_be_allowed():
    with pytest.raises(CheckpointError, match="lr: stored 1, now 2; seed: stored None, now 3"):
        checkpoint.refuse_changes({"lr": 1}, {"lr": 2, "seed": 3})
    checkpoint.refuse_changes({"lr": 1}, {"lr": 2}, allow=("lr",))


def test_a_manifest_is_plain_json(tmp_path):
    _bundle(tmp_path)
    assert json.loads((tmp_path / "step-00000001.json").read_text())["data_bytes"] > 0

"""The header of a safetensors file is checked before any tensor is read."""

import json
import struct

import pytest
from safetensors.torch import save_file

from bmfl_lab.backbones.dinov2 import ARCHITECTURES
from bmfl_lab.backbones.weights import check_safetensors, random_state, read_tensors
from bmfl_lab.errors import CheckpointError


def raw_safetensors(path, header, body=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "body", "reason"),
    [
        (
            b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}",
            8,
            "is written twice",
        ),
        ({"a": F32, "b": F32}, 8, "8 bytes at 8 for 'b'"),
        ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, 20, "offsets 12 to 20"),
        ({"a": {**F32, "shape": [3]}}, 8, "12 bytes at 0"),
        ({"a": {**F32, "shape": [-2]}}, 8, "for 'a'"),
        ({"a": {**F32, "dtype": "OBJECT"}}, 8, "OBJECT"),
        ({"a": {**F32, "data_offsets": [8]}}, 8, "a valid safetensors header"),
        ({"a": {**F32, "data_offsets": [0, 4, 8]}}, 8, "a valid safetensors header"),
        ({"a": {**F32, "data_offsets": [0, 1e400]}}, 8, "a valid safetensors header"),
        ({"a": {**F32, "dtype": ["F32"]}}, 8, "offsets 0 to 8"),
        ({"a": 3}, 8, "a valid safetensors header"),
        ({"a": F32}, 12, "8 bytes of tensors"),
        (
            {f"t{i}": {**F32, "shape": [0], "data_offsets": [0, 0]} for i in range(10_001)},
            0,
            "at most 10000 tensors",
        ),
        (b"{not json}", 8, "a valid safetensors header"),
        (b"[1, 2]", 8, "a valid safetensors header"),
        (b" " * (1 << 21), 8, "a header of 2 to 1048576 bytes"),
    ],
)
def test_malformed_safetensors_are_refused_from_the_header(tmp_path, header, body, reason):
    path = raw_safetensors(tmp_path / "w.safetensors", header, b"\0" * body)
    with pytest.raises(CheckpointError, match=reason):
        check_safetensors(path)
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        read_tensors(path)


def test_wellformed_safetensors_pass(tmp_path):
    state = random_state(ARCHITECTURES["vit_tiny14_reg"], seed=1)
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = check_safetensors(tmp_path / "w.safetensors")
    assert {k: s for k, (_, s) in found.items()} == {k: tuple(v.shape) for k, v in state.items()}

"""Stored folders of arrays are complete, read-only, and made again when they are damaged."""

import numpy as np
import pytest

from bmfl_lab.files import load_arrays, store_arrays


def test_round_trip_and_read_only(tmp_path):
    values = np.arange(12.0).reshape(3, 4)
    store_arrays(tmp_path / "x", {"a": values}, {"seed": 1})
    found = load_arrays(tmp_path / "x")
    assert np.array_equal(found["a"], values)
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0, 0] = 1


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest", "list"])
def test_damage_is_announced_and_leads_to_a_new_one(tmp_path, harm, capsys):
    store_arrays(tmp_path / "x", {"a": np.arange(1000.0)}, {})
    path = tmp_path / "x" / "a.npy"
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[500] ^= 1
        path.write_bytes(bytes(data))
    elif harm == "truncate":
        path.write_bytes(bytes(data[:-8]))
    elif harm == "remove":
        path.unlink()
    else:
        (tmp_path / "x" / "manifest.json").write_text("{" if harm == "manifest" else "[]")
    assert load_arrays(tmp_path / "x") is None
    assert harm == "list" or "is damaged" in capsys.readouterr().out
    store_arrays(tmp_path / "x", {"a": np.arange(5.0)}, {})
    assert len(load_arrays(tmp_path / "x")["a"]) == 5


def test_failing_write_leaves_the_old_one(tmp_path):
    store_arrays(tmp_path / "x", {"a": np.arange(3.0)}, {})
    with pytest.raises(ValueError, match="Object arrays"):
        store_arrays(tmp_path / "x", {"a": np.arange(4.0), "b": np.asarray([object()])}, {})
    assert len(load_arrays(tmp_path / "x")["a"]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.lock", "x"]

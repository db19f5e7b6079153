"""Splits by identity, and the refusal of leaks."""

import numpy as np
import pytest

from bmfl_lab.data import splits
from bmfl_lab.data.class_folders import read_wnids
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.files import read_json


def test_split_keeps_repeats_together_and_ignores_order():
    ids = [f"nsd-{i:05d}" for i in range(50)] * 3
    parts, record = splits.split_by_id(ids, seed=4)
    names = {k: {ids[i] for i in v} for k, v in parts.items()}
    assert sum(map(len, parts.values())) == 150 and sum(map(len, names.values())) == 50
    assert record["sizes"] == {"train": 123, "val": 12, "test": 15}
    order = np.random.default_rng(0).permutation(150)
    again, record_again = splits.split_by_id([ids[i] for i in order], seed=4)
    assert record_again["hash"] == record["hash"]
    assert {ids[order[i]] for i in again["val"]} == names["val"]
    assert splits.split_by_id(ids, seed=5)[1]["hash"] != record["hash"]


def test_split_refuses_bad_shares():
    with pytest.raises(ConfigError, match="val \\+ test < 1"):
        splits.split_by_id(["a", "b"], val=0.5, test=0.5)
    with pytest.raises(ConfigError, match="at least one stimulus to train on"):
        splits.split_by_id(["a"], held_out=["a"])


def test_session_folds_drop_shared_stimuli():
    folds = splits.leave_one_session_out([1, 1, 2, 2, 3], ids=["a", "b", "a", "c", "d"])
    assert [(s, train.tolist(), test.tolist()) for s, train, test in folds] == [
        (1, [3, 4], [0, 1]),
        (2, [1, 4], [2, 3]),
        (3, [0, 1, 2, 3], [4]),
    ]
    with pytest.raises(DataError, match="at least two sessions"):
        splits.leave_one_session_out([1, 1])


def sets_of(ids_a, ids_b, same_pixels=False):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (len(i), 4, 4, 3)).astype(np.uint8) for i in (ids_a, ids_b))
    if same_pixels:
        b[1] = a[0]
    return {
        "train": from_arrays("train", a, ids_a, np.zeros(len(a), int)),
        "test": from_arrays("test", b, ids_b, np.zeros(len(b), int)),
    }


def test_leaks_are_refused_with_counts_and_examples():
    report = splits.check_leakage(sets_of(["a", "b"], ["c", "d"]))
    assert report["by_id"] == 0 and report["sizes"] == {"train": 2, "test": 2}
    with pytest.raises(DataError, match=r"1 ids shared by 'train' and 'test', e.g. b"):
        splits.check_leakage(sets_of(["a", "b"], ["b", "d"]))
    with pytest.raises(DataError, match=r"1 identical images in 'train' and 'test', e.g. a = d"):
        splits.check_leakage(sets_of(["a", "b"], ["c", "d"], same_pixels=True))
    assert (
        splits.check_leakage(sets_of(["a", "b"], ["c", "d"], same_pixels=True), images=False)[
            "by_image"
        ]
        is None
    )


def test_shared_ids_need_their_columns(tmp_path):
    (tmp_path / "x.csv").write_text("nsdId,cocoId\n1,2\n")
    with pytest.raises(DataError, match=r"columns nsdId, shared1000 .* no \['shared1000'\]"):
        splits.read_shared_ids(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("nsdId,shared1000\n2950,True\n2951,False\n0,1\n")
    assert splits.read_shared_ids(tmp_path / "y.csv") == ("nsd-02950", "nsd-00000")


@pytest.mark.parametrize(
    "line, match",
    [
        (b"29x0,True", r"a whole number from 0 under nsdId in .*y\.csv, line 3; got '29x0'"),
        (b"-1,True", r"download the file again from NSD"),
        (b",True", r"under nsdId in .*line 3; got ''"),
        (b"2950,Trve", r"True or False under shared1000 in .*line 3; got 'Trve'"),
        (b"2950", r"a cell for each column in .*line 3"),
        (b"2950,\xffTrue", r"a table as text in .*y\.csv; got UnicodeDecodeError"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path, line, match):
    (tmp_path / "y.csv").write_bytes(b"nsdId,shared1000\n12,True\n" + line + b"\n2951,False\n")
    with pytest.raises(DataError, match=match):
        splits.read_shared_ids(tmp_path / "y.csv")


def test_a_byte_order_mark_changes_nothing(tmp_path):
    table = "nsdId,shared1000\n7,True\n8,False\n"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "info.csv").write_text(table, encoding=encoding)
        assert splits.read_shared_ids(tmp_path / "info.csv") == ("nsd-00007",)
        (tmp_path / "wnids.txt").write_text("n01440764 tench\nn01443537\n", encoding=encoding)
        assert read_wnids(tmp_path / "wnids.txt") == ("n01440764", "n01443537")
        (tmp_path / "a.json").write_text('{"study": "demo"}', encoding=encoding)
        assert read_json(tmp_path / "a.json") == {"study": "demo"}

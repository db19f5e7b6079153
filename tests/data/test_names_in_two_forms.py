"""A name is the same name in both of Unicode's forms, wherever names are compared."""

import ast
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.data.class_folders import read_by_stem
from bmfl_lab.data.imported import read_responses
from bmfl_lab.data.splits import check_leakage, split_by_id
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError, nearest, normal
from bmfl_lab.evaluation.axes import read_axes
from bmfl_lab.metrics.rdms import RDMs
from bmfl_lab.training.external import lookup_source

ROOT = Path(__file__).resolve().parents[2]
ONE, TWO = "caf\u00e9", "cafe\u0301"
FORMS = [(ONE, TWO), (TWO, ONE), ("\uac00.png", "\u1100\u1161.png"), ("\u212b", "\u00c5")]


def stimuli(*ids, classes=()):
    pixels = np.arange(len(ids) * 192, dtype=np.uint8).reshape(len(ids), 8, 8, 3)
    labels = np.arange(len(ids)) if classes else np.full(len(ids), -1)
    return from_arrays("own", pixels, ids, labels, classes)


def ids_of_a_set(a, b, folder):
    assert stimuli("x", a).index_of([b]).tolist() == [1]


def ids_that_repeat(a, b, folder):
    with pytest.raises(DataError, match="unique stimulus ids"):
        stimuli(a, b)


def names_of_classes(a, b, folder):
    first, second = stimuli("1", "2", classes=("x", a)), stimuli("3", "4", classes=("x", b))
    assert first.class_names == second.class_names == ("x", normal(a))


def ids_in_two_sets(a, b, folder):
    with pytest.raises(DataError, match="1 ids shared by 'a' and 'b'"):
        check_leakage({"a": stimuli("1", a), "b": stimuli("2", b)}, images=False)


def ids_held_out(a, b, folder):
    splits, _ = split_by_id(["x", "y", a], val=0, held_out=[b])
    assert splits["test"].tolist() == [2]


def places_in_a_split(a, b, folder):
    ids = [f"{i}" for i in range(30)]
    one, two = (split_by_id([*ids, name])[0] for name in (a, b))
    assert all(np.array_equal(one[k], two[k]) for k in one)


def rows_of_responses(a, b, folder):
    np.save(folder / "r.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    found = read_responses(folder / "r.npy", ["x", a], space="voxels")
    assert found.rows(stimuli(b, "x")).tolist() == [1, 0] and found.ids[1] == normal(a)


def rows_that_repeat(a, b, folder):
    np.save(folder / "r.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match="each image once"):
        read_responses(folder / "r.npy", [a, b], space="voxels")


def arrays_of_an_archive(a, b, folder):
    np.savez(folder / "r.npz", responses=np.zeros((2, 3)), ids=[a, b])
    with pytest.raises(DataError, match="each image once"):
        read_responses(folder / "r.npz", space="voxels")


def predictions_of_an_encoder(a, b, folder):
    source = lookup_source(["x", a], np.eye(2, dtype=np.float32))
    assert source(None, [b]).tolist() == [[0, 1]]


def stimuli_of_rdms(a, b, folder):
    rdms = RDMs(np.arange(3.0)[None], ["x", "y", a])
    assert rdms.of([b, "x"]).values.tolist() == [[1]]


def classes_of_a_table(a, b, folder):
    table = pd.DataFrame({"class": ["x", a], "size": [0.0, 1.0]})
    assert list(read_axes(table, ["x", b])["size"]) == [0, 1]


def pictures_of_stimuli(a, b, folder):
    Image.new("RGB", (9, 9)).save(folder / f"{Path(a).stem}.png")
    assert len(read_by_stem("own", [Path(b).stem], folder)) == 1


def folders_of_two_sets(a, b, folder):
    for k, (part, names) in enumerate(
        {"train": ("x", a), "val": ("x", b), "test": (b, "x")}.items()
    ):
        for m, name in enumerate(names):
            (folder / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (60 * k, 99 * m, 7)).save(folder / part / name / "1.png")
    study = load_study(folder)
    assert study.class_names == ("x", normal(a)) or study.class_names == (normal(a), "x")
    assert len({s.class_names for s in study.sets.values()}) == 1


def hints_of_messages(a, b, folder):
    assert "accents are stored as other characters" in nearest(a, ["zebra", b])


CASES = [
    *(ids_of_a_set, ids_that_repeat, names_of_classes, ids_in_two_sets, ids_held_out),
    *(places_in_a_split, rows_of_responses, rows_that_repeat, arrays_of_an_archive),
    *(predictions_of_an_encoder, stimuli_of_rdms, classes_of_a_table, pictures_of_stimuli),
    *(folders_of_two_sets, hints_of_messages),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", range(len(FORMS)))
def test_both_forms_are_one_name(case, number, tmp_path):
    a, b = FORMS[number]
    assert a != b and normal(a) == normal(b)
    case(a, b, tmp_path)


def test_the_rule_stands_in_one_place():
    users = [
        path.relative_to(ROOT).as_posix()
        for top in ("bmfl_lab", "widgets")
        for path in (ROOT / top).rglob("*.py")
        if any(
            "unicodedata" in ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
        )
    ]
    assert users == ["bmfl_lab/errors.py"]
    assert normal(TWO) == unicodedata.normalize("NFC", TWO) == ONE and normal(7) == "7"

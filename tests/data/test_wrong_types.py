"""Values of a wrong type in study files and calls are refused by name before anything is read or made."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmfl_lab.config import type_problems
from bmfl_lab.data import load_study
from bmfl_lab.data.study import READERS
from bmfl_lab.errors import BmflError, ConfigError

WRONG = [
    ("planted", "n_train", "many", r"n_train expected int; got 'many' \(str\)"),
    ("planted", "n_train", 12.5, r"n_train expected int; got 12.5 \(float\)"),
    ("planted", "seed", True, r"seed expected int; got True \(bool\)"),
    ("planted", "seed", None, r"seed expected int; got None \(NoneType\)"),
    ("planted", "carries", 1, r"carries expected bool; got 1 \(int\)"),
    ("planted", "signal_roi", ["V1"], r"signal_roi expected str; got \['V1'\] \(list\)"),
    ("planted", "image_size", "224", r"image_size expected int; got '224' \(str\)"),
    ("planted", "backbone", 14, r"name expected str; got 14 \(int\)"),
    ("planted", "weights", ["a"], r"weights expected str \| None; got \['a'\]"),
    ("folder", "ood", 3, r"ood expected Iterable\[str\] \| None; got 3 \(int\)"),
    ("folder", "ood", ["a", 4], r"ood expected Iterable\[str\] \| None; got \['a', 4\]"),
    ("folder", "val", "0.1", r"val expected float; got '0.1' \(str\)"),
    ("folder", "val", float("nan"), r"val expected float; got (nan|'NaN') "),
    ("folder", "tolerant", "yes", r"tolerant expected bool; got 'yes' \(str\)"),
    ("folder", "follow_links", 0, r"follow_links expected bool; got 0 \(int\)"),
    ("imagenet", "ood", ["imagenet-r"], r"ood expected Mapping\[str, str\] \| None; got"),
    ("imagenet", "ood", {"imagenet-r": 3}, r"ood expected Mapping\[str, str\] \| None; got"),
    ("imagenet", "corruption_severities", ["1"], r"corruption_severities expected Sequence\[int\]"),
    ("imagenet", "corruption_severities", 3, r"corruption_severities expected Sequence\[int\]"),
    ("imagenet", "devkit", 7, r"devkit expected str \| Path \| None; got 7 \(int\)"),
    ("nsd", "subject", 1, r"subject expected str \| None; got 1 \(int\)"),
    ("nsd", "space", 1.8, r"space expected str; got 1.8 \(float\)"),
    ("algonauts", "nan_policy", True, r"nan_policy expected str; got True \(bool\)"),
    ("kamitani", "label", 5, r"label expected str; got 5 \(int\)"),
]


@pytest.mark.parametrize(("reader", "option", "value", "said"), WRONG)
def test_a_wrong_type_is_refused_by_name(reader, option, value, said, tmp_path):
    root = {} if reader == "planted" else {"root": str(tmp_path)}
    with pytest.raises(ConfigError, match=said):
        load_study(reader, **root, **{option: value})
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"study": reader, **root, option: value}))
    with pytest.raises(ConfigError, match=said):
        load_study(path)


def test_numbers_of_numpy_and_ranges_are_numbers():
    def function(n: int, x: float, rows: "list[int]", names: "tuple[str, ...]"):
        pass

    good = {"n": np.int64(3), "x": np.float32(0.5), "rows": np.arange(3), "names": ("a",)}
    assert type_problems(function, good) == []
    assert type_problems(function, {"n": np.float64(3.5), "other": object()}) == [
        "n expected int; got np.float64(3.5) (float64)"
    ]
    assert type_problems(function, {"x": 10**400, "rows": ["a"]}) == [
        f"x expected float; got {10**400} (int)",
        "rows expected list[int]; got ['a'] (list)",
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
OPTIONS = [
    (r.name, o) for r in READERS.values() for o in r.options if r.name not in ("planted", "demo")
]


@given(st.sampled_from(OPTIONS), VALUES)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_value_of_any_option_gives_a_study_or_a_sentence(tmp_path_factory, option, value):
    root = tmp_path_factory.mktemp("empty")
    reader, name = option
    path = root / "study.json"
    path.write_text(
        json.dumps({"study": reader, "root": str(root), name: value}, ensure_ascii=False)
    )
    with pytest.raises(BmflError, match="To fix it"):
        load_study(path)

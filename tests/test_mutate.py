"""The mutants of a file are single changes that still parse, and none is in a docstring or message."""

import ast
from pathlib import Path

import mutate

CODE = '''"""Return -1 or 1."""
LIMIT = 1


def f(x: "a < b", flag=True):
    """Is x < 0?"""
    if not x.any(axis=0) and x[0] > 0:
        raise ValueError("1 < 2")
    return -x.max(axis=1) * 2 if flag else x - 1
'''


def changed(tmp_path, code=CODE):
    path = tmp_path / "code.py"
    path.write_text(code, encoding="utf-8")
    data = path.read_bytes()
    return [
        (data[: m.start] + m.new.encode() + data[m.end :]).decode() for m in mutate.mutants(path)
    ]


def test_signs_bounds_axes_and_booleans_are_changed(tmp_path):
    found = changed(tmp_path)
    for part in (
        "x.all(axis=0)",
        "x.any(axis=1)",
        "x[0] >= 0",
        "if x.any(axis=0) and",
        ") or x[0]",
        "return x.max(axis=1) * 2",
        "x.min(axis=1)",
        "axis=1) / 2",
        "x + 1",
        "flag=False",
        "LIMIT = 2",
    ):
        assert sum(part in text and part not in CODE for text in found) == 1, part
    assert len(found) == len(set(found)) and CODE not in found


def test_every_mutant_parses_and_leaves_words_alone(tmp_path):
    for text in changed(tmp_path):
        tree = ast.parse(text)
        assert ast.get_docstring(tree) == "Return -1 or 1." and '"a < b"' in text
        assert 'raise ValueError("1 < 2")' in text and '"""Is x < 0?"""' in text


def test_the_tests_of_a_module_are_found():
    root = Path(mutate.ROOT) / "bmfl_lab"
    assert "tests/metrics/test_crossed.py" in mutate.related(root / "metrics" / "statistics.py")
    assert "tests/training/test_controls.py" in mutate.related(root / "training" / "compare.py")
    assert "tests/data/test_nsd.py" in mutate.related(root / "data" / "nsd.py")

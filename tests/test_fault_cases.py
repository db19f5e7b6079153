"""Every numbered fault case has tests, and each of them exists."""

import ast
import functools
from pathlib import Path

import pytest
from fault_cases import CASES, GPU_CASES, KINDS

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def functions_of(path):
    """Return the test functions of a file and whether they, or the file, need a GPU."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    whole = any(
        isinstance(node, ast.Assign)
        and "pytestmark" in ast.unparse(node.targets[0])
        and "gpu" in ast.unparse(node)
        for node in tree.body
    )
    return {
        node.name: whole or any("mark.gpu" in ast.unparse(d) for d in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def find(test):
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file():
        return f"{path} is no file"
    return "" if name in functions_of(path) else f"{path} has no {name}"


def test_all_numbers_are_there_and_each_sentence_is_one():
    assert list(CASES) == list(range(1, 96))
    for number, (sentence, *_) in CASES.items():
        assert sentence[0].isupper() and sentence.endswith(".") and len(sentence) < 130, number
    assert len({sentence for sentence, *_ in CASES.values()}) == 95


@pytest.mark.parametrize("number", CASES)
def test_a_case_has_tests_that_exist(number):
    _, *tests = CASES[number]
    assert tests and len(set(tests)) == len(tests)
    assert [p for p in map(find, tests) if p] == []
    on_gpu = [t for t in tests if functions_of(t.partition("::")[0])[t.partition("::")[2]]]
    assert bool(on_gpu) == (number in GPU_CASES)
    assert len(on_gpu) < len(tests)  # something of every case is tested without a GPU


def test_a_test_that_is_gone_is_seen():
    assert find("tests/test_fault_cases.py::test_a_test_that_is_gone_is_seen") == ""
    assert "has no" in find("tests/test_fault_cases.py::test_none")
    assert "is no file" in find("tests/test_none.py::test_none")


def test_cases_that_need_a_gpu_say_so_where_there_is_none(record_property):
    """A report of the tests names the cases that were not judged on this machine."""
    import torch

    unrun = () if torch.cuda.is_available() else GPU_CASES
    record_property("fault cases without a GPU", list(unrun))
    if unrun:
        pytest.skip(f"fault cases {', '.join(map(str, unrun))}: their GPU tests cannot run here")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_fault_has_one_rule_and_a_table_of_eight_members(kind):
    (path, rule), (test, table) = KINDS[kind]
    defined = {
        name
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        for name in (getattr(node, "name", ""), *map(ast.unparse, getattr(node, "targets", [])))
    }
    assert rule in defined
    tree = ast.parse((ROOT / test).read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table
    )
    while isinstance(value, ast.DictComp):  # {f.__name__: f for f in (...)}
        value = value.generators[0].iter
    members = value.keys if isinstance(value, ast.Dict) else value.elts
    spread = [m.value.elts if isinstance(m, ast.Starred) else [m] for m in members]
    assert sum(map(len, spread)) >= 8
    uses = [ast.unparse(d) for n in tree.body for d in getattr(n, "decorator_list", [])]
    assert any(f", {table}" in use for use in uses)

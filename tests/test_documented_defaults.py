"""The defaults that docstrings state are those of the code: two sources, written apart."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for room in ("bmfl_lab", "widgets") for p in (ROOT / room).rglob("*.py"))
LINE = re.compile(r"^(\w+(?:, \w+)*) : [^\n]*?default (.+?)(?: \(.*)?$", re.MULTILINE)


def arguments(node: ast.FunctionDef) -> dict[str, ast.expr]:
    """Return the default of each argument that has one."""
    a = node.args
    places = zip([x.arg for x in a.args][len(a.args) - len(a.defaults) :], a.defaults)
    return dict(places) | {x.arg: d for x, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}


def documented(path: Path) -> Iterator[tuple[str, str, object, object]]:
    """Yield the place, the name, the documented and the actual default of each parameter."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.FunctionDef):
            actual = arguments(node)
        else:
            fields = [s for s in node.body if isinstance(s, ast.AnnAssign) and s.value is not None]
            actual = {s.target.id: s.value for s in fields if isinstance(s.target, ast.Name)}
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    actual = arguments(part)
        for names, said in LINE.findall(ast.get_docstring(node) or ""):
            names = names.split(", ")
            try:
                value = ast.literal_eval(said.strip().rstrip("."))
            except (ValueError, SyntaxError):
                continue  # a default in words
            several = isinstance(value, tuple) and len(value) == len(names) > 1
            for name, one in zip(names, value if several else [value] * len(names)):
                where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                try:
                    yield where, name, one, ast.literal_eval(actual[name])
                except KeyError:
                    yield where, name, one, "no default"
                except ValueError:
                    continue  # a default by name


@pytest.mark.parametrize("room", sorted({p.parent for p in FILES}), ids=lambda p: p.name)
def test_documented_defaults_are_those_of_the_code(room):
    wrong = [
        f"{where}, {name}: {said!r} in the docstring, {actual!r} in the code"
        for path in FILES
        if path.parent == room
        for where, name, said, actual in documented(path)
        if said != actual or isinstance(said, bool) is not isinstance(actual, bool)
    ]
    assert not wrong, "\n".join(wrong)


def test_many_defaults_are_documented_in_this_form():
    assert sum(len(list(documented(path))) for path in FILES) > 600

"""Rules of the house that a reader of the source relies on: types, format and docstrings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "bmfl_lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")])
MOST_ANY = 60
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def text_of(path):
    return path.read_text(encoding="utf-8")


def parameters_with_any(text):
    """Return "function(parameter)" for each parameter whose annotation contains Any."""
    found = []
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, FUNCTIONS):
            given = function.args
            for parameter in [*given.posonlyargs, *given.args, *given.kwonlyargs]:
                hint = parameter.annotation
                names = ast.walk(hint) if hint is not None else ()
                if any(isinstance(n, ast.Name) and n.id == "Any" for n in names):
                    found.append(f"{function.name}({parameter.arg})")
    return found


def without_docstring(text):
    """Return the public classes, functions and methods of a module that have no docstring.

    The special methods (``__len__``) and functions inside functions need none, and neither does a
    property's setter.
    """
    waiting, found = [(ast.parse(text), "")], []
    while waiting:
        owner, prefix = waiting.pop()
        for node in owner.body:
            if not isinstance(node, (FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
                continue
            decorators = [ast.unparse(d) for d in node.decorator_list]
            if any(d.endswith((".setter", "overload")) for d in decorators):
                continue
            if ast.get_docstring(node) is None:
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                waiting.append((node, f"{prefix}{node.name}."))
    return sorted(found)


def test_few_parameters_are_annotated_with_any():
    found = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in SOURCES
        for place in parameters_with_any(text_of(path))
    ]
    assert len(found) <= MOST_ANY, "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_line_is_kept_from_the_formatter(path):
    assert "# fmt:" not in text_of(path)


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.is_relative_to(ROOT / "bmfl_lab")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_everything_public_has_a_docstring(path):
    text = text_of(path)
    assert text == "" or ast.get_docstring(ast.parse(text)), "the module has no docstring"
    assert without_docstring(text) == []


def test_the_sweeps_find_planted_faults():
    text = (
        "def f(a: Any, b: list[Any], c: int, *, d: 'x' = 1): pass\n"
        "class A:\n    def g(self): pass\n    def _h(self): pass\n    def __len__(self): return 0\n"
    )
    assert parameters_with_any(text) == ["f(a)", "f(b)"]
    assert without_docstring(text) == ["A", "A.g", "f"]
    assert without_docstring('def f():\n    """Return 1."""\n    def inner(): pass\n') == []


PACKAGES = (
    "backbones",
    "data",
    "evaluation",
    "losses",
    "metrics",
    "models",
    "runs",
    "training",
    "viz",
)


def public_names(package):
    """Return the names that a package's ``__init__`` offers: its table of lazy names or __all__."""
    tree = ast.parse((ROOT / "bmfl_lab" / package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id in (
            "_PUBLIC",
            "_MODULES",
            "__all__",
        ):
            values = node.value.keys if isinstance(node.value, ast.Dict) else ()
            values = values or getattr(node.value, "elts", ())
            if values:
                return sorted(v.value for v in values)
    return []


def used_outside(package):
    """Return every word of notebooks, widgets, pages, other packages and outside tests."""
    inside = (ROOT / "bmfl_lab" / package, ROOT / "tests" / package)
    words = set()
    for top in ("bmfl_lab", "widgets", "notebooks", "tests", "papermill_runs"):
        for path in (ROOT / top).rglob("*"):
            if path.suffix not in (".py", ".ipynb", ".md") or "out" in path.parts:
                continue
            if not any(path.is_relative_to(folder) for folder in inside):
                words |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return words | set(re.findall(r"\w+", (ROOT / "README.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_of_a_package_is_used_outside_it(package):
    names = public_names(package)
    assert names or package == "viz"
    assert not sorted(set(names) - used_outside(package))

"""Imports go one way: no layer imports a higher one, and no files import each other in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYER = {
    **dict.fromkeys(("errors", "registry", "markup"), 0),
    **dict.fromkeys(("files", "config", "records", "runtime"), 1),
    **dict.fromkeys(("data", "backbones", "models", "losses", "metrics"), 2),
    **dict.fromkeys(("training", "evaluation", "viz"), 3),
    "runs": 4,
    "widgets": 5,
}
WITHIN_LAYER = {
    ("backbones", "data"),
    ("models", "backbones"),
    ("models", "data"),
    ("models", "losses"),
    ("models", "metrics"),
    ("evaluation", "training"),
    ("registry", "errors"),
}
WITHIN_LAYER |= {
    (a, b) for a in ("files", "config", "records", "runtime") for b in ("files", "runtime")
}
OWNERS = {
    "papermill": {"runs"},
    "accelerate": {"training"},
    "nilearn": {"viz", "data"},
    "plotly": {"viz", "widgets"},
    "matplotlib": {"viz"},
    "ipywidgets": {"widgets"},
    "anywidget": {"widgets"},
    "IPython": {"widgets", "viz"},
}
BANNED = {
    "viz": {"torch"},
    "widgets": {"torch"},
    "runs": {"torch"},
    "data": {"torch"},
    "metrics": {"matplotlib", "plotly"},
}
EVERYWHERE = {
    "torchvision",
    "timm",
    "himalaya",
    "rsatoolbox",
    "pytest",
    "hypothesis",
    "playwright",
}
SOURCES = sorted([*(ROOT / "bmfl_lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")])


def package_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "widgets" if parts[0] == "widgets" else parts[1]


def imports_of(tree):
    """Every imported module in full, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            base = node.module or ""
            yield from ((f"{base}.{a.name}" for a in node.names) if base == "bmfl_lab" else [base])


def violations(path, source):
    here, found = package_of(path), []
    if here == "__init__":
        return found
    for name in imports_of(ast.parse(source)):
        top, *rest = name.split(".")
        if top in EVERYWHERE:
            found.append(f"imports {top}, which only tests may use or nobody")
        if here not in OWNERS.get(top, {here}):
            found.append(f"imports {top}, which belongs to {sorted(OWNERS[top])}")
        if top in BANNED.get(here, ()):
            found.append(f"imports {top}")
        target = "widgets" if top == "widgets" else rest[0] if top == "bmfl_lab" and rest else None
        if target is None or target == here or target not in LAYER:
            continue
        if path.name == "__main__.py":  # a command, which no file imports
            continue
        if LAYER[target] > LAYER[here] or (
            LAYER[target] == LAYER[here] and (here, target) not in WITHIN_LAYER
        ):
            found.append(
                f"imports {name}: layer {LAYER[here]} may not import {target} of layer {LAYER[target]}"
            )
    return found


def module_of(path):
    """Return the dotted name of a source file; a package is named after its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph(sources):
    """Return which modules each module imports, given the text of each module by its name.

    Imports inside functions and under TYPE_CHECKING count. ``from package import name`` points to
    the module ``package.name`` if there is one, and to the package otherwise.
    """
    graph = {}
    for module, text in sources.items():
        targets = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                targets |= {name if name in sources else node.module for name in full}
        graph[module] = targets & set(sources)
    return graph


def reachable(graph, start):
    """Return every module that `start` imports, directly or through others."""
    found, waiting = set(), list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += graph[module]
    return found


def circles(graph):
    """Return the sets of modules that import one another, each as a sorted tuple."""
    reach = {module: reachable(graph, module) for module in graph}
    mutual = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return sorted(mutual)


def own_imports_inside_functions(path, text):
    """Return the line of each import of this project inside a function.

    The lazy ``__getattr__`` of a package is allowed: it is what makes importing a package fast.
    """
    found = []
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if path.name == "__init__.py" and function.name == "__getattr__":
            continue
        for node in ast.walk(function):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            if any(name.split(".")[0] in ("bmfl_lab", "widgets") for name in names):
                found.append(node.lineno)
    return found


def test_no_files_import_each_other_in_a_circle():
    sources = {module_of(path): path.read_text(encoding="utf-8") for path in SOURCES}
    assert circles(import_graph(sources)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_imports_this_project(path):
    assert own_imports_inside_functions(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "back",
    [
        "from bmfl_lab.a import f",
        "import bmfl_lab.a",
        "from bmfl_lab import a",
        "def g():\n    from bmfl_lab.a import f",
        "if TYPE_CHECKING:\n    from bmfl_lab.a import F",
    ],
)
def test_the_sweep_finds_a_planted_circle(back):
    sources = {
        "bmfl_lab": "",
        "bmfl_lab.a": "from bmfl_lab import b",
        "bmfl_lab.b": "from bmfl_lab.c import g",
        "bmfl_lab.c": back,
        "bmfl_lab.d": "import bmfl_lab.a",
    }
    assert circles(import_graph(sources)) == [("bmfl_lab.a", "bmfl_lab.b", "bmfl_lab.c")]
    assert circles(import_graph({**sources, "bmfl_lab.c": "import numpy"})) == []


@pytest.mark.parametrize(
    "file, text, lines",
    [
        ("bmfl_lab/data/x.py", "def f():\n    from bmfl_lab.data import study", [2]),
        ("bmfl_lab/data/x.py", "class A:\n    def f(self):\n        import bmfl_lab.files", [3]),
        ("bmfl_lab/x/__init__.py", "def load():\n    from bmfl_lab.x import y", [2]),
        ("bmfl_lab/x/__init__.py", "def __getattr__(name):\n    from bmfl_lab.x import y", []),
        ("bmfl_lab/data/x.py", "import bmfl_lab.files\ndef f():\n    import torch", []),
    ],
)
def test_the_sweep_finds_a_planted_import_inside_a_function(file, text, lines):
    assert own_imports_inside_functions(ROOT / file, text) == lines


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_layers(path):
    assert not violations(path, path.read_text(encoding="utf-8"))


def test_every_package_was_swept():
    swept = {package_of(p) for p in SOURCES} - {"__init__"}
    assert swept == set(LAYER), "a new package needs a layer here"
    assert len(SOURCES) >= 30


@pytest.mark.parametrize(
    "file, source",
    [
        ("bmfl_lab/metrics/x.py", "import bmfl_lab.data.study"),
        ("bmfl_lab/training/x.py", "def f():\n    from bmfl_lab.evaluation import ood"),
        ("bmfl_lab/data/x.py", "from bmfl_lab import runs"),
        ("bmfl_lab/viz/x.py", "import torch.nn"),
        ("bmfl_lab/models/x.py", "import timm"),
        ("bmfl_lab/evaluation/x.py", "import papermill as pm"),
    ],
)
def test_the_sweep_finds_a_planted_violation(file, source):
    assert len(violations(ROOT / file, source)) == 1

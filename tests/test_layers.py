"""Imports go one way: lower layers never import higher ones."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYER = {
    **dict.fromkeys(("errors", "registry"), 0),
    **dict.fromkeys(("files", "config", "records", "runtime"), 1),
    **dict.fromkeys(("data", "backbones", "models", "losses", "metrics"), 2),
    **dict.fromkeys(("training", "evaluation", "viz"), 3),
    "runs": 4,
    "benchmark": 4,
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
    "psutil",
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
        if LAYER[target] > LAYER[here] or (
            LAYER[target] == LAYER[here] and (here, target) not in WITHIN_LAYER
        ):
            found.append(
                f"imports {name}: layer {LAYER[here]} may not import {target} of layer {LAYER[target]}"
            )
    return found


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

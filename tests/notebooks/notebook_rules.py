"""Rules for the notebooks of this project.

They hold prose and calls, no outputs, and nothing that runs on one machine only.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from bmfl_lab.errors import RunError
from bmfl_lab.runs.notebook import Notebook, tags, text
from bmfl_lab.runs.spec import KERNEL

MAX_LINES = 25
MAX_COLUMNS = 88
MAX_PARAMETERS = 15
MAX_PICTURE = 150_000
"""Characters of the picture of a notebook's answer, in base64."""
ALLOWED_IMPORTS = (
    "bmfl_lab",
    "widgets",
    "numpy",
    "pandas",
    "matplotlib",
    "plotly",
    "IPython",
    "pathlib",
)
_ABSOLUTE = re.compile(
    r"""["'](?:/(?:home|root|Users|mnt|data|tmp|work|scratch|opt)\b|[A-Za-z]:\\|~/)"""
)
_WIDGET = re.compile(r"\bwidgets\.\w+\(|from widgets import|import widgets")


def problems(notebook: Notebook) -> list[str]:
    """Return the rules that a notebook breaks, one sentence each; an empty list if it breaks none."""
    found = [
        f"cell {i}: {p}" for i, cell in enumerate(notebook.cells) for p in _cell_problems(cell)
    ]
    found += _whole_problems(notebook)
    return found


def _whole_problems(notebook: Notebook) -> list[str]:
    found = []
    try:
        parameters = notebook.parameters()
    except RunError as error:
        found.append(str(error))
    else:
        found += [
            f"parameter {p.name!r} has no help comment" for p in parameters.values() if not p.help
        ]
        if "study" not in parameters:
            found.append("no parameter 'study'")
        if len(parameters) > MAX_PARAMETERS:
            found.append(f"{len(parameters)} parameters, at most {MAX_PARAMETERS}")
    code = [c for c in notebook.cells if c["cell_type"] == "code"]
    prose = [c for c in notebook.cells if c["cell_type"] == "markdown"]
    if 2 * len(prose) < len(code):
        found.append(f"{len(prose)} cells of prose for {len(code)} of code, at least one for two")
    if (
        not prose
        or not text(prose[0]).startswith("# ")
        or notebook.cells[0]["cell_type"] != "markdown"
    ):
        found.append("does not open with a title")
    found += _opening_problems(text(notebook.cells[0]) if notebook.cells else "")
    found += _navigation_problems(notebook)
    if notebook.kernel != KERNEL:
        found.append(f"kernel {notebook.kernel!r}, expected {KERNEL!r}")
    if not any(".finish(" in text(c) for c in code):
        found.append("writes no record (no call of .finish(...))")
    return found


def _opening_problems(opening: str) -> list[str]:
    """Return what a reader misses in the first cell: the question, the time and the input."""
    found = []
    title = opening.splitlines()[0] if opening else ""
    question = opening.partition("**Question.**")[2]
    if not (title.endswith("?") or "?" in question):
        found.append("does not open with a question")
    if "**Takes** " not in opening:
        found.append("does not say how long it takes")
    if "**Reads** " not in opening:
        found.append("does not say what it needs")
    return found


def _navigation_problems(notebook: Notebook) -> list[str]:
    """Return what the second cell lacks: links to the notebooks beside, and a picture of the answer.

    The cell is left out of exported pages, on which the links would lead nowhere.
    """
    found, cell = [], notebook.cells[1] if len(notebook.cells) > 1 else {"metadata": {}}
    source = text(cell) if "source" in cell else ""
    names = sorted(p.name for p in notebook.path.parent.glob("*.ipynb"))
    here = names.index(notebook.path.name)
    beside = [names[k] for k in (here - 1, here + 1) if 0 <= k < len(names)]
    if missing := [name for name in beside if f"({name})" not in source]:
        found.append(f"does not link to {', '.join(missing)}")
    shown = cell.get("attachments", {}).get("answer.png", {})
    if "(attachment:answer.png)" not in source or "image/png" not in shown:
        found.append("shows no picture of its answer")
    elif len(shown["image/png"]) > MAX_PICTURE:
        found.append(f"the picture of its answer has over {MAX_PICTURE} characters")
    if "skip-execution" not in tags(cell):
        found.append("its second cell is not left out of exported pages")
    return found


def _cell_problems(cell: dict[str, Any]) -> list[str]:
    if cell["cell_type"] != "code":
        return []
    source, found = text(cell), []
    if cell.get("outputs") or cell.get("execution_count") is not None:
        found.append("holds stored outputs")
    if len(source.splitlines()) > MAX_LINES:
        found.append(f"{len(source.splitlines())} lines, at most {MAX_LINES}")
    found += [
        f"line {n} has {len(line)} columns, at most {MAX_COLUMNS}"
        for n, line in enumerate(source.splitlines(), start=1)
        if len(line) > MAX_COLUMNS
    ]
    if re.search(r"^\s*[!%]", source, re.MULTILINE):
        found.append("uses ! or % instead of Python")
        return found
    if "sys.path" in source or "os.environ" in source:
        found.append("changes sys.path or os.environ")
    if _ABSOLUTE.search(source):
        found.append("holds an absolute path")
    if _WIDGET.search(source) and "skip-execution" not in tags(cell):
        found.append("shows a widget without the tag skip-execution")
    return found + _tree_problems(source)


def _tree_problems(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [f"is not Python: {error.msg}"]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append(f"defines {node.name!r}: move it into the package")
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {n!r}" for n in names if n.split(".")[0] not in ALLOWED_IMPORTS]
    return found

"""Notebooks as runs see them: a typed table of parameters, a hash of the source, and the state they are kept in."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmfl_lab.errors import RunError, message, nearest
from bmfl_lab.files import sha256_json

SCALARS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
TYPES = (*SCALARS, *(f"list[{t}]" for t in SCALARS))
_MAX_BYTES = 16 << 20
_CHOICES = re.compile(r"\{([^{}]+)\}\s*$")
_BOUNDS = re.compile(r"\[([^\[\],]*)\.\.([^\[\],]*)\]\s*$")


@dataclass(frozen=True)
class Parameter:
    """One annotated literal of a notebook's parameters cell.

    Parameters
    ----------
    name : str
        The variable.
    type : str
        Its annotation: ``str``, ``int``, ``float``, ``bool`` or a list of one of them.
    default : Any
        The literal.
    help : str
        The comment behind it, without choices and bounds.
    choices : tuple of str
        From a trailing ``{a, b}`` in the comment; empty when anything goes.
    low, high : float or None
        From a trailing ``[low..high]`` in the comment; either side may be left out.
    """

    name: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def problem(self, value: Any) -> str:
        """Return why `value` cannot be injected, or an empty text."""
        items = value if isinstance(value, list) and self.type.startswith("list[") else [value]
        scalar = SCALARS[self.type.removeprefix("list[").removesuffix("]")]
        if self.type.startswith("list[") and not isinstance(value, list):
            return f"{self.name} expected {self.type}; got {value!r} ({type(value).__name__}): write a list"
        for item in items:
            if not _is(item, scalar):
                return f"{self.name} expected {self.type}; got {item!r} ({type(item).__name__})"
            if isinstance(item, float) and not math.isfinite(item):
                return f"{self.name} expected a finite number; got {item!r}"
            if self.choices and str(item) not in self.choices:
                return f"{self.name} expected one of {', '.join(self.choices)}; got {item!r}"
            low, high = self.low, self.high
            if (low is not None and item < low) or (high is not None and item > high):
                return f"{self.name} expected a value from {_bound(low)} to {_bound(high)}; got {item!r}"
        return ""


def _is(value: Any, scalar: type) -> bool:
    if scalar is float:
        return type(value) in (int, float)
    return type(value) is scalar


def _bound(value: float | None) -> str:
    return "anything" if value is None else f"{value:g}"


@dataclass(frozen=True)
class Notebook:
    """A notebook's source.

    Parameters
    ----------
    path : Path
        The file.
    content : mapping
        Its JSON, valid nbformat 4.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def stem(self) -> str:
        """Name without suffix."""
        return self.path.stem

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The cells, in order."""
        return self.content["cells"]

    @property
    def kernel(self) -> str:
        """Name of the kernel that the notebook asks for."""
        return self.content.get("metadata", {}).get("kernelspec", {}).get("name", "python3")

    def source_hash(self) -> str:
        """Return a hash of all cells' kind, tags and text; outputs and counters do not matter."""
        return sha256_json([[c["cell_type"], tags(c), text(c)] for c in self.cells])

    def parameters(self) -> dict[str, Parameter]:
        """Return the parameters by name.

        Raises
        ------
        RunError
            If there is not exactly one cell tagged ``parameters``, or it holds anything but
            annotated literals.
        """
        found = [c for c in self.cells if c["cell_type"] == "code" and "parameters" in tags(c)]
        if len(found) != 1:
            raise RunError(
                message(
                    f"exactly one cell tagged 'parameters' in {self.path.name}",
                    f"{len(found)}",
                    "tag the cell of annotated literals in JupyterLab's property inspector",
                )
            )
        return {p.name: p for p in parse_parameters(text(found[0]), self.path.name)}


def text(cell: Mapping[str, Any]) -> str:
    """Return a cell's source as one string."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def tags(cell: Mapping[str, Any]) -> list[str]:
    """Return a cell's tags, sorted."""
    return sorted(cell.get("metadata", {}).get("tags", []))


def read_notebook(path: str | Path) -> Notebook:
    """Read and validate a notebook.

    Raises
    ------
    RunError
        If the file is missing, too large, not JSON, or not a valid notebook of format 4.
    """
    import nbformat

    path = Path(path)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.ipynb")])
        raise RunError(message(f"a notebook {path.name}", f"nothing at {path}", near))
    if (size := path.stat().st_size) > _MAX_BYTES:
        wanted = f"a notebook of at most {_MAX_BYTES} bytes"
        raise RunError(message(wanted, f"{size} bytes", "strip its outputs"))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("nbformat") != 4:
            got = content.get("nbformat") if isinstance(content, dict) else type(content).__name__
            raise RunError(
                message(
                    f"notebook format 4 in {path.name}", f"{got!r}", "save it again in JupyterLab"
                )
            )
        nbformat.validate(nbformat.from_dict(content))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            message(f"a notebook in {path.name}", f"damaged JSON: {error}", "restore the file")
        ) from error
    except nbformat.ValidationError as error:
        got = str(error).splitlines()[0]
        raise RunError(
            message(f"a valid notebook in {path.name}", got, "save it again in JupyterLab")
        ) from error
    return Notebook(path, content)


def parse_parameters(source: str, where: str = "the notebook") -> list[Parameter]:
    """Read annotated literals with help comments.

    Parameters
    ----------
    source : str
        ``lr: float = 1e-3  # learning rate [0..1]``, one a line.
    where : str
        Named in messages.

    Raises
    ------
    RunError
        At the first line that is anything else.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise RunError(
            message(f"Python in the parameters cell of {where}", str(error), "mend the line")
        ) from error
    comments = _comments(source)
    return [_parameter(s, comments.get(s.end_lineno or s.lineno, ""), where) for s in statements]


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def _parameter(statement: ast.stmt, comment: str, where: str) -> Parameter:
    line = ast.unparse(statement)
    do = f"write it as 'name: type = literal  # help', with a type among {', '.join(TYPES)}"
    if (
        not isinstance(statement, ast.AnnAssign)
        or not isinstance(statement.target, ast.Name)
        or not statement.value
    ):
        raise RunError(
            message(f"only annotated literals in the parameters cell of {where}", repr(line), do)
        )
    name, kind = statement.target.id, ast.unparse(statement.annotation).strip("'\"")
    try:
        default = ast.literal_eval(statement.value)
    except ValueError:
        got = f"{line!r}, which is computed"
        raise RunError(message(f"a literal for {name!r} in {where}", got, do)) from None
    if kind not in TYPES:
        raise RunError(message(f"a known type for {name!r} in {where}", repr(kind), do))
    choices, low, high = (), None, None
    if match := _CHOICES.search(comment):
        choices = tuple(c.strip() for c in match.group(1).split(","))
    elif match := _BOUNDS.search(comment):
        low, high = (float(side) if side.strip() else None for side in match.groups())
    about = comment[: match.start()].strip() if match else comment
    parameter = Parameter(name, kind, default, about, choices, low, high)
    if problem := parameter.problem(default):
        raise RunError(
            message(f"a default that fits its own line in {where}", problem, "mend the line")
        )
    return parameter


def check_parameters(notebook: Notebook, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a run: the notebook's defaults, changed by `values`.

    Raises
    ------
    RunError
        Naming every unknown parameter (with the nearest valid one) and every value that does not
        fit, at once.
    """
    known = notebook.parameters()
    problems = []
    for name, value in values.items():
        if name not in known:
            problems.append(f"unknown parameter {name!r}: {nearest(name, known)}")
        elif problem := known[name].problem(value):
            problems.append(problem)
    if problems:
        do = f"see the parameters cell of {notebook.path.name}"
        raise RunError(message(f"parameters of {notebook.stem}", " | ".join(problems), do))
    merged = {name: parameter.default for name, parameter in known.items()} | dict(values)
    return {k: float(v) if known[k].type == "float" else v for k, v in merged.items()}

"""A notebook's source: its typed parameters, a hash of its cells, and checks before it is run."""

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
from bmfl_lab.files import sha256_json, system_errors

SCALARS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
TYPES = (*SCALARS, *(f"list[{t}]" for t in SCALARS))
_MAX_BYTES = 16 << 20
_CHOICES = re.compile(r"\{([^{}]+)\}\s*$")
_BOUNDS = re.compile(r"\[([^\[\],]*)\.\.([^\[\],]*)\]\s*$")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: one annotated literal of its parameters cell.

    Parameters
    ----------
    name : str
        The variable.
    type : str
        Its annotation: ``str``, ``int``, ``float``, ``bool`` or a list of one of them.
    default : Any
        The literal.
    help : str
        The comment behind the literal, without choices and bounds.
    choices : tuple of str
        Allowed values, from a trailing ``{a, b}`` in the comment; empty if any value is allowed.
    low, high : float or None
        Bounds, from a trailing ``[low..high]`` in the comment; either side may be left out.
    """

    name: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def problem(self, value: object) -> str:
        """Return why `value` cannot be injected, or an empty text."""
        is_list = self.type.startswith("list[")
        if is_list and not isinstance(value, list):
            got = f"got {value!r} ({type(value).__name__}): write a list"
            return f"{self.name} expected {self.type}; {got}"
        scalar = SCALARS[self.type.removeprefix("list[").removesuffix("]")]
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        for item in value if is_list else [value]:
            wanted = ""
            # type() and not isinstance(), because True is an int
            if type(item) not in ((int, float) if scalar is float else (scalar,)):
                return f"{self.name} expected {self.type}; got {item!r} ({type(item).__name__})"
            if isinstance(item, float) and not math.isfinite(item):
                wanted = "a finite number"
            elif self.choices and str(item) not in self.choices:
                wanted = f"one of {', '.join(self.choices)}"
            elif isinstance(item, (int, float)) and not low <= item <= high:
                wanted = f"a value from {low:g} to {high:g}"
            if wanted:
                return f"{self.name} expected {wanted}; got {item!r}"
        return ""


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
        """Name of the kernel in the notebook's metadata."""
        return self.content.get("metadata", {}).get("kernelspec", {}).get("name", "python3")

    def source_hash(self) -> str:
        """Return a hash of the cells' types, tags and sources, without outputs and counters."""
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


@system_errors()
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
        near = nearest(path.name, [p.name for p in path.parent.glob("*.ipynb") if p.is_file()])
        raise RunError(message(f"a notebook {path.name}", f"nothing at {path}", near))
    if (size := path.stat().st_size) > _MAX_BYTES:
        wanted = f"a notebook of at most {_MAX_BYTES} bytes"
        raise RunError(message(wanted, f"{size} bytes", "strip its outputs"))
    raw = path.read_bytes()
    try:
        content = json.loads(raw.decode("utf-8"))
        if not isinstance(content, dict) or content.get("nbformat") != 4:
            got = content.get("nbformat") if isinstance(content, dict) else type(content).__name__
            raise RunError(
                message(
                    f"notebook format 4 in {path.name}", f"{got!r}", "save it again in JupyterLab"
                )
            )
        nbformat.validate(nbformat.from_dict(content))
    except RunError:
        raise
    except (ValueError, RecursionError) as error:
        raise RunError(
            message(f"a notebook in {path.name}", f"damaged JSON: {error}", "restore the file")
        ) from error
    except Exception as error:  # nbformat raises many kinds where parts are missing
        said = (str(error).splitlines() or [""])[0]
        known = isinstance(error, nbformat.ValidationError)
        got = said if known else f"missing or wrong parts ({type(error).__name__} {said})"
        raise RunError(
            message(f"a valid notebook in {path.name}", got, "save it again in JupyterLab")
        ) from error
    return Notebook(path, content)


def parse_parameters(source: str, where: str = "the notebook") -> list[Parameter]:
    """Read annotated literals with help comments.

    Parameters
    ----------
    source : str
        Lines such as ``lr: float = 1e-3  # learning rate [0..1]``.
    where : str
        Name of the notebook, for error messages.

    Returns
    -------
    list of Parameter

    Raises
    ------
    RunError
        If a line is anything else.
    """
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
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
    target = getattr(statement, "target", None)
    if not (isinstance(statement, ast.AnnAssign) and isinstance(target, ast.Name)):
        raise RunError(
            message(f"only annotated literals in the parameters cell of {where}", repr(line), do)
        )
    name, kind = target.id, ast.unparse(statement.annotation).strip("'\"")
    try:
        default = ast.literal_eval(statement.value or target)
    except (ValueError, RecursionError, MemoryError):
        got = f"{line!r}, which is computed"
        raise RunError(message(f"a literal for {name!r} in {where}", got, do)) from None
    if kind not in TYPES:
        raise RunError(message(f"a known type for {name!r} in {where}", repr(kind), do))
    choices, bounds = _CHOICES.search(comment), _BOUNDS.search(comment)
    low, high = (
        (float(side) if side.strip() else None for side in bounds.groups(""))
        if bounds
        else (None, None)
    )
    parameter = Parameter(
        name,
        kind,
        default,
        help=_BOUNDS.sub("", _CHOICES.sub("", comment)).strip(),
        choices=tuple(c.strip() for c in choices[1].split(",")) if choices else (),
        low=low,
        high=high,
    )
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
        If a parameter is unknown or a value does not fit. The message names all of them at once,
        unknown ones with the nearest valid name.
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

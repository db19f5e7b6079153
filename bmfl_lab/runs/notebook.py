"""A notebook's source: its typed parameters, a hash of its cells, and checks before it is run."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmfl_lab.config import list_problem
from bmfl_lab.data.shifts import SHIFTS
from bmfl_lab.data.study import STUDY_FILES
from bmfl_lab.errors import RunError, message, nearest, require
from bmfl_lab.files import parse_json, sha256_json, system_errors
from bmfl_lab.runs.paths import out_root, run_folder
from bmfl_lab.training.names import COMPARED, CONTROL_MODELS

SCALARS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
TYPES = (*SCALARS, *(f"list[{t}]" for t in SCALARS))
KNOWN = {
    "models": tuple(COMPARED),
    "stand_ins": tuple(CONTROL_MODELS),
    "shifts": SHIFTS.names(),
    "sections": ("regions", "alpha", "controls", "forms", "quality"),
}
"""Names that are known for a parameter, beside those of the parameter's default."""
_OPTIONAL = ("shifts", "controls")
"""Lists that may be empty, beside those whose comment says what an empty one means."""
_EXAMPLES = {"list[str]": '["LVC"]', "list[int]": "[0, 1]", "list[float]": "[0.1, 1.0]"}
_MAX_BYTES = 16 << 20
_CHOICES = re.compile(r"\{([^{}]+)\}\s*$")
_BOUNDS = re.compile(r"\[([^\[\],]*)\.\.([^\[\],]*)\]\s*$")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: one annotated literal of its parameters cell.

    A list holds at least one value, and none twice. It may be empty if its comment says what an
    empty list means. The names of models and shifts are those of the library (`KNOWN`).

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
    low, high : float
        Bounds, from a trailing ``[low..high]`` in the comment; infinite where a side is left out.
    """

    name: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def problem(self, value: object) -> str:
        """Return why `value` cannot be injected, or an empty text."""
        is_list = self.type.startswith("list[")
        if is_list and not isinstance(value, list):
            return self._wrong_type(value)
        scalar = SCALARS[self.type.removeprefix("list[").removesuffix("]")]
        for item in value if is_list else [value]:
            wanted = ""
            # type() and not isinstance(), because True is an int
            if type(item) not in ((int, float) if scalar is float else (scalar,)):
                return self._wrong_type(item)
            if isinstance(item, float) and not math.isfinite(item):
                wanted = "a finite number"
            elif self.choices and str(item) not in self.choices:
                wanted = f"one of {', '.join(self.choices)}"
            elif isinstance(item, (int, float)) and not self.low <= item <= self.high:
                wanted = f"a value from {self.low:g} to {self.high:g}"
            if wanted:
                return f"{self.name} expected {wanted}; got {item!r}"
        if not is_list or (not value and (self.name in _OPTIONAL or "empty" in self.help)):
            return ""
        known = () if self.choices or not self.default else KNOWN.get(self.name, ())
        places = [item for item in value if self.name == "models" and _is_place(str(item))]
        return list_problem(self.name, value, known and (*known, *self.default, *places))

    def _wrong_type(self, value: object) -> str:
        example = json.dumps(self.default) if isinstance(self.default, list) else repr(self.default)
        return (
            f"{self.name} expected {self.type}; got {value!r} ({type(value).__name__}): "
            f"write a value such as {_EXAMPLES[self.type] if example == '[]' else example}"
        )


def _is_place(text: str) -> bool:
    """Return whether a model is named by a path, or by the name of a spec with results."""
    return (
        text.endswith(STUDY_FILES) or bool(set(text) & set("/\\")) or (out_root() / text).is_dir()
    )


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
        require(
            len(found) == 1,
            RunError,
            f"exactly one cell tagged 'parameters' in {self.path.name}",
            len(found),
            "tag the cell of annotated literals in JupyterLab's property inspector",
        )
        return {p.name: p for p in parse_parameters(text(found[0]), self.path.name)}


def text(cell: Mapping[str, Any]) -> str:
    """Return a cell's source as one string."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def tags(cell: Mapping[str, Any]) -> list[str]:
    """Return a cell's tags, sorted."""
    return sorted(cell.get("metadata", {}).get("tags", []))


@contextlib.contextmanager
def without_addresses() -> Iterator[None]:
    """Load nbformat in this block without a parser of international addresses (IRIs).

    nbformat loads jsonschema, which loads the parser if it is installed. It takes seconds to build,
    and no notebook needs it.
    """
    name = "rfc3987_syntax"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


@system_errors()
def read_notebook(path: str | Path) -> Notebook:
    """Read and validate a notebook.

    Raises
    ------
    RunError
        If the file is missing, too large, not JSON, or not a valid notebook of format 4.
    """
    with without_addresses():
        import nbformat

    path = Path(path)
    near = nearest(path.name, [p.name for p in path.parent.glob("*.ipynb") if p.is_file()])
    require(path.is_file(), RunError, f"a notebook {path.name}", f"nothing at {path}", near)
    require(
        path.stat().st_size <= _MAX_BYTES,
        RunError,
        f"a notebook of at most {_MAX_BYTES} bytes",
        f"{path.stat().st_size} bytes",
        f"strip its outputs: jupyter nbconvert --clear-output --inplace {path.name}",
    )
    raw = path.read_bytes()
    try:
        content = parse_json(raw.decode("utf-8"))
        found = content.get("nbformat") if isinstance(content, dict) else type(content).__name__
        require(
            found == 4,
            RunError,
            f"notebook format 4 in {path.name}",
            repr(found),
            "save it again in JupyterLab",
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
    require(
        (isinstance(statement, ast.AnnAssign) and isinstance(target, ast.Name)),
        RunError,
        f"only annotated literals in the parameters cell of {where}",
        repr(line),
        do,
    )
    name, kind = target.id, ast.unparse(statement.annotation).strip("'\"")
    try:
        default = ast.literal_eval(statement.value or target)
    except (ValueError, RecursionError, MemoryError):
        raise RunError(
            message(f"a literal for {name!r} in {where}", f"{line!r}, which is computed", do)
        ) from None
    require(kind in TYPES, RunError, f"a known type for {name!r} in {where}", repr(kind), do)
    choices, bounds = _CHOICES.search(comment), _BOUNDS.search(comment)
    low, high = bounds.groups("") if bounds else ("", "")
    parameter = Parameter(
        name,
        kind,
        default,
        help=_BOUNDS.sub("", _CHOICES.sub("", comment)).strip(),
        choices=tuple(c.strip() for c in choices[1].split(",")) if choices else (),
        low=float(low.strip() or -math.inf),
        high=float(high.strip() or math.inf),
    )
    problem = parameter.problem(default)
    require(
        not problem,
        RunError,
        f"a default that fits its own line in {where}",
        problem,
        "mend the line",
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
    require(
        not problems,
        RunError,
        f"parameters of {notebook.stem}",
        " | ".join(problems),
        f"take names, types and values from the parameters cell of {notebook.path.name}",
    )
    merged = {name: parameter.default for name, parameter in known.items()} | dict(values)
    return {k: float(v) if known[k].type == "float" else v for k, v in merged.items()}


def start_notebook(namespace: dict[str, Any], stem: str) -> tuple[Path, dict[str, Any]]:
    """Check a notebook's parameters in its own kernel, and make the folder that it writes to.

    Parameters
    ----------
    namespace : dict
        ``globals()`` of the notebook, after its parameters cell and the cell that papermill may
        have injected. A list, number or truth value that was given as text, as by ``papermill -p
        seeds "[0, 1]"``, is replaced by its value.
    stem : str
        Stem of the notebook ("03_fusion_training").

    Returns
    -------
    folder : Path
        See `bmfl_lab.runs.paths.run_folder`.
    parameters : dict
        The parameters without ``out``, for the record.

    Raises
    ------
    RunError
        If a value does not fit its annotation, choices or bounds. The message names all of them.
    """
    found: list[Parameter] = []
    for source in namespace.get("In", ()):  # IPython's list of the cells that were executed
        with contextlib.suppress(RunError):
            found = found or parse_parameters(source, stem)
    values = {p.name: _from_text(p, namespace[p.name]) for p in found}
    problems = {p.name: problem for p in found if (problem := p.problem(values[p.name]))}
    lists = [p.name for p in found if p.name in problems and p.type.startswith("list[")]
    require(
        not problems,
        RunError,
        f"parameters of {stem}",
        " | ".join(problems.values()),
        """write a list as papermill -p seeds "[0, 1]" or -p regions '["LVC"]'"""
        if lists
        else "write such a value in the notebook's parameters cell, or behind papermill -p",
    )
    namespace.update(values)
    return run_folder(values.get("out", ""), stem), {k: values[k] for k in values if k != "out"}


def _from_text(parameter: Parameter, value: object) -> object:
    """Return the value behind the text of a list or number; other values as they are."""
    if isinstance(value, str) and parameter.type != "str":
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(value.strip())
    return value

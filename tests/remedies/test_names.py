"""What a remedy names exists: options, environment variables, functions, parameters, files, extras."""

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for top in ("bmfl_lab", "widgets") for p in (ROOT / top).rglob("*.py"))
POSITION = {"message": 2, "require": 4, "read_table": 2, "require_rows": 3}
"""Functions that raise, and the place of the remedy among their arguments."""
RETURNED = {"nearest", "looks_like", "_explain", "_explain_foreign"}
"""Functions that return a remedy, alone or as the last of several values."""
HELD = {"remedy", "do", "redo", "otherwise", "hint"}
"""Variables that hold a remedy before it is passed on."""
OF_OTHERS = {
    "options": {  # of convmv and Jupyter
        *("--notest", "--ip", "--ServerApp.token", "--clear-output", "--inplace"),
    },
    "names": {
        *("zeros_like", "named_parameters", "requires_grad_"),
        *("save_pretrained", "prediction_type", "numpy.savez", "X.reshape", "np.logspace"),
    },
    "variables": {"HTTPS_PROXY", "ILSVRC"},
}
"""Names that a remedy takes from other programs and libraries."""


@functools.cache
def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def texts(node):
    """Return the texts that an expression may give, with {} for what is filled in."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.BoolOp):
        return [t for value in node.values for t in texts(value)]
    if isinstance(node, ast.BinOp):
        left, right = texts(node.left) or ["{}"], texts(node.right) or ["{}"]
        return [a + b for a in left for b in right]
    return []


def remedy_nodes(tree):
    """Yield the expression of each remedy of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = POSITION.get(name, len(node.args))
            yield from node.args[place : place + 1]
            yield from (k.value for k in node.keywords if k.arg == "remedy")
        elif isinstance(node, ast.FunctionDef) and node.name in RETURNED:
            values = (n.value for n in ast.walk(node) if isinstance(n, ast.Return))
            yield from (v.elts[-1] if isinstance(v, ast.Tuple) else v for v in values)
        elif isinstance(node, ast.arguments):
            named = [*node.args[len(node.args) - len(node.defaults) :], *node.kwonlyargs]
            values = zip(named, [*node.defaults, *node.kw_defaults])
            yield from (value for a, value in values if a.arg == "remedy" and value)


@functools.cache
def remedies():
    """Return the place and the text of each remedy, also of those that stand in a variable."""
    found, variables = [], set()
    for path, tree in trees().items():
        for node in remedy_nodes(tree):
            variables |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            found += [(f"{path.relative_to(ROOT)}:{node.lineno}", t) for t in texts(node)]
    held = {v for v in variables if v.isupper() or v in HELD}
    held |= {"_REMEDIES", "_FOREIGN"}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            names = {n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)}
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value and names & held:
                value = node.value
                parts = value.elts if isinstance(value, ast.Tuple) else [value]
                parts = value.keys if isinstance(value, ast.Dict) else parts
                parts = [p.elts[-1] if isinstance(p, ast.Tuple) else p for p in parts]
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                found += [(place, t) for part in parts for t in texts(part)]
    return sorted(set(found))


@functools.cache
def known_names():
    """Return every name that the package defines: functions, classes, parameters, fields, files."""
    names = {part for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            if isinstance(node, ast.arg):
                names.add(node.arg)
            if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                names.add(getattr(node, "id", getattr(node, "attr", "")))
    return names


@functools.cache
def words(tree):
    """Return every word of the literals of a file, docstrings and remedies aside."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    docs |= {id(inner) for node in remedy_nodes(tree) for inner in ast.walk(node)}
    values = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    )
    return {word for value in values for word in re.findall(r"[\w-]+", value)}


@functools.cache
def known_words():
    """Return every word of the literals of the package."""
    return set().union(*map(words, trees().values()))


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def wrong(text):
    """Return what a remedy names and nobody can use."""
    found = [
        o for o in re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*\w", text) if o not in known_words()
    ]
    found = [o for o in found if o not in OF_OTHERS["options"]]
    variables = re.findall(r"(?<![\w.-])[A-Z]{2,}_[A-Z_]+\b", text)
    found += [
        v for v in variables if v not in known_words() | known_names() | OF_OTHERS["variables"]
    ]
    code = re.sub(r"https?:\S+|\{\}[\w.]*|[\w./-]*\.(?:npy|pth|hdf5|json|csv|md|h5)\b", " ", text)
    parameters = re.findall(r"(?<![\w.-])([a-zA-Z_]\w*)=", code)
    calls = re.findall(r"(?<![\w.-])([\w.]+)\(", code)
    dotted = re.findall(
        r"(?<![\w.-])((?:bmfl_lab|widgets|data|backbone|subject|encoder)\.[\w.]*\w)", code
    )
    snakes = re.findall(r"(?<![\w.'-])_?[a-zA-Z]+(?:_[a-zA-Z0-9]+)+(?![\w'-])", code)
    for name in [*parameters, *calls, *dotted, *snakes]:
        last = name.split(".")[-1]
        others = OF_OTHERS["names"] | OF_OTHERS["variables"]
        if last not in known_names() | known_words() and not {name, last} & others:
            found.append(name)
    found += [e for e in re.findall(r"bmfl-lab\[(\w+)\]", text) if e not in EXTRAS]
    found += [e for e in re.findall(r"the extra '(\w+)'", text) if e not in EXTRAS]
    for module, command in re.findall(r"python -m ([\w.]+)(?: ([a-z]+)\b)?", text):
        place = ROOT / module.replace(".", "/") / "__main__.py"
        if not place.is_file() or (command and command not in words(trees()[place])):
            found.append(f"{module} {command}")
    paths = re.findall(r"\b(?:bmfl_lab|papermill_runs|notebooks|tests)/[\w./-]*\w", text)
    return found + [p for p in paths if not (ROOT / p).exists()]


def test_the_remedies_of_the_package_are_found():
    assert len(remedies()) > 600
    said = {text for _, text in remedies()}
    assert {"mend the line", "check the path", "write numbers"} <= said
    assert any("python -m bmfl_lab.data nod" in text for text in said)
    assert any("ulimit -n" in text for text in said)  # from a table


def test_whatever_a_remedy_names_exists():
    found = {f"{place}: {text}": bad for place, text in remedies() if (bad := wrong(text))}
    assert found == {}


CANNOT_HELP = [
    "pass no_such_parameter=3",
    "run it with --no-such-option",
    "set BMFL_NO_SUCH_VARIABLE to a folder",
    "make it with train_no_such_model(...)",
    "use no_such_function first",
    "run python -m bmfl_lab.nothing",
    "run python -m bmfl_lab.data nothing",
    "install it with pip install 'bmfl-lab[nothing]'",
    "see bmfl_lab/nothing.md",
    "decode it with bmfl_lab.data.images.no_such",
]


@pytest.mark.parametrize("text", CANNOT_HELP)
def test_the_rule_sees_what_does_not_exist(text):
    assert wrong(text)

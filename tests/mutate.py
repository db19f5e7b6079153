"""Change single places of the code and see whether the tests notice: ``python tests/mutate.py``.

    python tests/mutate.py [--n 40] [--seed 0] [FILE ...]

Each mutant changes one comparison, sign, bound, axis, boolean or pattern of the files (by default
metrics, losses, controls and splits) in a copy of the repository and runs the tests that import the
changed module, until the first failure. Survivors are printed with their line. It ends with 1 if
more than 5 % survive. Mutants that are known to compute the same as the original are listed with
the reason and left out. Not part of the test run: forty mutants take some ten minutes.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = (
    "bmfl_lab/metrics/*.py",
    "bmfl_lab/losses/*.py",
    "bmfl_lab/training/compare.py",
    "bmfl_lab/training/trained_encoder.py",
    "bmfl_lab/training/sources.py",
    "bmfl_lab/data/splits.py",
    "bmfl_lab/data/vertices.py",
    "bmfl_lab/data/nsd.py",
    "bmfl_lab/data/nsd_files.py",
)
MOST_SURVIVORS = 0.05
OPERATORS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.And: "or",
    ast.Or: "and",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
NAMES = {"any": "all", "all": "any", "min": "max", "max": "min", "argmin": "argmax"}
NAMES |= {"argmax": "argmin", "minimum": "maximum", "maximum": "minimum"}
SAME = {
    "null > value - 1e-12": "the slack is far larger than rounding, so that no value is equal to it",
    "value - side * width": "p depends on the distance alone, and this only widens a bracket",
    "width *= 3": "a bracket, in which the end is then found",
    "1.0 if table.subject is None": "the first width of a bracket",
    "> 1e-9, failures >= 1e-9": "a count is zero or far above 1e-9",
    ">= 1e-9, failures > 1e-9": "a count is zero or far above 1e-9",
    "np.where(some, successes, 2)": "where there is no success, another branch is taken",
    "np.where(any_failure, failures, 2)": "where there is no failure, another branch is taken",
    "100 if len(factors)": "numbers of nodes, both of which are accurate to all printed digits",
    "np.where(here >= 0, here, 1)": "where it is 0, another branch is taken",
    "np.where(here > 0, here, 2)": "where it is 0, another branch is taken",
    "(both > 0) & (np.abs(at) < both)": "at the end of the range the distance is 0, or p is",
    "(difference) > power": "a power is never equal to the one that is wanted",
    "K.sum(axis=0)": "the matrix is symmetric",
    "L.sum(axis=0)": "the matrix is symmetric",
    '"pearson") / np.sqrt(m)': "a scale that cancels",
    "np.mean(e**2), 0.0, 0.0, 1.0)": "not read for real values",
    "np.mean(e**2), 0.0, 1.0, 0.0)": "not read for real values",
    "np.mean(e**2), 1.0, 0.0, 0.0)": "not read without a variance over seeds",
    ".reshape(len(gap), -2)": "numpy takes it for the rest as well",
    "parts, method = [1.0, over_seeds": "not read with one seed",
    "over_seeds.var(ddof=1), 1.0], ONE_SEED": "not read with one seed",
    "counts = {repeats: 2}": "a share, of which there is one",
    "np.where(here >= 0, np.maximum(1": "a variance is below 1",
    "table.mean - middle": "p depends on the distance alone",
    "table.mean - outside": "p depends on the distance alone",
    "len(inside) < len(outside)": "of equal sizes all are taken, whichever is drawn",
    "autocast(x.device.type, enabled=True)": "autocast changes none of these operations",
    "scale >= 1e-14": "a limit that no value meets exactly",
    "test < 2 and val + test < 1": "the sum says the same",
    "val < 2 and 0 <= test": "the sum says the same",
    "_Crossed(*one, 2,": "without a variance over seeds their number is not read",
    "np.abs(X).min(axis=1": "constant patterns, for which both are one",
}
"""Mutants that compute the same as the original, by a part of their new line, and why."""
AXES = ("axis", "dim", "ddof", "keepdims")


@dataclass(frozen=True)
class Mutant:
    """A file, its line, and the source text from `start` to `end` that `new` replaces."""

    path: Path
    line: int
    start: int
    end: int
    new: str


def offsets(text: str) -> list[int]:
    """Return the offset in bytes at which each line starts, the first line at index 1."""
    starts = [0, 0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file; annotations, docstrings and error texts are left alone."""
    text = path.read_text(encoding="utf-8")
    starts, data = offsets(text), text.encode()

    def made(node: ast.AST, new: str, first: int = -1, last: int = -1) -> Mutant:
        start = starts[node.lineno] + node.col_offset if first < 0 else first
        end = starts[node.end_lineno] + node.end_col_offset if last < 0 else last
        return Mutant(path, data[:start].count(b"\n") + 1, start, end, new)

    def between(left: ast.AST, right: ast.AST, operator: ast.AST) -> Iterator[Mutant]:
        if type(operator) in OPERATORS:
            start = starts[left.end_lineno] + left.end_col_offset
            end = starts[right.lineno] + right.col_offset
            old = data[start:end].decode()
            if not set(old) & set("()#\\"):
                indent = "\n" if "\n" in old else ""
                yield made(left, f"{indent} {OPERATORS[type(operator)]} ", start, end)

    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("message", "require"):
            waiting += node.args[:1] if node.func.id == "require" else []
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        annotations = {id(getattr(node, k, None)) for k in ("annotation", "returns")}
        annotations |= {id(d) for d in getattr(node, "decorator_list", ())}
        waiting += [c for c in ast.iter_child_nodes(node) if id(c) not in annotations]
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from between(node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.BinOp):
            yield from between(node.left, node.right, node.op)
        elif isinstance(node, ast.BoolOp):
            yield from between(node.values[0], node.values[1], node.op)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            yield made(node, ast.unparse(node.operand))
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            end = starts[node.end_lineno] + node.end_col_offset
            yield made(node, NAMES[node.attr], end - len(node.attr), end)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in NAMES:
            yield made(node.func, NAMES[node.func.id])
        elif isinstance(node, ast.keyword) and node.arg in AXES:
            if isinstance(node.value, ast.Constant) and type(node.value.value) is int:
                waiting.remove(node.value)
                yield made(node.value, "1" if node.value.value == 0 else "0")
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            if isinstance(node.value, bool):
                yield made(node, str(not node.value))
            elif node.value in (0, 1, 2):
                yield made(node, str(node.value + 1))
        elif isinstance(node, ast.Constant) and str(node.value).endswith("*"):
            yield made(node, repr(node.value[:-1]))


def related(path: Path) -> list[str]:
    """Return the test files of a module: those of its package that import it, are named after it,
    or use one of its public names that is no plain word.

    Where none is named after it, those of other packages that use such a name are taken, too. The
    test of documented defaults reads every module.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [n.name for n in tree.body if isinstance(n, kinds) and n.name.strip("_") == n.name]
    special = [re.escape(n) for n in names if "_" in n or n[0].isupper()]
    use = re.compile(rf"\b({'|'.join([*special, f'{path.parent.name}.{path.stem} import'])})\b")
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    using = [t for t in tests if path.stem in t.stem or use.search(t.read_text(encoding="utf-8"))]
    own = [t for t in using if t.parent.name == path.parent.name]
    named = any(path.stem.rstrip("s") in t.stem for t in own)
    found = [ROOT / "tests" / "test_documented_defaults.py", *(own if named else using)]
    return [str(t.relative_to(ROOT)) for t in found]


def survives(mutant: Mutant, copy: Path, timeout: float) -> bool:
    """Write a mutant into the copy, run its tests there, and restore the file."""
    place = copy / mutant.path.relative_to(ROOT)
    data = mutant.path.read_bytes()
    changed = data[: mutant.start] + mutant.new.encode() + data[mutant.end :]
    try:
        ast.parse(changed.decode())
    except SyntaxError:
        return False
    place.write_bytes(changed)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    try:
        ran = subprocess.run(
            [*command, *related(mutant.path)],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=timeout,
        )
        return ran.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        place.write_bytes(data)


def shown(mutant: Mutant) -> str:
    """Return the place of a mutant, and its line before and after."""
    data = mutant.path.read_bytes()
    changed = data[: mutant.start] + mutant.new.encode() + data[mutant.end :]
    before, after = (d.decode().splitlines()[mutant.line - 1].strip() for d in (data, changed))
    return f"{mutant.path.relative_to(ROOT)}:{mutant.line}\n    - {before}\n    + {after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=DEFAULT)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=200)
    options = parser.parse_args()
    paths = sorted({p for pattern in options.files for p in ROOT.glob(pattern)})
    every = [m for path in paths for m in mutants(path)]
    chosen = random.Random(options.seed).sample(every, min(options.n, len(every)))
    survivors, same = [], 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
        for name in tracked:
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        for k, mutant in enumerate(chosen, 1):
            if any(part in shown(mutant).splitlines()[-1] for part in SAME):
                same += 1
                continue
            alive = survives(mutant, copy, options.timeout)
            survivors += [mutant] * alive
            if alive:
                print(f"[{k}/{len(chosen)}] survived: {shown(mutant)}", flush=True)
    share = len(survivors) / max(1, len(chosen) - same)
    print(f"{len(survivors)} of {len(chosen) - same} mutants survived, of {len(every)} possible;")
    print(f"{same} more compute the same as the original and were not tried.")
    return int(share > MOST_SURVIVORS)


if __name__ == "__main__":
    sys.exit(main())

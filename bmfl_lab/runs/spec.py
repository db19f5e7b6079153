"""Specs: YAML files that list notebooks to run, their parameters, and bounds on their results."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmfl_lab import evaluation, training
from bmfl_lab.config import list_problem, type_problems
from bmfl_lab.errors import DataError, FileError, RunError, message, nearest, require
from bmfl_lab.files import read_yaml, sha256_json, system_errors
from bmfl_lab.metrics.statistics import SMALLEST_EFFECT
from bmfl_lab.records import METRICS, MetricRow
from bmfl_lab.runs.notebook import Notebook, check_parameters, read_notebook, text
from bmfl_lab.runtime import project_root
from bmfl_lab.training.names import COMPARED, CONTROL_MODELS

DEVICES = ("any", "cpu", "cuda")
KERNEL = "python3"
"""The kernel that runs every notebook: that of the environment this package is installed in."""
FIELDS: dict[str, type | tuple[type, ...]] = {
    "notebook": str,
    "params": Mapping,
    "grid": Mapping,
    "seeds": list,
    "needs": list,
    "device": str,
    "timeout_min": (int, float),
    "cell_timeout_min": (int, float),
    "expect": list,
    "resources": Mapping,
    "preregistered": Mapping,
}
TRAINED = {*COMPARED, *CONTROL_MODELS, "linear probe"}
"""Models that notebooks train; other names in a parameter ``models`` are places of saved ones."""
_MOST_RUNS = 10_000
"""Runs of one spec (our choice)."""
RESOURCES: dict[str, type | tuple[type, ...]] = {
    "gpus": int,
    "cpus": int,
    "memory_gb": (int, float),
    "minutes": int,
    "partition": str,
    "nodes": int,
}
"""Resources that the job of a cluster may request, and their types."""
ON_NODES = ("03_fusion_training", "04_ood_evaluation")
"""Notebooks whose models `python -m bmfl_lab.training` trains, also on several nodes."""


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters.

    Parameters
    ----------
    spec : str
        Stem of the spec file.
    notebook : Notebook
        The notebook that is executed.
    parameters : mapping
        Every parameter of the notebook except ``out``, which the runner sets.
    device : str
        "any", "cpu" or "cuda".
    timeout_min, cell_timeout_min : float
        Minutes for the whole run and for one cell.
    expect : tuple of mapping
        Bounds on rows of the record: ``{"metric": ..., "low": ..., "high": ..., any field of
        MetricRow: value}``.
    needs : tuple of str
        Specs whose runs must all be ok before this one starts.
    resources : mapping
        Resources that the job of a cluster requests, see `RESOURCES`.
    root : Path
        The project that the spec belongs to: notebooks, data and results are found from there.
    preregistered : mapping
        ``primary`` and ``smallest`` as declared, and the ``hash`` of all that the spec runs.
    """

    spec: str
    notebook: Notebook
    parameters: Mapping[str, Any]
    device: str = "any"
    timeout_min: float = 60.0
    cell_timeout_min: float = 45.0
    expect: tuple[Mapping[str, Any], ...] = ()
    needs: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    root: Path = field(default_factory=project_root)
    preregistered: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """Stem of the notebook and 8 hexadecimal digits of what determines the result.

        The digits are a hash of the notebook's source, its parameters, the data, and the saved
        models that it opens. The code's revision is not part of it: a result of older code is found
        under the same name and called stale.
        """
        data = data_fingerprint(str(self.parameters.get("study", "")), self.root)
        parts = [self.notebook.source_hash(), dict(self.parameters), data]
        models = self.parameters.get("models")
        if isinstance(models, list) and set(models) - TRAINED:  # places of saved models
            parts.append(training.models_fingerprint(models, self.root))
        digest = sha256_json(parts)
        return f"{self.notebook.stem}-{digest[:8]}"


@system_errors()
def data_fingerprint(study: str, root: Path) -> str:
    """Return a text that changes when the data behind a study's name change.

    A named study is generated or pinned by the code, so its name suffices. A folder is identified
    by the names, sizes and modification times of its files; a relative one is looked up below the
    project's `root`. The notebook hashes the content itself into its record.
    """
    folder = root / Path(study).expanduser()
    if folder.is_file():
        return hashlib.sha256(folder.read_bytes()).hexdigest()
    if not study or not folder.is_dir():
        return study
    h = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        h.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return h.hexdigest()


def spec_path(name: str) -> Path:
    """Return the file of a spec: a path, or the stem of a file in ``papermill_runs/specs``."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    return project_root() / "papermill_runs" / "specs" / f"{name}.yaml"


def load_spec(path: str | Path) -> list[Run]:
    """Read a spec and check every run of it against its notebook.

    Parameters
    ----------
    path : str or Path
        The YAML file. The fields of a run stand at the top level, or in a list ``runs`` whose
        entries override them.

    Returns
    -------
    list of Run
        One run per combination of grid values and seeds, in the order written.

    Raises
    ------
    RunError
        If the file is missing or not YAML, a field is unknown or of a wrong type, a notebook cannot
        be read, or a parameter is unknown, of a wrong type or out of range. This is found before
        any kernel starts.
    """
    path = Path(path)
    require(
        path.stem.strip("."),
        RunError,
        "a spec whose name is more than dots",
        repr(path.name),
        "rename it: its runs get a folder of that name",
    )
    data = _read_yaml(path)
    entries = data.pop("runs", [{}])
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries or [0]):
        remedy = "write 'runs:' and one '- ' per run"
        raise RunError(message(f"a list of runs in {path.name}", repr(entries), remedy))
    data.pop("title", None)
    runs: list[Run] = []
    for entry in entries:
        merged = {**data, **entry}
        params = [source.get("params") or {} for source in (data, entry)]
        fine = all(isinstance(p, Mapping) for p in params)
        merged["params"] = {**params[0], **params[1]} if fine else params
        _check_fields(merged, path.name)
        runs += _expand(merged, path)
    _check_needs(path.stem, {name for run in runs for name in run.needs}, runs[0].root)
    ids = [r.run_id for r in runs]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise RunError(
            message(f"distinct runs in {path.name}", f"{twice} twice", "remove one of the two")
        )
    declared = [[r.notebook.stem, r.parameters, r.preregistered] for r in runs if r.preregistered]
    digest = {"hash": sha256_json(declared)}
    return [
        dataclasses.replace(r, preregistered={**r.preregistered, **digest})
        if r.preregistered
        else r
        for r in runs
    ]


def _check_needs(spec: str, needs: set[str], root: Path) -> None:
    """Refuse needed specs that do not exist, or that need this one themselves."""
    folder, waiting, seen = root / "papermill_runs" / "specs", sorted(needs), set()
    while waiting:
        name = waiting.pop()
        require(
            name != spec,
            RunError,
            f"a spec that does not need itself in {spec}",
            "it does, directly or through those that it needs",
            "remove one of the entries under 'needs'",
        )
        path = folder / f"{name}.yaml"
        known = [p.stem for p in folder.glob("*.yaml")] if folder.is_dir() else []
        require(
            path.is_file(),
            RunError,
            f"the spec {name!r} that {spec} needs",
            f"nothing at {path}",
            nearest(name, known),
        )
        if name not in seen:
            seen.add(name)
            data = _read_yaml(path)
            for entry in [data, *(e for e in data.get("runs") or [] if isinstance(e, Mapping))]:
                more = entry.get("needs") or []
                waiting += [str(n) for n in more] if isinstance(more, list) else []


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        got = "a folder" if path.is_dir() else "something that is no plain file"
        raise RunError(message(f"a spec file at {path}", got, "give the YAML file"))
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise RunError(message("a spec file", f"nothing at {path}", near))
    try:
        data = read_yaml(path)
    except FileError:
        raise
    except DataError as error:
        raise RunError(str(error)) from error
    require(
        isinstance(data, dict),
        RunError,
        f"fields in {path.name}",
        type(data).__name__,
        "start with 'notebook: ...'",
    )
    return data


def _check_fields(values: Mapping[str, Any], where: str) -> None:
    found = []
    for key, value in values.items():
        if key not in FIELDS:
            found.append(f"unknown field {key!r}: {nearest(str(key), [*FIELDS, 'title'])}")
        elif not isinstance(value, FIELDS[key]) or isinstance(value, bool):
            found.append(f"{key} is {value!r} ({type(value).__name__})")
    if "notebook" not in values:
        found.append("no field 'notebook'")
    whole, cell = values.get("timeout_min", 60), values.get("cell_timeout_min", 0)
    if isinstance(whole, (int, float)) and isinstance(cell, (int, float)) and cell > whole:
        found.append(f"cell_timeout_min {cell!r} is longer than timeout_min {whole!r} of the run")
    if values.get("device", "any") not in DEVICES:
        found.append(f"device {values['device']!r}: choose one of {', '.join(DEVICES)}")
    for name in ("timeout_min", "cell_timeout_min"):
        if isinstance(values.get(name), (int, float)) and not 0 < values[name] < 1e5:
            found.append(f"{name} {values[name]!r}: expected minutes above 0")
    resources, notebook = values.get("resources"), Path(str(values.get("notebook"))).stem
    for key, value in resources.items() if isinstance(resources, Mapping) else ():
        if key not in RESOURCES:
            found.append(f"unknown resource {key!r}: {nearest(str(key), RESOURCES)}")
        elif not isinstance(value, RESOURCES[key]) or isinstance(value, bool):
            found.append(f"resource {key} is {value!r} ({type(value).__name__})")
        elif key == "partition" and not re.fullmatch(r"[\w,.-]+", value):
            found.append(f"resource partition is {value!r}: expected its name as sinfo prints it")
        elif key != "partition" and not (0 < value < 1e6 or (key == "gpus" and value == 0)):
            found.append(f"resource {key} is {value!r}: expected a number above 0")
        elif key == "nodes" and value > 1 and notebook not in ON_NODES:
            found.append(f"resource nodes is {value}: several nodes train {' and '.join(ON_NODES)}")
    if isinstance(values.get("preregistered"), Mapping):
        problem = evaluation.declared_problem(values["preregistered"])
        found += [f"preregistered: {problem}"] if problem else []
    needs, grid = values.get("needs"), values.get("grid")
    if isinstance(needs, list) and not all(isinstance(name, str) for name in needs):
        found.append(f"needs {needs!r}: expected names of specs")
    if "seeds" in values and isinstance(grid, Mapping) and "seed" in grid:
        found.append("seeds in two places: write them in 'seeds' or in 'grid'")
    for bound in values["expect"] if isinstance(values.get("expect"), list) else ():
        found += _expect_problems(bound)
    require(
        not found,
        RunError,
        f"a valid run in {where}",
        " | ".join(found),
        "write each field as papermill_runs/README.md describes it",
    )


def _expect_problems(bound: object) -> list[str]:
    if not isinstance(bound, Mapping) or "metric" not in bound or not {"low", "high"} & set(bound):
        return [f"expect entry {bound!r}: expected 'metric' and 'low' or 'high'"]
    known = {"metric", "low", "high", *(f.name for f in dataclasses.fields(MetricRow))}
    found = [
        f"unknown field {k!r} in expect: {nearest(str(k), known)}" for k in bound if k not in known
    ]
    values = {"name" if k == "metric" else k: v for k, v in bound.items() if k in known}
    sides = {side: values.pop(side) for side in ("low", "high") if side in values}
    found += [f"expect {problem}" for problem in type_problems(MetricRow, values)]
    for side, value in sides.items():
        if type_problems(_limit, {"value": value}):
            found.append(f"expect {side} is {value!r}, expected a finite number")
    if not found and len(sides) == 2 and sides["low"] > sides["high"]:
        found.append(f"expect low {sides['low']} is above high {sides['high']}")
    return found


def _check_metrics(notebook: Notebook, bounds: Iterable[Mapping[str, Any]], where: str) -> None:
    """Refuse bounds on a metric that neither the library's notebooks nor this notebook record."""
    own = set(re.findall(r"""["'](\w+)["']""", "".join(map(text, notebook.cells))))
    for name in (str(bound["metric"]) for bound in bounds):
        require(
            name in METRICS or name in own,
            RunError,
            f"a metric that {notebook.path.name} records, in 'expect' of {where}",
            repr(name),
            nearest(name, METRICS),
        )


def _check_grid(grid: Mapping[str, Any], where: str) -> None:
    """Refuse a grid with anything else than lists of different values, or with too many runs."""
    for name, options in grid.items():
        listed = isinstance(options, list)
        problem = list_problem(name, options) if listed else repr(options)
        require(
            not problem,
            RunError,
            f"a list of different values for {'seeds' if name == 'seed' else repr(name)}",
            problem,
            f"write {'seeds' if name == 'seed' else name}: [a, b], with the values in the brackets",
        )
    n_runs = math.prod(len(options) for options in grid.values())
    require(
        n_runs <= _MOST_RUNS,
        RunError,
        f"at most {_MOST_RUNS} runs in {where}",
        n_runs,
        "divide its grid into several specs",
    )


def _limit(value: float) -> None:
    """Name the type of a bound, for `type_problems`."""


def _expand(values: Mapping[str, Any], path: Path) -> list[Run]:
    root = project_root(path.parent)
    notebook = read_notebook(root / values["notebook"])
    require(
        notebook.kernel == KERNEL,
        RunError,
        f"kernel {KERNEL!r} in {notebook.path.name}",
        repr(notebook.kernel),
        f"choose the kernel {KERNEL!r} in JupyterLab and save",
    )
    params, grid = dict(values["params"]), dict(values.get("grid") or {})
    require(
        "out" not in params and "out" not in grid,
        RunError,
        "no parameter 'out' in a spec",
        "one",
        "leave it out: the runner sets it",
    )
    if "seeds" in values:
        grid["seed"] = values["seeds"]
    _check_grid(grid, path.name)
    _check_metrics(notebook, values.get("expect") or (), path.name)
    declared = dict(values.get("preregistered") or {})
    if declared:
        params["smallest"] = declared.setdefault("smallest", SMALLEST_EFFECT)
    runs, timeout = [], float(values.get("timeout_min", 60))
    # one cell must end before its run does, or the message cannot name the cell
    cell_timeout = float(values.get("cell_timeout_min", min(45.0, 0.9 * timeout)))
    for point in itertools.product(*grid.values()):
        merged = check_parameters(notebook, {**params, **dict(zip(grid, point))})
        merged.pop("out", None)
        runs.append(
            Run(
                spec=path.stem,
                notebook=notebook,
                parameters=merged,
                device=values.get("device", "any"),
                timeout_min=timeout,
                cell_timeout_min=cell_timeout,
                expect=tuple(values.get("expect") or ()),
                needs=tuple(values.get("needs") or ()),
                resources=dict(values.get("resources") or {}),
                root=root,
                preregistered=declared,
            )
        )
    return runs

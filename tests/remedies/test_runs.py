"""The remedies of `bmfl_lab.runs`, each followed."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from following import follows
from notebook_example import write_notebook

from bmfl_lab.files import read_json, write_json
from bmfl_lab.records import Record
from bmfl_lab.runs import __main__ as command
from bmfl_lab.runs import cluster, plan, start_notebook
from bmfl_lab.runs import spec as specs
from bmfl_lab.runs.collect import collect, write_report
from bmfl_lab.runs.execute import code_digest, code_revision, execute, folder_of
from bmfl_lab.runs.export import export_html
from bmfl_lab.runs.launch import train_in_processes
from bmfl_lab.runs.notebook import check_parameters, parse_parameters, read_notebook, text
from bmfl_lab.runs.paths import run_folder
from bmfl_lab.runs.spec import load_spec

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = """
study: str = "planted"  # study to load
n: int = 3  # how many [1..10]
regions: list[str] = ["V1"]  # regions
seed: int = 0  # seed
out: str = ""  # folder of results, set by the runner
"""


def project(folder, **fields):
    """Write a project with one notebook, and return a spec that runs it."""
    folder.mkdir(exist_ok=True)
    write_notebook(folder / "probe.ipynb", PARAMETERS, "print(n)")
    (folder / "pyproject.toml").write_text("")
    return spec_file(folder / "probe.yaml", notebook="probe.ipynb", **fields)


def spec_file(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def finish(run, out):
    """Write what the worker leaves of a run, whose cells are executed here."""
    folder = folder_of(run, out)
    folder.mkdir(parents=True)
    printed, names = io.StringIO(), {}
    content = json.loads(json.dumps(run.notebook.content))
    with contextlib.redirect_stdout(printed):
        for cell in run.notebook.cells:
            exec(text(cell), names)
    content["cells"][-1]["outputs"] = [nbformat.v4.new_output("stream", text=printed.getvalue())]
    write_json(folder / "executed.ipynb", content)
    code = {"code_revision": code_revision(), "code_digest": code_digest()}
    write_json(folder / "spec.json", code)
    write_json(folder / "state.json", {"state": "ended", "problem": "", "cells": []})
    study = {"name": "planted", "fingerprint": "0", "simulated": True}
    record = Record("probe", dict(run.parameters), study)
    record.add("accuracy", 0.5, unit="fraction", split="test", n=4, selection="none")
    record.finish(folder)


def unchanged_code(env):
    # the source tree may be under edit while the tests run
    for place in ("bmfl_lab.runs.execute", __name__):
        env.setattr(f"{place}.code_revision", lambda: "0" * 12)
        env.setattr(f"{place}.code_digest", lambda: "0" * 16)


@follows(
    ("runs/spec.py", "give the YAML file"),
    ("runs/spec.py", "rename it: its runs get a folder of that name"),
    ("runs/spec.py", "start with 'notebook: ...'"),
    ("runs/spec.py", "write 'runs:' and one '- ' per run"),
    ("runs/spec.py", "remove one of the two"),
)
def test_files_of_specs(folder, env):
    paths = [folder / "set.yaml"]
    paths[0].mkdir()

    def call():
        return load_spec(paths[-1])

    yield call
    paths.append(project(folder / "set.yaml"))
    call()

    paths.append(paths[-1].rename(paths[-1].with_name("..yaml")))
    yield call
    paths.append(paths[-1].rename(paths[-1].with_name("mine.yaml")))
    call()

    paths[-1].write_text("- probe.ipynb\n")
    remedy = yield call
    first = re.search(r"'(.*)'", remedy)[1].replace("...", "probe.ipynb")
    paths[-1].write_text(f"{first}\n")
    call()

    paths[-1].write_text(f"{first}\nruns: 3\n")
    remedy = yield call
    start, each = re.findall(r"'(.*?)'", remedy)
    lines = [f"{each}params: {{n: {n}}}" for n in (1, 2, 2)]
    paths[-1].write_text("\n".join([first, start, *lines]))
    assert len(yaml.safe_load(paths[-1].read_text())["runs"]) == 3
    yield call
    paths[-1].write_text("\n".join([first, start, *lines[:2]]))


@follows(
    ("runs/spec.py", "write each field as papermill_runs/README.md describes it"),
    ("runs/spec.py", "leave it out: the runner sets it"),
    ("runs/spec.py", "write {}: [a, b], with the values in the brackets"),
    ("runs/spec.py", "divide its grid into several specs"),
)
def test_fields_of_specs(folder, env):
    paths, params = [project(folder, timeout=5)], {}

    def call():
        return [load_spec(path) for path in paths]

    remedy = yield call
    described = (ROOT / re.search(r"\S+\.md", remedy)[0]).read_text()
    field = next(f for f in re.findall(r"^\| `(\w+)`", described, re.M) if f.startswith("timeout"))
    project(folder, **{field: 5})
    call()

    params = {"out": "here", "n": 4}
    project(folder, params=params)
    yield call
    del params["out"]
    project(folder, params=params)
    call()

    paths[0].write_text("notebook: probe.ipynb\ngrid: {n: 3}\n")
    remedy = yield call
    line = re.search(r"write (.+), with", remedy)[1].replace("a, b", "3, 4")
    paths[0].write_text(f"notebook: probe.ipynb\ngrid:\n  {line}\n")
    assert len(call()[0]) == 2

    env.setattr(specs, "_MOST_RUNS", 4)
    seeds, numbers = [0, 1], [1, 2, 3]
    project(folder, seeds=seeds, grid={"n": numbers})
    yield call
    paths[:] = [
        spec_file(folder / f"{n}.yaml", notebook="probe.ipynb", seeds=seeds, grid={"n": [n]})
        for n in numbers
    ]


@follows(
    ("runs/spec.py", "remove one of the entries under 'needs'"),
    ("runs/spec.py", "choose the kernel {} in JupyterLab and save"),
)
def test_what_a_spec_needs(folder, env):
    specs_folder = folder / "papermill_runs" / "specs"
    path = project(folder, needs=["other"])
    other = {"notebook": "probe.ipynb", "needs": ["probe"]}
    spec_file(specs_folder / "other.yaml", **other)
    yield lambda: load_spec(path)
    del other["needs"]
    spec_file(specs_folder / "other.yaml", **other)
    load_spec(path)

    notebook = read_json(folder / "probe.ipynb")
    notebook["metadata"]["kernelspec"]["name"] = "ir"
    write_json(folder / "probe.ipynb", notebook)
    remedy = yield lambda: load_spec(path)
    notebook["metadata"]["kernelspec"]["name"] = re.search(r"kernel '(\w+)'", remedy)[1]
    write_json(folder / "probe.ipynb", notebook)


@follows(
    ("runs/notebook.py", "restore the file"),
    ("runs/notebook.py", "save it again in JupyterLab"),
    ("runs/notebook.py", "save it again in JupyterLab"),
    (
        "runs/notebook.py",
        "strip its outputs: jupyter nbconvert --clear-output --inplace {}",
    ),
    ("runs/notebook.py", "tag the cell of annotated literals in JupyterLab's property inspector"),
)
def test_files_of_notebooks(folder, env):
    path = write_notebook(folder / "probe.ipynb", PARAMETERS, "print(n)")
    whole = path.read_text()

    def call():
        return read_notebook(path).parameters()

    path.write_text(whole[:-20])
    yield call
    path.write_text(whole)
    call()

    old = nbformat.convert(nbformat.reads(whole, 4), 3)
    nbformat.write(old, path, version=3)
    yield call
    # JupyterLab reads any format and writes the current one
    found = nbformat.read(path, 4)
    found.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(found, path)
    call()

    content = json.loads(whole)
    del content["cells"][0]["outputs"]
    path.write_text(json.dumps(content))
    yield call
    content["cells"][0]["outputs"] = []
    path.write_text(json.dumps(content))
    call()

    large = nbformat.v4.new_output("stream", text="x" * (17 << 20))
    content["cells"][1]["outputs"] = [large]
    path.write_text(json.dumps(content))
    remedy = yield call
    assert remedy.endswith(path.name)
    for cell in content["cells"]:
        cell["outputs"] = []
    path.write_text(json.dumps(content))
    call()

    del content["cells"][0]["metadata"]["tags"]
    path.write_text(json.dumps(content))
    yield call
    content["cells"][0]["metadata"]["tags"] = ["parameters"]
    path.write_text(json.dumps(content))


@follows(
    ("runs/notebook.py", "mend the line"),
    ("runs/notebook.py", "mend the line"),
    (
        "runs/notebook.py",
        "write it as 'name: type = literal  # help', with a type among {}",
    ),
    ("runs/notebook.py", "take names, types and values from the parameters cell of {}"),
)
def test_parameters_of_notebooks(folder, env):
    lines = ["n: int = 3 # how many", "rate: float = 0.5  # a share [0..1]"]

    def call():
        return {p.name: p for p in parse_parameters("\n".join(lines))}

    lines[0] = "n: int = 3 4"
    yield call
    lines[0] = "n: int = 3"
    call()
    lines[1] = "rate: float = 5.0  # a share [0..1]"
    yield call
    lines[1] = "rate: float = 0.5  # a share [0..1]"
    call()
    lines.append("names = ['V1']")
    remedy = yield call
    form, kinds = re.search(r"'(.*)', with a type among (.*)", remedy).groups()
    assert "list[str]" in kinds.split(", ")
    for part, value in {"name": "names", "type": "list[str]", "literal": "['V1']"}.items():
        form = re.sub(rf"\b{part}\b", value, form)
    lines[-1] = form
    assert call()["names"].default == ["V1"] and call()["names"].help == "help"

    notebook = read_notebook(write_notebook(folder / "probe.ipynb", PARAMETERS, "n"))
    values = {"number": 4, "n": "4"}
    remedy = yield lambda: check_parameters(notebook, values)
    known = read_notebook(folder / re.search(r"cell of (\S+)", remedy)[1]).parameters()
    values = {name: known[name].default for name in values if name in known}


@follows(
    (
        "runs/notebook.py",
        """write a list as papermill -p seeds "[0, 1]" or -p regions '["LVC"]'""",
    ),
    (
        "runs/notebook.py",
        "write such a value in the notebook's parameters cell, or behind papermill -p",
    ),
)
def test_values_that_papermill_injects(folder, env):
    names = {"In": [PARAMETERS]}
    exec(PARAMETERS, names)
    names.update(out=str(folder), regions="V1")
    remedy = yield lambda: start_notebook(names, "probe")
    names["regions"] = re.search(r"regions '(.*?)'", remedy)[1]
    start_notebook(names, "probe")
    names["n"] = "30"
    yield lambda: start_notebook(names, "probe")
    names["n"] = "10"


@follows(("runs/paths.py", "set the notebook's parameter 'out' to a folder of yours"))
def test_a_folder_that_cannot_be_made(folder, env):
    (folder / "file").touch()
    parameters = {"out": folder / "file" / "run"}
    remedy = yield lambda: run_folder(parameters["out"])
    parameters[re.search(r"parameter '(\w+)'", remedy)[1]] = folder / "mine"


@follows(("runs/plan.py", "add for example images_of: [15, 16] to it"))
def test_sizes_of_nod_without_photographs_of_others(folder, env):
    path = folder / "nod.yaml"
    path.write_text(f"study: nod\nroot: {folder / 'nod'}\nsubjects: [1, 2]\n")
    (run,) = load_spec(project(folder, params={"study": str(path)}))
    remedy = yield lambda: plan._sizes(run)
    with open(path, "a") as stream:
        stream.write(re.search(r"example (.*) to it", remedy)[1])


@follows(
    ("runs/__main__.py", "run the spec first"),
    ("runs/__main__.py", "leave --to out, as it names one file"),
    ("runs/collect.py", "run the spec first"),
    ("runs/execute.py", "run it first: python -m bmfl_lab.runs run {}"),
)
def test_results_of_a_spec_that_has_not_run(folder, env):
    unchanged_code(env)
    path = project(folder, grid={"n": [1, 2]})
    runs, to = load_spec(path), [None]

    def call():
        return command._export(str(path), str(folder / "out"), to[-1], True)

    yield call
    for run in runs:
        finish(run, folder / "out")
    call()
    to.append(str(folder / "page.html"))
    yield call
    to.append(None)
    call()

    yield lambda: collect(runs, folder / "second")
    shutil.copytree(folder / "out", folder / "second")
    collect(runs, folder / "second")

    specs_folder = folder / "papermill_runs" / "specs"
    spec_file(specs_folder / "first.yaml", notebook="probe.ipynb")
    (second,) = load_spec(
        spec_file(folder / "second.yaml", notebook="probe.ipynb", needs=["first"])
    )
    finish(second, folder / "out")
    remedy = yield lambda: execute([second], out=folder / "out")
    (needed,) = load_spec(specs_folder / f"{remedy.split()[-1]}.yaml")
    finish(needed, folder / "out")


@follows(("runs/execute.py", "choose another with --out"))
def test_runs_that_cannot_be_written(folder, env):
    unchanged_code(env)
    runs = load_spec(project(folder))
    finish(runs[0], folder / "out")
    (folder / "file").touch()
    options = {"out": folder / "file" / "out"}
    remedy = yield lambda: execute(runs, **options)
    options[re.search(r"--(\w+)", remedy)[1]] = folder / "out"


@follows(
    (
        "runs/cluster.py",
        "install the extra 'cluster' (submitit), and start this where SLURM's sbatch is found; or "
        "leave --executor out to run on this machine",
    )
)
def test_jobs_without_submitit(folder, env):
    (run,) = load_spec(project(folder))
    task = cluster.ExecuteRun(run, str(folder / "out"), False)

    def submit():
        (job,) = cluster._submit([task], "local", 1)
        job.cancel()

    submitit = sys.modules.get("submitit") or pytest.importorskip("submitit")
    env.setitem(sys.modules, "submitit", None)
    yield submit
    env.setitem(sys.modules, "submitit", submitit)


@follows(
    ("runs/export.py", "run it first"),
    ("runs/export.py", "choose another file with --to"),
)
def test_pages_of_notebooks(folder, env):
    path = project(folder)
    (run,), notebooks, to = load_spec(path), [folder / "probe.ipynb"], []
    yield lambda: export_html(notebooks[-1])
    finish(run, folder / "out")
    notebooks.append(folder_of(run, folder / "out") / "executed.ipynb")
    export_html(notebooks[-1])
    to.append(folder / "probe.ipynb" / "page.html")
    yield lambda: export_html(notebooks[-1], to[-1])
    to.append(folder / "page.html")


@follows(("runs/export.py", "write the report with --html and print it from any browser"))
def test_a_report_as_pdf_without_a_browser(folder, env):
    unchanged_code(env)
    path = project(folder)
    finish(load_spec(path)[0], folder / "out")
    env.setenv("PATH", str(folder))
    endings = [".pdf"]
    to = folder / "report"
    remedy = yield lambda: write_report(load_spec(path), folder / "out", to, endings[-1])
    options = command._parser().parse_args(["report", "x", re.search(r"--\w+", remedy)[0]])
    endings.append(".html" if options.html else ".pdf")


@pytest.mark.slow
@follows(
    (
        "runs/launch.py",
        "mend what the lines above say and run the cell again; it goes on where they stopped",
    )
)
def test_a_training_in_processes_that_fails(folder, env):
    env.setenv("BMFL_HOME", str(folder / "home"))
    env.chdir(ROOT)
    parameters = {"models": ["backbone"], "seeds": [0], "epochs": 1, "device": "cpu"}
    parameters["study"] = "plantd"
    yield lambda: train_in_processes(1, "03_fusion_training", parameters, folder)
    parameters["study"] = "planted"

"""What a run needs is checked when its spec is read, and what a function needs before it trains."""

import ast
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml

from bmfl_lab import load_study
from bmfl_lab.config import require_list
from bmfl_lab.errors import BmflError, ConfigError, RunError
from bmfl_lab.records import METRICS
from bmfl_lab.runs.execute import execute, unmet
from bmfl_lab.runs.notebook import parse_parameters
from bmfl_lab.runs.spec import load_spec
from bmfl_lab.training import presets, train_comparison

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = """
seed: int = 0  # seed [0..]
study: str = "planted"  # study
models: list[str] = ["backbone", "linear probe"]  # which models
stand_ins: list[str] = ["noise, covariance"]  # which controls
shifts: list[str] = ["masked"]  # artificial shifts
seeds: list[int] = [0, 1]  # training seeds
regions: list[str] = []  # ROIs; empty takes all
alphas: list[float] = [0.1]  # weights [0..]
out: str = ""  # folder of results
"""
BOUND = {"metric": "accuracy", "low": 0.1}


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    cell = nbformat.v4.new_code_cell(PARAMETERS.strip())
    cell.metadata["tags"] = ["parameters"]

    def load(fields, own=""):
        cells = [cell, nbformat.v4.new_code_cell(own)] if own else [cell]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "probe.ipynb")
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({"notebook": "probe.ipynb", **fields}))
        return load_spec(tmp_path / "s.yaml")

    return load


REFUSED = {
    "a bound that is infinite": ({"expect": [BOUND | {"high": float("inf")}]}, "finite number"),
    "a bound that is true": ({"expect": [{"metric": "ece", "high": True}]}, "finite number"),
    "a bound in words": ({"expect": [BOUND | {"high": "0.9"}]}, "finite number"),
    "bounds exchanged": ({"expect": [BOUND | {"high": 0.05}]}, "low 0.1 is above high 0.05"),
    "a severity in words": ({"expect": [BOUND | {"severity": "5"}]}, "severity expected int"),
    "a metric that is a number": ({"expect": [BOUND | {"metric": 3}]}, "name expected str"),
    "a list of splits": ({"expect": [BOUND | {"split": ["test"]}]}, "split expected str"),
    "no seed at the top": ({"seeds": []}, "seeds; got .*at least one value"),
    "one seed twice at the top": ({"seeds": [3, 5, 3]}, "got 3 again"),
    "a seed below its bound": ({"seeds": [-1]}, "seed expected a value from 0"),
    "one value twice in a grid": ({"grid": {"alphas": [[0.1], [0.1]]}}, "again in"),
    "no model": ({"params": {"models": []}}, "models expected at least one value"),
    "a misspelt model": ({"params": {"models": ["fusoin"]}}, "did you mean 'fusion'"),
    "a control twice": ({"params": {"stand_ins": ["noise", "noise"]}}, "'noise' again"),
    "an unknown control": ({"params": {"stand_ins": ["noise, covarance"]}}, "'noise, covariance'"),
    "an unknown shift": ({"params": {"shifts": ["sketched"]}}, "did you mean 'sketch'"),
    "a region twice": ({"params": {"regions": ["V1", "V2", "V1"]}}, "'V1' again"),
    "no weight": ({"params": {"alphas": []}}, "alphas expected at least one"),
    "a list as text": ({"params": {"seeds": "[0, 1]"}}, r"write a value such as \[0, 1\]"),
    "a list of nothing known": ({"params": {"regions": "LVC"}}, r"such as \[\"LVC\"\]"),
    "a truth value in words": ({"params": {"seed": "yes"}}, "write a value such as 0"),
    "a needed spec that is a number": ({"needs": [3]}, "needs .*names of specs"),
    "seeds in two places": ({"seeds": [1], "grid": {"seed": [2]}}, "seeds in two places"),
    "an impossible path": ({"params": {"study": "x" * 5000}}, "a shorter name"),
    "a bound beyond all numbers": ({"expect": [BOUND | {"high": 10**400}]}, "finite number"),
    "20,000 seeds and one twice": ({"seeds": [*range(20_000), 7]}, "got 7 again"),
    "a cell that may take longer than its run": (
        {"timeout_min": 1, "cell_timeout_min": 100},
        "cell_timeout_min 100 is longer",
    ),
    "no processor": ({"resources": {"cpus": 0}}, "expected a number above 0"),
    "a partition of two lines": (
        {"resources": {"partition": "a\n#SBATCH x"}},
        "as sinfo prints it",
    ),
    "a spec that needs itself": ({"needs": ["s"]}, "does not need itself.*remove one"),
    "a needed spec that is not there": ({"needs": ["mian"]}, "nothing at .*mian.yaml"),
    "more runs than anybody waits for": (
        {"grid": {"seed": list(range(101)), "alphas": [[k / 7] for k in range(100)]}},
        "at most 10000 runs.*divide its grid",
    ),
    "a misspelt metric": ({"expect": [{"metric": "acuracy", "low": 0}]}, "did you mean 'accuracy'"),
    "a metric that is part of a word": ({"expect": [{"metric": "see", "low": 0}]}, "did you mean"),
    "a misspelt model in one run": (
        {"runs": [{"params": {"seed": 1}}, {"params": {"models": ["backbon"]}}]},
        "did you mean 'backbone'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_spec_is_refused_when_it_is_read(kind, spec):
    fields, expected = REFUSED[kind]
    with pytest.raises(BmflError, match=expected):
        spec(fields)


@pytest.mark.parametrize("text", ["seeds: [1]\nseeds: [2]", "params: {seed: 1, seed: 2}"])
def test_a_field_that_is_written_twice_is_refused(text, tmp_path):
    (tmp_path / "s.yaml").write_text(f"notebook: probe.ipynb\n{text}\n")
    with pytest.raises(RunError, match=r"'seeds?' is written twice"):
        load_spec(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    "params",
    [
        {"models": ["concat", "fusion", "linear probe"]},
        {"stand_ins": ["fusion", "noise, covariance", "patch PCA"]},
        {"shifts": [], "regions": []},
        {"shifts": ["fog", "jpeg_compression"], "seeds": [7]},
    ],
)
def test_what_is_right_is_planned(params, spec):
    assert len(spec({"params": params, "seeds": [0, 2], "expect": [BOUND | {"seed": 2}]})) == 2


def test_own_choices_of_a_notebook_come_first():
    (own,) = parse_parameters('models: list[str] = ["a"]  # mine {a, b}')
    assert own.problem(["b"]) == "" and "one of a, b" in own.problem(["fusion"])


LISTS = [
    ("seeds", "[0, 1]", int, (), "a list of int for seeds"),
    ("seeds", "01", int, (), "a list of int"),
    ("seeds", 3, int, (), "a list of int"),
    ("seeds", [0, 1.5], int, (), "a list of int"),
    ("seeds", [True], int, (), "a list of int"),
    ("seeds", np.array([2, 2]), int, (), "2 again"),
    ("seeds", (), int, (), "at least one value"),
    ("alphas", [0.1, float("nan")], float, (), "a list of float"),
    ("models", ["a", "a"], str, ("a", "b"), "'a' again"),
    ("models", "a", str, ("a", "b"), "a list of str"),
    ("models", ["c"], str, ("a", "b"), "choose one of a, b"),
    ("models", None, str, ("a", "b"), "a list of str"),
]


@pytest.mark.parametrize(("name", "values", "item", "known", "expected"), LISTS)
def test_lists_of_options_are_refused(name, values, item, known, expected):
    with pytest.raises(ConfigError, match=expected):
        require_list(name, values, item, known)


@pytest.mark.parametrize("values", [range(3), (0, 1), np.arange(2), {4: "x"}, [np.int64(3)]])
def test_any_iterable_of_numbers_is_a_list(values):
    assert require_list("seeds", values, int) == [int(v) for v in values]


@pytest.mark.parametrize(
    "wrong", [{"seeds": "[0, 1]"}, {"seeds": [1, 1]}, {"seeds": ()}, {"models": ["backbon"]}]
)
def test_a_comparison_is_refused_before_anything_is_read(wrong):
    config, _ = presets("tiny", epochs=1)
    options = {"models": ["backbone"], "seeds": [0]} | wrong
    with pytest.raises(ConfigError, match="To fix it: write"):
        train_comparison(config, load_study("planted"), encoder=None, **options)


def test_models_may_be_places_of_saved_models_in_place_of_names(spec, tmp_path):
    (tmp_path / "papermill_runs/out/main").mkdir(parents=True)
    for place in ("papermill_runs/out/x", "specs/main.yaml", "main"):
        (run,) = spec({"params": {"models": [place]}})
        assert run.parameters["models"] == [place]
    with pytest.raises(RunError, match="choose one of"):
        spec({"params": {"models": ["mian"]}})


MISSING = {
    "a misspelt name": ("plantd", "did you mean 'planted'"),
    "a folder that is not there": ("photographs", "name of a study or an existing folder"),
    "a file that is not there": ("my.yaml", "a study file; got nothing at .*write it"),
    "a data set that needs a folder": ("nsd", "pass root"),
    "a file of another kind": ("other.yaml", "name among .*did you mean 'folder'"),
    "a data set without its folder": ("domains", "study: domains' and .*root.*write this file"),
    "a name with blanks": ("  ", "name of a study or an existing folder"),
    "a damaged file": ("cut.json", "valid JSON in .*mend the line"),
    "an unknown option": ("option.yaml", "did you mean 'seed'"),
    "a root that is not there": ("root.yaml", "nothing at .*correct root in the study file"),
    "a seed in words": ("seed.yaml", "seed expected int"),
    "an image of negative size": ("size.yaml", "image_size from 1 to 8192"),
    "a subject that is not there": ("subject.yaml", "name of a study or an existing folder"),
    "a file as a folder": ("other.yaml/a", "name of a study or an existing folder"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_study_that_cannot_be_found_is_refused_before_a_kernel_starts(kind, spec, tmp_path):
    study, expected = MISSING[kind]
    (tmp_path / "other.yaml").write_text("study: foldr")
    lines = {"option": "sed: 1", "root": "root: nothere", "seed": "seed: x"}
    lines |= {"size": "image_size: -14", "subject": "subject: nowhere"}
    for key, line in lines.items():
        study_of = "folder" if key == "root" else "planted"
        (tmp_path / f"{key}.yaml").write_text(f"study: {study_of}\n{line}\n")
    (tmp_path / "cut.json").write_text('{"study": "fol')
    with pytest.raises(BmflError, match=expected):
        execute(spec({"params": {"study": study}}), out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("log.txt"))


def test_a_bound_without_a_row_names_the_rows_that_there_are(spec):
    (run,) = spec({"expect": [{"metric": "accuracy", "split": "low light", "low": 0.1}]})
    rows = [{"name": "accuracy", "split": name, "value": 0.5} for name in ("low_light", "test")]
    found = "no row with split=low light, name=accuracy; split is one of low_light, test, not low"
    assert unmet(run, rows)[0].startswith(found)
    (run,) = spec({"expect": [{"metric": "my_own", "low": 0}]}, own="record.add('my_own', 1)")
    assert unmet(run, rows) == ["no row with name=my_own; name is one of accuracy, not my_own"]


def recorded_names():
    """Return each name that the library and the notebooks write out where they make a metric row."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "bmfl_lab").rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        sources += ["".join(cell["source"]) for cell in cells]
    for call in (node for source in sources for node in ast.walk(ast.parse(source))):
        made = isinstance(call, ast.Call) and ast.unparse(call.func) in ("MetricRow", "record.add")
        if made and call.args and isinstance(call.args[0], ast.Constant):
            yield call.args[0].value


def test_every_recorded_metric_may_be_expected():
    found = set(recorded_names())
    assert {"accuracy", "nan_logits", "field_error"} <= found and found <= METRICS


def test_specs_that_need_each_other_are_refused(spec, tmp_path):
    folder = tmp_path / "papermill_runs" / "specs"
    folder.mkdir(parents=True)
    for name, needed in (("a", "b"), ("b", "s")):
        (folder / f"{name}.yaml").write_text(f"notebook: probe.ipynb\nneeds: [{needed}]\n")
    with pytest.raises(RunError, match=r"does not need itself in s; .*those that it needs"):
        spec({"needs": ["a"]})


def test_a_spec_named_by_dots_alone_is_refused(spec, tmp_path):
    spec({})
    (tmp_path / "s.yaml").rename(tmp_path / "...yaml")  # its runs would lie outside their folder
    with pytest.raises(RunError, match="rename it"):
        load_spec(tmp_path / "...yaml")

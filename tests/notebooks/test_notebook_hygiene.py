"""The notebooks are kept tidy, and the rules find what is not."""

import json
from pathlib import Path

import nbformat
import pytest
from notebook_rules import problems

from bmfl_lab.runs.notebook import read_notebook

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_tidy(path):
    # strip outputs with: jupyter nbconvert --clear-output --inplace notebooks/*.ipynb
    assert problems(read_notebook(path)) == []


def test_notebooks_were_swept_and_are_numbered_without_a_twin():
    assert NOTEBOOKS
    numbers = [p.name[:2] for p in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers) and all(n.isdigit() for n in numbers)


@pytest.mark.parametrize(
    "source, said",
    [
        ("!ls", "uses ! or %"),
        ("%pip install x", "uses ! or %"),
        ("def f():\n    pass", "defines 'f'"),
        ("import torch", "imports 'torch'"),
        ('open("/opt/x/y")', "absolute path"),
        ("import sys\nsys.path.append('x')", "changes sys.path"),
        ("\n".join(["x = 1"] * 26), "26 lines, at most 25"),
        (f"x = '{'a' * 83}'", "line 1 has 89 columns, at most 88"),
        ("from widgets import run_browser", "without the tag skip-execution"),
        ("x = (", "is not Python"),
    ],
)
def test_the_rules_find_a_planted_fault(source, said, tmp_path):
    content = json.loads(NOTEBOOKS[0].read_text())
    content["cells"].append({**nbformat.v4.new_code_cell(source), "id": "planted"})
    path = tmp_path / NOTEBOOKS[0].name
    path.write_text(json.dumps(content))
    assert any(said in p for p in problems(read_notebook(path)))


def test_a_notebook_without_a_way_on_and_without_its_answer_is_found(tmp_path):
    content = json.loads(NOTEBOOKS[1].read_text())
    del content["cells"][1]
    for path in NOTEBOOKS:
        (tmp_path / path.name).write_text(json.dumps(content))
    found = problems(read_notebook(tmp_path / NOTEBOOKS[1].name))
    beside = f"{NOTEBOOKS[0].name}, {NOTEBOOKS[2].name}"
    assert f"does not link to {beside}" in found and "shows no picture of its answer" in found


def test_stored_outputs_and_two_parameter_cells_are_found(tmp_path):
    content = json.loads(NOTEBOOKS[0].read_text())
    code = [c for c in content["cells"] if c["cell_type"] == "code"]
    code[1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    code[1]["execution_count"] = 3
    code[1]["metadata"]["tags"] = ["parameters"]
    path = tmp_path / NOTEBOOKS[0].name
    path.write_text(json.dumps(content))
    found = problems(read_notebook(path))
    assert any("stored outputs" in p for p in found)
    assert any("exactly one cell tagged 'parameters'" in p for p in found)


@pytest.mark.parametrize(
    "lost, said",
    [
        ("?", "does not open with a question"),
        ("**Takes**", "does not say how long it takes"),
        ("**Reads**", "does not say what it needs"),
    ],
)
@pytest.mark.parametrize("path", [NOTEBOOKS[0], NOTEBOOKS[-1]], ids=lambda p: p.stem)
def test_an_opening_without_question_time_or_input_is_found(path, lost, said, tmp_path):
    content = json.loads(path.read_text())
    opening = content["cells"][0]
    opening["source"] = [line.replace(lost, "") for line in opening["source"]]
    changed = tmp_path / path.name
    changed.write_text(json.dumps(content))
    assert said in problems(read_notebook(changed))

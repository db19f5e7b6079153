"""Whatever stands in a field of a spec, it is a valid run or a sentence, before anything starts."""

import nbformat
import pytest
import yaml

from bmfl_lab.errors import BmflError, RunError
from bmfl_lab.runs.spec import FIELDS, load_spec

PARAMETERS = """
study: str = "planted"  # study to load
n: int = 3  # how many [1..10]
out: str = ""  # folder of results
"""
VALUES = (
    *(None, True, 3, -1, 2.5, float("inf"), float("nan"), 10**400, "x", "", "\0", "../probe.ipynb"),
    *([], [1], ["a"], [[1]], [None], {}, {"a": 1}, {"n": 3}, {"n": [1]}, {"n": None}, {1: 2}, [{}]),
    *(
        [{"params": 3}],
        [{"params": [1]}],
        [{"metric": "a", "low": "x"}],
        [{"metric": [1], "low": 1}],
    ),
)


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    cell = nbformat.v4.new_code_cell(PARAMETERS.strip())
    cell.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "x"}
    nbformat.write(notebook, tmp_path / "probe.ipynb")

    def load(fields):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(fields))
        return load_spec(tmp_path / "s.yaml")

    return load


@pytest.mark.parametrize("field", [*FIELDS, "runs", "title", "unknown"])
def test_any_value_of_a_field_is_read_or_refused(field, spec):
    read = 0
    for value in VALUES:
        try:
            read += len({run.run_id for run in spec({"notebook": "probe.ipynb", field: value})}) > 0
        except BmflError as error:
            assert "To fix it: " in str(error)
    assert read < len(VALUES) or field == "title"


@pytest.mark.parametrize("wrong", [3, "x", [1], [{"n": 3}], True])
def test_parameters_that_are_no_mapping_are_refused_at_the_top_and_in_a_run(wrong, spec):
    for fields in (
        {"params": wrong},
        {"runs": [{"params": wrong}]},
        {"params": {"n": 3}, "runs": [{"params": wrong}]},
    ):
        with pytest.raises(RunError, match=r"a valid run in s\.yaml; got params is "):
            spec({"notebook": "probe.ipynb", **fields})

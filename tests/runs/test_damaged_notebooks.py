"""Every damaged or foreign notebook is refused at once, with a sentence, before a kernel starts."""

import copy
import json
import time

import numpy as np
import pytest

from bmfl_lab.errors import RunError
from bmfl_lab.runs.__main__ import main
from bmfl_lab.runs.notebook import read_notebook

GOOD = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    "cells": [
        {
            "id": "a",
            "cell_type": "code",
            "metadata": {"tags": ["parameters"]},
            "source": 'study: str = "planted"  # study to load',
            "outputs": [],
            "execution_count": None,
        }
    ],
}


def changed(**fields):
    return {k: v for k, v in {**copy.deepcopy(GOOD), **fields}.items() if v != "absent"}


def cell(**fields):
    found = {
        k: v for k, v in {**copy.deepcopy(GOOD["cells"][0]), **fields}.items() if v != "absent"
    }
    return changed(cells=[found])


def kernel(value):
    return changed(metadata={"kernelspec": value})


DAMAGED = {
    "no cells": changed(cells="absent"),
    "cells are null": changed(cells=None),
    "cells are an object": changed(cells={"0": 1}),
    "a cell is a number": changed(cells=[1]),
    "a cell is null": changed(cells=[None]),
    "no metadata": changed(metadata="absent"),
    "metadata are null": changed(metadata=None),
    "metadata are a list": changed(metadata=[]),
    "kernel is null": kernel(None),
    "kernel is a list": kernel([1]),
    "kernel is a number": kernel({"name": 3, "display_name": "x"}),
    "kernel of another language": kernel({"name": "ir", "display_name": "R"}),
    "format 3": changed(nbformat=3),
    "format 5": changed(nbformat=5),
    "format as text": changed(nbformat="4"),
    "no format": changed(nbformat="absent"),
    "minor format as text": changed(nbformat_minor="x"),
    "no minor format": changed(nbformat_minor="absent"),
    "no kind of a cell": cell(cell_type="absent"),
    "unknown kind of a cell": cell(cell_type="sql"),
    "source is a number": cell(source=3),
    "source is a list of numbers": cell(source=[3]),
    "no source": cell(source="absent"),
    "tags are a text": cell(metadata={"tags": "parameters"}),
    "tags are null": cell(metadata={"tags": None}),
    "a tag is a list": cell(metadata={"tags": [["parameters"]]}),
    "metadata of a cell are null": cell(metadata=None),
    "outputs are null": cell(outputs=None),
    "parameters are no Python": cell(source="study: str = "),
    "parameters hold a null byte": cell(source='study: str = "\0"'),
    "parameters nest too deeply": cell(source="study: str = " + "(" * 5000 + ")" * 5000),
    "parameters repeat a sign": cell(source="study: int = " + "-" * 50_000 + "3"),
    "parameters hold a huge number": cell(source="study: int = " + "9" * 5000),
    "parameters hold half a character": cell(source="study: str = '\ud800'"),
    "a list": [GOOD],
    "null": None,
    "a text": "x",
}


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "probe.yaml").write_text("notebook: probe.ipynb")
    monkeypatch.chdir(tmp_path)
    read_notebook_once(tmp_path)
    return tmp_path / "probe.yaml"


def read_notebook_once(folder):
    """Load nbformat and its schema, which is no part of the second that a refusal may take."""
    (folder / "good.ipynb").write_text(json.dumps(GOOD))
    assert list(read_notebook(folder / "good.ipynb").parameters()) == ["study"]


def refused(spec, capsys):
    began = time.process_time()
    code = main(["plan", str(spec)])
    assert time.process_time() - began < 1
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: expected") and said.count("\n") == 1
    assert "probe.ipynb" in said and "To fix it: " in said
    return said


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_notebook_is_refused(case, spec, capsys):
    (spec.parent / "probe.ipynb").write_text(json.dumps(DAMAGED[case]))
    refused(spec, capsys)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        "\u00e9".encode("latin-1"),
        b"[" * 100_000,
        b"1" * 10_000,
        json.dumps(GOOD).encode("utf-16"),
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["empty", "cut", "binary", "latin-1", "nested", "digits", "utf-16", "picture"],
)
def test_what_is_no_notebook_is_refused(content, spec, capsys):
    (spec.parent / "probe.ipynb").write_bytes(content)
    assert "damaged JSON" in refused(spec, capsys)


@pytest.mark.parametrize("kind", ["nothing", "folder", "loop"])
def test_what_is_no_file_is_refused_without_naming_itself_as_remedy(kind, spec, capsys):
    path = spec.parent / "probe.ipynb"
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    said = refused(spec, capsys)
    assert "nothing at" in said and "did you mean 'probe.ipynb'" not in said


def test_cut_and_mutated_notebooks_are_read_or_refused(tmp_path):
    whole, generator, refusals = json.dumps(GOOD).encode(), np.random.default_rng(0), 0
    for _ in range(600):
        broken = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            broken[generator.integers(len(broken))] = generator.integers(32, 127)
        if generator.random() < 0.3:
            broken = broken[: generator.integers(len(broken))]
        (tmp_path / "n.ipynb").write_bytes(bytes(broken))
        try:
            read_notebook(tmp_path / "n.ipynb").parameters()
        except RunError:
            refusals += 1
    assert 300 < refusals <= 600

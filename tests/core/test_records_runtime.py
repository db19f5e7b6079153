"""Records, seeds and progress."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from bmfl_lab import runtime
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.records import MetricRow, Record, read_record

ROW = {"unit": "fraction", "split": "test", "n": 4, "selection": "none"}
COMPARISON = ("reference", "p", "p_adjusted", "family", "n_compared")


def make():
    return Record(
        "nb", {"study": "planted"}, {"name": "planted", "fingerprint": "0", "simulated": True}
    )


def test_a_record_survives_its_file_and_nan_becomes_null(tmp_path):
    record = make()
    record.add("accuracy", 0.5, **ROW, ci_low=0.25, ci_high=float("nan"))
    record.add("nll", math.nan, **ROW)
    path = record.finish(tmp_path)
    assert json.loads(path.read_text())["rows"][1]["value"] is None
    again = read_record(path)
    assert (
        again.rows == record.rows and again.rows[0].ci_high is None and len(again.to_frame()) == 2
    )
    assert {"python", "numpy"} <= set(again.extra["versions"]) and again.extra["code_revision"]


def test_a_record_changed_after_it_was_written_is_refused_and_an_old_one_without_seal_is_read(
    tmp_path,
):
    record = make()
    record.add("accuracy", 0.5, **ROW)
    path = record.finish(tmp_path)
    text = path.read_text()
    for changed in (
        text.replace('"value": 0.5', '"value": 0.7'),
        text.replace("\n", "\n "),
        text + "\n",
    ):
        path.write_text(changed)
        with pytest.raises(
            DataError, match=r"record\.json as it was written; got a changed or damaged file"
        ):
            read_record(path)
    old = {k: v for k, v in json.loads(text).items() if k not in ("sealed", "seal")}
    path.write_text(json.dumps(old))
    assert read_record(path).rows == record.rows


def test_a_record_of_the_first_schema_is_read(tmp_path):
    row = {"name": "accuracy", "value": 0.5, "unit": "fraction", "split": "test", "n": 4}
    row |= {"selection": "none", "model": "fusion", "subject": "", "roi": "", "shift": ""}
    row |= {"severity": None, "seed": 0, "ci_low": 0.25, "ci_high": None, "interval": ""}
    row |= {"n_seeds": None, "notes": "simulated fMRI", "layer": ""}
    body = {
        "schema": 1,
        "notebook": "03_fusion_training",
        "parameters": {"study": "planted"},
        "study": {"name": "planted", "fingerprint": "0", "simulated": True},
        "config": {"fusion": {"alpha": 0.3}},
        "rows": [row],
        "times_s": {"train": 1.5},
        "peak_memory_mb": 500.0,
        "versions": {"python": "3.11.9"},
        "code_revision": "44be347",
        "finished": "2026-01-01T00:00:00+00:00",
        "extra": {"weights": "random:0"},
    }
    (tmp_path / "record.json").write_text(json.dumps(body))
    record = read_record(tmp_path / "record.json")
    assert record.rows == [MetricRow(**row)]
    new = {k: getattr(record.rows[0], k) for k in COMPARISON}
    assert new == {"reference": "", "p": None, "p_adjusted": None, "family": "", "n_compared": None}
    assert (record.notebook, record.times) == ("03_fusion_training", {"train": 1.5})
    assert record.extra["weights"] == "random:0" and record.extra["code_revision"] == "44be347"


def test_a_comparison_survives_its_file_and_an_undefined_p_is_none(tmp_path):
    record = make()
    fields = {"p": np.float32(0.25), "p_adjusted": 0.5, "family": "the OOD sets", "n_compared": 2}
    record.add("difference", 0.1, **ROW, model="ViT - B", reference="backbone", **fields)
    record.add("difference", 0.0, **ROW, model="concat", reference="backbone", p=math.nan)
    other = make()
    other.extend(record.rows)
    path = other.finish(tmp_path)
    rows = json.loads(path.read_text())["rows"]
    assert json.loads(path.read_text())["schema"] == 2 and rows[1]["p"] is None
    assert {k: rows[0][k] for k in COMPARISON} == {"reference": "backbone", **fields}
    assert read_record(path).rows == record.rows == other.rows
    assert record.rows[1].p is None and record.rows[1].n_compared is None


def test_a_record_of_a_newer_schema_asks_for_a_newer_package(tmp_path):
    (tmp_path / "record.json").write_text('{"schema": 3}')
    with pytest.raises(DataError, match=r"schema 1 or 2 in .*got 3\. To fix it: update bmfl_lab"):
        read_record(tmp_path / "record.json")
    for other in ('{"schema": 0}', '{"schema": "2"}', "{}", "[]"):
        (tmp_path / "record.json").write_text(other)
        with pytest.raises(DataError, match=r"To fix it: give the path of a record\.json"):
            read_record(tmp_path / "record.json")


def test_an_empty_or_foreign_record_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one metric row"):
        make().finish(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "record.json").write_text('{"schema": 1}')
    with pytest.raises(
        DataError, match=r"the fields of a record in .*KeyError: 'notebook'.*run the notebook again"
    ):
        read_record(tmp_path / "record.json")
    with pytest.raises(TypeError, match="selection"):
        make().add("accuracy", 0.5, unit="fraction", split="test", n=4)


def test_named_streams_are_independent_of_one_another():
    first = runtime.rng(0, "noise").normal(size=4000)
    np.testing.assert_array_equal(first, runtime.rng(0, "noise").normal(size=4000))
    for other in (runtime.rng(0, "order"), runtime.rng(1, "noise"), runtime.rng(0, "noise", 1)):
        assert abs(np.corrcoef(first, other.normal(size=4000))[0, 1]) < 0.06
    assert 0 <= runtime.seed_for(-5, "x") < 2**63


def test_headless_progress_prints_plain_lines(monkeypatch, capsys):
    monkeypatch.setenv("BMFL_HEADLESS", "1")
    assert list(runtime.progress(range(3), "images", every=0.0)) == [0, 1, 2]
    assert [x.split(" after")[0] for x in capsys.readouterr().out.splitlines()] == [
        f"images: {i}/3" for i in (1, 2, 3)
    ]
    passed = iter(range(0, 100, 4))
    monkeypatch.setattr(runtime.time, "monotonic", lambda: next(passed))
    assert list(runtime.progress(range(4), "steps", note=lambda: "loss 0.5")) == [0, 1, 2, 3]
    assert capsys.readouterr().out.splitlines() == [
        "steps: 3/4 after 12 s, about 4 s left; loss 0.5",
    ]


def test_an_app_shows_no_bars_that_are_gone_when_its_page_is_shown(monkeypatch, capsys):
    monkeypatch.delenv("BMFL_HEADLESS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    assert not runtime.headless()
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    assert runtime.headless()


def test_a_notebook_that_a_program_executes_is_headless_too(monkeypatch):
    monkeypatch.delenv("BMFL_HEADLESS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    for name, headless in (("papermill", True), ("nbconvert", True), ("jupyter-lab", False)):
        command = [sys.executable, "-c", "print(flush=True); input()", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            parent.stdout.readline()  # a process that has only just begun has no name yet
            monkeypatch.setattr(runtime.os, "getppid", lambda parent=parent: parent.pid)
            assert runtime.headless() is headless
            parent.communicate(b"\n")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "x"))
    assert runtime.home() == tmp_path / "x"
    monkeypatch.delenv("BMFL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.home() == tmp_path / "bmfl_lab"


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="got 'gpu'"):
        runtime.pick_device("gpu")
    assert runtime.pick_device("cpu") == "cpu"


def test_free_memory_knows_the_limit_of_a_process_and_of_its_control_group(tmp_path):
    code = (
        "import resource; from bmfl_lab.runtime import free_memory; "
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 28),) * 2); print(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= 1 << 28
    job = tmp_path / "slurm/job_7"
    job.mkdir(parents=True)
    (tmp_path / "groups").write_text("1:cpu:/elsewhere\n0::/slurm/job_7\n")
    for folder, limit in ((job, "max"), (job.parent, "5000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("3000")
        (folder / "memory.stat").write_text("file 700\ninactive_file 400\n")
    assert runtime._left_to_group(tmp_path / "groups", tmp_path) == 5000 - 3000 + 400
    (job / "memory.max").write_text("3100")
    assert runtime._left_to_group(tmp_path / "groups", tmp_path) == 3100 - 3000 + 400
    old = tmp_path / "memory/slurm/job_7"
    old.mkdir(parents=True)
    (tmp_path / "groups").write_text("4:memory:/slurm/job_7\n")
    (old / "memory.limit_in_bytes").write_text("9000")
    (old / "memory.usage_in_bytes").write_text("1000")
    (old / "memory.stat").write_text("inactive_file 0\n")
    assert runtime._left_to_group(tmp_path / "groups", tmp_path) == 8000
    assert runtime._left_to_group(tmp_path / "none", tmp_path) == math.inf

"""A comparison that is declared in a spec: written before the run, shown in record and report, and changes told."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from notebook_example import write_notebook

from bmfl_lab.errors import DataError, RunError
from bmfl_lab.evaluation.preregistration import register, registered_findings
from bmfl_lab.files import read_json, write_sealed_json
from bmfl_lab.records import read_record
from bmfl_lab.runs.__main__ import main
from bmfl_lab.runs.collect import write_report
from bmfl_lab.runs.execute import execute, folder_of
from bmfl_lab.runs.plan import stages
from bmfl_lab.runs.spec import load_spec

PARAMETERS = """study: str = "planted"  # study
seeds: list[int] = [0, 1, 2]  # seeds
smallest: float = 0.02  # smallest effect of interest [0..1]
out: str = ""  # folder
"""
BODY = """from pathlib import Path
from bmfl_lab.records import REGISTERED, Record
assert (Path(out) / REGISTERED).is_file()
record = Record("probe", {}, {"name": study})
_ = record.add(
    "accuracy_difference", 0.1, unit="fraction", split="test", n=120, selection="none",
    model="fusion", reference="backbone", n_seeds=3, ci_low=0.05, ci_high=0.15, p=0.001,
    p_adjusted=0.002, p_equivalence=1.0, smallest=smallest, n_compared=1,
    family="all comparisons, the primary one with four fifths of the level",
)
record.finish(out)"""
SPEC = "notebook: probe.ipynb\npreregistered: {primary: [fusion, backbone], smallest: 0.03}\n"


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    # the source tree may be under edit while the tests run
    monkeypatch.setattr("bmfl_lab.runs.execute.code_revision", lambda: "abcdefabcdef")
    monkeypatch.setattr("bmfl_lab.runs.execute.code_digest", lambda: "0" * 16)
    (tmp_path / "pyproject.toml").write_text("")
    write_notebook(tmp_path / "probe.ipynb", PARAMETERS, BODY)
    (tmp_path / "study.yaml").write_text(SPEC)
    return tmp_path / "study.yaml"


def test_what_is_declared_is_written_before_the_run_and_shown_after_it(spec):
    runs = load_spec(spec)
    assert runs[0].parameters["smallest"] == 0.03 and execute(runs) == ["ok"]
    declared = read_json(folder_of(runs[0]) / "preregistered.json")
    assert declared["primary"] == ["fusion", "backbone"] and declared["smallest"] == 0.03
    assert declared["n_seeds"] == 3 and declared["n"]["test"] >= 20
    assert declared["power"].startswith("Power of 80 %")
    assert declared["log"] == read_json(folder_of(runs[0]).parent / "preregistered.json")
    record = read_record(folder_of(runs[0]) / "record.json")
    assert record.extra["preregistered"] == declared
    report = write_report(runs).read_text(encoding="utf-8")
    assert "unchanged since" in report and "Result: better on 1 of 1 sets" in report
    original_weights_stay_apart(runs[0])

    spec.write_text(SPEC.replace("0.03", "0.04"))
    (later,) = load_spec(spec)
    log = folder_of(later).parent / "preregistered.json"
    unknown = {**later.parameters, "study": "nowhere"}
    changed = register(later.preregistered, unknown, later.root, log)
    assert changed["n"] == {} and changed["power"].startswith("Power is unknown")
    (said,) = registered_findings([changed], record.to_frame().assign(study="x", run="y"))
    assert f"**changed**: the spec was first registered as {declared['hash'][:8]}" in said
    assert "another smallest effect was tested" in said and len(read_json(log)) == 2
    assert register(declared, unknown, later.root, log)["log"] == changed["log"]


def original_weights_stay_apart(run):
    """Check the reports of a run with original weights, alone and beside one with a stand-in."""
    other = dataclasses.replace(run, parameters={**run.parameters, "seeds": [7]})
    shutil.copytree(folder_of(run), folder_of(other))
    for one, weights in ((run, "stand-in: fine-tuned"), (other, "original weights, file a.pth")):
        place = folder_of(one) / "record.json"
        found = {k: v for k, v in read_json(place).items() if k != "seal"}
        backbone = {"name": "dinov2_vits14_reg", "weights": weights, "sha256": weights[:3]}
        found["extra"]["backbones"] = [backbone, {**backbone, "weights": "random", "sha256": "r"}]
        write_sealed_json(place, found)
    assert write_report([run]).name == "study.md"
    page = write_report([other])
    assert page.name == "study_original_weights.md"
    assert "original backbone weights" in page.read_text(encoding="utf-8")
    with pytest.raises(
        DataError, match=r"stand-in: fine-tuned as in probe.*original weights, file"
    ):
        write_report([run, other])
    shutil.rmtree(folder_of(other))


def test_a_pair_that_was_not_the_primary_one_has_no_result(spec):
    (run,) = load_spec(spec)
    frame = read_frame(family="all comparisons")
    declared = {**run.preregistered, "n": {}, "n_seeds": 3, "power": ""}
    declared["log"] = [{"hash": declared["hash"], "noted": "today"}]
    assert "not compared as the primary pair" in registered_findings([declared], frame)[0]


def read_frame(**fields):
    from bmfl_lab.records import Record

    record = Record("probe", {}, {})
    place = {"unit": "fraction", "split": "test", "n": 120, "selection": "none", "n_seeds": 3}
    record.add(
        "accuracy_difference",
        0.1,
        model="fusion",
        reference="backbone",
        **{"ci_low": 0.05, "ci_high": 0.15, "p_adjusted": 0.002, "p_equivalence": 1.0},
        smallest=0.03,
        **place,
        **fields,
    )
    return record.to_frame().assign(study="x", run="y")


def test_plan_says_what_a_run_can_detect_or_why_it_is_not_known(spec, capsys):
    notebook = nbformat.read(spec.parent / "probe.ipynb", 4)
    notebook.cells[1].source = "print(power_statement(data, parameters))"
    nbformat.write(notebook, spec.parent / "probe.ipynb")
    spec.write_text("notebook: probe.ipynb\nparams: {study: nowhere}\n")
    assert main(["plan", str(spec)]) == 0
    assert "Power is unknown: " in capsys.readouterr().out


def test_the_plan_of_the_published_setting_needs_neither_data_nor_gpu(tmp_path, capsys):
    place = Path(__file__).resolve().parents[2] / "papermill_runs/specs/imagenet.yaml"
    assert main(["plan", str(place), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "dinov2_vitb14 at 224 px, 39,548 vertices (published counts of ImageNet and" in said
    assert "as there is no data/imagenet.json)" in said
    encoder, fusion, evaluation = said[said.index("brain encoder") :].splitlines()[:3]
    assert "9,841 images,     1 pass" in encoder and "3.9 GB of tokens in the store" in encoder
    assert "1,271,167 images, 225 passes" in fusion and "from images: 508 GB of tokens" in fusion
    assert "201 GB of responses exceed the store of 20 GB" in fusion
    assert "763,389 images" in evaluation
    if not torch.cuda.is_available():
        assert said.count("not measured here") == 4


def test_the_plan_of_nod_gives_the_bytes_of_the_manifest_without_a_copy(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    study = tmp_path / "study.yaml"
    study.write_text(
        "study: nod\nsubjects: [10, 11]\nimages_of: [12]\npool: true\nbackbone: vit_tiny14\n"
        "image_size: 28\n"
    )
    notebook = Path(__file__).resolve().parents[2] / "notebooks/04_ood_evaluation.ipynb"
    spec = tmp_path / "nod.yaml"
    spec.write_text(
        f"notebook: {notebook}\nparams: {{study: {study}, device: cuda}}\n"
        "grid: {subject: [sub-10, pooled]}\n"
    )
    assert main(["plan", str(spec), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    found = re.findall(r"download of NOD sub-10, sub-11: ([\d.]+) MB in (\d+) files", said)
    assert len(found) == 1 and 450 < float(found[0][0]) < 550 and int(found[0][1]) > 60
    assert "59,412 vertices (published counts of NOD, sub-10, as there is no copy)" in said
    for n in ("1,000", "2,000"):
        assert re.search(rf"brain encoder +{n} images, .* GB of tokens", said)
    assert re.search(r"fusion training +800 images, .* 0.19 GB of responses", said)
    if not torch.cuda.is_available():
        assert said.count("not measured here") == 8


def test_a_plan_says_how_long_it_takes_and_what_is_the_bound_on_a_device_that_exists(spec, capsys):
    (run,) = load_spec(spec)
    parameters = {
        "study": "planted",
        "preset": "tiny",
        "models": ["backbone", "fusion"],
        "seeds": [0, 1],
    }
    said = stages(dataclasses.replace(run, parameters=parameters | {"device": "cpu"}))
    assert "(study planted)" in said[0] and "80 epochs" not in said[1]
    assert "1 pass" in said[2] and "160 epochs of all models" in said[2]
    assert "not measured" not in "".join(said)
    assert re.fullmatch(
        r"  time: the backbone takes [\d,]+ images/s on cpu, and 1 process decode[^;]*; "
        r"(decoding|the backbone) is the bound.*; training takes the brain encoder at [\d,]+ "
        r"images/s and the fusion at [\d,]+ images/s; .*",
        said[-1],
    )
    unknown = stages(dataclasses.replace(run, parameters=parameters | {"study": "nowhere"}))
    assert len(unknown) == 1 and "are unknown: expected the name of a study" in unknown[0]
    assert stages(run) == []


@pytest.mark.parametrize(
    "declared, said",
    [
        ("{primary: fusion}", "expected two models"),
        ("{primary: [a, b], smallest: 2}", "expected a fraction"),
        ("{primary: [a, b], n: 400}", "unknown 'n'"),
    ],
)
def test_wrong_declarations_are_refused(spec, declared, said):
    spec.write_text(f"notebook: probe.ipynb\npreregistered: {declared}\n")
    with pytest.raises(RunError, match=said):
        load_spec(spec)


def test_a_plan_fetches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    monkeypatch.delenv("BMFL_OFFLINE", raising=False)
    main_spec = Path(__file__).resolve().parents[2] / "papermill_runs/specs/main.yaml"
    assert main(["plan", str(main_spec)]) == 0
    assert "Power is unknown: expected a download of" in capsys.readouterr().out
    assert "BMFL_OFFLINE" not in os.environ

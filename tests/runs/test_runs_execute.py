"""Small notebooks that misbehave in every way a run can, and what the runner says about them."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from notebook_example import write_notebook

from bmfl_lab.errors import RunError
from bmfl_lab.runs import execute
from bmfl_lab.runs.__main__ import main

PARAMETERS = """
study: str = "planted"  # study to load
n: int = 3  # how many [1..10]
rate: float = 0.5  # a share [0..1]
label: str = "plain"  # a text
out: str = ""  # folder of results, set by the runner
"""
RECORD = """
from bmfl_lab.records import Record
from bmfl_lab.runs.paths import run_folder
record = Record(notebook="probe", parameters={"n": n}, study={"name": study, "fingerprint": "0", "simulated": True})
_ = record.add("accuracy", rate, unit="fraction", split="test", n=n, selection="none")
"""
FINISH = 'record.finish(run_folder(out, "probe"))'


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))

    # the source tree may be under edit while the tests run; staleness has its own test
    monkeypatch.setattr("bmfl_lab.runs.execute.code_revision", lambda: "abcdefabcdef")
    monkeypatch.setattr("bmfl_lab.runs.execute.code_digest", lambda: "0" * 16)

    def make(*cells, **fields):
        write_notebook(tmp_path / "probe.ipynb", PARAMETERS, *cells)
        spec = tmp_path / "probe.yaml"
        spec.write_text(json.dumps({"notebook": "probe.ipynb", "timeout_min": 5.0, **fields}))
        return spec

    return make


def run(spec, *more):
    return main(["run", str(spec), "--out", str(spec.parent / "out"), *more])


def folder_of(spec):
    (found,) = (spec.parent / "out" / "probe").iterdir()
    return found


def kernels_of(folder):
    """Processes that mention the folder or are the kernel a run noted."""
    found = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if str(folder) in line and "<defunct>" not in line]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_good_run_is_ok_then_skipped_then_stale(project, capsys):
    hint = "x" * 12
    spec = project(
        RECORD,
        f'print("token hf_{hint}{hint} label is", label)',
        FINISH,
        params={"label": "'); import os; os.abort() #", "n": 4},
        expect=[{"metric": "accuracy", "split": "test", "low": 0.4, "high": 0.6}],
    )
    assert main(["plan", str(spec), "--out", str(spec.parent / "out")]) == 0
    assert "absent" in capsys.readouterr().out and not (spec.parent / "out").exists()
    assert run(spec) == 0
    folder = folder_of(spec)
    assert {p.name for p in folder.iterdir()} >= {
        "spec.json",
        "executed.ipynb",
        "record.json",
        "log.txt",
        "figures",
    }
    text = (folder / "log.txt").read_text()
    assert "label is '); import os; os.abort() #" in text and "hf_" not in text
    assert "hf_" not in json.dumps(nbformat.read(folder / "executed.ipynb", 4).cells[3].outputs)
    assert not list(folder.glob("*.tmp")) and not (folder / ".executing.ipynb").exists()
    record = json.loads((folder / "record.json").read_text())
    assert record["parameters"] == {"n": 4} and record["rows"][0]["value"] == 0.5
    stamp = (folder / "record.json").stat().st_mtime_ns
    assert run(spec) == 0 and (folder / "record.json").stat().st_mtime_ns == stamp
    for name in (execute.WORKER_FILE, execute.KERNEL_FILE):  # as if killed after the record
        gone = subprocess.Popen(["sleep", "100"])
        execute.note_process(folder / name, gone.pid)
        gone.kill()
        gone.wait()
    assert run(spec) == 0 and not list(folder.glob(".*"))
    report = spec.parent / "report.md"
    assert main(["report", str(spec), "--out", str(spec.parent / "out"), "--to", str(report)]) == 0
    assert folder.name in report.read_text() and "| test images | 0.500 |" in report.read_text()
    (row,) = csv.DictReader((spec.parent / "report.csv").open())
    assert (row["name"], row["value"], row["n"]) == ("accuracy", "0.5", "4")
    where = ["--html", "--out", str(spec.parent / "out"), "--to", str(spec.parent / "page.html")]
    assert main(["report", str(spec), *where]) == 0
    assert "<td>0.500</td>" in (spec.parent / "page.html").read_text()
    plan = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({**plan, "code_revision": "0123456789ab"}))
    capsys.readouterr()
    assert main(["status", str(spec), "--out", str(spec.parent / "out")]) == 1
    assert "stale" in capsys.readouterr().out


def test_notebooks_side_by_side_share_the_cores(project, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    spec = project(
        "from time import sleep, time; import os; begun = time(); assert int(os.environ['MALLOC_TRIM_THRESHOLD_']) > 1e9",
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'",
        RECORD.replace('"accuracy", rate', '"threads", int(os.environ["OMP_NUM_THREADS"])'),
        "import pathlib; pathlib.Path(out, 'here').touch()",
        # each waits for the other: one after the other they would wait in vain
        "while len(list(pathlib.Path(out).parent.glob('*/here'))) < 2: assert time() < begun + 100; sleep(0.1)",
        FINISH,
        runs=[{"params": {"n": 1}}, {"params": {"n": 2}}],
        expect=[{"metric": "threads", "low": 4, "high": 4}],
    )
    assert run(spec, "--jobs", "2") == 0


BAD = {
    "exit": (
        (RECORD, "import sys; sys.exit(0)", FINISH),
        {},
        "incomplete",
        "not completed: import sys",
    ),
    "exception": (
        (RECORD, "1 / 0  # the guilty cell", FINISH),
        {},
        "error",
        r"in cell 2 \(1 / 0  # the guilty cell\): ZeroDivisionError",
    ),
    "hang": (
        (RECORD, "while True: pass", FINISH),
        {"cell_timeout_min": 0.1},
        "error",
        "CellTimeoutError in cell 2",
    ),
    "stubborn": (
        (
            RECORD,
            "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "while True: time.sleep(1)",
            FINISH,
        ),
        {"cell_timeout_min": 0.1},
        "error",
        "CellTimeoutError in cell 2",
    ),
    "whole run": (
        (RECORD, "print('begun')", "import time; time.sleep(300)", FINISH),
        {"timeout_min": 0.5},
        "error",
        "longer than timeout_min=0.5",
    ),
    "killed": (
        (RECORD, "import os; os.kill(os.getpid(), 9)", FINISH),
        {},
        "error",
        "cell 2.*peak memory was [1-9]",
    ),
    "no record": ((RECORD,), {}, "incomplete", "record.json is missing"),
    "bounds": (
        (RECORD, FINISH),
        {"expect": [{"metric": "accuracy", "low": 0.9}]},
        "error",
        "expected from 0.9",
    ),
    "no row": (
        (RECORD, FINISH),
        {"expect": [{"metric": "nll", "low": 0}]},
        "error",
        "no row with name=nll",
    ),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Run every bad notebook in one spec, three at a time; return what was said, and the seconds it took."""
    root, said = tmp_path_factory.mktemp("bad"), io.StringIO()
    (root / "pyproject.toml").write_text("")
    runs = []
    for case, (cells, fields, _, _) in BAD.items():
        name = f"{case.replace(' ', '_')}.ipynb"
        write_notebook(root / name, PARAMETERS, *cells)
        runs.append({"notebook": name, "timeout_min": 5.0, **fields})
    (root / "probe.yaml").write_text(json.dumps({"runs": runs}))
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(root)
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
        patch.setattr("bmfl_lab.runs.execute.code_revision", lambda: "abcdefabcdef")
        patch.setattr("bmfl_lab.runs.execute.code_digest", lambda: "0" * 16)
        assert (
            main(["run", str(root / "probe.yaml"), "--out", str(root / "out"), "--jobs", "3"]) == 1
        )
    return root / "out" / "probe", said.getvalue(), time.monotonic() - start


@pytest.mark.parametrize("case", BAD)
def test_a_bad_run_is_never_counted_as_success(case, bad):
    _, _, state, reason = BAD[case]
    out, said, seconds = bad
    (folder,) = out.glob(f"{case.replace(' ', '_')}-*")
    (line,) = [
        x for x in said.splitlines() if x.startswith(f"{folder.name}: ") and ": started" not in x
    ]
    assert line.startswith(f"{folder.name}: {state}") and f"0 of {len(BAD)} runs ok" in said
    log = folder / "log.txt"
    if case == "whole run" and not (log.is_file() and "begun" in log.read_text()):
        pytest.skip("the machine was too busy to start a kernel in half a minute")
    assert re.search(reason, line), line
    executed = nbformat.read(folder / "executed.ipynb", 4)
    assert any(
        c.source.startswith("from bmfl_lab.records") and c.execution_count for c in executed.cells
    )
    assert "record" not in case or not (folder / "record.json").exists()
    assert not kernels_of(folder) and seconds < 300


def test_a_dead_kernel_is_noticed_within_five_seconds(project):
    last_words = 'import os, pathlib, time; pathlib.Path("died").write_text(str(time.time())); os.kill(os.getpid(), 9)'
    spec = project(RECORD, last_words, FINISH)
    assert run(spec) == 1
    assert (folder_of(spec) / "state.json").stat().st_mtime - float(
        (spec.parent / "died").read_text()
    ) < 5


def test_long_output_is_capped_with_a_pointer_to_the_log(project):
    picture = 'from IPython.display import display\nfor _ in range(30): display({"image/png": "A" * 100_000}, raw=True)'
    spec = project(RECORD, 'for _ in range(60): print("y" * 100_000)', picture, FINISH)
    assert run(spec) == 0
    folder = folder_of(spec)
    assert (folder / "executed.ipynb").stat().st_size < 4_500_000
    assert (folder / "executed.ipynb").read_text().count("see log.txt") == 2
    assert (folder / "log.txt").stat().st_size > 5_900_000


def test_the_log_has_a_limit_too():
    from bmfl_lab.runs import worker

    state = worker.State()
    state.log = io.StringIO()
    for _ in range(25):
        state.write("y" * 1_000_000)
    assert worker.LOG_BYTES <= len(state.log.getvalue()) <= worker.LOG_BYTES + 1_000_000


def _started(project, tmp_path):
    """Start a runner whose kernel sleeps; return the spec, the runner, and the ids of worker and kernel."""
    spec = project(
        RECORD,
        "import os, time, pathlib",
        'pathlib.Path("pid").write_text(str(os.getpid())); time.sleep(250)',
        FINISH,
    )
    command = [
        sys.executable,
        "-m",
        "bmfl_lab.runs",
        "run",
        str(spec),
        "--out",
        str(tmp_path / "out"),
    ]
    runner = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    _until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), 200)
    kernel = int((tmp_path / "pid").read_text())
    worker = int(Path(f"/proc/{kernel}/stat").read_text().rsplit(")", 1)[1].split()[1])
    assert alive(kernel) and alive(worker)
    return spec, runner, worker, kernel


def _until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def test_a_second_runner_leaves_a_run_alone_however_it_names_it(
    project, tmp_path, monkeypatch, capsys
):
    spec, runner, worker, kernel = _started(project, tmp_path)
    # how long a runner looks whether the other one ends
    monkeypatch.setattr("bmfl_lab.runs.execute._LOOK_S", 0.1)
    try:
        (tmp_path / "link").symlink_to(tmp_path / "out")
        (tmp_path / "other").symlink_to(tmp_path)
        (tmp_path / "deep").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path))
        ways = {
            "the same": [str(spec), "--out", str(tmp_path / "out")],
            "forced": [str(spec), "--out", str(tmp_path / "out"), "--force"],
            "two at a time": [str(spec), "--out", str(tmp_path / "out"), "--jobs", "2"],
            "relative": ["probe.yaml", "--out", "out"],
            "with a slash": [str(spec), "--out", f"{tmp_path}/out/"],
            "with dots": [str(spec), "--out", f"{tmp_path}/deep/../out/."],
            "below home": [str(spec), "--out", "~/out"],
            "through a link": [str(spec), "--out", str(tmp_path / "link"), "--force"],
            "in a linked project": [str(tmp_path / "other" / "probe.yaml"), "--out", "other/out"],
            "from elsewhere": ["../probe.yaml", "--out", "../out", "--force"],
        }
        (folder,) = (tmp_path / "out" / "probe").iterdir()
        before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
        for way, options in ways.items():
            monkeypatch.chdir(tmp_path / "deep" if way == "from elsewhere" else tmp_path)
            assert main(["run", *options]) == 1, way
            assert "running: another process is executing it" in capsys.readouterr().out, way
            assert alive(kernel) and alive(worker) and runner.poll() is None, way
            assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before, way
    finally:
        runner.terminate()
        runner.wait(60)


@pytest.mark.parametrize(
    "signals, code",
    [
        ({"runner": signal.SIGINT}, 130),
        ({"worker": signal.SIGKILL}, 1),
        ({"runner": signal.SIGKILL, "worker": signal.SIGKILL}, -9),
        pytest.param({"runner": signal.SIGTERM}, 143, marks=pytest.mark.slow),
        pytest.param({"runner": signal.SIGKILL}, -9, marks=pytest.mark.slow),
        pytest.param({"worker": signal.SIGTERM}, 1, marks=pytest.mark.slow),
    ],
    ids=lambda value: (
        "-".join(f"{k} {v.name}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_no_kernel_is_left_after_ten_seconds_whoever_dies(signals, code, project, tmp_path, capsys):
    spec, runner, worker, kernel = _started(project, tmp_path)
    for who, number in signals.items():
        os.kill({"runner": runner.pid, "worker": worker}[who], number)
    assert _until(lambda: not alive(kernel) and not alive(worker), 10)
    assert runner.wait(timeout=10) == code
    status = ["status", str(spec), "--out", str(tmp_path / "out")]
    # the lock is free once the last process that a dying worker had started is gone, too
    assert _until(
        lambda: main(status) == 1 and capsys.readouterr().out.startswith(("incomplete", "error")),
        10,
    )
    folder = folder_of(spec)
    if signal.SIGKILL in signals.values():
        assert not (
            folder / "executed.ipynb"
        ).exists()  # half an execution never has the final name
    else:
        assert nbformat.read(folder / "executed.ipynb", 4).cells
    assert not (folder / "record.json").exists()
    assert not (folder / "pid").exists()  # and nothing else was written into the folder of results


@pytest.mark.parametrize(
    "params, match",
    [
        ({"rat": 0.1}, "unknown parameter 'rat': did you mean 'rate'"),
        ({"rate": "0.5"}, r"rate expected float; got '0.5' \(str\)"),
        ({"rate": float("nan")}, "rate expected a finite number; got nan"),
        ({"rate": 2.0}, "rate expected a value from 0 to 1; got 2"),
        ({"n": True}, r"n expected int; got True \(bool\)"),
        ({"label": ["a"]}, "label expected str"),
        ({"out": "x"}, "no parameter 'out'"),
    ],
)
def test_bad_parameters_are_refused_before_a_kernel_starts(params, match, project, capsys):
    spec = project(RECORD, FINISH, params={k: v for k, v in params.items() if v == v})
    if "nan" in match:
        spec.write_text(spec.read_text().replace('"params": {}', '"params": {"rate": .nan}'))
    assert run(spec) == 2
    assert re.search(match, capsys.readouterr().err)
    assert not (spec.parent / "out").exists()


def _untagged(content):
    content["cells"][0]["metadata"] = {}


def _tagged_twice(content):
    content["cells"][1]["metadata"]["tags"] = ["parameters"]


def _computed(content):
    content["cells"][0]["source"] += "\nwidth: int = 2 + n  # computed"


def _foreign_kernel(content):
    content["metadata"]["kernelspec"] = {
        "name": "julia-1.9",
        "display_name": "Julia",
        "language": "julia",
    }


@pytest.mark.parametrize(
    "damage, said",
    [
        (None, "a notebook probe.ipynb; got nothing at"),
        ("{", "damaged JSON"),
        ("", "damaged JSON"),
        ('{"nbformat": 3, "worksheets": []}', "notebook format 4 in probe.ipynb; got 3"),
        ('{"nbformat": 4, "cells": 1}', "a valid notebook in probe.ipynb"),
        (_untagged, "exactly one cell tagged 'parameters' in probe.ipynb; got 0"),
        (_tagged_twice, "exactly one cell tagged 'parameters' in probe.ipynb; got 2"),
        (_computed, "a literal for 'width' in probe.ipynb"),
        (_foreign_kernel, "kernel 'python3' in probe.ipynb; got 'julia-1.9'"),
    ],
)
def test_a_notebook_that_cannot_run_is_refused_within_a_second(damage, said, project, capsys):
    spec = project(RECORD)
    target = spec.parent / "probe.ipynb"
    if damage is None:
        target.unlink()
    elif isinstance(damage, str):
        target.write_text(damage)
    else:
        content = json.loads(target.read_text())
        damage(content)
        target.write_text(json.dumps(content))
    began = time.process_time()
    assert run(spec) == 2 and time.process_time() - began < 1
    assert said in capsys.readouterr().err and not (spec.parent / "out").exists()


def test_a_folder_that_cannot_be_made_or_written_is_refused(project, capsys, monkeypatch):
    spec = project(RECORD, FINISH)
    (spec.parent / "out").write_text("a file")
    assert run(spec) == 2 and "writable folder" in capsys.readouterr().err
    (spec.parent / "out").unlink()
    (spec.parent / "out").mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom no mode keeps from writing

        def refused(self, *_, **__):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refused)
    assert run(spec) == 2
    said = capsys.readouterr()
    assert (
        "a writable folder" in said.err
        and "Permission denied" in said.err
        and "choose another with --out" in said.err
    )
    assert not list((spec.parent / "out").iterdir())


def _command(spec, *more, **surroundings):
    """Run a spec in a process of its own with another environment; return what it printed."""
    command = [sys.executable, "-m", "bmfl_lab.runs", "run", str(spec), *more]
    environment = {**os.environ, **{k: str(v) for k, v in surroundings.items() if k != "cwd"}}
    done = subprocess.run(
        command, cwd=surroundings.get("cwd"), env=environment, capture_output=True
    )
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def _foreign_kernels(folder):
    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return folder


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def _long_paths(root):
    """Return folders with paths too long for a socket, in a locale of Western Europe."""
    return {
        "HOME": _made(root / "home" / "institute" / "department" / ("n" * 60)),
        "XDG_RUNTIME_DIR": _made(root / ("r" * 90)),
        "JUPYTER_RUNTIME_DIR": _made(root / ("j" * 90)),
        "LC_ALL": "C.ISO-8859-1",
        "PYTHONIOENCODING": "latin-1",
    }


def _elsewhere(root):
    """Return kernels of others, a locale of ASCII and a folder outside the project."""
    return {
        "JUPYTER_PATH": _foreign_kernels(root / "another environment"),
        "JUPYTER_DATA_DIR": _foreign_kernels(root / "users kernels"),
        **{"LC_ALL": "C", "PYTHONCOERCECLOCALE": 0, "PYTHONUTF8": 0},
        "cwd": _made(root / "elsewhere"),
    }


@pytest.mark.parametrize("surroundings", [_long_paths, _elsewhere])
def test_a_run_does_not_depend_on_its_surroundings(surroundings, project, tmp_path):
    spec = project(
        RECORD,
        f"import sys; assert sys.executable == {sys.executable!r}; print(chr(9608), 'ü')",
        FINISH,
    )
    around = surroundings(tmp_path / "around")
    # a tilde that the shell left in place is the home folder
    code, said = _command(spec, *(["--out=~/runs"] if "HOME" in around else []), **around)
    assert code == 0 and "1 of 1 runs ok" in said, said
    out = around["HOME"] / "runs" if "HOME" in around else tmp_path / "papermill_runs" / "out"
    (folder,) = (out / "probe").iterdir()
    assert "\u2588 ü" in (folder / "log.txt").read_text(encoding="utf-8")
    assert not (tmp_path / "~").exists()
    if "cwd" in around:
        assert not list(around["cwd"].iterdir())


def _startup(folder):
    _made(folder / "profile_default" / "startup")
    (folder / "profile_default" / "startup" / "00.py").write_text("n = 9\nraise SystemExit(3)")
    lines = "c = get_config()\nc.InteractiveShellApp.exec_lines = ['n = 9']\n"
    (folder / "profile_default" / "ipython_kernel_config.py").write_text(lines)
    return folder


def _script(folder):
    (_made(folder) / "start.py").write_text("n = 9\nraise SystemExit(3)")
    return folder / "start.py"


def _broken_configuration(folder):
    for name in ("jupyter_config", "ipython_config", "ipykernel_config"):
        (folder / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text('{"KernelManager": ')
    return folder


SURROUNDINGS = {
    "IPython startup": lambda root: {"IPYTHONDIR": _startup(root / "ipython")},
    "Python startup": lambda root: {"PYTHONSTARTUP": _script(root / "startup")},
    "Jupyter config": lambda root: {"JUPYTER_CONFIG_DIR": _broken_configuration(root / "config")},
    "Jupyter config path": lambda root: {"JUPYTER_CONFIG_PATH": _broken_configuration(root / "cp")},
    "no temporary folder": lambda root: {"TMPDIR": root / "missing"},
    "warnings as errors": lambda root: {"PYTHONWARNINGS": "error"},
    "no assertions": lambda root: {"PYTHONOPTIMIZE": 2},
    "no bytecode": lambda root: {"PYTHONDONTWRITEBYTECODE": 1},
    "a breakpoint": lambda root: {"PYTHONBREAKPOINT": "no.such.debugger"},
    "no buffers": lambda root: {"PYTHONUNBUFFERED": 1},
    "another time and language": lambda root: {"TZ": "Pacific/Kiritimati", "LANG": "tr_TR"},
    "another figure backend": lambda root: {"MPLBACKEND": "TkAgg"},
    "figures of the user": lambda root: {
        "MATPLOTLIBRC": _script(root / "rc"),
        "MPLCONFIGDIR": root,
    },
    "a hash seed": lambda root: {"PYTHONHASHSEED": 7},
    "checks of asyncio": lambda root: {"PYTHONASYNCIODEBUG": 1},
    "numbers of pandas": lambda root: {
        "PANDAS_COPY_ON_WRITE": 1,
    },
    "a debugger": lambda root: {"PYDEVD_DISABLE_FILE_VALIDATION": 1, "PYTHONBREAKPOINT": "x.y"},
    "a secret": lambda root: {"AWS_SECRET_ACCESS_KEY": "correct-horse-battery"},
    "one that nobody has thought of": lambda root: {"UNKNOWN_LIBRARY_MODE": "wrong"},
    "a function of the shell": lambda root: {"BASH_FUNC_ls%%": "() { echo wrong; }"},
}
NEEDED = {
    **{name: "kept" for name in ("BMFL_OF_THE_USER", "SLURM_JOB_ID", "HF_HOME", "TORCH_HOME")},
    **{
        name: "kept" for name in ("https_proxy", "NO_PROXY", "SSL_CERT_FILE", "npm_config_registry")
    },
    **{name: "kept" for name in ("CUDA_DEVICE_ORDER", "PIP_CONFIG_FILE", "REQUESTS_CA_BUNDLE")},
    **{"MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
}
"""Variables that a run must not lose."""
AS_EVER = """
import matplotlib, os, tempfile, warnings
assert n == 3 and __debug__ and not any(f[0] == "error" and f[2] is Warning for f in warnings.filters)
assert matplotlib.get_backend().endswith("inline") and tempfile.mkdtemp()
assert {k: os.environ.get(k) for k in needed} == needed
assert not set(strange) & set(os.environ), set(strange) & set(os.environ)
"""
SET_BY_THE_RUN = {"IPYTHONDIR", "JUPYTER_CONFIG_DIR", "MPLBACKEND", "TMPDIR", "TZ", "LANG"}
"""Variables of `SURROUNDINGS` that a run has all the same, of the user or with values of its own."""


def _check_surroundings(project, tmp_path, names):
    around = {}
    for name in names:
        around |= SURROUNDINGS[name](tmp_path / "around")
    strange = sorted(set(around) - SET_BY_THE_RUN)
    cell = f"needed, strange = {NEEDED}, {strange}{AS_EVER}"
    command = _command(project(RECORD, cell, FINISH), **around, **NEEDED)
    assert command[0] == 0 and "1 of 1 runs ok" in command[1], command[1]


def test_a_run_depends_on_no_file_and_variable_of_its_user(project, tmp_path):
    _check_surroundings(project, tmp_path, SURROUNDINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_run_does_not_depend_on_one_of_them_alone(project, tmp_path, name):
    _check_surroundings(project, tmp_path, [name])


def test_an_odd_character_in_an_error_does_not_end_the_runner(project):
    surroundings = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": 0, "PYTHONUTF8": 0}
    code, said = _command(project(RECORD, "raise ValueError(1)  # µ", FINISH), **surroundings)
    assert code == 1 and "ValueError: 1" in said and "UnicodeEncodeError" not in said


def test_run_folder_is_the_same_from_the_root_and_from_notebooks(tmp_path, monkeypatch):
    from bmfl_lab.runs.paths import run_folder

    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "notebooks").mkdir()
    found = []
    for folder in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(folder)
        found.append(run_folder("", "03_x"))
    assert found[0] == found[1] == tmp_path / "papermill_runs" / "out" / "manual" / "03_x"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="set the notebook's parameter 'out' to a folder of yours"):
        run_folder(tmp_path / "file", "03_x")
    assert (found[0] / "figures").is_dir() and os.path.isdir(run_folder(tmp_path / "other", "03_x"))

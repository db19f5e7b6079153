"""The environment that the set-up makes, and the files that describe it."""

import http.server
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = ".ci/constraints-cpu.txt"
CHOOSER = ROOT / ".ci" / "torch_build.py"
INDEX = "https://download.pytorch.org/whl/cpu"


def test_a_cpu_torch_brought_no_cuda_package_and_no_torchvision():
    import torch

    if not torch.__version__.endswith("+cpu"):
        pytest.skip(f"torch {torch.__version__} is not a CPU build")
    names = {(d.metadata["Name"] or "").lower() for d in importlib.metadata.distributions()}
    assert len(names) > 50
    bad = {
        n
        for n in names
        if n.startswith(("nvidia-", "cuda-")) or n in ("triton", "torchvision", "timm")
    }
    assert not bad


def test_what_is_installed_agrees_with_itself():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_constraint_pins_torch_within_the_declared_range():
    from packaging.requirements import Requirement

    lines = [
        x
        for x in (ROOT / CONSTRAINTS).read_text().splitlines()
        if x.strip() and not x.startswith("#")
    ]
    assert [Requirement(x).name for x in lines] == ["torch"]
    (pin,) = Requirement(lines[0]).specifier
    (declared,) = [
        Requirement(d) for d in PROJECT["dependencies"] if Requirement(d).name == "torch"
    ]
    assert pin.operator == "==" and pin.version in declared.specifier


def test_environment_yml_says_what_pyproject_says():
    data = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert data["channels"] == ["conda-forge", "nodefaults"]
    plain = [d for d in data["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in data["dependencies"] if isinstance(d, dict)]
    assert f"python{PROJECT['requires-python']}" in plain and {"pip", "nodejs"} <= set(plain)
    assert pip == [f"--extra-index-url {INDEX}", f"-c {CONSTRAINTS}", "-e .[test]"]
    assert "test" in PROJECT["optional-dependencies"]


def test_every_install_command_carries_the_constraint():
    installs = []
    for name in ("Makefile", ".ci/run", "README.md", "environment.yml"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        installs += [(name, x) for x in text.splitlines() if re.search(r"pip install|^\s*- -e ", x)]
    assert any(n == "Makefile" for n, _ in installs)
    for name, line in installs:
        if name == "environment.yml":
            assert f"- -c {CONSTRAINTS}" in (ROOT / name).read_text()
        elif "torch" not in line and "GPU" not in line:
            assert "$(TORCH_OPTIONS)" in line, f"{name}: {line}"


def _write_wheel(folder, version):
    """Write an empty wheel of torch that pip can resolve."""
    folder.mkdir(exist_ok=True)
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-linux_x86_64.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-linux_x86_64\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")


def _choose(index, **environment):
    """Run the chooser with an index; return pip's options and the sentence about the build."""
    done = subprocess.run(
        [sys.executable, CHOOSER],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TORCH_CPU_INDEX": index, **environment},
    )
    return done.stdout.split(), done.stderr.strip()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="wheels of Linux on x86_64"
)
@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        (["2.13.0+cpu"], "the CPU build torch-2.13.0+cpu-py3"),
        (["2.13.0"], "which PyPI builds with CUDA (about 3 GB"),
        (["2.13.0", "2.13.0+cpu"], "the CPU build torch-2.13.0+cpu-py3"),
        (["2.12.0"], "pip finds no torch for this Python"),
    ],
)
def test_without_the_index_the_set_up_says_which_build_pip_takes(versions, sentence, tmp_path):
    for version in versions:
        _write_wheel(tmp_path / "wheels", version)
    closed = "http://127.0.0.1:9/whl/cpu"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    options, said = _choose(closed, **offline)
    assert options == ["-c", CONSTRAINTS] and sentence in said and said.count("\n") == 0


def test_the_set_up_takes_the_cpu_build_of_an_index_that_answers(tmp_path):
    (tmp_path / "torch").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}"
        options, said = _choose(index, no_proxy="127.0.0.1")
        server.shutdown()
    assert options == ["-c", CONSTRAINTS, "--extra-index-url", index]
    assert "CPU build" in said and "0.2 GB" in said
    assert INDEX in CHOOSER.read_text()


def test_the_set_up_leaves_the_build_to_pip_where_a_gpu_is(tmp_path):
    for status, expected in ((0, []), (1, ["-c", CONSTRAINTS])):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nexit {status}\n")
        tool.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        assert _choose("http://127.0.0.1:9", PATH=path, PIP_NO_INDEX="1")[0] == expected


@pytest.mark.parametrize("tool", ["python3", "npm"])
def test_make_says_in_one_sentence_what_is_missing(tool, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cat", "cksum", "cut", "sed", "test", "touch", "rm", "echo", "env"):
        found = subprocess.run(["which", name], capture_output=True, text=True).stdout.strip()
        if found:
            (tmp_path / "bin" / name).symlink_to(found)
    make = subprocess.run(["which", "make"], capture_output=True, text=True).stdout.strip()
    if not make:
        pytest.skip("make is not installed")
    command = [make, "-C", str(ROOT), "run", f"VENV={tmp_path / 'venv'}"]
    if tool == "npm":
        (tmp_path / "venv" / "bin").mkdir(parents=True)
        (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
        command += ["-o", "setup"]
    environment = {
        "PATH": str(tmp_path / "bin"),
        "BMFL_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    said = [x for x in (done.stdout + done.stderr).splitlines() if x.startswith("error: ")]
    assert done.returncode != 0 and len(said) == 1 and tool in said[0], done.stdout + done.stderr


def test_a_study_that_cannot_be_had_is_one_sentence(tmp_path):
    (tmp_path / "npm").write_text("#!/bin/sh\necho no route to the index >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "BMFL_HOME": str(tmp_path / "home"),
        "BMFL_OFFLINE": "0",
        "PIP_NO_INDEX": "1",
        **dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
        ),
    }
    command = [sys.executable, "-m", "bmfl_lab.data", "demo"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        "no route to the index" in said[0] or "PIP_NO_INDEX" in said[0] or "No matching" in said[0]
    )
    done = subprocess.run(
        [*command[:-1], "planted"], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0 and "simulated" in done.stdout


def test_importing_the_package_is_light_and_leaves_cuda_alone():
    code = (
        "import sys, json, bmfl_lab, bmfl_lab.runs, bmfl_lab.records; "
        "heavy = ('torch', 'nilearn', 'plotly', 'matplotlib', 'sklearn', 'scipy', 'papermill', 'pandas', 'transformers');"
        "print(json.dumps([m for m in heavy if m in sys.modules])); "
        "import bmfl_lab.runs.worker, bmfl_lab.runs.__main__; "
        "heavy = ('torch', 'nilearn', 'plotly', 'matplotlib', 'scipy.stats', 'rfc3987_syntax');"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[], []]


def test_no_import_initialises_cuda():
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in sorted((ROOT / "bmfl_lab").rglob("*.py"))
        if p.stem not in ("__main__", "worker")
    ]
    code = f"import importlib, torch\nfor m in {modules!r}: importlib.import_module(m)\nassert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(modules) >= 30


def test_the_offline_guard_refuses_an_outside_address(no_network):
    import socket

    with (
        socket.socket() as outside,
        pytest.raises(ConnectionRefusedError, match="a test tried to reach"),
    ):
        outside.connect(("192.0.2.1", 80))
    assert no_network == [("192.0.2.1", 80)]
    no_network.clear()


def test_jupyter_answers_nobody_without_the_token():
    from jupyter_server.serverapp import ServerApp

    text = (ROOT / "Makefile").read_text()
    line = next(x for x in text.splitlines() if "bin/jupyter lab" in x)
    flags = dict(
        re.findall(
            r"--ServerApp\.(\w+)=([\w.]+)",
            next(x for x in text.splitlines() if x.startswith("LAB_SAFE")),
        )
    )
    assert "$(LAB_SAFE)" in line and flags == {
        "allow_unauthenticated_access": "False",
        "terminals_enabled": "False",
        "identity_provider_class": "widgets.lab.TokenRequired",
    }
    traits = ServerApp.class_traits(config=True)
    assert set(flags) <= set(traits)
    assert traits["ip"].default() == "localhost" and not traits["allow_root"].default()
    assert not traits["disable_check_xsrf"].default() and traits["allow_origin"].default() == ""


@pytest.mark.parametrize(
    "address, token",
    [
        ("0.0.0.0", "--IdentityProvider.token="),
        pytest.param("127.0.0.1", "--ServerApp.token=", marks=pytest.mark.slow),
    ],
)
def test_jupyter_does_not_start_with_an_empty_token(address, token, tmp_path):
    command = ["make", "-C", str(ROOT), "-o", "setup", "lab", f"VENV={sys.prefix}"]
    command += [f"LAB_CONFIG={tmp_path}"]
    command += [f"LAB_ARGS=--no-browser --allow-root --ip={address} {token}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "running at" not in done.stderr
    assert "leave out --ServerApp.token=" in done.stderr

"""Calls that run code from data, machine-bound paths and index addresses stand nowhere in the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Assembled from pieces, so that this file does not contain what it looks for.
CALLS = {
    "allow_pickle": r"allow_pickle\s*=\s*" + "True",
    "weights_only": r"weights_only\s*=\s*" + "False",
    "pickle": r"\bpickle\." + r"loads?\(|\bfrom pickle import|Unpickler\(",
    "extractall": r"\.extract" + r"all\(",
    "eval": r"(?<![\w.])eva" + r"l\(",
    "exec": r"(?<![\w.])exe" + r"c\(",
    "yaml": r"yaml\.(?:unsafe_|full_)?" + r"load\(",
    "shell": r"shell\s*=\s*" + "True",
    "remote": "trust_remote" + "_code",
    "bare except": r"except\s*:" + r"\s*(?:#.*)?$",
    "assert as check of input": r"os\.sys" + r"tem\(",
}
PATHS = r"""["'](?:/(?:home|root|Users|mnt|work|scratch)\b|[A-Z]:\\\\)"""
HOSTS = (
    r"pypi\.org|pythonhosted|npmjs\.(?:org|com)|deb\.debian|anaconda\.(?:org|com)|download\.pytorch"
)
SOURCES = sorted([*(ROOT / "bmfl_lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")])
EVERYTHING = sorted(
    p
    for top in ("bmfl_lab", "widgets", "notebooks", "tests", "papermill_runs/specs", ".ci")
    for p in (ROOT / top).rglob("*")
    if p.suffix in (".py", ".ipynb", ".yaml", ".txt", ".sh", "")
    and p.is_file()
    and not {"__pycache__", ".ruff_cache", ".ipynb_checkpoints"} & set(p.parts)
) + [ROOT / n for n in ("Makefile", "environment.yml", "pyproject.toml", "README.md")]


def hits(pattern, paths):
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("name", CALLS)
def test_no_forbidden_call(name):
    assert not hits(CALLS[name], SOURCES)


def test_no_absolute_path():
    assert not hits(PATHS, SOURCES)


def test_no_address_of_a_package_index():
    found = hits(HOSTS, [p for p in EVERYTHING if p != Path(__file__).resolve()])
    # PyTorch's own index holds the CPU builds; the set-up names it and nothing else does
    torch_index = (".ci/torch_build.py:", "environment.yml:", "tests/test_environment.py:")
    assert [f for f in found if "download.pytorch" in f and f.startswith(torch_index)] == found


@pytest.mark.parametrize(
    "name, line",
    [
        ("allow_pickle", "np.load(p, allow_pickle=" + "True)"),
        ("pickle", "pickle." + "load(f)"),
        ("eval", "x = eva" + "l(text)"),
        ("yaml", "yaml." + "load(text)"),
        ("bare except", "    except" + ":"),
        ("shell", "run(c, shell=" + "True)"),
    ],
)
def test_the_patterns_find_what_they_name(name, line):
    assert re.search(CALLS[name], line)


def test_the_patterns_let_the_safe_forms_pass():
    for line in ("model.eval()", "ast.literal_eval(x)", "yaml.safe_load(t)", "except OSError:"):
        assert not any(re.search(p, line) for p in CALLS.values()), line


def test_enough_files_were_swept():
    assert len(SOURCES) >= 30 and len(EVERYTHING) > len(SOURCES) + 20

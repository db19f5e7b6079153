"""JupyterLab as ``make lab`` starts it: what it needs before it listens on an address."""

import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_server.auth import passwd
from jupyter_server.serverapp import ServerApp

from widgets.lab import TokenRequired

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def started(tmp_path, monkeypatch, capfd):
    """Make a server as the command line does, up to where it listens; return why it stopped."""
    for name in ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"JUPYTER_{name}", str(tmp_path / name))
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)

    def start(*arguments):
        ServerApp.clear_instance()
        app = ServerApp.instance()
        options = ["--allow-root", "--no-browser", f"--ServerApp.root_dir={tmp_path}"]
        options.append("--ServerApp.identity_provider_class=widgets.lab.TokenRequired")
        try:
            app.initialize([*options, *arguments], find_extensions=False, new_httpserver=False)
        except SystemExit as stopped:
            assert stopped.code == 1
            return capfd.readouterr().err
        assert (
            isinstance(app.identity_provider, TokenRequired) and app.identity_provider.auth_enabled
        )
        return ""

    yield start
    ServerApp.clear_instance()


LOCAL = ("localhost", "127.0.0.1", "127.0.0.2", "::1")
OPEN = ("0.0.0.0", "", "*", "::", "192.0.2.7", "10.0.0.1")


@pytest.mark.parametrize("address", LOCAL)
def test_the_machine_itself_needs_a_token_only(address, started):
    assert started(f"--ip={address}") == ""
    assert "an empty token" in started(f"--ip={address}", "--IdentityProvider.token=")


@pytest.mark.parametrize("address", OPEN)
def test_other_machines_need_a_password(address, started):
    said = started(f"--ip={address}")
    assert "a password for a notebook server that other machines reach" in said
    assert "jupyter server password" in said and "ssh -L" in said
    hashed = passwd("long enough", algorithm="sha1")
    with_password = f"--PasswordIdentityProvider.hashed_password={hashed}"
    assert started(f"--ip={address}", with_password) == ""


EMPTY = {
    "server": ["--ServerApp.token="],
    "lab": ["--LabApp.token="],
    "notebook": ["--NotebookApp.token="],
    "identity provider": ["--IdentityProvider.token="],
    "its own class": ["--TokenRequired.token="],
    "quotes": ["--IdentityProvider.token=''"],
    "a blank": ["--IdentityProvider.token= "],
    "tabs": ["--ServerApp.token=\t\t"],
    "and no password": ["--IdentityProvider.token=", "--PasswordIdentityProvider.hashed_password="],
    "a file in Python": "c.IdentityProvider.token = ''",
    "an old file": "c.ServerApp.token = ''",
    "a file with a blank": "c.IdentityProvider.token = ' '",
    "a file in JSON": '{"IdentityProvider": {"token": ""}}',
    "a variable": {"JUPYTER_TOKEN": ""},
    "an empty file": {"JUPYTER_TOKEN_FILE": "/dev/null"},
}


@pytest.mark.parametrize("address", ["localhost", "0.0.0.0"])
@pytest.mark.parametrize("how", EMPTY)
def test_an_empty_token_serves_nobody(how, address, started, tmp_path, monkeypatch):
    given, options = EMPTY[how], [f"--ip={address}"]
    if isinstance(given, dict):
        for name, value in given.items():
            monkeypatch.setenv(name, value)
    elif isinstance(given, str):
        file = tmp_path / ("set.json" if given.startswith("{") else "set.py")
        file.write_text(given)
        options.append(f"--config={file}")
    else:
        options += given
    said = started(*options)
    if said or address != "localhost":
        assert "To fix it: " in said and ("an empty token" in said or "a token only" in said)
    else:  # what Jupyter does not read leaves the token that it makes itself
        assert len(ServerApp.instance().identity_provider.token) > 20


def test_make_lab_refuses_an_open_address_with_a_token_only(tmp_path):
    command = ["make", "-C", str(ROOT), "-o", "setup", "lab", f"VENV={sys.prefix}"]
    command += [f"LAB_CONFIG={tmp_path}"]
    command += ["LAB_ARGS=--no-browser --allow-root --ip=0.0.0.0 --ServerApp.token=abcdef"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "running at" not in done.stderr
    assert "a password for a notebook server that other machines reach" in done.stderr


def test_make_lab_refuses_root_unless_it_is_told_otherwise(tmp_path):
    import os

    if os.geteuid():
        pytest.skip("only root is refused")
    command = ["make", "-C", str(ROOT), "-o", "setup", "lab", f"VENV={sys.prefix}"]
    command += [f"LAB_CONFIG={tmp_path}", "LAB_ARGS=--no-browser"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "running as root is not recommended" in done.stderr.lower()

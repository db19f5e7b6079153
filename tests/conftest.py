"""Shared by every test: no connection leaves this machine unless a test is marked ``network`` or ``browser``."""

import ipaddress
import os
import socket

import pytest


def pytest_xdist_auto_num_workers(config):
    """Start one process more than there are cores: many tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


def _share_cores():
    """Divide the cores between the test processes; otherwise every one takes all of them.

    Threads that wait for each other sleep: many tests start processes that need the cores. Torch
    reads this when it is loaded, which the conftest.py of a folder may do before pytest is set up.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


_share_cores()
# some hundred processes would compile the package anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _is_local(address):
    if not isinstance(address, tuple):
        return True
    host = str(address[0]).split("%")[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def pytest_ignore_collect(collection_path, config):
    """Leave out the tests in a browser, whose imports take seconds, where none of them is asked for."""
    if collection_path.name == "browser" and "not browser" in config.option.markexpr:
        return True
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, and begin with the files that take longest.

    Torch is only loaded when somebody asks for tests of a GPU.
    """
    items.sort(key=lambda item: item.path.parent.name not in ("runs", "widgets"))
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Return a folder that all processes of this run of the tests share: what one keeps there, others read."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def no_network(request, monkeypatch):
    """Refuse and report any connection attempt beyond the loopback interface; yields the attempts."""
    attempts = []
    if request.node.get_closest_marker("network") or request.node.get_closest_marker("browser"):
        yield attempts
        return
    monkeypatch.setenv("BMFL_OFFLINE", "1")
    for name in ("connect", "connect_ex"):
        original = getattr(socket.socket, name)

        def guarded(self, address, _original=original):
            if not _is_local(address):
                attempts.append(address)
                raise ConnectionRefusedError(f"a test tried to reach {address}")
            return _original(self, address)

        monkeypatch.setattr(socket.socket, name, guarded)
    yield attempts
    assert not attempts, f"connection attempts in an offline test: {attempts}"

"""Tests of trainings keep their models apart from those of the user and of each other."""

import sys

import nbformat
import pytest
import torch
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from bmfl_lab import load_study
from bmfl_lab.training import context


@pytest.fixture(autouse=True)
def own_models(monkeypatch, tmp_path_factory):
    """Keep models that are trained without a folder of their own in a new one."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(context, "home", lambda: folder)
    return folder


@pytest.fixture
def one_thread():
    """Let torch use one thread, so that every training takes place in this process."""
    yield from _threads(1)


@pytest.fixture
def two_threads():
    """Let torch use two threads, so that two trainings run in parallel."""
    yield from _threads(2)


def _threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_study():
    """Return a planted study of a few images."""
    sizes = {"n_encoder": 60, "n_encoder_val": 20, "n_encoder_test": 20}
    return load_study("planted", **sizes, n_train=48, n_val=24, n_test=24)


@pytest.fixture
def run_cells(tmp_path):
    """Return a function that runs cells in a kernel, errors allowed, and returns them."""

    def run(*sources):
        manager = KernelManager(transport="ipc", connection_file=str(tmp_path / "k.json"))
        manager._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        )
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells)
        client = NotebookClient(notebook, timeout=200, allow_errors=True, km=manager)
        try:
            return client.execute().cells
        finally:
            manager.shutdown_kernel(now=True)

    return run

"""Tests of trainings keep their models apart from those of the user and of each other."""

import pytest
import torch

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
    """Let torch use two threads, so that two trainings take place at a time."""
    yield from _threads(2)


def _threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)

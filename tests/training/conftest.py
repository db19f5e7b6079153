"""Tests of trainings keep their models apart from those of the user and of each other."""

import pytest

from bmfl_lab.training import context


@pytest.fixture(autouse=True)
def own_models(monkeypatch, tmp_path_factory):
    """Keep models that are trained without a folder of their own in a new one."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(context, "home", lambda: folder)
    return folder

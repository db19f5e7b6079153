"""Headless notebook runs: specs, execution through papermill, records, reports.

``from bmfl_lab.runs import start_notebook`` is what a notebook needs; ``run_folder`` returns the
folder that it writes to. Names are imported on first use, because start_notebook knows the names of
models and shifts, and these need SciPy; papermill is imported only when a run starts.
"""

from __future__ import annotations

import importlib

_MODULES = {
    "downloads": "plan",
    "run_folder": "paths",
    "stages": "plan",
    "start_notebook": "notebook",
    "study_stages": "plan",
    "train_in_processes": "launch",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f"bmfl_lab.runs.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'bmfl_lab.runs' has no attribute {name!r}")

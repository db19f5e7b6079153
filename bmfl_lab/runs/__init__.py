"""Headless notebook runs: specs, execution through papermill, records, reports.

``from bmfl_lab.runs import start_notebook`` is what a notebook needs; ``run_folder`` returns the
folder that it writes to. Both are imported on first use, because start_notebook knows the names of
models and shifts, and these need SciPy; papermill is imported only when a run starts.
"""

from __future__ import annotations

import importlib

_HOMES = {"start_notebook": "bmfl_lab.runs.notebook", "run_folder": "bmfl_lab.runs.paths"}
__all__ = ["run_folder", "start_notebook"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bmfl_lab.runs' has no attribute {name!r}")

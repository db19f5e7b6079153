"""Headless notebook runs: specs, execution through papermill, records, reports.

``from bmfl_lab.runs import start_notebook`` is what a notebook needs. It is imported on first use,
because it knows the names of models and shifts, and these need SciPy; papermill is imported only
when a run starts.
"""

from __future__ import annotations

import importlib

__all__ = ["start_notebook"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("bmfl_lab.runs.notebook"), name)
    raise AttributeError(f"module 'bmfl_lab.runs' has no attribute {name!r}")

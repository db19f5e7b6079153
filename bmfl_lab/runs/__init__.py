"""Headless notebook runs: specs, execution through papermill, records, reports.

``from bmfl_lab.runs import start_notebook`` is what a notebook needs; papermill is imported only
when a run starts.
"""

from __future__ import annotations

from bmfl_lab.runs.notebook import start_notebook

__all__ = ["start_notebook"]

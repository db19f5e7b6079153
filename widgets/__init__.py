"""Interactive widgets: state -> pure select -> figure. No torch in here.

A notebook with widgets is served as an app (extra ``app``) by

    voila NOTEBOOK.ipynb --no-browser --Voila.ip=127.0.0.1 --VoilaExecutor.skip_cells_with_tag=none

where the last option makes it run the cells tagged ``skip-execution``, which hold the widgets. Its
page template asks a public host for an icon font; the widgets themselves fetch nothing.
"""

from __future__ import annotations

import importlib

_PUBLIC = {
    "attention_explorer": "attention",
    "surface_viewer": "surface",
    "region_ablation": "ablation",
    "ood_explorer": "ood",
    "run_browser": "runs",
}

__all__ = ["attention_explorer", "ood_explorer", "region_ablation", "run_browser", "surface_viewer"]


def __getattr__(name: str):
    if name in _PUBLIC:
        # the page reads plotly.js, which takes it a second, while the rest is imported here
        importlib.import_module("widgets.shelf").shelf()
        return getattr(importlib.import_module(f"widgets.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'widgets' has no attribute {name!r}")

"""Interactive widgets: a state, a function that selects its arrays, and figures that show them.

A notebook with widgets is served as an app (extra ``app``) by

    voila NOTEBOOK.ipynb --no-browser --Voila.ip=127.0.0.1 --VoilaExecutor.skip_cells_with_tag=none

The last option makes voila run the cells tagged ``skip-execution``, which contain the widgets.
Voila's page template requests an icon font from a public host; the widgets themselves request
nothing. Nothing in this package imports torch.
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


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"widgets.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'widgets' has no attribute {name!r}")

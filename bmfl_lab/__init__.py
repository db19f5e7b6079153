"""BMFL lab: does fusing a vision model with predicted human brain responses help it generalise?

Importing this package loads neither torch nor plotting libraries and never initialises CUDA.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_study"]


def __getattr__(name: str) -> Any:
    if name == "load_study":
        from bmfl_lab.data.study import load_study

        return load_study
    raise AttributeError(f"module 'bmfl_lab' has no attribute {name!r}")

"""Figures from NumPy arrays and pandas tables; nothing here imports torch."""

from bmfl_lab.viz.saving import show

__all__ = ["show"]

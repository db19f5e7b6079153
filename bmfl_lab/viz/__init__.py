"""Figures: NumPy and pandas in, figures out; never imports torch."""

from bmfl_lab.viz.show import show

__all__ = ["show"]

"""Figures: NumPy and pandas in, figures out; never imports torch."""

from bmfl_lab.viz.show import save_html, show

__all__ = ["save_html", "show"]

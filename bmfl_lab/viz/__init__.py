"""Figures: NumPy and pandas in, figures out; never imports torch."""

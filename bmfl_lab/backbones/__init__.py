"""Frozen vision backbones and their cached features."""

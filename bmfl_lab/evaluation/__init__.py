"""Evaluation of trained models: encoding accuracy, OOD suites, ablations, similarity."""

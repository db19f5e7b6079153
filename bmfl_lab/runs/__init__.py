"""Headless notebook runs: specs, execution through papermill, records, reports."""

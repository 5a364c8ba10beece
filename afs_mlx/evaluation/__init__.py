"""Suites, scorers, statistics and the gate. Gets a `generate` callable; knows no model and no run."""
